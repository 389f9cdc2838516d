-- What is said of control registers that the kernel refuses, and of a VM that cannot run yet.

local ckvm = require "ckvm"
local support = require "support"
local x86 = require "ckvm.x86"

local contains, error_of = support.contains, support.error_of
local cr0 <const>, cr4 <const>, efer <const> = x86.cr0, x86.cr4, x86.efer
local PAGED <const> = cr0.pe | cr0.et | cr0.pg

local CASES <const> = {
  ["cr0.PG (bit 31) needs cr0.PE (bit 0): cr0 0x80000000,"] = { cr0 = 0x80000000 },
  ["cr0.NW (bit 29) needs cr0.CD (bit 30): cr0 0x20000000,"] = { cr0 = 1 << 29 },
  ["cr0 has 32 bits: cr0 0x100000000,"] = { cr0 = 1 << 32 },
  ["cr0.PG with efer.LME needs cr4.PAE (bit 5): cr0 0x80000011, cr3 0x0, cr4 0x0, efer 0x500"] =
    { cr0 = PAGED, cr4 = 0, efer = efer.lme | efer.lma },
  ["cr0.PG with efer.LME (bit 8) needs efer.LMA (bit 10)"] =
    { cr0 = PAGED, cr4 = cr4.pae, efer = efer.lme },
  ["efer.LMA (bit 10) needs efer.LME (bit 8) and cr0.PG (bit 31)"] = { efer = efer.lma },
  ["cs.l needs long mode"] = { cs = { l = 1 } },
  ["a bit is set that this vCPU does not have: cr0 0x60000010, cr3 0x0, cr4 0x8000000000000000"] =
    { cr4 = 1 << 63 },
}

describe("Control registers that the kernel refuses", function()
  local kvm, vcpu
  before_each(function()
    support.need_kvm()
    kvm = ckvm.open()
    vcpu = kvm:create_vm():create_vcpu(0)
    vcpu:set_sregs { cr0 = 0x60000010 }
  end)
  after_each(function() kvm:close() end)

  for message, sregs in pairs(CASES) do
    it("are told of set_sregs: " .. message, function()
      local err = error_of(vcpu.set_sregs, vcpu, sregs)
      assert.same({ "KVM_SET_SREGS", "EINVAL" }, { err.call, err.code })
      contains(message, err.message)
    end)

    it("are told of set_sregs2: " .. message, function()
      if kvm:check_extension("sregs2") == 0 then pending("no sregs2") end
      local err = error_of(vcpu.set_sregs2, vcpu, sregs)
      assert.same({ "KVM_SET_SREGS2", "EINVAL" }, { err.call, err.code })
      contains(message, err.message)
    end)
  end

  it("are told of set_sregs2 alone: pdptrs without PAE, and flags", function()
    if kvm:check_extension("sregs2") == 0 then pending("no sregs2") end
    contains("pdptrs need PAE paging", error_of(vcpu.set_sregs2, vcpu, { pdptrs = { 0 } }))
    contains("flags has the bit for pdptrs", error_of(vcpu.set_sregs2, vcpu, { flags = 2 }))
  end)

  it("are told with the rules where a run finds out", function()
    vcpu.sregs.cr0 = 0x80000000
    local err = error_of(vcpu.run, vcpu, support.LIMITS)
    assert.same({ "KVM_SET_SREGS", "EINVAL" }, { err.call, err.code })
    contains("cr0.PG needs PE", err)
  end)
end)

describe("A VM without memory", function()
  it("is told, where KVM does not run it", function()
    support.need_kvm()
    local vcpu = ckvm.open():create_vm():create_vcpu(0)
    local ok, err = pcall(vcpu.run, vcpu, support.LIMITS)
    if ok then pending("this KVM has another end for it: " .. err) end
    assert.same({ "KVM_RUN", "ENOSPC" }, { err.call, err.code })
    contains("no memory yet, see vm:add_memory", err)
  end)
end)

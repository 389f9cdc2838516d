-- CPUID: what the KVM supports, and what a vCPU shows its guest.

local ckvm = require "ckvm"
local support = require "support"

local contains, error_of = support.contains, support.error_of

local CPUID_HLT <const> = "\x0f\xa2\xf4" -- cpuid; hlt
local FIELDS <const> = { "eax", "ebx", "ecx", "edx", "flags", "function", "index" }
local SHA <const> = 1 << 29 -- in ebx of leaf 7
local MOST <const> = 256 -- entries that a kernel takes

local function find(list, leaf)
  for _, entry in ipairs(list) do
    if entry["function"] == leaf then return entry end
  end
end

local function names(entry)
  local list = {}
  for name in pairs(entry) do table.insert(list, name) end
  table.sort(list)
  return list
end

describe("kvm:get_supported_cpuid", function()
  before_each(support.need_kvm)

  it("refuses a closed object, and what is none", function()
    local kvm = ckvm.open()
    local vm <close> = kvm:create_vm()
    local get = kvm.get_supported_cpuid
    contains("kvm expected, got ckvm VM", error_of(get, vm))
    contains("kvm expected", error_of(get))
    kvm:close()
    contains("kvm is closed", error_of(get, kvm))
  end)

  it("is a list of the kernel's entries, whatever its length", function()
    local kvm <close> = ckvm.open()
    local list = kvm:get_supported_cpuid()
    assert.is_true(#list > 3)
    for _, entry in ipairs(list) do assert.same(FIELDS, names(entry)) end
    assert.is_true(find(list, 0).eax >= 1)
    assert.equal(1, find(list, 7).flags & 1) -- has subleaves
  end)

  it("is a fresh list each time", function()
    local kvm <close> = ckvm.open()
    local list = kvm:get_supported_cpuid()
    list[1].eax = ~list[1].eax
    list[2] = nil
    assert.not_same(list, kvm:get_supported_cpuid())
  end)
end)

describe("kvm:get_emulated_cpuid", function()
  it("is a list of the kernel's entries", function()
    support.need_kvm()
    local kvm <close> = ckvm.open()
    local list = kvm:get_emulated_cpuid()
    assert.is_true(#list > 0)
    for _, entry in ipairs(list) do assert.same(FIELDS, names(entry)) end
  end)
end)

describe("get_supported_hv_cpuid", function()
  it("is a list, or the kernel's refusal, for the system and for a vCPU", function()
    support.need_kvm()
    local kvm <close> = ckvm.open()
    local vm <close> = kvm:create_vm()
    for object, cap in pairs {
      [kvm] = "sys_hyperv_cpuid", [vm:create_vcpu(0)] = "hyperv_cpuid",
    } do
      if kvm:check_extension(cap) > 0 then
        local list = object:get_supported_hv_cpuid()
        assert.is_truthy(find(list, 0x40000000))
      else
        local err = error_of(object.get_supported_hv_cpuid, object)
        assert.equal("KVM_GET_SUPPORTED_HV_CPUID", err.call)
        contains("no Hyper-V", err)
      end
    end
  end)
end)

describe("vcpu:set_cpuid2", function()
  local kvm, vm, vcpu
  before_each(function()
    support.need_kvm()
    kvm, vm, vcpu = support.real_mode(CPUID_HLT)
  end)
  after_each(function() support.close(vm, kvm) end)

  it("refuses a closed vCPU", function()
    vcpu:close()
    contains("vCPU is closed", error_of(vcpu.set_cpuid2, vcpu, {}))
    contains("vCPU is closed", error_of(vcpu.get_cpuid2, vcpu))
  end)

  it("refuses anything but a list of tables", function()
    contains("table expected", error_of(vcpu.set_cpuid2, vcpu))
    contains("table expected", error_of(vcpu.set_cpuid2, vcpu, "x"))
    contains("kvm_cpuid_entry2[1]: table expected, got number",
      error_of(vcpu.set_cpuid2, vcpu, { 1 }))
    contains("kvm_cpuid_entry2[x]: no such element",
      error_of(vcpu.set_cpuid2, vcpu, { {}, x = {} }))
    contains("kvm_cpuid_entry2[0]: no such element",
      error_of(vcpu.set_cpuid2, vcpu, { [0] = {} }))
    contains("kvm_cpuid_entry2", error_of(vcpu.set_cpuid2, vcpu, { {}, nil, {} }))
  end)

  it("names the entry and the field that is wrong, and sets none", function()
    for message, entry in pairs {
      ["kvm_cpuid_entry2[2]: unknown field 'func'"] = { func = 1 },
      ["kvm_cpuid_entry2[2].eax: integer expected, got string"] = { eax = "1" },
      ["kvm_cpuid_entry2[2].ebx: -1 does not fit in 32 bits"] = { ebx = -1 },
      ["kvm_cpuid_entry2[2].function: 4294967296 does not fit"] = { ["function"] = 1 << 32 },
    } do
      contains(message, error_of(vcpu.set_cpuid2, vcpu, { { eax = 1 }, entry }))
    end
    assert.same({}, vcpu:get_cpuid2())
  end)

  it("says that there are too many", function()
    local list = {}
    for i = 1, MOST + 1 do list[i] = { ["function"] = i } end
    local err = error_of(vcpu.set_cpuid2, vcpu, list)
    assert.equal("KVM_SET_CPUID2", err.call)
    assert.equal("E2BIG", err.code)
    contains("256", err)
    table.remove(list)
    vcpu:set_cpuid2(list)
    assert.is_true(#vcpu:get_cpuid2() > 1)
  end)

  it("has none at first, and takes what is supported", function()
    assert.same({}, vcpu:get_cpuid2())
    local list = kvm:get_supported_cpuid()
    vcpu:set_cpuid2(list)
    local got = vcpu:get_cpuid2()
    assert.equal(#list, #got)
    for i = 1, #list do
      assert.equal(list[i]["function"], got[i]["function"])
      assert.equal(list[i].index, got[i].index)
      assert.same(FIELDS, names(got[i]))
    end
  end)

  it("replaces the whole list", function()
    vcpu:set_cpuid2 { { ["function"] = 0, eax = 1 }, { ["function"] = 0x40000000 } }
    assert.equal(2, #vcpu:get_cpuid2())
    vcpu:set_cpuid2 { { ["function"] = 0, eax = 2 } }
    local list = vcpu:get_cpuid2()
    assert.equal(1, #list)
    assert.equal(2, list[1].eax)
    assert.equal(0, list[1].ecx)
  end)

  it("keeps a vendor and a bit that were changed", function()
    local function shows_host_bits()
      local other = vm:create_vcpu(1)
      other:set_cpuid2 { { ["function"] = 7, index = 0 } }
      return find(other:get_cpuid2(), 7).ebx ~= 0
    end
    local list = kvm:get_supported_cpuid()
    local vendor, features = find(list, 0), find(list, 7)
    vendor.ebx, vendor.edx, vendor.ecx = string.unpack("<I4I4I4", "HyperckvmLua")
    -- A KVM that runs the guest natively shows what the host has in any case.
    local host_bits = shows_host_bits()
    for _, bit in ipairs { SHA, 0, SHA } do
      features.ebx = features.ebx & ~SHA | bit
      vcpu:set_cpuid2(list)
      local got = vcpu:get_cpuid2()
      local entry = find(got, 0)
      assert.equal("HyperckvmLua", string.pack("<I4I4I4", entry.ebx, entry.edx, entry.ecx))
      if bit ~= 0 or not host_bits then assert.equal(bit, find(got, 7).ebx & SHA) end
    end
  end)

  it("sets the flag for an index that is named, unless flags are", function()
    vcpu:set_cpuid2 {
      { ["function"] = 7, index = 1 },
      { ["function"] = 8, index = 0, flags = 0 },
      { ["function"] = 9 },
    }
    local list = vcpu:get_cpuid2()
    assert.equal(1, list[1].flags)
    assert.equal(0, list[2].flags)
    assert.equal(0, list[3].flags)
  end)

  it("is what the guest sees", function()
    vcpu:set_cpuid2 {
      { ["function"] = 0, eax = 0x10, ebx = 0x11223344, ecx = 0x55667788, edx = 0x99aabbcc },
    }
    vcpu.regs.rax = 0
    assert.equal("hlt", (vcpu:run(support.LIMITS)))
    local regs = vcpu:get_regs()
    assert.same({ 0x10, 0x11223344, 0x55667788, 0x99aabbcc },
      { regs.rax, regs.rbx, regs.rcx, regs.rdx })
  end)

  it("is fixed once the vCPU has run, and says so", function()
    vcpu:set_cpuid2 { { ["function"] = 0, eax = 1 } }
    assert.equal("hlt", (vcpu:run(support.LIMITS)))
    vcpu:set_cpuid2(vcpu:get_cpuid2())
    local err = error_of(vcpu.set_cpuid2, vcpu, { { ["function"] = 0, eax = 2 } })
    assert.equal("KVM_SET_CPUID2", err.call)
    assert.equal("EINVAL", err.code)
    contains("once the vCPU has run", err)
  end)

  it("survives a collector that changes the list meanwhile", function()
    local list = {}
    for i = 1, 50 do list[i] = { ["function"] = i } end
    local grown = false
    local function plant()
      setmetatable({}, { __gc = function()
        for i = 51, 5000 do list[i] = { ["function"] = i } end
        grown = true
      end })
    end
    for _ = 1, 200 do
      plant()
      for i = 51, #list do list[i] = nil end
      pcall(vcpu.set_cpuid2, vcpu, list)
    end
    support.collect()
    assert.is_true(grown)
  end)
end)

describe("vcpu:set_cpuid", function()
  it("takes the old list, which has no indices", function()
    support.need_kvm()
    local kvm <close> = ckvm.open()
    local vm <close> = kvm:create_vm()
    local vcpu = vm:create_vcpu(0)
    contains("kvm_cpuid_entry[1]: unknown field 'index'",
      error_of(vcpu.set_cpuid, vcpu, { { index = 0 } }))
    local list = {}
    for i = 1, MOST + 1 do list[i] = { ["function"] = i } end
    assert.equal("E2BIG", error_of(vcpu.set_cpuid, vcpu, list).code)
    vcpu:set_cpuid { { ["function"] = 0, eax = 1 }, { ["function"] = 1, eax = 0x1234 } }
    assert.equal(0x1234, find(vcpu:get_cpuid2(), 1).eax)
  end)
end)

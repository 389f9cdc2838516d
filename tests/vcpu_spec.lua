-- The vCPU: creating it, and its statistics.

local support = require "support"

local contains, error_of = support.contains, support.error_of

local HLT <const> = "\xf4"
local OUT_HLT <const> = "\xe6\x10\xf4" -- out %al, $0x10; hlt
local IN_HLT <const> = "\xe4\x10\xf4" -- in $0x10, %al; hlt
-- mov $100, %cx; again: out %al, $0x10; dec %cx; jnz again; hlt
local HUNDRED_OUTS <const> = "\xb9\x64\x00\xe6\x10\x49\x75\xfb\xf4"

describe("vm:create_vcpu", function()
  local kvm, vm
  before_each(function() kvm, vm = support.new_vm() end)
  after_each(function() support.close(vm, kvm) end)

  it("refuses what is not an integer", function()
    for _, id in ipairs { "x", "1", true, {}, 0.5, 2 ^ 63, print } do
      error_of(vm.create_vcpu, vm, id)
    end
    assert.same({}, vm.vcpus)
  end)

  it("refuses a negative id, and names it", function()
    for _, id in ipairs { -1, -4096, math.mininteger } do
      contains(("vCPU id %d is negative"):format(id), error_of(vm.create_vcpu, vm, id))
    end
  end)

  it("refuses an id beyond what the KVM has, and names it", function()
    local most = kvm:check_extension("max_vcpu_id")
    for _, id in ipairs { most, most + 1, 1 << 31, 1 << 32, 1 << 40, math.maxinteger } do
      local err = error_of(vm.create_vcpu, vm, id)
      assert.equal("KVM_CREATE_VCPU", err.call)
      assert.equal("EINVAL", err.code)
      contains(("vCPU id %d: ids are below %d here (max_vcpu_id), and there are %d vCPUs at most")
        :format(id, most, kvm:check_extension("max_vcpus")), err)
    end
    assert.same({}, vm.vcpus)
  end)

  it("refuses an id that is there, and names it", function()
    vm:create_vcpu(3)
    local err = error_of(vm.create_vcpu, vm, 3)
    assert.equal("KVM_CREATE_VCPU", err.call)
    assert.equal("EEXIST", err.code)
    contains("vCPU 3 exists already", err)
    assert.equal(1, #vm.vcpus)
  end)

  it("refuses the id of one that was closed: the kernel still has it", function()
    vm:create_vcpu(0):close()
    contains("vCPU 0 exists already", error_of(vm.create_vcpu, vm, 0))
  end)

  it("creates vCPU 0 unless told otherwise", function()
    assert.equal(0, vm:create_vcpu().id)
  end)

  it("gives each VM ids of its own", function()
    local other <close> = kvm:create_vm()
    assert.equal(0, vm:create_vcpu(0).id)
    assert.equal(0, other:create_vcpu(0.0).id)
  end)
end)

describe("vcpu.stats", function()
  local kvm, vm, vcpu

  local function guest(code)
    support.need_kvm()
    kvm, vm, vcpu = support.real_mode(code)
  end
  after_each(function() kvm, vm, vcpu = support.close(vm, kvm) end)

  it("cannot be set", function()
    guest(HLT)
    contains("vCPU has no field 'stats'", error_of(function() vcpu.stats = {} end))
  end)

  it("is all zeros before the first run", function()
    guest(HLT)
    assert.same({ total = 0, exits = {}, batched = 0, guest_time = 0.0, handler_time = 0.0 },
      vcpu.stats)
  end)

  it("counts exits by name, over all runs", function()
    -- out %al, $0x10; in $0x10, %al; movb $1, (0x8000); movb (0x8000), %al; hlt
    support.need_kvm()
    kvm, vm, vcpu = support.real_mode(
      "\xe6\x10\xe4\x10\xc6\x06\x00\x80\x01\xa0\x00\x80\xf4", { size = 0x8000 })
    vm:on("io_out", function() end)
    vm:attach_io { port = 0x10, read = function() return 0 end }
    vm:attach_mmio { gpa = 0x8000, size = 1, value = 0 }
    for i = 1, 3 do
      assert.equal("hlt", vcpu:run { timeout = 10 })
      assert.same({ io_out = i, io_in = i, mmio_write = i, mmio_read = i, hlt = i },
        vcpu.stats.exits)
      assert.equal(5 * i, vcpu.stats.total)
      vcpu:set_regs { rip = 0x1000 }
    end
  end)

  it("counts what run_once returns, and nothing for a run that does not enter", function()
    guest(OUT_HLT)
    vcpu:kick()
    assert.equal("kicked", (vcpu:run()))
    assert.equal("timeout", (vcpu:run { timeout = 0 }))
    assert.equal("exits", (vcpu:run { exits = 0 }))
    assert.equal(0, vcpu.stats.total)
    assert.equal("io_out", vcpu:run_once())
    assert.equal("hlt", vcpu:run_once())
    assert.same({ io_out = 1, hlt = 1 }, vcpu.stats.exits)
    assert.equal(2, vcpu.stats.total)
  end)

  it("counts no exit for the KVM_RUN that finishes an instruction", function()
    guest(IN_HLT)
    vm:on("io_in", function()
      vcpu.regs.rbx = 1
      return 1
    end)
    assert.equal("hlt", (vcpu:run { timeout = 10 }))
    assert.same({ io_in = 1, hlt = 1 }, vcpu.stats.exits)
  end)

  it("counts batched writes apart, as they came with no exit of their own", function()
    guest("\xb9\x32\x00" .. HUNDRED_OUTS:sub(4)) -- 50: Linux before 6.11 exits after 85
    local values = {}
    local ok = pcall(vm.attach_io, vm, {
      port = 0x10, batch = true, write = function(_, value) table.insert(values, value) end,
    })
    if not ok then pending("this KVM batches no ports") end
    assert.equal("hlt", (vcpu:run { timeout = 10 }))
    assert.equal(50, #values)
    assert.equal(50, vcpu.stats.batched)
    assert.same({ hlt = 1 }, vcpu.stats.exits)
  end)

  it("has the time in the guest and in handlers, in seconds", function()
    guest(HUNDRED_OUTS)
    vm:on("io_out", function() end)
    assert.equal("hlt", (vcpu:run { timeout = 10 }))
    local stats = vcpu.stats
    assert.equal("float", math.type(stats.guest_time))
    assert.is_true(stats.guest_time > 0)
    assert.is_true(stats.handler_time > 0)
  end)

  it("is a fresh table each time", function()
    guest(HLT)
    vcpu.stats.total = 5
    assert.equal(0, vcpu.stats.total)
  end)
end)

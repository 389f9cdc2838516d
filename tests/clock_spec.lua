-- The VM's clock: kvmclock as the guest would read it.

local ckvm = require "ckvm"
local support = require "support"

describe("get_clock and set_clock", function()
  local vm
  before_each(function()
    support.need_kvm()
    vm = ckvm.open():create_vm()
  end)
  after_each(function() vm:close() end)

  it("refuse an unknown field, and values that are none", function()
    local function refuses(message, clock)
      support.contains(message, support.error_of(vm.set_clock, vm, clock))
    end
    refuses("unknown field 'clok'", { clok = 1 })
    refuses("clock: integer expected, got string", { clock = "1" })
    refuses("flags: -1 does not fit in 32 bits", { flags = -1 })
  end)

  it("let the kernel refuse a flag that is none", function()
    assert.equal("EINVAL", support.error_of(vm.set_clock, vm, { flags = 1 << 31 }).code)
  end)

  it("count nanoseconds from what was set", function()
    local before = vm:get_clock().clock
    vm:set_clock { clock = 10 }
    local after = vm:get_clock().clock
    assert.is_true(10 < after and after < before + (1 << 40))
    vm:set_clock { clock = 1 << 50 }
    local later = vm:get_clock().clock
    assert.is_true(later > 1 << 50 and later < (1 << 50) + (1 << 40))
  end)

  it("go on with the clock where it is not named", function()
    vm:set_clock { clock = 1 << 50 }
    vm:set_clock {}
    assert.is_true(vm:get_clock().clock > 1 << 50)
  end)

  it("take no flags from the get: the clock is what was named", function()
    vm:set_clock { clock = 5, realtime = 0, flags = 0 }
    assert.is_true(vm:get_clock().clock < 1 << 40)
  end)

  it("add the time since `realtime`, where the host's clock is stable", function()
    local now = os.time() * 1000000000
    if vm:check_extension("adjust_clock") & 4 == 0 then pending("no KVM_CLOCK_REALTIME") end
    vm:create_vcpu(0) -- by whose TSC the kernel knows that the guest's clock can be
    vm:set_clock { clock = 0, realtime = now - 100 * 1000000000 }
    if vm:get_clock().flags & 4 == 0 then pending("this host's clock is not the TSC") end
    assert.is_true(vm:get_clock().clock >= 99 * 1000000000)
  end)

  it("take back what get gave, in full", function()
    local clock = vm:get_clock()
    if clock.flags ~= 0 and vm:check_extension("adjust_clock") & 4 == 0 then
      pending("this kernel takes no flags")
    end
    vm:set_clock(clock)
    assert.is_true(vm:get_clock().clock >= clock.clock)
  end)
end)

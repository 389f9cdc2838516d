-- get_stats_fd: what the kernel counts for a VM and a vCPU.

local support = require "support"

local contains, error_of, LIMITS = support.contains, support.error_of, support.LIMITS

describe("get_stats_fd", function()
  local kvm, vm, vcpu
  before_each(function()
    support.need_kvm()
    kvm, vm, vcpu = support.real_mode("\xe6\x10\xf4") -- out %al, $0x10; hlt
    if kvm:check_extension("binary_stats_fd") == 0 then pending("no binary_stats_fd") end
  end)
  after_each(function() support.close(vm, kvm) end)

  it("refuses a closed object, and another", function()
    vcpu:close()
    contains("vCPU is closed", error_of(vcpu.get_stats_fd, vcpu))
    contains("VM expected, got", error_of(vm.get_stats_fd, vcpu))
    contains("vCPU expected, got", error_of(vcpu.get_stats_fd, vm))
    vm:close()
    contains("VM is closed", error_of(vm.get_stats_fd, vm))
  end)

  it("gives an object that says whose statistics it has", function()
    local id = vm:get_stats_fd().id
    assert.truthy(id:match("^kvm%-%d+$"))
    assert.equal(id .. "/vcpu-0", vcpu:get_stats_fd().id)
  end)

  it("reads integers, and lists for histograms", function()
    local stats = vcpu:get_stats_fd()
    local values, meanings = stats:read(), stats:describe()
    assert.equal("integer", math.type(values.exits))
    assert.same({ type = "cumulative", unit = "none", base = "pow10", exponent = 0, size = 1,
      bucket_size = 0 }, meanings.exits)
    local histogram = values.halt_poll_success_hist
    local meaning = meanings.halt_poll_success_hist
    assert.equal(meaning.size, #histogram)
    assert.equal("log_hist", meaning.type)
    assert.equal("seconds", meaning.unit)
    assert.equal(-9, meaning.exponent)
    for name in pairs(values) do assert.truthy(meanings[name]) end
    for name in pairs(meanings) do assert.truthy(values[name]) end
  end)

  it("counts what the guest does", function()
    local stats = vcpu:get_stats_fd()
    local before = stats:read().exits
    vm:attach_io { port = 0x10, write = function() end }
    assert.equal("hlt", vcpu:run(LIMITS))
    assert.is_true(stats:read().exits > before)
  end)

  it("is read in a handler of the vCPU's run", function()
    local seen
    vm:attach_io { port = 0x10, write = function(_, _, _, cpu)
      seen = cpu:get_stats_fd():read().exits
    end }
    assert.equal("hlt", vcpu:run(LIMITS))
    assert.equal("integer", math.type(seen))
  end)

  it("has a descriptor, which is a number", function()
    assert.equal("integer", math.type(vm:get_stats_fd().fd))
  end)

  it("closes, twice, and refuses everything after", function()
    local stats = vm:get_stats_fd()
    stats:close()
    stats:close()
    for _, name in ipairs { "read", "describe" } do
      contains("stats is closed", error_of(stats[name], stats))
    end
    contains("stats is closed", error_of(function() return stats.id end))
    contains("stats is closed", error_of(function() return stats.fd end))
  end)

  it("ends with the VM, which leaves no descriptor", function()
    local before = support.settled_fds()
    local second = kvm:create_vm()
    local stats = { second:get_stats_fd(), second:create_vcpu(0):get_stats_fd() }
    assert.equal(before + 4, support.count_fds())
    second:close()
    assert.equal(before, support.count_fds())
    contains("stats is closed", error_of(stats[1].read, stats[1]))
    contains("stats is closed", error_of(stats[2].read, stats[2]))
  end)

  it("is the VM's: without it, too, until that is closed", function()
    local before = support.settled_fds()
    vm:get_stats_fd()
    assert.equal(before + 1, support.settled_fds())
    vm:close()
    assert.equal(before - 2, support.settled_fds())
  end)

  it("outlives its vCPU", function()
    local stats = vcpu:get_stats_fd()
    vcpu:close()
    assert.truthy(stats:read().exits)
  end)
end)

-- The VM: its list of vCPUs, vm:on, and what it keeps alive and what not.

local ckvm = require "ckvm"
local support = require "support"

local contains, error_of = support.contains, support.error_of

local OUT_HLT <const> = "\xe6\x10\xf4" -- out %al, $0x10; hlt

describe("vm.vcpus", function()
  local kvm, vm
  before_each(function() kvm, vm = support.new_vm() end)
  after_each(function() support.close(vm, kvm) end)

  it("cannot be set", function()
    contains("VM has no field 'vcpus' that can be set", error_of(function() vm.vcpus = {} end))
  end)

  it("is empty at first", function()
    assert.same({}, vm.vcpus)
  end)

  it("lists them by id, whatever the order they came in", function()
    local two, zero, one = vm:create_vcpu(2), vm:create_vcpu(0), vm:create_vcpu(1)
    assert.same({ zero, one, two }, vm.vcpus)
    for i, vcpu in ipairs(vm.vcpus) do assert.equal(i - 1, vcpu.id) end
  end)

  it("is a fresh list each time", function()
    vm:create_vcpu(0)
    local list = vm.vcpus
    list[1] = nil
    assert.equal(1, #vm.vcpus)
  end)

  it("has no closed ones", function()
    local zero, one = vm:create_vcpu(0), vm:create_vcpu(1)
    zero:close()
    assert.same({ one }, vm.vcpus)
    one:close()
    assert.same({}, vm.vcpus)
  end)

  it("has those of this VM alone", function()
    local other <close> = kvm:create_vm()
    other:create_vcpu(0)
    assert.same({}, vm.vcpus)
  end)

  it("gives the vCPU its VM", function()
    assert.equal(vm, vm:create_vcpu(0).vm)
    assert.equal(vm, vm.vcpus[1].vm)
  end)
end)

describe("vm:on", function()
  local kvm, vm, vcpu
  before_each(function()
    support.need_kvm()
    kvm, vm, vcpu = support.real_mode(OUT_HLT)
  end)
  after_each(function() support.close(vm, kvm) end)

  local function handler() end

  it("refuses a name that no exit has, and names it", function()
    for _, name in ipairs { "hltt", "", "HLT", "KVM_EXIT_HLT", "5", "hlt ", "stopped" } do
      contains(("unknown exit '%s'"):format(name), error_of(vm.on, vm, name, handler))
    end
    contains("zero byte", error_of(vm.on, vm, "hlt\0", handler))
  end)

  it("tells how names are written", function()
    contains("'HLT': did you mean 'hlt'?", error_of(vm.on, vm, "HLT", handler))
    contains("'KVM_EXIT_HLT': did you mean 'hlt'?", error_of(vm.on, vm, "KVM_EXIT_HLT", handler))
    contains("'hltt': names are the kernel's in lower case, without KVM_EXIT_",
      error_of(vm.on, vm, "hltt", handler))
  end)

  it("refuses the kernel's io and mmio, which have two names each", function()
    for _, name in ipairs { "io", "mmio", 2, 6 } do
      contains("io_in, io_out, mmio_read, and mmio_write", error_of(vm.on, vm, name, handler))
    end
  end)

  for _, number in ipairs { -1, 0x10000, 0x10001, 1 << 32, 0.5, math.mininteger } do
    it("refuses the number " .. number, function()
      error_of(vm.on, vm, number, handler)
    end)
  end

  it("refuses other types as names", function()
    for _, name in ipairs { true, {}, handler } do
      contains("string expected, got " .. type(name), error_of(vm.on, vm, name, handler))
    end
    error_of(vm.on, vm)
  end)

  it("refuses what is not a function as a handler, and keeps the one there is", function()
    local calls = 0
    vm:on("io_out", function() calls = calls + 1 end)
    for _, value in ipairs { 1, true, "print", {}, vm } do
      contains("function expected, got", error_of(vm.on, vm, "io_out", value))
    end
    vcpu:run()
    assert.equal(1, calls)
  end)

  it("takes every exit that has a name, and its number", function()
    for _, name in ipairs {
      "unknown", "exception", "hypercall", "debug", "hlt", "irq_window_open", "shutdown",
      "fail_entry", "intr", "set_tpr", "tpr_access", "nmi", "internal_error", "system_event",
      "ioapic_eoi", "x86_rdmsr", "x86_wrmsr", "x86_bus_lock", "notify", "memory_fault",
      "io_in", "io_out", "mmio_read", "mmio_write",
    } do
      vm:on(name, handler)
      vm:on(name, nil)
    end
    vm:on(5, handler)
    vm:on(63, handler)
  end)

  it("installs, replaces and removes", function()
    local seen = {}
    vm:on("io_out", function(port, value, size, cpu)
      table.insert(seen, { "one", port, value, size, cpu })
    end)
    assert.equal("hlt", vcpu:run())
    assert.same({ { "one", 0x10, 0, 1, vcpu } }, seen)

    vm:on("io_out", function() table.insert(seen, "two") end)
    vcpu:set_regs { rip = 0x1000 }
    assert.equal("hlt", vcpu:run())
    assert.equal("two", seen[2])

    vm:on("io_out", nil)
    vcpu:set_regs { rip = 0x1000 }
    assert.equal("io_out", (vcpu:run()))
    assert.equal(2, #seen)
  end)

  it("removes with no second argument, too", function()
    vm:on("io_out", handler)
    vm:on("io_out")
    assert.equal("io_out", (vcpu:run()))
  end)

  it("is the same by name and by number", function()
    local calls = 0
    vm:on("io_out", handler)
    vm:on(5, function()
      calls = calls + 1
      return false
    end)
    assert.equal("hlt", vcpu:run())
    assert.equal(1, calls)
    vm:on("hlt", nil)
    vcpu:set_regs { rip = 0x1000 }
    assert.equal("hlt", vcpu:run())
    assert.equal(1, calls)
  end)

  it("returns nothing", function()
    assert.equal(0, select("#", vm:on("hlt", handler)))
  end)
end)

describe("the collector", function()
  local before
  before_each(function()
    support.need_kvm()
    support.collect()
    before = support.settled_fds()
  end)

  local function gone(weak)
    support.collect()
    return next(weak) == nil and support.count_fds() == before
  end

  it("takes a VM whose handlers mention it", function()
    local weak = setmetatable({}, { __mode = "k" })
    do
      local kvm, vm, vcpu, ram = support.real_mode(OUT_HLT)
      local range = vm:attach_io {
        port = 0x10, write = function() return kvm, vm, vcpu, ram, weak end,
      }
      vm:on("hlt", function() return vm, range end)
      for _, object in ipairs { kvm, vm, vcpu, ram, range } do weak[object] = true end
    end
    assert.is_true(gone(weak))
  end)

  it("takes it after a run, with views, exits and a device that mention it", function()
    local weak = setmetatable({}, { __mode = "k" })
    do
      local kvm, vm, vcpu = support.real_mode(OUT_HLT)
      local device = { vm = vm, cpu = vcpu }
      function device:write() self.regs, self.exit = self.cpu.regs, self.cpu.exit end
      device.range = vm:attach_io { port = 0x10, device = device }
      assert.equal("hlt", vcpu:run())
      device.cs = vcpu.sregs.cs
      for _, object in ipairs { kvm, vm, vcpu, device, device.regs, device.cs } do
        weak[object] = true
      end
    end
    assert.is_true(gone(weak))
  end)

  it("takes it after a run that a handler's error has ended", function()
    local weak = setmetatable({}, { __mode = "k" })
    do
      local kvm, vm, vcpu = support.real_mode(OUT_HLT)
      vm:on("io_out", function() error { vm, vcpu } end)
      weak[error_of(vcpu.run, vcpu, { timeout = 10 })] = true
      weak[kvm], weak[vm], weak[vcpu] = true, true, true
    end
    assert.is_true(gone(weak))
  end)

  it("takes it with a run that a handler's yield has suspended", function()
    local weak = setmetatable({}, { __mode = "k" })
    do
      local _, vm, vcpu = support.real_mode(OUT_HLT)
      vm:on("io_out", function() coroutine.yield(vm) end)
      local co = coroutine.create(function() vcpu:run { timeout = 10 } end)
      assert.is_true(coroutine.resume(co))
      weak[vm], weak[vcpu], weak[co] = true, true, true
    end
    assert.is_true(gone(weak))
  end)

  it("keeps a VM that one of its vCPUs needs", function()
    local function vcpu_alone()
      local _, _, vcpu = support.real_mode(OUT_HLT)
      return vcpu
    end
    local vcpu = vcpu_alone()
    support.collect()
    assert.equal("io_out", (vcpu:run()))
    assert.equal(vcpu, vcpu.vm.vcpus[1])
    vcpu.vm:close()
  end)

  it("keeps what a VM owns: vCPU, memory and ranges, with no reference to them", function()
    local kvm, vm = support.real_mode(OUT_HLT)
    local written = {}
    vm:attach_io { port = 0x10, write = function(_, value) table.insert(written, value) end }
    support.collect()
    assert.equal("\xe6\x10\xf4", vm:read(0x1000, 3))
    assert.equal("hlt", vm.vcpus[1]:run())
    assert.same({ 0 }, written)
    contains("vCPU 0 exists already", error_of(vm.create_vcpu, vm, 0))
    vm:close()
    kvm:close()
  end)

  it("lets go of what is closed, while the VM lives", function()
    local weak = setmetatable({}, { __mode = "k" })
    local kvm, vm, vcpu = support.real_mode(OUT_HLT)
    do
      local data = {}
      local range = vm:attach_io { port = 0x10, write = function() return data end }
      local more = vm:add_memory { gpa = 0x100000, size = 0x1000 }
      local other = vm:create_vcpu(1)
      for _, object in ipairs { data, range, more, other } do weak[object] = true end
      range:close()
      more:close()
      other:close()
      vm:on("hlt", function() return weak end)
      vm:on("hlt", nil)
    end
    support.collect()
    assert.is_nil(next(weak))
    assert.equal("io_out", (vcpu:run()))
    vm:close()
    kvm:close()
  end)

  it("lets go of handlers once the VM is closed", function()
    local weak = setmetatable({}, { __mode = "k" })
    local kvm, vm = support.real_mode(OUT_HLT)
    do
      local data = {}
      vm:on("hlt", function() return data end)
      vm:attach_io { port = 0x10, write = function() return data end }
      weak[data] = true
    end
    vm:close()
    support.collect()
    assert.is_nil(next(weak))
    kvm:close()
  end)

  it("may close everything at the end of a script, in whatever order", function()
    local status, output, errors = support.run([[
package.path = arg[1] .. "/?.lua;" .. package.path
local support = require "support"
for _ = 1, 5 do
  local kvm, vm, vcpu, ram = support.real_mode("\xe6\x10\xf4")
  vm:attach_io { port = 0x10, write = function() return kvm, vm, vcpu, ram end }
  all = { all, vcpu, ram, vm, kvm, vcpu.regs, vcpu.sregs.cs }
  print(vcpu:run())
end]], { after = { (debug.getinfo(1, "S").source:match("^@(.*)/") or ".") } })
    assert.equal("", errors)
    assert.equal(("hlt\n"):rep(5), output)
    assert.equal(0, status)
  end)
end)

describe("VMs, created and closed,", function()
  before_each(support.need_kvm)

  it("leave no descriptor and no mapping", function()
    local function mappings()
      local count = 0
      for line in io.lines("/proc/self/maps") do
        if line:find("kvm") then count = count + 1 end
      end
      return count
    end
    local kvm <close> = ckvm.open()
    local fds, maps, kilobytes
    for i = -99, support.times(100000) do
      if i % 100 == 0 then support.collect() end -- tables of Lua's do not shrink
      if i == 1 then -- what is made once has been made
        maps, fds, kilobytes = mappings(), support.settled_fds(), collectgarbage("count")
      end
      local vm = kvm:create_vm()
      vm:add_memory { gpa = 0, size = 0x10000, log_dirty = true, shared = i % 2 == 0 }
      vm:create_vcpu(0)
      vm:attach_io { port = 1, read = print }
      vm:attach_mmio { gpa = 0x100000, size = 8, write = print, batch = i % 3 == 0 }
      vm:close()
    end
    assert.equal(maps, mappings())
    assert.equal(fds, support.settled_fds())
    assert.is_true(collectgarbage("count") < kilobytes + 16)
  end)

  it("leave none, though each create but the first of its kind was refused", function()
    local kvm <close> = ckvm.open()
    local fds = support.settled_fds()
    for _ = 1, 200 do
      local vm <close> = kvm:create_vm()
      vm:create_vcpu(0)
      vm:add_memory { gpa = 0, size = 0x1000 }
      error_of(vm.create_vcpu, vm, 0)
      error_of(vm.add_memory, vm, { gpa = 0, size = 0x1000, shared = true })
      error_of(vm.add_memory, vm, { gpa = 0, size = 0x1000, file = "/dev/null" })
    end
    assert.equal(fds, support.count_fds())
  end)
end)

-- What kvm-ioctls, the crate that ckvm's coverage is measured by, does wrong, and what is right.
-- Where a topic's own spec has more of it, that is named.

local ckvm = require "ckvm"
local lfs = require "lfs"
local support = require "support"

local contains, error_of = support.contains, support.error_of

local build = support.program():match("^(.*)/")
local open = package.loadlib(build .. "/tests/.libs/fake_kernel.so", "luaopen_fake_kernel")

describe("Unlike kvm-ioctls, ckvm", function()
  local kvm, vm, vcpu, ram
  before_each(function()
    support.need_kvm()
    kvm, vm, vcpu, ram = support.real_mode("\xe6\x10\xf4", { memory = { log_dirty = true } })
  end)
  after_each(function() support.close(vm, kvm) end)

  it("wraps and closes no descriptor that the kernel has not given (device_spec)", function()
    local stdin = lfs.symlinkattributes("/proc/self/fd/0", "target")
    assert.is_boolean(vm:create_device { type = "vfio", test = true })
    support.collect()
    assert.equal(stdin, lfs.symlinkattributes("/proc/self/fd/0", "target"))
  end)

  it("takes the size of a dirty log from the slot (dirty_spec)", function()
    vm:write(0x1000, "\xc6\x06\x00\x50\x07\xf4") -- movb $7, 0x5000; hlt
    assert.equal("hlt", vcpu:run(support.LIMITS))
    assert.equal(8, #vm:get_dirty_log(ram)) -- 16 pages are in one word
    contains("memory expected", error_of(vm.get_dirty_log, vm, 0, 8))
  end)

  it("reports the errors of get_tsc_khz and of what only tells numbers", function()
    local ok, khz = pcall(vcpu.get_tsc_khz, vcpu)
    if ok then assert.is_true(khz > 0) else assert.equal("KVM_GET_TSC_KHZ", khz.call) end
    local err = error_of(ckvm.from_fd, vm.fd)
    assert.equal("KVM_GET_API_VERSION", err.call)
    assert.equal("ENOTTY", err.code)
    kvm:close()
    for _, name in ipairs { "nr_vcpus", "max_vcpus", "max_vcpu_id", "nr_memslots" } do
      contains("kvm is closed", error_of(kvm["get_" .. name], kvm))
      contains("kvm is closed", error_of(kvm.check_extension, kvm, name))
    end
  end)

  it("has lists of any length (cpuid_spec, msr_spec, irq_spec)", function()
    assert.is_true(#kvm:get_supported_cpuid() > 3)
    assert.is_true(#kvm:get_msr_index_list() > 1)
    local list = {}
    for i = 1, 600 do list[i] = 0x174 end -- more than the kernel takes at once
    assert.equal(0x174, list[600])
    local values = vcpu:get_msrs(list)
    assert.is_truthy(values[600] or values[0x174])
  end)

  it("names the MSR that is refused (msr_spec)", function()
    local err = error_of(vcpu.get_msrs, vcpu, { 0x174, 0xdeadbeef, 0x175 })
    contains("0xdeadbeef", err)
    err = error_of(vcpu.set_msrs, vcpu,
      { { index = 0x174, data = 1 }, { index = 0xdeadbeef, data = 1 } })
    contains("0xdeadbeef", err)
  end)

  it("owns a guest_memfd (guest_memfd_spec)", function()
    if vm:check_extension("guest_memfd") == 0 then pending("no guest_memfd") end
    local before = support.settled_fds()
    local other = kvm:create_vm()
    other:create_guest_memfd { size = 0x1000 }
    other:close()
    assert.equal(before, support.count_fds())
  end)

  it("tells width and count of an access, and the data of every exit (exits_spec)", function()
    vm:write(0x1000, "\xb9\x03\x00\xbe\x00\x20\xf3\x66\x6f\x0f\x0b") -- rep outsl
    vm:write(0x2000, "aaaabbbbcccc")
    vcpu.regs.rip, vcpu.regs.rdx = 0x1000, 0x20
    assert.equal("io_out", vcpu:run_once(support.LIMITS))
    assert.equal(4, vcpu.exit.size)
    assert.is_true(vcpu.exit.count >= 1)
  end)

  it("takes no old exit for a memory fault", function()
    if not open then pending("tests/fake_kernel.so is not built: make check") end
    local fake <const>, EFAULT <const> = open(), -14
    fake.install()
    local null <close> = ckvm.open { path = "/dev/null" }
    fake.remove()
    local none <close> = null:create_vm()
    local cpu = none:create_vcpu(0)
    fake.exit(("\0"):rep(8) .. ("<I4"):pack(39), EFAULT)
    assert.equal("memory_fault", cpu:run_once(support.LIMITS))
    fake.exit("\0", EFAULT) -- fails before the reason is written: the page still has the old one
    local err = error_of(cpu.run_once, cpu, support.LIMITS)
    assert.equal("KVM_RUN", err.call)
    assert.equal("EFAULT", err.code)
  end)

  it("reads and writes registers while an exit is open", function()
    vm:on("io_out", function(_, _, _, cpu)
      cpu.regs.rbx = cpu:get_regs().rdx + 1
      cpu:set_sregs { ds = { selector = 0x1000, base = 0x10000 } }
    end)
    assert.equal("hlt", vcpu:run(support.LIMITS))
    assert.equal(1, vcpu.regs.rbx)
    assert.equal(0x10000, vcpu.sregs.ds.base)
  end)

  it("can signal an eventfd for a width without a value (eventfd_spec)", function()
    local event <close> = ckvm.eventfd()
    vm:ioeventfd { port = 0x10, len = 1, fd = event }
    assert.equal("hlt", vcpu:run(support.LIMITS))
    assert.equal(1, event:read())
  end)

  it("delivers queued writes, all of them and in order (batch_spec)", function()
    local seen = {}
    local ok = pcall(vm.attach_io, vm,
      { port = 0x10, batch = true, write = function(_, value) seen[#seen + 1] = value end })
    if not ok then pending("this KVM cannot queue") end
    vcpu.regs.rax = 0x55
    assert.equal("hlt", vcpu:run(support.LIMITS))
    assert.same({ 0x55 }, seen)
  end)

  it("needs no struct filled by hand: tables, and ckvm.x86 for modes (x86_spec)", function()
    vcpu:set_sregs { ds = { base = 0x10000, selector = 0x1000 } } -- the other fields stay
    assert.equal(0x10000, vcpu:get_sregs().ds.base)
    assert.equal(0xffff, vcpu:get_sregs().ds.limit)
    assert.is_function(require("ckvm.x86").enter)
  end)

  it("has nested state as a string, however short (state_spec)", function()
    local ok, state = pcall(vcpu.get_nested_state, vcpu)
    if ok then
      assert.is_true(#state >= 128)
      vcpu:set_nested_state(state)
    else
      assert.equal("KVM_GET_NESTED_STATE", state.call)
    end
  end)
end)

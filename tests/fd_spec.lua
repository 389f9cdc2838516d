-- Descriptors: those that objects lend, and objects made of descriptors from elsewhere.

local ckvm = require "ckvm"
local lfs = require "lfs"
local support = require "support"

local contains, error_of = support.contains, support.error_of

local NONE <const> = 1000000 -- more than a process may have open

local function target(fd)
  return lfs.symlinkattributes("/proc/self/fd/" .. fd, "target")
end

local function is_cloexec(fd)
  local info <close> = io.open("/proc/self/fdinfo/" .. fd)
  return tonumber(info:read("a"):match("flags:%s*(%d+)"), 8) & tonumber("02000000", 8) ~= 0
end

describe("fd", function()
  local kvm, vm, vcpu
  before_each(function()
    support.need_kvm()
    kvm, vm, vcpu = support.real_mode("\xf4")
  end)
  after_each(function() support.close(vm, kvm) end)

  it("is the object's own descriptor", function()
    assert.equal("/dev/kvm", target(kvm.fd))
    assert.equal("anon_inode:kvm-vm", target(vm.fd))
    contains("anon_inode:kvm-vcpu", target(vcpu.fd))
  end)

  it("is closed on exec", function()
    for _, object in ipairs { kvm, vm, vcpu } do assert.is_true(is_cloexec(object.fd)) end
  end)

  it("cannot be set, nor read once the object is closed", function()
    for name, object in pairs { vCPU = vcpu, VM = vm, kvm = kvm } do
      contains("no field 'fd' that can be set", error_of(function() object.fd = 3 end))
      object:close()
      contains(name .. " is closed", error_of(function() return object.fd end))
    end
  end)
end)

describe("ckvm.open cloexec =", function()
  before_each(support.need_kvm)

  it("is true or false", function()
    contains("cloexec: true or false expected", error_of(ckvm.open, { cloexec = 0 }))
  end)

  it("decides whether the descriptor outlives an exec", function()
    local closed <close> = ckvm.open { cloexec = true }
    local open <close> = ckvm.open { cloexec = false }
    assert.is_true(is_cloexec(closed.fd))
    assert.is_false(is_cloexec(open.fd))
  end)

  it("gives KVM to a program that could not open it", function()
    local kvm <close> = ckvm.open { cloexec = false }
    local code, output = support.run(([[
      local kvm <close> = require("ckvm").from_fd(%d)
      local vm <close> = kvm:create_vm()
      print(kvm:get_api_version(), vm:create_vcpu(0).id)
    ]]):format(kvm.fd))
    assert.equal("12\t0\n", output)
    assert.equal(0, code)
  end)
end)

describe("ckvm.from_fd", function()
  local kvm
  before_each(function()
    support.need_kvm()
    kvm = ckvm.open()
  end)
  after_each(function() kvm:close() end)

  it("refuses what is no descriptor's number", function()
    for _, fd in ipairs { "3", true, {}, 1.5 } do error_of(ckvm.from_fd, fd) end
    contains("fd: integer expected, got nil", error_of(ckvm.from_fd))
    contains("fd: integer expected, got nil", error_of(ckvm.from_fd, {}))
    contains("fd: integer expected, got string", error_of(ckvm.from_fd, "3"))
    contains("from_fd: unknown option 'path'", error_of(ckvm.from_fd, { fd = 3, path = "x" }))
    for _, fd in ipairs { -1, -2, 1 << 31, math.mininteger, math.maxinteger } do
      contains("is no descriptor", error_of(ckvm.from_fd, fd))
    end
  end)

  it("says that a number is no open descriptor's", function()
    local err = error_of(ckvm.from_fd, NONE)
    assert.equal("EBADF", err.code)
    contains("descriptor " .. NONE, err)
  end)

  it("says that a descriptor is no KVM's", function()
    local vm <close> = kvm:create_vm()
    local vcpu = vm:create_vcpu(0)
    local file <close> = assert(io.open("/dev/null"))
    assert.is_truthy(file)
    for _, fd in ipairs { 0, vm.fd, vcpu.fd } do
      local err = error_of(ckvm.from_fd, fd)
      assert.equal("KVM_GET_API_VERSION", err.call)
      contains(("descriptor %d: this is not a KVM device"):format(fd), err)
    end
  end)

  it("makes an object with a descriptor of its own", function()
    local other = ckvm.from_fd(kvm.fd)
    assert.not_equal(kvm.fd, other.fd)
    assert.is_true(is_cloexec(other.fd))
    other:close()
    assert.equal(12, kvm:get_api_version())
    other = ckvm.from_fd { fd = kvm.fd, sync_regs = false, cloexec = false }
    assert.is_false(is_cloexec(other.fd))
    kvm:close()
    local vm <close> = other:create_vm()
    assert.equal("anon_inode:kvm-vm", target(vm.fd))
    other:close()
  end)

  it("leaves no descriptor behind when it fails", function()
    local vm <close> = kvm:create_vm()
    local before = support.settled_fds()
    for _ = 1, 10 do
      for _, fd in ipairs { 0, vm.fd, NONE } do
        error_of(ckvm.from_fd, fd)
        if fd ~= vm.fd then error_of(kvm.vm_from_fd, kvm, fd) end
        error_of(vm.vcpu_from_fd, vm, fd)
      end
    end
    assert.equal(before, support.count_fds())
  end)
end)

describe("kvm:vm_from_fd", function()
  local kvm, vm, vcpu
  before_each(function()
    support.need_kvm()
    kvm, vm, vcpu = support.real_mode("\xe6\x10\xf4") -- out %al, $0x10; hlt
  end)
  after_each(function() support.close(vm, kvm) end)

  it("refuses a closed kvm, and what is no descriptor", function()
    contains("is no descriptor", error_of(kvm.vm_from_fd, kvm, -1))
    contains("fd: integer expected, got userdata", error_of(kvm.vm_from_fd, kvm, vm))
    assert.equal("EBADF", error_of(kvm.vm_from_fd, kvm, NONE).code)
    local other = ckvm.open()
    other:close()
    contains("kvm is closed", error_of(other.vm_from_fd, other, vm.fd))
  end)

  it("says that a descriptor is no VM's", function()
    for _, fd in ipairs { 0, kvm.fd, vcpu.fd } do
      local err = error_of(kvm.vm_from_fd, kvm, fd)
      assert.equal("from_fd", err.call)
      assert.equal("ENOTTY", err.code)
      contains(("descriptor %d is no VM's"):format(fd), err)
    end
  end)

  it("makes an object of the same VM, which outlives either", function()
    local same = kvm:vm_from_fd(vm.fd)
    assert.equal("EEXIST", error_of(same.create_vcpu, same, 0).code)
    assert.same({}, same.vcpus)
    contains("no memory at 0x0", error_of(same.read, same, 0, 1))
    same:close()
    assert.equal("io_out", vcpu:run(support.LIMITS))
    same = kvm:vm_from_fd(vm.fd)
    vm:close()
    assert.equal(1, same:create_vcpu(1).id)
    same:close()
  end)

  it("adopts no memory, and wants a slot for more", function()
    local same <close> = kvm:vm_from_fd(vm.fd)
    local err = error_of(same.add_memory, same, { gpa = 0x100000, size = 0x1000 })
    assert.equal("slot", err.call)
    contains("needed, since this VM comes from elsewhere", err)
    assert.equal("EEXIST",
      error_of(same.add_memory, same, { gpa = 0x1000, size = 0x1000, slot = 1 }).code)
    assert.equal("EINVAL", -- the slot is taken
      error_of(same.add_memory, same, { gpa = 0x100000, size = 0x1000, slot = 0 }).code)
    same:add_memory { gpa = 0x100000, size = 0x1000, slot = 1 }
    same:write(0x100000, "abc")
    contains("no memory", error_of(vm.read, vm, 0x100000, 3))
  end)

  it("takes its memory back at close, and leaves the rest", function()
    local same = kvm:vm_from_fd(vm.fd)
    same:add_memory { gpa = 0x100000, size = 0x1000, slot = 1 }
    same:close()
    vm:add_memory { gpa = 0x100000, size = 0x2000, slot = 1 } -- the slot is free again
    assert.equal("io_out", vcpu:run(support.LIMITS))
  end)

  it("keeps no memory of a VM that is closed first", function()
    local same <close> = kvm:vm_from_fd(vm.fd)
    vm:close()
    same:add_memory { gpa = 0, size = 0x2000, slot = 0 } -- or the kernel would find it taken
  end)
end)

describe("vm:vcpu_from_fd", function()
  local kvm, vm, vcpu
  before_each(function()
    support.need_kvm()
    kvm, vm, vcpu = support.real_mode("\xf4")
  end)
  after_each(function() support.close(vm, kvm) end)

  it("refuses what is no descriptor", function()
    contains("is no descriptor", error_of(vm.vcpu_from_fd, vm, -1))
    assert.equal("EBADF", error_of(vm.vcpu_from_fd, vm, NONE).code)
    contains("fd: integer expected", error_of(vm.vcpu_from_fd, vm, vcpu))
    vm:close()
    contains("VM is closed", error_of(vm.vcpu_from_fd, vm, 0))
  end)

  it("says that a descriptor is no vCPU's", function()
    for _, fd in ipairs { 0, kvm.fd, vm.fd } do
      local err = error_of(vm.vcpu_from_fd, vm, fd)
      assert.equal("ENOTTY", err.code)
      contains(("descriptor %d is no vCPU's"):format(fd), err)
    end
  end)

  it("refuses a vCPU that another object has", function()
    local same <close> = kvm:vm_from_fd(vm.fd)
    for _, either in ipairs { vm, same } do
      local err = error_of(either.vcpu_from_fd, either, vcpu.fd)
      assert.equal("EBUSY", err.code)
      contains("another object has this vCPU", err)
    end
    assert.equal("hlt", vcpu:run(support.LIMITS))
  end)
end)

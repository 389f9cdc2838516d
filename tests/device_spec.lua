-- Devices that the kernel emulates, and the attributes of devices, VMs, vCPUs and the system.

local ckvm = require "ckvm"
local lfs = require "lfs"
local support = require "support"

local contains, error_of = support.contains, support.error_of

local VFIO <const> = 4 -- a device that every x86 KVM has which was built with VFIO
local FILE_GROUP <const>, FILE_ADD <const> = 1, 1

describe("vm:create_device", function()
  local kvm, vm
  before_each(function() kvm, vm = support.new_vm() end)
  after_each(function() support.close(vm, kvm) end)

  local function need_vfio()
    if not vm:create_device { type = "vfio", test = true } then support.skip("no VFIO device") end
  end

  it("refuses a closed VM", function()
    vm:close()
    contains("VM is closed", error_of(vm.create_device, vm, { type = "vfio" }))
  end)

  it("refuses what is no option table, and unknown options", function()
    contains("table expected", error_of(vm.create_device, vm, "vfio"))
    contains("unknown option 'tpye'", error_of(vm.create_device, vm, { tpye = "vfio" }))
    contains("unknown option 'flags'", error_of(vm.create_device, vm, { type = 4, flags = 1 }))
  end)

  it("refuses types that are no type", function()
    contains("type: unknown name 'vifo'", error_of(vm.create_device, vm, { type = "vifo" }))
    contains("type: name or integer expected, got nil", error_of(vm.create_device, vm, {}))
    contains("type: name or integer expected, got boolean",
      error_of(vm.create_device, vm, { type = true }))
    for _, number in ipairs { -1, 1 << 32, math.mininteger } do
      contains("type: ", error_of(vm.create_device, vm, { type = number }))
    end
    contains("test: true or false expected",
      error_of(vm.create_device, vm, { type = "vfio", test = 1 }))
  end)

  it("says that the KVM has no such device", function()
    for _, kind in ipairs { "arm_vgic_v3", "flic", 7, 0xffffffff } do
      local err = error_of(vm.create_device, vm, { type = kind })
      assert.equal("KVM_CREATE_DEVICE", err.call)
      assert.equal("ENODEV", err.code)
      contains("no device of that type", err)
    end
  end)

  it("with test tells whether the KVM has it, and makes nothing", function()
    local fds = support.settled_fds()
    assert.is_false(vm:create_device { type = "arm_vgic_v3", test = true })
    assert.is_boolean(vm:create_device { type = "vfio", test = true })
    assert.equal(vm:create_device { type = "vfio", test = true },
      vm:create_device { type = VFIO, test = true })
    assert.equal(fds, support.count_fds())
  end)

  it("leaves stdin alone, with test and without", function()
    need_vfio()
    local stdin = lfs.symlinkattributes("/proc/self/fd/0", "target")
    assert.is_true(vm:create_device { type = "vfio", test = true })
    support.collect()
    vm:create_device({ type = "vfio" }):close()
    support.collect()
    assert.equal(stdin, lfs.symlinkattributes("/proc/self/fd/0", "target"))
  end)

  it("makes a device with a descriptor of the kernel's, closed on exec", function()
    need_vfio()
    local device = vm:create_device { type = "vfio" }
    assert.equal("vfio", device.type)
    assert.equal(vm, device.vm)
    assert.equal("anon_inode:kvm-vfio",
      lfs.symlinkattributes("/proc/self/fd/" .. device.fd, "target"))
    local info <close> = io.open("/proc/self/fdinfo/" .. device.fd)
    local flags = tonumber(info:read("a"):match("flags:%s*(%d+)"), 8)
    assert.equal(tonumber("02000000", 8), flags & tonumber("02000000", 8))
  end)

  it("says that the VM has one already", function()
    need_vfio()
    vm:create_device { type = "vfio" }
    local err = error_of(vm.create_device, vm, { type = "vfio" })
    assert.equal("EBUSY", err.code)
    contains("has one already", err)
  end)

  it("gives the kernel its device back at close, which may come twice", function()
    need_vfio()
    local fds = support.settled_fds()
    local device <close> = vm:create_device { type = "vfio" }
    assert.equal(fds + 1, support.count_fds())
    device:close()
    device:close()
    assert.equal(fds, support.count_fds())
    contains("device is closed", error_of(function() return device.fd end))
    contains("device is closed", error_of(device.has_device_attr, device, { attr = 0 }))
    vm:create_device { type = "vfio" } -- there is room again
  end)

  it("keeps the device when its last reference is dropped", function()
    need_vfio()
    vm:create_device { type = "vfio" }
    support.collect()
    assert.equal("EBUSY", error_of(vm.create_device, vm, { type = "vfio" }).code)
  end)

  it("ends the device with its VM", function()
    need_vfio()
    local before = support.settled_fds()
    local other = kvm:create_vm()
    local device = other:create_device { type = "vfio" }
    other:close()
    contains("device is closed", error_of(device.has_device_attr, device, { attr = 0 }))
    contains("closed", tostring(device))
    device:close()
    assert.equal(before, support.count_fds())
  end)
end)

describe("A device's attributes", function()
  local kvm, vm, device
  before_each(function()
    kvm, vm = support.new_vm()
    if not vm:create_device { type = "vfio", test = true } then support.skip("no VFIO device") end
    device = vm:create_device { type = "vfio" }
  end)
  after_each(function() support.close(vm, kvm) end)

  it("are told apart by has_device_attr", function()
    assert.is_true(device:has_device_attr { group = FILE_GROUP, attr = FILE_ADD })
    assert.is_true(device:has_device_attr { attr = "vfio_file_add" })
    assert.is_true(device:has_device_attr { group = "vfio_file", attr = "vfio_file_del" })
    assert.is_false(device:has_device_attr { group = FILE_GROUP, attr = 99 })
    assert.is_false(device:has_device_attr { group = 9, attr = FILE_ADD })
  end)

  it("refuse wrong names, types and options", function()
    contains("device has no attribute 'x'",
      error_of(device.has_device_attr, device, { attr = "x" }))
    contains("device has no attribute 'vcpu_tsc_offset'",
      error_of(device.has_device_attr, device, { attr = "vcpu_tsc_offset" }))
    contains("no attribute 'vfio_file_add' in this group",
      error_of(device.has_device_attr, device, { group = 2, attr = "vfio_file_add" }))
    contains("device has no group 'x'",
      error_of(device.has_device_attr, device, { group = "x", attr = 1 }))
    contains("attr: integer expected, got nil", error_of(device.has_device_attr, device, {}))
    contains("unknown option 'addr'",
      error_of(device.set_device_attr, device, { attr = 1, addr = 0x1000 }))
    contains("unknown option 'value'",
      error_of(device.get_device_attr, device, { attr = 1, value = 0 }))
    contains("group: ", error_of(device.has_device_attr, device, { group = -1, attr = 1 }))
    contains("flags: ", error_of(device.has_device_attr, device, { flags = 1 << 32, attr = 1 }))
  end)

  it("need a size where ckvm knows none", function()
    contains("size: needed", error_of(device.get_device_attr, device, { group = 1, attr = 7 }))
    for _, size in ipairs { 0, -1, (16 << 20) + 1, math.maxinteger } do
      contains("size: ", error_of(device.get_device_attr, device, { attr = 7, size = size }))
    end
    contains("size: 1, 2, 4 or 8 expected",
      error_of(device.set_device_attr, device, { attr = 7, value = 1 }))
    contains("size: 1, 2, 4 or 8 expected",
      error_of(device.set_device_attr, device, { attr = 7, value = 1, size = 3 }))
  end)

  it("have the size that ckvm knows", function()
    local add = { attr = "vfio_file_add", size = 8, value = 0 }
    contains("vfio_file_add has 4 bytes, not 8", error_of(device.set_device_attr, device, add))
    contains("string of 4 bytes expected, got 3 bytes",
      error_of(device.set_device_attr, device, { attr = "vfio_file_add", data = "abc" }))
    contains("value: 4294967296 does not fit in 32 bits",
      error_of(device.set_device_attr, device, { attr = "vfio_file_add", value = 1 << 32 }))
    contains("value: there is data, too",
      error_of(device.set_device_attr, device, { attr = 1, value = 1, data = "x" }))
    contains("data: string expected, got number",
      error_of(device.set_device_attr, device, { attr = 1, data = 7 }))
  end)

  it("are refused by the kernel with its errno", function()
    local function code(method, options)
      local err = error_of(device[method], device, options)
      assert.equal("KVM_" .. method:upper(), err.call)
      return err.code
    end
    assert.equal("EFAULT", code("set_device_attr", { group = FILE_GROUP, attr = FILE_ADD }))
    assert.equal("ENXIO", code("set_device_attr", { group = 9, attr = 1, data = "abcd" }))
    assert.equal("EPERM", code("get_device_attr", { attr = "vfio_file_add" }))
    assert.equal("EBADF", code("set_device_attr", { attr = "vfio_file_add", value = 0xffffffff }))
    assert.equal("EINVAL", code("set_device_attr", { attr = "vfio_file_add", value = kvm.fd }))
  end)
end)

describe("The system's attributes", function()
  local kvm
  before_each(function()
    support.need_kvm()
    kvm = ckvm.open()
    if kvm:check_extension("sys_attributes") == 0 then support.skip("no system attributes") end
  end)
  after_each(function()
    if kvm then kvm:close() end
  end)

  it("have the features of XSAVE that a guest may be given", function()
    assert.is_true(kvm:has_device_attr { attr = "x86_xcomp_guest_supp" })
    local features = kvm:get_device_attr { attr = "x86_xcomp_guest_supp" }
    assert.equal(3, features & 3) -- x87 and SSE
    assert.equal(features, kvm:get_device_attr { group = 0, attr = 0 })
    assert.equal(features, kvm:get_device_attr { attr = 0, size = 8 })
  end)

  it("are refused where there are none", function()
    assert.is_false(kvm:has_device_attr { group = 7, attr = 0 })
    local unknown = { group = 7, attr = 0, size = 8 }
    assert.equal("ENXIO", error_of(kvm.get_device_attr, kvm, unknown).code)
    error_of(kvm.set_device_attr, kvm, { attr = 0, value = 1 })
    kvm:close()
    contains("kvm is closed", error_of(kvm.get_device_attr, kvm, { attr = 0 }))
  end)

  it("may be of any size, as far as ckvm is concerned", function()
    for _, size in ipairs { 1, 3, 8, 4095, 4096, 4097, 16 << 20 } do
      local unknown = { group = 1 << 31, attr = 1 << 63, size = size, flags = 0 }
      assert.equal("ENXIO", error_of(kvm.get_device_attr, kvm, unknown).code)
    end
  end)
end)

describe("A VM's attributes", function()
  it("are the kernel's to refuse", function()
    support.need_kvm()
    local kvm <close> = ckvm.open()
    local vm <close> = kvm:create_vm()
    if vm:check_extension("vm_attributes") ~= 0 then pending("this KVM has some") end
    for _, method in ipairs { "has_device_attr", "get_device_attr", "set_device_attr" } do
      local options = { group = 0, attr = 0, size = method:find("get") and 8 or nil }
      local err = error_of(vm[method], vm, options)
      assert.equal("KVM_" .. method:upper(), err.call)
      assert.equal("ENOTTY", err.code)
    end
  end)
end)

describe("A vCPU's attributes", function()
  local kvm, vm, vcpu
  before_each(function()
    support.need_kvm()
    kvm, vm, vcpu = support.real_mode("\xf4")
    if kvm:check_extension("vcpu_attributes") == 0 then support.skip("no vCPU attributes") end
  end)
  after_each(function() support.close(vm, kvm) end)

  it("have the offset of the time-stamp counter", function()
    assert.is_true(vcpu:has_device_attr { attr = "vcpu_tsc_offset" })
    assert.is_false(vcpu:has_device_attr { group = "vcpu_tsc_ctrl", attr = 9 })
    local offset = vcpu:get_device_attr { attr = "vcpu_tsc_offset" }
    assert.equal("integer", math.type(offset))
    vcpu:set_device_attr { attr = "vcpu_tsc_offset", value = -12345 }
    vcpu:set_device_attr { attr = "vcpu_tsc_offset", data = ("<i8"):pack(-12345) }
    -- A KVM in software says yes and keeps its offset of 0.
    local now = vcpu:get_device_attr { attr = "vcpu_tsc_offset" }
    assert.is_true(now == -12345 or now == offset)
  end)

  it("leave the registers that were written as they are", function()
    vcpu.regs.rbx = 77
    vcpu:set_device_attr { attr = "vcpu_tsc_offset", value = 0 }
    assert.equal(77, vcpu.regs.rbx)
    assert.equal("hlt", vcpu:run(support.LIMITS))
    assert.equal(77, vcpu.regs.rbx)
  end)
end)

-- With a kernel that reads and writes as many bytes as the attribute's number says.
describe("An attribute's buffer", function()
  local build = support.program():match("^(.*)/")
  local open = package.loadlib(build .. "/tests/.libs/fake_kernel.so", "luaopen_fake_kernel")
  local fake = open and open()
  local kvm
  before_each(function()
    if not fake then support.skip("tests/fake_kernel.so is not built: make check") end
    fake.install()
    kvm = ckvm.open { path = "/dev/null" }
  end)
  after_each(function()
    if fake then fake.remove() end
    if kvm then kvm:close() end
  end)

  it("is of the size that is given", function()
    for _, size in ipairs { 1, 2, 4, 8 } do
      assert.equal(0xa5a5a5a5a5a5a5a5 >> 64 - 8 * size,
        kvm:get_device_attr { group = 5, attr = size, size = size })
    end
    for _, size in ipairs { 3, 5, 4095, 4096, 4097, 1 << 20 } do
      assert.equal(("\xa5"):rep(size),
        kvm:get_device_attr { group = 5, attr = size, size = size })
      kvm:set_device_attr { group = 5, attr = size, data = ("\xa5"):rep(size) }
    end
    kvm:set_device_attr { group = 5, attr = 4, size = 4, value = 0xa5a5a5a5 }
  end)

  it("is zero where the kernel writes nothing", function()
    assert.equal("\xa5\xa5\0", kvm:get_device_attr { group = 5, attr = 2, size = 3 })
  end)

  it("has nothing behind it that a kernel could touch", function()
    for _, size in ipairs { 1, 3, 8, 100, 4096, 5000 } do
      local function get()
        return kvm:get_device_attr { group = 5, attr = size + 1, size = size }
      end
      local err = error_of(get)
      assert.equal("EFAULT", err.code)
      contains("larger than size", err)
      err = error_of(kvm.set_device_attr, kvm,
        { group = 5, attr = size + 1, data = ("\xa5"):rep(size) })
      assert.equal("EFAULT", err.code)
      contains("a larger one", err)
    end
  end)
end)

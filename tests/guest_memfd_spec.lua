-- guest_memfd, memory attributes, and pages that are there before the guest asks.

local ckvm = require "ckvm"
local lfs = require "lfs"
local support = require "support"

local contains, error_of = support.contains, support.error_of

local ALL <const> = 3 -- mmap and init_shared: the flags of Linux 6.18

describe("guest_memfd", function()
  local kvm, vm
  before_each(function()
    kvm, vm = support.new_vm()
    if vm:check_extension("guest_memfd") == 0 then support.skip("no guest_memfd") end
  end)
  after_each(function() support.close(vm, kvm) end)

  local function need_mmap()
    if vm:check_extension("guest_memfd_flags") & ALL ~= ALL then
      pending("no guest_memfd that the host can map")
    end
  end

  it("refuses a closed VM, unknown options and wrong types", function()
    contains("unknown option 'bytes'", error_of(vm.create_guest_memfd, vm, { bytes = 1 }))
    contains("size: integer expected, got nil", error_of(vm.create_guest_memfd, vm, {}))
    contains("flags: unknown name 'map'",
      error_of(vm.create_guest_memfd, vm, { size = 0x1000, flags = "map" }))
    vm:close()
    contains("VM is closed", error_of(vm.create_guest_memfd, vm, { size = 0x1000 }))
  end)

  it("is refused by the kernel where the size or a flag is wrong", function()
    for _, options in ipairs {
      { size = 0 }, { size = 0x1001 }, { size = -0x1000 }, { size = 0x1000, flags = 1 << 31 },
    } do
      local err = error_of(vm.create_guest_memfd, vm, options)
      assert.equal("KVM_CREATE_GUEST_MEMFD", err.call)
      assert.equal("EINVAL", err.code)
      contains("whole pages", err)
    end
  end)

  it("is an object that owns a descriptor, closed on exec", function()
    local fds = support.settled_fds()
    local memfd <close> = vm:create_guest_memfd { size = 0x10000 }
    assert.equal(0x10000, memfd.size)
    assert.equal(0, memfd.flags)
    assert.equal(vm, memfd.vm)
    contains("kvm-gmem", lfs.symlinkattributes("/proc/self/fd/" .. memfd.fd, "target"))
    local info <close> = io.open("/proc/self/fdinfo/" .. memfd.fd)
    local flags = tonumber(info:read("a"):match("flags:%s*(%d+)"), 8)
    assert.equal(tonumber("02000000", 8), flags & tonumber("02000000", 8))
    info:close()
    memfd:close()
    memfd:close()
    assert.equal(fds, support.count_fds())
    contains("guest_memfd is closed", error_of(function() return memfd.fd end))
  end)

  it("ends with its VM", function()
    local fds = support.settled_fds()
    local other = kvm:create_vm()
    local memfd = other:create_guest_memfd { size = 0x1000 }
    other:close()
    contains("closed", tostring(memfd))
    assert.equal(fds, support.count_fds())
  end)

  it("may have flags, by name", function()
    need_mmap()
    assert.equal(ALL, vm:create_guest_memfd({ size = 0x1000, flags = ALL }).flags)
    assert.equal(ALL,
      vm:create_guest_memfd({ size = 0x1000, flags = { "mmap", "init_shared" } }).flags)
  end)

  it("stands behind memory, which keeps it open", function()
    local fds = support.settled_fds()
    local memfd = vm:create_guest_memfd { size = 0x4000 }
    local ok, ram = pcall(vm.add_memory, vm, { gpa = 0, size = 0x4000, guest_memfd = memfd })
    if not ok then pending("memory of this VM can have none: " .. ram.message) end
    memfd:close()
    vm:write(0x1000, "shared")
    assert.equal("shared", vm:read(0x1000, 6))
    ram:close()
    support.collect()
    assert.equal(fds, support.count_fds())
  end)

  it("is refused for memory that it cannot be of", function()
    local memfd = vm:create_guest_memfd { size = 0x4000 }
    local function add(options)
      options.gpa, options.size = 0, options.size or 0x1000
      return vm:add_memory(options)
    end
    contains("guest_memfd: guest_memfd expected, got number", error_of(add, { guest_memfd = 3 }))
    contains("of what?", error_of(add, { guest_memfd_offset = 0 }))
    contains("guest_memfd_offset: ",
      error_of(add, { guest_memfd = memfd, guest_memfd_offset = -1 }))
    contains("guest_memfd_offset: 0x1 is not a multiple of the page size",
      error_of(add, { guest_memfd = memfd, guest_memfd_offset = 1 }))
    for _, options in ipairs {
      { size = 0x5000 }, { guest_memfd_offset = 0x4000 },
      { guest_memfd_offset = 1 << 62 }, { readonly = true },
    } do
      options.guest_memfd = memfd
      local err = error_of(add, options)
      assert.equal("KVM_SET_USER_MEMORY_REGION2", err.call)
      assert.equal("EINVAL", err.code)
      contains("long enough", err)
    end
    local other <close> = kvm:create_vm()
    assert.equal("EINVAL",
      error_of(add, { guest_memfd = other:create_guest_memfd { size = 0x1000 } }).code)
    memfd:close()
    contains("guest_memfd is closed", error_of(add, { guest_memfd = memfd }))
  end)

  it("that the host can map is all of the memory: guest and host see the same", function()
    need_mmap()
    local memfd = vm:create_guest_memfd { size = 0x8000, flags = ALL }
    for _, other in ipairs { "shared", "hugepages" } do
      local err = error_of(vm.add_memory, vm,
        { gpa = 0, size = 0x4000, guest_memfd = memfd, [other] = true })
      assert.equal("guest_memfd", err.call)
    end
    local ram = vm:add_memory {
      gpa = 0, size = 0x4000, guest_memfd = memfd, guest_memfd_offset = 0x4000,
    }
    vm:write(0x1000, "\xc6\x06\x00\x20\x2a\xf4") -- movb $42, 0x2000; hlt
    vm:fill(0x3000, 0x1000, 0x55)
    local vcpu = vm:create_vcpu(0)
    vcpu:set_sregs { cs = { base = 0, selector = 0 } }
    vcpu:set_regs { rip = 0x1000, rflags = 2 }
    assert.equal("hlt", vcpu:run(support.LIMITS))
    assert.equal(42, vm:read_u8(0x2000))
    assert.equal(("\x55"):rep(0x1000), vm:read(0x3000, 0x1000))
    local err = error_of(vm.move_memory, vm, ram, 0x10000)
    assert.equal("EINVAL", err.code)
    contains("It cannot be read-only, logged or moved", err)
    ram:close()
    vm:add_memory { gpa = 0, size = 0x8000, guest_memfd = memfd }
    assert.equal(42, vm:read_u8(0x6000)) -- it is still in there
  end)

  it("that the host can map raises nothing but errors where it has pages to itself", function()
    need_mmap()
    local ok, memfd = pcall(vm.create_guest_memfd, vm, { size = 0x1000, flags = "mmap" })
    if not ok then pending("no guest_memfd that is mapped and private") end
    ok = pcall(vm.add_memory, vm, { gpa = 0, size = 0x1000, guest_memfd = memfd })
    if not ok then pending("memory of this VM can have none") end
    for _, err in ipairs { error_of(vm.read, vm, 0, 1), error_of(vm.write, vm, 0, "x") } do
      assert.equal("EFAULT", err.code)
      contains("0x0: the page is the guest's alone", err)
    end
  end)

  it("may be part of a region", function()
    local ram = vm:add_memory { gpa = 0, size = 0x4000 }
    local memfd = vm:create_guest_memfd { size = 0x4000 }
    local region = {
      slot = 1, guest_phys_addr = 0x10000, memory_size = 0x1000, memory = ram, offset = 0x1000,
      guest_memfd = memfd, guest_memfd_offset = 0x2000,
    }
    local ok, err = pcall(vm.set_user_memory_region2, vm, region)
    if not ok then pending("memory of this VM can have none: " .. err.message) end
    memfd:close()
    vm:write(0x10000, "x")
    assert.equal("x", vm:read(0x1000, 1))
    vm:set_user_memory_region2 { slot = 1, memory_size = 0 }
  end)
end)

describe("vm:set_memory_attributes", function()
  it("is the kernel's to refuse", function()
    support.need_kvm()
    local kvm <close> = ckvm.open()
    local vm <close> = kvm:create_vm()
    contains("unknown field 'gpa'", error_of(vm.set_memory_attributes, vm, { gpa = 0 }))
    if vm:check_extension("memory_attributes") ~= 0 then pending("this VM has some") end
    for _, attributes in ipairs { 8, "private", { "private" }, 1 << 63 } do
      local err = error_of(vm.set_memory_attributes, vm,
        { address = 0, size = 0x1000, attributes = attributes })
      assert.equal("KVM_SET_MEMORY_ATTRIBUTES", err.call)
      assert.equal("ENOTTY", err.code)
      contains("no memory attributes", err)
    end
  end)

  it("takes what the kernel has names for by name", function()
    support.need_kvm()
    local vm = ckvm.open():create_vm()
    for message, attributes in pairs {
      ["attributes: unknown name 'privat'; known: private"] = "privat",
      ["attributes[x]: no such element"] = { x = "private" },
      ["attributes: name or integer expected, got boolean"] = true,
    } do
      contains("kvm_memory_attributes." .. message, error_of(vm.set_memory_attributes, vm,
        { address = 0, size = 0x1000, attributes = attributes }))
    end
  end)
end)

describe("vcpu:pre_fault_memory", function()
  it("has pages at hand, or says that the KVM cannot", function()
    support.need_kvm()
    local kvm <close> = ckvm.open()
    local vm <close> = kvm:create_vm()
    vm:add_memory { gpa = 0, size = 0x100000 }
    local vcpu = vm:create_vcpu(0)
    contains("unknown option 'address'", error_of(vcpu.pre_fault_memory, vcpu, { address = 0 }))
    contains("size: integer expected", error_of(vcpu.pre_fault_memory, vcpu, { gpa = 0 }))
    local ok, err = pcall(vcpu.pre_fault_memory, vcpu, { gpa = 0, size = 0x100000 })
    if ok then
      err = error_of(vcpu.pre_fault_memory, vcpu, { gpa = 1, size = 0x1000 })
      assert.equal("EINVAL", err.code)
    else -- without two-dimensional paging there is nothing to be filled
      assert.equal(0, vm:check_extension("pre_fault_memory"))
      -- As a KVM says that has the call, and one that has not got it: Linux 6.1.
      assert.is_true(err.code == "ENOTSUP" or err.code == "EINVAL")
      contains("0x100000 bytes at 0x0: this KVM cannot", err)
    end
    assert.equal("KVM_PRE_FAULT_MEMORY", err.call)
  end)
end)

-- Slots as the kernel has them, memory shared by slots, and the shadow pages' number.

local ckvm = require "ckvm"
local support = require "support"

local contains, error_of = support.contains, support.error_of

describe("vm:set_user_memory_region", function()
  local kvm, vm, ram
  before_each(function()
    kvm, vm = support.new_vm()
    ram = vm:add_memory { gpa = 0, size = 0x4000, slot = 0 }
  end)
  after_each(function() support.close(vm, kvm) end)

  local function set(options) return vm:set_user_memory_region(options) end
  local function region(options)
    local all = { slot = 1, guest_phys_addr = 0x10000, memory_size = 0x1000, memory = ram }
    for key, value in pairs(options or {}) do all[key] = value end
    return all
  end

  it("refuses a closed VM, unknown options and wrong types", function()
    contains("unknown option 'userspace_addr'", error_of(set, region { userspace_addr = 0x1000 }))
    contains("unknown option 'guest_memfd'", error_of(set, region { guest_memfd = 1 }))
    contains("slot: integer expected, got nil", error_of(set, {}))
    contains("memory_size: integer expected, got nil", error_of(set, { slot = 1 }))
    contains("memory: memory expected, got userdata", error_of(set, region { memory = vm }))
    contains("memory: memory expected, got number", error_of(set, region { memory = 0x1000 }))
    contains("flags: unknown name 'dirty'", error_of(set, region { flags = "dirty" }))
    contains("slot: ", error_of(set, region { slot = -1 }))
    vm:close()
    contains("VM is closed", error_of(vm.set_user_memory_region, vm, region()))
  end)

  it("takes no address of the host: memory is needed, open and long enough", function()
    local bare = region()
    bare.memory = nil
    contains("memory: needed", error_of(set, bare))
    for _, wrong in ipairs {
      { offset = 0x4000 }, { offset = 0x3001 }, { memory_size = 0x5000 }, { offset = -0x1000 },
      { offset = math.mininteger }, { offset = math.maxinteger, memory_size = math.maxinteger },
      { offset = 0x1000, memory_size = -0x1000 },
    } do
      local err = error_of(set, region(wrong))
      assert.equal("ERANGE", err.code)
      contains("the memory is shorter than", err)
    end
    ram:close()
    contains("memory is closed", error_of(set, region()))
  end)

  it("is refused by the kernel with its errno", function()
    for code, wrong in pairs {
      EEXIST = { { guest_phys_addr = 0x3000 } },
      EINVAL = {
        { memory_size = 0, slot = 5 }, -- of a slot that is not there
        { guest_phys_addr = 0x10001 }, { offset = 1 }, { flags = 1 << 31 }, { slot = 1 << 30 },
        { slot = 0 }, -- has another size
      },
    } do
      for _, options in ipairs(wrong) do
        local err = error_of(set, region(options))
        assert.equal(code, err.code)
      end
    end
    assert.equal("abc", (vm:write(0, "abc") or vm:read(0, 3)))
  end)

  it("makes a slot of a part of other memory, seen at both addresses", function()
    set(region { offset = 0x2000 })
    vm:write(0x2004, "both")
    assert.equal("both", vm:read(0x10004, 4))
    vm:write(0x10004, "more")
    assert.equal("more", vm:read(0x2004, 4))
    contains("no memory at 0x11000", error_of(vm.read, vm, 0x10fff, 2))
  end)

  it("moves a slot, gives it other flags, and deletes it", function()
    set(region())
    set(region { guest_phys_addr = 0x20000, flags = "log_dirty_pages" })
    contains("no memory at 0x10000", error_of(vm.read, vm, 0x10000, 1))
    vm:write(0x20000, "x")
    assert.equal("x", vm:read(0, 1))
    set { slot = 1, memory_size = 0 }
    contains("no memory at 0x20000", error_of(vm.read, vm, 0x20000, 1))
    assert.equal("EINVAL", error_of(set, { slot = 1, memory_size = 0 }).code)
  end)

  it("deletes a slot that add_memory has made", function()
    set { slot = 0, memory_size = 0 }
    contains("no memory at 0x0", error_of(vm.read, vm, 0, 1))
    contains("memory is closed", error_of(vm.move_memory, vm, ram, 0x10000))
    contains("memory is closed", error_of(function() return ram.size end))
    contains("closed", tostring(ram))
    ram:close()
    vm:add_memory { gpa = 0, size = 0x1000, slot = 0 }
  end)

  it("is minded by add_memory: the first free slot is another, and so is the place", function()
    set(region())
    assert.equal(2, vm:add_memory({ gpa = 0x30000, size = 0x1000 }).slot)
    assert.equal("EEXIST", error_of(vm.add_memory, vm, { gpa = 0x10000, size = 0x1000 }).code)
    assert.equal("EEXIST",
      error_of(vm.add_memory, vm, { gpa = 0x40000, size = 0x1000, slot = 1 }).code)
  end)

  it("keeps what it shows when the memory is closed first", function()
    vm:write(0, "kept")
    set(region())
    ram:close()
    support.collect()
    assert.equal("kept", vm:read(0x10000, 4))
  end)
end)

describe("vm:set_user_memory_region2", function()
  it("does the same, where the KVM has it", function()
    support.need_kvm()
    local kvm <close> = ckvm.open()
    local vm <close> = kvm:create_vm()
    if vm:check_extension("user_memory2") == 0 then pending("no second kind of region") end
    local ram = vm:add_memory { gpa = 0, size = 0x4000 }
    contains("guest_memfd: guest_memfd expected, got number",
      error_of(vm.set_user_memory_region2, vm,
        { slot = 1, memory_size = 0x1000, memory = ram, guest_memfd = 3 }))
    contains("guest_memfd: needed with that flag",
      error_of(vm.set_user_memory_region2, vm,
        { slot = 1, memory_size = 0x1000, memory = ram, flags = "guest_memfd" }))
    vm:set_user_memory_region2 {
      slot = 1, guest_phys_addr = 0x8000, memory_size = 0x1000, memory = ram, offset = 0x1000,
      flags = { "readonly", "log_dirty_pages" },
    }
    vm:write(0x1000, "two")
    assert.equal("two", vm:read(0x8000, 3))
    vm:set_user_memory_region2 { slot = 1, memory_size = 0 }
    contains("no memory", error_of(vm.read, vm, 0x8000, 1))
  end)
end)

describe("vm:add_memory memory =", function()
  local kvm, vm, vcpu, ram
  before_each(function()
    support.need_kvm()
    kvm, vm, vcpu, ram = support.real_mode("\xc6\x06\x00\x50\x07\xf4") -- movb $7, 0x5000; hlt
  end)
  after_each(function() support.close(vm, kvm) end)

  it("refuses what is no memory, too short, or comes from somewhere else, too", function()
    local function add(options)
      options.gpa, options.size = 0x100000, options.size or 0x1000
      return vm:add_memory(options)
    end
    contains("memory: memory expected, got table", error_of(add, { memory = {} }))
    local err = error_of(add, { memory = ram, size = 0x20000 })
    assert.equal("ERANGE", err.code)
    contains("the other is shorter than 0x20000 bytes from 0x0 on", err)
    assert.equal("ERANGE", error_of(add, { memory = ram, offset = 0x10000 }).code)
    for _, other in ipairs { "shared", "hugepages" } do
      assert.equal("EBUSY", error_of(add, { memory = ram, [other] = true }).code)
    end
    assert.equal("EBUSY", error_of(add, { memory = ram, file = "/dev/zero" }).code)
    ram:close()
    contains("memory is closed", error_of(add, { memory = ram }))
  end)

  it("shows the same bytes at another address, to the guest, too", function()
    local alias = vm:add_memory { gpa = 0x100000, size = 0x2000, memory = ram, offset = 0x4000 }
    assert.equal("hlt", vcpu:run(support.LIMITS))
    assert.equal(7, vm:read_u8(0x101000))
    alias:close()
    assert.equal(7, vm:read_u8(0x5000))
    contains("no memory", error_of(vm.read, vm, 0x101000, 1))
  end)

  it("may be another VM's, and outlives it", function()
    local other = kvm:create_vm()
    other:add_memory { gpa = 0, size = 0x10000, memory = ram }
    assert.equal("hlt", vcpu:run(support.LIMITS))
    assert.equal(7, other:read_u8(0x5000))
    other:write(0x5000, "there")
    assert.equal("there", vm:read(0x5000, 5))
    vm:close()
    support.collect()
    assert.equal("there", other:read(0x5000, 5))
    other:close()
  end)
end)

describe("vm:set_nr_mmu_pages", function()
  it("sets how many pages shadow page tables may have", function()
    support.need_kvm()
    local kvm <close> = ckvm.open()
    local vm <close> = kvm:create_vm()
    error_of(vm.set_nr_mmu_pages, vm, -1)
    error_of(vm.set_nr_mmu_pages, vm, "1000")
    local err = error_of(vm.set_nr_mmu_pages, vm, 1)
    assert.equal("KVM_SET_NR_MMU_PAGES", err.call)
    assert.equal("EINVAL", err.code)
    vm:set_nr_mmu_pages(1000)
  end)

  it("has lost its get, and says so", function()
    support.need_kvm()
    local kvm <close> = ckvm.open()
    local vm <close> = kvm:create_vm()
    local ok, result = pcall(vm.get_nr_mmu_pages, vm)
    if not ok then
      assert.equal("KVM_GET_NR_MMU_PAGES", result.call)
      assert.equal("ENOTTY", result.code)
    else
      assert.equal("integer", math.type(result))
    end
  end)
end)

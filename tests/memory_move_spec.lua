-- Guest memory that is moved, and memory that the guest is to map anew.

local support = require "support"
local x86 = require "ckvm.x86"

local contains, error_of = support.contains, support.error_of
local new_file = support.new_file

local PAGE <const> = 0x1000

local kvm, vm

local function setup() kvm, vm = support.new_vm() end
local function teardown() kvm, vm = support.close(vm, kvm) end

describe("vm:move_memory", function()
  local ram
  before_each(function()
    setup()
    ram = vm:add_memory { gpa = 0x10000, size = 0x4000 }
    vm:write(0x10000, "first")
    vm:write(0x13ffc, "last")
  end)
  after_each(teardown)

  local function stayed()
    assert.equal(0x10000, ram.gpa)
    assert.equal("first", vm:read(0x10000, 5))
    assert.equal("last", vm:read(0x13ffc, 4))
    contains("no memory at 0x14000", error_of(vm.read, vm, 0x13fff, 2))
  end

  it("refuses what is not a memory of this VM", function()
    local other <close> = kvm:create_vm()
    local foreign = other:add_memory { gpa = 0, size = PAGE }
    contains("memory of another VM", error_of(vm.move_memory, vm, foreign, PAGE))
    contains("memory expected", error_of(vm.move_memory, vm, vm, PAGE))
    contains("memory expected", error_of(vm.move_memory, vm))
    stayed()
  end)

  it("refuses what is not an address of a page, and stays", function()
    for _, gpa in ipairs { "0", true, {}, 0.5, 2 ^ 63, 1, -1, PAGE + 1 } do
      error_of(vm.move_memory, vm, ram, gpa)
    end
    error_of(vm.move_memory, vm, ram)
    contains("0x1 is not a multiple", error_of(vm.move_memory, vm, ram, 1))
    stayed()
  end)

  it("refuses to go past 2^64, and past the kernel's limit, and stays", function()
    contains("0x4000 bytes at 0xfffffffffffff000 do not fit",
      error_of(vm.move_memory, vm, ram, -PAGE))
    for _, gpa in ipairs { -0x4000, 1 << 62, math.mininteger } do
      local err = error_of(vm.move_memory, vm, ram, gpa)
      assert.equal("KVM_SET_USER_MEMORY_REGION", err.call)
      contains(("0x%x"):format(gpa), err)
    end
    stayed()
  end)

  it("names both memories that would overlap, and stays", function()
    vm:add_memory { gpa = 0x20000, size = PAGE }
    local err = error_of(vm.move_memory, vm, ram, 0x1d000)
    assert.equal("EEXIST", err.code)
    contains("0x4000 bytes at 0x1d000 overlap slot 1, 0x1000 at 0x20000", err)
    stayed()
  end)

  it("moves it with its contents", function()
    vm:move_memory(ram, 0x40000)
    assert.equal(0x40000, ram.gpa)
    assert.equal("first", vm:read(0x40000, 5))
    assert.equal("last", vm:read(0x43ffc, 4))
    contains("no memory at 0x10000", error_of(vm.read, vm, 0x10000, 1))
    vm:add_memory { gpa = 0x10000, size = 0x4000 }
  end)

  it("moves it by less than its size, and to where it is", function()
    vm:move_memory(ram, 0x11000)
    assert.equal("first", vm:read(0x11000, 5))
    vm:move_memory(ram, 0x10000)
    vm:move_memory(ram, 0x10000)
    stayed()
  end)

  it("keeps the order of its neighbours", function()
    vm:add_memory { gpa = 0x20000, size = PAGE }
    vm:fill(0x20000, PAGE, 0x2e)
    vm:move_memory(ram, 0x21000)
    assert.equal("..first", vm:read(0x20ffe, 7))
    vm:move_memory(ram, 0x1c000)
    assert.equal("last..", vm:read(0x1fffc, 6))
  end)

  it("moves it for the guest, too", function()
    -- movb (0x8000), %al; hlt
    local _, machine <close>, vcpu = support.real_mode("\xa0\x00\x80\xf4", { size = 0x8000 })
    local more = machine:add_memory { gpa = 0x9000, size = PAGE }
    machine:write_u8(0x9000, 7)
    machine:move_memory(more, 0x8000)
    assert.equal("hlt", vcpu:run { timeout = 10 })
    assert.equal(7, vcpu.regs.rax)
  end)

  it("keeps its log", function()
    -- movb $1, (0x8000); hlt
    local _, machine <close>, vcpu = support.real_mode("\xc6\x06\x00\x80\x01\xf4",
      { size = 0x8000 })
    local logged = machine:add_memory { gpa = 0x8000, size = PAGE, log_dirty = true }
    assert.equal("hlt", vcpu:run { timeout = 10 })
    machine:move_memory(logged, 0x9000)
    assert.same({ 0x9000 }, machine:dirty_pages(logged))
    machine:move_memory(logged, 0x8000)
    assert.same({}, machine:dirty_pages(logged))
    vcpu:set_regs { rip = 0x1000 }
    assert.equal("hlt", vcpu:run { timeout = 10 })
    assert.same({ 0x8000 }, machine:dirty_pages(logged))
  end)
end)

describe("vm:zap_memory", function()
  before_each(setup)
  after_each(teardown)

  it("keeps what is in the memory, of any kind and across slots", function()
    local name, remove = new_file(("f"):rep(PAGE))
    vm:add_memory { gpa = 0, size = 2 * PAGE }
    vm:add_memory { gpa = 2 * PAGE, size = 2 * PAGE, shared = true }
    vm:add_memory { gpa = 4 * PAGE, size = PAGE, file = name }
    vm:add_memory { gpa = 5 * PAGE, size = PAGE, file = name, shared = true }
    vm:add_memory { gpa = 6 * PAGE, size = PAGE, file = name, shared = true, readonly = true }
    for page = 0, 5 do vm:write(page * PAGE, ("page %d"):format(page)) end
    vm:zap_memory(0, 7 * PAGE)
    vm:zap_memory(PAGE, PAGE)
    for page = 0, 5 do
      assert.equal(("page %d"):format(page), vm:read(page * PAGE, 6))
      vm:write_u8(page * PAGE, 0x70)
    end
    assert.equal("page 5", vm:read(6 * PAGE, 6))
    remove()
  end)

  it("refuses what is no memory, or no whole pages of it", function()
    vm:add_memory { gpa = PAGE, size = PAGE }
    contains("no memory at 0x2000", error_of(vm.zap_memory, vm, PAGE, 2 * PAGE))
    contains("no memory at 0x0", error_of(vm.zap_memory, vm, 0, PAGE))
    contains("no memory at 0xfffffffffffff000", error_of(vm.zap_memory, vm, -PAGE, PAGE))
    contains("gpa: 0x1001 is not a multiple", error_of(vm.zap_memory, vm, PAGE + 1, PAGE))
    contains("size: 0x1 is not a multiple", error_of(vm.zap_memory, vm, PAGE, 1))
    contains("no pages", error_of(vm.zap_memory, vm, PAGE, 0))
    contains("no memory at", error_of(vm.zap_memory, vm, PAGE, math.maxinteger - PAGE + 1))
    vm:close()
    contains("VM is closed", error_of(vm.zap_memory, vm, PAGE, PAGE))
  end)

  -- Ring 3 is mapped on every KVM; where ring 0 is emulated, nothing of it is.
  for _, shared in ipairs { false, true } do
    local kind <const> = shared and "shared" or "private"
    it("has the guest map " .. kind .. " memory anew", function()
      vm:add_memory { gpa = 0, size = 0x10000, shared = shared }
      local cr3 = x86.page_tables(vm, 0x2000, {
        { va = 0, size = 0x2000, user = true }, { va = 0x10000, size = PAGE, user = true },
      })
      -- inc (0x1800); mov (0x1800), %al; mov %al, (0x10000); jmp back
      vm:write(0x1000, "\xfe\x04\x25\x00\x18\x00\x00\x8a\x04\x25\x00\x18\x00\x00"
        .. "\x88\x04\x25\x00\x00\x01\x00\xeb\xe9")
      local vcpu, stats, seen = vm:create_vcpu(0), vm:get_stats_fd(), {}
      x86.enter(vcpu, "user", { rip = 0x1000, cr3 = cr3 })
      local function mapped()
        local now = stats:read()
        return now.pages_4k + now.pages_2m + now.pages_1g
      end
      for i = 1, 3 do
        assert.equal("mmio_write", (vcpu:run(support.LIMITS)))
        seen[i] = vcpu.exit.data
        local before = mapped()
        vm:zap_memory(0x1000, PAGE)
        assert(mapped() < before, ("%d pages, of %d before"):format(mapped(), before))
      end
      assert.same({ 1, 2, 3 }, seen)
    end)
  end
end)

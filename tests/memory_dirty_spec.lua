-- vm:dirty_pages, with the log that every KVM has; tests/dirty_spec.lua has the others.

local support = require "support"

local contains, error_of = support.contains, support.error_of

local PAGE <const> = 0x1000

local kvm, vm

local function setup() kvm, vm = support.new_vm() end
local function teardown() kvm, vm = support.close(vm, kvm) end

describe("vm:dirty_pages", function()
  -- A guest with 200 logged pages at 0x100000, and a function that has it write to some of them.
  local function logged_guest()
    -- movb %al, (0); hlt
    local _, machine, vcpu = support.real_mode("\xa2\x00\x00\xf4", { size = 0x8000 })
    local ram = machine:add_memory { gpa = 0x100000, size = 200 * PAGE, log_dirty = true }
    local function touch(...)
      for _, page in ipairs { ... } do
        vcpu:set_sregs { ds = { base = 0x100000 + page * PAGE } }
        vcpu:set_regs { rip = 0x1000 }
        assert.equal("hlt", vcpu:run { timeout = 10 })
      end
    end
    return machine, ram, touch, vcpu
  end
  local function pages(...)
    local list = {}
    for i, page in ipairs { ... } do list[i] = 0x100000 + page * PAGE end
    return list
  end

  before_each(setup)
  after_each(teardown)

  it("refuses memory without a log", function()
    local ram = vm:add_memory { gpa = 0, size = PAGE }
    contains("without log_dirty", error_of(vm.dirty_pages, vm, ram))
  end)

  it("refuses what is not a memory of this VM", function()
    local other <close> = kvm:create_vm()
    local foreign = other:add_memory { gpa = 0, size = PAGE, log_dirty = true }
    contains("memory of another VM", error_of(vm.dirty_pages, vm, foreign))
    contains("memory expected", error_of(vm.dirty_pages, vm, vm))
    contains("memory expected", error_of(vm.dirty_pages, vm))
  end)

  it("is empty before the guest has run, whatever the host wrote", function()
    local ram = vm:add_memory { gpa = 0, size = 3 * PAGE, log_dirty = true }
    vm:fill(0, 3 * PAGE, 1)
    assert.same({}, vm:dirty_pages(ram))
  end)

  it("has the address of each page that was written once, in order", function()
    local machine <close>, ram, touch = logged_guest()
    touch(130, 0, 63, 64, 0, 199, 127, 128, 130)
    assert.same(pages(0, 63, 64, 127, 128, 130, 199), machine:dirty_pages(ram))
  end)

  it("has only what was written since the last call", function()
    local machine <close>, ram, touch = logged_guest()
    touch(1, 2)
    assert.same(pages(1, 2), machine:dirty_pages(ram))
    assert.same({}, machine:dirty_pages(ram))
    touch(2, 3)
    assert.same(pages(2, 3), machine:dirty_pages(ram))
    touch(3)
    assert.same(pages(3), machine:dirty_pages(ram))
    assert.same({}, machine:dirty_pages(ram))
  end)

  it("has no page that was only read", function()
    local machine <close>, ram, _, vcpu = logged_guest()
    machine:write(0x1000, "\xa0\x00\x00\xf4") -- movb (0), %al; hlt
    vcpu:set_sregs { ds = { base = 0x100000 } }
    assert.equal("hlt", vcpu:run { timeout = 10 })
    assert.same({}, machine:dirty_pages(ram))
  end)

  it("keeps the logs of two memories apart", function()
    local machine <close>, ram, touch = logged_guest()
    local more = machine:add_memory {
      gpa = 0x100000 + 200 * PAGE, size = PAGE, log_dirty = true, shared = true,
    }
    touch(5, 200)
    assert.same(pages(200), machine:dirty_pages(more))
    assert.same(pages(5), machine:dirty_pages(ram))
  end)

  it("forgets with the memory", function()
    local machine <close>, ram, touch = logged_guest()
    touch(1)
    ram:close()
    contains("memory is closed", error_of(machine.dirty_pages, machine, ram))
    local again = machine:add_memory { gpa = 0x100000, size = 200 * PAGE, log_dirty = true }
    assert.same({}, machine:dirty_pages(again))
  end)

  it("can be asked by a handler", function()
    local machine <close>, ram, touch = logged_guest()
    machine:write(0x1000, "\xa2\x00\x00\xe6\x01\xf4") -- movb %al, (0); out %al, $1; hlt
    local seen
    machine:on("io_out", function() seen = machine:dirty_pages(ram) end)
    touch(9)
    assert.same(pages(9), seen)
    assert.same({}, machine:dirty_pages(ram))
  end)
end)

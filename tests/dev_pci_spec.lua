-- ckvm.dev.pci: the address, the bridge, functions that are added, port 0xcf9, and a guest that
-- looks for devices.

local pci = require "ckvm.dev.pci"
local pm = require "ckvm.dev.pm"
local support = require "support"

local blames = support.blames

local ADDRESS <const>, DATA <const> = 0, 4

-- 1234:1111 at 00:03.1, with a BAR of 4 KiB.
local function make(options)
  local bus = pci.new(options or {})
  local changed = {}
  bus:add {
    device = 3, func = 1,
    config = string.pack("<I2I2I4I4 I4I4", 0x1234, 0x1111, 0, 0xff000000, 0, 0xe0000008),
    writable = string.pack("<I2I2I4I4 I4I4", 0, 0, 0x407, 0, 0, 0xfffff000),
    changed = function(config) table.insert(changed, (string.unpack("<I4", config, 0x11))) end,
  }
  return bus, changed
end

local function select(bus, device, func, register)
  bus:write(ADDRESS, 0x80000000 | device << 11 | func << 8 | register, 4)
end

local function get(bus, ...)
  select(bus, ...)
  return bus:read(DATA, 4)
end

describe("ckvm.dev.pci", function()
  it("refuses options that it does not know, and wrong ones", function()
    blames("pci: unknown option 'irq'", pci.new, { irq = print })
    blames("pci: reset_register: table expected, got function", pci.new, { reset_register = print })
  end)

  it("refuses functions that are none, and two at a place", function()
    local bus = make()
    blames("pci: unknown option 'bus'", bus.add, bus, { device = 1, config = "", bus = 1 })
    blames("pci: config: string expected, got nil", bus.add, bus, { device = 1 })
    blames("pci: device: 32 is not between 0 and 31", bus.add, bus, { device = 32, config = "" })
    blames("pci: func: -1 is not between 0 and 7", bus.add, bus,
      { device = 1, func = -1, config = "" })
    blames("pci: there is a function 00.0", bus.add, bus, { device = 0, config = "" })
    blames("pci: config: 257 bytes are more than 256", bus.add, bus,
      { device = 1, config = ("x"):rep(257) })
    blames("pci: writable: 300 bytes are more", bus.add, bus,
      { device = 1, config = "", writable = ("x"):rep(300) })
  end)

  it("has an address of four bytes, and none of fewer", function()
    local bus = make()
    bus:write(ADDRESS, -1, 4)
    assert.equal(0x80fffffc, bus:read(ADDRESS, 4))
    for _, size in ipairs { 1, 2 } do
      bus:write(ADDRESS, 0, size)
      assert.equal((1 << 8 * size) - 1, bus:read(ADDRESS, size))
    end
    assert.equal(0x80fffffc, bus:read(ADDRESS, 4))
  end)

  it("has the host bridge", function()
    local bus = pci.new {}
    assert.equal(0x12378086, get(bus, 0, 0, 0))
    assert.equal(0x06000002, get(bus, 0, 0, 8))
    assert.equal(0x11001af4, get(bus, 0, 0, 0x2c))
    assert.equal(0, get(bus, 0, 0, 0xfc))
  end)

  it("has all ones where there is nothing", function()
    local bus = make()
    assert.equal(0xffffffff, get(bus, 3, 0, 0))
    assert.equal(0xffffffff, get(bus, 31, 7, 0))
    assert.equal(0xffffffff, get(bus, 32, 0, 0)) -- bus 1
    bus:write(ADDRESS, 0, 4) -- not enabled
    assert.equal(0xffff, bus:read(DATA, 2))
    bus:write(DATA, 0, 4)
    assert.equal(0x12378086, get(bus, 0, 0, 0))
  end)

  it("has bytes, words and what is left of a register", function()
    local bus = make()
    select(bus, 3, 1, 0)
    assert.equal(0x11111234, bus:read(DATA, 4))
    assert.equal(0x1111, bus:read(DATA + 2, 2))
    assert.equal(0x12, bus:read(DATA + 1, 1))
    assert.equal(0xff11, bus:read(DATA + 3, 2))
  end)

  it("lets the guest write what may be written", function()
    local bus, changed = make()
    select(bus, 3, 1, 4)
    bus:write(DATA, 0xffffffff, 4)
    assert.equal(0x407, bus:read(DATA, 4))
    select(bus, 3, 1, 0x10)
    bus:write(DATA, 0xffffffff, 4)
    assert.equal(0xfffff008, bus:read(DATA, 4))
    bus:write(DATA + 1, 0x12, 1)
    bus:write(DATA + 2, 0xd000, 2)
    assert.equal(0xd0001008, bus:read(DATA, 4))
    assert.same({ 0xe0000008, 0xfffff008, 0xfffff008 & ~0xff00 | 0x1000, 0xd0001008 }, changed)
    select(bus, 0, 0, 0x3c)
    bus:write(DATA, 0xffffffff, 4)
    assert.equal(0xff, bus:read(DATA, 4))
    select(bus, 0, 0, 0x10)
    bus:write(DATA, 0xffffffff, 4)
    assert.equal(0, bus:read(DATA, 4))
    assert.equal(4, #changed)
  end)

  it("hands on port 0xcf9", function()
    local resets = 0
    local power = pm.new { reset = function() resets = resets + 1 end }
    local bus = make { reset_register = power.reset_register }
    bus:write(1, 2, 1)
    assert.equal(2, bus:read(1, 1))
    bus:write(ADDRESS, 0x80000600, 4) -- the address, not the register
    assert.equal(0, resets)
    bus:write(1, 6, 1)
    assert.equal(1, resets)
    assert.equal(0xff, pci.new({}):read(1, 1))
  end)

  it("has lines for the pins of its devices, as firmware expects them", function()
    local found = {}
    for device = 1, 4 do
      for pin = 1, 4 do table.insert(found, pci.line(device, pin)) end
    end
    assert.same({ 10, 10, 11, 11, 10, 11, 11, 10, 11, 11, 10, 10, 11, 10, 10, 11 }, found)
    assert.same({ 10, 11 }, { pci.line(1), pci.line(31) })
    blames("pci: device: 32 is not between 0 and 31", pci.line, 32)
    blames("pci: pin: 0 is not between 1 and 4", pci.line, 1, 0)
    blames("pin: integer expected, got string", pci.line, 1, "A")
    blames("pin: integer expected, got boolean", pci.line, 1, false)
  end)

  it("answers every offset, size and value", function()
    local bus = make()
    for _, address in ipairs { 0, 0x80000000, 0x800000fc, 0x80001910, 0x800019fc, -1 } do
      bus:write(ADDRESS, address, 4)
      for _, offset in ipairs { -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, math.maxinteger } do
        for _, size in ipairs { 1, 2, 4 } do
          for _, value in ipairs { 0, -1, math.mininteger } do
            bus:write(ADDRESS, address, 4)
            bus:write(offset, value, size)
            local answer = bus:read(offset, size)
            assert(answer >= 0 and answer < 1 << 8 * size)
          end
        end
      end
    end
    assert.equal(0x12378086, get(bus, 0, 0, 0))
  end)

  it("takes a state back, into a bus with the same functions", function()
    local bus = make()
    select(bus, 3, 1, 0x10)
    bus:write(DATA, 0xc0000000, 4)
    local state = bus:save()
    local other, changed = make()
    other:load(state)
    assert.same(state, other:save())
    assert.equal(0xc0000008, other:read(DATA, 4))
    assert.same({ 0xc0000008 }, changed)
    blames("state: unknown key '03.1'", pci.load, pci.new {}, state)
  end)

  it("is found by a guest", function()
    support.need_kvm()
    local _, vm, vcpu = support.real_mode(
      "\xba\xf8\x0c\x66\xb8\x00\x19\x00\x80" ..  -- mov $0xcf8, %dx; mov $0x80001900, %eax
      "\x66\xef\xb2\xfc\x66\xed" ..  -- out %eax, (%dx); mov $0xfc, %dl; in (%dx), %eax
      "\x66\x89\xc3" ..              -- mov %eax, %ebx
      "\xb2\xfe\xed\xf4")            -- mov $0xfe, %dl; in (%dx), %ax; hlt
    vm:attach_io { port = 0xcf8, count = 8, device = make() }
    assert.equal("hlt", (vcpu:run(support.LIMITS)))
    assert.equal(0x11111234, vcpu.regs.rbx)
    assert.equal(0x1111, vcpu.regs.rax & 0xffff)
  end)
end)

-- ckvm.dev.ram: memory that every access to is an exit.

local ram = require "ckvm.dev.ram"
local support = require "support"

local blames = support.blames

local SIZE <const> = 0x1000

describe("ckvm.dev.ram", function()
  local device
  before_each(function() device = ram.new { size = SIZE } end)

  it("refuses options that it does not know, and sizes that are none", function()
    blames("ram: unknown option 'gpa'", ram.new, { size = 1, gpa = 0 })
    blames("ram: size: integer expected, got nil", ram.new, {})
    blames("ram: size: 0 is not between 1 and 1048576", ram.new, { size = 0 })
    blames("ram: size: 1048577 is not between", ram.new, { size = (1 << 20) + 1 })
  end)

  it("reads back what was written, with accesses of any size", function()
    device:write(0x10, 0x1122334455667788, 8)
    assert.equal(0x1122334455667788, device:read(0x10, 8))
    assert.equal(0x44556677, device:read(0x11, 4))
    device:write(0x12, -1, 2)
    assert.equal(0x11223344ffff7788, device:read(0x10, 8))
    assert.equal(0, device:read(0x18, 8))
    assert.equal(0, device:read(0xe, 2))
  end)

  it("ends where it ends", function()
    device:write(SIZE - 2, 0x11223344, 4)
    assert.equal(0xffff3344, device:read(SIZE - 2, 4))
    for _, offset in ipairs { SIZE, -1, -8, math.maxinteger, math.mininteger } do
      device:write(offset, 0x55, 1)
      assert.equal(0xff, device:read(offset, 1))
    end
    assert.equal(SIZE, #device:save().bytes)
  end)

  it("is the same after save and load", function()
    device:write(1, 0x42, 1)
    local state <const> = device:save()
    device:write(1, 0x43, 1)
    device:write(2, 0x44, 1)
    device:load(state)
    assert.equal(0x4200, device:read(0, 4))
    blames("state: bytes: 2 of them, for 4096", device.load, device, { bytes = "ab" })
    blames("state: unknown key 'size'", device.load, device, { bytes = "", size = 1 })
    blames("state: bytes: string expected, got nil", device.load, device, {})
    assert.equal(0x4200, device:read(0, 4))
  end)

  it("serves a guest's string instructions, byte by byte and in order", function()
    support.need_kvm()
    -- mov $0x1000, %si; mov $0x8000, %di; mov $8, %cx; rep movsb
    -- mov $0x8001, %si; mov $0x2000, %di; mov $3, %cx; rep movsw; hlt
    local _, vm, vcpu = support.guest("\xbe\x00\x10\xbf\x00\x80\xb9\x08\x00\xf3\xa4"
      .. "\xbe\x01\x80\xbf\x00\x20\xb9\x03\x00\xf3\xa5\xf4")
    vm:attach_mmio { gpa = 0x8000, size = SIZE, device = device }
    assert.equal("hlt", (vcpu:run(support.LIMITS)))
    assert.equal(vm:read(0x1000, 8), device:save().bytes:sub(1, 8))
    assert.equal(vm:read(0x1001, 6), vm:read(0x2000, 6))
  end)
end)

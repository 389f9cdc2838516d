-- ckvm.dev.debugcon and ckvm.dev.debug_exit: the ports that test programs print and end with.

local debug_exit = require "ckvm.dev.debug_exit"
local debugcon = require "ckvm.dev.debugcon"
local support = require "support"

local blames = support.blames

local OFFSETS <const> = { -1, 0, 1, 3, math.maxinteger }
local VALUES <const> = { 0, 0xff, 0xffffffff, -1, math.mininteger }

local function try_all(device)
  for _, offset in ipairs(OFFSETS) do
    for _, size in ipairs { 1, 2, 4 } do
      for _, value in ipairs(VALUES) do
        device:write(offset, value, size)
        assert.equal("integer", math.type(device:read(offset, size)))
      end
    end
  end
end

describe("ckvm.dev.debugcon", function()
  local text, device
  before_each(function()
    text = {}
    device = debugcon.new { write = function(byte) table.insert(text, byte) end }
  end)

  it("refuses options that it does not know, and wrong ones", function()
    blames("debugcon: unknown option 'irq'", debugcon.new, { irq = print })
    blames("debugcon: write: function expected, got string", debugcon.new, { write = "x" })
  end)

  it("hands on each byte, and is found by its answer", function()
    device:write(0, 0x68, 1)
    device:write(0, 0x169, 1)
    assert.same({ "h", "i" }, text)
    assert.equal(0xe9, device:read(0, 1))
    assert.equal(0xffe9, device:read(0, 2))
  end)

  it("is one port, whatever the access", function()
    device:write(0, 0x41424344, 4)
    device:write(1, 0x45, 1)
    assert.same({ "D" }, text)
    try_all(device)
  end)

  it("has no state", function()
    device:load(device:save())
    blames("state: unknown key 'a'", device.load, device, { a = 1 })
  end)
end)

describe("ckvm.dev.debug_exit", function()
  local found, device
  before_each(function()
    found = {}
    device = debug_exit.new { exit = function(status) table.insert(found, status) end }
  end)

  it("refuses options that it does not know, and to be without its own", function()
    blames("debug_exit: unknown option 'ext'", debug_exit.new, { exit = print, ext = 1 })
    blames("debug_exit: exit: function expected, got nil", debug_exit.new, {})
  end)

  it("makes an odd status of what is written, of its size", function()
    device:write(0, 0, 1)
    device:write(0, 0x1ff, 1)
    device:write(0, 0x1234, 2)
    device:write(0, -1, 4)
    assert.same({ 1, 0x1ff, 0x2469, 0x1ffffffff }, found)
    assert.equal(0, device:read(0, 4))
    try_all(device)
  end)

  it("has no state", function()
    device:load(device:save())
    blames("state: table expected, got integer", device.load, device, 1)
  end)

  it("ends a guest that has printed", function()
    support.need_kvm()
    local _, vm, vcpu = support.real_mode(
      "\xba\xe9\x00\xec\xee" ..  -- mov $0xe9, %dx; in (%dx), %al; out %al, (%dx)
      "\xb0\x2a\xe6\xf4\xf4")    -- mov $42, %al; out %al, $0xf4; hlt
    local text = {}
    vm:attach_io {
      port = 0xe9, device = debugcon.new { write = function(byte) table.insert(text, byte) end },
    }
    local device_of_vm <const> = debug_exit.new { exit = function(status) vcpu:stop(status) end }
    vm:attach_io { port = 0xf4, count = 4, device = device_of_vm }
    assert.same({ "stopped", 85 }, { vcpu:run(support.LIMITS) })
    assert.same({ "\xe9" }, text)
  end)
end)

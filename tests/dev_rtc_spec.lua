-- ckvm.dev.rtc: the time in all of its forms, setting it, CMOS memory, and a guest that reads it.

local rtc = require "ckvm.dev.rtc"
local support = require "support"

local blames = support.blames

local TIME <const> = 1709216705 -- Thursday, 2024-02-29 14:25:05 UTC
local B <const> = 0xb

local function make(options)
  options = options or {}
  options.time = options.time or function() return TIME end
  return rtc.new(options)
end

local function get(device, index)
  device:write(0, index, 1)
  return device:read(1, 1)
end

local function set(device, index, byte)
  device:write(0, index, 1)
  device:write(1, byte, 1)
end

-- sec, min, hour, weekday, day, month, year, century
local function all(device)
  local list = {}
  for _, index in ipairs { 0, 2, 4, 6, 7, 8, 9, 0x32 } do
    table.insert(list, ("%02x"):format(get(device, index)))
  end
  return table.concat(list, " ")
end

describe("ckvm.dev.rtc", function()
  it("refuses options that it does not know, and wrong ones", function()
    blames("rtc: unknown option 'irq'", rtc.new, { irq = print })
    blames("rtc: memory: integer expected, got string", rtc.new, { memory = "64M" })
    blames("rtc: time: function expected, got integer", rtc.new, { time = TIME })
  end)

  it("tells the host's time, unless it is given another", function()
    local day = os.date("!%d")
    local device = rtc.new {}
    local found = ("%02x"):format(get(device, 7))
    assert(found == day or found == os.date("!%d"))
  end)

  it("tells the time in BCD or binary, of 24 or 12 hours", function()
    local device = make()
    assert.equal("05 25 14 05 29 02 24 20", all(device))
    set(device, B, 6)
    assert.equal("05 19 0e 05 1d 02 18 14", all(device))
    set(device, B, 4)
    assert.equal(0x82, get(device, 4))
    set(device, B, 0)
    assert.equal(0x82, get(device, 4))
  end)

  it("calls the first of twelve hours 12", function()
    local seconds = 0
    local device = make { time = function() return seconds end }
    set(device, B, 0)
    local bytes = { [0] = 0x12, [1] = 1, [11] = 0x11, [12] = 0x92, [13] = 0x81, [23] = 0x91 }
    for hour, byte in pairs(bytes) do
      seconds = hour * 3600
      assert.equal(byte, get(device, 4))
    end
  end)

  it("takes a time of any form, and goes on from there", function()
    local seconds = TIME
    local device = make { time = function() return seconds end }
    for _, b in ipairs { 0, 2, 4, 6 } do
      set(device, B, b)
      local bytes = {}
      seconds = 951868799 -- 2000-02-29 23:59:59
      for _, index in ipairs { 0, 2, 4, 6, 7, 8, 9, 0x32 } do bytes[index] = get(device, index) end
      seconds = TIME
      set(device, B, b | 0x80)
      for index, byte in pairs(bytes) do set(device, index, byte) end
      seconds = TIME + 100 -- the clock stands still meanwhile
      assert.equal(bytes[0], get(device, 0))
      set(device, B, 2)
      assert.equal("59 59 23 03 29 02 00 20", all(device))
      seconds = TIME + 101
      assert.equal("00 00 00 04 01 03 00 20", all(device))
      device = make { time = function() return seconds end }
    end
  end)

  it("takes a part while it goes", function()
    local device = make()
    set(device, 2, 0x59)
    set(device, 4, 0x23)
    assert.equal("05 59 23 05 29 02 24 20", all(device))
  end)

  it("keeps a date until all of it is there", function()
    local device = make()
    set(device, B, 0x82)
    set(device, 7, 0x31)
    set(device, 8, 0x01)
    set(device, B, 0x02)
    assert.equal("05 25 14 04 31 01 24 20", all(device))
  end)

  it("has registers A to D", function()
    local seconds = TIME
    local device = make { time = function() return seconds + 0.5 end }
    assert.equal(0x26, get(device, 0xa))
    set(device, 0xa, 0xff)
    assert.equal(0x7f, get(device, 0xa))
    set(device, B, 0xff)
    assert.equal(0xef, get(device, B)) -- SET clears UIE
    set(device, B, 0x12)
    assert.equal(0x12, get(device, B))
    get(device, 0xc)
    assert.equal(0, get(device, 0xc))
    seconds = seconds + 1
    assert.equal(0x10, get(device, 0xc))
    assert.equal(0, get(device, 0xc))
    set(device, 0xc, 0xff)
    set(device, 0xd, 0)
    assert.equal(0, get(device, 0xc))
    assert.equal(0x80, get(device, 0xd))
  end)

  it("keeps the other bytes, whatever the NMI bit is", function()
    local device = make()
    for _, index in ipairs { 1, 3, 5, 0xe, 0x31, 0x33, 0x7f } do
      set(device, index | 0x80, index + 1)
      assert.equal(index + 1, get(device, index))
    end
    assert.equal(0xff, device:read(0, 1))
    assert.equal(0x80ff, device:read(0, 2)) -- of 0x7f, at the next port
  end)

  describe("has the memory's size in CMOS memory", function()
    for size, words in pairs {
      [64 << 10] = { 64, 0, 0 },
      [1 << 20] = { 640, 0, 0 },
      [64 << 20] = { 640, 63 << 10, 48 << 4 },
      [3 << 30] = { 640, 0xffff, 0xbf00 },
      [1 << 40] = { 640, 0xffff, 0xffff },
      [-1] = { 0, 0, 0 },
    } do
      it(("of 0x%x bytes"):format(size), function()
        local device = make { memory = size }
        local function word(index) return get(device, index) | get(device, index + 1) << 8 end
        assert.same({ words[1], words[2], words[2], words[3] },
          { word(0x15), word(0x17), word(0x30), word(0x34) })
      end)
    end
  end)

  it("answers every index, offset, size and value", function()
    local device = make()
    for _, b in ipairs { 0, 6, 0x80, 0x86, 2 } do
      set(device, B, b)
      for index = 0, 255 do
        for _, byte in ipairs { 0, 0x99, 0xff } do
          if index & 0x7f ~= B then set(device, index, byte) end
          assert(get(device, index) <= 0xff)
        end
      end
    end
    for _, offset in ipairs { -1, 0, 1, 2, math.maxinteger } do
      for _, size in ipairs { 1, 2, 4 } do
        device:write(offset, -1, size)
        assert(device:read(offset, size) < 1 << 8 * size)
      end
    end
  end)

  it("takes a state back, into another one", function()
    local device = make()
    set(device, B, 0x82)
    set(device, 9, 0x30)
    set(device, 0x40, 0x55)
    local state = device:save()
    set(device, B, 0x02)
    local other = make()
    other:load(state)
    assert.same(state, other:save())
    set(other, B, 0x02)
    assert.equal("30", ("%02x"):format(get(other, 9)))
    assert.equal(0x55, get(other, 0x40))
    state.held = nil
    blames("state: held: string expected, got nil", other.load, other, state)
  end)

  it("tells a guest the hour", function()
    support.need_kvm()
    local _, vm, vcpu = support.real_mode(
      "\xb0\x04\xe6\x70\xe4\x71\xf4") -- mov $4, %al; out %al, $0x70; in $0x71, %al; hlt
    vm:attach_io { port = 0x70, count = 2, device = make() }
    assert.equal("hlt", (vcpu:run(support.LIMITS)))
    assert.equal(0x14, vcpu.regs.rax & 0xff)
  end)
end)

-- ckvm.dev.rtc: the time in all of its forms, setting it, interrupts, CMOS memory, and a guest that
-- reads it.

local rtc = require "ckvm.dev.rtc"
local support = require "support"

local blames = support.blames

local TIME <const> = 1709216705 -- Thursday, 2024-02-29 14:25:05 UTC
local A <const>, B <const>, C <const> = 0xa, 0xb, 0xc
local PIE <const>, AIE <const>, UIE <const> = 0x40, 0x20, 0x10

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

-- A clock without a rate whose time passes when `world.pass` is called, with what it did to its
-- line. Of its timer there are the time, and how long it was to take.
local function interrupting(options)
  options = options or {}
  local world = { seconds = TIME, lines = {}, timers = {} }
  options.time = function() return world.seconds end
  options.now = options.time
  options.irq = function(level) table.insert(world.lines, level) end
  options.after = function(seconds, handler)
    local timer = { due = world.seconds + seconds, wait = seconds, handler = handler }
    function timer:detach() world.timers[self] = nil end
    world.timers[timer] = true
    return timer
  end
  function world.timer()
    local timer = next(world.timers)
    assert(timer == nil or next(world.timers, timer) == nil, "more than a timer at a time")
    return timer
  end
  function world.pass(seconds)
    local till = world.seconds + seconds
    while world.timer() and world.timer().due <= till do
      local timer = world.timer()
      world.timers[timer] = nil
      world.seconds = timer.due
      timer.handler()
    end
    world.seconds = till
  end
  local device = rtc.new(options)
  set(device, A, 0x20)
  return device, world
end

describe("ckvm.dev.rtc", function()
  it("refuses options that it does not know, and wrong ones", function()
    blames("rtc: unknown option 'port'", rtc.new, { port = 0x70 })
    blames("rtc: irq: function expected, got integer", rtc.new, { irq = 8 })
    blames("rtc: after: function expected, got table", rtc.new, { after = {} })
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
    assert.equal(0x90, get(device, 0xc))
    assert.equal(0, get(device, 0xc))
    set(device, B, 2)
    seconds = seconds + 1
    assert.equal(0x10, get(device, 0xc))
    set(device, 0xc, 0xff)
    set(device, 0xd, 0)
    assert.equal(0, get(device, 0xc))
    assert.equal(0x80, get(device, 0xd))
  end)

  it("interrupts when a second is over, until that is seen", function()
    local device, world = interrupting()
    world.pass(0.25)
    set(device, B, UIE | 2)
    world.pass(0.5)
    assert.same({}, world.lines)
    world.pass(0.25)
    assert.same({ true }, world.lines)
    assert.equal(0x90, get(device, C))
    assert.equal(0, get(device, C))
    assert.same({ true, false }, world.lines)
    world.pass(5) -- nobody looks: these are one
    assert.same({ true, false, true }, world.lines)
    set(device, B, 2)
    assert.same({ true, false, true, false }, world.lines)
    world.pass(5)
    assert.equal(4, #world.lines)
    assert.equal(0x10, get(device, C))
  end)

  it("interrupts at each rate of register A, 1024 times a second at most", function()
    local device, world = interrupting()
    set(device, B, PIE)
    for choice, rate in pairs { 256, 128, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4,
      2 } do
      set(device, A, 0x20 | choice)
      get(device, C)
      local seen, since = 0, world.seconds
      while world.seconds < since + 1 do
        world.pass(world.timer().wait)
        assert.equal(0xc0, get(device, C) & 0xc0)
        seen = seen + 1
      end
      assert.equal(math.min(rate, 1024), seen)
    end
    set(device, A, 0x20)
    assert.equal(nil, world.timer())
  end)

  it("tells what was due while its interrupts were off, and interrupts when they are on", function()
    local device, world = interrupting()
    set(device, A, 0x26)
    world.pass(1)
    assert.equal(nil, world.timer())
    set(device, 0, 0x05) -- the flags stay
    set(device, B, PIE | 2)
    assert.same({ true }, world.lines)
    assert.equal(nil, world.timer())
    assert.equal(0xd0, get(device, C))
  end)

  it("has an alarm, whose bytes are those of the clock, or any", function()
    local cases = { -- from 14:25:05: sec, min, hour; how many seconds later
      { 2, 0x06, 0x25, 0x14, 1 }, { 2, 0x05, 0x25, 0x14, 86400 }, { 2, 0x00, 0x00, 0x00, 34495 },
      { 2, 0xc0, 0xff, 0xd5, 1 }, { 2, 0x00, 0xff, 0xff, 55 }, { 2, 0xff, 0x00, 0xff, 2095 },
      { 2, 0x05, 0xff, 0xff, 60 }, { 2, 0x04, 0x25, 0xff, 3599 }, { 2, 0xff, 0xff, 0x13, 81295 },
      { 0, 0x06, 0x25, 0x82, 1 }, { 0, 0x06, 0x25, 0x02, 43201 }, { 0, 0x00, 0x00, 0x12, 34495 },
      { 6, 6, 25, 14, 1 }, { 4, 6, 25, 0x82, 1 }, { 6, 59, 59, 23, 34494 },
      { 2, 0x60, 0x25, 0x14 }, { 2, 0x06, 0x1a, 0x14 }, { 2, 0x06, 0x25, 0x24 },
      { 0, 0x06, 0x25, 0x14 }, { 6, 60, 0, 0 },
    }
    for i, case in ipairs(cases) do
      local b, sec, min, hour, later = table.unpack(case)
      local device, world = interrupting()
      for index, byte in pairs { [1] = sec, [3] = min, [5] = hour, [B] = b | AIE } do
        set(device, index, byte)
      end
      get(device, C)
      if later then
        assert.equal(later, world.timer().wait, i)
        world.pass(later)
        assert.same({ true }, world.lines)
        assert.equal(0xa0, get(device, C) & 0xa0)
      else
        assert.equal(nil, world.timer(), i)
        world.pass(86400 * 2)
        assert.equal(0, get(device, C) & 0xa0)
      end
    end
  end)

  it("sounds no alarm for a time that it is set over, and none while it stands", function()
    local device, world = interrupting()
    set(device, 1, 0x30)
    set(device, 3, 0x25)
    set(device, 5, 0x14)
    set(device, B, AIE | 2)
    set(device, 2, 0x26) -- 14:26
    assert.equal(86400 - 35, world.timer().wait)
    set(device, 2, 0x25)
    set(device, B, 0x80 | AIE | 2)
    assert.equal(nil, world.timer())
    world.pass(1000)
    assert.equal(0, get(device, C) & AIE)
    set(device, B, AIE | 2)
    assert.equal(25, world.timer().wait)
  end)

  it("has its line up before the guest sees what is due, whenever its timer goes off", function()
    local device, world = interrupting()
    set(device, 1, 0x00)
    set(device, 3, 0x00)
    set(device, 5, 0x00)
    set(device, B, AIE | 2)
    get(device, C)
    world.seconds = world.seconds + 86400 -- put forward, of which timers know nothing
    assert.equal(0x20, get(device, A))
    assert.same({ true }, world.lines)
    assert.equal(nil, world.timer())
    assert.equal(0xa0, get(device, C) & 0xa0)
    assert.same({ true, false }, world.lines)
  end)

  it("keeps interrupts that are due, and those to come, in its state", function()
    local device, world = interrupting()
    set(device, 1, 0x10)
    set(device, 3, 0xff)
    set(device, 5, 0xff)
    set(device, B, AIE | 2)
    local waits = device:save()
    world.pass(5)
    local due = device:save()
    local other, there = interrupting()
    other:load(waits)
    assert.same({ false }, there.lines)
    assert.equal(5, there.timer().wait)
    other:load(due)
    assert.same({ false, true }, there.lines)
    assert.equal(nil, there.timer())
    assert.equal(0xb0, get(other, C))
    there.pass(3600)
    other:load(waits) -- whose alarm was to be an hour ago
    assert.same({ false, true, false, true, false, true }, there.lines)
    assert.equal(0xb0, get(other, C))
  end)

  it("interrupts nobody after a reset, and goes on", function()
    local device, world = interrupting()
    set(device, 0, 0x30)
    set(device, B, PIE | UIE | AIE | 2)
    world.pass(1)
    device:reset()
    assert.same({ true, false }, world.lines)
    assert.equal(nil, world.timer())
    assert.same({ 0, 2, 0x31 }, { get(device, C), get(device, B), get(device, 0) })
  end)

  it("without timers has flags, and no interrupts", function()
    local seconds, lines = TIME, {}
    local device = make { time = function() return seconds end, now = function() return seconds end,
      irq = function(level) table.insert(lines, level) end }
    set(device, B, PIE | UIE | 2)
    seconds = seconds + 1
    assert.same({}, lines)
    assert.equal(0xd0, get(device, C))
  end)

  it("has one timer at most, whatever is written", function()
    local device, world = interrupting()
    local random = 12345
    for _ = 1, 20000 do
      random = random * 1103515245 + 12345 & 0x7fffffff
      set(device, random >> 8 & 0xf, random >> 16 & 0xff)
      local timer, state = world.timer(), device:save()
      assert(not timer or timer.wait >= 1 / 1024 and timer.wait <= 86400)
      assert.equal(state.flags & state.memory:byte(B + 1) & 0x70 ~= 0, state.level)
      if random >> 24 < 40 then world.pass((random >> 24) / 100) end
      if random >> 24 > 100 then get(device, C) end
    end
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

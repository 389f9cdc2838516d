--- The clock of a PC, an MC146818, with its 128 bytes of CMOS memory: ports 0x70, which takes an
-- index, and 0x71, where the byte is.
--
-- The time is that of a function, shifted when the guest sets the clock, in BCD or binary, 24 or
-- 12 hours, as register B says; the century is byte 0x32. The day of the week follows from the
-- date. An update takes no time, so that the bit for it (UIP) is never set. Daylight saving and the
-- divider of register A are kept and mean nothing; bit 7 of the index, which keeps NMIs away, is
-- ignored.
--
-- Interrupts are those that register B enables: at the rate of register A, at the alarm, and when a
-- second is over. Register C tells of each whether it was due, enabled or not; that is found out
-- when the guest looks, and, of those that are enabled, by a timer. The line is up until the guest
-- reads C. What is due meanwhile is due once, and no timer comes sooner than after 1/1024 s: of the
-- rates beyond, 2048 to 8192 Hz, the guest gets as many as that.
-- @module ckvm.dev.rtc
-- @usage
-- local rtc = require("ckvm.dev.rtc").new { memory = 64 << 20 }
-- vm:attach_io { port = 0x70, count = 2, device = rtc }
local ckvm = require "ckvm"
local dev = require "ckvm.dev"
local time = require "ckvm.dev.rtc.time"

local rtc = {}

local A <const>, B <const>, C <const>, D <const> = 0xa, 0xb, 0xc, 0xd
local SET <const>, SQUARE_WAVE <const>, HOURS_24 <const> = 0x80, 8, 2 -- of B
local PERIODIC <const>, ALARM <const>, UPDATED <const> = 0x40, 0x20, 0x10 -- of B and of C
local ENABLES <const> = PERIODIC | ALARM | UPDATED
local IRQF <const> = 0x80 -- of C: one of those that are enabled
local VALID <const> = 0x80 -- of D: the battery is good
local HOUR <const> = 4
local LEAST <const> = 1 / 1024 -- seconds that a timer takes
local SIZE <const> = 128 -- bytes of memory

-- Where the parts of the time are, by index; in this order they are in `held`.
local PARTS <const> = {
  [0] = "sec", [2] = "min", [HOUR] = "hour", [6] = "wday", [7] = "day", [8] = "month",
  [9] = "year", [0x32] = "century",
}
local HELD <const> = { "sec", "min", "hour", "wday", "day", "month", "year", "century" }

-- Further from the time that there is than a guest can set it.
local FAR <const> = 1 << 40 -- seconds
local LIMITS <const> = {
  index = { 0, SIZE - 1 }, memory = { SIZE, SIZE }, offset = { -FAR, FAR }, held = { 0, #HELD },
  seen = { -FAR, FAR }, flags = { 0, 0xff },
}

-- Time -------------------------------------------------------------------------

-- The guest's, as of the access or the timer that is being served.
local function now(self)
  return math.floor(self.seconds) + self.state.offset
end

-- While SET is set, the clock stands still and `held` has a byte for each part.
local function get_parts(self)
  local held <const> = self.state.held
  if held == "" then return time.parts_of(now(self)) end
  local parts = {}
  for i, name in ipairs(HELD) do parts[name] = held:byte(i) end
  return parts
end

local function hold(self, parts)
  local bytes = {}
  for i, name in ipairs(HELD) do bytes[i] = string.char(parts[name]) end
  self.state.held = table.concat(bytes)
end

local function set_clock(self, parts)
  self.state.offset = self.state.offset + time.seconds_of(parts) - now(self)
end

local function peek(self, index)
  return self.state.memory:byte(index + 1)
end

local function poke(self, index, byte)
  local memory <const> = self.state.memory
  self.state.memory = memory:sub(1, index) .. string.char(byte) .. memory:sub(index + 2)
end

-- Interrupts -------------------------------------------------------------------

-- Of the rates 1 to 15, from 256 Hz; nil for none.
local function rate(self)
  local choice <const> = peek(self, A) & 0xf
  if choice == 0 then return nil end
  return 32768 >> (choice < 3 and choice + 6 or choice - 1)
end

-- How many periods are over, of those that the clock counts.
local function periods(self)
  return math.floor(self.clock * (rate(self) or 0))
end

local function next_alarm(self, seconds)
  local bytes <const> = { sec = peek(self, 1), min = peek(self, 3), hour = peek(self, 5) }
  return time.alarm_after(seconds, bytes, peek(self, B))
end

-- What a second that is over brings, unless the clock stands still.
local function look_at_seconds(self)
  local state <const>, seconds = self.state, now(self)
  if state.held ~= "" or seconds == state.seen then return end
  local alarm <const> = next_alarm(self, state.seen)
  state.flags = state.flags | UPDATED | (alarm and alarm <= seconds and ALARM or 0)
  state.seen = seconds
end

-- Finds out what time it is, and what is due.
local function look(self)
  self.seconds, self.clock = self.time(), self.now()
  local over <const> = periods(self)
  if over ~= self.over then self.state.flags = self.state.flags | PERIODIC end
  self.over = over
  look_at_seconds(self)
end

-- From here on what has been written counts: the rate, and the time.
local function start_anew(self)
  self.over, self.state.seen = periods(self), now(self)
end

-- Seconds until the first is due of what is enabled; nil for never.
local function wait_of(self)
  local b <const>, wait = peek(self, B), math.huge
  if b & PERIODIC ~= 0 and rate(self) then wait = (self.over + 1) / rate(self) - self.clock end
  if self.state.held ~= "" then return wait end
  local seconds <const>, part <const> = now(self), self.seconds % 1
  local alarm <const> = b & ALARM ~= 0 and next_alarm(self, seconds)
  if alarm then wait = math.min(wait, alarm - seconds - part) end
  if b & UPDATED ~= 0 then wait = math.min(wait, 1 - part) end
  return wait
end

local function is_due(self)
  return self.state.flags & peek(self, B) & ENABLES ~= 0
end

-- While the line is up, no timer runs: nothing would change before the guest reads C.
local function settle(self)
  local level <const> = is_due(self)
  if self.timer then self.timer:detach() end
  self.timer = nil
  local wait <const> = level and math.huge or wait_of(self)
  if wait < math.huge then
    self.timer = self.after(math.max(wait, LEAST), function()
      self.timer = nil
      look(self)
      settle(self)
    end)
  end
  if level == self.state.level then return end
  self.state.level = level
  self.irq(level)
end

-- Before the guest sees anything, the line is up if it is to be: the timer may be late, or hours
-- off, where the time has been put forward.
local function look_for_guest(self)
  look(self)
  if is_due(self) and not self.state.level then settle(self) end
end

-- Registers --------------------------------------------------------------------

local function write_b(self, byte)
  local was_set <const>, is_set <const> = self.state.held ~= "", byte & SET ~= 0
  if is_set and not was_set then hold(self, get_parts(self)) end
  if was_set and not is_set then
    local parts = get_parts(self)
    self.state.held = ""
    set_clock(self, parts)
  end
  poke(self, B, is_set and byte & ~UPDATED or byte)
end

local function read_c(self)
  local flags <const> = self.state.flags | (is_due(self) and IRQF or 0)
  self.state.flags = 0
  settle(self)
  return flags
end

local function read_part(self, index)
  local value, b = get_parts(self)[PARTS[index]], peek(self, B)
  return index == HOUR and time.encode_hour(value, b) or time.encode(value, b)
end

local function write_part(self, index, byte)
  local parts, b = get_parts(self), peek(self, B)
  parts[PARTS[index]] = index == HOUR and time.decode_hour(byte, b)
    or time.decode(byte, b)
  if self.state.held ~= "" then hold(self, parts) else set_clock(self, parts) end
end

local function read_byte(self)
  local index <const> = self.state.index
  if PARTS[index] then return read_part(self, index) end
  return index == C and read_c(self) or peek(self, index)
end

local function write_byte(self, byte)
  local index <const> = self.state.index
  if PARTS[index] then
    write_part(self, index, byte)
  elseif index == A then
    poke(self, A, byte & 0x7f)
  elseif index == B then
    write_b(self, byte)
  elseif index ~= C and index ~= D then
    poke(self, index, byte)
  end
  start_anew(self)
  settle(self)
end

local REGISTERS <const> = {
  [0] = { write = function(self, byte) self.state.index = byte & 0x7f end },
  [1] = { read = read_byte, write = write_byte },
}

-- The device -------------------------------------------------------------------

-- What firmware looks for: KiB below 640 KiB, KiB above 1 MiB (twice), 64 KiB above 16 MiB.
local function sizes(size)
  local function units(from, to, unit)
    return string.pack("<I2", math.min(math.max(math.min(size, to) - from, 0) // unit, 0xffff))
  end
  local above = units(1 << 20, size, 1 << 10)
  return {
    [0x15] = units(0, 640 << 10, 1 << 10), [0x17] = above, [0x30] = above,
    [0x34] = units(16 << 20, size, 64 << 10),
  }
end

local function initial(memory)
  local bytes = {}
  for i = 0, SIZE - 1 do bytes[i] = "\0" end
  bytes[A], bytes[B], bytes[D] = "\x26", string.char(HOURS_24), string.char(VALID)
  for index, pair in pairs(memory and sizes(memory) or {}) do
    bytes[index], bytes[index + 1] = pair:sub(1, 1), pair:sub(2)
  end
  return {
    index = 0, memory = table.concat(bytes, "", 0, SIZE - 1), offset = 0, held = "", seen = 0,
    flags = 0, level = false,
  }
end

--- A clock that goes right.
-- @tparam table options
-- @tparam[opt=os.time] fun():number options.time called for the seconds since 1970, UTC; with
-- fractions of them, updates and alarms interrupt when a second begins, else up to one later
-- @tparam[opt=ckvm.now] fun():number options.now called for the seconds that periods are counted in
-- @tparam[opt] fun(level:boolean) options.irq called when the level of the interrupt line changes
-- @tparam[opt] fun(seconds:number,handler:function):any options.after called to have `handler`
-- called once after so many seconds, as `vm:after` does it; returns what has a method `detach` that
-- prevents it, or nil if it will never be. Without one, there are no interrupts
-- @tparam[opt] integer options.memory bytes of RAM from address 0 on, for CMOS memory to tell; not
-- that beyond 4 GiB
-- @treturn table the device
-- @raise only for misuse
-- @usage
-- local rtc = require("ckvm.dev.rtc").new {
--   time = function() return 1000000000 end, -- always the same, for runs that can be repeated
--   memory = 64 << 20,
-- }
-- vm:attach_io { port = 0x70, count = 2, device = rtc }
function rtc.new(options)
  dev.check("rtc", options, {
    time = "function?", now = "function?", irq = "function?", after = "function?",
    memory = "integer?",
  })
  local self = setmetatable({
    time = options.time or os.time, now = options.now or ckvm.now,
    irq = options.irq or dev.ignore, after = options.after or dev.ignore,
    state = initial(options.memory),
  }, { __index = rtc })
  self.seconds, self.clock = self.time(), self.now()
  start_anew(self)
  return self
end

--- Answers a read of the guest.
-- @tparam integer offset in bytes from the first port, 0 or 1
-- @tparam integer size bytes to read: 1, 2 or 4
-- @treturn integer the value
-- @raise what `time`, `now`, `irq` and `after` raise
-- @usage
-- local rtc = require("ckvm.dev.rtc").new { time = function() return 59 end }
-- assert(rtc:read(1, 1) == 0x59)
function rtc:read(offset, size)
  look_for_guest(self)
  return dev.read(self, REGISTERS, offset, size)
end

--- Takes a write of the guest.
-- @tparam integer offset in bytes from the first port, 0 or 1
-- @tparam integer value the bytes that are written, little-endian
-- @tparam integer size bytes to write: 1, 2 or 4
-- @raise what `time`, `now`, `irq` and `after` raise
-- @usage
-- local rtc = require("ckvm.dev.rtc").new { memory = 2 << 20 }
-- rtc:write(0, 0x18, 1)
-- assert(rtc:read(1, 1) == 4) -- 1024 KiB above 1 MiB
function rtc:write(offset, value, size)
  look_for_guest(self)
  dev.write(self, REGISTERS, offset, value, size)
end

--- What a reset of the machine does: nothing interrupts, and nothing is due. Time and memory stay.
-- @raise what `time`, `now`, `irq` and `after` raise
-- @usage
-- local rtc = require("ckvm.dev.rtc").new {}
-- rtc:reset()
-- assert(rtc:save().flags == 0)
function rtc:reset()
  look(self)
  poke(self, B, peek(self, B) & ~(ENABLES | SQUARE_WAVE))
  self.state.flags = 0
  settle(self)
end

--- The state of the device, without the time that its function tells.
-- @treturn table a plain table, for `load`
-- @raise only for misuse
-- @usage
-- assert(require("ckvm.dev.rtc").new({}):save().offset == 0)
function rtc:save()
  return dev.copy(self.state)
end

--- Puts the device into a state that `save` has returned, and tells `irq` the level in it. An alarm
-- that was to be since is due at once.
-- @tparam table state what `save` has returned
-- @raise for what is no state of this device, and what `time`, `now`, `irq` and `after` raise
-- @usage
-- local rtc = require("ckvm.dev.rtc").new {}
-- rtc:load(rtc:save())
function rtc:load(state)
  local copy <const> = dev.restore(state, self.state, LIMITS)
  if copy.held ~= "" and #copy.held ~= #HELD then
    error(("state: held: %d bytes are neither 0 nor %d"):format(#copy.held, #HELD), 2)
  end
  self.state = copy
  self.clock = self.now()
  self.over = periods(self)
  self.irq(self.state.level)
  look(self)
  settle(self)
end

return rtc

--- The clock of a PC, an MC146818, with its 128 bytes of CMOS memory: ports 0x70, which takes an
-- index, and 0x71, where the byte is.
--
-- The time is that of a function, shifted when the guest sets the clock, in BCD or binary, 24 or
-- 12 hours, as register B says; the century is byte 0x32. The day of the week follows from the
-- date. There are no interrupts: alarm and periodic rate are kept and mean nothing, as does
-- daylight saving, and of register C there is the flag that a second is over. An update takes no
-- time, so that the bit for it (UIP) is never set. Bit 7 of the index, which keeps NMIs away, is
-- ignored.
-- @module ckvm.dev.rtc
-- @usage
-- local rtc = require("ckvm.dev.rtc").new { memory = 64 << 20 }
-- vm:attach_io { port = 0x70, count = 2, device = rtc }
local dev = require "ckvm.dev"
local time = require "ckvm.dev.rtc.time"

local rtc = {}

local A <const>, B <const>, C <const>, D <const> = 0xa, 0xb, 0xc, 0xd
local SET <const>, UIE <const>, HOURS_24 <const> = 0x80, 0x10, 2 -- of B
local UPDATED <const> = 0x10 -- of C
local VALID <const> = 0x80 -- of D: the battery is good
local HOUR <const> = 4

-- Where the parts of the time are, by index; in this order they are in `held`.
local PARTS <const> = {
  [0] = "sec", [2] = "min", [HOUR] = "hour", [6] = "wday", [7] = "day", [8] = "month",
  [9] = "year", [0x32] = "century",
}
local HELD <const> = { "sec", "min", "hour", "wday", "day", "month", "year", "century" }

-- Time -------------------------------------------------------------------------

local function now(self)
  return math.floor(self.time()) + self.state.offset
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

-- Registers --------------------------------------------------------------------

local function peek(self, index)
  return self.state.memory:byte(index + 1)
end

local function poke(self, index, byte)
  local memory <const> = self.state.memory
  self.state.memory = memory:sub(1, index) .. string.char(byte) .. memory:sub(index + 2)
end

local function write_b(self, byte)
  local was_set <const>, is_set <const> = self.state.held ~= "", byte & SET ~= 0
  if is_set and not was_set then hold(self, get_parts(self)) end
  if was_set and not is_set then
    local parts = get_parts(self)
    self.state.held = ""
    set_clock(self, parts)
  end
  poke(self, B, is_set and byte & ~UIE or byte)
end

local function read_c(self)
  local seconds, seen = now(self), self.state.seen
  self.state.seen = seconds
  return seconds ~= seen and UPDATED or 0
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

local function reset(memory)
  local bytes = {}
  for i = 0, 127 do bytes[i] = "\0" end
  bytes[A], bytes[B], bytes[D] = "\x26", string.char(HOURS_24), string.char(VALID)
  for index, pair in pairs(memory and sizes(memory) or {}) do
    bytes[index], bytes[index + 1] = pair:sub(1, 1), pair:sub(2)
  end
  return {
    index = 0, memory = table.concat(bytes, "", 0, 127), offset = 0, held = "", seen = 0,
  }
end

--- A clock that goes right.
-- @tparam table options
-- @tparam[opt=os.time] fun():number options.time called for the seconds since 1970, UTC
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
  dev.check("rtc", options, { time = "function?", memory = "integer?" })
  return setmetatable({
    time = options.time or os.time, state = reset(options.memory),
  }, { __index = rtc })
end

--- Answers a read of the guest.
-- @tparam integer offset in bytes from the first port, 0 or 1
-- @tparam integer size bytes to read: 1, 2 or 4
-- @treturn integer the value
-- @raise what `time` raises
-- @usage
-- local rtc = require("ckvm.dev.rtc").new { time = function() return 59 end }
-- assert(rtc:read(1, 1) == 0x59)
function rtc:read(offset, size)
  return dev.read(self, REGISTERS, offset, size)
end

--- Takes a write of the guest.
-- @tparam integer offset in bytes from the first port, 0 or 1
-- @tparam integer value the bytes that are written, little-endian
-- @tparam integer size bytes to write: 1, 2 or 4
-- @raise what `time` raises
-- @usage
-- local rtc = require("ckvm.dev.rtc").new { memory = 2 << 20 }
-- rtc:write(0, 0x18, 1)
-- assert(rtc:read(1, 1) == 4) -- 1024 KiB above 1 MiB
function rtc:write(offset, value, size)
  dev.write(self, REGISTERS, offset, value, size)
end

--- The state of the device, without the time that its function tells.
-- @treturn table a plain table, for `load`
-- @raise only for misuse
-- @usage
-- assert(require("ckvm.dev.rtc").new({}):save().offset == 0)
function rtc:save()
  return dev.copy(self.state)
end

--- Puts the device into a state that `save` has returned.
-- @tparam table state what `save` has returned
-- @raise for what is no state of this device
-- @usage
-- local rtc = require("ckvm.dev.rtc").new {}
-- rtc:load(rtc:save())
function rtc:load(state)
  self.state = dev.restore(state, self.state)
end

return rtc

-- The numbers of an MC146818, for ckvm.dev.rtc: dates as seconds, the forms that register B
-- chooses, and when an alarm is due.

local time = {}

local BINARY <const>, HOURS_24 <const> = 4, 2 -- of B
local PM <const> = 0x80
local ANY <const> = 0xc0 -- bytes of an alarm from here on match always
local A_DAY <const> = 86400

-- Dates ------------------------------------------------------------------------

-- Seconds since 1970, of any numbers: the 32nd of a month is the first of the next one. Years
-- begin in March here, so that a leap day is the last of its year.
function time.seconds_of(parts)
  local months = parts.month - 3
  local year = parts.century * 100 + parts.year + months // 12
  local days = 365 * year + year // 4 - year // 100 + year // 400
    + (months % 12 * 306 + 5) // 10 + parts.day - 1 - 719468
  return ((days * 24 + parts.hour) * 60 + parts.min) * 60 + parts.sec
end

function time.parts_of(seconds)
  local parts = os.date("!*t", seconds)
  parts.year, parts.century = parts.year % 100, parts.year // 100 % 100
  return parts
end

-- Forms ------------------------------------------------------------------------

function time.encode(value, b)
  return b & BINARY ~= 0 and value or value // 10 << 4 | value % 10
end

function time.decode(byte, b)
  return b & BINARY ~= 0 and byte or (byte >> 4) * 10 + (byte & 0xf)
end

-- Of 12 hours, the first of each half is called 12.
function time.encode_hour(hour, b)
  if b & HOURS_24 ~= 0 then return time.encode(hour, b) end
  return time.encode((hour - 1) % 12 + 1, b) | (hour % 24 >= 12 and PM or 0)
end

function time.decode_hour(byte, b)
  if b & HOURS_24 ~= 0 then return time.decode(byte, b) end
  return time.decode(byte & ~PM, b) % 12 + (byte & PM ~= 0 and 12 or 0)
end

-- Alarms -----------------------------------------------------------------------

-- The values that an alarm's byte is compared with and found to be the same, as the chip does it.
local function matching(byte, count, encode, b)
  local list = {}
  for value = 0, count - 1 do
    if byte >= ANY or byte == encode(value, b) then table.insert(list, value) end
  end
  return list
end

-- The first second of a day from `from` on; nil if there is none.
local function first_in_day(alarm, from)
  for _, hour in ipairs(alarm.hours) do
    for _, min in ipairs(hour >= from // 3600 and alarm.mins or {}) do
      local start = hour * 3600 + min * 60
      for _, sec in ipairs(start + 59 >= from and alarm.secs or {}) do
        if start + sec >= from then return start + sec end
      end
    end
  end
end

-- When, behind `seconds`, the alarm is that these bytes describe, in the form of register B; nil
-- for never. At most some hundred steps, whatever the bytes are.
function time.alarm_after(seconds, bytes, b)
  local alarm <const> = {
    secs = matching(bytes.sec, 60, time.encode, b), mins = matching(bytes.min, 60, time.encode, b),
    hours = matching(bytes.hour, 24, time.encode_hour, b),
  }
  if #alarm.secs * #alarm.mins * #alarm.hours == 0 then return nil end
  local next <const> = seconds + 1
  local midnight <const> = next - next % A_DAY
  local today <const> = first_in_day(alarm, next - midnight)
  if today then return midnight + today end
  local tomorrow <const> = first_in_day(alarm, 0)
  return tomorrow and midnight + A_DAY + tomorrow
end

return time

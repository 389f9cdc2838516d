-- The numbers of an MC146818, for ckvm.dev.rtc: dates as seconds, and the forms that register B
-- chooses.

local time = {}

local BINARY <const>, HOURS_24 <const> = 4, 2 -- of B
local PM <const> = 0x80

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

return time

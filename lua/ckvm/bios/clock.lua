-- INT 1Ah, the time of day, for ckvm.bios: ticks since midnight, and the clock of the PC.

local clock, functions = {}, {}

local A_DAY <const> = 0x1800b0 -- ticks, 18.2 a second
local TIMER <const> = 8 -- its vector
local TICKS <const>, MIDNIGHT <const> = 0x46c, 0x470

-- Ticks --------------------------------------------------------------------------

-- Since 1970, with what the guest has changed.
local function ticks(bios)
  return math.floor(bios.time() * A_DAY / 86400) + bios.state.ticks
end

-- Brings the BIOS data area up to date: ticks since midnight, and whether it was midnight since
-- that was asked.
function clock.update(bios)
  local now <const>, state <const> = ticks(bios), bios.state
  bios.vm:write_u32(TICKS, now % A_DAY)
  if now // A_DAY > state.day then bios.vm:write_u8(MIDNIGHT, 1) end
  state.day = now // A_DAY
  return now
end

-- Sleeps until the next tick, whose interrupt the vCPU then has; returns whether it waits for one.
function clock.sleep(bios, vcpu)
  if vcpu.exit.if_flag == 0 then return false end
  local part <const> = bios.time() * A_DAY / 86400 % 1
  bios.never:wait { timeout = (1 - part) * 86400 / A_DAY }
  clock.update(bios)
  vcpu:interrupt(TIMER)
  return true
end

-- The day begins, as far as midnight counts.
function clock.start(bios)
  bios.state.day = ticks(bios) // A_DAY
  clock.update(bios)
end

functions[0x00] = function(bios, call)
  local now = clock.update(bios) % A_DAY
  call.cx, call.dx, call.al = now >> 16, now, call.vm:read_u8(MIDNIGHT)
  call.vm:write_u8(MIDNIGHT, 0)
end

functions[0x01] = function(bios, call)
  local wanted = (call.cx << 16 | call.dx) % A_DAY
  local state <const> = bios.state
  state.ticks = state.ticks + wanted - ticks(bios) % A_DAY
  call.vm:write_u8(MIDNIGHT, 0)
  clock.start(bios)
end

-- The clock ----------------------------------------------------------------------

local SECONDS <const>, MINUTES <const>, HOURS <const> = 0, 2, 4
local DAY <const>, MONTH <const>, YEAR <const>, CENTURY <const> = 7, 8, 9, 0x32
local B <const>, SET <const> = 0xb, 0x80

local function get(bios, index)
  bios.rtc:write(0, index, 1)
  return bios.rtc:read(1, 1)
end

local function set(bios, index, byte)
  bios.rtc:write(0, index, 1)
  bios.rtc:write(1, byte, 1)
end

-- All of one time: the first is no other one when the last is read.
local function get_all(bios, indexes)
  local values
  for _ = 1, 3 do
    values = {}
    for i, index in ipairs(indexes) do values[i] = get(bios, index) end
    if get(bios, indexes[1]) == values[1] then break end
  end
  return values
end

-- While it is set, the clock stands.
local function set_all(bios, values)
  local b = get(bios, B)
  set(bios, B, b | SET)
  for index, value in pairs(values) do set(bios, index, value) end
  set(bios, B, b & ~SET)
end

local function is_bcd(byte, least, most)
  local value = (byte >> 4) * 10 + (byte & 0xf)
  return byte & 0xf < 10 and byte >> 4 < 10 and value >= least and value <= most
end

functions[0x02] = function(bios, call)
  local values = get_all(bios, { SECONDS, MINUTES, HOURS })
  call.dh, call.cl, call.ch, call.dl = values[1], values[2], values[3], 0
end

functions[0x03] = function(bios, call)
  if not (is_bcd(call.ch, 0, 23) and is_bcd(call.cl, 0, 59) and is_bcd(call.dh, 0, 59)) then
    return call:refuse()
  end
  set_all(bios, { [SECONDS] = call.dh, [MINUTES] = call.cl, [HOURS] = call.ch })
end

functions[0x04] = function(bios, call)
  local values = get_all(bios, { DAY, MONTH, YEAR, CENTURY })
  call.dl, call.dh, call.cl, call.ch = table.unpack(values)
end

functions[0x05] = function(bios, call)
  if not (is_bcd(call.dl, 1, 31) and is_bcd(call.dh, 1, 12) and is_bcd(call.cl, 0, 99)
    and is_bcd(call.ch, 0, 99)) then
    return call:refuse()
  end
  set_all(bios, { [DAY] = call.dl, [MONTH] = call.dh, [YEAR] = call.cl, [CENTURY] = call.ch })
end

function clock.serve(bios, call)
  call:succeed()
  local fn = functions[call.ah]
  if fn then fn(bios, call) else call:refuse() end
end

return clock

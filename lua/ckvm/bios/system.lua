-- INT 15h, what a system has, for ckvm.bios: its memory, moving it, and waiting.

local ckvm = require "ckvm"
local rom = require "ckvm.bios.rom"

local functions = {}

local HOLE <const>, HIGH <const> = 0xa0000, 0x100000 -- a PC's devices are between these
local MIDDLE <const>, FOUR_GIB <const> = 16 << 20, 1 << 32
local MOST <const> = 0xfc00 -- KiB above 1 MiB that 16 bits are to tell
local AVAILABLE <const>, RESERVED <const> = 1, 2

-- Memory -------------------------------------------------------------------------

functions[0x88] = function(bios, call)
  call.ax = math.min(bios.memory - HIGH >> 10, MOST)
  call:succeed()
end

-- KiB from 1 MiB up to 16 MiB, and 64 KiB each from there on.
local function tell_sizes(bios, call)
  local middle = math.min(bios.memory, MIDDLE) - HIGH >> 10
  local above = math.min(math.max(bios.memory - MIDDLE, 0) >> 16, 0xffff)
  call.ax, call.cx, call.bx, call.dx = middle, middle, above, above
  call:succeed()
end

-- The map: address, size, type.
local function areas(bios)
  local list = {
    { 0, HOLE, AVAILABLE }, { HOLE, HIGH - HOLE, RESERVED },
    { HIGH, bios.memory - HIGH, AVAILABLE }, { FOUR_GIB, bios.above, AVAILABLE },
  }
  for i = #list, 1, -1 do
    if list[i][2] == 0 then table.remove(list, i) end
  end
  return list
end

local MAGIC <const> = 0x534d4150 -- "SMAP"
local ENTRY <const> = "<i8i8I4"

-- One area a call; EBX tells which, and is 0 behind the last.
local function tell_area(bios, call)
  local list, index = areas(bios), call.ebx
  local area = list[index + 1]
  local size <const> = string.packsize(ENTRY)
  if call.edx ~= MAGIC or call.ecx < size or not area
    or not call:write(call:address("es", call.di), string.pack(ENTRY, table.unpack(area))) then
    return call:fail(0x86)
  end
  call.eax, call.ecx = MAGIC, size
  call.ebx = index + 1 < #list and index + 1 or 0
  call:succeed()
end

functions[0xe8] = function(bios, call)
  if call.al == 0x01 then return tell_sizes(bios, call) end
  if call.al == 0x20 then return tell_area(bios, call) end
  call:refuse()
end

-- Moving -------------------------------------------------------------------------

local SOURCE <const>, TARGET <const> = 0x10, 0x18 -- descriptors in the table at ES:SI
local MOST_WORDS <const> = 0x8000
local MOVE <const> = { good = 0, failed = 2 } -- as AH tells it

local function base_of(call, table_at, offset)
  local bytes = call:read(table_at + offset, 8)
  if not bytes then return nil end
  local low, high, top = string.unpack("<I2B", bytes, 3), bytes:byte(5), bytes:byte(8)
  return low | high << 16 | top << 24
end

local function move(call)
  if call.cx > MOST_WORDS then return false end
  local at = call:address("es", call.si)
  local from, to = base_of(call, at, SOURCE), base_of(call, at, TARGET)
  local bytes = from and to and call:read(from, 2 * call.cx)
  return bytes and call:write(to, bytes)
end

functions[0x87] = function(_, call)
  if not move(call) then return call:fail(MOVE.failed) end
  call.ah = MOVE.good
  call:succeed()
end

-- Address line 20, which KVM has on always ---------------------------------------------

local a20 = {}

a20[0x01] = function(call) call.ah = 0 end -- on
a20[0x02] = function(call) call.ax = 1 end -- it is
a20[0x03] = function(call) call.ah, call.bx = 0, 0 end -- by nothing else than this

functions[0x24] = function(_, call)
  if not a20[call.al] then return call:refuse() end
  a20[call.al](call)
  call:succeed()
end

-- Waiting ------------------------------------------------------------------------

local SLICE <const> = 0.01 -- seconds after which the guest runs for a moment

-- Goes on with a wait.
local function wait(bios, call)
  local left = (bios.deadlines[call.vcpu] or 0) - ckvm.now()
  if left > 0 then
    bios.never:wait { timeout = math.min(left, SLICE) }
    return call:again(rom.WAIT)
  end
  bios.deadlines[call.vcpu] = nil
  call:succeed()
end

functions[0x86] = function(bios, call)
  bios.deadlines[call.vcpu] = ckvm.now() + (call.cx << 16 | call.dx) / 1000000
  wait(bios, call)
end

return {
  wait = wait,
  serve = function(bios, call)
    local fn = functions[call.ah]
    if fn then fn(bios, call) else call:refuse() end
  end,
}

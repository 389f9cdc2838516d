-- What a guest finds in its memory of the BIOS, for ckvm.bios: code that traps to the host, the
-- interrupt vectors, and the BIOS data area at 0x400.

local rom = {}

local SEGMENT <const>, BASE <const> = 0xf000, 0xf0000

-- Offsets in the segment; the last three are where programs expect them.
local STUBS <const>, WAIT <const>, TIMER <const> = 0xe000, 0xe400, 0xe410
local IRET <const>, RESET <const>, FLOPPY <const> = 0xff53, 0xfff0, 0xefc7

rom.PORT = 0xb1 -- which a PC has nothing at
rom.WAIT = "wait" -- in the place of a vector: the second half of INT 15h, AH 86h
rom.FLOPPY = { selector = SEGMENT, base = BASE, offset = FLOPPY } -- parameters of its drive

-- Code -------------------------------------------------------------------------

-- Four bytes each. Where a guest may have to wait, interrupts are on.
local TRAP <const> = "\x90\xe6\xb1\xcf" -- nop; out %al, $0xb1; iret
local TRAP_ON <const> = "\xfb\xe6\xb1\xcf" -- sti; out %al, $0xb1; iret
local WAITING <const> = { [0x16] = true }

-- Vectors that programs hook and a BIOS calls, or that lead to a table.
local HOOKS <const> = { 0x1b, 0x1c, 0x4a }
local FLOPPY_VECTOR <const>, TIMER_VECTOR <const> = 0x1e, 8
local TICK <const> = "\xcd\x1c\xcf" -- int $0x1c; iret

-- What a floppy drive's controller is told: bytes for times, 512 bytes a sector, 18 of a track.
local FLOPPY_PARAMETERS <const> = "\xaf\x02\x25\x02\x12\x1b\xff\x6c\xf6\x0f\x08"

local function stub(vector)
  return STUBS + 4 * vector
end

local function code()
  local list = {}
  for vector = 0, 255 do table.insert(list, WAITING[vector] and TRAP_ON or TRAP) end
  return table.concat(list)
end

-- A jump to INT 19h, the date, and what kind of PC it is: an AT.
local function reset()
  return string.pack("<BI2I2", 0xea, stub(0x19), SEGMENT) .. "01/01/99\0\xfc\0"
end

-- The start of what `vector` leads to; `rom.WAIT` is one, too.
function rom.address(vector)
  return BASE + (vector == rom.WAIT and WAIT or stub(vector))
end

-- The vector whose code has trapped at this linear address of its OUT, or behind it: where RIP is
-- depends on the KVM. Nil for an OUT of the guest's own.
function rom.vector(address)
  local offset = address - BASE - STUBS
  if offset % 4 == 0 or offset < 0 or offset >= 4 * 257 then return nil end
  return offset // 4 == 256 and rom.WAIT or offset // 4
end

-- Vectors ----------------------------------------------------------------------

local function vectors(bios)
  local list = {}
  for vector = 0, 255 do list[vector] = stub(vector) end
  for _, vector in ipairs(HOOKS) do list[vector] = IRET end
  list[FLOPPY_VECTOR] = FLOPPY
  if bios.timer then list[TIMER_VECTOR] = TIMER end
  for vector = 0, 255 do list[vector] = string.pack("<I2I2", list[vector], SEGMENT) end
  return table.concat(list, "", 0, 255)
end

-- The data area ------------------------------------------------------------------

local DATA <const> = 0x400
local SIZE <const> = 0x100

-- Fields that are the same for all.
local FIELDS <const> = {
  [0x1a] = { "<I2I2", 0x1e, 0x1e }, -- the keyboard's buffer: head and tail
  [0x49] = { "<BI2I2", 3, 80, 0x1000 }, -- mode, columns, bytes of a page
  [0x60] = { "<I2BI2", 0x0607, 0, 0x3d4 }, -- the cursor's shape, page, the CRT controller's port
  [0x80] = { "<I2I2BI2", 0x1e, 0x3e, 24, 16 }, -- ends of the buffer, rows - 1, height of characters
}

local COLOR_80 <const>, FPU <const>, FLOPPIES <const> = 0x20, 2, 1

-- Equipment, as INT 11h has it.
local function equipment(bios)
  return COLOR_80 | FPU | (bios.drive == 0 and FLOPPIES or 0)
end

local function data_area(bios)
  local fields = {
    [0x10] = { "<I2", equipment(bios) }, [0x13] = { "<I2", 640 },
    [0x75] = { "B", bios.drive == 0x80 and 1 or 0 },
  }
  for offset, field in pairs(FIELDS) do fields[offset] = field end
  local bytes = ("\0"):rep(SIZE)
  for offset, field in pairs(fields) do
    local packed = string.pack(table.unpack(field))
    bytes = bytes:sub(1, offset) .. packed .. bytes:sub(offset + #packed + 1)
  end
  return bytes
end

-- Puts all of it into the guest's memory, as after a reset.
function rom.write(bios)
  local vm <const> = bios.vm
  vm:write(0, vectors(bios))
  vm:write(DATA, data_area(bios))
  vm:write(BASE + STUBS, code())
  vm:write(BASE + WAIT, TRAP_ON)
  vm:write(BASE + TIMER, TICK)
  vm:write(BASE + IRET, "\xcf")
  vm:write(BASE + FLOPPY, FLOPPY_PARAMETERS)
  vm:write(BASE + RESET, reset())
end

return rom

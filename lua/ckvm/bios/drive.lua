-- INT 13h, the disk, for ckvm.bios: by cylinder, head and sector, and by the number of a sector.
--
-- Addresses are linear: a transfer may run past the end of a segment, as BIOSes have it, and not
-- past that of memory.

local rom = require "ckvm.bios.rom"

local functions = {}

local SECTOR <const> = 512
local PIECE <const> = 128 -- sectors that the host holds at once
local HARD_DISK <const> = 0x80

local STATUS <const> = {
  good = 0, invalid = 1, protected = 3, missing = 4, boundary = 9, unreadable = 0x20,
  unwritten = 0xcc,
}

-- Where the BIOS data area has the status of the last call, and how many hard disks there are.
local function status_at(drive)
  return drive >= HARD_DISK and 0x474 or 0x441
end

-- Tells the guest a status, and the next call of function 1.
local function finish(call, drive, status)
  call.vm:write_u8(status_at(drive), status)
  call.ah = status
  call:set_carry(status ~= STATUS.good)
end

-- Transfers ----------------------------------------------------------------------

local operations = {}

function operations.read(bios, call, first, count, gpa)
  local bytes, message = bios.disk:read(first, count)
  if not bytes then
    call:note("%s", message)
    return STATUS.unreadable
  end
  return call:write(gpa, bytes) and STATUS.good or STATUS.boundary
end

function operations.write(bios, call, first, count, gpa)
  if bios.disk.readonly then return STATUS.protected end
  local bytes = call:read(gpa, count * SECTOR)
  if not bytes then return STATUS.boundary end
  local done, message = bios.disk:write(first, bytes)
  if done then return STATUS.good end
  call:note("%s", message)
  return STATUS.unwritten
end

function operations.verify(bios, call, first, count)
  local bytes, message = bios.disk:read(first, count)
  if bytes then return STATUS.good end
  call:note("%s", message)
  return STATUS.unreadable
end

-- Returns a status, and how many sectors are done.
local function transfer(bios, call, name, first, count, gpa)
  local sectors <const> = bios.disk.sectors
  if first < 0 or count > sectors or first > sectors - count then return STATUS.missing, 0 end
  if name ~= "verify" and count > 0 and not call:reaches(gpa, count * SECTOR) then
    return STATUS.boundary, 0
  end
  for done = 0, count - 1, PIECE do
    local piece = math.min(PIECE, count - done)
    local status = operations[name](bios, call, first + done, piece, gpa + done * SECTOR)
    if status ~= STATUS.good then return status, done end
  end
  return STATUS.good, count
end

-- By cylinder, head and sector -----------------------------------------------------

local MOST <const> = 128 -- sectors of one call

-- The number of a sector, or nil and a status.
local function sector_of(disk, call)
  local cylinder, sector = call.ch | (call.cl & 0xc0) << 2, call.cl & 0x3f
  if sector == 0 then return nil, STATUS.invalid end
  if cylinder >= disk.cylinders or call.dh >= disk.heads or sector > disk.sectors_per_track then
    return nil, STATUS.missing
  end
  return (cylinder * disk.heads + call.dh) * disk.sectors_per_track + sector - 1
end

local function by_place(name)
  return function(bios, call)
    local count <const> = call.al
    call.al = 0
    if count == 0 or count > MOST then return STATUS.invalid end
    local first, problem = sector_of(bios.disk, call)
    if not first then return problem end
    local gpa = call:address("es", call.bx)
    local status, done = transfer(bios, call, name, first, count, gpa)
    call.al = done
    return status
  end
end

functions[0x02] = by_place "read"
functions[0x03] = by_place "write"
functions[0x04] = by_place "verify"

-- What there is --------------------------------------------------------------------

local function good() return STATUS.good end

-- Reset, seek, reset of hard disks, ready, recalibrate: nothing moves here.
for _, ah in ipairs { 0x00, 0x0c, 0x0d, 0x10, 0x11 } do functions[ah] = good end

functions[0x01] = function(_, call) return call.vm:read_u8(status_at(call.dl)) end

-- Kinds of floppy drives, by sectors of a track and cylinders.
local function kind_of(disk)
  if disk.cylinders == 40 then return 1 end
  return ({ [9] = 3, [15] = 2, [18] = 4, [36] = 6 })[disk.sectors_per_track]
end

functions[0x08] = function(bios, call)
  local disk <const> = bios.disk
  local last <const> = disk.cylinders - 1
  call.al, call.bx = 0, 0
  call.ch, call.cl = last, last >> 2 & 0xc0 | disk.sectors_per_track
  call.dh, call.dl = disk.heads - 1, 1
  if disk.floppy then
    call.bl, call.di = kind_of(disk), rom.FLOPPY.offset
    call:set_segment("es", rom.FLOPPY)
  end
  return STATUS.good
end

-- What kind of a disk it is, in the place of a status.
functions[0x15] = function(bios, call)
  local disk <const> = bios.disk
  call:succeed()
  if disk.floppy then
    call.ah = 1
  else
    local sectors = math.min(disk.sectors, 0xffffffff)
    call.ah, call.cx, call.dx = 3, sectors >> 16, sectors
  end
end

-- By number ------------------------------------------------------------------------

local extensions = {}

local VERSION <const>, ACCESS <const> = 0x21, 1 -- EDD 1.1, and what of it there is
local PACKET <const>, LONG_PACKET <const> = 16, 24 -- bytes
local ELSEWHERE <const> = 0xffffffff -- the address is a long packet's

extensions[0x41] = function(_, call)
  if call.bx ~= 0x55aa then return STATUS.invalid end
  call.bx, call.cx, call.ah = 0xaa55, ACCESS, VERSION
  call:succeed()
end

-- How many sectors, the first of them, and the address in memory; nil for what is no packet.
local function parse(call, at)
  local bytes = call:read(at, PACKET)
  if not bytes or bytes:byte() < PACKET then return nil end
  local count, offset, segment, first = string.unpack("<I2I2I2i8", bytes, 3)
  if segment << 16 | offset ~= ELSEWHERE or bytes:byte() < LONG_PACKET then
    return count, first, (segment << 4) + offset
  end
  local long = call:read(at + PACKET, LONG_PACKET - PACKET)
  if not long then return nil end
  return count, first, (string.unpack("<i8", long))
end

-- The packet tells how many were done.
local function by_number(name)
  return function(bios, call)
    local at = call:address("ds", call.si)
    local count, first, gpa = parse(call, at)
    if not count then return STATUS.invalid end
    local status, done = transfer(bios, call, name, first, count, gpa)
    call:write(at + 2, string.pack("<I2", done))
    return status
  end
end

extensions[0x42] = by_number "read"
extensions[0x43] = by_number "write"
extensions[0x44] = by_number "verify"

local PARAMETERS <const> = "<I2I2I4I4I4I8I2"
local VALID <const> = 2 -- the geometry is

extensions[0x48] = function(bios, call)
  local disk <const>, at <const> = bios.disk, call:address("ds", call.si)
  local size <const> = string.packsize(PARAMETERS)
  local head = call:read(at, 2)
  if not head or string.unpack("<I2", head) < size then return STATUS.invalid end
  local bytes = string.pack(PARAMETERS, size, VALID, disk.cylinders, disk.heads,
    disk.sectors_per_track, disk.sectors, SECTOR)
  return call:write(at, bytes) and STATUS.good or STATUS.invalid
end

-- The call -------------------------------------------------------------------------

local TYPE <const> = 0x15

-- Where there is no disk.
local function serve_missing(call)
  if call.ah ~= TYPE then return finish(call, call.dl, STATUS.invalid) end
  call.ah = 0
  call:succeed()
end

return function(bios, call)
  if call.dl ~= bios.drive then return serve_missing(call) end
  local fn = functions[call.ah] or call.dl >= HARD_DISK and extensions[call.ah]
  if not fn then call:note("AX 0x%04x is not there", call.ax) end
  local status = STATUS.invalid
  if fn then status = fn(bios, call) end
  if status then finish(call, bios.drive, status) end
end

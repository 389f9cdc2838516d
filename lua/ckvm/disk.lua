--- A disk image: sectors of 512 bytes in a file, or in memory.
--
-- A disk has the fields `sectors`, how many there are, `readonly`, `name` for messages, and its
-- geometry as old programs count: `cylinders`, `heads` and `sectors_per_track`, and `floppy`, true
-- for the size of a floppy disk. What a guest can cause is a value and no error: `read` and `write`
-- return nil and a message for sectors that there are not, for a disk that is full, read-only or
-- closed, and for what the file system says.
--
-- A write is with the kernel when `write` returns, without a buffer between: another program that
-- reads the file sees it. That it is on the host's own disk, only the kernel knows. Where the size
-- of a file is no multiple of 512, the last sector ends in zeros, and writing it makes the file
-- longer by them. Nothing keeps two programs from writing one image.
-- @module ckvm.disk
-- @usage
-- local disk <close> = require("ckvm.disk").new(("\0"):rep(1474560))
-- assert(disk.sectors == 2880 and disk.heads == 2)
-- assert(disk:write(1, ("x"):rep(512)))
-- assert(disk:read(0, 2):sub(513) == ("x"):rep(512))
local check = require "ckvm.check"

local disk = {}
local meta = { __index = disk }

local SECTOR <const> = 512
local EMPTY <const> = "a disk of 0 bytes"

-- Geometry ---------------------------------------------------------------------

-- Cylinders, heads and sectors of a track, by KiB.
local FLOPPIES <const> = {
  [160] = { 40, 1, 8 }, [180] = { 40, 1, 9 }, [320] = { 40, 2, 8 }, [360] = { 40, 2, 9 },
  [720] = { 80, 2, 9 }, [1200] = { 80, 2, 15 }, [1440] = { 80, 2, 18 }, [2880] = { 80, 2, 36 },
}
local TRACK <const> = 63 -- sectors of a hard disk's track
local CYLINDERS <const> = 1024 -- what a BIOS can count
local HEADS <const> = { 16, 32, 64, 128, 255 }

-- The fewest heads, with which all of the disk, or as much as there can be, has an address.
local function hard_disk(sectors)
  for _, heads in ipairs(HEADS) do
    local cylinders = sectors // (heads * TRACK)
    if cylinders <= CYLINDERS or heads == HEADS[#HEADS] then
      return { math.max(1, math.min(cylinders, CYLINDERS)), heads, TRACK }
    end
  end
end

local function set_geometry(self)
  local floppy = self.sectors % 2 == 0 and FLOPPIES[self.sectors // 2]
  self.floppy = floppy and true or false
  self.cylinders, self.heads, self.sectors_per_track = table.unpack(floppy
    or hard_disk(self.sectors))
end

-- Where sectors are --------------------------------------------------------------

local function pad(bytes, size)
  return bytes .. ("\0"):rep(size - #bytes)
end

-- Of a file, which may have become shorter than it was.
local function read_file(self, first, count)
  local start = first * SECTOR
  local expected = math.min(count * SECTOR, self.size - start)
  local done, message = self.file:seek("set", start)
  if not done then return nil, message end
  local bytes, problem = self.file:read(expected)
  if not bytes and problem then return nil, problem end
  if not bytes or #bytes < expected then
    return nil, ("the file ends before byte %d"):format(start + expected)
  end
  return pad(bytes, count * SECTOR)
end

local function write_file(self, first, bytes)
  local done, message = self.file:seek("set", first * SECTOR)
  if done then done, message = self.file:write(bytes) end
  if not done then return nil, message end
  self.size = math.max(self.size, first * SECTOR + #bytes)
  return true
end

-- In memory: what is written lies over the bytes that were there first.
local function read_memory(self, first, count)
  local list = {}
  for i = first, first + count - 1 do
    local bytes = self.written[i] or self.bytes:sub(i * SECTOR + 1, (i + 1) * SECTOR)
    table.insert(list, pad(bytes, SECTOR))
  end
  return table.concat(list)
end

local function write_memory(self, first, bytes)
  for i = 0, #bytes // SECTOR - 1 do
    self.written[first + i] = bytes:sub(i * SECTOR + 1, (i + 1) * SECTOR)
  end
  return true
end

-- Making ---------------------------------------------------------------------------

local OPTIONS <const> = { readonly = "boolean?" }

local function make(self)
  self.sectors = (self.size + SECTOR - 1) // SECTOR
  set_geometry(self)
  return setmetatable(self, meta)
end

-- A directory can be opened, and even has an end; only reading tells.
local function size_of(file)
  local size <const> = file:seek("end")
  if not size then return nil, "is no regular file or block device" end
  file:seek("set", 0)
  local _, problem = file:read(0)
  if problem then return nil, problem end
  if size == 0 then return nil, EMPTY end
  return size
end

--- Opens an image, to be read and written where it is.
-- @tparam string path of a file or a block device
-- @tparam[opt] table options
-- @tparam[opt=false] boolean options.readonly opens it for reading only
-- @treturn table the disk
-- @raise a string that begins with the path: what the system says, or that it has 0 bytes
-- or is a pipe or the like
-- @usage
-- local path = os.tmpname()
-- local file = io.open(path, "wb")
-- file:write(("\0"):rep(1 << 20)):close()
-- local disk <close> = require("ckvm.disk").open(path, { readonly = true })
-- assert(disk.sectors == 2048 and not disk:write(0, ("x"):rep(512)))
-- os.remove(path)
function disk.open(path, options)
  if type(path) ~= "string" then
    error(("disk: path: string expected, got %s"):format(type(path)), 2)
  end
  check.options("disk", options or {}, OPTIONS)
  local readonly = options and options.readonly or false
  local file, message = io.open(path, readonly and "rb" or "r+b")
  if not file then error(message, 2) end
  file:setvbuf "no"
  local size, problem = size_of(file)
  if not size then
    file:close()
    error(("%s: %s"):format(path, problem), 2)
  end
  return make { name = path, readonly = readonly, size = size, file = file, get = read_file,
    put = write_file }
end

--- Makes a disk in memory, which is gone with its last reference.
-- @tparam string bytes what is on it, and so its size
-- @tparam[opt] table options
-- @tparam[opt=false] boolean options.readonly refuses writes
-- @treturn table the disk
-- @raise a string if there are 0 bytes
-- @usage
-- local disk = require("ckvm.disk").new(("\0"):rep(64 << 10))
-- assert(disk.sectors == 128)
function disk.new(bytes, options)
  if type(bytes) ~= "string" then
    error(("disk: bytes: string expected, got %s"):format(type(bytes)), 2)
  end
  check.options("disk", options or {}, OPTIONS)
  if bytes == "" then error("disk: " .. EMPTY, 2) end
  return make { name = "disk", readonly = options and options.readonly or false, size = #bytes,
    bytes = bytes, written = {}, get = read_memory, put = write_memory }
end

-- Sectors ----------------------------------------------------------------------------

local function check_integer(what, value)
  if math.type(value) ~= "integer" then
    error(("disk: %s: integer expected, got %s"):format(what, math.type(value) or type(value)), 3)
  end
end

-- Why these sectors cannot be reached, if so.
local function refusal(self, first, count)
  if self.closed then return "closed" end
  if first < 0 or count < 0 or count > self.sectors or first > self.sectors - count then
    return ("%d sectors from %d on are not among its %d"):format(count, first, self.sectors)
  end
end

local function told(self, result, message)
  if result then return result end
  return nil, ("%s: %s"):format(self.name, message)
end

--- Reads sectors.
-- @tparam integer first number of the first one, from 0 on
-- @tparam integer count how many
-- @treturn string|nil their bytes; nil where that is not to be had
-- @treturn[opt] string a message, which begins with the disk's name, behind nil
-- @raise only for misuse
-- @usage
-- local disk = require("ckvm.disk").new(("\0"):rep(1024))
-- assert(#disk:read(0, 2) == 1024)
-- local bytes, message = disk:read(1, 2)
-- assert(not bytes and message == "disk: 2 sectors from 1 on are not among its 2")
function disk:read(first, count)
  check_integer("first", first)
  check_integer("count", count)
  local refused = refusal(self, first, count)
  if refused then return told(self, nil, refused) end
  if count == 0 then return "" end
  return told(self, self:get(first, count))
end

--- Writes sectors.
-- @tparam integer first number of the first one, from 0 on
-- @tparam string bytes whole sectors
-- @treturn boolean|nil true; nil where that is not to be had
-- @treturn[opt] string a message, which begins with the disk's name, behind nil
-- @raise only for misuse
-- @usage
-- local disk = require("ckvm.disk").new(("\0"):rep(1024))
-- assert(disk:write(1, ("x"):rep(512)))
function disk:write(first, bytes)
  check_integer("first", first)
  if type(bytes) ~= "string" then
    error(("disk: bytes: string expected, got %s"):format(type(bytes)), 2)
  elseif #bytes % SECTOR ~= 0 then
    error(("disk: %d bytes are no whole sectors of 512"):format(#bytes), 2)
  end
  local refused = refusal(self, first, #bytes // SECTOR) or self.readonly and "read-only"
  if refused then return told(self, nil, refused) end
  return told(self, self:put(first, bytes))
end

--- Closes the file, or gives up the memory. Reads and writes are refused then. May be called twice.
-- @raise only for misuse
-- @usage
-- local disk = require("ckvm.disk").new(("\0"):rep(512))
-- disk:close()
-- assert(not disk:read(0, 1))
function disk:close()
  self.closed = true
  if self.file then self.file:close() end
  self.file, self.bytes, self.written = nil, nil, nil
end

meta.__close = disk.close

return disk

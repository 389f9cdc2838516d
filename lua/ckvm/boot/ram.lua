-- What goes where in a guest's memory, for ckvm.boot. All of it is noted first, and written at the
-- end: an image that is refused has written nothing.

local acpi_tables = require("ckvm.acpi").tables
local inside = require("ckvm.boot.image").inside

local ram = {}
ram.__index = ram

local PAGE <const> = 0x1000
local HOLE <const>, HIGH <const> = 0xa0000, 0x100000 -- a PC's devices are between these
local AVAILABLE <const>, RESERVED <const> = 1, 2
local MOST <const> = 1 << 32 -- what 32-bit code reaches, and where memory goes on behind devices

-- Where to look for room: what a guest reads at its start is out of the way of images, which are
-- loaded at 1 MiB and above or at the start of memory; modules are from 1 MiB on, where they fit;
-- what firmware leaves is where it is looked for, in memory that is no one's to use.
local AREAS <const> = {
  tables = { { 0x90000, HOLE }, { HIGH, MOST }, { PAGE, HOLE } },
  modules = { { HIGH, MOST }, { PAGE, HOLE } },
  firmware = { { 0xe0000, HIGH } },
}

-- `size` bytes from 0 on, and `high` of them from 4 GiB on; `acpi` is what the ACPI tables are to
-- tell, if there are any.
function ram.new(image, size, high, acpi)
  return setmetatable({ image = image, size = size, high = high, acpi = acpi, list = {} }, ram)
end

-- The end of all memory.
function ram:top()
  return self.high > 0 and MOST + self.high or self.size
end

-- Notes an entry: gpa, size; `bytes` from offset `from` on, `length` of them, and zeros behind.
local function add(self, entry)
  entry.last = entry.gpa + (entry.size - 1)
  table.insert(self.list, entry)
end

local function by_address(a, b) return a.gpa < b.gpa end

local function check_inside(self, what, gpa, size, fields)
  if not inside(gpa, size, self.size) then
    self.image:fail("%s: %s 0x%x + %s 0x%x is beyond memory, which ends at 0x%x", what, fields[1],
      gpa, fields[2], size, self.size)
  end
end

-- What stands at `offset` of the image, and zeros up to `size`. `fields` are the names that a
-- message has for gpa and size.
function ram:load(what, gpa, size, offset, length, fields)
  if size == 0 then return end
  check_inside(self, what, gpa, size, fields)
  add(self, { what = what, gpa = gpa, size = size, bytes = self.image.bytes, from = offset,
    length = length })
end

-- Memory that stays as it is, and is to be there.
function ram:reserve(what, gpa, size, fields)
  check_inside(self, what, gpa, size, fields)
  add(self, { what = what, gpa = gpa, size = size, bytes = function() end })
end

-- Has the RSDP's address as `rsdp`.
local function put_acpi(self)
  local size = #acpi_tables(self.acpi, 0)
  self.rsdp = self:allocate("ACPI tables", "firmware", size)
  self:put("ACPI tables", self.rsdp, size, acpi_tables(self.acpi, self.rsdp))
end

-- To be called once, when all of the image is noted.
function ram:settle()
  table.sort(self.list, by_address)
  for i = 2, #self.list do
    local a, b = self.list[i - 1], self.list[i]
    if b.gpa <= a.last then
      self.image:fail("%s at 0x%x-0x%x overlaps %s at 0x%x-0x%x", b.what, b.gpa, b.last, a.what,
        a.gpa, a.last)
    end
  end
  if self.acpi then put_acpi(self) end
end

-- Raises where nothing of the image is; else returns the address.
function ram:check_loaded(what, address)
  for _, entry in ipairs(self.list) do
    if entry.gpa <= address and address <= entry.last then return address end
  end
  self.image:fail("%s 0x%x is not in what is loaded", what, address)
end

local function align(address, unit)
  return address + (-address & unit - 1)
end

-- The first room of whole pages between the two addresses.
local function find_room(self, size, first, limit)
  limit = math.min(limit, self.size)
  local free = first
  for _, entry in ipairs(self.list) do
    if inside(free, size, math.min(limit, entry.gpa)) then return free end
    if entry.last >= free then free = align(entry.last + 1, PAGE) end
  end
  return inside(free, size, limit) and free or nil
end

-- Finds whole pages, after settle, which `put` is to take. `kind` is a key of AREAS.
function ram:allocate(what, kind, size)
  table.sort(self.list, by_address)
  for _, area in ipairs(AREAS[kind]) do
    local gpa = find_room(self, size, area[1], area[2])
    if gpa then return gpa end
  end
  self.image:fail("%s: no room for 0x%x bytes in memory, which ends at 0x%x", what, size, self.size)
end

-- Bytes and zeros up to `size`, or what the function writes that is given for `bytes`.
function ram:put(what, gpa, size, bytes)
  local length = type(bytes) == "string" and #bytes or 0
  add(self, { what = what, gpa = gpa, size = size, bytes = bytes, from = 0, length = length })
end

-- What has addresses of its own parts in it: `compose(add)` adds these, each of which has the
-- address that `add(bytes)` returns, a multiple of 8. Returns what compose does.
function ram:compose(what, compose)
  local function build(gpa)
    local parts, free = {}, gpa
    local result = compose(function(bytes)
      local at = free
      table.insert(parts, bytes .. ("\0"):rep(-#bytes & 7))
      free = free + #parts[#parts]
      return at
    end)
    return table.concat(parts), result
  end
  local size = #build(0)
  local gpa = self:allocate(what, "tables", size)
  local bytes, result = build(gpa)
  self:put(what, gpa, size, bytes)
  return result
end

-- Modules one after the other on pages of their own: a list of { gpa =, size =, cmdline = }.
function ram:put_modules(modules)
  local size, placed = 0, {}
  for _, module in ipairs(modules) do size = size + align(math.max(#module.bytes, 1), PAGE) end
  if size == 0 then return placed end
  local gpa = self:allocate("modules", "modules", size)
  for i, module in ipairs(modules) do
    placed[i] = { gpa = gpa, size = #module.bytes, cmdline = module.cmdline or "" }
    local pages = align(math.max(#module.bytes, 1), PAGE)
    self:put("module", gpa, pages, module.bytes)
    gpa = gpa + pages
  end
  return placed
end

-- Memory as firmware describes it: { gpa, size, type }.
function ram:map()
  local map = { { 0, math.min(self.size, HOLE), AVAILABLE } }
  if self.size > HOLE then
    map[2] = { HOLE, math.min(self.size, HIGH) - HOLE, RESERVED }
  end
  if self.size > HIGH then map[3] = { HIGH, self.size - HIGH, AVAILABLE } end
  if self.high > 0 then table.insert(map, { MOST, self.high, AVAILABLE }) end
  return map
end

-- KiB below 640 KiB, and from 1 MiB on, as many as 32 bits tell.
function ram:kilobytes()
  local upper = self.size > HIGH and self.size - HIGH >> 10 or 0
  return math.min(self.size, HOLE) >> 10, math.min(upper, 0xffffffff)
end

local function write(vm, entry)
  if type(entry.bytes) == "function" then return entry.bytes(vm) end
  if entry.length > 0 then
    local whole = entry.from == 0 and entry.length == #entry.bytes
    vm:write(entry.gpa, whole and entry.bytes
      or entry.bytes:sub(entry.from + 1, entry.from + entry.length))
  end
  if entry.length < entry.size then
    vm:fill(entry.gpa + entry.length, entry.size - entry.length, 0)
  end
end

function ram:write(vm)
  for _, entry in ipairs(self.list) do
    local done, message = pcall(write, vm, entry)
    if not done then
      self.image:fail("%s: %s", entry.what, (tostring(message):gsub("^[^\n]-:%d+: ", "")))
    end
  end
end

return ram

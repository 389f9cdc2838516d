-- A vmlinux, or another ELF file, with the note that Xen's PVH guests have, for ckvm.boot: it tells
-- where such a guest starts, in protected mode, with EBX at an hvm_start_info.

local elf = require "ckvm.boot.elf"
local image_of = require("ckvm.boot.image").new
local state = require "ckvm.boot.state"

local pvh = { cmdline = true, modules = true } -- the options that it takes

local NOTE <const> = 4 -- PT_NOTE
local OWNER <const>, PHYS32_ENTRY <const> = "Xen\0", 18
local MAGIC <const>, VERSION <const> = 0x336ec578, 1
local ENTRY_SIZES <const> = { [4] = "<I4", [8] = "<I8" }

local function align(size, unit)
  return size + (-size & unit - 1)
end

-- The offset and the size of what the wanted note says, or nil.
local function find_in(image, segment)
  -- Notes of 8-byte alignment came after p_align had been 0 or 1 for ones of 4.
  local unit = segment.align == 8 and 8 or 4
  local at, limit = segment.offset, segment.offset + segment.filesz
  while limit - at >= 12 do
    local owner_size, size, kind = string.unpack("<I4I4I4", image.bytes, at + 1)
    local from = align(12 + owner_size, unit)
    if from > limit - at or size > limit - at - from then
      image:fail("%s: note at 0x%x: n_namesz 0x%x and n_descsz 0x%x are beyond 0x%x", segment.what,
        at, owner_size, size, limit)
    end
    local owner = image.bytes:sub(at + 13, at + 12 + math.min(owner_size, #OWNER + 1))
    if owner == OWNER and kind == PHYS32_ENTRY then return at + from, size end
    at = at + math.min(limit - at, from + align(size, unit))
  end
end

-- The physical address that the note has. Segments of notes may not share bytes without end: that
-- would take a time of the product of their number and size.
local function find_entry(image, file)
  local left = #image.bytes
  for _, segment in ipairs(file.segments) do
    if segment.type == NOTE then
      image:check_inside(segment.what .. ": p_offset", segment.offset, segment.filesz)
      left = left - segment.filesz
      if left < 0 then
        image:fail("%s: p_filesz 0x%x makes for more notes than bytes", segment.what,
          segment.filesz)
      end
      local at, size = find_in(image, segment)
      if at and not ENTRY_SIZES[size] then
        image:fail("%s: PHYS32_ENTRY: n_descsz 0x%x is neither 0x4 nor 0x8", segment.what, size)
      end
      if at then return (string.unpack(ENTRY_SIZES[size], image.bytes, at + 1)) end
    end
  end
  image:fail("program headers: there is no note of Xen's with PHYS32_ENTRY")
end

function pvh.detect(bytes)
  if not elf.detect(bytes) then return false end
  local image = image_of(bytes, "image")
  return (pcall(function() return find_entry(image, elf.parse(image)) end))
end

local function module_list(modules, add)
  local list = {}
  for i, module in ipairs(modules) do
    list[i] = string.pack("<I8I8I8I8", module.gpa, module.size, add(module.cmdline .. "\0"), 0)
  end
  return #list > 0 and add(table.concat(list)) or 0
end

local function memory_map(ram)
  local map = {}
  for i, area in ipairs(ram:map()) do
    local gpa, size, kind = table.unpack(area)
    map[i] = string.pack("<I8I8I4I4", gpa, size, kind, 0)
  end
  return table.concat(map), #map
end

-- Returns its address.
local function put_info(ram, cmdline, modules)
  local map, count = memory_map(ram)
  return ram:compose("hvm_start_info", function(add)
    local list, line = module_list(modules, add), add(cmdline .. "\0")
    return add(string.pack("<I4I4I4I4I8I8I8I8I4I4", MAGIC, VERSION, 0, #modules, list, line,
      ram.rsdp or 0, add(map), count, 0))
  end)
end

function pvh.load(image, ram, options)
  local file = elf.parse(image)
  local entry = find_entry(image, file)
  elf.place(image, ram, file)
  ram:check_loaded("PHYS32_ENTRY", entry)
  local modules = ram:put_modules(options.modules or {})
  local info = put_info(ram, options.cmdline or "", modules)
  local start = state.protected(image, ram, entry, { rbx = info })
  start.info, start.modules = info, modules
  return start
end

return pvh

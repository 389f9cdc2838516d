-- Multiboot 2, as its specification 2.0 has it, for ckvm.boot.

local addresses = require "ckvm.boot.addresses"
local elf = require "ckvm.boot.elf"
local image_of = require("ckvm.boot.image").new
local state = require "ckvm.boot.state"

local multiboot2 = { cmdline = true, modules = true } -- the options that it takes

local MAGIC <const>, LOADED <const> = 0xe85250d6, 0x36d76289 -- in the header, in EAX
local AREA <const>, ALIGN <const>, SIZE <const> = 0x8000, 8, 16
local I386 <const> = 0 -- the architecture
local FROM_START <const> = 0xffffffff -- load_addr: all of the file is loaded
local LOADER <const> = "ckvm"

-- Tags of the header. Those that are ignored ask for what is so (modules on pages), or only tell
-- what to do under EFI.
local REQUEST <const>, ADDRESS <const>, ENTRY <const>, CONSOLE <const> = 1, 2, 3, 4
local IGNORED <const> = { [6] = true, [7] = true, [8] = true, [9] = true }
local OPTIONAL <const> = 1 << 0 -- a flag
local FORMATS <const> = { [ADDRESS] = "<I4I4I4I4", [ENTRY] = "<I4", [CONSOLE] = "<I4" }

-- Tags of the information; a header may request them.
local TAGS <const> = { cmdline = 1, loader = 2, module = 3, memory = 4, map = 6 }
local SUPPLIED <const> = { [0] = true }
for _, tag in pairs(TAGS) do SUPPLIED[tag] = true end

-- The header -----------------------------------------------------------------

-- The offset of the header, or nil and that of one with a wrong checksum.
local function find(image)
  return image:find(string.pack("<I4", MAGIC), ALIGN, SIZE, AREA, function(offset)
    local magic, architecture, length, checksum =
      string.unpack("<I4I4I4I4", image.bytes, offset + 1)
    return magic + architecture + length + checksum & 0xffffffff == 0
  end)
end

function multiboot2.detect(bytes)
  return find(image_of(bytes)) ~= nil
end

local function fail_without(image, wrong)
  if not wrong then
    image:fail("header: magic 0x%x is at no multiple of %d in the first 0x%x bytes", MAGIC, ALIGN,
      AREA)
  end
  local _, architecture, length, checksum = string.unpack("<I4I4I4I4", image.bytes, wrong + 1)
  image:fail("header at 0x%x: checksum 0x%x is not 0x%x, for architecture 0x%x and "
    .. "header_length 0x%x", wrong, checksum, -(MAGIC + architecture + length) & 0xffffffff,
    architecture, length)
end

-- Returns the offsets of the header and of its end.
local function find_header(image)
  local at, wrong = find(image)
  if not at then fail_without(image, wrong) end
  local architecture, length = string.unpack("<I4I4", image.bytes, at + 5)
  local limit = math.min(AREA, #image.bytes)
  if architecture ~= I386 then
    image:fail("header at 0x%x: architecture 0x%x is not 0x%x, that of i386", at, architecture,
      I386)
  elseif length < SIZE or length > limit - at then
    image:fail("header at 0x%x: header_length 0x%x is not between 0x%x and 0x%x", at, length, SIZE,
      limit - at)
  end
  return at, at + length
end

-- Tags -----------------------------------------------------------------------

-- What a request has to be given, since the guest does not run without.
local function check_request(image, tag)
  for offset = tag.at + 8, tag.at + tag.size - 4, 4 do
    local kind = string.unpack("<I4", image.bytes, offset + 1)
    if not SUPPLIED[kind] then
      image:fail("%s: requests boot information 0x%x, and there is none", tag.what, kind)
    end
  end
end

-- Keeps what is known of a tag in `tags`, by its type.
local function take(image, tag, tags)
  local format = FORMATS[tag.type]
  if format and tags[tag.type] then
    image:fail("%s: there is one of type 0x%x before it", tag.what, tag.type)
  elseif format and tag.size < 8 + string.packsize(format) then
    image:fail("%s: size 0x%x is less than 0x%x", tag.what, tag.size, 8 + string.packsize(format))
  elseif format then
    tags[tag.type] = { string.unpack(format, image.bytes, tag.at + 9) }
  elseif tag.flags & OPTIONAL == 0 and tag.type == REQUEST then
    check_request(image, tag)
  elseif tag.flags & OPTIONAL == 0 and tag.type ~= REQUEST and not IGNORED[tag.type] then
    image:fail("%s: type 0x%x has to be understood, and is not", tag.what, tag.type)
  end
  if tag.type == CONSOLE and tag.flags & OPTIONAL == 0 and tags[CONSOLE][1] & 1 ~= 0 then
    image:fail("%s: console_flags 0x%x need a console, and there is none", tag.what,
      tags[CONSOLE][1])
  end
end

-- The fields of the tags between the two offsets, by type.
local function read_tags(image, at, limit)
  local tags = {}
  while at < limit do
    local tag = { at = at, what = ("tag at 0x%x"):format(at) }
    if limit - at < 8 then break end
    tag.type, tag.flags, tag.size = string.unpack("<I2I2I4", image.bytes, at + 1)
    if tag.size < 8 or tag.size > limit - at then
      image:fail("%s: size 0x%x is not between 0x8 and 0x%x", tag.what, tag.size, limit - at)
    end
    if tag.type == 0 then return tags end
    take(image, tag, tags)
    at = at + tag.size + (-tag.size & ALIGN - 1)
  end
  image:fail("tags: there is no end tag before 0x%x", limit)
end

-- Loading --------------------------------------------------------------------

local function place_by_tag(image, ram, at, tags)
  local header, first, behind, bss = table.unpack(tags[ADDRESS])
  if not tags[ENTRY] then
    image:fail("header at 0x%x: there is an address tag, and no entry address tag", at)
  end
  if first == FROM_START then
    if header < at then
      image:fail("header_addr 0x%x is less than 0x%x, the header's offset", header, at)
    end
    first = header - at
  end
  addresses.place(image, ram, at, {
    header_addr = header, load_addr = first, load_end_addr = behind, bss_end_addr = bss,
  })
end

-- Has the image noted in ram; returns where it starts. The tags win over ELF headers.
local function place(image, ram)
  local at, limit = find_header(image)
  local tags = read_tags(image, at + SIZE, limit)
  local file
  if tags[ADDRESS] then
    place_by_tag(image, ram, at, tags)
  elseif elf.detect(image.bytes) then
    file = elf.parse(image)
    elf.place(image, ram, file)
  else
    image:fail("header at 0x%x: there is no address tag, and the image is no ELF file", at)
  end
  return tags[ENTRY] and ram:check_loaded("entry_addr", tags[ENTRY][1]) or elf.entry(ram, file)
end

local function memory_map(ram)
  local map = { string.pack("<I4I4", 24, 0) }
  for _, area in ipairs(ram:map()) do
    local gpa, size, kind = table.unpack(area)
    table.insert(map, string.pack("<I8I8I4I4", gpa, size, kind, 0))
  end
  return table.concat(map)
end

local function information(ram, cmdline, modules)
  local parts = {}
  local function put(kind, bytes)
    table.insert(parts, string.pack("<I4I4", kind, 8 + #bytes) .. bytes .. ("\0"):rep(-#bytes & 7))
  end
  put(TAGS.cmdline, cmdline .. "\0")
  put(TAGS.loader, LOADER .. "\0")
  for _, module in ipairs(modules) do
    put(TAGS.module, string.pack("<I4I4", module.gpa, module.gpa + module.size)
      .. module.cmdline .. "\0")
  end
  put(TAGS.memory, string.pack("<I4I4", ram:kilobytes()))
  put(TAGS.map, memory_map(ram))
  put(0, "")
  local bytes = table.concat(parts)
  return string.pack("<I4I4", 8 + #bytes, 0) .. bytes
end

function multiboot2.load(image, ram, options)
  local entry = place(image, ram)
  local modules = ram:put_modules(options.modules or {})
  local bytes = information(ram, options.cmdline or "", modules)
  local info = ram:compose("boot information", function(add) return add(bytes) end)
  local start = state.protected(image, ram, entry, { rax = LOADED, rbx = info })
  start.info, start.modules = info, modules
  return start
end

return multiboot2

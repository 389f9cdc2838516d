-- ELF files for x86 that are linked to an address, for ckvm.boot; and what formats that are found
-- in such files need of them.

local state = require "ckvm.boot.state"

local elf = {}

local MAGIC <const> = "\x7fELF"
local LITTLE_ENDIAN <const>, VERSION <const> = 1, 1
local LOAD <const>, EXTENDED <const> = 1, 0xffff -- PT_LOAD; e_phnum that stands elsewhere
local EXEC <const> = 2
local MOST_HEADERS <const> = 0x10000 -- bytes of program headers: as many as Linux takes
local TYPES <const> = {
  [0] = "ET_NONE", "ET_REL, which is not linked",
  [3] = "ET_DYN, which would have to be relocated: link it without -pie", [4] = "ET_CORE",
}

-- By EI_CLASS: machine, formats and sizes. Of a program header, the order of the fields below.
local CLASSES <const> = {
  { bits = 32, machine = 3, header = "<I2I2I4I4I4I4I4I2I2I2", program = "<I4I4I4I4I4I4I4I4",
    size = 32,
    order = { "type", "offset", "vaddr", "paddr", "filesz", "memsz", "flags", "align" } },
  { bits = 64, machine = 62, header = "<I2I2I4I8I8I8I4I2I2I2", program = "<I4I4I8I8I8I8I8I8",
    size = 56,
    order = { "type", "flags", "offset", "vaddr", "paddr", "filesz", "memsz", "align" } },
}

function elf.detect(bytes)
  return bytes:sub(1, 4) == MAGIC
end

local function check_ident(image)
  if not elf.detect(image.bytes) then image:fail("e_ident: is not that of an ELF file") end
  local class, data, version = image:unpack("BBB", 4, "e_ident")
  if not CLASSES[class] then
    image:fail("e_ident: EI_CLASS 0x%x is neither 0x1 (32 bits) nor 0x2 (64)", class)
  elseif data ~= LITTLE_ENDIAN then
    image:fail("e_ident: EI_DATA 0x%x is not 0x%x (little-endian)", data, LITTLE_ENDIAN)
  elseif version ~= VERSION then
    image:fail("e_ident: EI_VERSION 0x%x is not 0x%x", version, VERSION)
  end
  return CLASSES[class]
end

local function check_header(image, class, file)
  if file.type ~= EXEC then
    image:fail("e_type 0x%x: is %s, not ET_EXEC", file.type, TYPES[file.type] or "unknown")
  elseif file.machine ~= class.machine then
    image:fail("e_machine 0x%x is not 0x%x, that of %d-bit x86", file.machine, class.machine,
      class.bits)
  elseif file.version ~= VERSION then
    image:fail("e_version 0x%x is not 0x%x", file.version, VERSION)
  elseif file.phnum == 0 or file.phnum == EXTENDED then
    image:fail("e_phnum 0x%x: is not how many program headers there are", file.phnum)
  elseif file.phentsize ~= class.size then
    image:fail("e_phentsize 0x%x is not 0x%x", file.phentsize, class.size)
  elseif file.phnum > MOST_HEADERS // class.size then
    image:fail("e_phnum 0x%x: is more than 0x%x", file.phnum, MOST_HEADERS // class.size)
  end
  image:check_inside("e_phoff", file.phoff, file.phnum * class.size)
end

local function program_header(image, class, file, i)
  local offset = file.phoff + i * class.size
  local values = { string.unpack(class.program, image.bytes, offset + 1) }
  local segment = { what = "program header " .. i }
  for at, name in ipairs(class.order) do segment[name] = values[at] end
  return segment
end

-- The header: bits, entry, and all program headers as `segments`, which are numbered from 0 on.
function elf.parse(image)
  local class <const> = check_ident(image)
  local file = { bits = class.bits, segments = {} }
  local _
  file.type, file.machine, file.version, file.entry, file.phoff, _, _, _, file.phentsize,
    file.phnum = image:unpack(class.header, 16, "ELF header")
  check_header(image, class, file)
  for i = 0, file.phnum - 1 do
    file.segments[i + 1] = program_header(image, class, file, i)
  end
  return file
end

local FIELDS <const> = { "p_paddr", "p_memsz" }

-- Has what is to be loaded noted in ram; `file.loaded` is the list of it.
function elf.place(image, ram, file)
  file.loaded = {}
  for _, segment in ipairs(file.segments) do
    if segment.type == LOAD then
      image:check_inside(segment.what .. ": p_offset", segment.offset, segment.filesz)
      if math.ult(segment.memsz, segment.filesz) then
        image:fail("%s: p_filesz 0x%x is more than p_memsz 0x%x", segment.what, segment.filesz,
          segment.memsz)
      end
      ram:load(segment.what, segment.paddr, segment.memsz, segment.offset, segment.filesz, FIELDS)
      table.insert(file.loaded, segment)
    end
  end
  if #ram.list == 0 then
    image:fail("e_phnum 0x%x: no program header loads anything", #file.segments)
  end
  ram:settle()
end

-- The physical address of e_entry, which is a virtual one; in a vmlinux it is physical already.
function elf.entry(ram, file)
  for _, segment in ipairs(file.loaded) do
    if math.ult(file.entry - segment.vaddr, segment.memsz) then
      return segment.paddr + (file.entry - segment.vaddr)
    end
  end
  return ram:check_loaded("e_entry", file.entry)
end

function elf.load(image, ram)
  local file = elf.parse(image)
  elf.place(image, ram, file)
  local enter = file.bits == 64 and state.long or state.protected
  local regs = {}
  local start = enter(image, ram, elf.entry(ram, file), regs)
  regs.rsp = state.stack(ram)
  return start
end

return elf

-- Multiboot 1, as its specification 0.6.96 has it, for ckvm.boot.

local addresses = require "ckvm.boot.addresses"
local elf = require "ckvm.boot.elf"
local image_of = require("ckvm.boot.image").new
local state = require "ckvm.boot.state"

local multiboot = { cmdline = true, modules = true } -- the options that it takes

local MAGIC <const>, LOADED <const> = 0x1badb002, 0x2badb002 -- in the header, in EAX
local AREA <const>, ALIGN <const>, SIZE <const> = 0x2000, 4, 12
local LOADER <const> = "ckvm"

-- Flags of the header: modules on pages, and how much memory there is, are always there.
local VIDEO <const>, ADDRESSES <const> = 1 << 2, 1 << 16
local MUST <const>, KNOWN <const> = 0xffff, 1 << 0 | 1 << 1 | VIDEO

-- Flags of the information: what of it is there.
local MEMORY <const>, CMDLINE <const>, MODULES <const> = 1 << 0, 1 << 2, 1 << 3
local MAP <const>, NAME <const> = 1 << 6, 1 << 9

-- The offset of the header, or nil and that of one with a wrong checksum.
local function find(image)
  return image:find(string.pack("<I4", MAGIC), ALIGN, SIZE, AREA, function(offset)
    local magic, flags, checksum = string.unpack("<I4I4I4", image.bytes, offset + 1)
    return magic + flags + checksum & 0xffffffff == 0
  end)
end

function multiboot.detect(bytes)
  return find(image_of(bytes)) ~= nil
end

local function find_header(image)
  local at, wrong = find(image)
  if at then return at end
  if not wrong then
    image:fail("header: magic 0x%x is at no multiple of %d in the first 0x%x bytes", MAGIC, ALIGN,
      AREA)
  end
  local _, flags, checksum = string.unpack("<I4I4I4", image.bytes, wrong + 1)
  image:fail("header at 0x%x: checksum 0x%x is not 0x%x, for magic 0x%x and flags 0x%x", wrong,
    checksum, -(MAGIC + flags) & 0xffffffff, MAGIC, flags)
end

local function check_flags(image, at, flags)
  local where = ("header at 0x%x: flags 0x%x"):format(at, flags)
  if flags & VIDEO ~= 0 then
    image:fail("%s: bit 2 asks for a video mode, and there is none", where)
  elseif flags & MUST & ~KNOWN ~= 0 then
    image:fail("%s: 0x%x has to be understood, and is not", where, flags & MUST & ~KNOWN)
  elseif flags & ADDRESSES == 0 and not elf.detect(image.bytes) then
    image:fail("%s: bit 16 is clear, and the image is no ELF file", where)
  end
end

-- Has the image noted in ram; returns where it starts. The address fields win over ELF headers.
local function place(image, ram)
  local at = find_header(image)
  local flags = string.unpack("<I4", image.bytes, at + 5)
  check_flags(image, at, flags)
  if flags & ADDRESSES == 0 then
    local file = elf.parse(image)
    elf.place(image, ram, file)
    return elf.entry(ram, file)
  end
  local header, first, behind, bss, entry = image:unpack("<I4I4I4I4I4", at + SIZE, "address fields")
  addresses.place(image, ram, at, {
    header_addr = header, load_addr = first, load_end_addr = behind, bss_end_addr = bss,
  })
  return ram:check_loaded("entry_addr", entry)
end

local function module_list(modules, add)
  local list = {}
  for i, module in ipairs(modules) do
    list[i] = string.pack("<I4I4I4I4", module.gpa, module.gpa + module.size,
      add(module.cmdline .. "\0"), 0)
  end
  return add(table.concat(list))
end

local function memory_map(ram)
  local map = {}
  for i, area in ipairs(ram:map()) do
    map[i] = string.pack("<I4I8I8I4", 20, table.unpack(area))
  end
  return table.concat(map)
end

-- Returns its address.
local function put_info(ram, cmdline, modules)
  local flags = MEMORY | CMDLINE | MODULES | MAP | NAME
  local lower, upper = ram:kilobytes()
  local map = memory_map(ram)
  return ram:compose("boot information", function(add)
    return add(string.pack("<I4I4I4I4I4I4I4", flags, lower, upper, 0, add(cmdline .. "\0"),
        #modules, module_list(modules, add))
      .. ("\0"):rep(16) .. string.pack("<I4I4", #map, add(map)) -- no symbols before it
      .. ("\0"):rep(12) .. string.pack("<I4", add(LOADER .. "\0")) -- no drives, no ROM
      .. ("\0"):rep(48)) -- no APM, VBE and framebuffer
  end)
end

function multiboot.load(image, ram, options)
  local entry = place(image, ram)
  local modules = ram:put_modules(options.modules or {})
  local info = put_info(ram, options.cmdline or "", modules)
  local start = state.protected(image, ram, entry, { rax = LOADED, rbx = info })
  start.info, start.modules = info, modules
  return start
end

return multiboot

-- Linux as distributions ship it, for ckvm.boot: a bzImage, by the 64-bit boot protocol, or by the
-- 32-bit one where it has no 64-bit entry (Documentation/arch/x86/boot.rst).

local state = require "ckvm.boot.state"

local bzimage = { cmdline = true, modules = true } -- the options that it takes

local MAGIC <const>, MAGIC_AT <const> = "HdrS", 0x202
local FLAG <const>, FLAG_AT <const> = 0xaa55, 0x1fe
local SECTOR <const> = 512
local OLDEST <const> = 0x202 -- the protocol that brought the command line's address
local LOADED_HIGH <const>, KERNEL_64 <const> = 1 << 0, 1 << 0 -- of loadflags, of xloadflags
local ENTRY_64 <const> = 0x200 -- from where the kernel is loaded
local HIGH <const> = 0x100000
local OTHER_LOADER <const> = 0xff -- a loader without a number of its own
local CODE <const> = 0x10 -- __BOOT_CS; __BOOT_DS is the next

-- The setup header: where each field is; of those that all protocols here do not have, which one
-- brought it, and what holds before that.
local HEADER <const>, HEADER_END <const> = 0x1f1, 0x290
local FIELDS <const> = {
  { "setup_sects", 0x1f1, "<I1" },
  { "version", 0x206, "<I2" },
  { "loadflags", 0x211, "<I1" },
  { "initrd_addr_max", 0x22c, "<I4", 0x203, 0x37ffffff },
  { "cmdline_size", 0x238, "<I4", 0x206, 255 },
  { "pref_address", 0x258, "<I8", 0x20a, HIGH },
  { "init_size", 0x260, "<I4", 0x20a, 0 },
  { "xloadflags", 0x236, "<I2", 0x20c, 0 },
}

-- struct boot_params: where things are that the loader says.
local PARAMS_SIZE <const> = 0x1000
local RSDP <const>, MAP_COUNT <const>, MAP <const>, MOST_MAP <const> = 0x70, 0x1e8, 0x2d0, 128
local LOADER <const>, RAMDISK <const>, CMDLINE <const> = 0x210, 0x218, 0x228
local START <const> = 0x214 -- code32_start

function bzimage.detect(bytes)
  return bytes:sub(MAGIC_AT + 1, MAGIC_AT + #MAGIC) == MAGIC
    and string.unpack("<I2", bytes, FLAG_AT + 1) == FLAG
end

-- The header's fields, and `start`, the offset of the kernel behind the real-mode code.
local function read_header(image)
  local header = {}
  for _, field in ipairs(FIELDS) do
    local name, at, format, since, default = table.unpack(field)
    if not since or header.version >= since then
      header[name] = image:unpack(format, at, name)
    else
      header[name] = default
    end
  end
  header.start = (header.setup_sects == 0 and 5 or header.setup_sects + 1) * SECTOR
  return header
end

local function check_header(image, header)
  local flag = image:unpack("<I2", FLAG_AT, "boot_flag")
  if flag ~= FLAG then
    image:fail("boot_flag 0x%x is not 0x%x", flag, FLAG)
  elseif image.bytes:sub(MAGIC_AT + 1, MAGIC_AT + #MAGIC) ~= MAGIC then
    image:fail("header at 0x%x: is not '%s'", MAGIC_AT, MAGIC)
  elseif header.version < OLDEST then
    image:fail("version 0x%x is before 0x%x", header.version, OLDEST)
  elseif header.loadflags & LOADED_HIGH == 0 then
    image:fail("loadflags 0x%x: a zImage, which is loaded below 1 MiB, is too old",
      header.loadflags)
  elseif header.start >= #image.bytes then
    image:fail("setup_sects 0x%x: the kernel at 0x%x is beyond the image, which ends at 0x%x",
      header.setup_sects, header.start, #image.bytes)
  end
end

-- What the kernel says that it needs until it knows its memory map is kept free.
local function place(image, ram, header)
  local size = #image.bytes - header.start
  ram:load("kernel", header.pref_address, size, header.start, size, { "pref_address", "size" })
  if header.init_size > size then
    ram:reserve("init_size", header.pref_address + size, header.init_size - size,
      { "pref_address + size", "init_size - size" })
  end
  ram:settle()
end

local function put_initrd(image, ram, header, modules)
  if #modules > 1 then
    image:fail("modules: %d are more than the one that Linux takes, its initrd", #modules)
  elseif modules[1] and modules[1].cmdline then
    image:fail("modules: an initrd has no command line")
  end
  local initrd = ram:put_modules(modules)[1]
  if initrd and initrd.gpa + initrd.size - 1 > header.initrd_addr_max then
    image:fail("initrd_addr_max 0x%x is below 0x%x, the end of the initrd",
      header.initrd_addr_max, initrd.gpa + initrd.size - 1)
  end
  return initrd or { gpa = 0, size = 0 }
end

local function patch(bytes, offset, format, ...)
  local new = string.pack(format, ...)
  return bytes:sub(1, offset) .. new .. bytes:sub(offset + #new + 1)
end

-- The header as the image has it, in zeros.
local function copy_header(image)
  local last = math.min(MAGIC_AT + image.bytes:byte(0x202), HEADER_END, #image.bytes)
  local header = image.bytes:sub(HEADER + 1, last)
  return ("\0"):rep(HEADER) .. header .. ("\0"):rep(PARAMS_SIZE - HEADER - #header)
end

local function with_map(params, ram)
  local map = ram:map()
  for i, area in ipairs(map) do
    params = patch(params, MAP + (i - 1) * 20, "<I8I8I4", table.unpack(area))
  end
  assert(#map <= MOST_MAP)
  return patch(params, MAP_COUNT, "<I1", #map)
end

-- Returns the address of the boot_params.
local function put_params(image, ram, header, cmdline, modules)
  local initrd = put_initrd(image, ram, header, modules)
  local params = with_map(copy_header(image), ram)
  params = patch(params, RSDP, "<I8", ram.rsdp or 0)
  params = patch(params, LOADER, "<I1", OTHER_LOADER)
  params = patch(params, START, "<I4", header.pref_address & 0xffffffff)
  params = patch(params, RAMDISK, "<I4I4", initrd.gpa, initrd.size)
  return ram:compose("boot_params", function(add)
    local line = add(cmdline .. "\0")
    return add(patch(params, CMDLINE, "<I4", line))
  end), initrd
end

function bzimage.load(image, ram, options)
  local header, cmdline = read_header(image), options.cmdline or ""
  check_header(image, header)
  if #cmdline > header.cmdline_size then
    image:fail("cmdline_size 0x%x is less than the command line's 0x%x bytes",
      header.cmdline_size, #cmdline)
  end
  place(image, ram, header)
  local modules <const> = options.modules or {}
  local info, initrd = put_params(image, ram, header, cmdline, modules)
  local has_64 <const> = header.xloadflags & KERNEL_64 ~= 0
  local enter <const> = has_64 and state.long or state.protected
  local rip = header.pref_address + (has_64 and ENTRY_64 or 0)
  local start = enter(image, ram, rip, { rsi = info }, CODE)
  start.info, start.modules = info, modules[1] and { initrd } or {}
  return start
end

return bzimage

-- The setup header of Linux's boot protocol (Documentation/arch/x86/boot.rst), for ckvm.boot: what
-- the real-mode code at the start of an image says of it, however the image is entered then.

local setup = {}

setup.HEADER = 0x1f1 -- where it is

-- What is in it besides the fields below.
local MAGIC <const>, MAGIC_AT <const> = "HdrS", 0x202
local FLAG <const>, FLAG_AT <const> = 0xaa55, 0x1fe
local SECTOR <const> = 512
local OLDEST <const> = 0x202 -- the protocol that brought the command line's address
local LOADED_HIGH <const> = 1 << 0 -- of loadflags

setup.MAGIC_AT = MAGIC_AT
setup.HIGH = 0x100000 -- where the kernel is loaded, unless it says another address
setup.KERNEL_64 = 1 << 0 -- of xloadflags: there is a 64-bit entry
setup.OTHER_LOADER = 0xff -- type_of_loader of one without a number of its own

-- Where each field is; of those that all protocols here do not have, which one brought it, and what
-- holds before that.
local FIELDS <const> = {
  { "setup_sects", 0x1f1, "<I1" },
  { "version", 0x206, "<I2" },
  { "loadflags", 0x211, "<I1" },
  { "initrd_addr_max", 0x22c, "<I4", 0x203, 0x37ffffff },
  { "cmdline_size", 0x238, "<I4", 0x206, 255 },
  { "pref_address", 0x258, "<I8", 0x20a, setup.HIGH },
  { "init_size", 0x260, "<I4", 0x20a, 0 },
  { "xloadflags", 0x236, "<I2", 0x20c, 0 },
}

function setup.detect(bytes)
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

-- The fields of an image's header by name, and `start`, the offset of the kernel behind the
-- real-mode code; none of them is off, and the command line fits.
function setup.read(image, cmdline)
  local header = read_header(image)
  check_header(image, header)
  if #cmdline > header.cmdline_size then
    image:fail("cmdline_size 0x%x is less than the command line's 0x%x bytes",
      header.cmdline_size, #cmdline)
  end
  return header
end

-- The initrd, which is the only module, or nil.
function setup.check_modules(image, modules)
  if #modules > 1 then
    image:fail("modules: %d are more than the one that Linux takes, its initrd", #modules)
  elseif modules[1] and modules[1].cmdline then
    image:fail("modules: an initrd has no command line")
  end
  return modules[1]
end

-- The bytes with these values at the offset.
function setup.patch(bytes, offset, format, ...)
  local new = string.pack(format, ...)
  return bytes:sub(1, offset) .. new .. bytes:sub(offset + #new + 1)
end

return setup

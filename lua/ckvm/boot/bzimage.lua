-- Linux as distributions ship it, for ckvm.boot: a bzImage, by the 64-bit boot protocol, or by the
-- 32-bit one where it has no 64-bit entry (Documentation/arch/x86/boot.rst).

local setup = require "ckvm.boot.setup"
local state = require "ckvm.boot.state"

local bzimage = { cmdline = true, modules = true, detect = setup.detect }

local ENTRY_64 <const> = 0x200 -- from where the kernel is loaded
local CODE <const> = 0x10 -- __BOOT_CS; __BOOT_DS is the next
local HEADER_END <const> = 0x290

local patch <const> = setup.patch

-- struct boot_params: where things are that the loader says.
local PARAMS_SIZE <const> = 0x1000
local RSDP <const>, MAP_COUNT <const>, MAP <const>, MOST_MAP <const> = 0x70, 0x1e8, 0x2d0, 128
local LOADER <const>, RAMDISK <const>, CMDLINE <const> = 0x210, 0x218, 0x228
local START <const> = 0x214 -- code32_start

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
  setup.check_modules(image, modules)
  local initrd = ram:put_modules(modules)[1]
  if initrd and initrd.gpa + initrd.size - 1 > header.initrd_addr_max then
    image:fail("initrd_addr_max 0x%x is below 0x%x, the end of the initrd",
      header.initrd_addr_max, initrd.gpa + initrd.size - 1)
  end
  return initrd or { gpa = 0, size = 0 }
end

-- The header as the image has it, in zeros.
local function copy_header(image)
  local last = math.min(setup.MAGIC_AT + image.bytes:byte(0x202), HEADER_END, #image.bytes)
  local header = image.bytes:sub(setup.HEADER + 1, last)
  return ("\0"):rep(setup.HEADER) .. header .. ("\0"):rep(PARAMS_SIZE - setup.HEADER - #header)
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
  params = patch(params, LOADER, "<I1", setup.OTHER_LOADER)
  params = patch(params, START, "<I4", header.pref_address & 0xffffffff)
  params = patch(params, RAMDISK, "<I4I4", initrd.gpa, initrd.size)
  return ram:compose("boot_params", function(add)
    local line = add(cmdline .. "\0")
    return add(patch(params, CMDLINE, "<I4", line))
  end), initrd
end

function bzimage.load(image, ram, options)
  local cmdline <const> = options.cmdline or ""
  local header <const> = setup.read(image, cmdline)
  place(image, ram, header)
  local modules <const> = options.modules or {}
  local info, initrd = put_params(image, ram, header, cmdline, modules)
  local has_64 <const> = header.xloadflags & setup.KERNEL_64 ~= 0
  local enter <const> = has_64 and state.long or state.protected
  local rip = header.pref_address + (has_64 and ENTRY_64 or 0)
  local start = enter(image, ram, rip, { rsi = info }, CODE)
  start.info, start.modules = info, modules[1] and { initrd } or {}
  return start
end

return bzimage

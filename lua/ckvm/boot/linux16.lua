-- Images that look like Linux and are entered by its 16-bit boot protocol, for ckvm.boot: iPXE's
-- .lkrn, memdisk, and Linux itself (Documentation/arch/x86/boot.rst, "Real-mode code"). Their
-- real-mode code asks a BIOS for what the other protocols have in boot_params.

local setup = require "ckvm.boot.setup"
local x86 = require "ckvm.x86"

local linux16 = { cmdline = true, modules = true } -- the options that it takes

-- A segment for the real-mode code: behind it, to HEAP_END, its heap, and its stack from there
-- down; behind these the command line. It is clear of what a BIOS has below 0x500, and of where
-- such code has stacks and moves to: below 0x7c00, and up to 640 KiB.
local BASE <const>, HEAP_END <const>, SEGMENT_SIZE <const> = 0x10000, 0xe000, 0x10000
local MOST_CODE <const> = 0x8000
local MOST_CMDLINE <const> = SEGMENT_SIZE - HEAP_END - 1 -- with a zero behind
local ENTRY <const> = 0x200 -- from the segment's start: the header's jump
local STACK_GAP <const> = 0x200 -- heap_end_ptr is that much less than the end of the heap
local PAGE <const> = 0x1000

-- Fields that the loader sets.
local LOADER <const>, FLAGS <const>, CAN_USE_HEAP <const> = 0x210, 0x211, 0x80
local RAMDISK <const>, HEAP <const>, CMDLINE <const> = 0x218, 0x224, 0x228

local CODE32_START <const>, XLOADFLAGS <const> = 0x214, 0x236
local INTERRUPTS_OFF <const> = 2 -- RFLAGS

-- An image that has no address to enter in protected mode, nor a 64-bit entry. Linux always has the
-- first; what is entered in real mode only may have it, too, and is to be called by its name.
function linux16.detect(bytes)
  if not setup.detect(bytes) or #bytes < XLOADFLAGS + 2 then return false end
  local start = string.unpack("<I4", bytes, CODE32_START + 1)
  local flags = string.unpack("<I2", bytes, XLOADFLAGS + 1)
  return start == 0 and flags & setup.KERNEL_64 == 0
end

local function check_sizes(image, header, cmdline)
  if header.start > MOST_CODE then
    image:fail("setup_sects 0x%x: the real-mode code's 0x%x bytes are more than 0x%x",
      header.setup_sects, header.start, MOST_CODE)
  elseif #cmdline > MOST_CMDLINE then
    image:fail("the command line's 0x%x bytes are more than the 0x%x that there is room for",
      #cmdline, MOST_CMDLINE)
  end
end

-- As high as it may be: the code at 1 MiB unpacks itself, and does not say where to.
local function put_initrd(image, ram, header, module)
  if not module then return { gpa = 0, size = 0 } end
  local size <const>, limit <const> = #module.bytes, math.min(ram.size, header.initrd_addr_max + 1)
  local behind <const> = setup.HIGH + #image.bytes - header.start
  local gpa = limit - size & -PAGE
  if gpa < behind then
    image:fail("initrd: no room for 0x%x bytes between 0x%x, the end of the kernel, and 0x%x", size,
      behind, limit)
  end
  ram:put("initrd", gpa, size, module.bytes)
  return { gpa = gpa, size = size, cmdline = "" }
end

-- All of the segment: the code, zeros up to the end of the stack, and the command line.
local function put_segment(image, ram, header, cmdline, initrd)
  local code = image.bytes:sub(1, header.start)
  code = setup.patch(code, LOADER, "<I1", setup.OTHER_LOADER)
  code = setup.patch(code, FLAGS, "<I1", header.loadflags | CAN_USE_HEAP)
  code = setup.patch(code, RAMDISK, "<I4I4", initrd.gpa, initrd.size)
  code = setup.patch(code, HEAP, "<I2", HEAP_END - STACK_GAP)
  code = setup.patch(code, CMDLINE, "<I4", BASE + HEAP_END)
  ram:put("real-mode code", BASE, SEGMENT_SIZE, code .. ("\0"):rep(HEAP_END - #code) .. cmdline)
end

local function segments()
  local function at(kind, base)
    return x86.segment(kind, { selector = base >> 4, base = base, limit = 0xffff, bits = 16 })
  end
  local data = at("data", BASE)
  return { cs = at("code", BASE + ENTRY), ds = data, es = data, fs = data, gs = data, ss = data }
end

function linux16.load(image, ram, options)
  local cmdline <const>, modules <const> = options.cmdline or "", options.modules or {}
  local header <const> = setup.read(image, cmdline)
  check_sizes(image, header, cmdline)
  local size <const> = #image.bytes - header.start
  ram:load("kernel", setup.HIGH, size, header.start, size, { "address", "size" })
  local initrd = put_initrd(image, ram, header, setup.check_modules(image, modules))
  put_segment(image, ram, header, cmdline, initrd)
  ram:settle()
  return {
    mode = "real", rip = 0, regs = { rsp = HEAP_END, rflags = INTERRUPTS_OFF }, sregs = segments(),
    info = BASE, modules = modules[1] and { initrd } or {},
  }
end

return linux16

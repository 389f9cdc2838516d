--- What an image is, and its way into a guest's memory.
--
-- No field of an image is trusted. One that is off is an error that begins with the image's name,
-- and names the field and its value: `kernel.elf: e_machine 0x28 is not 0x3e, that of 64-bit x86`.
-- Nothing is written then.
-- @module ckvm.boot
-- @usage
-- local boot = require "ckvm.boot"
-- local start = boot.load(vm, "\xf4", { name = "halt.bin", memory = 0x10000 }) -- hlt
-- boot.enter(vcpu, start)
-- assert(vcpu:run() == "hlt")
local boot = {}

local acpi = require "ckvm.acpi"
local check = require "ckvm.check"
local foreign = require "ckvm.boot.foreign"
local image = require "ckvm.boot.image"
local ram = require "ckvm.boot.ram"
local x86 = require "ckvm.x86"

-- An image is of the first whose test says so; the last takes anything.
local FORMATS <const> = {
  "linux16", "bzimage", "multiboot2", "multiboot", "pvh", "elf", "sector", "bios", "flat",
}
local formats <const> = {}
for _, name in ipairs(FORMATS) do formats[name] = require("ckvm.boot." .. name) end

-- Their tests ask for so little that files of other kinds pass them, too.
local WEAK <const> = { bios = true, flat = true }
local AS_CODE <const> = "to run it as bare code, tell the format 'flat'"

-- Bytes of memory, below 4 GiB and above.
local LEAST <const>, MOST <const>, MOST_HIGH <const> = 0x1000, 512 << 30, 508 << 30

--- The names of all formats, in the order in which `ckvm.boot.detect` tries them.
-- @treturn table a list of strings
-- @raise only for misuse
-- @usage
-- local boot = require "ckvm.boot"
-- print(table.concat(boot.formats(), " "))
function boot.formats()
  return table.move(FORMATS, 1, #FORMATS, 1, {})
end

--- Tells what an image is, by the tests of the formats themselves.
--
-- `"bzimage"`: Linux, with its setup header at 0x1f1. `"linux16"`: the same where the header tells
-- of no entry but the one in real mode, as that of iPXE's .lkrn does. `"multiboot2"` and
-- `"multiboot"`: a file, be it ELF or not, with a header of Multiboot 2 in its first 32768 bytes,
-- or else with one of Multiboot 1 in its first 8192. `"pvh"`: an ELF file with a note of Xen's
-- PHYS32_ENTRY, as a vmlinux is. `"elf"`: any other ELF file. `"sector"`: the first sector of a
-- disk, or all of a disk, with 0x55 0xaa at 510. `"bios"`: a PC's firmware, of up to 16 MiB in
-- units of 64 KiB, with a jump 16 bytes before its end. `"flat"`: nothing of these. A file of a
-- known kind that is no image has no format: one that is compressed, an archive, a disk image that
-- is not raw, a program of EFI, lines of text.
-- @tparam string bytes the whole image
-- @treturn string|nil the name of a format; nil if there is none
-- @treturn[opt] string what it is, behind nil, and what is to be done with it
-- @raise only for misuse
-- @usage
-- local boot = require "ckvm.boot"
-- assert(boot.detect("\xf4") == "flat")
-- print(boot.detect("\x1f\x8b\x08")) -- nil	is compressed with gzip: unpack it first
function boot.detect(bytes)
  check.argument("bytes", bytes, "string")
  for _, name in ipairs(FORMATS) do
    if formats[name].detect(bytes) then
      local other = WEAK[name] and foreign.describe(bytes, AS_CODE)
      if other then return nil, other end
      return name
    end
  end
end

-- Options --------------------------------------------------------------------

local OPTIONS <const> = {
  name = "string?", memory = "integer", cmdline = "string?", modules = "table?", format = "string?",
  at = "integer?", high_memory = "integer?", acpi = "table?",
}
local ABOVE <const> = 4 << 30
local MODULE <const> = { bytes = "string", cmdline = "string?" }

local function check_text(what, text)
  if text and text:find("\0", 1, true) then
    error(("%s: has a zero byte, which would end it"):format(what), 4)
  end
end

-- What the format has no place for would be lost.
local function check_taken(name, options)
  for _, key in ipairs { "cmdline", "modules", "at" } do
    if options[key] and not formats[name][key] then
      error(("%s: the format '%s' has no place for it"):format(key, name), 3)
    end
  end
end

local function check_values(options)
  local high <const> = options.high_memory or 0
  if options.memory < LEAST or options.memory > MOST then
    error(("memory: 0x%x is not between 0x%x and 0x%x"):format(options.memory, LEAST, MOST), 3)
  elseif high < 0 or high > MOST_HIGH then
    error(("high_memory: 0x%x is not between 0 and 0x%x"):format(high, MOST_HIGH), 3)
  elseif high > 0 and options.memory > ABOVE then
    error(("memory: 0x%x is beyond 0x%x, where high_memory is"):format(options.memory, ABOVE), 3)
  elseif options.format and not formats[options.format] then
    error(("unknown format '%s'; there are %s"):format(options.format,
      table.concat(FORMATS, ", ")), 3)
  end
  check_text("cmdline", options.cmdline)
  for _, module in ipairs(options.modules or {}) do check_text("cmdline", module.cmdline) end
end

-- The format's name. What is known to be no image is none of bare code either, unless told.
local function format_of(file, options)
  local name, why = options.format, nil
  if not name then name, why = boot.detect(file.bytes) end
  if not name then file:fail("%s", why) end
  return name
end

--- Loads an image into memory, with what its format says that it is to find there.
--
-- A flat binary and a sector start in real mode, at `at` and at 0x7c00, with the stack below; a
-- sector has 0x80, the first disk, in DL, and nothing but its 512 bytes is loaded. ELF files are
-- loaded by physical addresses, and start at theirs of `e_entry`: 32-bit ones in protected mode,
-- 64-bit ones in long mode with 4 GiB or more mapped to itself, all with a stack of 16 KiB.
-- Multiboot images start in protected mode with what they expect in EAX and EBX; of the
-- information, which begins at `info`, there is the command line, the modules, how much memory
-- there is and its map, and the name of the boot loader. With `"pvh"` it is the same without the
-- name: an `hvm_start_info` in EBX, whose first module is Linux's initrd. A bzImage is started by
-- the 64-bit boot protocol, or by the 32-bit one where it has none, with `boot_params` in RSI; its
-- only module is the initrd. With `"linux16"` it is started by the 16-bit boot protocol, in real
-- mode at 1020:0000, with interrupts off: for what else has that header (memdisk's does not tell
-- that it has no other entry) the caller names the format. It wants a BIOS: `ckvm.bios` boots it,
-- too. What `ckvm.acpi` tells is found by its signature between 0xe0000 and
-- 0xfffff, and told to the formats that have a place for it.
--
-- A PC's firmware ends at 4 GiB, where it is read-only memory that is added to the VM, unless there
-- is memory already, as when it is loaded once more; its last 128 KiB end at 1 MiB, too. It starts
-- as after a reset, 16 bytes before its end, and wants the devices of a PC: see `ckvm.pc`.
--
-- The result is a table for `ckvm.boot.enter`: `format`, `mode`, `rip` and `regs`, the registers
-- by name; where they are, `gdt` (`{ base =, limit = }`), `cr3` and `info`, `modules` as a list of
-- `{ gpa =, size =, cmdline = }`, and as `sregs` what else is not as `ckvm.x86.enter` has it, as
-- `msrs` what is to be set of these.
-- @tparam vm vm whose memory it is
-- @tparam string bytes the whole image
-- @tparam table options
-- @tparam[opt="image"] string options.name for messages
-- @tparam integer options.memory bytes of memory, which begins at 0
-- @tparam[opt=0] integer options.high_memory bytes of more memory, which begins at 4 GiB
-- @tparam[opt] table options.acpi what the guest is to find as ACPI tables, as for
-- `ckvm.acpi.tables`
-- @tparam[opt] string options.format its name, for what `ckvm.boot.detect` takes for another, or
-- for no image
-- @tparam[opt=0x7c00] integer options.at address of a flat binary
-- @tparam[opt] string options.cmdline for formats that have one
-- @tparam[opt] table options.modules a list of `{ bytes =, cmdline = }`, for formats with modules
-- @treturn table where to start
-- @raise a string that begins with the image's name, and says what is wrong with it
-- @usage
-- local boot = require "ckvm.boot"
-- local sector = "\xf4" .. ("\0"):rep(509) .. "\x55\xaa" -- hlt
-- local start = boot.load(vm, sector, { name = "disk.img", memory = 0x10000 })
-- assert(start.format == "sector" and start.rip == 0x7c00)
function boot.load(vm, bytes, options)
  check.argument("vm", vm, "ckvm VM")
  check.argument("bytes", bytes, "string")
  check.options("load", options, OPTIONS)
  for _, module in ipairs(options.modules or {}) do check.fields("module", module, MODULE) end
  check_values(options)
  if options.acpi then check.blame(function() acpi.tables(options.acpi, 0) end) end
  local file = image.new(bytes, options.name or "image")
  local name = format_of(file, options)
  check_taken(name, options)
  local memory = ram.new(file, options.memory, options.high_memory or 0, options.acpi)
  local start = formats[name].load(file, memory, options)
  start.format = name
  memory:write(vm)
  return start
end

--- Puts a vCPU where `ckvm.boot.load` says: `ckvm.x86.enter`, and the registers, MSRs included.
-- @tparam vcpu vcpu that is to start there
-- @tparam table start what `ckvm.boot.load` has returned
-- @raise what `ckvm.x86.enter` raises
-- @usage
-- local boot = require "ckvm.boot"
-- boot.enter(vcpu, boot.load(vm, "\xf4", { memory = 0x10000 }))
function boot.enter(vcpu, start)
  check.argument("vcpu", vcpu, "ckvm vCPU")
  check.argument("start", start, "table")
  check.blame(function()
    x86.enter(vcpu, start.mode, { rip = start.rip, gdt = start.gdt, cr3 = start.cr3 })
    if start.sregs then vcpu:set_sregs(start.sregs) end
    vcpu:set_regs(start.regs)
    if start.msrs then vcpu:set_msrs(start.msrs) end
  end)
end

return boot

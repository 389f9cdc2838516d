-- Boots what it is given: Linux, ELF and Multiboot kernels, a PC's firmware, disks, and bare code.
-- The serial port is the terminal. A guest that dies leaves one screen that says why.
--
--   ckvm-lua scripts/boot.lua [options] [image]

local bios = require "ckvm.bios"
local boot = require "ckvm.boot"
local ckvm = require "ckvm"
local console = require "ckvm.console"
local debug_exit = require "ckvm.dev.debug_exit"
local debugcon = require "ckvm.dev.debugcon"
local disk = require "ckvm.disk"
local machine = require "ckvm.machine"
local pc = require "ckvm.pc"
local report = require "ckvm.report"
local uart = require "ckvm.dev.uart"
local x86 = require "ckvm.x86"

local SERIAL <const> = 0x3f8
local LOOK <const> = 0.5 -- seconds: how often to look whether a guest sleeps for good
local MOST_KEYS <const> = 4096 -- bytes that the BIOS is given at once
local OFF <const>, WRONG_USE <const>, DEAD <const>, INTERRUPTED <const> = 0, 2, 1, 130 -- status

-- Of images that are Linux, unless told.
local APPEND <const> = { bzimage = "console=ttyS0", pvh = "console=ttyS0" }

-- A line on standard error, below what the guest has printed.
local function say(...)
  io.stderr:write("boot.lua: ", string.format(...), "\n")
end

local function quit(status, ...)
  say(...)
  os.exit(status, true)
end

-- The command line -----------------------------------------------------------

local has_argparse, argparse = pcall(require, "argparse")
if not has_argparse then
  quit(WRONG_USE, "argparse for Lua %s is missing (Debian: lua-argparse)", _VERSION:match("%d.*"))
end

-- For an option: what makes a number of its text, or names both.
local function size_of(name, text)
  local digits, unit = text:match("^(%w-)([KMG]?)$")
  local shift = ({ K = 10, M = 20, G = 30 })[unit] or 0
  local is_number = digits and #digits <= 16 and (digits:find("^%d+$") or digits:find("^0[xX]%x+$"))
  local number = is_number and tonumber(digits)
  if not number or number > 1 << 52 - shift then
    return nil, ("%s: '%s' is not a size, as 0x10000 or 64K"):format(name, text)
  end
  return number << shift
end

local function count_of(name, text)
  local number = #text <= 4 and text:find("^%d+$") and math.tointeger(text)
  if not number or number == 0 then return nil, ("%s: '%s' is not a count"):format(name, text) end
  return number
end

local MODES <const> = { real = true, protected = true, long = true, user = true }

local function mode_of(name, text)
  if MODES[text] then return text end
  return nil, ("%s: '%s' is none of real, protected, long, user"):format(name, text)
end

local function with(convert, name)
  return function(text) return convert(name, text) end
end

local function parse(args)
  local parser = argparse("ckvm-lua boot.lua", "Boots an image, or a small built-in one: Linux "
    .. "(bzImage, vmlinux), ELF, Multiboot, a disk's first sector, a PC's firmware, bare code.")
    :usage_max_width(80):help_max_width(80)
  parser:argument("image", "the file to boot; a disk is booted from a copy, see --disk"):args "?"
  parser:option("--cpus", "how many processors"):argname "N":convert(with(count_of, "--cpus"))
    :default "1"
  parser:option("--memory", "how much memory"):argname "SIZE"
    :convert(with(size_of, "--memory")):default "256M"
  parser:option("--initrd", "first files of Linux, or a module of Multiboot"):argname "FILE"
  parser:option("--append", "the kernel's command line; Linux has console=ttyS0 unless told")
    :argname "TEXT"
  parser:option("--bios", "a PC's firmware, which boots the disk"):argname "FILE"
  parser:option("--disk", "a disk's image, which is read and written"):argname "FILE"
  parser:option("--console", "terminal, pty, or the file that output goes to")
    :argname "WHERE":default "terminal"
  parser:option("--trace", "print exits: io, mmio, ..., with commas"):argname "KINDS"
  parser:option("--mode", "real, protected, long or user: the image is bare code for that")
    :argname "MODE":convert(with(mode_of, "--mode"))
  parser:option("--at", "where bare code is loaded and started"):argname "ADDRESS"
    :convert(with(size_of, "--at"))
  parser:flag("--no-reboot", "a guest that resets itself has ended")
  parser:add_help(true)
  local parsed, options = parser:pparse(args)
  if not parsed then quit(WRONG_USE, "%s; see --help", options) end
  return options
end

-- Files ----------------------------------------------------------------------

-- A line on the terminal for what takes a while. Returns whether there is one.
local function progress(path, size, since, done)
  if ckvm.now() - since < 0.3 or not os.execute "test -t 2" then return false end
  local share = size and size > 0 and (" %d %%"):format(100 * done // size) or ""
  io.stderr:write(("\rboot.lua: loading %s, %d MiB%s\27[K"):format(path, done >> 20, share))
  return true
end

-- No more than `most` bytes and the one that is too many: the file may have no end.
local function read_file(path, most)
  local file, message = io.open(path, "rb")
  if not file then quit(DEAD, "%s", message) end
  local size, since, pieces, left, shown = file:seek("end"), ckvm.now(), {}, most + 1, false
  file:seek("set")
  while left > 0 do
    local piece, why = file:read(math.min(left, 4 << 20))
    if why then quit(DEAD, "%s: %s", path, why) end
    if not piece then break end
    table.insert(pieces, piece)
    left = left - #piece
    shown = progress(path, size, since, most + 1 - left) or shown
  end
  file:close()
  if shown then io.stderr:write("\r\27[K") end
  if left == most + 1 then
    quit(DEAD, "%s: the file is empty", path)
  elseif left == 0 then
    quit(DEAD, "%s: does not fit in the 0x%x bytes of memory", path, most)
  end
  return table.concat(pieces)
end

-- Prints its message and halts, wherever it is loaded.
local function built_in(mode)
  local message = ("Hello from %s mode.\r\n\0"):format(mode)
  local is_16 <const> = mode == "real"
  return "\xe8" .. string.pack(is_16 and "<I2" or "<I4", #message) .. message -- call over it
    .. "\x5e"                                             -- pop %si: its address
    .. (is_16 and "" or "\x66") .. "\xba\xf8\x03"         -- mov $0x3f8, %dx
    .. "\xac\x84\xc0\x74\x03"                            -- next: lodsb; test %al, %al; jz done
    .. "\xee\xeb\xf8\xf4"                                -- out %al, (%dx); jmp next; done: hlt
end

-- The guest ------------------------------------------------------------------

-- Where a disk is read and written: in its file, or in a copy of the image that is booted.
local function open_disk(path, image)
  if not path then return disk.new(image) end
  local found, message = disk.open(path)
  return found or quit(DEAD, "%s", message)
end

-- What has the guest stop with this value: `self` has the machine when that is called.
local function stopper(self, value)
  return function() self.machine.vcpus[1]:stop(value) end
end

-- For test programs: a console of one port, and a way out with a status.
local function debug_devices(self)
  local function exit(status) self.machine.vcpus[1]:stop(status) end
  return { port = 0xe9, device = debugcon.new { write = self.write } },
    { port = 0xf4, count = 4, device = debug_exit.new { exit = exit } }
end

-- Of every machine here.
local function machine_of(self, config)
  local options <const> = self.options
  config.memory, config.cpus = options.memory, options.cpus
  config.trace = options.trace and {
    kinds = options.trace, output = function(line) io.stderr:write(line, "\n") end,
  }
  return machine.new(config)
end

local makers = {}

-- All that a PC has, with interrupts: for kernels and firmware.
function makers.pc(self)
  local options <const>, is_bios <const> = self.options, self.format == "bios"
  local devices = pc.new {
    memory = options.memory, cpus = options.cpus, output = self.write, ready = self.ready,
    disk = options.disk and open_disk(options.disk),
    poweroff = stopper(self, "poweroff"), reset = stopper(self, "reset"),
  }
  for _, device in ipairs { debug_devices(self) } do table.insert(devices, device) end
  local initrd <const> = options.initrd and read_file(options.initrd, options.memory)
  self.machine = machine_of(self, {
    name = self.name, image = self.image, format = self.format, irqchip = true, devices = devices,
    cmdline = options.append or APPEND[self.format], acpi = not is_bios and pc.ACPI or nil,
    modules = initrd and { { bytes = initrd } } or nil,
  })
  self.console:connect(self.machine.vm, devices.uart)
end

-- Code that is no image, with a serial port.
function makers.code(self)
  local options <const> = self.options
  local port = uart.new { write = self.write, ready = self.ready }
  self.machine = machine_of(self, {
    mode = options.mode, code = self.image, at = options.at,
    devices = { { port = SERIAL, count = 8, device = port }, debug_devices(self) },
  })
  self.console:connect(self.machine.vm, port)
end

-- What is typed, for the BIOS: more when the guest has taken all but what its own buffer holds.
local function keyboard_of(guest)
  return {
    room = function() return guest:save().keys == "" and MOST_KEYS or 0 end,
    receive = function(_, bytes)
      guest:type(bytes)
      return #bytes
    end,
  }
end

-- 16-bit code, with a BIOS in Lua, whose keyboard is the console; or the disk that it boots.
function makers.real(self)
  local options <const>, boots <const> = self.options, self.format ~= "flat"
  local devices = { debug_devices(self) }
  table.insert(devices, { port = SERIAL, count = 8, device = uart.new { write = self.write } })
  if boots then table.insert(devices, pc.EMPTY_BUSES) end
  self.machine = machine_of(self, {
    code = not boots and self.image or nil, at = options.at, devices = devices,
  })
  local vm <const>, vcpu <const> = self.machine.vm, self.machine.vcpus[1]
  self.bios = bios.install(vm, {
    memory = math.min(options.memory, 3 << 30), output = self.write, timer = boots,
    disk = (boots or options.disk) and open_disk(options.disk, self.image) or nil,
    above = math.max(options.memory - (3 << 30), 0), input = self.ready,
    unhandled = function(_, text) vcpu:stop { text = text } end,
    reboot = stopper(self, "reset"),
  })
  self.boots = boots
  if boots then self.bios:boot(vcpu) end
  self.console:connect(vm, keyboard_of(self.bios))
end

local function reset(self)
  self.machine:reset()
  if self.boots then self.bios:boot(self.machine.vcpus[1]) end
end

-- Of all that makes no sense together, the first.
local function check(options, format)
  local is_code <const> = format == "flat"
  local kernel <const> = not is_code and format ~= "sector" and format ~= "bios"
  local real <const> = (options.mode or "real") == "real"
  local function refuse(name, sense, why)
    if options[name] and not sense then
      quit(WRONG_USE, "--%s: %s; see --help", name, why)
    end
  end
  refuse("mode", is_code, options.bios and "firmware has its own" or "a disk starts in real mode")
  refuse("disk", real, "only code of real mode has one, by its BIOS")
  refuse("disk", format ~= "sector" or not options.image, "the image is a disk itself")
  refuse("at", is_code, "the image says itself where it is loaded")
  refuse("append", kernel, ("%s has no command line"):format(format))
  refuse("initrd", kernel, ("%s has no place for it"):format(format))
  refuse("bios", not options.image, "there is an image to boot, and no --disk")
  if options.cpus > 1 and (format == "sector" or is_code and not options.mode) then
    quit(WRONG_USE, "--cpus: code of 16 bits has one; see --help")
  end
end

-- What there is to boot, and what it is: an image, firmware, a disk, or what is built in.
local function choose(options)
  local path <const> = options.bios or options.image
  if path then
    local image <const> = read_file(path, options.memory)
    return image, options.bios and "bios" or options.mode and "flat" or boot.detect(image), path
  elseif options.disk then
    return nil, "sector", options.disk
  end
  return built_in(options.mode or "real"), "flat", "the built-in image"
end

local function build(options)
  local image, format, path = choose(options)
  check(options, format)
  local self = { options = options, image = image, format = format, name = path }
  self.console = console.new { to = options.console }
  if self.console.path then say("the console is %s", self.console.path) end
  self.write = function(bytes) self.console:write(bytes) end
  self.ready = function() self.console:ready() end
  local real <const> = format == "sector" or format == "flat" and (options.mode or "real") == "real"
  local maker = real and makers.real or format == "flat" and makers.code or makers.pc
  maker(self)
  return self
end

-- Running and the end --------------------------------------------------------

-- Whether no interrupt can wake it.
local function sleeps_for_good(self)
  for _, vcpu in ipairs(self.machine.vcpus) do
    local state <const> = vcpu:get_mp_state()
    local listens <const> = vcpu.regs.rflags & x86.rflags["if"] ~= 0
    if state == "runnable" or state == "halted" and listens then return false end
  end
  return true
end

local function run_on(self)
  local limits <const> = self.machine.irqchip and { timeout = LOOK } or nil
  while true do
    local why, vcpu, value = self.machine:run(limits)
    if why == "stopped" and value == "reset" and not self.options.no_reboot then
      reset(self)
    elseif why == "timeout" and sleeps_for_good(self) then
      return "hlt", vcpu or self.machine.vcpus[1]
    elseif why ~= "timeout" then
      return why, vcpu, value
    end
  end
end

local function is_interrupt(err)
  return type(err) == "string" and err:find("interrupted!", 1, true) ~= nil
end

local POSITION <const> = "^[^\n]-%.lua:%d+: "

-- What the kernel refuses, and messages without a line of code, are for who runs this; the rest is
-- a mistake here, and has a traceback.
local function traced(err)
  if type(err) ~= "string" or is_interrupt(err) or not err:find(POSITION) then return err end
  return { traceback = debug.traceback(err, 2) }
end

-- In one line.
local function message_of(err)
  if type(err) == "string" then return (err:gsub(POSITION, "")) end
  return ("%s: %s: %s"):format(err.call, err.code, err.message)
end

-- Interrupted by Ctrl-C: where was it?
local function run(self)
  local result <const> = table.pack(xpcall(run_on, traced, self))
  local done <const>, err <const> = result[1], result[2]
  if done then return table.unpack(result, 2, result.n) end
  if is_interrupt(err) then return "interrupted", self.machine.vcpus[1] end
  self.console:close()
  if type(err) == "table" and err.traceback then error(err.traceback, 0) end
  quit(DEAD, "%s", message_of(err))
end

local function place(vcpu)
  local exits <const> = vcpu.stats.total
  return ("at rip 0x%x after %d exit%s"):format(vcpu.regs.rip, exits, exits == 1 and "" or "s")
end

local CHOSEN <const> = { poweroff = true, reset = true, quit = true }

-- Ends of a guest's own choice have a line, others a screen.
local function finish(self, why, vcpu, value)
  local in_line <const> = self.console:in_line()
  self.console:close()
  if math.type(value) == "integer" then os.exit(value & 0xff, true) end
  if in_line then io.stderr:write("\n") end
  if why == "hlt" or type(value) == "string" then
    quit((why == "hlt" or CHOSEN[value]) and OFF or DEAD, "%s %s", value or why, place(vcpu))
  elseif value then
    say("%s", value.text or "in ring 3: " .. tostring(value))
  end
  io.stderr:write(report.describe(self.machine.vm, vcpu, why), "\n")
  os.exit(why == "interrupted" and INTERRUPTED or DEAD, true)
end

local function main(...)
  local options <const> = parse { ... }
  local built, self = pcall(build, options)
  if built then finish(self, run(self)) end
  quit(is_interrupt(self) and INTERRUPTED or DEAD, "%s", message_of(self))
end

main(...)

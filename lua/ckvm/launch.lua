--- Starts whatever a file is: the machine with the devices that such a guest looks for, a console,
-- and an account of how it has ended. `scripts/boot.lua` is a command line for it.
--
-- Kernels (Linux, ELF, Multiboot) and firmware get a PC as `ckvm.pc` has it. Code of 16 bits, disks
-- that are booted, and kernels that start in real mode get a BIOS in Lua, with the console as
-- screen and keyboard; bare code for other modes gets a serial port at 0x3f8. All have a debug
-- console at port 0xe9, and a port 0xf4 that ends the run with a status, `value << 1 | 1`.
--
-- The functions that take a guest are its methods: `guest:run()`, and `local guest <close>`.
-- @module ckvm.launch
-- @usage
-- local con = require("ckvm.console").new { to = "string" }
-- local guest <close> = require("ckvm.launch").new {
--   image = "\xb0\x2a\xe6\xe9\xf4", -- mov $42, %al; out %al, $0xe9; hlt
--   mode = "long", console = con,
-- }
-- local status, line = guest:ending(guest:run { timeout = 10 })
-- print(con:text(), status, line) -- *	0	hlt at rip 0x100005 after 1 exit
local boot = require "ckvm.boot"
local check = require "ckvm.check"
local ckvm = require "ckvm"
local console = require "ckvm.console"
local dev = require "ckvm.dev"
local guests = require "ckvm.launch.guests"
local report = require "ckvm.report"
local x86 = require "ckvm.x86"

local launch = {}
local meta = { __index = launch }

local MEMORY <const> = 256 << 20
local LOOK <const> = 0.5 -- seconds: how often to look whether a guest sleeps for good
local SLACK <const> = 1 -- seconds that a handler may run beyond the time that a guest has
local LOOKED_AT <const> = {}

-- Options --------------------------------------------------------------------

local OPTIONS <const> = {
  image = "string?", name = "string?", format = "string?", memory = "integer?", cpus = "integer?",
  mode = "string?", at = "integer?", cmdline = "string?", initrd = "string?", disk = "table?",
  console = "table?", trace = "table?", kvm = "userdata?",
}

-- What there is to boot: bare code by `mode`, what an image says that it is, or a disk. An image of
-- a kind that does not start has no format.
local function format_of(options)
  if options.format then return options.format end
  if not options.image then return "sector" end
  return options.mode and "flat" or (boot.detect(options.image))
end

local function is_real(options, format)
  if format == "flat" then return (options.mode or "real") == "real" end
  return format == "sector" or format == "linux16"
end

--- Tells of the first option that makes no sense with the others.
-- @tparam table options as for `launch.new`
-- @treturn string|nil its name; nil if there is none
-- @treturn[opt] string why it makes no sense
-- @raise only for misuse
-- @usage
-- local launch = require "ckvm.launch"
-- print(launch.conflict { image = "\xf4", cmdline = "quiet" }) -- cmdline	flat has no command line
function launch.conflict(options)
  check.options("conflict", options, OPTIONS)
  local format <const> = format_of(options)
  if not format then return nil end -- whatever the options are, it is refused by what it is
  local is_code <const>, is_bios <const> = format == "flat", format == "bios"
  local is_kernel <const> = not is_code and not is_bios and format ~= "sector"
  local rules <const> = {
    { "format", options.image, "there is no image" },
    { "mode", is_code, format == "sector" and "a disk starts in real mode"
      or ("%s has its own"):format(is_bios and "firmware" or format) },
    { "disk", (options.mode or "real") == "real", "only code of real mode has one, by its BIOS" },
    { "disk", format ~= "sector" or not options.image, "the image is a disk itself" },
    { "at", is_code, "the image says itself where it is loaded" },
    { "cmdline", is_kernel, ("%s has no command line"):format(format) },
    { "initrd", is_kernel, ("%s has no place for it"):format(format) },
    { "image", options.image or options.disk, "there is none, and no disk" },
    { "cpus", options.cpus == 1 or not is_real(options, format), "code of 16 bits has one" },
  }
  for _, rule in ipairs(rules) do
    local name <const>, sense <const>, why <const> = table.unpack(rule)
    if (options[name] ~= nil or name == "image") and not sense then return name, why end
  end
end

-- Starting -------------------------------------------------------------------

local function check_console(con)
  for _, name in ipairs { "write", "ready", "connect", "close" } do
    if not con[name] then error(("launch: console: has no method '%s'"):format(name), 3) end
  end
end

--- Makes a machine for an image, ready to run.
-- @tparam table options
-- @tparam[opt] string options.image bytes of what `ckvm.boot` knows; without one the disk is booted
-- @tparam[opt="image"] string options.name of the image, for messages
-- @tparam[opt] string options.format its format, for what `ckvm.boot.detect` takes for another
-- @tparam[opt=0x10000000] integer options.memory bytes, as for `ckvm.machine`
-- @tparam[opt=1] integer options.cpus how many vCPUs; 16-bit code has one
-- @tparam[opt] string options.mode `"real"`, `"protected"`, `"long"` or `"user"`: the image is bare
-- code for that, whatever it looks like
-- @tparam[opt] integer options.at address at which bare code is loaded and started
-- (in real mode it ends below 0xa0000, and begins at 0x500 or above, as the BIOS has the rest)
-- @tparam[opt] string options.cmdline the kernel's; Linux has `"console=ttyS0"` unless told
-- @tparam[opt] string options.initrd bytes of the first files of Linux, or of a Multiboot module
-- @tparam[opt] table options.disk the hard disk, as `ckvm.disk` makes it
-- @tparam[opt] table options.console of `ckvm.console`, which it closes; the terminal unless told
-- @tparam[opt] table options.trace as for `ckvm.machine`
-- @tparam[opt] kvm options.kvm the system; if left out, it is opened
-- @treturn table the guest, with fields `machine`, `console`, `format`, and `bios` if it has one in
-- Lua
-- @raise a string for wrong options, those of `launch.conflict` included, and for what is wrong
-- with the image; what the calls raise that it makes
-- @usage
-- local con = require("ckvm.console").new { to = "/dev/null" }
-- local guest <close> = require("ckvm.launch").new { image = "\xf4", console = con }
-- assert(guest:run { timeout = 10 } == "hlt")
function launch.new(options)
  check.options("launch", options, OPTIONS)
  local name, why = launch.conflict(options)
  if name then error(("launch: %s: %s"):format(name, why), 2) end
  if options.console then check_console(options.console) end
  local self = setmetatable({ options = dev.copy(options), format = format_of(options) }, meta)
  self.options.memory, self.options.cpus = options.memory or MEMORY, options.cpus or 1
  local _ <close> = check.at_error(function() launch.close(self) end)
  check.blame(function()
    self.console = options.console or console.new()
    self.write = function(bytes)
      self.printed = true
      self.console:write(bytes)
    end
    self.ready = function() self.console:ready() end
    local is_bare <const> = self.format == "flat"
    local make = is_real(options, self.format) and guests.real or is_bare and guests.code
      or guests.pc
    make(self)
  end)
  return self
end

-- Running --------------------------------------------------------------------

-- Whether no interrupt can wake it.
local function sleeps_for_good(self)
  for _, vcpu in ipairs(self.machine.vcpus) do
    local state <const> = vcpu:get_mp_state()
    local listens <const> = vcpu.regs.rflags & x86.rflags["if"] ~= 0
    if state == "runnable" or state == "halted" and listens then return false end
  end
  return true
end

--- Starts the guest anew, as its own reset does.
-- @tparam table self the guest
-- @raise what `machine.reset` raises
-- @usage
-- local con = require("ckvm.console").new { to = "/dev/null" }
-- local guest <close> = require("ckvm.launch").new { image = "\xf4", console = con }
-- guest:run()
-- guest:reset()
-- assert(guest:run() == "hlt")
function launch.reset(self)
  self.machine:reset()
  if self.boot then self.boot() elseif self.bios then self.bios:reset() end
end

local RUN <const> = { timeout = "number?", reboot = "boolean?" }

-- Has the guest stop to be looked at, if it may sleep for good or has `left` seconds. A deadline
-- of the run would be one for handlers, too, and a busy machine is slow with them.
local function watch(self, left)
  local seconds <const> = math.min(left or math.huge, self.machine.irqchip and LOOK or math.huge)
  if seconds == math.huge then return nil end
  return self.machine.vm:after(seconds, function(vcpu) vcpu:stop(LOOKED_AT) end)
end

-- Runs it until it ends, or has stopped to be looked at.
local function run_until_look(self, left)
  local _ <close> = watch(self, left)
  return self.machine:run { timeout = left and left + SLACK }
end

--- Runs it until it ends. A guest that resets itself starts anew, and one whose vCPUs all sleep
-- where no interrupt can wake them has ended with `"hlt"`.
-- @tparam table self the guest
-- @tparam[opt] table options
-- @tparam[opt] number options.timeout seconds until it is left, with `"timeout"`; it may go on
-- @tparam[opt=true] boolean options.reboot whether a reset starts it anew; if not, it ends the run,
-- with `"stopped"` and `"reset"`
-- @treturn string why it ended, as from `machine.run`
-- @treturn vcpu the one that did
-- @treturn[opt] any why it was stopped: `"poweroff"`, `"reset"`, `"quit"` (by `Ctrl-A x`), an
-- integer as status by port 0xf4, a fault of ring 3 as from `ckvm.x86.fault`, or a table
-- whose `text` says which call the BIOS in Lua has not got
-- @raise a string for wrong options; what `machine.run` raises
-- @usage
-- local con = require("ckvm.console").new { to = "/dev/null" }
-- local guest <close> = require("ckvm.launch").new { image = "\xeb\xfe", console = con } -- jmp .
-- assert(guest:run { timeout = 0.2 } == "timeout")
function launch.run(self, options)
  options = options or {}
  check.options("run", options, RUN)
  local timeout <const> = options.timeout or 0
  if timeout < 0 or timeout ~= timeout then
    error(("run: timeout: %s is not a time from now on"):format(timeout), 2)
  end
  local deadline <const> = options.timeout and ckvm.now() + options.timeout
  while true do
    local left <const> = deadline and math.max(deadline - ckvm.now(), 0)
    local why, vcpu, value = run_until_look(self, left)
    if value == "reset" and options.reboot ~= false then
      launch.reset(self)
    elseif why ~= "timeout" and value ~= LOOKED_AT then
      return why, vcpu, value
    elseif self.machine.irqchip and sleeps_for_good(self) then
      return "hlt", vcpu or self.machine.vcpus[1]
    elseif deadline and ckvm.now() >= deadline then
      return "timeout", vcpu or self.machine.vcpus[1]
    end
  end
end

--- Calls a function, once, if the guest has printed nothing by then: while it runs, or when it runs
-- again. Where it has ended before, nothing is called.
-- @tparam table self the guest
-- @tparam number seconds how many seconds from now on
-- @tparam function handler what is called, without arguments
-- @treturn watch as from `vm:after`
-- @raise what `vm:after` raises
-- @usage
-- local con = require("ckvm.console").new { to = "/dev/null" }
-- local guest <close> = require("ckvm.launch").new { image = "\xeb\xfe", console = con } -- jmp .
-- guest:when_silent(0.2, function() print "nothing yet" end)
-- guest:run { timeout = 0.5 }
function launch.when_silent(self, seconds, handler)
  check.argument("seconds", seconds, "number")
  check.argument("handler", handler, "function")
  local timer
  check.blame(function()
    timer = self.machine.vm:after(seconds, function()
      if not self.printed then handler() end
    end)
  end)
  return timer
end

-- The end --------------------------------------------------------------------

local EXIT <const> = 60 -- the system call of Linux; the status is in rdi
local CHOSEN <const> = { hlt = true, poweroff = true, reset = true, quit = true }

-- A program of ring 3 that exits, as on Linux.
local function is_exit(value)
  return type(value) == "table" and value.name == "syscall" and value.number == EXIT
end

local function place(vcpu)
  local exits <const> = vcpu.stats.total
  return ("at rip 0x%x after %d exit%s"):format(vcpu.regs.rip, exits, exits == 1 and "" or "s")
end

--- Tells how a guest has ended. The arguments are what `run` has returned.
-- @tparam table self the guest
-- @tparam string why it has
-- @tparam vcpu vcpu that has
-- @tparam[opt] any value that it was stopped with
-- @treturn integer a status for a process: 0 for an end of the guest's own choice, 1 for others;
-- or its own, of 8 bits, by port 0xf4 or, in ring 3, by system call 60 with the status in rdi
-- @treturn string|nil a line, where there is more to say than a status or a screen does
-- @treturn[opt] string a screen about a guest that has died, by `ckvm.report`
-- @raise what `report.describe` raises
-- @usage
-- local con = require("ckvm.console").new { to = "/dev/null" }
-- local guest <close> = require("ckvm.launch").new { image = "\xf4", console = con }
-- print(guest:ending(guest:run { timeout = 10 })) -- 0	hlt at rip 0x7c01 after 1 exit
function launch.ending(self, why, vcpu, value)
  if math.type(value) == "integer" then return value & 0xff end
  if is_exit(value) then return vcpu.regs.rdi & 0xff end
  local word <const> = value or why
  if CHOSEN[word] or type(value) == "string" then
    return CHOSEN[word] and 0 or 1, ("%s %s"):format(word, place(vcpu))
  end
  local line <const> = type(value) == "table" and value.text or nil
  return 1, line, report.describe(self.machine.vm, vcpu, why)
end

--- Closes the guest's machine and its console: the terminal is what it was.
-- @tparam table self the guest
-- @raise only for misuse
-- @usage
-- local con = require("ckvm.console").new { to = "/dev/null" }
-- require("ckvm.launch").new({ image = "\xf4", console = con }):close()
function launch.close(self)
  if self.bios then self.bios:close() end
  if self.machine then self.machine:close() end
  if self.console then self.console:close() end
end

meta.__close = launch.close

return launch

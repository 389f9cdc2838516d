--- The BIOS of a PC, answered by the host, so that a boot sector runs without firmware.
--
-- Interrupts 10h to 1Ah lead to code at 0xf0000 that traps to the host by port 0xb1. The host does
-- what the registers ask for, and puts the results there; flags go to the stack, for IRET. What a
-- service has not got is refused as a BIOS does it: with the carry flag and AH 0x86, on the disk AH
-- 1; INT 10h leaves the registers as they are. `note` is told. An interrupt without a service, as
-- exceptions are, stops the vCPU with a text that names it and where the guest is.
--
-- INT 10h is a text screen of 80 x 25 in memory at 0xb8000, with one page and no other mode, and
-- the same on a terminal, by `output`: what is written as on a teletype goes out byte by byte as it
-- is (in code page 437); moves of the cursor are escape sequences of ANSI, sent when something is
-- written there or a key is waited for. What scrolls in a window, or is written without moving the
-- cursor, is drawn anew. Colors are in memory alone, and so is what a guest writes to memory.
--
-- INT 13h is one disk: 0x80, or 0 if its size is a floppy disk's; hard disks have the extensions
-- (41h to 44h, 48h). INT 15h: the size of memory (88h, E801h) and its map (E820h), moving (87h),
-- address line 20, and waiting (86h), which takes real time. INT 16h: what `type` was given, or
-- `input` returns. Who waits sleeps in the host for 10 ms at most at a time, so that limits, kicks
-- and what the VM watches are served meanwhile. INT 1Ah: ticks by `time`, and a clock,
-- `ckvm.dev.rtc`, which a guest can set. INT 11h and 12h: equipment, memory below 640 KiB. INT 14h
-- and 17h have nothing. There are no interrupts of devices: the ticks at 0x46c go on by themselves,
-- but no hook is called, unless there is a `timer` and the guest waits for it by HLT.
-- @module ckvm.bios
-- @usage
-- local sector = "\xb8\x21\x0e\xcd\x10" -- mov $0x0e21, %ax; int $0x10: an exclamation mark
--   .. "\xf4" -- hlt
-- local disk = require("ckvm.disk").new(sector .. ("\0"):rep(510 - #sector) .. "\x55\xaa")
-- local m <close> = require("ckvm.machine").new { memory = 1 << 20 }
-- local bios = require("ckvm.bios").install(m.vm, {
--   memory = 1 << 20, disk = disk, output = function(bytes) io.write(bytes) end,
-- })
-- bios:boot(m.vcpus[1])
-- assert(m:run { timeout = 10 } == "hlt")
local boot = require "ckvm.boot"
local check = require "ckvm.check"
local ckvm = require "ckvm"
local clock = require "ckvm.bios.clock"
local dev = require "ckvm.dev"
local image = require "ckvm.bios.image"
local keyboard = require "ckvm.bios.keyboard"
local rom = require "ckvm.bios.rom"
local rtc = require "ckvm.dev.rtc"
local screen = require "ckvm.bios.screen"
local services = require "ckvm.bios.services"

local bios = {}
local meta = { __index = bios }

local LEAST <const>, MOST <const> = 1 << 20, 4 << 30 -- bytes of memory
local TICK <const> = 65536 / 1193182 -- seconds
local INTERRUPTS_ON <const> = 0x202 -- as a boot sector finds RFLAGS

local RESET <const> = {
  keys = "", -- typed, and beyond what the guest's buffer holds
  ticks = 0, day = 0, -- to be added to the time's; the day of the last look
  row = 0, column = 0, -- where the terminal's cursor is
}

-- The BIOS -----------------------------------------------------------------------

-- The host's time, with fractions of a second.
local function host_time()
  local start = os.time() - ckvm.now()
  return function() return start + ckvm.now() end
end

local OPTIONS <const> = {
  memory = "integer", above = "integer?", disk = "table?", output = "function?",
  input = "function?", time = "function?", rtc = "table?", note = "function?",
  unhandled = "function?", reboot = "function?", ticks = "boolean?",
  timer = "boolean?",
}

local function check_disk(disk)
  for _, name in ipairs { "sectors", "cylinders", "heads", "sectors_per_track" } do
    local value <const> = disk[name]
    if math.type(value) ~= "integer" or value < 1 then
      error(("disk: %s: %s is no number from 1 on"):format(name, tostring(value)), 4)
    end
  end
end

local function check_values(options)
  if options.memory < LEAST or options.memory > MOST then
    error(("memory: 0x%x is not between 0x%x and 0x%x"):format(options.memory, LEAST, MOST), 3)
  elseif (options.above or 0) < 0 then
    error(("above: %d is less than 0"):format(options.above), 3)
  end
  if options.disk then check_disk(options.disk) end
end

-- Puts memory back to what firmware leaves.
local function put_back(self)
  rom.write(self)
  screen.reset(self)
  clock.start(self)
end

-- Brings the ticks up to date while the guest runs, for one that only looks at them.
local function tick(self)
  clock.update(self)
  if not self.closed then self.ticking = self.vm:after(TICK, function() tick(self) end) end
end

-- In an eventfd's place, where the BIOS is closed: a script's function may do that amid a call.
local GONE <const> = { wait = dev.ignore, signal = dev.ignore, close = dev.ignore }

local function make(vm, options)
  local time = options.time or host_time()
  local disk <const> = options.disk
  return setmetatable({
    vm = vm, memory = options.memory, above = options.above or 0,
    disk = disk, drive = disk and (disk.floppy and 0 or 0x80),
    output = options.output or dev.ignore, input = options.input or dev.ignore,
    time = time, rtc = options.rtc or rtc.new { time = time },
    note = options.note or dev.ignore, timer = options.timer,
    unhandled = options.unhandled or function(vcpu, text) vcpu:stop(text) end,
    reboot = options.reboot or function(vcpu) vcpu:stop "reboot" end,
    typed = GONE, never = GONE, deadlines = setmetatable({}, { __mode = "k" }),
    state = dev.copy(RESET),
  }, meta)
end

-- Has the port answered. Eventfds are signaled when keys are typed, and never.
local function attach(self)
  self.vm:read(0, LEAST)
  self.range = self.vm:attach_io { port = rom.PORT, write = function(_, _, _, vcpu)
    services.trap(self, vcpu)
  end }
  self.typed = ckvm.eventfd()
  self.never = ckvm.eventfd()
  if self.timer then
    self.vm:on("hlt", function(_, vcpu) return not self.closed and clock.sleep(self, vcpu) end)
  end
end

--- Puts a BIOS into a VM: its code, the interrupt vectors and the data area into memory, and
-- what answers them at port 0xb1.
-- @tparam vm vm with memory from address 0 on
-- @tparam table options
-- @tparam integer options.memory bytes of memory from address 0 on, 1 MiB to 4 GiB
-- @tparam[opt=0] integer options.above bytes of memory from 4 GiB on
-- @tparam[opt] table options.disk as from `ckvm.disk`
-- @tparam[opt] fun(bytes:string) options.output called with what a terminal is to show
-- @tparam[opt] fun():string|nil options.input called when the guest looks for a key and there is
-- none: returns what is typed then, if anything
-- @tparam[opt] fun():number options.time called for the seconds since 1970, UTC; if left out, the
-- host's clock tells them
-- @tparam[opt=true] boolean options.ticks has the ticks at 0x46c go on while the guest runs;
-- otherwise it is when a service is called
-- @tparam[opt=false] boolean options.timer has HLT with interrupts on last until the next tick,
-- which is INT 8 and calls INT 1Ch; otherwise it ends the run. For VMs without an irqchip
-- @tparam[opt] table options.rtc the clock of INT 1Ah, as from `ckvm.dev.rtc`, if the guest has one
-- at its ports
-- @tparam[opt] fun(text:string) options.note called with what the guest has asked for and not got
-- @tparam[opt] fun(vcpu:vcpu,text:string) options.unhandled called for an interrupt that nothing
-- serves; otherwise the vCPU stops with the text
-- @tparam[opt] fun(vcpu:vcpu) options.reboot called for INT 19h and a jump to the reset vector,
-- FFFF:0; otherwise the vCPU stops with "reboot"
-- @treturn table the BIOS, with a field `rtc`
-- @raise a string for wrong options, and where there is no memory; what `vm:attach_io` and
-- `vm:after` raise
-- @usage
-- local vm = ckvm.open():create_vm()
-- vm:add_memory { gpa = 0, size = 1 << 20 }
-- local bios = require("ckvm.bios").install(vm, { memory = 1 << 20 })
function bios.install(vm, options)
  check.argument("vm", vm, "ckvm VM")
  check.options("bios", options, OPTIONS)
  check_values(options)
  local self = make(vm, options)
  local _ <close> = check.at_error(function() self:close() end)
  check.blame(function() attach(self) end)
  put_back(self)
  if options.ticks ~= false then check.blame(function() tick(self) end) end
  return self
end

-- Booting ------------------------------------------------------------------------

local IMAGE <const> = {
  image = "string", name = "string?", format = "string?", cmdline = "string?", modules = "table?",
}

--- Boots the disk: puts the memory of the BIOS back to what it was, the first sector to 0x7c00, and
-- the vCPU to its start there, in real mode, with the number of the disk in DL. Keys that were
-- typed stay.
--
-- With an image it boots that as a boot loader does, and the disk is there for what it asks of it.
-- The image is one of the formats `"linux16"` and `"sector"` of `ckvm.boot`.
-- @tparam vcpu vcpu that is to start
-- @tparam[opt] table options
-- @tparam string options.image bytes of the image
-- @tparam[opt="image"] string options.name of the image, for messages
-- @tparam[opt] string options.format its format, for what `ckvm.boot.detect` takes for another
-- @tparam[opt] string options.cmdline its command line
-- @tparam[opt] table options.modules a list of `{ bytes = }`: the initrd
-- @raise a string for a closed BIOS; one that names the disk, if there is none, it cannot be
-- read, or its first sector has not 0x55 0xaa at 510; one that names the image, and says what is
-- wrong with it; what `ckvm.boot.load` and `ckvm.boot.enter` raise
-- @usage
-- local m <close> = require("ckvm.machine").new { memory = 1 << 20 }
-- local disk = require("ckvm.disk").new("\xf4" .. ("\0"):rep(509) .. "\x55\xaa") -- hlt
-- local bios = require("ckvm.bios").install(m.vm, { memory = 1 << 20, disk = disk })
-- bios:boot(m.vcpus[1])
-- assert(m:run { timeout = 10 } == "hlt")
function bios:boot(vcpu, options)
  check.argument("vcpu", vcpu, "ckvm vCPU")
  if options ~= nil then check.options("boot", options, IMAGE) end
  if self.closed then error("bios: closed", 2) end
  local start
  check.blame(function() start = image.load(self, options) end)
  start.regs.rflags = start.regs.rflags or INTERRUPTS_ON
  keyboard.take_back(self)
  put_back(self)
  check.blame(function() boot.enter(vcpu, start) end)
end

--- Puts the memory of the BIOS back to what it was, for a guest that is started anew in another way
-- than by `boot`. Keys that were typed stay.
-- @raise a string for a closed BIOS; what writing memory raises
-- @usage
-- local m <close> = require("ckvm.machine").new { memory = 1 << 20, code = "\xf4" }
-- local bios = require("ckvm.bios").install(m.vm, { memory = 1 << 20 })
-- m:run { timeout = 10 }
-- m:reset()
-- bios:reset()
function bios:reset()
  if self.closed then error("bios: closed", 2) end
  keyboard.take_back(self)
  check.blame(function() put_back(self) end)
end

--- Types on the keyboard: characters as a terminal sends them, on the keys of a US keyboard, with
-- the usual escape sequences for keys that have none. They wait until the guest asks for them; the
-- end of a line is Enter, and 0x7f Backspace.
-- @tparam string bytes what is typed
-- @raise only for misuse; a string for a closed BIOS
-- @usage
-- local bios = require("ckvm.bios").install(
--   require("ckvm.machine").new({ memory = 1 << 20 }).vm, { memory = 1 << 20 })
-- bios:type "dir\n"
function bios:type(bytes)
  check.argument("bytes", bytes, "string")
  if self.closed then error("bios: closed", 2) end
  keyboard.type(self, bytes)
end

--- The state that is not in the guest's memory, without that of the clock, `bios.rtc`. A wait of
-- INT 15h that goes on is over where the state is loaded.
-- @treturn table a plain table, for `load`
-- @raise only for misuse
-- @usage
-- local bios = require("ckvm.bios").install(
--   require("ckvm.machine").new({ memory = 1 << 20 }).vm, { memory = 1 << 20 })
-- assert(bios:save().keys == "")
function bios:save()
  return dev.copy(self.state)
end

--- Takes a state that `save` has returned.
-- @tparam table state what `save` has returned
-- @raise for what is no state of a BIOS
-- @usage
-- local bios = require("ckvm.bios").install(
--   require("ckvm.machine").new({ memory = 1 << 20 }).vm, { memory = 1 << 20 })
-- bios:load(bios:save())
function bios:load(state)
  local copy <const> = dev.restore(state, RESET)
  if #copy.keys % 2 ~= 0 then
    error(("state: keys: %d bytes, where each key has two"):format(#copy.keys), 2)
  end
  self.state = copy
end

--- Ends it: nothing answers the guest's next call, whose exit ends the run, and the ticks stand.
-- The guest's memory stays as it is, and the disk open. It may be closed twice, and before or after
-- the VM; where it is not, its two eventfds are closed when it is collected.
-- @raise only for misuse
-- @usage
-- local m <close> = require("ckvm.machine").new { memory = 1 << 20 }
-- local bios <close> = require("ckvm.bios").install(m.vm, { memory = 1 << 20 })
-- bios:close()
function bios:close()
  self.closed = true
  if self.ticking then self.ticking:detach() end
  if self.range then self.range:detach() end
  self.typed:close()
  self.never:close()
  self.typed, self.never = GONE, GONE
end

meta.__close = bios.close

return bios

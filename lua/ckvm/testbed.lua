--- A machine for test guests of the kind that KVM's own tests are: "flats", images of Multiboot
-- that talk to a test device and say by port 0xf4 what became of them.
--
-- The functions that take a testbed are its methods: `bed:run()`, and `local bed <close>`.
--
-- What a guest finds: the kernel's interrupt controllers, as a BIOS leaves them, and its PIT; a
-- serial port at 0x3f8; `ckvm.dev.test` at 0xe0 and 0x2000, and memory at 0xff000000 that is not
-- mapped; clock, keyboard controller, and the ports that reset a PC. Where nobody is, it reads all
-- ones. Its command line begins with the image's name, and its one module is its environment, a
-- line each: `NR_CPUS=`, `MEMSIZE=` in MiB, `TEST_DEVICE=1`, `BOOTLOADER=0`.
-- @module ckvm.testbed
-- @usage
-- local bed <close> = require("ckvm.testbed").new { image = flat, write = io.write }
-- assert(bed:run { timeout = 10 } == 1)
local boot = require "ckvm.boot"
local ckvm = require "ckvm"
local debug_exit = require "ckvm.dev.debug_exit"
local check = require "ckvm.check"
local dev = require "ckvm.dev"
local i8042 = require "ckvm.dev.i8042"
local machine = require "ckvm.machine"
local pm = require "ckvm.dev.pm"
local port92 = require "ckvm.dev.port92"
local ram = require "ckvm.dev.ram"
local rtc = require "ckvm.dev.rtc"
local test = require "ckvm.dev.test"
local uart = require "ckvm.dev.uart"
local x86 = require "ckvm.x86"

local testbed = {}
local meta = { __index = testbed }

local PAGE <const>, HOLE <const> = 0x1000, 3 << 30 -- where a machine's low memory ends
local RAM <const>, RAM_SIZE <const> = 0xff000000, 0x10000
local TSS <const> = 0xfffbd000 -- three pages that old CPUs of Intel need, where no memory is
local PICS <const> = { pic_master = 0x08, pic_slave = 0x70 } -- their first vectors
local SHUTDOWN_CODE <const>, RESET_VECTOR <const> = 0x0f, 0x467 -- in CMOS, in memory
local OFF <const>, RESET <const> = 0, "reset" -- what a run is stopped with, beside odd codes

-- Devices --------------------------------------------------------------------

local function stop(self, value) self.machine.vcpus[1]:stop(value) end

local function irq(self, line, level) self.machine.vm:irq_line { irq = line, level = level } end

local function zap(self, gpa)
  if gpa + PAGE <= math.min(self.memory, HOLE) then self.machine.vm:zap_memory(gpa, PAGE) end
end

-- Bochs' way to switch off, byte by byte.
local function shutdown_port(off)
  local said = ""
  return { port = 0x8900, write = function(_, value)
    said = (said .. string.char(value & 0xff)):sub(-#"Shutdown")
    if said == "Shutdown" then off() end
  end }
end

-- PM1a control of a PIIX4: with SLP_EN, sleep type 0 is off.
local function power_port(off)
  return { port = 0xb004, count = 2, write = function(_, value)
    if value & 0x3c00 == 0x2000 then off() end
  end }
end

local function devices(self, write)
  local function off() stop(self, OFF) end
  local function reset() stop(self, RESET) end
  local function line(number) return function(level) irq(self, number, level) end end
  local keyboard = i8042.new { reset = reset, irq = line(1) }
  local tester = test.new {
    irq = function(number, level) irq(self, number, level) end,
    zap = function(gpa) zap(self, gpa) end,
  }
  self.cmos = rtc.new { memory = self.memory }
  return {
    { port = 0x3f8, count = 8, device = uart.new { write = write, irq = line(4) } },
    { port = 0xf4, count = 4, device = debug_exit.new { exit = function(status)
      stop(self, status)
    end } },
    { port = 0xe0, count = 12, device = tester },
    { port = 0x2000, count = 24, device = tester.lines },
    { gpa = RAM, size = RAM_SIZE, device = ram.new { size = RAM_SIZE } },
    { port = 0x60, device = keyboard }, { port = 0x64, device = keyboard.command_port },
    { port = 0x70, count = 2, device = self.cmos },
    { port = 0xcf9, device = pm.new({ reset = reset }).reset_register },
    { port = 0x92, device = port92.new { reset = reset } },
    power_port(off), shutdown_port(off),
  }
end

-- The configuration space of PCI included.
local function answer_the_rest(vm)
  for _, name in ipairs { "io_in", "mmio_read" } do vm:on(name, function() return -1 end) end
  for _, name in ipairs { "io_out", "mmio_write" } do vm:on(name, dev.ignore) end
end

-- Making ---------------------------------------------------------------------

local function environment(memory, cpus)
  return ("NR_CPUS=%d\nMEMSIZE=%d\nTEST_DEVICE=1\nBOOTLOADER=0\n"):format(cpus, memory >> 20)
end

local OPTIONS <const> = {
  image = "string", name = "string?", args = "string?", memory = "integer?", cpus = "integer?",
  write = "function?", kvm = "userdata?",
}

local function check_image(bytes)
  local format <const>, why <const> = boot.detect(bytes)
  if format == "multiboot" then return end
  local other = why and why:match "^[^:]+" -- what it is, without the advice
    or format ~= "flat" and ("is of the format '%s'"):format(format)
  error("image: is no image of Multiboot 1, as test guests are" .. (other and "; it " .. other
    or ""), 3)
end

--- Makes a machine with a test guest in it, ready to run.
-- @tparam table options
-- @tparam string options.image bytes of the guest: an image of Multiboot 1
-- @tparam[opt="image"] string options.name of the image
-- @tparam[opt] string options.args the command line, behind the name
-- @tparam[opt=0x8000000] integer options.memory bytes, whole pages, 1 MiB at least
-- @tparam[opt=1] integer options.cpus how many vCPUs, each in a thread of its own
-- @tparam[opt] fun(bytes:string) options.write called with what the guest sends to its serial port
-- @tparam[opt] kvm options.kvm the system; if left out, it is opened
-- @treturn table the testbed; its field `machine` is the machine
-- @raise what the calls raise that it makes; a string for a wrong option or image
-- @usage
-- local bed <close> = require("ckvm.testbed").new { image = flat, args = "smp 2", cpus = 2 }
function testbed.new(options)
  check.options("testbed", options, OPTIONS)
  check_image(options.image)
  local name <const>, cpus <const> = options.name or "image", options.cpus or 1
  local self = setmetatable({ memory = options.memory or 128 << 20 }, meta)
  local config <const> = {
    image = options.image, name = name, memory = self.memory, cpus = cpus, irqchip = true,
    cmdline = options.args and name .. " " .. options.args or name, kvm = options.kvm,
    modules = { { cmdline = "environment", bytes = environment(self.memory, cpus) } },
    devices = devices(self, options.write),
  }
  check.blame(function() self.machine = machine.new(config) end)
  local vm <const> = self.machine.vm
  vm:set_tss_addr(TSS)
  for chip, vector in pairs(PICS) do
    vm:set_irqchip { chip_id = chip, irq_base = vector, init4 = 1, imr = 0 }
  end
  answer_the_rest(vm)
  return self
end

-- Running --------------------------------------------------------------------

-- As a BIOS after a reset that the guest has prepared: it goes on where it says, in real mode.
-- Returns false for one that it has not.
local function resume(self)
  local vm <const>, vcpus <const> = self.machine.vm, self.machine.vcpus
  self.cmos:write(0, SHUTDOWN_CODE, 1)
  local code = self.cmos:read(1, 1)
  if code ~= 5 and code ~= 10 then return false end
  local ip, cs = string.unpack("<I2I2", vm:read(RESET_VECTOR, 4))
  for i, vcpu in ipairs(vcpus) do vcpu:set_mp_state(i > 1 and "uninitialized" or "runnable") end
  x86.enter(vcpus[1], "real", { rip = ip })
  vcpus[1]:set_sregs { cs = { base = cs << 4, selector = cs } }
  return true
end

local function place(vcpu)
  return ("vCPU %d at 0x%x"):format(vcpu.id, vcpu.sregs.cs.base + vcpu.regs.rip)
end

local function describe(self, why, vcpu)
  if why == "shutdown" then return "triple fault, " .. place(vcpu) end
  if why == "internal_error" then
    return ("%s %d, %s"):format(why, vcpu.exit.suberror, place(vcpu))
  elseif why ~= "timeout" then
    return why .. ", " .. place(vcpu)
  end
  local places = {}
  for i, one in ipairs(self.machine.vcpus) do places[i] = place(one) end
  return "no end in time, " .. table.concat(places, ", ")
end

--- Runs the guest to its end. After a reset that it has prepared as for a BIOS, by CMOS memory and
-- the address at 0x467, it goes on.
-- @tparam table self the testbed
-- @tparam[opt] table options
-- @tparam[opt] number options.timeout seconds; if left out, it may run for ever
-- @treturn integer|nil the value `code << 1 | 1` of the code that it wrote to port 0xf4: 1 is pass,
-- 3 fail; 0 if it has switched itself off; nil if it has ended in another way, or not
-- @treturn string|nil in which way
-- @raise what `vm:run` raises
-- @usage
-- local bed <close> = require("ckvm.testbed").new { image = flat }
-- local status, how = bed:run { timeout = 10 }
-- print(status or how)
function testbed.run(self, options)
  local timeout <const> = (options or {}).timeout
  if timeout and type(timeout) ~= "number" then
    error(("run: timeout: number expected, got %s"):format(type(timeout)), 2)
  end
  local deadline <const> = timeout and ckvm.now() + timeout
  local why, vcpu, value
  repeat
    why, vcpu, value = self.machine:run {
      timeout = deadline and math.max(deadline - ckvm.now(), 0),
    }
  until value ~= RESET or not resume(self)
  if why ~= "stopped" then return nil, describe(self, why, vcpu) end
  if value == RESET then return nil, "the guest resets itself" end
  return value
end

--- Closes the machine.
-- @tparam table self the testbed
-- @raise only for misuse
-- @usage
-- require("ckvm.testbed").new({ image = flat }):close()
function testbed.close(self) self.machine:close() end

meta.__close = testbed.close

return testbed

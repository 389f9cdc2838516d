-- The kinds of guests of ckvm.launch: each makes the machine with the devices that such a guest
-- looks for, and gives what is typed to one of them.

local bios = require "ckvm.bios"
local debug_exit = require "ckvm.dev.debug_exit"
local debugcon = require "ckvm.dev.debugcon"
local disk = require "ckvm.disk"
local machine = require "ckvm.machine"
local pc = require "ckvm.pc"
local uart = require "ckvm.dev.uart"

local guests = {}

local SERIAL <const> = 0x3f8
local HOLE <const> = 3 << 30 -- where a machine's low memory ends
local MOST_KEYS <const> = 4096 -- bytes that the BIOS is given at once
local FIRST <const>, SCREEN <const> = 0x500, 0xa0000 -- what a BIOS leaves to a guest

-- Of images that are Linux, unless told.
local CMDLINE <const> = { bzimage = "console=ttyS0", pvh = "console=ttyS0" }

-- What has the guest stop with this value.
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
  config.memory, config.cpus, config.trace = options.memory, options.cpus, options.trace
  config.kvm = options.kvm
  return machine.new(config)
end

-- All that a PC has, with interrupts: for kernels and firmware.
function guests.pc(self)
  local options <const>, is_bios <const> = self.options, self.format == "bios"
  local devices = pc.new {
    memory = options.memory, cpus = options.cpus, output = self.write, ready = self.ready,
    disk = options.disk, poweroff = stopper(self, "poweroff"), reset = stopper(self, "reset"),
  }
  for _, device in ipairs { debug_devices(self) } do table.insert(devices, device) end
  self.machine = machine_of(self, {
    name = options.name, image = options.image, format = self.format, irqchip = true,
    devices = devices, cmdline = options.cmdline or CMDLINE[self.format],
    acpi = not is_bios and pc.ACPI or nil,
    modules = options.initrd and { { bytes = options.initrd } } or nil,
  })
  self.console:connect(self.machine.vm, devices.uart)
end

-- Code that is no image, with a serial port.
function guests.code(self)
  local options <const> = self.options
  local port = uart.new { write = self.write, ready = self.ready }
  self.machine = machine_of(self, {
    mode = options.mode, code = options.image, at = options.at,
    devices = { { port = SERIAL, count = 8, device = port }, debug_devices(self) },
  })
  self.console:connect(self.machine.vm, port)
end

-- What is typed, for the BIOS: more when the guest has taken all but what its own buffer holds.
local function keyboard_of(services)
  return {
    room = function() return services:save().keys == "" and MOST_KEYS or 0 end,
    receive = function(_, bytes)
      services:type(bytes)
      return #bytes
    end,
  }
end

-- For the BIOS: the disk, or an image in the place of that.
local function booter(self)
  local options <const>, vcpu <const> = self.options, self.machine.vcpus[1]
  local image <const> = self.format == "linux16" and {
    image = options.image, name = options.name, format = self.format, cmdline = options.cmdline,
    modules = options.initrd and { { bytes = options.initrd } } or nil,
  } or nil
  return function() self.bios:boot(vcpu, image) end
end

-- Bare code that the BIOS would be written over.
local function check_place(self)
  local options <const>, at <const> = self.options, self.machine.at
  if at < FIRST or #options.image > SCREEN - at then
    error(("%s: 0x%x bytes at 0x%x are not between 0x%x and 0x%x, all that a BIOS leaves"):format(
      options.name or "image", #options.image, at, FIRST, SCREEN), 0)
  end
end

-- 16-bit code, with a BIOS in Lua, whose keyboard is the console; or what that boots.
function guests.real(self)
  local options <const>, boots <const> = self.options, self.format ~= "flat"
  local devices = { debug_devices(self) }
  table.insert(devices, { port = SERIAL, count = 8, device = uart.new { write = self.write } })
  if boots then table.insert(devices, pc.EMPTY_BUSES) end
  self.machine = machine_of(self, {
    code = not boots and options.image or nil, at = options.at, devices = devices,
  })
  if not boots then check_place(self) end
  local vm <const> = self.machine.vm
  self.bios = bios.install(vm, {
    memory = math.min(options.memory, HOLE), above = math.max(options.memory - HOLE, 0),
    disk = options.disk or self.format == "sector" and disk.new(options.image) or nil,
    output = self.write, input = self.ready, timer = boots, reboot = stopper(self, "reset"),
    unhandled = function(caller, text) caller:stop { text = text } end,
  })
  if boots then
    self.boot = booter(self)
    self.boot()
  end
  self.console:connect(vm, keyboard_of(self.bios))
end

return guests

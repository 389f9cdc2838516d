--- The devices of a PC, for `ckvm.machine`: what firmware and Linux expect beside the processor,
-- its memory, and the interrupt controllers and the timer of the kernel.
--
-- There are the keyboard at ports 0x60 and 0x64 (line 1), with A20 and reset at 0x92; the clock at
-- 0x70 (line 8), whose CMOS memory has the memory's size; the serial port at 0x3f8 (line 4); power
-- management at 0x600 (line 9), and its reset at 0xcf9; the PCI bus at 0xcf8, with its host bridge;
-- fw_cfg at 0x510, for firmware, and a console at 0x402, for what it says to those who debug it. If
-- there is a disk, it is at 0x1f0 and 0x3f6 (line 14), and its controller on the bus at 00:01.0.
-- What a script adds to the bus interrupts by lines 10 and 11, as `ckvm.dev.pci.line` has them.
--
-- Where nothing is, the guest reads ones, as on the buses of a PC.
--
-- Firmware is told to use the serial port for its screen and keyboard, to offer no menu, and to
-- stay where it is when there is nothing to boot. All devices but the clock, which goes on, are
-- after a reset of the machine what they were when it was made.
-- @module ckvm.pc
-- @usage
-- local pc = require "ckvm.pc"
-- local devices = pc.new { memory = 64 << 20, output = function(bytes) io.write(bytes) end }
-- local firmware = ("\xf4"):rep(0xfff0) .. "\xea\0\0\0\xf0" .. ("\0"):rep(11) -- hlt; its start
-- local m <close> = require("ckvm.machine").new {
--   memory = 64 << 20, irqchip = true, image = firmware, devices = devices,
-- }
-- assert(m:run { timeout = 0.1 } == "timeout") -- it halts: no interrupt wakes it
local ata = require "ckvm.dev.ata"
local check = require "ckvm.check"
local debugcon = require "ckvm.dev.debugcon"
local dev = require "ckvm.dev"
local fw_cfg = require "ckvm.dev.fw_cfg"
local i8042 = require "ckvm.dev.i8042"
local pci = require "ckvm.dev.pci"
local pm = require "ckvm.dev.pm"
local port92 = require "ckvm.dev.port92"
local rtc = require "ckvm.dev.rtc"
local uart = require "ckvm.dev.uart"

local pc = {}

--- What ACPI tables tell of these devices: for `acpi` of `ckvm.machine`, with images that are not
-- firmware.
-- @field ckvm.pc.ACPI
pc.ACPI = {
  reset = 0xcf9, rtc = true, i8042 = true, pci = true, uarts = { { port = 0x3f8, irq = 4 } },
}

--- The buses of a PC where no device is: for `devices` of any machine. What nobody answers is read
-- as ones, and writes are lost.
-- @field ckvm.pc.EMPTY_BUSES
pc.EMPTY_BUSES = {}

local HOLE <const>, ABOVE <const> = 3 << 30, 4 << 30 -- as ckvm.machine has memory
local SERIAL <const> = 0x3f8
local LINE <const> = { keyboard = 1, serial = 4, clock = 8, power = 9, disk = 14 }

-- Parts --------------------------------------------------------------------------

-- What ckvm.machine takes for a device: a model at its ports, which is after a reset what it was at
-- first, unless it has a reset of its own.
local part = {}
part.__index = part

function part:attach(vm)
  if self.wiring.vm and self.wiring.vm ~= vm then
    error("pc: these devices are in another machine", 0)
  end
  self.wiring.vm = vm
  for _, range in ipairs(self.ranges) do vm:attach_io(range) end
  self.model:load(self.model:save()) -- which tells of its interrupt line
end

function part:save() return self.model:save() end
function part:load(state) self.model:load(state) end

local function add(self, name, model, ranges)
  self[name] = model
  for _, range in ipairs(ranges) do range.device = range.device or model end
  table.insert(self, setmetatable({
    wiring = self.wiring, model = model, ranges = ranges,
    reset = model.reset and function() model:reset() end,
  }, part))
end

local function ones() return -1 end

function pc.EMPTY_BUSES.attach(_, vm)
  vm:on("io_in", ones)
  vm:on("mmio_read", ones)
  vm:on("io_out", dev.ignore)
  vm:on("mmio_write", dev.ignore)
end

-- An interrupt line, of a VM that there is not yet.
local function line(wiring, number)
  return function(level)
    if wiring.vm then wiring.vm:irq_line { irq = number, level = level } end
  end
end

-- What firmware is told ----------------------------------------------------------

local ITEM <const> = { memory = 3, cpus = 5, most_cpus = 0x0f }
local RAM <const> = 1 -- in the map of memory

local function memory_map(size)
  local map = string.pack("<I8I8I4", 0, math.min(size, HOLE), RAM)
  if size <= HOLE then return map end
  return map .. string.pack("<I8I8I4", ABOVE, size - HOLE, RAM)
end

local function new_fw_cfg(options)
  local cpus <const> = string.pack("<I2", options.cpus or 1)
  local files = {
    ["etc/e820"] = memory_map(options.memory),
    ["etc/sercon-port"] = string.pack("<I8", SERIAL),
    ["etc/show-boot-menu"] = string.pack("<I8", 0),
    ["etc/boot-fail-wait"] = string.pack("<I4", 0xffffffff), -- for ever
  }
  for name, bytes in pairs(options.files or {}) do files[name] = bytes end
  return fw_cfg.new {
    items = {
      [ITEM.memory] = string.pack("<I8", options.memory), [ITEM.cpus] = cpus,
      [ITEM.most_cpus] = cpus,
    },
    files = files,
  }
end

-- The disk -----------------------------------------------------------------------

-- An IDE controller, 8086:7010 (of the Intel 82371SB), with its first channel at the old ports, and
-- no DMA. That the channel is on stands at 0x40.
local CONTROLLER <const> = string.pack("<I2I2 I2I2 BBI2 BBBB", 0x8086, 0x7010, 1, 0x0280, 0, 0,
  0x0101, 0, 0, 0, 0) .. ("\0"):rep(0x30) .. string.pack("<I2", 0x8000)

local function add_disk(self, disk)
  local model = ata.new { disk = disk, irq = line(self.wiring, LINE.disk) }
  self.pci:add { device = 1, config = CONTROLLER }
  add(self, "disk", model,
    { { port = 0x1f0, count = 8 }, { port = 0x3f6, device = model.control_port } })
end

-- All of it ----------------------------------------------------------------------

local function add_keyboard(self, reset)
  local model = i8042.new { irq = line(self.wiring, LINE.keyboard), reset = reset }
  add(self, "keyboard", model, { { port = 0x60 }, { port = 0x64, device = model.command_port } })
  add(self, "port92", port92.new { reset = reset }, { { port = 0x92 } })
end

local function add_consoles(self, options)
  local model <const> = uart.new {
    irq = line(self.wiring, LINE.serial), write = options.output, ready = options.ready,
  }
  add(self, "uart", model, { { port = SERIAL, count = 8 } })
  add(self, "debugcon", debugcon.new { write = options.debug }, { { port = 0x402 } })
end

local function add_power(self, poweroff, reset)
  local model = pm.new { irq = line(self.wiring, LINE.power), poweroff = poweroff, reset = reset }
  add(self, "pm", model, { { port = 0x600, count = 12 } })
end

local function add_clock(self, memory)
  local wiring <const> = self.wiring
  local model = rtc.new {
    memory = math.min(memory, HOLE), irq = line(wiring, LINE.clock),
    after = function(...) return wiring.vm and wiring.vm:after(...) end,
  }
  add(self, "rtc", model, { { port = 0x70, count = 2 } })
end

local function add_all(self, options)
  add_keyboard(self, options.reset)
  add_clock(self, options.memory)
  add_consoles(self, options)
  add(self, "fw_cfg", new_fw_cfg(options), { { port = 0x510, count = 2 } })
  add_power(self, options.poweroff, options.reset)
  add(self, "pci", pci.new { reset_register = self.pm.reset_register },
    { { port = 0xcf8, count = 8 } })
  if options.disk then add_disk(self, options.disk) end
  table.insert(self, pc.EMPTY_BUSES)
end

local function check_values(options)
  if options.memory < 1 << 20 then
    error(("pc: memory: 0x%x is less than 1 MiB"):format(options.memory), 3)
  elseif (options.cpus or 1) < 1 or (options.cpus or 1) > 255 then
    error(("pc: cpus: %d is not between 1 and 255"):format(options.cpus), 3)
  end
end

--- Makes the devices, for one machine that has an irqchip. They are the list, and by name its
-- fields: `keyboard`, `port92`, `rtc`, `uart`, `debugcon`, `fw_cfg`, `pm`, `pci`, and `disk` if
-- there is one, each as its module in `ckvm.dev` has it.
-- @tparam table options
-- @tparam integer options.memory bytes, as the machine has them
-- @tparam[opt=1] integer options.cpus how many the machine has
-- @tparam[opt] table options.disk what the sectors of the hard disk are in, as for `ckvm.dev.ata`
-- @tparam[opt] fun(bytes:string) options.output called with what the guest sends to the serial port
-- @tparam[opt] fun() options.ready called when the guest has made room for more bytes in the serial
-- port's `receive`
-- @tparam[opt] fun(byte:string) options.debug called with what firmware says for debugging
-- @tparam[opt] fun() options.poweroff called when the guest switches itself off
-- @tparam[opt] fun() options.reset called when the guest resets itself
-- @tparam[opt] table options.files more files for firmware, by name, as for `ckvm.dev.fw_cfg`
-- @treturn table a list for `devices` of `ckvm.machine`
-- @raise only for misuse
-- @usage
-- local pc = require "ckvm.pc"
-- local disk = { sectors = 2048 }
-- function disk:read(first, count) return ("\0"):rep(512 * count) end
-- local devices = pc.new { memory = 64 << 20, disk = disk, debug = io.write }
-- devices.uart:receive "typed"
function pc.new(options)
  check.options("pc", options, {
    memory = "integer", cpus = "integer?", disk = "table?", output = "function?",
    ready = "function?", debug = "function?", poweroff = "function?", reset = "function?",
    files = "table?",
  })
  check_values(options)
  local self = { wiring = {} }
  check.blame(function() add_all(self, options) end)
  return self
end

return pc

--- The PCI bus of a PC as the guest finds it: configuration mechanism 1 at eight ports from 0xcf8
-- on, and the host bridge 8086:1237 (Intel 440FX) at 00:00.0. Its subsystem, 1af4:1100, tells
-- firmware that it runs in a virtual machine that speaks as QEMU does, with `ckvm.dev.fw_cfg`.
--
-- A function on the bus is its configuration space of 256 bytes, with a mask of the bits that the
-- guest may write. What is behind its BARs, a script attaches, and moves when `changed` tells of a
-- write, and so it does with interrupts, by `pci.line`. There is bus 0 alone: no bridges to others,
-- no registers that route interrupts, no configuration by memory (ECAM). Of the 440FX's own
-- registers there is none, so that nothing shadows ROM.
--
-- Port 0xcf9 is in the midst of these and yet not of PCI: accesses of it go to `reset_register`,
-- such as that of `ckvm.dev.pm`.
-- @module ckvm.dev.pci
-- @usage
-- local bus = require("ckvm.dev.pci").new {}
-- bus:add { device = 3, config = string.pack("<I2I2I4I4", 0x1234, 0x1111, 0, 0xff000000) }
-- vm:attach_io { port = 0xcf8, count = 8, device = bus }
local check = require "ckvm.check"
local dev = require "ckvm.dev"

local pci = {}

local SIZE <const> = 256 -- of a configuration space
local ENABLE <const> = 1 << 31
local ADDRESS_MASK <const> = 0x80fffffc
local ABSENT <const> = 0xff
local RESET_REGISTER <const>, DATA <const> = 1, 4 -- offsets of ports

local function pad(bytes, size)
  return bytes .. ("\0"):rep((size or SIZE) - #bytes)
end

local SUBSYSTEM <const> = 0x2c -- offset of its numbers
local BRIDGE <const> = pad(string.pack("<I2I2 I2I2 BBI2", 0x8086, 0x1237, 0x0006, 0x0280, 2, 0,
  0x0600), SUBSYSTEM) .. string.pack("<I2I2", 0x1af4, 0x1100)

-- Command (ports, memory, master, no INTx), cache line and latency, interrupt line. BARs are where
-- the device has them.
local WRITABLE <const> = pad(("\0"):rep(4) .. "\x07\x04" .. ("\0"):rep(6) .. "\xff\xff"
  .. ("\0"):rep(0x3c - 0xe) .. "\xff")

local function name_of(device, func)
  return ("%02x.%x"):format(device, func)
end

-- The configuration ----------------------------------------------------------------

-- The function that the address is of, which may be none, and the register in it.
local function target(self, port)
  local address <const> = self.state.address
  if address & ENABLE == 0 or address >> 16 & 0xff ~= 0 then return nil end
  return name_of(address >> 11 & 31, address >> 8 & 7), (address & 0xfc) + port - DATA
end

local function read_byte(self, port)
  local name, register = target(self, port)
  local config = name and self.state[name]
  return config and config:byte(register + 1) or ABSENT
end

local function write_byte(self, port, byte)
  local name, register = target(self, port)
  local config = name and self.state[name]
  if not config then return end
  local mask <const> = self.functions[name].writable:byte(register + 1)
  local value = config:byte(register + 1) & ~mask | byte & mask
  self.state[name] = config:sub(1, register) .. string.char(value) .. config:sub(register + 2)
end

local REGISTERS <const> = {
  [RESET_REGISTER] = {
    read = function(self) return self.reset_register:read(0, 1) end,
    write = function(self, byte) self.reset_register:write(0, byte, 1) end,
  },
}
for port = DATA, DATA + 3 do
  REGISTERS[port] = {
    read = function(self) return read_byte(self, port) end,
    write = function(self, byte) write_byte(self, port, byte) end,
  }
end

-- The address is there for accesses of four bytes only.
local function is_address(offset, size)
  return offset == 0 and size == 4
end

-- The device -----------------------------------------------------------------------

local no_register <const> = { read = function() return ABSENT end, write = dev.ignore }

--- A bus with the host bridge.
-- @tparam table options
-- @tparam[opt] table options.reset_register the device that is at port 0xcf9
-- @treturn table the device
-- @raise only for misuse
-- @usage
-- local pm = require("ckvm.dev.pm").new { reset = function() vcpu:stop "reset" end }
-- local bus = require("ckvm.dev.pci").new { reset_register = pm.reset_register }
-- vm:attach_io { port = 0xcf8, count = 8, device = bus }
function pci.new(options)
  dev.check("pci", options, { reset_register = "table?" })
  local self = setmetatable({
    reset_register = options.reset_register or no_register, functions = {},
    state = { address = 0 },
  }, { __index = pci })
  self:add { device = 0, config = BRIDGE }
  return self
end

local function check_range(name, value, first, last)
  if value < first or value > last then
    error(("pci: %s: %d is not between %d and %d"):format(name, value, first, last), 3)
  end
end

local LINES <const> = { [0] = 10, 10, 11, 11 }

--- The interrupt line that a pin of a device is wired to on a PC: 10 or 11, which other devices
-- share. It is level-triggered, and up while any of them has it up, which is for who calls
-- `vm:irq_line` to see to: KVM keeps the level of the last call. Firmware that knows this bridge
-- has its lines so, and `ckvm.acpi` tells the same.
-- @tparam integer device number, 0 to 31
-- @tparam[opt=1] integer pin 1 to 4, INTA to INTD, as in byte 0x3d of the configuration
-- @treturn integer number of the line, and GSI
-- @raise only for misuse
-- @usage
-- local pci = require "ckvm.dev.pci"
-- local function irq(level) vm:irq_line { irq = pci.line(3), level = level } end
-- assert(pci.line(3) == 11 and pci.line(3, 4) == 10)
function pci.line(device, pin)
  if pin == nil then pin = 1 end
  check.argument("device", device, "integer")
  check.argument("pin", pin, "integer")
  check_range("device", device, 0, 31)
  check_range("pin", pin, 1, 4)
  return LINES[device - 1 + pin - 1 & 3]
end

local function check_bytes(name, bytes)
  if #bytes > SIZE then
    error(("pci: %s: %d bytes are more than %d"):format(name, #bytes, SIZE), 3)
  end
end

--- Adds a function of a device to the bus.
--
-- `writable` has a byte for each of `config`, in which the bits that the guest may write are set:
-- for a BAR of 4 KiB, 0xfffff000, by which the guest finds its size out. Unless told, the BARs
-- stay as they are, and what has no function of its own in a header of type 0 can be written: the
-- command register, cache line, latency and interrupt line.
-- @tparam table options
-- @tparam integer options.device number, 0 to 31
-- @tparam[opt=0] integer options.func number, 0 to 7; a device with more than 0 has bit 7 of byte
-- 0x0e set
-- @tparam string options.config configuration space; up to 256 bytes, the rest is 0
-- @tparam[opt] string options.writable mask of the bits that can be written
-- @tparam[opt] fun(config:string) options.changed called after each write with what `config` is
-- @raise only for misuse: there is such a function, or no such number
-- @usage
-- local bus = require("ckvm.dev.pci").new {}
-- bus:add {
--   device = 3,
--   config = string.pack("<I2I2I4I4 I4I4", 0x1234, 0x1111, 0, 0xff000000, 0, 0xe0000000),
--   writable = string.pack("<I2I2I4I4 I4I4", 0, 0, 7, 0, 0, 0xfffff000),
--   changed = function(config) print(string.unpack("<I4", config, 0x11)) end,
-- }
function pci:add(options)
  dev.check("pci", options, {
    device = "integer", func = "integer?", config = "string", writable = "string?",
    changed = "function?",
  })
  local device, func = options.device, options.func or 0
  check_range("device", device, 0, 31)
  check_range("func", func, 0, 7)
  check_bytes("config", options.config)
  check_bytes("writable", options.writable or "")
  local name = name_of(device, func)
  if self.state[name] then error(("pci: there is a function %s"):format(name), 2) end
  self.state[name] = pad(options.config)
  self.functions[name] = {
    writable = pad(options.writable or WRITABLE), changed = options.changed or dev.ignore,
  }
end

--- Answers a read of the guest.
-- @tparam integer offset in bytes from port 0xcf8, 0 to 7
-- @tparam integer size bytes to read: 1, 2 or 4
-- @treturn integer the value; all ones where there is no function
-- @raise what `reset_register` raises
-- @usage
-- local bus = require("ckvm.dev.pci").new {}
-- bus:write(0, 0x80000000, 4)
-- assert(bus:read(4, 4) == 0x12378086)
function pci:read(offset, size)
  if is_address(offset, size) then return self.state.address end
  return dev.read(self, REGISTERS, offset, size)
end

--- Takes a write of the guest.
-- @tparam integer offset in bytes from port 0xcf8, 0 to 7
-- @tparam integer value the bytes that are written, little-endian
-- @tparam integer size bytes to write: 1, 2 or 4
-- @raise what `changed` and `reset_register` raise
-- @usage
-- local bus = require("ckvm.dev.pci").new {}
-- bus:write(0, 0x8000003c, 4)
-- bus:write(4, 11, 1) -- the interrupt line of the bridge
function pci:write(offset, value, size)
  if is_address(offset, size) then
    self.state.address = value & ADDRESS_MASK
    return
  end
  dev.write(self, REGISTERS, offset, value, size)
  local name = offset < DATA + 4 and offset + size > DATA and target(self, DATA)
  if name and self.state[name] then self.functions[name].changed(self.state[name]) end
end

--- The state of the bus: the address, and the configuration of all functions.
-- @treturn table a plain table, for `load`
-- @raise only for misuse
-- @usage
-- local state = require("ckvm.dev.pci").new({}):save()
-- assert(#state["00.0"] == 256)
function pci:save()
  return dev.copy(self.state)
end

--- Puts the bus into a state that `save` has returned, and tells each `changed`.
-- @tparam table state what `save` has returned
-- @raise for the state of a bus with other functions, and what `changed` raises
-- @usage
-- local bus = require("ckvm.dev.pci").new {}
-- bus:load(bus:save())
function pci:load(state)
  local limits = { address = { 0, ADDRESS_MASK } }
  for name in pairs(self.functions) do limits[name] = { SIZE, SIZE } end
  self.state = dev.restore(state, self.state, limits)
  for name, entry in pairs(self.functions) do entry.changed(self.state[name]) end
end

return pci

--- What the device models share, and what a script can use for models of its own.
--
-- A device is a table with `read(self, offset, size)` and `write(self, offset, value, size)`, for
-- `vm:attach_io` and `vm:attach_mmio`. It knows no VM and no vCPU: functions that it was given
-- carry out what it does, such as `irq`, which gets the new level of its interrupt line. Its state
-- is one flat table, `self.state`, which `save` and `load` copy. Guests are hostile, so that every
-- offset, size and value gets an answer; errors are for scripts.
-- @module ckvm.dev
-- @usage
-- local uart = require("ckvm.dev.uart").new {
--   irq = function(level) print("interrupt line", level) end,
--   write = function(bytes) io.write(bytes) end,
-- }
-- vm:attach_io { port = 0x2f8, count = 8, device = uart }
local dev = {}

local check = require "ckvm.check"

local ABSENT <const> = 0xff -- what the bus has where nobody drives it

local function type_of(value)
  return math.type(value) or type(value)
end

--- Checks the options that a model's `new` was given, and blames who called that: it is
-- `ckvm.check.options`.
-- @tparam string name of the model, for messages
-- @tparam table options what is checked
-- @tparam table types the type of each option, by its name
-- @raise only for misuse: a string that names the option
-- @usage
-- local function new(options)
--   dev.check("lamp", options, { irq = "function?", color = "string" })
--   return setmetatable({ state = { lit = false } }, { __index = options })
-- end
-- new { color = "red" }
function dev.check(name, options, types)
  return check.options(name, options, types) -- a tail call: the caller's caller is blamed
end

--- Does nothing: what a device calls where no function was given.
-- @raise never
-- @usage
-- local options = {}
-- local irq = options.irq or dev.ignore
-- irq(true)
function dev.ignore() end

--- Copies a device's state, which is a flat table of numbers, strings and booleans.
-- @tparam table state of a device
-- @treturn table a fresh table with the same in it
-- @raise only for misuse
-- @usage
-- local state = { command = 0, queue = "" }
-- assert(dev.copy(state) ~= state and dev.copy(state).queue == "")
function dev.copy(state)
  local copy = {}
  for key, value in pairs(state) do copy[key] = value end
  return copy
end

-- What is wrong with a value, if anything is.
local function beyond(value, first, last)
  local is_string <const> = type(value) == "string"
  local number <const> = is_string and #value or value
  if number >= first and number <= last then return nil end
  return ("%s%s not between %d and %d"):format(number, is_string and " bytes are" or " is", first,
    last)
end

--- Copies a state that a model's `load` was given, and blames who called that where it is not of
-- the model: it may come from a file that anybody has written.
-- @tparam table state what `save` has returned
-- @tparam table like a state of the model: the same keys, and values of the same types
-- @tparam[opt] table limits by key, `{ first, last }`: what a number may be, and how many bytes a
-- string may have; what is left out may be anything
-- @treturn table a copy of `state`
-- @raise only for misuse: a string that names the key
-- @usage
-- local state = dev.restore({ command = 7 }, { command = 0 }, { command = { 0, 0xff } })
-- assert(state.command == 7)
function dev.restore(state, like, limits)
  if type(state) ~= "table" then
    error(("state: table expected, got %s"):format(type_of(state)), 3)
  end
  local copy <const> = dev.copy(state) -- first: a metatable's answers may change
  for key in pairs(copy) do
    if like[key] == nil then error(("state: unknown key '%s'"):format(tostring(key)), 3) end
  end
  for key, value in pairs(like) do
    if type_of(copy[key]) ~= type_of(value) then
      error(("state: %s: %s expected, got %s"):format(key, type_of(value), type_of(copy[key])), 3)
    end
  end
  for key, limit in pairs(limits or {}) do
    local wrong <const> = beyond(copy[key], limit[1], limit[2])
    if wrong then error(("state: %s: %s"):format(key, wrong), 3) end
  end
  return copy
end

--- Reads registers of a byte each. A wider access is one byte after the other, as the ISA bus does
-- it; where there is no register, it reads all ones.
-- @tparam table device that the registers are of
-- @tparam table registers by offset: `{ read = function(device), write = function(device, byte) }`
-- @tparam integer offset of the first byte
-- @tparam integer size bytes to read
-- @treturn integer the value, little-endian
-- @raise what the registers' functions raise
-- @usage
-- local registers = { [0] = { read = function(lamp) return lamp.state.lit and 1 or 0 end } }
-- assert(dev.read({ state = { lit = true } }, registers, 0, 2) == 0xff01)
function dev.read(device, registers, offset, size)
  local value = 0
  for i = 0, size - 1 do
    local register = registers[offset + i]
    local byte = register and register.read and register.read(device) or ABSENT
    value = value | (byte & 0xff) << 8 * i
  end
  return value
end

--- Writes registers of a byte each, the first one first. Where there is no register, nothing
-- happens.
-- @tparam table device that the registers are of
-- @tparam table registers by offset: `{ read = function(device), write = function(device, byte) }`
-- @tparam integer offset of the first byte
-- @tparam integer value the bytes that are written, little-endian
-- @tparam integer size bytes to write
-- @raise what the registers' functions raise
-- @usage
-- local function switch(lamp, byte) lamp.lit = byte & 1 == 1 end
-- local lamp = {}
-- dev.write(lamp, { [1] = { write = switch } }, 0, 0x0100, 2)
-- assert(lamp.lit)
function dev.write(device, registers, offset, value, size)
  for i = 0, size - 1 do
    local register = registers[offset + i]
    if register and register.write then register.write(device, value >> 8 * i & 0xff) end
  end
end

return dev

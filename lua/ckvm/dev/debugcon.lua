--- A console for debugging: port 0xe9, as Bochs has it. What the guest writes there is a byte of
-- its output, and it reads 0xe9, by which firmware and kernels find out that it is there.
-- @module ckvm.dev.debugcon
-- @usage
-- local debugcon = require("ckvm.dev.debugcon").new { write = function(byte) io.write(byte) end }
-- vm:attach_io { port = 0xe9, device = debugcon }
local dev = require "ckvm.dev"

local debugcon = {}

local HERE <const> = 0xe9 -- also where the port is elsewhere

local REGISTERS <const> = {
  [0] = {
    read = function() return HERE end,
    write = function(self, byte) self.output(string.char(byte)) end,
  },
}

--- A console.
-- @tparam table options
-- @tparam[opt] fun(byte:string) options.write called with what the guest writes, a byte a call
-- @treturn table the device
-- @raise only for misuse
-- @usage
-- local text = {}
-- local debugcon = require("ckvm.dev.debugcon").new {
--   write = function(byte) table.insert(text, byte) end,
-- }
-- vm:attach_io { port = 0xe9, device = debugcon }
function debugcon.new(options)
  dev.check("debugcon", options, { write = "function?" })
  return setmetatable({ output = options.write or dev.ignore }, { __index = debugcon })
end

--- Answers a read of the guest.
-- @tparam integer offset in bytes from the port: 0
-- @tparam integer size bytes to read: 1, 2 or 4
-- @treturn integer the value, 0xe9 in its lowest byte
-- @raise never
-- @usage
-- assert(require("ckvm.dev.debugcon").new({}):read(0, 1) == 0xe9)
function debugcon:read(offset, size)
  return dev.read(self, REGISTERS, offset, size)
end

--- Takes a write of the guest, of which only the byte at the port counts.
-- @tparam integer offset in bytes from the port: 0
-- @tparam integer value the bytes that are written, little-endian
-- @tparam integer size bytes to write: 1, 2 or 4
-- @raise what `write` raises
-- @usage
-- require("ckvm.dev.debugcon").new({ write = io.write }):write(0, 0x41, 1)
function debugcon:write(offset, value, size)
  dev.write(self, REGISTERS, offset, value, size)
end

--- The state of the device: none, so that all devices are saved alike.
-- @treturn table an empty table
-- @raise never
-- @usage
-- assert(next(require("ckvm.dev.debugcon").new({}):save()) == nil)
function debugcon:save() -- luacheck: no self
  return {}
end

--- Takes a state back, of which there is none.
-- @tparam table state what `save` has returned
-- @raise for what is no state of this device
-- @usage
-- require("ckvm.dev.debugcon").new({}):load {}
function debugcon:load(state) -- luacheck: no self
  dev.restore(state, {})
end

return debugcon

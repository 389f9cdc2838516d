--- System control port A of a PC, port 0x92: bit 0 resets the CPU, and bit 1 is address line 20,
-- which is on at first. That is the fast way to either; `ckvm.dev.i8042` has the other one.
-- @module ckvm.dev.port92
-- @usage
-- local port92 = require("ckvm.dev.port92").new { reset = function() vcpu:stop "reset" end }
-- vm:attach_io { port = 0x92, device = port92 }
local dev = require "ckvm.dev"

local port92 = {}

local RESET_CPU <const>, A20 <const> = 1, 2
local KEPT <const> = A20 | 0x08 -- and the lock of the password

local RESET <const>, LIMITS <const> = { value = A20 }, { value = { 0, KEPT } }

-- The bit of the reset does not stay: what is reset is the CPU, and not for long.
local function write(self, byte)
  local changed = byte ~ self.state.value
  self.state.value = byte & KEPT
  if changed & A20 ~= 0 then self.a20(byte & A20 ~= 0) end
  if byte & RESET_CPU ~= 0 then self.on_reset() end
end

local REGISTERS <const> = {
  [0] = { read = function(self) return self.state.value end, write = write },
}

--- A port with address line 20 on.
-- @tparam table options
-- @tparam[opt] fun() options.reset called when the guest resets itself
-- @tparam[opt] fun(on:boolean) options.a20 called when the guest switches address line 20; KVM has
-- it on always
-- @treturn table the device
-- @raise only for misuse
-- @usage
-- local port92 = require("ckvm.dev.port92").new { reset = function() vcpu:stop "reset" end }
-- vm:attach_io { port = 0x92, device = port92 }
function port92.new(options)
  dev.check("port92", options, { reset = "function?", a20 = "function?" })
  return setmetatable({
    on_reset = options.reset or dev.ignore, a20 = options.a20 or dev.ignore,
    state = dev.copy(RESET),
  }, { __index = port92 })
end

--- Answers a read of the guest.
-- @tparam integer offset in bytes from the port: 0
-- @tparam integer size bytes to read: 1, 2 or 4
-- @treturn integer the value
-- @raise never
-- @usage
-- assert(require("ckvm.dev.port92").new({}):read(0, 1) == 2)
function port92:read(offset, size)
  return dev.read(self, REGISTERS, offset, size)
end

--- Takes a write of the guest, of which only the byte at the port counts.
-- @tparam integer offset in bytes from the port: 0
-- @tparam integer value the bytes that are written, little-endian
-- @tparam integer size bytes to write: 1, 2 or 4
-- @raise what `reset` and `a20` raise
-- @usage
-- local port92 = require("ckvm.dev.port92").new { reset = function() print "reset" end }
-- port92:write(0, 1, 1)
function port92:write(offset, value, size)
  dev.write(self, REGISTERS, offset, value, size)
end

--- The state of the device.
-- @treturn table a plain table, for `load`
-- @raise only for misuse
-- @usage
-- assert(require("ckvm.dev.port92").new({}):save().value == 2)
function port92:save()
  return dev.copy(self.state)
end

--- Puts the device into a state that `save` has returned.
-- @tparam table state what `save` has returned
-- @raise for what is no state of this device
-- @usage
-- local port92 = require("ckvm.dev.port92").new {}
-- port92:load(port92:save())
function port92:load(state)
  self.state = dev.restore(state, RESET, LIMITS)
end

return port92

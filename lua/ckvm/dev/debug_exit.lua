--- A way out for test programs: ports 0xf4 to 0xf7, as QEMU's isa-debug-exit. What the guest
-- writes there, v, ends it with status v << 1 | 1, which is never 0, so that no other end is
-- taken for it.
-- @module ckvm.dev.debug_exit
-- @usage
-- local debug_exit = require("ckvm.dev.debug_exit").new {
--   exit = function(status) vcpu:stop(status) end,
-- }
-- vm:attach_io { port = 0xf4, count = 4, device = debug_exit }
local dev = require "ckvm.dev"

local debug_exit = {}

--- A way out.
-- @tparam table options
-- @tparam fun(status:integer) options.exit called with the status of up to 33 bits; of a
-- process's, the lowest 8 count
-- @treturn table the device
-- @raise only for misuse
-- @usage
-- local debug_exit = require("ckvm.dev.debug_exit").new { exit = print }
-- vm:attach_io { port = 0x501, device = debug_exit }
function debug_exit.new(options)
  dev.check("debug_exit", options, { exit = "function" })
  return setmetatable({ exit = options.exit }, { __index = debug_exit })
end

--- Answers a read of the guest, with 0.
-- @tparam integer offset in bytes from the first port, of no importance
-- @tparam integer size bytes to read, of no importance
-- @treturn integer the value 0
-- @raise never
-- @usage
-- assert(require("ckvm.dev.debug_exit").new({ exit = print }):read(0, 1) == 0)
function debug_exit:read(_, _) -- luacheck: no self
  return 0
end

--- Takes a write of the guest, at any of the ports.
-- @tparam integer offset in bytes from the first port, of no importance
-- @tparam integer value the bytes that are written, little-endian
-- @tparam integer size bytes to write: 1, 2 or 4
-- @raise what `exit` raises
-- @usage
-- require("ckvm.dev.debug_exit").new({ exit = print }):write(0, 0x10, 1) -- prints 33
function debug_exit:write(_, value, size)
  self.exit((value & (1 << 8 * size) - 1) << 1 | 1)
end

--- The state of the device: none, so that all devices are saved alike.
-- @treturn table an empty table
-- @raise never
-- @usage
-- assert(next(require("ckvm.dev.debug_exit").new({ exit = print }):save()) == nil)
function debug_exit:save() -- luacheck: no self
  return {}
end

--- Takes a state back, of which there is none.
-- @tparam table state what `save` has returned
-- @raise for what is no state of this device
-- @usage
-- require("ckvm.dev.debug_exit").new({ exit = print }):load {}
function debug_exit:load(state) -- luacheck: no self
  dev.restore(state, {})
end

return debug_exit

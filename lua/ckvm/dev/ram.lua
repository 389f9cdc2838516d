--- Memory that no guest has mapped: every access to it is an exit. It is what tests of MMIO read
-- and write, since it tells what became of each byte, and whether it came in the right order.
-- @module ckvm.dev.ram
-- @usage
-- local ram = require("ckvm.dev.ram").new { size = 0x10000 }
-- vm:attach_mmio { gpa = 0xff000000, size = 0x10000, device = ram }
local dev = require "ckvm.dev"

local ram = {}

local MOST <const> = 1 << 20 -- bytes, as each takes room in a table

--- Memory, full of zeros.
-- @tparam table options
-- @tparam integer options.size bytes, 1 MiB at most
-- @treturn table the device
-- @raise only for misuse
-- @usage
-- local ram = require("ckvm.dev.ram").new { size = 0x1000 }
-- vm:attach_mmio { gpa = 0xd0000000, size = 0x1000, device = ram }
function ram.new(options)
  dev.check("ram", options, { size = "integer" })
  if options.size < 1 or options.size > MOST then
    error(("ram: size: %d is not between 1 and %d"):format(options.size, MOST), 2)
  end
  return setmetatable({ size = options.size, bytes = {} }, { __index = ram })
end

--- Answers a read of the guest. Beyond the end it reads all ones.
-- @tparam integer offset in bytes from the first address
-- @tparam integer size bytes to read: 1, 2, 4 or 8
-- @treturn integer the value, little-endian
-- @raise never
-- @usage
-- assert(require("ckvm.dev.ram").new({ size = 8 }):read(0, 8) == 0)
function ram:read(offset, size)
  local value = 0
  for i = 0, size - 1 do
    local inside <const> = math.ult(offset + i, self.size)
    value = value | (inside and self.bytes[offset + i] or inside and 0 or 0xff) << 8 * i
  end
  return value
end

--- Takes a write of the guest. Beyond the end nothing happens.
-- @tparam integer offset in bytes from the first address
-- @tparam integer value the bytes that are written, little-endian
-- @tparam integer size bytes to write: 1, 2, 4 or 8
-- @raise never
-- @usage
-- local ram = require("ckvm.dev.ram").new { size = 8 }
-- ram:write(4, 0x12345678, 4)
-- assert(ram:read(5, 2) == 0x3456)
function ram:write(offset, value, size)
  for i = 0, size - 1 do
    if math.ult(offset + i, self.size) then self.bytes[offset + i] = value >> 8 * i & 0xff end
  end
end

--- The state of the device.
-- @treturn table a plain table, for `load`
-- @raise never
-- @usage
-- assert(require("ckvm.dev.ram").new({ size = 2 }):save().bytes == "\0\0")
function ram:save()
  local bytes = {}
  for i = 1, self.size do bytes[i] = string.char(self.bytes[i - 1] or 0) end
  return { bytes = table.concat(bytes) }
end

--- Puts the device into a state that `save` has returned.
-- @tparam table state what `save` has returned
-- @raise for what is no state of memory of this size
-- @usage
-- local ram = require("ckvm.dev.ram").new { size = 0x1000 }
-- ram:load(ram:save())
function ram:load(state)
  local bytes <const> = dev.restore(state, { bytes = "" }).bytes
  if #bytes ~= self.size then
    error(("state: bytes: %d of them, for %d bytes of memory"):format(#bytes, self.size), 2)
  end
  self.bytes = {}
  for i = 1, #bytes do self.bytes[i - 1] = bytes:byte(i) end
end

return ram

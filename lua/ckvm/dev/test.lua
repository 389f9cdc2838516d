--- The device that KVM's own test guests talk to: a latch, a way to take pages from under the
-- guest, and switches for interrupt lines.
--
-- At twelve ports from 0xe0 on: the latch, four bytes that read back what was written by accesses
-- of any size (0xe0), a page to be taken away and put back (0xe4), and the latch once more (0xe8).
-- In the field `lines` is the device for 24 ports from 0x2000 on, a switch for each interrupt line.
-- The third part of it, 64 KiB of memory at 0xff000000 that is not mapped, is `ckvm.dev.ram`.
-- @module ckvm.dev.test
-- @usage
-- local test = require("ckvm.dev.test").new { -- of a VM with vm:create_irqchip()
--   irq = function(line, level) vm:irq_line { irq = line, level = level } end,
--   zap = function(gpa) vm:zap_memory(gpa, 0x1000) end,
-- }
-- vm:attach_io { port = 0xe0, count = 12, device = test }
-- vm:attach_io { port = 0x2000, count = 24, device = test.lines }
local dev = require "ckvm.dev"

local test = {}

local PAGE_MASK <const> = 0xfffff000
local ZAP <const>, SECOND_LATCH <const> = 4, 8 -- offsets of ports
local LINES <const> = 24 -- what an IOAPIC has

local RESET <const> = { latch = 0, levels = 0 } -- levels: bit n is line n's
local LIMITS <const> = { latch = { 0, 0xffffffff }, levels = { 0, (1 << LINES) - 1 } }

local function low_bytes(value, size)
  return value & (1 << 8 * size) - 1
end

-- The latch ----------------------------------------------------------------------

local REGISTERS <const> = {}

for i = 0, 3 do
  local shift <const> = 8 * i
  REGISTERS[i] = {
    read = function(self) return self.state.latch >> shift end,
    write = function(self, byte)
      self.state.latch = self.state.latch & ~(0xff << shift) | byte << shift
    end,
  }
  REGISTERS[SECOND_LATCH + i] = REGISTERS[i]
end

-- The lines ----------------------------------------------------------------------

local lines = {}

-- A line's level, in the lowest bit.
function lines:read(offset)
  return math.ult(offset, LINES) and self.device.state.levels >> offset & 1 or -1
end

-- A wide access is of one line: of the port that it begins at.
function lines:write(offset, value, size)
  if not math.ult(offset, LINES) then return end
  local state <const> = self.device.state
  local level <const> = low_bytes(value, size) ~= 0
  state.levels = state.levels & ~(1 << offset) | (level and 1 << offset or 0)
  self.device.irq(offset, level)
end

-- The device ---------------------------------------------------------------------

--- The device, with all lines low.
-- @tparam table options
-- @tparam[opt] fun(line:integer,level:boolean) options.irq called when the guest sets one of the
-- lines 0 to 23, to another level or to the same
-- @tparam[opt] fun(gpa:integer) options.zap called to take a page's mapping away, whose contents
-- are to stay; gpa is its address of 32 bits, whether memory is there or not
-- @treturn table the device; its field `lines` is the one for port 0x2000
-- @raise only for misuse
-- @usage
-- local test = require("ckvm.dev.test").new { zap = function(gpa) vm:zap_memory(gpa, 0x1000) end }
-- vm:attach_io { port = 0xe0, count = 12, device = test }
function test.new(options)
  dev.check("test", options, { irq = "function?", zap = "function?" })
  local self = setmetatable({
    irq = options.irq or dev.ignore, zap = options.zap or dev.ignore, state = dev.copy(RESET),
  }, { __index = test })
  self.lines = setmetatable({ device = self }, { __index = lines })
  return self
end

--- Answers a read of the guest.
-- @tparam integer offset in bytes from port 0xe0, 0 to 11
-- @tparam integer size bytes to read: 1, 2 or 4
-- @treturn integer the value
-- @raise never
-- @usage
-- assert(require("ckvm.dev.test").new({}):read(0, 4) == 0)
function test:read(offset, size)
  return dev.read(self, REGISTERS, offset, size)
end

--- Takes a write of the guest.
-- @tparam integer offset in bytes from port 0xe0, 0 to 11
-- @tparam integer value the bytes that are written, little-endian
-- @tparam integer size bytes to write: 1, 2 or 4
-- @raise what `zap` raises
-- @usage
-- local test = require("ckvm.dev.test").new { zap = function(gpa) assert(gpa == 0x5000) end }
-- test:write(0, 0x12345678, 4)
-- assert(test:read(1, 2) == 0x3456)
-- test:write(4, 0x5123, 4)
function test:write(offset, value, size)
  if offset == ZAP then return self.zap(low_bytes(value, size) & PAGE_MASK) end
  dev.write(self, REGISTERS, offset, value, size)
end

--- The state of the device.
-- @treturn table a plain table, for `load`
-- @raise never
-- @usage
-- assert(require("ckvm.dev.test").new({}):save().levels == 0)
function test:save()
  return dev.copy(self.state)
end

--- Puts the device into a state that `save` has returned, and tells `irq` the level of each line.
-- @tparam table state what `save` has returned
-- @raise for what is no state of this device, and what `irq` raises
-- @usage
-- local test = require("ckvm.dev.test").new {}
-- test:load(test:save())
function test:load(state)
  self.state = dev.restore(state, RESET, LIMITS)
  for line = 0, LINES - 1 do self.irq(line, self.state.levels >> line & 1 == 1) end
end

return test

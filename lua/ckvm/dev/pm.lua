--- Power management as ACPI has it, at twelve ports: the PM1a event block (base + 0), the PM1a
-- control block (base + 4) and the 24-bit PM timer (base + 8, 3.579545 MHz); and, as a device of
-- its own in the field `reset_register`, the reset register of PCs for port 0xcf9.
--
-- ACPI is on from the start, as it is where there is no SMI_CMD port. Of sleep types there is 5,
-- power off; SLP_EN with another one does nothing. Of events there are the timer, which the status
-- tells when the guest looks, but which brings no interrupt before that, and the power button.
-- There are no general-purpose events.
-- @module ckvm.dev.pm
-- @usage
-- local pm = require("ckvm.dev.pm").new {
--   poweroff = function() vcpu:stop "poweroff" end,
--   reset = function() vcpu:stop "reset" end,
-- }
-- vm:attach_io { port = 0x600, count = 12, device = pm }
-- vm:attach_io { port = 0xcf9, device = pm.reset_register }
local ckvm = require "ckvm"
local dev = require "ckvm.dev"

local pm = {}

local HZ <const> = 3579545
local TIMER_MASK <const> = 0xffffff
local HALF <const> = 23 -- the timer's event is a change of this bit
local EVENT <const> = { timer = 1, power_button = 0x100 } -- bits of status and enable
local STATUS_MASK <const>, ENABLE_MASK <const> = 0x8731, 0x0721
local SCI_EN <const>, CONTROL_MASK <const> = 1, 0x1c02 -- BM_RLD and SLP_TYP can be written
local SLP_EN <const>, SLP_TYP <const>, POWER_OFF <const> = 0x2000, 10, 5
local RESET_CPU <const>, RESET_MASK <const> = 4, 0x0a -- of 0xcf9

-- timer: what to add to the clock's ticks; half: of the timer, when the guest last looked.
local RESET <const> = {
  status = 0, enable = 0, control = 0, reset = 0, timer = 0, half = 0, level = false,
}

-- The timer wraps, so that it may be any number.
local LIMITS <const> = {
  status = { 0, STATUS_MASK }, enable = { 0, ENABLE_MASK }, control = { 0, CONTROL_MASK | SCI_EN },
  reset = { 0, RESET_MASK },
}

-- Events -----------------------------------------------------------------------

local function clock(self)
  return math.floor(self.time() * HZ)
end

local function ticks(self)
  return clock(self) + self.state.timer
end

local function update(self)
  local state = self.state
  local half = ticks(self) >> HALF
  if half ~= state.half then state.status = state.status | EVENT.timer end
  state.half = half
  local level = state.status & state.enable ~= 0
  if level == state.level then return end
  state.level = level
  self.irq(level)
end

-- Registers --------------------------------------------------------------------

-- Registers have two bytes. `write` gets the bits that are written, at their place, and those that
-- the other byte has.
local function bytes_of(registers, offset, name, write)
  for i = 0, 1 do
    local shift <const> = 8 * i
    registers[offset + i] = {
      read = function(self) return self.state[name] >> shift end,
      write = function(self, byte)
        write(self, byte << shift, self.state[name] & ~(0xff << shift))
      end,
    }
  end
end

local function write_control(self, value, rest)
  self.state.control = (value | rest) & CONTROL_MASK | SCI_EN
  if value & SLP_EN ~= 0 and value >> SLP_TYP & 7 == POWER_OFF then self.poweroff() end
end

-- Writing ones to the status clears them.
local function write_status(self, value)
  self.state.status = self.state.status & ~value & STATUS_MASK
end

local function write_enable(self, value, rest)
  self.state.enable = (value | rest) & ENABLE_MASK
end

local REGISTERS <const> = {
  [6] = { read = function() return 0 end }, [7] = { read = function() return 0 end },
}
bytes_of(REGISTERS, 0, "status", write_status)
bytes_of(REGISTERS, 2, "enable", write_enable)
bytes_of(REGISTERS, 4, "control", write_control)
for i = 0, 3 do
  REGISTERS[8 + i] = { read = function(self) return (self.now & TIMER_MASK) >> 8 * i end }
end

-- The reset register is clear after a reset, whatever became of it.
local function write_reset(self, byte)
  local state <const> = self.device.state
  state.reset = byte & RESET_CPU == 0 and byte & RESET_MASK or 0
  if byte & RESET_CPU ~= 0 then self.device.on_reset() end
end

local RESET_REGISTERS <const> = {
  [0] = { read = function(self) return self.device.state.reset end, write = write_reset },
}

local reset_register = {}

function reset_register:read(offset, size)
  return dev.read(self, RESET_REGISTERS, offset, size)
end

function reset_register:write(offset, value, size)
  dev.write(self, RESET_REGISTERS, offset, value, size)
end

-- The device -------------------------------------------------------------------

--- Power management, with a timer that begins at 0.
-- @tparam table options
-- @tparam[opt] fun() options.poweroff called when the guest switches itself off
-- @tparam[opt] fun() options.reset called when the guest resets itself by port 0xcf9
-- @tparam[opt] fun(level:boolean) options.irq called when the level of the SCI changes
-- @tparam[opt=ckvm.now] fun():number options.time called for the seconds that the timer counts in
-- @treturn table the device; its field `reset_register` is the one for port 0xcf9
-- @raise only for misuse
-- @usage
-- local pm = require("ckvm.dev.pm").new { poweroff = function() vcpu:stop "poweroff" end }
-- vm:attach_io { port = 0x600, count = 12, device = pm }
function pm.new(options)
  dev.check("pm", options, {
    poweroff = "function?", reset = "function?", irq = "function?", time = "function?",
  })
  local self = setmetatable({
    poweroff = options.poweroff or dev.ignore, on_reset = options.reset or dev.ignore,
    irq = options.irq or dev.ignore, time = options.time or ckvm.now, state = dev.copy(RESET),
  }, { __index = pm })
  self.state.control = SCI_EN
  self.state.timer = -clock(self)
  self.reset_register = setmetatable({ device = self }, { __index = reset_register })
  return self
end

--- Answers a read of the guest. The bytes of one access are of one time.
-- @tparam integer offset in bytes from the first port, 0 to 11
-- @tparam integer size bytes to read: 1, 2 or 4
-- @treturn integer the value
-- @raise what `irq` and `time` raise
-- @usage
-- local seconds = 0
-- local pm = require("ckvm.dev.pm").new { time = function() return seconds end }
-- seconds = 1
-- assert(pm:read(8, 4) == 3579545)
function pm:read(offset, size)
  update(self)
  self.now = ticks(self)
  return dev.read(self, REGISTERS, offset, size)
end

--- Takes a write of the guest.
-- @tparam integer offset in bytes from the first port, 0 to 11
-- @tparam integer value the bytes that are written, little-endian
-- @tparam integer size bytes to write: 1, 2 or 4
-- @raise what `poweroff`, `irq` and `time` raise
-- @usage
-- local pm = require("ckvm.dev.pm").new { poweroff = function() print "off" end }
-- pm:write(4, 1 << 13 | 5 << 10, 2)
function pm:write(offset, value, size)
  update(self) -- the timer's event, which the write may clear
  dev.write(self, REGISTERS, offset, value, size)
  update(self)
end

--- Presses the power button: an event that the guest is told of, if it has enabled that.
-- @raise what `irq` raises
-- @usage
-- local pm = require("ckvm.dev.pm").new {}
-- pm:press_power_button()
-- assert(pm:read(0, 2) == 0x100)
function pm:press_power_button()
  self.state.status = self.state.status | EVENT.power_button
  update(self)
end

--- The state of the device, with what the timer shows.
-- @treturn table a plain table, for `load`
-- @raise what `time` raises
-- @usage
-- assert(require("ckvm.dev.pm").new({}):save().enable == 0)
function pm:save()
  local state = dev.copy(self.state)
  state.timer = ticks(self)
  return state
end

--- Puts the device into a state that `save` has returned: the timer goes on from there. Tells `irq`
-- the level in it.
-- @tparam table state what `save` has returned
-- @raise for what is no state of this device, and what `irq` and `time` raise
-- @usage
-- local pm = require("ckvm.dev.pm").new {}
-- pm:load(pm:save())
function pm:load(state)
  local copy <const> = dev.restore(state, RESET, LIMITS)
  copy.timer = copy.timer - clock(self)
  self.state = copy
  self.irq(self.state.level)
end

return pm

--- A hard disk at the first IDE channel of a PC: eight ports from 0x1f0 on, one at 0x3f6, interrupt
-- line 14. It is device 0, and there is no other.
--
-- It speaks PIO, as ATA/ATAPI-6 has it: sectors read and written by LBA of 28 and 48 bits or by
-- cylinder, head and sector, one or several a block; IDENTIFY DEVICE, SET FEATURES, FLUSH CACHE,
-- diagnostics, power management of a disk that never sleeps, software reset. What takes a disk time
-- takes none here, so that the busy bit is seen during a reset alone. There is no DMA, no SMART, no
-- security, no host-protected area.
--
-- `disk` holds the sectors, of 512 bytes: `sectors` is how many, `disk:read(first, count)` returns
-- their bytes, `disk:write(first, bytes)` returns true, and nil and a message tell of a failure,
-- of which the guest gets an error bit. `disk.readonly` has the guest's writes aborted.
-- @module ckvm.dev.ata
-- @usage
-- local disk = { sectors = 1 }
-- function disk:read(first, count) return ("\0"):rep(512 * count) end
-- function disk:write(first, bytes) return true end
-- local ata = require("ckvm.dev.ata").new { disk = disk }
-- vm:attach_io { port = 0x1f0, count = 8, device = ata }
-- vm:attach_io { port = 0x3f6, device = ata.control_port }
local dev = require "ckvm.dev"
local identify = require "ckvm.dev.ata.identify"
local transfer = require "ckvm.dev.ata.transfer"

local ata = {}

local STATUS <const>, ERROR <const>, DEVICE <const> =
  transfer.STATUS, transfer.ERROR, transfer.DEVICE
local PASSED <const> = 1 -- in the error register: the diagnostics
local CONTROL <const> = { no_irq = 2, reset = 4, previous = 0x80 }
local DATA <const> = 0 -- offset of the port
local MOST_MULTIPLE <const> = 16 -- sectors a block

-- count, low, mid, high: the byte written last, and above it the one before, for 48 bits.
-- From `direction` on, it is what ckvm.dev.ata.transfer has.
local RESET <const> = {
  status = STATUS.ready, error = PASSED, features = 0, count = 1, low = 1, mid = 0, high = 0,
  device = 0, control = 0, pending = false, level = false, multiple = 0,
  direction = "", buffer = "", position = 0, first = 0, left = 0, block = 0, block_size = 1,
}

local BYTE <const>, PAIR <const> = { 0, 0xff }, { 0, 0xffff }
local BUFFER <const> = { 0, MOST_MULTIPLE * transfer.SECTOR }
local LIMITS <const> = {
  status = BYTE, error = BYTE, features = BYTE, device = BYTE, control = BYTE,
  count = PAIR, low = PAIR, mid = PAIR, high = PAIR, multiple = { 0, MOST_MULTIPLE },
  buffer = BUFFER, position = BUFFER, first = { 0, 1 << 48 }, left = { 0, 1 << 16 },
  block = { 0, MOST_MULTIPLE }, block_size = { 1, MOST_MULTIPLE },
}

-- Interrupts ---------------------------------------------------------------------

local function is_absent(state)
  return state.device & DEVICE.second ~= 0
end

local function update(self)
  local state = self.state
  local level = state.pending and state.control & CONTROL.no_irq == 0 and not is_absent(state)
  if level == state.level then return end
  state.level = level
  self.irq(level)
end

-- The signature of a disk, by which it is told from others.
local function sign(state)
  state.error, state.count, state.low, state.mid, state.high = PASSED, 1, 1, 0, 0
  state.device = 0
end

-- Commands -----------------------------------------------------------------------

local commands = {}

-- Those that move sectors, by how they do: with 48 bits, with several sectors a block.
local MOVING <const> = {
  [0x20] = { transfer.read, {} }, [0x24] = { transfer.read, { ext = true } },
  [0xc4] = { transfer.read, { multiple = true } },
  [0x29] = { transfer.read, { ext = true, multiple = true } },
  [0x30] = { transfer.write, {} }, [0x34] = { transfer.write, { ext = true } },
  [0xc5] = { transfer.write, { multiple = true } },
  [0x39] = { transfer.write, { ext = true, multiple = true } },
  [0x40] = { transfer.verify, {} }, [0x42] = { transfer.verify, { ext = true } },
}

for byte, entry in pairs(MOVING) do
  local move <const>, how <const> = table.unpack(entry)
  commands[byte] = function(self) move(self, how) end
end
-- The same without retries.
commands[0x21], commands[0x31], commands[0x41] = commands[0x20], commands[0x30], commands[0x40]

local function succeed(self) transfer.succeed(self.state) end
local function abort(self) transfer.fail(self.state, ERROR.aborted) end

commands[0xec] = function(self) -- IDENTIFY DEVICE
  transfer.offer(self.state, identify.words(self.disk.sectors, self.state.multiple, MOST_MULTIPLE))
end

commands[0xc6] = function(self) -- SET MULTIPLE MODE
  local state <const> = self.state
  local count <const> = state.count & 0xff
  if count > MOST_MULTIPLE or count & count - 1 ~= 0 then return abort(self) end
  state.multiple = count
  succeed(self)
end

-- What SET FEATURES sets: the write cache, on or off, and with 3 a mode of PIO. Neither means
-- anything here.
local FEATURES <const> = { [0x02] = true, [0x82] = true }
local MODE <const> = 3
local MODES <const> = {
  [0] = true, [1] = true, [8] = true, [9] = true, [10] = true, [11] = true, [12] = true,
}

commands[0xef] = function(self) -- SET FEATURES
  local features <const>, mode <const> = self.state.features, self.state.count & 0xff
  if not (FEATURES[features] or features == MODE and MODES[mode]) then return abort(self) end
  succeed(self)
end

commands[0x91] = function(self) -- INITIALIZE DEVICE PARAMETERS: the geometry that there is
  local state <const> = self.state
  local heads <const> = (state.device & DEVICE.head) + 1
  if heads ~= identify.HEADS or state.count & 0xff ~= identify.SECTORS then
    return abort(self)
  end
  succeed(self)
end

commands[0x90] = function(self) -- EXECUTE DEVICE DIAGNOSTIC
  sign(self.state)
  succeed(self)
end

commands[0xe5] = function(self) -- CHECK POWER MODE: active
  self.state.count = 0xff
  succeed(self)
end

-- RECALIBRATE, FLUSH CACHE, FLUSH CACHE EXT, STANDBY, IDLE, STANDBY and IDLE IMMEDIATE, SLEEP
for _, byte in ipairs { 0x10, 0xe7, 0xea, 0xe0, 0xe1, 0xe2, 0xe3, 0xe6 } do
  commands[byte] = succeed
end

local DIAGNOSTIC <const> = 0x90 -- which the absent device's place is to take, too

local function write_command(self, byte)
  local state <const> = self.state
  if state.control & CONTROL.reset ~= 0 or is_absent(state) and byte ~= DIAGNOSTIC then return end
  transfer.stop(state)
  state.error, state.pending = 0, false
  if commands[byte] then commands[byte](self) else abort(self) end
end

-- Registers ----------------------------------------------------------------------

-- In the place of a device that is absent the other one answers, and the status is 0.
local function status(self)
  return is_absent(self.state) and 0 or self.state.status
end

local function read_status(self)
  if not is_absent(self.state) then self.state.pending = false end
  return status(self)
end

local function write_control(self, byte)
  local state <const> = self.state
  local was_reset <const>, is_reset <const> = state.control & CONTROL.reset ~= 0,
    byte & CONTROL.reset ~= 0
  state.control = byte
  if not was_reset and not is_reset then return end
  transfer.stop(state)
  sign(state)
  state.multiple, state.pending = 0, false
  state.status = is_reset and STATUS.busy or STATUS.ready
end

-- A register that has the byte before the last, too.
local function pair(name)
  return {
    read = function(self)
      local is_previous = self.state.control & CONTROL.previous ~= 0
      return self.state[name] >> (is_previous and 8 or 0)
    end,
    write = function(self, byte)
      self.state[name] = (self.state[name] << 8 | byte) & 0xffff
    end,
  }
end

local REGISTERS <const> = {
  { read = function(self) return self.state.error end,
    write = function(self, byte) self.state.features = byte end },
  pair "count", pair "low", pair "mid", pair "high",
  { read = function(self) return self.state.device end,
    write = function(self, byte) self.state.device = byte end },
  { read = read_status, write = write_command },
}
local CONTROL_PORT <const> = { [0] = { read = status, write = write_control } }

local control_port = {}

function control_port:read(offset, size)
  return dev.read(self.device, CONTROL_PORT, offset, size)
end

function control_port:write(offset, value, size)
  dev.write(self.device, CONTROL_PORT, offset, value, size)
  update(self.device)
end

-- The device ---------------------------------------------------------------------

--- A hard disk.
-- @tparam table options
-- @tparam table options.disk what its sectors are in
-- @tparam[opt] fun(level:boolean) options.irq called when the level of the interrupt line changes
-- @treturn table the device; its field `control_port` is the one for port 0x3f6
-- @raise only for misuse
-- @usage
-- local disk = { sectors = 1, readonly = true }
-- function disk:read(first, count) return ("\0"):rep(512 * count) end
-- local ata = require("ckvm.dev.ata").new { -- of a VM with vm:create_irqchip()
--   disk = disk, irq = function(level) vm:irq_line { irq = 14, level = level } end,
-- }
-- vm:attach_io { port = 0x1f0, count = 8, device = ata }
-- vm:attach_io { port = 0x3f6, device = ata.control_port }
function ata.new(options)
  dev.check("ata", options, { disk = "table", irq = "function?" })
  local sectors <const> = options.disk.sectors
  if math.type(sectors) ~= "integer" or sectors < 1 or sectors > 1 << 48 then
    error(("ata: disk: %s is no number of sectors from 1 to 2^48"):format(tostring(sectors)), 2)
  end
  local self = setmetatable({
    disk = options.disk, irq = options.irq or dev.ignore, state = dev.copy(RESET),
  }, { __index = ata })
  self.control_port = setmetatable({ device = self }, { __index = control_port })
  return self
end

--- Answers a read of the guest. The data port takes as many bytes of a sector as it is wide.
-- @tparam integer offset in bytes from the first port, 0 to 7
-- @tparam integer size bytes to read: 1, 2 or 4
-- @treturn integer the value
-- @raise what `irq` and the disk raise
-- @usage
-- local ata = require("ckvm.dev.ata").new { disk = { sectors = 8 } }
-- ata:write(7, 0xec, 1) -- IDENTIFY DEVICE
-- assert(ata:read(7, 1) == 0x58 and ata:read(0, 2) == 0x40)
function ata:read(offset, size)
  local value
  if offset ~= DATA then
    value = dev.read(self, REGISTERS, offset, size)
  else
    value = is_absent(self.state) and (1 << 8 * size) - 1 or transfer.read_data(self, size)
  end
  update(self)
  return value
end

--- Takes a write of the guest.
-- @tparam integer offset in bytes from the first port, 0 to 7
-- @tparam integer value the bytes that are written, little-endian
-- @tparam integer size bytes to write: 1, 2 or 4
-- @raise what `irq` and the disk raise
-- @usage
-- local ata = require("ckvm.dev.ata").new { disk = { sectors = 8 } }
-- ata:write(7, 0x90, 1) -- EXECUTE DEVICE DIAGNOSTIC
-- assert(ata:read(1, 1) == 1)
function ata:write(offset, value, size)
  local state <const> = self.state
  state.control = state.control & ~CONTROL.previous
  if offset ~= DATA then
    dev.write(self, REGISTERS, offset, value, size)
  elseif not is_absent(state) then
    transfer.write_data(self, value, size)
  end
  update(self)
end

--- The state of the device, with what is half transferred; not that of the disk.
-- @treturn table a plain table, for `load`
-- @raise only for misuse
-- @usage
-- assert(require("ckvm.dev.ata").new({ disk = { sectors = 8 } }):save().error == 1)
function ata:save()
  return dev.copy(self.state)
end

--- Puts the device into a state that `save` has returned, and tells `irq` the level in it.
-- @tparam table state what `save` has returned
-- @raise for what is no state of this device, and what `irq` raises
-- @usage
-- local ata = require("ckvm.dev.ata").new { disk = { sectors = 8 } }
-- ata:load(ata:save())
function ata:load(state)
  local copy <const> = dev.restore(state, RESET, LIMITS)
  local wrong <const> = transfer.wrong(self.disk, copy)
  if wrong then error("state: " .. wrong, 2) end
  self.state = copy
  self.irq(self.state.level)
end

return ata

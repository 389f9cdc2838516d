-- How a disk moves sectors, block by block, for ckvm.dev.ata: what its commands have in common.
--
-- `self` is the device: its `disk`, and its `state` with the registers of a command (count, low,
-- mid, high, device, status, error, pending: an interrupt) and those of a transfer:
-- `direction` "in", "out" or "", `buffer` and the `position` in it; from sector `first` on there
-- are `left` to come, `block` of them before the next interrupt, which comes each `block_size`.

local identify = require "ckvm.dev.ata.identify"

local transfer = {}

local SECTOR <const> = 512

transfer.SECTOR = SECTOR -- bytes
transfer.STATUS = { busy = 0x80, ready = 0x40 | 0x10, fault = 0x20, data = 8, error = 1 }
transfer.ERROR = { aborted = 4, no_address = 0x10, unreadable = 0x40 }
transfer.DEVICE = { lba = 0x40, head = 0x0f, second = 0x10 } -- device register
local STATUS <const>, ERROR <const>, DEVICE <const> =
  transfer.STATUS, transfer.ERROR, transfer.DEVICE

-- Ends ---------------------------------------------------------------------------

function transfer.stop(state)
  state.direction, state.buffer, state.position, state.left = "", "", 0, 0
end

-- A command is over, and what it has moved, too.
local function settle(state, status)
  transfer.stop(state)
  state.status = STATUS.ready | status
end

function transfer.succeed(state)
  settle(state, 0)
  state.pending = true
end

function transfer.fail(state, error, status)
  settle(state, STATUS.error | (status or 0))
  state.error, state.pending = error, true
end

-- Addresses ----------------------------------------------------------------------

-- The first sector by the registers; nil for none.
local function get_address(state, is_ext)
  local low, mid, high = state.low & 0xff, state.mid & 0xff, state.high & 0xff
  local lba = low | mid << 8 | high << 16
  if is_ext then
    return lba | state.low >> 8 << 24 | state.mid >> 8 << 32 | state.high >> 8 << 40
  elseif state.device & DEVICE.lba ~= 0 then
    return lba | (state.device & DEVICE.head) << 24
  end
  local head, cylinder = state.device & DEVICE.head, mid | high << 8
  if low == 0 or low > identify.SECTORS then return nil end
  return (cylinder * identify.HEADS + head) * identify.SECTORS + low - 1
end

local function get_count(state, is_ext)
  local mask = is_ext and 0xffff or 0xff
  local count = state.count & mask
  return count == 0 and mask + 1 or count
end

-- Where a transfer has failed. It is told by LBA in either case: what asked by cylinders knows
-- where it was.
local function put_address(state, lba)
  state.low = lba & 0xff | (lba >> 24 & 0xff) << 8
  state.mid = lba >> 8 & 0xff | (lba >> 32 & 0xff) << 8
  state.high = lba >> 16 & 0xff | (lba >> 40 & 0xff) << 8
end

-- Transfers ----------------------------------------------------------------------

-- Whether the sectors that a command asks for are there; notes them. `how` has `ext` for addresses
-- of 48 bits, `multiple` for several sectors a block.
local function find_sectors(self, how)
  local state, sectors = self.state, self.disk.sectors
  local is_lba = state.device & DEVICE.lba ~= 0
  if how.ext and not is_lba or how.multiple and state.multiple == 0 then
    transfer.fail(state, ERROR.aborted)
    return false
  end
  local first, count = get_address(state, how.ext), get_count(state, how.ext)
  if not first or first >= sectors or count > sectors - first then
    if first then put_address(state, math.max(first, sectors)) end
    transfer.fail(state, ERROR.no_address)
    return false
  end
  state.first, state.left = first, count
  state.block_size = how.multiple and state.multiple or 1
  return true
end

-- Has the guest read these bytes.
function transfer.offer(state, bytes)
  state.direction, state.buffer, state.position = "in", bytes, 0
  state.status, state.pending = STATUS.ready | STATUS.data, true
end

local function read_block(self)
  local state = self.state
  local count = math.min(state.block_size, state.left)
  local bytes = self.disk:read(state.first, count)
  if type(bytes) ~= "string" or #bytes ~= count * SECTOR then
    put_address(state, state.first)
    return transfer.fail(state, ERROR.unreadable)
  end
  transfer.offer(state, bytes)
  state.first, state.left = state.first + count, state.left - count
end

-- Behind the last block there is no interrupt: the guest has had all that there is.
function transfer.read_data(self, size)
  local state <const> = self.state
  if state.direction ~= "in" then return (1 << 8 * size) - 1 end
  local bytes = state.buffer:sub(state.position + 1, state.position + size)
  state.position = state.position + size
  if state.position >= #state.buffer then
    if state.left > 0 then read_block(self) else settle(state, 0) end
  end
  return (string.unpack("<I4", bytes .. "\0\0\0\0"))
end

-- The first block is taken without an interrupt.
local function take_block(state)
  state.block = math.min(state.block_size, state.left)
  state.status = STATUS.ready | STATUS.data
end

local function write_sector(self, bytes)
  local state = self.state
  if not self.disk:write(state.first, bytes) then
    put_address(state, state.first)
    return transfer.fail(state, ERROR.aborted, STATUS.fault)
  end
  state.first, state.left, state.block = state.first + 1, state.left - 1, state.block - 1
  if state.left == 0 then return transfer.succeed(state) end
  if state.block == 0 then
    take_block(state)
    state.pending = true
  end
end

function transfer.write_data(self, value, size)
  local state <const> = self.state
  if state.direction ~= "out" then return end
  local bytes = state.buffer .. string.pack("<I" .. size, value & (1 << 8 * size) - 1)
  state.buffer = bytes:sub(SECTOR + 1)
  if #bytes < SECTOR then
    state.buffer = bytes
  else
    write_sector(self, bytes:sub(1, SECTOR))
  end
end

-- States that are loaded ----------------------------------------------------------

local DIRECTIONS <const> = { [""] = true, ["in"] = true, out = true }

-- What is wrong with a state whose values by themselves may be, if anything is: no transfer leaves
-- the disk, and one that writes comes to an end.
function transfer.wrong(disk, state)
  local left <const>, block <const> = state.left, state.block
  if not DIRECTIONS[state.direction] then
    return ("direction: '%s' is none of '', 'in', 'out'"):format(state.direction)
  elseif left > 0 and state.first > disk.sectors - left then
    return ("first: %d with %d sectors to come is beyond the disk's %d"):format(state.first, left,
      disk.sectors)
  elseif state.direction ~= "out" then
    return nil
  elseif disk.readonly then
    return "direction: nothing is written to a disk that is read-only"
  elseif block < 1 or block > left then
    return ("block: %d is not between 1 and the %d sectors to come"):format(block, left)
  elseif #state.buffer >= SECTOR then
    return ("buffer: %d bytes of a sector that is half written"):format(#state.buffer)
  end
end

-- Commands -----------------------------------------------------------------------

function transfer.read(self, how)
  if find_sectors(self, how) then read_block(self) end
end

function transfer.write(self, how)
  local state <const> = self.state
  if self.disk.readonly then return transfer.fail(state, ERROR.aborted) end
  if not find_sectors(self, how) then return end
  state.direction, state.buffer = "out", ""
  take_block(state)
end

function transfer.verify(self, how)
  if find_sectors(self, how) then transfer.succeed(self.state) end
end

return transfer

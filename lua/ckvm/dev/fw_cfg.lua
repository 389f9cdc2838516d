--- What a host tells firmware and kernels, as QEMU's fw_cfg does: port 0x510, which takes a
-- selector of two bytes, and 0x511, where the bytes of the item come out one by one.
--
-- Item 0 is the signature, 1 the interface's version, 0x19 the directory of files, whose items
-- begin at 0x20. There is no DMA, of which the version tells, and the guest cannot write items.
-- @module ckvm.dev.fw_cfg
-- @usage
-- local fw_cfg = require("ckvm.dev.fw_cfg").new {
--   files = { ["opt/name"] = "guest 7" },
--   items = { [5] = string.pack("<I2", 1) }, -- how many CPUs
-- }
-- vm:attach_io { port = 0x510, count = 2, device = fw_cfg }
local dev = require "ckvm.dev"

local fw_cfg = {}

local SIGNATURE <const>, VERSION <const>, DIRECTORY <const> = 0, 1, 0x19 -- items
local FIRST_FILE <const>, LAST_FILE <const> = 0x20, 0x3fff
local WRITE_BIT <const> = 0x4000 -- of a selector; the item is the same
local TRADITIONAL <const> = 1 -- of the version; 2 would be DMA
local NAME_SIZE <const> = 56 -- of a file, with a zero at the end

local RESET <const> = { selector = SIGNATURE, offset = 0 }
local LIMITS <const> = { selector = { 0, 0xffff }, offset = { 0, 0xffffffff } }

-- Items --------------------------------------------------------------------------

local function check_item(key, bytes)
  if math.type(key) ~= "integer" or key < 0 or key > 0xffff or key & WRITE_BIT ~= 0 then
    error(("fw_cfg: items: %s is no number of an item"):format(tostring(key)), 3)
  elseif type(bytes) ~= "string" then
    error(("fw_cfg: items: 0x%x: string expected, got %s"):format(key, type(bytes)), 3)
  end
end

local function check_file(name, bytes)
  if type(name) ~= "string" or #name == 0 or #name >= NAME_SIZE or name:find("\0", 1, true) then
    error(("fw_cfg: files: '%s' is no name of 1 to 55 bytes"):format(tostring(name)), 3)
  elseif type(bytes) ~= "string" then
    error(("fw_cfg: files: %s: string expected, got %s"):format(name, type(bytes)), 3)
  end
end

-- Sorted, so that the same files have the same numbers in each run.
local function sorted(files)
  local names = {}
  for name in pairs(files) do table.insert(names, name) end
  table.sort(names)
  return names
end

-- Big-endian, unlike all else here: how many, and of each its size, selector and name.
local function add_files(items, files)
  local names <const> = sorted(files)
  local entries = { string.pack(">I4", #names) }
  for i, name in ipairs(names) do
    local key <const> = FIRST_FILE + i - 1
    items[key] = files[name]
    table.insert(entries, string.pack(">I4I2I2 c56", #files[name], key, 0, name))
  end
  items[DIRECTORY] = table.concat(entries)
end

-- Registers ----------------------------------------------------------------------

-- Behind the end of an item, and where there is none, zeros.
local function read_data(self)
  local state <const> = self.state
  local item <const> = self.items[state.selector & ~WRITE_BIT] or ""
  local byte = item:byte(state.offset + 1)
  if byte then state.offset = state.offset + 1 end
  return byte or 0
end

local REGISTERS <const> = { [1] = { read = read_data } }

-- The device ---------------------------------------------------------------------

--- A device with these items. Numbers that QEMU gives items: 3, the size of RAM (8 bytes); 5, how
-- many CPUs (2); those from 0x8000 on are the architecture's.
-- @tparam table options
-- @tparam[opt] table options.files by name, of up to 55 bytes, what is in each file
-- @tparam[opt] table options.items by number, what is in each item; not those from 0x20 to 0x3fff
-- that files have
-- @treturn table the device
-- @raise only for misuse
-- @usage
-- local fw_cfg = require("ckvm.dev.fw_cfg").new { files = { ["opt/answer"] = "42" } }
-- vm:attach_io { port = 0x510, count = 2, device = fw_cfg }
function fw_cfg.new(options)
  dev.check("fw_cfg", options, { files = "table?", items = "table?" })
  local files <const> = options.files or {}
  for name, bytes in pairs(files) do check_file(name, bytes) end
  if FIRST_FILE + #sorted(files) - 1 > LAST_FILE then error("fw_cfg: files: too many", 2) end
  local items = {
    [SIGNATURE] = "QEMU", [VERSION] = string.pack("<I4", TRADITIONAL),
  }
  add_files(items, files)
  for key, bytes in pairs(options.items or {}) do
    check_item(key, bytes)
    if items[key] then error(("fw_cfg: items: 0x%x is there already"):format(key), 2) end
    items[key] = bytes
  end
  return setmetatable({ items = items, state = dev.copy(RESET) }, { __index = fw_cfg })
end

--- Answers a read of the guest.
-- @tparam integer offset in bytes from the first port, 0 or 1
-- @tparam integer size bytes to read: 1, 2 or 4
-- @treturn integer the value
-- @raise only for misuse
-- @usage
-- local fw_cfg = require("ckvm.dev.fw_cfg").new {}
-- assert(fw_cfg:read(1, 1) == ("Q"):byte())
function fw_cfg:read(offset, size)
  return dev.read(self, REGISTERS, offset, size)
end

--- Takes a write of the guest: of two bytes at the first port, which selects an item and begins
-- with it anew. Others do nothing.
-- @tparam integer offset in bytes from the first port, 0 or 1
-- @tparam integer value the bytes that are written, little-endian
-- @tparam integer size bytes to write: 1, 2 or 4
-- @raise only for misuse
-- @usage
-- local fw_cfg = require("ckvm.dev.fw_cfg").new {}
-- fw_cfg:write(0, 1, 2)
-- assert(fw_cfg:read(1, 1) == 1) -- no DMA
function fw_cfg:write(offset, value, size)
  if offset ~= 0 or size ~= 2 then return end
  self.state.selector, self.state.offset = value & 0xffff, 0
end

--- The state of the device: which item is selected, and how far it is read.
-- @treturn table a plain table, for `load`
-- @raise only for misuse
-- @usage
-- assert(require("ckvm.dev.fw_cfg").new({}):save().selector == 0)
function fw_cfg:save()
  return dev.copy(self.state)
end

--- Puts the device into a state that `save` has returned. Items stay what they are.
-- @tparam table state what `save` has returned
-- @raise for what is no state of this device
-- @usage
-- local fw_cfg = require("ckvm.dev.fw_cfg").new {}
-- fw_cfg:load(fw_cfg:save())
function fw_cfg:load(state)
  self.state = dev.restore(state, RESET, LIMITS)
end

return fw_cfg

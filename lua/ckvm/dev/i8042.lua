--- The keyboard controller of a PC, an 8042, with a keyboard: port 0x60 for data, 0x64 for status
-- and commands, interrupt line 1.
--
-- The ports between these are other devices'. Attach it at both, or, where there are no others, at
-- five ports from 0x60 on. There is no mouse: commands for it are ignored, and so are those for
-- the controller's memory beyond the command byte. The guest gets the bytes that `press` was
-- given: no scan code set is translated to another, whatever the guest chooses. LEDs and
-- repetition are acknowledged, nothing more; of set 3's settings for single keys there is none.
-- What the controller answers is read before what the keyboard answers, and that before keys.
-- @module ckvm.dev.i8042
-- @usage
-- local keyboard = require("ckvm.dev.i8042").new { reset = function() vcpu:stop "reset" end }
-- vm:attach_io { port = 0x60, device = keyboard }
-- vm:attach_io { port = 0x64, device = keyboard.command_port }
local dev = require "ckvm.dev"

local i8042 = {}

local QUEUE_SIZE <const> = 16 -- of the keyboard
local STATUS <const> = { full = 1, system = 4, command = 8, unlocked = 0x10 }
local MODE <const> = { irq = 1, system = 4, disabled = 0x10, translate = 0x40 } -- command byte
local OUT <const> = { running = 1, a20 = 2, full = 0x10, aux_full = 0x20 } -- output port
local ACK <const>, RESEND <const>, PASSED <const> = "\xfa", "\xfe", "\xaa" -- of the keyboard
local NOTHING <const> = 0 -- no command that waits for a byte

-- As firmware leaves it: enabled, with interrupts.
local RESET <const> = {
  reply = "", answer = "", queue = "", -- to be read: of the controller, the keyboard, keys
  mode = MODE.irq | MODE.system | MODE.translate, out = 0xc0 | OUT.running | OUT.a20,
  command = NOTHING, keyboard_command = NOTHING, -- that wait for their byte
  wrote_command = false, scanning = true, set = 2, last = 0, level = false,
}
local BYTE <const> = { 0, 0xff }
local LIMITS <const> = {
  reply = { 0, 1 }, answer = { 0, 3 }, queue = { 0, QUEUE_SIZE }, mode = BYTE, out = BYTE,
  command = BYTE, keyboard_command = BYTE, set = { 1, 3 }, last = BYTE,
}

-- What is to be read -------------------------------------------------------------

-- Whose byte is next, nil for none.
local function source(state)
  if state.reply ~= "" then return "reply" end
  if state.mode & MODE.disabled ~= 0 then return nil end
  return state.answer ~= "" and "answer" or state.queue ~= "" and "queue" or nil
end

local function set_level(self, level)
  if level == self.state.level then return end
  self.state.level = level
  self.irq(level)
end

local function update(self)
  set_level(self, self.state.mode & MODE.irq ~= 0 and source(self.state) ~= nil)
end

-- Each byte brings an edge of its own.
local function read_data(self)
  local state <const> = self.state
  local name = source(state)
  if not name then return state.last end
  state.last = state[name]:byte()
  state[name] = state[name]:sub(2)
  set_level(self, false)
  update(self)
  return state.last
end

local function read_status(self)
  local state <const> = self.state
  return (source(state) and STATUS.full or 0) | state.mode & STATUS.system | STATUS.unlocked
    | (state.wrote_command and STATUS.command or 0)
end

-- The keyboard -------------------------------------------------------------------

local keyboard = {}

keyboard[0xee] = function() return "\xee" end -- echo
keyboard[0xf2] = function(state) -- identify: a keyboard of 101 keys or more
  return ACK .. "\xab" .. (state.mode & MODE.translate ~= 0 and "\x41" or "\x83")
end

local function start(state, scanning)
  state.queue, state.scanning = "", scanning
  return ACK
end

keyboard[0xf4] = function(state) return start(state, true) end
keyboard[0xf5] = function(state) return start(state, false) end
keyboard[0xf6] = function(state)
  state.set = 2
  return start(state, state.scanning)
end
keyboard[0xff] = function(state)
  state.set = 2
  return start(state, true) .. PASSED
end
keyboard[0xfe] = function(state) return string.char(state.last) end -- once more

-- Those with a byte behind them: LEDs, scan code set, repetition.
local arguments = {}

arguments[0xed] = function() return ACK end
arguments[0xf3] = arguments[0xed]
arguments[0xf0] = function(state, byte)
  if byte == 0 then return ACK .. string.char(state.set) end
  if byte > 3 then return RESEND end
  state.set = byte
  return ACK
end

-- A new command ends what the last one waits for or has left unread, so that no guest can pile up
-- answers.
local function answer(state, byte)
  local waiting <const> = state.keyboard_command
  state.keyboard_command = NOTHING
  if keyboard[byte] then return keyboard[byte](state) end
  if arguments[byte] then
    state.keyboard_command = byte
    return ACK
  end
  return arguments[waiting] and arguments[waiting](state, byte) or RESEND
end

-- The controller -----------------------------------------------------------------

local commands = {}

commands[0x20] = function(self) self.state.reply = string.char(self.state.mode) end
commands[0xaa] = function(self)
  self.state.mode = self.state.mode | MODE.system
  self.state.reply = "\x55" -- passed
end
commands[0xab] = function(self) self.state.reply = "\0" end -- so are the keyboard's wires
commands[0xad] = function(self) self.state.mode = self.state.mode | MODE.disabled end
commands[0xae] = function(self) self.state.mode = self.state.mode & ~MODE.disabled end
commands[0xc0] = function(self) self.state.reply = "\x80" end -- input port: not locked
commands[0xd0] = function(self)
  local full = source(self.state) and OUT.full or 0
  self.state.reply = string.char(self.state.out | full)
end

-- What the byte is for that follows: for memory and mouse it is taken and forgotten.
local data = { [0xd3] = dev.ignore, [0xd4] = dev.ignore }

for command = 0x61, 0x7f do data[command] = dev.ignore end
data[0x60] = function(self, byte) self.state.mode = byte end
data[0xd1] = function(self, byte)
  local state <const> = self.state
  local changed = (byte ~ state.out) & OUT.a20 ~= 0
  state.out = byte & ~(OUT.full | OUT.aux_full) | OUT.running
  if changed then self.a20(byte & OUT.a20 ~= 0) end
  if byte & OUT.running == 0 then self.on_reset() end
end
data[0xd2] = function(self, byte) self.state.reply = string.char(byte) end

-- From 0xf0 on a zero among the lowest four bits is a pulse of that line of the output port.
local function write_command(self, byte)
  self.state.wrote_command = true
  self.state.command = data[byte] and byte or NOTHING
  if commands[byte] then commands[byte](self) end
  update(self)
  if byte >= 0xf0 and byte & OUT.running == 0 then self.on_reset() end
end

local function write_data(self, byte)
  local state <const> = self.state
  local command <const> = state.command
  state.wrote_command, state.command = false, NOTHING
  if command ~= NOTHING then
    data[command](self, byte)
  else
    state.mode = state.mode & ~MODE.disabled -- so that the answer can be read
    state.answer = answer(state, byte)
    set_level(self, false)
  end
  update(self)
end

local COMMAND_PORT <const> = { [0] = { read = read_status, write = write_command } }
local REGISTERS <const> = {
  [0] = { read = read_data, write = write_data }, [4] = COMMAND_PORT[0],
}

local command_port = {}

function command_port:read(offset, size)
  return dev.read(self.device, COMMAND_PORT, offset, size)
end

function command_port:write(offset, value, size)
  dev.write(self.device, COMMAND_PORT, offset, value, size)
end

-- The device ---------------------------------------------------------------------

--- A keyboard and its controller.
-- @tparam table options
-- @tparam[opt] fun(level:boolean) options.irq called when the level of the interrupt line changes
-- @tparam[opt] fun() options.reset called when the guest resets itself
-- @tparam[opt] fun(on:boolean) options.a20 called when the guest switches address line 20, which
-- is on at first; KVM has it on always
-- @treturn table the device; its field `command_port` is the one for port 0x64 alone
-- @raise only for misuse
-- @usage
-- local keyboard = require("ckvm.dev.i8042").new { reset = function() vcpu:stop "reset" end }
-- vm:attach_io { port = 0x60, count = 5, device = keyboard }
function i8042.new(options)
  dev.check("i8042", options, { irq = "function?", reset = "function?", a20 = "function?" })
  local self = setmetatable({
    irq = options.irq or dev.ignore, on_reset = options.reset or dev.ignore,
    a20 = options.a20 or dev.ignore, state = dev.copy(RESET),
  }, { __index = i8042 })
  self.command_port = setmetatable({ device = self }, { __index = command_port })
  return self
end

--- Answers a read of the guest.
-- @tparam integer offset in bytes from port 0x60: 0 or 4
-- @tparam integer size bytes to read: 1, 2 or 4
-- @treturn integer the value
-- @raise what `irq` raises
-- @usage
-- local keyboard = require("ckvm.dev.i8042").new {}
-- keyboard:press "\x1e\x9e" -- the key A and its release
-- assert(keyboard:read(4, 1) & 1 == 1 and keyboard:read(0, 1) == 0x1e)
function i8042:read(offset, size)
  return dev.read(self, REGISTERS, offset, size)
end

--- Takes a write of the guest.
-- @tparam integer offset in bytes from port 0x60: 0 or 4
-- @tparam integer value the bytes that are written, little-endian
-- @tparam integer size bytes to write: 1, 2 or 4
-- @raise what `irq`, `reset` and `a20` raise
-- @usage
-- local keyboard = require("ckvm.dev.i8042").new {}
-- keyboard:write(4, 0xaa, 1) -- self test
-- assert(keyboard:read(0, 1) == 0x55)
function i8042:write(offset, value, size)
  dev.write(self, REGISTERS, offset, value, size)
end

--- Presses and releases keys: scan codes for the guest to read. The keyboard keeps 16 that are not
-- read yet, and takes none while the guest has switched scanning off.
-- @tparam string bytes scan codes, of the set that the guest expects: set 1 most often
-- @treturn integer how many it took
-- @raise what `irq` raises
-- @usage
-- local keyboard = require("ckvm.dev.i8042").new {}
-- assert(keyboard:press "\x1e\x9e" == 2)
function i8042:press(bytes)
  local state <const> = self.state
  if not state.scanning then return 0 end
  local taken = bytes:sub(1, QUEUE_SIZE - #state.queue)
  state.queue = state.queue .. taken
  update(self)
  return #taken
end

--- The state of the device.
-- @treturn table a plain table, for `load`
-- @raise only for misuse
-- @usage
-- assert(require("ckvm.dev.i8042").new({}):save().scanning)
function i8042:save()
  return dev.copy(self.state)
end

--- Puts the device into a state that `save` has returned, and tells `irq` the level in it.
-- @tparam table state what `save` has returned
-- @raise for what is no state of this device, and what `irq` raises
-- @usage
-- local keyboard = require("ckvm.dev.i8042").new {}
-- keyboard:load(keyboard:save())
function i8042:load(state)
  local copy <const> = dev.restore(state, RESET, LIMITS)
  if copy.command ~= NOTHING and not data[copy.command] then
    error(("state: command: 0x%x waits for no byte"):format(copy.command), 2)
  end
  self.state = copy
  self.irq(self.state.level)
end

return i8042

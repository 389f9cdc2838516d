--- A serial port: the 16550A of PCs, eight ports from 0x3f8 (line 4) or 0x2f8 (line 3) on.
--
-- Bytes take no time: what the guest sends is out at once, and what is in the receive FIFO below
-- its trigger level counts as timed out at once. Baud rate and format are kept and mean nothing.
-- There are no parity or framing errors, no break, no DMA mode and no FIFO on the way out; the
-- lines of a modem are those of one that is always ready (CTS, DSR and DCD).
-- @module ckvm.dev.uart
-- @usage
-- local uart = require("ckvm.dev.uart").new { write = function(bytes) io.write(bytes) end }
-- vm:attach_io { port = 0x2f8, count = 8, device = uart }
local dev = require "ckvm.dev"

local uart = {}

local FIFO_SIZE <const> = 16
local TRIGGERS <const> = { [0] = 1, 4, 8, 14 } -- by the upper two bits of FCR
local IER <const> = { data = 1, sent = 2, line = 4, modem = 8 }
local FCR <const> = { enable = 1, clear = 2 }
local LCR_DLAB <const> = 0x80 -- ports 0 and 1 are the divisor
local MCR <const> = { out2 = 8, loop = 0x10 }
local LSR <const> = { data = 1, overrun = 2, sent = 0x20, idle = 0x40 }
local MSR_RI <const> = 0x40
local READY <const> = 0xb0 -- CTS, DSR, DCD in MSR

local RESET <const> = {
  rx = "", overrun = false, sent = false, -- sent: THRE's interrupt is due
  ier = 0, fcr = 0, lcr = 0, mcr = 0, scr = 0, divisor = 12,
  lines = READY, changed = 0, -- the halves of MSR
  level = false,
}
local BYTE <const> = { 0, 0xff }
local LIMITS <const> = {
  rx = { 0, FIFO_SIZE }, ier = { 0, 0xf }, fcr = BYTE, lcr = BYTE, mcr = { 0, 0x1f }, scr = BYTE,
  divisor = { 0, 0xffff }, lines = { 0, 0xf0 }, changed = { 0, 0xf },
}

-- Interrupts -------------------------------------------------------------------

-- What IIR tells, without the bits of the FIFO: the first of these that is enabled and due.
local function cause(state)
  local ier = state.ier
  if ier & IER.line ~= 0 and state.overrun then return 6 end
  if ier & IER.data ~= 0 and state.rx ~= "" then
    local fifo = state.fcr & FCR.enable ~= 0
    return fifo and #state.rx < TRIGGERS[state.fcr >> 6] and 12 or 4
  end
  if ier & IER.sent ~= 0 and state.sent then return 2 end
  if ier & IER.modem ~= 0 and state.changed ~= 0 then return 0 end
  return 1
end

-- OUT2 is what connects the UART of a PC to its interrupt line.
local function update(self)
  local state = self.state
  local level = state.mcr & MCR.out2 ~= 0 and cause(state) ~= 1
  if level == state.level then return end
  state.level = level
  self.irq(level)
end

-- Registers --------------------------------------------------------------------

local function room(state)
  return (state.fcr & FCR.enable ~= 0 and FIFO_SIZE or 1) - #state.rx
end

local function receive(state, bytes)
  local taken = bytes:sub(1, room(state))
  state.rx = state.rx .. taken
  if #taken < #bytes then state.overrun = true end
  return #taken
end

-- The interrupt goes away and comes back, for controllers that want an edge.
local function transmit(self, byte)
  local state <const> = self.state
  state.sent = false
  update(self)
  state.sent = true
  update(self)
  if state.mcr & MCR.loop ~= 0 then
    receive(state, string.char(byte))
  else
    self.output(string.char(byte))
  end
end

local function divisor(state)
  return state.lcr & LCR_DLAB ~= 0
end

local function read_data(self)
  local state <const> = self.state
  if divisor(state) then return state.divisor & 0xff end
  local byte = state.rx:byte() or 0
  state.rx = state.rx:sub(2)
  return byte
end

local function write_data(self, byte)
  local state <const> = self.state
  if not divisor(state) then return transmit(self, byte) end
  state.divisor = state.divisor & 0xff00 | byte
end

local function read_ier(self)
  return divisor(self.state) and self.state.divisor >> 8 or self.state.ier
end

-- The transmitter is empty always, so that enabling its interrupt brings one.
local function write_ier(self, byte)
  local state <const> = self.state
  if divisor(state) then
    state.divisor = state.divisor & 0xff | byte << 8
    return
  end
  if byte & ~state.ier & IER.sent ~= 0 then state.sent = true end
  state.ier = byte & 0xf
end

-- To be told that THRE is due is what takes it away; of the others, it is to do what they ask for.
local function read_iir(self)
  local state <const> = self.state
  local found = cause(state)
  if found == 2 then state.sent = false end
  return found | (state.fcr & FCR.enable ~= 0 and 0xc0 or 0)
end

local function write_fcr(self, byte)
  local state <const> = self.state
  if byte & FCR.clear ~= 0 or (byte ~ state.fcr) & FCR.enable ~= 0 then state.rx = "" end
  state.fcr = byte & FCR.enable ~= 0 and byte & 0xc9 or 0
end

local function read_lsr(self)
  local state <const> = self.state
  local value = LSR.sent | LSR.idle | (state.rx ~= "" and LSR.data or 0)
    | (state.overrun and LSR.overrun or 0)
  state.overrun = false
  return value
end

-- In the loop, DTR, RTS, OUT1 and OUT2 are DSR, CTS, RI and DCD.
local function modem_lines(mcr)
  if mcr & MCR.loop == 0 then return READY end
  return (mcr & 1) << 5 | (mcr & 2) << 3 | (mcr & 4) << 4 | (mcr & 8) << 4
end

-- Of RI, only its end counts as a change.
local function write_mcr(self, byte)
  local state <const> = self.state
  state.mcr = byte & 0x1f
  local lines = modem_lines(state.mcr)
  local changed = lines ~ state.lines
  if lines & MSR_RI ~= 0 then changed = changed & ~MSR_RI end
  state.lines, state.changed = lines, state.changed | changed >> 4
end

local function read_msr(self)
  local state <const> = self.state
  local value = state.lines | state.changed
  state.changed = 0
  return value
end

-- A register that keeps what is written.
local function kept(name)
  return {
    read = function(self) return self.state[name] end,
    write = function(self, byte) self.state[name] = byte end,
  }
end

local REGISTERS <const> = {
  [0] = { read = read_data, write = write_data },
  [1] = { read = read_ier, write = write_ier },
  [2] = { read = read_iir, write = write_fcr },
  [3] = kept "lcr",
  [4] = { read = function(self) return self.state.mcr end, write = write_mcr },
  [5] = { read = read_lsr },
  [6] = { read = read_msr },
  [7] = kept "scr",
}

-- The device -------------------------------------------------------------------

--- A serial port after a reset.
-- @tparam table options
-- @tparam[opt] fun(level:boolean) options.irq called when the level of the interrupt line changes
-- @tparam[opt] fun(bytes:string) options.write called with what the guest sends, a byte a call
-- @tparam[opt] fun() options.ready called when the guest has made room for more to `receive`
-- @treturn table the device
-- @raise only for misuse
-- @usage
-- local uart = require("ckvm.dev.uart").new { -- of a VM with vm:create_irqchip()
--   irq = function(level) vm:irq_line { irq = 3, level = level } end,
--   write = function(bytes) io.write(bytes) end,
-- }
-- vm:attach_io { port = 0x2f8, count = 8, device = uart }
function uart.new(options)
  dev.check("uart", options, { irq = "function?", write = "function?", ready = "function?" })
  return setmetatable({
    irq = options.irq or dev.ignore, output = options.write or dev.ignore,
    ready = options.ready or dev.ignore, state = dev.copy(RESET),
  }, { __index = uart })
end

--- Answers a read of the guest.
-- @tparam integer offset in bytes from the first port, 0 to 7
-- @tparam integer size bytes to read: 1, 2 or 4
-- @treturn integer the value
-- @raise what `irq` and `ready` raise
-- @usage
-- local uart = require("ckvm.dev.uart").new {}
-- uart:receive("A")
-- assert(uart:read(5, 1) == 0x61 and uart:read(0, 1) == 0x41)
function uart:read(offset, size)
  local before <const> = room(self.state)
  local value = dev.read(self, REGISTERS, offset, size)
  update(self)
  if room(self.state) > before then self.ready() end
  return value
end

--- Takes a write of the guest.
-- @tparam integer offset in bytes from the first port, 0 to 7
-- @tparam integer value the bytes that are written, little-endian
-- @tparam integer size bytes to write: 1, 2 or 4
-- @raise what `irq`, `write` and `ready` raise
-- @usage
-- local uart = require("ckvm.dev.uart").new { write = io.write }
-- uart:write(0, 0x41, 1)
function uart:write(offset, value, size)
  local before <const> = room(self.state)
  dev.write(self, REGISTERS, offset, value, size)
  update(self)
  if room(self.state) > before then self.ready() end
end

--- Gives the guest bytes to read, as many as there is room for. The rest is lost, of which the
-- guest is told by the overrun bit, unless it is given again later: ask `room` before. It is the
-- later byte that is lost without FIFO, too, where a 16550A would lose the earlier one.
-- @tparam string bytes that come in
-- @treturn integer how many it took
-- @raise what `irq` raises
-- @usage
-- local uart = require("ckvm.dev.uart").new {}
-- assert(uart:receive("AB") == 1)
function uart:receive(bytes)
  local taken = receive(self.state, bytes)
  update(self)
  return taken
end

--- How many bytes `receive` would take: up to 16, or 1 until the guest enables the FIFO.
-- @treturn integer how many bytes
-- @raise only for misuse
-- @usage
-- local uart = require("ckvm.dev.uart").new {}
-- local text = "more than there is room for"
-- uart:receive(text:sub(1, uart:room()))
function uart:room()
  return room(self.state)
end

--- The state of the device.
-- @treturn table a plain table, for `load`
-- @raise only for misuse
-- @usage
-- local state = require("ckvm.dev.uart").new({}):save()
-- assert(state.ier == 0)
function uart:save()
  return dev.copy(self.state)
end

--- Puts the device into a state that `save` has returned, and tells `irq` the level in it.
-- @tparam table state what `save` has returned
-- @raise for what is no state of this device, and what `irq` raises
-- @usage
-- local uart = require("ckvm.dev.uart").new {}
-- local state = uart:save()
-- uart:load(state)
function uart:load(state)
  local copy <const> = dev.restore(state, RESET, LIMITS)
  if room(copy) < 0 then error("state: rx: without FIFO there is room for 1 byte", 2) end
  self.state = copy
  self.irq(self.state.level)
end

return uart

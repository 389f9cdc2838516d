--- The console of a guest: what it prints goes to the terminal, a pseudo-terminal, a file or a
-- string, and what is typed there reaches it, also while it sleeps.
--
-- It stands between the host and a device that receives bytes, such as a serial port, and gives
-- that no more than there is room for; the rest waits. The end of the input is no end of the guest.
-- What a guest is given before its driver is ready, the driver may throw away, as on real machines.
--
-- On a terminal every key is the guest's, Ctrl-C too, but for Ctrl-A: `Ctrl-A x` ends the run,
-- `Ctrl-A a` or a second Ctrl-A is one for the guest, `Ctrl-A h` prints these. Where the standard
-- input is no terminal, all of its bytes are the guest's.
-- @module ckvm.console
-- @usage
-- local con <close> = require("ckvm.console").new { to = "string", input = "what is typed" }
-- local uart = require("ckvm.dev.uart").new {
--   write = function(bytes) con:write(bytes) end, ready = function() con:ready() end,
-- }
-- vm:attach_io { port = 0x2f8, count = 8, device = uart }
-- con:connect(vm, uart)
-- vcpu:run { timeout = 1 }
-- print(con:text())
local ckvm = require "ckvm"
local check = require "ckvm.check"
local dev = require "ckvm.dev"

local console = {}
local meta = { __index = console }

local ESCAPE <const> = "\1" -- Ctrl-A
local MOST_WAITING <const> = 1 << 20 -- bytes that are typed and not read; what is more is lost
local MOST_TEXT <const> = 16 << 20 -- bytes that are kept of what a guest prints to a string
local HELP <const> = [[

Ctrl-A x  ends the run
Ctrl-A a  sends a Ctrl-A, as does Ctrl-A Ctrl-A
Ctrl-A h  prints this
]]

-- What waits for room ------------------------------------------------------------

-- A list of strings. Those before `first` are gone, and of that all before byte `at`.
local function new_queue() return { first = 1, at = 1, length = 0 } end

local function put(queue, bytes)
  if bytes == "" then return end
  table.insert(queue, bytes)
  queue.length = queue.length + #bytes
end

-- Some bytes, `most` of them at most.
local function look(queue, most)
  return queue[queue.first]:sub(queue.at, queue.at + most - 1)
end

local function drop(queue, count)
  queue.at, queue.length = queue.at + count, queue.length - count
  if queue.at <= #queue[queue.first] then return queue end
  if queue.length == 0 then return new_queue() end
  queue[queue.first] = false
  queue.first, queue.at = queue.first + 1, 1
  return queue
end

-- Input ---------------------------------------------------------------------------

local commands = {
  a = function() return ESCAPE end,
  h = function() io.stderr:write(HELP) end,
  x = function(self, vcpu) self.quit(vcpu) end,
}
commands[ESCAPE], commands["?"] = commands.a, commands.h

-- What the guest gets of the keys that are typed.
local function take_keys(self, typed, vcpu)
  local kept = {}
  for key in typed:gmatch(".") do
    if self.escaped then
      self.escaped = false
      local command = commands[key:lower()]
      table.insert(kept, command and command(self, vcpu))
    elseif key == ESCAPE then
      self.escaped = true
    else
      table.insert(kept, key)
    end
  end
  return table.concat(kept):sub(1, math.max(0, MOST_WAITING - self.queue.length))
end

-- nil at the end, and where there is nothing to be read.
local function read(file)
  local done, bytes = pcall(ckvm.read_available, file)
  if not done and type(bytes) == "string" then error(bytes, 0) end
  return done and bytes or nil
end

-- Gives the device what it has room for.
local function deliver(self)
  local device <const> = self.device
  while device and self.queue.length > 0 do
    local room = device:room()
    local taken = room > 0 and device:receive(look(self.queue, room)) or 0
    if taken == 0 then return end
    self.queue = drop(self.queue, taken)
  end
end

-- Who writes to a pipe waits as long as the guest does not read; keys are looked at in any case.
local function watch(self)
  local wanted = self.device and self.input and (self.raw or self.queue.length == 0)
  if wanted and not self.watch then
    self.watch = self.vm:watch(self.input, "read", self.readable)
  elseif not wanted and self.watch then
    self.watch:detach()
    self.watch = nil
  end
end

local function take_input(self, vcpu)
  if not self.input then return end
  local bytes = read(self.input)
  if not bytes then
    self.input = nil
  else
    put(self.queue, self.raw and take_keys(self, bytes, vcpu) or bytes)
  end
  deliver(self)
  watch(self)
end

-- A terminal, or else what has no keys.
local function make_raw(self)
  local done, terminal = pcall(ckvm.raw_terminal, self.input)
  if done then
    self.raw = terminal
  elseif terminal.code ~= "ENOTTY" then
    error(terminal, 0)
  end
end

-- Output --------------------------------------------------------------------------

local kinds = {}

function kinds.terminal(self)
  self.input, self.begin = io.stdin, make_raw
  self.output = function(bytes)
    io.stdout:write(bytes)
    io.stdout:flush()
  end
end

-- The other side is kept open, too: or the end of a program that has used it would be the end.
function kinds.pty(self)
  local file, path, other = ckvm.pty()
  self.input, self.path, self.files = file, path, { file, other }
  self.output = function(bytes) file:write(bytes) end
end

function kinds.string(self)
  local pieces, length = {}, 0
  self.pieces = pieces
  self.output = function(bytes)
    length = length + #bytes
    if length > MOST_TEXT then return end
    table.insert(pieces, bytes)
    if #pieces == 4096 then -- a byte alone takes sixteen
      local all = table.concat(pieces)
      for i = #pieces, 1, -1 do pieces[i] = nil end
      pieces[1] = all
    end
  end
end

local function to_file(self, path)
  local file, message = io.open(path, "wb")
  if not file then error("console: " .. message, 3) end
  file:setvbuf("no")
  self.files = { file }
  self.output = function(bytes)
    local done, why = file:write(bytes)
    if not done then error(("console: %s: %s"):format(path, why), 0) end
  end
end

-- The console ---------------------------------------------------------------------

--- Makes a console.
-- @tparam[opt] table options
-- @tparam[opt="terminal"] string options.to `"terminal"`: standard input and output; `"pty"`: a
-- pseudo-terminal, whose `path` a field of the console has, for another program to open, such as
-- screen(1), and what nobody reads there is lost; `"string"`: what `text` returns; or the path of a
-- file, which is overwritten
-- @tparam[opt] string options.input what is typed, for `"string"` and files
-- @tparam[opt] fun(vcpu:vcpu) options.quit called at `Ctrl-A x`, with the vCPU whose run has been
-- left for that; if left out, `vcpu:stop("quit")`
-- @treturn table the console
-- @raise a string if the file cannot be opened; what `ckvm.pty` raises
-- @usage
-- local con <close> = require("ckvm.console").new { to = "pty" }
-- print("the guest's console is " .. con.path)
function console.new(options)
  options = options or {}
  check.options("console", options, { to = "string?", input = "string?", quit = "function?" })
  local to <const> = options.to or "terminal"
  if options.input and (to == "terminal" or to == "pty") then
    error(("console: input: a console to '%s' has its own"):format(to), 2)
  end
  local self = setmetatable({ queue = new_queue(), quit = options.quit, last = "\n" }, meta)
  self.quit = self.quit or function(vcpu) vcpu:stop("quit") end
  self.readable = function(_, vcpu) take_input(self, vcpu) end
  put(self.queue, options.input or "")
  if kinds[to] then kinds[to](self) else to_file(self, to) end
  return self
end

--- Has a device receive what is typed, from now on, while vCPUs of the VM run. A terminal hands on
-- every key from now on, until the console is closed.
-- @tparam vm vm that the device is of
-- @tparam table device with `receive(bytes)`, that returns how many it took, and `room()`, as
-- `ckvm.dev.uart` has them; when there is room again it has to call the console's `ready`
-- @raise a string for a console that is closed or has a device; what `vm:watch` and
-- `ckvm.raw_terminal` raise
-- @usage
-- local con <close> = require("ckvm.console").new { to = "string", input = "x" }
-- local uart = require("ckvm.dev.uart").new { ready = function() con:ready() end }
-- con:connect(vm, uart)
-- assert(uart:read(0, 1) == 0x78)
function console:connect(vm, device)
  if self.closed then error("connect: this console is closed", 2) end
  if self.device then error("connect: this console has a device", 2) end
  if type(vm) ~= "userdata" and type(vm) ~= "table" then
    error("connect: vm: VM expected, got " .. type(vm), 2)
  end
  if type(device) ~= "table" or not (device.receive and device.room) then
    error("connect: a device with receive and room expected", 2)
  end
  self.vm, self.device = vm, device
  if self.begin then self:begin() end
  deliver(self)
  watch(self)
end

--- Gives the device more, if there is more: for its option `ready`.
-- @raise what the device raises
-- @usage
-- local con <close> = require("ckvm.console").new { to = "string" }
-- local uart = require("ckvm.dev.uart").new { ready = function() con:ready() end }
function console:ready()
  deliver(self)
  watch(self)
end

--- Prints what the guest has sent, at once.
-- @tparam string bytes that are printed
-- @raise a string if the file cannot be written
-- @usage
-- local con <close> = require("ckvm.console").new { to = "string" }
-- local uart = require("ckvm.dev.uart").new { write = function(bytes) con:write(bytes) end }
function console:write(bytes)
  if type(bytes) ~= "string" then error("write: string expected, got " .. type(bytes), 2) end
  self.last = bytes:sub(-1)
  self.output(bytes)
end

--- Tells whether the guest has begun a line, and not ended it.
-- @treturn boolean whether what the host prints next begins in the middle of a line
-- @raise only for misuse
-- @usage
-- local con <close> = require("ckvm.console").new { to = "string" }
-- con:write("login: ")
-- assert(con:in_line())
function console:in_line()
  return self.last ~= "\n"
end

--- All that the guest has printed to a `"string"`, up to 16 MiB.
-- @treturn string the bytes
-- @raise only for misuse
-- @usage
-- local con <close> = require("ckvm.console").new { to = "string" }
-- con:write("hello")
-- assert(con:text() == "hello")
function console:text()
  if not self.pieces then error("text: the console is not to a string", 2) end
  return table.concat(self.pieces)
end

--- Ends it: the terminal is what it was, and its files are closed. What the guest prints from now
-- on is lost. It may be closed twice, and before or after the VM.
-- @raise only for misuse
-- @usage
-- local con = require("ckvm.console").new { to = "/dev/null" }
-- con:close()
function console:close()
  self.closed = true
  self.input, self.device, self.output = nil, nil, dev.ignore
  if self.watch then self.watch:detach() end
  if self.raw then self.raw:close() end
  for _, file in ipairs(self.files or {}) do file:close() end
  self.watch, self.raw, self.files = nil, nil, nil
end

meta.__close = console.close

return console

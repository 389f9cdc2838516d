-- INT 16h, the keyboard, for ckvm.bios. The keys that wait are in the BIOS data area, where there
-- is room for 15, and behind these in the host.

local screen = require "ckvm.bios.screen"
local keys = require "ckvm.bios.keys"

local keyboard, functions = {}, {}

local HEAD <const>, TAIL <const>, SHIFT <const> = 0x41a, 0x41c, 0x417
local DATA <const>, FIRST <const>, BEHIND <const> = 0x400, 0x1e, 0x3e
local SLICE <const> = 0.01 -- seconds after which a guest that waits runs for a moment

-- The buffer -----------------------------------------------------------------------

local function is_place(offset)
  return offset >= FIRST and offset < BEHIND and offset % 2 == 0
end

-- A guest may have written any numbers there: it has lost its keys then.
local function pointers(vm)
  local head, tail = vm:read_u16(HEAD), vm:read_u16(TAIL)
  if is_place(head) and is_place(tail) then return head, tail end
  vm:write_u16(HEAD, FIRST)
  vm:write_u16(TAIL, FIRST)
  return FIRST, FIRST
end

local function next_place(offset)
  return offset + 2 < BEHIND and offset + 2 or FIRST
end

-- Whether there was room.
local function put(vm, word)
  local head, tail = pointers(vm)
  local after = next_place(tail)
  if after == head then return false end
  vm:write_u16(DATA + tail, word)
  vm:write_u16(TAIL, after)
  return true
end

local function peek(vm)
  local head, tail = pointers(vm)
  return head ~= tail and vm:read_u16(DATA + head) or nil
end

local function drop(vm)
  vm:write_u16(HEAD, next_place((pointers(vm))))
end

-- What was typed goes on to an empty buffer, as much as there is room for.
local function feed(bios)
  local state <const> = bios.state
  if state.keys == "" or peek(bios.vm) then return end
  local at = 1
  while at < #state.keys and put(bios.vm, (string.unpack("<I2", state.keys, at))) do
    at = at + 2
  end
  state.keys = state.keys:sub(at)
end

-- Types bytes, and wakes who waits for them.
function keyboard.type(bios, bytes)
  bios.state.keys = bios.state.keys .. keys.translate(bytes)
  feed(bios)
  bios.typed:signal()
end

-- Takes back what the guest has not read, before its buffer is made anew.
function keyboard.take_back(bios)
  local list = {}
  while peek(bios.vm) do
    table.insert(list, string.pack("<I2", peek(bios.vm)))
    drop(bios.vm)
  end
  bios.state.keys = table.concat(list) .. bios.state.keys
end

-- The next key, which stays there, or nil.
local function look(bios)
  feed(bios)
  local word = peek(bios.vm)
  if word then return word end
  local bytes = bios.input()
  if bytes and bytes ~= "" then keyboard.type(bios, bytes) end
  return peek(bios.vm)
end

-- The calls ------------------------------------------------------------------------

-- Waits a little, if need be, and then once more: the run around it can end meanwhile, and what
-- the VM watches is served.
functions[0x00] = function(bios, call)
  local word = look(bios)
  if not word then
    screen.settle(bios)
    bios.typed:wait { timeout = SLICE }
    word = look(bios)
  end
  if not word then return call:again() end
  drop(bios.vm)
  call.ax = word
end

functions[0x01] = function(bios, call)
  local word = look(bios)
  if word then call.ax = word end
  call:set_zero(not word)
end

functions[0x02] = function(_, call) call.al = call.vm:read_u8(SHIFT) end
functions[0x03] = function() end -- how fast keys are repeated
functions[0x05] = function(_, call) call.al = put(call.vm, call.cx) and 0 or 1 end
functions[0x10], functions[0x11] = functions[0x00], functions[0x01]
functions[0x12] = function(_, call) call.ax = call.vm:read_u8(SHIFT) end

function keyboard.serve(bios, call)
  local fn = functions[call.ah]
  if fn then fn(bios, call) else call:refuse() end
end

return keyboard

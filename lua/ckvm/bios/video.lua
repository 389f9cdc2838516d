-- INT 10h, the screen, for ckvm.bios. What is not there leaves the registers as they are, as it
-- does on a PC, where programs look whether they have changed.

local screen = require "ckvm.bios.screen"

local functions = {}

local TEXT <const> = 3 -- the one mode that there is
local KEEP <const> = 0x80 -- of AL: the screen stays as it is
local COLUMNS <const> = 80

functions[0x00] = function(bios, call)
  local mode = call.al & ~KEEP
  if mode ~= TEXT then call:note("mode 0x%x is not there, it stays text", mode) end
  if call.al & KEEP == 0 then screen.clear(bios) end
end

functions[0x01] = function(bios, call) screen.set_shape(bios, call.cx) end
functions[0x02] = function(bios, call) screen.set_cursor(bios, call.dh, call.dl) end

functions[0x03] = function(bios, call)
  call.dh, call.dl = screen.cursor(bios)
  call.cx = screen.shape(bios)
end

local function scroll(bios, call, rows)
  local window = { top = call.ch, left = call.cl, bottom = call.dh, right = call.dl }
  screen.scroll(bios, window, rows, call.bh)
end

functions[0x06] = function(bios, call) scroll(bios, call, call.al) end
functions[0x07] = function(bios, call) scroll(bios, call, -call.al) end

functions[0x08] = function(bios, call) call.al, call.ah = screen.peek(bios) end
functions[0x09] = function(bios, call) screen.fill(bios, call.al, call.cx, call.bl) end
functions[0x0a] = function(bios, call) screen.fill(bios, call.al, call.cx) end
functions[0x0e] = function(bios, call) screen.teletype(bios, call.al) end

functions[0x0f] = function(_, call)
  call.al, call.ah, call.bh = TEXT, COLUMNS, 0
end

-- That there is a VGA with 256 KiB, in colors.
functions[0x12] = function(_, call)
  if call.bl == 0x10 then call.bx, call.cx = 0x0003, 0 end
end

functions[0x1a] = function(_, call)
  if call.al == 0 then call.al, call.bx = 0x1a, 0x0008 end
end

-- Bits of AL: the cursor moves, and each character has an attribute behind it.
local MOVES <const>, ATTRIBUTES <const> = 1, 2

functions[0x13] = function(bios, call)
  local mode <const> = call.al
  local size = call.cx << (mode & ATTRIBUTES ~= 0 and 1 or 0)
  local text = call:read(call:address("es", call.bp), size)
  if not text then return call:note("a text of %d bytes is not in memory", size) end
  local row, column = screen.cursor(bios)
  screen.set_cursor(bios, call.dh, call.dl)
  for character, attribute in text:gmatch(mode & ATTRIBUTES ~= 0 and "(.)(.)" or "(.)()") do
    if mode & ATTRIBUTES == 0 then attribute = call.bl else attribute = attribute:byte() end
    screen.teletype(bios, character:byte(), attribute)
  end
  if mode & MOVES == 0 then screen.set_cursor(bios, row, column) end
end

return function(bios, call)
  local fn = functions[call.ah]
  if fn then return fn(bios, call) end
  call:note("AX 0x%04x is not there", call.ax)
end

-- The screen of a PC, 80 columns of 25 rows, for ckvm.bios: characters and attributes in the
-- guest's memory at 0xb8000, and the same on a terminal. There is one page.

local screen = {}

local COLUMNS <const>, ROWS <const> = 80, 25
local CELLS <const> = 0xb8000
local CURSOR <const>, SHAPE <const> = 0x450, 0x460 -- in the BIOS data area
local NORMAL <const> = 7 -- the attribute: light on dark
local HIDDEN <const> = 0x2000 -- of the cursor's shape
local UNKNOWN <const> = -1 -- where the terminal's cursor is

-- The cursor --------------------------------------------------------------------

-- A guest may have written any numbers there.
function screen.cursor(bios)
  local word = bios.vm:read_u16(CURSOR)
  return math.min(word >> 8, ROWS - 1), math.min(word & 0xff, COLUMNS - 1)
end

function screen.set_cursor(bios, row, column)
  bios.vm:write_u16(CURSOR, math.min(row, ROWS - 1) << 8 | math.min(column, COLUMNS - 1))
end

function screen.shape(bios)
  return bios.vm:read_u16(SHAPE)
end

function screen.set_shape(bios, shape)
  bios.vm:write_u16(SHAPE, shape)
  bios.output(shape & HIDDEN ~= 0 and "\27[?25l" or "\27[?25h")
end

-- The terminal --------------------------------------------------------------------

local function set_terminal(bios, row, column)
  bios.state.row, bios.state.column = row, column
end

-- Moves the terminal's cursor, unless it is there.
local function move(bios, row, column)
  if bios.state.row == row and bios.state.column == column then return end
  bios.output(("\27[%d;%dH"):format(row + 1, column + 1))
  set_terminal(bios, row, column)
end

-- Puts the terminal's cursor where the guest's is, for someone to see.
function screen.settle(bios)
  move(bios, screen.cursor(bios))
end

-- What a terminal shows of cells: no control bytes.
local function text_of(cells)
  return (cells:gsub("(.).", "%1"):gsub("%c", { ["\0"] = " " }):gsub("%c", "."))
end

-- Cells --------------------------------------------------------------------------

local function address(row, column)
  return CELLS + 2 * (row * COLUMNS + column)
end

local function blank(count, attribute)
  return string.char(0x20, attribute):rep(count)
end

-- Shows cells of a row that are in memory.
local function draw(bios, row, column, count)
  move(bios, row, column)
  bios.output(text_of(bios.vm:read(address(row, column), 2 * count)))
  set_terminal(bios, row, column + count)
  if column + count == COLUMNS then set_terminal(bios, UNKNOWN, UNKNOWN) end
end

-- Clears memory, as after a reset; the terminal stays.
function screen.reset(bios)
  bios.vm:write(CELLS, blank(ROWS * COLUMNS, NORMAL))
  screen.set_cursor(bios, 0, 0)
end

-- Clears it, on the terminal, too.
function screen.clear(bios)
  screen.reset(bios)
  bios.output("\27[2J\27[H")
  set_terminal(bios, 0, 0)
end

-- Moves the rows of a window up by a number, or down by a negative one; what is free then is blank.
local function shift(bios, window, rows, attribute)
  local width = window.right - window.left + 1
  local lines = {}
  for row = window.top, window.bottom do
    lines[row] = bios.vm:read(address(row, window.left), 2 * width)
  end
  for row = window.top, window.bottom do
    bios.vm:write(address(row, window.left), lines[row + rows] or blank(width, attribute))
  end
end

local function is_all(window)
  return window.top == 0 and window.left == 0 and window.bottom == ROWS - 1
    and window.right == COLUMNS - 1
end

-- Scrolls a window: top, left, bottom, right; with no rows, it is cleared. The terminal is shown
-- what is there then.
function screen.scroll(bios, window, rows, attribute)
  window.bottom = math.min(window.bottom, ROWS - 1)
  window.right = math.min(window.right, COLUMNS - 1)
  if window.top > window.bottom or window.left > window.right then return end
  shift(bios, window, rows == 0 and ROWS or rows, attribute)
  if is_all(window) and (rows == 0 or math.abs(rows) >= ROWS) then
    bios.output("\27[2J")
    return
  end
  for row = window.top, window.bottom do
    draw(bios, row, window.left, window.right - window.left + 1)
  end
end

-- The character and the attribute where the cursor is.
function screen.peek(bios)
  local cell = bios.vm:read_u16(address(screen.cursor(bios)))
  return cell & 0xff, cell >> 8
end

-- For string.gsub, which has a meaning for "%": this character, and what it has captured.
local function replacement(byte)
  local character = string.char(byte)
  return (character == "%" and "%%" or character) .. "%1"
end

-- Writes a character many times from the cursor on, which stays; the attributes stay unless one is
-- given. It ends where the screen does.
function screen.fill(bios, byte, count, attribute)
  local row, column = screen.cursor(bios)
  while count > 0 and row < ROWS do
    local part = math.min(count, COLUMNS - column)
    local cells = attribute and string.char(byte, attribute):rep(part)
      or bios.vm:read(address(row, column), 2 * part):gsub(".(.)", replacement(byte))
    bios.vm:write(address(row, column), cells)
    draw(bios, row, column, part)
    row, column, count = row + 1, 0, count - part
  end
end

-- As a teletype --------------------------------------------------------------------

-- The next row; the terminal scrolls by itself. All rows move at once, as a guest may have 65535
-- of them printed by one call.
local function feed(bios, row, column)
  if row < ROWS - 1 then return row + 1, column end
  local rest <const> = bios.vm:read(address(1, 0), 2 * COLUMNS * (ROWS - 1))
  bios.vm:write(CELLS, rest .. blank(COLUMNS, NORMAL))
  return row, column
end

local controls = {}

controls[7] = function(_, row, column) return row, column end
controls[8] = function(_, row, column) return row, math.max(column - 1, 0) end
controls[10] = feed
controls[13] = function(_, row) return row, 0 end

local function put(bios, row, column, byte, attribute)
  bios.vm:write_u8(address(row, column), byte)
  if attribute then bios.vm:write_u8(address(row, column) + 1, attribute) end
  if column + 1 < COLUMNS then return row, column + 1 end
  return feed(bios, row, 0)
end

-- Writes a byte where the cursor is, and moves that. The terminal gets the byte as it is.
function screen.teletype(bios, byte, attribute)
  local row, column = screen.cursor(bios)
  move(bios, row, column)
  bios.output(string.char(byte))
  if controls[byte] then
    row, column = controls[byte](bios, row, column)
  else
    row, column = put(bios, row, column, byte, attribute)
  end
  screen.set_cursor(bios, row, column)
  set_terminal(bios, row, column)
end

return screen

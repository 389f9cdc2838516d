-- What a keyboard of a PC tells of bytes that are typed on a terminal, for ckvm.bios: words of a
-- scan code and a character below it.

local keys = {}

-- Scan code of the first key, and what the keys of a row have on them, without and with shift.
local ROWS <const> = {
  { 0x02, "1234567890-=", "!@#$%^&*()_+" }, { 0x10, "qwertyuiop[]", "QWERTYUIOP{}" },
  { 0x1e, "asdfghjkl;'`", "ASDFGHJKL:\"~" }, { 0x2b, "\\zxcvbnm,./", "|ZXCVBNM<>?" },
}

-- A terminal sends 0x7f for the key above Enter, and the line ends that a host has.
local OTHERS <const> = {
  [" "] = 0x3920, ["\r"] = 0x1c0d, ["\n"] = 0x1c0d, ["\t"] = 0x0f09, ["\b"] = 0x0e08,
  ["\x7f"] = 0x0e08, ["\27"] = 0x011b, ["\0"] = 0x0300,
  ["\x1c"] = 0x2b1c, ["\x1d"] = 0x1b1d, ["\x1e"] = 0x071e, ["\x1f"] = 0x0c1f,
}

-- Keys without a character, behind ESC.
local SEQUENCES <const> = {
  ["[A"] = 0x4800, ["[B"] = 0x5000, ["[C"] = 0x4d00, ["[D"] = 0x4b00, -- arrows
  ["[H"] = 0x4700, ["[F"] = 0x4f00, ["[1~"] = 0x4700, ["[4~"] = 0x4f00, -- Home, End
  ["[2~"] = 0x5200, ["[3~"] = 0x5300, ["[5~"] = 0x4900, ["[6~"] = 0x5100, -- Ins, Del, Page
  ["OP"] = 0x3b00, ["OQ"] = 0x3c00, ["OR"] = 0x3d00, ["OS"] = 0x3e00, -- F1 to F4
  ["[15~"] = 0x3f00, ["[17~"] = 0x4000, ["[18~"] = 0x4100, ["[19~"] = 0x4200, -- F5 to F8
  ["[20~"] = 0x4300, ["[21~"] = 0x4400, -- F9, F10
}

local WORDS <const> = {}
for character, word in pairs(OTHERS) do WORDS[character] = word end
for _, row in ipairs(ROWS) do
  for i = 1, #row[2] do
    local scan = row[1] + i - 1
    for _, characters in ipairs { row[2], row[3] } do
      local character = characters:sub(i, i)
      WORDS[character] = scan << 8 | character:byte()
    end
    local letter = row[2]:match("^%l", i)
    local control = letter and string.char(letter:byte() & 0x1f)
    if control and not WORDS[control] then WORDS[control] = scan << 8 | control:byte() end
  end
end

-- The word of the key that bytes[at] begins, and where the next one is. What is on no key has no
-- scan code.
local function key_at(bytes, at)
  local sequence = bytes:match("^\27(%[%d*[%u~])", at) or bytes:match("^\27(O%u)", at)
  if SEQUENCES[sequence] then return SEQUENCES[sequence], at + 1 + #sequence end
  local character = bytes:sub(at, at)
  return WORDS[character] or character:byte(), at + 1
end

-- Two bytes for each key.
function keys.translate(bytes)
  local list, at = {}, 1
  while at <= #bytes do
    local word, after = key_at(bytes, at)
    table.insert(list, string.pack("<I2", word))
    at = after
  end
  return table.concat(list)
end

return keys

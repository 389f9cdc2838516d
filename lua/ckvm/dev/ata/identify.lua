-- What IDENTIFY DEVICE tells of a disk, for ckvm.dev.ata: 256 words (ATA/ATAPI-6, 8.15).

local identify = {}

-- The geometry that every disk tells; sectors beyond it are reached by LBA alone.
identify.HEADS, identify.SECTORS = 16, 63

local MOST_CYLINDERS <const> = 16383
local MOST_LBA28 <const> = (1 << 28) - 1

-- Words by number. Commands are told in three words, and in three which of them are on.
local WRITE_CACHE_AND_POWER <const> = 0x28
local FLUSH_FLUSH_EXT_LBA48 <const> = 0x3400
local VALID <const> = 0x4000 -- of words that say so

-- Text has the first of each two characters in the upper byte.
local function put_text(words, first, count, text)
  text = text .. (" "):rep(2 * count - #text)
  for i = 0, count - 1 do words[first + i] = string.unpack(">I2", text, 2 * i + 1) end
end

local function put_number(words, first, count, value)
  for i = 0, count - 1 do words[first + i] = value >> 16 * i & 0xffff end
end

function identify.cylinders(sectors)
  return math.min(sectors // (identify.HEADS * identify.SECTORS), MOST_CYLINDERS)
end

local function put_geometry(words, sectors)
  local heads <const>, per_track <const> = identify.HEADS, identify.SECTORS
  local cylinders = identify.cylinders(sectors)
  words[1], words[3], words[6] = cylinders, heads, per_track
  words[54], words[55], words[56] = cylinders, heads, per_track -- those in use
  put_number(words, 57, 2, cylinders * heads * per_track)
end

local function put_features(words)
  words[49] = 0x0a00 -- LBA, IORDY; no DMA
  words[50] = VALID
  words[51] = 0x0200 -- PIO mode 2
  words[53] = 3 -- words 54 to 58 and 64 to 70 are valid
  words[64] = 3 -- PIO modes 3 and 4
  put_number(words, 67, 2, 120 << 16 | 120) -- nanoseconds a cycle
  words[80] = 0x70 -- ATA/ATAPI-4 to 6
  words[82], words[83] = WRITE_CACHE_AND_POWER, FLUSH_FLUSH_EXT_LBA48 | VALID
  words[84], words[87] = VALID, VALID
  words[85], words[86] = WRITE_CACHE_AND_POWER, FLUSH_FLUSH_EXT_LBA48
  words[93] = 0x400b -- device 0, which has passed its diagnostics
end

-- `multiple` is how many sectors READ MULTIPLE has a block, `most` how many it may have.
function identify.words(sectors, multiple, most)
  local words = {}
  for i = 0, 255 do words[i] = 0 end
  words[0] = 0x0040 -- not removable
  put_geometry(words, sectors)
  put_features(words)
  put_text(words, 10, 10, "0")
  put_text(words, 23, 4, "1")
  put_text(words, 27, 20, "ckvm disk")
  words[47] = 0x8000 | most
  words[59] = multiple > 0 and 0x0100 | multiple or 0
  put_number(words, 60, 2, math.min(sectors, MOST_LBA28))
  put_number(words, 100, 4, sectors)
  return string.pack(("<I2"):rep(256), table.unpack(words, 0, 255))
end

return identify

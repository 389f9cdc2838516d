-- Files of known kinds that are no images to start, for ckvm.boot: what they are, and what is to be
-- done with them. As bare code they would die of their first instructions.

local foreign = {}

local function packed(by) return ("is compressed with %s: unpack it first"):format(by) end

local function disk(kind)
  return ("is a %s disk image: convert it with qemu-img convert -O raw"):format(kind)
end

local INITRD <const> = "is a cpio archive: as an initrd it goes beside a kernel"

-- Where the magic is, what it is, and what to say. None is what code begins with but by chance.
local MAGICS <const> = {
  { 0, "\x1f\x8b\x08", packed "gzip" },
  { 0, "\xfd7zXZ\0", packed "xz" },
  { 0, "\x28\xb5\x2f\xfd", packed "zstd" },
  { 4, "1AY&SY", packed "bzip2" }, -- behind BZh and a digit
  { 0, "\x04\x22\x4d\x18", packed "lz4" },
  { 0, "\x02\x21\x4c\x18", packed "lz4" }, -- as Linux has it
  { 0, "\x89LZO\0\r\n", packed "lzop" },
  { 0, "PK\3\4", packed "zip" },
  { 257, "ustar", "is a tar archive: unpack it first" },
  { 0, "070701", INITRD },
  { 0, "070702", INITRD },
  { 0, "QFI\xfb", disk "qcow2" },
  { 0, "KDMV", disk "VMDK" },
  { 0, "# Disk DescriptorFile", disk "VMDK" },
  { 0, "vhdxfile", disk "VHDX" },
  { 0, "conectix", disk "VHD" },
  { 0x40, "\x7f\x10\xda\xbe", disk "VDI" },
}

local HEADER_AT <const> = 0x3c -- of a program of EFI or Windows, its address

local function is_pe(bytes)
  if bytes:sub(1, 2) ~= "MZ" or #bytes < HEADER_AT + 4 then return false end
  local at <const> = string.unpack("<I4", bytes, HEADER_AT + 1)
  return bytes:sub(at + 1, at + 4) == "PE\0\0"
end

-- Code can be letters alone, but hardly whole lines of them.
local LEAST_TEXT <const>, MOST_TEXT <const>, LEAST_LINES <const> = 32, 512, 2

local function is_text(bytes)
  local start <const> = bytes:sub(1, MOST_TEXT)
  if #start < LEAST_TEXT or start:find "[^\t\n\f\r\x20-\x7e]" then return false end
  return select(2, start:gsub("\n", "")) >= LEAST_LINES
end

-- Of a kind that nothing makes an image of.
local function describe_other(bytes)
  if is_pe(bytes) then return "is a program of EFI or Windows" end
  if bytes:find "^#! ?/[\x20-\x7e]+\n" then return "is a script" end
  return is_text(bytes) and "is a text file" or nil
end

-- What to say of the file, in words that go behind its name, and behind them what is to be done:
-- for kinds that nothing makes an image of, `advice`, if there is any. nil for what may be code.
function foreign.describe(bytes, advice)
  for _, kind in ipairs(MAGICS) do
    local at <const>, magic <const>, words <const> = table.unpack(kind)
    if bytes:sub(at + 1, at + #magic) == magic then return words end
  end
  local other <const> = describe_other(bytes)
  return other and advice and other .. ": " .. advice or other
end

return foreign

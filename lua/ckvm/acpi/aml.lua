-- A little of the ACPI Machine Language, for ckvm.acpi: what devices a guest cannot find by itself
-- (ACPI 6.5, 20.2). Each function returns bytes.

local aml = {}

local ZERO <const>, ONE <const>, BYTE <const>, WORD <const>, DWORD <const> = 0, 1, 0x0a, 0x0b, 0x0c
local NAME <const>, SCOPE <const>, BUFFER <const>, PACKAGE <const> = 0x08, 0x10, 0x11, 0x12
local DEVICE <const> = "\x5b\x82"
local IO_PORTS <const>, IRQ <const>, END <const> = 0x47, 0x22, 0x79 -- small resource descriptors
local DECODES_16 <const> = 1
local SPACE_16 <const>, SPACE_32 <const> = 0x88, 0x87 -- large ones, with addresses of so many bits
local FIXED <const> = 0xc -- first and last, of what a bridge hands on

-- The length of what follows and of itself, in one to four bytes.
local function package_length(size)
  if size + 1 < 0x40 then return string.pack("<I1", size + 1) end
  for more = 1, 3 do
    local whole <const> = size + 1 + more
    if whole < 1 << 4 + 8 * more then
      return string.pack("<I1I" .. more, more << 6 | whole & 0xf, whole >> 4)
    end
  end
  error("AML: a package of " .. size .. " bytes is too long")
end

local function with_length(opcode, bytes)
  return opcode .. package_length(#bytes) .. bytes
end

function aml.integer(value)
  if value == 0 then return string.char(ZERO) end
  if value == 1 then return string.char(ONE) end
  if value <= 0xff then return string.pack("<I1I1", BYTE, value) end
  if value <= 0xffff then return string.pack("<I1I2", WORD, value) end
  return string.pack("<I1I4", DWORD, value)
end

-- A path or a name of four characters, with what has it.
function aml.name(path, value)
  return string.char(NAME) .. path .. value
end

function aml.scope(path, ...)
  return with_length(string.char(SCOPE), path .. table.concat { ... })
end

function aml.device(name, ...)
  return with_length(DEVICE, name .. table.concat { ... })
end

function aml.package(...)
  return with_length(string.char(PACKAGE),
    string.char(select("#", ...)) .. table.concat { ... })
end

-- "PNP0501", as an integer: three letters of 5 bits, and four digits, big-endian.
function aml.eisa_id(id)
  local letters = 0
  for letter in id:sub(1, 3):gmatch(".") do letters = letters << 5 | letter:byte() - 0x40 end
  return string.char(DWORD) .. string.pack(">I2I2", letters, tonumber(id:sub(4), 16))
end

-- The resources of a device: ports and lines from first to last.
function aml.resources(...)
  local bytes = table.concat { ... } .. string.char(END, 0)
  return with_length(string.char(BUFFER), aml.integer(#bytes) .. bytes)
end

function aml.ports(first, count)
  return string.pack("<I1I1I2I2I1I1", IO_PORTS, DECODES_16, first, first, 1, count)
end

-- What a bridge hands on to its bus: kind 0 is memory, 1 ports, 2 numbers of buses; flags are those
-- of the kind.
local function space(descriptor, number, kind, flags, first, last)
  local values = string.pack("<" .. number:rep(5), 0, first, last, 0, last - first + 1)
  return string.pack("<I1s2", descriptor, string.char(kind, FIXED, flags) .. values)
end

function aml.buses(first, last)
  return space(SPACE_16, "I2", 2, 0, first, last)
end

-- Of ISA and of all others.
function aml.port_window(first, last)
  return space(SPACE_16, "I2", 1, 3, first, last)
end

-- Neither cached nor prefetched, to be read and written.
function aml.memory_window(first, last)
  return space(SPACE_32, "I4", 0, 1, first, last)
end

-- An ISA line: edge-triggered, active high, not shared.
function aml.irq(line)
  return string.pack("<I1I2", IRQ, 1 << line)
end

return aml

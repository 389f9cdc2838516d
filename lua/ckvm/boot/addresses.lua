-- The address fields that both Multiboot headers may have, which say where a file without headers
-- of its own is to be loaded, for ckvm.boot.

local addresses = {}

local FIELDS <const> = { "load_addr", "size" }

-- The offset in the file of what goes to load_addr.
local function offset_of(image, at, fields)
  local header, first = fields.header_addr, fields.load_addr
  if first > header then
    image:fail("load_addr 0x%x is above header_addr 0x%x", first, header)
  elseif header - first > at then
    image:fail("header_addr 0x%x - load_addr 0x%x is more than the 0x%x bytes before the header",
      header, first, at)
  end
  return at - (header - first)
end

-- How many bytes of the file are loaded: 0 stands for all that there are.
local function length_of(image, offset, fields)
  local first, behind = fields.load_addr, fields.load_end_addr
  if behind == 0 then return #image.bytes - offset end
  if behind < first then
    image:fail("load_end_addr 0x%x is below load_addr 0x%x", behind, first)
  end
  image:check_inside(("load_end_addr 0x%x"):format(behind), offset, behind - first)
  return behind - first
end

-- Notes in ram what the fields of the header at offset `at` say; all are numbers of 32 bits.
function addresses.place(image, ram, at, fields)
  local offset = offset_of(image, at, fields)
  local length = length_of(image, offset, fields)
  local behind, bss_end = fields.load_addr + length, fields.bss_end_addr
  if bss_end == 0 then bss_end = behind end
  if bss_end < behind then
    image:fail("bss_end_addr 0x%x is below 0x%x, the end of what is loaded", bss_end, behind)
  end
  ram:load("address fields", fields.load_addr, bss_end - fields.load_addr, offset, length, FIELDS)
  ram:settle()
end

return addresses

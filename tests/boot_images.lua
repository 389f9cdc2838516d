-- Small images of every format that ckvm.boot loads, for its specs: each valid but for what it is
-- told.

local images = {}

local CODE <const> = 0x1000 -- the offset in the file

function images.patch(bytes, offset, format, value)
  local new = string.pack(format, value)
  return bytes:sub(1, offset) .. new .. bytes:sub(offset + #new + 1)
end

function images.sector(code)
  return code .. ("\0"):rep(510 - #code) .. "\x55\xaa"
end

local function padded(bytes, size)
  return bytes .. ("\0"):rep(size - #bytes)
end

-- Firmware of 64 KiB unless told; `code` is in its last 4 KiB, to which it jumps.
function images.bios(code, size)
  local before = (size or 0x10000) - 0x1000
  return ("\0"):rep(before) .. padded(code, 0xff0)
    .. "\xea\0\xf0\0\xf0" .. ("\0"):rep(11) -- ljmp $0xf000, $0xf000
end

local function program_header(bits, type, offset, vaddr, paddr, filesz, memsz)
  if bits == 32 then
    local function low(value) return value & 0xffffffff end
    return string.pack("<I4I4I4I4I4I4I4I4", type, low(offset), low(vaddr), low(paddr), low(filesz),
      low(memsz), 7, 4)
  end
  return string.pack("<i4i4i8i8i8i8i8i8", type, 7, offset, vaddr, paddr, filesz, memsz, 4)
end

-- `code` is loaded `at` (0x100000), and linked to `vaddr`; of 64 `bits` unless told. The list is
-- of further program headers: { type, offset, vaddr, paddr, filesz, memsz }.
function images.elf(fields)
  local bits, at = fields.bits or 64, fields.at or 0x8000
  local size = #fields.code
  local vaddr = fields.vaddr or at
  local headers = { program_header(bits, 1, CODE, vaddr, at, size, fields.memsz or size) }
  for i, more in ipairs(fields) do headers[i + 1] = program_header(bits, table.unpack(more)) end
  local word, header, entry = "<I2I2I4i8i8i8I4I2I2I2I2I2I2", 64, 56
  if bits == 32 then word, header, entry = "<I2I2I4I4I4I4I4I2I2I2I2I2I2", 52, 32 end
  local ident = "\x7fELF" .. string.pack("BBB", bits // 32, 1, 1) .. ("\0"):rep(9)
  local machine = bits == 32 and 3 or 62
  return padded(ident .. string.pack(word, 2, machine, 1, fields.entry or vaddr, header, 0, 0,
    header, entry, #headers, 0, 0, 0) .. table.concat(headers), CODE) .. fields.code
end

-- A header of Multiboot 1, with address fields if there are any.
function images.multiboot_header(flags, ...)
  local magic = 0x1badb002
  return string.pack("<I4I4I4", magic, flags, -(magic + flags) & 0xffffffff)
    .. string.pack(("<I4"):rep(select("#", ...)), ...)
end

-- `code` is loaded behind the header, `at` + 32; `before` are bytes before the header, which are
-- loaded, too. The address fields are right unless told.
function images.multiboot(fields)
  local at, before = fields.at or 0x100000, fields.before or ""
  local start = at + #before
  return before .. images.multiboot_header(fields.flags or 0x10003, fields.header_addr or start,
    fields.load_addr or at, fields.load_end_addr or 0, fields.bss_end_addr or 0,
    fields.entry_addr or start + 32) .. fields.code
end

-- A tag of Multiboot 2's header.
function images.tag(type, flags, bytes)
  return string.pack("<I2I2I4", type, flags, 8 + #bytes) .. bytes .. ("\0"):rep(-#bytes & 7)
end

-- A header of Multiboot 2, with an end behind its tags.
function images.multiboot2_header(tags, architecture)
  local magic, length = 0xe85250d6, 16 + #tags + 8
  architecture = architecture or 0
  return string.pack("<I4I4I4I4", magic, architecture, length,
    -(magic + architecture + length) & 0xffffffff) .. tags .. images.tag(0, 0, "")
end

-- `code` is loaded behind the header, `at` + 64 + #tags, with `before` before it. The fields are
-- right unless told.
function images.multiboot2(fields)
  local at, before, tags = fields.at or 0x100000, fields.before or "", fields.tags or ""
  local start = at + #before
  local address = string.pack("<I4I4I4I4", fields.header_addr or start, fields.load_addr or at,
    fields.load_end_addr or 0, fields.bss_end_addr or 0)
  local entry = string.pack("<I4", fields.entry_addr or start + 64 + #tags)
  return before .. images.multiboot2_header(tags .. images.tag(2, 0, address)
    .. images.tag(3, 0, entry)) .. fields.code
end

function images.note(owner, type, desc)
  return string.pack("<I4I4I4", #owner, #desc, type) .. owner .. ("\0"):rep(-#owner & 3) .. desc
    .. ("\0"):rep(-#desc & 3)
end

-- An ELF file whose segment begins with notes, PHYS32_ENTRY with an entry behind these unless told,
-- and goes on with `code`.
function images.pvh(fields)
  local at = fields.at or 0x100000
  local desc = fields.bits == 32 and "<I4" or "<I8"
  local size <const> = 16 + string.packsize(desc)
  local notes = fields.notes or images.note("Xen\0", 18, string.pack(desc, at + size))
  return images.elf {
    bits = fields.bits, at = at, vaddr = fields.vaddr, entry = fields.entry,
    code = notes .. fields.code,
    { 4, 0x1000, 0, 0, #notes, #notes },
  }
end

-- A bzImage of protocol 2.15 with one sector of real-mode code, `real`: `code` is its 32-bit entry,
-- and `code64` the one 0x200 behind that. The fields are right unless told.
function images.bzimage(fields)
  local setup = padded("", 1024)
  local function put(at, format, value)
    if value then setup = images.patch(setup, at, format, value) end
  end
  put(0x1f1, "<I1", fields.setup_sects or 1)
  put(0x1fe, "<I2", 0xaa55)
  put(0x200, "c2", "\xeb\x62") -- the header ends at 0x264
  put(0x202, "c4", "HdrS")
  put(0x206, "<I2", fields.version or 0x20f)
  put(0x211, "<I1", fields.loadflags or 1)
  put(0x214, "<I4", fields.code32_start or 0x100000)
  put(0x22c, "<I4", fields.initrd_addr_max or 0x7fffffff)
  put(0x236, "<I2", fields.xloadflags or 1)
  put(0x238, "<I4", fields.cmdline_size or 0x7ff)
  put(0x258, "<I8", fields.pref_address or 0x200000)
  put(0x260, "<I4", fields.init_size or 0x4000)
  if fields.real then put(0x264, "c" .. #fields.real, fields.real) end
  return setup .. padded(fields.code or "", 0x200) .. (fields.code64 or "")
end

-- One that has no other entry than `real`.
function images.linux16(fields)
  fields.code32_start, fields.xloadflags = fields.code32_start or 0, fields.xloadflags or 0
  return images.bzimage(fields)
end

return images

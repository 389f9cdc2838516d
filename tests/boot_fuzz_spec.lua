-- ckvm.boot with images that are valid but for a few bytes: load works, or raises a string that
-- begins with the image's name. For a hundredth of 100,000 images, with a new seed, unless told.

local boot = require "ckvm.boot"
local ckvm = require "ckvm"
local images = require "boot_images"
local support = require "support"

local MEMORY <const> = 0x110000 -- more than 1 MiB, which some are loaded at
local NAME <const> = "fuzz.img"

local random = math.random

local function pick(list) return list[random(#list)] end

-- Valid ones, with the offsets where their headers are.
local function corpus()
  local list, code = {}, "\x90\x90\xf4" -- nop; nop; hlt
  local function add(bytes, ...) table.insert(list, { bytes = bytes, headers = { ... } }) end
  add(code, 0)
  add(images.sector(code), 0, 510)
  add(images.bios(code), 0xfff0)
  for _, bits in ipairs { 32, 64 } do
    add(images.elf { bits = bits, code = code, at = 0x8000, { 1, 0, 0, 0x9000, 0x40, 0x2000 } },
      0, 0x34, 0x40, 0x60, 0x80)
    add(images.elf { bits = bits, code = images.multiboot_header(3) .. code, at = 0x8000 },
      0, 0x40, 0x1000)
    add(images.elf { bits = bits, code = images.multiboot2_header(
      images.tag(1, 0, "\1\0\0\0") .. images.tag(3, 0, "\0\x80\0\0")) .. code, at = 0x8000 },
      0, 0x40, 0x1000, 0x1010)
    add(images.pvh { bits = bits, code = code, at = 0x8000 }, 0, 0x40, 0x60, 0x70, 0x1000)
  end
  add(images.multiboot { code = code, at = 0x8000, bss_end_addr = 0x9000 }, 0, 12)
  add(images.multiboot2 { code = code, at = 0x8000, tags = images.tag(6, 0, "")
    .. images.tag(99, 1, "12345") }, 0, 16, 40)
  add(images.bzimage { code64 = code, pref_address = 0x8000, init_size = 0x1000 }, 0x1f1, 0x200,
    0x230, 0x250)
  add(images.linux16 { real = code, code = code }, 0x1f1, 0x200, 0x210, 0x228)
  return list
end

local NUMBERS <const> = {
  0, 1, 2, 3, 4, 7, 8, 12, 16, 32, 0xfff, 0x1000, 0x8000, 0xffff, 0x10000, 0x90000, 0xfffff,
  0x100000, MEMORY, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff, 1 << 32, math.maxinteger,
  math.mininteger, -16, -1,
}

local function number()
  local kind = random(4)
  if kind == 1 then return random(0) end
  if kind == 2 then return pick(NUMBERS) + random(-2, 2) end
  return pick(NUMBERS)
end

-- An offset in a header, most often one of a multiple of two.
local function offset_in(bytes, headers)
  local offset = random(8) == 1 and random(0, #bytes) or pick(headers) + random(0, 0x40)
  if random(4) > 1 then offset = offset & ~1 end
  return math.min(offset, #bytes)
end

local changes <const> = {
  function(bytes, headers) -- a field
    local size = pick { 1, 2, 4, 4, 8 }
    local mask = size == 8 and -1 or (1 << size * 8) - 1
    return images.patch(bytes, offset_in(bytes, headers), "<I" .. size, number() & mask)
  end,
  function(bytes, headers) -- one that is near to what it was
    local offset = math.min(offset_in(bytes, headers), #bytes - 1)
    local new = (bytes:byte(offset + 1) or 0) + random(-2, 2) & 0xff
    return images.patch(bytes, math.max(offset, 0), "B", new)
  end,
  function(bytes, headers) return bytes:sub(1, offset_in(bytes, headers)) end,
  function(bytes, headers) -- moved by a few bytes
    local offset = offset_in(bytes, headers)
    return bytes:sub(1, offset) .. ("\0"):rep(random(16)) .. bytes:sub(offset + 1)
  end,
  function(bytes, headers) -- another place's bytes
    local from, to, size = offset_in(bytes, headers), offset_in(bytes, headers), random(64)
    local part = bytes:sub(from + 1, from + size)
    return bytes:sub(1, to) .. part .. bytes:sub(to + 1 + #part)
  end,
  function(bytes) -- a program of EFI, or nearly
    return "MZ" .. bytes:sub(3, 0x3c) .. string.pack("<I4", number() & 0xffffffff)
      .. bytes:sub(0x41)
  end,
}

-- The checksum is to be right in most, or nothing behind it is looked at.
local function mend(bytes)
  local at = bytes:find("\x02\xb0\xad\x1b", 1, true)
  if at and #bytes >= at + 11 then
    local magic, flags = string.unpack("<I4I4", bytes, at)
    bytes = images.patch(bytes, at + 7, "<I4", -(magic + flags) & 0xffffffff)
  end
  at = bytes:find("\xd6\x50\x52\xe8", 1, true)
  if at and #bytes >= at + 15 then
    local magic, architecture, length = string.unpack("<I4I4I4", bytes, at)
    bytes = images.patch(bytes, at + 11, "<I4", -(magic + architecture + length) & 0xffffffff)
  end
  return bytes
end

local function mutate(valid)
  local bytes = valid.bytes
  for _ = 1, random(4) do
    -- A field is changed as often as all the rest is.
    local change = random(2) == 1 and changes[1] or pick(changes)
    bytes = change(bytes, valid.headers)
  end
  return random(4) > 1 and mend(bytes) or bytes
end

local FORMATS <const> = boot.formats()
local TAKES_MORE <const> = {
  linux16 = true, bzimage = true, multiboot2 = true, multiboot = true, pvh = true,
}

local function options_for(bytes)
  local options = { name = NAME, memory = MEMORY }
  if random(4) == 1 then options.format = pick(FORMATS) end
  if TAKES_MORE[options.format or boot.detect(bytes)] then
    options.cmdline = ("x"):rep(random(0, 20))
    options.modules = { { bytes = ("y"):rep(random(0, 0x2000)) } }
    if random(2) == 1 then options.acpi = { cpus = random(1, 200) } end
  end
  return options
end

-- Raises where load does what it may not; returns whether it works.
local function try(vm, vcpu, bytes)
  local options = options_for(bytes)
  local done, start = pcall(boot.load, vm, bytes, options)
  if done then
    assert(start.rip >= 0 and start.rip < MEMORY, "rip")
    boot.enter(vcpu, start)
    return true
  end
  assert(type(start) == "string", type(start))
  -- Lua's own errors have a line, and these words.
  local own = start:find("%.lua:%d") or start:find("attempt to") or start:find("bad argument")
  assert(start:find(NAME .. ": ", 1, true) == 1 and not own, start)
  return false
end

describe("ckvm.boot", function()
  before_each(support.need_kvm)

  it("loads any image, or says in its name why not #slow", function()
    local seed = tonumber(os.getenv "CKVM_SEED") or os.time()
    print("CKVM_SEED=" .. seed)
    math.randomseed(seed)
    local vm = ckvm.open():create_vm()
    vm:add_memory { gpa = 0, size = 2 * MEMORY }
    vm:fill(MEMORY, MEMORY, 0xff)
    local vcpu = vm:create_vcpu(0)
    local list, worked, refused = corpus(), 0, 0
    for _, valid in ipairs(list) do
      assert(pcall(boot.load, vm, valid.bytes, { name = NAME, memory = MEMORY }))
    end
    for i = 1, support.times(100000) do
      local bytes = mutate(pick(list))
      local done, result = pcall(try, vm, vcpu, bytes)
      if not done then
        error(("image %d of CKVM_SEED=%d: %s\n%q"):format(i, seed, tostring(result), bytes), 0)
      end
      if result then worked = worked + 1 else refused = refused + 1 end
    end
    -- Neither of them is what all images come to.
    assert(worked > 0 and refused > 0, ("%d worked, %d refused"):format(worked, refused))
    assert.equal(("\xff"):rep(MEMORY), vm:read(MEMORY, MEMORY))
  end)
end)

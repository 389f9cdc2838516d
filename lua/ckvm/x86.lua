--- What an x86 guest is set up with: names for control bits, page tables, and the state of a vCPU
-- that starts in a mode.
--
-- The bits are numbers, to be combined with `|`. Nothing here needs the rest: a script can build
-- page tables and set the segments by itself, or the other way round.
-- @module ckvm.x86
-- @usage
-- local x86 = require "ckvm.x86"
-- local cr3 = x86.identity_map(vm, 0x1000, 4 << 30)
-- x86.enter(vcpu, "long", { rip = 0x100000, rsp = 0x100000, cr3 = cr3 })
local x86 = {}

local PAGE <const> = 0x1000
local ENTRIES <const> = 512 -- of a page table
local LARGE_PAGE <const> = 2 << 20
local RESERVED <const> = 2 -- the bit of rflags that is always set

--- Bits of CR0.
x86.cr0 = {
  pe = 1 << 0, mp = 1 << 1, em = 1 << 2, ts = 1 << 3, et = 1 << 4, ne = 1 << 5, wp = 1 << 16,
  am = 1 << 18, nw = 1 << 29, cd = 1 << 30, pg = 1 << 31,
}

--- Bits of CR4.
x86.cr4 = {
  vme = 1 << 0, pvi = 1 << 1, tsd = 1 << 2, de = 1 << 3, pse = 1 << 4, pae = 1 << 5, mce = 1 << 6,
  pge = 1 << 7, pce = 1 << 8, osfxsr = 1 << 9, osxmmexcpt = 1 << 10, umip = 1 << 11, la57 = 1 << 12,
  vmxe = 1 << 13, smxe = 1 << 14, fsgsbase = 1 << 16, pcide = 1 << 17, osxsave = 1 << 18,
  smep = 1 << 20, smap = 1 << 21, pke = 1 << 22,
}

--- Bits of the MSR EFER.
x86.efer = { sce = 1 << 0, lme = 1 << 8, lma = 1 << 10, nxe = 1 << 11, svme = 1 << 12 }

--- Bits of an entry of a page table.
x86.page = {
  present = 1 << 0, write = 1 << 1, user = 1 << 2, write_through = 1 << 3, no_cache = 1 << 4,
  accessed = 1 << 5, dirty = 1 << 6, large = 1 << 7, global = 1 << 8, no_execute = 1 << 63,
}

local cr0 <const>, cr4 <const>, efer <const>, page <const> = x86.cr0, x86.cr4, x86.efer, x86.page

-- Page tables ----------------------------------------------------------------

local function directories(size)
  if math.type(size) ~= "integer" or size < 1 or size > ENTRIES << 30 then
    error(("size: %s is not between 1 and 0x%x"):format(tostring(size), ENTRIES << 30), 3)
  end
  return (size - 1 >> 30) + 1
end

--- How many bytes `identity_map` takes for its tables.
-- @tparam integer size of what is mapped, at most 512 GiB
-- @treturn integer a multiple of the page size
function x86.identity_map_size(size)
  return (2 + directories(size)) * PAGE
end

--- Maps all addresses below `size` to themselves, in 2 MiB pages that ring 0 may read, write and
-- execute; at least 1 GiB, in whole GiB.
-- @param vm the VM in whose memory the tables are built
-- @tparam integer gpa where: `identity_map_size(size)` bytes, page-aligned
-- @tparam integer size bytes to map, at most 512 GiB
-- @treturn integer the value for CR3
function x86.identity_map(vm, gpa, size)
  local count <const> = directories(size)
  if math.type(gpa) ~= "integer" or gpa % PAGE ~= 0 then
    error(("gpa: %s is not a multiple of the page size"):format(tostring(gpa)), 2)
  end
  local flags <const> = page.present | page.write
  local tables = { string.pack("<I8", gpa + PAGE | flags), ("\0"):rep(PAGE - 8) }
  for i = 0, ENTRIES - 1 do
    local entry = i < count and gpa + (2 + i) * PAGE | flags or 0
    table.insert(tables, string.pack("<I8", entry))
  end
  for i = 0, count * ENTRIES - 1 do
    table.insert(tables, string.pack("<I8", i * LARGE_PAGE | flags | page.large))
  end
  vm:write(gpa, table.concat(tables))
  return gpa
end

-- Modes ----------------------------------------------------------------------

local CODE <const>, DATA <const> = 11, 3 -- segment types: execute/read, read/write, both accessed

-- A flat segment: base 0, present, ring 0.
local function segment(selector, kind, limit, flags)
  return {
    base = 0, limit = limit, selector = selector, type = kind, present = 1, dpl = 0, s = 1,
    db = flags.db or 0, l = flags.l or 0, g = flags.g or 0, avl = 0, unusable = 0,
  }
end

local function flat(code, data)
  return { cs = code, ds = data, es = data, fs = data, gs = data, ss = data }
end

local modes = {}

function modes.real(start)
  if start.rip < 0 or start.rip > 0xffff then
    error(("rip: 0x%x is beyond 0xffff, where a real-mode segment ends"):format(start.rip), 3)
  end
  local sregs = flat(segment(0, CODE, 0xffff, {}), segment(0, DATA, 0xffff, {}))
  sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = cr0.et, 0, 0, 0
  sregs.idt = { base = 0, limit = 0x3ff }
  return sregs
end

-- The descriptor caches are filled in: a GDT is needed when the guest loads a segment.
function modes.long(start)
  if not start.cr3 then error("cr3: long mode needs page tables", 3) end
  local sregs = flat(segment(8, CODE, 0xffffffff, { l = 1, g = 1 }),
    segment(16, DATA, 0xffffffff, { db = 1, g = 1 }))
  sregs.cr0 = cr0.pe | cr0.mp | cr0.et | cr0.ne | cr0.wp | cr0.pg
  sregs.cr3 = start.cr3
  sregs.cr4 = cr4.pae | cr4.osfxsr | cr4.osxmmexcpt
  sregs.efer = efer.lme | efer.lma
  sregs.idt = { base = 0, limit = 0 }
  return sregs
end

--- Puts a vCPU at the start of a program: flat segments, control registers, and clear general
-- registers with interrupts off.
--
-- `"real"`: 16-bit code, all segments at 0, interrupt vectors at 0. `"long"`: 64-bit code in ring
-- 0, no GDT and no IDT until the guest loads one, so that an exception is a triple fault; SSE is
-- switched on.
-- @param vcpu the vCPU
-- @tparam string mode `"real"` or `"long"`
-- @tparam table start `rip`, `rsp` (0), and for long mode `cr3`, as `identity_map` returns it
function x86.enter(vcpu, mode, start)
  local setup = modes[mode]
  if not setup then error(("unknown mode '%s'"):format(tostring(mode)), 2) end
  for key, value in pairs(start) do
    if key ~= "rip" and key ~= "rsp" and (key ~= "cr3" or mode ~= "long") then
      error(("unknown option '%s' of %s mode"):format(tostring(key), mode), 2)
    elseif math.type(value) ~= "integer" then
      error(("%s: integer expected, got %s"):format(key, type(value)), 2)
    end
  end
  if not start.rip then error("rip: where to start is not given", 2) end
  vcpu:set_sregs(setup(start))
  local regs = { rip = start.rip, rsp = start.rsp or 0, rflags = RESERVED }
  for name in pairs(vcpu:get_regs()) do regs[name] = regs[name] or 0 end
  vcpu:set_regs(regs)
end

return x86

-- Segments, and the tables of descriptors, gates and tasks, for ckvm.x86.

local check = require "ckvm.check"
local vectors = require "ckvm.x86.vectors"

local segments = {}

--- Selectors of the table that `gdt` builds, in the order that SYSCALL and SYSRET want; those of
-- ring 3 end in 3.
-- @field ckvm.x86.selector
segments.selector = {
  code = 0x08, data = 0x10, user_code32 = 0x1b, user_data = 0x23, user_code = 0x2b, tss = 0x30,
  code32 = 0x40,
}

--- The value of the MSR STAR for these selectors.
-- @field ckvm.x86.star
-- @treturn integer value
segments.star = 0x001b0008 << 32

local selector <const> = segments.selector

-- Types; code and data are accessed already, a task is busy.
local TYPES <const> = { code = 11, data = 3, tss = 11 }
local BUSY <const> = 2

local SEGMENT <const> = {
  selector = "integer", base = "integer?", limit = "integer?", bits = "integer?",
}
local PLACE <const> = { base = "integer", limit = "integer" }
local TSS <const> = { rsp0 = "integer?", ist = "table?", ports = "table?" }
local STACKS <const> = 7 -- of the interrupt stack table

--- A segment, as `vcpu:set_sregs` takes it: present, in the ring that its selector tells.
-- @function ckvm.x86.segment
-- @tparam string kind `"code"`, `"data"` or `"tss"`
-- @tparam table fields `selector`, `base` (0), `limit` (4 GiB), `bits` of the code: 16, 32 (the
-- default) or 64
-- @treturn kvm_segment a fresh table
-- @raise only for misuse
-- @usage
-- local data = x86.segment("data", { selector = x86.selector.data })
function segments.segment(kind, fields)
  if not TYPES[kind] then error(("unknown kind '%s' of a segment"):format(tostring(kind)), 2) end
  check.fields("segment", fields, SEGMENT)
  local limit <const>, bits <const> = fields.limit or 0xffffffff, fields.bits or 32
  return {
    base = fields.base or 0, limit = limit, selector = fields.selector, type = TYPES[kind],
    present = 1, dpl = fields.selector & 3, s = kind == "tss" and 0 or 1,
    db = kind ~= "tss" and bits == 32 and 1 or 0, l = kind == "code" and bits == 64 and 1 or 0,
    g = limit > 0xfffff and 1 or 0, avl = 0, unusable = 0,
  }
end

--- A descriptor, as it stands in a GDT.
-- @function ckvm.x86.descriptor
-- @tparam kvm_segment seg a segment
-- @treturn string 8 bytes, 16 for a system segment of long mode
-- @raise what Lua does
-- @usage
-- assert(#x86.descriptor(x86.segment("code", { selector = 8, bits = 64 })) == 8)
function segments.descriptor(seg)
  local limit = seg.g == 1 and seg.limit >> 12 or seg.limit
  local access = seg.type | seg.s << 4 | seg.dpl << 5 | seg.present << 7
  local flags = seg.avl | seg.l << 1 | seg.db << 2 | seg.g << 3
  local low = limit & 0xffff | (seg.base & 0xffffff) << 16 | access << 40
    | (limit >> 16 & 0xf) << 48 | flags << 52 | (seg.base >> 24 & 0xff) << 56
  return seg.s == 1 and string.pack("<I8", low) or string.pack("<I8I8", low, seg.base >> 32)
end

--- A GDT with flat segments for ring 0 and ring 3, 64 and 32 bits, at `x86.selector`.
-- @function ckvm.x86.gdt
-- @tparam[opt] table tss `{ base =, limit = }` of the TSS, for LTR: without it there is none
-- @treturn string its bytes
-- @raise only for misuse
-- @usage
-- local bytes = x86.gdt()
-- vm:write(0x2000, bytes)
-- vcpu:set_sregs { gdt = { base = 0x2000, limit = #bytes - 1 } }
function segments.gdt(tss)
  if tss ~= nil then check.fields("tss", tss, PLACE) end
  local entries = {}

  local function put(kind, number, bits)
    entries[number & ~7] = segments.descriptor(
      segments.segment(kind, { selector = number, bits = bits }))
  end

  put("code", selector.code, 64)
  put("data", selector.data)
  put("code", selector.user_code32)
  put("data", selector.user_data)
  put("code", selector.user_code, 64)
  put("code", selector.code32)
  if tss then
    local task = segments.segment("tss",
      { selector = selector.tss, base = tss.base, limit = tss.limit })
    task.type = task.type & ~BUSY -- LTR makes it so
    entries[selector.tss] = segments.descriptor(task)
  end
  local bytes = ""
  for at = 0, selector.code32, 8 do
    if #bytes == at then bytes = bytes .. (entries[at] or ("\0"):rep(8)) end
  end
  return bytes
end

--- An IDT of long mode: interrupt gates to ring 0.
-- @function ckvm.x86.idt
-- @tparam table handlers addresses by vector; vectors without one are not present
-- @tparam[opt] table rings by vector, 3 for those that ring 3 may raise by `INT n`
-- @tparam[opt] table stacks by vector, which of the TSS's `ist` it is to have, 1 to 7: with none it
-- has `rsp0`, and from ring 0 the stack that is there
-- @treturn string its bytes, up to the last vector that has a handler
-- @raise only for misuse
-- @usage
-- vm:write(0x2000, x86.idt { [13] = 0x1000 })
function segments.idt(handlers, rings, stacks)
  check.argument("handlers", handlers, "table")
  local gates <const> = vectors.gates(handlers, ("\0"):rep(16), function(vector, at)
    return string.pack("<I2I2I1I1I2I4I4", at & 0xffff, selector.code,
      vectors.number("stacks", stacks, vector, STACKS),
      0x8e | vectors.number("rings", rings, vector, 3) << 5, at >> 16 & 0xffff,
      at >> 32 & 0xffffffff, 0)
  end)
  return gates -- not called in the return: errors count the callers
end

--- A TSS of long mode.
-- @function ckvm.x86.tss
-- @tparam table fields `rsp0`, the stack for exceptions from ring 3, `ist`, a list of up to 7 more
-- stacks for gates that name one, and `ports`, a list of those that ring 3 may access (by default
-- it may access none)
-- @treturn string its bytes, with the I/O bitmap at their end
-- @raise only for misuse
-- @usage
-- vm:write(0x3000, x86.tss { rsp0 = 0x9000, ports = { 0x80 } })
function segments.tss(fields)
  check.fields("tss", fields, TSS)
  local stacks = {}
  for i = 1, STACKS do
    stacks[i] = fields.ist and fields.ist[i] or 0
    if math.type(stacks[i]) ~= "integer" then
      error(("ist: %s is no address"):format(tostring(stacks[i])), 2)
    end
  end
  return string.pack("<I4I8", 0, fields.rsp0 or 0) .. ("\0"):rep(24)
    .. string.pack("<I8I8I8I8I8I8I8", table.unpack(stacks)) .. ("\0"):rep(10)
    .. string.pack("<I2", 104) .. vectors.port_bitmap(fields.ports or {})
end

return segments

-- The tables of descriptors, gates and tasks for guests in protected mode, for ckvm.x86.

local check = require "ckvm.check"
local segments = require "ckvm.x86.segments"
local vectors = require "ckvm.x86.vectors"

local segments32 = {}

local selector <const> = segments.selector
local PLACE <const> = { base = "integer", limit = "integer" }
local TSS <const> = { esp0 = "integer?", ports = "table?" }
local AVAILABLE_TSS <const> = 0x89 -- type and present: LTR makes it busy

local function check_32(what, number)
  if number < 0 or number > 0xffffffff then
    error(("%s: 0x%x does not fit in 32 bits"):format(what, number), 3)
  end
end

local function task(place)
  return string.pack("<I2I2I1I1I1I1", place.limit & 0xffff, place.base & 0xffff,
    place.base >> 16 & 0xff, AVAILABLE_TSS, place.limit >> 16 & 0xf, place.base >> 24 & 0xff)
end

--- A GDT of protected mode with flat segments of 32 bits for ring 0 and ring 3, at the selectors
-- `code` and `code32` (which are alike here), `data`, `user_code32` and `user_data` of
-- `x86.selector`.
-- @function ckvm.x86.gdt32
-- @tparam[opt] table tss `{ base =, limit = }` of the TSS, for LTR: without it there is none
-- @treturn string its bytes
-- @raise only for misuse
-- @usage
-- local bytes = x86.gdt32()
-- vm:write(0x2000, bytes)
-- x86.enter(vcpu, "protected", { rip = 0x1000, gdt = { base = 0x2000, limit = #bytes - 1 } })
function segments32.gdt32(tss)
  if tss ~= nil then
    check.fields("tss", tss, PLACE)
    check_32("base", tss.base)
    if tss.limit < 0 or tss.limit > 0xfffff then
      error(("limit: 0x%x is not between 0 and 0xfffff"):format(tss.limit), 2)
    end
  end
  local entries = { [selector.tss] = tss and task(tss) }
  for kind, numbers in pairs {
    code = { selector.code, selector.user_code32, selector.code32 },
    data = { selector.data, selector.user_data },
  } do
    for _, number in ipairs(numbers) do
      entries[number & ~7] = segments.descriptor(segments.segment(kind, { selector = number }))
    end
  end
  local bytes = ""
  for at = 0, selector.code32, 8 do bytes = bytes .. (entries[at] or ("\0"):rep(8)) end
  return bytes
end

--- An IDT of protected mode: interrupt gates of 32 bits to ring 0, at `x86.selector.code32`.
-- @function ckvm.x86.idt32
-- @tparam table handlers addresses by vector; vectors without one are not present
-- @tparam[opt] table rings by vector, 3 for those that ring 3 may raise by `INT n`
-- @treturn string its bytes, up to the last vector that has a handler
-- @raise only for misuse
-- @usage
-- vm:write(0x2000, x86.idt32 { [13] = 0x1000 })
function segments32.idt32(handlers, rings)
  check.argument("handlers", handlers, "table")
  for _, address in pairs(handlers) do
    if math.type(address) == "integer" then check_32("handler", address) end
  end
  local gates <const> = vectors.gates(handlers, ("\0"):rep(8), function(vector, at)
    return string.pack("<I2I2I1I1I2", at & 0xffff, selector.code32, 0,
      0x8e | vectors.number("rings", rings, vector, 3) << 5, at >> 16)
  end)
  return gates -- not called in the return: errors count the callers
end

--- A TSS of protected mode.
-- @function ckvm.x86.tss32
-- @tparam table fields `esp0`, the stack for exceptions from ring 3, and `ports`, a list of those
-- that ring 3 may access (by default it may access none)
-- @treturn string its bytes, with the I/O bitmap at their end
-- @raise only for misuse
-- @usage
-- vm:write(0x3000, x86.tss32 { esp0 = 0x9000, ports = { 0x80 } })
function segments32.tss32(fields)
  check.fields("tss32", fields, TSS)
  check_32("esp0", fields.esp0 or 0)
  return string.pack("<I4I4I4", 0, fields.esp0 or 0, selector.data) .. ("\0"):rep(90)
    .. string.pack("<I2", 104) .. vectors.port_bitmap(fields.ports or {})
end

return segments32

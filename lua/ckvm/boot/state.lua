-- The states of a vCPU that formats start in, with the tables these need, for ckvm.boot.

local x86 = require "ckvm.x86"

local state = {}

local PAGE <const> = 0x1000
local STACK <const> = 0x4000
local LEAST_MAPPED <const> = 4 << 30 -- with what devices are at
local CODE <const> = 0x08

-- A GDT with a code segment of `bits` at the selector and one for data behind it, and the segment
-- registers that go with it.
local function flat(bits, selector)
  local code = x86.segment("code", { selector = selector, bits = bits })
  local data = x86.segment("data", { selector = selector + 8 })
  return ("\0"):rep(selector) .. x86.descriptor(code) .. x86.descriptor(data),
    { cs = code, ds = data, es = data, fs = data, gs = data, ss = data }
end

-- 32-bit code in flat segments, without paging, interrupts, and anything in CR0 but what a CPU of
-- today cannot be without. The GDT has what the segment registers say; CS is `selector`, 0x08
-- unless told, and the others are the next one.
function state.protected(image, ram, rip, regs, selector)
  if rip > 0xffffffff then image:fail("entry 0x%x is beyond 0xffffffff, for 32-bit code", rip) end
  local bytes, sregs = flat(32, selector or CODE)
  local gpa = ram:allocate("GDT", "tables", PAGE)
  ram:put("GDT", gpa, PAGE, bytes)
  sregs.cr0 = x86.cr0.pe | x86.cr0.et
  sregs.tr = x86.segment("tss", { selector = 0, base = 0, limit = 0x67 })
  return {
    mode = "protected", rip = rip, regs = regs, gdt = { base = gpa, limit = #bytes - 1 },
    sregs = sregs,
  }
end

-- 64-bit code with 4 GiB, or all memory, mapped to itself. The GDT is that of ckvm.x86, or one for
-- the selector, as above.
function state.long(_, ram, rip, regs, selector)
  local mapped = math.max(ram:top(), LEAST_MAPPED)
  local size = x86.identity_map_size(mapped)
  local gpa = ram:allocate("page tables", "tables", size + PAGE)
  ram:put("page tables", gpa, size, function(vm) x86.identity_map(vm, gpa, mapped) end)
  local bytes, sregs = x86.gdt(), nil
  if selector then bytes, sregs = flat(64, selector) end
  ram:put("GDT", gpa + size, PAGE, bytes)
  return {
    mode = "long", rip = rip, regs = regs, cr3 = gpa,
    gdt = { base = gpa + size, limit = #bytes - 1 }, sregs = sregs,
  }
end

-- Returns the end of a stack.
function state.stack(ram)
  local gpa = ram:allocate("stack", "tables", STACK)
  ram:put("stack", gpa, STACK, "")
  return gpa + STACK
end

return state

-- The states of a vCPU that formats start in, with the tables these need, for ckvm.boot.

local x86 = require "ckvm.x86"

local state = {}

local PAGE <const> = 0x1000
local STACK <const> = 0x4000
local LEAST_MAPPED <const> = 4 << 30 -- with what devices are at
local CODE <const>, DATA <const> = 0x08, 0x10

-- 32-bit code in flat segments, without paging, interrupts, and anything in CR0 but what a CPU of
-- today cannot be without. The GDT has what the segment registers say.
function state.protected(image, ram, rip, regs)
  if rip > 0xffffffff then image:fail("entry 0x%x is beyond 0xffffffff, for 32-bit code", rip) end
  local code = x86.segment("code", { selector = CODE })
  local bytes = ("\0"):rep(8) .. x86.descriptor(code)
    .. x86.descriptor(x86.segment("data", { selector = DATA }))
  local gpa = ram:allocate("GDT", "tables", PAGE)
  ram:put("GDT", gpa, PAGE, bytes)
  local task = x86.segment("tss", { selector = 0, base = 0, limit = 0x67 })
  return {
    mode = "protected", rip = rip, regs = regs, gdt = { base = gpa, limit = #bytes - 1 },
    sregs = { cr0 = x86.cr0.pe | x86.cr0.et, cs = code, tr = task },
  }
end

-- 64-bit code with 4 GiB, or all memory, mapped to itself.
function state.long(_, ram, rip, regs)
  local mapped = math.max(ram.size, LEAST_MAPPED)
  local size = x86.identity_map_size(mapped)
  local gpa = ram:allocate("page tables", "tables", size + PAGE)
  ram:put("page tables", gpa, size, function(vm) x86.identity_map(vm, gpa, mapped) end)
  ram:put("GDT", gpa + size, PAGE, x86.gdt())
  return {
    mode = "long", rip = rip, regs = regs, cr3 = gpa,
    gdt = { base = gpa + size, limit = #x86.gdt() - 1 },
  }
end

-- Returns the end of a stack.
function state.stack(ram)
  local gpa = ram:allocate("stack", "tables", STACK)
  ram:put("stack", gpa, STACK, "")
  return gpa + STACK
end

return state

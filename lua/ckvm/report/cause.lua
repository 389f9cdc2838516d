-- What a guest has most likely died of: each function looks at one kind of end, and returns
-- sentences, or nil where it knows no more than the exit says.

local instruction = require "ckvm.report.instruction"
local names = require "ckvm.report.names"
local x86 = require "ckvm.x86"

local cause = {}

local IF <const> = x86.rflags["if"]
local UD <const>, PF <const> = x86.vector.ud, x86.vector.pf

local function join(...)
  local list = {}
  for i = 1, select("#", ...) do table.insert(list, (select(i, ...)) or nil) end
  return list[1] and table.concat(list, " ") or nil
end

-- Code that is none ---------------------------------------------------------------

-- The vectors that a BIOS has services behind.
local function has_bios(state)
  return state:bytes(4 * 0x10, 4 * 11):find("[^\0]") ~= nil
end

-- bytes: what it runs, or has run.
local function bad_code(state, bytes)
  local gpa = state:physical(state.rip)
  if not gpa then
    return ("It runs at 0x%x, which no page maps."):format(state.rip)
  elseif not state:has_memory(state.rip) then
    return ("It runs at 0x%x, where no memory is."):format(gpa)
  elseif state.mode == "real mode" and state.rip < 0x408 then
    return "It runs in the table of interrupt vectors: an INT or exception has an empty vector, "
      .. "as where there is no BIOS."
  end
  local filler = instruction.filler(bytes or state.code)
  if not filler then return nil end
  local bios = (state.mode ~= "real mode" or has_bios(state)) and ""
    or " Its interrupt vectors are empty: there is no BIOS for an INT to call."
  return ("It runs through %s: it has jumped where no code is.%s"):format(filler, bios)
end

-- Exceptions ----------------------------------------------------------------------

-- The exception that most likely came first: in words, and its vector.
local function find_exception(state)
  local paging = state.sregs.cr0 & x86.cr0.pg ~= 0
  local cr2 = state.sregs.cr2
  if instruction.name(state.code, state.bits) == "ud2" then
    return "an invalid opcode (ud2)", UD
  elseif paging and cr2 ~= 0 and not state:physical(cr2) then
    return ("a page fault at 0x%x (CR2, which no page maps)"):format(cr2), PF
  end
  return "an exception"
end

-- What an IDT lacks for that vector; nil if nothing is found.
local function find_gate(state, vector)
  local idt = state.sregs.idt
  local long = state.sregs.efer & x86.efer.lma ~= 0
  local size = state.mode == "real mode" and 4 or long and 16 or 8
  if idt.limit == 0 then return "there is no IDT: its limit is 0" end
  if not state:has_memory(idt.base) then
    return ("the IDT, at 0x%x, is not in memory"):format(idt.base)
  elseif not vector or size == 4 then
    return nil
  elseif vector * size + size - 1 > idt.limit then
    return ("the IDT ends before vector %d: its limit is 0x%x"):format(vector, idt.limit)
  end
  local gate = state:bytes(idt.base + vector * size, size)
  if #gate == size and gate:byte(6) & 0x80 == 0 then
    return ("the IDT has no gate for vector %d"):format(vector)
  end
end

local function find_stack(state)
  if not state:has_memory(state.rsp - 8) then
    return ("the stack, at 0x%x, is not in memory"):format(state.rsp)
  end
end

local function exception(state)
  local what, vector = find_exception(state)
  local lacking = find_gate(state, vector) or find_stack(state)
  if lacking then return ("%s came up, and %s."):format(what:gsub("^%l", string.upper), lacking) end
  return vector and ("%s came up, and so did one in its handler, or at its start."):format(
    what:gsub("^%l", string.upper))
end

-- Ends ----------------------------------------------------------------------------

local of = {}

function of.shutdown(state)
  if state.was_reset then
    return "This KVM resets a vCPU at a triple fault: of the guest's registers nothing is left."
  end
  return join(exception(state), bad_code(state))
end

function of.hlt(state)
  if state.regs.rflags & IF == 0 then
    return "It has halted for good: interrupts are off (IF is 0)."
  end
  return "It waits for an interrupt, and this machine has no interrupt controller."
end

-- A BIOS call, where nobody has put a BIOS.
local function bios_call(state, name)
  local vector = state.mode == "real mode" and name and tonumber(name:match("^int (0x%x+)$"))
  local entry = vector and state:bytes(vector * 4, 4)
  if entry ~= "\0\0\0\0" then return nil end
  return ("Vector 0x%02x is empty: it calls a BIOS, and this machine has none."):format(vector)
end

function of.internal_error(state)
  local bad = bad_code(state)
  if bad or state.exit.suberror ~= 1 then return bad end
  local name, may_lack = instruction.name(state.code, state.bits)
  if not may_lack then return nil end
  local where = state.mode == "real mode" and "real mode" or ("ring %d"):format(state.ring)
  return join(bios_call(state, name),
    ("This KVM emulates %s, and does not know the instruction (%s). `ckvm-lua --probe` shows what "
      .. "else it lacks; on another KVM the guest may run."):format(where, name))
end

function of.fail_entry(state)
  local reason = state.exit.hardware_entry_failure_reason
  if reason == 0x80000021 or reason == -1 then
    return "Registers contradict each other: look at the bits of CR0, CR4 and EFER, and at the "
      .. "segments that belong to them."
  end
end

local function port(state)
  local name = state.exit.port and names.port(state.exit.port)
  return name and ("That port is the %s of a PC, which this machine has not got."):format(name)
end
of.io_in, of.io_out = port, port

local function address(state)
  local gpa = state.exit.phys_addr
  if not gpa then return nil end
  if pcall(state.vm.read, state.vm, gpa, 1) then return "Memory is there, and it is read-only." end
  local name = names.address(gpa)
  return join(name and ("That is where a PC has its %s."):format(name),
    bad_code(state, state.before .. state.code))
end
of.mmio_read, of.mmio_write = address, address

-- The guest was left in the middle of what it did.
local function unfinished(state)
  if state.mp_state == "halted" then
    return state.regs.rflags & IF == 0
      and "It sleeps in HLT for good: interrupts are off (IF is 0)."
      or "It sleeps in HLT, and waits for an interrupt."
  elseif state.mp_state == "uninitialized" then
    return "It waits for another vCPU to start it."
  elseif instruction.name(state.code, state.bits) == "jmp to itself" then
    return "It loops for good: the instruction jumps to itself."
  end
  return bad_code(state)
end
for _, why in ipairs { "timeout", "exits", "kicked", "stopped", "interrupted" } do
  of[why] = unfinished
end

-- Programs in ring 3 ---------------------------------------------------------------

local MOST_CODE <const> = 15 -- bytes of an instruction

local function has(fault, bit) return fault.error & x86.page_fault[bit] ~= 0 end

-- Without NX and SMEP no bit tells that it was code; and a KVM that shadows the tables may tell of
-- a page of ring 0 as of none, for its error code is of its own tables.
local function page_fault(state)
  local fault <const> = state.fault
  local is_mapped <const> = has(fault, "present") or state:physical(fault.address)
  local is_code <const> = math.ult(fault.address - fault.rip, MOST_CODE)
  local what <const> = has(fault, "write") and "writes" or is_code and "runs code" or "reads"
  return ("It %s at 0x%x, %s."):format(what, fault.address, is_mapped
    and "and that page does not let ring 3 do so" or "which no page maps")
end

local PRIVILEGED <const> = {}
for name in ("hlt cli sti in out ins outs clts sysret sysexit wrmsr rdmsr ltr lgdt lidt invlpg "
    .. "invpcid xsetbv"):gmatch "%S+" do
  PRIVILEGED[name] = true
end
PRIVILEGED["mov from cr"], PRIVILEGED["mov to cr"] = true, true

-- What has ended behind its instruction: what is there now has not run.
local TRAPS <const> = { [x86.vector.db] = true, [x86.vector.bp] = true, [x86.vector.of] = true }

local function program(state)
  local fault <const> = state.fault
  local name <const> = instruction.name(state.code, state.bits)
  if fault.vector == PF then
    return page_fault(state)
  elseif fault.vector == x86.vector.gp and PRIVILEGED[name] then
    return ("%s is not for ring 3 here."):format(name)
  elseif fault.name == "syscall" then
    return "Nobody answers its system calls."
  elseif fault.name == "interrupt" or TRAPS[fault.vector] then
    return nil
  end
  return bad_code(state)
end

-- A paragraph, or nil.
function cause.find(state)
  if state.fault then return program(state) end
  return of[state.why] and of[state.why](state)
end

return cause

--- One screen on how a guest has ended: why, where, with which registers, and the likely cause.
--
-- It looks, and changes nothing. What it says of the cause is a guess from what there is to see.
-- @module ckvm.report
-- @usage
-- local why = vcpu:run { timeout = 1 }
-- print(require("ckvm.report").describe(vm, vcpu, why))
local cause = require "ckvm.report.cause"
local check = require "ckvm.check"
local instruction = require "ckvm.report.instruction"
local state_of = require "ckvm.report.state"
local x86 = require "ckvm.x86"

local report = {}

local WIDTH <const>, HEIGHT <const> = 80, 24

-- Words ------------------------------------------------------------------------

-- Lines of what is in the cells, the second and later ones indented.
local function wrap(list, cells, indent, gap)
  local line = cells[1]
  for i = 2, #cells do
    if #line + #gap + #cells[i] > WIDTH then
      table.insert(list, line)
      line = (" "):rep(indent) .. cells[i]
    else
      line = line .. gap .. cells[i]
    end
  end
  table.insert(list, line)
end

local function wrap_words(list, text)
  local words = {}
  for word in text:gmatch("%S+") do table.insert(words, word) end
  wrap(list, words, 2, " ")
end

local function hex(bytes)
  return (bytes:gsub(".", function(byte) return ("%02x "):format(byte:byte()) end))
end

-- The names of the bits that are set, the lowest first; others are not worth a word.
local function bit_names(value, bits)
  local list = {}
  for name, bit in pairs(bits) do
    if value & bit ~= 0 then table.insert(list, name) end
  end
  table.sort(list, function(a, b) return math.ult(bits[a], bits[b]) end)
  return table.concat(list, " "):upper()
end

-- Why ----------------------------------------------------------------------------

local SUBERRORS <const> = {
  "KVM cannot emulate the instruction", "an exception came up while another was delivered",
  "an event could not be delivered", "an exit that KVM does not know",
}
local EVENTS <const> = { "shutdown", "reset", "crash" }

-- What the guest read or wrote: one integer, or the elements of a string instruction.
local function access(exit, place, size)
  local data, what = exit.data, ""
  if type(data) == "string" then
    size = #data
  elseif exit.reason == "io_out" or exit.reason == "mmio_write" then
    what = (": 0x%x"):format(data)
  end
  return ("%s at %s (%d %s%s), which nobody answers"):format(exit.reason, place, size,
    size == 1 and "byte" or "bytes", what)
end

local function port_access(exit)
  return access(exit, ("port 0x%x"):format(exit.port), exit.size)
end

local function memory_access(exit)
  return access(exit, ("0x%x"):format(exit.phys_addr), exit.len)
end

local function msr_access(exit)
  return ("%s of MSR 0x%x, which is left to the host"):format(exit.reason, exit.index)
end

local REASONS <const> = {
  hlt = function() return "hlt" end,
  shutdown = function() return "shutdown, a triple fault" end,
  internal_error = function(exit)
    return ("internal_error %d: %s"):format(exit.suberror, SUBERRORS[exit.suberror] or "unknown")
  end,
  fail_entry = function(exit)
    return ("fail_entry: the CPU refuses this state, reason 0x%x"):format(
      exit.hardware_entry_failure_reason)
  end,
  system_event = function(exit)
    return ("system_event %d: %s"):format(exit.type, EVENTS[exit.type] or "unknown")
  end,
  io_in = port_access, io_out = port_access,
  mmio_read = memory_access, mmio_write = memory_access,
  x86_rdmsr = msr_access, x86_wrmsr = msr_access,
}

local STOPS <const> = {
  timeout = "its time was up", exits = "it had its number of exits", kicked = "it was kicked",
  stopped = "it was stopped", interrupted = "it was interrupted",
}

local function reason(state)
  if state.fault then return tostring(state.fault) end
  local describe = state.exit.reason and REASONS[state.why]
  return STOPS[state.why] or describe and describe(state.exit) or "exit " .. state.why
end

local function add_why(list, state)
  local total = state.vcpu.stats.total
  wrap_words(list, ("vCPU %d has ended after %d exit%s: %s."):format(state.vcpu.id, total,
    total == 1 and "" or "s", reason(state)))
  local found = cause.find(state)
  if found then wrap_words(list, "Likely cause: " .. found) end
  table.insert(list, "")
end

-- Where --------------------------------------------------------------------------

local DIGITS <const> = { [16] = 4, [32] = 8, [64] = 16 }

local function place(state)
  return ("%04x:%0" .. DIGITS[state.bits] .. "x"):format(state.sregs.cs.selector, state.regs.rip)
end

local function add_where(list, state)
  local gpa = state:physical(state.rip)
  local physical = gpa ~= state.rip and (gpa and (", physical 0x%x"):format(gpa) or ", unmapped")
  wrap_words(list, ("at %s, %s, ring %d, linear 0x%x%s"):format(place(state), state.mode,
    state.ring, state.rip, physical or ""))
  local name = instruction.name(state.code, state.bits)
  local code = state.code == "" and "none: no memory is there"
    or hex(state.before) .. "[" .. hex(state.code:sub(1, 8)):gsub(" ", "] ", 1)
  table.insert(list, ("code %s %s"):format(code, name or ""))
end

-- Registers ----------------------------------------------------------------------

local WIDE <const> = {
  { "rax", "rbx", "rcx" }, { "rdx", "rsi", "rdi" }, { "rbp", "rsp", "rip" }, { "r8", "r9", "r10" },
  { "r11", "r12", "r13" }, { "r14", "r15", "rflags" },
}
local NARROW <const> = {
  { "rax", "rbx", "rcx", "rdx", "rsi" }, { "rdi", "rbp", "rsp", "rip", "rflags" },
}

local function register(state, name)
  local value = state.regs[name]
  if name == "rflags" then return ("rflags %x %s"):format(value, bit_names(value, x86.rflags)) end
  if state.bits == 64 then return ("%-3s %016x"):format(name, value) end
  return ("%s %08x"):format(name:gsub("^r", "e"), value & 0xffffffff)
end

local function add_registers(list, state)
  for _, row in ipairs(state.bits == 64 and WIDE or NARROW) do
    local cells = {}
    for i, name in ipairs(row) do cells[i] = register(state, name) end
    wrap(list, cells, 2, "  ")
  end
end

local function add_control(list, state)
  local sregs = state.sregs
  local cells = {}
  for _, name in ipairs { "cr0", "cr4", "efer" } do
    table.insert(cells, ("%s %x %s"):format(name, sregs[name], bit_names(sregs[name], x86[name])))
  end
  table.insert(cells, ("cr2 %x"):format(sregs.cr2))
  table.insert(cells, ("cr3 %x"):format(sregs.cr3))
  wrap(list, cells, 2, "  ")
end

-- In brief: what is as in most guests is left out.
local function segment(state, name)
  local s = state.sregs[name]
  if s.unusable ~= 0 then return name .. " -" end
  local usual = state.mode == "real mode" and s.selector * 16 or 0
  local all = state.mode == "real mode" and 0xffff or 0xffffffff
  local base = s.base ~= usual and ("@%x"):format(s.base) or ""
  local limit = s.limit ~= all and state.bits ~= 64 and ("+%x"):format(s.limit) or ""
  return ("%s %04x"):format(name, s.selector) .. base .. limit
end

local function add_segments(list, state)
  local cells = {}
  for _, name in ipairs { "cs", "ds", "es", "fs", "gs", "ss", "tr" } do
    table.insert(cells, segment(state, name))
  end
  for _, name in ipairs { "gdt", "idt" } do
    local t = state.sregs[name]
    table.insert(cells, ("%s @%x+%x"):format(name, t.base, t.limit))
  end
  wrap(list, cells, 2, "  ")
end

-- The words on top, of the size that a push has.
local function add_stack(list, state)
  local size = state.bits // 8
  local bytes = state:bytes(state.rsp, size == 8 and 32 or 8 * size)
  local cells = { "stack" }
  for at = 1, #bytes - size + 1, size do
    local word = string.unpack("<I" .. size, bytes, at)
    table.insert(cells, ("%0" .. 2 * size .. "x"):format(word))
  end
  wrap(list, cells[2] and cells or { "stack none: no memory is there" }, 6, " ")
end

-- The others -----------------------------------------------------------------------

local function other(vm, vcpu)
  local read, state = pcall(state_of.read, vm, vcpu, "")
  if not read then return ("vCPU %d"):format(vcpu.id) end
  return ("vCPU %d at %s, %s, ring %d, %s"):format(vcpu.id, place(state), state.mode, state.ring,
    state.mp_state or "running")
end

-- A line each, as many as there is room for.
local function add_others(list, vm, vcpu)
  local others = {}
  for _, each in ipairs(vm.vcpus) do
    if each ~= vcpu then table.insert(others, each) end
  end
  local room = math.max(HEIGHT - #list, 1)
  for i, each in ipairs(others) do
    if i == room and i < #others then
      return table.insert(list, ("and %d more vCPUs"):format(#others - i + 1))
    end
    table.insert(list, other(vm, each))
  end
end

--- Describes how a guest has ended, in at most 24 lines of 80 columns.
-- @tparam vm vm the guest's
-- @tparam vcpu vcpu whose run has ended
-- @tparam string why what `vcpu:run` has returned, or `"interrupted"` after Ctrl-C
-- @treturn string lines, with a newline between them
-- @raise only for misuse, and what `vcpu:get_regs` raises
-- @usage
-- local why = vcpu:run { timeout = 1 }
-- print(require("ckvm.report").describe(vm, vcpu, why))
function report.describe(vm, vcpu, why)
  check.argument("why", why, "string")
  local state
  check.blame(function() state = state_of.read(vm, vcpu, why) end)
  local list = {}
  add_why(list, state)
  if not state.was_reset then
    add_where(list, state)
    add_registers(list, state)
    add_control(list, state)
    add_segments(list, state)
    add_stack(list, state)
  end
  add_others(list, vm, vcpu)
  for i, line in ipairs(list) do list[i] = line:gsub(" +$", "") end
  return table.concat(list, "\n", 1, math.min(#list, HEIGHT))
end

return report

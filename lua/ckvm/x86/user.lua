-- Ring 3 of long mode with what tells the host of its exceptions and system calls, for ckvm.x86.
--
-- All 256 vectors lead to stubs of ring 0, each an OUT and an IRETQ: at the OUT the host sees by
-- rip which one it is, and finds on the stack what the IRETQ is going to take. SYSCALL goes to an
-- address that only ring 0 may execute, where there is an UD2: a KVM that enters ring 0 runs into
-- #UD there, and one that stays in ring 3 into #PF at the same address. All gates have a stack from
-- the interrupt stack table, as ring 0 comes from SYSCALL with that of ring 3. NMI and #MC, which
-- may come while a stub has its frame on the stack, have one each.

local bits = require "ckvm.x86.bits"
local check = require "ckvm.check"
local pages = require "ckvm.x86.pages"
local segments = require "ckvm.x86.segments"

local user = {}

local PAGE <const> = 0x1000
local VECTORS <const>, EXCEPTIONS <const>, STUB_SIZE <const> = 256, 32, 16
local IDT <const>, GDT <const>, SYSCALL <const>, TSS <const> = -- behind the stubs
  0x1000, 0x2000, 0x2080, 0x2800
local STACKS <const> = { 0x2800, 0x2200, 0x2400 } -- the ends: of all others, of NMI, of #MC
local UPPER <const> = 0xffff800000000000 -- what they are mapped at, with their address added
local MOST_GPA <const> = 1 << 46
local PORT <const> = 0xf0 -- which ring 3 may not use

local OUT_PORT <const> = "\xe6" .. string.char(PORT) -- out %al, $PORT
local DROP_CODE <const> = "\x48\x83\xc4\x08"         -- add $8, %rsp: IRETQ takes no error code
local IRETQ <const>, HLT <const>, UD2 <const> = "\x48\xcf", "\xf4", "\x0f\x0b"

local vector <const>, selector <const> = bits.vector, segments.selector

-- By vector, exceptions in words, and which of them push an error code.
local WORDS <const> = {
  [vector.de] = "divide error", [vector.db] = "debug exception", [vector.nmi] = "NMI",
  [vector.bp] = "breakpoint", [vector.of] = "overflow", [vector.br] = "bound range exceeded",
  [vector.ud] = "invalid opcode", [vector.nm] = "no math coprocessor",
  [vector.df] = "double fault", [vector.ts] = "invalid TSS", [vector.np] = "segment not present",
  [vector.ss] = "stack fault", [vector.gp] = "general protection fault",
  [vector.pf] = "page fault", [vector.mf] = "x87 error", [vector.ac] = "alignment check",
  [vector.mc] = "machine check", [vector.xm] = "SIMD error",
  [vector.ve] = "virtualization exception", [vector.cp] = "control protection fault",
  [vector.hv] = "hypervisor injection", [vector.vc] = "VMM communication",
  [vector.sx] = "security exception",
}
local HAS_CODE <const> = {
  [vector.df] = true, [vector.ts] = true, [vector.np] = true, [vector.ss] = true,
  [vector.gp] = true, [vector.pf] = true, [vector.ac] = true, [vector.cp] = true,
  [vector.vc] = true, [vector.sx] = true,
}

-- Building -------------------------------------------------------------------

local OPTIONS <const> = { map = "table?", ports = "table?", interrupts = "table?" }

local function stub_codes()
  local codes = {}
  for number = 0, VECTORS - 1 do
    local code = OUT_PORT .. (HAS_CODE[number] and DROP_CODE or "") .. IRETQ
    table.insert(codes, code .. HLT:rep(STUB_SIZE - #code))
  end
  return table.concat(codes)
end

-- INT3 needs what ring 3 may raise, as INT n does.
local function gates(base, interrupts)
  local handlers, rings, stacks = {}, { [vector.bp] = 3, [vector.of] = 3 }, {}
  for number = 0, VECTORS - 1 do
    handlers[number], stacks[number] = base + number * STUB_SIZE, 1
  end
  stacks[vector.nmi], stacks[vector.mc] = 2, 3
  for _, number in ipairs(interrupts or {}) do
    if not handlers[number] then
      error(("interrupts: %s is not between 0 and 255"):format(tostring(number)), 0)
    elseif HAS_CODE[number] then
      error(("interrupts: %d has an error code, which INT %d does not push"):format(number,
        number), 0)
    end
    rings[number] = 3
  end
  return segments.idt(handlers, rings, stacks)
end

local function task(base, ports)
  for _, port in ipairs(ports or {}) do
    if port == PORT then error(("ports: 0x%x is that of the stubs"):format(PORT), 0) end
  end
  local ist = {}
  for i, stack in ipairs(STACKS) do ist[i] = base + stack end
  return segments.tss { rsp0 = ist[1], ist = ist, ports = ports }
end

-- The mappings, with that of ring 0 behind them; and whether one of them needs EFER.NXE.
local function layout(map, gpa, size)
  local list, no_execute = {}, false
  for i, mapping in ipairs(map or {}) do
    list[i] = mapping
    no_execute = no_execute or type(mapping) == "table" and mapping.execute == false
  end
  table.insert(list, { va = UPPER + gpa, gpa = gpa, size = size })
  return list, no_execute
end

-- Ring 3 may reach nothing of what keeps it there.
local function check_apart(map, first, behind)
  for _, mapping in ipairs(map or {}) do
    local gpa = mapping.gpa or mapping.va
    if mapping.user
        and (math.ult(gpa - first, behind - first) or math.ult(first - gpa, mapping.size)) then
      error(("map: 0x%x to 0x%x would be the user's, and has the tables at 0x%x to 0x%x"):format(
        gpa, gpa + mapping.size - 1, first, behind - 1), 0)
    end
  end
end

local function build(vm, gpa, options)
  local base <const> = UPPER + gpa
  local idt, tss = gates(base, options.interrupts), task(base, options.ports)
  local place = { base = base + TSS, limit = #tss - 1 }
  local gdt = segments.gdt(place)
  local size = TSS + #tss + PAGE - 1 & -PAGE
  local map, no_execute = layout(options.map, gpa, size)
  vm:write(gpa, stub_codes())
  vm:write(gpa + IDT, idt)
  vm:write(gpa + GDT, gdt)
  vm:write(gpa + SYSCALL, UD2)
  vm:write(gpa + TSS, tss)
  local cr3, behind = pages.page_tables(vm, gpa + size, map)
  check_apart(options.map, gpa, behind)
  return {
    cr3 = cr3, tss = place, syscall = base + SYSCALL, efer = no_execute and bits.efer.nxe or 0,
    gdt = { base = base + GDT, limit = #gdt - 1 }, idt = { base = base + IDT, limit = #idt - 1 },
  }, behind
end

--- Makes what a program in ring 3 takes to run, and to be told of to the host when it goes wrong:
-- page tables, GDT, TSS, and an IDT with a stub for each vector.
--
-- The program has the mappings that it is given, and the lower half of the addresses for itself.
-- What is made stands in memory of ring 0, which is mapped nowhere else; it is for one vCPU. An
-- exception, an interrupt and a SYSCALL end in a write to port 0xf0, and so, where nothing is
-- attached there, the run: `ckvm.x86.fault` tells which it was, and `ckvm.x86.resume` where to go
-- on.
-- @function ckvm.x86.user_stubs
-- @tparam vm vm the VM in whose memory it is made
-- @tparam integer gpa guest physical address, page-aligned, of 5 pages and the page tables
-- @tparam[opt] table options
-- @tparam[opt] table options.map a list of mappings, as `ckvm.x86.page_tables` takes it; the
-- program sees those with `user = true`
-- @tparam[opt] table options.ports a list of those that the program may access, but 0xf0: each
-- other one is a #GP
-- @tparam[opt] table options.interrupts a list of vectors that it may raise by `INT n`, where the
-- KVM can do that: else that is a #GP, or a #UD. None of exceptions with an error code
-- @treturn table what `ckvm.x86.enter` takes beside `rip` and `rsp`
-- @treturn integer guest physical address behind it
-- @raise a string where there is no memory for it, and for a program that could reach it
-- @usage
-- vm:write(0, "\xa2\0\0\0\0\0\0\0\0") -- movabs %al, 0
-- local start = x86.user_stubs(vm, 0x4000, {
--   map = { { va = 0x400000, gpa = 0, size = 0x2000, user = true } },
-- })
-- start.rip, start.rsp = 0x400000, 0x402000
-- x86.enter(vcpu, "user", start)
-- vcpu:run { timeout = 1 }
-- print(x86.fault(vcpu)) --> page fault at rip 0x400000: address 0x0, error code 0x6
function user.user_stubs(vm, gpa, options)
  options = options or {}
  check.argument("vm", vm, "ckvm VM")
  check.options("user_stubs", options, OPTIONS)
  if math.type(gpa) ~= "integer" or gpa % PAGE ~= 0 then
    error(("gpa: %s is not a multiple of the page size"):format(tostring(gpa)), 2)
  elseif gpa < 0 or gpa >= MOST_GPA then
    error(("gpa: 0x%x is not below 0x%x"):format(gpa, MOST_GPA), 2)
  end
  local start, behind
  check.blame(function() start, behind = build(vm, gpa, options) end)
  return start, behind
end

-- Telling --------------------------------------------------------------------

local FRAME <const> = "<I8I8I8I8I8"

-- The vector whose stub a vCPU has stopped at, the guest physical address of the frame there, and
-- what SYSCALL goes to; or nil.
local function stopped_at(vcpu)
  local exit, regs, sregs = vcpu.exit, vcpu.regs, vcpu.sregs
  local stubs = sregs.idt.base - IDT
  local offset = regs.rip - stubs
  if not exit or exit.reason ~= "io_out" or exit.port ~= PORT or offset < 0 or offset >= IDT
      or sregs.cs.selector ~= selector.code or sregs.idt.limit ~= IDT - 1 then
    return nil
  end
  local number = offset // STUB_SIZE
  return number, regs.rsp - UPPER, stubs + SYSCALL
end

local fault_meta = {}

function fault_meta.__tostring(fault)
  if fault.name == "syscall" then
    return ("system call %d, to return to rip 0x%x"):format(fault.number, fault.rip)
  end
  local name = WORDS[fault.vector] and fault.name or ("%s %d"):format(fault.name, fault.vector)
  local text = ("%s at rip 0x%x"):format(name, fault.rip)
  local more = {}
  if fault.address then table.insert(more, ("address 0x%x"):format(fault.address)) end
  if fault.error then table.insert(more, ("error code 0x%x"):format(fault.error)) end
  return text .. (more[1] and ": " .. table.concat(more, ", ") or "")
end

-- The flags that a program may change.
local OWN <const> = bits.rflags.cf | bits.rflags.pf | bits.rflags.af | bits.rflags.zf
  | bits.rflags.sf | bits.rflags.tf | bits.rflags.df | bits.rflags.of | bits.rflags.nt
  | bits.rflags.rf | bits.rflags.ac | bits.rflags.id

-- A system call, by what SYSCALL has left in the registers. A KVM that has stayed in ring 3 has the
-- host's interrupt flag in r11; and a program that jumps there has what it likes, which must not
-- become its IOPL.
local function as_syscall(fault, regs)
  local stayed <const> = fault.cs & 3 == 3
  local from_r11 <const> = stayed and OWN or OWN | bits.rflags["if"]
  fault.name, fault.number = "syscall", regs.rax
  fault.rip = regs.rcx
  fault.rflags = regs.r11 & from_r11 | fault.rflags & ~from_r11
  fault.cs, fault.ss = selector.user_code, selector.user_data
  fault.vector, fault.error = nil, nil
end

--- Tells what has ended in a stub of `ckvm.x86.user_stubs`: in a handler of port 0xf0, or after a
-- run that has ended with a write to it.
--
-- The table has `name` (`"page fault"`, `"interrupt"`, `"syscall"`), `vector`, and of the program
-- `rip`, `rsp`, `rflags`, `cs` and `ss`; where there is one, `error`, the error code, with bits as
-- in `x86.page_fault`; and of a page fault `address`. The other registers are the vCPU's.
--
-- Of a system call `rip` is where it returns to, `number` is rax, and there is no `vector`; on a
-- KVM whose SYSCALL stays in ring 3 its flags have interrupts off. Where `cs` is of ring 0, the
-- stub itself could not do what `resume` had told it, or an NMI or machine check has come while it
-- was there, from which the next run goes back to it. `tostring` makes a line of the table.
-- @function ckvm.x86.fault
-- @tparam vcpu vcpu that has run with these stubs
-- @treturn table|nil a fresh table; nil if it is in no stub
-- @raise what reading memory raises
-- @usage
-- if vcpu:run { timeout = 1 } == "io_out" then print(x86.fault(vcpu)) end
function user.fault(vcpu)
  check.argument("vcpu", vcpu, "ckvm vCPU")
  local number, frame, syscall
  local fault = setmetatable({}, fault_meta)
  check.blame(function()
    number, frame, syscall = stopped_at(vcpu)
    if not number then return end
    if HAS_CODE[number] then
      fault.error = vcpu.vm:read_u64(frame)
      frame = frame + 8
    end
    fault.rip, fault.cs, fault.rflags, fault.rsp, fault.ss =
      string.unpack(FRAME, vcpu.vm:read(frame, FRAME:packsize()))
  end)
  if not number then return nil end
  fault.vector = number
  fault.name = WORDS[number] or number < EXCEPTIONS and "exception" or "interrupt"
  if fault.rip == syscall and (number == vector.ud or number == vector.pf) then
    as_syscall(fault, vcpu.regs)
  elseif number == vector.pf then
    fault.address = vcpu.sregs.cr2
  end
  return fault
end

local RESUMED <const> = {
  rip = "integer", cs = "integer", rflags = "integer", rsp = "integer", ss = "integer",
  name = "string", vector = "integer?", error = "integer?", address = "integer?",
  number = "integer?",
}

--- Says where the program goes on when the vCPU runs again: with `rip`, `rsp` and `rflags` of the
-- table, and with the vCPU's other registers. Without it, the instruction that has faulted runs
-- again, and so would the SYSCALL.
-- @function ckvm.x86.resume
-- @tparam vcpu vcpu as for `ckvm.x86.fault`
-- @tparam table fault from there, changed at will
-- @raise what writing memory raises, and a string if the vCPU is in no stub
-- @usage
-- local fault = x86.fault(vcpu)
-- if fault and fault.name == "syscall" then
--   vcpu.regs.rax = 0
--   x86.resume(vcpu, fault)
-- end
function user.resume(vcpu, fault)
  check.argument("vcpu", vcpu, "ckvm vCPU")
  check.fields("fault", fault, RESUMED)
  check.blame(function()
    local number, frame = stopped_at(vcpu)
    if not number then error("the vCPU is in no stub", 0) end
    vcpu.vm:write(frame + (HAS_CODE[number] and 8 or 0),
      string.pack(FRAME, fault.rip, fault.cs, fault.rflags, fault.rsp, fault.ss))
  end)
end

return user

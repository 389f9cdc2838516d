-- Guests that do anything: random bytes, and random instructions, in all modes, with random
-- registers, for a millisecond each (longer on a slow KVM). Every run ends by then, in a way that
-- has a name, and nothing is left of it. In a process of its own, of which the descriptors and the
-- memory are counted.
--
--   ckvm-lua tests/hostile.lua [programs [seed]]
--
-- That a run ends in time, twice the budget at most, is told by the CPU's time: how long it takes
-- by the clock depends on what else the machine does. A few may be late, as interrupts count, but
-- none by much.

package.path = arg[0]:gsub("[^/]*$", "") .. "?.lua;" .. package.path
local ckvm = require "ckvm"
local support = require "support"
local x86 = require "ckvm.x86"

local random = math.random

local BUDGET <const> = 0.001           -- seconds: no more, but for a KVM where that is nothing
local RUNS_IN_BUDGET <const> = 20      -- so many that do nothing fit into it then
local TOO_LATE <const> = 1             -- seconds of the CPU's time
local HANGING <const> = 20             -- seconds of the clock
local MOST_LATE <const> = 1 / 20       -- of all runs
local LEAK <const> = 32 << 10          -- KiB
local REUSES <const> = 100             -- programs of a VM
local SIZE <const>, CODE <const>, MMIO <const>, PORT <const> = 0x20000, 0x8000, 0x20000, 0x10
local GDT <const>, IDT <const>, TABLES <const>, HANDLER <const> = 0x2000, 0x3000, 0x10000, 0x7ff0
local HLT <const>, UD2 <const> = "\xf4", "\x0f\x0b"
local USER <const> = 0x400000              -- where ring 3 has its code, virtual

-- Where the I/O bitmap of ring 3 does not work, the CPU is an emulator that does not know a task
-- that is busy. It ends, with all of its machine, at an exception of ring 3 in protected mode, and
-- where there is no task.
local KNOWS_TASKS <const> = ckvm.probe({ only = { "ring3.io_bitmap" } }).ring3.io_bitmap

local function pick(list) return list[random(#list)] end

local function bytes(count)
  local list = {}
  for i = 1, count do list[i] = string.char(random(0, 255)) end
  return table.concat(list)
end

-- Programs ---------------------------------------------------------------------------------------

-- Whole instructions that do something with the system; the rest is made of opcodes.
local SYSTEM <const> = {
  "\xf4", "\x0f\x0b", "\xcc", "\xcd\x80", "\xcf", "\x48\xcf", "\xfa", "\xfb", "\x9c", "\x9d",
  "\x0f\xa2", "\x0f\x31", "\x0f\x32", "\x0f\x30", "\x0f\x33", "\x0f\x05", "\x0f\x07", "\x0f\x34",
  "\x0f\x35", "\x0f\x06", "\x0f\x08", "\x0f\x09", "\x0f\xaa", "\x0f\x77", "\x0f\xa0", "\x0f\xa1",
  "\x0f\x01\xc1", "\x0f\x01\xd9", "\x0f\x01\xc8", "\x0f\x01\xc9", "\x0f\x01\xca", "\x0f\x01\xcb",
  "\x0f\x01\xd0", "\x0f\x01\xd1", "\x0f\x01\xd8", "\x0f\x01\xdf", "\x0f\x01\xf8", "\x0f\x01\xf9",
  "\x0f\x01\x10", "\x0f\x01\x18", "\x0f\x01\x38", "\x0f\x01\xf0", "\x0f\x00\xd8", "\x0f\x00\xd0",
  "\x0f\x20\xc0", "\x0f\x22\xc0", "\x0f\x22\xd8", "\x0f\x22\xe0", "\x0f\x21\xf8", "\x0f\x23\xf8",
  "\x0f\x78\xc0", "\x0f\xc7\x30", "\xf3\x0f\xc7\x30", "\xf3\x0f\xae\xe8", "\x0f\xae\x00",
  "\x0f\xae\x08", "\x0f\xae\x20", "\x0f\xae\x28", "\xdb\xe3", "\x9b", "\xd9\xd0",
  "\x8e\xd8", "\x8e\xd0", "\x8e\xe0", "\x0f\xb2\x20", "\xea\0\x80\0\0", "\xcb", "\x48\xcb",
  "\xe6\x10", "\xe4\x10", "\xed", "\xef", "\x6c", "\xf3\x6c", "\x6e", "\xf3\x6e", "\xf3\x6d",
  "\xf3\xa4", "\xf3\xa5", "\xf3\xaa", "\xf2\xae", "\xeb\xfe", "\xe2\xfe", "\xf3\x90", "\x90",
}
local PREFIXES <const> = {
  "\x66", "\x67", "\xf0", "\xf2", "\xf3", "\x2e", "\x36", "\x64", "\x65", "\x40", "\x48", "\x4f",
}
local MSRS <const> = {}
for _, number in pairs(x86.msr) do table.insert(MSRS, number) end
table.sort(MSRS)

-- One opcode, with what may stand behind it.
local function opcode()
  local code = random(3) == 1 and "\x0f" .. bytes(1) or bytes(1)
  if random(8) == 1 then code = pick(PREFIXES) .. code end
  if random(40) == 1 then code = pick { "\xc4", "\xc5", "\x62", "\x0f\x38", "\x0f\x3a" } .. code end
  return code .. bytes(random(0, 5))
end

local makers <const> = {
  function() return pick(SYSTEM) end,
  function() return pick(PREFIXES) .. pick(SYSTEM) end,
  opcode, opcode,
  function() return "\xe6" .. string.char(PORT + random(0, 8)) end, -- out to one of some ports
  function() return "\xe4" .. string.char(PORT + random(0, 8)) end,
  function() return "\xb9" .. string.pack("<I4", pick(MSRS)) .. pick { "\x0f\x32", "\x0f\x30" } end,
  function() return string.char(0xb8 + random(0, 7)) .. bytes(4) end, -- mov to a register
  function() return pick { "\xeb", "\x74", "\x75", "\xe2" } .. string.char(random(0, 255)) end,
}

local function program()
  if random(3) == 1 then return bytes(random(256)) end
  local list = {}
  for i = 1, random(40) do list[i] = pick(makers)() end
  return table.concat(list)
end

local NUMBERS <const> = {
  0, 1, 2, CODE, MMIO, PORT, 0xfff, 0xffff, 0x10000, TABLES, 0xfee00000, 0xfffffff0, 1 << 32,
  USER, 1 << 47, -1, -0x1000, math.mininteger, math.maxinteger,
}

local function number()
  local kind = random(4)
  if kind == 1 then return random(0) end
  return pick(NUMBERS) + (kind == 2 and random(-8, 8) or 0)
end

local GENERAL <const> = {
  "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
  "r15",
}

local function registers()
  local regs = {}
  for _, name in ipairs(GENERAL) do
    if random(2) == 1 then regs[name] = number() end
  end
  if random(4) == 1 then regs.rsp = number() end
  if random(4) == 1 then regs.rflags = random(0, 0x3fffff) & 0x3f7fd7 | 2 end
  return regs
end

-- A few bits that are not as they should be: what KVM refuses has not been tried.
local function system_registers(vcpu)
  local sregs <const> = vcpu:get_sregs()
  local changes <const> = {
    function() sregs.cr0 = sregs.cr0 ~ 1 << random(0, 31) end,
    function() sregs.cr4 = sregs.cr4 ~ 1 << random(0, 24) end,
    function() sregs.efer = sregs.efer ~ 1 << random(0, 15) end,
    function() sregs.cr3 = number() & 0xfffff000 end,
    function() sregs[pick { "idt", "gdt" }] = { base = number(), limit = random(0, 0xffff) } end,
    function()
      local segment = sregs[pick { "cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt" }]
      segment[pick { "base", "base", "limit" }] = number() & 0xffffffff
    end,
    function()
      local segment = sregs[pick { "cs", "ds", "ss", KNOWS_TASKS and "tr" or "es" }]
      segment[pick { "db", "l", "g", "present", "unusable", "avl" }] = random(0, 1)
      segment.type = random(4) == 1 and random(0, 15) or segment.type
      if KNOWS_TASKS or sregs.efer & x86.efer.lma ~= 0 then
        segment.dpl = random(4) == 1 and random(0, 3) or segment.dpl
      end
    end,
  }
  for _ = 1, random(2) do pick(changes)() end
  return (pcall(vcpu.set_sregs, vcpu, sregs))
end

-- The machine ------------------------------------------------------------------------------------

local function handler()
  return function(_, _, _, last)
    if random(200) == 1 and type(last) == "userdata" then last:stop() end
    return random(0)
  end
end

local function new_vm(kvm)
  local vm = kvm:create_vm()
  local irqchip = random(4) == 1
  if irqchip then vm:create_irqchip() end
  local ram = vm:add_memory { gpa = 0, size = SIZE, log_dirty = random(2) == 1 }
  vm:attach_io { port = PORT, count = 4, read = handler(), write = handler() }
  vm:attach_io { port = PORT + 4, batch = random(2) == 1, write = handler() }
  vm:attach_mmio { gpa = MMIO, size = 0x1000, read = handler(), write = handler() }
  return { vm = vm, vcpu = vm:create_vcpu(0), ram = ram, irqchip = irqchip, left = random(REUSES) }
end

-- Exceptions lead to a HLT, those of ring 3 to its stubs. Each builds its tables in a VM, and
-- returns where they are and how it starts.
local starts <const> = {}

local function handlers_of(count)
  local list = {}
  for i = 0, count do list[i] = HANDLER end
  return list
end

function starts.real(vm)
  vm:write(0, string.pack("<I2I2", HANDLER, 0):rep(256))
  return { 0, 0x400 }, { rip = CODE, rsp = CODE }
end

function starts.protected(vm)
  vm:write(GDT, x86.gdt32())
  vm:write(IDT, x86.idt32(handlers_of(31)))
  return { GDT, 0x2000 }, { rip = CODE, rsp = CODE, gdt = { base = GDT, limit = 0x47 },
    idt = KNOWS_TASKS and { base = IDT, limit = 0xff } or nil }
end

function starts.long(vm)
  vm:write(GDT, x86.gdt())
  vm:write(IDT, x86.idt(handlers_of(31)))
  local cr3 = x86.identity_map(vm, TABLES, 1 << 30)
  return { GDT, TABLES + x86.identity_map_size(1 << 30) - GDT }, { rip = CODE, rsp = CODE,
    cr3 = cr3, gdt = { base = GDT, limit = 0x47 }, idt = { base = IDT, limit = 0x1ff } }
end

function starts.user(vm)
  local start, behind = x86.user_stubs(vm, TABLES, { ports = { PORT, PORT + 1, PORT + 4 }, map = {
    { va = USER, gpa = 0, size = 0x10000, user = true },
    { va = USER + 0x10000, gpa = MMIO, size = 0x1000, user = true },
  } })
  start.rip, start.rsp = USER + CODE, USER + CODE
  return { TABLES, behind - TABLES }, start
end

-- By mode, made once: { gpa =, bytes =, start = }.
local images <const> = {}

local function make_images(kvm)
  for mode, build in pairs(starts) do
    local vm <close> = kvm:create_vm()
    vm:add_memory { gpa = 0, size = SIZE }
    local place, start = build(vm)
    images[mode] = { gpa = place[1], bytes = vm:read(table.unpack(place)), start = start }
  end
end

local MODES <const> = { "real", "protected", "long", "user", "user" }

local function fill(vm, mode, code)
  vm:fill(0, SIZE, pick { 0, 0xf4, 0xff, random(0, 255) })
  vm:write(images[mode].gpa, images[mode].bytes)
  vm:write(HANDLER, HLT)
  vm:write(CODE, code)
end

-- The kernel may refuse changed registers, which it does at the next call if an access was open.
local function check_refused(guest, err)
  local known = type(err) == "table" and err.call == "KVM_SET_SREGS" and err.code == "EINVAL"
  if not known or not guest.changed then error(err, 0) end
end

local function prepare(guest, mode)
  local vcpu <const> = guest.vcpu
  fill(guest.vm, mode, program())
  local calls <const> = random(2) == 1 and { vcpu.finish, vcpu.get_sregs } or { vcpu.get_sregs }
  for _, call in ipairs(calls) do -- the last one sends what is left
    local done, err = pcall(call, vcpu)
    if not done then check_refused(guest, err) end
  end
  if guest.irqchip then vcpu:set_mp_state "runnable" end
  vcpu:set_vcpu_events { exception = { injected = 0 }, nmi = { injected = 0, pending = 0 },
    interrupt = { injected = 0 } }
  vcpu:set_debugregs { dr7 = 0x400 }
  x86.enter(vcpu, mode, images[mode].start)
  if random(2) == 1 then vcpu:set_regs(registers()) end
  guest.changed = random(4) == 1
  return not guest.changed or system_registers(vcpu)
end

-- Running ----------------------------------------------------------------------------------------

-- The ends that a run may have; each other one, and each number, is a mistake.
local NAMED <const> = {}
for name in ([[timeout stopped exits kicked io_in io_out mmio_read mmio_write hlt shutdown
    internal_error fail_entry debug hypercall x86_rdmsr x86_wrmsr system_event set_tpr tpr_access
    memory_fault notify x86_bus_lock exception]]):gmatch "%S+" do
  NAMED[name] = true
end

local budget = BUDGET
local count = { runs = 0, late = 0, slowest = 0, refused = 0, ends = {} }

local function run(guest, mode)
  local clock, cpu = ckvm.now(), os.clock()
  local done, why = pcall(guest.vcpu.run, guest.vcpu, { timeout = budget })
  clock, cpu = ckvm.now() - clock, os.clock() - cpu
  if not done and type(why) == "string" and why:find("handler still running", 1, true) then
    why = "handler" -- the CPU was someone else's until the deadline was over
  elseif not done then
    check_refused(guest, why)
    why = why.call .. ":" .. why.code
  else
    assert(NAMED[why], "a run has ended in " .. tostring(why))
  end
  assert(cpu < TOO_LATE and clock < HANGING,
    ("a run of %g seconds has taken %g, %g of them of the CPU"):format(budget, clock, cpu))
  count.runs = count.runs + 1
  count.late = count.late + (cpu > 2 * budget and 1 or 0)
  count.slowest = math.max(count.slowest, cpu)
  local key = mode .. " " .. why
  count.ends[key] = (count.ends[key] or 0) + 1
  return why
end

-- The seconds that are enough here: by the median of first runs in ring 3, up to an exception.
local function measure(kvm)
  local one <const>, times = new_vm(kvm), {}
  for i = 1, 9 do
    fill(one.vm, "user", UD2)
    x86.enter(one.vcpu, "user", images.user.start)
    local from = os.clock()
    one.vcpu:run { timeout = TOO_LATE }
    times[i] = os.clock() - from
  end
  one.vm:close()
  table.sort(times)
  return times[5] < BUDGET / 4 and BUDGET or times[5] * RUNS_IN_BUDGET
end

-- Whatever state it is in, it can be looked at.
local function look(guest, mode)
  local vcpu <const> = guest.vcpu
  local done, err = pcall(vcpu.get_sregs, vcpu)
  if not done then return check_refused(guest, err) end
  local regs <const> = vcpu:get_regs()
  vcpu:get_vcpu_events()
  pcall(vcpu.read, vcpu, regs.rip, 16) -- may be mapped, or not
  local fault = mode == "user" and x86.fault(vcpu)
  if fault then assert(#tostring(fault) > 10) end
  return fault
end

-- Goes on with what is left in ring 3, a little further on.
local function go_on(guest, fault)
  fault.rip = random(8) == 1 and number() or fault.rip + random(0, 3)
  if random(8) == 1 then fault.rsp = number() end
  if random(8) == 1 then fault.rflags = random(0, 0x3fffff) end
  x86.resume(guest.vcpu, fault)
  return run(guest, "user")
end

local function try(guest)
  local mode = pick(MODES)
  if not prepare(guest, mode) then
    count.refused = count.refused + 1
    return
  end
  run(guest, mode)
  for _ = 1, random(0, 4) do
    local fault = look(guest, mode)
    if not fault then break end
    go_on(guest, fault)
  end
end

local function resident() -- KiB
  local file <close> = assert(io.open "/proc/self/status")
  return tonumber(file:read("a"):match "VmRSS:%s*(%d+) kB")
end

local function report()
  local list = {}
  for key, times in pairs(count.ends) do table.insert(list, ("%s %d"):format(key, times)) end
  table.sort(list)
  print(table.concat(list, "\n"))
end

local programs <const> = tonumber(arg[1]) or 1000
local seed <const> = math.tointeger(tonumber(arg[2])) or os.time()
math.randomseed(seed)
local systems <const> = { ckvm.open(), ckvm.open { sync_regs = false } }
make_images(systems[1])
budget = measure(systems[1])
local guest
local fds <const>, before = support.settled_fds(), nil
for i = 1, programs do
  if not guest or guest.left == 0 then
    if guest then guest.vm:close() end
    guest = new_vm(pick(systems))
  end
  guest.left = guest.left - 1
  local done, message = xpcall(try, debug.traceback, guest)
  if not done then
    error(("program %d of seed %d: %s"):format(i, seed, tostring(message)), 0)
  end
  if i == programs // 4 + 1 then before = resident() end
end
guest.vm:close()
local left <const>, grown <const> = support.settled_fds() - fds, resident() - before

report()
print(("%d programs, seed %d: %d runs of %.1f ms, %d late, the slowest %.1f ms; %d refused; "
  .. "%d KiB more"):format(programs, seed, count.runs, budget * 1000, count.late,
  count.slowest * 1000, count.refused, grown))
assert(left == 0, left .. " descriptors are left open")
assert(grown < LEAK, grown .. " KiB of memory are left")
assert(count.late <= count.runs * MOST_LATE + 10, count.late .. " runs have ended late")

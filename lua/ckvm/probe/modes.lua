-- The modes: which run, how fast, and what an exit costs there.

local guest = require "ckvm.probe.guest"

local TIMES <const> = 4 -- the best counts, for the host is busy
local TIME <const>, MOST_TIME <const> = 0.001, 0.1 -- seconds, more if nothing comes of it
local EMULATED <const> = 1 / 100 -- of an exit: what costs more is no instruction of a CPU's

local INC <const> = { -- inc %ecx or %rcx, which counts 2^32 before it is 0 again
  real = "\x66\x41", protected = "\x41", long = "\x48\xff\xc1", user = "\x48\xff\xc1",
}
local CPUIDS <const> = 20
local OUT <const> = "\xe6\x10"   -- out %al, $PORT
local STORE <const> = "\x88\x07" -- mov %al, (%rdi), or (%bx)

-- Code that starts over when it is done.
local function endless(code)
  return code .. "\xeb" .. string.char(256 - #code - 2) -- jmp
end

local function rounds_of(one, stats, name)
  return stats[name] or one.vcpu.regs[name]
end

-- Runs it for so many seconds: how it ended, and how many of them were the guest's. On a busy host
-- others have had the processor meanwhile.
local function spend(one, slice)
  local guest_time, cpu_time = one.vcpu.stats.guest_time, os.clock()
  local ended = one:run_for(slice)
  return ended, math.min(one.vcpu.stats.guest_time - guest_time, os.clock() - cpu_time)
end

-- Seconds of a round of the loop; nil and how it ended if it did. `counter` tells how many rounds
-- there were: a name of vcpu.stats, or a register.
local function time(one, counter)
  local best, slice = math.huge, TIME
  for _ = 1, TIMES do
    local from = rounds_of(one, one.vcpu.stats, counter)
    local ended, seconds = spend(one, slice)
    local rounds = rounds_of(one, one.vcpu.stats, counter) - from
    if ended ~= "timeout" then return nil, ended end
    if rounds > 0 then best = math.min(best, seconds / rounds) end
    if rounds < 10 then slice = math.min(slice * 4, MOST_TIME) end
  end
  if best == math.huge then return nil, "too slow" end
  return best
end

local function microseconds(seconds, ended)
  return seconds and seconds * 1e6, ended
end

local modes = {}

-- Nanoseconds an instruction.
function modes.instruction_ns(kvm, mode)
  local one <close> = guest.new(kvm, mode, endless(INC[mode]))
  local seconds, ended = time(one, "rcx")
  return seconds and seconds / 2 * 1e9, ended
end

-- Microseconds of an OUT that is an exit to the host's user space, and back.
function modes.out_us(kvm, mode)
  local one <close> = guest.new(kvm, mode, endless(OUT))
  one.vm:attach_io { port = guest.PORT, value = 0 }
  return microseconds(time(one, "total"))
end

-- The same of a store to an address without memory.
function modes.mmio_us(kvm, mode)
  local one <close> = guest.new(kvm, mode, endless(STORE))
  one.vm:attach_mmio { gpa = guest.MMIO, size = guest.PAGE, value = 0 }
  one:enter { rdi = guest.MMIO, rbx = guest.MMIO }
  return microseconds(time(one, "total"))
end

-- Microseconds of an OUT that the kernel queues.
function modes.batched_out_us(kvm, mode)
  local one <close> = guest.new(kvm, mode, endless(OUT))
  one.vm:attach_io { port = guest.PORT, batch = true, write = function() end }
  return microseconds(time(one, "batched"))
end

-- Microseconds of a CPUID in ring 0, which every KVM handles itself, without an exit to the host's
-- user space. There are so many in a round that the rest of it does not count.
function modes.cpuid_us(kvm)
  local one <close> = guest.new(kvm, "long", endless(("\x0f\xa2"):rep(CPUIDS) .. "\x49\xff\xc0"))
  one:enter { r8 = 0 } -- inc %r8
  local seconds, ended = time(one, "r8")
  return microseconds(seconds and seconds / CPUIDS, ended)
end

-- "native" or "emulated": by speed alone. `measured` has what is known of the mode already.
function modes.speed(kvm, mode, measured)
  local instruction = measured.instruction_ns or modes.instruction_ns(kvm, mode)
  local exit = measured.mmio_us or modes.mmio_us(kvm, mode)
  if not (instruction and exit) then return nil, "unmeasured" end
  return instruction > exit * 1000 * EMULATED and "emulated" or "native"
end

return modes

-- What KVM can do about exits: queue writes, share registers, leave MSRs to the host.

local ckvm = require "ckvm"
local guest = require "ckvm.probe.guest"

local WRITES <const> = 3
local BEFORE <const>, AFTER <const> = 0x11223344, 0x55667788 -- values of a register

local exits = {}

-- Writes that the kernel queues come all at once, with the exit of something else.
local function queued(kvm, code, attach)
  local one <close> = guest.new(kvm, "real", code:rep(WRITES))
  local range, count = { batch = true, write = function() end }, 0
  function range.write() count = count + 1 end
  attach(one, range)
  one:enter { rbx = guest.MMIO }
  local ended = one:run()
  local total = one.vcpu.stats.total
  if ended == "end" and count == WRITES and total == 1 then return true end
  return false, ("ends in %s, %d of %d writes, %d exits"):format(ended, count, WRITES, total)
end

function exits.coalesced_pio(kvm)
  return queued(kvm, "\xe6\x10", function(one, range)
    range.port = guest.PORT
    one.vm:attach_io(range)
  end)
end

function exits.coalesced_mmio(kvm)
  return queued(kvm, "\x88\x07", function(one, range) -- mov %al, (%bx)
    range.gpa, range.size = guest.MMIO, guest.PAGE
    one.vm:attach_mmio(range)
  end)
end

-- A write that signals an eventfd instead of being an exit.
local function signals(kvm, code, options)
  local one <close> = guest.new(kvm, "real", code)
  local event <close> = ckvm.eventfd()
  options.fd = event
  one.vm:ioeventfd(options)
  one:enter { rbx = guest.MMIO }
  local ended = one:run()
  local signalled, total = event:read(), one.vcpu.stats.total
  if ended == "end" and signalled and total == 1 then return true end
  return false, ("ends in %s, %s"):format(ended, signalled and "signalled" or "no signal")
end

function exits.ioeventfd_pio(kvm)
  return signals(kvm, "\xe6\x10", { port = guest.PORT })
end

function exits.ioeventfd_mmio(kvm)
  return signals(kvm, "\x88\x07", { gpa = guest.MMIO }) -- mov %al, (%bx)
end

-- Registers that are read and written at an exit, through the run page where there is one.
function exits.sync_regs(kvm)
  if kvm:check_extension("sync_regs") == 0 then return false, "not there" end
  -- mov $BEFORE, %eax; out; mov %eax, (%bx)
  local one <close> = guest.new(kvm, "real", "\x66\xb8" .. string.pack("<I4", BEFORE) .. "\xe6\x10"
    .. "\x66\x89\x07")
  one.vm:attach_io { port = guest.PORT, write = function(_, _, _, vcpu)
    if vcpu.regs.rax == BEFORE then vcpu.regs.rax = AFTER end
  end }
  local ended = one:run()
  if ended == "end" and one.vm:read_u32(guest.DATA) == AFTER then return true end
  return false, "registers read or written at an exit are wrong"
end

local NO_MSR <const>, TSC <const> = 0x474f4f00, 0x10
local UNKNOWN <const>, FILTER <const> = 2, 4 -- reasons for an exit

-- mov $msr, %ecx; rdmsr; mov %eax, (%bx). The host answers AFTER.
local function read_msr(kvm, msr, reason, filter)
  local one <close> = guest.new(kvm, "real", "\x66\xb9" .. string.pack("<I4", msr)
    .. "\x0f\x32\x66\x89\x07")
  local enabled, refused = pcall(one.vm.enable_cap, one.vm, "x86_user_space_msr", reason)
  if not enabled then return false, tostring(refused.code or refused) end
  if filter then one.vm:x86_set_msr_filter(filter) end
  one.vm:on("x86_rdmsr", function(exit)
    if exit.index == msr then exit.data = AFTER end
  end)
  local ended = one:run()
  if ended == "end" and one.vm:read_u32(guest.DATA) == AFTER then return true end
  return false, ended == "end" and "the answer is lost" or "ends in " .. ended
end

function exits.user_space_msr(kvm)
  return read_msr(kvm, NO_MSR, UNKNOWN)
end

function exits.msr_filter(kvm)
  if kvm:check_extension("x86_msr_filter") == 0 then return false, "not there" end
  return read_msr(kvm, TSC, FILTER, {
    flags = "default_allow",
    ranges = { { flags = "read", base = TSC, nmsrs = 1, bitmap = { false } } },
  })
end

return exits

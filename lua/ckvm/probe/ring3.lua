-- Ring 3 of long mode: the ways out of it, and what works inside. Each probe returns whether it
-- works, and a note.

local guest = require "ckvm.probe.guest"
local instructions = require "ckvm.probe.instructions"
local x86 = require "ckvm.x86"

local MSR_STAR <const>, MSR_LSTAR <const>, MSR_FMASK <const> = 0xc0000081, 0xc0000082, 0xc0000084
local GATE0 <const> = "\xcd\x31" -- int $0x31, which ring 3 may not raise
local IOPL3 <const> = 3 << 12

local ring3 = {}

-- Runs it, from the start: how it ended, and in which ring.
local function run(one, code, regs)
  one:load(code)
  one:enter(regs)
  local ended, port = one:run()
  return ended, one:ring(), port
end

local function raises(kvm, code, exception)
  local one <close> = guest.new(kvm, "user", "")
  local ended, ring = run(one, code)
  if ended == exception and ring == 0 then return true end
  return false, ended == exception and "delivered to ring " .. ring or "ends in " .. ended
end

function ring3.ud2(kvm)
  return raises(kvm, "\x0f\x0b", "#UD")
end

-- movb $0, (%rdi), at a page of ring 0's: CR2 and the error code count, too.
function ring3.page_fault(kvm)
  local one <close> = guest.new(kvm, "user", "")
  local ended, ring = run(one, "\xc6\x07\0", { rdi = guest.SUPERVISOR })
  if ended ~= "#PF" or ring ~= 0 then return false, "ends in " .. ended end
  local code, address = one.vm:read_u64(one.vcpu.regs.rsp), one.vcpu.sregs.cr2
  if code ~= 7 or address ~= guest.SUPERVISOR then
    return false, ("error code %d, CR2 0x%x"):format(code, address)
  end
  return true
end

function ring3.int3(kvm)
  return raises(kvm, "\xcc", "#BP")
end

function ring3.int_n(kvm)
  local allowed, note = raises(kvm, "\xcd\x30", "vector 0x30")
  if not allowed then return false, "by a gate for ring 3: " .. note end
  local refused
  refused, note = raises(kvm, GATE0, "#GP")
  if not refused then return false, "by a gate for ring 0: " .. note end
  return true
end

-- out %al, to a port that the bitmap allows, and one that it does not.
function ring3.io_bitmap(kvm)
  local one <close> = guest.new(kvm, "user", "")
  local allowed = run(one, "\xe6" .. string.char(guest.PORT))
  if allowed ~= "io_out" then return false, "an allowed port: " .. allowed end
  local denied = run(one, "\xe6" .. string.char(guest.DENIED))
  if denied ~= "#GP" then return false, "a denied port: " .. denied end
  return true
end

function ring3.iopl(kvm)
  local one <close> = guest.new(kvm, "user", "")
  local out = run(one, "\xe6" .. string.char(guest.DENIED), { rflags = IOPL3 | 2 })
  local cli = run(one, "\xfa", { rflags = IOPL3 | 2 })
  if out == "io_out" and cli == "end" then return true end
  return false, ("OUT: %s, CLI: %s"):format(out, cli == "end" and "works" or cli)
end

-- A guest about to run the code with SYSCALL switched on, and that handler.
local function with_syscall(kvm, mode, handler, code)
  local one = guest.new(kvm, mode, code)
  one.vcpu:set_msrs { [MSR_STAR] = x86.star, [MSR_LSTAR] = handler, [MSR_FMASK] = 0 }
  one.vcpu:set_sregs { efer = x86.efer.sce | x86.efer.lme | x86.efer.lma }
  return one
end

local function syscall_to(kvm, handler)
  local one <close> = with_syscall(kvm, "user", handler, "\x0f\x05")
  local ended = one:run()
  return ended, one:ring(), one.vcpu.regs.rcx == guest.CODE + 2
end

-- The handler is in a page of ring 0's, and then in one of ring 3's.
function ring3.syscall(kvm)
  local handler = guest.stub(0x3f)
  local ended, ring, rcx = syscall_to(kvm, handler)
  if ended == guest.exception_name(0x3f) and ring == 0 and rcx then return true end
  local note = ended == "#PF" and "stays in ring 3" or "ends in " .. ended
  local there, _, rcx_there = syscall_to(kvm, guest.USER_STUB)
  if there == "end" and rcx_there then note = note .. "; a handler in a page of ring 3 works" end
  return false, note
end

function ring3.sysret(kvm)
  local one <close> = with_syscall(kvm, "long", guest.USER_STUB, "\x48\x0f\x07")
  one.vcpu:set_regs { rcx = guest.USER_STUB, r11 = 2 }
  local ended = one:run()
  if ended == "end" and one:ring() == 3 then return true end
  return false, "ends in " .. ended
end

-- push $ss, rsp, flags, cs and rip: what IRETQ takes.
function ring3.iretq(kvm)
  local one <close> = guest.new(kvm, "long", "")
  local ended, ring = run(one, "\x6a\x23\x54\x6a\x02\x6a\x2b\x68"
    .. string.pack("<I4", guest.USER_STUB) .. "\x48\xcf")
  if ended == "end" and ring == 3 then return true end
  return false, "ends in " .. ended
end

local function instruction(kvm, name)
  local ended = instructions.try(kvm, "user", { [name] = true })[name]
  return ended == "works", ended ~= "works" and "ends in " .. ended or nil
end

function ring3.sse(kvm) return instruction(kvm, "ADDPS") end
function ring3.avx(kvm) return instruction(kvm, "VADDPS") end
function ring3.avx512(kvm) return instruction(kvm, "VPADDD (AVX-512)") end

return ring3

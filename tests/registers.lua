-- What the specs of a vCPU's registers share: their names, and guests of both kinds of KVM.

local support = require "support"

local registers = {
  REGS = {
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip", "rflags",
  },
  SEGMENTS = { "cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt" },
  BAD_CR4 = 1 << 63, -- no CR4 has this bit
}

-- Options of ckvm.open: what holds for registers with the page that is shared with the kernel does
-- so without.
registers.MODES = { { "with sync regs", {} }, { "without", { sync_regs = false } } }

-- A KVM, a VM and a vCPU in real mode.
function registers.guest(open, code, regs)
  support.need_kvm()
  return support.real_mode(code, { open = open, regs = regs })
end

return registers

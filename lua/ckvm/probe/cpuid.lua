-- CPUID: does the guest see what the vCPU was given?

local guest = require "ckvm.probe.guest"

local VENDOR <const> = { ebx = 0x6d766b63, edx = 0x6c2d6d76, ecx = 0x65767561 }

local cpuid = {}

function cpuid.cpuid(kvm, mode)
  local one <close> = guest.new(kvm, mode, "\x0f\xa2")
  one.vcpu:set_cpuid2 {
    { ["function"] = 0, eax = 1, ebx = VENDOR.ebx, ecx = VENDOR.ecx, edx = VENDOR.edx },
  }
  one:enter { rax = 0, rcx = 0 }
  local ended = one:run()
  if ended ~= "end" then return nil, ended end
  local regs = one.vcpu.regs
  return regs.rbx == VENDOR.ebx and regs.rcx == VENDOR.ecx and regs.rdx == VENDOR.edx
end

return cpuid

-- Debugging a guest: single steps and breakpoints, by mode. Each probe returns whether it works,
-- and what came instead.

local guest = require "ckvm.probe.guest"

local NOPS <const> = 3
local NOP <const>, INT3 <const> = "\x90", "\xcc"
local BREAKPOINT <const> = NOPS + guest.CODE -- behind the first instructions

local debug = {}

local function is_at(one, address)
  return one.vcpu.exit.pc == address and one.vcpu.regs.rip == address
end

-- What a breakpoint makes of it.
local function hit(one)
  local ended = one:run()
  if ended == "debug" and is_at(one, BREAKPOINT) then return true end
  return false, ended == "end" and "never comes" or ended == "debug" and "elsewhere" or ended
end

-- One exit for each instruction, and no more once it is switched off.
function debug.single_step(kvm, mode)
  local one <close> = guest.new(kvm, mode, NOP:rep(NOPS))
  one.vcpu:set_guest_debug { control = { "enable", "singlestep" } }
  for i = 1, NOPS do
    local ended = one:run()
    if ended ~= "debug" then return false, ended end
    if not is_at(one, guest.CODE + i) then return false, "elsewhere" end
  end
  one.vcpu:set_guest_debug { control = 0 }
  local ended = one:run()
  return ended == "end", ended ~= "end" and ended or nil
end

-- An INT3 that the host has put there is an exit, and not the guest's business.
function debug.sw_breakpoint(kvm, mode)
  local one <close> = guest.new(kvm, mode, NOP:rep(NOPS) .. INT3)
  one.vcpu:set_guest_debug { control = { "enable", "use_sw_bp" } }
  return hit(one)
end

-- An address in a debug register, for execution: DR7 with L0 and the bit that is always set.
function debug.hw_breakpoint(kvm, mode)
  local one <close> = guest.new(kvm, mode, NOP:rep(NOPS + 1))
  one.vcpu:set_guest_debug {
    control = { "enable", "use_hw_bp" },
    arch = { debugreg = { BREAKPOINT, 0, 0, 0, 0, 0, 0, 0x402 } },
  }
  return hit(one)
end

return debug

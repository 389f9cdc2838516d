-- What calls cost, in microseconds.

local ckvm = require "ckvm"
local guest = require "ckvm.probe.guest"

local TIMES <const> = 5 -- the best counts, for the host is busy
local CALLS <const> = 20 -- at a time

local costs = {}

local function best(fn, count)
  local least = math.huge
  for _ = 1, TIMES do
    local from = ckvm.now()
    for _ = 1, count do fn() end
    least = math.min(least, ckvm.now() - from)
  end
  return least / count * 1e6
end

-- KVM_GET_REGS or KVM_SET_REGS, with a table for what it takes or brings. Each set has the next
-- get ask the kernel.
function costs.regs_us(kvm)
  local one <close> = guest.new(kvm, "real", "")
  local regs = one.vcpu:get_regs()
  return best(function()
    one.vcpu:set_regs(regs)
    one.vcpu:get_regs()
  end, CALLS) / 2
end

-- A VM without memory or vCPU: created and closed.
function costs.create_vm_us(kvm)
  return best(function() kvm:create_vm():close() end, 1)
end

return costs

-- Reads all that a report needs from a vCPU whose run has ended. The guest may be in any state
-- there is, so that what cannot be read is nil, and nothing raises but for closed objects.

local x86 = require "ckvm.x86"

local state = {}

local PAGE <const> = 0x1000

-- What a call returns, or nil.
local function try(fn, ...)
  local done, value = pcall(fn, ...)
  if done then return value end
end

-- The fields of the exit that the run ended with; of no other.
local function copy_exit(vcpu, why)
  local exit = try(function() return vcpu.exit end)
  if not exit or try(function() return exit.reason end) ~= why then return {} end
  return try(function()
    local copy = {}
    for name, value in pairs(exit) do copy[name] = value end
    return copy
  end) or {}
end

local function has(value, bit) return value & bit ~= 0 end

-- The mode in words, how many bits its code has, and the ring.
local function mode_of(regs, sregs)
  local bits = has(sregs.efer, x86.efer.lma) and sregs.cs.l ~= 0 and 64
    or sregs.cs.db ~= 0 and 32 or 16
  if not has(sregs.cr0, x86.cr0.pe) then return "real mode", 16, 0 end
  if has(regs.rflags, x86.rflags.vm) then return "virtual-8086 mode", 16, 3 end
  if bits == 64 then return "long mode", 64, sregs.ss.dpl end
  if has(sregs.efer, x86.efer.lma) then return "compatibility mode", bits, sregs.ss.dpl end
  return ("%d-bit protected mode"):format(bits), bits, sregs.ss.dpl
end

local methods = {}
local meta = { __index = methods }

-- A linear address, of one in a segment.
function methods.linear(self, segment, offset)
  if self.bits == 64 then return offset end
  local mask = self.bits == 16 and 0xffff or 0xffffffff
  return segment.base + (offset & mask) & 0xffffffff
end

-- The guest physical address, or nil where the guest has none mapped.
function methods.physical(self, linear)
  if not has(self.sregs.cr0, x86.cr0.pg) then return linear end
  return try(self.vcpu.translate, self.vcpu, linear)
end

-- Is there memory? nil: nothing is mapped.
function methods.has_memory(self, linear)
  local gpa = self:physical(linear)
  return gpa and try(self.vm.read, self.vm, gpa, 1) ~= nil
end

-- The bytes at a linear address, as many of them as there are: up to the end of a page, or none.
function methods.bytes(self, linear, count)
  local in_page = math.min(count, PAGE - (linear & PAGE - 1))
  local read = has(self.sregs.cr0, x86.cr0.pg) and self.vcpu or self.vm
  return try(read.read, read, linear, count) or try(read.read, read, linear, in_page) or ""
end

-- SVM leaves nothing of the guest's state at a triple fault, so that KVM resets the vCPU there.
local function was_reset(self)
  local cs = self.sregs.cs
  return self.why == "shutdown" and self.regs.rip == 0xfff0 and cs.selector == 0xf000
    and cs.base == 0xffff0000
end

-- Of a program of ring 3 whose fault a stub has caught the state is its own, and not the stub's.
local function leave_stub(self, fault)
  if not fault or fault.cs & 3 == 0 then return nil end
  for _, name in ipairs { "rip", "rsp", "rflags" } do self.regs[name] = fault[name] end
  local bits <const> = fault.cs == x86.selector.user_code and 64 or 32
  self.sregs.cs = x86.segment("code", { selector = fault.cs, bits = bits })
  self.sregs.ss = x86.segment("data", { selector = fault.ss })
  return fault
end

-- why: what the run has returned.
function state.read(vm, vcpu, why)
  local self = setmetatable({ vm = vm, vcpu = vcpu, why = why }, meta)
  self.regs, self.sregs = vcpu:get_regs(), vcpu:get_sregs()
  self.fault = leave_stub(self, try(x86.fault, vcpu))
  self.exit = copy_exit(vcpu, why)
  self.mode, self.bits, self.ring = mode_of(self.regs, self.sregs)
  self.rip = self:linear(self.sregs.cs, self.regs.rip)
  self.rsp = self:linear(self.sregs.ss, self.regs.rsp)
  self.code = self:bytes(self.rip, 16)
  self.before = self:bytes(self.rip - 8, 8)
  self.mp_state = try(vcpu.get_mp_state, vcpu)
  self.was_reset = was_reset(self)
  return self
end

return state

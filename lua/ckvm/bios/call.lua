-- One call of a BIOS by a guest, for ckvm.bios: its registers by their names of 16-bit code, what
-- it has in memory, and the flags that it gets back. Nothing here raises for what a guest does.

local rom = require "ckvm.bios.rom"

local call = {}

local CARRY <const>, ZERO <const> = 1, 0x40
local UNSUPPORTED <const> = 0x86 -- as AH tells it

-- Registers --------------------------------------------------------------------

-- By name: of which register of 64 bits it is, from which bit on, and a mask of its size.
local REGISTERS <const> = {
  si = { "rsi", 0, 0xffff }, di = { "rdi", 0, 0xffff }, bp = { "rbp", 0, 0xffff },
  sp = { "rsp", 0, 0xffff },
}
for _, letter in ipairs { "a", "b", "c", "d" } do
  local whole = "r" .. letter .. "x"
  REGISTERS["e" .. letter .. "x"] = { whole, 0, 0xffffffff }
  REGISTERS[letter .. "x"] = { whole, 0, 0xffff }
  REGISTERS[letter .. "l"] = { whole, 0, 0xff }
  REGISTERS[letter .. "h"] = { whole, 8, 0xff }
end

local meta = {}

function meta:__index(name)
  local register = REGISTERS[name]
  if not register then return call[name] end
  return self.vcpu.regs[register[1]] >> register[2] & register[3]
end

function meta:__newindex(name, value)
  local whole, shift, mask = table.unpack(REGISTERS[name])
  local regs <const> = self.vcpu.regs
  regs[whole] = regs[whole] & ~(mask << shift) | (value & mask) << shift
end

-- The call that a vCPU is in, whose code has trapped.
function call.new(bios, vcpu, vector)
  return setmetatable({ bios = bios, vcpu = vcpu, vm = bios.vm, vector = vector }, meta)
end

-- The linear address of an offset in a segment: "es", "ds".
function call:address(segment, offset)
  return self.vcpu.sregs[segment].base + offset
end

-- Loads a segment register, in real mode: selector and base.
function call:set_segment(name, place)
  local segment <const> = self.vcpu.sregs[name]
  segment.selector, segment.base = place.selector, place.base
end

-- Memory -----------------------------------------------------------------------

-- Bytes of memory, or nil where there is none.
function call:read(gpa, size)
  local done, bytes = pcall(self.vm.read, self.vm, gpa, size)
  return done and bytes or nil
end

-- Whether there is memory, which has the bytes now.
function call:write(gpa, bytes)
  return (pcall(self.vm.write, self.vm, gpa, bytes))
end

-- Whether memory is there for both ends of a transfer.
function call:reaches(gpa, size)
  return self:read(gpa, 1) and self:read(gpa + size - 1, 1) and true or false
end

-- Results ----------------------------------------------------------------------

-- Where the trap's code finds them: INT has pushed IP, CS, FLAGS.
local function frame(self, offset)
  return self:address("ss", self.sp + offset & 0xffff)
end

-- IRET loads the flags of the stack. Without memory there, there is nobody to be told.
local function set_flag(self, flag, on)
  local gpa = frame(self, 4)
  local byte = self:read(gpa, 1)
  if byte then self:write(gpa, string.char(byte:byte() & ~flag | (on and flag or 0))) end
end

function call:set_carry(on) set_flag(self, CARRY, on) end
function call:set_zero(on) set_flag(self, ZERO, on) end

-- The usual two ends: carry clear, or set with a status in AH.
function call:succeed() self:set_carry(false) end

function call:fail(status)
  self.ah = status
  self:set_carry(true)
end

-- What there is not, for services that can say so.
function call:refuse()
  self:note("AX 0x%04x is not there", self.ax)
  self:fail(UNSUPPORTED)
end

-- Tells the script about it.
function call:note(message, ...)
  self.bios.note(("INT 0x%x: "):format(self.vector) .. message:format(...))
end

-- Has the guest trap once more, at once, by the code of this vector or the one given: between the
-- two a run can end, and interrupts and host events are served.
function call:again(vector)
  local sregs <const> = self.vcpu.sregs
  self.vcpu.regs.rip = rom.address(vector or self.vector) - sregs.cs.base
end

-- CS:IP to which it returns, as text.
function call:return_address()
  local ip, cs = self:read(frame(self, 0), 2), self:read(frame(self, 2), 2)
  if not ip or not cs then return "an unknown address: there is no stack" end
  return ("%04x:%04x"):format(string.unpack("<I2", cs), string.unpack("<I2", ip))
end

return call

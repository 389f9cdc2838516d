-- What the specs of ckvm.bios share: a VM with a BIOS, boot sectors that run in it, and the call of
-- one interrupt.

local bios = require "ckvm.bios"
local ckvm = require "ckvm"
local disk = require "ckvm.disk"
local support = require "support"
local x86 = require "ckvm.x86"

local guests = {
  MEMORY = 2 << 20, -- bytes
  START = 0x7c00, -- of a boot sector
  CARRY = 1, ZERO = 0x40, -- of rflags
  FLOPPY = 1474560, -- bytes
  TIME = 1709216705, -- Thursday, 2024-02-29 14:25:05 UTC
}

local MEMORY <const>, START <const> = guests.MEMORY, guests.START

function guests.sector(code)
  return code .. ("\0"):rep(510 - #code) .. "\x55\xaa"
end

-- Sectors behind the first, each of its own number.
function guests.numbered(code, sectors)
  local list = { guests.sector(code) }
  for i = 1, sectors - 1 do list[i + 1] = string.pack("<I4", i):rep(128) end
  return table.concat(list)
end

-- A VM with a BIOS. What it puts out and notes is in the lists `output` and `notes`.
function guests.make(options)
  options = options or {}
  local g = { output = {}, notes = {}, vm = ckvm.open():create_vm() }
  g.ram = g.vm:add_memory { gpa = 0, size = MEMORY }
  g.vcpu = g.vm:create_vcpu(0)
  options.memory = options.memory or MEMORY
  options.output = options.output or function(bytes) table.insert(g.output, bytes) end
  options.note = function(text) table.insert(g.notes, text) end
  g.bios = bios.install(g.vm, options)
  return g
end

-- One that has booted a disk with this code in its first sector, and run: why that has ended.
function guests.run(code, options)
  options = options or {}
  options.disk = options.disk or disk.new(guests.sector(code))
  local g = guests.make(options)
  g.bios:boot(g.vcpu)
  g.why, g.value = g.vcpu:run(support.LIMITS)
  g.text = table.concat(g.output)
  return g
end

local SEGMENTS <const> = { es = true, ds = true, ss = true }

-- The guest calls an interrupt with these registers, of which segments are numbers in sregs. What
-- it has in them then, with `carry` and `zero`; or nil and why the run has ended.
function guests.ask(g, vector, regs)
  g.vm:write(START, string.char(0xcd, vector) .. "\xf4") -- int $vector; hlt
  x86.enter(g.vcpu, "real", { rip = START, rsp = START })
  local sregs, general = {}, {}
  for name, value in pairs(regs) do
    if SEGMENTS[name] then
      sregs[name] = { selector = value, base = value << 4 }
    else
      general[name] = value
    end
  end
  g.vcpu:set_sregs(sregs)
  g.vcpu:set_regs(general)
  local why, value = g.vcpu:run(support.LIMITS)
  if why ~= "hlt" then return nil, why, value end
  local found = g.vcpu:get_regs()
  found.carry, found.zero = found.rflags & guests.CARRY ~= 0, found.rflags & guests.ZERO ~= 0
  found.ah, found.al = found.rax >> 8 & 0xff, found.rax & 0xff
  return found
end

return guests

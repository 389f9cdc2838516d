-- A snapshot in plain Lua: the guest goes exit by exit with run_once; at a marked place its
-- registers and memory are saved, and each answer to its next question starts from there.
--
--   ckvm-lua scripts/rewind.lua

local ckvm = require "ckvm"

local LOAD_ADDRESS <const>, SIZE <const>, RESULT <const> = 0x1000, 0x1000, 0x1800

local code = "\xe6\x10"             -- out %al, $0x10: the place to come back to
  .. "\xe4\x11"                     -- in $0x11, %al: left or right?
  .. "\x84\xc0"                     -- test %al, %al
  .. "\x75\x06"                     -- jnz right
  .. "\xc6\x06\x00\x18\x4c"         -- movb $'L', (0x1800)
  .. "\xf4"                         -- hlt
  .. "\xc6\x06\x00\x18\x52"         -- right: movb $'R', (0x1800)
  .. "\xf4"                         -- hlt

local vm <close> = ckvm.open():create_vm()
vm:add_memory { gpa = LOAD_ADDRESS, size = SIZE }
vm:write(LOAD_ADDRESS, code)
local vcpu = vm:create_vcpu(0)
vcpu:set_sregs { cs = { base = 0, selector = 0 } }
vcpu:set_regs { rip = LOAD_ADDRESS, rflags = 2 }

print(vcpu:run_once(), ("port 0x%x"):format(vcpu.exit.port))
vcpu:finish() -- the OUT, so that what is saved is a state between two instructions
local saved = { regs = vcpu:get_regs(), memory = vm:read(LOAD_ADDRESS, SIZE) }

for answer = 0, 1 do
  vcpu:set_regs(saved.regs)
  vm:write(LOAD_ADDRESS, saved.memory)
  print(vcpu:run_once(), ("port 0x%x, answered %d"):format(vcpu.exit.port, answer))
  vcpu.exit.data = answer
  print(vcpu:run_once(), ("rip 0x%x, %q"):format(vcpu.regs.rip, vm:read(RESULT, 1)))
end

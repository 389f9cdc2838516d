-- Coroutine handlers: the guest adds what it reads from port 1 and writes the sum to port 2. Both
-- handlers yield out of the run, so the loop at the end asks the guest, not the guest the script.
--
--   ckvm-lua scripts/adder.lua

local ckvm = require "ckvm"

local LOAD_ADDRESS <const> = 0x1000

local code = "\xe5\x01"             -- next: in $1, %ax
  .. "\x89\xc3"                     -- mov %ax, %bx
  .. "\xe5\x01"                     -- in $1, %ax
  .. "\x01\xd8"                     -- add %bx, %ax
  .. "\xe7\x02"                     -- out %ax, $2
  .. "\x75\xf4"                     -- jnz next: until a sum is 0
  .. "\xf4"                         -- hlt

local vm <close> = ckvm.open():create_vm()
vm:add_memory { gpa = LOAD_ADDRESS, size = 0x1000 }
vm:write(LOAD_ADDRESS, code)
local vcpu = vm:create_vcpu(0)
vcpu:set_sregs { cs = { base = 0, selector = 0 } }
vcpu:set_regs { rip = LOAD_ADDRESS, rflags = 2 }

vm:attach_io { port = 1, read = function() return coroutine.yield("in") end }
vm:attach_io { port = 2, write = function(_, value) coroutine.yield("out", value) end }

local guest = coroutine.wrap(function() return vcpu:run() end)
local state = guest() -- to its first question
for _, pair in ipairs { { 2, 3 }, { 400, 58 }, { 0xffff, 2 }, { 0, 0 } } do
  guest(pair[1])
  local _, sum = guest(pair[2])
  print(("%d + %d = %d"):format(pair[1], pair[2], sum))
  state = guest() -- to its next question, or its end
end
print(state)

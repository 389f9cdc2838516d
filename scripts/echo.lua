-- The bus: a keyboard that is a Lua object at ports 0x60-0x64, and a console at port 0xe9 that is a
-- log, so that what the guest writes never enters Lua until the script takes it.
--
--   ckvm-lua scripts/echo.lua

local ckvm = require "ckvm"

local LOAD_ADDRESS <const> = 0x1000

local code = "\xe4\x64"             -- next: in $0x64, %al: is there a key?
  .. "\x84\xc0"                     -- test %al, %al
  .. "\x74\x06"                     -- jz done
  .. "\xe4\x60"                     -- in $0x60, %al: which?
  .. "\xe6\xe9"                     -- out %al, $0xe9
  .. "\xeb\xf4"                     -- jmp next
  .. "\xf4"                         -- done: hlt

local keyboard = { keys = "the quick brown fox", position = 0 }

function keyboard:read(offset) -- 0 is port 0x60, 4 is port 0x64
  if offset == 4 then return self.position < #self.keys and 1 or 0 end
  self.position = self.position + 1
  return self.keys:byte(self.position)
end

local vm <close> = ckvm.open():create_vm()
vm:add_memory { gpa = LOAD_ADDRESS, size = 0x1000 }
vm:write(LOAD_ADDRESS, code)
local vcpu = vm:create_vcpu(0)
vcpu:set_sregs { cs = { base = 0, selector = 0 } }
vcpu:set_regs { rip = LOAD_ADDRESS, rflags = 2 }

local console = ckvm.buffer(80)
vm:attach_io { port = 0x60, count = 5, device = keyboard }
vm:attach_io { port = 0xe9, log = console }

print(vcpu:run { timeout = 10 })
print(console:take())
print(("%d reads, %d writes"):format(vcpu.stats.exits.io_in, vcpu.stats.exits.io_out))

-- The smallest guest that does something: 17 bytes of real-mode code that add two numbers, write
-- the digit to a port, read the port, and touch an address that has no memory behind it. Every
-- exit is printed, and the pages the guest wrote are counted.
--
--   ckvm-lua scripts/hello.lua

local ckvm = require "ckvm"

local LOAD_ADDRESS <const> = 0x1000
local MEMORY_SIZE <const> = 0x4000

local code = "\xba\xf8\x03"         -- mov $0x3f8, %dx
  .. "\x00\xd8"                     -- add %bl, %al
  .. "\x04\x30"                     -- add $'0', %al
  .. "\xee"                         -- out %al, (%dx)
  .. "\xec"                         -- in (%dx), %al
  .. "\xc6\x06\x00\x80\x00"         -- movb $0, (0x8000): no memory there, so an MMIO write
  .. "\x8a\x16\x00\x80"             -- movb (0x8000), %dl: and an MMIO read
  .. "\xf4"                         -- hlt

local kvm <close> = ckvm.open()
local vm <close> = kvm:create_vm()
local ram = vm:add_memory { gpa = LOAD_ADDRESS, size = MEMORY_SIZE, log_dirty = true }
vm:write(LOAD_ADDRESS, code)

local vcpu = vm:create_vcpu(0)
vcpu:set_sregs { cs = { base = 0, selector = 0 } }
vcpu:set_regs { rip = LOAD_ADDRESS, rax = 2, rbx = 3, rflags = 2 }

vm:attach_io {
  port = 0x3f8,
  read = function(port)
    print(("io_in       port 0x%x"):format(port))
    return 0
  end,
  write = function(port, value)
    print(("io_out      port 0x%x: %q"):format(port, string.char(value)))
  end,
}
vm:attach_mmio {
  gpa = 0x8000,
  size = 0x1000,
  read = function(gpa)
    print(("mmio_read   0x%x"):format(gpa))
    return 0
  end,
  write = function(gpa, value)
    print(("mmio_write  0x%x: %d"):format(gpa, value))
  end,
}

print(vcpu:run { timeout = 10 })

local dirty = vm:dirty_pages(ram)
print(("%d dirty pages"):format(#dirty))
if #dirty == 0 then
  print("The guest stored nothing in memory. VT-x marks the page it runs code from, too; this KVM"
    .. " does not.")
end

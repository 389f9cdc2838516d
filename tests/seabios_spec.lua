-- Firmware that knows nothing of ckvm: Debian's SeaBIOS finds the devices of ckvm.pc, boots a disk
-- with them, and serves its sector. In real mode each instruction may be emulated, and it takes
-- some millions of them.

local machine = require "ckvm.machine"
local pc = require "ckvm.pc"
local support = require "support"

local MiB <const> = 1 << 20
local DIRECTORY <const> = "/usr/share/seabios/"
local LIMITS <const> = { timeout = 120 }

local function firmware(name)
  local file <close> = io.open(DIRECTORY .. name, "rb")
  return file and file:read "a" or support.skip("no " .. DIRECTORY .. name .. " (package seabios)")
end

-- A disk of a MiB that begins with these bytes.
local function new_disk(bytes)
  local disk = { sectors = 2048, content = bytes .. ("\0"):rep(MiB - #bytes) }
  function disk:read(first, count)
    return self.content:sub(first * 512 + 1, (first + count) * 512)
  end
  function disk:write(first, sector)
    self.content = self.content:sub(1, first * 512) .. sector
      .. self.content:sub(first * 512 + #sector + 1)
    return true
  end
  return disk
end

-- Says hello, has the second sector read, says what is in it, waits for a key, has it written to
-- the third sector, and resets.
local CODE <const> = "\x31\xc0\x8e\xd8\x8e\xc0" .. -- xor %ax, %ax; mov %ax, %ds; mov %ax, %es
  "\xbe\x80\x7c\xe8\x2c\x00" ..             -- mov $0x7c80, %si; call print
  "\xb8\x01\x02\xb9\x02\x00" ..             -- mov $0x0201, %ax; mov $2, %cx
  "\xb6\x00\xbb\x00\x7e\xcd\x13" ..         -- mov $0, %dh; mov $0x7e00, %bx; int $0x13
  "\x72\x1b" ..                             -- jc fail
  "\xbe\x00\x7e\xe8\x17\x00" ..             -- mov $0x7e00, %si; call print
  "\xb4\x00\xcd\x16\xa2\x00\x7e" ..         -- mov $0, %ah; int $0x16; mov %al, 0x7e00
  "\xb8\x01\x03\xb9\x03\x00\xcd\x13" ..     -- mov $0x0301, %ax; mov $3, %cx; int $0x13
  "\x72\x04" ..                             -- jc fail
  "\xb0\xfe\xe6\x64" ..                     -- mov $0xfe, %al; out %al, $0x64
  "\xfa\xf4" ..                             -- fail: cli; hlt
  "\xac\x84\xc0\x74\x06" ..                 -- print: lodsb; test %al, %al; jz done
  "\xb4\x0e\xcd\x10\xeb\xf5" ..             -- mov $0x0e, %ah; int $0x10; jmp print
  "\xc3"                                    -- done: ret

local function padded(bytes, size)
  return bytes .. ("\0"):rep(size - #bytes)
end

local SECTORS <const> = padded(padded(CODE, 0x80) .. "hello from sector 1\r\n", 510) .. "\x55\xaa"
  .. padded("then from sector 2; a key?\r\n", 512)

-- A machine whose firmware says to `heard.debug` what it does, and on the screen `heard.screen`;
-- `stop` is what to stop at when it is said. `on_screen` is called with all that was on the screen,
-- and the devices.
local function new(bios, options)
  local m, devices
  local heard = { debug = "", screen = "" }
  local function stop(why) m.vcpus[1]:stop(why) end
  devices = pc.new {
    memory = 32 * MiB, cpus = options.cpus, disk = options.disk,
    reset = function() stop "reset" end,
    output = function(bytes)
      heard.screen = heard.screen .. bytes
      if options.on_screen then options.on_screen(heard.screen, devices) end
    end,
    debug = function(byte)
      heard.debug = heard.debug .. byte
      if options.stop and byte == "\n" and heard.debug:find(options.stop) then stop "heard" end
    end,
  }
  m = machine.new {
    memory = 32 * MiB, cpus = options.cpus, irqchip = true, image = bios, devices = devices,
  }
  return m, heard
end

local function run(m, heard)
  local why, _, value = m:run(LIMITS)
  if why ~= "stopped" then
    error(("%s, after\n%s\n%s"):format(why, heard.debug, heard.screen), 2)
  end
  return value
end

describe("SeaBIOS", function()
  before_each(support.need_kvm)

  it("finds memory and disk, boots it, and serves what its sector asks for #slow", function()
    local disk, typed = new_disk(SECTORS), false
    local m <close>, heard = new(firmware "bios-256k.bin", {
      disk = disk,
      on_screen = function(screen, devices)
        if typed or not screen:find("a key?", 1, true) then return end
        typed = devices.keyboard:press "\x1e\x9e" == 2 -- the key A and its release
      end,
    })
    assert.equal("reset", run(m, heard))
    support.contains("SeaBIOS (version ", heard.debug)
    support.contains("qemu/e820: addr 0x0000000000000000 len 0x0000000002000000 [RAM]", heard.debug)
    support.contains("ATA controller 1 at 1f0/3f4/0 (irq 14 ", heard.debug)
    support.contains("ata0-0: ckvm disk ATA-6 Hard-Disk (1 MiBytes)", heard.debug)
    support.contains("PS2 keyboard initialized", heard.debug)
    support.contains("Booting from 0000:7c00", heard.debug)
    support.contains("SeaBIOS (version ", heard.screen)
    support.contains("Booting from Hard Disk...\r\nhello from sector 1\r\n"
      .. "then from sector 2; a key?", heard.screen)
    assert.equal("then", disk:read(1, 1):sub(1, 4))
    assert.equal("ahen from sector 2; a key?", disk:read(2, 1):sub(1, 26))
  end)

  it("starts the other CPUs, and once more after a reset", function()
    local m <close>, heard = new(firmware "bios.bin", { cpus = 2, stop = "Found %d+ cpu" })
    for _ = 1, 2 do
      assert.equal("heard", run(m, heard))
      support.contains("Found 2 cpu(s)", heard.debug)
      heard.debug = ""
      m:reset()
    end
  end)
end)

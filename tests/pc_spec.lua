-- ckvm.pc: what is where, what firmware is told, interrupt lines, reset, and the buses beside the
-- devices. tests/seabios_spec.lua is what it is all for.

local machine = require "ckvm.machine"
local pc = require "ckvm.pc"
local support = require "support"

local blames = support.blames

local MiB <const>, GiB <const> = 1 << 20, 1 << 30
local DISK <const> = { sectors = 2048 }

local function file(devices, name, size)
  local function get(key, length)
    local bytes = {}
    devices.fw_cfg:write(0, key, 2)
    for i = 1, length do bytes[i] = string.char(devices.fw_cfg:read(1, 1)) end
    return table.concat(bytes)
  end
  for i = 0, string.unpack(">I4", get(0x19, 4)) - 1 do
    local length, key, _, found = string.unpack(">I4I2I2z", get(0x19, 4 + 64 * (i + 1)), 5 + 64 * i)
    if found == name then
      assert.equal(size, length)
      return get(key, length)
    end
  end
end

local function item(devices, key, format)
  local value = 0
  devices.fw_cfg:write(0, key, 2)
  for i = 0, string.packsize(format) - 1 do value = value | devices.fw_cfg:read(1, 1) << 8 * i end
  return value
end

-- A machine that runs `code`, until it resets itself, and its devices.
local function make(code, options)
  local m
  options = options or {}
  options.memory = MiB
  options.reset = function() m.vcpus[1]:stop "reset" end
  local devices = pc.new(options)
  m = machine.new { memory = MiB, irqchip = true, code = code, devices = devices }
  return m, devices
end

local RESET <const> = "\xb0\xfe\xe6\x64\xf4" -- mov $0xfe, %al; out %al, $0x64; hlt

local function run(m)
  local why, _, value = m:run(support.LIMITS)
  assert.same({ "stopped", "reset" }, { why, value })
  return m.vcpus[1].regs
end

describe("ckvm.pc", function()
  it("refuses options that it does not know, and wrong ones", function()
    blames("pc: unknown option 'image'", pc.new, { memory = MiB, image = "" })
    blames("pc: memory: integer expected, got nil", pc.new, {})
    blames("pc: memory: 0xfffff is less than 1 MiB", pc.new, { memory = MiB - 1 })
    blames("pc: cpus: 0 is not between 1 and 255", pc.new, { memory = MiB, cpus = 0 })
    blames("pc: cpus: 256 is not between 1 and 255", pc.new, { memory = MiB, cpus = 256 })
    blames("ata: disk: nil is no number of sectors", pc.new, { memory = MiB, disk = {} })
    blames("fw_cfg: files: a: string expected", pc.new, { memory = MiB, files = { a = 1 } })
  end)

  it("is for one machine", function()
    support.need_kvm()
    local devices = pc.new { memory = MiB }
    local _ <close> = machine.new { memory = MiB, irqchip = true, devices = devices }
    assert.equal("pc: these devices are in another machine", support.error_of(machine.new,
      { memory = MiB, irqchip = true, devices = devices }))
  end)

  it("has its devices by name, the disk only if there is one", function()
    local devices = pc.new { memory = MiB, disk = DISK }
    for _, name in ipairs { "keyboard", "port92", "rtc", "uart", "debugcon", "fw_cfg", "pm", "pci",
      "disk" } do
      assert(devices[name].read, name)
    end
    local function controller(of)
      of.pci:write(0, 0x80000800, 4)
      return of.pci:read(4, 4)
    end
    assert.equal(0x70108086, controller(devices))
    local without = pc.new { memory = MiB }
    assert.equal(nil, without.disk)
    assert.equal(0xffffffff, controller(without))
  end)

  it("tells firmware of memory and CPUs", function()
    local devices = pc.new { memory = 2 * GiB, cpus = 3 }
    assert.equal(string.pack("<I8I8I4", 0, 2 * GiB, 1), file(devices, "etc/e820", 20))
    assert.same({ 2 * GiB, 3, 3 },
      { item(devices, 3, "<I8"), item(devices, 5, "<I2"), item(devices, 0x0f, "<I2") })
    devices = pc.new { memory = 5 * GiB }
    assert.equal(string.pack("<I8I8I4I8I8I4", 0, 3 * GiB, 1, 4 * GiB, 2 * GiB, 1),
      file(devices, "etc/e820", 40))
    assert.same({ 5 * GiB, 1 }, { item(devices, 3, "<I8"), item(devices, 5, "<I2") })
    devices.rtc:write(0, 0x35, 1)
    assert.equal(0xbf, devices.rtc:read(1, 1))
  end)

  it("tells firmware how to behave, unless told otherwise", function()
    local devices = pc.new { memory = MiB }
    assert.equal(0x3f8, string.unpack("<I8", file(devices, "etc/sercon-port", 8)))
    assert.equal("\xff\xff\xff\xff", file(devices, "etc/boot-fail-wait", 4))
    assert.equal(0, string.unpack("<I8", file(devices, "etc/show-boot-menu", 8)))
    devices = pc.new { memory = MiB, files = { ["etc/show-boot-menu"] = "\1", bootorder = "HALT" } }
    assert.equal("\1", file(devices, "etc/show-boot-menu", 1))
    assert.equal("HALT", file(devices, "bootorder", 4))
  end)

  it("calls what it was given", function()
    local list = {}
    local function note(what) return function(bytes) table.insert(list, bytes or what) end end
    local devices = pc.new { memory = MiB, output = note(), debug = note(),
      poweroff = note "off", reset = note "reset" }
    devices.uart:write(0, 0x41, 1)
    devices.debugcon:write(0, 0x42, 1)
    devices.pm:write(4, 1 << 13 | 5 << 10, 2)
    assert.same({ "A", "B", "off" }, list)
    devices.pci:write(1, 6, 1) -- port 0xcf9
    devices.port92:write(0, 1, 1)
    devices.keyboard:write(4, 0xfe, 1)
    assert.same({ "reset", "reset", "reset" }, { table.unpack(list, 4) })
  end)

  describe("in a machine", function()
    before_each(support.need_kvm)

    it("needs its irqchip", function()
      local devices = pc.new { memory = MiB }
      local err = support.error_of(machine.new, { code = "\xf4", devices = devices })
      assert.equal("KVM_IRQ_LINE", err.call)
    end)

    it("has each device at its ports", function()
      local code = ""
      for _, port in ipairs { 0x60, 0x64, 0x92, 0x71, 0x1f7, 0x3f6, 0x3fd, 0x402, 0x511, 0x605,
        0xcf9 } do
        code = code .. "\xba" .. string.pack("<I2", port) .. "\xec\xaa" -- mov, %dx; inb; stosb
      end
      local m <close> = make("\xbf\x00\x30" .. code .. RESET, { disk = DISK }) -- mov $0x3000, %di
      run(m)
      local found = { m.vm:read(0x3000, 11):byte(1, -1) }
      table.remove(found, 4) -- seconds
      assert.same({ 0, 0x14, 2, 0x50, 0x50, 0x60, 0xe9, 0x51, 0, 0 }, found)
    end)

    it("has ones where there is nothing, which takes what is written", function()
      local m <close> = make(
        "\xe5\x10\x89\xc3" ..           -- in $0x10, %ax; mov %ax, %bx
        "\xe7\x10" ..                   -- out %ax, $0x10
        "\x31\xc0\x48\x8e\xd8" ..       -- xor %ax, %ax; dec %ax; mov %ax, %ds
        "\xa0\x10\x00\x88\xc1" ..       -- mov 0x10, %al (at 1 MiB); mov %al, %cl
        "\xa2\x10\x00" .. RESET)        -- mov %al, 0x10
      local regs = run(m)
      assert.same({ 0xffff, 0xff }, { regs.rbx & 0xffff, regs.rcx & 0xff })
    end)

    it("interrupts by the lines of a PC", function()
      local m <close>, devices = make("\xf4", { disk = DISK })
      devices.keyboard:press "\x1e"
      devices.uart:write(4, 8, 1) -- OUT2
      devices.uart:write(1, 2, 1) -- an interrupt when it has sent
      devices.disk:write(7, 0xe7, 1) -- FLUSH CACHE
      devices.pm:write(2, 0x100, 2)
      devices.pm:press_power_button()
      assert.equal(0x12, m.vm:get_irqchip("pic_master").irr & 0x12)
      assert.equal(0x42, m.vm:get_irqchip("pic_slave").irr & 0x42)
    end)

    it("has a clock whose timer wakes the guest", function()
      local m <close>, devices = make("\xfb\xf4\xeb\xfd" .. -- sti; sleep: hlt; jmp sleep
        "\xb0\x0c\xe6\x70\xe4\x71\x88\xc3" .. -- mov $12, %al; out %al, $0x70; in $0x71, %al;
        RESET)                                  -- mov %al, %bl
      m.vm:write(0x70 * 4, string.pack("<I2I2", 0x7c04, 0))
      devices.rtc:write(0, 0x4a << 8 | 0x0b, 2)
      devices.rtc:write(0, 0xc, 1)
      devices.rtc:read(1, 1)
      -- What was due before is not to wake it: the PICs forget it, the slave before it tells again.
      m.vm:set_irqchip { chip_id = "pic_slave", irq_base = 0x70, init4 = 1, irr = 0 }
      m.vm:set_irqchip { chip_id = "pic_master", irq_base = 8, init4 = 1, irr = 0 }
      assert.equal(0xc0, run(m).rbx & 0xc0)
      m:reset()
      devices.rtc:write(0, 0xb, 1)
      assert.equal(0x0a & ~8, devices.rtc:read(1, 1)) -- what was enabled is not any more
    end)

    it("interrupts nobody before there is one", function()
      local devices = pc.new { memory = MiB }
      assert.equal(1, devices.keyboard:press "\x1e")
    end)

    it("is after a reset what it was, but for the clock", function()
      local m <close>, devices = make(RESET, { disk = DISK })
      devices.keyboard:press "\x1e"
      devices.disk:write(2, 0x55, 1)
      devices.disk:write(7, 0xec, 1)
      devices.pci:write(0, 0x8000083c, 4)
      devices.pci:write(4, 11, 1)
      devices.rtc:write(0, 0x40, 1)
      devices.rtc:write(1, 0x77, 1)
      run(m)
      m:reset()
      assert.same({ 0x14, 1, 0x50 },
        { devices.keyboard:read(4, 1), devices.disk:read(2, 1), devices.disk:read(7, 1) })
      devices.pci:write(0, 0x8000083c, 4)
      assert.same({ 0, 0x77 }, { devices.pci:read(4, 1), devices.rtc:read(1, 1) })
      run(m)
    end)

    it("keeps functions that a script adds to the bus", function()
      local m
      local devices = pc.new { memory = MiB, reset = function() m.vcpus[1]:stop "reset" end }
      devices.pci:add { device = 5, config = string.pack("<I2I2", 0x1234, 0x1111) }
      m = machine.new { memory = MiB, irqchip = true, code = RESET, devices = devices }
      local _ <close> = m
      run(m)
      run(m:reset())
      devices.pci:write(0, 0x80002800, 4)
      assert.equal(0x11111234, devices.pci:read(4, 4))
    end)
  end)
end)

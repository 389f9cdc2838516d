-- ckvm.machine: a guest from one table.

local ckvm = require "ckvm"
local machine = require "ckvm.machine"
local support = require "support"
local x86 = require "ckvm.x86"

local blames, contains, error_of = support.blames, support.contains, support.error_of
local LIMITS <const> = support.LIMITS

local OUT_HLT <const> = "\xb0\x2a\xe6\xe9\xf4" -- mov $42, %al; out %al, $0xe9; hlt

-- A device, and the list of what is written to it.
local function port(list)
  return { port = 0xe9, write = function(_, value) table.insert(list, value) end }
end

describe("A machine", function()
  before_each(support.need_kvm)

  for _, mode in ipairs { "real", "protected", "long" } do
    it("runs its code in " .. mode .. " mode", function()
      local seen = {}
      local m <close> = machine.new { mode = mode, code = OUT_HLT, devices = { port(seen) } }
      local why, vcpu = m:run(LIMITS)
      assert.equal("hlt", why)
      assert.equal(m.vcpus[1], vcpu)
      assert.same({ 42 }, seen)
      assert.equal(mode ~= "real", m.vcpus[1].sregs.cr0 & 1 == 1)
      assert.equal(mode == "long", m.vcpus[1].sregs.efer & 1 << 10 ~= 0)
    end)
  end

  it("runs its code in user mode, in ring 3", function()
    local seen = {}
    local m <close> = machine.new { mode = "user", -- mov $42, %al; movabs %al, 0xd0000000; hlt
      code = "\xb0\x2a\xa2\0\0\0\xd0\0\0\0\0\xf4",
      devices = { { gpa = 0xd0000000, size = 1, write = function(_, value, _, vcpu)
        table.insert(seen, { value, vcpu.sregs.cs.selector & 3 })
      end } } }
    for i = 1, 3 do
      local why, vcpu, fault = m:run(LIMITS)
      assert.same({ "stopped", m.vcpus[1] }, { why, vcpu })
      assert.same({ "general protection fault", 0x10000b }, { fault.name, fault.rip })
      assert.same({ 42, 3 }, seen[i])
      m:reset()
    end
  end)

  it("has the ports of its devices in user mode, too", function()
    if not ckvm.probe({ only = { "ring3.io_bitmap" } }).ring3.io_bitmap then
      support.skip "no I/O bitmap for ring 3"
    end
    local seen = {}
    local m <close> = machine.new { mode = "user", code = OUT_HLT, devices = { port(seen) } }
    assert.equal("stopped", (m:run(LIMITS)))
    assert.same({ 42 }, seen)
  end)

  it("has a stack below the code in user mode, wherever that is", function()
    local m <close> = machine.new { mode = "user", at = 0x11000, code = "\x50\x0f\x05" }
    local _, _, fault = m:run(LIMITS) -- push %rax; syscall
    assert.equal("syscall", fault.name)
  end)

  it("goes on after a system call, on several vCPUs", function()
    -- syscall; mov %rax, %rbx; ud2
    local m <close> = machine.new { mode = "user", cpus = 3, at = 0x2f000,
      code = "\x0f\x05\x48\x89\xc3\x0f\x0b" }
    local calls, ended, ends = 0, 0, {}
    repeat
      local why, vcpu, fault = m:run(LIMITS)
      assert.equal("stopped", why)
      if fault.name == "syscall" then
        calls = calls + 1
        vcpu.regs.rax = 7 + vcpu.id
        x86.resume(vcpu, fault)
      else
        assert.same({ "invalid opcode", 0x2f005 }, { fault.name, fault.rip })
        if not ends[vcpu.id + 1] then ended = ended + 1 end -- it comes again as the others run
        ends[vcpu.id + 1] = vcpu.regs.rbx
      end
    until ended == 3
    assert.same({ 7, 8, 9 }, ends)
    assert.equal(3, calls)
  end)

  it("keeps ring 3 out of its tables", function()
    for _, address in ipairs { 0, 0x1000, 0xffff } do
      local m <close> = machine.new { mode = "user", code = "\xc6\x07\0", -- movb $0, (%rdi)
        regs = { rdi = address } }
      local _, _, fault = m:run(LIMITS)
      assert.same({ "page fault", address }, { fault.name, fault.address })
    end
  end)

  it("has segments that the guest can load again", function()
    -- mov $0x10, %ax; mov %ax, %ds; mov (0x100000), %al; hlt
    local m <close> = machine.new { mode = "protected",
      code = "\x66\xb8\x10\x00\x8e\xd8\xa0\x00\x00\x10\x00\xf4" }
    assert.equal("hlt", (m:run(LIMITS)))
    assert.equal(0x66, m.vcpus[1].regs.rax & 0xff)
  end)

  it("has the memory, the address and the registers that it is told", function()
    local m <close> = machine.new { memory = 1 << 20, at = 0x8000, code = "\xf4",
      regs = { rbx = 7 } }
    assert.equal("hlt", (m:run(LIMITS)))
    assert.equal(0x8001, m.vcpus[1].regs.rip)
    assert.equal(7, m.vcpus[1].regs.rbx)
    m.vm:write(0xfffff, "x")
    assert(not pcall(m.vm.write, m.vm, 0x100000, "x"))
  end)

  it("has no memory in the last of the first 4 GiB", function()
    local m <close> = machine.new { memory = (3 << 30) + 0x10000, code = "\xf4" }
    m.vm:write((3 << 30) - 1, "x")
    m.vm:write((4 << 30) + 0xffff, "x")
    assert(not pcall(m.vm.write, m.vm, 3 << 30, "x"))
    assert(not pcall(m.vm.write, m.vm, (4 << 30) + 0x10000, "x"))
  end)

  it("starts anew after a reset", function()
    local seen, resets = {}, 0
    local device = {}
    function device.write(_, _, value) table.insert(seen, value) end
    function device.reset() resets = resets + 1 end
    -- mov $42, %al; out %al, $0xe9; movb $43, (0x7c01), which is in the mov; hlt
    local m <close> = machine.new {
      code = "\xb0\x2a\xe6\xe9\xc6\x06\x01\x7c\x2b\xf4",
      devices = { { port = 0xe9, device = device } },
    }
    for _ = 1, 3 do
      assert.equal("hlt", (m:run(LIMITS)))
      assert.equal(0x2b, m.vm:read_u8(0x7c01))
      assert.equal(m, m:reset())
    end
    assert.same({ 42, 42, 42 }, seen)
    assert.equal(3, resets)
  end)

  it("has its controllers, MSRs and devices as new after a reset", function()
    local LSTAR <const> = 0xc0000082
    local uart = require("ckvm.dev.uart").new {}
    -- mov $0x5a, %al; mov $0x3ff, %dx; out %al, %dx (UART: SCR); out %al, $0x21 (PIC: mask);
    -- mov $0x34, %al; out %al, $0x43; out %al, $0x40; out %al, $0x40 (PIT); hlt
    local m <close> = machine.new {
      irqchip = true, devices = { { port = 0x3f8, count = 8, device = uart } },
      code = "\xb0\x5a\xba\xff\x03\xee\xe6\x21\xb0\x34\xe6\x43\xe6\x40\xe6\x40\xb0\x01\xe6\xf4\xf4",
    }
    m.vm:on("io_out", function(_, _, _, vcpu) vcpu:stop() end)
    local vcpu = m.vcpus[1]
    local function state()
      return { imr = m.vm:get_irqchip("pic_master").imr, pit = m.vm:get_pit2().channels[1].mode,
        scr = uart:save().scr, star = vcpu:get_msrs({ LSTAR })[LSTAR],
        spurious = (string.unpack("<I4", vcpu:get_lapic(), 0xf1)) }
    end
    local new = state()
    for _ = 1, 2 do
      assert.equal("stopped", (m:run(LIMITS)))
      vcpu:set_msrs { { index = LSTAR, data = 0x1000 } }
      vcpu:set_lapic((vcpu:get_lapic():gsub("^(" .. ("."):rep(0xf0) .. ")..", "%1\xff\x01")))
      assert.same({ imr = 0x5a, pit = 2, scr = 0x5a, star = 0x1000, spurious = 0x1ff }, state())
      m:reset()
      assert.same(new, state())
    end
  end)

  it("has no memory after a reset that KVM goes on writing to", function()
    local PLACE <const> = 0x200000
    local switches = ""
    for msr, value in pairs { -- the clock, by both of its MSRs; steal time; EOI; page faults
      [0x12] = PLACE | 1, [0x4b564d01] = PLACE + 0x100 | 1, [0x4b564d03] = PLACE + 0x200 | 1,
      [0x4b564d04] = PLACE + 0x300 | 1, [0x4b564d02] = PLACE + 0x400 | 1,
    } do -- mov $msr, %ecx; mov $value, %eax; xor %edx, %edx; wrmsr
      switches = switches .. "\xb9" .. string.pack("<I4", msr) .. "\xb8"
        .. string.pack("<I4", value) .. "\x31\xd2\x0f\x30"
    end
    local on, exits = 1, 0
    local m <close> = machine.new { mode = "protected", irqchip = true,
      code = "\xe4\x10\x84\xc0\x74" .. string.char(#switches) -- in $0x10, %al; test %al, %al; jz
        .. switches .. "\xe6\x10\xeb\xfc",                    -- 1: out %al, $0x10; jmp 1b
      devices = { { port = 0x10, read = function() return on end, write = function(_, _, _, vcpu)
        exits = exits + 1
        if exits % 100 == 0 then vcpu:stop() end
      end } } }
    local new = ("\xaa"):rep(0x1000)
    for _ = 1, 2 do
      m.vm:write(PLACE, new)
      assert.equal("stopped", (m:run(LIMITS)))
      assert.equal(on == 0, m.vm:read(PLACE, #new) == new)
      m:reset()
      on = 0
    end
  end)

  it("is no guest that resets itself", function()
    local resets = 0
    local options = { reset = function() resets = resets + 1 end }
    local pm = require("ckvm.dev.pm").new(options)
    local m <close> = machine.new { code = "\xb0\xfe\xe6\x64\xf4", -- mov $0xfe, %al; out %al, $0x64
      devices = {
        { port = 0x60, count = 5, device = require("ckvm.dev.i8042").new(options) },
        { port = 0x92, device = require("ckvm.dev.port92").new(options) },
        { port = 0x600, count = 12, device = pm }, { port = 0xcf9, device = pm.reset_register },
      } }
    m:reset()
    assert.equal(0, resets)
    assert.equal("hlt", (m:run(LIMITS)))
    assert.equal(1, resets)
  end)

  it("takes devices that attach themselves, at ports and addresses", function()
    local device = { seen = {} }
    function device:attach(vm)
      vm:attach_mmio { gpa = 0xd00000, size = 0x1000, device = self }
      vm:attach_io { port = 0x10, device = self }
    end
    function device.read() return 5 end
    function device:write(offset, value) table.insert(self.seen, { offset, value }) end
    -- mov (0xd00010), %al; mov %al, (0xd00020); out %al, $0x10; hlt
    local m <close> = machine.new { mode = "protected", memory = 2 << 20, devices = { device },
      code = "\xa0\x10\x00\xd0\x00\xa2\x20\x00\xd0\x00\xe6\x10\xf4" }
    assert.equal("hlt", (m:run(LIMITS)))
    assert.same({ { 0x20, 5 }, { 0, 5 } }, device.seen)
  end)

  it("has several vCPUs, which know their numbers, and starts them all", function()
    local seen = {}
    local m <close> = machine.new { cpus = 3, mode = "long", code = OUT_HLT .. "\xeb\xfe",
      devices = { { port = 0xe9, write = function(_, _, _, vcpu) seen[vcpu.id] = true end } } }
    for _ = 1, 3 do assert.equal("hlt", (m:run(LIMITS))) end
    assert.same({ [0] = true, true, true }, seen)
    for id, vcpu in ipairs(m.vcpus) do
      for _, entry in ipairs(vcpu:get_cpuid2()) do
        if entry["function"] == 1 then
          assert.equal(id - 1, entry.ebx >> 24)
          assert.equal(4, entry.ebx >> 16 & 0xff) -- numbers that there may be
        end
      end
    end
  end)

  it("tells its processor that it is a guest's, and of the timer that its APIC has", function()
    local has_timer <const> = ckvm.open():check_extension "tsc_deadline_timer" > 0
    for _, irqchip in ipairs { false, true } do
      local m <close> = machine.new { cpus = 2, code = "\xf4", irqchip = irqchip }
      for _, vcpu in ipairs(m.vcpus) do
        local list = vcpu:get_cpuid2()
        assert(x86.cpuid_has(list, "hypervisor"))
        if irqchip then assert.equal(has_timer, x86.cpuid_has(list, "tsc_deadline_timer")) end
      end
    end
  end)

  describe("forgets with a reset, of its other vCPUs,", function()
    -- Both of its vCPUs are in the handler: the first waits there until the other is, too.
    local function both(handler)
      local other, first = ckvm.eventfd(), true
      return machine.new { cpus = 2, code = OUT_HLT, devices = { {
        port = 0xe9, write = function(_, _, _, vcpu)
          if first then
            first = false
            other:wait { timeout = 20 }
          else
            other:signal()
          end
          handler(vcpu)
        end,
      } } }
    end

    -- Were one kept, the run would be over at once.
    local function has_forgotten(m)
      m:reset()
      m.vm:write(0x7c00, "\xeb\xfe") -- jmp .
      assert.equal("timeout", (m:run { timeout = 0.2 }))
    end

    it("how they have ended", function()
      local m <close> = both(function(vcpu) vcpu:stop() end)
      assert.equal("stopped", (m:run(LIMITS)))
      has_forgotten(m)
    end)

    it("their errors", function()
      local m <close> = both(function() error(42) end)
      assert.equal(42, support.error_of(m.run, m, LIMITS))
      has_forgotten(m)
    end)
  end)

  it("has the others wait for INIT and SIPI, with an irqchip", function()
    local started = {}
    local m <close> = machine.new {
      cpus = 2, mode = "long", irqchip = true,
      -- INIT and SIPI at 0x8000, to all but itself: movl to 0xfee00300; pause; jmp
      code = "\xbf\x00\x03\xe0\xfe\xc7\x07\x00\x45\x0c\x00\xc7\x07\x08\x46\x0c\x00\xf3\x90\xeb\xfc",
      devices = { { port = 0xe9, write = function(_, value, _, vcpu)
        started[vcpu.id] = value
        vcpu:stop "up"
      end } },
    }
    for _ = 1, 2 do
      m.vm:write(0x8000, OUT_HLT)
      local why, _, value = m:run(LIMITS)
      assert.same({ "stopped", "up" }, { why, value })
      assert.same({ 42 }, started)
      started = {}
      m:reset()
    end
  end)

  it("starts an image, and starts it anew", function()
    local seen = {}
    local m <close> = machine.new { name = "it", devices = { port(seen) },
      image = OUT_HLT .. ("\0"):rep(510 - #OUT_HLT) .. "\x55\xaa" }
    for _ = 1, 2 do
      assert.equal("hlt", (m:run(LIMITS)))
      assert.equal(0x80, m.vcpus[1].regs.rdx & 0xff)
      m:reset()
    end
    assert.same({ 42, 42 }, seen)
    contains("it: ", error_of(machine.new, { name = "it", image = "\x7fELF" }))
    contains("no image", error_of(machine.new, { cmdline = "x" }))
    contains("mode: there is an image", error_of(machine.new, { image = "\xf4", mode = "real" }))
    contains("take an irqchip", error_of(machine.new, { image = "\xf4", cpus = 2 }))
  end)

  it("returns what stop was given, with one vCPU as with several", function()
    for cpus = 1, 2 do
      local m <close> = machine.new { cpus = cpus, code = OUT_HLT, devices = { {
        port = 0xe9, write = function(_, value, _, vcpu) vcpu:stop(value) end,
      } } }
      local why, vcpu, value = m:run(LIMITS)
      assert.same({ "stopped", 42 }, { why, value })
      assert.equal(m.vcpus[vcpu.id + 1], vcpu)
    end
  end)

  it("refuses a wrong table, and says what is wrong", function()
    for message, config in pairs {
      ["unknown option 'cpu'"] = { cpu = 1 },
      ["cpus: integer expected, got string"] = { cpus = "2" },
      ["cpus: 0 is less than 1"] = { cpus = 0 },
      ["memory: 0x1001 is not"] = { memory = 0x1001 },
      ["memory: 0xffffffffffffffff is not"] = { memory = -1 },
      ["mode: 'big' is none of"] = { mode = "big" },
      ["at: 0x1000 is where"] = { mode = "long", at = 0x1000 },
      ["at: 0x2efff is where the machine has descriptors and page tables, below 0x2f000"] = {
        mode = "user", cpus = 3, at = 0x2efff },
      ["at: 0xffffffffffffffff is not in memory"] = { at = -1 },
      ["at: 0x100000 is not in memory"] = { mode = "long", memory = 1 << 20 },
      ["code: 0x401 bytes at 0xffc00 do not fit"] = { mode = "long", memory = 1 << 20,
        at = 0xffc00, code = ("\xf4"):rep(0x401) },
    } do
      local err = error_of(machine.new, config)
      contains(message, err)
      contains("machine_spec", error_of(function() machine.new(config) end))
    end
    blames("machine: table of options expected, got nil", machine.new)
  end)

  it("blames who has made it for what is wrong deeper down", function()
    for message, config in pairs {
      ["is beyond 0xffff"] = { at = 0x10000 },
      ["kvm_regs: unknown field 'rxx'"] = { regs = { rxx = 1 } },
      ["port: -1 is not between"] = { devices = { { port = -1 } } },
      ["gpa: integer expected, got nil"] = { devices = { {} } },
      ["devices: table expected as number 2, got integer"] = { devices = { port {}, 7 } },
      ["trace: unknown kind 'smoke'"] = { trace = { kinds = "smoke" } },
      ["trace: unknown option 'to'"] = { trace = { kinds = "io", to = print } },
      ["unknown format 'zip'"] = { image = "\xf4", format = "zip" },
      ["acpi: unknown option 'cpu'"] = { image = "\xf4", acpi = { cpu = 1 } },
    } do
      blames(message, machine.new, config)
    end
    local err = error_of(function() machine.new { devices = { port {}, port {} } } end)
    assert.equal("EEXIST", err.code)
    contains("machine_spec.lua:", err.where)
  end)

  it("leaves the errors of devices that attach themselves as they are", function()
    local device = { attach = function() error("no such bus") end }
    local line = debug.getinfo(device.attach, "S").linedefined
    contains(("machine_spec.lua:%d: no such bus"):format(line),
      error_of(machine.new, { devices = { device } }))
  end)

  it("has nothing open when it is closed, or when it cannot be made", function()
    collectgarbage()
    collectgarbage "stop"
    local _ <close> = setmetatable({}, { __close = function() collectgarbage "restart" end })
    local before = support.count_fds()
    machine.new({ code = "\xf4", cpus = 2 }):close()
    assert.equal(before, support.count_fds())
    error_of(machine.new, { devices = { { port = -1 } } })
    error_of(machine.new, { image = "\x7fELF" .. ("\0"):rep(100) })
    error_of(machine.new, { cpus = 1 << 20 })
    assert.equal(before, support.count_fds())
  end)

  it("blames who resets one that is closed, or that runs", function()
    local m
    m = machine.new { cpus = 2, mode = "long", code = OUT_HLT, devices = { {
      port = 0xe9, write = function(_, _, _, vcpu)
        blames("the VM is running", machine.reset, m)
        vcpu:stop "seen"
      end,
    } } }
    assert.same({ "stopped", "seen" }, { (m:run(LIMITS)), select(3, m:reset():run(LIMITS)) })
    m:close()
    blames("is closed", machine.reset, m)
  end)

  it("uses the system that it is given", function()
    local kvm <close> = ckvm.open { sync_regs = false }
    local m <close> = machine.new { kvm = kvm, code = "\xf4" }
    assert.equal("hlt", (m:run(LIMITS)))
    m:close()
    assert.equal(12, kvm:get_api_version())
  end)
end)

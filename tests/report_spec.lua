-- ckvm.report: guests that end in each way, and what is said of it.

local machine = require "ckvm.machine"
local report = require "ckvm.report"
local support = require "support"
local x86 = require "ckvm.x86"

local contains = support.contains
local SHORT <const> = { timeout = 1 } -- for those that would never end
local UD2 <const> = "\x0f\x0b"

local function lines_of(text)
  local list = {}
  for line in (text .. "\n"):gmatch("(.-)\n") do table.insert(list, line) end
  return list
end

local function fits(text)
  local list = lines_of(text)
  assert(#list <= 24, ("%d lines:\n%s"):format(#list, text))
  for _, line in ipairs(list) do assert(#line <= 80, line) end
end

-- Words that may have been put on two lines.
local function says(part, text) contains(part, (text:gsub("\n +", " "))) end

-- Runs a machine; returns what is said of its end, the machine, and why.
local function die(config, limits)
  local m = machine.new(config)
  local why, vcpu = m:run(limits or support.LIMITS)
  local text = report.describe(m.vm, vcpu, why)
  fits(text)
  return text, m, why
end

-- After a triple fault SVM has nothing left to look at.
local function need_registers()
  local m = machine.new { mode = "long", code = UD2 }
  if m:run(support.LIMITS) ~= "shutdown" or m.vcpus[1].regs.rip == 0xfff0 then
    support.skip("this KVM resets vCPUs at a triple fault")
  end
end

describe("ckvm.report", function()
  before_each(support.need_kvm)

  it("shows where a guest is, its registers, code and stack", function()
    local text = die { mode = "long", code = "\x48\xb8\xef\xcd\xab\x89\x67\x45\x23\x01\x50\xe6\x42",
      regs = { rbx = 0x1234 } } -- mov $0x0123456789abcdef, %rax; push %rax; out %al, $0x42
    contains("vCPU 0 has ended after 1 exit: io_out at port 0x42 (1 byte: 0xef)", text)
    says("That port is the PIT of a PC", text)
    assert.matches("\nat 0008:000000000010000%x, long mode, ring 0, linear 0x10000%x\n", text)
    contains("rax 0123456789abcdef  rbx 0000000000001234", text)
    contains("rsp 00000000000ffff8", text)
    contains("cr0 80010033 PE MP ET NE WP PG", text)
    contains("efer 500 LME LMA", text)
    contains("cs 0008  ds 0010", text)
    contains("50 e6 42", (text:gsub("[%[%]]", "")))
    contains("\nstack 0123456789abcdef", text)
  end)

  it("shows what 16- and 32-bit code has", function()
    local text = die { code = "\xb8\x34\x12\x50\xf4" } -- mov $0x1234, %ax; push %ax; hlt
    contains("real mode", text)
    contains("eax 00001234", text)
    contains("\nstack 1234 ", text)
    text = die { mode = "protected", code = "\x68\x78\x56\x34\x12\xf4" } -- push $0x12345678; hlt
    contains("32-bit protected mode, ring 0", text)
    contains("\nstack 12345678 ", text)
  end)

  it("shows the other vCPUs, as many as fit", function()
    local m = machine.new { mode = "long", code = "\xe6\xe9", cpus = 2, irqchip = true }
    local text = report.describe(m.vm, m.vcpus[1], (m.vcpus[1]:run(support.LIMITS)))
    contains("\nvCPU 1 at f000:fff0, real mode, ring 0, uninitialized", text)
    says("It waits for another vCPU to start it", report.describe(m.vm, m.vcpus[2], "timeout"))
    m = machine.new { mode = "long", code = "\xf4", cpus = 20 }
    text = report.describe(m.vm, m.vcpus[1], (m.vcpus[1]:run(support.LIMITS)))
    fits(text)
    assert.matches("\nvCPU 1 at 0008:0+100000, long mode, ring 0, runnable\n", text)
    local shown = tonumber(text:match("\nvCPU (%d+)[^\n]*\nand"))
    contains(("\nand %d more vCPUs"):format(19 - shown), text)
  end)

  it("tells of HLT with interrupts off, and on", function()
    says("halted for good: interrupts are off (IF is 0)", die { code = "\xfa\xf4" })
    says("no interrupt controller", die { code = "\xfb\xf4" })
  end)

  it("tells of HLT that never exits, with an irqchip", function()
    local text = die({ code = "\xfa\xf4", irqchip = true }, SHORT)
    contains("its time was up", text)
    says("It sleeps in HLT for good: interrupts are off", text)
    says("It sleeps in HLT, and waits for an interrupt", die({ code = "\xfb\xf4\xeb\xfd",
      irqchip = true }, SHORT))
  end)

  it("tells of a jump to itself", function()
    says("the instruction jumps to itself", die({ mode = "long", code = "\xeb\xfe" }, SHORT))
  end)

  it("tells of ports and addresses that a PC has something at", function()
    local text = die { code = "\xba\xf7\x01\xec\xf4" } -- mov $0x1f7, %dx; in (%dx), %al; hlt
    says("io_in at port 0x1f7 (1 byte), which nobody answers", text)
    says("first IDE channel", text)
    text = die { mode = "long", code = "\xa1\x20\x00\xe0\xfe\x00\x00\x00\x00" }
    -- mov 0xfee00020, %eax
    says("mmio_read at 0xfee00020 (4 bytes)", text)
    says("its local APIC", text)
  end)

  it("tells of memory that is read-only", function()
    local _, vm, vcpu = support.real_mode("\xa2\x00\x80\xf4") -- mov %al, 0x8000; hlt
    vm.vcpus[1]:set_sregs { ds = { base = 0x10000, selector = 0x1000 } }
    vm:add_memory { gpa = 0x10000, size = 0x10000, readonly = true }
    local why = vcpu:run(support.LIMITS)
    assert.equal("mmio_write", why)
    says("Memory is there, and it is read-only", report.describe(vm, vcpu, why))
  end)

  it("tells of a triple fault, whatever KVM leaves of the registers", function()
    local text = die { mode = "long", code = UD2 }
    contains("shutdown, a triple fault", text)
    contains("Likely cause: ", text)
  end)

  it("says so where KVM leaves nothing of them", function()
    if pcall(need_registers) then support.skip("this KVM leaves them") end
    says("resets a vCPU at a triple fault", die { mode = "long", code = UD2 })
  end)

  describe("of a triple fault", function()
    before_each(need_registers)

    it("tells that there is no IDT", function()
      says("An invalid opcode (ud2) came up, and there is no IDT: its limit is 0",
        die { mode = "long", code = UD2 })
    end)

    it("tells of a page fault, and what no page maps", function()
      says("A page fault at 0x123456789000 (CR2, which no page maps) came up",
        die { mode = "long", code = "\x48\xb8\x00\x90\x78\x56\x34\x12\x00\x00\x8b\x00" })
        -- mov $0x123456789000, %rax; mov (%rax), %eax
    end)

    it("tells of code that no page maps", function()
      says("It runs at 0x123456789000, which no page maps",
        die { mode = "long", code = "\x48\xb8\x00\x90\x78\x56\x34\x12\x00\x00\xff\xe0" })
        -- mov $0x123456789000, %rax; jmp *%rax
    end)

    -- An IDT at 0x8000, of that limit, with those bytes.
    local function with_idt(idt, limit, regs)
      local m = machine.new { mode = "long", code = UD2, regs = regs }
      m.vm:write(0x8000, idt)
      m.vcpus[1]:set_sregs { idt = { base = 0x8000, limit = limit } }
      local why, vcpu = m:run(support.LIMITS)
      assert.equal("shutdown", why)
      return report.describe(m.vm, vcpu, why)
    end

    it("tells of an IDT that is too short, or has no gate", function()
      says("the IDT ends before vector 6: its limit is 0x1f", with_idt("", 0x1f))
      says("the IDT has no gate for vector 6", with_idt("", 0xfff))
    end)

    it("tells of an IDT that is not in memory", function()
      local m = machine.new { mode = "long", code = UD2 }
      m.vcpus[1]:set_sregs { idt = { base = 0x7000000000, limit = 0xfff } }
      local why, vcpu = m:run(support.LIMITS)
      says("the IDT, at 0x7000000000, is not in memory", report.describe(m.vm, vcpu, why))
    end)

    it("tells of a stack that is not in memory", function()
      local idt = ("\0"):rep(6 * 16) .. x86.idt { [6] = 0x100000 }:sub(6 * 16 + 1, 7 * 16)
      says("the stack, at 0x7000000000, is not in memory",
        with_idt(idt, 0xfff, { rsp = 0x7000000000 }))
    end)
  end)

  it("tells of code that is beyond memory, or zeros", function()
    local text, _, why = die({ mode = "long", code = "\xb8\x00\x00\x00\xf0\xff\xe0" }, SHORT)
    if why == "shutdown" and text:find("resets a vCPU") then support.skip("nothing is left") end
    says("It runs at 0xf0000000, where no memory is", text) -- mov $0xf0000000, %eax; jmp *%rax
    local m = machine.new { code = "\xf4", regs = { rip = 0x7000 } }
    says("It runs through zeros: it has jumped where no code is. Its interrupt vectors are empty",
      report.describe(m.vm, m.vcpus[1], "timeout"))
  end)

  -- What an exit would be, of a guest that has not run.
  local function with_exit(m, exit, what)
    local real = m.vcpus[1]
    local vcpu = setmetatable({ exit = exit }, { __index = function(_, key)
      local value = real[key]
      return type(value) == "function" and function(_, ...) return value(real, ...) end or value
    end })
    return report.describe(m.vm, vcpu, what or exit.reason)
  end

  it("tells of an instruction that this KVM may lack", function()
    local failed = { reason = "internal_error", suberror = 1, ndata = 0 }
    local m = machine.new { mode = "long", code = "\xd9\xe8" }
    local text = with_exit(m, failed)
    fits(text)
    says("internal_error 1: KVM cannot emulate the instruction", text)
    says("This KVM emulates ring 0, and does not know the instruction (an x87 instruction)", text)
    contains("d9] e8 00", (text:gsub("%[d9%]", "d9]")))
    m = machine.new { code = "\xcd\x10" }
    text = with_exit(m, failed)
    says("Vector 0x10 is empty: it calls a BIOS, and this machine has none", text)
    says("This KVM emulates real mode", text)
  end)

  it("tells so of a real guest, where one ends so", function()
    local text, _, why = die { mode = "long", code = "\xd9\xe8\xf4" } -- fld1; hlt
    if why == "hlt" then support.skip("this KVM knows the instruction") end
    assert.equal("internal_error", why)
    says("does not know the instruction (an x87 instruction)", text)
  end)

  describe("of a program in ring 3", function()
    it("shows the program, and not the stub that has caught it", function()
      local text = die { mode = "user", code = "\x90" .. UD2 }
      contains("vCPU 0 has ended after 1 exit: invalid opcode at rip 0x100001.", text)
      contains("\nat 002b:0000000000100001, long mode, ring 3, linear 0x100001\n", text)
      contains("90 [0f] 0b", text)
      contains("rsp 0000000000100000  rip 0000000000100001", text)
      contains("ss 0023", text)
    end)

    it("tells what a page fault was for", function()
      local function code(bytes) return { mode = "user", code = bytes } end
      says("It writes at 0x1000, which no page maps.", -- movb $1, 0x1000
        (die(code "\xc6\x04\x25\x00\x10\x00\x00\x01")))
      says("It reads at 0x2000, which no page maps.", -- mov 0x2000, %al
        (die(code "\x8a\x04\x25\x00\x20\x00\x00")))
      says("It runs code at 0x3000, which no page maps.", -- mov $0x3000, %eax; jmp *%rax
        (die(code "\xb8\x00\x30\x00\x00\xff\xe0")))
      local stub <const> = "\x48\xb8\x00\x10\x00\x00\x00\x80\xff\xff" -- mov $(stubs), %rax
      says("It reads at 0xffff800000001000, and that page does not let ring 3 do so.",
        (die(code(stub .. "\x8a\x00")))) -- mov (%rax), %al
    end)

    it("tells of an instruction of ring 0, and of a system call", function()
      -- One of any ring that has faulted is none: push $0, five times; iretq
      local iret = die { mode = "user", code = ("\x6a\0"):rep(5) .. "\x48\xcf" }
      contains("general protection fault", iret)
      assert.is_nil(iret:find("is not for ring 3", 1, true))
      says("Likely cause: cli is not for ring 3 here.", (die { mode = "user", code = "\xfa" }))
      local text = die { mode = "user", code = "\xb0\x27\x0f\x05" } -- mov $39, %al; syscall
      contains("system call 39, to return to rip 0x100004", text)
      says("Nobody answers its system calls.", text)
    end)

    it("does not take what is behind a breakpoint for what has run", function()
      local text = die { mode = "user", code = "\xcc" } -- int3
      contains("breakpoint at rip 0x100001.", text)
      assert.is_nil(text:find("Likely cause", 1, true))
    end)
  end)

  it("tells of a state that the CPU refuses", function()
    local m = machine.new { mode = "long", code = "\xf4" }
    local text = with_exit(m, { reason = "fail_entry", hardware_entry_failure_reason = 0x80000021 })
    says("fail_entry: the CPU refuses this state, reason 0x80000021", text)
    says("Registers contradict each other", text)
  end)

  it("takes any reason, and exits that are of another run", function()
    local m = machine.new { code = "\xf4" }
    for _, why in ipairs { "debug", "unheard of", "io_in", "stopped", "interrupted", "" } do
      fits(report.describe(m.vm, m.vcpus[1], why))
    end
    contains("it was interrupted", report.describe(m.vm, m.vcpus[1], "interrupted"))
    support.blames("VM has no method or field 'get_regs'", report.describe, m.vm, m.vm, "hlt")
    contains("why: string expected, got nil",
      support.error_of(report.describe, m.vm, m.vcpus[1]))
  end)

  it("never raises, and fits, whatever state a guest is in", function()
    local seed = tonumber(os.getenv "CKVM_SEED") or os.time()
    print("CKVM_SEED=" .. seed)
    math.randomseed(seed)
    local random = math.random
    local special <const> = {
      0, -1, 1 << 63, math.maxinteger, 0xfff, 0x100000, 0xffffffff, 1 << 47,
    }
    local function value() return random(3) == 1 and random(0) or special[random(#special)] end
    local reasons <const> = { "timeout", "shutdown", "hlt", "internal_error", "io_in", "debug" }
    local m = machine.new { mode = "long", code = UD2, cpus = 2 }
    local vcpu, set = m.vcpus[1], 0
    for _ = 1, support.times(100000) do
      local regs = vcpu:get_regs()
      for name in pairs(regs) do regs[name] = value() end
      vcpu:set_regs(regs)
      local sregs = vcpu:get_sregs()
      for _, name in ipairs { "cs", "ss", "ds", "tr" } do
        sregs[name].base, sregs[name].selector = value(), value() & 0xffff
        sregs[name].limit = value() & 0xffffffff
      end
      sregs.cr2, sregs.cr3 = value(), value()
      sregs.idt = { base = value(), limit = value() & 0xffff }
      sregs.cs.l, sregs.cs.db = random(0, 1), random(0, 1)
      if random(2) == 1 then sregs.cr0, sregs.efer = 0x11, 0 end
      if pcall(vcpu.set_sregs, vcpu, sregs) then set = set + 1 end
      local why = reasons[random(#reasons)]
      fits(with_exit(m, { reason = why, suberror = value(), port = value() & 0xffff,
        size = 1, data = value() }))
    end
    assert(set > 0)
    vcpu:set_sregs(machine.new({ code = "\xf4" }).vcpus[1]:get_sregs())
  end)
end)

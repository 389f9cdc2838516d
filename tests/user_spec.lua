-- ckvm.x86.user_stubs, fault and resume: programs in ring 3, and what the host is told of them.

local ckvm = require "ckvm"
local support = require "support"
local x86 = require "ckvm.x86"

local blames, LIMITS = support.blames, support.LIMITS

local CODE <const>, END <const> = 0x400000, 0x402000 -- virtual: code, data and stack
local MAP <const> = { { va = CODE, gpa = 0, size = 0x2000, user = true } }
local TABLES <const> = 0x4000
local IF <const>, TF <const>, CF <const> = x86.rflags["if"], x86.rflags.tf, x86.rflags.cf
local IOPL <const> = x86.rflags.iopl

-- A VM with a program that is about to run. Options: those of user_stubs. vm: one without memory.
local function program(code, options, vm)
  vm = vm or ckvm.open():create_vm()
  vm:add_memory { gpa = 0, size = 0x20000 }
  vm:write(0, code)
  options = options or {}
  options.map = options.map or MAP
  local start, behind = x86.user_stubs(vm, TABLES, options)
  start.rip, start.rsp = CODE, END
  local vcpu = vm:create_vcpu(0)
  x86.enter(vcpu, "user", start)
  return vcpu, vm, start, behind
end

-- Runs it until it is in a stub; returns the fault.
local function fault_of(vcpu)
  local why = vcpu:run(LIMITS)
  local fault = x86.fault(vcpu)
  if not fault then error(("ends in %s at 0x%x"):format(why, vcpu.regs.rip), 2) end
  return fault
end

-- Whether this KVM lets ring 3 do what the probe of that name tries.
local function has(name)
  return ckvm.probe { only = { "ring3." .. name } }.ring3[name]
end

describe("x86.fault", function()
  before_each(support.need_kvm)

  it("tells of a page fault: where, at which address, and how", function()
    local vcpu = program("\xb8\7\0\0\0\xa2\x45\x23\x01\0\0\0\0\0") -- mov $7, %eax; mov %al, 0x12345
    local fault = fault_of(vcpu)
    assert.equal("page fault", fault.name)
    assert.equal(x86.vector.pf, fault.vector)
    assert.equal(x86.page_fault.write | x86.page_fault.user, fault.error)
    assert.equal(0x12345, fault.address)
    assert.same({ CODE + 5, END, x86.selector.user_code, x86.selector.user_data },
      { fault.rip, fault.rsp, fault.cs, fault.ss })
    assert.equal(7, vcpu.regs.rax)
    assert.equal("page fault at rip 0x400005: address 0x12345, error code 0x6", tostring(fault))
  end)

  it("tells of exceptions with an error code and without", function()
    for code, expected in pairs {
      ["\x0f\x0b"] = { "invalid opcode", 6 },                          -- ud2
      ["\xf4"] = { "general protection fault", 13, 0 },                -- hlt
      ["\x31\xc9\xf7\xf1"] = { "divide error", 0, nil, 2 },            -- xor %ecx, %ecx; div %ecx
      ["\xe6\x20"] = { "general protection fault", 13, 0 },            -- out %al, $0x20
      -- mov $0x1003, %ax; mov %ax, %ds, which is in no GDT
      ["\x66\xb8\x03\x10\x8e\xd8"] = { "general protection fault", 13, 0x1000, 4 },
    } do
      local vcpu = program(code)
      local fault = fault_of(vcpu)
      assert.same(expected,
        { fault.name, fault.vector, fault.error, fault.rip ~= CODE and fault.rip - CODE or nil })
      assert.equal(END, fault.rsp)
      assert.is_nil(fault.address)
    end
  end)

  it("tells of INT3, which is past it", function()
    if not has "int3" then support.skip "no INT3 in ring 3" end
    local fault = fault_of((program "\xcc"))
    assert.same({ "breakpoint", CODE + 1 }, { fault.name, fault.rip })
    assert.equal("breakpoint at rip 0x400001", tostring(fault))
  end)

  it("tells of INT n, where it is allowed, and by a number where there is no word", function()
    if not has "int_n" then support.skip "no INT n in ring 3" end
    local vcpu = program("\xcd\x80\xcd\x81\xcd\x09", { interrupts = { 0x80, 9 } })
    local fault = fault_of(vcpu)
    assert.same({ "interrupt", 0x80, CODE + 2 }, { fault.name, fault.vector, fault.rip })
    assert.equal("interrupt 128 at rip 0x400002", tostring(fault))
    fault = fault_of(vcpu)
    assert.equal("general protection fault", fault.name)
    fault.rip = CODE + 4
    x86.resume(vcpu, fault)
    assert.equal("exception 9 at rip 0x400006", tostring(fault_of(vcpu)))
  end)

  it("is nil for what is in no stub", function()
    local map = { MAP[1], { va = 0x600000, gpa = 1 << 32, size = 0x1000, user = true } }
    local vcpu, vm = program("\x88\x07\xeb\xfe", { map = map }) -- mov %al, (%rdi); jmp .
    assert.is_nil(x86.fault(vcpu))
    vcpu.regs.rdi = 0x600000
    assert.equal("mmio_write", vcpu:run(LIMITS))
    assert.is_nil(x86.fault(vcpu))
    assert.equal("timeout", vcpu:run { timeout = 0.01 })
    assert.is_nil(x86.fault(vcpu))
    vm:write(0x1000, "\xe6\xf0\xf4") -- out %al, $0xf0; hlt
    x86.enter(vcpu, "real", { rip = 0x1000 })
    assert.equal("io_out", vcpu:run(LIMITS))
    assert.is_nil(x86.fault(vcpu))
  end)

  it("refuses what is no vCPU", function()
    local _, vm = program ""
    blames("vcpu: vCPU expected, got nil", x86.fault)
    blames("vcpu: vCPU expected, got ckvm VM", x86.fault, vm)
  end)
end)

describe("x86.resume", function()
  before_each(support.need_kvm)

  it("goes on where, with which flags and with which stack it is told", function()
    -- ud2; pushf; pop %rbx; mov %rsp, %rcx; ud2
    local vcpu = program "\x0f\x0b\x9c\x5b\x48\x89\xe1\x0f\x0b"
    local fault = fault_of(vcpu)
    fault.rip, fault.rsp, fault.rflags = fault.rip + 2, END - 0x100, fault.rflags | CF
    vcpu.regs.rdx = 5
    x86.resume(vcpu, fault)
    fault = fault_of(vcpu)
    assert.equal(CODE + 7, fault.rip)
    local regs = vcpu.regs
    assert.same({ CF, END - 0x100, 5 }, { regs.rbx & CF, regs.rcx, regs.rdx })
  end)

  it("is not needed for what is to be done again", function()
    local vcpu, vm = program "\x0f\x0b\xf4" -- ud2; hlt
    for _ = 1, 3 do assert.equal("invalid opcode", fault_of(vcpu).name) end
    vm:write(0, "\x90\x90") -- nop; nop
    local fault = fault_of(vcpu)
    assert.same({ "general protection fault", CODE + 2 }, { fault.name, fault.rip })
  end)

  it("is as good in a handler, so that the program runs on", function()
    local vcpu, vm = program "\xb9\x0a\0\0\0\x0f\x0b\xe2\xfc\xf4" -- mov $10, %ecx; 1: ud2; loop
    local count = 0
    vm:attach_io { port = 0xf0, write = function(_, _, _, which)
      local fault = x86.fault(which)
      if fault.vector ~= x86.vector.ud then return which:stop(fault) end
      count, fault.rip = count + 1, fault.rip + 2
      x86.resume(which, fault)
    end }
    local why, fault = vcpu:run(LIMITS)
    assert.same({ "stopped", "general protection fault", 10 }, { why, fault.name, count })
    assert.equal(0, vcpu.regs.rcx)
  end)

  it("mends a page fault by a mapping that was not there", function()
    local vcpu, vm, start = program("\xa0\x10\x80\x40\0\0\0\0\0\x0f\x0b") -- mov 0x408010, %al; ud2
    assert.equal(0x408010, fault_of(vcpu).address)
    vm:write(0x1010, "\x2a")
    local table_of = start.cr3
    for shift = 39, 21, -9 do
      table_of = vm:read_u64(table_of + (0x408010 >> shift & 511) * 8) & 0xfffffffff000
    end
    vm:write_u64(table_of + 8 * 8, 0x1000 | x86.page.present | x86.page.user)
    assert.equal("invalid opcode", fault_of(vcpu).name)
    assert.equal(0x2a, vcpu.regs.rax & 0xff)
  end)

  it("leads to one more fault where it cannot be done, in which ring ever", function()
    local vcpu = program "\x0f\x0b"
    local fault = fault_of(vcpu)
    fault.rip = 1 << 62
    x86.resume(vcpu, fault)
    assert.equal("general protection fault", fault_of(vcpu).name)
  end)

  it("is not lost where an NMI comes first", function()
    local vm = ckvm.open():create_vm()
    vm:create_irqchip()
    local vcpu = program("\x0f\x0b\x90\x0f\x0b", {}, vm) -- ud2; nop; ud2
    local fault = fault_of(vcpu)
    fault.rip = fault.rip + 2
    x86.resume(vcpu, fault)
    vcpu:nmi()
    assert.equal("NMI", fault_of(vcpu).name)
    fault = fault_of(vcpu)
    assert.same({ "invalid opcode", CODE + 3, END }, { fault.name, fault.rip, fault.rsp })
  end)

  it("refuses what is no fault, and a vCPU that has none", function()
    local vcpu = program "\x0f\x0b"
    local fault = { name = "x", rip = 0, cs = 0, rflags = 0, rsp = 0, ss = 0 }
    blames("the vCPU is in no stub", x86.resume, vcpu, fault)
    fault_of(vcpu)
    blames("fault: table of fields expected, got nil", x86.resume, vcpu)
    fault.rip = 0.5
    blames("rip: integer expected, got float", x86.resume, vcpu, fault)
    fault.rip, fault.eip = 0, 0
    blames("fault: unknown field 'eip'", x86.resume, vcpu, fault)
    blames("vcpu: vCPU expected, got table", x86.resume, fault, fault)
  end)
end)

describe("A system call", function()
  before_each(support.need_kvm)

  it("is told with its number and where it returns to, and returns", function()
    -- mov $60, %eax; mov $3, %edi; stc; syscall; setc %bl; mov %rax, %rdx; ud2
    local vcpu = program("\xb8\x3c\0\0\0\xbf\3\0\0\0\xf9\x0f\x05\x0f\x92\xc3\x48\x89\xc2"
      .. "\x0f\x0b")
    local call = fault_of(vcpu)
    assert.same({ "syscall", 60, CODE + 13, END }, { call.name, call.number, call.rip, call.rsp })
    assert.same({ x86.selector.user_code, x86.selector.user_data }, { call.cs, call.ss })
    assert.equal(CF, call.rflags & (CF | IF | TF))
    assert.is_nil(call.vector)
    assert.equal(3, vcpu.regs.rdi)
    assert.equal("system call 60, to return to rip 0x40000d", tostring(call))
    vcpu.regs.rax = -38
    x86.resume(vcpu, call)
    local fault = fault_of(vcpu)
    assert.same({ "invalid opcode", CODE + 19 }, { fault.name, fault.rip })
    assert.same({ -38, 1 }, { vcpu.regs.rdx, vcpu.regs.rbx & 0xff })
    assert.equal(0, fault.rflags & IF)
  end)

  it("does not need a stack of the program's", function()
    local vcpu = program "\x31\xe4\x0f\x05\x0f\x05" -- xor %esp, %esp; syscall; syscall
    for i = 1, 2 do
      local call = fault_of(vcpu)
      assert.same({ "syscall", CODE + 2 + 2 * i, 0 }, { call.name, call.rip, call.rsp })
      x86.resume(vcpu, call)
    end
  end)

  it("has no flags but those that a program may change, also where it is none", function()
    -- or $-1, %r11; lea 1f(%rip), %rcx; jmp *%rdi; 1: pushf; pop %rbx; ud2
    local vcpu, _, start = program("\x49\x83\xcb\xff\x48\x8d\x0d\x02\0\0\0\xff\xe7\x9c\x5b"
      .. "\x0f\x0b")
    vcpu.regs.rdi = start.syscall
    local call = fault_of(vcpu)
    assert.same({ "syscall", CODE + 13 }, { call.name, call.rip })
    assert.equal(CF | TF, call.rflags & (CF | IF | TF | IOPL))
    assert.equal(0, call.rflags >> 22)
    call.rflags = call.rflags & ~TF
    x86.resume(vcpu, call)
    assert.equal(CODE + 15, fault_of(vcpu).rip)
    assert.equal(CF, vcpu.regs.rbx & (CF | TF | IOPL))
  end)

  it("can be made over and over", function()
    local vcpu, vm = program "\x0f\x05\xff\xc3\xeb\xfa" -- 1: syscall; inc %ebx; jmp 1b
    local count = 0
    vm:attach_io { port = 0xf0, write = function(_, _, _, which)
      local call = x86.fault(which)
      count = count + 1
      if count == 1000 then return which:stop(call.name) end
      x86.resume(which, call)
    end }
    assert.same({ "stopped", "syscall" }, { vcpu:run(LIMITS) })
    assert.equal(999, vcpu.regs.rbx)
  end)
end)

describe("x86.user_stubs", function()
  before_each(support.need_kvm)

  it("lets ring 3 use the ports that it is told, and no others", function()
    if not has "io_bitmap" then support.skip "no I/O bitmap for ring 3" end
    local seen = {}
    -- out %al, $0x80; out %ax, $0x80
    local vcpu, vm = program("\xe6\x80\x66\xe7\x80", { ports = { 0x80 } })
    vm:attach_io { port = 0x80, write = support.noter(seen) }
    local fault = fault_of(vcpu)
    assert.same({ "general protection fault", CODE + 2, 1 }, { fault.name, fault.rip, #seen })
  end)

  it("lets ring 3 reach no memory but what is the user's", function()
    local map = { MAP[1], { va = 0x600000, gpa = 0x2000, size = 0x1000 } }
    local _, _, start = program("", { map = map })
    for _, va in ipairs {
      0x600000, start.syscall, start.idt.base, start.gdt.base, start.tss.base, TABLES,
    } do
      for _, code in ipairs { "\xc6\x07\1", "\x8a\x07", "\xff\xe7" } do -- store, load, jmp
        local vcpu = program(code, { map = map })
        vcpu.regs.rdi = va
        local fault = fault_of(vcpu)
        if va == start.syscall and code == "\xff\xe7" then
          assert.equal("syscall", fault.name) -- what it could have said otherwise, too
        else
          assert.same({ "page fault", va }, { fault.name, fault.address })
          assert.equal(x86.page_fault.user, fault.error & x86.page_fault.user)
        end
      end
    end
  end)

  it("has pages that may not be executed", function()
    local vcpu = program("\xff\xe4", { map = { -- jmp *%rsp
      { va = CODE, gpa = 0, size = 0x1000, user = true },
      { va = CODE + 0x1000, gpa = 0x1000, size = 0x2000, user = true, execute = false },
    } })
    local fault = fault_of(vcpu)
    assert.same({ "page fault", END, END }, { fault.name, fault.rip, fault.address })
    assert.equal(x86.page_fault.fetch, fault.error & x86.page_fault.fetch)
  end)

  it("survives a program without a stack", function()
    local vcpu = program "\x31\xe4\x50" -- xor %esp, %esp; push %rax
    local fault = fault_of(vcpu)
    assert.equal(CODE + 2, fault.rip)
    assert(fault.name == "page fault" or fault.name == "stack fault", fault.name)
  end)

  it("returns what is behind it, for that of the next vCPU", function()
    local vcpu, vm, start, behind = program "\x0f\x0b"
    assert.equal(0, behind % 0x1000)
    vm:add_memory { gpa = 0x100000, size = 0x20000 }
    local second = x86.user_stubs(vm, 0x100000, { map = MAP })
    second.rip, second.rsp = CODE, END
    local other = vm:create_vcpu(1)
    x86.enter(other, "user", second)
    for _, which in ipairs { vcpu, other, vcpu } do
      assert.equal("invalid opcode", fault_of(which).name)
    end
    assert(other.regs.rip ~= vcpu.regs.rip and start.cr3 < behind)
  end)

  it("refuses wrong arguments", function()
    local _, vm = program ""
    blames("vm: VM expected, got nil", x86.user_stubs)
    blames("gpa: 1 is not a multiple of the page size", x86.user_stubs, vm, 1)
    blames("gpa: nil is not a multiple of the page size", x86.user_stubs, vm)
    blames("gpa: 0xfffffffffffff000 is not below 0x400000000000", x86.user_stubs, vm, -4096)
    blames("gpa: 0x400000000000 is not below", x86.user_stubs, vm, 1 << 46)
    blames("user_stubs: unknown option 'port'", x86.user_stubs, vm, 0, { port = {} })
    blames("ports: 0xf0 is that of the stubs", x86.user_stubs, vm, 0, { ports = { 0xf0 } })
    blames("ports: 65536 is not between", x86.user_stubs, vm, 0, { ports = { 0x10000 } })
    blames("interrupts: 256 is not between", x86.user_stubs, vm, 0, { interrupts = { 256 } })
    blames("interrupts: 14 has an error code, which INT 14 does not push", x86.user_stubs, vm, 0,
      { interrupts = { 0x80, 14 } })
    blames("mapping: table of fields expected, got integer", x86.user_stubs, vm, 0, { map = { 5 } })
    blames("va: 1 is not a multiple", x86.user_stubs, vm, 0, { map = { { va = 1, size = 0 } } })
    blames("no memory at 0x20000", x86.user_stubs, vm, 0x1f000)
    blames("no memory at 0x20000", x86.user_stubs, vm, 0x1a000)
  end)

  it("refuses a program that could reach it", function()
    local _, vm, _, behind = program ""
    for _, mapping in ipairs {
      { va = 0, size = 0x20000 }, { va = 0, gpa = TABLES, size = 0x1000 },
      { va = 0, gpa = behind - 0x1000, size = 0x3000 }, { va = 0, gpa = 0, size = TABLES + 0x1000 },
    } do
      mapping.user = true
      blames("would be the user's, and has the tables at 0x4000", x86.user_stubs, vm, TABLES,
        { map = { mapping } })
      mapping.user = nil
      x86.user_stubs(vm, TABLES, { map = { mapping } })
    end
    x86.user_stubs(vm, TABLES, { map = {
      { va = 0, gpa = 0, size = TABLES, user = true },
      { va = TABLES, gpa = behind + 0x2000, size = 0x1000, user = true },
    } })
  end)
end)

describe("x86.enter with a SYSCALL handler", function()
  it("switches SYSCALL on, and off again", function()
    support.need_kvm()
    local vcpu, _, start = program "\x0f\x05"
    assert.equal(x86.efer.sce, vcpu.sregs.efer & x86.efer.sce)
    assert.equal(start.syscall, vcpu:get_msrs({ x86.msr.lstar })[x86.msr.lstar])
    start.syscall = nil
    x86.enter(vcpu, "user", start)
    assert.equal(0, vcpu.sregs.efer & x86.efer.sce)
  end)
end)

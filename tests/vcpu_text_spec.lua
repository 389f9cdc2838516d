-- What tostring says of the live views of a vCPU's registers.

local support = require "support"

local contains = support.contains

local OUT_HLT <const> = "\xe6\x10\xf4" -- out %al, $0x10; hlt

describe("tostring of a live view", function()
  local kvm, vm, vcpu
  before_each(function()
    support.need_kvm()
    kvm, vm, vcpu = support.real_mode(OUT_HLT)
  end)
  after_each(function() support.close(vm, kvm) end)

  it("has each field in the kernel's order, addresses in hex, in lines of 80 columns", function()
    vcpu.regs.rbx, vcpu.regs.r9 = -1, 0x1234567890
    assert.equal([[
kvm_regs { rax = 0x0, rbx = 0xffffffffffffffff, rcx = 0x0, rdx = 0x0,
  rsi = 0x0, rdi = 0x0, rsp = 0x0, rbp = 0x0, r8 = 0x0, r9 = 0x1234567890,
  r10 = 0x0, r11 = 0x0, r12 = 0x0, r13 = 0x0, r14 = 0x0, r15 = 0x0,
  rip = 0x1000, rflags = 0x2 }]], tostring(vcpu.regs))
  end)

  it("has parts, each in lines of its own, and arrays", function()
    vcpu:set_sregs { gdt = { base = 0x7000, limit = 0x17 } }
    local text <const> = tostring(vcpu.sregs)
    assert.matches("^kvm_sregs {\n  cs = { base = 0x0, limit = 0xffff, selector = 0x0, ", text)
    contains("\n    dpl = 0, ", text)
    contains(" },\n  gdt = { base = 0x7000, limit = 0x17 },\n", text)
    assert.matches(" interrupt_bitmap = { 0x0, 0x0,%s+0x0, 0x0 } }$", text)
    for line in text:gmatch("[^\n]+") do assert.is_true(#line <= 80, line) end
    local at = 1
    for name in pairs(vcpu.sregs) do
      at = assert(text:find("%f[%w]" .. name .. " = ", at), name)
    end
  end)

  it("shows a part as that, and with it what was just written", function()
    vcpu.events.nmi.masked = 1
    assert.equal("nmi { injected = 0, pending = 0, masked = 1 }", tostring(vcpu.events.nmi))
    contains("\n  nmi = { injected = 0, pending = 0, masked = 1 }", tostring(vcpu.events))
  end)

  it("does not raise for a vCPU that is closed, or that another thread runs", function()
    local second <const> = vm:create_vcpu(1)
    local regs, nmi, text = second.regs, second.events.nmi, nil
    vm:write(0x2000, "\xeb\xfe") -- jmp .
    second:set_sregs { cs = { base = 0, selector = 0 } }
    second:set_regs { rip = 0x2000, rflags = 2 }
    vm:attach_io { port = 0x10, write = function(_, _, _, which)
      text = tostring(regs)
      which:stop()
    end }
    assert.equal("stopped", (vm:run(support.LIMITS)))
    assert.equal("kvm_regs (the vCPU is running)", text)
    vm:close()
    assert.equal("kvm_regs (closed)", tostring(regs))
    assert.equal("nmi (closed)", tostring(nmi))
  end)

  it("is for views alone", function()
    local show <const> = debug.getmetatable(vcpu.regs).__tostring
    for _, value in ipairs { {}, io.stdout, vcpu, vm, 1 } do
      contains("registers expected", support.error_of(show, value))
    end
  end)
end)

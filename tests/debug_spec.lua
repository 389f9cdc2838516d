-- Debugging a guest, what the host injects into it, and the signals that a run minds.

local support = require "support"

local contains, error_of = support.contains, support.error_of

local STACK <const> = 0x3000
local HANDLER <const> = 0x2000 -- of the vector that a test needs
local STEPPING <const> = { control = { "enable", "singlestep" } }

local kvm, vm, vcpu

local function guest(code)
  support.need_kvm()
  kvm, vm, vcpu = support.real_mode(code, { regs = { rsp = STACK } })
end

-- Real mode: the handler of that vector halts.
local function handle(vector)
  vm:write_u32(vector * 4, HANDLER)
  vm:write(HANDLER, "\xf4")
end

local function run(why)
  assert.equal(why, (vcpu:run(support.LIMITS)))
end

-- Where the handler's IRET would go back to.
local function interrupted_at()
  return vm:read_u16(STACK - 6)
end

local function close()
  kvm, vm, vcpu = support.close(vm, kvm)
end

describe("vcpu:set_guest_debug", function()
  after_each(close)

  it("names what is wrong", function()
    guest("\xf4")
    for message, debug in pairs {
      ["kvm_guest_debug: unknown option 'debugreg'"] = { debugreg = {} },
      ["control: unknown name 'step'"] = { control = "step" },
      ["control: unknown name 'Enable'"] = { control = { "singlestep", "Enable" } },
      ["control: name or integer expected, got boolean"] = { control = true },
      ["control[x]: no such element"] = { control = { x = "enable" } },
      ["control: -1 does not fit in 32 bits"] = { control = -1 },
      ["kvm_guest_debug.arch: unknown field 'dr7'"] = { arch = { dr7 = 1 } },
      ["kvm_guest_debug.arch.debugreg[9]: no such element"] = { arch = { debugreg = { [9] = 0 } } },
    } do
      contains(message, error_of(vcpu.set_guest_debug, vcpu, debug))
    end
    contains("table expected", error_of(vcpu.set_guest_debug, vcpu))
  end)

  it("takes names, lists and numbers", function()
    guest("\xf4")
    for _, control in ipairs { "enable", { "enable", "use_hw_bp" }, { "enable", 2 }, 3, {} } do
      vcpu:set_guest_debug { control = control }
    end
    vcpu:set_guest_debug {}
    run "hlt"
  end)

  it("steps from instruction to instruction, and no longer when it is told", function()
    guest("\xba\x10\x00" -- mov $0x10, %dx
      .. "\x90\x40\xf4") -- nop; inc %ax; hlt
    vcpu:set_guest_debug(STEPPING)
    for _, pc in ipairs { 0x1003, 0x1004 } do
      run "debug"
      assert.equal(pc, vcpu.exit.pc)
      assert.equal(pc, vcpu.regs.rip)
      assert.equal(1, vcpu.exit.exception) -- #DB
      assert.equal(0x4ff0, vcpu.exit.dr6 & 0xffff)
      assert.equal(0, vcpu.regs.rflags & 0x100) -- TF is the host's business
    end
    vcpu:set_guest_debug {}
    run "hlt"
    assert.equal(1, vcpu.regs.rax)
  end)

  it("steps over a read, which is answered before", function()
    guest("\xe4\x10\x40\xf4") -- in $0x10, %al; inc %ax; hlt
    vm:attach_io { port = 0x10, read = function() return 0x41 end }
    vcpu:set_guest_debug(STEPPING)
    for step, rax in ipairs { 0x41, 0x42 } do
      run "debug"
      assert.equal(0x1001 + step, vcpu.exit.pc)
      assert.equal(rax, vcpu.regs.rax)
    end
  end)

  it("can be switched on while an access is open, which keeps its answer", function()
    for name, code in pairs { read = "\xe4\x10\x40\xf4", write = "\xe6\x10\x40\xf4" } do
      guest(code)
      vm:attach_io { port = 0x10, [name] = function(_, _, last)
        vcpu:set_guest_debug(STEPPING)
        return name == "read" and last and 0x41 or nil
      end }
      run "debug"
      local pc = vcpu.exit.pc
      assert.is_true(pc == 0x1002 or pc == 0x1003) -- behind the access, or one on
      if pc == 0x1002 then run "debug" end
      assert.equal(0x1003, vcpu.regs.rip)
      assert.equal(name == "read" and 0x42 or 1, vcpu.regs.rax)
      close()
    end
  end)

  it("takes addresses of breakpoints", function()
    guest("\x90\x90\x40\xf4") -- nop; nop; inc %ax; hlt
    vcpu:set_guest_debug {
      control = { "enable", "use_hw_bp" }, arch = { debugreg = { [1] = 0x1002, [8] = 0x401 } },
    }
    local why = vcpu:run(support.LIMITS)
    if why == "hlt" then pending("hardware breakpoints do not exit") end
    assert.equal("debug", why)
    assert.equal(0x1002, vcpu.exit.pc)
    assert.equal(0, vcpu.regs.rax)
    vcpu:set_guest_debug {}
    run "hlt"
    assert.equal(1, vcpu.regs.rax)
  end)

  it("injects an exception, one at a time", function()
    guest("\x40\xf4")
    handle(1)
    vcpu:set_guest_debug { control = { "enable", "inject_db" } }
    local err = error_of(vcpu.set_guest_debug, vcpu, { control = { "enable", "inject_bp" } })
    assert.equal("KVM_SET_GUEST_DEBUG", err.call)
    assert.equal("EBUSY", err.code)
    contains("exception waits", err)
    run "hlt"
    assert.equal(HANDLER + 1, vcpu.regs.rip)
  end)
end)

describe("vcpu:nmi", function()
  after_each(close)

  it("is taken by the guest, and shows in the views", function()
    guest("\x40\xf4")
    handle(2)
    vcpu.regs.rbx = 7
    vcpu:nmi()
    assert.is_true(vcpu.events.nmi.pending > 0)
    run "hlt"
    assert.same({ HANDLER + 1, 7 }, { vcpu.regs.rip, vcpu.regs.rbx })
    assert.equal(1, vcpu.events.nmi.masked)
  end)

  it("waits for the end of an instruction whose access is open", function()
    guest("\xe4\x10\x40\xf4") -- in $0x10, %al; inc %ax; hlt
    handle(2)
    vm:attach_io { port = 0x10, read = function()
      vcpu:nmi()
      return 0x42
    end }
    run "hlt"
    assert.equal(HANDLER + 1, vcpu.regs.rip)
    assert.equal(0x42, vcpu.regs.rax)
    assert.equal(0x1002, interrupted_at())
  end)
end)

describe("vcpu:smi", function()
  after_each(close)

  it("is queued, or the kernel's refusal", function()
    guest("\xf4")
    if kvm:check_extension("x86_smm") == 0 then
      local err = error_of(vcpu.smi, vcpu)
      assert.equal("KVM_SMI", err.call)
      assert.equal("ENOTTY", err.code)
      contains("does not have this call", err)
    else
      vcpu:smi()
      assert.equal(1, vcpu.events.smi.pending)
    end
  end)
end)

describe("Machine checks", function()
  local MC1_STATUS <const>, VALID <const> = 0x405, 1 << 63
  before_each(function()
    guest("\xf4")
    if kvm:check_extension("mce") == 0 then pending("no machine checks") end
  end)
  after_each(close)

  it("are set up for as many banks as KVM has, and no more", function()
    local cap = kvm:x86_get_mce_cap_supported()
    local banks = kvm:check_extension("mce")
    assert.equal("integer", math.type(cap))
    vcpu:x86_setup_mce(cap & ~0xff | banks)
    for _, bad in ipairs { cap & ~0xff | banks + 1, ~cap } do
      local err = error_of(vcpu.x86_setup_mce, vcpu, bad)
      assert.equal("KVM_X86_SETUP_MCE", err.call)
      assert.equal("EINVAL", err.code)
    end
    contains("mcg_cap: integer expected", error_of(vcpu.x86_setup_mce, vcpu, "10"))
  end)

  it("go to a bank, where the guest finds them", function()
    vcpu:x86_setup_mce(kvm:x86_get_mce_cap_supported() & ~0xff | 4)
    vcpu:x86_set_mce { bank = 1, status = VALID, addr = 0x1234 }
    assert.equal(VALID, vcpu:get_msrs({ MC1_STATUS })[MC1_STATUS])
    assert.equal(0x1234, vcpu:get_msrs({ MC1_STATUS + 1 })[MC1_STATUS + 1])
  end)

  it("name what is wrong, and say what the kernel refuses", function()
    vcpu:x86_setup_mce(kvm:x86_get_mce_cap_supported() & ~0xff | 4)
    contains("kvm_x86_mce: unknown field 'state'", error_of(vcpu.x86_set_mce, vcpu, { state = 1 }))
    contains("kvm_x86_mce.bank: 256 does not fit", error_of(vcpu.x86_set_mce, vcpu, { bank = 256 }))
    for _, mce in ipairs { { bank = 1 }, { bank = 4, status = VALID } } do
      local err = error_of(vcpu.x86_set_mce, vcpu, mce)
      assert.equal("KVM_X86_SET_MCE", err.call)
      assert.equal("EINVAL", err.code)
    end
  end)
end)

describe("The task priority", function()
  after_each(close)

  it("can be reported, and lie in the guest's memory", function()
    guest("\xf4")
    if kvm:check_extension("vapic") == 0 then pending("no vapic") end
    contains("kvm_tpr_access_ctl: unknown field 'enable'",
      error_of(vcpu.tpr_access_reporting, vcpu, { enable = 1 }))
    assert.equal("KVM_TPR_ACCESS_REPORTING",
      error_of(vcpu.tpr_access_reporting, vcpu, { enabled = 1, flags = 1 }).call)
    vcpu:tpr_access_reporting { enabled = 1 }
    vcpu:tpr_access_reporting { enabled = 0 }
    contains("address expected", error_of(vcpu.set_vapic_addr, vcpu, "0x1000"))
    local err = error_of(vcpu.set_vapic_addr, vcpu, 0x2000)
    assert.equal("KVM_SET_VAPIC_ADDR", err.call)
    contains("no in-kernel irqchip", err)
  end)

  it("has its address in memory that is there", function()
    kvm, vm = support.new_vm()
    if vm:check_extension("split_irqchip") == 0 then pending("no split irqchip") end
    vm:enable_cap("split_irqchip", 24)
    vm:add_memory { gpa = 0, size = 0x10000 }
    vcpu = vm:create_vcpu(0)
    vcpu:set_vapic_addr(0x2000)
    vcpu:set_vapic_addr(0)
    assert.equal("KVM_SET_VAPIC_ADDR", error_of(vcpu.set_vapic_addr, vcpu, 1 << 30).call)
  end)
end)

describe("vcpu:set_signal_mask", function()
  after_each(close)

  it("refuses anything but a list of signals", function()
    guest("\xf4")
    contains("table expected", error_of(vcpu.set_signal_mask, vcpu, 10))
    for message, list in pairs {
      ["signal: integer expected, got string"] = { "USR1" },
      ["signal: 0 is not between 1 and 64"] = { 0 },
      ["signal: 65 is not between 1 and 64"] = { 65 },
      ["signals[usr1]: no such element"] = { usr1 = 10 },
    } do
      contains(message, error_of(vcpu.set_signal_mask, vcpu, list))
    end
  end)

  it("never blocks a kick or a deadline", function()
    support.need_kvm()
    -- In a process of its own, which ends if this run does not.
    local status, output, errors = support.run([[
      local ckvm = require "ckvm"
      local vm = ckvm.open():create_vm()
      vm:add_memory { gpa = 0, size = 0x2000 }
      vm:write(0x1000, "\xeb\xfe") -- jmp .
      local vcpu = vm:create_vcpu(0)
      vcpu:set_sregs { cs = { base = 0, selector = 0 } }
      vcpu:set_regs { rip = 0x1000, rflags = 2 }
      local all = {}
      for signal = 1, 64 do all[signal] = signal end
      vcpu:set_signal_mask(all)
      print(vcpu:run { timeout = 0.02 })
      vcpu:set_signal_mask()
      print(vcpu:run { timeout = 0.02 })
    ]])
    assert.equal("timeout\ntimeout\n", output)
    assert.equal("", errors)
    assert.equal(0, status)
  end)
end)

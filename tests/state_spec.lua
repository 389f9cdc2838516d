-- State of a vCPU beside its views: FPU, XSAVE, XCRs, debug registers, sregs2, the local APIC,
-- mp_state, nested virtualization, single registers, and the TSC.

local support = require "support"
local x86 = require "ckvm.x86"

local contains, error_of = support.contains, support.error_of

local XSAVE_SIZE <const>, LAPIC_SIZE <const>, NESTED_HEADER <const> = 4096, 1024, 128
local XMM0 <const>, XSTATE_BV <const>, X87_AND_SSE <const> = 160, 512, 3 -- in XSAVE's layout
local IN_HLT <const> = "\xe4\x10\xf4" -- in $0x10, %al; hlt
local OUT_HLT <const> = "\xe6\x10\xf4" -- out %al, $0x10; hlt

local kvm, vm, vcpu

-- A guest in real mode, and with an irqchip if its local APIC is wanted.
local function guest(code, irqchip)
  kvm, vm = support.new_vm()
  if irqchip then
    if vm:check_extension("split_irqchip") == 0 then pending("no split irqchip") end
    vm:enable_cap("split_irqchip", 24)
  end
  vm:add_memory { gpa = 0, size = 0x10000 }
  vm:write(0x1000, code or "\xf4")
  vcpu = vm:create_vcpu(0)
  x86.enter(vcpu, "real", { rip = 0x1000 })
end

local function close()
  kvm, vm, vcpu = support.close(vm, kvm)
end

describe("State of a vCPU:", function()
  after_each(close)

  it("every call refuses a closed vCPU", function()
    guest()
    vcpu:close()
    for name, arg in pairs {
      get_fpu = false, set_fpu = {}, get_xcrs = false, set_xcrs = {}, get_debugregs = false,
      set_debugregs = {}, get_sregs2 = false, set_sregs2 = {}, get_lapic = false, set_lapic = "",
      get_xsave = false, get_xsave2 = false, set_xsave = "", get_nested_state = false,
      set_nested_state = "", get_mp_state = false, set_mp_state = "halted", get_reg_list = false,
      get_one_reg = 0, set_one_reg = 0, get_tsc_khz = false, set_tsc_khz = 0,
      kvmclock_ctrl = false, nmi = false, smi = false, tpr_access_reporting = {},
      set_vapic_addr = 0, x86_setup_mce = 0, x86_set_mce = {}, set_guest_debug = {},
      set_signal_mask = {}, translate = 0, read = 0, write = 0, read_cstring = 0,
    } do
      contains("vCPU is closed", error_of(vcpu[name], vcpu, arg or nil))
    end
  end)

  describe("get_fpu and set_fpu", function()
    before_each(function() guest() end)

    it("have the kernel's fields, the registers as strings", function()
      local fpu = vcpu:get_fpu()
      assert.equal(8, #fpu.fpr)
      assert.equal(16, #fpu.xmm)
      for _, list in ipairs { fpu.fpr, fpu.xmm } do
        for _, register in ipairs(list) do assert.equal(16, #register) end
      end
    end)

    it("name what is wrong, and set nothing", function()
      local before = vcpu:get_fpu()
      for message, fpu in pairs {
        ["kvm_fpu: unknown field 'st'"] = { st = 1 },
        ["kvm_fpu.fcw: 65536 does not fit in 16 bits"] = { fcw = 0x10000 },
        ["kvm_fpu.xmm: table expected, got string"] = { xmm = ("\0"):rep(256) },
        ["kvm_fpu.xmm[2]: string of 16 bytes expected, got number"] = { xmm = { [2] = 5 } },
        ["kvm_fpu.xmm[1]: string of 16 bytes expected, got 3 bytes"] = { xmm = { "abc" } },
        ["kvm_fpu.xmm[17]: no such element"] = { xmm = { [17] = ("\0"):rep(16) } },
        ["kvm_fpu.fpr[9]: no such element"] = { fpr = { [9] = ("\0"):rep(16) } },
      } do
        fpu.mxcsr = fpu.mxcsr or 0x1fa0
        contains(message, error_of(vcpu.set_fpu, vcpu, fpu))
      end
      assert.same(before, vcpu:get_fpu())
    end)

    it("keep what is not named", function()
      local one, two = ("\x11"):rep(16), ("0123456789abcdef")
      vcpu:set_fpu { fcw = 0x37f, xmm = { [3] = one } }
      vcpu:set_fpu { xmm = { [16] = two } }
      local fpu = vcpu:get_fpu()
      assert.equal(0x37f, fpu.fcw)
      assert.equal(one, fpu.xmm[3])
      assert.equal(two, fpu.xmm[16])
      vcpu:set_fpu(fpu)
      assert.same(fpu, vcpu:get_fpu())
    end)

    it("have what the guest moves, and give it what it moves", function()
      close()
      guest("\x0f\x10\x0e\x00\x30" -- movups 0x3000, %xmm1
        .. "\xe6\x10" -- out %al, $0x10
        .. "\x0f\x11\x06\x00\x20\xf4") -- movups %xmm0, 0x2000; hlt
      -- An emulator knows SSE by CPUID, and moves by OSFXSR.
      vcpu:set_cpuid2(kvm:get_supported_cpuid())
      vcpu:set_sregs { cr4 = x86.cr4.osfxsr }
      vm:write(0x3000, "abcdefghijklmnop")
      local moved
      vm:attach_io { port = 0x10, write = function()
        moved = vcpu:get_fpu().xmm[2]
        vcpu:set_fpu { xmm = { "ABCDEFGHIJKLMNOP" } }
      end }
      assert.equal("hlt", (vcpu:run(support.LIMITS)))
      assert.equal("abcdefghijklmnop", moved)
      assert.equal("ABCDEFGHIJKLMNOP", vm:read(0x2000, 16))
    end)
  end)

  describe("get_xcrs and set_xcrs", function()
    before_each(function()
      guest()
      if kvm:check_extension("xcrs") == 0 then pending("no XCRs") end
    end)

    it("are a list, without a count", function()
      local xcrs = vcpu:get_xcrs()
      assert.same({ flags = 0, xcrs = { { xcr = 0, value = xcrs.xcrs[1].value } } }, xcrs)
      vcpu:set_xcrs(xcrs)
      vcpu:set_xcrs {}
      assert.same(xcrs, vcpu:get_xcrs())
    end)

    it("name what is wrong", function()
      local many = {}
      for i = 1, 17 do many[i] = { xcr = 0, value = 1 } end
      for message, xcrs in pairs {
        ["set_xcrs { xcrs = { { xcr = 0, value = 1 } } }: unknown option 'nr_xcrs'"] =
          { nr_xcrs = 1 },
        ["set_xcrs { xcrs = { { xcr = 0, value = 1 } } }: unknown option '1'"] =
          { { xcr = 0, value = 1 } },
        ["xcrs: list expected, got number"] = { xcrs = 1 },
        ["xcrs: a list of { xcr =, value = } expected"] = { xcrs = { xcr = 0, value = 1 } },
        ["xcrs: 17 of them, KVM takes 16"] = { xcrs = many },
        ["kvm_xcr[1]: unknown field 'data'"] = { xcrs = { { data = 1 } } },
      } do
        contains(message, error_of(vcpu.set_xcrs, vcpu, xcrs))
      end
      local err = error_of(vcpu.set_xcrs, vcpu, { xcrs = { { xcr = 0, value = 0 } } })
      assert.equal("KVM_SET_XCRS", err.call)
      assert.equal("EINVAL", err.code)
      assert.equal("EINVAL", error_of(vcpu.set_xcrs, vcpu, { flags = 1 }).code)
    end)
  end)

  describe("get_debugregs and set_debugregs", function()
    before_each(function() guest() end)

    it("set what is named, and keep the rest", function()
      local before = vcpu:get_debugregs()
      assert.equal(4, #before.db)
      vcpu:set_debugregs { db = { [2] = 0x1234 } }
      before.db[2] = 0x1234
      assert.same(before, vcpu:get_debugregs())
      vcpu:set_debugregs(before)
      assert.same(before, vcpu:get_debugregs())
    end)

    it("refuse what the kernel does, and name what is wrong", function()
      contains("kvm_debugregs.db[5]: no such element",
        error_of(vcpu.set_debugregs, vcpu, { db = { [5] = 1 } }))
      for _, regs in ipairs { { flags = 1 }, { dr6 = 1 << 40 }, { dr7 = 1 << 40 } } do
        local err = error_of(vcpu.set_debugregs, vcpu, regs)
        assert.equal("KVM_SET_DEBUGREGS", err.call)
        assert.equal("EINVAL", err.code)
      end
    end)
  end)

  describe("get_lapic and set_lapic", function()
    it("say that there is no irqchip", function()
      guest()
      for name, arg in pairs { get_lapic = false, set_lapic = ("\0"):rep(LAPIC_SIZE) } do
        local err = error_of(vcpu[name], vcpu, arg or nil)
        assert.equal("KVM_" .. name:upper(), err.call)
        assert.equal("EINVAL", err.code)
        contains("no in-kernel irqchip", err)
      end
    end)

    it("refuse anything but a string of its size", function()
      guest(nil, true)
      contains("lapic: string expected, got table", error_of(vcpu.set_lapic, vcpu, {}))
      contains("lapic: string expected, got number", error_of(vcpu.set_lapic, vcpu, 0))
      for _, size in ipairs { 0, LAPIC_SIZE - 1, LAPIC_SIZE + 1 } do
        contains(("lapic: string of 1024 bytes expected, got %d"):format(size),
          error_of(vcpu.set_lapic, vcpu, ("\0"):rep(size)))
      end
    end)

    it("are the registers' page", function()
      guest(nil, true)
      local lapic = vcpu:get_lapic()
      assert.equal(LAPIC_SIZE, #lapic)
      local icr <const> = 0x300
      vcpu:set_lapic(lapic:sub(1, icr) .. string.pack("<I4", 2) .. lapic:sub(icr + 5))
      assert.equal(2, (string.unpack("<I4", vcpu:get_lapic(), icr + 1)))
    end)

    it("empty the views: the task priority is cr8", function()
      guest(nil, true)
      assert.equal(0, vcpu.sregs.cr8)
      local lapic, tpr = vcpu:get_lapic(), 0x80
      vcpu:set_lapic(lapic:sub(1, tpr) .. "\x50" .. lapic:sub(tpr + 2))
      assert.equal(5, vcpu.sregs.cr8)
    end)
  end)

  describe("get_xsave, get_xsave2 and set_xsave", function()
    before_each(function()
      guest()
      if kvm:check_extension("xsave") == 0 then pending("no XSAVE") end
    end)

    it("refuse anything but a string of their size", function()
      contains("xsave: string expected, got table", error_of(vcpu.set_xsave, vcpu, {}))
      for _, size in ipairs { 0, 512, XSAVE_SIZE - 1, XSAVE_SIZE + 1, 1 << 20 } do
        contains("bytes expected, got " .. size, error_of(vcpu.set_xsave, vcpu, ("\0"):rep(size)))
      end
    end)

    -- The components that are not in their initial state are those with a bit in XSTATE_BV.
    local function with_xmm0(saved, value)
      local bits = string.unpack("<I8", saved, XSTATE_BV + 1) | X87_AND_SSE
      return saved:sub(1, XMM0) .. value .. saved:sub(XMM0 + 17, XSTATE_BV)
        .. string.pack("<I8", bits) .. saved:sub(XSTATE_BV + 9)
    end

    it("are strings that go back", function()
      local saved = vcpu:get_xsave()
      assert.equal(XSAVE_SIZE, #saved)
      vcpu:set_xsave(with_xmm0(saved, ("x"):rep(16)))
      assert.equal(("x"):rep(16), vcpu:get_fpu().xmm[1])
      local changed = vcpu:get_xsave()
      assert.equal(("x"):rep(16), changed:sub(XMM0 + 1, XMM0 + 16))
      vcpu:set_xsave(with_xmm0(saved, ("y"):rep(16)))
      vcpu:set_xsave(changed)
      assert.equal(changed, vcpu:get_xsave())
    end)

    it("have the size that the VM tells", function()
      local size = vm:check_extension("xsave2")
      if size == 0 then pending("no xsave2") end
      local saved = vcpu:get_xsave2()
      assert.equal(math.max(size, XSAVE_SIZE), #saved)
      assert.equal(vcpu:get_xsave(), saved:sub(1, XSAVE_SIZE))
      vcpu:set_xsave(saved)
      assert.equal(saved, vcpu:get_xsave2())
    end)
  end)

  describe("get_sregs2 and set_sregs2", function()
    before_each(function()
      guest()
      if kvm:check_extension("sregs2") == 0 then pending("no sregs2") end
    end)

    it("have sregs' fields, with flags and pdptrs instead of the bitmap", function()
      local two, one = vcpu:get_sregs2(), vcpu:get_sregs()
      assert.equal(4, #two.pdptrs)
      assert.equal("integer", math.type(two.flags))
      two.flags, two.pdptrs, one.interrupt_bitmap = nil, nil, nil
      assert.same(one, two)
    end)

    it("name what is wrong, and say what the kernel refuses", function()
      local before = vcpu:get_sregs2()
      for message, sregs in pairs {
        ["kvm_sregs2: unknown field 'interrupt_bitmap'"] = { interrupt_bitmap = {} },
        ["kvm_sregs2.cs: unknown field 'bas'"] = { cs = { bas = 1 } },
        ["kvm_sregs2.pdptrs[5]: no such element"] = { pdptrs = { 0, 0, 0, 0, 0 } },
      } do
        contains(message, error_of(vcpu.set_sregs2, vcpu, sregs))
      end
      for _, sregs in ipairs { { cr4 = 1 << 63 }, { flags = 2 }, { pdptrs = { 0 } } } do
        local err = error_of(vcpu.set_sregs2, vcpu, sregs)
        assert.equal("KVM_SET_SREGS2", err.call)
        assert.equal("EINVAL", err.code)
      end
      assert.same(before, vcpu:get_sregs2())
    end)

    it("keep what is not named", function()
      local expected = vcpu:get_sregs2()
      expected.cr2, expected.gs.base = 0x77, 0x5550
      vcpu:set_sregs2 { cr2 = 0x77, gs = { base = 0x5550 } }
      assert.same(expected, vcpu:get_sregs2())
      vcpu:set_sregs2(expected)
      assert.same(expected, vcpu:get_sregs2())
    end)

    it("set the pdptrs of a guest in PAE mode", function()
      -- The page directory pointers are not in memory: only pdptrs has them.
      vcpu:set_sregs2 {
        cr0 = x86.cr0.pe | x86.cr0.pg | x86.cr0.et, cr4 = x86.cr4.pae, cr3 = 0x3000, efer = 0,
        pdptrs = { 0x5001, 0x6001, 0, 0 },
      }
      local sregs = vcpu:get_sregs2()
      if sregs.cr0 & x86.cr0.pg == 0 then pending("no paging outside long mode") end
      assert.equal(1, sregs.flags)
      assert.same({ 0x5001, 0x6001, 0, 0 }, sregs.pdptrs)
    end)

    it("send what was written to a view first, and empty the views", function()
      vcpu.sregs.gs.base = 0x11
      vcpu.sregs.fs.base = 0x22
      assert.equal(0x11, vcpu:get_sregs2().gs.base)
      vcpu.sregs.gs.base = 0x33
      vcpu:set_sregs2 { fs = { base = 0x44 } }
      assert.equal(0x33, vcpu.sregs.gs.base)
      assert.equal(0x44, vcpu.sregs.fs.base)
    end)

    -- As set_sregs does: nothing of the instruction is lost, and the write counts after it.
    for name, code in pairs { read = IN_HLT, write = OUT_HLT } do
      it("change just what differs while a " .. name .. " is open", function()
        vm:write(0x1000, code)
        vcpu.regs.rax = 0x5a
        local function handler()
          local sregs = vcpu:get_sregs2()
          sregs.gs.base = 0x1230
          vcpu:set_sregs2(sregs)
          assert.equal(0x1230, vcpu:get_sregs2().gs.base)
          assert.equal(0x1230, vcpu.sregs.gs.base)
          if name == "read" then return 0x42 end
        end
        vm:attach_io { port = 0x10, [name] = handler }
        assert.equal("hlt", (vcpu:run(support.LIMITS)))
        assert.equal(0x1003, vcpu.regs.rip)
        assert.equal(name == "read" and 0x42 or 0x5a, vcpu.regs.rax)
        assert.equal(0x1230, vcpu:get_sregs2().gs.base)
      end)
    end

    it("refuse other pdptrs while an access is open", function()
      vm:write(0x1000, OUT_HLT)
      local err
      vm:attach_io { port = 0x10, write = function()
        err = error_of(vcpu.set_sregs2, vcpu, { pdptrs = { 1, 2, 3, 4 } })
      end }
      assert.equal("hlt", (vcpu:run(support.LIMITS)))
      assert.equal("EBUSY", err.code)
      contains("vcpu:finish()", err)
    end)
  end)

  describe("get_mp_state and set_mp_state", function()
    it("name what is wrong", function()
      guest()
      contains("mp_state: unknown name 'asleep'; known: runnable, uninitialized,",
        error_of(vcpu.set_mp_state, vcpu, "asleep"))
      contains("mp_state: name or integer expected, got table",
        error_of(vcpu.set_mp_state, vcpu, {}))
      contains("mp_state: name or integer expected, got no value",
        error_of(vcpu.set_mp_state, vcpu))
      contains("mp_state: -1 does not fit", error_of(vcpu.set_mp_state, vcpu, -1))
    end)

    it("are runnable and nothing else without an irqchip", function()
      guest()
      assert.equal("runnable", vcpu:get_mp_state())
      vcpu:set_mp_state("runnable")
      for _, state in ipairs { "uninitialized", "halted", "stopped", 99 } do
        local err = error_of(vcpu.set_mp_state, vcpu, state)
        assert.equal("KVM_SET_MP_STATE", err.call)
        assert.equal("EINVAL", err.code)
        contains("irqchip", err)
      end
    end)

    it("are names, and numbers where one likes", function()
      guest(nil, true)
      assert.equal("runnable", vcpu:get_mp_state())
      for number, state in pairs { [1] = "uninitialized", [3] = "halted", [0] = "runnable" } do
        vcpu:set_mp_state(state)
        assert.equal(state, vcpu:get_mp_state())
        vcpu:set_mp_state(number)
        assert.equal(state, vcpu:get_mp_state())
      end
      assert.equal("EINVAL", error_of(vcpu.set_mp_state, vcpu, 99).code)
    end)

    it("hold a vCPU that is not to run yet", function()
      guest("\xf4", true)
      vcpu:set_mp_state("uninitialized")
      assert.equal("timeout", (vcpu:run { timeout = 0.05 }))
      assert.equal(0x1000, vcpu.regs.rip)
    end)
  end)

  describe("get_nested_state and set_nested_state", function()
    it("refuse what is no such state", function()
      guest()
      contains("nested_state: string expected, got table",
        error_of(vcpu.set_nested_state, vcpu, {}))
      for size, claim in pairs { [0] = 0, [NESTED_HEADER - 1] = 0 } do
        contains("nested_state: string of 128 bytes expected, got " .. size,
          error_of(vcpu.set_nested_state, vcpu, ("\0"):rep(size - claim)))
      end
      -- The kernel would read as much as the state says it has.
      for _, claim in ipairs { 0, 127, 129, 8320, 0xffffffff } do
        contains(("nested_state: string of %d bytes expected, got 128"):format(claim),
          error_of(vcpu.set_nested_state, vcpu, string.pack("<I2I2I4", 0, 0, claim)
            .. ("\0"):rep(NESTED_HEADER - 8)))
      end
    end)

    it("are a string that goes back, or the kernel's refusal", function()
      guest()
      if vm:check_extension("nested_state") == 0 then
        local err = error_of(vcpu.get_nested_state, vcpu)
        assert.equal("KVM_GET_NESTED_STATE", err.call)
        assert.equal("EINVAL", err.code)
        contains("no nested virtualization", err)
        local state = string.pack("<I2I2I4", 0, 0, NESTED_HEADER) .. ("\0"):rep(NESTED_HEADER - 8)
        assert.equal("EINVAL", error_of(vcpu.set_nested_state, vcpu, state).code)
      else
        vcpu:set_cpuid2(kvm:get_supported_cpuid())
        local state = vcpu:get_nested_state()
        assert.is_true(#state >= NESTED_HEADER)
        assert.equal(#state, (string.unpack("<I4", state, 5)))
        vcpu:set_nested_state(state)
        assert.equal(state, vcpu:get_nested_state())
      end
    end)

    it("are refused while an access is open", function()
      guest(OUT_HLT)
      assert.equal("io_out", (vcpu:run(support.LIMITS)))
      local state = string.pack("<I2I2I4", 0, 0, NESTED_HEADER) .. ("\0"):rep(NESTED_HEADER - 8)
      assert.equal("EBUSY", error_of(vcpu.set_nested_state, vcpu, state).code)
    end)
  end)

  describe("get_one_reg, set_one_reg and get_reg_list", function()
    -- KVM_REG_X86, 64 bits, of the MSRs' kind, SYSENTER_CS
    local SYSENTER_CS <const> = 0x2030000200000174

    it("name what is wrong", function()
      guest()
      contains("id: integer expected, got string", error_of(vcpu.get_one_reg, vcpu, "rax"))
      contains("value: integer expected, got no value",
        error_of(vcpu.set_one_reg, vcpu, SYSENTER_CS))
      contains("value: 4294967296 does not fit in 32 bits",
        error_of(vcpu.set_one_reg, vcpu, 0x2020000200000174, 1 << 32))
      -- An id tells the size: of 16 bytes, and of the 32 KiB that the largest could have.
      contains("value: string of 16 bytes expected, got number",
        error_of(vcpu.set_one_reg, vcpu, 0x2040000200000174, 1))
      contains("value: string of 32768 bytes expected, got 16",
        error_of(vcpu.set_one_reg, vcpu, 0x20f0000200000174, ("\0"):rep(16)))
    end)

    it("name the register that the kernel refuses", function()
      guest()
      for _, id in ipairs { 0, -1, 0x2040000200000174, 0x20f0000000000000 } do
        local err = error_of(vcpu.get_one_reg, vcpu, id)
        assert.equal("KVM_GET_ONE_REG", err.call)
        contains(("register 0x%x"):format(id), err)
      end
    end)

    it("get and set a register, where this KVM has single ones", function()
      guest()
      local has, list = pcall(vcpu.get_reg_list, vcpu)
      if not has then
        assert.equal("KVM_GET_REG_LIST", list.call)
        assert.is_false((pcall(vcpu.get_one_reg, vcpu, SYSENTER_CS)))
        return
      end
      for _, id in ipairs(list) do assert.equal("integer", math.type(id)) end
      vcpu:set_one_reg(SYSENTER_CS, 0x123)
      assert.equal(0x123, vcpu:get_one_reg(SYSENTER_CS))
      assert.equal(0x123, vcpu:get_msrs({ 0x174 })[0x174])
      -- FS_BASE is also in a view.
      assert.equal(0, vcpu.sregs.fs.base)
      vcpu:set_one_reg(0x20300002c0000100, 0x5000)
      assert.equal(0x5000, vcpu.sregs.fs.base)
    end)
  end)

  describe("get_tsc_khz and set_tsc_khz", function()
    before_each(function() guest() end)

    it("name what is wrong", function()
      for _, object in ipairs { vm, vcpu } do
        contains("kHz: integer expected, got string",
          error_of(object.set_tsc_khz, object, "1000"))
        for _, khz in ipairs { -1, 1 << 32 } do
          contains("does not fit in 32 bits", error_of(object.set_tsc_khz, object, khz))
        end
      end
    end)

    it("are the frequency, of a vCPU and of those to come", function()
      if kvm:check_extension("get_tsc_khz") == 0 then pending("no TSC frequency") end
      local khz = vcpu:get_tsc_khz()
      assert.is_true(khz > 0)
      vcpu:set_tsc_khz(khz)
      assert.equal(khz, vcpu:get_tsc_khz())
      if kvm:check_extension("tsc_control") > 0 then
        for _, other in ipairs { khz - 500000, khz + 500000 } do
          vcpu:set_tsc_khz(other)
          assert.equal(other, vcpu:get_tsc_khz())
        end
      else
        local err = error_of(vcpu.set_tsc_khz, vcpu, 1000)
        assert.equal("KVM_SET_TSC_KHZ", err.call)
      end
    end)

    it("are those of vCPUs to come, of a VM", function()
      local other <close> = kvm:create_vm()
      local known, khz = pcall(other.get_tsc_khz, other)
      if not known then -- before Linux 5.16
        assert.equal("KVM_GET_TSC_KHZ", khz.call)
        return
      end
      other:set_tsc_khz(khz + 100000)
      assert.equal(khz + 100000, other:get_tsc_khz())
      if vm:check_extension("vm_tsc_control") > 0 then
        assert.equal(khz + 100000, other:create_vcpu(0):get_tsc_khz())
      end
    end)
  end)

  it("kvmclock_ctrl says that the guest has no kvmclock", function()
    guest()
    local err = error_of(vcpu.kvmclock_ctrl, vcpu)
    assert.equal("KVM_KVMCLOCK_CTRL", err.call)
    assert.equal("EINVAL", err.code)
    contains("does not use kvmclock", err)
  end)
end)

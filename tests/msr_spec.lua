-- Model-specific registers: lists, values, the filter, and accesses that exit.

local ckvm = require "ckvm"
local support = require "support"

local contains, error_of = support.contains, support.error_of

local SYSENTER_CS <const>, SYSENTER_ESP <const>, SYSENTER_EIP <const> = 0x174, 0x175, 0x176
local KERNEL_GS_BASE <const> = 0xc0000102
local FS_BASE <const>, EFER <const> = 0xc0000100, 0xc0000080
local NO_MSR <const> = 0x474f4f00 -- "GOO\0": no CPU has it

local function size(map)
  local count = 0
  for _ in pairs(map) do count = count + 1 end
  return count
end

describe("kvm:get_msr_index_list", function()
  it("is a list of indices, whatever its length", function()
    support.need_kvm()
    local kvm <close> = ckvm.open()
    for _, list in ipairs { kvm:get_msr_index_list(), kvm:get_msr_feature_index_list() } do
      assert.is_true(#list >= 2)
      for _, index in ipairs(list) do
        assert.equal("integer", math.type(index))
        assert.is_true(index >= 0 and index < 1 << 32)
      end
    end
    kvm:close()
    contains("kvm is closed", error_of(kvm.get_msr_index_list, kvm))
    contains("kvm is closed", error_of(kvm.get_msr_feature_index_list, kvm))
  end)
end)

describe("kvm:get_msrs", function()
  before_each(support.need_kvm)

  it("reads the MSRs that tell what KVM can do", function()
    local kvm <close> = ckvm.open()
    local list = kvm:get_msr_feature_index_list()
    local values = kvm:get_msrs(list)
    assert.equal(#list, size(values))
    for _, index in ipairs(list) do assert.equal("integer", math.type(values[index])) end
  end)

  it("names the one that cannot be read", function()
    local kvm <close> = ckvm.open()
    local good = kvm:get_msr_feature_index_list()[1]
    local err = error_of(kvm.get_msrs, kvm, { good, NO_MSR, good })
    assert.equal("KVM_GET_MSRS", err.call)
    contains("MSR 0x474f4f00 cannot be read", err)
  end)
end)

describe("MSRs of a vCPU:", function()
  local kvm, vm, vcpu
  before_each(function()
    support.need_kvm()
    kvm, vm, vcpu = support.real_mode("\xf4")
  end)
  after_each(function() support.close(vm, kvm) end)

  describe("get_msrs", function()
    it("refuses a closed vCPU", function()
      vcpu:close()
      contains("vCPU is closed", error_of(vcpu.get_msrs, vcpu, {}))
      contains("vCPU is closed", error_of(vcpu.set_msrs, vcpu, {}))
    end)

    it("refuses anything but a list of indices", function()
      contains("table expected", error_of(vcpu.get_msrs, vcpu, SYSENTER_CS))
      for message, list in pairs {
        ["MSR: integer expected, got string"] = { "0x174" },
        ["MSR: -1 does not fit in 32 bits"] = { -1 },
        ["MSR: 4294967296 does not fit in 32 bits"] = { 1 << 32 },
        ["MSRs[x]: no such element"] = { x = 1 },
        ["MSRs[0]: no such element"] = { [0] = 1 },
      } do
        contains(message, error_of(vcpu.get_msrs, vcpu, list))
      end
    end)

    it("names the one that cannot be read", function()
      for _, list in ipairs {
        { NO_MSR }, { SYSENTER_CS, NO_MSR, SYSENTER_ESP }, { SYSENTER_CS, NO_MSR },
      } do
        local err = error_of(vcpu.get_msrs, vcpu, list)
        assert.equal("KVM_GET_MSRS", err.call)
        assert.equal("EINVAL", err.code)
        contains("MSR 0x474f4f00 cannot be read", err)
      end
    end)

    it("is a value for each index", function()
      assert.same({}, vcpu:get_msrs {})
      vcpu:set_msrs { [SYSENTER_CS] = 5 }
      assert.same({ [SYSENTER_CS] = 5 }, vcpu:get_msrs { SYSENTER_CS })
    end)

    it("reads any number of them", function()
      vcpu:set_msrs { [SYSENTER_CS] = 1, [SYSENTER_ESP] = 2 }
      for _, count in ipairs { 127, 128, 129, 255, 256, 257, 5000 } do
        local list = {}
        for i = 1, count do list[i] = i % 2 == 0 and SYSENTER_CS or SYSENTER_ESP end
        assert.same({ [SYSENTER_CS] = 1, [SYSENTER_ESP] = 2 }, vcpu:get_msrs(list))
        list[count] = NO_MSR
        contains("MSR 0x474f4f00", error_of(vcpu.get_msrs, vcpu, list))
      end
    end)

    it("sees what was written to a view", function()
      vcpu.sregs.fs.base = 0x12340
      assert.equal(0x12340, vcpu:get_msrs({ FS_BASE })[FS_BASE])
    end)
  end)

  describe("set_msrs", function()
    it("refuses anything but indices and values", function()
      contains("table expected", error_of(vcpu.set_msrs, vcpu, SYSENTER_CS))
      for message, list in pairs {
        ["MSR: integer expected, got string"] = { x = 1 },
        ["MSR: -1 does not fit in 32 bits"] = { [-1] = 1 },
        ["value of an MSR: integer expected, got string"] = { [SYSENTER_CS] = "1" },
        ["value of an MSR: integer expected, got table"] = { [SYSENTER_CS] = {} },
        ["kvm_msr_entry[1]: unknown field 'value'"] = { { index = SYSENTER_CS, value = 1 } },
        ["kvm_msr_entry[2]: table expected, got number"] = { { index = SYSENTER_CS }, 5 },
        ["kvm_msr_entry[372]: no such element"] = { { index = 0x176 }, [SYSENTER_CS] = 5 },
      } do
        contains(message, error_of(vcpu.set_msrs, vcpu, list))
      end
    end)

    it("names the one that is refused, and its value", function()
      local err = error_of(vcpu.set_msrs, vcpu, { [NO_MSR] = 0xdeadbeef })
      assert.equal("KVM_SET_MSRS", err.call)
      assert.equal("EINVAL", err.code)
      contains("MSR 0x474f4f00 does not take 0xdeadbeef", err)
      contains("MSR 0xc0000080 does not take 0x", error_of(vcpu.set_msrs, vcpu, { [EFER] = -1 }))
    end)

    it("has set those before it, and none after it", function()
      vcpu:set_msrs { [SYSENTER_CS] = 0, [SYSENTER_ESP] = 0 }
      contains("MSR 0x474f4f00", error_of(vcpu.set_msrs, vcpu, {
        { index = SYSENTER_ESP, data = 7 },
        { index = NO_MSR, data = 1 },
        { index = SYSENTER_CS, data = 7 },
      }))
      assert.same({ [SYSENTER_CS] = 0, [SYSENTER_ESP] = 7 },
        vcpu:get_msrs { SYSENTER_CS, SYSENTER_ESP })
    end)

    it("goes from the lowest index on where the table has no order", function()
      vcpu:set_msrs { [SYSENTER_CS] = 0, [SYSENTER_EIP] = 0 }
      error_of(vcpu.set_msrs, vcpu, {
        [EFER] = -1, [SYSENTER_CS] = 1, [SYSENTER_EIP] = 2, [0xfffffff0] = 1,
      })
      assert.same({ [SYSENTER_CS] = 1, [SYSENTER_EIP] = 2 },
        vcpu:get_msrs { SYSENTER_CS, SYSENTER_EIP })
    end)

    it("keeps the order of a list, of any length", function()
      for _, count in ipairs { 1, 128, 129, 256, 257, 1000 } do
        local list = {}
        for i = 1, count do list[i] = { index = SYSENTER_ESP, data = i } end
        vcpu:set_msrs(list)
        assert.equal(count, vcpu:get_msrs({ SYSENTER_ESP })[SYSENTER_ESP])
        list[count].index = NO_MSR
        local err = error_of(vcpu.set_msrs, vcpu, list)
        contains(("MSR 0x474f4f00 does not take 0x%x"):format(count), err)
        if count > 1 then
          assert.equal(count - 1, vcpu:get_msrs({ SYSENTER_ESP })[SYSENTER_ESP])
        end
      end
    end)

    it("takes all 64 bits, and nothing", function()
      local value = 0xffff923456789abc
      vcpu:set_msrs { [KERNEL_GS_BASE] = value }
      assert.equal(value, vcpu:get_msrs({ KERNEL_GS_BASE })[KERNEL_GS_BASE])
      vcpu:set_msrs {}
      assert.equal(value, vcpu:get_msrs({ KERNEL_GS_BASE })[KERNEL_GS_BASE])
    end)

    it("empties the views: they show what it set", function()
      assert.equal(0, vcpu.sregs.fs.base)
      vcpu:set_msrs { [FS_BASE] = 0x5000 }
      assert.equal(0x5000, vcpu.sregs.fs.base)
      assert.equal(0x5000, vcpu:get_sregs().fs.base)
    end)

    it("sends what was written to a view first", function()
      vcpu.sregs.fs.base = 1
      vcpu.sregs.gs.base = 0x77
      vcpu:set_msrs { [FS_BASE] = 0x5000 }
      assert.equal(0x5000, vcpu.sregs.fs.base)
      assert.equal(0x77, vcpu.sregs.gs.base)
    end)
  end)
end)

describe("vm:x86_set_msr_filter", function()
  local kvm, vm
  before_each(function()
    kvm, vm = support.new_vm()
    if vm:check_extension("x86_msr_filter") == 0 then pending("no MSR filter") end
  end)
  after_each(function() support.close(vm, kvm) end)

  local function range(changes)
    local one = { flags = "read", base = 0x10, nmsrs = 1, bitmap = "\x01" }
    for key, value in pairs(changes or {}) do one[key] = value end
    return { flags = "default_deny", ranges = { one } }
  end

  it("names what is wrong, and the kernel is not asked", function()
    local many = { ranges = {} }
    for i = 1, 17 do many.ranges[i] = range().ranges[1] end
    for message, filter in pairs {
      ["kvm_msr_filter: unknown option 'default'"] = { default = "deny" },
      ["flags: unknown name 'deny'"] = { flags = "deny" },
      ["ranges: list expected, got number"] = { ranges = 1 },
      ["ranges: table expected, got number"] = { ranges = { 1 } },
      ["ranges[x]: no such element"] = { ranges = { x = {} } },
      ["ranges: 17 of them, KVM takes 16"] = many,
      ["kvm_msr_filter_range: unknown option 'count'"] = range { count = 1 },
      ["flags: unknown name 'execute'"] = range { flags = { "read", "execute" } },
      ["base: -1 is not between"] = range { base = -1 },
      ["nmsrs: 12289 is not between 0 and 12288"] = range { nmsrs = 12289 },
      ["bitmap: 2 bytes for 9 MSRs expected, got 1"] = range { nmsrs = 9 },
      ["bitmap: 1 bytes for 8 MSRs expected, got 2"] = range { nmsrs = 8, bitmap = "\0\0" },
      ["bitmap: string or list expected, got boolean"] = range { bitmap = true },
      ["bitmap: list of 1 expected, got 2"] = range { bitmap = { true, true } },
      ["bitmap: true or false expected, got number"] = range { bitmap = { 1 } },
    } do
      contains(message, error_of(vm.x86_set_msr_filter, vm, filter))
    end
    contains("flags: name or integer expected, got nil",
      error_of(vm.x86_set_msr_filter, vm, { ranges = { {} } }))
    contains("table expected", error_of(vm.x86_set_msr_filter, vm))
    vm:close()
    contains("VM is closed", error_of(vm.x86_set_msr_filter, vm, {}))
  end)

  it("says what the kernel refuses: denying all, and a range without an access", function()
    for _, filter in ipairs {
      { flags = "default_deny" }, range { flags = 0 }, range { flags = 4 }, { flags = 2 },
    } do
      local err = error_of(vm.x86_set_msr_filter, vm, filter)
      assert.equal("KVM_X86_SET_MSR_FILTER", err.call)
      assert.equal("EINVAL", err.code)
    end
  end)

  it("takes the kernel's names and numbers, strings and lists", function()
    vm:x86_set_msr_filter {}
    vm:x86_set_msr_filter { flags = "default_allow", ranges = {} }
    vm:x86_set_msr_filter(range())
    vm:x86_set_msr_filter(range { flags = { "read", "write" } })
    vm:x86_set_msr_filter(range { flags = 3, bitmap = { true } })
    vm:x86_set_msr_filter(range { nmsrs = 12288, bitmap = ("\xff"):rep(1536) })
    vm:x86_set_msr_filter { flags = 1, ranges = { range().ranges[1], range().ranges[1] } }
  end)
end)

-- mov $0x474f4f00, %ecx; rdmsr; hlt
local RDMSR <const> = "\x66\xb9\x00\x4f\x4f\x47\x0f\x32\xf4"
-- mov $0x474f4f00, %ecx; mov $0xdeadbeef, %eax; mov $0xd0c0ffee, %edx; wrmsr; hlt
local WRMSR <const> = "\x66\xb9\x00\x4f\x4f\x47\x66\xb8\xef\xbe\xad\xde\x66\xba\xee\xff\xc0\xd0"
  .. "\x0f\x30\xf4"
local REASON_UNKNOWN <const>, REASON_FILTER <const> = 2, 4

describe("MSR accesses of the guest", function()
  local kvm, vm, vcpu
  after_each(function() kvm, vm, vcpu = support.close(vm, kvm) end)

  -- #GP halts at 0x2000.
  local function guest(code, reasons)
    support.need_kvm()
    kvm, vm, vcpu = support.real_mode(code, { regs = { rsp = 0x3000 } })
    if vm:check_extension("x86_user_space_msr") == 0 then pending("no MSR exits") end
    vm:enable_cap("x86_user_space_msr", reasons)
    vm:write_u32(13 * 4, 0x2000)
    vm:write(0x2000, "\xf4")
  end

  local function run()
    assert.equal("hlt", (vcpu:run(support.LIMITS)))
    return vcpu:get_regs()
  end

  local function faulted(regs)
    return regs.rip == 0x2001
  end

  it("are #GP, without an exit", function()
    guest(RDMSR, 0)
    vm:on("x86_rdmsr", function() error("not asked for") end)
    assert.is_true(faulted(run()))
  end)

  it("exit for the reasons asked for, and no others", function()
    guest(RDMSR, REASON_FILTER)
    vm:on("x86_rdmsr", function() error("not asked for") end)
    assert.is_true(faulted(run()))
  end)

  it("end the run where nobody answers, and read as zero", function()
    guest(RDMSR, REASON_UNKNOWN)
    vcpu:set_regs { rax = 1 << 40 | 5, rdx = 7 }
    assert.equal("x86_rdmsr", (vcpu:run(support.LIMITS)))
    assert.equal(NO_MSR, vcpu.exit.index)
    local regs = run()
    assert.is_false(faulted(regs))
    assert.same({ 0, 0 }, { regs.rax, regs.rdx })
  end)

  it("hand a read to vm:on, which answers with data", function()
    guest(RDMSR, REASON_UNKNOWN)
    local seen
    vm:on("x86_rdmsr", function(exit, from)
      seen = { exit.reason, exit.index, exit.error, from == vcpu }
      exit.data = 0xd0c0ffeedeadbeef
    end)
    local regs = run()
    assert.same({ "x86_rdmsr", NO_MSR, 0, true }, seen)
    assert.same({ 0xdeadbeef, 0xd0c0ffee, false }, { regs.rax, regs.rdx, faulted(regs) })
  end)

  it("hand a write to vm:on, with its data", function()
    guest(WRMSR, REASON_UNKNOWN)
    local seen
    vm:on("x86_wrmsr", function(exit)
      seen = { exit.index, exit.data }
      contains("no field 'data' that can be set", error_of(function() exit.data = 1 end))
    end)
    assert.is_false(faulted(run()))
    assert.same({ NO_MSR, 0xd0c0ffeedeadbeef }, seen)
  end)

  it("are #GP if the handler says so", function()
    for name, code in pairs { x86_rdmsr = RDMSR, x86_wrmsr = WRMSR } do
      guest(code, REASON_UNKNOWN)
      vm:on(name, function(exit) exit.error = 1 end)
      assert.is_true(faulted(run()))
      vm:close()
      kvm:close()
    end
  end)

  it("lets a handler's registers win over the answer", function()
    guest(RDMSR, REASON_UNKNOWN)
    vm:on("x86_rdmsr", function(exit, from)
      exit.data = 0x1111222233334444
      from.regs.rax = 0x55
      from:set_regs { rbx = 0x66 }
    end)
    local regs = run()
    assert.same({ 0x55, 0x11112222, 0x66, false },
      { regs.rax, regs.rdx, regs.rbx, faulted(regs) })
  end)

  it("lets a handler get and set MSRs while it answers one", function()
    guest(RDMSR, REASON_UNKNOWN)
    vm:on("x86_rdmsr", function(exit, from)
      from:set_msrs { [SYSENTER_CS] = 0x99, [FS_BASE] = 0x7000 }
      exit.data = from:get_msrs({ SYSENTER_CS })[SYSENTER_CS]
      assert.equal(0x7000, from.sregs.fs.base)
    end)
    local regs = run()
    assert.same({ 0x99, 0, false }, { regs.rax, regs.rdx, faulted(regs) })
    assert.equal(0x7000, vcpu:get_sregs().fs.base)
  end)

  it("exit for what the filter denies, one MSR by one", function()
    local rdmsr, seen = "\x66\xb9%s\x0f\x32", {}
    local code = ""
    for _, index in ipairs { SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP } do
      code = code .. rdmsr:format(string.pack("<I4", index))
    end
    guest(code .. "\xf4", REASON_FILTER)
    if vm:check_extension("x86_msr_filter") == 0 then pending("no MSR filter") end
    vm:on("x86_rdmsr", function(exit) table.insert(seen, exit.index) end)
    vm:x86_set_msr_filter { ranges = {
      { flags = "read", base = SYSENTER_CS, nmsrs = 3, bitmap = { false, true, false } },
    } }
    run()
    assert.same({ SYSENTER_CS, SYSENTER_EIP }, seen)
    vm:x86_set_msr_filter { flags = "default_deny", ranges = {
      { flags = { "read", "write" }, base = SYSENTER_CS, nmsrs = 3, bitmap = "\5" },
    } }
    seen = {}
    vcpu:set_regs { rip = 0x1000 }
    run()
    assert.same({ SYSENTER_ESP }, seen)
    vm:x86_set_msr_filter {}
    seen = {}
    vcpu:set_regs { rip = 0x1000 }
    run()
    assert.same({}, seen)
  end)
end)

-- Exits: each is shown by name, with all that it carries, and takes back what the kernel reads.
-- Most of them no KVM here produces; a fake kernel (tests/fake_kernel.c) does.

local ckvm = require "ckvm"
local support = require "support"
local contains, error_of = support.contains, support.error_of

local top = debug.getinfo(1, "S").source:match("^@(.*)tests/[^/]*$")
local build = support.program():match("^(.*)/")
local open = package.loadlib(build .. "/tests/.libs/fake_kernel.so", "luaopen_fake_kernel")
if not open then error("tests/fake_kernel.so is not built: make check") end
local fake <const> = open()

local PAYLOAD <const> = 32 -- where in the page; and behind it, in the next page:
local IO_DATA <const> = 4096
local PAGE_END <const> = 3 * 4096

local function pack(format, ...) return string.pack("<" .. format, ...) end

-- The start of struct kvm_run, and what the exit brings.
local function page(reason, payload)
  return ("\0"):rep(8) .. pack("I4BBI2I8I8", reason, 1, 0, 0x8002, 0x33, 0xfee00900)
    .. (payload or "")
end

local ON_EVERY <const> = { "reason", "request_interrupt_window", "ready_for_interrupt_injection",
  "if_flag", "run_flags", "cr8", "apic_base" }

-- Each exit: its number, its payload, the fields it has; of those that can be set a new value, and
-- where in the page that is to be found, packed how.
local EXITS <const> = {
  { "unknown", 0, pack("I8", 0x1234567890), { hardware_exit_reason = 0x1234567890 } },
  { "exception", 1, pack("I4I4", 14, 2), { exception = 14, error_code = 2 } },
  { "hypercall", 3, pack("I8I8I8I8I8I8I8I8I8", 12, 1, 2, 3, 4, 5, 6, 7, 0x900000001),
    { nr = 12, args = { 1, 2, 3, 4, 5, 6 }, ret = 7, longmode = 1, flags = 0x900000001 },
    { ret = { -5, PAYLOAD + 56, "i8" } } },
  { "debug", 4, pack("I4I4I8I8I8", 1, 0, 0x1003, 0x4ff0, 0x400),
    { exception = 1, pc = 0x1003, dr6 = 0x4ff0, dr7 = 0x400 } },
  { "hlt", 5 },
  { "irq_window_open", 7 },
  { "shutdown", 8 },
  { "fail_entry", 9, pack("I8I4", 0x80000021, 3),
    { hardware_entry_failure_reason = 0x80000021, cpu = 3 } },
  { "intr", 10 },
  { "set_tpr", 11 },
  { "tpr_access", 12, pack("I8I4I4", 0x7c00, 1, 0), { rip = 0x7c00, is_write = 1 } },
  { "s390_sieic", 13, pack("Bi1I2I4", 0x44, 0, 0x8300, 0x55), { icptcode = 0x44, ipa = 0x8300,
    ipb = 0x55 } },
  { "s390_reset", 14, pack("I8", 9), { s390_reset_flags = 9 } },
  { "dcr", 15, pack("I4I4B", 0x10, 0x20, 0), { dcrn = 0x10, data = 0x20, is_write = 0 },
    { data = { 0x99, PAYLOAD + 4, "I4" } } },
  { "nmi", 16 },
  { "internal_error", 17, pack("I4I4I8I8I8", 3, 2, 0x51, 0x52, 0x53), { suberror = 3, ndata = 2,
    data = { 0x51, 0x52 } } },
  { "internal_error", 17, pack("I4I4I8Bc15", 1, 4, 1, 3, "\x0f\x0b\xf4" .. ("\xcc"):rep(12)),
    { suberror = 1, ndata = 4, flags = 1, insn_size = 3, insn_bytes = "\x0f\x0b\xf4",
      data = { 1, 0xccccccccf40b0f03, -0x3333333333333334, 0 } } },
  { "osi", 18, pack(("I8"):rep(32), table.unpack((function()
      local gprs = {}
      for i = 1, 32 do gprs[i] = 0x100 + i end
      return gprs
    end)())), { gprs = (function()
      local gprs = {}
      for i = 1, 32 do gprs[i] = 0x100 + i end
      return gprs
    end)() }, { gprs = { { [4] = 77 }, PAYLOAD + 24, "I8", 77 } } },
  { "papr_hcall", 19, pack("I8I8" .. ("I8"):rep(9), 4, 5, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    { nr = 4, ret = 5, args = { 1, 2, 3, 4, 5, 6, 7, 8, 9 } },
    { ret = { 6, PAYLOAD + 8, "I8" }, args = { { [9] = 10 }, PAYLOAD + 80, "I8", 10 } } },
  { "s390_ucontrol", 20, pack("I8I4", 0xabc, 0x10), { trans_exc_code = 0xabc, pgm_code = 0x10 } },
  { "watchdog", 21 },
  { "s390_tsch", 22, pack("I2I2I4I4I4B", 1, 2, 3, 4, 5, 1), { subchannel_id = 1, subchannel_nr = 2,
    io_int_parm = 3, io_int_word = 4, ipb = 5, dequeued = 1 } },
  { "epr", 23, pack("I4", 8), { epr = 8 }, { epr = { 9, PAYLOAD, "I4" } } },
  { "system_event", 24, pack("I4I4I8I8I8", 6, 2, 0x61, 0x62, 0x63),
    { type = 6, ndata = 2, flags = 0x61, data = { 0x61, 0x62 } } },
  { "s390_stsi", 25, pack("I8BBBBI2", 0x2000, 1, 0, 3, 2, 4), { addr = 0x2000, ar = 1, fc = 3,
    sel1 = 2, sel2 = 4 } },
  { "ioapic_eoi", 26, pack("B", 0x31), { vector = 0x31 } },
  { "hyperv", 27, pack("I4I4I4I4I8I8I8", 1, 0, 0x40000080, 0, 1, 0x3001, 0x4001),
    { type = 1, msr = 0x40000080, control = 1, evt_page = 0x3001, msg_page = 0x4001 } },
  { "hyperv", 27, pack("I4I4I8I8I8I8", 2, 0, 0x5c, 0, 0x11, 0x12),
    { type = 2, input = 0x5c, result = 0, params = { 0x11, 0x12 } },
    { result = { 2, PAYLOAD + 16, "I8" } } },
  { "hyperv", 27, pack("I4I4I4I4I8I8I8I8I8", 3, 0, 0x400000f1, 0, 1, 2, 3, 4, 5),
    { type = 3, msr = 0x400000f1, control = 1, status = 2, send_page = 3, recv_page = 4,
      pending_page = 5 }, { status = { 7, PAYLOAD + 24, "I8" } } },
  { "hyperv", 27, pack("I4", 9), { type = 9 } },
  { "arm_nisv", 28, pack("I8I8", 0x45, 0x9000), { esr_iss = 0x45, fault_ipa = 0x9000 } },
  { "x86_rdmsr", 29, pack("BI7I4I4I8", 0, 0, 2, 0x474f4f00, 5),
    { error = 0, msr_reason = 2, index = 0x474f4f00, data = 5 },
    { error = { 1, PAYLOAD, "B" }, data = { -2, PAYLOAD + 16, "i8" } } },
  { "x86_wrmsr", 30, pack("BI7I4I4I8", 0, 0, 4, 0x10, -1 & 0x7fffffffffffffff),
    { error = 0, msr_reason = 4, index = 0x10, data = math.maxinteger },
    { error = { 1, PAYLOAD, "B" } } },
  { "dirty_ring_full", 31 },
  { "ap_reset_hold", 32 },
  { "x86_bus_lock", 33 },
  { "xen", 34, pack("I4I4I4I4I8I8I8I8I8I8I8I8", 1, 0, 1, 3, 17, 0, 1, 2, 3, 4, 5, 6),
    { type = 1, longmode = 1, cpl = 3, input = 17, result = 0, params = { 1, 2, 3, 4, 5, 6 } },
    { result = { -38, PAYLOAD + 24, "i8" } } },
  { "xen", 34, pack("I4", 2), { type = 2 } },
  { "riscv_sbi", 35, pack(("I8"):rep(10), 8, 9, 1, 2, 3, 4, 5, 6, 0, 0),
    { extension_id = 8, function_id = 9, args = { 1, 2, 3, 4, 5, 6 }, ret = { 0, 0 } },
    { ret = { { -2, 7 }, PAYLOAD + 64, "i8i8", -2, 7 } } },
  { "riscv_csr", 36, pack("I8I8I8I8", 0x15, 1, 2, 3),
    { csr_num = 0x15, new_value = 1, write_mask = 2, ret_value = 3 },
    { ret_value = { 4, PAYLOAD + 24, "I8" } } },
  { "notify", 37, pack("I4", 1), { flags = 1 } },
  { "loongarch_iocsr", 38, pack("I8I8I4B", 0x1040, 0xffeeddccbbaa, 4, 0),
    { phys_addr = 0x1040, len = 4, is_write = 0, data = 0xddccbbaa },
    { data = { 0x12345678, PAYLOAD + 8, "I4" } } },
  { "loongarch_iocsr", 38, pack("I8I8I4B", 0x1040, 5, 8, 1),
    { phys_addr = 0x1040, len = 8, is_write = 1, data = 5 } },
  { "memory_fault", 39, pack("I8I8I8", 8, 0x7000, 0x1000), { flags = 8, gpa = 0x7000,
    size = 0x1000 } },
  { "tdx", 40, pack("I8I8I8I8I8", 1, 0x10002, 0, 0x8000, 0x2000), { flags = 1, nr = 0x10002,
    ret = 0, gpa = 0x8000, size = 0x2000, data = { 0x8000, 0x2000, 0, 0, 0 } },
    { ret = { 1, PAYLOAD + 16, "I8" } } },
  { "tdx", 40, pack("I8I8I8I8I8I8I8I8", 0, 0x10000, 0, 1, 2, 3, 4, 5), { flags = 0, nr = 0x10000,
    ret = 0, leaf = 1, r11 = 2, r12 = 3, r13 = 4, r14 = 5, data = { 1, 2, 3, 4, 5 } },
    { r11 = { 9, PAYLOAD + 32, "I8" }, r14 = { 8, PAYLOAD + 56, "I8" } } },
  { "tdx", 40, pack("I8I8I8I8", 0, 0x10004, 0, 0x40), { flags = 0, nr = 0x10004, ret = 0,
    vector = 0x40, data = { 0x40, 0, 0, 0, 0 } } },
  { "tdx", 40, pack("I8I8I8I8I8I8I8I8", 0, 0x77, 0, 1, 2, 3, 4, 5), { flags = 0, nr = 0x77,
    ret = 0, data = { 1, 2, 3, 4, 5 } },
    { data = { { [2] = 6 }, PAYLOAD + 32, "I8", 6 } } },
  { "arm_sea", 41, pack("I8I8I8I8", 1, 2, 3, 4), { flags = 1, esr = 2, gva = 3, gpa = 4 } },
  { "arm_ldst64b", 42, pack("I8I8", 0x45, 0x9000), { esr_iss = 0x45, fault_ipa = 0x9000 } },
  { "snp_req_certs", 43, pack("I8I8I8", 0x6000, 4, 0), { gpa = 0x6000, npages = 4, ret = 0 },
    { npages = { 5, PAYLOAD + 8, "I8" }, ret = { 28, PAYLOAD + 16, "I8" } } },
  { "io_in", 2, pack("BBI2I4I8", 0, 2, 0x60, 1, IO_DATA), { port = 0x60, size = 2, count = 1,
    data = 0xffff }, { data = { 0x1234, IO_DATA, "I2" } } },
  { "io_in", 2, pack("BBI2I4I8", 0, 4, 0x60, 2, IO_DATA), { port = 0x60, size = 4, count = 2,
    data = ("\xff"):rep(8) }, { data = { "abcdefgh", IO_DATA, "c8" } } },
  { "io_out", 2, pack("BBI2I4I8", 1, 1, 0x80, 1, IO_DATA), { port = 0x80, size = 1, count = 1,
    data = 0 } },
  { "mmio_read", 6, pack("I8I8I4B", 0xd0000000, 0, 8, 0), { phys_addr = 0xd0000000, len = 8,
    is_write = 0, data = -1 }, { data = { -3, PAYLOAD + 8, "i8" } } },
  { "mmio_write", 6, pack("I8I8I4B", 0xd0000000, 0xa1a2a3, 2, 1), { phys_addr = 0xd0000000,
    len = 2, is_write = 1, data = 0xa2a3 } },
}

local vm, vcpu

local function fake_vm()
  fake.install()
  local kvm <close> = ckvm.open { path = "/dev/null" }
  fake.remove()
  vm = kvm:create_vm()
  vcpu = vm:create_vcpu(0)
end

local function exit(reason, payload, result)
  fake.exit(page(reason, payload), result)
  return vcpu:run(support.LIMITS)
end

local function teardown()
  if vm then vm:close() end
  vm, vcpu = nil, nil
end

describe("An exit", function()
  before_each(fake_vm)
  after_each(teardown)

  it("of every name is among these", function()
    local file <close> = assert(io.open(top .. "src/libckvm/exit.c"))
    local source, missing = file:read("a"), {}
    for name in source:match("names%[%] = {(.-)};"):gmatch('"([%w_]+)"') do missing[name] = true end
    missing.io, missing.mmio = nil, nil
    local names <const> = { io_in = true, io_out = true, mmio_read = true, mmio_write = true }
    for name in pairs(missing) do names[name] = true end
    for _, case in ipairs(EXITS) do names[case[1]] = nil end
    assert.same({}, names)
  end)

  for i, case in ipairs(EXITS) do
    local name, number, payload, fields, answers = table.unpack(case, 1, 5)
    local title = ("%s (%d)"):format(name, i)
    fields, answers = fields or {}, answers or {}

    it(title .. " has its name and fields, and no others", function()
      assert.equal(name, (exit(number, payload)))
      local seen, expected = {}, {}
      for key, value in pairs(vcpu.exit) do
        seen[key] = value
        assert.same(value, vcpu.exit[key])
      end
      for key, value in pairs(fields) do expected[key] = value end
      for _, key in ipairs(ON_EVERY) do expected[key] = vcpu.exit[key] end
      expected.reason = name
      assert.same(expected, seen)
      contains("has no field 'nonsense'", error_of(function() return vcpu.exit.nonsense end))
    end)

    it(title .. " takes what the kernel reads back, and nothing else", function()
      exit(number, payload)
      for key, answer in pairs(answers) do vcpu.exit[key] = answer[1] end
      for key, value in pairs(fields) do
        if not answers[key] and key ~= "ret" and not (name == "tdx" and key:find("^r%d"))
          and not (name == "tdx" and key == "data") then
          contains("'" .. key .. "' that can be set",
            error_of(function() vcpu.exit[key] = value end))
        end
      end
      vcpu:run(support.LIMITS)
      for key, answer in pairs(answers) do
        local expected = answer[4] and table.pack(table.unpack(answer, 4)) or { answer[1], n = 1 }
        local got = table.pack(string.unpack("<" .. answer[3], fake.page(), answer[2] + 1))
        for j = 1, expected.n do assert.equal(expected[j], got[j], key) end
      end
    end)

    it(title .. " goes to the handler of its name", function()
      local seen
      local is_access = name:find("^io_") or name:find("^mmio_")
      vm:on(name, function(first)
        seen = is_access and name or first.reason
        return is_access and 0 or true
      end)
      if name == "hlt" then
        fake.exit(page(number))
        assert.equal("exits", (vcpu:run { exits = 1 }))
      else
        assert.equal("hlt", (exit(number, payload)))
      end
      assert.equal(name, seen)
    end)
  end

  it("has what the page has beside the payload", function()
    exit(5)
    local now = vcpu.exit
    assert.equal(1, now.ready_for_interrupt_injection)
    assert.equal(0, now.if_flag)
    assert.equal(0x8002, now.run_flags)
    assert.equal(0x33, now.cr8)
    assert.equal(0xfee00900, now.apic_base)
    assert.equal(0, now.request_interrupt_window)
    local fixed = { "ready_for_interrupt_injection", "if_flag", "run_flags", "apic_base" }
    for _, name in ipairs(fixed) do
      contains("that can be set", error_of(function() now[name] = 1 end))
    end
    now.request_interrupt_window = true
    contains("cr8: 16 does not fit in 4 bits", error_of(function() now.cr8 = 16 end))
    now.cr8 = 5
    vcpu:run(support.LIMITS)
    assert.equal(1, fake.page():byte(1))
    assert.equal(5, (string.unpack("<I8", fake.page(), 17)))
    contains("over", error_of(function() now.cr8 = 6 end))
    contains("over", error_of(pairs, now))
  end)

  it("takes elements of an array, and leaves the others", function()
    exit(35, pack(("I8"):rep(10), 8, 9, 1, 2, 3, 4, 5, 6, 70, 80))
    vcpu.exit.ret = { [2] = 81 }
    assert.same({ 70, 81 }, vcpu.exit.ret)
    contains("ret[3]: no such element", error_of(function() vcpu.exit.ret = { 1, 2, 3 } end))
    contains("table expected", error_of(function() vcpu.exit.ret = 1 end))
    contains("integer", error_of(function() vcpu.exit.ret = { "x" } end))
    assert.same({ 70, 81 }, vcpu.exit.ret)
    contains("table expected", error_of(function() vcpu.exit.ret = nil end))
    exit(35)
    contains("does not fit", error_of(function()
      exit(29)
      vcpu.exit.error = 256
    end))
  end)

  it("whose vCPU is closed while an array is made is over", function()
    exit(35)
    local shown = vcpu.exit
    vm:close()
    contains("closed", error_of(function() shown.ret = { 1 } end))
    contains("closed", error_of(pairs, shown))
  end)

  it("of a number that nobody knows is that number", function()
    for _, number in ipairs { 44, 63, 64, 1000, 0xffff } do
      assert.equal(number, (exit(number, "payload")))
      assert.equal(number, vcpu.exit.reason)
      assert.equal(0x33, vcpu.exit.cr8)
      contains(("exit %d has no field 'nr'"):format(number),
        error_of(function() return vcpu.exit.nr end))
      local seen
      vm:on(number, function(unknown) seen = unknown.reason end)
      assert.equal("hlt", (exit(number)))
      assert.equal(number, seen)
    end
  end)

  it("of such a number is it for vm:run, too", function()
    fake.exit(page(1000))
    assert.same({ 1000, vcpu }, { vm:run(support.LIMITS) })
  end)

  it("of memory that the host has not got is one although KVM_RUN fails", function()
    for _, errno in ipairs { 14, 133 } do -- EFAULT, EHWPOISON
      assert.equal("memory_fault", (exit(39, pack("I8I8I8", 0, 0x7000, 0x1000), -errno)))
      assert.equal(0x7000, vcpu.exit.gpa)
    end
    assert.equal("EFAULT", error_of(exit, 5, nil, -14).code)
    assert.is_nil(vcpu.exit)
  end)
end)

describe("A page that no kernel would make", function()
  before_each(fake_vm)
  after_each(teardown)

  local function refused(reason, payload)
    for _, run in ipairs { "run", "run_once" } do
      fake.exit(page(reason, payload))
      local err = error_of(vcpu[run], vcpu, support.LIMITS)
      assert.equal("EPROTO", err.code)
      assert.equal("exit", err.call)
      assert.is_nil(vcpu.exit)
    end
    assert.equal("hlt", (vcpu:run(support.LIMITS)))
  end

  it("has port data outside of itself", function()
    for _, claimed in ipairs { false, true } do
      if claimed then
        vm:attach_io { port = 0, count = 65536, read = function() return 1 end,
          write = function() end }
      end
      for direction = 0, 1 do
        for _, case in ipairs {
          { 1, 1, PAGE_END }, { 1, 1, PAGE_END - 7 }, { 1, 1, -1 }, { 1, 1, math.mininteger },
          { 4, 0xffffffff, IO_DATA }, { 4, 2047, IO_DATA }, { 3, 1, IO_DATA },
          { 0, 1, IO_DATA }, { 8, 1, IO_DATA }, { 255, 1, IO_DATA },
        } do
          local size, count, offset = table.unpack(case)
          refused(2, pack("BBI2I4i8", direction, size, 0x60, count, offset))
        end
      end
      refused(2, pack("BBI2I4I8", 2, 1, 0x60, 1, IO_DATA))
    end
    assert.is_nil(vcpu.stats.exits.io_in)
    -- The last byte that can be: eight are loaded at once.
    fake.exit(page(2, pack("BBI2I4I8", 1, 1, 0x60, PAGE_END - IO_DATA - 8, IO_DATA)))
    assert.equal("hlt", (vcpu:run(support.LIMITS)))
    assert.equal(1, vcpu.stats.exits.io_out)
  end)

  it("has MMIO data outside of itself", function()
    for _, reason in ipairs { 6, 38 } do
      for _, len in ipairs { 0, 9, 0xffffffff } do
        refused(reason, pack("I8I8I4B", 0xd0000000, 0, len, 0))
        refused(reason, pack("I8I8I4B", 0xd0000000, 0, len, 1))
      end
      refused(reason, pack("I8I8I4B", 0xd0000000, 0, 4, 255))
    end
    vm:attach_mmio { gpa = 0xd0000000, size = 8, value = 1 }
    refused(6, pack("I8I8I4B", 0xd0000000, 0, 9, 0))
  end)

  it("has a number of ckvm's own", function()
    for _, reason in ipairs { 0x10000, 0x10003, 0x10004, 0xffffffff } do refused(reason) end
  end)

  it("counts more data than there can be: it is cut", function()
    for _, ndata in ipairs { 17, 0x80000000, 0xffffffff } do
      for _, reason in ipairs { 17, 24 } do
        exit(reason, pack("I4I4", 9, ndata) .. ("\x11"):rep(300))
        assert.equal(16, #vcpu.exit.data)
        assert.equal(0x1111111111111111, vcpu.exit.data[16])
        assert.equal(ndata, vcpu.exit.ndata)
      end
    end
    exit(24, pack("I4I4I8", 1, 0, 5))
    assert.same({}, vcpu.exit.data)
    assert.equal(5, vcpu.exit.flags)
  end)

  it("has an instruction longer than any: it is cut", function()
    local bytes = ("abcdefghijklmno"):rep(2)
    for _, size in ipairs { 15, 16, 255 } do
      exit(17, pack("I4I4I8B", 1, 3, 1, size) .. bytes)
      assert.equal(bytes:sub(1, 15), vcpu.exit.insn_bytes)
      assert.equal(15, vcpu.exit.insn_size)
    end
  end)

  it("has no instruction where KVM says that it gives none", function()
    exit(17, pack("I4I4I8Bc15", 1, 3, 0, 3, "abc"))
    assert.equal("", vcpu.exit.insn_bytes)
    exit(17, pack("I4I4I8Bc15", 1, 2, 1, 3, "abc"))
    assert.equal("", vcpu.exit.insn_bytes)
    exit(17, pack("I4I4I8Bc15", 1, 0, 77, 3, "abc"))
    assert.equal(0, vcpu.exit.flags)
    assert.equal(0, vcpu.exit.insn_size)
    assert.equal("", vcpu.exit.insn_bytes)
    exit(17, pack("I4I4I8Bc15", 2, 3, 1, 3, "abc"))
    contains("no field 'insn_bytes'", error_of(function() return vcpu.exit.insn_bytes end))
  end)
end)

describe("request_interrupt_window", function()
  it("ends the run as soon as the guest takes interrupts", function()
    support.need_kvm()
    local kvm, machine, cpu = support.real_mode("\xe6\x10\xfb\x90\xeb\xfe") -- out; sti; nop; jmp .
    local _ <close> = kvm
    local _ <close> = machine
    assert.equal("io_out", (cpu:run(support.LIMITS)))
    assert.equal(0, cpu.exit.if_flag)
    cpu.exit.request_interrupt_window = true
    assert.equal("irq_window_open", (cpu:run(support.LIMITS)))
    assert.equal(1, cpu.exit.if_flag)
    assert.equal(1, cpu.exit.ready_for_interrupt_injection)
  end)
end)

describe("An instruction that KVM cannot emulate", function()
  it("is shown where KVM tells it", function()
    support.need_kvm()
    local code <const> = "\xc5\xf8\x77\xf4" -- vzeroupper; hlt
    local kvm, machine, cpu = support.real_mode(code)
    local _ <close> = kvm
    local _ <close> = machine
    machine:write_u32(6 * 4, 0x1003) -- the vector of #UD, which a CPU raises here: hlt
    local why = cpu:run(support.LIMITS)
    assert.are_not.equal("timeout", why)
    if why ~= "internal_error" then return pending("this KVM gives " .. why) end
    assert.equal(1, cpu.exit.suberror)
    local bytes = cpu.exit.insn_bytes
    if bytes == "" then return pending("this KVM gives no bytes") end
    assert.equal(code:sub(1, 3), bytes:sub(1, 3))
  end)
end)

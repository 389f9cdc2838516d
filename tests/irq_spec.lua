-- Interrupts: the in-kernel controllers, lines, messages, routes, the PIT, and where there are
-- no controllers, vcpu:interrupt.

local ckvm = require "ckvm"
local support = require "support"

local contains, error_of, LIMITS = support.contains, support.error_of, support.LIMITS

local ISR <const> = 0x1100

-- A real-mode guest at 0x1000 that enables its APIC through DS, says so at port 1, and waits for
-- interrupts; `vectors` are those that say their number at port 2.
local WAITING <const> = "\x66\xb8\xff\x01\0\0" -- mov $0x1ff, %eax
  .. "\x66\xa3\xf0\0"                          -- mov %eax, 0xf0
  .. "\xe6\x01"                                -- out %al, $1
  .. "\xfb\xf4\xeb\xfd"                        -- sti; 1: hlt; jmp 1b

local function add_vectors(vm, vectors)
  for i, vector in ipairs(vectors) do
    local at = ISR + i * 16
    vm:write(at, "\xb0" .. string.char(vector) -- mov $vector, %al
      .. "\xe6\x02\xf4")                       -- out %al, $2; hlt
    vm:write_u32(vector * 4, at)
  end
end

local function start(vm, code, vectors)
  vm:add_memory { gpa = 0, size = 0x10000 }
  vm:write(0x1000, code)
  add_vectors(vm, vectors)
  local vcpu = vm:create_vcpu(0)
  vcpu:set_sregs { cs = { base = 0, selector = 0 }, ds = { base = 0xfee00000 } }
  vcpu:set_regs { rip = 0x1000, rsp = 0x8000, rflags = 2 }
  return vcpu
end

local function code_of(fn, ...)
  return error_of(fn, ...).code
end

describe("interrupts:", function()
  local kvm, vm
  before_each(function() kvm, vm = support.new_vm() end)
  after_each(function() support.close(vm, kvm) end)

  -- Every call that takes a table, with one that is right.
  local calls = {
    irq_line = { irq = 4, level = 1 }, irq_line_status = { irq = 4, level = 1 },
    signal_msi = {}, set_irqchip = { chip_id = 0 }, create_pit2 = {}, set_pit = {},
    set_pit2 = {}, reinject_control = {}, set_clock = {}, set_gsi_routing = {},
  }

  it("refuse a closed VM", function()
    vm:close()
    for name, argument in pairs(calls) do
      contains("VM is closed", error_of(vm[name], vm, argument))
    end
    for _, name in ipairs { "create_irqchip", "create_pit", "get_irqchip", "get_pit", "get_pit2",
      "get_clock", "set_tss_addr", "set_identity_map_addr", "set_boot_cpu_id" } do
      contains("VM is closed", error_of(vm[name], vm, 0))
    end
  end)

  it("refuse another object, and what is not a table", function()
    for name in pairs(calls) do
      contains("VM expected, got", error_of(vm[name], kvm, {}))
      if name ~= "create_pit2" then
        contains("table expected, got", error_of(vm[name], vm))
      end
      contains("table expected, got", error_of(vm[name], vm, 1))
    end
  end)

  it("name an unknown field", function()
    vm:create_irqchip()
    vm:create_pit2()
    for name, argument in pairs(calls) do
      if name ~= "set_gsi_routing" then
        local wrong = { lvel = 1 }
        for key, value in pairs(argument) do wrong[key] = value end
        contains("lvel", error_of(vm[name], vm, wrong))
      end
    end
  end)

  describe("create_irqchip", function()
    it("refuses a second time, and after a vCPU", function()
      vm:create_irqchip()
      local err = error_of(vm.create_irqchip, vm)
      assert.equal("EEXIST", err.code)
      contains("has its irqchip already", err)
      local other <close> = kvm:create_vm()
      other:create_vcpu(0)
      err = error_of(other.create_irqchip, other)
      assert.equal("EINVAL", err.code)
      contains("before the first vCPU", err)
    end)
  end)

  describe("get_irqchip and set_irqchip", function()
    it("refuse without a chip, and what is none", function()
      for _, id in ipairs { "pic_master", "pic_slave", "ioapic", 0, 1, 2 } do
        local err = error_of(vm.get_irqchip, vm, id)
        assert.equal("ENXIO", err.code)
        contains("vm:create_irqchip()", err)
        assert.equal("ENXIO", code_of(vm.set_irqchip, vm, { chip_id = id }))
      end
      contains("unknown irqchip 'pic'", error_of(vm.get_irqchip, vm, "pic"))
      contains("3 is not the number of an irqchip", error_of(vm.get_irqchip, vm, 3))
      contains("-1 is not the number", error_of(vm.set_irqchip, vm, { chip_id = -1 }))
      contains("chip_id: integer expected, got nil", error_of(vm.set_irqchip, vm, {}))
      contains("chip_id: integer expected, got no value", error_of(vm.get_irqchip, vm))
    end)

    it("refuse the fields of another chip, and values that do not fit", function()
      vm:create_irqchip()
      contains("unknown field 'imr'", error_of(vm.set_irqchip, vm, { chip_id = "ioapic", imr = 1 }))
      contains("imr: 256 does not fit", error_of(vm.set_irqchip, vm, { chip_id = 0, imr = 256 }))
      contains("redirtbl[25]: no such element",
        error_of(vm.set_irqchip, vm, { chip_id = 2, redirtbl = { [25] = 0 } }))
    end)

    it("take and give a chip by name and number, and keep what is not named", function()
      vm:create_irqchip()
      vm:set_irqchip { chip_id = "pic_master", irq_base = 10, imr = 3 }
      vm:set_irqchip { chip_id = 0, imr = 5 }
      local chip = vm:get_irqchip("pic_master")
      assert.equal(10, chip.irq_base)
      assert.equal(5, chip.imr)
      assert.equal("pic_master", chip.chip_id)
      assert.same(chip, vm:get_irqchip(0))
      vm:set_irqchip(chip)
      assert.same(chip, vm:get_irqchip(0))
      assert.equal(0, vm:get_irqchip("pic_slave").irq_base)
    end)

    it("have 24 pins of the I/O APIC, as integers", function()
      vm:create_irqchip()
      local ioapic = vm:get_irqchip("ioapic")
      assert.equal(0xfec00000, ioapic.base_address)
      assert.equal(24, #ioapic.redirtbl)
      vm:set_irqchip { chip_id = "ioapic", redirtbl = { [3] = 0x0100000000010021 } }
      assert.equal(0x0100000000010021, vm:get_irqchip(2).redirtbl[3])
      assert.equal(ioapic.redirtbl[4], vm:get_irqchip(2).redirtbl[4])
    end)
  end)

  describe("irq_line", function()
    it("refuses without an irqchip, and wrong values", function()
      for _, name in ipairs { "irq_line", "irq_line_status" } do
        local err = error_of(vm[name], vm, { irq = 4, level = 1 })
        assert.equal("ENXIO", err.code)
        contains("vm:create_irqchip()", err)
        contains("irq: integer expected, got nil", error_of(vm[name], vm, { level = 1 }))
        contains("level: integer expected, got nil", error_of(vm[name], vm, { irq = 1 }))
        contains("level: 2 is not between 0 and 1", error_of(vm[name], vm, { irq = 1, level = 2 }))
        contains("irq: -1 is not between", error_of(vm[name], vm, { irq = -1, level = 1 }))
        contains("irq: 4294967296 is not between",
          error_of(vm[name], vm, { irq = 1 << 32, level = 1 }))
      end
    end)

    it("raises and lowers a line, by number and boolean", function()
      vm:create_irqchip()
      vm:irq_line { irq = 4, level = true }
      assert.equal(0x10, vm:get_irqchip("pic_master").irr)
      vm:irq_line { irq = 4, level = false }
      vm:irq_line { irq = 4, level = 1 }
      vm:irq_line { irq = 4, level = 0 }
      vm:irq_line { irq = 9, level = 1 }
      assert.equal(0x02, vm:get_irqchip("pic_slave").irr)
    end)

    it("interrupts the guest", function()
      vm:create_irqchip()
      vm:set_irqchip { chip_id = "pic_master", irq_base = 0x20, imr = 0 }
      local vcpu = start(vm, WAITING, { 0x24 })
      assert.equal("io_out", vcpu:run(LIMITS))
      vm:irq_line { irq = 4, level = 1 }
      assert.equal("io_out", vcpu:run(LIMITS))
      assert.equal(2, vcpu.exit.port)
      assert.equal(0x24, vcpu.exit.data)
    end)
  end)

  describe("irq_line_status", function()
    it("tells whether it was taken, pending or has no line", function()
      vm:create_irqchip()
      assert.is_true(vm:irq_line_status { irq = 4, level = 1 } > 0)
      vm:irq_line { irq = 4, level = 0 }
      assert.equal(0, vm:irq_line_status { irq = 4, level = 1 })
      assert.equal(-1, vm:irq_line_status { irq = 3000, level = 1 })
    end)
  end)

  describe("signal_msi", function()
    it("refuses without an irqchip, and a message to nobody", function()
      local err = error_of(vm.signal_msi, vm, {})
      assert.equal("EINVAL", err.code)
      contains("vm:create_irqchip()", err)
      vm:create_irqchip()
      err = error_of(vm.signal_msi, vm, {})
      assert.equal("EPERM", err.code)
      contains("no vCPU has that destination", err)
    end)

    it("is 0 where the APIC is off, and delivers where it is on", function()
      vm:create_irqchip()
      local vcpu = start(vm, WAITING, { 0x31 })
      local message = { address_lo = 0xfee00000, data = 0x31, devid = 1, flags = 0 }
      assert.equal(0, vm:signal_msi(message))
      assert.equal("io_out", vcpu:run(LIMITS))
      assert.equal(1, vm:signal_msi(message))
      assert.equal("io_out", vcpu:run(LIMITS))
      assert.equal(0x31, vcpu.exit.data)
    end)
  end)

  describe("set_gsi_routing", function()
    local function refuses(message, list)
      contains(message, error_of(vm.set_gsi_routing, vm, list))
    end

    it("refuses without an irqchip", function()
      local err = error_of(vm.set_gsi_routing, vm, {})
      assert.equal("EINVAL", err.code)
      contains("vm:create_irqchip()", err)
    end)

    it("refuses what is not a list of routes, and says which", function()
      local right = { gsi = 1, irqchip = 0, pin = 1 }
      refuses("route 2: table expected, got number", { right, 2 })
      refuses("'gsi' is no place in it", { gsi = 1 })
      refuses("'7' is no place in it", { right, [7] = right })
      refuses("'1.5' is no place in it", { right, [1.5] = right })
      refuses("route 1: 'irqchip' and 'pin', or 'address_lo' and 'data', or", { {} })
      refuses("route 1: no type 'mis'; known: irqchip, msi, s390_adapter, hv_sint, xen_evtchn",
        { { gsi = 1, type = "mis", data = 1 } })
      refuses("route 1: no type 'true'", { { gsi = 1, type = true } })
      refuses("type: 0 is not between 1 and 5", { { gsi = 1, type = 0 } })
      refuses("type: 6 is not between 1 and 5", { { gsi = 1, type = 6 } })
      refuses("gsi: integer expected, got nil", { right, { pin = 1 } })
      refuses("route 2: unknown field 'pi'", { right, { gsi = 1, irqchip = 0, pi = 1 } })
      refuses("route 1: unknown field 'data'", { { gsi = 1, irqchip = 0, data = 1 } })
      refuses("route 1.pin: -1 does not fit", { { gsi = 1, irqchip = 0, pin = -1 } })
      refuses("irqchip: unknown irqchip 'pic'", { { gsi = 1, irqchip = "pic", pin = 1 } })
      refuses("flags: -1 is not between", { { gsi = 1, irqchip = 0, pin = 1, flags = -1 } })
    end)

    it("lets the kernel refuse a route: a pin that is none, a type it does not have", function()
      vm:create_irqchip()
      assert.equal("EINVAL",
        code_of(vm.set_gsi_routing, vm, { { gsi = 1, irqchip = "pic_master", pin = 99 } }))
      assert.equal("EINVAL",
        code_of(vm.set_gsi_routing, vm, { { gsi = 1, type = "s390_adapter", adapter_id = 1 } }))
    end)

    it("replaces all routes, by an empty list, too", function()
      vm:create_irqchip()
      vm:set_gsi_routing {}
      assert.equal(-1, vm:irq_line_status { irq = 4, level = 1 })
      vm:set_gsi_routing { { gsi = 4, irqchip = "pic_master", pin = 1 } }
      vm:irq_line { irq = 4, level = 1 }
      assert.equal(0x02, vm:get_irqchip("pic_master").irr)
      vm:set_gsi_routing { { gsi = 5, type = "irqchip", irqchip = 1, pin = 3 } }
      assert.equal(-1, vm:irq_line_status { irq = 4, level = 1 })
      vm:irq_line { irq = 5, level = 1 }
      assert.equal(0x08, vm:get_irqchip("pic_slave").irr)
    end)

    it("takes as many routes as the kernel does, and no more", function()
      vm:create_irqchip()
      local list = {}
      for gsi = 0, 4095 do
        list[gsi + 1] = { gsi = gsi, address_lo = 0xfee00000, data = 0x31 }
      end
      vm:set_gsi_routing(list)
      list[4097] = { gsi = 4096, address_lo = 0xfee00000, data = 0x31 }
      local err = error_of(vm.set_gsi_routing, vm, list)
      assert.equal("EINVAL", err.code)
      contains("more than 4096", err)
    end)

    it("turns a line into a message", function()
      vm:create_irqchip()
      local vcpu = start(vm, WAITING, { 0x32 })
      vm:set_gsi_routing { { gsi = 30, type = "msi", address_lo = 0xfee00000, data = 0x32 } }
      assert.equal("io_out", vcpu:run(LIMITS))
      assert.equal(1, vm:irq_line_status { irq = 30, level = 1 })
      assert.equal("io_out", vcpu:run(LIMITS))
      assert.equal(0x32, vcpu.exit.data)
    end)
  end)

  describe("the PIT", function()
    it("refuses without an irqchip, or is made", function()
      for _, name in ipairs { "create_pit", "create_pit2" } do
        local other <close> = kvm:create_vm()
        local made, err = pcall(other[name], other) -- as Linux 6.1 does it
        if made then err = error_of(other[name], other) end
        assert.equal(made and "EEXIST" or "ENOENT", err.code)
        if not made then contains("vm:create_irqchip()", err) end
      end
    end)

    it("refuses what it is not there for, and twice", function()
      for _, name in ipairs { "get_pit", "get_pit2" } do
        local err = error_of(vm[name], vm)
        assert.equal("ENXIO", err.code)
        contains("vm:create_pit2()", err)
      end
      assert.equal("ENXIO", code_of(vm.set_pit2, vm, { flags = 0 }))
      assert.equal("ENXIO", code_of(vm.reinject_control, vm, { pit_reinject = true }))
      vm:create_irqchip()
      vm:create_pit2()
      assert.equal("EEXIST", code_of(vm.create_pit2, vm))
      assert.equal("EEXIST", code_of(vm.create_pit, vm))
    end)

    it("is made by either call, with flags by one", function()
      vm:create_irqchip()
      vm:create_pit()
      assert.equal(3, #vm:get_pit().channels)
      local other <close> = kvm:create_vm()
      other:create_irqchip()
      other:create_pit2 { flags = 1 }
      assert.equal(3, #other:get_pit2().channels)
    end)

    -- When a count was loaded is the kernel's affair.
    local function without_times(pit)
      for _, channel in ipairs(pit.channels) do channel.count_load_time = nil end
      return pit
    end

    it("gives back what was set, but for the time it was", function()
      vm:create_irqchip()
      vm:create_pit2()
      local pit = vm:get_pit2()
      pit.channels[3].mode = 3
      pit.channels[3].count = 0x1234
      vm:set_pit2(pit)
      assert.same(without_times(pit), without_times(vm:get_pit2()))
      vm:set_pit(vm:get_pit())
      assert.same(pit, without_times(vm:get_pit2()))
    end)

    it("keeps the fields that are not named", function()
      vm:create_irqchip()
      vm:create_pit2()
      vm:set_pit2 { channels = { [3] = { count = 0x4321 } } }
      vm:set_pit2 { channels = { [3] = { mode = 2 } } }
      local channel = vm:get_pit2().channels[3]
      assert.equal(0x4321, channel.count)
      assert.equal(2, channel.mode)
      contains("channels[4]: no such element",
        error_of(vm.set_pit2, vm, { channels = { [4] = {} } }))
    end)

    it("makes up for missed interrupts or not", function()
      vm:create_irqchip()
      vm:create_pit2()
      vm:reinject_control { pit_reinject = false }
      vm:reinject_control { pit_reinject = 1 }
    end)
  end)

  describe("set_tss_addr", function()
    it("takes an address below 4 GiB with room for three pages", function()
      vm:set_tss_addr(0xfffbd000)
      for _, gpa in ipairs { 0xfffff000, 1 << 32, -1, math.mininteger } do
        assert.equal("EINVAL", code_of(vm.set_tss_addr, vm, gpa))
      end
      contains("address expected", error_of(vm.set_tss_addr, vm))
      contains("address expected", error_of(vm.set_tss_addr, vm, "0"))
    end)
  end)

  describe("set_identity_map_addr", function()
    it("is for before the first vCPU", function()
      vm:set_identity_map_addr(0xfffbc000)
      vm:create_vcpu(0)
      local err = error_of(vm.set_identity_map_addr, vm, 0xfffbc000)
      assert.equal("EINVAL", err.code)
      contains("before the first vCPU", err)
    end)
  end)

  describe("set_boot_cpu_id", function()
    it("is for before the first vCPU", function()
      vm:set_boot_cpu_id(1)
      vm:create_vcpu(0)
      local err = error_of(vm.set_boot_cpu_id, vm, 0)
      assert.equal("EBUSY", err.code)
      contains("before the first vCPU", err)
    end)

    it("refuses what is no id", function()
      for _, id in ipairs { -1, 1 << 32 } do
        contains("not a vCPU's id", error_of(vm.set_boot_cpu_id, vm, id))
      end
    end)
  end)
end)

describe("a split irqchip", function()
  local vm
  before_each(function()
    support.need_kvm()
    vm = ckvm.open():create_vm()
    if vm:check_extension("split_irqchip") == 0 then pending("no split_irqchip") end
    vm:enable_cap("split_irqchip", 24)
  end)
  after_each(function() vm:close() end)

  it("has no chips, and no PIT but on old kernels", function()
    assert.equal("ENXIO", code_of(vm.get_irqchip, vm, "ioapic"))
    local made, err = pcall(vm.create_pit2, vm) -- as Linux 6.1 does it
    assert.is_true(made or err.code == "ENOENT")
    assert.equal("EEXIST", code_of(vm.create_irqchip, vm))
  end)

  it("tells the host's I/O APIC of the end of a level-triggered interrupt", function()
    local vcpu = start(vm, WAITING, {})
    vm:write(0x1100, "\x66\xa3\xb0\0" -- mov %eax, 0xb0: EOI
      .. "\xe6\x02\xcf")             -- out %al, $2; iret
    vm:write_u32(0x33 * 4, 0x1100)
    vm:set_gsi_routing { { gsi = 5, address_lo = 0xfee00000, data = 0xc033 } }
    assert.equal("io_out", vcpu:run(LIMITS))
    vm:irq_line { irq = 5, level = 1 }
    -- A KVM in software may go on with the guest for a while before it tells.
    local why = vcpu:run(LIMITS)
    if why == "io_out" then why = vcpu:run(LIMITS) end
    assert.equal("ioapic_eoi", why)
    assert.equal(0x33, vcpu.exit.vector)
  end)

  it("queues one interrupt of the host's own controller", function()
    local vcpu = vm:create_vcpu(0)
    vcpu:interrupt(0x20)
    local err = error_of(vcpu.interrupt, vcpu, 0x21)
    assert.equal("EEXIST", err.code)
    contains("queued already", err)
  end)
end)

describe("vcpu:interrupt", function()
  before_each(support.need_kvm)

  it("refuses what is no vector, a closed vCPU, and an irqchip in the kernel", function()
    local vm <close> = ckvm.open():create_vm()
    vm:create_irqchip()
    local vcpu = vm:create_vcpu(0)
    for _, irq in ipairs { -1, 256, 1 << 32 } do
      contains("not a vector's number", error_of(vcpu.interrupt, vcpu, irq))
    end
    contains("number expected, got string", error_of(vcpu.interrupt, vcpu, "32"))
    local err = error_of(vcpu.interrupt, vcpu, 0x20)
    assert.equal("ENXIO", err.code)
    contains("vm:irq_line", err)
    vcpu:close()
    contains("vCPU is closed", error_of(vcpu.interrupt, vcpu, 0x20))
  end)

  it("shows in the events, and interrupts the guest", function()
    local vm <close> = ckvm.open():create_vm()
    local vcpu = start(vm, "\xfb\x90\x90\xf4", { 0x40 }) -- sti; nop; nop; hlt
    assert.equal(0, vcpu.events.interrupt.injected)
    vcpu:set_regs { rflags = 0x202 }
    vcpu:interrupt(0x40)
    assert.equal(1, vcpu.events.interrupt.injected)
    assert.equal(0x40, vcpu.events.interrupt.nr)
    assert.equal("io_out", vcpu:run(LIMITS))
    assert.equal(0x40, vcpu.exit.data)
    assert.equal("hlt", vcpu:run(LIMITS))
    assert.equal(0x7ffa, vcpu.regs.rsp)
  end)

  it("waits for the instruction whose access is open", function()
    local vm <close> = ckvm.open():create_vm()
    local vcpu = start(vm, "\xe4\x10\xf4", { 0x40 }) -- in $0x10, %al; hlt
    vcpu:set_regs { rflags = 0x202 }
    vm:attach_io { port = 0x10, read = function(_, _, cpu)
      cpu:interrupt(0x40)
      return 0x77
    end }
    local al
    vm:attach_io { port = 2, write = function(_, _, _, cpu)
      al = vm:read_u16(cpu.regs.rsp) -- where it was interrupted
    end }
    assert.equal("hlt", vcpu:run(LIMITS))
    assert.equal(0x1002, al)
  end)
end)

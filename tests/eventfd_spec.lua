-- ckvm.eventfd, and what a VM does with eventfds: irqfd and ioeventfd.

local ckvm = require "ckvm"
local support = require "support"

local contains, error_of, LIMITS = support.contains, support.error_of, support.LIMITS

local function code_of(fn, ...)
  return error_of(fn, ...).code
end

describe("ckvm.eventfd:", function()
  it("refuses unknown and wrong options", function()
    contains("eventfd: unknown option 'value'", error_of(ckvm.eventfd, { value = 1 }))
    contains("initval: -1 is not between", error_of(ckvm.eventfd, { initval = -1 }))
    contains("initval: integer expected, got string", error_of(ckvm.eventfd, { initval = "1" }))
    contains("semaphore: true or false expected", error_of(ckvm.eventfd, { semaphore = 1 }))
    contains("table expected, got number", error_of(ckvm.eventfd, 1))
  end)

  it("is empty, and nil read from it", function()
    local event <close> = ckvm.eventfd()
    assert.is_nil(event:read())
  end)

  it("adds up what is signalled, and is empty again when read", function()
    local event <close> = ckvm.eventfd { initval = 3 }
    event:signal()
    event:signal(5)
    assert.equal(9, event:read())
    assert.is_nil(event:read())
  end)

  it("takes an initial value of 63 bits", function()
    local event <close> = ckvm.eventfd { initval = math.maxinteger }
    assert.equal(math.maxinteger, event:read())
  end)

  it("gives one after the other as a semaphore", function()
    local event <close> = ckvm.eventfd { initval = 2, semaphore = true }
    assert.equal(1, event:read())
    assert.equal(1, event:wait())
    assert.is_nil(event:read())
  end)

  it("refuses counts that are none, and one too many", function()
    local event <close> = ckvm.eventfd { initval = math.maxinteger }
    for _, n in ipairs { 0, -1, math.mininteger } do
      contains("not a count", error_of(event.signal, event, n))
    end
    contains("number expected, got string", error_of(event.signal, event, "1"))
    event:signal(math.maxinteger)
    local err = error_of(event.signal, event)
    assert.equal("EAGAIN", err.code)
    contains("the counter is full", err)
  end)

  it("has the descriptor's number, close-on-exec", function()
    local event <close> = ckvm.eventfd()
    local info <close> = io.open(("/proc/self/fdinfo/%d"):format(event.fd))
    local text = info:read("a")
    contains("eventfd-count", text)
    assert.is_true(tonumber(text:match("flags:%s*(%d+)"), 8) & tonumber("2000000", 8) ~= 0)
  end)

  it("refuses everything once closed, which may be twice", function()
    local event = ckvm.eventfd()
    event:close()
    event:close()
    for _, name in ipairs { "signal", "read", "wait" } do
      contains("eventfd is closed", error_of(event[name], event))
    end
    contains("eventfd is closed", error_of(function() return event.fd end))
    contains("eventfd (closed)", event)
  end)

  it("gives its descriptor back when closed, and when collected", function()
    ckvm.eventfd():wait { timeout = 0 } -- a state's first wait keeps one
    local before = support.settled_fds()
    local event = ckvm.eventfd()
    assert.equal(before + 1, support.count_fds())
    event:close()
    assert.equal(before, support.count_fds())
    for _ = 1, 100 do ckvm.eventfd() end
    assert.equal(before, support.settled_fds())
  end)

  it("collects for want of descriptors, and tells if that was no help", function()
    local status, output, errors = support.run([[
      local ckvm = require "ckvm"
      for _ = 1, 100 do ckvm.eventfd() end
      local keep = {}
      local ok, err
      for i = 1, 100 do
        ok, err = pcall(ckvm.eventfd)
        if not ok then break end
        keep[i] = err
      end
      print(err.call, err.code)
      keep[1]:close()
      print(keep[2]:wait { timeout = 0 })
    ]], { shell = "ulimit -n 30" })
    assert.same({ 0, "eventfd\tEMFILE\nnil\n", "" }, { status, output, errors })
  end)

  -- What other threads do to a wait: tests/c/wait.c.
  describe("wait", function()
    it("refuses what is no time", function()
      local event <close> = ckvm.eventfd()
      contains("table expected, got number", error_of(event.wait, event, 1))
      contains("unknown option 'time'", error_of(event.wait, event, { time = 1 }))
      contains("timeout: seconds expected", error_of(event.wait, event, { timeout = "1" }))
      contains("is not a time from now on", error_of(event.wait, event, { timeout = -1 }))
    end)

    it("returns the value at once if there is one", function()
      local event <close> = ckvm.eventfd { initval = 7 }
      assert.equal(7, event:wait())
    end)

    it("returns nil when the time is up", function()
      local event <close> = ckvm.eventfd()
      assert.same({ n = 1 }, table.pack(event:wait { timeout = 0 }))
      assert.is_nil(event:wait { timeout = 0.01 })
    end)

    it("is ended by Ctrl-C", function()
      local status, output, errors = support.run [[
        local ckvm = require "ckvm"
        local event = ckvm.eventfd()
        local self = io.open("/proc/self/stat"):read("n")
        local kill -- no os.execute, which would lose a signal that comes before it has returned
        local ok, err = pcall(function()
          kill = io.popen("sleep 0.1; kill -INT " .. self)
          event:wait()
        end)
        print(ok, err:match("interrupted!$"))
        print(event:wait { timeout = 0.01 })
        kill:close()
      ]]
      assert.same({ 0, "false\tinterrupted!\nnil\n", "" }, { status, output, errors })
    end)

    it("raises what poll(2) refuses", function()
      if not os.execute("prlimit --version >/dev/null 2>&1") then pending("no prlimit(1)") end
      local status, output, errors = support.run [[
        local ckvm = require "ckvm"
        local event = ckvm.eventfd()
        event:wait { timeout = 0.01 }
        local self = io.open("/proc/self/stat"):read("n")
        local raise = io.popen("read _; prlimit --nofile=100: --pid " .. self, "w")
        os.execute("prlimit --nofile=1: --pid " .. self) -- fewer than it polls
        local ok, err = pcall(event.wait, event)
        raise:write("\n")
        raise:close()
        print(ok, err.call, err.code)
      ]]
      assert.same({ 0, "false\tppoll\tEINVAL\n", "" }, { status, output, errors })
    end)

    it("ends with the run around it", function()
      support.need_kvm()
      local _, vm, vcpu = support.real_mode("\xe6\x10\xf4")
      local event <close> = ckvm.eventfd()
      local value, waited = 1, false
      vm:attach_io { port = 0x10, write = function()
        value = event:wait()
        waited = true
      end }
      assert.equal("timeout", vcpu:run { timeout = 1 })
      assert.is_true(waited)
      assert.is_nil(value)
      vm:close()
    end)

    it("is the shorter of the two times", function()
      support.need_kvm()
      local _, vm, vcpu = support.real_mode("\xe6\x10\xf4")
      local event <close> = ckvm.eventfd()
      vm:attach_io { port = 0x10, write = function() event:wait { timeout = 0.01 } end }
      assert.equal("hlt", vcpu:run { timeout = 20 })
      vm:close()
    end)
  end)
end)

describe("irqfd and ioeventfd:", function()
  local kvm, vm
  before_each(function() kvm, vm = support.new_vm() end)
  after_each(function() support.close(vm, kvm) end)

  describe("irqfd", function()
    local function pending_irqs()
      return vm:get_irqchip("pic_master").irr
    end

    it("refuses unknown and wrong options, and closed objects", function()
      local event = ckvm.eventfd()
      local function refuses(message, options)
        contains(message, error_of(vm.irqfd, vm, options))
      end
      refuses("irqfd: unknown option 'irq'", { fd = event, irq = 4 })
      refuses("gsi: integer expected, got nil", { fd = event })
      refuses("gsi: -1 is not between", { fd = event, gsi = -1 })
      refuses("fd: eventfd expected, got nil", { gsi = 4 })
      refuses("fd: eventfd expected, got userdata", { fd = vm, gsi = 4 })
      refuses("fd: -1 is no descriptor", { fd = -1, gsi = 4 })
      refuses("resamplefd: eventfd expected, got boolean",
        { fd = event, gsi = 4, resamplefd = true })
      refuses("deassign: true or false expected", { fd = event, gsi = 4, deassign = 1 })
      event:close()
      refuses("fd: eventfd is closed", { fd = event, gsi = 4 })
      vm:close()
      refuses("VM is closed", { fd = 1, gsi = 4 })
    end)

    it("refuses without an irqchip, and a descriptor that is no eventfd", function()
      local event <close> = ckvm.eventfd()
      local err = error_of(vm.irqfd, vm, { fd = event, gsi = 4 })
      assert.equal("EINVAL", err.code)
      contains("vm:create_irqchip()", err)
      vm:create_irqchip()
      assert.equal("EBADF", code_of(vm.irqfd, vm, { fd = 1 << 20, gsi = 4 }))
      assert.equal("EINVAL", code_of(vm.irqfd, vm, { fd = 0, gsi = 4 }))
    end)

    it("raises the GSI by an object, and by a number", function()
      vm:create_irqchip()
      local event <close> = ckvm.eventfd()
      local other <close> = ckvm.eventfd()
      vm:irqfd { fd = event, gsi = 4 }
      vm:irqfd { fd = other.fd, gsi = 6 }
      event:signal()
      other:signal()
      -- The kernel injects from a work queue if it must.
      for _ = 1, 1000 do
        if pending_irqs() == 0x50 then break end
        other:wait { timeout = 0.001 }
      end
      assert.equal(0x50, pending_irqs())
    end)

    it("raises one GSI for an eventfd, and takes several eventfds for a GSI", function()
      vm:create_irqchip()
      local event <close> = ckvm.eventfd()
      local second <close> = ckvm.eventfd()
      vm:irqfd { fd = event, gsi = 4 }
      vm:irqfd { fd = second, gsi = 4 }
      for _, gsi in ipairs { 4, 5 } do
        local err = error_of(vm.irqfd, vm, { fd = event, gsi = gsi })
        assert.equal("EBUSY", err.code)
        contains("raises an interrupt already", err)
      end
    end)

    it("is taken back, twice, and by the wrong GSI, without an error", function()
      vm:create_irqchip()
      local event <close> = ckvm.eventfd()
      vm:irqfd { fd = event, gsi = 8, deassign = true }
      vm:irqfd { fd = event, gsi = 8 }
      vm:irqfd { fd = event, gsi = 5, deassign = true }
      assert.equal("EBUSY", code_of(vm.irqfd, vm, { fd = event, gsi = 8 }))
      vm:irqfd { fd = event, gsi = 8, deassign = true }
      vm:irqfd { fd = event, gsi = 8, flags = 1 }
      event:signal()
      assert.equal(0, vm:get_irqchip("pic_slave").irr)
      vm:irqfd { fd = event, gsi = 8 }
    end)

    it("signals another eventfd when the guest has ended the interrupt", function()
      if vm:check_extension("irqfd_resample") == 0 then pending("no irqfd_resample") end
      vm:create_irqchip()
      vm:set_irqchip { chip_id = "pic_master", irq_base = 0x20, imr = 0, elcr = 0x20 }
      vm:add_memory { gpa = 0, size = 0x10000 }
      vm:write(0x1000, "\xfb\xf4\xeb\xfd")                 -- sti; 1: hlt; jmp 1b
      vm:write(0x1100, "\xb0\x20\xe6\x20\xe6\x80\xcf")     -- mov $0x20, %al; out %al, $0x20;
      vm:write_u32(0x25 * 4, 0x1100)                       -- out %al, $0x80; iret
      local vcpu = vm:create_vcpu(0)
      vcpu:set_sregs { cs = { base = 0, selector = 0 } }
      vcpu:set_regs { rip = 0x1000, rsp = 0x8000, rflags = 2 }
      local event <close> = ckvm.eventfd()
      local resample <close> = ckvm.eventfd()
      vm:irqfd { fd = event, gsi = 5, resamplefd = resample }
      event:signal()
      assert.equal("io_out", vcpu:run(LIMITS))
      assert.equal(0x80, vcpu.exit.port)
      assert.equal(1, resample:wait { timeout = 20 })
    end)

    it("ends with the eventfd", function()
      vm:create_irqchip()
      local event = ckvm.eventfd()
      vm:irqfd { fd = event, gsi = 4 }
      event:close()
      local other <close> = ckvm.eventfd()
      vm:irqfd { fd = other, gsi = 4 }
    end)
  end)

  describe("ioeventfd", function()
    local OUT <const> = "\xe6\x10\xf4" -- out %al, $0x10; hlt

    -- A guest that runs `code`; its run must end with hlt, or what is expected.
    local function run(code, regs, expected)
      vm:write(0x1000, code)
      local vcpu = vm.vcpus[1]
      vcpu:set_sregs { cs = { base = 0, selector = 0 } }
      local all = { rip = 0x1000, rflags = 2, rax = 0, rbx = 0, rdx = 0 }
      for name, value in pairs(regs or {}) do all[name] = value end
      vcpu:set_regs(all)
      assert.equal(expected or "hlt", vcpu:run(LIMITS))
    end

    before_each(function()
      vm:add_memory { gpa = 0, size = 0x8000 }
      vm:create_vcpu(0)
    end)

    it("refuses unknown and wrong options, and closed objects", function()
      local event = ckvm.eventfd()
      local function refuses(message, options)
        if options.fd == nil then options.fd = event end
        contains(message, error_of(vm.ioeventfd, vm, options))
      end
      refuses("unknown option 'addr'", { addr = 1 })
      refuses("one of 'port' and 'gpa' is needed", {})
      refuses("one of 'port' and 'gpa' is needed", { port = 1, gpa = 1 })
      refuses("port: 65536 is not between", { port = 0x10000 })
      refuses("gpa: integer expected", { gpa = "0" })
      refuses("gpa: no 8 bytes from 0xfffffffffffffff8 on", { gpa = -8, len = 8 })
      refuses("len: 9 is not between", { port = 1, len = 9 })
      refuses("len: -1 is not between", { port = 1, len = -1 })
      refuses("datamatch: of how many bytes?", { port = 1, datamatch = 1 })
      refuses("datamatch: of how many bytes?", { port = 1, len = 0, datamatch = 1 })
      refuses("datamatch: 256 does not fit in 8 bits", { port = 1, len = 1, datamatch = 256 })
      refuses("datamatch: -129 does not fit", { port = 1, len = 1, datamatch = -129 })
      refuses("fd: eventfd expected, got boolean", { port = 1, fd = false })
      refuses("fd: -1 is no descriptor", { port = 1, fd = -1 })
      event:close()
      refuses("fd: eventfd is closed", { port = 1 })
      vm:close()
      refuses("VM is closed", { port = 1 })
    end)

    it("lets the kernel refuse a length, a flag and a descriptor", function()
      local event <close> = ckvm.eventfd()
      for _, len in ipairs { 3, 5, 6, 7 } do
        local err = error_of(vm.ioeventfd, vm, { port = 1, len = len, fd = event })
        assert.equal("EINVAL", err.code)
        contains("'len' is 0, 1, 2, 4 or 8", err)
      end
      assert.equal("EINVAL", code_of(vm.ioeventfd, vm, { port = 1, fd = event, flags = 1 << 20 }))
      assert.equal("EINVAL", code_of(vm.ioeventfd, vm, { port = 1, fd = 0 }))
      assert.equal("EBADF", code_of(vm.ioeventfd, vm, { port = 1, fd = 1 << 20 }))
    end)

    it("takes a guest's writes to a port, with no exit and no range that sees them", function()
      local event <close> = ckvm.eventfd()
      local seen = 0
      vm:attach_io { port = 0x10, write = function() seen = seen + 1 end }
      vm:ioeventfd { port = 0x10, fd = event }
      run(OUT .. OUT)
      run(OUT)
      assert.equal(2, event:read())
      vm:ioeventfd { port = 0x10, fd = event, deassign = true }
      run(OUT)
      assert.is_nil(event:read())
      assert.equal(1, seen)
    end)

    it("takes them to an address", function()
      local event <close> = ckvm.eventfd()
      vm:ioeventfd { gpa = 0x9000, fd = event.fd }
      run("\xa2\x00\x90\xf4") -- mov %al, 0x9000; hlt
      assert.equal(1, event:read())
      run("\xa2\x01\x90\xf4", nil, "mmio_write")
    end)

    it("takes one width, with any value", function()
      local event <close> = ckvm.eventfd()
      vm:ioeventfd { port = 0x10, len = 2, fd = event }
      run("\xe7\x10\xf4", { rax = 0x1234 }) -- out %ax, $0x10; hlt
      assert.equal(1, event:read())
      run(OUT, nil, "io_out")
    end)

    it("takes one value, signed or not", function()
      local event <close> = ckvm.eventfd()
      vm:ioeventfd { port = 0x10, len = 1, datamatch = -2, fd = event }
      run(OUT, { rax = 0xfe })
      assert.equal(1, event:read())
      run(OUT, { rax = 0xff }, "io_out")
    end)

    it("takes values of all widths, each its own", function()
      local event <close> = ckvm.eventfd()
      for i, len in ipairs { 1, 2, 4, 8 } do
        vm:ioeventfd { port = 0x20, len = len, datamatch = i, fd = event }
      end
      vm:ioeventfd { port = 0x20, len = 1, datamatch = 9, fd = event }
    end)

    it("refuses a place that is taken, also by another eventfd", function()
      local event <close> = ckvm.eventfd()
      local other <close> = ckvm.eventfd()
      vm:ioeventfd { port = 0x10, len = 1, datamatch = 1, fd = event }
      for _, options in ipairs { { fd = event, datamatch = 1 }, { fd = other, datamatch = 1 },
        { fd = other } } do
        options.port, options.len = 0x10, 1
        local err = error_of(vm.ioeventfd, vm, options)
        assert.equal("EEXIST", err.code)
        contains("takes these writes already", err)
      end
    end)

    it("refuses to take back what is not there", function()
      local event <close> = ckvm.eventfd()
      local other <close> = ckvm.eventfd()
      local function take_back(options)
        options.port, options.len, options.deassign = 0x10, 1, true
        options.fd = options.fd or event
        vm:ioeventfd(options)
      end
      local err = error_of(take_back, { datamatch = 1 })
      assert.equal("ENOENT", err.code)
      contains("no such ioeventfd", err)
      vm:ioeventfd { port = 0x10, len = 1, datamatch = 1, fd = event }
      assert.equal("ENOENT", code_of(take_back, { datamatch = 2 }))
      assert.equal("ENOENT", code_of(take_back, { datamatch = 1, fd = other }))
      assert.equal("ENOENT", code_of(take_back, {}))
      take_back { datamatch = 1 }
    end)

    it("keeps an eventfd that nobody else does, as long as the VM", function()
      vm:ioeventfd { port = 0x10, fd = ckvm.eventfd() }
      support.collect()
      run(OUT)
      ckvm.eventfd():wait { timeout = 0 }
      local before = support.settled_fds()
      vm:close()
      kvm:close()
      assert.equal(before - 4, support.settled_fds()) -- kvm, VM, vCPU, eventfd
    end)

    it("lets go of one that is taken back", function()
      local weak = setmetatable({ ckvm.eventfd() }, { __mode = "v" })
      vm:ioeventfd { port = 0x10, fd = weak[1] }
      vm:ioeventfd { port = 0x11, fd = weak[1] }
      vm:ioeventfd { port = 0x10, fd = weak[1], deassign = true }
      support.collect()
      assert.truthy(weak[1])
      vm:ioeventfd { port = 0x11, fd = weak[1], deassign = true }
      support.collect()
      assert.is_nil(weak[1])
    end)

    it("does not keep one that it was refused", function()
      local weak = setmetatable({ ckvm.eventfd() }, { __mode = "v" })
      error_of(vm.ioeventfd, vm, { port = 0x10, len = 3, fd = weak[1] })
      support.collect()
      assert.is_nil(weak[1])
    end)

    it("is taken back when the eventfd is closed: its writes exit again", function()
      local event = ckvm.eventfd()
      vm:ioeventfd { port = 0x10, fd = event }
      vm:ioeventfd { gpa = 0x9000, len = 4, datamatch = 5, fd = event }
      event:close()
      run(OUT, nil, "io_out")
      local other <close> = ckvm.eventfd()
      vm:ioeventfd { port = 0x10, fd = other }
      vm:ioeventfd { gpa = 0x9000, len = 4, datamatch = 5, fd = other }
    end)

    it("is taken back from every VM", function()
      local second <close> = kvm:create_vm()
      local event = ckvm.eventfd()
      vm:ioeventfd { port = 0x10, fd = event }
      second:ioeventfd { port = 0x10, fd = event }
      event:close()
      local other <close> = ckvm.eventfd()
      vm:ioeventfd { port = 0x10, fd = other }
      second:ioeventfd { port = 0x10, fd = other }
    end)

    it("may be closed after the VM, and in any order", function()
      local event = ckvm.eventfd()
      vm:ioeventfd { port = 0x10, fd = event }
      vm:close()
      event:signal()
      assert.equal(1, event:read())
      event:close()
    end)

    it("closes the circle with irqfd: the guest interrupts itself", function()
      local other <close> = kvm:create_vm()
      other:create_irqchip()
      local event <close> = ckvm.eventfd()
      other:irqfd { fd = event, gsi = 4 }
      vm:ioeventfd { port = 0x10, fd = event }
      run(OUT)
      for _ = 1, 1000 do
        if other:get_irqchip("pic_master").irr ~= 0 then break end
        ckvm.eventfd():wait { timeout = 0.001 }
      end
      assert.equal(0x10, other:get_irqchip("pic_master").irr)
    end)
  end)
end)

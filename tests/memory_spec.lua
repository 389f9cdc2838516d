-- Guest memory: adding and closing it, and what it is under random calls.

local support = require "support"

local contains, error_of = support.contains, support.error_of
local content = support.content

local PAGE <const> = 0x1000

local kvm, vm

local function setup() kvm, vm = support.new_vm() end
local function teardown() kvm, vm = support.close(vm, kvm) end

describe("vm:add_memory", function()
  before_each(setup)
  after_each(teardown)

  local function refused(options)
    support.collect()
    local before = support.settled_fds()
    local err = error_of(vm.add_memory, vm, options)
    assert.equal(before, support.count_fds())
    return err
  end

  it("refuses anything but a table", function()
    for _, options in ipairs { 0, "x", true, print } do
      contains("table expected, got " .. type(options), refused(options))
    end
    contains("table expected", error_of(vm.add_memory, vm))
  end)

  it("names an unknown option", function()
    contains("add_memory: unknown option 'sise'", refused { gpa = 0, sise = PAGE })
    contains("add_memory: unknown option '1'", refused { 0, PAGE })
  end)

  it("needs gpa and size, and names what is missing", function()
    contains("gpa: integer expected, got nil", refused { size = PAGE })
    contains("size: integer expected, got nil", refused { gpa = 0 })
  end)

  for key, wrong in pairs {
    gpa = "0", size = "4096", slot = "0", offset = {}, readonly = 1, log_dirty = "yes",
    shared = 0, file = 3, hugepages = 2,
  } do
    it("names an option of the wrong type: " .. key, function()
      local options = { gpa = 0, size = PAGE, [key] = wrong }
      if key == "offset" then options.file = "/dev/zero" end
      local err = refused(options)
      contains(key .. ": ", err)
      contains("got " .. type(wrong), err)
    end)
  end

  for _, size in ipairs {
    0, -1, -PAGE, math.mininteger, 2 ^ 63, -2 ^ 63, 2 ^ 64, 0.5, 0 / 0, 1 / 0, 1, PAGE - 1,
    PAGE + 1, math.maxinteger, math.maxinteger - PAGE + 1, 1 << 62,
  } do
    it("refuses a size of " .. size .. ", and names it", function()
      local err = refused { gpa = 0, size = size }
      local number = math.type(size) == "integer" and ("%x"):format(size) or tostring(size)
      assert(tostring(err):find(number, 1, true) or tostring(err):find(tostring(size), 1, true)
        or math.tointeger(size) and tostring(err):find(tostring(math.tointeger(size)), 1, true),
        tostring(err))
    end)

    it("refuses it with every kind of memory: " .. size, function()
      refused { gpa = 0, size = size, log_dirty = true }
      refused { gpa = 0, size = size, shared = true }
      refused { gpa = 0, size = size, readonly = true }
      refused { gpa = 0, size = size, hugepages = true }
    end)
  end

  for _, gpa in ipairs { 1, PAGE - 1, -1, 0.5, 2 ^ 63, math.maxinteger } do
    it("refuses a gpa of " .. gpa, function()
      contains("gpa", refused { gpa = gpa, size = PAGE })
    end)
  end

  it("refuses what goes one page past 2^64, and names both", function()
    for _, log_dirty in ipairs { false, true } do
      local err = refused { gpa = -PAGE, size = 2 * PAGE, log_dirty = log_dirty }
      contains("0x2000 bytes at 0xfffffffffffff000", err)
    end
  end)

  it("says what the kernel does not take: addresses past its limit", function()
    for _, gpa in ipairs { -PAGE, 1 << 62, math.mininteger } do
      local err = refused { gpa = gpa, size = PAGE }
      assert.equal("KVM_SET_USER_MEMORY_REGION", err.call)
      assert.equal("EINVAL", err.code)
      contains(("0x%x"):format(gpa), err)
    end
  end)

  it("names both memories that overlap, and adds none", function()
    vm:add_memory { gpa = 0x10000, size = 0x4000 }
    for gpa, size in pairs {
      [0xf000] = 0x2000, [0x13000] = PAGE, [0x11000] = PAGE, [0] = 1 << 20,
    } do
      local err = refused { gpa = gpa, size = size }
      assert.equal("EEXIST", err.code)
      contains(("0x%x bytes at 0x%x overlap slot 0, 0x4000 at 0x10000"):format(size, gpa), err)
    end
    contains("no memory at 0xf000", error_of(vm.read, vm, 0xf000, 1))
    vm:add_memory { gpa = 0x14000, size = PAGE }
    vm:add_memory { gpa = 0xf000, size = PAGE }
  end)

  it("has memory of its own in each slot", function()
    local one = vm:add_memory { gpa = 0, size = PAGE }
    local two = vm:add_memory { gpa = 2 * PAGE, size = PAGE }
    vm:fill(0, PAGE, 1)
    assert.equal(("\0"):rep(PAGE), vm:read(2 * PAGE, PAGE))
    assert.are_not.equal(one.slot, two.slot)
  end)

  describe("slot =", function()
    it("names a slot that is taken", function()
      vm:add_memory { gpa = 0, size = PAGE, slot = 7 }
      local err = refused { gpa = PAGE, size = PAGE, slot = 7 }
      assert.equal("EEXIST", err.code)
      contains("slot 7 is taken", err)
    end)

    it("names another object of the VM that may have it", function()
      local same <close> = kvm:vm_from_fd(vm.fd)
      same:add_memory { gpa = 0, size = PAGE, slot = 0 }
      contains("taken by another object of this VM", refused { gpa = PAGE, size = PAGE })
    end)

    it("names a slot that this KVM does not have", function()
      local count = kvm:check_extension("nr_memslots")
      local err = refused { gpa = 0, size = PAGE, slot = count }
      assert.equal("KVM_SET_USER_MEMORY_REGION", err.call)
      contains(("slot %d"):format(count), err)
      for _, slot in ipairs { -1, 1 << 31, 1 << 40, 0.5 } do
        contains("slot", refused { gpa = 0, size = PAGE, slot = slot })
      end
    end)

    it("is used, and skipped by memory that names none", function()
      assert.equal(1, vm:add_memory({ gpa = 0, size = PAGE, slot = 1 }).slot)
      assert.equal(0, vm:add_memory({ gpa = PAGE, size = PAGE }).slot)
      assert.equal(2, vm:add_memory({ gpa = 2 * PAGE, size = PAGE }).slot)
    end)

    it("is free again once its memory is closed", function()
      local ram = vm:add_memory { gpa = 0, size = PAGE, slot = 3 }
      ram:close()
      assert.equal(3, vm:add_memory({ gpa = 0, size = PAGE, slot = 3 }).slot)
    end)
  end)

  describe("readonly =", function()
    -- movb $0x42, (0x8000); movb (0x8000), %dl; hlt
    local code = "\xc6\x06\x00\x80\x42\x8a\x16\x00\x80\xf4"

    it("makes guest writes exits, and leaves the memory as it was", function()
      local _, machine <close>, vcpu = support.real_mode(code, { size = 0x8000 })
      machine:add_memory { gpa = 0x8000, size = PAGE, readonly = true }
      machine:write_u8(0x8000, 7)
      local writes = {}
      machine:on("mmio_write", function(gpa, value, size)
        table.insert(writes, { gpa, value, size })
      end)
      assert.equal("hlt", vcpu:run { timeout = 10 })
      assert.same({ { 0x8000, 0x42, 1 } }, writes)
      assert.equal(7, machine:read_u8(0x8000))
      assert.equal(7, vcpu.regs.rdx & 0xff)
    end)

    it("ends the run where nobody catches the write", function()
      local _, machine <close>, vcpu = support.real_mode(code, { size = 0x8000 })
      machine:add_memory { gpa = 0x8000, size = PAGE, readonly = true }
      assert.equal("mmio_write", (vcpu:run { timeout = 10 }))
      assert.equal(0x8000, vcpu.exit.phys_addr)
    end)

    it("holds code that the guest runs", function()
      local _, machine <close>, vcpu = support.real_mode("\xf4", { memory = { readonly = true } })
      assert.equal("hlt", vcpu:run { timeout = 10 })
      assert.equal(0xf4, machine:read_u8(0x1000))
    end)
  end)

  describe("shared =", function()
    it("maps a memfd that other processes could share", function()
      vm:add_memory { gpa = 0, size = 0x23000, shared = true }
      vm:write(0x22ffe, "\1\2")
      local found
      for line in io.lines("/proc/self/maps") do
        local first, last = line:match("^(%x+)%-(%x+) rw%-s .*memfd:ckvm")
        if first and tonumber(last, 16) - tonumber(first, 16) == 0x23000 then found = true end
      end
      assert.is_true(found)
      assert.equal("\1\2", vm:read(0x22ffe, 2))
    end)
  end)

  describe("hugepages =", function()
    it("refuses a size of pages that there is not", function()
      contains("hugepages: '3M' is neither 2M nor 1G",
        refused { gpa = 0, size = 2 << 20, hugepages = "3M" })
    end)

    it("refuses a size that is not whole huge pages, which could not be unmapped", function()
      contains("0x1000 bytes are not a multiple of the huge page size, 2M",
        refused { gpa = 0, size = PAGE, hugepages = "2M" })
      contains("size, 2M", refused { gpa = 0, size = 3 << 20, hugepages = "2M" })
      contains("size, 1G", refused { gpa = 0, size = 2 << 20, hugepages = "1G" })
    end)

    it("refuses a file, too", function()
      local err = refused { gpa = 0, size = 2 << 20, hugepages = true, file = "/dev/zero" }
      assert.equal("EINVAL", err.code)
      contains("there is a file, too", err)
    end)

    it("says where to reserve pages if there are too few", function()
      local free = tonumber(content("/proc/meminfo"):match("HugePages_Free:%s+(%d+)"))
      for _, shared in ipairs { false, true } do
        local size = free + 1 << 21
        local err = refused { gpa = 0, size = size, hugepages = true, shared = shared }
        assert.equal("ENOMEM", err.code)
        contains("/proc/sys/vm/nr_hugepages", err)
      end
    end)

    for pages, bytes in pairs { ["2M"] = 2 << 20, ["1G"] = 1 << 30 } do
      it("names pages of " .. pages .. " that the host has not got, and how to get some", function()
        local path = ("/sys/kernel/mm/hugepages/hugepages-%dkB"):format(bytes >> 10)
        local free = io.open(path .. "/free_hugepages")
        local size = bytes * ((free and free:read("n") or 0) + 1)
        if free then free:close() end
        for _, shared in ipairs { false, true } do
          local err = refused { gpa = 0, size = size, hugepages = pages, shared = shared }
          contains(free and path .. "/nr_hugepages" or "this host has no huge pages of " .. pages,
            err)
        end
      end)
    end

    it("is memory like any other where there are some", function()
      local free = content("/proc/meminfo"):match("HugePages_Free:%s+(%d+)")
      if tonumber(free or 0) < 1 then pending("no huge pages are reserved") end
      for _, shared in ipairs { false, true } do
        local ram = vm:add_memory { gpa = 0, size = 2 << 20, hugepages = "2M", shared = shared }
        vm:fill(0, 2 << 20, 7)
        assert.equal(7, vm:read_u8((2 << 20) - 1))
        vm:zap_memory(0, 2 << 20)
        assert.equal(7, vm:read_u8((2 << 20) - 1))
        for _, gpa in ipairs { 0, PAGE } do
          assert.equal("EINVAL", error_of(vm.zap_memory, vm, gpa, PAGE).code)
        end
        ram:close()
      end
      assert.equal(free, content("/proc/meminfo"):match("HugePages_Free:%s+(%d+)"))
    end)
  end)

  it("makes memory that is zero, and not copied by a fork", function()
    vm:add_memory { gpa = 0, size = 0x123000 }
    assert.equal(("\0"):rep(0x123000), vm:read(0, 0x123000))
    local size, flags
    for line in io.lines("/proc/self/smaps") do
      local first, last = line:match("^(%x+)%-(%x+) ")
      if first then size = tonumber(last, 16) - tonumber(first, 16) end
      if size == 0x123000 then flags = line:match("^VmFlags:(.*)") or flags end
    end
    contains(" dc ", flags .. " ")
  end)
end)

describe("a memory", function()
  before_each(setup)
  after_each(teardown)

  it("says where it is, how large, and in which slot", function()
    local ram = vm:add_memory { gpa = 0x10000, size = 0x3000, slot = 4 }
    assert.equal(0x10000, ram.gpa)
    assert.equal(0x3000, ram.size)
    assert.equal(4, ram.slot)
    contains("memory has no method or field 'data'", error_of(function() return ram.data end))
  end)

  it("is gone for host and guest once it is closed", function()
    -- movb (0x8000), %al; hlt
    local _, machine <close>, vcpu = support.real_mode("\xa0\x00\x80\xf4", { size = 0x8000 })
    local ram = machine:add_memory { gpa = 0x8000, size = PAGE }
    machine:write_u8(0x8000, 7)
    ram:close()
    contains("no memory at 0x8000", error_of(machine.read, machine, 0x8000, 1))
    machine:on("mmio_read", function() return 9 end)
    assert.equal("hlt", vcpu:run { timeout = 10 })
    assert.equal(9, vcpu.regs.rax)
  end)

  it("may be closed by a handler while the guest uses it, and put back", function()
    -- again: out %al, $1; inc %al; movb %al, (0x8000); out %al, $1; hlt
    local _, machine <close>, vcpu = support.real_mode(
      "\xe6\x01\xfe\xc0\xa2\x00\x80\xe6\x01\xf4", { size = 0x8000 })
    local ram = machine:add_memory { gpa = 0x8000, size = PAGE }
    machine:on("io_out", function()
      if ram then
        ram:close()
        ram = nil
      else
        machine:add_memory { gpa = 0x8000, size = PAGE }
      end
    end)
    local caught
    machine:on("mmio_write", function(gpa, value) caught = { gpa, value } end)
    assert.equal("hlt", vcpu:run { timeout = 10 })
    assert.same({ 0x8000, 1 }, caught)
    assert.equal(0, machine:read_u8(0x8000))
  end)

  it("can be added anew where it was, with nothing of the old one in it", function()
    local ram = vm:add_memory { gpa = 0, size = PAGE }
    vm:fill(0, PAGE, 0xff)
    ram:close()
    vm:add_memory { gpa = 0, size = PAGE }
    assert.equal(("\0"):rep(PAGE), vm:read(0, PAGE))
  end)
end)

describe("memory under random calls", function()
  before_each(setup)
  after_each(teardown)

  it("is what a list of bytes would be", function()
    local seed = 20240229
    math.randomseed(seed)
    local PAGES <const> = 12
    local model, slots = {}, {} -- page -> { byte } or nil; gpa -> memory

    local function pages_of(ram) return ram.gpa // PAGE, (ram.gpa + ram.size) // PAGE - 1 end
    local function covered(gpa, length)
      for at = gpa, gpa + length - 1 do
        if not model[at // PAGE] then return false end
      end
      return true
    end
    local function expected(gpa, length)
      local bytes = {}
      for at = gpa, gpa + length - 1 do
        bytes[#bytes + 1] = string.char(model[at // PAGE].bytes[at] or 0)
      end
      return table.concat(bytes)
    end

    local steps = {
      function()
        local first = math.random(0, PAGES - 1)
        local last = first + math.random(0, 3)
        local ok, ram = pcall(vm.add_memory, vm, {
          gpa = first * PAGE, size = (last - first + 1) * PAGE, shared = math.random(2) == 1,
        })
        local fits = true
        for page = first, last do fits = fits and not model[page] end
        assert(ok == fits, ram)
        if not ok then return end
        local bytes = {}
        for page = first, last do model[page] = { bytes = bytes } end
        table.insert(slots, ram)
      end,
      function()
        if #slots == 0 then return end
        local ram = table.remove(slots, math.random(#slots))
        local first, last = pages_of(ram)
        for page = first, last do model[page] = nil end
        ram:close()
      end,
      function()
        if #slots == 0 then return end
        local ram = slots[math.random(#slots)]
        local first, last = pages_of(ram)
        local to = math.random(0, PAGES - 1)
        local old = model[first].bytes
        local fits = true
        for page = to, to + last - first do
          fits = fits and (not model[page] or model[page].bytes == old)
        end
        local ok, err = pcall(vm.move_memory, vm, ram, to * PAGE)
        assert(ok == fits, err)
        if not ok then return end
        local bytes = {}
        for at, byte in pairs(old) do bytes[at + (to - first) * PAGE] = byte end
        for page = first, last do model[page] = nil end
        for page = to, to + last - first do model[page] = { bytes = bytes } end
      end,
      function()
        local gpa, length = math.random(0, PAGES * PAGE), math.random(0, 3)
        if math.random(2) == 1 then gpa = math.random(0, PAGES) * PAGE - math.random(0, 2) end
        gpa = math.max(gpa, 0)
        local text = ("abc"):sub(1, length)
        local ok = pcall(vm.write, vm, gpa, text)
        assert.equal(covered(gpa, length), ok)
        for i = 1, ok and length or 0 do
          model[(gpa + i - 1) // PAGE].bytes[gpa + i - 1] = text:byte(i)
        end
      end,
      function()
        local gpa, length = math.random(0, PAGES) * PAGE - math.random(0, 8), math.random(0, 32)
        gpa = math.max(gpa, 0)
        local ok, text = pcall(vm.read, vm, gpa, length)
        assert.equal(covered(gpa, length), ok)
        if ok then assert.equal(expected(gpa, length), text) end
      end,
    }
    for step = 1, 3000 do
      local ok, err = pcall(steps[math.random(#steps)])
      if not ok then error(("seed %d, step %d: %s"):format(seed, step, tostring(err))) end
    end
  end)
end)

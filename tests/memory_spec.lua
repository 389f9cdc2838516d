-- Guest memory: adding, moving and closing it; the host's access to it; the dirty log.

local ckvm = require "ckvm"
local support = require "support"
local x86 = require "ckvm.x86"

local contains, error_of = support.contains, support.error_of

local PAGE <const> = 0x1000

local kvm, vm

local function setup()
  support.need_kvm()
  kvm = ckvm.open()
  vm = kvm:create_vm()
end

local function teardown()
  if vm then vm:close() end
  if kvm then kvm:close() end
  kvm, vm = nil, nil
end

-- A file with that text, removed at the end of the test by the function it is given to.
local function new_file(text)
  local name = os.tmpname()
  local file <close> = assert(io.open(name, "wb"))
  file:write(text)
  return name, function() os.remove(name) end
end

local function content(name)
  local file <close> = assert(io.open(name, "rb"))
  return file:read("a")
end

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

  describe("file =", function()
    it("says that a file is missing, and which", function()
      local err = refused { gpa = 0, size = PAGE, file = "/dev/no-such-file" }
      assert.equal("open", err.call)
      assert.equal("ENOENT", err.code)
      contains("/dev/no-such-file", err)
    end)

    it("says which file cannot be mapped", function()
      for _, name in ipairs { "/dev", "/dev/null", "/proc/self/mem" } do
        contains(name, refused { gpa = 0, size = PAGE, file = name })
        contains(name, refused { gpa = 0, size = PAGE, file = name, shared = true })
      end
    end)

    it("does not wait for somebody who writes to a pipe", function()
      local name, remove = new_file("")
      finally(remove)
      os.execute(("rm %s && mkfifo %s"):format(name, name))
      local status, output, errors = support.run(([[
local vm = require "ckvm".open():create_vm()
print(pcall(vm.add_memory, vm, { gpa = 0, size = 4096, file = %q }))]]):format(name))
      assert.equal("", errors)
      contains("false\t", output)
      contains(name, output)
      assert.equal(0, status)
    end)

    it("names a file that is too short, and what it was to hold", function()
      local name, remove = new_file(("x"):rep(PAGE))
      finally(remove)
      for _, shared in ipairs { false, true } do
        local err = refused { gpa = 0, size = 2 * PAGE, file = name, shared = shared }
        contains(name, err)
        contains("0x2000", err)
        contains("shorter", err)
        err = refused { gpa = 0, size = PAGE, file = name, offset = PAGE, shared = shared }
        contains("0x1000 bytes from 0x1000 on", err)
        refused { gpa = 0, size = PAGE, file = name, offset = 1 << 50, shared = shared }
        refused { gpa = 0, size = PAGE, file = name, offset = math.maxinteger - PAGE + 1 }
        refused { gpa = 0, size = 1 << 62, file = name }
      end
    end)

    it("refuses an empty file", function()
      local name, remove = new_file("")
      finally(remove)
      contains("shorter", refused { gpa = 0, size = PAGE, file = name })
    end)

    it("refuses an offset that is none, or of nothing", function()
      contains("offset: 0x1 is not a multiple",
        refused { gpa = 0, size = PAGE, file = "/dev/zero", offset = 1 })
      contains("offset: -4096 is not",
        refused { gpa = 0, size = PAGE, file = "/dev/zero", offset = -PAGE })
      contains("offset: of what?", refused { gpa = 0, size = PAGE, offset = PAGE })
    end)

    it("has the file's bytes, and zeros to the end of its last page", function()
      local name, remove = new_file(("x"):rep(PAGE) .. "tail")
      finally(remove)
      vm:add_memory { gpa = 0, size = 2 * PAGE, file = name }
      assert.equal("xxtail\0\0", vm:read(PAGE - 2, 8))
      assert.equal(0, vm:read_u8(2 * PAGE - 1))
    end)

    it("begins at the offset", function()
      local name, remove = new_file(("a"):rep(PAGE) .. ("b"):rep(PAGE) .. ("c"):rep(PAGE))
      finally(remove)
      vm:add_memory { gpa = 0, size = PAGE, file = name, offset = PAGE }
      assert.equal(("b"):rep(PAGE), vm:read(0, PAGE))
    end)

    it("keeps writes to itself, unless it is shared", function()
      local name, remove = new_file(("x"):rep(PAGE))
      finally(remove)
      vm:add_memory { gpa = 0, size = PAGE, file = name }
      vm:write(0, "private")
      vm:fill(16, 16, 0)
      assert.equal("privatex", vm:read(0, 8))
      assert.equal(("x"):rep(PAGE), content(name))
    end)

    it("writes to the file if it is shared: the host's stores and the guest's", function()
      local name, remove = new_file(("x"):rep(2 * PAGE))
      finally(remove)
      -- movb $0x42, (0x8000); hlt
      local _, machine <close>, vcpu = support.real_mode("\xc6\x06\x00\x80\x42\xf4",
        { size = 0x8000 })
      machine:add_memory { gpa = 0x8000, size = PAGE, file = name, offset = PAGE, shared = true }
      machine:write(0x8001, "host")
      machine:fill(0x8ffe, 2, 0x2e)
      assert.equal("hlt", vcpu:run { timeout = 10 })
      local text = content(name)
      assert.equal(("x"):rep(PAGE) .. "Bhostxxx", text:sub(1, PAGE + 8))
      assert.equal("xx..", text:sub(-4))
    end)

    it("is never written if it is readonly, too: the host's stores raise", function()
      local name, remove = new_file(("x"):rep(PAGE))
      finally(remove)
      vm:add_memory { gpa = 0, size = PAGE, file = name, shared = true, readonly = true }
      assert.equal("xxxx", vm:read(0, 4))
      for _, err in ipairs {
        error_of(vm.write, vm, 0, "no"), error_of(vm.fill, vm, 0, PAGE, 0),
        error_of(vm.write_u64, vm, 0, 0),
      } do
        contains("at 0x0: 0x0: the file behind it is mapped read-only", err)
      end
      assert.equal(("x"):rep(PAGE), content(name))
    end)

    it("may shrink later: the host's access raises, and nothing crashes", function()
      local name, remove = new_file(("x"):rep(4 * PAGE))
      finally(remove)
      for _, shared in ipairs { false, true } do
        local file <close> = assert(io.open(name, "wb"))
        file:write(("x"):rep(4 * PAGE))
        file:flush()
        local ram = vm:add_memory { gpa = 0, size = 4 * PAGE, file = name, shared = shared }
        assert.equal("x", vm:read(PAGE, 1))
        io.open(name, "wb"):close()
        for call, err in pairs {
          ["read of 16384 bytes at 0x0: 0x0"] = error_of(vm.read, vm, 0, 4 * PAGE),
          ["write of 1 bytes at 0x1000: 0x1000"] = error_of(vm.write, vm, PAGE, "x"),
          ["fill of 16384 bytes at 0x0: 0x0"] = error_of(vm.fill, vm, 0, 4 * PAGE, 1),
          ["read of 1 bytes at 0x1001: 0x1001"] = error_of(vm.read_u8, vm, PAGE + 1),
          ["write of 8 bytes at 0x2000: 0x2000"] = error_of(vm.write_u64, vm, 2 * PAGE, 1),
        } do
          assert.equal("EFAULT", err.code, call)
          contains("file: EFAULT: " .. call .. ": the file behind it has become too short", err)
        end
        vm:zap_memory(0, 4 * PAGE)
        ram:close()
      end
    end)

    it("may shrink later: what there is can be used, and errors name where it ends", function()
      local name, remove = new_file(("x"):rep(2 * PAGE))
      finally(remove)
      for _, shared in ipairs { false, true } do
        io.open(name, "wb"):write(("x"):rep(4 * PAGE)):close()
        local low = vm:add_memory { gpa = 0, size = PAGE }
        local ram = vm:add_memory { gpa = PAGE, size = 4 * PAGE, file = name, shared = shared,
          log_dirty = true }
        local dirty = vm:dirty_pages(ram)
        io.open(name, "wb"):write(("x"):rep(2 * PAGE)):close()
        for _, err in ipairs {
          error_of(vm.read, vm, PAGE - 5, 4 * PAGE),
          error_of(vm.write, vm, PAGE - 5, ("y"):rep(4 * PAGE)),
          error_of(vm.fill, vm, PAGE - 5, 4 * PAGE, 0x7a),
        } do
          contains(" of 16384 bytes at 0xffb: 0x3000: the file behind it has become too short",
            err)
        end
        assert.equal(("z"):rep(2 * PAGE), vm:read(PAGE, 2 * PAGE))
        vm:zap_memory(PAGE, 4 * PAGE)
        assert.equal("z", vm:read(3 * PAGE - 1, 1))
        assert.same(dirty, vm:dirty_pages(ram))
        ram:close()
        low:close()
      end
    end)

    it("may shrink later: so it is by virtual address", function()
      local name, remove = new_file(("x"):rep(2 * PAGE))
      finally(remove)
      local _, machine <close>, vcpu = support.real_mode("\xf4", { size = 0x8000 })
      machine:add_memory { gpa = 0x8000, size = 2 * PAGE, file = name, shared = true }
      io.open(name, "wb"):write(("x"):rep(PAGE)):close()
      for call, err in pairs {
        ["read at 0x8010"] = error_of(vcpu.read, vcpu, 0x8010, PAGE),
        ["write at 0x8fff"] = error_of(vcpu.write, vcpu, 0x8fff, "yy"),
        ["read_cstring at 0x8000"] = error_of(vcpu.read_cstring, vcpu, 0x8000, 2 * PAGE),
      } do
        assert.equal("EFAULT", err.code, call)
        contains(call .. ": 0x9000: the file behind it has become too short", err)
      end
      assert.equal("y", vcpu:read(0x8fff, 1))
    end)

    it("may shrink later: the guest's access ends the run", function()
      local name, remove = new_file(("\xf4"):rep(PAGE))
      finally(remove)
      local _, machine <close>, vcpu = support.real_mode("\xa0\x00\x80\xf4", { size = 0x8000 })
      machine:add_memory { gpa = 0x8000, size = PAGE, file = name, shared = true }
      io.open(name, "wb"):close()
      -- EFAULT of KVM_RUN, or what a KVM in software makes of it
      local _, why = pcall(vcpu.run, vcpu, { timeout = 10 })
      assert.are_not.equal("hlt", why)
      assert.equal(0, vcpu.regs.rax)
    end)

    it("may be removed, and stays mapped", function()
      local name = new_file(("x"):rep(PAGE))
      vm:add_memory { gpa = 0, size = PAGE, file = name, shared = true }
      os.remove(name)
      vm:write(0, "y")
      assert.equal("yx", vm:read(0, 2))
    end)
  end)

  describe("hugepages =", function()
    it("refuses a size of pages that there is not", function()
      contains("hugepages: '3M' is neither 2M nor 1G",
        refused { gpa = 0, size = 2 << 20, hugepages = "3M" })
    end)

    it("refuses a size that is not whole huge pages, which could not be unmapped", function()
      contains("size", refused { gpa = 0, size = PAGE, hugepages = "2M" })
      contains("size", refused { gpa = 0, size = 3 << 20, hugepages = "2M" })
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

describe("vm:move_memory", function()
  local ram
  before_each(function()
    setup()
    ram = vm:add_memory { gpa = 0x10000, size = 0x4000 }
    vm:write(0x10000, "first")
    vm:write(0x13ffc, "last")
  end)
  after_each(teardown)

  local function stayed()
    assert.equal(0x10000, ram.gpa)
    assert.equal("first", vm:read(0x10000, 5))
    assert.equal("last", vm:read(0x13ffc, 4))
    contains("no memory at 0x14000", error_of(vm.read, vm, 0x13fff, 2))
  end

  it("refuses what is not a memory of this VM", function()
    local other <close> = kvm:create_vm()
    local foreign = other:add_memory { gpa = 0, size = PAGE }
    contains("memory of another VM", error_of(vm.move_memory, vm, foreign, PAGE))
    contains("memory expected", error_of(vm.move_memory, vm, vm, PAGE))
    contains("memory expected", error_of(vm.move_memory, vm))
    stayed()
  end)

  it("refuses what is not an address of a page, and stays", function()
    for _, gpa in ipairs { "0", true, {}, 0.5, 2 ^ 63, 1, -1, PAGE + 1 } do
      error_of(vm.move_memory, vm, ram, gpa)
    end
    error_of(vm.move_memory, vm, ram)
    contains("0x1 is not a multiple", error_of(vm.move_memory, vm, ram, 1))
    stayed()
  end)

  it("refuses to go past 2^64, and past the kernel's limit, and stays", function()
    contains("0x4000 bytes at 0xfffffffffffff000 do not fit",
      error_of(vm.move_memory, vm, ram, -PAGE))
    for _, gpa in ipairs { -0x4000, 1 << 62, math.mininteger } do
      local err = error_of(vm.move_memory, vm, ram, gpa)
      assert.equal("KVM_SET_USER_MEMORY_REGION", err.call)
      contains(("0x%x"):format(gpa), err)
    end
    stayed()
  end)

  it("names both memories that would overlap, and stays", function()
    vm:add_memory { gpa = 0x20000, size = PAGE }
    local err = error_of(vm.move_memory, vm, ram, 0x1d000)
    assert.equal("EEXIST", err.code)
    contains("0x4000 bytes at 0x1d000 overlap slot 1, 0x1000 at 0x20000", err)
    stayed()
  end)

  it("moves it with its contents", function()
    vm:move_memory(ram, 0x40000)
    assert.equal(0x40000, ram.gpa)
    assert.equal("first", vm:read(0x40000, 5))
    assert.equal("last", vm:read(0x43ffc, 4))
    contains("no memory at 0x10000", error_of(vm.read, vm, 0x10000, 1))
    vm:add_memory { gpa = 0x10000, size = 0x4000 }
  end)

  it("moves it by less than its size, and to where it is", function()
    vm:move_memory(ram, 0x11000)
    assert.equal("first", vm:read(0x11000, 5))
    vm:move_memory(ram, 0x10000)
    vm:move_memory(ram, 0x10000)
    stayed()
  end)

  it("keeps the order of its neighbours", function()
    vm:add_memory { gpa = 0x20000, size = PAGE }
    vm:fill(0x20000, PAGE, 0x2e)
    vm:move_memory(ram, 0x21000)
    assert.equal("..first", vm:read(0x20ffe, 7))
    vm:move_memory(ram, 0x1c000)
    assert.equal("last..", vm:read(0x1fffc, 6))
  end)

  it("moves it for the guest, too", function()
    -- movb (0x8000), %al; hlt
    local _, machine <close>, vcpu = support.real_mode("\xa0\x00\x80\xf4", { size = 0x8000 })
    local more = machine:add_memory { gpa = 0x9000, size = PAGE }
    machine:write_u8(0x9000, 7)
    machine:move_memory(more, 0x8000)
    assert.equal("hlt", vcpu:run { timeout = 10 })
    assert.equal(7, vcpu.regs.rax)
  end)

  it("keeps its log", function()
    -- movb $1, (0x8000); hlt
    local _, machine <close>, vcpu = support.real_mode("\xc6\x06\x00\x80\x01\xf4",
      { size = 0x8000 })
    local logged = machine:add_memory { gpa = 0x8000, size = PAGE, log_dirty = true }
    assert.equal("hlt", vcpu:run { timeout = 10 })
    machine:move_memory(logged, 0x9000)
    assert.same({ 0x9000 }, machine:dirty_pages(logged))
    machine:move_memory(logged, 0x8000)
    assert.same({}, machine:dirty_pages(logged))
    vcpu:set_regs { rip = 0x1000 }
    assert.equal("hlt", vcpu:run { timeout = 10 })
    assert.same({ 0x8000 }, machine:dirty_pages(logged))
  end)
end)

describe("vm:zap_memory", function()
  before_each(setup)
  after_each(teardown)

  it("keeps what is in the memory, of any kind and across slots", function()
    local name, remove = new_file(("f"):rep(PAGE))
    vm:add_memory { gpa = 0, size = 2 * PAGE }
    vm:add_memory { gpa = 2 * PAGE, size = 2 * PAGE, shared = true }
    vm:add_memory { gpa = 4 * PAGE, size = PAGE, file = name }
    vm:add_memory { gpa = 5 * PAGE, size = PAGE, file = name, shared = true }
    vm:add_memory { gpa = 6 * PAGE, size = PAGE, file = name, shared = true, readonly = true }
    for page = 0, 5 do vm:write(page * PAGE, ("page %d"):format(page)) end
    vm:zap_memory(0, 7 * PAGE)
    vm:zap_memory(PAGE, PAGE)
    for page = 0, 5 do
      assert.equal(("page %d"):format(page), vm:read(page * PAGE, 6))
      vm:write_u8(page * PAGE, 0x70)
    end
    assert.equal("page 5", vm:read(6 * PAGE, 6))
    remove()
  end)

  it("refuses what is no memory, or no whole pages of it", function()
    vm:add_memory { gpa = PAGE, size = PAGE }
    contains("no memory at 0x2000", error_of(vm.zap_memory, vm, PAGE, 2 * PAGE))
    contains("no memory at 0x0", error_of(vm.zap_memory, vm, 0, PAGE))
    contains("no memory at 0xfffffffffffff000", error_of(vm.zap_memory, vm, -PAGE, PAGE))
    contains("gpa: 0x1001 is not a multiple", error_of(vm.zap_memory, vm, PAGE + 1, PAGE))
    contains("size: 0x1 is not a multiple", error_of(vm.zap_memory, vm, PAGE, 1))
    contains("no pages", error_of(vm.zap_memory, vm, PAGE, 0))
    contains("no memory at", error_of(vm.zap_memory, vm, PAGE, math.maxinteger - PAGE + 1))
    vm:close()
    contains("VM is closed", error_of(vm.zap_memory, vm, PAGE, PAGE))
  end)

  -- Ring 3 is mapped on every KVM; where ring 0 is emulated, nothing of it is.
  for _, shared in ipairs { false, true } do
    local kind <const> = shared and "shared" or "private"
    it("has the guest map " .. kind .. " memory anew", function()
      vm:add_memory { gpa = 0, size = 0x10000, shared = shared }
      local cr3 = x86.page_tables(vm, 0x2000, {
        { va = 0, size = 0x2000, user = true }, { va = 0x10000, size = PAGE, user = true },
      })
      -- inc (0x1800); mov (0x1800), %al; mov %al, (0x10000); jmp back
      vm:write(0x1000, "\xfe\x04\x25\x00\x18\x00\x00\x8a\x04\x25\x00\x18\x00\x00"
        .. "\x88\x04\x25\x00\x00\x01\x00\xeb\xe9")
      local vcpu, stats, seen = vm:create_vcpu(0), vm:get_stats_fd(), {}
      x86.enter(vcpu, "user", { rip = 0x1000, cr3 = cr3 })
      local function mapped()
        local now = stats:read()
        return now.pages_4k + now.pages_2m + now.pages_1g
      end
      for i = 1, 3 do
        assert.equal("mmio_write", (vcpu:run(support.LIMITS)))
        seen[i] = vcpu.exit.data
        local before = mapped()
        vm:zap_memory(0x1000, PAGE)
        assert(mapped() < before, ("%d pages, of %d before"):format(mapped(), before))
      end
      assert.same({ 1, 2, 3 }, seen)
    end)
  end
end)

describe("access by the host", function()
  before_each(function()
    setup()
    -- 0x0-0x1fff in two slots, added backwards; a hole; 0x3000-0x3fff
    vm:add_memory { gpa = 0x3000, size = PAGE }
    vm:add_memory { gpa = PAGE, size = PAGE }
    vm:add_memory { gpa = 0, size = PAGE }
  end)
  after_each(teardown)

  it("refuses what is not an address", function()
    for _, gpa in ipairs { "0", true, {}, 0.5, 2 ^ 63, 0 / 0 } do
      error_of(vm.read, vm, gpa, 1)
      error_of(vm.write, vm, gpa, "x")
      error_of(vm.fill, vm, gpa, 1)
      error_of(vm.read_u32, vm, gpa)
      error_of(vm.write_u32, vm, gpa, 1)
    end
    contains("address expected, got no value", error_of(vm.read, vm))
  end)

  it("refuses what is not a length", function()
    for _, length in ipairs { "x", true, {}, 0.5, 2 ^ 63, 0 / 0 } do
      error_of(vm.read, vm, 0, length)
      error_of(vm.fill, vm, 0, length)
    end
    error_of(vm.read, vm, 0)
    error_of(vm.fill, vm, 0)
  end)

  it("refuses a negative length, and names it", function()
    for _, length in ipairs { -1, math.mininteger } do
      contains(("length %d is negative"):format(length), error_of(vm.read, vm, 0, length))
      contains(("length %d is negative"):format(length), error_of(vm.fill, vm, 0, length))
    end
  end)

  it("refuses a huge length, and names what is missing", function()
    for _, length in ipairs { math.maxinteger, 1 << 62, 1 << 40, 0x2001 } do
      contains(("read of %d bytes at 0x0: no memory at 0x2000"):format(length),
        error_of(vm.read, vm, 0, length))
      contains(("fill of %d bytes at 0x0: no memory at 0x2000"):format(length),
        error_of(vm.fill, vm, 0, length))
    end
  end)

  it("refuses bytes that are no string", function()
    for _, data in ipairs { true, {}, print, 0x90 } do
      contains("string expected, got " .. type(data), error_of(vm.write, vm, 0, data))
    end
    error_of(vm.write, vm, 0)
  end)

  it("refuses to fill with what is not a byte", function()
    for _, byte in ipairs { -1, 256, "1", 0.5, {} } do error_of(vm.fill, vm, 0, 1, byte) end
  end)

  it("refuses to touch a hole, from its side or across it, and changes nothing", function()
    contains("write of 2 bytes at 0x1fff: no memory at 0x2000",
      error_of(vm.write, vm, 0x1fff, "ab"))
    contains("write of 8192 bytes at 0x1fff", error_of(vm.write, vm, 0x1fff, ("a"):rep(0x2000)))
    contains("no memory at 0x2fff", error_of(vm.write, vm, 0x2fff, "ab"))
    contains("no memory at 0x4000", error_of(vm.fill, vm, 0x3ffe, 4, 1))
    contains("no memory at 0x2000", error_of(vm.fill, vm, 0, 0x4000, 1))
    assert.equal(("\0"):rep(0x2000), vm:read(0, 0x2000))
    assert.equal(("\0"):rep(PAGE), vm:read(0x3000, PAGE))
  end)

  it("refuses the ends of the address space", function()
    for _, length in ipairs { 1, 2, PAGE, math.maxinteger } do
      for _, gpa in ipairs { -1, -2, -PAGE, math.mininteger, math.maxinteger } do
        contains(("no memory at 0x%x"):format(gpa), error_of(vm.read, vm, gpa, length))
        contains(("no memory at 0x%x"):format(gpa), error_of(vm.fill, vm, gpa, length))
      end
    end
    contains("no memory at 0xffffffffffffffff", error_of(vm.write, vm, -1, "ab"))
    contains("no memory at 0xfffffffffffffffc", error_of(vm.read_u64, vm, -4))
  end)

  it("takes no bytes anywhere", function()
    for _, gpa in ipairs { 0, 0xfff, 0x2000, -1, math.mininteger } do
      assert.equal("", vm:read(gpa, 0))
      vm:write(gpa, "")
      vm:fill(gpa, 0, 0xff)
    end
    assert.equal(("\0"):rep(0x2000), vm:read(0, 0x2000))
  end)

  it("goes across slots that touch", function()
    local text = ("0123456789abcdef"):rep(0x200)
    vm:write(0, text)
    assert.equal(text, vm:read(0, 0x2000))
    assert.equal(text:sub(0xff1, 0x1010), vm:read(0xff0, 0x20))
    vm:write(0xffe, "....")
    assert.equal("d....2", vm:read(0xffd, 6))
    vm:fill(0xfff, 2, 0x2a)
    assert.equal("d.**.2", vm:read(0xffd, 6))
    vm:fill(0, 0x2000)
    assert.equal(("\0"):rep(0x2000), vm:read(0, 0x2000))
  end)

  it("goes across memory of different kinds", function()
    local name, remove = new_file(("x"):rep(PAGE))
    finally(remove)
    vm:add_memory { gpa = 0x4000, size = PAGE, file = name, shared = true }
    vm:add_memory { gpa = 0x5000, size = PAGE, shared = true }
    vm:add_memory { gpa = 0x6000, size = PAGE, readonly = true, log_dirty = true }
    local text = ("0123456789abcdef"):rep(0x400)
    vm:write(0x3000, text)
    assert.equal(text, vm:read(0x3000, 0x4000))
    vm:fill(0x3800, 0x3000, 0x2e)
    assert.equal(text:sub(1, 0x800) .. ("."):rep(0x3000) .. text:sub(-0x800),
      vm:read(0x3000, 0x4000))
    assert.equal(("."):rep(PAGE), content(name))
  end)

  it("reaches the last byte, and no more", function()
    vm:write(0x3fff, "z")
    assert.equal("z", vm:read(0x3fff, 1))
    assert.equal(0x7a, vm:read_u8(0x3fff))
    contains("no memory at 0x4000", error_of(vm.read_u16, vm, 0x3fff))
  end)

  it("reads bytes of all values", function()
    local bytes = {}
    for byte = 0, 255 do bytes[byte + 1] = string.char(byte) end
    local text = table.concat(bytes)
    vm:write(0x3000, text)
    assert.equal(text, vm:read(0x3000, 256))
  end)

  it("takes floats that are integers", function()
    vm:write(1.0, "abc")
    assert.equal("bc", vm:read(2.0, 2.0))
  end)
end)

describe("the typed accessors", function()
  before_each(function()
    setup()
    vm:add_memory { gpa = 0, size = PAGE }
    vm:add_memory { gpa = PAGE, size = PAGE }
  end)
  after_each(teardown)

  for bits, last in pairs { [8] = 0xff, [16] = 0xffff, [32] = 0xffffffff } do
    local read, write = "read_u" .. bits, "write_u" .. bits

    it(("write_u%d refuses what does not fit, and writes nothing"):format(bits), function()
      for _, value in ipairs {
        last + 1, -(last >> 1) - 2, math.maxinteger, math.mininteger, 1 << 63,
      } do
        contains(("%d does not fit in %d bits"):format(value, bits),
          error_of(vm[write], vm, 0, value))
      end
      for _, value in ipairs { 0.5, true, "x", {}, 2 ^ 64 } do error_of(vm[write], vm, 0, value) end
      error_of(vm[write], vm, 0)
      assert.equal(("\0"):rep(16), vm:read(0, 16))
    end)

    it(("write_u%d takes signed and unsigned, read_u%d is unsigned"):format(bits, bits),
      function()
        for value, expected in pairs {
          [0] = 0, [1] = 1, [last] = last, [-1] = last, [-(last >> 1) - 1] = (last >> 1) + 1,
          [last >> 1] = last >> 1,
        } do
          vm[write](vm, 8, value)
          assert.equal(expected, vm[read](vm, 8))
        end
        assert.equal(("\0"):rep(8), vm:read(0, 8))
        assert.equal(("\0"):rep(8), vm:read(8 + bits // 8, 8))
      end)
  end

  it("write_u64 takes every integer, and read_u64 returns it", function()
    for _, value in ipairs { 0, -1, math.maxinteger, math.mininteger, 0x0123456789abcdef } do
      vm:write_u64(0, value)
      assert.equal(value, vm:read_u64(0))
    end
    for _, value in ipairs { 0.5, 2 ^ 63, 2 ^ 64, 0 / 0, true } do
      error_of(vm.write_u64, vm, 0, value)
    end
    assert.equal(0x0123456789abcdef, vm:read_u64(0))
  end)

  it("are little endian, at any address, and across slots", function()
    for _, gpa in ipairs { 0, 1, 7, PAGE - 1, PAGE - 2, PAGE - 7 } do
      vm:write_u64(gpa, 0x0807060504030201)
      assert.equal("\1\2\3\4\5\6\7\8", vm:read(gpa, 8))
      assert.equal(1, vm:read_u8(gpa))
      assert.equal(0x0201, vm:read_u16(gpa))
      assert.equal(0x04030201, vm:read_u32(gpa))
      vm:write_u32(gpa, 0x14131211)
      vm:write_u16(gpa + 4, 0x2221)
      vm:write_u8(gpa + 6, 0x31)
      assert.equal("\x11\x12\x13\x14\x21\x22\x31\x08", vm:read(gpa, 8))
    end
  end)

  it("refuse an address outside of memory, and name it", function()
    contains("read of 4 bytes at 0x1ffe: no memory at 0x2000", error_of(vm.read_u32, vm, 0x1ffe))
    contains("write of 8 bytes at 0x1ff9: no memory at 0x2000",
      error_of(vm.write_u64, vm, 0x1ff9, 1))
    assert.equal(("\0"):rep(7), vm:read(0x1ff9, 7))
  end)
end)

describe("vm:dirty_pages", function()
  -- A guest with 200 logged pages at 0x100000, and a function that has it write to some of them.
  local function logged_guest()
    -- movb %al, (0); hlt
    local _, machine, vcpu = support.real_mode("\xa2\x00\x00\xf4", { size = 0x8000 })
    local ram = machine:add_memory { gpa = 0x100000, size = 200 * PAGE, log_dirty = true }
    local function touch(...)
      for _, page in ipairs { ... } do
        vcpu:set_sregs { ds = { base = 0x100000 + page * PAGE } }
        vcpu:set_regs { rip = 0x1000 }
        assert.equal("hlt", vcpu:run { timeout = 10 })
      end
    end
    return machine, ram, touch, vcpu
  end
  local function pages(...)
    local list = {}
    for i, page in ipairs { ... } do list[i] = 0x100000 + page * PAGE end
    return list
  end

  before_each(setup)
  after_each(teardown)

  it("refuses memory without a log", function()
    local ram = vm:add_memory { gpa = 0, size = PAGE }
    contains("without log_dirty", error_of(vm.dirty_pages, vm, ram))
  end)

  it("refuses what is not a memory of this VM", function()
    local other <close> = kvm:create_vm()
    local foreign = other:add_memory { gpa = 0, size = PAGE, log_dirty = true }
    contains("memory of another VM", error_of(vm.dirty_pages, vm, foreign))
    contains("memory expected", error_of(vm.dirty_pages, vm, vm))
    contains("memory expected", error_of(vm.dirty_pages, vm))
  end)

  it("is empty before the guest has run, whatever the host wrote", function()
    local ram = vm:add_memory { gpa = 0, size = 3 * PAGE, log_dirty = true }
    vm:fill(0, 3 * PAGE, 1)
    assert.same({}, vm:dirty_pages(ram))
  end)

  it("has the address of each page that was written once, in order", function()
    local machine <close>, ram, touch = logged_guest()
    touch(130, 0, 63, 64, 0, 199, 127, 128, 130)
    assert.same(pages(0, 63, 64, 127, 128, 130, 199), machine:dirty_pages(ram))
  end)

  it("has only what was written since the last call", function()
    local machine <close>, ram, touch = logged_guest()
    touch(1, 2)
    assert.same(pages(1, 2), machine:dirty_pages(ram))
    assert.same({}, machine:dirty_pages(ram))
    touch(2, 3)
    assert.same(pages(2, 3), machine:dirty_pages(ram))
    touch(3)
    assert.same(pages(3), machine:dirty_pages(ram))
    assert.same({}, machine:dirty_pages(ram))
  end)

  it("has no page that was only read", function()
    local machine <close>, ram, _, vcpu = logged_guest()
    machine:write(0x1000, "\xa0\x00\x00\xf4") -- movb (0), %al; hlt
    vcpu:set_sregs { ds = { base = 0x100000 } }
    assert.equal("hlt", vcpu:run { timeout = 10 })
    assert.same({}, machine:dirty_pages(ram))
  end)

  it("keeps the logs of two memories apart", function()
    local machine <close>, ram, touch = logged_guest()
    local more = machine:add_memory {
      gpa = 0x100000 + 200 * PAGE, size = PAGE, log_dirty = true, shared = true,
    }
    touch(5, 200)
    assert.same(pages(200), machine:dirty_pages(more))
    assert.same(pages(5), machine:dirty_pages(ram))
  end)

  it("forgets with the memory", function()
    local machine <close>, ram, touch = logged_guest()
    touch(1)
    ram:close()
    contains("memory is closed", error_of(machine.dirty_pages, machine, ram))
    local again = machine:add_memory { gpa = 0x100000, size = 200 * PAGE, log_dirty = true }
    assert.same({}, machine:dirty_pages(again))
  end)

  it("can be asked by a handler", function()
    local machine <close>, ram, touch = logged_guest()
    machine:write(0x1000, "\xa2\x00\x00\xe6\x01\xf4") -- movb %al, (0); out %al, $1; hlt
    local seen
    machine:on("io_out", function() seen = machine:dirty_pages(ram) end)
    touch(9)
    assert.same(pages(9), seen)
    assert.same({}, machine:dirty_pages(ram))
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

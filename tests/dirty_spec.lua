-- The dirty log, whichever way the kernel keeps it: bitmaps that it clears, bitmaps that are
-- cleared by request, and rings.

local ckvm = require "ckvm"
local support = require "support"
local x86 = require "ckvm.x86"

local contains, error_of, LIMITS = support.contains, support.error_of, support.LIMITS

local PAGE <const> = 0x1000
local CODE <const> = 0x1000
local TABLES <const> = 0x4000
local RAM <const> = 0x200000 -- what is logged: 1024 pages from here on
local PAGES <const> = 1024

-- Stores a byte to ecx pages from rdi on: 1: movb $1, (%rdi); add $0x1000, %rdi; dec %ecx;
-- jnz 1b; hlt.
local STORE <const> = "\xc6\x07\x01\x48\x81\xc7\0\x10\0\0\xff\xc9\x75\xf2\xf4"

-- A VM with its log set up in that way; skips the test where this KVM has not got it.
local function create_vm(kvm, mode)
  local vm = kvm:create_vm()
  if mode.cap then
    if vm:check_extension(mode.cap) < mode.value then
      vm:close()
      pending("no " .. mode.cap)
    end
    vm:enable_cap(mode.cap, mode.value)
  end
  if mode.besides and vm:check_extension(mode.besides) ~= 0 then vm:enable_cap(mode.besides, 1) end
  return vm
end

local MODES <const> = {
  { name = "the kernel's bitmap" },
  { name = "a bitmap cleared by request", cap = "manual_dirty_log_protect2", value = 1 },
  { name = "one that is full at first", cap = "manual_dirty_log_protect2", value = 3, full = true },
  { name = "a ring", cap = "dirty_log_ring", value = PAGE, ring = true },
  { name = "a ring with ordered accesses", cap = "dirty_log_ring_acq_rel", value = 0x10000,
    ring = true },
  { name = "a ring, and requests that it makes void", cap = "dirty_log_ring", value = PAGE,
    ring = true, besides = "manual_dirty_log_protect2" },
}

local function guest(kvm, mode)
  local vm = create_vm(kvm, mode)
  vm:add_memory { gpa = 0, size = RAM }
  local ram = vm:add_memory { gpa = RAM, size = PAGES * PAGE, log_dirty = true }
  vm:write(CODE, STORE)
  local vcpu = vm:create_vcpu(0)
  x86.enter(vcpu, "long",
    { rip = CODE, cr3 = x86.identity_map(vm, TABLES, 1 << 30) })
  if mode.full then
    vm:dirty_pages(ram)
    vm:clear_dirty_log { memory = ram, dirty_bitmap = ("\xff"):rep(PAGES // 8) }
  end
  return vm, ram, vcpu
end

local function store(vcpu, first, count, limits)
  vcpu:set_regs { rip = CODE, rdi = RAM + first * PAGE, rcx = count or 1, rflags = 2 }
  return vcpu:run(limits or LIMITS)
end

-- Page numbers in order as text, "3-4 7", which is short where a test fails.
local function ranges(pages)
  local words, i = {}, 1
  while i <= #pages do
    local last = i
    while pages[last + 1] == pages[last] + 1 do last = last + 1 end
    table.insert(words, last == i and pages[i] or pages[i] .. "-" .. pages[last])
    i = last + 1
  end
  return table.concat(words, " ")
end

local function dirty(vm, ram)
  local list = vm:dirty_pages(ram)
  for i, gpa in ipairs(list) do list[i] = (gpa - ram.gpa) // PAGE end
  return ranges(list)
end

local function logged(vm, ram)
  local bitmap, list = vm:get_dirty_log(ram), {}
  for i = 0, #bitmap * 8 - 1 do
    if bitmap:byte(i // 8 + 1) >> i % 8 & 1 == 1 then table.insert(list, i) end
  end
  return ranges(list)
end

local function bitmap_of(...)
  local bytes = {}
  for i = 1, PAGES // 8 do bytes[i] = 0 end
  for _, page in ipairs { ... } do
    bytes[page // 8 + 1] = bytes[page // 8 + 1] | 1 << page % 8
  end
  return string.char(table.unpack(bytes))
end

for _, mode in ipairs(MODES) do
  describe("the dirty log by " .. mode.name, function()
    local kvm, vm, ram, vcpu
    before_each(function()
      support.need_kvm()
      kvm = ckvm.open()
      vm, ram, vcpu = guest(kvm, mode)
    end)
    after_each(function()
      if vm then vm:close() end
      kvm:close()
    end)

    it("has the pages that the guest wrote since the last call", function()
      assert.equal("", dirty(vm, ram))
      assert.equal("hlt", store(vcpu, 3, 2))
      assert.equal("3-4", dirty(vm, ram))
      assert.equal("", dirty(vm, ram))
      assert.equal("hlt", store(vcpu, 4, 1))
      assert.equal("4", dirty(vm, ram))
    end)

    it("has two readers, each told of everything", function()
      store(vcpu, 7, 1)
      assert.equal("7", dirty(vm, ram))
      assert.equal("7", logged(vm, ram))
      store(vcpu, 8, 1)
      assert.equal(mode.cap == "manual_dirty_log_protect2" and "7-8" or "8", logged(vm, ram))
      assert.equal("8", dirty(vm, ram))
    end)

    it("is a string of whole words, one bit a page", function()
      assert.equal(PAGES // 8, #vm:get_dirty_log(ram))
      local small = vm:add_memory { gpa = 0x10000000, size = PAGE, log_dirty = true }
      assert.equal(8, #vm:get_dirty_log(small))
    end)

    it("forgets what is cleared, for that reader alone", function()
      store(vcpu, 64, 3)
      vm:get_dirty_log(ram)
      store(vcpu, 64, 3)
      vm:clear_dirty_log { memory = ram, dirty_bitmap = bitmap_of(64, 66) }
      assert.equal("65", logged(vm, ram))
      assert.equal("64-66", dirty(vm, ram))
    end)

    it("clears a part", function()
      store(vcpu, 64, 1)
      store(vcpu, 128, 1)
      vm:clear_dirty_log { memory = ram, first_page = 64, num_pages = 64,
        dirty_bitmap = ("\xff"):rep(8) }
      assert.equal("128", logged(vm, ram))
      vm:clear_dirty_log { memory = ram, first_page = PAGES, dirty_bitmap = "" }
    end)

    it("logs a page again that was cleared", function()
      store(vcpu, 5, 1)
      vm:get_dirty_log(ram)
      vm:clear_dirty_log { memory = ram, dirty_bitmap = bitmap_of(5) }
      assert.equal("", logged(vm, ram))
      store(vcpu, 5, 1)
      assert.equal("5", logged(vm, ram))
    end)

    it("has as many pages as the guest dirties in one run", function()
      assert.equal("hlt", store(vcpu, 0, PAGES))
      assert.equal("0-1023", dirty(vm, ram))
      -- A ring that a KVM in software has overrun may tell of a page twice.
      if not mode.ring then assert.equal("", dirty(vm, ram)) end
      assert.equal("hlt", store(vcpu, 0, PAGES))
      assert.equal("0-1023", dirty(vm, ram))
    end)

    it("goes on where the memory is moved to", function()
      store(vcpu, 9, 1)
      vm:move_memory(ram, RAM + 0x10000000)
      assert.same({ RAM + 0x10000000 + 9 * PAGE }, vm:dirty_pages(ram))
    end)

    it("keeps what a closed vCPU has dirtied", function()
      store(vcpu, 11, 1)
      vcpu:close()
      assert.equal("11", dirty(vm, ram))
    end)

    it("tells nothing of memory that had the slot before", function()
      store(vcpu, 12, 1)
      local slot = ram.slot
      ram:close()
      local new = vm:add_memory { gpa = RAM, size = PAGES * PAGE, slot = slot, log_dirty = true }
      if mode.full then vm:dirty_pages(new) end
      assert.equal("", dirty(vm, new))
    end)

    it("is read in a handler", function()
      local seen
      vm:write(CODE, "\xc6\x07\x01\xe6\x10\xf4") -- movb $1, (%rdi); out %al, $0x10; hlt
      vm:attach_io { port = 0x10, write = function() seen = dirty(vm, ram) end }
      assert.equal("hlt", store(vcpu, 20, 1))
      assert.equal("20", seen)
    end)

    it("leaves no descriptor and no mapping", function()
      vm:close()
      vm = nil
      local function maps()
        local count = 0
        for _ in io.lines("/proc/self/maps") do count = count + 1 end
        return count
      end
      guest(kvm, mode):close()
      local fds, before = support.settled_fds(), maps()
      for _ = 1, 20 do guest(kvm, mode):close() end
      support.collect()
      assert.equal(fds, support.count_fds())
      assert.is_true(maps() < before + 15)
    end)

    if mode.ring then
      it("empties a ring that is full, and the run goes on", function()
        local small <close> = create_vm(kvm, { cap = mode.cap, value = PAGE })
        small:add_memory { gpa = 0, size = RAM }
        local part = small:add_memory { gpa = RAM, size = PAGES * PAGE, log_dirty = true }
        small:write(CODE, STORE)
        local cpu = small:create_vcpu(0)
        x86.enter(cpu, "long", { rip = CODE, cr3 = x86.identity_map(small, TABLES, 1 << 30) })
        assert.equal("hlt", store(cpu, 0, PAGES))
        assert.is_true(cpu.stats.exits.dirty_ring_full > 0)
        assert.equal("0-1023", dirty(small, part))
      end)

      it("shows run_once that a ring was full, and is empty again", function()
        local small <close> = create_vm(kvm, { cap = mode.cap, value = PAGE })
        small:add_memory { gpa = 0, size = RAM }
        local part = small:add_memory { gpa = RAM, size = PAGES * PAGE, log_dirty = true }
        small:write(CODE, STORE)
        local cpu = small:create_vcpu(0)
        x86.enter(cpu, "long", { rip = CODE, cr3 = x86.identity_map(small, TABLES, 1 << 30) })
        cpu:set_regs { rip = CODE, rdi = RAM, rcx = PAGES, rflags = 2 }
        local count, why = 0, cpu:run_once { timeout = 20 }
        while why == "dirty_ring_full" do
          count, why = count + 1, cpu:run_once { timeout = 20 }
        end
        assert.equal("hlt", why)
        assert.is_true(count > 0)
        assert.equal("0-1023", dirty(small, part))
      end)

      it("refuses rings after a vCPU, twice, and of odd sizes", function()
        assert.equal("EINVAL", error_of(vm.enable_cap, vm, mode.cap, mode.value).code)
        local second <close> = kvm:create_vm()
        for _, size in ipairs { 1, 100, PAGE * 3 } do
          assert.equal("EINVAL", error_of(second.enable_cap, second, mode.cap, size).code)
        end
        assert.equal("E2BIG", error_of(second.enable_cap, second, mode.cap, 1 << 30).code)
        second:enable_cap(mode.cap, mode.value)
        assert.equal("EINVAL", error_of(second.enable_cap, second, mode.cap, mode.value).code)
      end)
    end
  end)
end

describe("get_dirty_log and clear_dirty_log", function()
  local kvm, vm, ram
  before_each(function()
    kvm, vm = support.new_vm()
    ram = vm:add_memory { gpa = RAM, size = 100 * PAGE, log_dirty = true }
  end)
  after_each(function() support.close(vm, kvm) end)

  it("refuse what is closed, another VM's, or no memory", function()
    local other <close> = kvm:create_vm()
    local own, foreign = vm.get_dirty_log, other:add_memory { gpa = 0, size = PAGE }
    contains("memory of another VM", error_of(own, vm, foreign))
    contains("memory expected, got", error_of(own, vm, 0))
    contains("memory: memory of another VM",
      error_of(vm.clear_dirty_log, vm, { memory = foreign }))
    contains("memory: memory expected, got nil", error_of(vm.clear_dirty_log, vm, {}))
    contains("memory: memory expected, got number",
      error_of(vm.clear_dirty_log, vm, { memory = 1 }))
    ram:close()
    contains("memory is closed", error_of(own, vm, ram))
    contains("memory is closed", error_of(vm.clear_dirty_log, vm, { memory = ram }))
    vm:close()
    contains("VM is closed", error_of(own, vm, ram))
    contains("VM is closed", error_of(vm.clear_dirty_log, vm, { memory = ram }))
  end)

  it("refuse memory that is not logged", function()
    local plain = vm:add_memory { gpa = 0, size = PAGE }
    contains("without log_dirty", error_of(vm.get_dirty_log, vm, plain))
    contains("without log_dirty",
      error_of(vm.clear_dirty_log, vm, { memory = plain, dirty_bitmap = "\0" }))
  end)

  it("refuse unknown options, wrong sizes and places", function()
    local function refuses(message, options)
      options.memory = ram
      contains(message, error_of(vm.clear_dirty_log, vm, options))
    end
    refuses("clear_dirty_log: unknown option 'slot'", { slot = 0 })
    refuses("dirty_bitmap: string expected, got nil", {})
    for _, n in ipairs { 0, 12, 17 } do
      refuses("dirty_bitmap: 13 bytes for 100 pages expected, got " .. n,
        { dirty_bitmap = ("a"):rep(n) })
    end
    refuses("first_page: 101 is not between 0 and 100", { first_page = 101, dirty_bitmap = "" })
    refuses("num_pages: 37 is not between 0 and 36", { first_page = 64, num_pages = 37 })
    refuses("num_pages: -1 is not between", { num_pages = -1 })
    for _, place in ipairs { { 1, 99 }, { 0, 63 }, { 64, 35 } } do
      local options = { first_page = place[1], num_pages = place[2], memory = ram,
        dirty_bitmap = ("\0"):rep((place[2] + 7) // 8) }
      local err = error_of(vm.clear_dirty_log, vm, options)
      assert.equal("EINVAL", err.code)
      contains("multiples of 64", err)
    end
    vm:clear_dirty_log { memory = ram, first_page = 64, num_pages = 36,
      dirty_bitmap = ("\0"):rep(5) }
  end)

  it("start with all ones where that was asked for", function()
    if vm:check_extension("manual_dirty_log_protect2") < 3 then pending("no initially_set") end
    vm:enable_cap("manual_dirty_log_protect2", 3)
    local new = vm:add_memory { gpa = 0, size = 70 * PAGE, log_dirty = true }
    assert.equal("0-69", logged(vm, new))
    assert.equal("0-69", logged(vm, new))
    vm:clear_dirty_log { memory = new, dirty_bitmap = ("\xff"):rep(9) }
    assert.equal("", logged(vm, new))
    assert.equal("0-69", dirty(vm, new))
    assert.equal("", dirty(vm, new))
  end)
end)

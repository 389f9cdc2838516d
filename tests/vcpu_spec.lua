-- The vCPU: creating it, its registers by call and by live view, its statistics.

local ckvm = require "ckvm"
local support = require "support"

local contains, error_of = support.contains, support.error_of

local HERE <const> = debug.getinfo(1, "S").source:match("^@(.*)/") or "."

local HLT <const> = "\xf4"
local OUT_HLT <const> = "\xe6\x10\xf4" -- out %al, $0x10; hlt
local IN_HLT <const> = "\xe4\x10\xf4" -- in $0x10, %al; hlt
-- mov $100, %cx; again: out %al, $0x10; dec %cx; jnz again; hlt
local HUNDRED_OUTS <const> = "\xb9\x64\x00\xe6\x10\x49\x75\xfb\xf4"

local REGS <const> = {
  "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
  "r14", "r15", "rip", "rflags",
}
local SEGMENTS <const> = { "cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt" }
local BAD_CR4 <const> = 1 << 63 -- no CR4 has this bit

describe("vm:create_vcpu", function()
  local kvm, vm
  before_each(function()
    support.need_kvm()
    kvm = ckvm.open()
    vm = kvm:create_vm()
  end)
  after_each(function()
    vm:close()
    kvm:close()
  end)

  it("refuses what is not an integer", function()
    for _, id in ipairs { "x", "1", true, {}, 0.5, 2 ^ 63, print } do
      error_of(vm.create_vcpu, vm, id)
    end
    assert.same({}, vm.vcpus)
  end)

  it("refuses a negative id, and names it", function()
    for _, id in ipairs { -1, -4096, math.mininteger } do
      contains(("vCPU id %d is negative"):format(id), error_of(vm.create_vcpu, vm, id))
    end
  end)

  it("refuses an id beyond what the KVM has, and names it", function()
    local most = kvm:check_extension("max_vcpu_id")
    for _, id in ipairs { most, most + 1, 1 << 31, 1 << 32, 1 << 40, math.maxinteger } do
      local err = error_of(vm.create_vcpu, vm, id)
      assert.equal("KVM_CREATE_VCPU", err.call)
      assert.equal("EINVAL", err.code)
      contains(("vCPU id %d"):format(id), err)
    end
    assert.same({}, vm.vcpus)
  end)

  it("refuses an id that is there, and names it", function()
    vm:create_vcpu(3)
    local err = error_of(vm.create_vcpu, vm, 3)
    assert.equal("KVM_CREATE_VCPU", err.call)
    assert.equal("EEXIST", err.code)
    contains("vCPU 3 exists already", err)
    assert.equal(1, #vm.vcpus)
  end)

  it("refuses the id of one that was closed: the kernel still has it", function()
    vm:create_vcpu(0):close()
    contains("vCPU 0 exists already", error_of(vm.create_vcpu, vm, 0))
  end)

  it("creates vCPU 0 unless told otherwise", function()
    assert.equal(0, vm:create_vcpu().id)
  end)

  it("gives each VM ids of its own", function()
    local other <close> = kvm:create_vm()
    assert.equal(0, vm:create_vcpu(0).id)
    assert.equal(0, other:create_vcpu(0.0).id)
  end)
end)

-- What holds for registers with the page that is shared with the kernel, and without.
for _, mode in ipairs { { "with sync regs", {} }, { "without", { sync_regs = false } } } do
  local name, open = mode[1], mode[2]

  describe("Registers " .. name .. ":", function()
    local kvm, vm, vcpu

    local function guest(code, regs)
      support.need_kvm()
      kvm, vm, vcpu = support.real_mode(code, { open = open, regs = regs })
      return vcpu, vm
    end

    after_each(function()
      if vm then vm:close() end
      if kvm then kvm:close() end
      kvm, vm, vcpu = nil, nil, nil
    end)

    local function run(why)
      assert.equal(why or "hlt", (vcpu:run { timeout = 10 }))
    end

    describe("cr8", function()
      -- The kernel has a second one, in the run page, and believes that where it has no APIC.
      local setters = {
        set_sregs = function(value) vcpu:set_sregs { cr8 = value } end,
        ["the view"] = function(value) vcpu.sregs.cr8 = value end,
        set_sregs2 = function(value) vcpu:set_sregs2 { cr8 = value } end,
      }
      for setter, set in pairs(setters) do
        it("set by " .. setter .. " outlives a run", function()
          guest(OUT_HLT .. HLT)
          set(5)
          run("io_out")
          assert.equal(5, vcpu:get_sregs().cr8)
          set(6)
          run()
          assert.equal(6, vcpu.sregs.cr8)
        end)

        it("set by " .. setter .. " is one of 16, which KVM_RUN takes", function()
          guest(HLT)
          contains("cr8: 16 does not fit in 4 bits", error_of(set, 16))
          contains("cr8: -1 does not fit in 4 bits", error_of(set, -1))
          set(15)
          run()
        end)
      end
    end)

    describe("get_regs", function()
      it("has the kernel's fields, and no other", function()
        guest(HLT)
        local names = {}
        for key, value in pairs(vcpu:get_regs()) do
          table.insert(names, key)
          assert.equal("integer", math.type(value))
        end
        local expected = table.move(REGS, 1, #REGS, 1, {})
        table.sort(names)
        table.sort(expected)
        assert.same(expected, names)
      end)

      it("is a fresh table each time", function()
        guest(HLT)
        local regs = vcpu:get_regs()
        regs.rax = 77
        assert.equal(0, vcpu:get_regs().rax)
      end)
    end)

    describe("set_regs", function()
      before_each(function() guest(HLT) end)

      it("refuses anything but a table", function()
        for _, regs in ipairs { 0, "x", true, print } do
          contains("table expected, got " .. type(regs), error_of(vcpu.set_regs, vcpu, regs))
        end
        contains("table expected", error_of(vcpu.set_regs, vcpu))
        contains("table expected", error_of(vcpu.set_regs, vcpu, vcpu.regs))
      end)

      it("names an unknown field, and sets none", function()
        local before = vcpu:get_regs()
        for _, key in ipairs { "eax", "RAX", "", 1, true, "rax " } do
          contains(("kvm_regs: unknown field '%s'"):format(key),
            error_of(vcpu.set_regs, vcpu, { rbx = 5, [key] = 1 }))
        end
        error_of(vcpu.set_regs, vcpu, { ["rax\0"] = 1 })
        assert.same(before, vcpu:get_regs())
      end)

      it("names an unknown field beside all the known ones", function()
        local regs = vcpu:get_regs()
        regs.eax = 1
        contains("kvm_regs: unknown field 'eax'", error_of(vcpu.set_regs, vcpu, regs))
      end)

      it("names a field of the wrong type, and sets none", function()
        local before = vcpu:get_regs()
        for _, value in ipairs { "1", true, {}, print } do
          contains("kvm_regs.rax: integer expected, got " .. type(value),
            error_of(vcpu.set_regs, vcpu, { rbx = 5, rax = value }))
        end
        for _, value in ipairs { 0.5, 2 ^ 63, 0 / 0, 1 / 0 } do
          contains("kvm_regs.rax: ", error_of(vcpu.set_regs, vcpu, { rax = value }))
        end
        assert.same(before, vcpu:get_regs())
      end)

      it("keeps the fields that are not named", function()
        for i, reg in ipairs(REGS) do
          if reg ~= "rflags" then
            local expected = vcpu:get_regs()
            expected[reg] = 0x1000 * i + i
            vcpu:set_regs { [reg] = expected[reg] }
            assert.same(expected, vcpu:get_regs())
          end
        end
      end)

      it("sets none of them from an empty table", function()
        local before = vcpu:get_regs()
        vcpu:set_regs {}
        assert.same(before, vcpu:get_regs())
      end)

      it("takes all 64 bits, and what get_regs returned", function()
        for _, value in ipairs { -1, math.mininteger, math.maxinteger, 0x0123456789abcdef, 3.0 } do
          vcpu:set_regs { r15 = value, rax = value }
          local regs = vcpu:get_regs()
          assert.equal(math.tointeger(value), regs.r15)
          vcpu:set_regs { r15 = 0, rax = 0 }
          vcpu:set_regs(regs)
          assert.same(regs, vcpu:get_regs())
        end
      end)

      it("is what the guest starts with", function()
        vm:write(0x1000, "\x01\xd8\xf4") -- add %bx, %ax; hlt
        vcpu:set_regs { rax = 40, rbx = 2 }
        run()
        assert.equal(42, vcpu:get_regs().rax)
        assert.equal(0x1003, vcpu:get_regs().rip)
      end)
    end)

    describe("set_sregs", function()
      before_each(function() guest(HLT) end)

      it("names an unknown field at every level, with the way to it", function()
        for path, sregs in pairs {
          ["kvm_sregs: unknown field 'cr1'"] = { cr1 = 0 },
          ["kvm_sregs: unknown field '1'"] = { 0 },
          ["kvm_sregs.cs: unknown field 'bas'"] = { cs = { bas = 0 } },
          ["kvm_sregs.ldt: unknown field 'padding'"] = { ldt = { padding = 0 } },
          ["kvm_sregs.gdt: unknown field 'selector'"] = { gdt = { selector = 0 } },
          ["kvm_sregs.idt: unknown field '1'"] = { idt = { 0 } },
        } do
          contains(path, error_of(vcpu.set_sregs, vcpu, sregs))
        end
      end)

      it("names an unknown field beside all the known ones, at every level", function()
        local sregs = vcpu:get_sregs()
        sregs.gdt.base_address = 0
        contains("kvm_sregs.gdt: unknown field 'base_address'",
          error_of(vcpu.set_sregs, vcpu, sregs))
        sregs = vcpu:get_sregs()
        sregs.interrupt_bitmap[5] = 1
        contains("kvm_sregs.interrupt_bitmap", error_of(vcpu.set_sregs, vcpu, sregs))
      end)

      it("names a field of the wrong type, with the way to it", function()
        for path, sregs in pairs {
          ["kvm_sregs.cr0: integer expected, got string"] = { cr0 = "1" },
          ["kvm_sregs.cr0: integer expected, got boolean"] = { cr0 = true },
          ["kvm_sregs.cs: table expected, got number"] = { cs = 0 },
          ["kvm_sregs.cs.base: integer expected, got"] = { cs = { base = vcpu.regs } },
          ["kvm_sregs.gdt.limit: integer expected, got table"] = { gdt = { limit = {} } },
          ["kvm_sregs.interrupt_bitmap: table expected, got number"] = { interrupt_bitmap = 0 },
          ["kvm_sregs.interrupt_bitmap"] = { interrupt_bitmap = { "x" } },
        } do
          contains(path, error_of(vcpu.set_sregs, vcpu, sregs))
        end
      end)

      it("names a value that does not fit, and its bits", function()
        for path, cs in pairs {
          ["kvm_sregs.cs.type: 256 does not fit in 8 bits"] = { type = 256 },
          ["kvm_sregs.cs.dpl: -1 does not fit in 8 bits"] = { dpl = -1 },
          ["kvm_sregs.cs.selector: 65536 does not fit in 16 bits"] = { selector = 0x10000 },
          ["kvm_sregs.cs.selector: -1 does not fit in 16 bits"] = { selector = -1 },
          ["kvm_sregs.cs.limit: 4294967296 does not fit in 32 bits"] = { limit = 1 << 32 },
          ["kvm_sregs.cs.limit: -1 does not fit in 32 bits"] = { limit = -1 },
        } do
          contains(path, error_of(vcpu.set_sregs, vcpu, { cs = cs }))
        end
        contains("kvm_sregs.gdt.limit: 65536 does not fit in 16 bits",
          error_of(vcpu.set_sregs, vcpu, { gdt = { limit = 0x10000 } }))
      end)

      it("refuses what an array has no place for", function()
        for _, bitmap in ipairs { { 0, 0, 0, 0, 1 }, { [0] = 1 }, { x = 1 }, { [1.5] = 1 } } do
          contains("kvm_sregs.interrupt_bitmap",
            error_of(vcpu.set_sregs, vcpu, { interrupt_bitmap = bitmap }))
        end
      end)

      it("sets nothing when it refuses", function()
        local before = vcpu:get_sregs()
        for _, sregs in ipairs {
          { cr2 = 5, cr1 = 0 }, { cr2 = 5, cs = { base = 1, bas = 0 } }, { cr2 = 5, cr0 = "x" },
        } do
          error_of(vcpu.set_sregs, vcpu, sregs)
        end
        assert.same(before, vcpu:get_sregs())
      end)

      it("says what the kernel refuses, and nothing has changed", function()
        local before = vcpu:get_sregs()
        for _, sregs in ipairs {
          { cr4 = BAD_CR4 }, { cr0 = 1 << 63 }, { cr0 = 0x80000011, efer = 0x100, cr4 = 0 },
        } do
          sregs.cr2 = 77
          local err = error_of(function() vcpu:set_sregs(sregs) end)
          assert.equal("KVM_SET_SREGS", err.call)
          assert.equal("EINVAL", err.code)
          contains("vcpu_spec.lua:", err.where)
        end
        assert.same(before, vcpu:get_sregs())
      end)

      it("keeps the fields that are not named, at every level", function()
        for i, segment in ipairs(SEGMENTS) do
          local expected = vcpu:get_sregs()
          expected[segment].base = 0x10 * i
          vcpu:set_sregs { [segment] = { base = 0x10 * i } }
          assert.same(expected, vcpu:get_sregs())
        end
        local expected = vcpu:get_sregs()
        expected.cr2, expected.gdt.limit, expected.idt.base = 0x1234, 0xfff, 0x5678
        vcpu:set_sregs { cr2 = 0x1234, gdt = { limit = 0xfff }, idt = { base = 0x5678 } }
        assert.same(expected, vcpu:get_sregs())
      end)

      it("takes true and false for the kernel's flags", function()
        vcpu:set_sregs { fs = { db = true } }
        assert.equal(1, vcpu:get_sregs().fs.db)
        vcpu:set_sregs { fs = { db = false } }
        assert.equal(0, vcpu:get_sregs().fs.db)
      end)

      it("takes what get_sregs returned", function()
        local before = vcpu:get_sregs()
        vcpu:set_sregs { cr2 = 1, es = { base = 0x40 }, gdt = { base = 3 } }
        vcpu:set_sregs(before)
        assert.same(before, vcpu:get_sregs())
        assert.equal(4, #before.interrupt_bitmap)
      end)
    end)

    describe("set_vcpu_events", function()
      before_each(function() guest(HLT) end)

      it("names an unknown field at every level, with the way to it", function()
        contains("kvm_vcpu_events: unknown field 'nmis'",
          error_of(vcpu.set_vcpu_events, vcpu, { nmis = {} }))
        contains("kvm_vcpu_events.nmi: unknown field 'pad'",
          error_of(vcpu.set_vcpu_events, vcpu, { nmi = { pad = 1 } }))
        contains("kvm_vcpu_events.interrupt: unknown field 'pending'",
          error_of(vcpu.set_vcpu_events, vcpu, { interrupt = { pending = 1 } }))
      end)

      it("names what has the wrong type or does not fit", function()
        contains("kvm_vcpu_events.nmi: table expected, got number",
          error_of(vcpu.set_vcpu_events, vcpu, { nmi = 1 }))
        contains("kvm_vcpu_events.nmi.pending: 256 does not fit in 8 bits",
          error_of(vcpu.set_vcpu_events, vcpu, { nmi = { pending = 256 } }))
        contains("kvm_vcpu_events.exception.error_code: -1 does not fit in 32 bits",
          error_of(vcpu.set_vcpu_events, vcpu, { exception = { error_code = -1 } }))
      end)

      it("says what the kernel refuses", function()
        local before = vcpu:get_vcpu_events()
        local err = error_of(vcpu.set_vcpu_events, vcpu, { flags = 0xffffffff })
        assert.equal("KVM_SET_VCPU_EVENTS", err.call)
        assert.equal("EINVAL", err.code)
        assert.same(before, vcpu:get_vcpu_events())
      end)

      it("sets the flag that guards a field by naming it", function()
        -- the kernel takes these two flags only once their capability is on
        for _, events in ipairs { { exception_payload = 1 }, { triple_fault = { pending = 0 } } } do
          local err = error_of(vcpu.set_vcpu_events, vcpu, events)
          assert.equal("KVM_SET_VCPU_EVENTS", err.call)
          assert.equal("EINVAL", err.code)
        end
        vcpu:set_vcpu_events { nmi = { pending = 1 } }
        assert.equal(1, vcpu:get_vcpu_events().nmi.pending)
      end)

      it("lets explicit flags win", function()
        vcpu:set_vcpu_events { flags = 0, nmi = { pending = 1 } }
        assert.equal(0, vcpu:get_vcpu_events().nmi.pending)
        vcpu:set_vcpu_events { flags = 0, exception_payload = 1 }
      end)

      it("keeps what is not named, and takes what get_vcpu_events returned", function()
        vcpu:set_vcpu_events { nmi = { masked = 1 } }
        vcpu:set_vcpu_events { nmi = { pending = 1 } }
        local events = vcpu:get_vcpu_events()
        assert.equal(1, events.nmi.masked)
        vcpu:set_vcpu_events { nmi = { masked = 0, pending = 0 } }
        vcpu:set_vcpu_events(events)
        assert.same(events, vcpu:get_vcpu_events())
      end)
    end)

    describe("a live view", function()
      it("cannot be replaced", function()
        guest(HLT)
        for _, key in ipairs { "regs", "sregs", "events" } do
          contains(("vCPU has no field '%s' that can be set"):format(key),
            error_of(function() vcpu[key] = {} end))
        end
      end)

      it("names an unknown field, read or written, and the caller's line", function()
        guest(HLT)
        for _, fn in ipairs {
          function() return vcpu.regs.eax end, function() vcpu.regs.eax = 1 end,
        } do
          local err = error_of(fn)
          contains("kvm_regs has no field 'eax'", err)
          contains("vcpu_spec.lua:", err)
        end
        contains("kvm_regs has no field '1'", error_of(function() return vcpu.regs[1] end))
        contains("kvm_regs has no field", error_of(function() return vcpu.regs["rax\0"] end))
        contains("kvm_sregs has no field 'cr1'", error_of(function() vcpu.sregs.cr1 = 0 end))
        contains("kvm_segment has no field 'bas'",
          error_of(function() return vcpu.sregs.cs.bas end))
        contains("kvm_dtable has no field 'selector'",
          error_of(function() vcpu.sregs.gdt.selector = 0 end))
        contains("has no field 'pad'", error_of(function() return vcpu.events.nmi.pad end))
      end)

      it("names a field that is given the wrong type or too much, and keeps it", function()
        guest(HLT)
        contains("rax: integer expected, got string",
          error_of(function() vcpu.regs.rax = "1" end))
        contains("rax: integer expected, got nil", error_of(function() vcpu.regs.rax = nil end))
        contains("rax: 0.5 is not", error_of(function() vcpu.regs.rax = 0.5 end))
        contains("type: 256 does not fit in 8 bits",
          error_of(function() vcpu.sregs.cs.type = 256 end))
        contains("selector: -1 does not fit in 16 bits",
          error_of(function() vcpu.sregs.cs.selector = -1 end))
        contains("limit: 65536 does not fit in 16 bits",
          error_of(function() vcpu.sregs.idt.limit = 0x10000 end))
        contains("cs: table expected, got number", error_of(function() vcpu.sregs.cs = 1 end))
        contains("unknown field 'bas'", error_of(function() vcpu.sregs.cs = { bas = 1 } end))
        contains("interrupt_bitmap", error_of(function() vcpu.sregs.interrupt_bitmap = 1 end))
        contains("interrupt_bitmap",
          error_of(function() vcpu.sregs.interrupt_bitmap = { 0, 0, 0, 0, 0 } end))
        assert.equal(0, vcpu.regs.rax)
        run()
      end)

      it("of a closed vCPU raises, and so do its parts", function()
        guest(HLT)
        local regs, sregs, cs, nmi = vcpu.regs, vcpu.sregs, vcpu.sregs.cs, vcpu.events.nmi
        assert.equal(0, regs.rax)
        vcpu:close()
        for _, fn in ipairs {
          function() return regs.rax end, function() regs.rax = 1 end,
          function() return sregs.cs end, function() return cs.base end,
          function() cs.base = 1 end, function() return nmi.pending end,
          function() pairs(regs) end, function() return vcpu.regs end,
        } do
          contains("vCPU is closed", error_of(fn))
        end
      end)

      it("of a closed VM raises", function()
        guest(HLT)
        local regs = vcpu.regs
        vm:close()
        contains("vCPU is closed", error_of(function() return regs.rax end))
      end)

      it("is one for each vCPU and kind, and one for each part", function()
        guest(HLT)
        local other = vm:create_vcpu(1)
        assert.is_true(rawequal(vcpu.regs, vcpu.regs))
        assert.is_true(rawequal(vcpu.sregs.cs, vcpu.sregs.cs))
        assert.is_false(rawequal(vcpu.regs, other.regs))
        assert.is_false(rawequal(vcpu.sregs.cs, vcpu.sregs.ds))
      end)

      it("shows what the get calls return", function()
        guest(OUT_HLT, { rax = 0x1234, r9 = -1 })
        run("io_out")
        for key, value in pairs(vcpu:get_regs()) do assert.equal(value, vcpu.regs[key]) end
        local sregs, events = vcpu:get_sregs(), vcpu:get_vcpu_events()
        for key, value in pairs(sregs) do
          if type(value) ~= "table" then assert.equal(value, vcpu.sregs[key]) end
        end
        for _, part in ipairs(SEGMENTS) do
          for key, value in pairs(sregs[part]) do assert.equal(value, vcpu.sregs[part][key]) end
        end
        assert.same(sregs.interrupt_bitmap, vcpu.sregs.interrupt_bitmap)
        for key, value in pairs(events.nmi) do assert.equal(value, vcpu.events.nmi[key]) end
        assert.equal(events.flags, vcpu.events.flags)
      end)

      it("is listed by pairs in the kernel's order, names and values", function()
        guest(HLT, { rax = 5 })
        local names, values = {}, {}
        for key, value in pairs(vcpu.regs) do
          table.insert(names, key)
          values[key] = value
        end
        assert.same(REGS, names)
        assert.same(vcpu:get_regs(), values)
        local parts = {}
        for key, part in pairs(vcpu.sregs) do parts[key] = part end
        assert.is_true(rawequal(parts.cs, vcpu.sregs.cs))
        local count = 0
        for _ in pairs(vcpu.sregs.gdt) do count = count + 1 end
        assert.equal(2, count)
      end)

      it("is what the guest goes on with, once written", function()
        guest("\x01\xd8\xf4") -- add %bx, %ax; hlt
        vcpu.regs.rax, vcpu.regs.rbx = 40, 2
        assert.equal(40, vcpu.regs.rax)
        run()
        assert.equal(42, vcpu.regs.rax)
        assert.equal(0x1003, vcpu.regs.rip)
        vcpu.regs.rip, vcpu.regs.rbx = 0x1000, 8
        run()
        assert.equal(50, vcpu.regs.rax)
      end)

      it("shows the new state after each run", function()
        guest("\x40\xf4\x40\xf4\x40\xf4") -- inc %ax; hlt; ...
        for i = 1, 3 do
          run()
          assert.equal(i, vcpu.regs.rax)
          assert.equal(0x1000 + 2 * i, vcpu.regs.rip)
        end
      end)

      it("sends what is written before a get, and is emptied by a set", function()
        guest(HLT)
        vcpu.regs.rax = 5
        assert.equal(5, vcpu:get_regs().rax)
        vcpu.regs.rax = 6
        vcpu:set_regs { rbx = 7 }
        assert.equal(6, vcpu.regs.rax)
        assert.equal(7, vcpu.regs.rbx)
        vcpu.regs.rax = 8
        local regs = vcpu:get_regs()
        regs.rax = 9
        vcpu:set_regs(regs)
        assert.equal(9, vcpu.regs.rax)
        vcpu.sregs.cr2 = 0x5000
        vcpu:set_sregs { es = { base = 0x70 } }
        assert.equal(0x5000, vcpu.sregs.cr2)
        assert.equal(0x70, vcpu.sregs.es.base)
      end)

      it("keeps what is written in one kind when another is set", function()
        guest("\xa0\x00\x00\xf4") -- movb (0), %al; hlt
        vm:write_u8(0x500, 42)
        vcpu.regs.rbx = 3
        vcpu.sregs.ds.base = 0x500
        vcpu:set_vcpu_events { nmi = { masked = 1 } }
        run()
        assert.equal(42, vcpu.regs.rax)
        assert.equal(3, vcpu.regs.rbx)
        assert.equal(1, vcpu.events.nmi.masked)
      end)

      it("takes a table for a part: the fields it names", function()
        guest("\xa0\x00\x00\xf4") -- movb (0), %al; hlt
        vm:write_u8(0x500, 42)
        local before = vcpu:get_sregs()
        vcpu.sregs.ds = { base = 0x500, selector = 0x50 }
        vcpu.sregs.interrupt_bitmap = { 0, 0 }
        before.ds.base, before.ds.selector = 0x500, 0x50
        assert.same(before, vcpu:get_sregs())
        run()
        assert.equal(42, vcpu.regs.rax)
      end)

      it("has a fresh table for an array: to change an element is to assign it", function()
        guest(HLT)
        vcpu.sregs.interrupt_bitmap[2] = 1
        assert.same({ 0, 0, 0, 0 }, vcpu.sregs.interrupt_bitmap)
        vcpu.sregs.interrupt_bitmap = { [2] = 1 }
        assert.same({ 0, 1, 0, 0 }, vcpu.sregs.interrupt_bitmap)
        vcpu.sregs.interrupt_bitmap = { [2] = 0 }
      end)

      it("takes all 64 bits, and true for a flag of the kernel's", function()
        guest(HLT)
        vcpu.regs.r15, vcpu.regs.rbp = math.mininteger, -1
        vcpu.sregs.fs.db = true
        run()
        assert.equal(math.mininteger, vcpu.regs.r15)
        assert.equal(-1, vcpu.regs.rbp)
        assert.equal(1, vcpu.sregs.fs.db)
      end)

      it("of events sets the flag that guards a field: an NMI arrives", function()
        guest("\x90\xf4", { rsp = 0x8000 }) -- nop; hlt
        vm:write_u32(2 * 4, 0x2000) -- the vector of NMIs: 0:0x2000
        vm:write(0x2000, "\x43\xf4") -- inc %bx; hlt
        vcpu:set_sregs { ss = { base = 0, selector = 0 } }
        vcpu.events.flags = 0
        vcpu.events.nmi.pending = 1
        assert.is_true(vcpu.events.flags & 1 == 1) -- KVM_VCPUEVENT_VALID_NMI_PENDING
        run()
        assert.equal(0x2002, vcpu.regs.rip)
        assert.equal(1, vcpu.regs.rbx)
        assert.equal(0, vcpu.events.nmi.pending)
        assert.equal(1, vcpu.events.nmi.masked)
      end)

      it("works between two run_once", function()
        guest("\xe6\x10\xe6\x10\xf4", { rax = 1 }) -- out; out; hlt
        assert.equal("io_out", vcpu:run_once())
        assert.equal(1, vcpu.exit.data)
        vcpu.regs.rax = 2
        assert.equal("io_out", vcpu:run_once())
        assert.equal(2, vcpu.exit.data)
        assert.equal("hlt", vcpu:run_once())
        assert.equal(2, vcpu.regs.rax)
      end)
    end)

    describe("what the kernel refuses of a view", function()
      before_each(function() guest(HLT) end)

      local function check(err)
        assert.equal("KVM_SET_SREGS", err.call)
        assert.equal("EINVAL", err.code)
        contains("KVM_SET_SREGS: EINVAL: ", err)
      end

      it("is raised by the next run, for its line, and views then show the kernel's state",
        function()
          local before = vcpu:get_sregs()
          vcpu.sregs.cr4 = BAD_CR4
          vcpu.sregs.cr2 = 77
          assert.equal(BAD_CR4, vcpu.sregs.cr4)
          local err = error_of(function() vcpu:run { timeout = 10 } end)
          check(err)
          contains("vcpu_spec.lua:", err.where)
          assert.equal(before.cr4, vcpu.sregs.cr4)
          assert.equal(before.cr2, vcpu.sregs.cr2)
          assert.same(before, vcpu:get_sregs())
          run()
          assert.equal(before.cr4, vcpu.sregs.cr4)
        end)

      it("is raised by run_once, too", function()
        vcpu.sregs.cr4 = BAD_CR4
        check(error_of(vcpu.run_once, vcpu))
        assert.equal(0, vcpu.sregs.cr4)
        assert.equal("hlt", vcpu:run_once())
      end)

      it("is raised by a get, and then forgotten", function()
        vcpu.sregs.cr4 = BAD_CR4
        check(error_of(vcpu.get_sregs, vcpu))
        assert.equal(0, vcpu.sregs.cr4)
        assert.equal(0, vcpu:get_sregs().cr4)
        run()
      end)

      it("leaves the other views with the kernel's state, too", function()
        vcpu.regs.rax, vcpu.events.nmi.masked = 5, 1
        vcpu.sregs.cr4 = BAD_CR4
        check(error_of(vcpu.run, vcpu))
        local regs, events = vcpu.regs.rax, vcpu.events.nmi.masked
        assert.equal(vcpu:get_regs().rax, regs)
        assert.equal(vcpu:get_vcpu_events().nmi.masked, events)
        run()
        assert.equal(regs, vcpu.regs.rax)
      end)

      it("is raised by the run whose handler wrote it", function()
        vm:write(0x1000, OUT_HLT)
        vm:on("io_out", function() vcpu.sregs.cr4 = BAD_CR4 end)
        check(error_of(vcpu.run, vcpu))
        assert.equal(0, vcpu.sregs.cr4)
        run()
      end)

      it("is raised by the run whose handler wrote it during a read", function()
        vm:write(0x1000, IN_HLT)
        vm:on("io_in", function()
          vcpu.sregs.cr4 = BAD_CR4
          return 7
        end)
        check(error_of(vcpu.run, vcpu))
        assert.equal(0, vcpu.sregs.cr4)
        run()
        assert.equal(7, vcpu.regs.rax)
      end)
    end)

    describe("between two runs", function()
      it("what is written outlives a run that does not enter the guest", function()
        guest("\x01\xd8\xf4") -- add %bx, %ax; hlt
        vcpu.regs.rax, vcpu.regs.rbx = 40, 2
        vcpu:kick()
        run("kicked")
        assert.equal("timeout", (vcpu:run { timeout = 0 }))
        assert.equal("exits", (vcpu:run { exits = 0 }))
        assert.equal(40, vcpu.regs.rax)
        run()
        assert.equal(42, vcpu.regs.rax)
      end)

      for _, by in ipairs { "view", "call" } do
        local function set(reg, value)
          if by == "view" then vcpu.regs[reg] = value else vcpu:set_regs { [reg] = value } end
        end

        it("what is written while a read is open lets it finish, by " .. by, function()
          guest(IN_HLT, { rax = 0x1100 })
          run("io_in")
          vcpu.exit.data = 0x22
          set("rbx", 7)
          assert.equal(7, vcpu:get_regs().rbx)
          assert.equal(7, vcpu.regs.rbx)
          run()
          assert.equal(0x1122, vcpu.regs.rax)
          assert.equal(7, vcpu.regs.rbx)
          assert.equal(0x1003, vcpu.regs.rip)
        end)

        it("the same with run_once, by " .. by, function()
          guest(IN_HLT, { rax = 0x1100 })
          assert.equal("io_in", vcpu:run_once())
          vcpu.exit.data = 0x22
          set("rbx", 7)
          assert.equal("hlt", vcpu:run_once())
          assert.equal(0x1122, vcpu.regs.rax)
          assert.equal(7, vcpu.regs.rbx)
        end)

        it("rip that is written while an access is open is where it goes on, by " .. by, function()
          for code, why in pairs { [IN_HLT] = "io_in", [OUT_HLT] = "io_out" } do
            guest(code)
            vm:write(0x2000, "\x43\xf4") -- inc %bx; hlt
            run(why)
            set("rip", 0x2000)
            run()
            assert.equal(0x2002, vcpu.regs.rip)
            assert.equal(1, vcpu.regs.rbx)
            vm:close()
            kvm:close()
          end
        end)
      end

      it("a set that the kernel refuses is raised, at the latest by the next run", function()
        guest(IN_HLT)
        run("io_in")
        vcpu.exit.data = 0x22
        local err = error_of(function()
          vcpu:set_sregs { cr4 = BAD_CR4 }
          vcpu:run { timeout = 10 }
        end)
        assert.equal("KVM_SET_SREGS", err.call)
        assert.equal(0, vcpu.sregs.cr4)
        run()
        assert.equal(0x22, vcpu.regs.rax)
      end)
    end)

    describe("in a handler", function()
      it("a view shows the guest's registers, without a call", function()
        guest(HUNDRED_OUTS, { rbx = 0x1234 })
        local seen = {}
        vm:on("io_out", function(_, _, _, cpu)
          table.insert(seen, cpu.regs.rcx)
          assert.equal(0x1234, cpu.regs.rbx)
        end)
        run()
        assert.equal(100, #seen)
        for i, rcx in ipairs(seen) do assert.equal(101 - i, rcx) end
      end)

      it("a view that is written takes effect after a write", function()
        guest(HUNDRED_OUTS)
        local count = 0
        vm:on("io_out", function()
          count = count + 1
          vcpu.regs.rcx = vcpu.regs.rcx // 2 + 1
          vcpu.regs.rbx = vcpu.regs.rbx + count
        end)
        run()
        -- 100 -> 51 - 1 -> 26 - 1 -> ... -> 1 -> 1 - 1
        assert.equal(0, vcpu.regs.rcx)
        assert.equal(count * (count + 1) // 2, vcpu.regs.rbx)
      end)

      it("a view that is written takes effect after a read, and wins over the answer", function()
        guest(IN_HLT, { rax = 0x1100 })
        vm:on("io_in", function()
          vcpu.regs.rbx = 3
          return 0x22
        end)
        run()
        assert.equal(0x1122, vcpu.regs.rax)
        assert.equal(3, vcpu.regs.rbx)
        vcpu:set_regs { rip = 0x1000 }
        vm:on("io_in", function()
          vcpu.regs.rax = 0x33
          return 0x44
        end)
        run()
        assert.equal(0x33, vcpu.regs.rax)
      end)

      it("rip that is written is where the guest goes on: after a read, and a write", function()
        for _, code in ipairs { IN_HLT, OUT_HLT } do
          guest(code)
          vm:write(0x2000, "\x43\xf4") -- inc %bx; hlt
          vm:on(code == IN_HLT and "io_in" or "io_out", function()
            vcpu.regs.rip = 0x2000
            return 0x22
          end)
          run()
          assert.equal(0x2002, vcpu.regs.rip)
          assert.equal(1, vcpu.regs.rbx)
          assert.equal(code == IN_HLT and 0x22 or 0, vcpu.regs.rax)
          vm:close()
          kvm:close()
        end
      end)

      it("set_regs does the same, and get_regs shows what was set", function()
        guest(IN_HLT .. OUT_HLT, { rax = 0x1100 })
        local seen
        vm:on("io_in", function()
          vcpu:set_regs { rbx = 5, rax = 0x3300 }
          seen = vcpu:get_regs()
          return 0x22
        end)
        vm:on("io_out", function() vcpu:set_regs { rdx = 6 } end)
        run()
        assert.equal(5, seen.rbx)
        assert.equal(0x3300, seen.rax)
        assert.equal(0x3300, vcpu.regs.rax)
        assert.equal(5, vcpu.regs.rbx)
        vcpu:set_regs { rip = 0x1003 }
        run()
        assert.equal(6, vcpu.regs.rdx)
        assert.equal(5, vcpu.regs.rbx)
      end)

      it("set_sregs does the same", function()
        guest(IN_HLT)
        vm:write(0x1000, "\xe4\x10\x8a\x1e\x00\x00\xf4") -- in; movb (0), %bl; hlt
        vm:write_u8(0x500, 42)
        vm:on("io_in", function()
          vcpu:set_sregs { ds = { base = 0x500 } }
          return 0x22
        end)
        run()
        assert.equal(0x22, vcpu.regs.rax)
        assert.equal(42, vcpu.regs.rbx)
      end)

      it("a view's write outlives an error of the handler", function()
        guest(IN_HLT)
        vm:on("io_in", function()
          vcpu.regs.rbx = 9
          error("no")
        end)
        contains("no", error_of(vcpu.run, vcpu))
        run()
        assert.equal(9, vcpu.regs.rbx)
        assert.equal(0xff, vcpu.regs.rax & 0xff)
      end)
    end)
  end)
end

describe("The ioctls of registers", function()
  -- Runs body in a ckvm-lua that traces, with `ckvm`, `support` and `mark`; returns a table that
  -- has for each mark the names of the ioctls that came after it.
  local function trace(body, options)
    support.need_kvm()
    local status, output, errors = support.run([[
package.path = arg[1] .. "/?.lua;" .. package.path
local support = require "support"
local function mark(name) io.stderr:write("-- ", name, "\n") end
local open = arg[2] == "false" and { sync_regs = false } or nil
local function guest(code)
  return support.real_mode(load("return '" .. code .. "'")(), { open = open })
end
]] .. body, { before = { "--trace-ioctl" },
      after = { HERE, tostring(options and options.sync_regs) } })
    assert.equal("0 ", status .. " " .. output, errors:sub(-400))
    local sections, section = {}, {}
    for line in errors:gmatch("[^\n]+") do
      local name, ioctl = line:match("^%-%- (.*)"), line:match("^(KVM_[%u%d_]+)%(")
      assert(name or ioctl, line)
      if name then
        section = {}
        sections[name] = section
      else
        table.insert(section, ioctl)
      end
    end
    return sections
  end

  local function count(list)
    local counts = {}
    for _, name in ipairs(list) do counts[name] = (counts[name] or 0) + 1 end
    return counts
  end

  local function need_sync_regs()
    support.need_kvm()
    local kvm <close> = ckvm.open()
    if kvm:check_extension("sync_regs") & 7 ~= 7 then pending("no sync regs") end
  end

  local outs = [[
local kvm, vm, vcpu = guest("\xb9\x64\x00\xe6\x10\x49\x75\xfb\xf4")
]]

  it("are none for a run that looks at none", function()
    local seen = trace(outs .. [[
vm:on("io_out", function() end)
mark "run"
assert(vcpu:run() == "hlt")
mark "end"]])
    assert.same({ KVM_RUN = 101 }, count(seen.run))
  end)

  it("are one for a full table, and two for a part of one", function()
    for _, sync in ipairs { true, false } do
      local seen = trace([[
local kvm, vm, vcpu = guest("\xf4")
for _, kind in ipairs { "regs", "sregs", "vcpu_events" } do
  local full = vcpu["get_" .. kind](vcpu)
  mark(kind)
  vcpu["set_" .. kind](vcpu, full)
  mark "end"
end
mark "part"
vcpu:set_regs { rax = 1 }
mark "end"]], { sync_regs = sync })
      assert.same({ "KVM_SET_REGS" }, seen.regs)
      assert.same({ "KVM_SET_SREGS" }, seen.sregs)
      assert.same({ "KVM_SET_VCPU_EVENTS" }, seen.vcpu_events)
      assert.same({ "KVM_GET_REGS", "KVM_SET_REGS" }, seen.part)
    end
  end)

  it("are one for an empty view, however much is read", function()
    for _, sync in ipairs { true, false } do
      local seen = trace([[
local kvm, vm, vcpu = guest("\xf4")
mark "regs"
for _ = 1, 3 do for _ in pairs(vcpu.regs) do end end
mark "sregs"
for _ = 1, 3 do for _, name in ipairs { "cs", "ss" } do
  for _ in pairs(vcpu.sregs[name]) do end
end end
mark "events"
local _ = vcpu.events.nmi.pending + vcpu.events.flags
mark "set"
vcpu:set_regs { rax = 2 }
mark "again"
_ = vcpu.regs.rax + vcpu.regs.rbx
mark "end"]], { sync_regs = sync })
      assert.same({ "KVM_GET_REGS" }, seen.regs)
      assert.same({ "KVM_GET_SREGS" }, seen.sregs)
      assert.same({ "KVM_GET_VCPU_EVENTS" }, seen.events)
      assert.same({ "KVM_GET_REGS" }, seen.again)
    end
  end)

  it("are at most one a run for handlers that read and write a view, with sync regs", function()
    need_sync_regs()
    local seen = trace(outs .. [[
vm:on("io_out", function(_, _, _, cpu)
  local regs, sregs, events = cpu.regs, cpu.sregs, cpu.events
  regs.rbx = regs.rcx + regs.rdx
  sregs.cr2 = sregs.cr2 + 0x1000
  events.nmi.masked = events.nmi.pending
end)
mark "first"
assert(vcpu:run() == "hlt")
mark "second"
vcpu.regs.rip = 0x1000
assert(vcpu:run() == "hlt")
mark "end"
assert(vcpu.regs.rbx == 1 and vcpu.sregs.cr2 == 0x1000 * 200)]])
    local first = count(seen.first)
    assert.is_true((first.KVM_GET_REGS or 0) <= 1)
    assert.is_true((first.KVM_GET_SREGS or 0) <= 1)
    assert.is_true((first.KVM_GET_VCPU_EVENTS or 0) <= 1)
    assert.is_nil(first.KVM_SET_REGS)
    assert.is_nil(first.KVM_SET_SREGS)
    assert.is_nil(first.KVM_SET_VCPU_EVENTS)
    local second = count(seen.second)
    second.KVM_RUN = nil -- sregs are written behind the instruction: two for each exit
    assert.same({}, second)
  end)

  it("are none for a view that was read before the run, with sync regs", function()
    need_sync_regs()
    local seen = trace(outs .. [[
local sum = vcpu.regs.rbx
vm:on("io_out", function(_, _, _, cpu)
  sum = sum + cpu.regs.rcx
  cpu.regs.rbx = sum
end)
mark "run"
assert(vcpu:run() == "hlt")
mark "end"
assert(vcpu.regs.rbx == 5050)]])
    assert.same({ KVM_RUN = 101 }, count(seen.run))
  end)

  it("are one KVM_RUN more for a register that is written during a read", function()
    need_sync_regs()
    local seen = trace([[
local kvm, vm, vcpu = guest("\xe4\x10\xf4")
vcpu.regs.rbx = 0
vm:on("io_in", function(_, _, cpu)
  cpu.regs.rbx = 7
  return 1
end)
mark "run"
assert(vcpu:run() == "hlt")
mark "end"
assert(vcpu.regs.rbx == 7 and vcpu.regs.rax == 1)]])
    assert.same({ KVM_RUN = 3 }, count(seen.run))
  end)

  it("are one get and one set an exit without sync regs, however much is read and written",
    function()
      local seen = trace(outs .. [[
vm:on("io_out", function(_, _, _, cpu)
  local regs = cpu.regs
  regs.rbx = regs.rcx + regs.rdx
  regs.rsi = regs.rbx
  regs.rdi = regs.rsi
end)
mark "run"
assert(vcpu:run() == "hlt")
mark "end"
assert(vcpu.regs.rdi == 1)]], { sync_regs = false })
      assert.same({ KVM_RUN = 101, KVM_GET_REGS = 100, KVM_SET_REGS = 100 }, count(seen.run))
    end)

  it("are one get an exit without sync regs where nothing is written", function()
    local seen = trace(outs .. [[
vm:on("io_out", function(_, _, _, cpu) return cpu.regs.rcx + cpu.regs.rip end)
mark "run"
assert(vcpu:run() == "hlt")
mark "end"]], { sync_regs = false })
    assert.same({ KVM_RUN = 101, KVM_GET_REGS = 100 }, count(seen.run))
  end)
end)

describe("vcpu.stats", function()
  local kvm, vm, vcpu

  local function guest(code)
    support.need_kvm()
    kvm, vm, vcpu = support.real_mode(code)
  end
  after_each(function()
    if vm then vm:close() end
    if kvm then kvm:close() end
    kvm, vm, vcpu = nil, nil, nil
  end)

  it("cannot be set", function()
    guest(HLT)
    contains("vCPU has no field 'stats'", error_of(function() vcpu.stats = {} end))
  end)

  it("is all zeros before the first run", function()
    guest(HLT)
    assert.same({ total = 0, exits = {}, batched = 0, guest_time = 0.0, handler_time = 0.0 },
      vcpu.stats)
  end)

  it("counts exits by name, over all runs", function()
    -- out %al, $0x10; in $0x10, %al; movb $1, (0x8000); movb (0x8000), %al; hlt
    support.need_kvm()
    kvm, vm, vcpu = support.real_mode(
      "\xe6\x10\xe4\x10\xc6\x06\x00\x80\x01\xa0\x00\x80\xf4", { size = 0x8000 })
    vm:on("io_out", function() end)
    vm:attach_io { port = 0x10, read = function() return 0 end }
    vm:attach_mmio { gpa = 0x8000, size = 1, value = 0 }
    for i = 1, 3 do
      assert.equal("hlt", vcpu:run { timeout = 10 })
      assert.same({ io_out = i, io_in = i, mmio_write = i, mmio_read = i, hlt = i },
        vcpu.stats.exits)
      assert.equal(5 * i, vcpu.stats.total)
      vcpu:set_regs { rip = 0x1000 }
    end
  end)

  it("counts what run_once returns, and nothing for a run that does not enter", function()
    guest(OUT_HLT)
    vcpu:kick()
    assert.equal("kicked", (vcpu:run()))
    assert.equal("timeout", (vcpu:run { timeout = 0 }))
    assert.equal("exits", (vcpu:run { exits = 0 }))
    assert.equal(0, vcpu.stats.total)
    assert.equal("io_out", vcpu:run_once())
    assert.equal("hlt", vcpu:run_once())
    assert.same({ io_out = 1, hlt = 1 }, vcpu.stats.exits)
    assert.equal(2, vcpu.stats.total)
  end)

  it("counts no exit for the KVM_RUN that finishes an instruction", function()
    guest(IN_HLT)
    vm:on("io_in", function()
      vcpu.regs.rbx = 1
      return 1
    end)
    assert.equal("hlt", (vcpu:run { timeout = 10 }))
    assert.same({ io_in = 1, hlt = 1 }, vcpu.stats.exits)
  end)

  it("counts batched writes apart, as they came with no exit of their own", function()
    guest("\xb9\x32\x00" .. HUNDRED_OUTS:sub(4)) -- 50: Linux before 6.11 exits after 85
    local values = {}
    local ok = pcall(vm.attach_io, vm, {
      port = 0x10, batch = true, write = function(_, value) table.insert(values, value) end,
    })
    if not ok then pending("this KVM batches no ports") end
    assert.equal("hlt", (vcpu:run { timeout = 10 }))
    assert.equal(50, #values)
    assert.equal(50, vcpu.stats.batched)
    assert.same({ hlt = 1 }, vcpu.stats.exits)
  end)

  it("has the time in the guest and in handlers, in seconds", function()
    guest(HUNDRED_OUTS)
    vm:on("io_out", function() end)
    assert.equal("hlt", (vcpu:run { timeout = 10 }))
    local stats = vcpu.stats
    assert.equal("float", math.type(stats.guest_time))
    assert.is_true(stats.guest_time > 0)
    assert.is_true(stats.handler_time > 0)
  end)

  it("is a fresh table each time", function()
    guest(HLT)
    vcpu.stats.total = 5
    assert.equal(0, vcpu.stats.total)
  end)
end)

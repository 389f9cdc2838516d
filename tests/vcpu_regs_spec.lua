-- The registers of a vCPU by call: what get_regs, set_regs, set_sregs and the calls for events
-- take, return and refuse.

local registers = require "registers"
local support = require "support"

local contains, error_of = support.contains, support.error_of
local REGS <const>, SEGMENTS <const> = registers.REGS, registers.SEGMENTS
local BAD_CR4 <const> = registers.BAD_CR4

local HLT <const> = "\xf4"
local OUT_HLT <const> = "\xe6\x10\xf4" -- out %al, $0x10; hlt

for _, mode in ipairs(registers.MODES) do
  local name, open = mode[1], mode[2]

  describe("Registers " .. name .. ":", function()
    local kvm, vm, vcpu

    local function guest(code, regs)
      kvm, vm, vcpu = registers.guest(open, code, regs)
      return vcpu, vm
    end

    after_each(function() kvm, vm, vcpu = support.close(vm, kvm) end)

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
          contains("vcpu_regs_spec.lua:", err.where)
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
  end)
end

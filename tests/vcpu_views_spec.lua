-- The live views of a vCPU's registers: regs, sregs and events, and what the kernel refuses of
-- them.

local registers = require "registers"
local support = require "support"

local contains, error_of = support.contains, support.error_of
local REGS <const>, SEGMENTS <const> = registers.REGS, registers.SEGMENTS
local BAD_CR4 <const> = registers.BAD_CR4

local HLT <const> = "\xf4"
local OUT_HLT <const> = "\xe6\x10\xf4" -- out %al, $0x10; hlt
local IN_HLT <const> = "\xe4\x10\xf4" -- in $0x10, %al; hlt

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
          contains("vcpu_views_spec.lua:", err)
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
          contains("vcpu_views_spec.lua:", err.where)
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
  end)
end

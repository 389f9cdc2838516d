-- ckvm.x86: control bits, page tables, descriptor tables, and the start of each mode.

local ckvm = require "ckvm"
local support = require "support"
local x86 = require "ckvm.x86"

local blames = support.blames

local MiB <const> = 1 << 20

local function guest(size)
  local vm = ckvm.open():create_vm()
  vm:add_memory { gpa = 0, size = size or 16 * MiB }
  return vm, vm:create_vcpu(0)
end

local function refuses(message, ...)
  support.contains(message, support.error_of(...))
end

describe("ckvm.x86:", function()
  before_each(support.need_kvm)

  describe("the names of bits", function()
    it("are each for bits of their own", function()
      for _, register in ipairs {
        "rflags", "cr0", "cr4", "efer", "xcr0", "dr6", "dr7", "page", "page_fault",
      } do
        local seen = 0
        for name, bits in pairs(x86[register]) do
          assert(bits ~= 0 and seen & bits == 0, register .. "." .. name)
          seen = seen | bits
        end
      end
    end)

    it("are each for a vector and an MSR of its own, which a vCPU has", function()
      local seen = {}
      for name, number in pairs(x86.msr) do
        assert(not seen[number], name)
        seen[number] = name
      end
      local known = 0
      for _, index in ipairs(ckvm.open():get_msr_index_list()) do
        if seen[index] then known = known + 1 end
      end
      assert(known > 10, known)
      for name, vector in pairs(x86.vector) do
        assert(vector >= 0 and vector < 32 and not seen["v" .. vector], name)
        seen["v" .. vector] = name
      end
    end)

    it("are what the CPU means: a trap after each instruction, and its bit of DR6", function()
      local vm, vcpu = guest()
      vm:write(0x1000, "\x90\xeb\xfe") -- nop; jmp .
      vm:write(0x2000, "\xf4")         -- hlt
      vm:write(x86.vector.db * 4, "\x00\x20\0\0")
      x86.enter(vcpu, "real", { rip = 0x1000, rsp = 0x8000, rflags = x86.rflags.tf | 2 })
      assert.equal("hlt", vcpu:run { timeout = 10 })
      assert.equal(0x1001, vm:read_u16(0x7ffa))
      assert.equal(x86.dr6.bs, vcpu:get_debugregs().dr6 & (x86.dr6.bs | x86.dr6.b0))
    end)
  end)

  describe("identity_map_size", function()
    it("is two pages, and one for each GiB begun", function()
      assert.equal(0x3000, x86.identity_map_size(1))
      assert.equal(0x3000, x86.identity_map_size(1 << 30))
      assert.equal(0x4000, x86.identity_map_size((1 << 30) + 1))
      assert.equal(0x202000, x86.identity_map_size(512 << 30))
    end)

    for _, size in ipairs { 0, -1, 1.5, "1", (512 << 30) + 1 } do
      it("refuses " .. size, function()
        refuses("size: " .. size .. " is not between 1 and 0x8000000000",
          x86.identity_map_size, size)
      end)
    end

    it("blames the caller", function()
      refuses("x86_spec.lua:", function() return (x86.identity_map_size(0)) end)
    end)
  end)

  describe("identity_map", function()
    it("returns the address for CR3 and writes nothing else", function()
      local vm = guest()
      vm:fill(0, 16 * MiB, 0xaa)
      assert.equal(0x5000, x86.identity_map(vm, 0x5000, 2 << 30))
      assert.equal(0xaaaaaaaa, vm:read_u32(0x4ffc))
      assert.equal(0xaaaaaaaa, vm:read_u32(0x9000))
    end)

    it("maps each 2 MiB to itself, present and writable", function()
      local vm = guest()
      x86.identity_map(vm, 0x5000, 2 << 30)
      assert.equal(0x6003, vm:read_u64(0x5000))
      assert.equal(0, vm:read_u64(0x5008))
      assert.equal(0x7003, vm:read_u64(0x6000))
      assert.equal(0x8003, vm:read_u64(0x6008))
      assert.equal(0, vm:read_u64(0x6010))
      for i = 0, 1023 do assert.equal(i << 21 | 0x83, vm:read_u64(0x7000 + i * 8)) end
    end)

    it("refuses an address that is not a page's", function()
      refuses("gpa: 4097 is not a multiple of the page size", x86.identity_map, guest(), 4097, 1)
      refuses("gpa: nil is not a multiple of the page size", x86.identity_map, guest(), nil, 1)
    end)

    it("refuses an address without memory", function()
      blames("no memory at 0x1000000", x86.identity_map, guest(), 16 * MiB - 0x2000, 1)
    end)

    it("refuses what is no VM", function()
      local vm, vcpu = guest()
      blames("vm: VM expected, got ckvm vCPU", x86.identity_map, vcpu, 0, 1)
      blames("vm: VM expected, got nil", x86.identity_map, nil, 0, 1)
      vm:close()
      blames("VM is closed", x86.identity_map, vm, 0, 1)
    end)
  end)

  describe("page_tables", function()
    local page = x86.page

    -- The entry that maps an address, by a walk through the tables.
    local function entry_of(vm, cr3, va)
      local at = cr3
      for shift = 39, 12, -9 do
        local entry = vm:read_u64(at + (va >> shift & 511) * 8)
        if shift == 12 or entry & page.present == 0 or entry & page.large ~= 0 then
          return entry, shift
        end
        at = entry & 0xffffffffff000
      end
    end

    it("maps what the list says, and nothing else", function()
      local vm = guest()
      local cr3, behind = x86.page_tables(vm, 0x5000, {
        { va = 0x1000, size = 0x2000, user = true },
        { va = 0x7fff00000000, gpa = 0x3000, size = 0x1000, write = false, execute = false },
        { va = 0x40000000, gpa = 0x200000, size = 0x400000, page = 2 << 20 },
        { va = 3 << 30, gpa = 0, size = 1 << 30, page = 1 << 30 },
      })
      assert.equal(0x5000, cr3)
      assert.equal(0x5000 + 8 * 0x1000, behind) -- 1, PDPT PD PT, PD; PDPT PD PT
      local small = page.present | page.write
      assert.equal(0x1000 | small | page.user, (entry_of(vm, cr3, 0x1000)))
      assert.equal(0x2000 | small | page.user, (entry_of(vm, cr3, 0x2fff)))
      assert.equal(0, (entry_of(vm, cr3, 0)))
      assert.equal(0, (entry_of(vm, cr3, 0x3000)))
      assert.equal(0x3000 | page.present | page.no_execute, (entry_of(vm, cr3, 0x7fff00000000)))
      assert.equal(0x400000 | small | page.large, (entry_of(vm, cr3, 0x40200000)))
      assert.same({ small | page.large, 30 }, { entry_of(vm, cr3, 0xc0000000) })
    end)

    it("lets a later mapping win", function()
      local vm = guest()
      local cr3 = x86.page_tables(vm, 0x5000, {
        { va = 0, size = 2 << 20, page = 2 << 20 }, { va = 0x1000, size = 0x1000 },
      })
      assert.same({ 0x1003, 12 }, { entry_of(vm, cr3, 0x1000) })
    end)

    it("refuses what is not aligned, not a size of pages, not known", function()
      local vm = guest()
      refuses("gpa: 1 is not a multiple", x86.page_tables, vm, 1, {})
      refuses("va: 1 is not a multiple", x86.page_tables, vm, 0, { { va = 1, size = 0x1000 } })
      refuses("mapping: va: integer expected, got nil", x86.page_tables, vm, 0,
        { { size = 0x1000 } })
      refuses("size: -4096 is not a multiple", x86.page_tables, vm, 0,
        { { va = 0, size = -0x1000 } })
      refuses("size: 1 is not a multiple", x86.page_tables, vm, 0, { { va = 0, size = 1 } })
      refuses("gpa: 4096 is not a multiple", x86.page_tables, vm, 0,
        { { va = 0, gpa = 0x1000, size = 2 << 20, page = 2 << 20 } })
      refuses("page: 8192 is not 4 KiB, 2 MiB or 1 GiB", x86.page_tables, vm, 0,
        { { va = 0, size = 0x2000, page = 0x2000 } })
      refuses("mapping: unknown field 'ring'", x86.page_tables, vm, 0,
        { { va = 0, size = 0x1000, ring = 3 } })
    end)

    it("refuses other arguments, and an address without memory", function()
      local vm = guest()
      blames("vm: VM expected, got table", x86.page_tables, {}, 0, {})
      blames("mappings: table expected, got integer", x86.page_tables, vm, 0, 5)
      blames("mapping: table of fields expected, got integer", x86.page_tables, vm, 0, { 5 })
      blames("no memory at 0x1000000", x86.page_tables, vm, 16 * MiB, {})
      blames("no memory at 0x1000000", x86.page_tables, vm, 16 * MiB - 0x1000,
        { { va = 0, size = 0x1000 } })
    end)
  end)

  describe("segment", function()
    it("refuses a kind and fields that there are not", function()
      blames("unknown kind 'cdoe' of a segment", x86.segment, "cdoe", { selector = 8 })
      blames("segment: table of fields expected, got integer", x86.segment, "code", 8)
      blames("segment: unknown field 'limt'", x86.segment, "code", { selector = 8, limt = 5 })
      blames("selector: integer expected, got nil", x86.segment, "code", {})
      blames("base: integer expected, got float", x86.segment, "code", { selector = 8, base = 0.5 })
    end)
  end)

  describe("gdt", function()
    it("has the segments of x86.selector", function()
      local bytes = x86.gdt { base = 0x123456789a, limit = 0x67 }
      local function at(name)
        return (string.unpack("<I8", bytes, (x86.selector[name] & ~7) + 1))
      end
      assert.equal(0x48, #bytes)
      assert.equal(0x00af9b000000ffff, at "code")
      assert.equal(0x00cf93000000ffff, at "data")
      assert.equal(0x00cffb000000ffff, at "user_code32")
      assert.equal(0x00cff3000000ffff, at "user_data")
      assert.equal(0x00affb000000ffff, at "user_code")
      assert.equal(0x00cf9b000000ffff, at "code32")
      assert.equal(0x34008956789a0067, at "tss")
      assert.equal(0x12, (string.unpack("<I8", bytes, x86.selector.tss + 9)))
    end)

    it("refuses what is no TSS's place", function()
      blames("tss: table of fields expected, got string", x86.gdt, "tss")
      blames("limit: integer expected, got nil", x86.gdt, { base = 0 })
      blames("tss: unknown field 'size'", x86.gdt, { base = 0, size = 0x68 })
    end)

    it("has no TSS unless it is told of one", function()
      assert.equal(("\0"):rep(16), x86.gdt():sub(x86.selector.tss + 1, x86.selector.tss + 16))
    end)
  end)

  describe("idt", function()
    it("has gates for handlers, and none where there is no handler", function()
      local bytes = x86.idt({ [1] = 0x1122334455667788, [2] = 0x1000 }, { [2] = 3 })
      assert.equal(48, #bytes)
      assert.equal(("\0"):rep(16), bytes:sub(1, 16))
      assert.equal("\x88\x77\x08\0\0\x8e\x66\x55\x44\x33\x22\x11\0\0\0\0", bytes:sub(17, 32))
      assert.equal(0xee, bytes:byte(33 + 5))
      assert.equal("", x86.idt {})
    end)
  end)

  describe("idt", function()
    it("refuses what is no vector and no address", function()
      blames("handlers: table expected, got nil", x86.idt)
      blames("vector: 256 is not between 0 and 255", x86.idt, { [256] = 0 })
      blames("vector: x is not between 0 and 255", x86.idt, { x = 0 })
      blames("handler: integer expected, got string", x86.idt, { [0] = "0" })
    end)

    it("has the stacks of the gates", function()
      blames("stacks: 8 is not between 0 and 7", x86.idt, { [0] = 0 }, nil, { [0] = 8 })
      blames("rings: 4 is not between 0 and 3", x86.idt, { [0] = 0 }, { [0] = 4 })
      assert.equal("\0\0\x08\0\7\x8e", x86.idt({ [0] = 0 }, nil, { [0] = 7 }):sub(1, 6))
    end)
  end)

  describe("tss", function()
    it("refuses fields that there are not", function()
      blames("tss: table of fields expected, got nil", x86.tss)
      blames("tss: unknown field 'rsp'", x86.tss, { rsp = 0 })
      blames("ports: table expected, got integer", x86.tss, { ports = 0x80 })
      blames("ports: 65536 is not between 0 and 65535", x86.tss, { ports = { 0x10000 } })
    end)

    it("has seven more stacks", function()
      local bytes = x86.tss { ist = { 0x11, 0x22, [7] = 0x77 } }
      local at_1c = { string.unpack("<I8I8I8I8", bytes, 0x1d) }
      assert.same({ 0, 0x11, 0x22, 0 }, { table.unpack(at_1c, 1, 4) })
      assert.equal(0x77, (string.unpack("<I8", bytes, 0x55)))
      assert.equal(105, #bytes)
      blames("ist: 0.5 is no address", x86.tss, { ist = { 0.5 } })
    end)

    it("has a bitmap for all ports", function()
      local ports = {}
      for port = 0, 0xffff do ports[port + 1] = port end
      assert.equal(("\0"):rep(8192) .. "\xff", x86.tss({ ports = ports }):sub(105))
    end)

    it("has the stack of ring 0 and an I/O bitmap", function()
      local bytes = x86.tss { rsp0 = 0x1122334455667788, ports = { 0x10, 0x17, 0x20 } }
      assert.equal(0x1122334455667788, (string.unpack("<I8", bytes, 5)))
      assert.equal(104, (string.unpack("<I2", bytes, 103)))
      assert.equal("\xff\xff\x7e\xff\xfe\xff", bytes:sub(105))
    end)

    it("allows no port by itself", function()
      assert.equal("\xff", x86.tss({}):sub(105))
    end)
  end)

  describe("gdt32, idt32 and tss32", function()
    -- A guest whose tables are in place, and what `enter` takes.
    local function protected(code)
      local vm, vcpu = guest()
      local tss = x86.tss32 { esp0 = 0x6000, ports = { 0x10 } }
      local place = { base = 0x3000, limit = #tss - 1 }
      local gdt, idt = x86.gdt32(place), x86.idt32 { [6] = 0x4000, [13] = 0x4008 }
      for gpa, bytes in pairs {
        [0x1000] = code, [0x2000] = gdt, [0x2800] = idt, [0x3000] = tss,
        [0x4000] = "\xb0\6\xf4", [0x4008] = "\xb0\x0d\xf4", -- mov $vector, %al; hlt
      } do
        vm:write(gpa, bytes)
      end
      x86.enter(vcpu, "protected", { rip = 0x1000, rsp = 0x8000, tss = place,
        gdt = { base = 0x2000, limit = #gdt - 1 }, idt = { base = 0x2800, limit = #idt - 1 } })
      return vm, vcpu
    end

    it("lead exceptions of protected mode to their handlers", function()
      local vm, vcpu = protected "\x0f\x0b" -- ud2
      assert.equal("hlt", vcpu:run { timeout = 10 })
      assert.equal(6, vcpu.regs.rax & 0xff)
      local rip, cs = string.unpack("<I4I4", vm:read(0x8000 - 12, 8))
      assert.same({ 0x1000, x86.selector.code32 }, { rip, cs })
    end)

    it("have segments that the guest can load, and a task", function()
      -- mov $0x30, %ax; ltr %ax; mov $0x10, %ax; mov %ax, %ds; ljmp $0x08, $0x1014; hlt
      local _, vcpu = protected("\x66\xb8\x30\0\x0f\0\xd8\x66\xb8\x10\0\x8e\xd8"
        .. "\xea\x14\x10\0\0\x08\0\xf4")
      assert.equal("hlt", vcpu:run { timeout = 10 })
      assert.equal(0x1015, vcpu.regs.rip)
      local sregs = vcpu.sregs
      assert.same({ 8, 0x10, 0x30, 0x3000 },
        { sregs.cs.selector, sregs.ds.selector, sregs.tr.selector, sregs.tr.base })
    end)

    -- Where the bitmap does not work, the CPU is an emulator that does not know a busy TSS: it is
    -- at an end then, and all of its machine.
    it("lead exceptions of ring 3 to the stack of ring 0", function()
      if not ckvm.probe({ only = { "ring3.io_bitmap" } }).ring3.io_bitmap then
        support.skip "a CPU that refuses a TSS that is busy"
      end
      local vm, vcpu = protected "\x0f\x0b"
      local code = x86.segment("code", { selector = x86.selector.user_code32 })
      local data = x86.segment("data", { selector = x86.selector.user_data })
      vcpu:set_sregs { cs = code, ds = data, es = data, ss = data }
      assert.equal("hlt", vcpu:run { timeout = 10 })
      local rip, cs, _, esp, ss = string.unpack("<I4I4I4I4I4", vm:read(0x6000 - 20, 20))
      assert.same({ 0x1000, 0x1b, 0x8000, 0x23 }, { rip, cs, esp, ss })
    end)

    it("are what the CPU's manual draws", function()
      local gdt = x86.gdt32 { base = 0x12345678, limit = 0xabcde }
      assert.equal(0x48, #gdt)
      assert.equal("\xde\xbc\x78\x56\x34\x89\x0a\x12", gdt:sub(0x31, 0x38))
      for name, expected in pairs {
        code = 0x00cf9b000000ffff, code32 = 0x00cf9b000000ffff, data = 0x00cf93000000ffff,
        user_code32 = 0x00cffb000000ffff, user_data = 0x00cff3000000ffff, user_code = 0,
      } do
        assert.equal(expected, (string.unpack("<I8", gdt, (x86.selector[name] & ~7) + 1)))
      end
      assert.equal(("\0"):rep(8) .. "\x78\x56\x40\0\0\xee\x34\x12",
        x86.idt32({ [1] = 0x12345678 }, { [1] = 3 }))
      local tss = x86.tss32 { esp0 = 0x1234, ports = { 1 } }
      assert.equal(0x1234, (string.unpack("<I4", tss, 5)))
      assert.equal(0x10, (string.unpack("<I4", tss, 9)))
      assert.equal(104, (string.unpack("<I2", tss, 103)))
      assert.equal("\xfd\xff", tss:sub(105))
    end)

    it("refuse what does not fit", function()
      blames("limit: 0x100000 is not between 0 and 0xfffff", x86.gdt32,
        { base = 0, limit = 0x100000 })
      blames("base: 0x100000000 does not fit in 32 bits", x86.gdt32, { base = 1 << 32, limit = 0 })
      blames("tss: table of fields expected, got string", x86.gdt32, "tss")
      blames("handler: 0x100000000 does not fit", x86.idt32, { [0] = 1 << 32 })
      blames("vector: 256 is not between 0 and 255", x86.idt32, { [256] = 0 })
      blames("handler: integer expected, got string", x86.idt32, { [0] = "0" })
      blames("rings: 4 is not between 0 and 3", x86.idt32, { [0] = 0 }, { [0] = 4 })
      blames("handlers: table expected, got nil", x86.idt32)
      blames("esp0: 0xffffffffffffffff does not fit", x86.tss32, { esp0 = -1 })
      blames("tss32: unknown field 'rsp0'", x86.tss32, { rsp0 = 0 })
      blames("ports: 65536 is not between", x86.tss32, { ports = { 0x10000 } })
    end)
  end)

  describe("enter", function()
    it("refuses what is not a mode", function()
      local _, vcpu = guest()
      refuses("unknown mode 'virtual'", x86.enter, vcpu, "virtual", { rip = 0 })
      refuses("unknown mode 'nil'", x86.enter, vcpu, nil, { rip = 0 })
    end)

    it("refuses unknown, missing and wrong options", function()
      local _, vcpu = guest()
      refuses("real mode: unknown option 'ip'", x86.enter, vcpu, "real", { ip = 0 })
      refuses("real mode: unknown option 'cr3'", x86.enter, vcpu, "real", { rip = 0, cr3 = 0 })
      refuses("real mode: rip: integer expected, got nil", x86.enter, vcpu, "real", {})
      refuses("rip: integer expected, got string", x86.enter, vcpu, "real", { rip = "0" })
      refuses("rip: integer expected, got float", x86.enter, vcpu, "real", { rip = 0.5 })
      refuses("gdt: table expected, got integer", x86.enter, vcpu, "long", { rip = 0, gdt = 1 })
      refuses("real mode: unknown option 'tss'", x86.enter, vcpu, "real", { rip = 0, tss = {} })
      refuses("cr3: long mode needs page tables", x86.enter, vcpu, "user", { rip = 0 })
      refuses("rip: 0x10000 is beyond 0xffff", x86.enter, vcpu, "real", { rip = 0x10000 })
      refuses("cr3: long mode needs page tables", x86.enter, vcpu, "long", { rip = 0 })
      blames("tss: unknown field 'bse'", x86.enter, vcpu, "long",
        { rip = 0, cr3 = 0, tss = { bse = 0 } })
    end)

    it("refuses other arguments, and blames the caller for what the vCPU refuses", function()
      local vm, vcpu = guest()
      blames("vcpu: vCPU expected, got ckvm VM", x86.enter, vm, "real", { rip = 0 })
      blames("real mode: table of options expected, got integer", x86.enter, vcpu, "real", 0x1000)
      blames("real mode: table of options expected, got nil", x86.enter, vcpu, "real")
      blames("gdt: unknown field 'size'", x86.enter, vcpu, "protected",
        { rip = 0, gdt = { size = 1 } })
      vcpu:close()
      blames("vCPU is closed", x86.enter, vcpu, "real", { rip = 0 })
      local _, _, other = support.real_mode("", { open = { sync_regs = false } })
      local err = support.error_of(function()
        x86.enter(other, "long", { rip = 0, cr3 = 1 << 62 })
      end)
      assert.equal("KVM_SET_SREGS", err.call)
      assert.matches("x86_spec.lua:%d+$", err.where)
    end)

    it("real runs 16-bit code with a stack and clear registers", function()
      local vm, vcpu = guest()
      vm:write(0x1000, "\x50\x53\x9c\xf4") -- push %ax; push %bx; pushf; hlt
      vm:fill(0xff0, 16, 0xaa)
      vcpu:set_regs { rax = 1, rbx = 2, rflags = 0x202 }
      x86.enter(vcpu, "real", { rip = 0x1000, rsp = 0x1000 })
      assert.equal("hlt", vcpu:run { timeout = 10 })
      assert.equal("\x02\0\0\0\0\0", vm:read(0xffa, 6))
      assert.equal(0x1004, vcpu.regs.rip)
    end)

    it("long runs 64-bit code that reaches all that is mapped", function()
      local vm, vcpu = guest()
      -- movabs $0x1122334455667788, %rax; push %rax; movb $7, 0xe00000; hlt
      vm:write(0x1000, "\x48\xb8\x88\x77\x66\x55\x44\x33\x22\x11\x50"
        .. "\xc6\x04\x25\0\0\xe0\0\x07\xf4")
      x86.enter(vcpu, "long",
        { rip = 0x1000, rsp = 0x3000, cr3 = x86.identity_map(vm, 0x4000, 1) })
      assert.equal("hlt", vcpu:run { timeout = 10 })
      assert.equal(0x1122334455667788, vm:read_u64(0x2ff8))
      assert.equal(7, vm:read_u8(0xe00000))
    end)

    it("long sets what the CPU checks", function()
      local vm, vcpu = guest()
      x86.enter(vcpu, "long", { rip = 0, cr3 = x86.identity_map(vm, 0x4000, 1) })
      local sregs = vcpu:get_sregs()
      local cr0, cr4, efer = x86.cr0, x86.cr4, x86.efer
      assert.equal(cr0.pe | cr0.pg, sregs.cr0 & (cr0.pe | cr0.pg))
      assert.equal(cr4.pae, sregs.cr4 & cr4.pae)
      assert.equal(efer.lme | efer.lma, sregs.efer)
      assert.equal(1, sregs.cs.l)
      assert.equal(0x4000, sregs.cr3)
    end)

    it("protected runs 32-bit code without paging", function()
      local vm, vcpu = guest()
      vm:write(0x1000, "\x68\x44\x33\x22\x11\xf4") -- push $0x11223344; hlt
      x86.enter(vcpu, "protected", { rip = 0x1000, rsp = 0x800000 })
      assert.equal("hlt", vcpu:run { timeout = 10 })
      assert.equal(0x11223344, vm:read_u32(0x7ffffc))
    end)

    it("user runs 64-bit code in ring 3, with exceptions that lead to ring 0", function()
      local vm, vcpu = guest()
      local tss = x86.tss { rsp0 = 0x5000 }
      local place = { base = 0x7000, limit = #tss - 1 }
      vm:write(0x1000, "\xa2\0\0\0\0\1\0\0\0\xe6\x10") -- movabs %al, 1 << 32; out %al, $0x10
      vm:write(0x4000, "\xf4") -- hlt
      vm:write(0x6000, x86.gdt(place))
      vm:write(0x7000, tss)
      vm:write(0x6800, x86.idt { [13] = 0x4000 })
      x86.enter(vcpu, "user", {
        rip = 0x1000, rsp = 0x3000, rflags = 0x46, tss = place,
        gdt = { base = 0x6000, limit = 0x47 }, idt = { base = 0x6800, limit = 0xdf },
        cr3 = x86.page_tables(vm, 0x8000, {
          { va = 0x1000, size = 0x2000, user = true }, { va = 0x4000, size = 0x4000 },
          { va = 1 << 32, gpa = 64 * MiB, size = 0x1000, user = true }, -- no memory
        }),
      })
      assert.equal("mmio_write", vcpu:run { timeout = 10 })
      assert.equal(3, vcpu.sregs.cs.selector & 3)
      assert.equal("hlt", vcpu:run { timeout = 10 }) -- the TSS allows no port
      assert.equal(0, vcpu.sregs.cs.selector & 3)
      local code, rip, cs, flags, rsp, ss = string.unpack("<I8I8I8I8I8I8", vm:read(0x4fd0, 48))
      assert.same({ 0, 0x1009, 0x2b, 0x46, 0x3000, 0x23 }, { code, rip, cs, flags & 0x46, rsp, ss })
    end)

    it("leaves the GDT and TR alone unless it is given them", function()
      local vm, vcpu = guest()
      local cr3 = x86.identity_map(vm, 0x4000, 1)
      local gdt, tss = { base = 0x2000, limit = 0x47 }, { base = 0x3000, limit = 0x67 }
      x86.enter(vcpu, "long", { rip = 0, cr3 = cr3, gdt = gdt, tss = tss })
      x86.enter(vcpu, "long", { rip = 0, cr3 = cr3 })
      local sregs = vcpu:get_sregs()
      assert.equal(0x2000, sregs.gdt.base)
      assert.equal(0x47, sregs.gdt.limit)
      assert.equal(0x3000, sregs.tr.base)
      assert.equal(x86.selector.tss, sregs.tr.selector)
    end)

    it("starts where it is told while an access is open there", function()
      for _, sync_regs in ipairs { true, false } do
        for _, code in ipairs { "\xe6\x10\xf4", "\xe4\x10\xf4" } do -- out or in, $0x10; hlt
          local vm = ckvm.open({ sync_regs = sync_regs }):create_vm()
          vm:add_memory { gpa = 0, size = 0x10000 }
          vm:write(0x1000, code)
          local vcpu = vm:create_vcpu(0)
          for _ = 1, 3 do
            x86.enter(vcpu, "real", { rip = 0x1000 })
            assert.matches("^io_", vcpu:run { timeout = 10 })
          end
          local count = 0
          local function start() -- in the middle of it, and once more
            count = count + 1
            if count < 3 then x86.enter(vcpu, "real", { rip = 0x1000 }) end
            return 0
          end
          vm:attach_io { port = 0x10, read = start, write = start }
          x86.enter(vcpu, "real", { rip = 0x1000 })
          assert.equal("hlt", vcpu:run { timeout = 10 })
          assert.equal(3, count)
        end
      end
    end)

    it("ends one mode in the other", function()
      local vm, vcpu = guest()
      vm:write(0x1000, "\xf4")
      local cr3 = x86.identity_map(vm, 0x4000, 1)
      for _, mode in ipairs { "long", "real", "protected", "long", "protected", "real" } do
        x86.enter(vcpu, mode, { rip = 0x1000, cr3 = mode == "long" and cr3 or nil })
        assert.equal("hlt", vcpu:run { timeout = 10 })
        assert.equal(0x1001, vcpu.regs.rip)
      end
    end)
  end)
end)

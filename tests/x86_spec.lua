-- ckvm.x86: control bits, identity-mapped page tables, and the start of real and long mode.

local ckvm = require "ckvm"
local support = require "support"
local x86 = require "ckvm.x86"

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
      refuses("no memory at 0x1000000", x86.identity_map, guest(), 16 * MiB - 0x2000, 1)
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
      refuses("unknown option 'ip' of real mode", x86.enter, vcpu, "real", { ip = 0 })
      refuses("unknown option 'cr3' of real mode", x86.enter, vcpu, "real", { rip = 0, cr3 = 0 })
      refuses("rip: where to start is not given", x86.enter, vcpu, "real", {})
      refuses("rip: integer expected, got string", x86.enter, vcpu, "real", { rip = "0" })
      refuses("rip: 0x10000 is beyond 0xffff", x86.enter, vcpu, "real", { rip = 0x10000 })
      refuses("cr3: long mode needs page tables", x86.enter, vcpu, "long", { rip = 0 })
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

    it("ends one mode in the other", function()
      local vm, vcpu = guest()
      vm:write(0x1000, "\xf4")
      local cr3 = x86.identity_map(vm, 0x4000, 1)
      for _, mode in ipairs { "long", "real", "long", "real" } do
        x86.enter(vcpu, mode, { rip = 0x1000, cr3 = mode == "long" and cr3 or nil })
        assert.equal("hlt", vcpu:run { timeout = 10 })
        assert.equal(0x1001, vcpu.regs.rip)
      end
    end)
  end)
end)

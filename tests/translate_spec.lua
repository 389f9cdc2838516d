-- Guest memory by virtual address: vcpu:translate, read, write, read_cstring.

local ckvm = require "ckvm"
local support = require "support"
local x86 = require "ckvm.x86"

local contains, error_of = support.contains, support.error_of

local PAGE <const> = 0x1000
local TOP <const>, DIRECTORY_POINTERS <const>, DIRECTORY <const>, TABLE <const> =
  0x1000, 0x2000, 0x3000, 0x4000
local ENTRY <const> = x86.page.present | x86.page.write

-- In long mode, with the pages of `map` (virtual to physical, below 2 MiB) and no others. Memory
-- is below 0x20000.
local function guest(map)
  support.need_kvm()
  local kvm = ckvm.open()
  local vm = kvm:create_vm()
  vm:add_memory { gpa = 0, size = 0x20000 }
  vm:write_u64(TOP, DIRECTORY_POINTERS | ENTRY)
  vm:write_u64(DIRECTORY_POINTERS, DIRECTORY | ENTRY)
  vm:write_u64(DIRECTORY, TABLE | ENTRY)
  for gva, gpa in pairs(map) do vm:write_u64(TABLE + gva // PAGE * 8, gpa | ENTRY) end
  local vcpu = vm:create_vcpu(0)
  vcpu:set_cpuid2(kvm:get_supported_cpuid())
  x86.enter(vcpu, "long", { rip = 0x10000, cr3 = TOP })
  return kvm, vm, vcpu
end

describe("Memory by virtual address:", function()
  local kvm, vm, vcpu
  after_each(function() kvm, vm, vcpu = support.close(vm, kvm) end)

  local function start(map)
    kvm, vm, vcpu = guest(map or { [0x8000] = 0x12000, [0x9000] = 0x11000, [0xa000] = 0x13000 })
  end

  describe("vcpu:translate", function()
    it("refuses what is no address, and a closed vCPU", function()
      start()
      for _, gva in ipairs { "0x1000", {}, true } do
        contains("address expected", error_of(vcpu.translate, vcpu, gva))
      end
      vcpu:close()
      contains("vCPU is closed", error_of(vcpu.translate, vcpu, 0))
    end)

    it("is the physical address, or nil", function()
      start()
      assert.equal(0x12000, vcpu:translate(0x8000))
      assert.equal(0x12fff, vcpu:translate(0x8fff))
      assert.equal(0x11000, vcpu:translate(0x9000))
      for _, gva in ipairs { 0, 0x7fff, 0xb000, 1 << 30, math.maxinteger, -1 } do
        assert.is_nil(vcpu:translate(gva))
      end
    end)

    it("is the address itself without paging", function()
      support.need_kvm()
      kvm, vm, vcpu = support.real_mode("\xf4")
      assert.equal(0x10000, vcpu:translate(0x10000))
      assert.is_nil(vcpu:translate(-1))
    end)

    it("goes by what was written to a view", function()
      start()
      vm:write_u64(0x1f000, DIRECTORY_POINTERS | ENTRY)
      vm:write_u64(TOP, 0)
      assert.is_nil(vcpu:translate(0x8000))
      vcpu.sregs.cr3 = 0x1f000
      assert.equal(0x12000, vcpu:translate(0x8000))
    end)

    it("works in a handler", function()
      start { [0x10000] = 0x10000, [0x8000] = 0x12000 }
      vm:write(0x10000, "\xe4\x10\xf4") -- in $0x10, %al; hlt
      vm:write(0x12000, "\x2a")
      vm:attach_io { port = 0x10, read = function(_, _, from)
        assert.equal(0x12000, from:translate(0x8000))
        return from:read(0x8000, 1):byte()
      end }
      assert.equal("hlt", (vcpu:run(support.LIMITS)))
      assert.equal(0x2a, vcpu.regs.rax & 0xff)
    end)
  end)

  describe("vcpu:read", function()
    it("refuses wrong arguments, and a closed vCPU", function()
      start()
      contains("address expected", error_of(vcpu.read, vcpu, "x", 1))
      contains("number expected", error_of(vcpu.read, vcpu, 0x8000))
      contains("length -1 is negative", error_of(vcpu.read, vcpu, 0x8000, -1))
      contains("beyond the last address", error_of(vcpu.read, vcpu, -16, 17))
      vcpu:close()
      contains("vCPU is closed", error_of(vcpu.read, vcpu, 0x8000, 0))
    end)

    it("crosses pages that are elsewhere in memory", function()
      start()
      vm:write(0x12ff0, ("a"):rep(16))
      vm:write(0x11000, ("b"):rep(PAGE))
      vm:write(0x13000, "cc")
      assert.equal(("a"):rep(16) .. ("b"):rep(PAGE) .. "cc", vcpu:read(0x8ff0, 16 + PAGE + 2))
      assert.equal("a", vcpu:read(0x8fff, 1))
      assert.equal("", vcpu:read(0x8000, 0))
      assert.equal("", vcpu:read(0, 0))
    end)

    it("names the address that is not mapped", function()
      start { [0x8000] = 0x12000, [0xa000] = 0x13000 }
      contains("read at 0x8ff0: 0x9000 is not mapped", error_of(vcpu.read, vcpu, 0x8ff0, 17))
      contains("read at 0x7: 0x7 is not mapped", error_of(vcpu.read, vcpu, 7, 1))
      contains("read at 0xfffffffffffffff0: 0xfffffffffffffff0 is not mapped",
        error_of(vcpu.read, vcpu, -16, 16))
    end)

    it("names the address that has no memory behind it", function()
      start { [0x8000] = 0x1f000, [0x9000] = 0x20000 }
      contains("read at 0x8ff0: 0x9000 is mapped to no memory",
        error_of(vcpu.read, vcpu, 0x8ff0, 17))
    end)

    it("makes no room for what is not there", function()
      start()
      for _, length in ipairs { 1 << 30, 1 << 40, 1 << 62, math.maxinteger } do
        contains("read at 0x8000: 0xb000 is not mapped", error_of(vcpu.read, vcpu, 0x8000, length))
      end
    end)
  end)

  describe("vcpu:write", function()
    it("refuses anything but a string, and a closed vCPU", function()
      start()
      contains("string expected", error_of(vcpu.write, vcpu, 0x8000, 65))
      contains("address expected", error_of(vcpu.write, vcpu, {}, "x"))
      vcpu:close()
      contains("vCPU is closed", error_of(vcpu.write, vcpu, 0x8000, ""))
    end)

    it("crosses pages that are elsewhere in memory", function()
      start()
      vcpu:write(0x8ffe, "ab" .. ("c"):rep(PAGE) .. "de")
      assert.equal("ab", vm:read(0x12ffe, 2))
      assert.equal(("c"):rep(PAGE), vm:read(0x11000, PAGE))
      assert.equal("de\0", vm:read(0x13000, 3))
      vcpu:write(0, "")
    end)

    it("writes nothing if it cannot write all, and names the address", function()
      start { [0x8000] = 0x12000, [0x9000] = 0x20000 }
      contains("write at 0x8ffe: 0x9000 is mapped to no memory",
        error_of(vcpu.write, vcpu, 0x8ffe, "abc"))
      contains("write at 0x9fff: 0x9fff is mapped to no memory",
        error_of(vcpu.write, vcpu, 0x9fff, "abc"))
      contains("write at 0x7fff: 0x7fff is not mapped", error_of(vcpu.write, vcpu, 0x7fff, "abc"))
      contains("write at 0xffffffffffffffff: 0xffffffffffffffff",
        error_of(vcpu.write, vcpu, -1, "abc"))
      assert.equal("\0\0", vm:read(0x12ffe, 2))
    end)
  end)

  describe("vcpu:read_cstring", function()
    it("refuses wrong arguments, and a closed vCPU", function()
      start()
      contains("number expected", error_of(vcpu.read_cstring, vcpu, 0x8000))
      contains("length -1 is negative", error_of(vcpu.read_cstring, vcpu, 0x8000, -1))
      contains("beyond the last address", error_of(vcpu.read_cstring, vcpu, -1, 2))
      vcpu:close()
      contains("vCPU is closed", error_of(vcpu.read_cstring, vcpu, 0x8000, 1))
    end)

    it("ends before the first zero byte, pages away or at once", function()
      start()
      vm:write(0x12ffe, "ab")
      vm:write(0x11000, ("c"):rep(PAGE))
      vm:write(0x13000, "d\0e\0")
      assert.equal("ab" .. ("c"):rep(PAGE) .. "d", vcpu:read_cstring(0x8ffe, 2 * PAGE))
      assert.equal("", vcpu:read_cstring(0x8000, 1))
      assert.equal("e", vcpu:read_cstring(0xa002, 2))
    end)

    it("looks at no page behind the zero byte", function()
      start { [0x8000] = 0x12000 }
      vm:write(0x12ff0, ("a"):rep(15))
      assert.equal(("a"):rep(15), vcpu:read_cstring(0x8ff0, math.maxinteger))
      vm:write(0x12fff, "a")
      contains("read_cstring at 0x8ff0: 0x9000 is not mapped",
        error_of(vcpu.read_cstring, vcpu, 0x8ff0, 100))
    end)

    it("says that there is no zero byte", function()
      start()
      vm:write(0x12000, ("a"):rep(PAGE))
      vm:write(0x11000, "bb")
      for _, length in ipairs { 0, 1, 16, PAGE, PAGE + 2 } do
        contains(("read_cstring at 0x8000: no zero byte in %d bytes"):format(length),
          error_of(vcpu.read_cstring, vcpu, 0x8000, length))
      end
      assert.equal(PAGE + 2, #vcpu:read_cstring(0x8000, PAGE + 3))
    end)
  end)
end)

-- The host's access to guest memory: reads, writes and fills, and the typed accessors.

local support = require "support"

local contains, error_of = support.contains, support.error_of
local new_file, content = support.new_file, support.content

local PAGE <const> = 0x1000

local kvm, vm

local function setup() kvm, vm = support.new_vm() end
local function teardown() kvm, vm = support.close(vm, kvm) end

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

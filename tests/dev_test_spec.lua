-- ckvm.dev.test: the latch, the page that is taken away, and the interrupt lines of the device that
-- KVM's test guests talk to.

local support = require "support"
local test = require "ckvm.dev.test"

local blames = support.blames

local LATCH <const>, ZAP <const>, SECOND <const> = 0, 4, 8

local function make()
  local called = {}
  local device = test.new {
    irq = function(line, level) table.insert(called, { line, level }) end,
    zap = function(gpa) table.insert(called, gpa) end,
  }
  return device, called
end

describe("ckvm.dev.test", function()
  local device, called
  before_each(function() device, called = make() end)

  it("refuses options that it does not know, and wrong ones", function()
    blames("test: unknown option 'vm'", test.new, { vm = 1 })
    blames("test: zap: function expected, got table", test.new, { zap = {} })
  end)

  describe("as a latch", function()
    it("reads back what was written, with accesses of any size", function()
      for _, at in ipairs { LATCH, SECOND } do
        device:write(at, 0x12345678, 4)
        assert.equal(0x12345678, device:read(at, 4))
        assert.equal(0x56, device:read(at + 1, 1))
        device:write(at + 2, 0xabcd, 2)
        device:write(at + 1, 0x1ee, 1)
        assert.equal(0xabcdee78, device:read(at, 4))
        assert.equal(0xcdee, device:read(at + 1, 2))
      end
    end)

    it("is four bytes, at both places", function()
      device:write(LATCH, 0x11223344, 4)
      assert.equal(0x11223344, device:read(SECOND, 4))
      device:write(LATCH + 2, -1, 4) -- two bytes of it are beyond
      assert.equal(0xffff3344, device:read(LATCH, 4))
      assert.equal(0xffffffff, device:read(LATCH + 2, 4))
      assert.same({}, called)
    end)

    it("answers at every offset", function()
      for _, offset in ipairs { -1, 3, 11, 12, math.maxinteger, math.mininteger } do
        for _, size in ipairs { 1, 2, 4 } do
          device:write(offset, math.mininteger, size)
          assert.equal("integer", math.type(device:read(offset, size)))
        end
      end
    end)
  end)

  it("hands on the page that is to be taken away", function()
    device:write(ZAP, 0x12345678, 4)
    device:write(ZAP, 0x3fff, 2)
    device:write(ZAP, 0xff, 1)
    device:write(ZAP, -1, 4)
    assert.same({ 0x12345000, 0x3000, 0, 0xfffff000 }, called)
    assert.equal(0xffffffff, device:read(ZAP, 4))
    assert.equal(0, device:read(LATCH, 4))
  end)

  describe("as a switch of interrupt lines", function()
    it("sets one line, and each time that it is told", function()
      device.lines:write(5, 1, 1)
      device.lines:write(5, 0xfe, 1)
      device.lines:write(23, 0x100, 2)
      device.lines:write(5, 0x100, 1)
      assert.same({ { 5, true }, { 5, true }, { 23, true }, { 5, false } }, called)
      assert.equal(0, device.lines:read(5, 1))
      assert.equal(1, device.lines:read(23, 1))
    end)

    it("has 24 of them", function()
      for _, offset in ipairs { 24, -1, math.maxinteger, math.mininteger } do
        device.lines:write(offset, 1, 1)
        assert.equal(-1, device.lines:read(offset, 1))
      end
      assert.same({}, called)
    end)
  end)

  it("is the same after save and load, and tells the lines", function()
    device:write(LATCH, 0x42, 1)
    device.lines:write(3, 1, 1)
    local state <const> = device:save()
    local other, told = make()
    other.lines:write(4, 1, 1)
    other:load(state)
    assert.equal(0x42, other:read(LATCH, 4))
    assert.equal(25, #told)
    assert.same({ { 3, true }, { 4, false } }, { told[5], told[6] })
    assert.same(state, other:save())
    blames("state: unknown key 'lines'", other.load, other, { latch = 0, levels = 0, lines = 1 })
    blames("state: latch: integer expected, got nil", other.load, other, { levels = 0 })
  end)

  it("does without functions", function()
    local alone = test.new {}
    alone:write(ZAP, 0, 4)
    alone.lines:write(0, 1, 1)
    alone:load(alone:save())
  end)

  for size, code in pairs {
    "\xf3\x6e" .. "\x89\xfa\xbf\x00\x21\xb9\x01\x00" .. "\xf3\x6c",         -- outsb, insb
    "\xf3\x6f" .. "\x89\xfa\xbf\x00\x21\xb9\x01\x00" .. "\xf3\x6d",         -- outsw, insw
    [4] = "\xf3\x66\x6f" .. "\x89\xfa\xbf\x00\x21\xb9\x01\x00" .. "\xf3\x66\x6d", -- outsl, insl
  } do
    it(("serves REP OUTS and REP INS of %d bytes"):format(size), function()
      support.need_kvm()
      -- mov $0xe0, %dx; mov %dx, %di; mov $0x2000, %si; mov $3, %cx; rep outs
      -- mov %di, %dx; mov $0x2100, %di; mov $1, %cx; rep ins; hlt
      local _, vm, vcpu = support.real_mode("\xba\xe0\x00\x89\xd7\xbe\x00\x20\xb9\x03\x00" .. code
        .. "\xf4")
      vm:write(0x2000, "abcdefghijkl")
      vm:attach_io { port = 0xe0, count = 12, device = device }
      assert.equal("hlt", (vcpu:run(support.LIMITS)))
      local last <const> = ("abcdefghijkl"):sub(2 * size + 1, 3 * size)
      assert.equal(last .. "\0", vm:read(0x2100, size + 1))
    end)
  end

  it("interrupts a guest, and takes a page from under it", function()
    support.need_kvm()
    -- mov $0x2004, %dx; mov $1, %al; out %al, (%dx); mov $0x2000, %ax; out %ax, $0xe4; hlt
    local _, vm, vcpu = support.real_mode(
      "\xba\x04\x20\xb0\x01\xee\xb8\x00\x20\xe7\xe4\xf4")
    vm:write(0x2000, "stays")
    local levels = {}
    local of_vm <const> = test.new {
      irq = function(line, level) levels[line] = level end,
      zap = function(gpa) vm:zap_memory(gpa, 0x1000) end,
    }
    vm:attach_io { port = 0xe0, count = 12, device = of_vm }
    vm:attach_io { port = 0x2000, count = 24, device = of_vm.lines }
    assert.equal("hlt", (vcpu:run(support.LIMITS)))
    assert.same({ [4] = true }, levels)
    assert.equal("stays", vm:read(0x2000, 5))
  end)
end)

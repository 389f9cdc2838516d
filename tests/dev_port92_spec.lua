-- ckvm.dev.port92: address line 20, reset, and a guest that uses both.

local port92 = require "ckvm.dev.port92"
local support = require "support"

local blames = support.blames

local function make()
  local called = {}
  return port92.new {
    reset = function() table.insert(called, "reset") end,
    a20 = function(on) table.insert(called, on and "a20 on" or "a20 off") end,
  }, called
end

describe("ckvm.dev.port92", function()
  it("refuses options that it does not know, and wrong ones", function()
    blames("port92: unknown option 'irq'", port92.new, { irq = print })
    blames("port92: reset: function expected, got boolean", port92.new, { reset = true })
  end)

  it("has address line 20, on at first", function()
    local device, called = make()
    assert.equal(2, device:read(0, 1))
    device:write(0, 2, 1)
    device:write(0, 0, 1)
    assert.equal(0, device:read(0, 1))
    device:write(0, 0xfe, 1)
    assert.equal(0x0a, device:read(0, 1))
    assert.same({ "a20 off", "a20 on" }, called)
  end)

  it("resets, each time that the bit is written", function()
    local device, called = make()
    device:write(0, 3, 1)
    device:write(0, 3, 1)
    assert.equal(2, device:read(0, 1))
    assert.same({ "reset", "reset" }, called)
  end)

  it("answers every offset, size and value", function()
    local device = make()
    for _, offset in ipairs { -1, 0, 1, math.maxinteger } do
      for _, size in ipairs { 1, 2, 4 } do
        for value = -1, 255 do
          device:write(offset, value, size)
          assert(device:read(offset, size) < 1 << 8 * size)
        end
      end
    end
  end)

  it("takes a state back, into another one", function()
    local device = make()
    device:write(0, 0, 1)
    local other = make()
    other:load(device:save())
    assert.equal(0, other:read(0, 1))
    blames("state: value: integer expected, got nil", other.load, other, {})
  end)

  it("resets a guest that has looked at it", function()
    support.need_kvm()
    local _, vm, vcpu = support.real_mode(
      "\xe4\x92\x0c\x01\xe6\x92\xf4") -- in $0x92, %al; or $1, %al; out %al, $0x92; hlt
    vm:attach_io { port = 0x92, device = port92.new {
      reset = function() vcpu:stop "reset" end,
    } }
    assert.same({ "stopped", "reset" }, { vcpu:run(support.LIMITS) })
    assert.equal(3, vcpu.regs.rax & 0xff)
  end)
end)

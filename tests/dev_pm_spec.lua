-- ckvm.dev.pm: the timer, events, power off and reset, and a guest that switches itself off.

local pm = require "ckvm.dev.pm"
local support = require "support"

local blames = support.blames

local STATUS <const>, ENABLE <const>, CONTROL <const>, TIMER <const> = 0, 2, 4, 8

-- The device, what was called, and a clock to set.
local function make()
  local called, clock = {}, { seconds = 1000 }
  local device = pm.new {
    poweroff = function() table.insert(called, "poweroff") end,
    reset = function() table.insert(called, "reset") end,
    irq = function(level) table.insert(called, level) end,
    time = function() return clock.seconds end,
  }
  return device, called, clock
end

describe("ckvm.dev.pm", function()
  it("refuses options that it does not know, and wrong ones", function()
    blames("pm: unknown option 'power_off'", pm.new, { power_off = print })
    blames("pm: reset: function expected, got boolean", pm.new, { reset = true })
  end)

  it("counts at 3.579545 MHz from 0, with 24 bits", function()
    local device, _, clock = make()
    assert.equal(0, device:read(TIMER, 4))
    clock.seconds = clock.seconds + 1
    assert.equal(3579545, device:read(TIMER, 4))
    assert.equal(3579545 >> 16, device:read(TIMER + 2, 1))
    clock.seconds = clock.seconds + 9
    assert.equal(35795450 & 0xffffff, device:read(TIMER, 4))
    device:write(TIMER, 0, 4)
    assert.equal(35795450 & 0xffffff, device:read(TIMER, 4))
  end)

  it("counts by ckvm.now", function()
    local device = pm.new {}
    local before = device:read(TIMER, 4)
    for _ = 1, 1000 do device:read(STATUS, 1) end
    assert(device:read(TIMER, 4) > before)
  end)

  it("tells when the timer's highest bit has changed", function()
    local device, called, clock = make()
    assert.equal(0, device:read(STATUS, 2))
    clock.seconds = clock.seconds + 5 -- twice: 0x800000 is 2.34 s
    assert.equal(1, device:read(STATUS, 2))
    device:write(STATUS, 1, 2)
    assert.equal(0, device:read(STATUS, 2))
    device:write(ENABLE, 1, 2)
    clock.seconds = clock.seconds + 5
    device:read(TIMER, 4)
    device:write(STATUS, 1, 2)
    assert.same({ true, false }, called)
  end)

  it("tells of the power button, if that is enabled by the line", function()
    local device, called = make()
    device:press_power_button()
    assert.equal(0x100, device:read(STATUS, 2))
    device:write(ENABLE, 0x100, 2)
    device:write(STATUS, 0xfe, 1) -- not this byte
    assert.same({ true }, called)
    device:write(STATUS + 1, 1, 1)
    assert.same({ true, false }, called)
    assert.equal(0, device:read(STATUS, 2))
  end)

  it("keeps of its registers what there is", function()
    local device = make()
    device:write(ENABLE, 0xffff, 2)
    assert.equal(0x0721, device:read(ENABLE, 2))
    device:write(ENABLE, 0, 1)
    assert.equal(0x0700, device:read(ENABLE, 2))
    assert.equal(1, device:read(CONTROL, 2)) -- ACPI is on
    device:write(CONTROL, 0x1c06, 2)
    assert.equal(0x1c03, device:read(CONTROL, 4))
  end)

  it("switches off at SLP_EN with type 5 only", function()
    local device, called = make()
    device:write(CONTROL, 5 << 10, 2)
    for kind = 0, 7 do
      if kind ~= 5 then device:write(CONTROL, 1 << 13 | kind << 10, 2) end
    end
    assert.same({}, called)
    device:write(CONTROL, 1 << 13 | 5 << 10, 2)
    device:write(CONTROL + 1, 0x34, 1)
    assert.same({ "poweroff", "poweroff" }, called)
    assert.equal(0x1401, device:read(CONTROL, 2)) -- SLP_EN reads 0
  end)

  it("resets by port 0xcf9", function()
    local device, called = make()
    local port <const> = device.reset_register
    port:write(0, 0x02, 1)
    assert.equal(0x02, port:read(0, 1))
    assert.same({}, called)
    port:write(0, 0x06, 1)
    assert.same({ "reset" }, called)
    assert.equal(0, port:read(0, 1))
    assert.equal(0xff, port:read(1, 1))
  end)

  it("answers every offset, size and value", function()
    local device, _, clock = make()
    for _, one in ipairs { device, device.reset_register } do
      for _, offset in ipairs { -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, math.maxinteger } do
        for _, size in ipairs { 1, 2, 4 } do
          for _, value in ipairs { 0, 0xff, 0xffffffff, -1, math.mininteger } do
            clock.seconds = clock.seconds + 1.5
            one:write(offset, value, size)
            local answer = one:read(offset, size)
            assert(answer >= 0 and answer < 1 << 8 * size)
          end
        end
      end
    end
  end)

  it("takes a state back, into one with another clock", function()
    local device, _, clock = make()
    clock.seconds = clock.seconds + 2
    device:write(ENABLE, 0x100, 2)
    device:press_power_button()
    local state = device:save()
    local other, called, others = make()
    others.seconds = 5
    other:load(state)
    assert.same({ true }, called)
    assert.equal(7159090, other:read(TIMER, 4))
    others.seconds = 4 -- the one it was given goes backwards
    assert.equal(3579545, other:read(TIMER, 4))
    blames("state: table expected, got nil", other.load, other)
  end)

  it("lets a guest look at the timer and switch itself off", function()
    support.need_kvm()
    local _, vm, vcpu = support.real_mode(
      "\xba\x08\x06\x66\xed" ..  -- mov $0x608, %dx; in (%dx), %eax
      "\x66\x89\xc3" ..          -- mov %eax, %ebx
      "\xba\x04\x06\xb8\0\x34" ..  -- mov $0x604, %dx; mov $0x3400, %ax
      "\xef\xf4")                -- out %ax, (%dx); hlt
    local seconds = 0
    local device = pm.new {
      poweroff = function() vcpu:stop "off" end,
      time = function() return seconds end,
    }
    vm:attach_io { port = 0x600, count = 12, device = device }
    vm:attach_io { port = 0xcf9, device = device.reset_register }
    seconds = 1
    assert.same({ "stopped", "off" }, { vcpu:run(support.LIMITS) })
    assert.equal(3579545, vcpu.regs.rbx)
  end)
end)

-- ckvm.dev.uart and ckvm.dev: registers, interrupts, loopback, the FIFO, and a guest that echoes.

local ckvm = require "ckvm"
local dev = require "ckvm.dev"
local support = require "support"
local uart = require "ckvm.dev.uart"

local blames = support.blames

local DATA <const>, IER <const>, IIR <const>, FCR <const> = 0, 1, 2, 2
local LCR <const>, MCR <const>, LSR <const>, MSR <const>, SCR <const> = 3, 4, 5, 6, 7
local OUT2 <const>, LOOP <const> = 8, 0x10

-- A UART, what it sends, and the levels that its line gets.
local function make()
  local sent, levels = {}, {}
  local device = uart.new {
    write = function(bytes) table.insert(sent, bytes) end,
    irq = function(level) table.insert(levels, level) end,
  }
  return device, sent, levels
end

describe("ckvm.dev.uart", function()
  it("refuses options that it does not know, and wrong ones", function()
    blames("uart: unknown option 'wirte'", uart.new, { wirte = print })
    blames("uart: irq: function expected, got integer", uart.new, { irq = 4 })
    blames("uart: table of options expected, got nil", uart.new)
  end)

  it("needs no options", function()
    local device = uart.new {}
    device:write(DATA, 0x41, 1)
    assert.equal(1, device:receive("a"))
  end)

  it("sends what is written, with the low byte of any value", function()
    local device, sent = make()
    device:write(DATA, 0x41, 1)
    device:write(DATA, -1, 1)
    assert.same({ "A", "\xff" }, sent)
    assert.equal(0x60, device:read(LSR, 1))
  end)

  it("has a divisor behind DLAB", function()
    local device, sent = make()
    device:write(LCR, 0x83, 1)
    assert.equal(12, device:read(DATA, 2))
    device:write(DATA, 0x1234, 2)
    assert.equal(0x34, device:read(DATA, 1))
    assert.equal(0x12, device:read(IER, 1))
    device:write(LCR, 3, 1)
    assert.equal(0, device:read(IER, 1))
    assert.same({}, sent)
  end)

  it("keeps LCR and SCR, and of IER and MCR what there is", function()
    local device = make()
    for offset, kept in pairs { [LCR] = 0x7f, [SCR] = 0x7f, [IER] = 0xf, [MCR] = 0x1f } do
      device:write(offset, 0x7f, 1)
      assert.equal(kept, device:read(offset, 1))
    end
  end)

  it("answers every offset, size and value", function()
    local device = make()
    for _, offset in ipairs { -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 255, math.maxinteger } do
      for _, size in ipairs { 1, 2, 4 } do
        for _, value in ipairs { 0, 0xff, 0xffffffff, -1, math.mininteger } do
          device:write(offset, value, size)
          local answer = device:read(offset, size)
          assert(answer >= 0 and answer < 1 << 8 * size)
        end
      end
    end
    assert.equal(0xff, device:read(8, 1))
  end)

  describe("receives", function()
    it("one byte without FIFO; the next is lost", function()
      local device = make()
      assert.equal(1, device:room())
      assert.equal(1, device:receive("ab"))
      assert.equal(0x63, device:read(LSR, 1)) -- overrun
      assert.equal(0x61, device:read(LSR, 1)) -- once
      assert.equal(0x61, device:read(DATA, 1))
      assert.equal(0x60, device:read(LSR, 1))
      assert.equal(0, device:read(DATA, 1))
    end)

    it("sixteen with FIFO, in order", function()
      local device = make()
      device:write(FCR, 1, 1)
      assert.equal(16, device:room())
      assert.equal(10, device:receive("0123456789"))
      assert.equal(6, device:receive("abcdefgh"))
      assert.equal(0, device:room())
      assert.equal(0x63, device:read(LSR, 1))
      for byte in ("0123456789abcdef"):gmatch(".") do
        assert.equal(byte, string.char(device:read(DATA, 1)))
      end
      assert.equal(0x60, device:read(LSR, 1))
    end)

    it("anew after the FIFO is cleared, switched on or off", function()
      local device = make()
      for _, value in ipairs { 1, 3, 0 } do
        device:receive("x")
        device:write(FCR, value, 1)
        assert.equal(0x60, device:read(LSR, 1) & ~2)
      end
    end)
  end)

  it("tells when the guest has made room", function()
    local rooms, device = {}, nil
    device = uart.new { ready = function() table.insert(rooms, device:room()) end }
    device:receive("a")
    device:read(LSR, 1)
    device:read(DATA, 1)
    device:read(DATA, 1) -- nothing was there
    assert.same({ 1 }, rooms)
    device:write(FCR, 1, 1)
    device:receive("0123456789abcdef")
    device:read(DATA, 1)
    device:write(FCR, 3, 1)
    assert.same({ 1, 16, 1, 16 }, rooms)
  end)

  it("may be given the next bytes then, with an edge of the line", function()
    local levels, device = {}, nil
    device = uart.new {
      irq = function(level) table.insert(levels, level) end,
      ready = function() device:receive("b") end,
    }
    device:write(MCR, OUT2, 1)
    device:write(IER, 1, 1)
    device:receive("a")
    assert.equal(0x61, device:read(DATA, 1))
    assert.equal(0x62, device:read(DATA, 1))
    assert.same({ true, false, true, false, true }, levels)
  end)

  describe("interrupts", function()
    it("reach the line with OUT2 only", function()
      local device, _, levels = make()
      device:write(IER, 1, 1)
      device:receive("a")
      assert.same({}, levels)
      device:write(MCR, OUT2, 1)
      assert.same({ true }, levels)
      device:read(DATA, 1)
      assert.same({ true, false }, levels)
    end)

    it("for data come at the trigger level, and below it as a timeout", function()
      local device = make()
      device:write(IER, 1, 1)
      device:receive("a")
      assert.equal(0x04, device:read(IIR, 1))
      for value, trigger in pairs { [0x01] = 1, [0x41] = 4, [0x81] = 8, [0xc1] = 14 } do
        device:write(FCR, value | 2, 1)
        assert.equal(0xc1, device:read(IIR, 1))
        device:receive(("x"):rep(trigger - 1))
        assert.equal(trigger > 1 and 0xcc or 0xc1, device:read(IIR, 1))
        device:receive("x")
        assert.equal(0xc4, device:read(IIR, 1))
      end
    end)

    it("for THRE come when they are enabled and after each byte, until IIR is read", function()
      local device, sent, levels = make()
      device:write(MCR, OUT2, 1)
      device:write(IER, 2, 1)
      assert.same({ true }, levels)
      assert.equal(2, device:read(IIR, 1))
      assert.equal(1, device:read(IIR, 1))
      assert.same({ true, false }, levels)
      device:write(IER, 2, 1) -- no change, no interrupt
      assert.equal(1, device:read(IIR, 1))
      device:write(DATA, 0x41, 1)
      device:write(DATA, 0x42, 1) -- with an edge for each
      assert.same({ true, false, true, false, true }, levels)
      assert.equal(2, #sent)
      device:write(IER, 0, 1)
      device:write(IER, 2, 1)
      assert.equal(2, device:read(IIR, 1))
    end)

    it("have priorities, and reading IIR clears THRE's only", function()
      local device = make()
      device:write(MCR, LOOP | 1, 1)
      device:write(IER, 0xf, 1)
      device:receive("ab")
      assert.equal(6, device:read(IIR, 1))
      device:read(LSR, 1)
      assert.equal(4, device:read(IIR, 1))
      assert.equal(4, device:read(IIR, 1))
      device:read(DATA, 1)
      assert.equal(2, device:read(IIR, 1))
      assert.equal(0, device:read(IIR, 1))
      device:read(MSR, 1)
      assert.equal(1, device:read(IIR, 1))
    end)
  end)

  it("has a modem that is ready", function()
    local device = make()
    assert.equal(0xb0, device:read(MSR, 1))
    device:write(MCR, 3, 1)
    assert.equal(0xb0, device:read(MSR, 1))
  end)

  it("loops bytes and lines back", function()
    local device, sent = make()
    device:write(MCR, LOOP | 0xa, 1)
    assert.equal(0x90, device:read(MSR, 1) & 0xf0) -- RTS is CTS, OUT2 is DCD
    device:write(DATA, 0x5a, 1)
    assert.same({}, sent)
    assert.equal(0x5a, device:read(DATA, 1))
    device:write(MCR, LOOP | 4, 1) -- RI: its end is a change
    assert.equal(0x49, device:read(MSR, 1))
    device:write(MCR, LOOP, 1)
    assert.equal(0x04, device:read(MSR, 1))
  end)

  it("takes a state back, into another one, with its line", function()
    local device = make()
    device:write(IER, 1, 1)
    device:write(MCR, OUT2, 1)
    device:write(FCR, 1, 1)
    device:receive("abc")
    local state = device:save()
    device:read(DATA, 1)
    local other, _, levels = make()
    other:load(state)
    assert.same({ true }, levels)
    assert.same(state, other:save())
    assert.equal(0x61, other:read(DATA, 1))
    assert.equal("abc", state.rx)
  end)

  it("refuses what is no state", function()
    local device = make()
    local state = device:save()
    blames("state: table expected, got nil", device.load, device)
    blames("state: ier: integer expected, got nil", device.load, device,
      (function() local copy = dev.copy(state) copy.ier = nil return copy end)())
    state.extra = 1
    blames("state: unknown key 'extra'", device.load, device, state)
  end)

  it("stays whole when what it calls raises", function()
    local device = uart.new { write = function() error "full" end }
    device:write(IER, 2, 1)
    device:read(IIR, 1)
    support.contains("full", support.error_of(device.write, device, DATA, 1, 1))
    assert.equal(2, device:read(IIR, 1))
  end)

  it("echoes in a guest that polls", function()
    support.need_kvm()
    local _, vm, vcpu = support.real_mode(
      "\xba\xfd\x03\xec" ..  -- mov $0x3fd, %dx; in (%dx), %al
      "\xa8\x01\x74\xfb" ..  -- test $1, %al; jz back to the in
      "\xba\xf8\x03\xec" ..  -- mov $0x3f8, %dx; in (%dx), %al
      "\xee\xf4")            -- out %al, (%dx); hlt
    local device, sent = make()
    vm:attach_io { port = 0x3f8, count = 8, device = device }
    assert.equal("exits", (vcpu:run { exits = 100, timeout = 20 }))
    device:receive("k")
    assert.equal("hlt", (vcpu:run(support.LIMITS)))
    assert.same({ "k" }, sent)
  end)

  it("interrupts a guest through the kernel's controllers", function()
    support.need_kvm()
    local vm = ckvm.open():create_vm()
    vm:create_irqchip()
    vm:add_memory { gpa = 0, size = 0x10000 }
    vm:write(0x24 * 4, "\0\x20\0\0") -- vector of line 4: 0x2000
    vm:write(0x1000,
      "\xb0\x11\xe6\x20\xb0\x20\xe6\x21" ..  -- the PIC: ICW1; ICW2, vectors from 0x20 on
      "\xb0\x04\xe6\x21\xb0\x01\xe6\x21" ..  -- ICW3; ICW4
      "\xb0\xef\xe6\x21" ..                  -- line 4 only
      "\xba\xf9\x03\xb0\x01\xee" ..          -- IER of the UART: data
      "\xfb\xf4\xeb\xfd")                    -- sti; hlt, again and again
    vm:write(0x2000, "\xba\xf8\x03\xec\xee" .. -- mov $0x3f8, %dx; in (%dx), %al; out %al, (%dx)
      "\xb0\x20\xe6\x20\xcf")                  -- mov $0x20, %al; out %al, $0x20 (EOI); iret
    local vcpu = vm:create_vcpu(0)
    vcpu:set_sregs { cs = { base = 0, selector = 0 } }
    vcpu:set_regs { rip = 0x1000, rsp = 0x8000, rflags = 2 }
    local sent = {}
    local device
    device = uart.new {
      irq = function(level) vm:irq_line { irq = 4, level = level } end,
      write = function(byte)
        table.insert(sent, byte)
        if #sent == 3 then vcpu:stop "enough" else device:receive(tostring(#sent)) end
      end,
    }
    vm:attach_io { port = 0x3f8, count = 8, device = device }
    device:write(MCR, OUT2, 1)
    device:receive("0")
    assert.equal("stopped", (vcpu:run(support.LIMITS)))
    assert.equal("012", table.concat(sent))
  end)
end)

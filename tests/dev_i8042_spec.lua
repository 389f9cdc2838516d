-- ckvm.dev.i8042: the controller's commands, the keyboard's, keys and their interrupts, reset, and
-- a guest that is typed at.

local i8042 = require "ckvm.dev.i8042"
local support = require "support"

local blames = support.blames

local DATA <const>, COMMAND <const> = 0, 4

local function make()
  local called = {}
  local device = i8042.new {
    irq = function(level) table.insert(called, level) end,
    reset = function() table.insert(called, "reset") end,
    a20 = function(on) table.insert(called, on and "a20 on" or "a20 off") end,
  }
  return device, called
end

local function is_full(device)
  return device:read(COMMAND, 1) & 1 == 1
end

-- All that there is to read, in hexadecimal.
local function drain(device)
  local list = {}
  while is_full(device) do table.insert(list, ("%02x"):format(device:read(DATA, 1))) end
  return table.concat(list, " ")
end

local function command(device, byte, ...)
  device:write(COMMAND, byte, 1)
  for _, data in ipairs { ... } do device:write(DATA, data, 1) end
  return drain(device)
end

-- Bytes for the keyboard.
local function send(device, ...)
  for _, byte in ipairs { ... } do device:write(DATA, byte, 1) end
  return drain(device)
end

describe("ckvm.dev.i8042", function()
  it("refuses options that it does not know, and wrong ones", function()
    blames("i8042: unknown option 'keys'", i8042.new, { keys = {} })
    blames("i8042: a20: function expected, got boolean", i8042.new, { a20 = true })
  end)

  it("has nothing to read at first", function()
    local device = make()
    assert.equal(0x14, device:read(COMMAND, 1))
    assert.equal("", drain(device))
    assert.equal(0, device:read(DATA, 1))
  end)

  describe("as a controller", function()
    it("tests itself and the wires", function()
      local device = make()
      assert.equal("55", command(device, 0xaa))
      assert.equal("00", command(device, 0xab))
      assert.equal("80", command(device, 0xc0))
    end)

    it("has a command byte", function()
      local device = make()
      assert.equal("45", command(device, 0x20))
      assert.equal("", command(device, 0x60, 0x30))
      assert.equal(0x10, device:read(COMMAND, 1)) -- no system flag
      assert.equal("30", command(device, 0x20))
      command(device, 0xae)
      assert.equal("20", command(device, 0x20))
      command(device, 0xad)
      assert.equal("30", command(device, 0x20))
      command(device, 0xaa)
      assert.equal("34", command(device, 0x20))
    end)

    it("tells whether a command or data was written last", function()
      local device = make()
      device:write(COMMAND, 0x60, 1)
      assert.equal(0x1c, device:read(COMMAND, 1))
      device:write(DATA, 0x45, 1)
      assert.equal(0x14, device:read(COMMAND, 1))
    end)

    it("has an output port with A20 and reset", function()
      local device, called = make()
      command(device, 0x60, 0x44) -- no interrupts
      assert.equal("c3", command(device, 0xd0))
      command(device, 0xd1, 0xc1)
      command(device, 0xd1, 0xc1)
      assert.equal("c1", command(device, 0xd0))
      command(device, 0xd1, 0xc3)
      assert.same({ "a20 off", "a20 on" }, called)
      command(device, 0xd1, 0xc2)
      assert.same({ "a20 off", "a20 on", "reset" }, called)
      assert.equal("c3", command(device, 0xd0))
      device:press "\x1e"
      assert.equal("d3 1e", command(device, 0xd0))
    end)

    it("resets at a pulse of that line", function()
      local device, called = make()
      for _, byte in ipairs { 0xff, 0xf1, 0xfd } do command(device, byte) end
      assert.same({}, called)
      for _, byte in ipairs { 0xfe, 0xf0 } do command(device, byte) end
      assert.same({ "reset", "reset" }, called)
    end)

    it("gives back what it is told to", function()
      local device = make()
      assert.equal("5a", command(device, 0xd2, 0x5a))
    end)

    it("has neither a mouse nor memory, and keeps their bytes from the keyboard", function()
      local device = make()
      for _, byte in ipairs { 0xd3, 0xd4, 0x61, 0x7f } do
        assert.equal("", command(device, byte, 0xee))
      end
      for _, byte in ipairs { 0xa7, 0xa8, 0xa9, 0x21, 0x3f, 0x00 } do
        assert.equal("", command(device, byte))
      end
      assert.equal("ee", send(device, 0xee))
    end)
  end)

  describe("as a keyboard", function()
    it("echoes, tells what it is, and resets", function()
      local device = make()
      assert.equal("ee", send(device, 0xee))
      assert.equal("fa ab 41", send(device, 0xf2))
      command(device, 0x60, 0x05)
      assert.equal("fa ab 83", send(device, 0xf2))
      device:press "abc"
      assert.equal("fa aa", send(device, 0xff))
    end)

    it("acknowledges LEDs and repetition, and keeps its set", function()
      local device = make()
      assert.equal("fa", send(device, 0xed))
      assert.equal("fa", send(device, 7))
      assert.equal("fa", send(device, 0xf3))
      assert.equal("fa", send(device, 0))
      send(device, 0xf0)
      assert.equal("fa 02", send(device, 0))
      send(device, 0xf0)
      assert.equal("fa", send(device, 1))
      send(device, 0xf0)
      assert.equal("fa 01", send(device, 0))
      send(device, 0xf0)
      assert.equal("fe", send(device, 4))
      assert.equal("fa", send(device, 0xf6))
      send(device, 0xf0)
      assert.equal("fa 02", send(device, 0))
    end)

    it("asks for what it does not know once more, and says the last byte again", function()
      local device = make()
      for _, byte in ipairs { 0x00, 0xec, 0xf1, 0xf7, 0xfd } do
        assert.equal("fe", send(device, byte))
      end
      send(device, 0xed)
      assert.equal("ee", send(device, 0xee)) -- no byte for the LEDs
      assert.equal("ee", send(device, 0xfe))
    end)

    it("scans unless told not to", function()
      local device = make()
      assert.equal(2, device:press "\x1e\x9e")
      assert.equal("fa", send(device, 0xf5))
      assert.equal(0, device:press "\x1e")
      assert.equal("fa", send(device, 0xf4))
      assert.equal(1, device:press "\x1e")
      assert.equal("1e", drain(device))
    end)

    it("keeps sixteen keys, and one answer", function()
      local device = make()
      assert.equal(16, device:press(("0123456789abcdefgh")))
      assert.equal(0, device:press "x")
      for _ = 1, 100 do device:write(DATA, 0xf2, 1) end
      for _ = 1, 100 do device:write(COMMAND, 0x20, 1) end
      assert.equal("45 fa ab 41 30 31 32", drain(device):sub(1, 20))
      assert.equal(16, device:press(("0123456789abcdef")))
    end)

    it("waits while it is disabled, until something is sent to it", function()
      local device = make()
      command(device, 0xad)
      assert.equal(1, device:press "\x1e")
      assert.equal("", drain(device))
      assert.equal("ee 1e", send(device, 0xee))
    end)
  end)

  it("interrupts with an edge for each byte, if that is enabled", function()
    local device, called = make()
    device:press "ab"
    assert.same({ true }, called)
    device:read(DATA, 1)
    assert.same({ true, false, true }, called)
    device:read(DATA, 1)
    assert.same({ true, false, true, false }, called)
    command(device, 0x60, 0x44)
    device:press "ab"
    assert.equal(4, #called)
    device:write(COMMAND, 0x60, 1)
    device:write(DATA, 0x45, 1)
    assert.same({ true, false, true, false, true }, called)
    device:write(DATA, 0xee, 1)
    assert.same({ true, false, true, false, true, false, true }, called)
  end)

  it("is at port 0x64 with its command port", function()
    local device = make()
    device.command_port:write(0, 0xaa, 1)
    assert.equal(0x1d, device.command_port:read(0, 1))
    assert.equal(0xff, device.command_port:read(4, 1))
    assert.equal(0x55, device:read(DATA, 1))
  end)

  it("answers every command and byte, at every offset and size", function()
    local device = make()
    for byte = 0, 255 do
      for _, data in ipairs { 0, 0x45, 0xed, 0xff } do
        command(device, byte, data, data)
        assert(device:read(DATA, 1) <= 0xff)
      end
    end
    for _, one in ipairs { device, device.command_port } do
      for _, offset in ipairs { -1, 0, 1, 3, 4, 5, math.maxinteger } do
        for _, size in ipairs { 1, 2, 4 } do
          one:write(offset, -1, size)
          assert(one:read(offset, size) < 1 << 8 * size)
        end
      end
    end
  end)

  it("takes a state back, into another one, with its line", function()
    local device = make()
    device:press "\x1e\x9e"
    send(device, 0xed)
    device:press "\x1f"
    device:write(COMMAND, 0x60, 1)
    local state = device:save()
    drain(device)
    local other, called = make()
    other:load(state)
    assert.same({ true }, called)
    assert.same(state, other:save())
    other:write(DATA, 0x41, 1)
    assert.equal("1f", drain(other))
    assert.equal("41", command(other, 0x20))
    state.queue = 1
    blames("state: queue: string expected, got integer", other.load, other, state)
  end)

  it("types at a guest, which then resets itself", function()
    support.need_kvm()
    local _, vm, vcpu = support.real_mode(
      "\xe4\x64\xa8\x01\x74\xfa" ..  -- in $0x64, %al; test $1, %al; jz back
      "\xe4\x60\x88\xc3" ..          -- in $0x60, %al; mov %al, %bl
      "\xb0\xfe\xe6\x64\xf4")        -- mov $0xfe, %al; out %al, $0x64; hlt
    local device = i8042.new { reset = function() vcpu:stop "reset" end }
    vm:attach_io { port = 0x60, device = device }
    vm:attach_io { port = 0x64, device = device.command_port }
    assert.equal("exits", (vcpu:run { exits = 10, timeout = 20 }))
    device:press "\x1e"
    assert.same({ "stopped", "reset" }, { vcpu:run(support.LIMITS) })
    assert.equal(0x1e, vcpu.regs.rbx & 0xff)
  end)
end)

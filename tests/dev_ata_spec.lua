-- ckvm.dev.ata: registers, sectors in and out by every kind of address, errors, interrupts, reset,
-- random accesses, and a guest that copies a sector.

local ata = require "ckvm.dev.ata"
local support = require "support"

local blames = support.blames

local DATA <const>, ERROR <const>, COUNT <const>, DEVICE <const>, COMMAND <const> = 0, 1, 2, 6, 7
local STATUS <const>, READY <const>, WANTS_DATA <const> = 7, 0x50, 0x58
local MASTER <const>, SLAVE <const>, LBA <const> = 0xa0, 0xb0, 0x40
local SECTORS <const> = 16 * 63 * 3 -- three cylinders

-- Each sector begins with its number, unless it was written.
local function new_disk(fields)
  local disk = { sectors = SECTORS, written = {}, calls = {} }
  for key, value in pairs(fields or {}) do disk[key] = value end
  function disk:read(first, count)
    table.insert(self.calls, ("read %d %d"):format(first, count))
    if first + count > self.sectors or self.broken then return nil, "broken" end
    local list = {}
    for sector = first, first + count - 1 do
      table.insert(list, self.written[sector] or string.pack("<I8", sector) .. ("\0"):rep(504))
    end
    return table.concat(list)
  end
  function disk:write(first, bytes)
    assert(#bytes == 512 and first < self.sectors)
    if self.broken then return nil, "broken" end
    self.written[first] = bytes
    return true
  end
  return disk
end

local function make(fields)
  local disk, levels = new_disk(fields), {}
  local device = ata.new {
    disk = disk, irq = function(level) table.insert(levels, level) end,
  }
  return device, disk, levels
end

-- Registers first, then the command. `lba` is of 28 bits; with `ext`, of 48.
local function command(device, byte, lba, count, ext)
  lba, count = lba or 0, count or 1
  if ext then
    device:write(COUNT, count >> 8 & 0xff, 1)
    for i = 0, 2 do device:write(3 + i, lba >> 24 + 8 * i & 0xff, 1) end
  end
  device:write(COUNT, count & 0xff, 1)
  for i = 0, 2 do device:write(3 + i, lba >> 8 * i & 0xff, 1) end
  device:write(DEVICE, MASTER | LBA | (ext and 0 or lba >> 24 & 0xf), 1)
  device:write(COMMAND, byte, 1)
  return device:read(STATUS, 1)
end

local function get(device, size, width)
  local bytes = {}
  for _ = 1, size, width or 2 do
    table.insert(bytes, string.pack("<I" .. (width or 2), device:read(DATA, width or 2)))
  end
  return table.concat(bytes)
end

local function put(device, bytes, width)
  for at = 1, #bytes, width or 2 do
    device:write(DATA, string.unpack("<I" .. (width or 2), bytes, at), width or 2)
  end
end

-- The numbers of the sectors that come, and the status at the end.
local function numbers(device)
  local list = {}
  while device:read(STATUS, 1) == WANTS_DATA do
    table.insert(list, (string.unpack("<I8", get(device, 512))))
  end
  return list, device:read(STATUS, 1)
end

-- The address that the registers tell.
local function address(device)
  local lba = 0
  for i = 0, 2 do lba = lba | device:read(3 + i, 1) << 8 * i end
  device.control_port:write(0, 0x80, 1)
  for i = 0, 2 do lba = lba | device:read(3 + i, 1) << 24 + 8 * i end
  device.control_port:write(0, 0, 1)
  return lba
end

local function fails(device, error, ...)
  assert.equal(READY | 1, command(device, ...))
  assert.equal(error, device:read(ERROR, 1))
end

describe("ckvm.dev.ata", function()
  it("refuses options that it does not know, and wrong ones", function()
    blames("ata: unknown option 'file'", ata.new, { disk = {}, file = "x" })
    blames("ata: disk: table expected, got nil", ata.new, {})
    for _, sectors in ipairs { 0, -1, 1.5, "8", (1 << 48) + 1 } do
      blames(("ata: disk: %s is no number of sectors"):format(sectors), ata.new,
        { disk = { sectors = sectors } })
    end
    blames("ata: disk: nil is no number of sectors", ata.new, { disk = {} })
  end)

  describe("as registers", function()
    it("has the signature of a disk", function()
      local device = make()
      local found = {}
      for offset = 1, 7 do table.insert(found, device:read(offset, 1)) end
      assert.same({ 1, 1, 1, 0, 0, 0, READY }, found)
    end)

    it("keeps what is written, and the byte before", function()
      local device = make()
      for offset = 2, 5 do
        device:write(offset, 0x12, 1)
        device:write(offset, 0x34, 1)
        assert.equal(0x34, device:read(offset, 1))
        device.control_port:write(0, 0x80, 1)
        assert.equal(0x12, device:read(offset, 1))
        device:write(DEVICE, MASTER, 1) -- any write ends that
        assert.equal(0x34, device:read(offset, 1))
      end
      assert.equal(MASTER, device:read(DEVICE, 1))
    end)

    it("has no second device, in whose place the first one's registers are", function()
      local device, _, levels = make()
      device:write(DEVICE, SLAVE, 1)
      device:write(COUNT, 0x55, 1)
      assert.equal(0x55, device:read(COUNT, 1))
      device:write(COMMAND, 0xec, 1)
      assert.same({ 0, 0, 0xffff },
        { device:read(STATUS, 1), device.control_port:read(0, 1), device:read(DATA, 2) })
      device:write(DEVICE, MASTER, 1)
      assert.equal(READY, device:read(STATUS, 1))
      assert.same({}, levels)
    end)

    it("has nothing but ones at a data port without data", function()
      local device = make()
      device:write(DATA, 0, 2)
      assert.same({ 0xff, 0xffff, 0xffffffff },
        { device:read(DATA, 1), device:read(DATA, 2), device:read(DATA, 4) })
    end)
  end)

  describe("tells", function()
    local function identify(fields)
      local device = make(fields)
      command(device, 0xec)
      return get(device, 512)
    end

    local function word(bytes, number, format)
      return (string.unpack(format or "<I2", bytes, 2 * number + 1))
    end

    it("what it is", function()
      local bytes = identify()
      assert.equal("kcmvd si k", bytes:sub(55, 64))
      assert.same({ 0x40, 3, 16, 63 },
        { word(bytes, 0), word(bytes, 1), word(bytes, 3), word(bytes, 6) })
      assert.same({ SECTORS, SECTORS, SECTORS },
        { word(bytes, 57, "<I4"), word(bytes, 60, "<I4"), word(bytes, 100, "<I8") })
      assert.equal(0x0a00, word(bytes, 49)) -- LBA, no DMA
      assert.equal(0x7400, word(bytes, 83)) -- LBA of 48 bits
      assert.same({ 0x8010, 0 }, { word(bytes, 47), word(bytes, 59) })
    end)

    it("its size as far as there is room", function()
      local bytes = identify { sectors = 1 << 40 }
      assert.same({ 16383, 0xfffffff, 1 << 40 },
        { word(bytes, 1), word(bytes, 60, "<I4"), word(bytes, 100, "<I8") })
      assert.equal(0, word(identify { sectors = 1 }, 1))
    end)

    it("how many sectors are moved at once", function()
      local device = make()
      command(device, 0xc6, 0, 8)
      command(device, 0xec)
      assert.equal(0x0108, word(get(device, 512), 59))
    end)
  end)

  describe("reads", function()
    it("sectors by all kinds of commands", function()
      for _, byte in ipairs { 0x20, 0x21, 0x24, 0x29, 0xc4 } do
        local device = make()
        command(device, 0xc6, 0, 2)
        command(device, byte, 1000, 3, byte == 0x24 or byte == 0x29)
        assert.same({ { 1000, 1001, 1002 }, READY }, { numbers(device) })
      end
    end)

    it("by cylinder, head and sector", function()
      local device = make()
      device:write(COUNT, 1, 1)
      device:write(3, 5, 1)
      device:write(4, 2, 2) -- and the next register
      device:write(DEVICE, MASTER | 7, 1)
      device:write(COMMAND, 0x20, 1)
      assert.same({ { (2 * 16 + 7) * 63 + 4 } }, { (numbers(device)) })
    end)

    it("up to 256 or 65536 sectors", function()
      local device, disk = make { sectors = 1 << 32 }
      command(device, 0x20, 0xfffff00, 0)
      local list = numbers(device)
      assert.same({ 256, 0xfffff00, 0xfffffff }, { #list, list[1], list[256] })
      command(device, 0xc6, 0, 16)
      assert.equal(WANTS_DATA, command(device, 0x29, (1 << 32) - 65536, 0, true))
      assert.equal("read 4294901760 16", disk.calls[#disk.calls])
      assert.equal(65520, device:save().left)
    end)

    it("a block at a time, a word or two at a time", function()
      local device, disk = make()
      command(device, 0xc6, 0, 4)
      command(device, 0xc4, 8, 6)
      assert.equal("read 8 4", table.concat(disk.calls, ","))
      local bytes = get(device, 3 * 512, 4) .. get(device, 512, 1)
      assert.equal("read 8 4,read 12 2", table.concat(disk.calls, ","))
      bytes = bytes .. get(device, 2 * 512)
      assert.equal(READY, device:read(STATUS, 1))
      assert.equal(disk:read(8, 6), bytes)
    end)

    it("what is left of a sector, whatever its size", function()
      local device = make()
      command(device, 0x20)
      for _ = 1, 511 do device:read(DATA, 1) end
      assert.equal(0, device:read(DATA, 4))
      assert.equal(READY, device:read(STATUS, 1))
    end)
  end)

  describe("writes", function()
    it("sectors by all kinds of commands", function()
      for _, byte in ipairs { 0x30, 0x31, 0x34, 0x39, 0xc5 } do
        local device, disk = make()
        command(device, 0xc6, 0, 2)
        assert.equal(WANTS_DATA, command(device, byte, 1000, 3, byte == 0x34 or byte == 0x39))
        put(device, ("a"):rep(512) .. ("b"):rep(512), 4)
        put(device, ("c"):rep(510))
        assert.same({ WANTS_DATA, nil }, { device:read(STATUS, 1), disk.written[1002] })
        put(device, "cc", 1)
        assert.equal(READY, device:read(STATUS, 1))
        put(device, "more")
        for i = 0, 2 do assert.equal(("abc"):sub(i + 1, i + 1):rep(512), disk.written[1000 + i]) end
      end
    end)

    it("nothing where the disk is read-only", function()
      local device = make { readonly = true }
      for _, byte in ipairs { 0x30, 0x34, 0x39, 0xc5 } do fails(device, 4, byte, 0, 1, true) end
    end)

    it("no sector that was given half", function()
      local device, disk = make()
      command(device, 0x30)
      put(device, ("a"):rep(508))
      command(device, 0x30)
      put(device, ("b"):rep(512))
      assert.equal(("b"):rep(512), disk.written[0])
    end)
  end)

  describe("fails", function()
    it("where there is no such sector, and tells which", function()
      for _, byte in ipairs { 0x20, 0x30, 0x40 } do
        local device, disk = make()
        fails(device, 0x10, byte, SECTORS)
        fails(device, 0x10, byte, SECTORS - 1, 2)
        assert.equal(SECTORS, address(device))
        fails(device, 0x10, byte, 0xfffffff, 0)
        fails(device, 0x10, byte + (byte == 0x40 and 2 or 4), (1 << 48) - 1, 0, true)
        assert.equal((1 << 48) - 1, address(device))
        assert.same({ {}, {} }, { disk.calls, disk.written })
        assert.equal(byte == 0x40 and READY or WANTS_DATA, command(device, byte, SECTORS - 1))
      end
    end)

    it("where sector 0 or 64 of a track is asked for", function()
      local device = make()
      for _, sector in ipairs { 0, 64 } do
        device:write(3, sector, 1)
        device:write(DEVICE, MASTER, 1)
        device:write(COMMAND, 0x20, 1)
        assert.same({ READY | 1, 0x10 }, { device:read(STATUS, 1), device:read(ERROR, 1) })
      end
    end)

    it("where the disk does", function()
      local device, disk = make { broken = true }
      fails(device, 0x40, 0x20, 5)
      assert.equal(5, address(device))
      disk.broken = false
      command(device, 0x20, 5, 2)
      disk.broken = true
      get(device, 512)
      assert.same({ READY | 1, 6 }, { device:read(STATUS, 1), address(device) })
      command(device, 0x30, 7, 2)
      put(device, ("a"):rep(512))
      assert.same({ READY | 0x21, 7 }, { device:read(STATUS, 1), address(device) })
    end)

    it("where the disk has too few bytes", function()
      local device, disk = make()
      for _, bytes in ipairs { "", ("x"):rep(511), ("x"):rep(513), false } do
        function disk.read() return bytes end
        fails(device, 0x40, 0x20)
      end
    end)

    it("where a block, or LBA, was not set", function()
      local device = make()
      fails(device, 4, 0xc4)
      fails(device, 4, 0xc5)
      device:write(DEVICE, MASTER, 1)
      device:write(COMMAND, 0x24, 1)
      assert.equal(READY | 1, device:read(STATUS, 1))
      for _, count in ipairs { 3, 17, 32, 255 } do fails(device, 4, 0xc6, 0, count) end
    end)

    it("at what it does not have: packets, DMA, SMART, and the rest", function()
      local device = make()
      for _, byte in ipairs { 0x00, 0x08, 0xa0, 0xa1, 0xb0, 0xc8, 0xca, 0x25, 0xf8, 0xff } do
        fails(device, 4, byte)
      end
    end)
  end)

  it("takes commands that have nothing to do here", function()
    local device = make()
    for _, byte in ipairs { 0x10, 0x40, 0x41, 0xe0, 0xe1, 0xe2, 0xe3, 0xe6, 0xe7, 0xea } do
      assert.equal(READY, command(device, byte))
    end
    assert.equal(READY, command(device, 0xe5))
    assert.equal(0xff, device:read(COUNT, 1))
  end)

  it("sets features, and the geometry that there is", function()
    local device = make()
    local function set(feature, count)
      device:write(ERROR, feature, 1)
      return command(device, 0xef, 0, count)
    end
    for _, mode in ipairs { 0, 1, 8, 12 } do assert.equal(READY, set(3, mode)) end
    for _, mode in ipairs { 2, 0x10, 0x20, 0x45 } do assert.equal(READY | 1, set(3, mode)) end
    assert.same({ READY, READY, READY | 1 }, { set(2), set(0x82), set(0x10) })
    assert.equal(READY, command(device, 0x91, 15 << 24, 63))
    fails(device, 4, 0x91, 15 << 24, 62)
    fails(device, 4, 0x91, 7 << 24, 63)
  end)

  it("tests itself, also when the absent device is asked", function()
    local device = make()
    device:write(COUNT, 9, 1)
    device:write(DEVICE, SLAVE, 1)
    device:write(COMMAND, 0x90, 1)
    assert.same({ READY, 1, 1, 0 }, { device:read(STATUS, 1), device:read(ERROR, 1),
      device:read(COUNT, 1), device:read(DEVICE, 1) })
  end)

  it("is reset by a bit that is set and cleared", function()
    local device, _, levels = make()
    command(device, 0xc6, 0, 4)
    command(device, 0xc4, 0, 8)
    device.control_port:write(0, 4, 1)
    device:write(COMMAND, 0xec, 1)
    assert.same({ 0x80, 0xffff }, { device.control_port:read(0, 1), device:read(DATA, 2) })
    device.control_port:write(0, 0, 1)
    assert.same({ READY, 1, 1, 0 }, { device:read(STATUS, 1), device:read(ERROR, 1),
      device:read(COUNT, 1), device:read(DEVICE, 1) })
    fails(device, 4, 0xc4)
    assert.equal(false, levels[#levels])
  end)

  it("interrupts for each block, until the status is read", function()
    local device, _, levels = make()
    command(device, 0x20, 0, 2)
    assert.same({ true, false }, levels)
    get(device, 512)
    assert.same({ true, false, true }, levels)
    assert.equal(WANTS_DATA, device.control_port:read(0, 1))
    assert.equal(3, #levels)
    device:read(STATUS, 1)
    get(device, 512)
    assert.same({ true, false, true, false }, levels) -- and none at the end
    command(device, 0x30, 0, 2)
    assert.equal(4, #levels) -- none before the first block
    put(device, ("a"):rep(512))
    assert.same({ true, false, true, false, true }, levels)
    put(device, ("a"):rep(512))
    device:read(STATUS, 1)
    assert.equal(6, #levels)
  end)

  it("interrupts only if that is enabled, and the disk is selected", function()
    local device, _, levels = make()
    device.control_port:write(0, 2, 1)
    device:write(COMMAND, 0xe7, 1)
    assert.same({}, levels)
    device.control_port:write(0, 0, 1)
    assert.same({ true }, levels)
    device:write(DEVICE, SLAVE, 1)
    device:read(STATUS, 1)
    device:write(DEVICE, MASTER, 1)
    assert.same({ true, false, true }, levels)
  end)

  it("answers whatever a guest does #slow", function()
    local seed = tonumber(os.getenv "CKVM_SEED") or os.time()
    print("CKVM_SEED=" .. seed)
    math.randomseed(seed)
    local device, disk = make()
    local bytes = { 0x20, 0x24, 0x29, 0x30, 0x34, 0x39, 0xc4, 0xc5, 0xc6, 0xec, 0x90 }
    local sizes, moved = { 1, 2, 4 }, 0
    local function access()
      local size, kind = sizes[math.random(3)], math.random(10)
      local value = math.random(2) == 1 and math.random(0, 4) or math.random(0)
      if kind == 1 then
        device.control_port:write(math.random(0, 1), value & ~(math.random(2) << 1), size)
      elseif kind == 2 then
        device:write(COMMAND, bytes[math.random(#bytes)], 1)
      elseif kind == 3 then -- one that is most often good
        device.control_port:write(0, 0, 1)
        command(device, bytes[math.random(#bytes)], math.random(0, SECTORS), math.random(4), true)
      elseif kind <= 5 then
        device:write(math.random(-1, 8), value, size)
      elseif kind == 6 then
        device:write(DEVICE, MASTER | LBA, 1)
      elseif kind <= 8 then
        for _ = 1, 200 do device:write(DATA, value, size) end
      else
        local answer = device:read(math.random(-1, 8), size)
        assert(answer >= 0 and answer < 1 << 8 * size)
        for _ = 1, 200 do
          answer = device:read(DATA, size)
          assert(answer >= 0 and answer < 1 << 8 * size)
        end
      end
      if device:save().direction ~= "" then moved = moved + 1 end
    end
    for i = 1, math.max(support.times(200000), 2000) do -- of 200, none may be a good write
      local done, message = pcall(access)
      if not done then error(("access %d of CKVM_SEED=%d: %s"):format(i, seed, message)) end
    end
    assert(moved > 0 and #disk.calls > 0 and next(disk.written))
  end)

  it("answers every offset, size and value", function()
    local device = make()
    for _, one in ipairs { device, device.control_port } do
      for _, offset in ipairs { -1, 0, 1, 6, 7, 8, math.maxinteger } do
        for _, size in ipairs { 1, 2, 4 } do
          one:write(offset, -1, size)
          assert(one:read(offset, size) < 1 << 8 * size)
        end
      end
    end
  end)

  it("takes a state back, into another one, in the midst of a sector", function()
    local device, disk = make()
    command(device, 0xc6, 0, 2)
    command(device, 0xc5, 8, 4)
    put(device, ("a"):rep(512) .. ("b"):rep(100))
    local state = device:save()
    local other = ata.new { disk = disk }
    other:load(state)
    assert.same(state, other:save())
    put(other, ("b"):rep(412))
    assert.equal(("b"):rep(512), disk.written[9])
    state.left = nil
    blames("state: left: integer expected, got nil", other.load, other, state)
  end)

  it("tells irq the level of a state", function()
    local device = make()
    device:write(COMMAND, 0xe7, 1)
    local other, _, levels = make()
    other:load(device:save())
    assert.same({ true }, levels)
  end)

  it("gives a guest a sector, and takes one", function()
    support.need_kvm()
    local _, vm, vcpu = support.real_mode(
      "\xba\xf6\x01\xb0\xe0\xee" ..  -- mov $0x1f6, %dx; mov $0xe0, %al; out %al, (%dx)
      "\x42\xb0\x20\xee" ..          -- inc %dx; mov $0x20, %al; out %al, (%dx)
      "\xb2\xf0\xbf\x00\x30" ..      -- mov $0xf0, %dl; mov $0x3000, %di
      "\xb9\x00\x01\xf3\x6d" ..      -- mov $256, %cx; rep insw
      "\xb2\xf3\xb0\x05\xee" ..      -- mov $0xf3, %dl; mov $5, %al; out %al, (%dx)
      "\xb2\xf7\xb0\x30\xee" ..      -- mov $0xf7, %dl; mov $0x30, %al; out %al, (%dx)
      "\xb2\xf0\xbe\x00\x30" ..      -- mov $0xf0, %dl; mov $0x3000, %si
      "\xb9\x80\x00\xf3\x66\x6f\xf4") -- mov $128, %cx; rep outsl; hlt
    local device, disk = make()
    disk.written[1] = ("ckvm"):rep(128) -- after a reset the registers have sector 1
    vm:attach_io { port = 0x1f0, count = 8, device = device }
    vm:attach_io { port = 0x3f6, device = device.control_port }
    assert.equal("hlt", (vcpu:run(support.LIMITS)))
    assert.equal(disk.written[1], vm:read(0x3000, 512))
    assert.equal(disk.written[1], disk.written[5])
  end)
end)

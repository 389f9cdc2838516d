-- INT 13h, the disk, of ckvm.bios.

local disk = require "ckvm.disk"
local guests = require "bios_guests"
local support = require "support"

local contains = support.contains
local numbered, make, ask = guests.numbered, guests.make, guests.ask

local MEMORY <const>, FLOPPY <const> = guests.MEMORY, guests.FLOPPY

describe("INT 13h", function()
  before_each(support.need_kvm)

  local function hard_disk(sectors)
    return make { disk = disk.new(numbered("\xf4", sectors or 2100)) } -- 3 cylinders of 16 x 63
  end

  local function packet(g, count, offset, segment, first)
    g.vm:write(0x600, string.pack("<BBI2I2I2i8", 16, 0, count, offset, segment, first))
    return { rdx = 0x80, rsi = 0x600 }
  end

  it("resets, and tells the last status", function()
    local g = hard_disk()
    local regs = ask(g, 0x13, { rax = 0xffff, rdx = 0x80 })
    assert.same({ 1, true }, { regs.ah, regs.carry })
    regs = ask(g, 0x13, { rax = 0x01ff, rdx = 0x80 })
    assert.same({ 1, true }, { regs.ah, regs.carry })
    regs = ask(g, 0x13, { rax = 0x00ff, rdx = 0x80 })
    assert.same({ 0, false }, { regs.ah, regs.carry })
    regs = ask(g, 0x13, { rax = 0x01ff, rdx = 0x80 })
    assert.same({ 0, false }, { regs.ah, regs.carry })
    contains("INT 0x13: AX 0xffff is not there", g.notes[1])
  end)

  it("reads sectors of any place", function()
    local g = hard_disk()
    for _, case in ipairs {
      -- sectors, cylinder, head, sector, its number
      { 1, 0, 0, 1, 0 }, { 128, 0, 0, 2, 1 }, { 1, 0, 1, 1, 63 }, { 2, 1, 0, 63, 1008 + 62 },
      { 1, 1, 15, 63, 2015 },
    } do
      local count, cylinder, head, number, first = table.unpack(case)
      local regs = ask(g, 0x13, {
        rax = 0x0200 | count, rcx = cylinder << 8 | number, rdx = head << 8 | 0x80,
        es = 0x1000, rbx = 0x10,
      })
      assert.same({ 0, count, false }, { regs.ah, regs.al, regs.carry })
      assert.equal(g.bios.disk:read(first, count), g.vm:read(0x10010, count * 512))
    end
  end)

  it("has the upper bits of a cylinder in CL", function()
    local path = os.tmpname()
    local file = assert(io.open(path, "wb"))
    file:seek("set", 300 * 16 * 63 * 512 - 1) -- a hole, which takes no room
    file:write("\0"):close()
    local g = make { disk = disk.open(path) }
    os.remove(path)
    g.bios.disk:write(259 * 16 * 63, ("z"):rep(512))
    local regs = ask(g, 0x13, { rax = 0x0201, rcx = 3 << 8 | 1 << 6 | 1, rdx = 0x80, rbx = 0x8000 })
    assert.same({ 1, false }, { regs.rax, regs.carry })
    assert.equal(("z"):rep(512), g.vm:read(0x8000, 512))
    regs = ask(g, 0x13, { rax = 0x0800, rdx = 0x80 })
    assert.same({ (299 & 0xff) << 8 | 1 << 6 | 63, 15 << 8 | 1 }, { regs.rcx, regs.rdx })
  end)

  it("reads past the end of a segment", function()
    local g = hard_disk()
    local regs = ask(g, 0x13, { rax = 0x0204, rcx = 2, rdx = 0x80, es = 0x1000, rbx = 0xfe00 })
    assert.same({ 4, false }, { regs.rax, regs.carry })
    assert.equal(g.bios.disk:read(1, 4), g.vm:read(0x1fe00, 2048))
  end)

  it("writes and verifies sectors", function()
    local g = hard_disk()
    g.vm:write(0x8000, ("w"):rep(1024))
    local regs = ask(g, 0x13, { rax = 0x0302, rcx = 5, rdx = 0x80, rbx = 0x8000 })
    assert.same({ 2, false }, { regs.rax, regs.carry })
    assert.equal(("w"):rep(1024), g.bios.disk:read(4, 2))
    assert.is_false(ask(g, 0x13, { rax = 0x0480, rcx = 1, rdx = 0x80 }).carry)
  end)

  describe("refuses", function()
    for what, case in pairs {
      ["no sectors"] = { 1, { rax = 0x0200, rcx = 1 } },
      ["too many sectors"] = { 1, { rax = 0x0281, rcx = 1 } },
      ["sector 0"] = { 1, { rax = 0x0201, rcx = 0 } },
      ["a sector beyond the track"] = { 4, { rax = 0x0201, rcx = 64 }, 2048 * 63 * 17 },
      ["a head that there is not"] = { 4, { rax = 0x0201, rcx = 1, rdx = 0x1080 } },
      ["a cylinder that there is not"] = { 4, { rax = 0x0201, rcx = 0x0201 } },
      ["what runs beyond the disk"] = { 4, { rax = 0x0280, rcx = 1 }, 127 },
      ["to verify what is not there"] = { 4, { rax = 0x0401, rcx = 0xffff } },
      ["to write what is not there"] = { 4, { rax = 0x0301, rcx = 0xffff } },
      ["another disk"] = { 1, { rax = 0x0201, rcx = 1, rdx = 0x81 } },
      ["a floppy disk"] = { 1, { rax = 0x0201, rcx = 1, rdx = 0x00 } },
      ["what there is not"] = { 1, { rax = 0x0500 } },
    } do
      it(what, function()
        local g = hard_disk(case[3] and case[3] < 1000 and case[3])
        case[2].rdx, case[2].rbx = case[2].rdx or 0x80, 0x8000
        if what == "a sector beyond the track" then g.bios.disk.sectors_per_track = 17 end
        if what == "a sector beyond the track" then case[2].rcx = 18 end
        local al <const> = case[2].rax & 0xff
        local regs = ask(g, 0x13, case[2])
        assert.same({ case[1], true }, { regs.ah, regs.carry })
        assert(regs.al == 0 or regs.al == al)
        assert.equal(("\0"):rep(512), g.vm:read(0x8000, 512))
      end)
    end
  end)

  it("refuses memory that is not there", function()
    local g = hard_disk()
    g.ram:close()
    g.vm:add_memory { gpa = 0, size = 1 << 20 }
    g.bios:boot(g.vcpu)
    for _, case in ipairs {
      { 0xffff, 0x0010 }, { 0xffff, 0xffff }, { 0xfff0, 0xff }, { 0xf800, 0x7fff },
    } do
      for ah = 2, 3 do
        local before = g.bios.disk:read(1, 1)
        local regs = ask(g, 0x13, { rax = ah << 8 | 1, rcx = 2, rdx = 0x80, es = case[1],
          rbx = case[2] })
        assert.same({ 9, 0, true }, { regs.ah, regs.al, regs.carry })
        assert.equal(before, g.bios.disk:read(1, 1))
      end
    end
    assert.is_false(ask(g, 0x13, { rax = 0x0201, rcx = 2, rdx = 0x80, es = 0xffe0, rbx = 0 }).carry)
  end)

  it("tells of a disk that is read-only, full or broken", function()
    local g = make { disk = disk.new(numbered("\xf4", 4), { readonly = true }) }
    local regs = ask(g, 0x13, { rax = 0x0301, rcx = 2, rdx = 0x80, rbx = 0x8000 })
    assert.same({ 3, 0, true }, { regs.ah, regs.al, regs.carry })
    g = hard_disk()
    function g.bios.disk.write() return nil, "disk: No space left on device" end
    regs = ask(g, 0x13, { rax = 0x0301, rcx = 2, rdx = 0x80, rbx = 0x8000 })
    assert.same({ 0xcc, 0, true }, { regs.ah, regs.al, regs.carry })
    g.bios.disk:close()
    for ah = 2, 4, 2 do
      regs = ask(g, 0x13, { rax = ah << 8 | 1, rcx = 2, rdx = 0x80, rbx = 0x8000 })
      assert.same({ 0x20, 0, true }, { regs.ah, regs.al, regs.carry })
    end
    assert.same({ "INT 0x13: disk: No space left on device", "INT 0x13: disk: closed",
      "INT 0x13: disk: closed" }, g.notes)
  end)

  it("tells the kind and the size of a disk", function()
    local g = hard_disk()
    local regs = ask(g, 0x13, { rax = 0x1500, rdx = 0x80 })
    assert.same({ 3, 0, 2100, false }, { regs.ah, regs.rcx, regs.rdx, regs.carry })
    regs = ask(g, 0x13, { rax = 0x15ff, rdx = 0 })
    assert.same({ 0, false }, { regs.ah, regs.carry })
    regs = ask(g, 0x13, { rax = 0x0800, rdx = 0x80 })
    assert.same({ 0, 1 << 8 | 63, 15 << 8 | 1, false },
      { regs.ah, regs.rcx, regs.rdx, regs.carry })
  end)

  it("has floppy disks", function()
    local g = make { disk = disk.new(numbered("\xf4", FLOPPY // 512)) }
    local regs = ask(g, 0x13, { rax = 0x0800, rdx = 0 })
    assert.same({ 0, 4, 79 << 8 | 18, 1 << 8 | 1, false },
      { regs.ah, regs.rbx, regs.rcx, regs.rdx, regs.carry })
    local table_at = g.vcpu.sregs.es.base + regs.rdi
    assert.equal(18, g.vm:read_u8(table_at + 4))
    assert.equal(table_at, g.vm:read_u16(0x78) + (g.vm:read_u16(0x7a) << 4))
    regs = ask(g, 0x13, { rax = 0x0201, rcx = 79 << 8 | 18, rdx = 1 << 8, rbx = 0x8000 })
    assert.same({ 1, false }, { regs.rax, regs.carry })
    assert.equal(2879, g.vm:read_u32(0x8000))
    assert.equal(1, ask(g, 0x13, { rax = 0x1500, rdx = 0 }).ah)
    regs = ask(g, 0x13, { rax = 0x4100, rbx = 0x55aa, rdx = 0 })
    assert.same({ 1, true }, { regs.ah, regs.carry })
    assert.equal(1, g.vm:read_u8(0x410) & 1)
  end)

  it("has extensions", function()
    local g = hard_disk()
    local regs = ask(g, 0x13, { rax = 0x4100, rbx = 0x55aa, rdx = 0x80 })
    assert.same({ 0x21, 0xaa55, 1, false }, { regs.ah, regs.rbx, regs.rcx, regs.carry })
    assert.is_true(ask(g, 0x13, { rax = 0x4100, rbx = 0x1234, rdx = 0x80 }).carry)
    g.vm:write_u16(0x600, 26)
    regs = ask(g, 0x13, { rax = 0x4800, rdx = 0x80, rsi = 0x600 })
    assert.same({ 0, false }, { regs.ah, regs.carry })
    local found = { string.unpack("<I2I2I4I4I4I8I2", g.vm:read(0x600, 26)) }
    found[8] = nil
    assert.same({ 26, 2, 2, 16, 63, 2100, 512 }, found)
    g.vm:write_u16(0x600, 25)
    assert.equal(1, ask(g, 0x13, { rax = 0x4800, rdx = 0x80, rsi = 0x600 }).ah)
  end)

  it("reads, writes and verifies by number, more than 128 sectors, too", function()
    local g = hard_disk()
    local regs = packet(g, 300, 0x10, 0x1000, 1800)
    regs.rax = 0x4200
    local found = ask(g, 0x13, regs)
    assert.same({ 0, false }, { found.ah, found.carry })
    assert.equal(g.bios.disk:read(1800, 300), g.vm:read(0x10010, 300 * 512))
    assert.equal(300, g.vm:read_u16(0x602))
    regs = packet(g, 1, 0x10, 0x1000, 2)
    regs.rax = 0x4301
    assert.is_false(ask(g, 0x13, regs).carry)
    assert.equal(1800, string.unpack("<I4", g.bios.disk:read(2, 1)))
    regs = packet(g, 2100, 0xffff, 0xfffe, 0)
    regs.rax = 0x4400
    assert.is_false(ask(g, 0x13, regs).carry)
    regs = packet(g, 1, 0xffff, 0xffff, 3)
    g.vm:write(0x600, "\x18")
    g.vm:write(0x610, string.pack("<i8", 0x110000))
    regs.rax = 0x4200
    assert.is_false(ask(g, 0x13, regs).carry)
    assert.equal(g.bios.disk:read(3, 1), g.vm:read(0x110000, 512))
  end)

  it("does nothing where the packet says so", function()
    local g = hard_disk()
    local regs = packet(g, 0, 0, 0, 2099)
    regs.rax = 0x4200
    local found = ask(g, 0x13, regs)
    assert.same({ 0, false }, { found.ah, found.carry })
  end)

  it("refuses packets of any other kind", function()
    local g = hard_disk()
    local most <const>, least <const> = math.maxinteger, math.mininteger
    for _, case in ipairs {
      { 4, 1, 0, 0x1000, 2100 }, { 4, 2, 0, 0x1000, 2099 }, { 4, 1, 0, 0x1000, -1 },
      { 4, 0xffff, 0, 0x1000, 0 }, { 4, 1, 0, 0x1000, most }, { 4, 0, 0, 0x1000, least },
      { 4, 0xffff, 0, 0x1000, most },
    } do
      for ah = 0x42, 0x44 do
        local regs = packet(g, table.unpack(case, 2))
        regs.rax = ah << 8
        local found = ask(g, 0x13, regs)
        assert.same({ case[1], true, 0 }, { found.ah, found.carry, g.vm:read_u16(0x602) })
      end
    end
    for _, address in ipairs { MEMORY, MEMORY - 511, -1, most, least, -512 } do
      local regs = packet(g, 1, 0xffff, 0xffff, 3)
      g.vm:write(0x600, "\x18")
      g.vm:write(0x610, string.pack("<i8", address))
      regs.rax = 0x4200
      assert.equal(9, ask(g, 0x13, regs).ah)
    end
    local short = packet(g, 1, 0, 0x1000, 1)
    g.vm:write(0x600, "\x0f")
    short.rax = 0x4200
    assert.equal(1, ask(g, 0x13, short).ah)
  end)
end)

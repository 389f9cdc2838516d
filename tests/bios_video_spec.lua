-- INT 10h, the screen, of ckvm.bios.

local guests = require "bios_guests"
local support = require "support"

local make, ask = guests.make, guests.ask

describe("INT 10h", function()
  before_each(support.need_kvm)

  -- Characters of the screen from a place on.
  local function cells(g, row, column, count)
    local list = {}
    for i = 0, count - 1 do
      list[i + 1] = string.char(g.vm:read_u8(0xb8000 + 2 * (row * 80 + column + i)))
    end
    return table.concat(list)
  end

  local function at(row, column) return row << 8 | column end

  local function cursor(g)
    local regs = ask(g, 0x10, { rax = 0x0300 })
    return regs.rdx >> 8 & 0xff, regs.rdx & 0xff
  end

  local function print_text(g, text)
    for byte in text:gmatch "." do ask(g, 0x10, { rax = 0x0e00 | byte:byte() }) end
  end

  it("has a teletype", function()
    local g = make()
    print_text(g, "ab\bc\a\r\nd")
    assert.equal("ab\bc\a\r\nd", table.concat(g.output))
    assert.equal("ac", cells(g, 0, 0, 2))
    assert.equal("d", cells(g, 1, 0, 1))
    assert.same({ 1, 1 }, { cursor(g) })
    print_text(g, "\b\b\b")
    assert.same({ 1, 0 }, { cursor(g) })
  end)

  it("goes to the next row, and scrolls at the end of the screen", function()
    local g = make()
    ask(g, 0x10, { rax = 0x0200, rdx = at(23, 79) })
    print_text(g, "xyz")
    assert.same({ 24, 2 }, { cursor(g) })
    print_text(g, "\n")
    assert.same({ 24, 2 }, { cursor(g) })
    assert.same({ "x", "yz", "  " },
      { cells(g, 22, 79, 1), cells(g, 23, 0, 2), cells(g, 24, 0, 2) })
    assert.equal("\27[24;80Hxyz\n", table.concat(g.output))
  end)

  it("moves the terminal's cursor when something is written elsewhere", function()
    local g = make()
    ask(g, 0x10, { rax = 0x0200, rdx = at(4, 9) })
    ask(g, 0x10, { rax = 0x0200, rdx = at(2, 3) })
    assert.equal("", table.concat(g.output))
    print_text(g, "xy")
    assert.equal("\27[3;4Hxy", table.concat(g.output))
    ask(g, 0x10, { rax = 0x0200, rdx = at(200, 200) })
    assert.same({ 24, 79 }, { cursor(g) })
  end)

  it("clears the screen with a mode, of which there is one", function()
    local g = make()
    print_text(g, "x")
    ask(g, 0x10, { rax = 0x0003 })
    assert.equal("x\27[2J\27[H", table.concat(g.output))
    assert.same({ 0, 0, " " }, { (cursor(g)), 0, cells(g, 0, 0, 1) })
    assert.same({}, g.notes)
    print_text(g, "y")
    ask(g, 0x10, { rax = 0x0093 })
    assert.equal("y", cells(g, 0, 0, 1))
    assert.same({ "INT 0x10: mode 0x13 is not there, it stays text" }, g.notes)
    local regs = ask(g, 0x10, { rax = 0x0f00, rbx = 0xffff })
    assert.same({ 0x5003, 0xff }, { regs.rax, regs.rbx })
  end)

  it("writes and reads characters with attributes where the cursor is", function()
    local g = make()
    ask(g, 0x10, { rax = 0x0200, rdx = at(1, 78) })
    ask(g, 0x10, { rax = 0x0923, rbx = 0x1e, rcx = 4 }) -- # in yellow on blue
    assert.equal("##", cells(g, 2, 0, 2))
    assert.equal("\27[2;79H##\27[3;1H##", table.concat(g.output))
    assert.same({ 1, 78 }, { cursor(g) })
    assert.equal(0x1e23, ask(g, 0x10, { rax = 0x0800 }).rax)
    ask(g, 0x10, { rax = 0x0a24, rbx = 0x4f, rcx = 1 })
    assert.equal(0x1e24, ask(g, 0x10, { rax = 0x0800 }).rax)
    ask(g, 0x10, { rax = 0x0a25, rcx = 0xffff })
    assert.equal(" %", cells(g, 1, 77, 2))
    assert.equal("%", cells(g, 24, 79, 1))
    assert.equal(0, g.vm:read_u8(0xb8000 + 4000))
  end)

  it("scrolls a window up and down, and clears it", function()
    local g = make()
    for row = 0, 3 do
      ask(g, 0x10, { rax = 0x0200, rdx = at(row, 0) })
      print_text(g, ("abcd"):sub(row + 1, row + 1):rep(4))
    end
    g.output = {}
    ask(g, 0x10, { rax = 0x0601, rbx = 0x7000, rcx = at(1, 1), rdx = at(3, 2) })
    assert.same({ "aaaa", "bccb", "cddc", "d  d" },
      { cells(g, 0, 0, 4), cells(g, 1, 0, 4), cells(g, 2, 0, 4), cells(g, 3, 0, 4) })
    assert.equal(0x70, g.vm:read_u8(0xb8000 + 2 * (3 * 80 + 1) + 1))
    assert.equal("\27[2;2Hcc\27[3;2Hdd\27[4;2H  ", table.concat(g.output))
    ask(g, 0x10, { rax = 0x0702, rbx = 0x0700, rcx = at(0, 0), rdx = at(3, 0) })
    assert.same({ " ", " ", "a", "b" },
      { cells(g, 0, 0, 1), cells(g, 1, 0, 1), cells(g, 2, 0, 1), cells(g, 3, 0, 1) })
    g.output = {}
    ask(g, 0x10, { rax = 0x0600, rbx = 0x1700, rcx = at(0, 0), rdx = at(255, 255) })
    assert.equal("\27[2J", table.concat(g.output))
    assert.equal(("\x20\x17"):rep(2000), g.vm:read(0xb8000, 4000))
    ask(g, 0x10, { rax = 0x0605, rcx = at(5, 5), rdx = at(4, 9) }) -- no window
    assert.equal("\27[2J", table.concat(g.output))
  end)

  it("writes a text, with attributes and without, and moves the cursor if it is told so", function()
    local g = make()
    g.vm:write(0x9000, "A\1B\2")
    ask(g, 0x10, { rax = 0x1300, rbx = 0x0f, rcx = 4, rdx = at(2, 0), es = 0x900, rbp = 0 })
    assert.same({ 0, 0 }, { cursor(g) })
    assert.equal("\27[3;1HA\1B\2", table.concat(g.output))
    assert.equal("A\x0f\1\x0f", g.vm:read(0xb8000 + 320, 4))
    ask(g, 0x10, { rax = 0x1303, rcx = 2, rdx = at(5, 1), es = 0x900, rbp = 0 })
    assert.same({ 5, 3 }, { cursor(g) })
    assert.equal("A\1B\2", g.vm:read(0xb8000 + 802, 4))
  end)

  it("shows and hides the cursor, and says what it is", function()
    local g = make()
    assert.equal(0x0607, ask(g, 0x10, { rax = 0x0300 }).rcx)
    ask(g, 0x10, { rax = 0x0100, rcx = 0x2000 })
    ask(g, 0x10, { rax = 0x0100, rcx = 0x0d0e })
    assert.equal("\27[?25l\27[?25h", table.concat(g.output))
    assert.equal(0x0d0e, ask(g, 0x10, { rax = 0x0300 }).rcx)
    assert.equal(0x1a, ask(g, 0x10, { rax = 0x1a00 }).al)
    assert.equal(3, ask(g, 0x10, { rax = 0x1200, rbx = 0x10 }).rbx)
  end)

  it("leaves what is not there as it is, and notes it", function()
    local g = make()
    local regs = ask(g, 0x10, { rax = 0x4f00, rbx = 0x1234 })
    assert.same({ 0x4f00, 0x1234 }, { regs.rax, regs.rbx })
    assert.same({ "INT 0x10: AX 0x4f00 is not there" }, g.notes)
  end)

  it("keeps within the screen, whatever the guest has written for the cursor", function()
    local g = make()
    g.vm:write_u16(0x450, 0xffff)
    print_text(g, "x")
    assert.same({ 24, 0 }, { cursor(g) })
    assert.equal("x", cells(g, 23, 79, 1))
  end)
end)

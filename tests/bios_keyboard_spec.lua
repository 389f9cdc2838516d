-- INT 16h, the keyboard, of ckvm.bios.

local guests = require "bios_guests"
local support = require "support"

local make, ask = guests.make, guests.ask

describe("INT 16h", function()
  before_each(support.need_kvm)

  it("looks for a key, and leaves it there", function()
    local g = make()
    local regs = ask(g, 0x16, { rax = 0x01ff })
    assert.same({ true, 0x01ff }, { regs.zero, regs.rax })
    g.bios:type "a"
    for _ = 1, 2 do
      regs = ask(g, 0x16, { rax = 0x1100 })
      assert.same({ false, 0x1e61 }, { regs.zero, regs.rax })
    end
    assert.equal(0x1e61, ask(g, 0x16, { rax = 0x1000 }).rax)
    assert.is_true(ask(g, 0x16, { rax = 0x0100 }).zero)
  end)

  it("has the keys of a US keyboard", function()
    local g = make()
    local words = {
      a = 0x1e61, Z = 0x2c5a, ["1"] = 0x0231, ["!"] = 0x0221, ["="] = 0x0d3d, ["+"] = 0x0d2b,
      ["["] = 0x1a5b, ["}"] = 0x1b7d, [";"] = 0x273b, ['"'] = 0x2822, ["`"] = 0x2960,
      ["~"] = 0x297e, ["\\"] = 0x2b5c, ["|"] = 0x2b7c, ["/"] = 0x352f, ["?"] = 0x353f,
      [" "] = 0x3920, ["\n"] = 0x1c0d, ["\r"] = 0x1c0d, ["\t"] = 0x0f09, ["\x7f"] = 0x0e08,
      ["\b"] = 0x0e08, ["\3"] = 0x2e03, ["\x1a"] = 0x2c1a, ["\27"] = 0x011b, ["\xe4"] = 0x00e4,
      ["\27[A"] = 0x4800, ["\27[3~"] = 0x5300, ["\27OP"] = 0x3b00, ["\27[15~"] = 0x3f00,
    }
    for bytes, word in pairs(words) do
      g.bios:type(bytes)
      assert.equal(("%q %04x"):format(bytes, word),
        ("%q %04x"):format(bytes, ask(g, 0x16, { rax = 0 }).rax))
      assert.is_true(ask(g, 0x16, { rax = 0x0100 }).zero)
    end
  end)

  it("has no sequence that it does not know", function()
    local g = make()
    g.bios:type "\27[9z"
    local words = {}
    for i = 1, 4 do words[i] = ask(g, 0x16, { rax = 0 }).rax end
    assert.same({ 0x011b, 0x1a5b, 0x0a39, 0x2c7a }, words)
  end)

  it("takes keys of the guest's own, up to 15", function()
    local g = make()
    for i = 1, 15 do assert.equal(0, ask(g, 0x16, { rax = 0x05ff, rcx = i }).al) end
    assert.equal(1, ask(g, 0x16, { rax = 0x0500, rcx = 16 }).al)
    g.bios:type "a"
    for i = 1, 15 do assert.equal(i, ask(g, 0x16, { rax = 0 }).rax) end
    assert.equal(0x1e61, ask(g, 0x16, { rax = 0 }).rax)
  end)

  it("tells the shift keys, which nobody presses", function()
    local g = make()
    assert.equal(0x0200, ask(g, 0x16, { rax = 0x02ff }).rax)
    assert.equal(0, ask(g, 0x16, { rax = 0x12ff }).rax)
    local regs = ask(g, 0x16, { rax = 0x9200 })
    assert.same({ 0x86, true }, { regs.ah, regs.carry })
  end)

  it("begins anew with a buffer that the guest has spoiled", function()
    local g = make()
    for _, word in ipairs { 0, 0x1c, 0x1f, 0x3e, 0xffff } do
      for _, at in ipairs { 0x41a, 0x41c } do
        g.bios:type "b"
        g.vm:write_u16(at, word)
        assert.is_true(ask(g, 0x16, { rax = 0x0100 }).zero)
        g.bios:type "a"
        assert.equal(0x1e61, ask(g, 0x16, { rax = 0 }).rax)
      end
    end
  end)
end)

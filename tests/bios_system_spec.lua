-- INT 15h, 11h and 12h, what a system has, of ckvm.bios.

local ckvm = require "ckvm"
local guests = require "bios_guests"
local support = require "support"
local x86 = require "ckvm.x86"

local make, ask = guests.make, guests.ask

local MEMORY <const>, START <const> = guests.MEMORY, guests.START

describe("INT 15h", function()
  before_each(support.need_kvm)

  it("tells the size of memory", function()
    for _, case in ipairs {
      -- bytes; KiB of 88h; KiB up to 16 MiB, and 64 KiB above
      { 1 << 20, 0, 0, 0 }, { 2 << 20, 1024, 1024, 0 }, { 16 << 20, 15 << 10, 15 << 10, 0 },
      { 64 << 20, 63 << 10, 15 << 10, 768 }, { 1 << 32, 63 << 10, 15 << 10, 0xff00 },
    } do
      local g = make { memory = case[1] }
      local regs = ask(g, 0x15, { rax = 0x88ff })
      assert.same({ case[2], false }, { regs.rax, regs.carry })
      regs = ask(g, 0x15, { rax = 0xe801 })
      assert.same({ case[3], case[4], case[3], case[4], false },
        { regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.carry })
    end
  end)

  it("refuses what is no call for a part of the map", function()
    local g = make()
    local good <const> = { rax = 0xe820, rbx = 0, rcx = 20, rdx = 0x534d4150, rdi = 0x8000 }
    assert.is_false(ask(g, 0x15, good).carry)
    for name, list in pairs { rbx = { 3, 0xffffffff }, rcx = { 19 }, rdx = { 0 } } do
      for _, value in ipairs(list) do
        local regs = { es = 0 }
        for key, number in pairs(good) do regs[key] = number end
        regs[name] = value
        local found = ask(g, 0x15, regs)
        assert.same({ 0x86, true }, { found.ah, found.carry }, name)
      end
    end
  end)

  it("moves memory", function()
    local g = make()
    local function descriptor(address)
      return string.pack("<I2I2BBBB", 0xffff, address & 0xffff, address >> 16 & 0xff, 0x93, 0,
        address >> 24)
    end
    local function move(from, to, words)
      g.vm:write(0x8000, ("\0"):rep(16) .. descriptor(from) .. descriptor(to) .. ("\0"):rep(16))
      return ask(g, 0x15, { rax = 0x8700, rcx = words, rsi = 0x8000 })
    end
    g.vm:write(0x9000, "moved up")
    local regs = move(0x9000, 0x123456, 4)
    assert.same({ 0, false }, { regs.ah, regs.carry })
    assert.equal("moved up", g.vm:read(0x123456, 8))
    for _, case in ipairs {
      { 0xff000000, 0x9000, 1 }, { 0x9000, MEMORY, 1 }, { MEMORY - 1, 0x9000, 1 },
      { 0, 0, 0x8001 }, { 0x9000, MEMORY - 2, 2 },
    } do
      regs = move(table.unpack(case))
      assert.same({ 2, true }, { regs.ah, regs.carry })
    end
  end)

  it("has line 20 on", function()
    local g = make()
    assert.is_false(ask(g, 0x15, { rax = 0x2401 }).carry)
    assert.equal(1, ask(g, 0x15, { rax = 0x2402 }).rax)
    local regs = ask(g, 0x15, { rax = 0x2400 })
    assert.same({ 0x86, true }, { regs.ah, regs.carry })
  end)

  it("waits, as long as it is told", function()
    local g = make()
    local from = ckvm.now()
    local regs = ask(g, 0x15, { rax = 0x8600, rcx = 0, rdx = 50000 })
    assert.same({ false, 50000 }, { regs.carry, regs.rdx })
    assert(ckvm.now() - from >= 0.05)
  end)

  it("ends with the run that it waits in, and begins anew", function()
    local g = make()
    g.vm:write(START, "\xcd\x15\xf4") -- int $0x15; hlt
    local function start(micro)
      x86.enter(g.vcpu, "real", { rip = START, rsp = START })
      g.vcpu:set_regs { rax = 0x8600, rcx = micro >> 16, rdx = micro & 0xffff }
    end
    start(0xffffffff)
    assert.equal("timeout", (g.vcpu:run { timeout = 0.5 }))
    g.vm:after(0.02, function(vcpu) vcpu:kick() end)
    assert.equal("kicked", (g.vcpu:run(support.LIMITS)))
    start(1000)
    assert.equal("hlt", (g.vcpu:run(support.LIMITS)))
  end)

  it("refuses the rest", function()
    local g = make()
    local regs = ask(g, 0x15, { rax = 0xc000, rbx = 5 })
    assert.same({ 0x86, 5, true }, { regs.ah, regs.rbx, regs.carry })
    for _, vector in ipairs { 0x14, 0x17 } do
      assert.is_true(ask(g, vector, { rax = 0x0300 }).carry)
    end
    assert.same({ "INT 0x15: AX 0xc000 is not there", "INT 0x14: AX 0x0300 is not there",
      "INT 0x17: AX 0x0300 is not there" }, g.notes)
  end)
end)

describe("INT 11h and 12h", function()
  before_each(support.need_kvm)

  it("tell the equipment and the memory below 640 KiB", function()
    local g = make()
    assert.equal(0x22, ask(g, 0x11, { rax = -1 }).rax & 0xffff)
    assert.equal(640, ask(g, 0x12, {}).rax)
  end)
end)

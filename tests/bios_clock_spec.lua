-- INT 1Ah, the time of day, of ckvm.bios.

local ckvm = require "ckvm"
local disk = require "ckvm.disk"
local guests = require "bios_guests"
local support = require "support"

local sector = guests.sector
local make, run, ask = guests.make, guests.run, guests.ask

local TIME <const> = guests.TIME

-- A guest with a timer, that has hooked INT 1Ch to count in BX, and waits for two ticks.
local HOOKED <const> =
  "\xc7\x06\x70\x00\x1e\x7c"    -- movw $0x7c1e, (0x70): the offset
  .. "\xc7\x06\x72\x00\x00\x00" -- movw $0, (0x72): the segment
  .. "\x31\xdb\xfb"             -- xor %bx, %bx; sti
  .. "\xf4\x83\xfb\x02"         -- again: hlt; cmp $2, %bx
  .. "\x72\xfa"                 -- jb again
  .. "\xa1\x6c\x04\xfa\xf4\x90\x90\x90\x90" -- mov (0x46c), %ax; cli; hlt
  .. "\x43\xcf"                 -- the hook: inc %bx; iret

describe("INT 1Ah", function()
  before_each(support.need_kvm)

  local function ticks(g)
    local regs = ask(g, 0x1a, { rax = 0x00ff })
    assert.equal(regs.rcx << 16 | regs.rdx, g.vm:read_u32(0x46c))
    return regs.rcx << 16 | regs.rdx, regs.al
  end

  it("counts ticks since midnight", function()
    local seconds = TIME
    local g = make { time = function() return seconds end }
    local expected <const> = ((14 * 60 + 25) * 60 + 5) * 0x1800b0 // 86400
    assert.same({ expected, 0 }, { ticks(g) })
    seconds = seconds + 1
    local now = ticks(g)
    assert(now == expected + 18 or now == expected + 19)
    seconds = seconds + 86400
    assert.same({ now, 1 }, { ticks(g) })
    assert.same({ now, 0 }, { ticks(g) })
  end)

  it("goes on by itself", function()
    local g = make { ticks = false } -- they might go on between two looks at them
    local first = ticks(g)
    ckvm.eventfd():wait { timeout = 0.15 }
    assert((ticks(g) - first) % 0x1800b0 >= 2)
  end)

  -- 7c00: mov 0x46c, %bx; 7c04: mov 0x46c, %ax; sub %bx, %ax; cmp $2, %ax; jb 7c04; hlt
  local LOOK <const> = "\x8b\x1e\x6c\x04\xa1\x6c\x04\x29\xd8\x83\xf8\x02\x72\xf6\xf4"

  it("goes on for a guest that calls nothing, unless it is not to", function()
    assert.equal("hlt", run(LOOK).why)
    local g = make { disk = disk.new(sector(LOOK)), ticks = false }
    g.bios:boot(g.vcpu)
    assert.equal("timeout", (g.vcpu:run { timeout = 0.3 }))
  end)

  it("has ticks that wake a guest and call its hook, with a timer", function()
    local g = run(HOOKED, { timer = true, ticks = false })
    assert.same({ "hlt", 2 }, { g.why, g.vcpu.regs.rbx })
    assert.equal(g.vm:read_u16(0x46c), g.vcpu.regs.rax)
    assert.equal(0x7c1a, g.vcpu.regs.rip)
    g = run(HOOKED)
    assert.same({ "hlt", 0, 0x7c10 }, { g.why, g.vcpu.regs.rbx, g.vcpu.regs.rip })
  end)

  it("takes a number of ticks", function()
    local seconds = TIME
    local g = make { time = function() return seconds end }
    local regs = ask(g, 0x1a, { rax = 0x0100, rcx = 0x18, rdx = 0xaf })
    assert.is_false(regs.carry)
    assert.same({ 0x1800af, 0 }, { ticks(g) })
    seconds = seconds + 1
    local now, midnight = ticks(g)
    assert(now == 17 or now == 18)
    assert.equal(1, midnight)
    ask(g, 0x1a, { rax = 0x0100, rcx = 0xffff, rdx = 0xffff })
    assert.equal(0xffffffff % 0x1800b0, (ticks(g)))
  end)

  it("has a clock, in BCD", function()
    local g = make { time = function() return TIME end }
    local regs = ask(g, 0x1a, { rax = 0x0200, rdx = 0xff })
    assert.same({ 0x1425, 0x0500, false }, { regs.rcx, regs.rdx, regs.carry })
    regs = ask(g, 0x1a, { rax = 0x0400 })
    assert.same({ 0x2024, 0x0229, false }, { regs.rcx, regs.rdx, regs.carry })
  end)

  it("sets it, and refuses what is no time", function()
    local g = make { time = function() return TIME end }
    assert.is_false(ask(g, 0x1a, { rax = 0x0300, rcx = 0x2359, rdx = 0x5800 }).carry)
    assert.is_false(ask(g, 0x1a, { rax = 0x0500, rcx = 0x1999, rdx = 0x1231 }).carry)
    local regs = ask(g, 0x1a, { rax = 0x0200 })
    assert.same({ 0x2359, 0x5800 }, { regs.rcx, regs.rdx })
    regs = ask(g, 0x1a, { rax = 0x0400 })
    assert.same({ 0x1999, 0x1231 }, { regs.rcx, regs.rdx })
    for _, case in ipairs {
      { 0x0300, 0x2400, 0 }, { 0x0300, 0x0060, 0 }, { 0x0300, 0, 0x6000 }, { 0x0300, 0x0a00, 0 },
      { 0x0500, 0x2000, 0x0100 }, { 0x0500, 0x2000, 0x1301 }, { 0x0500, 0x20a0, 0x0101 },
      { 0x0700, 0, 0 },
    } do
      regs = ask(g, 0x1a, { rax = case[1], rcx = case[2], rdx = case[3] })
      assert.same({ 0x86, true }, { regs.ah, regs.carry })
    end
    regs = ask(g, 0x1a, { rax = 0x0400 })
    assert.same({ 0x1999, 0x1231 }, { regs.rcx, regs.rdx })
  end)
end)

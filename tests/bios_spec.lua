-- ckvm.bios: boot sectors that use its services, each service by itself, and guests that mean harm.

local bios = require "ckvm.bios"
local ckvm = require "ckvm"
local disk = require "ckvm.disk"
local support = require "support"
local x86 = require "ckvm.x86"

local blames, contains = support.blames, support.contains

local MEMORY <const> = 2 << 20
local START <const> = 0x7c00
local CARRY <const>, ZERO <const> = 1, 0x40
local TIME <const> = 1709216705 -- Thursday, 2024-02-29 14:25:05 UTC
local FLOPPY <const> = 1474560 -- bytes

local function sector(code)
  return code .. ("\0"):rep(510 - #code) .. "\x55\xaa"
end

-- Sectors behind the first, each of its own number.
local function numbered(code, sectors)
  local list = { sector(code) }
  for i = 1, sectors - 1 do list[i + 1] = string.pack("<I4", i):rep(128) end
  return table.concat(list)
end

-- A VM with a BIOS. What it puts out and notes is in the lists `output` and `notes`.
local function make(options)
  options = options or {}
  local g = { output = {}, notes = {}, vm = ckvm.open():create_vm() }
  g.ram = g.vm:add_memory { gpa = 0, size = MEMORY }
  g.vcpu = g.vm:create_vcpu(0)
  options.memory = options.memory or MEMORY
  options.output = options.output or function(bytes) table.insert(g.output, bytes) end
  options.note = function(text) table.insert(g.notes, text) end
  g.bios = bios.install(g.vm, options)
  return g
end

-- One that has booted a disk with this code in its first sector, and run: why that has ended.
local function run(code, options)
  options = options or {}
  options.disk = options.disk or disk.new(sector(code))
  local g = make(options)
  g.bios:boot(g.vcpu)
  g.why, g.value = g.vcpu:run(support.LIMITS)
  g.text = table.concat(g.output)
  return g
end

local SEGMENTS <const> = { es = true, ds = true, ss = true }

-- The guest calls an interrupt with these registers, of which segments are numbers in sregs. What
-- it has in them then, with `carry` and `zero`; or nil and why the run has ended.
local function ask(g, vector, regs)
  g.vm:write(START, string.char(0xcd, vector) .. "\xf4") -- int $vector; hlt
  x86.enter(g.vcpu, "real", { rip = START, rsp = START })
  local sregs, general = {}, {}
  for name, value in pairs(regs) do
    if SEGMENTS[name] then
      sregs[name] = { selector = value, base = value << 4 }
    else
      general[name] = value
    end
  end
  g.vcpu:set_sregs(sregs)
  g.vcpu:set_regs(general)
  local why, value = g.vcpu:run(support.LIMITS)
  if why ~= "hlt" then return nil, why, value end
  local found = g.vcpu:get_regs()
  found.carry, found.zero = found.rflags & CARRY ~= 0, found.rflags & ZERO ~= 0
  found.ah, found.al = found.rax >> 8 & 0xff, found.rax & 0xff
  return found
end

-- A guest with a timer, that has hooked INT 1Ch to count in BX, and waits for two ticks.
local HOOKED <const> =
  "\xc7\x06\x70\x00\x1e\x7c"    -- movw $0x7c1e, (0x70): the offset
  .. "\xc7\x06\x72\x00\x00\x00" -- movw $0, (0x72): the segment
  .. "\x31\xdb\xfb"             -- xor %bx, %bx; sti
  .. "\xf4\x83\xfb\x02"         -- again: hlt; cmp $2, %bx
  .. "\x72\xfa"                 -- jb again
  .. "\xa1\x6c\x04\xfa\xf4\x90\x90\x90\x90" -- mov (0x46c), %ax; cli; hlt
  .. "\x43\xcf"                 -- the hook: inc %bx; iret

-- Boot sectors -------------------------------------------------------------------

describe("ckvm.bios", function()
  before_each(support.need_kvm)

  it("has a boot sector print", function()
    local g = run("\xbe\x10\x7c"     -- 7c00: mov $0x7c10, %si
      .. "\xac\x84\xc0\x74\x07"      -- 7c03: lodsb; test %al, %al; jz 7c0f
      .. "\xb4\x0e\xcd\x10"          -- 7c08: mov $0x0e, %ah; int $0x10
      .. "\xeb\xf5\x90"              -- 7c0c: jmp 7c03; nop
      .. "\xf4Hello, BIOS!\r\n")     -- 7c0f: hlt
    assert.same({ "hlt", "Hello, BIOS!\r\n" }, { g.why, g.text })
    assert.equal(("H"):byte() | 0x700, g.vm:read_u16(0xb8000) | 0x700)
    assert.same({}, g.notes)
  end)

  it("starts a sector as a PC does", function()
    local g = run("\xf4", { disk = disk.new(sector("\xf4") .. ("\0"):rep(512)) })
    local regs, sregs = g.vcpu:get_regs(), g.vcpu:get_sregs()
    assert.same({ 0x7c01, 0x80, 0x200 }, { regs.rip, regs.rdx, regs.rflags & 0x200 })
    assert.same({ 0, 0, 0 }, { sregs.cs.base, sregs.ds.base, sregs.ss.base })
    g = run("\xf4", { disk = disk.new(sector("\xf4") .. ("\0"):rep(FLOPPY - 512)) })
    assert.equal(0, g.vcpu.regs.rdx)
  end)

  it("has it read the next sectors by cylinder, head and sector, and by number", function()
    local image = disk.new(numbered("\xb8\x01\x02" -- mov $0x0201, %ax
      .. "\xb9\x02\x00\xb6\x00\xbb\x00\x80"    -- mov $2, %cx; mov $0, %dh; mov $0x8000, %bx
      .. "\xcd\x13\x72\x0b"                    -- int $0x13; jc 7c1a
      .. "\xb4\x42\xbe\x20\x7c"                -- mov $0x42, %ah; mov $0x7c20, %si
      .. "\xcd\x13\x72\x02"                    -- int $0x13; jc 7c1a
      .. "\xf4\x90\xeb\xfe\x90\x90\x90\x90"    -- 7c18: hlt; nop; 7c1a: jmp .
      .. "\x10\0\2\0\0\x90\0\0\2\0\0\0\0\0\0\0", 8)) -- 7c20: 2 sectors to 0:9000, from 2 on
    local g = run("", { disk = image })
    assert.same({ "hlt", 0 }, { g.why, g.vcpu.regs.rflags & CARRY })
    assert.equal(image:read(1, 1), g.vm:read(0x8000, 512))
    assert.equal(image:read(2, 2), g.vm:read(0x9000, 1024))
  end)

  it("has it write a sector, which is in the file then", function()
    local path = os.tmpname()
    local file = assert(io.open(path, "wb"))
    file:write(sector("\xb8\x01\x03\xb9\x03\x00" -- mov $0x301, %ax; mov $3, %cx
      .. "\xb6\x00\xbb\x00\x7c\xcd\x13\xf4"), -- mov $0, %dh; mov $0x7c00, %bx; int $0x13; hlt
      ("\0"):rep(1024))
    file:close()
    local g = run("", { disk = disk.open(path) })
    local copy <close> = io.open(path, "rb")
    os.remove(path)
    assert.same({ "hlt", 1, 0 }, { g.why, g.vcpu.regs.rax, g.vcpu.regs.rflags & CARRY })
    local bytes = copy:read("a")
    assert.equal(bytes:sub(1, 512), bytes:sub(1025))
  end)

  -- 7c00: mov $0, %ah; int $0x16; mov $0x0e, %ah; int $0x10; cmp $13, %al; jne 7c00; hlt
  local ECHO <const> = "\xb4\x00\xcd\x16\xb4\x0e\xcd\x10\x3c\x0d\x75\xf4\xf4"

  it("echoes keys that were typed before", function()
    local image = disk.new(sector(ECHO))
    local g = make { disk = image }
    g.bios:type "more than 15 keys: yes\n"
    g.bios:boot(g.vcpu)
    assert.equal("hlt", (g.vcpu:run(support.LIMITS)))
    assert.equal("more than 15 keys: yes\r", table.concat(g.output))
  end)

  it("waits for keys that come later, and sleeps meanwhile", function()
    local g = make { disk = disk.new(sector(ECHO)) }
    g.bios:boot(g.vcpu)
    g.vm:after(0.1, function() g.bios:type "late" end)
    g.vm:after(0.2, function() g.bios:type "r\n" end)
    local cpu = os.clock()
    assert.equal("hlt", (g.vcpu:run(support.LIMITS)))
    assert.equal("later\r", table.concat(g.output))
    assert(os.clock() - cpu < 0.19, "it has not slept")
  end)

  it("ends with the run that it waits in, by a limit, a kick and a stop", function()
    local g = make { disk = disk.new(sector(ECHO)) }
    g.bios:boot(g.vcpu)
    assert.equal("timeout", (g.vcpu:run { timeout = 0.05 }))
    assert.equal("exits", (g.vcpu:run { timeout = 20, exits = 3 }))
    g.vm:after(0.02, function(vcpu) vcpu:kick() end)
    assert.equal("kicked", (g.vcpu:run(support.LIMITS)))
    g.vm:after(0.02, function(vcpu) vcpu:stop("enough") end)
    assert.same({ "stopped", "enough" }, { g.vcpu:run(support.LIMITS) })
    g.bios:type "\n"
    assert.equal("hlt", (g.vcpu:run(support.LIMITS)))
  end)

  it("asks for keys by a function", function()
    local texts = { "", "in", "put\n" }
    local g = run(ECHO, { input = function() return table.remove(texts, 1) end })
    assert.same({ "hlt", "input\r" }, { g.why, g.text })
  end)

  it("waits under vm:run, too", function()
    local g = make { disk = disk.new(sector(ECHO)) }
    g.bios:boot(g.vcpu)
    g.vm:after(0.05, function() g.bios:type "x\n" end)
    assert.equal("hlt", (g.vm:run(support.LIMITS)))
    assert.equal("x\r", table.concat(g.output))
  end)

  it("has it walk the map of memory", function()
    -- 7c00: mov $0x8000, %di; xor %ebx, %ebx
    -- 7c06: mov $0xe820, %eax; mov $0x534d4150, %edx; mov $20, %ecx; int $0x15
    -- 7c1a: jc 7c24; add $20, %di; test %ebx, %ebx; jnz 7c06; 7c24: hlt
    local g = run("\xbf\x00\x80\x66\x31\xdb"
      .. "\x66\xb8\x20\xe8\x00\x00\x66\xba\x50\x41\x4d\x53\x66\xb9\x14\x00\x00\x00\xcd\x15"
      .. "\x72\x08\x83\xc7\x14\x66\x85\xdb\x75\xe2\xf4", { above = 1 << 30 })
    assert.same({ "hlt", 0x8000 + 4 * 20, 0 },
      { g.why, g.vcpu.regs.rdi & 0xffff, g.vcpu.regs.rflags & CARRY })
    local areas = {}
    for i = 0, 3 do
      areas[i + 1] = { string.unpack("<i8i8I4", g.vm:read(0x8000 + 20 * i, 20)) }
      areas[i + 1][4] = nil
    end
    assert.same({ { 0, 0xa0000, 1 }, { 0xa0000, 0x60000, 2 }, { 1 << 20, MEMORY - (1 << 20), 1 },
      { 4 << 30, 1 << 30, 1 } }, areas)
  end)

  it("boots anew when it is told so", function()
    local again <const> = "\xea\x00\x00\xff\xff" -- jmp $0xffff, $0
    assert.same({ "stopped", "reboot" }, { run(again).why, run(again).value })
    assert.equal("reboot", run("\xcd\x19").value) -- int $0x19
    assert.equal("no bootable disk", run("\xcd\x18").value) -- int $0x18
    local g, count = nil, 0
    g = make { disk = disk.new(sector(again)), reboot = function(vcpu)
      count = count + 1
      g.bios:boot(vcpu)
      if count == 3 then vcpu:stop "enough" end
    end }
    g.bios:boot(g.vcpu)
    assert.same({ "stopped", "enough" }, { g.vcpu:run(support.LIMITS) })
    assert.equal(3, count)
  end)
end)

-- Misuse -------------------------------------------------------------------------

describe("bios.install", function()
  before_each(support.need_kvm)

  it("refuses wrong options", function()
    local vm = ckvm.open():create_vm()
    local install = bios.install
    blames("vm: VM expected, got nil", install, nil, {})
    blames("bios: table of options expected, got nil", install, vm)
    blames("bios: unknown option 'disc'", install, vm, { memory = MEMORY, disc = {} })
    blames("memory: integer expected, got nil", install, vm, {})
    blames("output: function expected, got string", install, vm, { memory = MEMORY, output = "x" })
    for _, size in ipairs { 0, -1, 0xfffff, (4 << 30) + 1, math.mininteger, math.maxinteger } do
      blames(("memory: 0x%x is not between 0x100000 and 0x100000000"):format(size), install, vm,
        { memory = size })
    end
    blames("above: -1 is less than 0", install, vm, { memory = MEMORY, above = -1 })
    blames("no memory at 0x0", install, vm, { memory = MEMORY })
    blames("disk: sectors: nil is no number from 1 on", install, vm, { memory = MEMORY, disk = {} })
    blames("disk: heads: 0 is no number from 1 on", install, vm, { memory = MEMORY,
      disk = { sectors = 9, cylinders = 1, heads = 0, sectors_per_track = 9 } })
  end)

  it("needs its port, and has one BIOS in a VM", function()
    local g = make()
    blames("0xb1", bios.install, g.vm, { memory = MEMORY })
  end)

  it("boots what can be booted", function()
    local g = make()
    blames("disk: there is none to boot", g.bios.boot, g.bios, g.vcpu)
    blames("vcpu: vCPU expected, got nil", g.bios.boot, g.bios)
    blames("bytes: string expected, got nil", g.bios.type, g.bios)
    g = make { disk = disk.new(("\0"):rep(512)) }
    contains("disk: signature at 0x1fe: 0x0 is not 0xaa55",
      support.error_of(g.bios.boot, g.bios, g.vcpu))
    g = make { disk = disk.new("x") }
    contains("disk: signature", support.error_of(g.bios.boot, g.bios, g.vcpu))
    local closed = disk.new(sector("\xf4"))
    closed:close()
    g = make { disk = closed }
    blames("disk: closed", g.bios.boot, g.bios, g.vcpu)
  end)

  it("goes with its VM", function()
    local before = support.settled_fds()
    for _ = 1, 3 do ask(make(), 0x10, { rax = 0x0e41 }) end
    assert.equal(before, support.settled_fds())
  end)

  it("leaves no descriptor behind where it fails", function()
    local g = make()
    local before = support.settled_fds()
    blames("0xb1", bios.install, g.vm, { memory = MEMORY })
    assert.equal(before, support.count_fds())
    local vm = ckvm.open():create_vm()
    vm:add_memory { gpa = 0, size = MEMORY }
    before = support.settled_fds()
    contains("no time", support.error_of(bios.install, vm, { memory = MEMORY,
      time = function() error "no time" end }))
    assert.equal(before, support.count_fds())
    bios.install(vm, { memory = MEMORY })
  end)

  it("raises what the script's functions raise", function()
    local g = make { output = function() error "no terminal" end }
    contains("no terminal", support.error_of(ask, g, 0x10, { rax = 0x0e41 }))
  end)

  it("takes a state back", function()
    local g = make()
    g.bios:type(("x"):rep(20))
    ask(g, 0x10, { rax = 0x0e41 })
    local state = g.bios:save()
    assert.same({ ("\x78\x2d"):rep(5), 0, 1 }, { state.keys, state.row, state.column })
    local other = make()
    other.bios:load(state)
    assert.same(state, other.bios:save())
    blames("state: unknown key 'x'", other.bios.load, other.bios, { x = 1 })
    state.keys = "odd"
    blames("state: keys: 3 bytes, where each key has two", other.bios.load, other.bios, state)
  end)
end)

describe("bios:close", function()
  before_each(support.need_kvm)

  it("closes its descriptors, twice, and before or after the VM", function()
    local vm = ckvm.open():create_vm()
    vm:add_memory { gpa = 0, size = MEMORY }
    local before = support.settled_fds()
    do
      local _ <close> = bios.install(vm, { memory = MEMORY, ticks = false })
      assert.equal(before + 2, support.count_fds())
    end
    assert.equal(before, support.count_fds())
    local b = bios.install(vm, { memory = MEMORY, ticks = false })
    vm:close()
    b:close()
    b:close()
    assert(support.count_fds() < before)
  end)

  it("ends the run at the guest's next call, and boots no more", function()
    local g = run("\x90\xf4\xcd\x12\xf4") -- nop; hlt; int $0x12; hlt
    g.bios:close()
    assert.equal("io_out", (g.vcpu:run(support.LIMITS)))
    blames("bios: closed", g.bios.boot, g.bios, g.vcpu)
    bios.install(g.vm, { memory = MEMORY }) -- its port is free
  end)

  it("stops the ticks, and leaves HLT alone", function()
    local calls = 0
    local g = make { timer = true, time = function()
      calls = calls + 1
      return TIME
    end }
    g.bios:close()
    calls = 0
    g.vm:write(START, "\xeb\xfe") -- jmp .
    x86.enter(g.vcpu, "real", { rip = START, rsp = START })
    assert.equal("timeout", (g.vcpu:run { timeout = 0.2 }))
    g.vm:write(START, "\xfb\xf4") -- sti; hlt
    x86.enter(g.vcpu, "real", { rip = START, rsp = START })
    assert.equal("hlt", (g.vcpu:run(support.LIMITS)))
    assert.equal(0, calls)
  end)

  it("may be called amid a call", function()
    local g
    g = make { input = function() g.bios:close() end }
    local _, why = ask(g, 0x16, {})
    assert.equal("io_out", why)
  end)

  it("may be called by a tick, which is the last then", function()
    local g, ticks = nil, 0
    g = make { time = function()
      if g and ticks == 0 then g.vm:after(0.2, function(vcpu) vcpu:stop() end) end
      if g then
        ticks = ticks + 1
        g.bios:close()
      end
      return TIME
    end }
    g.vm:write(START, "\xeb\xfe") -- jmp .
    x86.enter(g.vcpu, "real", { rip = START, rsp = START })
    assert.same({ "stopped", 1 }, { g.vcpu:run(support.LIMITS), ticks })
  end)
end)

-- INT 10h ------------------------------------------------------------------------

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

-- INT 13h ------------------------------------------------------------------------

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

-- INT 15h ------------------------------------------------------------------------

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
    assert.equal("timeout", (g.vcpu:run { timeout = 0.02 }))
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

-- INT 16h ------------------------------------------------------------------------

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

-- INT 1Ah and what has no functions -------------------------------------------------

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
    local g = make()
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
    local g = run(HOOKED, { timer = true, disk = disk.new(sector(HOOKED)) })
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

describe("INT 11h and 12h", function()
  before_each(support.need_kvm)

  it("tell the equipment and the memory below 640 KiB", function()
    local g = make()
    assert.equal(0x22, ask(g, 0x11, { rax = -1 }).rax & 0xffff)
    assert.equal(640, ask(g, 0x12, {}).rax)
  end)
end)

-- Harm ---------------------------------------------------------------------------

describe("ckvm.bios", function()
  before_each(support.need_kvm)

  it("names an interrupt without a handler, and where it came from", function()
    local g = run("\x90\xcd\x21\xf4") -- nop; int $0x21; hlt
    assert.same({ "stopped", "INT 0x21 has no handler; it returns to 0000:7c03" },
      { g.why, g.value })
    assert.equal("hlt", (g.vcpu:run(support.LIMITS)))
    g = run("\x31\xc0\xf7\xf0") -- xor %ax, %ax; div %ax
    contains("INT 0x0 (#DE) has no handler; it returns to 0000:7c0", g.value)
    local seen = {}
    g = run("\xcd\x21\xf4", { unhandled = function(vcpu, text)
      seen = { vcpu, text }
    end })
    assert.same({ "hlt", g.vcpu }, { g.why, seen[1] })
    contains("INT 0x21", seen[2])
  end)

  it("lets hooks be called", function()
    local g = make()
    for _, vector in ipairs { 0x1b, 0x1c, 0x4a } do
      local regs = ask(g, vector, { rax = 0x1234 })
      assert.same({ 0x1234, false }, { regs.rax, regs.carry })
    end
  end)

  it("keeps the caller's flags and registers but those of the result", function()
    local g = make()
    for _, flags in ipairs { 0x2, 0x8d7 } do -- none, and all that are arithmetic
      local regs = ask(g, 0x10, { rax = 0x0e41, rbx = 1, rcx = 2, rdx = 3, rsi = 4, rdi = 5,
        rbp = 6, rflags = flags })
      assert.same({ 0x0e41, 1, 2, 3, 4, 5, 6, START, flags }, { regs.rax, regs.rbx, regs.rcx,
        regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.rsp, regs.rflags })
    end
  end)

  it("does nothing for an OUT of the guest's own to its port", function()
    local g = run("\xb8\x41\x0e\xe6\xb1\xf4") -- mov $0x0e41, %ax; out %al, $0xb1; hlt
    assert.same({ "hlt", "" }, { g.why, g.text })
  end)

  it("answers a guest whose stack is where no memory is", function()
    local g = make()
    -- What INT pushes there goes nowhere, and what IRET pops are all ones.
    g.vm:attach_mmio { gpa = MEMORY, size = 0x100000, read = function() return -1 end,
      write = function() end }
    g.vm:write(START, "\xea\x40\xe0\x00\xf0") -- jmp $0xf000, $0xe040: what INT 10h leads to
    for _, vector in ipairs { 0x10, 0x13, 0x15, 0x16, 0x1a, 0x21 } do
      g.vm:write_u16(START + 1, 0xe000 + 4 * vector)
      for _, sp in ipairs { 2, 0xfffa } do
        x86.enter(g.vcpu, "real", { rip = START, rsp = sp })
        g.vcpu:set_sregs { ss = { base = MEMORY + 0x1000, selector = 0 } }
        g.vcpu:set_regs { rax = 0x4f4f }
        local why = g.vcpu:run { timeout = 0.2, exits = 50 } -- it runs wild
        assert(type(why) == "string")
      end
    end
    local regs = ask(g, 0x13, { rax = 0x00ff, rdx = 0x80 })
    assert.equal(1, regs.ah)
    contains("no stack", (select(2, pcall(function()
      x86.enter(g.vcpu, "real", { rip = START, rsp = 0 })
      g.vm:write(START, "\xea\x84\xe0\x00\xf0") -- jmp $0xf000, $0xe084: INT 21h
      g.vcpu:set_sregs { ss = { base = 0x40000000, selector = 0 } }
      return select(2, g.vcpu:run { timeout = 20, exits = 50 })
    end))))
  end)

  it("has a stack at the end of a segment", function()
    local g = make()
    for sp = 0, 6 do
      local regs, why = ask(g, 0x13, { rax = 0x0201, rdx = 0x81, rsp = sp, ss = 0x2000 })
      if sp % 2 == 0 then
        assert.same({ 1, true }, { regs.ah, regs.carry })
      else
        assert(regs or why) -- a word that would wrap is an exception
      end
    end
  end)

  it("survives any call with any registers #slow", function()
    local seed = tonumber(os.getenv "CKVM_SEED") or os.time()
    print("CKVM_SEED=" .. seed)
    math.randomseed(seed)
    local random <const> = math.random
    local vectors <const> = { 0x10, 0x11, 0x12, 0x13, 0x13, 0x13, 0x15, 0x16, 0x1a, 0x1a }
    local numbers <const> = { 0, 1, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x55aa }
    local edd <const> = { 0x42, 0x43, 0x44, 0x48, 0x02, 0x03, 0x13, 0x09, 0x06, 0x05 }
    local function number()
      return random(3) == 1 and numbers[random(#numbers)] or random(0, 0xffff)
    end
    local function fresh()
      return make { disk = disk.new(numbered("\xf4", 2100)), input = function() return "x" end }
    end
    local g, ends = fresh(), {}
    for i = 1, support.times(30000) do
      local ax = random(2) == 1 and number() or edd[random(#edd)] << 8 | random(0, 255)
      if random(2) == 1 then ax = random(0, 0x1a) << 8 | ax & 0xff end
      local regs = {
        rax = ax, rbx = number(), rcx = number(), rdx = number(), rsi = number(), rdi = number(),
        rbp = number(), es = number(), ds = number(),
      }
      local vector = vectors[random(#vectors)]
      if random(2) == 1 then regs.rdx = regs.rdx & 0xff00 | 0x80 end
      if vector == 0x10 then regs.rcx = regs.rcx & 0x1ff end -- long texts take long
      if vector == 0x15 and regs.rax >> 8 == 0x86 then regs.rcx, regs.rdx = 0, 1 end
      local done, found, why = pcall(ask, g, vector, regs)
      if not done then
        error(("call %d of CKVM_SEED=%d: INT 0x%x, AX 0x%x: %s"):format(i, seed, vector, regs.rax,
          tostring(found)), 0)
      end
      ends[found and "hlt" or why] = true
      if g.vm:read_u32(vector * 4) ~= 0xf000e000 + 4 * vector
        or g.vm:read_u32(0xf0000 + 0xe000 + 4 * vector) & 0xffff0000 ~= 0xcfb10000 then
        g.bios:close()
        g.vm:close()
        g = fresh() -- it has written over what leads to the BIOS
      end
    end
    assert(ends.hlt)
  end)
end)

-- ckvm.bios: boot sectors that use its services, misuse of it, its end, and guests that mean harm.
-- Each service has a spec of its own.

local bios = require "ckvm.bios"
local ckvm = require "ckvm"
local disk = require "ckvm.disk"
local guests = require "bios_guests"
local support = require "support"
local x86 = require "ckvm.x86"

local blames, contains = support.blames, support.contains
local sector, numbered = guests.sector, guests.numbered
local make, run, ask = guests.make, guests.run, guests.ask

local MEMORY <const>, FLOPPY <const> = guests.MEMORY, guests.FLOPPY
local START <const>, CARRY <const>, TIME <const> = guests.START, guests.CARRY, guests.TIME

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
    local before <const>, from <const> = g.vcpu.stats.total, ckvm.now()
    assert.equal("hlt", (g.vcpu:run(support.LIMITS)))
    assert.equal("later\r", table.concat(g.output))
    local exits <const>, took <const> = g.vcpu.stats.total - before, ckvm.now() - from
    assert(exits < 50 + took / 0.005, "it has not slept") -- a wait of 10 ms is an exit
  end)

  it("ends with the run that it waits in, by a limit, a kick and a stop", function()
    local g = make { disk = disk.new(sector(ECHO)) }
    g.bios:boot(g.vcpu)
    assert.equal("timeout", (g.vcpu:run { timeout = 0.5 }))
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
    contains("disk: is not bootable: signature at 0x1fe: 0x0 is not 0xaa55",
      support.error_of(g.bios.boot, g.bios, g.vcpu))
    g = make { disk = disk.new("x") }
    contains("disk: is not bootable: ", support.error_of(g.bios.boot, g.bios, g.vcpu))
    g = make { disk = disk.new("QFI\xfb") }
    contains("disk: is a qcow2 disk image: ", support.error_of(g.bios.boot, g.bios, g.vcpu))
    contains("image: is compressed with gzip: ", support.error_of(g.bios.boot, g.bios, g.vcpu,
      { image = "\x1f\x8b\x08" }))
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
        local why = g.vcpu:run { timeout = 0.5, exits = 50 } -- it runs wild
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

-- ckvm.boot and ckvm.bios with images that are entered by Linux's 16-bit boot protocol: which they
-- are, where things are, what the code finds, and what is refused.

local bios = require "ckvm.bios"
local boot = require "ckvm.boot"
local ckvm = require "ckvm"
local disk = require "ckvm.disk"
local images = require "boot_images"
local support = require "support"

local blames = support.blames

local MiB <const> = 1 << 20
local HLT <const> = "\xf4"
local BASE <const> = 0x10000

local function guest()
  local vm = ckvm.open():create_vm()
  vm:add_memory { gpa = 0, size = 4 * MiB }
  vm:fill(0, 4 * MiB, 0xff)
  return vm
end

local function with_defaults(options)
  local whole = { name = "ipxe.lkrn", memory = 4 * MiB }
  for key, value in pairs(options or {}) do whole[key] = value end
  return whole
end

-- Loads an image of these fields; returns where to start, and the VM.
local function load(fields, options)
  local vm = guest()
  return boot.load(vm, images.linux16(fields), with_defaults(options)), vm
end

local function refuses(message, fields, options)
  local whole, vm = with_defaults(options), guest()
  whole.format = "linux16"
  local bytes = type(fields) == "string" and fields or images.linux16(fields)
  assert.equal("ipxe.lkrn: " .. message, support.error_of(boot.load, vm, bytes, whole))
  assert.equal(("\xff"):rep(4 * MiB), vm:read(0, 4 * MiB))
end

local function run(start, vm)
  local vcpu = vm:create_vcpu(0)
  boot.enter(vcpu, start)
  assert.equal("hlt", (vcpu:run(support.LIMITS)))
  return vcpu
end

local function cstring(vm, gpa)
  return vm:read(gpa, 64):match("^[^\0]*")
end

describe("ckvm.boot: an image with a real-mode entry only", function()
  before_each(support.need_kvm)

  it("is told by a header without another one", function()
    assert.equal("linux16", boot.detect(images.linux16 {}))
    assert.equal("linux16", boot.detect(images.linux16 { version = 0x207 }))
    assert.equal("bzimage", boot.detect(images.linux16 { code32_start = MiB }))
    assert.equal("bzimage", boot.detect(images.linux16 { xloadflags = 1 }))
    assert.equal("bzimage", boot.detect(images.linux16({}):sub(1, 0x237)))
  end)

  it("is entered as the boot protocol says", function()
    -- mov %cs, %ax; mov %ds, %bx; mov %es, %cx; mov %fs, %dx; mov %gs, %si; mov %ss, %di
    -- mov %sp, %bp; push %ax; hlt
    local start, vm = load { real =
      "\x8c\xc8\x8c\xdb\x8c\xc1\x8c\xe2\x8c\xee\x8c\xd7\x89\xe5\x50\xf4" }
    assert.same({ "linux16", "real", 0, BASE },
      { start.format, start.mode, start.rip, start.info })
    local vcpu = run(start, vm)
    local regs, sregs = vcpu:get_regs(), vcpu:get_sregs()
    assert.same({ 0x1020, 0x1000, 0x1000, 0x1000, 0x1000, 0x1000, 0xe000 }, { regs.rax, regs.rbx,
      regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp })
    assert.same({ 0, BASE + 0x200, 0 }, { regs.rflags & 0x200, sregs.cs.base, sregs.cr0 & 1 })
    assert.equal(0x1020, vm:read_u16(BASE + 0xdffe)) -- pushed
  end)

  it("has its kernel at 1 MiB, wherever that would rather be", function()
    local _, vm = load { pref_address = 2 * MiB, code = "kernel" }
    assert.equal("kernel\0", vm:read(MiB, 7))
    assert.equal("\xff", vm:read(MiB - 1, 1))
  end)

  it("finds a heap, its command line and its initrd by the header", function()
    local start, vm = load({ real = HLT, loadflags = 0x21 },
      { cmdline = "dhcp", modules = { { bytes = "#!ipxe" } } })
    assert.same({ 0xff, 0xa1, 0xde00 }, { vm:read_u8(BASE + 0x210), vm:read_u8(BASE + 0x211),
      vm:read_u16(BASE + 0x224) })
    assert.equal("dhcp", cstring(vm, vm:read_u32(BASE + 0x228)))
    local gpa, size = string.unpack("<I4I4", vm:read(BASE + 0x218, 8))
    assert.equal("#!ipxe", vm:read(gpa, size))
    assert.same({ { gpa = gpa, size = 6, cmdline = "" } }, start.modules)
  end)

  it("has its initrd as high as it may be", function()
    local modules <const> = { { bytes = ("x"):rep(0x1001) } }
    local start = load({}, { modules = modules })
    assert.equal(4 * MiB - 0x2000, start.modules[1].gpa)
    start = load({ initrd_addr_max = 2 * MiB }, { modules = modules })
    assert.equal(2 * MiB - 0x1000, start.modules[1].gpa)
    start = load({ initrd_addr_max = 0xffffffff }, { modules = modules })
    assert.equal(4 * MiB - 0x2000, start.modules[1].gpa)
  end)

  it("without any of these has an empty command line, and no initrd", function()
    local start, vm = load {}
    assert.same({ "", 0, 0, 0 }, { cstring(vm, vm:read_u32(BASE + 0x228)),
      vm:read_u32(BASE + 0x218), vm:read_u32(BASE + 0x21c), #start.modules })
  end)

  it("has as much real-mode code and command line as there is room for", function()
    local code <const> = ("x"):rep(0x8000)
    local bytes = images.linux16 { setup_sects = 0x3f } .. code
    local vm = guest()
    boot.load(vm, bytes, with_defaults { format = "linux16", cmdline = "" })
    assert.equal("x\0", vm:read(BASE + 0x7fff, 2))
    bytes = images.linux16 { cmdline_size = 0x10000 }
    boot.load(vm, bytes, with_defaults { cmdline = ("y"):rep(0x1fff) })
    assert.equal(("y"):rep(0x1fff) .. "\0\xff", vm:read(BASE + 0xe000, 0x2001))
  end)

  it("finds ACPI tables where they are looked for", function()
    local _, vm = load({}, { acpi = { cpus = 1 } })
    assert.equal("RSD PTR ", vm:read(0xe0000, 8))
  end)

  describe("is refused", function()
    for _, case in ipairs {
      { "boot_flag 0x0 is not 0xaa55", images.patch(images.linux16 {}, 0x1fe, "<I2", 0) },
      { "header at 0x202: is not 'HdrS'", images.patch(images.linux16 {}, 0x202, "c4", "sRdH") },
      { "version 0x201 is before 0x202", { version = 0x201 } },
      { "loadflags 0x0: a zImage, which is loaded below 1 MiB, is too old", { loadflags = 0 } },
      { "setup_sects 0x2: the kernel at 0x600 is beyond the image, which ends at 0x600",
        { setup_sects = 2 } },
      { "setup_sects 0x40: the real-mode code's 0x8200 bytes are more than 0x8000",
        images.linux16 { setup_sects = 0x40 } .. ("\0"):rep(0x8000) },
      { "cmdline_size 0x4 is less than the command line's 0x5 bytes", { cmdline_size = 4 },
        { cmdline = "quiet" } },
      { "the command line's 0x2000 bytes are more than the 0x1fff that there is room for",
        { cmdline_size = 0xffffffff }, { cmdline = ("x"):rep(0x2000) } },
      { "kernel: address 0x100000 + size 0x200 is beyond memory, which ends at 0x1001ff", {},
        { memory = 0x1001ff } },
      { "initrd: no room for 0x300000 bytes between 0x100200, the end of the kernel, and 0x400000",
        {}, { modules = { { bytes = ("x"):rep(3 * MiB) } } } },
      { "initrd: no room for 0x1 bytes between 0x100200, the end of the kernel, and 0x101000",
        { initrd_addr_max = 0x100fff }, { modules = { { bytes = "x" } } } },
      { "initrd: no room for 0x1 bytes between 0x100200, the end of the kernel, and 0x1",
        { initrd_addr_max = 0 }, { modules = { { bytes = "x" } } } },
      { "modules: 2 are more than the one that Linux takes, its initrd", {},
        { modules = { { bytes = "" }, { bytes = "" } } } },
      { "modules: an initrd has no command line", {},
        { modules = { { bytes = "", cmdline = "x" } } } },
      { "version: offset 0x206 + 0x2 bytes is beyond the image, which ends at 0x207",
        images.linux16({}):sub(1, 0x207) },
    } do
      it(case[1], function() refuses(table.unpack(case)) end)
    end
  end)
end)

-- With a BIOS -----------------------------------------------------------------------

describe("ckvm.bios: boot with an image", function()
  before_each(support.need_kvm)

  -- A BIOS in a VM of its own; what it puts out is in the list `output`.
  local function make(options)
    local g = { output = {}, vm = guest() }
    options.memory = 4 * MiB
    options.output = function(bytes) table.insert(g.output, bytes) end
    g.vcpu, g.bios = g.vm:create_vcpu(0), bios.install(g.vm, options)
    return g
  end

  local function run_bios(g, fields, options)
    local whole = options or {}
    whole.image = images.linux16(fields)
    g.bios:boot(g.vcpu, whole)
    local why = g.vcpu:run(support.LIMITS)
    return why, table.concat(g.output)
  end

  -- Prints its command line: mov (0x228), %eax; shr $4, %eax; mov %ax, %ds; xor %si, %si
  -- next: lodsb; test %al, %al; jz done; mov $0x0e, %ah; int $0x10; jmp next; done: hlt
  local PRINT <const> = "\x66\xa1\x28\x02\x66\xc1\xe8\x04\x8e\xd8\x31\xf6"
    .. "\xac\x84\xc0\x74\x06\xb4\x0e\xcd\x10\xeb\xf5\xf4"

  it("has it call the BIOS, with interrupts off, and the number of the disk in DL", function()
    local g = make {}
    assert.same({ "hlt", "quiet splash" },
      { run_bios(g, { real = PRINT }, { cmdline = "quiet splash" }) })
    assert.same({ 0x1e00, 0, 0 },
      { g.vcpu.sregs.ds.selector, g.vcpu.regs.rflags & 0x200, g.vcpu.regs.rdx })
    g = make { disk = disk.new(("\0"):rep(512)) }
    assert.equal("hlt", (run_bios(g, { real = HLT })))
    assert.equal(0x80, g.vcpu.regs.rdx)
  end)

  it("leaves vectors and data area as they are, and the image the rest of the map", function()
    local g = make {}
    local before = { g.vm:read(0, 0x46c), g.vm:read(0xf0000, 0x10000) }
    -- mov $0x88, %ah; int $0x15; mov %ax, %bx; int $0x12; hlt
    run_bios(g, { real = "\xb4\x88\xcd\x15\x89\xc3\xcd\x12\xf4", code = "kernel" },
      { modules = { { bytes = "initrd" } } })
    assert.same(before, { g.vm:read(0, 0x46c), g.vm:read(0xf0000, 0x10000) })
    assert.same({ 640, 3 << 10 }, { g.vcpu.regs.rax & 0xffff, g.vcpu.regs.rbx & 0xffff })
    assert.equal("kernel", g.vm:read(MiB, 6))
    assert.equal("initrd", g.vm:read(4 * MiB - 0x1000, 6))
  end)

  it("boots it anew, as it was", function()
    local g, fields = make {}, { real = "\xfe\x06\x70\x02\xa0\x70\x02\xf4" .. ("\0"):rep(8) }
    for _ = 1, 2 do -- incb (0x270); mov (0x270), %al; hlt
      assert.equal("hlt", (run_bios(g, fields)))
      assert.equal(1, g.vcpu.regs.rax & 0xff)
    end
  end)

  it("boots a sector", function()
    local g = make {}
    g.bios:boot(g.vcpu, { image = images.sector "\xf4" })
    assert.equal("hlt", (g.vcpu:run(support.LIMITS)))
    assert.same({ 0x7c01, 0x200 }, { g.vcpu.regs.rip, g.vcpu.regs.rflags & 0x200 })
  end)

  it("boots what is called by its format's name", function()
    local g = make {}
    local image <const> = images.bzimage { real = HLT }
    blames("memdisk: the format 'bzimage' is none that a BIOS starts", g.bios.boot, g.bios, g.vcpu,
      { image = image, name = "memdisk" })
    g.bios:boot(g.vcpu, { image = image, format = "linux16" })
    assert.equal("hlt", (g.vcpu:run(support.LIMITS)))
  end)

  it("refuses what it cannot boot, and blames the caller", function()
    local g = make {}
    local function refused(message, options)
      blames(message, g.bios.boot, g.bios, g.vcpu, options)
    end
    refused("boot: table of options expected, got string", "x")
    refused("boot: image: string expected, got nil", {})
    refused("boot: unknown option 'disk'", { image = "", disk = {} })
    refused("image: the format 'flat' is none that a BIOS starts", { image = "x" })
    refused("a.out: the format 'elf' is none that a BIOS starts", { image = "\x7fELF",
      name = "a.out" })
    refused("image: the format 'exe' is none that a BIOS starts", { image = "", format = "exe" })
    refused("image: version 0x201 is before 0x202", { image = images.linux16 { version = 0x201 } })
    refused("cmdline: has a zero byte, which would end it", { image = images.linux16 {},
      cmdline = "a\0" })
    refused("cmdline: the format 'sector' has no place for it", { image = images.sector "",
      cmdline = "a" })
  end)
end)

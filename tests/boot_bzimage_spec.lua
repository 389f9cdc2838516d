-- ckvm.boot with bzImages: where a kernel is, what it finds there, and what is refused.

local boot = require "ckvm.boot"
local ckvm = require "ckvm"
local images = require "boot_images"
local support = require "support"

local MiB <const> = 1 << 20
local HLT <const> = "\xf4"

local function guest(high)
  local vm = ckvm.open():create_vm()
  vm:add_memory { gpa = 0, size = 4 * MiB }
  if high then vm:add_memory { gpa = 4 << 30, size = high } end
  vm:fill(0, 4 * MiB, 0xff)
  return vm
end

-- Loads an image of these fields; returns where to start, and the VM.
local function load(fields, options)
  local vm = guest(options and options.high_memory)
  local whole = { name = "vmlinuz", memory = 4 * MiB }
  for key, value in pairs(options or {}) do whole[key] = value end
  return boot.load(vm, images.bzimage(fields), whole), vm
end

local function refuses(message, fields, options)
  local whole = { name = "vmlinuz", memory = 4 * MiB, format = "bzimage" }
  for key, value in pairs(options or {}) do whole[key] = value end
  local bytes = type(fields) == "string" and fields or images.bzimage(fields)
  local vm = guest()
  assert.equal("vmlinuz: " .. message, support.error_of(boot.load, vm, bytes, whole))
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

describe("ckvm.boot: a bzImage", function()
  before_each(support.need_kvm)

  it("is told from a disk's first sector", function()
    assert.equal("bzimage", boot.detect(images.bzimage {}))
    assert.equal("sector", boot.detect(images.sector ""))
  end)

  it("starts at its 64-bit entry, in long mode, with boot_params in RSI", function()
    -- mov %cs, %ax; mov %ds, %bx; mov %ss, %cx; mov %rsi, %rdx; hlt
    local start, vm = load { code64 = "\x8c\xc8\x8c\xdb\x8c\xd1\x48\x89\xf2\xf4" }
    assert.equal("bzimage", start.format)
    assert.equal(0x200200, start.rip)
    local vcpu = run(start, vm)
    assert.same({ 0x10, 0x18, 0x18, start.info }, { vcpu.regs.rax & 0xffff, vcpu.regs.rbx & 0xffff,
      vcpu.regs.rcx & 0xffff, vcpu.regs.rdx })
    assert.equal(1, vcpu.sregs.cs.l)
  end)

  it("has segments that it can load again", function()
    -- mov $0x18, %eax; mov %ax, %ds; mov %ax, %ss; hlt
    run(load { code64 = "\xb8\x18\x00\x00\x00\x8e\xd8\x8e\xd0\xf4" })
  end)

  it("starts at its 32-bit entry where it has no other", function()
    -- mov %cs, %ax; mov %esi, %edx; hlt
    local start, vm = load { xloadflags = 0, code = "\x66\x8c\xc8\x89\xf2\xf4" }
    assert.equal(0x200000, start.rip)
    local vcpu = run(start, vm)
    assert.same({ 0x10, start.info }, { vcpu.regs.rax & 0xffff, vcpu.regs.rdx })
    assert.equal(0, vcpu.sregs.cs.l)
    assert.equal(1, vcpu.sregs.cr0 & 0x80000001)
  end)

  it("of an old protocol is at 1 MiB", function()
    local start, vm = load { version = 0x202, code = HLT }
    assert.equal(MiB, start.rip)
    assert.equal(MiB + 1, run(start, vm).regs.rip)
  end)

  it("finds its header, command line and initrd in boot_params", function()
    local start, vm = load({ code64 = HLT },
      { cmdline = "console=ttyS0", modules = { { bytes = "070701" } } })
    local info = start.info
    assert.equal(0, info % 16)
    assert.equal("HdrS", vm:read(info + 0x202, 4))
    assert.equal(("\0"):rep(0x70), vm:read(info, 0x70))
    assert.equal(0, vm:read_u8(info + 0x1ef)) -- the sentinel
    assert.equal(0xff, vm:read_u8(info + 0x210))
    assert.equal(0x200000, vm:read_u32(info + 0x214))
    assert.equal("console=ttyS0", cstring(vm, vm:read_u32(info + 0x228)))
    local gpa, size = string.unpack("<I4I4", vm:read(info + 0x218, 8))
    assert.equal("070701", vm:read(gpa, size))
    assert.same({ gpa = gpa, size = 6, cmdline = "" }, start.modules[1])
  end)

  it("without an initrd has none", function()
    local start, vm = load { code64 = HLT }
    assert.same({ 0, 0, 0 }, { vm:read_u32(start.info + 0x218), vm:read_u32(start.info + 0x21c),
      #start.modules })
  end)

  it("finds all memory in its map, but for what devices have", function()
    local start, vm = load({ code64 = HLT }, { high_memory = 2 * MiB })
    local map = {}
    for i = 1, vm:read_u8(start.info + 0x1e8) do
      map[i] = { string.unpack("<I8I8I4", vm:read(start.info + 0x2d0 + (i - 1) * 20, 20)) }
      map[i][4] = nil
    end
    assert.same({ { 0, 0xa0000, 1 }, { 0xa0000, 0x60000, 2 }, { MiB, 3 * MiB, 1 },
      { 4 << 30, 2 * MiB, 1 } }, map)
  end)

  it("finds ACPI tables by boot_params, and where they are looked for", function()
    local start, vm = load({ code64 = HLT }, { acpi = { cpus = 2 } })
    local rsdp = vm:read_u64(start.info + 0x70)
    assert(rsdp >= 0xe0000 and rsdp < MiB and rsdp % 16 == 0)
    assert.equal("RSD PTR ", vm:read(rsdp, 8))
  end)

  it("has its memory until it knows the map: nothing is in init_size", function()
    local start = load({ code64 = HLT, pref_address = MiB, init_size = 2 * MiB },
      { modules = { { bytes = "initrd" } } })
    assert(start.modules[1].gpa >= 3 * MiB)
  end)

  describe("is refused", function()
    for _, case in ipairs {
      { "boot_flag 0x0 is not 0xaa55", images.patch(images.bzimage {}, 0x1fe, "<I2", 0) },
      { "header at 0x202: is not 'HdrS'", images.patch(images.bzimage {}, 0x202, "c4", "sRdH") },
      { "version 0x201 is before 0x202", { version = 0x201 } },
      { "loadflags 0x0: a zImage, which is loaded below 1 MiB, is too old", { loadflags = 0 } },
      { "setup_sects 0xff: the kernel at 0x20000 is beyond the image, which ends at 0x600",
        { setup_sects = 0xff } },
      { "setup_sects 0x2: the kernel at 0x600 is beyond the image, which ends at 0x600",
        { setup_sects = 2 } },
      { "kernel: pref_address 0x400000 + size 0x200 is beyond memory, which ends at 0x400000",
        { pref_address = 4 * MiB } },
      { "kernel: pref_address 0xfffffffffffffff0 + size 0x200 is beyond memory, which ends at"
        .. " 0x400000", images.patch(images.bzimage {}, 0x258, "<i8", -16) },
      { "init_size: pref_address + size 0x200200 + init_size - size 0x1ffe01 is beyond memory,"
        .. " which ends at 0x400000", { init_size = 2 * MiB + 1 } },
      { "initrd_addr_max 0x10ffff is below 0x120fff, the end of the initrd",
        { initrd_addr_max = 0x10ffff }, { modules = { { bytes = ("x"):rep(0x21000) } } } },
      { "cmdline_size 0x4 is less than the command line's 0x5 bytes", { cmdline_size = 4 },
        { cmdline = "quiet" } },
      { "modules: 2 are more than the one that Linux takes, its initrd", {},
        { modules = { { bytes = "" }, { bytes = "" } } } },
      { "modules: an initrd has no command line", {},
        { modules = { { bytes = "", cmdline = "x" } } } },
      { "version: offset 0x206 + 0x2 bytes is beyond the image, which ends at 0x207",
        images.bzimage({}):sub(1, 0x207) },
    } do
      it(case[1], function() refuses(table.unpack(case)) end)
    end
  end)
end)

-- ckvm.boot: what an image is, where it is loaded, what a guest finds there; and what is refused.

local boot = require "ckvm.boot"
local ckvm = require "ckvm"
local images = require "boot_images"
local support = require "support"

local blames = support.blames

local MiB <const> = 1 << 20

-- A VM with memory from 0 on, full of ones.
local function guest(size)
  local vm = ckvm.open():create_vm()
  vm:add_memory { gpa = 0, size = size or 4 * MiB }
  vm:fill(0, size or 4 * MiB, 0xff)
  return vm
end

local function load(bytes, options)
  local vm = guest()
  local whole = { name = "a.img", memory = 4 * MiB }
  for key, value in pairs(options or {}) do whole[key] = value end
  return boot.load(vm, bytes, whole), vm
end

-- The whole message, and that nothing was written.
local function refuses(message, bytes, options)
  local vm = guest(MiB)
  local whole = { name = "a.img", memory = MiB }
  for key, value in pairs(options or {}) do whole[key] = value end
  assert.equal("a.img: " .. message, support.error_of(boot.load, vm, bytes, whole))
  assert.equal(("\xff"):rep(MiB), vm:read(0, MiB))
end

-- Runs it until HLT; returns the vCPU.
local function run(start, vm)
  local vcpu = vm:create_vcpu(0)
  vcpu:set_regs { rax = -1, rbx = -1, rdx = -1, rsp = -1 }
  boot.enter(vcpu, start)
  assert.equal("hlt", vcpu:run { timeout = 20 })
  return vcpu
end

describe("ckvm.boot:", function()
  before_each(support.need_kvm)

  describe("load", function()
    it("refuses other arguments and options, and blames the caller", function()
      local vm = guest()
      blames("vm: VM expected, got nil", boot.load)
      blames("bytes: string expected, got table", boot.load, vm, {}, { memory = MiB })
      blames("load: table of options expected, got nil", boot.load, vm, "\xf4")
      blames("memory: integer expected, got nil", boot.load, vm, "\xf4", {})
      blames("load: unknown option 'size'", boot.load, vm, "", { memory = MiB, size = 1 })
      blames("memory: 0xfff is not between 0x1000 and 0x8000000000", boot.load, vm, "",
        { memory = 0xfff })
      blames("memory: 0xffffffffffffffff is not between", boot.load, vm, "", { memory = -1 })
      blames("unknown format 'coff'; there are linux16, bzimage, ", boot.load, vm, "",
        { memory = MiB, format = "coff" })
      blames("cmdline: has a zero byte", boot.load, vm, "", { memory = MiB, cmdline = "a\0" })
      blames("module: table of fields expected, got string", boot.load, vm, "",
        { memory = MiB, modules = { "" } })
      blames("bytes: string expected, got nil", boot.load, vm, "",
        { memory = MiB, modules = { {} } })
      blames("cmdline: has a zero byte", boot.load, vm, "",
        { memory = MiB, modules = { { bytes = "", cmdline = "\0" } } })
    end)

    it("refuses what a format has no place for", function()
      local vm = guest()
      blames("cmdline: the format 'flat' has no place for it", boot.load, vm, "\xf4",
        { memory = MiB, cmdline = "" })
      blames("modules: the format 'sector' has no place for it", boot.load, vm,
        images.sector "", { memory = MiB, modules = {} })
      blames("at: the format 'elf' has no place for it", boot.load, vm,
        images.elf { code = "\xf4" }, { memory = MiB, at = 0 })
    end)

    it("says in the image's name where there is no memory", function()
      local vm = guest()
      assert.equal("image: image: write of 1 bytes at 0x7c00: no memory at 0x7c00",
        support.error_of(boot.load, ckvm.open():create_vm(), "\xf4", { memory = MiB }))
      vm:close()
      support.contains("image: image: ",
        support.error_of(boot.load, vm, "\xf4", { memory = MiB }))
    end)
  end)

  describe("enter", function()
    it("refuses other arguments, and blames the caller", function()
      local vm = guest()
      local vcpu = vm:create_vcpu(0)
      blames("vcpu: vCPU expected, got ckvm VM", boot.enter, vm, {})
      blames("start: table expected, got nil", boot.enter, vcpu)
      blames("unknown mode 'nil'", boot.enter, vcpu, {})
      local start = load("\xf4")
      vcpu:close()
      blames("vCPU is closed", boot.enter, vcpu, start)
    end)
  end)

  describe("formats", function()
    it("is a list of the names that load takes", function()
      local vm = guest()
      for _, format in ipairs(boot.formats()) do
        support.contains("a.img: ", support.error_of(boot.load, vm, "",
          { name = "a.img", memory = MiB, format = format }))
      end
      table.insert(boot.formats(), "coff")
      assert.equal("flat", boot.formats()[#boot.formats()])
    end)
  end)

  describe("detect", function()
    it("refuses what is no string", function()
      blames("bytes: string expected, got nil", boot.detect)
    end)

    it("has a name for everything", function()
      assert.equal("flat", boot.detect "")
      assert.equal("flat", boot.detect(images.sector(""):sub(1, 511)))
      assert.equal("sector", boot.detect(images.sector ""))
      assert.equal("sector", boot.detect(images.sector "" .. ("\0"):rep(512)))
      assert.equal("bios", boot.detect(images.bios ""))
      assert.equal("elf", boot.detect "\x7fELF")
      assert.equal("elf", boot.detect(images.elf { code = "\xf4" }))
    end)

    -- Of images that no format is for: what is said of each.
    local FOREIGN <const> = {
      ["is compressed with gzip: unpack it first"] = "\x1f\x8b\x08\0",
      ["is compressed with xz: unpack it first"] = "\xfd7zXZ\0",
      ["is compressed with zstd: unpack it first"] = "\x28\xb5\x2f\xfd",
      ["is compressed with bzip2: unpack it first"] = "BZh91AY&SY",
      ["is compressed with lz4: unpack it first"] = "\x02\x21\x4c\x18",
      ["is compressed with lzop: unpack it first"] = "\x89LZO\0\r\n\x1a\n",
      ["is compressed with zip: unpack it first"] = "PK\3\4",
      ["is a tar archive: unpack it first"] = ("\0"):rep(257) .. "ustar\0",
      ["is a cpio archive: as an initrd it goes beside a kernel"] = "070701000001",
      ["is a qcow2 disk image: convert it with qemu-img convert -O raw"] = "QFI\xfb\0\0\0\3",
      ["is a VMDK disk image: convert it with qemu-img convert -O raw"] = "KDMV",
      ["is a VHDX disk image: convert it with qemu-img convert -O raw"] = "vhdxfile",
      ["is a VHD disk image: convert it with qemu-img convert -O raw"] = "conectix",
      ["is a VDI disk image: convert it with qemu-img convert -O raw"] =
        ("\0"):rep(64) .. "\x7f\x10\xda\xbe",
      ["is a program of EFI or Windows"] = "MZ" .. ("\0"):rep(58) .. "\x40\0\0\0PE\0\0",
      ["is a script"] = "#!/bin/sh\n:\n",
      ["is a text file"] = "# Notes\n\nWhat there is to know of it.\n",
    }

    it("has none for files that are known to be no image, and says what they are", function()
      for words, bytes in pairs(FOREIGN) do
        local name, why = boot.detect(bytes)
        assert.is_nil(name)
        local advised <const> = words:find ": "
        assert.equal(advised and words
          or words .. ": to run it as bare code, tell the format 'flat'", why)
        refuses(why, bytes)
        refuses(words, bytes .. ("more\n"):rep(128), { format = "sector" })
        assert.equal("flat", load(bytes, { format = "flat" }).format)
      end
    end)

    it("has none for them where they end as firmware does", function()
      assert.is_nil((boot.detect("QFI\xfb" .. images.bios(""):sub(5))))
    end)

    it("takes for code what only looks a little like another file", function()
      for _, code in ipairs {
        "\x1f\x8b", "\x1f\x8b\x09", "QFI",
        "MZ", "MZ" .. ("\0"):rep(58) .. "\xff\xff\xff\xff",
        "#!\n", "#! \xf4\n", "X5O!P%@AP[4\\PZX54(P^)7CC)7}$", "a\nb\n", ("a"):rep(600),
        "\xf4" .. ("of text\n"):rep(20), ("A"):rep(100) .. "\n\n\xf4",
      } do
        assert.equal("flat", boot.detect(code))
      end
    end)

    it("has a format for what is text, and an image nevertheless", function()
      local disk = ("a line of text\n"):rep(40):sub(1, 510) .. "\x55\xaa"
      assert.equal("sector", boot.detect(disk))
      assert.equal("bzimage", boot.detect("MZ" .. images.bzimage({}):sub(3)))
    end)
  end)

  describe("a flat binary", function()
    it("runs where it is told, or at 0x7c00", function()
      local vcpu = run(load "\x50\xf4") -- push %ax; hlt
      assert.equal(0x7c02, vcpu.regs.rip)
      assert.equal(0x7bfe, vcpu.regs.rsp)
      local start, vm = load("\xf4", { at = 0x1001 })
      assert.same({ format = "flat", mode = "real", rip = 0x1001, regs = { rsp = 0x1000 } }, start)
      assert.equal(0x1002, run(start, vm).regs.rip)
      assert.equal("\xff\xf4\xff", vm:read(0x1000, 3))
    end)

    it("is what anything is taken for", function()
      assert.equal("flat", load(images.sector "\xf4", { format = "flat" }).format)
    end)

    it("is refused where it cannot run", function()
      refuses("has 0 bytes", "")
      refuses("at 0x10000 is not below 0x10000, where real-mode code ends", "\xf4",
        { at = 0x10000 })
      refuses("at 0xffffffffffffffff is not below 0x10000, where real-mode code ends", "\xf4",
        { at = -1 })
      refuses("image: at 0x7c00 + size 0x1 is beyond memory, which ends at 0x7c00", "\xf4",
        { memory = 0x7c00 })
    end)
  end)

  describe("a sector", function()
    it("runs at 0x7c00 with the first disk in DL, and is all that is loaded", function()
      local start, vm = load(images.sector "\x50\xf4" .. "more") -- push %ax; hlt
      assert.equal("\x50\xf4", vm:read(0x7c00, 2))
      assert.equal("\x55\xaa\xff\xff\xff\xff", vm:read(0x7dfe, 6))
      local regs = run(start, vm):get_regs()
      assert.same({ 0x7c02, 0x80, 0x7bfe, 0 }, { regs.rip, regs.rdx, regs.rsp, regs.rax })
    end)

    it("is refused without a signature, or whole memory", function()
      refuses("is not bootable: signature at 0x1fe: 0x0 is not 0xaa55",
        ("\0"):rep(512), { format = "sector" })
      refuses("signature: offset 0x1fe + 0x2 bytes is beyond the image, which ends at 0x1ff",
        ("\0"):rep(511), { format = "sector" })
      refuses("sector: address 0x7c00 + size 0x200 is beyond memory, which ends at 0x7dff",
        images.sector "", { memory = 0x7dff })
    end)

    it("is refused where it is that of a bzImage", function()
      refuses("header at 0x202: a bzImage is not started by its sector",
        images.sector "" .. "\0\0HdrS", { format = "sector" })
    end)
  end)

  describe("the firmware of a PC", function()
    local TOP <const> = 1 << 32

    it("is detected by its size and its jump", function()
      local good <const> = images.bios ""
      for _, byte in ipairs { 0xe9, 0xea, 0xeb } do
        assert.equal("bios", boot.detect(images.patch(good, 0xfff0, "B", byte)))
      end
      assert.equal("flat", boot.detect(images.patch(good, 0xfff0, "B", 0xf4)))
      assert.equal("flat", boot.detect(good:sub(2)))
      assert.equal("flat", boot.detect("\0" .. good))
      assert.equal("bios", boot.detect(images.bios("", 16 * MiB)))
      assert.equal("flat", boot.detect(images.bios("", 16 * MiB + 0x10000)))
      assert.equal("sector", boot.detect(images.patch(good, 510, "<I2", 0xaa55))) -- a disk
    end)

    it("starts at its end, which ends at 4 GiB, and runs below 1 MiB", function()
      -- mov %cs:(0xf000), %al; mov %al, %cs:(0xf001); mov %cs, %bx; hlt
      local code <const> = "\x2e\xa0\0\xf0\x2e\xa2\1\xf0\x8c\xcb\xf4"
      local bios <const> = images.bios(code, 0x40000)
      local start, vm = load(bios)
      assert.same({ "bios", "real", 0xfff0 }, { start.format, start.mode, start.rip })
      local vcpu = vm:create_vcpu(0)
      vcpu:set_regs { rbx = -1, rsp = -1 }
      boot.enter(vcpu, start)
      assert.same({ 0xffff0000, 0xf000, 0 },
        { vcpu.sregs.cs.base, vcpu.sregs.cs.selector, vcpu.sregs.ds.base })
      assert.equal("hlt", (vcpu:run { timeout = 20 }))
      assert.same({ 0xf00b, 0xf000 }, { vcpu.regs.rip, vcpu.regs.rbx })
      assert.equal(bios, vm:read(TOP - #bios, #bios))
      assert.equal("\xff\0", vm:read(MiB - 0x20000 - 1, 2))
      assert.equal("\x2e\x2e\0\xf0", vm:read(0xff000, 4)) -- written by itself
    end)

    it("cannot write to itself below 4 GiB", function()
      -- mov %al, %cs:(0xfff0); hlt
      local bios <const> = images.patch(images.bios "", 0xfff0, "c5", "\x2e\xa2\xf0\xff\xf4")
      local start, vm = load(bios, { format = "bios" })
      local vcpu = vm:create_vcpu(0)
      boot.enter(vcpu, start)
      assert.equal("mmio_write", (vcpu:run { timeout = 20 }))
      assert.equal(0xfffffff0, vcpu.exit.phys_addr)
      assert.equal("hlt", (vcpu:run { timeout = 20 }))
      assert.equal(bios, vm:read(TOP - #bios, #bios))
    end)

    it("is loaded anew where it has been, and into memory that is there", function()
      local whole <const> = { name = "a.img", memory = 4 * MiB }
      local _, vm = load(images.bios "\xf4")
      local start = boot.load(vm, images.bios "\x90\xf4", whole) -- nop; hlt
      assert.equal(0xf002, run(start, vm).regs.rip)
      assert.equal("\x90\xf4", vm:read(TOP - 0x1000, 2))
      local other = guest()
      other:add_memory { gpa = TOP - 0x40000, size = 0x40000 }
      boot.load(other, images.bios "\x90\xf4", whole)
      assert.equal("\x90\xf4", other:read(TOP - 0x1000, 2))
    end)

    it("is refused by its size, and without memory below 1 MiB", function()
      for _, size in ipairs { 0, 0xffff, 0x10001, 16 * MiB + 0x10000 } do
        refuses(("size 0x%x: is not a multiple of 0x10000 up to 0x1000000"):format(size),
          ("\0"):rep(size), { format = "bios" })
      end
      refuses("end of the image: address 0xe0000 + size 0x20000 is beyond memory, "
        .. "which ends at 0xff000", images.bios("", 0x20000), { memory = 0xff000 })
    end)

    it("is refused where a part of it has memory of its own", function()
      local vm = guest()
      vm:add_memory { gpa = TOP - 0x10000, size = 0x10000 }
      local message = support.error_of(boot.load, vm, images.bios("", 0x20000),
        { name = "a.img", memory = 4 * MiB })
      support.contains("a.img: image: ", message)
    end)
  end)

  describe("an ELF file", function()
    -- Of 64 bits, and of 32.
    local LONG <const> = "\x50\xf4" -- push %rax; hlt
    local offsets <const> = { [32] = { phnum = 44, ph = 52 }, [64] = { phnum = 56, ph = 64 } }

    local patched <const> = images.patch

    it("runs in long mode, with memory mapped and a stack", function()
      -- mov %rsp, (0x3f0000); push %rax; hlt
      local start, vm = load(images.elf {
        bits = 64, code = "\x48\x89\x24\x25\0\0\x3f\0\x50\xf4", at = 0x100000,
        vaddr = 0xffffffff80100000, entry = 0xffffffff80100000, memsz = 0x2000,
      })
      assert.equal("elf", start.format)
      assert.equal("long", start.mode)
      assert.equal(0x100000, start.rip)
      local vcpu = run(start, vm)
      assert.equal(start.regs.rsp, vm:read_u64(0x3f0000))
      assert.equal(0, vm:read_u64(start.regs.rsp - 8))
      assert.equal(0x10000a, vcpu.regs.rip)
      assert.same({ start.cr3, start.gdt.base }, { vcpu.sregs.cr3, vcpu.sregs.gdt.base })
      assert.equal(("\0"):rep(0x2000 - 10), vm:read(0x10000a, 0x2000 - 10))
      assert.equal(0xff, vm:read_u8(0x102000))
    end)

    it("runs in protected mode, and may load its segments", function()
      -- push %ds; pop %es; mov %esp, (0x3f0000); hlt
      local start, vm = load(images.elf {
        bits = 32, code = "\x1e\x07\x89\x25\0\0\x3f\0\xf4", at = 0x100000,
      })
      assert.same({ "protected", 0x100000 }, { start.mode, start.rip })
      local vcpu = run(start, vm)
      assert.equal(0x100009, vcpu.regs.rip)
      assert.equal(start.regs.rsp, vm:read_u32(0x3f0000))
      assert.equal(0x11, vcpu.sregs.cr0)
      assert.same({ 8, 0x10 }, { vcpu.sregs.cs.selector, vcpu.sregs.es.selector })
    end)

    it("may have a physical entry, as a vmlinux has", function()
      assert.equal(0x100001, load(images.elf {
        code = LONG, at = 0x100000, vaddr = 0xffffffff80100000, entry = 0x100001,
      }).rip)
    end)

    it("has its tables where it is not itself", function()
      for _, at in ipairs { 0x90000, 0x8f800, 0x9f000, 0x1000 } do
        local start, vm = load(images.elf { code = LONG, at = at, memsz = 0x1001 })
        assert.equal(at + 2, run(start, vm).regs.rip)
      end
    end)

    it("may have segments side by side, and of nothing", function()
      local _, vm = load(images.elf {
        code = LONG, at = 0x100000, memsz = 2,
        { 1, 0, 0, 0x100002, 4, 4 }, { 1, 0, 0, 0xfffff, 1, 1 }, { 1, 0, 0, -1, 0, 0 },
        { 9, -1, -1, -1, -1, -1 }, -- of another type
      })
      assert.equal("\xff\x7f\x50\xf4\x7fELF\xff", vm:read(0xffffe, 9))
    end)

    it("is refused by what it begins with", function()
      local good = images.elf { code = LONG }
      refuses("e_ident: is not that of an ELF file", "\x7fELG", { format = "elf" })
      refuses("e_ident: offset 0x4 + 0x3 bytes is beyond the image, which ends at 0x6",
        good:sub(1, 6))
      refuses("e_ident: EI_CLASS 0x3 is neither 0x1 (32 bits) nor 0x2 (64)",
        patched(good, 4, "B", 3))
      refuses("e_ident: EI_DATA 0x2 is not 0x1 (little-endian)", patched(good, 5, "B", 2))
      refuses("e_ident: EI_VERSION 0x0 is not 0x1", patched(good, 6, "B", 0))
      refuses("ELF header: offset 0x10 + 0x2a bytes is beyond the image, which ends at 0x39",
        good:sub(1, 57))
      refuses("e_type 0x1: is ET_REL, which is not linked, not ET_EXEC",
        patched(good, 16, "<I2", 1))
      refuses("e_type 0x3: is ET_DYN, which would have to be relocated: link it without -pie, "
        .. "not ET_EXEC", patched(good, 16, "<I2", 3))
      refuses("e_type 0xfe00: is unknown, not ET_EXEC", patched(good, 16, "<I2", 0xfe00))
      refuses("e_machine 0xb7 is not 0x3e, that of 64-bit x86", patched(good, 18, "<I2", 0xb7))
      refuses("e_machine 0x3e is not 0x3, that of 32-bit x86",
        patched(images.elf { bits = 32, code = LONG }, 18, "<I2", 62))
      refuses("e_version 0x2 is not 0x1", patched(good, 20, "<I4", 2))
      refuses("e_phentsize 0x20 is not 0x38", patched(good, 54, "<I2", 32))
      refuses("e_phnum 0x0: is not how many program headers there are",
        patched(good, 56, "<I2", 0))
      refuses("e_phnum 0xffff: is not how many program headers there are",
        patched(good, 56, "<I2", 0xffff))
      refuses("e_phoff: offset 0xffffffffffffffff + 0x38 bytes is beyond the image, "
        .. "which ends at 0x1002", patched(good, 32, "<i8", -1))
      refuses("e_phoff: offset 0x40 + 0xfff0 bytes is beyond the image, which ends at 0x1002",
        patched(good, 56, "<I2", 0x492))
      refuses("e_phnum 0x493: is more than 0x492", patched(good, 56, "<I2", 0x493))
    end)

    for bits, at in pairs(offsets) do
      it("is refused by its entry and program headers: " .. bits, function()
        local good = images.elf { bits = bits, code = LONG, at = 0x8000 }
        refuses("e_phnum 0x1: no program header loads anything", patched(good, at.ph, "<I4", 4))
        refuses("e_entry 0x8002 is not in what is loaded",
          images.elf { bits = bits, code = LONG, at = 0x8000, entry = 0x8002 })
        refuses("e_entry 0x7fff is not in what is loaded",
          images.elf { bits = bits, code = LONG, at = 0x8000, entry = 0x7fff })
        refuses("program header 1: p_offset: offset 0x1000 + 0x8 bytes is beyond the image, "
          .. "which ends at 0x1002",
          images.elf { bits = bits, code = LONG, { 1, 0x1000, 0, 0, 8, 8 } })
        refuses("program header 1: p_filesz 0x2 is more than p_memsz 0x1",
          images.elf { bits = bits, code = LONG, { 1, 0x1000, 0, 0, 2, 1 } })
        refuses("program header 1: p_paddr 0xfffff + p_memsz 0x2 is beyond memory, "
          .. "which ends at 0x100000",
          images.elf { bits = bits, code = LONG, { 1, 0, 0, 0xfffff, 2, 2 } })
        refuses("program header 1 at 0x8001-0x8001 overlaps program header 0 at 0x8000-0x8001",
          images.elf { bits = bits, code = LONG, at = 0x8000, { 1, 0, 0, 0x8001, 1, 1 } })
        refuses("program header 0 at 0x8000-0x8001 overlaps program header 1 at 0x7000-0x9000",
          images.elf { bits = bits, code = LONG, at = 0x8000, { 1, 0, 0, 0x7000, 1, 0x2001 } })
      end)
    end

    it("is refused by numbers that would wrap around", function()
      refuses("program header 1: p_paddr 0xfffffffffffffff0 + p_memsz 0x20 is beyond memory, "
        .. "which ends at 0x100000", images.elf { code = LONG, { 1, 0, 0, -16, 1, 32 } })
      refuses("program header 1: p_paddr 0x10 + p_memsz 0xfffffffffffffff8 is beyond memory, "
        .. "which ends at 0x100000", images.elf { code = LONG, { 1, 0, 0, 16, 1, -8 } })
      refuses("program header 1: p_offset: offset 0xfffffffffffffff0 + 0x20 bytes is beyond the "
        .. "image, which ends at 0x1002", images.elf { code = LONG, { 1, -16, 0, 0, 32, 32 } })
    end)

    it("is refused where its tables have no room", function()
      refuses("page tables: no room for 0x7000 bytes in memory, which ends at 0x8000",
        images.elf { code = LONG, at = 0x4000 }, { memory = 0x8000 })
      refuses("stack: no room for 0x4000 bytes in memory, which ends at 0x6000",
        images.elf { bits = 32, code = LONG, at = 0x1000, memsz = 0x1001 }, { memory = 0x6000 })
    end)
  end)

  describe("a Multiboot image", function()
    -- mov %eax, 0x3f0000; mov %ebx, 0x3f0004; mov 16(%ebx), %eax; mov (%eax), %eax;
    -- mov %eax, 0x3f0008; hlt
    local CODE <const> = "\xa3\0\0\x3f\0\x89\x1d\4\0\x3f\0\x8b\x43\x10\x8b\0\xa3\x08\0\x3f\0\xf4"
    local MODULES <const> = {
      { bytes = "first", cmdline = "one 1" }, { bytes = "" }, { bytes = ("x"):rep(0x1001) },
    }

    it("is detected by its header, in ELF files, too", function()
      local header = images.multiboot_header(0)
      assert.equal("multiboot", boot.detect(header))
      assert.equal("multiboot", boot.detect(images.elf { code = header }))
      assert.equal("multiboot", boot.detect(images.sector(header)))
      assert.equal("multiboot", boot.detect(("\0"):rep(8192 - 12) .. header))
      assert.equal("multiboot", boot.detect(header:sub(1, 8) .. header))
      assert.equal("flat", boot.detect(("\0"):rep(8192 - 8) .. header))
      assert.equal("flat", boot.detect("\0\0" .. header))
      assert.equal("flat", boot.detect(header:sub(1, 11)))
      assert.equal("flat", boot.detect(images.patch(header, 8, "B", 0)))
    end)

    it("runs in protected mode, with the command line", function()
      local start, vm = load(images.multiboot { code = CODE }, { cmdline = "hello world" })
      assert.same({ "multiboot", "protected", 0x100020 }, { start.format, start.mode, start.rip })
      local vcpu = run(start, vm)
      assert.same({ 0x2badb002, start.info }, { vm:read_u32(0x3f0000), vm:read_u32(0x3f0004) })
      assert.equal("hell", vm:read(0x3f0008, 4))
      assert.equal(0x100020 + #CODE, vcpu.regs.rip)
      assert.same({ 0x11, 8, 0x10, 2 }, { vcpu.sregs.cr0, vcpu.sregs.cs.selector,
        vcpu.sregs.ss.selector, vcpu.regs.rflags & 0x202 })
      assert.equal("\xff", vm:read(0x100020 + #CODE, 1))
    end)

    it("has the information that the specification tells of", function()
      local start, vm = load(images.multiboot { code = CODE },
        { cmdline = "a b", modules = MODULES })
      local flags, lower, upper, _, cmdline, count, list = string.unpack("<I4I4I4I4I4I4I4",
        vm:read(start.info, 28))
      assert.same({ 0x24d, 640, 3072, 3 }, { flags, lower, upper, count })
      assert.equal("a b\0", vm:read(cmdline, 4))
      assert.equal("ckvm\0", vm:read(vm:read_u32(start.info + 64), 5))
      for i, module in ipairs(MODULES) do
        local first, behind, text, zero = string.unpack("<I4I4I4I4",
          vm:read(list + (i - 1) * 16, 16))
        assert.equal(module.bytes, vm:read(first, behind - first))
        assert.same({ 0, 0 }, { first % 0x1000, zero })
        assert.same({ gpa = first, size = #module.bytes, cmdline = module.cmdline or "" },
          start.modules[i])
        local line = (module.cmdline or "") .. "\0"
        assert.equal(line, vm:read(text, #line))
      end
    end)

    it("has a memory map", function()
      local start, vm = load(images.multiboot { code = CODE })
      local length, at = string.unpack("<I4I4", vm:read(start.info + 44, 8))
      assert.equal(3 * 24, length)
      local map = {}
      for i = 0, 2 do map[i + 1] = { string.unpack("<I4I8I8I4", vm:read(at + i * 24, 24)) } end
      assert.same({ { 20, 0, 0xa0000, 1, 25 }, { 20, 0xa0000, 0x60000, 2, 25 },
        { 20, 0x100000, 0x300000, 1, 25 } }, map)
    end)

    it("has a memory map of little memory", function()
      local vm = guest()
      local start = boot.load(vm, images.multiboot { code = CODE, at = 0x1000 },
        { memory = 0x20000 })
      assert.same({ 128, 0, 24 }, { vm:read_u32(start.info + 4), vm:read_u32(start.info + 8),
        vm:read_u32(start.info + 44) })
      assert.equal(0x20000, vm:read_u64(vm:read_u32(start.info + 48) + 12))
    end)

    it("may be an ELF file", function()
      for _, bits in ipairs { 32, 64 } do
        local start, vm = load(images.elf {
          bits = bits, code = images.multiboot_header(3) .. CODE, at = 0x200000,
          vaddr = 0xc0000000, entry = 0xc000000c,
        }, { cmdline = "elf" })
        assert.same({ "multiboot", 0x20000c }, { start.format, start.rip })
        run(start, vm)
        assert.equal("elf\0", vm:read(0x3f0008, 4))
      end
    end)

    it("is loaded by its address fields, if it has any, whatever it is", function()
      local code = ("\x90"):rep(0x10) .. "\xf4"
      local image = images.multiboot {
        before = "\x7fELF" .. ("\0"):rep(12), code = code .. "rest", at = 0x8000,
        load_addr = 0x8004, load_end_addr = 0x8010 + 32 + #code, bss_end_addr = 0x9000,
      }
      local start, vm = load(image)
      assert.equal("\xff\xff\xff\xff\0\0", vm:read(0x8000, 6))
      assert.equal("\x90\xf4\0\0", vm:read(0x803f, 4))
      assert.equal("\0\xff", vm:read(0x8fff, 2))
      assert.equal(0x8041, run(start, vm).regs.rip)
    end)

    it("is refused without a header", function()
      refuses("header: magic 0x1badb002 is at no multiple of 4 in the first 0x2000 bytes", "\xf4",
        { format = "multiboot" })
      refuses("header at 0x4: checksum 0x0 is not 0xe4524ffb, for magic 0x1badb002 and flags 0x3",
        "\0\0\0\0" .. images.patch(images.multiboot_header(3), 8, "<I4", 0),
        { format = "multiboot" })
    end)

    it("is refused for flags that ask for more than there is", function()
      refuses("header at 0x0: flags 0x4: bit 2 asks for a video mode, and there is none",
        images.multiboot_header(4))
      refuses("header at 0x0: flags 0x8008: 0x8008 has to be understood, and is not",
        images.multiboot_header(0x8008))
      refuses("header at 0x0: flags 0x3: bit 16 is clear, and the image is no ELF file",
        images.multiboot_header(3))
      refuses("address fields: offset 0xc + 0x14 bytes is beyond the image, which ends at 0xc",
        images.multiboot_header(0x10000))
    end)

    it("is refused for address fields that are off", function()
      local function bad(message, fields, options)
        fields.code, fields.at = "\xf4", fields.at or 0x8000
        refuses(message, images.multiboot(fields), options)
      end
      bad("load_addr 0x8001 is above header_addr 0x8000", { load_addr = 0x8001 })
      bad("header_addr 0x8010 - load_addr 0x8000 is more than the 0x0 bytes before the header",
        { header_addr = 0x8010 })
      bad("load_end_addr 0x7fff is below load_addr 0x8000", { load_end_addr = 0x7fff })
      bad("load_end_addr 0x8022: offset 0x0 + 0x22 bytes is beyond the image, which ends at 0x21",
        { load_end_addr = 0x8022 })
      bad("bss_end_addr 0x8020 is below 0x8021, the end of what is loaded",
        { bss_end_addr = 0x8020 })
      bad("entry_addr 0x7fff is not in what is loaded", { entry_addr = 0x7fff })
      bad("entry_addr 0x8021 is not in what is loaded", { entry_addr = 0x8021 })
      bad("entry_addr 0x8000 is not in what is loaded",
        { load_end_addr = 0x8000, entry_addr = 0x8000 })
      bad("address fields: load_addr 0x8000 + size 0xffff7fff is beyond memory, which ends at "
        .. "0x100000", { bss_end_addr = 0xffffffff })
      bad("address fields: load_addr 0xfffffff0 + size 0x21 is beyond memory, which ends at "
        .. "0x100000", { at = 0xfffffff0, header_addr = 0xfffffff0, entry_addr = 0xfffffff0 })
    end)

    it("is refused as an ELF file with fields that are off", function()
      local elf = images.elf { code = images.multiboot_header(3) }
      refuses("e_machine 0x8 is not 0x3e, that of 64-bit x86", images.patch(elf, 18, "<I2", 8))
    end)

    it("is refused with an entry that 32-bit code does not reach", function()
      refuses("entry 0x10000000c is beyond 0xffffffff, for 32-bit code", images.elf {
        code = images.multiboot_header(3) .. "\xf4", at = 1 << 32, vaddr = 0, entry = 12,
      }, { memory = 5 << 30 })
    end)

    it("is refused where its modules have no room", function()
      refuses("modules: no room for 0xf6000 bytes in memory, which ends at 0x100000",
        images.multiboot { code = "\xf4", at = 0x8000 },
        { modules = { { bytes = "" }, { bytes = ("x"):rep(0xf5000) } } })
      refuses("boot information: no room for 0x100100 bytes in memory, which ends at 0x100000",
        images.multiboot { code = "\xf4", at = 0x8000 }, { cmdline = ("x"):rep(0x10004f) })
    end)
  end)

  describe("a Multiboot 2 image", function()
    -- mov %eax, 0x3f0000; mov %ebx, 0x3f0004; mov (%ebx), %eax; mov %eax, 0x3f0008; hlt
    local CODE <const> = "\xa3\0\0\x3f\0\x89\x1d\4\0\x3f\0\x8b\x03\xa3\x08\0\x3f\0\xf4"

    -- The tags of what a guest is given: { type, bytes }.
    local function tags_of(vm, info)
      local size, zero = string.unpack("<I4I4", vm:read(info, 8))
      assert.equal(0, zero)
      local list, at = {}, info + 8
      while at < info + size do
        local kind, length = string.unpack("<I4I4", vm:read(at, 8))
        table.insert(list, { kind, vm:read(at + 8, length - 8) })
        at = at + (length + 7 & ~7)
      end
      assert.equal(info + size, at)
      return list
    end

    it("is detected by its header, before any other", function()
      local header = images.multiboot2_header ""
      assert.equal("multiboot2", boot.detect(header))
      assert.equal("multiboot2", boot.detect(images.elf { code = header }))
      assert.equal("multiboot2", boot.detect(images.multiboot_header(0) .. "\0\0\0\0" .. header))
      assert.equal("multiboot2", boot.detect(("\0"):rep(0x8000 - 16) .. header))
      assert.equal("flat", boot.detect(("\0"):rep(0x8000 - 8) .. header))
      assert.equal("flat", boot.detect("\0\0\0\0" .. header))
    end)

    it("runs in protected mode", function()
      local start, vm = load(images.multiboot2 { code = CODE })
      assert.same({ "multiboot2", "protected", 0x100040 }, { start.format, start.mode, start.rip })
      local vcpu = run(start, vm)
      assert.same({ 0x36d76289, start.info }, { vm:read_u32(0x3f0000), vm:read_u32(0x3f0004) })
      assert.equal(vm:read_u32(start.info), vm:read_u32(0x3f0008))
      assert.same({ 0x11, 0x100040 + #CODE }, { vcpu.sregs.cr0, vcpu.regs.rip })
    end)

    it("has the information that the specification tells of", function()
      local modules = { { bytes = "first", cmdline = "one" }, { bytes = ("x"):rep(0x1001) } }
      local start, vm = load(images.multiboot2 { code = CODE },
        { cmdline = "a b", modules = modules })
      local first, second = table.unpack(start.modules)
      assert.same({
        { 1, "a b\0" }, { 2, "ckvm\0" },
        { 3, string.pack("<I4I4z", first.gpa, first.gpa + 5, "one") },
        { 3, string.pack("<I4I4z", second.gpa, second.gpa + 0x1001, "") },
        { 4, string.pack("<I4I4", 640, 3072) },
        { 6, string.pack("<I4I4I8I8I4I4I8I8I4I4I8I8I4I4", 24, 0, 0, 0xa0000, 1, 0,
          0xa0000, 0x60000, 2, 0, 0x100000, 0x300000, 1, 0) },
        { 0, "" },
      }, tags_of(vm, start.info))
      assert.equal("first\0", vm:read(first.gpa, 6))
      assert.equal(modules[2].bytes, vm:read(second.gpa, 0x1001))
      assert.same({ 0, 0, 0 }, { start.info % 8, first.gpa % 0x1000, second.gpa % 0x1000 })
    end)

    it("may be an ELF file, with another entry", function()
      local start, vm = load(images.elf {
        bits = 32, code = images.multiboot2_header "" .. CODE, entry = 0x200018, at = 0x200000,
        vaddr = 0x200000,
      })
      assert.equal(0x200018, start.rip)
      run(start, vm)
      local entry = images.tag(3, 0, string.pack("<I4", 0x200029))
      assert.equal(0x200029, load(images.elf {
        code = images.multiboot2_header(entry) .. CODE, at = 0x200000,
      }).rip)
    end)

    it("may be loaded from the start of the file", function()
      local start, vm = load(images.multiboot2 {
        before = "12345678", code = "\xf4", load_addr = 0xffffffff,
      })
      assert.equal("12345678", vm:read(0x100000, 8))
      assert.equal(0x100049, run(start, vm).regs.rip)
    end)

    it("may have tags that are supplied, ignored or optional", function()
      local request = string.pack("<I4I4I4I4I4", 1, 2, 3, 4, 6)
      local tags = images.tag(1, 0, request) .. images.tag(1, 1, string.pack("<I4", 8))
        .. images.tag(6, 0, "") .. images.tag(7, 0, "") .. images.tag(9, 0, "\1\2\3\4")
        .. images.tag(5, 1, ("\0"):rep(12)) .. images.tag(4, 0, "\2\0\0\0")
        .. images.tag(99, 1, "x")
      local start, vm = load(images.multiboot2 { code = CODE, tags = tags })
      run(start, vm)
      assert.equal(0x36d76289, vm:read_u32(0x3f0000))
    end)

    it("is refused without a header", function()
      refuses("header: magic 0xe85250d6 is at no multiple of 8 in the first 0x8000 bytes", "\xf4",
        { format = "multiboot2" })
      local header = images.multiboot2_header ""
      refuses("header at 0x8: checksum 0x1 is not 0x17adaf12, for architecture 0x0 and "
        .. "header_length 0x18", ("\0"):rep(8) .. images.patch(header, 12, "<I4", 1),
        { format = "multiboot2" })
      refuses("header at 0x0: architecture 0x4 is not 0x0, that of i386",
        images.multiboot2_header("", 4))
      refuses("header at 0x0: header_length 0x18 is not between 0x10 and 0x17", header:sub(1, 23))
      refuses("header at 0x0: header_length 0xf is not between 0x10 and 0x10",
        string.pack("<I4I4I4I4", 0xe85250d6, 0, 15, -(0xe85250d6 + 15) & 0xffffffff))
    end)

    it("is refused for tags that are off, or ask for more than there is", function()
      local function bad(message, tags)
        refuses(message, images.multiboot2_header(tags))
      end
      local header = images.multiboot2_header(images.tag(6, 0, ""))
      refuses("tag at 0x10: size 0x7 is not between 0x8 and 0x10",
        images.patch(header, 20, "<I4", 7))
      refuses("tag at 0x10: size 0x11 is not between 0x8 and 0x10",
        images.patch(header, 20, "<I4", 17))
      refuses("tags: there is no end tag before 0x20", images.patch(header, 20, "<I4", 16))
      refuses("tags: there is no end tag before 0x20", images.patch(header, 20, "<I4", 9))
      bad("tag at 0x10: requests boot information 0x8, and there is none",
        images.tag(1, 0, string.pack("<I4I4", 1, 8)))
      bad("tag at 0x10: type 0x5 has to be understood, and is not",
        images.tag(5, 0, ("\0"):rep(12)))
      bad("tag at 0x10: type 0xa has to be understood, and is not",
        images.tag(10, 0, ("\0"):rep(16)))
      bad("tag at 0x10: console_flags 0x1 need a console, and there is none",
        images.tag(4, 0, "\1\0\0\0"))
      bad("tag at 0x10: size 0xb is less than 0xc", images.tag(3, 0, "\0\0\0"))
      bad("tag at 0x20: there is one of type 0x3 before it",
        images.tag(3, 0, "\0\0\0\0"):rep(2))
      bad("header at 0x0: there is no address tag, and the image is no ELF file", "")
      bad("header at 0x0: there is an address tag, and no entry address tag",
        images.tag(2, 0, ("\0"):rep(16)))
    end)

    it("is refused for address fields that are off", function()
      local function bad(message, fields)
        fields.code, fields.at = "\xf4", 0x8000
        refuses(message, images.multiboot2(fields))
      end
      bad("load_addr 0x8001 is above header_addr 0x8000", { load_addr = 0x8001 })
      bad("load_end_addr 0x7fff is below load_addr 0x8000", { load_end_addr = 0x7fff })
      bad("bss_end_addr 0x8040 is below 0x8041, the end of what is loaded",
        { bss_end_addr = 0x8040 })
      bad("entry_addr 0x8041 is not in what is loaded", { entry_addr = 0x8041 })
      bad("header_addr 0x7 is less than 0x8, the header's offset",
        { before = "12345678", load_addr = 0xffffffff, header_addr = 7 })
      bad("address fields: load_addr 0x8000 + size 0xffff7fff is beyond memory, which ends at "
        .. "0x100000", { bss_end_addr = 0xffffffff })
    end)
  end)

  describe("a PVH image", function()
    -- mov %ebx, 0x3f0000; mov (%ebx), %eax; mov %eax, 0x3f0004; mov 24(%ebx), %eax;
    -- mov (%eax), %eax; mov %eax, 0x3f0008; hlt
    local CODE <const> = "\x89\x1d\0\0\x3f\0\x8b\x03\xa3\4\0\x3f\0\x8b\x43\x18\x8b\0"
      .. "\xa3\8\0\x3f\0\xf4"

    it("is detected by its note", function()
      assert.equal("pvh", boot.detect(images.pvh { code = CODE }))
      assert.equal("pvh", boot.detect(images.pvh { code = CODE, bits = 32 }))
      assert.equal("elf", boot.detect(images.pvh { code = CODE, notes = "" }))
      assert.equal("elf", boot.detect(images.pvh {
        code = CODE, notes = images.note("Xen\0", 17, "\0\0\0\0"),
      }))
      assert.equal("elf", boot.detect(images.pvh {
        code = CODE, notes = images.note("Xen", 18, "\0\0\0\0"),
      }))
      assert.equal("multiboot",
        boot.detect(images.pvh { code = CODE .. images.multiboot_header(0) }))
    end)

    for _, bits in ipairs { 32, 64 } do
      it("runs in protected mode, with its entry in a note: " .. bits, function()
        local start, vm = load(images.pvh { bits = bits, code = CODE, entry = 0 },
          { cmdline = "console=ttyS0" })
        assert.same({ "pvh", "protected", 0x100000 + 16 + bits // 8 },
          { start.format, start.mode, start.rip })
        local vcpu = run(start, vm)
        assert.same({ start.info, 0x336ec578, "cons" },
          { vm:read_u32(0x3f0000), vm:read_u32(0x3f0004), vm:read(0x3f0008, 4) })
        local sregs = vcpu:get_sregs()
        assert.same({ 0x11, 0, 0, 0, 0x67 },
          { sregs.cr0, sregs.cr4, sregs.efer, sregs.tr.base, sregs.tr.limit })
      end)
    end

    it("has an hvm_start_info", function()
      local modules = { { bytes = "initrd" }, { bytes = "more", cmdline = "text" } }
      local start, vm = load(images.pvh { code = CODE }, { cmdline = "a b", modules = modules })
      local magic, version, flags, count, list, line, rsdp, map, entries, zero =
        string.unpack("<I4I4I4I4I8I8I8I8I4I4", vm:read(start.info, 56))
      assert.same({ 0x336ec578, 1, 0, 2, 0, 3, 0 },
        { magic, version, flags, count, rsdp, entries, zero })
      assert.equal("a b\0", vm:read(line, 4))
      for i, module in ipairs(modules) do
        local at, size, text, nothing = string.unpack("<I8I8I8I8",
          vm:read(list + (i - 1) * 32, 32))
        assert.same({ start.modules[i].gpa, module.bytes, 0 }, { at, vm:read(at, size), nothing })
        local words = (module.cmdline or "") .. "\0"
        assert.equal(words, vm:read(text, #words))
      end
      assert.equal(string.pack("<I8I8I4I4I8I8I4I4I8I8I4I4", 0, 0xa0000, 1, 0,
        0xa0000, 0x60000, 2, 0, 0x100000, 0x300000, 1, 0), vm:read(map, 72))
    end)

    it("has no list of modules if there are none", function()
      local start, vm = load(images.pvh { code = CODE })
      assert.same({ 0, 0 }, { vm:read_u32(start.info + 12), vm:read_u64(start.info + 16) })
    end)

    it("may have its note behind others", function()
      local notes = images.note("GNU\0", 3, "12345") .. images.note("", 18, "")
        .. images.note("Xen\0", 18, string.pack("<I4", 0x100000))
      assert.equal(0x100000, load(images.pvh { code = CODE, notes = notes }).rip)
    end)

    it("may have notes at multiples of 8", function()
      local note = string.pack("<I4I4I4", 4, 4, 5) .. "GNU\0" .. "1234\0\0\0\0"
        .. images.note("Xen\0", 18, string.pack("<I4", 0x100000))
      local image = images.pvh { code = CODE, notes = note }
      assert.equal("elf", boot.detect(image))
      assert.equal(0x100000, load(images.patch(image, 64 + 56 + 48, "<I8", 8)).rip)
    end)

    it("is refused without a note, or with one that is off", function()
      local function bad(message, notes)
        refuses(message, images.pvh { code = CODE, notes = notes, at = 0x8000 },
          { format = "pvh" })
      end
      bad("program headers: there is no note of Xen's with PHYS32_ENTRY", "")
      bad("program headers: there is no note of Xen's with PHYS32_ENTRY",
        images.note("Xen\0", 18, "\0\0\0\0"):sub(1, 11))
      bad("program header 1: PHYS32_ENTRY: n_descsz 0x2 is neither 0x4 nor 0x8",
        images.note("Xen\0", 18, "\0\0"))
      bad("program header 1: note at 0x1000: n_namesz 0x4 and n_descsz 0x4 are beyond 0x1013",
        images.note("Xen\0", 18, "\0\0\0\0"):sub(1, 19))
      bad("program header 1: note at 0x1000: n_namesz 0xffffffff and n_descsz 0xffffffff are "
        .. "beyond 0x1010", ("\xff"):rep(16))
      bad("PHYS32_ENTRY 0x7fff is not in what is loaded",
        images.note("Xen\0", 18, string.pack("<I4", 0x7fff)))
      bad("PHYS32_ENTRY 0xffffffffffffffff is not in what is loaded",
        images.note("Xen\0", 18, ("\xff"):rep(8)))
    end)

    it("is refused for notes that are beyond the image, or share bytes", function()
      refuses("program header 1: p_offset: offset 0x1000 + 0x3 bytes is beyond the image, which "
        .. "ends at 0x1002",
        images.elf { code = "\xf4\xf4", { 4, 0x1000, 0, 0, 3, 3 } }, { format = "pvh" })
      local notes = {}
      for i = 1, 40 do notes[i] = { 4, 0xa00, 0, 0, 0x600, 0 } end -- zeros
      refuses("program header 3: p_filesz 0x600 makes for more notes than bytes",
        images.elf { code = "\xf4\xf4", table.unpack(notes) }, { format = "pvh" })
    end)
  end)
end)

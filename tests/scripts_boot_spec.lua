-- scripts/boot.lua: what it boots, what it says to wrong use, and to guests that end badly.

local images = require "boot_images"
local support = require "support"

local contains = support.contains
local script = debug.getinfo(1, "S").source:match("^@(.*)tests/[^/]*$") .. "scripts/boot.lua"
local directory -- of one test

local function run(...)
  return support.run(("return assert(loadfile(%q))(...)"):format(script), { after = { ... } })
end

local function expect(status, output, errors, ...)
  local got_status, got_output, got_errors = run(...)
  assert.equal(errors, got_errors)
  assert.equal(output, got_output)
  assert.equal(status, got_status)
end

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read("a")
end

-- A file in the test's directory.
local function image(name, bytes)
  local path = directory .. "/" .. name
  local file <close> = assert(io.open(path, "wb"))
  file:write(bytes)
  return path
end

-- Runs an image with a file as standard input: what it prints, and how much of the file is left.
local function typing(typed, path)
  local pipe = io.popen(("{ timeout 60 %s %s %s 2>/dev/null; printf '|'; wc -c; } <%s"):format(
    support.quote(support.program()), support.quote(script), support.quote(path),
    support.quote(typed)))
  local output, left = pipe:read("a"):match("^(.*)|(%d+)%s*$")
  pipe:close()
  return output, math.tointeger(left)
end

-- What boot.lua says in one line, with nothing printed by a guest.
local function refuses(status, line, ...)
  expect(status, "", "boot.lua: " .. line .. "\n", ...)
end

-- The guest dies: status 1, and a screen that has these parts.
local function dies(parts, ...)
  local status, _, errors = run(...)
  assert.equal(1, status)
  for _, part in ipairs(parts) do contains(part, (errors:gsub("%s+", " "))) end
  contains("\n", errors:sub(-1))
  local _, lines = errors:gsub("\n", "\n")
  assert(lines <= 25, errors)
  return (errors:gsub("%s+", " "))
end

-- 16-bit code that sends text to the serial port, before `rest`.
local function printing(text, rest)
  -- call behind the text; pop %si; mov $0x3f8, %dx; mov $#text, %cx; rep outsb
  return "\xe8" .. string.pack("<I2", #text) .. text .. "\x5e\xba\xf8\x03\xb9"
    .. string.pack("<I2", #text) .. "\xf3\x6e" .. rest
end

describe("boot.lua", function()
  before_each(function()
    support.need_kvm()
    directory = support.make_directory()
  end)

  after_each(function() directory = support.remove_directory(directory) end)

  describe("runs", function()
    it("its own image in real mode", function()
      expect(0, "Hello from real mode.\r\n", "boot.lua: hlt at rip 0x7c28 after 24 exits\n")
    end)

    it("its own image in protected and in long mode", function()
      for _, mode in ipairs { "protected", "long" } do
        local status, output, errors = run("--mode", mode)
        assert.equal(("Hello from %s mode.\r\n"):format(mode), output)
        assert(errors:find("^boot.lua: hlt at rip 0x1000%x+ after %d+ exits\n$"), errors)
        assert.equal(0, status)
      end
    end)

    it("its own image elsewhere, in other memory", function()
      expect(0, "Hello from real mode.\r\n", "boot.lua: hlt at rip 0x1028 after 24 exits\n",
        "--at=0x1000", "--memory", "1M")
    end)

    it("code that writes any byte, and ends in the middle of a line", function()
      local status, output, errors = run(image("bytes", printing("\0\xff\r\xc3", "\xf4")))
      assert.equal("\0\xff\r\xc3", output)
      assert.equal(0, status)
      assert(errors:find("^\nboot.lua: hlt at rip 0x7c%x+ after %d+ exits\n$"), errors)
    end)

    it("code that asks the BIOS", function()
      -- mov $0x0e41, %ax; int $0x10; hlt
      local status, output = run(image("bios", "\xb8\x41\x0e\xcd\x10\xf4"))
      assert.same({ 0, "A" }, { status, output })
    end)

    it("code that reads what is typed, with the BIOS", function()
      -- mov $0, %ah; int $0x16; mov $0x0e, %ah; int $0x10; hlt
      local path = image("key", "\xb4\x00\xcd\x16\xb4\x0e\xcd\x10\xf4")
      local pipe = io.popen(("echo k | %s %s %s 2>/dev/null"):format(
        support.quote(support.program()), support.quote(script), support.quote(path)))
      local output = pipe:read("a")
      assert.is_true(pipe:close())
      assert.equal("k", output)
    end)

    it("the first sector of a disk, from a copy, and from --disk, which it writes", function()
      -- mov $0x0301, %ax; mov $2, %cx; mov $0, %dh; mov $0x7c00, %bx; int $0x13: writes sector 2;
      -- cli; hlt
      local sector = images.sector("\xb8\x01\x03\xb9\x02\x00\xb6\x00\xbb\x00\x7c\xcd\x13\xfa\xf4")
      local bytes = sector .. ("\0"):rep(512 * 3)
      local path = image("disk.img", bytes)
      local status, _, errors = run(path)
      assert.same({ 0, "hlt" }, { status, errors:match("^boot.lua: (hlt)") })
      assert.equal(bytes, read(path))
      assert.equal(0, (run("--disk", path)))
      assert.equal(sector .. sector .. ("\0"):rep(512 * 2), read(path))
    end)
    it("code that reads all that is typed, keys of several bytes too", function()
      -- again: mov $0, %ah; int $0x16; mov %ah, %al; out %al, $0xe9; cmp $0x10, %al; jne again; hlt
      local path = image("scan", "\xb4\x00\xcd\x16\x88\xe0\xe6\xe9\x3c\x10\x75\xf4\xf4")
      local typed = image("typed", ("a"):rep(15) .. "\27[A" .. ("a"):rep(5000) .. "q")
      assert.equal(("\x1e"):rep(15) .. "\x48" .. ("\x1e"):rep(5000) .. "\x10",
        (typing(typed, path)))
    end)

    it("code that reads nothing of what is typed, of which most stays where it is", function()
      -- mov $3, %bx; again: xor %cx, %cx; loop .; dec %bx; jnz again; hlt
      local path = image("busy", "\xbb\x03\x00\x31\xc9\xe2\xfe\x4b\x75\xf9\xf4")
      local typed = image("typed", ("a"):rep(1 << 20))
      local output, left = typing(typed, path)
      assert.equal("", output)
      assert(left > (1 << 20) - (1 << 17), left)
    end)

    it("code that starts itself anew by INT 19h, and by a jump to FFFF:0", function()
      -- Memory stays, where it counts: incb 0x600; cmpb $3, 0x600; je off; the new start;
      -- off: mov $3, %al; out %al, $0xf4
      for _, start in ipairs { "\xcd\x19\x90\x90\x90", "\xea\x00\x00\xff\xff" } do
        local path = image("thrice", "\xfe\x06\x00\x06\x80\x3e\x00\x06\x03\x74\x05" .. start
          .. "\xb0\x03\xe6\xf4")
        expect(7, "", "", path)
        local status, _, errors = run("--no-reboot", path)
        assert.same({ 0, "reset" }, { status, errors:match("^boot.lua: (%l+)") })
      end
    end)

    it("code that asks the BIOS for memory above 4 GiB", function()
      -- The last area of E820h, to port 0xe9.
      local code = "\x66\xb8\x20\xe8\x00\x00"      -- mov $0xe820, %eax
        .. "\x66\xbb\x03\x00\x00\x00"              -- mov $3, %ebx
        .. "\x66\xb9\x14\x00\x00\x00"              -- mov $20, %ecx
        .. "\x66\xba\x50\x41\x4d\x53"              -- mov $0x534d4150, %edx
        .. "\xbf\x00\x06\xcd\x15"                  -- mov $0x600, %di; int $0x15
        .. "\xbe\x00\x06\xb9\x14\x00"              -- mov $0x600, %si; mov $20, %cx
        .. "\xba\xe9\x00\xf3\x6e\xf4"              -- mov $0xe9, %dx; rep outsb; hlt
      local status, output = run("--memory", "3148M", image("e820", code))
      assert.equal(0, status)
      assert.equal(("<i8i8I4"):pack(4 << 30, 76 << 20, 1), output)
    end)

    it("a disk that looks for devices which are not there", function()
      -- in $0x61, %al; out %al, $0x80; mov $0x0e, %ah; mov $0x41, %al; int $0x10; cli; hlt
      local status, output = run(image("disk.img",
        images.sector("\xe4\x61\xe6\x80\xb4\x0e\xb0\x41\xcd\x10\xfa\xf4")))
      assert.same({ 0, "A" }, { status, output })
    end)

    it("a Multiboot kernel, with a command line and a module", function()
      -- mov 16(%ebx), %esi: the command line; mov 24(%ebx), %edi; mov (%edi), %edi: the module;
      -- mov $0x3f8, %edx; mov (%esi), %al; out %al, %dx; mov (%edi), %al; out %al, %dx;
      -- mov $0x0, %al; out %al, $0xf4
      local path = image("kernel", images.multiboot { code = "\x8b\x73\x10\x8b\x7b\x18\x8b\x3f"
        .. "\xba\xf8\x03\x00\x00\x8a\x06\xee\x8a\x07\xee\xb0\x00\xe6\xf4" })
      expect(1, "CM", "", path, "--append", "Command", "--initrd", image("module", "M"))
    end)

    it("an image of the format that it is said to be", function()
      -- cs: mov $0x0e41, %ax; int $0x10; cli; hlt
      local old = image("old.lkrn", images.bzimage { real = "\xb8\x41\x0e\xcd\x10\xfa\xf4" })
      local status, output = run("--format", "linux16", old)
      assert.same({ 0, "A" }, { status, output })
      refuses(2, "--format: there is no image; see --help", "--format", "flat")
    end)

    it("a kernel that halts for good, and tells so", function()
      local path = image("kernel", images.multiboot { code = "\xfa\xf4\xeb\xfd" }) -- cli; hlt; jmp
      local status, output, errors = run(path)
      assert.same({ 0, "" }, { status, output })
      assert(errors:find("^boot.lua: hlt at rip 0x100022 after %d+ exits?\n$"), errors)
    end)

    it("a kernel on two vCPUs", function()
      -- prints the number of CPUs that CPUID tells of: mov $1, %eax; cpuid; shr $16, %ebx;
      -- mov %bl, %al; add $'0', %al; mov $0x3f8, %edx; out %al, %dx; mov $0, %al; out %al, $0xf4
      local path = image("kernel", images.multiboot { code = "\xb8\x01\x00\x00\x00\x0f\xa2\xc1\xeb"
        .. "\x10\x88\xd8\x04\x30\xba\xf8\x03\x00\x00\xee\xb0\x00\xe6\xf4" })
      expect(1, "2", "", "--cpus", "2", path)
    end)

    it("a guest that switches itself off, or resets itself", function()
      -- mov $0x604, %dx; mov $0x3400, %ax; out %ax, %dx
      local off = image("off", images.multiboot { code =
        "\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef\xf4" })
      local status, _, errors = run(off)
      assert.same({ 0, "poweroff" }, { status, errors:match("^boot.lua: (%l+)") })
      -- mov $0x3f8, %dx; mov $'r', %al; out %al, %dx; mov $0xcf9, %dx; mov $6, %al; out %al, %dx
      local code = "\x66\xba\xf8\x03\xb0\x72\xee\x66\xba\xf9\x0c\xb0\x06\xee\xf4"
      local again = image("again", images.multiboot { code = code })
      status, _, errors = run("--no-reboot", again)
      assert.same({ 0, "reset" }, { status, errors:match("boot.lua: (%l+)") })
    end)

    it("a guest that resets itself once more", function()
      -- The CMOS clock's memory is kept: in 0x40 of it the guest counts. mov $0x40, %al;
      -- out %al, $0x70; in $0x71, %al; inc %al; out %al, $0x71; cmp $3, %al; je off;
      -- mov $0xcf9, %dx; mov $6, %al; out %al, %dx; hlt; off: out %al, $0xf4
      local path = image("thrice", images.multiboot { code = "\xb0\x40\xe6\x70\xe4\x71"
        .. "\xfe\xc0\xe6\x71\x3c\x03\x74\x08\x66\xba\xf9\x0c\xb0\x06\xee\xf4\xe6\xf4" })
      expect(7, "", "", path) -- 3 << 1 | 1
    end)

    it("a guest that is traced", function()
      -- mov $0x3f8, %dx; mov $'A', %al; out %al, %dx; add $5, %dl; in %dx, %al; hlt
      local path = image("traced", "\xba\xf8\x03\xb0\x41\xee\x80\xc2\x05\xec\xf4")
      local status, output, errors = run("--trace", "io", path)
      assert.same({ 0, "A" }, { status, output })
      contains("vCPU 0 io_out 0x3f8 1 0x41\n", errors)
      contains("vCPU 0 io_in 0x3fd 1 0x60\n", errors)
    end)

    it("with its console in a file, and on a pseudo-terminal", function()
      local path = directory .. "/console"
      expect(0, "", "boot.lua: hlt at rip 0x7c28 after 24 exits\n", "--console", path)
      assert.equal("Hello from real mode.\r\n", read(path))
      support.run(([[
        local boot = assert(loadfile(%q))
        require("lfs").chdir(%q)
        boot("--console", "string")
      ]]):format(script, directory))
      assert.equal("Hello from real mode.\r\n", read(directory .. "/string"))
      local _, output, errors = run("--console", "pty")
      assert.equal("", output)
      assert(errors:find("^boot.lua: the console is /dev/pts/%d+\n"), errors)
    end)
  end)

  describe("refuses, with status 2,", function()
    for _, case in ipairs {
      { "--mode: \'short\' is none of real, protected, long, user; see --help", "--mode", "short" },
      { "option '--mode' requires an argument; see --help", "--mode" },
      { "--memory: '12Q' is not a size, as 0x10000 or 64K; see --help", "--memory", "12Q" },
      { "--memory: '' is not a size, as 0x10000 or 64K; see --help", "--memory=" },
      { "--memory: '1e3' is not a size, as 0x10000 or 64K; see --help", "--memory", "1e3" },
      { "--memory: '4194305G' is not a size, as 0x10000 or 64K; see --help", "--memory",
        "4194305G" },
      { "--memory: '0' is not a number of whole pages of 4K between 1M and 256G; see --help",
        "--memory", "0" },
      { "--memory: '5000' is not a number of whole pages of 4K between 1M and 256G; see --help",
        "--memory", "5000" },
      { "--memory: '257G' is not a number of whole pages of 4K between 1M and 256G; see --help",
        "--memory", "257G" },
      { "--memory: '-64M' is not a size, as 0x10000 or 64K; see --help", "--memory", "-64M" },
      { "--cpus: '0' is not a count from 1 to 254; see --help", "--cpus", "0" },
      { "--cpus: '255' is not a count from 1 to 254; see --help", "--cpus", "255" },
      { "--cpus: '99999' is not a count from 1 to 254; see --help", "--cpus", "99999" },
      { "--cpus: '-1' is not a count from 1 to 254; see --help", "--cpus=-1" },
      { "--cpus: '-1' is not a count from 1 to 254; see --help", "--cpus", "-1" },
      { "--format: 'zip' is none of linux16, bzimage, multiboot2, multiboot, pvh, elf, sector, "
        .. "bios, flat; see --help", "--format", "zip" },
      { "--trace: 'smoke' is none of debug, error, event, hlt, hypercall, io, mmio, msr; "
        .. "see --help", "--trace", "io,smoke" },
      { "--trace: '' is none of debug, error, event, hlt, hypercall, io, mmio, msr; see --help",
        "--trace=" },
      { "--console: '' is none of terminal, pty and a file's name; see --help", "--console", "" },
      { "option '--no-reboot' does not take arguments; see --help", "--no-reboot", "-1" },
      { "unknown option '--moed'; did you mean '--mode'? See --help", "--moed", "real" },
      { "too many arguments; see --help", "a", "b" },
      { "--cpus: code of 16 bits has one; see --help", "--cpus", "2" },
      { "--cpus: code of 16 bits has one; see --help", "--cpus", "2", "--mode", "real" },
      { "--append: flat has no command line; see --help", "--append", "quiet" },
    } do
      it(table.concat(case, " ", 2), function() refuses(2, table.unpack(case)) end)
    end

    it("what the image has no use for", function()
      local sector = image("sector", images.sector "\xf4")
      refuses(2, "--at: the image says itself where it is loaded; see --help", "--at=64K", sector)
      refuses(2, "--initrd: sector has no place for it; see --help", "--initrd", sector, sector)
      refuses(2, "--bios: firmware boots what --disk names, and no image; see --help", "--bios",
        sector, sector)
      refuses(2, "--mode: a disk starts in real mode; see --help", "--mode=long", "--disk", sector)
      refuses(2, "--disk: the image is a disk itself; see --help", "--disk", sector, sector)
      refuses(2, "--disk: only code of real mode has one, by its BIOS; see --help", "--mode=long",
        "--disk", sector, sector)
    end)
  end)

  describe("refuses, with status 1,", function()
    it("files that are not there, not files, empty, or without an end", function()
      refuses(1, directory .. "/missing: No such file or directory", directory .. "/missing")
      refuses(1, directory .. ": Is a directory", directory)
      local empty = image("empty", "")
      refuses(1, empty .. ": the file is empty", empty)
      refuses(1, "/dev/zero: does not fit in the 0x100000 bytes of memory", "--memory", "1M",
        "/dev/zero")
    end)

    it("files that are no disk for --disk", function()
      refuses(1, directory .. "/missing: No such file or directory", "--disk",
        directory .. "/missing")
      local pipe = directory .. "/pipe"
      assert(os.execute("mkfifo " .. pipe))
      refuses(1, pipe .. ": is no regular file or block device", "--disk", pipe)
    end)

    it("files for --disk that it may not write, and says that it would", function()
      local path = "/sys/devices/system/cpu/possible" -- which nobody may write, root neither
      local status, output, errors = run("--disk", path)
      assert.same({ 1, "" }, { status, output })
      local why = errors:match("^boot.lua: " .. path .. ": ([%a -]+); %-%-disk writes to the file, "
        .. "while one that is given as the image is booted from a copy\n$")
      assert(why == "Permission denied" or why == "Read-only file system", errors)
    end)

    it("disks that say that they cannot be booted", function()
      local status, _, errors = run(image("disk", images.sector "\xcd\x18")) -- int $0x18
      assert.same({ 1, "no bootable disk" }, { status, errors:match("^boot.lua: (.-) at rip 0x") })
    end)

    it("images with a wrong field", function()
      local path = image("kernel", images.patch(images.elf { code = "\xf4" }, 18, "<I2", 0x28))
      refuses(1, path .. ": e_machine 0x28 is not 0x3e, that of 64-bit x86", path)
    end)

    it("files that are no image, and disks of other kinds, unless the format is told", function()
      local packed <const> = image("vmlinux.gz", "\x1f\x8b\x08\0")
      local line <const> = packed .. ": is compressed with gzip: unpack it first"
      refuses(1, line, packed)
      refuses(1, line, "--at", "64K", "--append", "quiet", packed)
      local notes <const> = image("README.md", ("A line of text.\n"):rep(4))
      refuses(1, notes .. ": is a text file: to run it as bare code, tell the format 'flat'", notes)
      local disk <const> = image("disk.qcow2", "QFI\xfb\0\0\0\3" .. ("\0"):rep(1024))
      refuses(1, disk .. ": is a qcow2 disk image: convert it with qemu-img convert -O raw",
        "--disk", disk)
      local data <const> = image("data.img", ("\0"):rep(1024))
      refuses(1, data .. ": is not bootable: signature at 0x1fe: 0x0 is not 0xaa55", "--disk", data)
      local code <const> = image("code", "\xf4BZh1AY&SY") -- hlt, and as bzip2 has it
      refuses(1, code .. ": is compressed with bzip2: unpack it first", code)
      expect(0, "", "boot.lua: hlt at rip 0x7c01 after 1 exit\n", "--format", "flat", code)
    end)

    it("an image whose name looks like a line of code, or an interrupt", function()
      for _, name in ipairs { "img:5", "img:5: 6", "a.lua:5", "interrupted!" } do
        local path = image(name, images.patch(images.elf { code = "\xf4" }, 18, "<I2", 0x28))
        refuses(1, path .. ": e_machine 0x28 is not 0x3e, that of 64-bit x86", path)
        path = image(name, ("\xf4"):rep(0xa0000))
        refuses(1, path .. ": 0xa0000 bytes at 0x7c00 are not between 0x500 and 0xa0000, all that "
          .. "a BIOS leaves", path)
      end
    end)

    it("a console that takes no more", function()
      for _, mode in ipairs { "real", "long" } do
        refuses(1, "console: /dev/full: No space left on device", "--mode", mode, "--console",
          "/dev/full")
      end
    end)

    it("firmware that is none", function()
      local path = image("bios", "\xf4")
      refuses(1, path .. ": size 0x1: is not a multiple of 0x10000 up to 0x1000000", "--bios", path)
    end)

    it("what the kernel refuses", function()
      -- One descriptor is left: enough to open KVM, not for a VM.
      local status, output, errors = support.run(([[
        held = {}
        repeat
          local file = io.open("/dev/null")
          held[#held + 1] = file
        until not file
        held[1]:close()
        return assert(loadfile(%q))(...)
      ]]):format(script), { shell = "ulimit -n 20" })
      assert.equal("", output)
      assert(errors:find("^boot.lua: KVM_CREATE_%u+: EMFILE: [^\n]+\n$"), errors)
      assert.equal(1, status)
    end)
  end)

  describe("leaves one screen for", function()
    it("a triple fault", function()
      local screen = dies({ "shutdown, a triple fault", "Likely cause" }, "--mode", "long",
        image("ud2", "\x90\x0f\x0b"))
      if screen:find("KVM resets a vCPU", 1, true) then return end -- with nothing left to show
      contains("rax ", screen)
      contains("cr0 ", screen)
    end)

    it("an exception in real mode", function()
      dies({ "INT 0x6 (#UD) has no handler; it returns to 0000:7c01" },
        image("ud2", "\x90\x0f\x0b"))
    end)

    it("an exception in ring 3", function()
      dies({ "invalid opcode at rip 0x100001", "ring 3" }, "--mode", "user",
        image("ud2", "\x90\x0f\x0b"))
      dies({ "page fault at rip 0x100000: address 0x0, error code 0x4" }, "--mode",
        "user", image("null", "\x8a\x04\x25\0\0\0\0")) -- mov 0, %al
    end)

    it("a port that nobody answers", function()
      dies({ "io_out at port 0x80 (1 byte: 0x41), which nobody answers" },
        image("post", "\xb0\x41\xe6\x80\xf4"))
    end)

    it("an address without memory", function()
      dies({ "mmio_write at 0xd0000000 (4 bytes: 0x0), which nobody answers" }, "--mode", "long",
        image("mmio", "\xb8\x00\x00\x00\xd0\x89\x18\xf4")) -- mov %ebx, (%rax)
    end)

    -- Runs an image, interrupts it when it prints, and returns what is printed on standard error.
    local function interrupt(path)
      local errors = directory .. "/errors"
      local pipe = io.popen(("exec timeout -k 5 60 sh -c 'echo $$; exec %s %s %s 2>%s' </dev/null")
        :format(support.program(), script, path, errors))
      local pid = pipe:read("l")
      assert.equal(".", pipe:read(1))
      assert(os.execute("kill -INT " .. pid))
      local _, how, status = pipe:close()
      assert.same({ "exit", 130 }, { how, status })
      return read(errors)
    end

    it("Linux that has printed nothing for 10 seconds, and told so #slow", function()
      local path = image("vmlinux", images.pvh { code = "\xeb\xfe" }) -- jmp .
      local pipe <close> = io.popen(("exec timeout -k 5 60 sh -c 'echo $$; exec %s %s %s 2>&1' "
        .. "</dev/null"):format(support.program(), script, path))
      local pid, line = pipe:read("l", "l")
      assert(os.execute("kill -INT " .. pid))
      local rest = pipe:read("a")
      assert.equal("boot.lua: the kernel has printed nothing on its serial port for 10 s; where "
        .. "the KVM emulates ring 0, Linux does not come up: see ckvm-lua --probe, and doc/kvms.md",
        line)
      contains("it was interrupted", rest)
      assert.is_nil(rest:find "printed nothing")
    end)

    it("a guest that spins, by Ctrl-C, with status 130", function()
      local errors = interrupt(image("spin", printing(".", "\xeb\xfe")))
      contains("it was interrupted", errors)
      contains("at 0000:7c", errors)
    end)

    it("a guest that only resets itself, by Ctrl-C, with status 130", function()
      -- Nearly all of its time is that of resets.
      local path = image("again", printing(".", "\xcd\x19"))
      for _ = 1, 5 do contains("it was interrupted", interrupt(path)) end
    end)
  end)
end)

-- The scripts: what each prints, to the letter, and what boot.lua says to wrong use and to guests
-- that end badly.

local lfs = require "lfs"
local support = require "support"

local scripts = debug.getinfo(1, "S").source:match("^@(.*)tests/[^/]*$") .. "scripts/"
local directory -- of one test

local function run(name, ...)
  local text = ("return assert(loadfile(%q))(...)"):format(scripts .. name)
  return support.run(text, { after = { ... } })
end

local function expect(status, output, errors, ...)
  local got_status, got_output, got_errors = run(...)
  assert.equal(errors, got_errors)
  assert.equal(output, got_output)
  assert.equal(status, got_status)
end

-- A file in the test's directory.
local function image(name, bytes)
  local path = directory .. "/" .. name
  local file <close> = assert(io.open(path, "wb"))
  file:write(bytes)
  return path
end

-- What boot.lua says about an image, in one line, with a status that is not 0.
local function refuses(line, status, ...)
  expect(status, "", "boot.lua: " .. line .. "\n", "boot.lua", ...)
end

local function ends(line, ...)
  refuses(line, 1, ...)
end

describe("scripts:", function()
  before_each(function()
    support.need_kvm()
    directory = os.tmpname()
    os.remove(directory)
    assert(lfs.mkdir(directory))
  end)

  after_each(function()
    if not directory then return end
    for name in lfs.dir(directory) do os.remove(directory .. "/" .. name) end
    lfs.rmdir(directory)
  end)

  describe("hello.lua", function()
    local exits = [[
io_out      port 0x3f8: "5"
io_in       port 0x3f8
mmio_write  0x8000: 0
mmio_read   0x8000
hlt
]]
    local clean = [[
0 dirty pages
The guest stored nothing in memory. VT-x marks the page it runs code from, too; this KVM does not.
]]

    -- VT-x marks pages that are only fetched from, others do not.
    it("prints each exit and counts the dirty pages", function()
      local status, output, errors = run("hello.lua")
      assert.equal("", errors)
      assert.equal(0, status)
      assert.equal(exits, output:sub(1, #exits))
      local rest = output:sub(#exits + 1)
      assert(rest == clean or rest == "1 dirty pages\n", rest)
    end)
  end)

  it("echo.lua reads a device and takes a log", function()
    expect(0, "hlt\nthe quick brown fox\n39 reads, 19 writes\n", "", "echo.lua")
  end)

  it("adder.lua asks the guest through handlers that yield", function()
    expect(0, "2 + 3 = 5\n400 + 58 = 458\n65535 + 2 = 1\n0 + 0 = 0\nhlt\n", "", "adder.lua")
  end)

  it("rewind.lua takes both branches from one state", function()
    expect(0, [[
io_out	port 0x10
io_in	port 0x11, answered 0
hlt	rip 0x100e, "L"
io_in	port 0x11, answered 1
hlt	rip 0x1014, "R"
]], "", "rewind.lua")
  end)

  it("have a first comment with the command, and all but boot.lua are short", function()
    for name in lfs.dir(scripts) do
      if name:find("%.lua$") then
        local count, text = 0, ""
        for line in io.lines(scripts .. name) do
          count = count + 1
          text = text .. line .. "\n"
        end
        assert(text:find("^%-%- "), name)
        support.contains("\n--   ckvm-lua scripts/" .. name, text)
        assert(count <= 60 or name == "boot.lua", name .. " is long")
      end
    end
  end)

  describe("boot.lua", function()
    describe("runs", function()
      it("its own image in real mode", function()
        expect(0, "Hello from real mode.\r\n",
          "boot.lua: hlt at rip 0x7c28 after 24 exits\n", "boot.lua")
      end)

      it("its own image in long mode", function()
        expect(0, "Hello from long mode.\r\n",
          "boot.lua: hlt at rip 0x10002b after 24 exits\n", "boot.lua", "--mode", "long")
      end)

      for _, case in ipairs {
        { "0x0", "0x28", "64K" }, { "0x1000", "0x1028", "0x2000" }, { "4K", "0x1028", "8K" },
      } do
        it(("its own image at %s in %s"):format(case[1], case[3]), function()
          expect(0, "Hello from real mode.\r\n",
            ("boot.lua: hlt at rip %s after 24 exits\n"):format(case[2]),
            "boot.lua", "--at=" .. case[1], "--memory", case[3])
        end)
      end

      it("long mode with more memory than 4 GiB", function()
        -- mov $0x140000000, %rax; mov (%rax), %bl; hlt
        expect(0, "", "boot.lua: hlt at rip 0x10000d after 1 exit\n", "boot.lua", "--mode=long",
          "--memory=6G", image("high", "\x48\xb8\0\0\0\x40\x01\0\0\0\x8a\x18\xf4"))
      end)

      it("a guest that writes any byte, and one that ends in the middle of a line", function()
        -- mov $message, %si; mov $4, %cx; mov $0x3f8, %dx; rep outsb; hlt
        local code = "\xbe\x0c\x7c\xb9\x04\x00\xba\xf8\x03\xf3\x6e\xf4" .. "\0\xff\r\xc3"
        local status, output, errors = run("boot.lua", image("bytes", code))
        assert.equal("\0\xff\r\xc3", output)
        assert.equal(0, status)
        assert(errors:find("^\nboot.lua: hlt at rip 0x7c0c after %d+ exits\n$"), errors)
      end)

      it("a guest that waits for the transmitter and sets the divisor", function()
        -- mov $0x3fb, %dx; mov $0x80, %al; out; mov $0x3f8, %dx; mov $1, %al; out (the divisor);
        -- mov $0x3fb, %dx; mov $3, %al; out; mov $0x3fd, %dx; wait: in; test $0x20, %al; jz wait;
        -- mov $0x3f8, %dx; mov $10, %al; out; hlt
        expect(0, "\n", "boot.lua: hlt at rip 0x7c21 after 6 exits\n", "boot.lua", image("uart",
          "\xba\xfb\x03\xb0\x80\xee\xba\xf8\x03\xb0\x01\xee\xba\xfb\x03\xb0\x03\xee\xba\xfd\x03"
            .. "\xec\xa8\x20\x74\xfb\xba\xf8\x03\xb0\x0a\xee\xf4"))
      end)

      it("a boot sector that handles its own exceptions", function()
        -- movw $0x7c09, (0x18): vector 6; ud2; hlt; target: hlt
        expect(0, "", "boot.lua: hlt at rip 0x7c0a after 1 exit\n", "boot.lua",
          image("ivt", "\xc7\x06\x18\x00\x09\x7c\x0f\x0b\xf4\xf4"))
      end)
    end)

    it("--help prints the usage", function()
      local status, output, errors = run("boot.lua", "--help")
      assert.equal(0, status)
      assert.equal("", errors)
      for _, part in ipairs { "Usage: ", "--mode", "--at", "--memory", "--rom", "--help" } do
        support.contains(part, output)
      end
    end)

    describe("refuses, with status 2,", function()
      for _, case in ipairs {
        { "--mode: 'protected' is neither real nor long", "--mode", "protected" },
        { "--mode takes a value; see --help", "--mode" },
        { "--memory: '12Q' is not a size", "--memory", "12Q" },
        { "--memory: '' is not a size", "--memory=" },
        { "--memory: '1.5M' is not a size", "--memory", "1.5M" },
        { "--memory: '1e3' is not a size", "--memory", "1e3" },
        { "--memory: '4194305G' is not a size", "--memory", "4194305G" },
        { "--memory: '9223372036854775808' is not a size", "--memory", "9223372036854775808" },
        { "--at: '-1' is not a size", "--at", "-1" },
        { "--at: '0x' is not a size", "--at", "0x" },
        { "--memory: 0x0 is not a number of whole 4K pages, up to 512G", "--memory", "0" },
        { "--memory: 0x1388 is not a number of whole 4K pages, up to 512G", "--memory", "5000" },
        { "--memory: 0x8040000000 is not a number of whole 4K pages, up to 512G",
          "--memory", "513G" },
        { "--memory: the page tables alone take 0x6000 of the 0x4000 bytes", "--memory", "16K",
          "--mode", "long" },
        { "--at: 0x10000 is beyond 0xffff, where segment 0 of real mode ends", "--at", "64K" },
        { "--at: 0x7c00 is beyond 0x4000, where the memory ends", "--memory", "16K" },
        { "--at: 0x1000000 is beyond 0xffa000, where the page tables begin", "--at", "16M",
          "--mode", "long" },
        { "unknown option '--moed'; see --help", "--moed", "real" },
        { "unknown option '-m'; see --help", "-m" },
        { "one image, not both 'a' and 'b'; see --help", "a", "b" },
      } do
        it(table.concat(case, " ", 2), function()
          refuses(case[1], 2, table.unpack(case, 2))
        end)
      end
    end)

    describe("refuses", function()
      it("a missing file", function()
        local path = directory .. "/missing"
        refuses(path .. ": No such file or directory", 1, path)
      end)

      it("a directory", function()
        refuses(directory .. ": Is a directory", 1, directory)
      end)

      it("an empty file", function()
        local path = image("empty", "")
        refuses(path .. ": the file is empty", 1, path)
      end)

      it("an image that does not fit its memory", function()
        local path = image("big", ("\xf4"):rep(0x8401))
        refuses(path .. ": does not fit in the 0x8400 bytes from 0x7c00 to 0x10000,"
          .. " where the memory ends", 1, "--memory", "64K", path)
      end)

      it("an image that reaches into the page tables", function()
        local path = image("big", ("\xf4"):rep(0x1001))
        refuses(path .. ": does not fit in the 0x1000 bytes from 0x1000 to 0x2000,"
          .. " where the page tables begin", 1, "--mode=long", "--at=4K", "--memory=32K", path)
      end)

      it("a file without an end", function()
        refuses("/dev/zero: does not fit in the 0x8400 bytes from 0x7c00 to 0x10000,"
          .. " where the memory ends", 1, "--memory", "64K", "/dev/zero")
      end)
    end)

    it("says what the kernel refuses in one line", function()
      -- One descriptor is left: enough to open KVM, not for a VM.
      local status, output, errors = support.run(([[
        held = {}
        repeat
          local file = io.open("/dev/null")
          held[#held + 1] = file
        until not file
        held[1]:close()
        return assert(loadfile(%q))(...)
      ]]):format(scripts .. "boot.lua"), { shell = "ulimit -n 20" })
      assert.equal("", output)
      assert(errors:find("^boot.lua: KVM_CREATE_VM: EMFILE: [^\n]+\n$"), errors)
      assert.equal(1, status)
    end)

    describe("tells how it ended:", function()
      it("an exception in real mode", function()
        ends("an INT or exception without a handler at 0x0:0x7c01; "
          .. "bytes there: 0f 0b 00 00 00 00 00 00", image("ud2", "\x90\x0f\x0b"))
      end)

      it("a call of a BIOS that is not there", function()
        ends("an INT or exception without a handler at 0x0:0x7c04; "
          .. "bytes there: f4 00 00 00 00 00 00 00", image("bios", "\xb4\x0e\xcd\x10\xf4"))
      end)

      it("a triple fault", function()
        local status, _, errors = run("boot.lua", "--mode", "long", image("ud2", "\x90\x0f\x0b"))
        assert.equal(1, status)
        local start = "boot.lua: shutdown: triple fault, an exception without a handler at rip 0x"
        assert.equal(start, errors:sub(1, #start))
        -- SVM resets the vCPU; elsewhere the place is the instruction's.
        if not errors:find("0xfff0", 1, true) then
          assert.equal(start .. "100001 after 1 exit; bytes there: 0f 0b 00 00 00 00 00 00\n",
            errors)
        end
      end)

      it("data that is executed", function()
        ends("io_in at port 0x0 (1 byte), which nobody answers, at rip 0x7c01 after 1 exit",
          image("text", "Hello, I am no program."))
      end)

      it("a jump to where no memory is", function()
        local status, output, errors = run("boot.lua", "--mode", "long",
          image("jump", "\xb8\x00\x00\x00\x40\xff\xe0")) -- mov $0x40000000, %eax; jmp *%rax
        assert.equal(1, status)
        assert.equal("", output)
        assert.equal(1, select(2, errors:gsub("\n", "")))
        support.contains("at rip 0x40000000 after 1 exit", errors)
      end)

      it("a port that nobody answers", function()
        local _, _, errors = run("boot.lua", image("post", "\xb0\x41\xe6\x80\xf4"))
        support.contains("boot.lua: io_out at port 0x80 (1 byte: 0x41), which nobody answers,"
          .. " at rip", errors)
      end)

      it("an address without memory", function()
        local _, _, errors = run("boot.lua", "--mode", "long",
          image("mmio", "\xb8\x00\x00\x00\xd0\x89\x18\xf4")) -- mov %ebx, (%rax)
        support.contains("boot.lua: mmio_write at 0xd0000000 (4 bytes: 0x0), where no memory is,"
          .. " at rip", errors)
      end)

      it("a write to read-only memory", function()
        local rom = image("rom", "\xc6\x06\x00\x7c\x07\xf4") -- movb $7, (0x7c00); hlt
        local status, output, errors = run("boot.lua", "--rom", rom)
        assert.equal(1, status)
        assert.equal("", output)
        support.contains("boot.lua: mmio_write at 0x7c00 (1 byte: 0x7), which is read-only, at rip",
          errors)
        expect(0, "", "boot.lua: hlt at rip 0x7c06 after 1 exit\n", "boot.lua", rom)
      end)

      it("a guest that spins, by Ctrl-C, with status 130", function()
        local spin = image("spin", "\xb0\x2e\xba\xf8\x03\xee\xeb\xfe")
        local errors = directory .. "/errors"
        local q = support.quote
        -- The dot that the guest prints tells that it runs.
        local pipe = io.popen(("sh -c 'echo $$; exec %s %s %s 2>%s'"):format(support.program(),
          scripts .. "boot.lua", spin, errors))
        local pid = pipe:read("l")
        assert.equal(".", pipe:read(1))
        assert(os.execute("kill -INT " .. q(pid)))
        local _, how, status = pipe:close()
        assert.equal("exit", how)
        assert.equal(130, status)
        local file <close> = assert(io.open(errors))
        assert.equal("\nboot.lua: interrupted at rip 0x7c06 after 1 exit; "
          .. "bytes there: eb fe 00 00 00 00 00 00\n", file:read("a"))
      end)
    end)
  end)
end)

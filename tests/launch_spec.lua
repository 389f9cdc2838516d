-- ckvm.launch: a machine for whatever an image is, how it runs, and what is told of its end.

local console = require "ckvm.console"
local disk = require "ckvm.disk"
local images = require "boot_images"
local launch = require "ckvm.launch"
local support = require "support"

local contains = support.contains
local LIMITS <const> = { timeout = 20 }

-- A guest whose console is a string.
local function new(options)
  options.console = console.new { to = "string" }
  return launch.new(options)
end

-- Runs a guest: what it prints, and how it has ended.
local function run(options, limits)
  local guest <close> = new(options)
  local ending = table.pack(guest:ending(guest:run(limits or LIMITS)))
  return guest.console:text(), table.unpack(ending, 1, ending.n)
end

describe("launch.conflict", function()
  local function conflict(options) return { launch.conflict(options) } end

  it("names the first option that makes no sense", function()
    local bios <const>, sector <const> = images.bios "\xf4", images.sector "\xf4"
    local file = disk.new(sector)
    assert.same({ "cmdline", "flat has no command line" },
      conflict { image = "\xf4", cmdline = "quiet" })
    assert.same({ "mode", "a disk starts in real mode" }, conflict { disk = file, mode = "long" })
    assert.same({ "mode", "firmware has its own" },
      conflict { image = bios, format = "bios", mode = "long" })
    assert.same({ "mode", "multiboot has its own" },
      conflict { image = images.multiboot { code = "\xf4" }, format = "multiboot", mode = "long" })
    assert.same({ "format", "there is no image" }, conflict { disk = file, format = "flat" })
    assert.same({ "disk", "the image is a disk itself" }, conflict { image = sector, disk = file })
    assert.same({ "disk", "only code of real mode has one, by its BIOS" },
      conflict { image = "\xf4", mode = "long", disk = file })
    assert.same({ "at", "the image says itself where it is loaded" },
      conflict { image = sector, at = 0x1000 })
    assert.same({ "initrd", "sector has no place for it" },
      conflict { image = sector, initrd = "x" })
    for _, mode in ipairs { false, "real" } do
      assert.same({ "cpus", "code of 16 bits has one" },
        conflict { image = "\xf4", mode = mode or nil, cpus = 2 })
    end
    assert.same({ "image", "there is none, and no disk" }, conflict {})
  end)

  it("has nothing to say of what makes sense", function()
    local file = disk.new(images.sector "\xf4")
    for _, options in ipairs {
      { image = "\xf4" }, { disk = file }, { image = "\xf4", disk = file, at = 0x1000 },
      { image = "\xf4", mode = "long", cpus = 2 },
      { image = images.bios "\xf4", format = "bios", disk = file },
      { image = images.multiboot { code = "\xf4" }, cmdline = "a", initrd = "b", disk = file },
      { image = "QFI\xfb", at = 0x1000, disk = file }, -- it is refused by what it is
    } do
      assert.same({}, conflict(options))
    end
  end)
end)

describe("launch.new", function()
  it("refuses wrong options, and those that make no sense", function()
    support.blames("launch: table of options expected, got nil", launch.new)
    support.blames("launch: unknown option 'append'", launch.new, { append = "quiet" })
    support.blames("launch: cmdline: flat has no command line", launch.new,
      { image = "\xf4", cmdline = "quiet" })
    support.blames("launch: console: has no method 'write'", launch.new,
      { image = "\xf4", console = {} })
  end)

  it("refuses bare code where the BIOS is", function()
    support.need_kvm()
    local function wrong(size, at)
      return ("image: 0x%x bytes at 0x%x are not between 0x500 and 0xa0000"):format(size, at)
    end
    support.blames(wrong(1, 0x4ff), new, { image = "\xf4", at = 0x4ff })
    local most <const> = ("\xf4"):rep(0xa0000 - 0x7c00)
    support.blames(wrong(#most + 1, 0x7c00), new, { image = most .. "\xf4" })
    for at, image in pairs { [0x500] = "\xf4", [0x7c00] = most } do
      local guest <close> = new { image = image, at = at }
      assert.equal("hlt", (guest:run(LIMITS)))
    end
  end)

  it("closes all that it has when the image is off", function()
    support.need_kvm()
    local file = support.make_directory() .. "/out"
    local before = support.count_fds()
    local off = images.patch(images.elf { code = "\xf4" }, 18, "<I2", 0x28)
    support.blames("kernel: e_machine 0x28 is not 0x3e, that of 64-bit x86", launch.new,
      { image = off, name = "kernel", console = console.new { to = file } })
    assert.equal(before, support.count_fds())
    support.remove_directory(file:match("^(.*)/"))
  end)
end)

describe("A guest that is launched", function()
  before_each(support.need_kvm)

  it("refuses times that are none", function()
    local guest <close> = new { image = "\xf4" }
    for _, timeout in ipairs { -1, 0 / 0 } do
      support.blames("is not a time from now on", guest.run, guest, { timeout = timeout })
    end
  end)

  it("runs as bare code of every mode", function()
    local code <const> = "\xb0\x2a\xe6\xe9\xf4" -- mov $42, %al; out %al, $0xe9; hlt
    for mode, rip in pairs { real = 0x7c05, protected = 0x100005, long = 0x100005 } do
      local text, status, line, screen = run { image = code, mode = mode }
      assert.same({ "*", 0, ("hlt at rip 0x%x after 2 exits"):format(rip) }, { text, status, line })
      assert.is_nil(screen)
    end
  end)

  it("has a BIOS, if it is a disk, and starts anew when it resets itself", function()
    -- mov $0x0e31, %ax; int $0x10; mov $0x500, %di; incb (%di); cmpb $3, (%di); je 1f;
    -- int $0x19; 1: cli; hlt
    local sector = images.sector("\xb8\x31\x0e\xcd\x10\xbf\x00\x05\xfe\x05\x80\x3d\x03\x74\x02"
      .. "\xcd\x19\xfa\xf4")
    local text, status, line = run { disk = disk.new(sector) }
    assert.same({ "111", 0 }, { (text:gsub("\27%[[%d;]*%a", "")), status })
    contains("hlt at rip 0x7c13", line)
  end)

  it("has the BIOS's vectors back when its bare code resets itself", function()
    -- mov $0, %ax; mov %ax, %ds; cmpw $0x1234, 0x40; je 1f; movw $0x1234, 0x40; int $0x19;
    -- 1: mov $1, %al; out %al, $0xf4
    local _, status, _, screen = run({ image = "\xb8\0\0\x8e\xd8\x81\x3e\x40\0\x34\x12\x74\x08"
      .. "\xc7\x06\x40\0\x34\x12\xcd\x19\xb0\x01\xe6\xf4" }, { timeout = 0.5 })
    assert.equal(1, status)
    contains("its time was up", screen) -- and the vector was never what it has written
  end)

  it("has a BIOS, if it is a kernel that starts in real mode, with a command line", function()
    -- Its address is at 0x228: mov 0x228, %esi; mov %si, %bx; and $0xf, %bx; shr $4, %esi;
    -- mov %si, %es; mov %es:(%bx), %al; mov $0x0e, %ah; int $0x10; cli; hlt
    local text, status = run { cmdline = "C", image = images.linux16 {
      real = "\x66\x8b\x36\x28\x02\x89\xf3\x83\xe3\x0f\x66\xc1\xee\x04\x8e\xc6\x26\x8a\x07"
        .. "\xb4\x0e\xcd\x10\xfa\xf4" } }
    assert.same({ "C", 0 }, { text, status })
  end)

  describe("may be a kernel, which", function()
    -- mov $0xcf9, %dx; mov $6, %al; out %al, %dx; hlt
    local resets <const> = images.multiboot { code = "\x66\xba\xf9\x0c\xb0\x06\xee\xf4" }

    it("ends with a reset, where that starts nothing anew", function()
      local guest <close> = new { image = resets }
      local why, vcpu, value = guest:run { timeout = 20, reboot = false }
      assert.same({ "stopped", "reset" }, { why, value })
      contains("reset at rip ", select(2, guest:ending(why, vcpu, value)))
    end)

    it("resets itself until its time is up", function()
      local guest <close> = new { image = resets }
      assert.equal("timeout", (guest:run { timeout = 0.5 }))
    end)

    it("spins until its time is up, and may go on", function()
      local guest <close> = new { image = images.multiboot { code = "\xeb\xfe" } }
      for _ = 1, 2 do
        local why, vcpu = guest:run { timeout = 0.3 }
        assert.same({ "timeout", 0 }, { why, vcpu.id })
      end
      local status, line, screen = guest:ending("timeout", guest.machine.vcpus[1])
      assert.same({ 1 }, { status, line })
      contains("its time was up", screen)
    end)

    it("has ended when all of it sleeps for good", function()
      local _, status, line = run { image = images.multiboot { code = "\xfa\xf4" } } -- cli; hlt
      assert.equal(0, status)
      contains("hlt at rip ", line)
    end)
  end)

  it("is left soon after its time, when a handler does not come back", function()
    local guest <close> = new { image = "\xb0\x2a\xe6\xe9\xf4", mode = "long" } -- ...; out
    guest.console.output = function() repeat until false end
    contains("handler still running", support.error_of(guest.run, guest, { timeout = 0.5 }))
  end)

  it("that prints nothing is noticed, once", function()
    local guest <close> = new { image = "\xeb\xfe" } -- jmp .
    support.blames("seconds: number expected, got nil", guest.when_silent, guest)
    support.blames("handler: function expected, got nil", guest.when_silent, guest, 1)
    local count = 0
    guest:when_silent(0.2, function()
      count = count + 1
      guest.machine.vcpus[1]:stop()
    end)
    guest:when_silent(0.2, function() error "it is detached" end):close()
    assert.equal("stopped", (guest:run(LIMITS)))
    assert.equal("timeout", (guest:run { timeout = 0.3 }))
    assert.equal(1, count)
  end)

  it("is not awaited for a time that is none, nor once it is closed", function()
    local guest <close> = new { image = "\xf4" }
    for _, seconds in ipairs { -1, -math.huge, 0 / 0, math.mininteger } do
      support.blames("is not a time from now on", guest.when_silent, guest, seconds, print)
    end
    guest:close()
    support.blames("VM is closed", guest.when_silent, guest, 1, print)
  end)

  it("that has printed before is not silent, nor one that has ended", function()
    for _, code in ipairs { "\xe6\xe9\xeb\xfe", "\xf4" } do -- out %al, $0xe9; jmp . and hlt
      local guest <close> = new { image = code }
      guest:when_silent(1, function() error "it is not" end)
      guest:run { timeout = 1.3 }
    end
  end)

  it("may end with a status of its own", function()
    -- mov $3, %al; out %al, $0xf4
    assert.same({ "", 7 }, { run { image = "\xb0\x03\xe6\xf4", mode = "long" } })
  end)

  it("of ring 3 exits as on Linux", function()
    -- mov $5, %edi; mov $60, %eax; syscall
    assert.same({ "", 5 },
      { run { image = "\xbf\x05\x00\x00\x00\xb8\x3c\x00\x00\x00\x0f\x05", mode = "user" } })
  end)

  it("leaves a screen when it dies", function()
    local _, status, line, screen = run { image = "\xe6\x42", mode = "long" } -- out %al, $0x42
    assert.same({ 1 }, { status, line })
    contains("io_out at port 0x42", screen)
  end)

  it("leaves a line with the screen where the BIOS has not got what it asks for", function()
    local _, status, line, screen = run { image = "\x0f\x0b" } -- ud2
    assert.equal(1, status)
    contains("INT 0x6 (#UD) has no handler", line)
    contains("real mode", screen)
  end)
end)

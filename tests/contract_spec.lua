-- The contract of KVM's own test guests: ckvm.testbed and scripts/flat.lua run guests that keep to
-- it, which are in tests/guests, and say how each has ended.

local ckvm = require "ckvm"
local images = require "boot_images"
local support = require "support"
local testbed = require "ckvm.testbed"

local blames, contains = support.blames, support.contains

local top = debug.getinfo(1, "S").source:match("^@(.*)tests/[^/]*$")
local directory -- of one test

local function write(name, bytes)
  local path = directory .. "/" .. name
  local file <close> = assert(io.open(path, "wb"))
  file:write(bytes)
  return path
end

local function flat(...)
  local text = ("return assert(loadfile(%q))(...)"):format(top .. "scripts/flat.lua")
  return support.run(text, { after = { ... } })
end

-- Runs a command; its words are quoted.
local function shell(...)
  local words = {}
  for i, word in ipairs { ... } do words[i] = support.quote(word) end
  local pipe = io.popen(table.concat(words, " ") .. " 2>&1")
  local output = pipe:read("a")
  return pipe:close(), output
end

local function must(...)
  local done, output = shell(...)
  if not done then error(output, 0) end
end

local has_assembler -- once it is known

local function need_assembler()
  if has_assembler == nil then
    has_assembler = shell("as", "--64", "-o", directory .. "/none.o", "/dev/null") or false
  end
  if not has_assembler then support.skip("no assembler for x86") end
end

-- Assembles a guest, linked to the address, with symbols that are defined, `{ "NAME=1" }`; returns
-- its path. An image of 32 bits is made of 64-bit objects, which may hold code of any mode.
local function assemble(source, at, symbols)
  local object, image = directory .. "/guest.o", directory .. "/guest.flat"
  local options = {}
  for _, symbol in ipairs(symbols or {}) do
    table.insert(options, "--defsym")
    table.insert(options, symbol)
  end
  table.insert(options, source)
  must("as", "--64", "-I", top .. "tests/guests", "-o", object, table.unpack(options))
  must("ld", "-m", "elf_x86_64", "--oformat", "elf32-i386", "-N", "-e", "_start", "-Ttext",
    at or "0x400000", "-o", image, object)
  return image
end

local function guest(name, at, symbols)
  return assemble(top .. "tests/guests/" .. name .. ".S", at, symbols)
end

-- A guest of a few lines.
local function small(main)
  return assemble(write("small.S", '.include "start.S"\nmain:\n' .. main .. "\n"))
end

local function expect(status, output, errors, ...)
  local got_status, got_output, got_errors = flat("--timeout", "20", ...)
  assert.equal(errors, got_errors)
  assert.equal(output, got_output)
  assert.equal(status, got_status)
end

local function passes(...)
  expect(1, "PASS\n", "", ...)
end

-- What only some CPUs have, the guest skips.
local function passes_or_skips(image)
  local status, output, errors = flat("--timeout", "20", image)
  if status == 77 then support.skip((output:match("SKIP: ([^\n]*)"))) end
  assert.same({ 1, "PASS\n", "" }, { status, output, errors })
end

local function is_native(mode)
  return ckvm.probe { only = { "modes." .. mode .. ".speed" } }.modes[mode].speed == "native"
end

describe("scripts/flat.lua", function()
  before_each(function()
    support.need_kvm()
    directory = support.make_directory()
  end)

  after_each(function() directory = support.remove_directory(directory) end)

  describe("runs a guest", function()
    before_each(need_assembler)

    it("that finds what Multiboot and a BIOS leave", function()
      expect(1, [[
CR0 11
CS 8
DS 10
SS 10
IF 0
KiB fc00
guest.flat one two=2
modules 1
NR_CPUS=2
MEMSIZE=64
TEST_DEVICE=1
BOOTLOADER=0
PASS
]], "", "--cpus", "2", "--memory", "64", "--append", "one two=2", guest "contract")
    end)

    it("that uses every part of the test device", function()
      passes(guest "device")
    end)

    it("that is interrupted by edges at the IOAPIC", function()
      passes(guest "ioapic")
    end)

    it("that starts another CPU, which it interrupts and is interrupted by", function()
      passes("--cpus", "2", guest "ipi")
    end)

    it("that does INS and OUTS in real mode", function()
      passes(guest("strings", "0x8000"))
    end)

    it("that provokes exceptions in protected mode", function()
      passes(guest "exceptions")
    end)

    it("that provokes all exceptions in protected mode", function()
      if not is_native "protected" then support.skip("protected mode is emulated") end
      passes(guest("exceptions", nil, { "NATIVE=1" }))
    end)

    it("that provokes exceptions in ring 3", function()
      passes(guest("ring3", nil, { "ALIGNMENT=0", "SSE=0" }))
    end)

    it("that provokes #AC in ring 3", function()
      passes_or_skips(guest("ring3", nil, { "ALIGNMENT=1", "SSE=0" }))
    end)

    it("that provokes #XM in ring 3", function()
      passes_or_skips(guest("ring3", nil, { "ALIGNMENT=0", "SSE=1" }))
    end)

    it("that goes on after resets which it has prepared", function()
      local image <const> = guest("reset", "0x8000")
      expect(1, "", "", image)
      expect(1, "", "", "--cpus", "2", image)
    end)
  end)

  describe("says how a guest has ended:", function()
    before_each(need_assembler)

    it("with a code", function()
      expect(3, "FAIL: unhandled exception \n", "", small "mov $unexpected, %esi; jmp fail")
      expect(77, "", "", small "mov $38, %eax; out %eax, $0xf4; hlt")
      expect(0xff, "", "", small "mov $-1, %eax; out %eax, $0xf4; hlt")
    end)

    it("with an exception that it does not expect", function()
      local status, output = flat("--timeout", "20", small "ud2")
      assert.equal(127, status)
      contains("unhandled exception 6 at 40", output)
    end)

    it("switched off", function()
      expect(0, "", "", small [[
        mov $word, %esi; mov $9, %ecx; mov $0x8900, %edx; rep outsb; hlt
        .section .rodata
        word: .ascii "SShutdown"]])
      expect(0, "", "", small "mov $0x2000, %eax; mov $0xb004, %edx; out %ax, (%dx); hlt")
    end)

    it("by a triple fault", function()
      local status, _, errors = flat("--timeout", "20", small "lidt none; ud2\n.bss\nnone: .skip 6")
      assert.equal(4, status)
      contains("guest.flat: triple fault, vCPU 0 at 0x", errors)
    end)

    it("not at all", function()
      local status, _, errors = flat("--timeout", "1", "--cpus", "2", small "jmp .")
      assert.equal(4, status)
      contains("guest.flat: no end in time, vCPU 0 at 0x40", errors)
      contains(", vCPU 1 at 0x", errors)
    end)

    it("by a reset that it has not prepared, or resets without end", function()
      local path = small "mov $0xfe, %al; out %al, $0x64; hlt"
      expect(4, "", ("flat.lua: %s: the guest resets itself\n"):format(path), path)
      local again <const> = "mov $0xfe, %al; out %al, $0x64; hlt"
      local image = assemble(write("resets.S", ([[
        .include "start.S"
        main: mov $0x0f, %%al; out %%al, $0x70; mov $0x0a, %%al; out %%al, $0x71
        movl $again, 0x467; %s
        .code16
        again: %s]]):format(again, again)), "0x8000")
      local status, _, errors = flat("--timeout", "1", image)
      assert.equal(4, status)
      contains("no end in time", errors)
    end)
  end)

  local USAGE <const> =
    "usage: flat.lua [--cpus n] [--memory MiB] [--append args] [--timeout s] FILE"

  it("tells its options", function()
    local status, output, errors = flat("--cpus", "2", "--help")
    assert.same({ 0, "" }, { status, errors })
    assert.equal(USAGE .. "\n", output)
  end)

  it("refuses what it cannot start, and says why", function()
    local function refuses(line, ...)
      expect(2, "", "flat.lua: " .. line .. "\n", ...)
    end
    local path <const> = write("x.flat", images.multiboot { code = "\xf4" })
    refuses("one image is expected behind the options, not 0")
    refuses("one image is expected behind the options, not 2", path, path)
    refuses("unknown option '--smp'", "--smp", "2", path)
    local number <const> = " takes a whole number; " .. USAGE
    refuses("--cpus" .. number, "--cpus")
    refuses("--cpus" .. number, "--cpus", "1.5", path)
    refuses("--memory" .. number, "--memory", "-1", path)
    refuses("--timeout" .. number, "--timeout", "100000000", path)
    refuses("--append takes a text; " .. USAGE, "--append")
    refuses(path .. ": cpus: 0 is less than 1", "--cpus", "0", path)
    refuses(path .. ": memory: 0x0 is not a number of whole pages between 1 MiB and 256 GiB",
      "--memory", "0", path)
    refuses("/none: No such file or directory", "/none")
    local empty <const> = write("empty.flat", "")
    refuses(empty .. ": the file is empty", empty)
    refuses(directory .. ": Is a directory", directory)
    refuses("/dev/zero: has more than 16 MiB", "/dev/zero")
    local zeros <const> = write("zeros.flat", ("\0"):rep(64))
    refuses(zeros .. ": image: is no image of Multiboot 1, as test guests are", zeros)
    local header <const> = string.pack("<I4I4I4", 0x1badb002, 0, -0x1badb002 & 0xffffffff)
    refuses(("%s: x.flat: header at 0x0: flags 0x0: bit 16 is clear, and the image is no ELF file")
      :format(path), write("x.flat", header))
  end)
end)

describe("ckvm.testbed", function()
  it("refuses options that it does not know, and wrong ones", function()
    blames("testbed: unknown option 'smp'", testbed.new, { image = "", smp = 2 })
    blames("testbed: image: string expected, got nil", testbed.new, {})
    local function is_none(image, words)
      local message = support.error_of(function() return (testbed.new { image = image }) end)
      assert.equal("image: is no image of Multiboot 1, as test guests are" .. words,
        message:match "contract_spec.lua:%d+: (.*)")
    end
    is_none(images.sector "\xf4", "; it is of the format 'sector'")
    is_none("\x1f\x8b\x08", "; it is compressed with gzip")
    is_none(("A line.\n"):rep(9), "; it is a text file")
    is_none("\xf4", "")
    support.need_kvm()
    local image <const> = images.multiboot { code = "\xf4" }
    blames("memory: 0x1 is not a number", testbed.new, { image = image, memory = 1 })
    blames("memory, which ends at 0x100000", testbed.new, { image = image, memory = 1 << 20 })
    blames("cpus: 0 is less", testbed.new, { image = image, cpus = 0 })
    local bed <close> = testbed.new { image = image }
    blames("run: timeout: number expected, got string", bed.run, bed, { timeout = "1" })
  end)

  it("hands on what the guest sends, and its code", function()
    support.need_kvm()
    local sent = {}
    -- mov $0x3f8, %edx; mov $0x41, %al; out %al, (%dx); mov $2, %eax; out %eax, $0xf4
    local bed <close> = testbed.new {
      image = images.multiboot {
        code = "\xba\xf8\x03\0\0\xb0\x41\xee\xb8\2\0\0\0\xe7\xf4",
      },
      write = function(bytes) table.insert(sent, bytes) end,
    }
    assert.equal(5, (bed:run(support.LIMITS)))
    assert.same({ "A" }, sent)
  end)

  it("leaves what a handler raises as it is, and can be closed twice", function()
    support.need_kvm()
    local raised <const> = {}
    local bed <close> = testbed.new {
      -- mov $0x3f8, %edx; out %al, (%dx)
      image = images.multiboot { code = "\xba\xf8\x03\0\0\xee" },
      write = function() error(raised) end,
    }
    assert.equal(raised, support.error_of(bed.run, bed, support.LIMITS))
    bed:close()
    contains("vCPU is closed", support.error_of(bed.run, bed))
  end)
end)

-- The first sector of a disk, for ckvm.boot, as a BIOS starts it: 512 bytes at 0x7c00.

local foreign = require "ckvm.boot.foreign"

local sector = {}

local SIZE <const>, START <const> = 512, 0x7c00
local SIGNATURE <const>, AT <const> = 0xaa55, 510
local NOT_BOOTABLE <const> = "is not bootable: signature at 0x%x: 0x%x is not 0x%x"
local FIRST_DISK <const> = 0x80 -- as DL has it

function sector.detect(bytes)
  return #bytes >= SIZE and string.unpack("<I2", bytes, AT + 1) == SIGNATURE
end

function sector.load(image, ram)
  local found = image:unpack("<I2", AT, "signature")
  if found ~= SIGNATURE then
    image:fail("%s", foreign.describe(image.bytes)
      or NOT_BOOTABLE:format(AT, found, SIGNATURE))
  elseif image.bytes:sub(0x203, 0x206) == "HdrS" then
    image:fail("header at 0x202: a bzImage is not started by its sector")
  end
  ram:load("sector", START, SIZE, 0, SIZE, { "address", "size" })
  ram:settle()
  return { mode = "real", rip = START, regs = { rsp = START, rdx = FIRST_DISK } }
end

return sector

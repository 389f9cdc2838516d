-- The firmware of a PC, for ckvm.boot: an image that ends at 4 GiB, where a CPU begins after a
-- reset, 16 bytes before the end. Its last 128 KiB are below 1 MiB, too, for real mode: as RAM,
-- into which firmware that is used to shadow itself may write.

local x86 = require "ckvm.x86"

local bios = {}

local UNIT <const>, MOST <const> = 64 << 10, 16 << 20
local VECTOR <const> = 16 -- bytes before the end
local JUMPS <const> = { [0xe9] = true, [0xea] = true, [0xeb] = true } -- near, far, short
local END <const>, LOW_END <const>, LOW_SIZE <const> = 1 << 32, 1 << 20, 128 << 10

-- What a CPU has after a reset, where that is not what ckvm.x86.enter has for real mode.
local SREGS <const> = {
  cr0 = x86.cr0.cd | x86.cr0.nw | x86.cr0.et,
  cs = x86.segment("code", { selector = 0xf000, base = 0xffff0000, limit = 0xffff, bits = 16 }),
  gdt = { base = 0, limit = 0xffff }, idt = { base = 0, limit = 0xffff },
}
local RIP <const> = 0xfff0

-- By which KVM would go on writing the time into memory that the next start has for other things.
local KVM_CLOCK <const> = { [0x4b564d01] = 0 }

local function is_size(size)
  return size >= UNIT and size <= MOST and size % UNIT == 0
end

function bios.detect(bytes)
  return is_size(#bytes) and JUMPS[bytes:byte(#bytes - VECTOR + 1)] or false
end

-- Read-only memory, which is there already when the image is loaded anew.
local function put(vm, gpa, bytes)
  if not pcall(vm.read, vm, gpa, 1) then
    vm:add_memory { gpa = gpa, size = #bytes, readonly = true }
  end
  vm:write(gpa, bytes)
end

function bios.load(image, ram)
  local bytes, size = image.bytes, #image.bytes
  if not is_size(size) then
    image:fail("size 0x%x: is not a multiple of 0x%x up to 0x%x", size, UNIT, MOST)
  end
  local low, gpa = math.min(size, LOW_SIZE), END - size
  ram:load("end of the image", LOW_END - low, low, size - low, low, { "address", "size" })
  ram:settle()
  ram:put("image", gpa, size, function(vm) put(vm, gpa, bytes) end)
  return { mode = "real", rip = RIP, regs = {}, sregs = SREGS, msrs = KVM_CLOCK }
end

return bios

-- Starts a flat binary in 16-bit real mode or 64-bit long mode, with a serial port at 0x3f8 on
-- standard output, and says how the guest ended: exit status 0 after HLT, 1 after anything else.
--
--   ckvm-lua scripts/boot.lua [--mode real|long] [--at address] [--memory size] [--rom] [image]

local ckvm = require "ckvm"
local x86 = require "ckvm.x86"

local USAGE <const> = [[
Usage: ckvm-lua boot.lua [options] [image]
Starts a flat binary, or a small built-in one, with a serial port at 0x3f8.

  --mode real|long  16-bit code in segment 0 (the default), or 64-bit code in
                    ring 0 with the first 4 GiB, or all memory, mapped to itself
  --at address      where the image is loaded and started: 0x7c00 in real mode,
                    0x100000 in long mode
  --memory size     16M; sizes and addresses are numbers, as 0x10000 or 64K
  --rom             the pages that the image is in are read-only for the guest
  --help
]]

local PAGE <const> = 0x1000
local SERIAL <const> = 0x3f8
local VECTOR_TARGET <const> = 0x400 -- in real mode: behind the vectors, a HLT for all of them
local MOST_MEMORY <const> = 512 << 30
local limits <const> = { real = "the memory ends", long = "the page tables begin" }
local starts <const> = { real = 0x7c00, long = 0x100000 }

-- A line on standard error, below what the guest has printed.
local function report(...)
  io.stderr:write("boot.lua: ", string.format(...), "\n")
end

local function quit(status, ...)
  report(...)
  os.exit(status, true)
end

-- The command line -----------------------------------------------------------

local function parse_size(name, text)
  local digits, unit = text:match("^(%w-)([KMG]?)$")
  local shift = ({ K = 10, M = 20, G = 30 })[unit] or 0
  local is_number = digits and #digits <= 16 and (digits:find("^%d+$") or digits:find("^0[xX]%x+$"))
  local number = is_number and tonumber(digits)
  if not number or number > 1 << 52 - shift then
    quit(2, "%s: '%s' is not a size", name, text)
  end
  return number << shift
end

local function parse_mode(name, text)
  if not starts[text] then quit(2, "%s: '%s' is neither real nor long", name, text) end
  return text
end

local takes = { ["--mode"] = parse_mode, ["--at"] = parse_size, ["--memory"] = parse_size }

local function parse(args)
  local options, i = { ["--mode"] = "real", ["--memory"] = 16 << 20 }, 1
  while i <= #args do
    local name, value = args[i]:match("^(%-%-%a+)=(.*)$")
    name = name or args[i]
    if takes[name] then
      if not value then
        i = i + 1
        value = args[i] or quit(2, "%s takes a value; see --help", name)
      end
      options[name] = takes[name](name, value)
    elseif args[i] == "--help" then
      io.write(USAGE)
      os.exit(0, true)
    elseif args[i] == "--rom" then
      options.rom = true
    elseif args[i]:find("^%-") then
      quit(2, "unknown option '%s'; see --help", args[i])
    elseif options.image then
      quit(2, "one image, not both '%s' and '%s'; see --help", options.image, args[i])
    else
      options.image = args[i]
    end
    i = i + 1
  end
  return options["--mode"], options["--at"] or starts[options["--mode"]], options["--memory"],
    options.rom, options.image
end

-- The image ------------------------------------------------------------------

-- Prints its message and halts, wherever it is loaded.
local function built_in(mode)
  local message = ("Hello from %s mode.\r\n\0"):format(mode)
  local call = "\xe8" .. string.pack(mode == "real" and "<I2" or "<I4", #message)
  return call .. message                              -- call over the message
    .. "\x5e"                                         -- pop %si: its address
    .. (mode == "real" and "" or "\x66") .. "\xba" .. string.pack("<I2", SERIAL) -- mov $0x3f8, %dx
    .. "\xac"                                         -- next: lodsb
    .. "\x84\xc0"                                     -- test %al, %al
    .. "\x74\x03"                                     -- jz done
    .. "\xee"                                         -- out %al, (%dx)
    .. "\xeb\xf8"                                     -- jmp next
    .. "\xf4"                                         -- done: hlt
end

-- No more than `room` bytes and the one that is too many: the file may have no end.
local function read_image(path, room)
  local file, message = io.open(path, "rb")
  if not file then quit(1, "%s", message) end
  local pieces, left = {}, room + 1
  while left > 0 do
    local piece, why = file:read(math.min(left, 1 << 20))
    if why then quit(1, "%s: %s", path, why) end
    if not piece then break end
    table.insert(pieces, piece)
    left = left - #piece
  end
  if left == room + 1 then quit(1, "%s: the file is empty", path) end
  return table.concat(pieces), file:close()
end

-- The guest ------------------------------------------------------------------

-- The part of a 16550 UART that a guest needs to print: it is always ready to transmit.
local serial = { at_line_start = true, [2] = 0x01, [5] = 0x60, [6] = 0xb0 }

function serial:read(offset)
  return self[offset] or 0
end

function serial:write(offset, value)
  local divisor_latch = (self[3] or 0) & 0x80 ~= 0
  if offset == 0 and not divisor_latch then
    self.at_line_start = value & 0xff == 10
    io.write(string.char(value & 0xff))
  elseif offset == 3 then
    self[3] = value & 0xff
  end
end

-- Memory from 0 on, with the pages from `first` to `last` read-only; nil for none.
local function add_memory(vm, size, first, last)
  local slots = first and { { 0, first }, { first, last, true }, { last, size } } or { { 0, size } }
  for _, slot in ipairs(slots) do
    local from, to, readonly = table.unpack(slot)
    if to > from then vm:add_memory { gpa = from, size = to - from, readonly = readonly } end
  end
end

local function enter_real(vm, vcpu, at)
  vm:write(0, string.pack("<I4", VECTOR_TARGET):rep(256) .. "\xf4")
  x86.enter(vcpu, "real", { rip = at, rsp = at })
end

local function enter_long(vm, vcpu, at, tables, span)
  x86.enter(vcpu, "long", { rip = at, rsp = tables, cr3 = x86.identity_map(vm, tables, span) })
end

-- Where the room for the image ends: at the page tables, which are last in memory, or its end.
local function find_room(mode, at, size, span)
  if size == 0 or size % PAGE ~= 0 or size > MOST_MEMORY then
    quit(2, "--memory: 0x%x is not a number of whole 4K pages, up to 512G", size)
  elseif mode == "real" and at > 0xffff then
    quit(2, "--at: 0x%x is beyond 0xffff, where segment 0 of real mode ends", at)
  end
  local tables = mode == "long" and x86.identity_map_size(span) or 0
  if size <= tables then
    quit(2, "--memory: the page tables alone take 0x%x of the 0x%x bytes", tables, size)
  elseif at >= size - tables then
    quit(2, "--at: 0x%x is beyond 0x%x, where %s", at, size - tables, limits[mode])
  end
  return size - tables
end

-- Returns the guest, and a function that tells whether memory is read-only.
local function build(mode, at, size, rom, path)
  local span = math.max(size, 4 << 30)
  local room = find_room(mode, at, size, span)
  local image = path and read_image(path, room - at) or built_in(mode)
  if #image > room - at then
    quit(1, "%s: does not fit in the 0x%x bytes from 0x%x to 0x%x, where %s",
      path or "the built-in image", room - at, at, room, limits[mode])
  end

  local first, last = at // PAGE * PAGE, (at + #image + PAGE - 1) // PAGE * PAGE
  local vm = ckvm.open():create_vm()
  add_memory(vm, size, rom and first, last)
  local vcpu = vm:create_vcpu(0)
  if mode == "real" then enter_real(vm, vcpu, at) else enter_long(vm, vcpu, at, room, span) end
  vm:write(at, image)
  vm:attach_io { port = SERIAL, count = 8, device = serial }
  return vm, vcpu, function(gpa) return rom and gpa >= first and gpa < last end
end

-- The end --------------------------------------------------------------------

local SUBERRORS <const> = {
  "KVM cannot emulate the instruction", "an exception came up while another was delivered",
  "an event could not be delivered", "an exit that KVM does not know",
}

-- The instruction, or that there is none. The address is right as long as nothing is remapped.
local function bytes_at(vm, address)
  local found, bytes = pcall(vm.read, vm, address, 8)
  if not found then return "no memory is there" end
  return "bytes there:" .. bytes:gsub(".", function(byte) return (" %02x"):format(byte:byte()) end)
end

-- What the guest read or wrote: one integer, or the elements of a string instruction.
local function access(exit, place, size, problem)
  local data, what = exit.data, ""
  if type(data) == "string" then
    size = #data
  elseif exit.reason == "io_out" or exit.reason == "mmio_write" then
    what = (": 0x%x"):format(data)
  end
  local unit = size == 1 and "byte" or "bytes"
  return ("%s at %s (%d %s%s), %s,"):format(exit.reason, place, size, unit, what, problem)
end

local function describe(exit, is_rom)
  local why = exit.reason
  if why == "hlt" then
    return why
  elseif why == "shutdown" then
    return "shutdown: triple fault, an exception without a handler"
  elseif why == "internal_error" then
    return ("internal_error %d: %s"):format(exit.suberror, SUBERRORS[exit.suberror] or "unknown")
  elseif why == "fail_entry" then
    return ("fail_entry: the CPU refuses this state, reason 0x%x"):format(
      exit.hardware_entry_failure_reason)
  elseif why == "io_in" or why == "io_out" then
    return access(exit, ("port 0x%x"):format(exit.port), exit.size, "which nobody answers")
  elseif why == "mmio_read" or why == "mmio_write" then
    return access(exit, ("0x%x"):format(exit.phys_addr), exit.len,
      is_rom(exit.phys_addr) and "which is read-only" or "where no memory is")
  end
  return "exit " .. why
end

-- Interrupted by Ctrl-C: where was it? Any other error goes on.
local function run(vcpu)
  local returned, why = pcall(vcpu.run, vcpu)
  if returned then return true end
  if type(why) == "string" and why:find("interrupted!", 1, true) then return false end
  error(why, 0)
end

-- In real mode all vectors lead to one HLT. Returns where the guest was before, if it is there.
local function lost_at(vm, vcpu, mode)
  local regs = vcpu.regs
  if mode == "real" and regs.rip == VECTOR_TARGET + 1 then
    return string.unpack("<I2I2", vm:read(vcpu.sregs.ss.base + (regs.rsp & 0xffff), 4))
  end
end

local function finish(vm, vcpu, mode, ended, is_rom)
  local rip, exits = vcpu.regs.rip, vcpu.stats.total
  local place = ("at rip 0x%x after %d exit%s"):format(rip, exits, exits == 1 and "" or "s")
  local bytes = bytes_at(vm, vcpu.sregs.cs.base + rip)
  if not serial.at_line_start then io.stderr:write("\n") end
  if not ended then quit(130, "interrupted %s; %s", place, bytes) end

  local why = vcpu.exit.reason
  local ip, cs = lost_at(vm, vcpu, mode)
  if why == "hlt" and ip then
    quit(1, "an INT or exception without a handler at 0x%x:0x%x; %s", cs, ip,
      bytes_at(vm, cs * 16 + ip))
  elseif why == "shutdown" or why == "internal_error" then
    place = place .. "; " .. bytes
  end
  quit(why == "hlt" and 0 or 1, "%s %s", describe(vcpu.exit, is_rom), place)
end

local function main(...)
  io.stdout:setvbuf("no")
  local mode, at, size, rom, path = parse { ... }
  local vm, vcpu, is_rom = build(mode, at, size, rom, path)
  finish(vm, vcpu, mode, run(vcpu), is_rom)
end

-- What the kernel refuses is one line; a mistake in this file has a traceback.
local done, message = xpcall(main, function(message)
  return type(message) == "string" and debug.traceback(message, 2) or message
end, ...)
if not done then
  if type(message) == "table" then
    quit(1, "%s: %s: %s", message.call, message.code, message.message)
  end
  quit(1, "%s", message)
end

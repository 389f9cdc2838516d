-- Boots what it is given: Linux, ELF and Multiboot kernels, a PC's firmware, disks, and bare code.
-- The serial port is the terminal. A guest that dies leaves one screen that says why.
--
--   ckvm-lua scripts/boot.lua [options] [image]

local boot = require "ckvm.boot"
local ckvm = require "ckvm"
local console = require "ckvm.console"
local disk = require "ckvm.disk"
local launch = require "ckvm.launch"
local trace = require "ckvm.trace"

local DEAD <const>, WRONG_USE <const>, INTERRUPTED <const> = 1, 2, 130 -- status

-- A line on standard error, below what the guest has printed.
local function say(...)
  io.stderr:write("boot.lua: ", string.format(...), "\n")
end

local function quit(status, ...)
  say(...)
  os.exit(status, true)
end

-- The command line -----------------------------------------------------------

local has_argparse, argparse = pcall(require, "argparse")
if not has_argparse then
  quit(WRONG_USE, "argparse for Lua %s is missing (Debian: lua-argparse)", _VERSION:match("%d.*"))
end

-- For an option: what makes a number of its text, or names both.
local function size_of(name, text)
  local digits, unit = text:match("^(%w-)([KMG]?)$")
  local shift = ({ K = 10, M = 20, G = 30 })[unit] or 0
  local is_number = digits and #digits <= 16 and (digits:find("^%d+$") or digits:find("^0[xX]%x+$"))
  local number = is_number and tonumber(digits)
  if not number or number > 1 << 52 - shift then
    return nil, ("%s: '%s' is not a size, as 0x10000 or 64K"):format(name, text)
  end
  return number << shift
end

-- What a machine takes.
local PAGE <const>, LEAST_MEMORY <const>, MOST_MEMORY <const> = 0x1000, 1 << 20, 256 << 30
local MOST_CPUS <const> = 254 -- that a PC's tables have room for

local function memory_of(name, text)
  local size, message = size_of(name, text)
  if not size then return nil, message end
  if size < LEAST_MEMORY or size > MOST_MEMORY or size % PAGE ~= 0 then
    return nil, ("%s: '%s' is not a number of whole pages of 4K between 1M and 256G"):format(name,
      text)
  end
  return size
end

local function count_of(name, text)
  local number = #text <= 3 and text:find("^%d+$") and math.tointeger(text)
  if not number or number < 1 or number > MOST_CPUS then
    return nil, ("%s: '%s' is not a count from 1 to %d"):format(name, text, MOST_CPUS)
  end
  return number
end

local function one_of(names, name, text)
  for _, known in ipairs(names) do
    if text == known then return text end
  end
  return nil, ("%s: '%s' is none of %s"):format(name, text, table.concat(names, ", "))
end

local MODES <const> = { "real", "protected", "long", "user" }

local function mode_of(name, text) return one_of(MODES, name, text) end

local function format_of(name, text) return one_of(boot.formats(), name, text) end

local function kinds_of(name, text)
  for kind in (text .. ","):gmatch "%s*(.-)%s*," do
    local known, message = one_of(trace.kinds(), name, kind)
    if not known then return nil, message end
  end
  return text
end

local function place_of(name, text)
  if text ~= "" then return text end
  return nil, ("%s: '' is none of terminal, pty and a file's name"):format(name)
end

local function with(convert, name)
  return function(text) return convert(name, text) end
end

-- Of argparse's message, whose second line is a question.
local function in_one_line(message)
  message = message:gsub("\n(%u)", function(first) return "; " .. first:lower() end)
  return message .. (message:find("%?$") and " See --help" or "; see --help")
end

-- argparse takes what begins with a minus for an option: a number is its option's value.
local function with_numbers(args)
  local joined = {}
  for _, arg in ipairs(args) do
    local last <const> = joined[#joined]
    if arg:find "^%-%d" and last and last:find "^%-%-[^=]+$" then
      joined[#joined] = last .. "=" .. arg
    else
      table.insert(joined, arg)
    end
  end
  return joined
end

local function parse(args)
  local parser = argparse("ckvm-lua boot.lua", "Boots Linux (bzImage, vmlinux), ELF and Multiboot "
    .. "kernels, those that start in real mode (.lkrn), a disk, a PC's firmware, or bare code; "
    .. "without any of these, a small program of its own.")
    :usage_max_width(80):help_max_width(80)
  parser:argument("image", "the file to boot; a disk is booted from a copy, see --disk"):args "?"
  parser:option("--cpus", "how many processors"):argname "N":convert(with(count_of, "--cpus"))
    :default "1"
  parser:option("--memory", "how much memory"):argname "SIZE"
    :convert(with(memory_of, "--memory")):default "256M"
  parser:option("--initrd", "first files of Linux, or a module of Multiboot"):argname "FILE"
  parser:option("--append", "the kernel's command line; Linux has console=ttyS0 unless told")
    :argname "TEXT"
  parser:option("--bios", "a PC's firmware, which boots the disk"):argname "FILE"
  parser:option("--disk", "a disk's image, which is read and written"):argname "FILE"
  parser:option("--console", "terminal, pty, or the file that output goes to")
    :argname "WHERE":convert(with(place_of, "--console")):default "terminal"
  parser:option("--trace", "print exits: io, mmio, ..., with commas"):argname "KINDS"
    :convert(with(kinds_of, "--trace"))
  parser:option("--format", "the image's, where it is taken for another: linux16, multiboot, ...")
    :argname "NAME":convert(with(format_of, "--format"))
  parser:option("--mode", "real, protected, long or user: the image is bare code for that")
    :argname "MODE":convert(with(mode_of, "--mode"))
  parser:option("--at", "where bare code is loaded and started"):argname "ADDRESS"
    :convert(with(size_of, "--at"))
  parser:flag("--no-reboot", "a guest that resets itself has ended")
  parser:add_help(true)
  local parsed, options = parser:pparse(with_numbers(args))
  if not parsed then quit(WRONG_USE, "%s", in_one_line(options)) end
  return options
end

-- Files ----------------------------------------------------------------------

-- A line on the terminal for what takes a while. Returns whether there is one.
local function progress(path, size, since, done)
  if ckvm.now() - since < 0.3 or not os.execute "test -t 2" then return false end
  local share = size and size > 0 and (" %d %%"):format(100 * done // size) or ""
  io.stderr:write(("\rboot.lua: loading %s, %d MiB%s\27[K"):format(path, done >> 20, share))
  return true
end

-- No more than `most` bytes and the one that is too many: the file may have no end.
local function read_file(path, most)
  local file, message = io.open(path, "rb")
  if not file then quit(DEAD, "%s", message) end
  local size, since, pieces, left, shown = file:seek("end"), ckvm.now(), {}, most + 1, false
  file:seek("set")
  while left > 0 do
    local piece, why = file:read(math.min(left, 4 << 20))
    if why then quit(DEAD, "%s: %s", path, why) end
    if not piece then break end
    table.insert(pieces, piece)
    left = left - #piece
    shown = progress(path, size, since, most + 1 - left) or shown
  end
  file:close()
  if shown then io.stderr:write("\r\27[K") end
  if left == most + 1 then
    quit(DEAD, "%s: the file is empty", path)
  elseif left == 0 then
    quit(DEAD, "%s: does not fit in the 0x%x bytes of memory", path, most)
  end
  return table.concat(pieces)
end

-- Prints its message and ends, wherever it is loaded.
local function built_in(mode)
  local message = ("Hello from %s mode.\r\n\0"):format(mode)
  local is_16 <const> = mode == "real"
  local done <const> = mode == "user" and "\x31\xff\xb0\x3c\x0f\x05" -- exit(0) of Linux
    or "\xf4"                                            -- hlt
  return "\xe8" .. string.pack(is_16 and "<I2" or "<I4", #message) .. message -- call over it
    .. "\x5e"                                             -- pop %si: its address
    .. (is_16 and "" or "\x66") .. "\xba\xf8\x03"         -- mov $0x3f8, %dx
    .. "\xac\x84\xc0\x74\x03"                            -- next: lodsb; test %al, %al; jz done
    .. "\xee\xeb\xf8" .. done                            -- out %al, (%dx); jmp next; done:
end

-- The guest ------------------------------------------------------------------

local UNWRITABLE <const> = { [13] = true, [26] = true, [30] = true } -- EACCES, ETXTBSY, EROFS

-- What is read and written is the file; a disk that is the image is booted from a copy.
local function open_disk(path)
  local file, message, code = io.open(path, "r+b")
  if not file then
    quit(DEAD, "%s%s", message, UNWRITABLE[code] and "; --disk writes to the file, while one that "
      .. "is given as the image is booted from a copy" or "")
  end
  file:close()
  return (disk.open(path)) -- no tail call: errors blame this line
end

local function trace_of(kinds)
  return { kinds = kinds, output = function(line) io.stderr:write(line, "\n") end }
end

local NAMES <const> = { cmdline = "append" } -- of options that have others here

-- What to launch, of the options.
local function prepare(options)
  local path <const> = options.bios or options.image
  if options.bios and options.image then
    quit(WRONG_USE, "--bios: firmware boots what --disk names, and no image; see --help")
  elseif options.format and not options.image then
    quit(WRONG_USE, "--format: there is no image; see --help")
  end
  local image = path and read_file(path, options.memory)
  if not path and not options.disk then image = built_in(options.mode or "real") end
  local config <const> = {
    image = image, name = path or "the built-in image",
    format = options.bios and "bios" or options.format,
    memory = options.memory, cpus = options.cpus, mode = options.mode, at = options.at,
    cmdline = options.append, disk = options.disk and open_disk(options.disk),
    initrd = options.initrd and read_file(options.initrd, options.memory),
    trace = options.trace and trace_of(options.trace),
  }
  local name, why = launch.conflict(config)
  if name then quit(WRONG_USE, "--%s: %s; see --help", NAMES[name] or name, why) end
  config.console = console.new { to = options.console:gsub("^string$", "./%0") } -- a file's name
  if config.console.path then say("the console is %s", config.console.path) end
  return config
end

-- Running and the end --------------------------------------------------------

-- At the end of a line: what another vCPU raises may follow, and a file's name may have it, too.
local function is_interrupt(err)
  return type(err) == "string" and err:find "interrupted!%f[\0\n]" ~= nil
end

local POSITION <const> = "^[^\n]-%.lua:%d+: "

-- What the kernel refuses, and messages without a line of code, are for who runs this; the rest is
-- a mistake here, and has a traceback.
local function traced(err)
  if type(err) ~= "string" or is_interrupt(err) or not err:find(POSITION) then return err end
  return { traceback = debug.traceback(err, 2) }
end

local HERE <const> = debug.getinfo(1, "S").short_src .. ":"

-- In one line, without that of this file which it blames: images may have any name.
local function message_of(err)
  if type(err) == "table" then return ("%s: %s: %s"):format(err.call, err.code, err.message) end
  if is_interrupt(err) then return "interrupted!" end
  return err:sub(1, #HERE) == HERE and err:match("^%d+: (.*)", #HERE + 1) or err
end

local SILENCE <const> = 10 -- seconds

-- Kernels print something soon; other guests may have nothing to say.
local function watch_silence(guest)
  local is_linux <const> = guest.format == "bzimage" or guest.format == "pvh"
  return is_linux and guest:when_silent(SILENCE, function()
    say("the kernel has printed nothing on its serial port for %d s; where the KVM emulates "
      .. "ring 0, Linux does not come up: see ckvm-lua --probe, and doc/kvms.md", SILENCE)
  end) or nil
end

-- Interrupted by Ctrl-C: where was it?
local function run(guest, options)
  local _ <close> = watch_silence(guest)
  local result <const> = table.pack(xpcall(guest.run, traced, guest,
    { reboot = not options.no_reboot }))
  local done <const>, err <const> = result[1], result[2]
  if done then return table.unpack(result, 2, result.n) end
  if is_interrupt(err) then return "interrupted", guest.machine.vcpus[1] end
  guest:close()
  if type(err) == "table" and err.traceback then error(err.traceback, 0) end
  quit(DEAD, "%s", message_of(err))
end

-- Ends of a guest's own choice have a line, others a screen.
local function finish(guest, why, ...)
  local status, line, screen = guest:ending(why, ...)
  local in_line <const> = guest.console:in_line()
  guest.console:close()
  if in_line and (line or screen) then io.stderr:write("\n") end
  if line then say("%s", line) end
  if screen then io.stderr:write(screen, "\n") end
  os.exit(why == "interrupted" and INTERRUPTED or status, true)
end

local function main(...)
  local options <const> = parse { ... }
  local launched, guest = pcall(function()
    local config <const> = prepare(options)
    return (launch.new(config)) -- no tail call: errors blame this line
  end)
  if launched then finish(guest, run(guest, options)) end
  quit(is_interrupt(guest) and INTERRUPTED or DEAD, "%s", message_of(guest))
end

main(...)

-- `make bench`: what ckvm costs, each beside a plain C loop that does the same with no library.
--
--   ./ckvm-lua bench/run.lua [--quick]     in the build directory, after `make bench` has built

local here <const> = arg[0]:match("^(.*)/") or "."
package.path = here .. "/?.lua;" .. package.path
package.cpath = "./bench/.libs/?.so;" .. package.cpath

local loops = require "loops"
local contestants = require "contestants"
local rounds = require "rounds"

local QUICK <const> = arg[1] == "--quick"
if arg[1] and not QUICK then
  io.stderr:write("Usage: make bench [BENCHFLAGS=--quick]\n")
  os.exit(2)
end

local ROUNDS <const> = QUICK and 20 or 200
local PROCESSES <const> = QUICK and 10 or 50
local FEW <const>, MANY <const> = 500, QUICK and 4500 or 20500 -- exits, for the slope

local function row(...)
  print((("%-46s %9s %9s %8s %13s  %s"):format(...):gsub("%s+$", "")))
end

local function heading(text, ...)
  print("\n" .. text)
  row(...)
end

-- "<= 1.05, met"
local function verdict(value, bar, format)
  if not bar then return "" end
  return ("<= " .. format .. ", %s"):format(bar, value <= bar and "met" or "NOT met")
end

-- Time of an exit --------------------------------------------------------------------------------

-- Who takes part, and with how many exits (or batched writes, or VMs) at a time.
local SLICES <const> = {
  { "plain_out", 200 }, { "callback", 200 }, { "hand_back", 200 }, { "lua_out", 200 },
  { "lua_coroutine", 200 }, { "lua_write", 200 }, { "plain_write", 200 },
  { "plain_mmio", 200 }, { "lua_mmio", 200 }, { "lua_uart", 200 },
  { "plain_read", 100 }, { "lua_read", 100 }, { "plain_in", 200 }, { "lua_in", 200 },
  { "plain_unbatched", 200 }, { "plain_batched", 1000 }, { "lua_batched", 1000 },
  { "plain_create", 1 }, { "create", 1 }, { "lua_create", 1 },
}

local MATCHES <const> = {
  { "C callback on an out", "callback", "plain_out" },
  { "C hand-back on an out", "hand_back", "plain_out" },
  { "Lua handler on an out", "lua_out", "plain_out", 1.05 },
  { "Lua handler on an in", "lua_in", "plain_in" },
  { "Lua handler on an MMIO read", "lua_mmio", "plain_mmio" },
  { "Lua: 2 registers read, 1 written, on an out", "lua_write", "plain_out", 1.10 },
  { "  beside C that does so, too", "lua_write", "plain_write" },
  { "Lua: the same on an in", "lua_read", "plain_in", 1.6 },
  { "  beside C that does so, too (2nd KVM_RUN)", "lua_read", "plain_read" },
  { "Lua handler that yields, on an out", "lua_coroutine", "plain_out", 1.10 },
  { "ckvm.dev.uart, a byte that the guest sends", "lua_uart", "plain_out" },
  { "Lua, batched outs, beside an exit each", "lua_batched", "plain_unbatched", 0.30 },
  { "  beside C that has them batched, too", "lua_batched", "plain_batched" },
  { "C: create, first exit, close", "create", "plain_create", 1.10 },
  { "Lua: create, first exit, close", "lua_create", "plain_create", 1.10 },
}

local function make_entrants(slices)
  local entrants, missing = {}, {}
  for _, slice in ipairs(slices) do
    local name, count = table.unpack(slice)
    local made, run = pcall(contestants[name])
    if made then
      table.insert(entrants, { name = name, run = run, count = count })
    else
      missing[name] = tostring(run)
    end
  end
  return entrants, missing
end

local function print_match(times, missing, name, contender, other, bar)
  local reason = missing[contender] or missing[other]
  if reason then return print(("%-46s skipped: %s"):format(name, reason)) end
  local ratios = rounds.ratios(times[contender], times[other])
  local ratio = rounds.median(ratios)
  row(name, ("%.2f"):format(rounds.median(times[other]) * 1e6),
    ("%.2f"):format(rounds.median(times[contender]) * 1e6), ("%.3f"):format(ratio),
    ("%.2f - %.2f"):format(rounds.quantile(ratios, 0.25), rounds.quantile(ratios, 0.75)),
    verdict(ratio, bar, "%.2f"))
end

local function print_times()
  local entrants, missing = make_entrants(SLICES)
  local times = rounds.take_turns(entrants, ROUNDS)
  heading(("Time, in %d rounds in which all take turns (the ratio is the median of the rounds')")
    :format(ROUNDS), "", "C, us", "ckvm, us", "ratio", "quartiles", "bar")
  for _, match in ipairs(MATCHES) do print_match(times, missing, table.unpack(match)) end
end

-- Last of all: from then on the process has threads.
local function print_vcpus()
  local entrants, missing = make_entrants { { "plain_out", 200 }, { "lua_two_vcpus", 1000 } }
  local times = rounds.take_turns(entrants, ROUNDS)
  heading(("Two vCPUs at once by vm:run, in %d rounds"):format(ROUNDS), "", "C, us", "ckvm, us",
    "ratio", "quartiles", "bar")
  print_match(times, missing, "Lua handler on an out, of either vCPU", "lua_two_vcpus", "plain_out")
end

-- Whole processes --------------------------------------------------------------------------------

local HELLO <const> = here .. "/../scripts/hello.lua"

local function spawner(name, ...)
  local words = { ... }
  return { name = name, count = 1, run = function() loops.spawn(table.unpack(words)) end }
end

local function print_processes()
  local times = rounds.take_turns({
    spawner("plain", "./bench/hello"), spawner("ckvm", "./ckvm-lua", HELLO),
  }, PROCESSES)
  heading(("scripts/hello.lua, the whole process, %d times"):format(PROCESSES),
    "", "C, ms", "ckvm, ms", "ratio", "quartiles", "bar")
  local function print_time(name, share, bar)
    local plain = rounds.quantile(times.plain, share) * 1e3
    local time = rounds.quantile(times.ckvm, share) * 1e3
    row(name, ("%.2f"):format(plain), ("%.2f"):format(time), ("%.2f"):format(time / plain), "",
      verdict(time, bar, "%.1f"))
  end
  print_time("from start to end, minimum", 0, 4.7)
  print_time("from start to end, median", 0.5, 7)
end

-- What a kernel that prints a byte is, and ends by debug_exit: Multiboot, with address fields.
local function write_kernel(path)
  local code <const> = "\xba\xf8\x03\x00\x00\xb0\x21\xee\xb0\x00\xe6\xf4"
    -- mov $0x3f8, %edx; mov $'!', %al; out %al, %dx; mov $0, %al; out %al, $0xf4
  local file <close> = assert(io.open(path, "wb"))
  file:write(string.pack("<I4I4i4", 0x1badb002, 1 << 16, -(0x1badb002 + (1 << 16))),
    string.pack("<I4I4I4I4I4", 0x100000, 0x100000, 0, 0, 0x100020), code)
end

-- Seconds from the start of a command to the first byte that it prints.
local function to_first_byte(command)
  local since <const> = loops.now()
  local pipe = io.popen("exec " .. command)
  pipe:read(1)
  local time <const> = loops.now() - since
  pipe:read("a")
  pipe:close()
  return time
end

local function print_first_bytes()
  local kernel <const> = os.tmpname()
  write_kernel(kernel)
  local commands <const> = {
    { "plain C", "./bench/hello" },
    { "scripts/hello.lua", "./ckvm-lua " .. HELLO },
    { "boot.lua, a Multiboot kernel",
      ("./ckvm-lua %s/../scripts/boot.lua %s </dev/null"):format(here, kernel) },
  }
  local times = { {}, {}, {} }
  for round = 1, PROCESSES do
    for i, entry in ipairs(commands) do times[i][round] = to_first_byte(entry[2]) end
  end
  os.remove(kernel)
  heading(("From the start of a process, and of a shell, to the guest's first byte, %d times")
    :format(PROCESSES), "", "", "median, ms", "ratio", "", "")
  local plain <const> = rounds.median(times[1])
  for i, entry in ipairs(commands) do
    local time = rounds.median(times[i])
    row(entry[1], "", ("%.2f"):format(time * 1e3), ("%.2f"):format(time / plain), "", "")
  end
end

-- A command's output, or nil.
local function output_of(...)
  local pipe = io.popen("'" .. table.concat({ ... }, "' '") .. "' 2>&1")
  local output = pipe:read("a")
  return pipe:close() and output
end

local function peak_of(...)
  local output = output_of(...) or ""
  return tonumber(output:match("VmHWM:%s*(%d+)")) or error("no peak size in: " .. output, 0)
end

local function print_resident()
  local plain = peak_of("./bench/hello", "0x1000000")
  local peak = peak_of("./ckvm-lua", here .. "/resident.lua", HELLO)
  heading("Its peak resident size with a guest of 16 MiB", "", "C, KB", "ckvm, KB", "ratio", "",
    "bar")
  row("", plain, peak, ("%.2f"):format(peak / plain), "", verdict(peak, 3000, "%d"))
end

-- Instructions -----------------------------------------------------------------------------------

-- Bars: instructions, or a multiple of the plain loop's.
local COUNTS <const> = {
  { "plain C loop", "plain_out" },
  { "C callback", "callback", 62 },
  { "C hand-back", "hand_back" },
  { "an empty Lua function called from C, no ckvm", "call_empty" },
  { "Lua handler, empty", "lua_empty", nil, 4 },
  { "the same that adds up, called from C, no ckvm", "call_sum" },
  { "Lua handler that adds up", "lua_out", nil, 4 },
  { "Lua handler on an MMIO read", "lua_mmio" },
  { "Lua: 2 registers read, 1 written, on an out", "lua_write" },
  { "Lua: the same on an in", "lua_read" },
  { "Lua handler that yields", "lua_coroutine" },
  { "plain C, batched, a write", "plain_batched" },
  { "Lua, batched, a write", "lua_batched" },
}

local function instructions(name, exits)
  local output = output_of("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
    "./ckvm-lua", here .. "/count.lua", name, exits) or ""
  return tonumber(output:match("Collected : (%d+)"))
end

local function slope(name)
  local few, many = instructions(name, FEW), instructions(name, MANY)
  return few and many and (many - few) / (MANY - FEW)
end

local function print_counts()
  if not output_of("valgrind", "--version") then
    return print("\nInstructions of an exit: skipped, there is no valgrind here.")
  end
  heading("Instructions in user space for an exit (callgrind, the slope between two counts)",
    "", "", "", "number", "to plain C", "bar")
  local plain
  for _, count in ipairs(COUNTS) do
    local name, contestant, bar, times_plain = table.unpack(count, 1, 4)
    local number = slope(contestant)
    plain = plain or number
    if number then
      row(name, "", "", ("%.0f"):format(number), ("%.1f"):format(number / plain),
        verdict(number, bar, "%d") ..
        verdict(number / plain, times_plain, "%d x"))
    else
      print(("%-46s skipped: valgrind could not run it"):format(name))
    end
  end
end

print("ckvm " .. require("ckvm").version .. ", " .. os.date("%Y-%m-%d"))
print_times()
print_processes()
print_first_bytes()
print_resident()
print_counts()
print_vcpus()

-- Runs a test guest of the kind that KVM's own tests are, a "flat" (see ckvm.testbed), which prints
-- to standard output. The exit status is (code << 1) | 1 of its code, 1 for pass and 3 for fail; 0
-- if it switches itself off, 4 if it ends in another way or not in time, 2 if it does not start.
--
--   ckvm-lua scripts/flat.lua [--cpus n] [--memory MiB] [--append args] [--timeout s] x.flat

local testbed = require "ckvm.testbed"

local MOST <const> = 16 << 20 -- bytes of an image: the file may have no end
local WRONG_USE <const>, OTHER_END <const> = 2, 4
local USAGE <const> = "usage: flat.lua [--cpus n] [--memory MiB] [--append args] [--timeout s] FILE"
local NUMBERS <const> = { ["--cpus"] = 1, ["--memory"] = 128, ["--timeout"] = 90 }

local function quit(status, ...)
  io.stdout:flush()
  io.stderr:write("flat.lua: ", string.format(...), "\n")
  os.exit(status, true)
end

local function parse(args)
  local options, i = setmetatable({}, { __index = NUMBERS }), 1
  while args[i] and args[i]:find("^%-%-") do
    local name, value, number <const> = args[i], args[i + 1], NUMBERS[args[i]]
    if name == "--help" then
      print(USAGE)
      os.exit(0, true)
    end
    if not number and name ~= "--append" then quit(WRONG_USE, "unknown option '%s'", name) end
    if number then value = value and #value < 8 and math.tointeger(value:match "^%d+$") end
    options[name], i = value or quit(WRONG_USE, "%s takes a %s; %s", name,
      number and "whole number" or "text", USAGE), i + 2
  end
  if #args == i then return options, args[i] end
  quit(WRONG_USE, "one image is expected behind the options, not %d", #args - i + 1)
end

local function read(path)
  local file <close>, message <const> = io.open(path, "rb")
  if not file then quit(WRONG_USE, "%s", message) end
  local image <const>, problem <const> = file:read(MOST + 1)
  if not image then quit(WRONG_USE, "%s: %s", path, problem or "the file is empty") end
  if #image > MOST then quit(WRONG_USE, "%s: has more than %d MiB", path, MOST >> 20) end
  return image
end

local function start(options, path)
  return testbed.new {
    image = read(path), name = path:match("[^/]*$"), args = options["--append"],
    cpus = options["--cpus"], memory = options["--memory"] << 20, write = io.write,
  }
end

-- Whatever is raised is no pass: with it ckvm-lua would end with 1.
io.stdout:setvbuf("line")
local options <const>, path <const> = parse { ... }
local started, bed = pcall(start, options, path)
if not started then quit(WRONG_USE, "%s: %s", path, (tostring(bed):gsub("^[^\n]-:%d+: ", ""))) end
local ran, status, how = xpcall(bed.run, debug.traceback, bed, { timeout = options["--timeout"] })
if ran and status then os.exit(status & 0xff, true) end
quit(OTHER_END, "%s: %s", path, tostring(how or status))

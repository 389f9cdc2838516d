-- Runs a test guest of the kind that KVM's own tests are, a "flat" (ckvm.testbed tells what it
-- finds). What it prints is standard output; the exit status is (code << 1) | 1 of the code that it
-- ends with, 1 for pass and 3 for fail; 0 if it switches itself off, 4 if it ends in another way or
-- not in time, 2 if it does not start.
--
--   ckvm-lua scripts/flat.lua [--cpus n] [--memory MiB] [--append args] [--timeout s] x.flat

local testbed = require "ckvm.testbed"

local MOST <const> = 16 << 20 -- bytes of an image: the file may have no end
local WRONG_USE <const>, OTHER_END <const> = 2, 4
local NUMBERS <const> = { ["--cpus"] = 1, ["--memory"] = 128, ["--timeout"] = 90 }

local function quit(status, ...)
  io.stdout:flush()
  io.stderr:write("flat.lua: ", string.format(...), "\n")
  os.exit(status, true)
end

local function parse(args)
  local options, i = setmetatable({}, { __index = NUMBERS }), 1
  while args[i] and args[i]:find("^%-%-") do
    local name, value = args[i], args[i + 1]
    if NUMBERS[name] then
      value = value and #value < 8 and value:find("^%d+$") and math.tointeger(value)
    elseif name ~= "--append" then
      quit(WRONG_USE, "unknown option '%s'", name)
    end
    options[name], i = value or quit(WRONG_USE, "%s takes a value", name), i + 2
  end
  if #args == i then return options, args[i] end
  quit(WRONG_USE, "one image is expected behind the options, not %d", #args - i + 1)
end

local function read(path)
  local file <close> = io.open(path, "rb") or quit(WRONG_USE, "%s: cannot open it", path)
  local image <const> = file:read(MOST + 1)
    or quit(WRONG_USE, "%s: cannot read it, or it is empty", path)
  if #image > MOST then quit(WRONG_USE, "%s: has more than %d MiB", path, MOST >> 20) end
  return image
end

local function start(options, path)
  return testbed.new {
    image = read(path), name = path:match("[^/]*$"), args = options["--append"],
    cpus = options["--cpus"], memory = options["--memory"] << 20,
    write = function(bytes) io.write(bytes) end,
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

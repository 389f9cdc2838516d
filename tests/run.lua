-- Runs specs, and test programs without Lua, inside this ckvm-lua.
--
--   ckvm-lua tests/run.lua [options] [tests/NAME_spec.lua | program]...
--
--   --filter PATTERN      only tests whose full name has the Lua pattern
--   --filter-out PATTERN  none of these
--   --tags TAG            only tests tagged #TAG; --exclude-tags TAG: none of these
--   --verbose             name the tests that pass, too
--   --results FILE        also write a line for each test there, as it ends: what became of it, its
--                         name, and why it was skipped, with tabs between them
--
-- Without a file: every spec beside this one. CKVM_REQUIRE_KVM=1 turns tests that are skipped
-- for lack of KVM ("no KVM...") into failures.

local here = arg[0]:match("^(.*)/") or "."
local require_kvm = os.getenv("CKVM_REQUIRE_KVM") == "1"

package.path = here .. "/?.lua;" .. package.path
io.stdout:setvbuf("line") -- what is printed before a crash is needed most

local filters = {
  ["--filter"] = {}, ["--filter-out"] = {}, ["--tags"] = {}, ["--exclude-tags"] = {},
}
local specs, programs = {}, {}
local verbose, results = false, nil
local passed, failed, skipped = 0, 0, 0

local function die(...)
  io.stderr:write("tests/run.lua: ", string.format(...), "\n")
  os.exit(1)
end

local function parse(args)
  local i = 1
  while i <= #args do
    local word = args[i]
    local option, value = word:match("^(%-%-[%a-]+)=(.*)$")
    option = option or word
    if option == "--verbose" then
      verbose = true
    elseif filters[option] or option == "--results" then
      if not value then
        i = i + 1
        value = args[i] or die("%s takes a value", option)
      end
      if option == "--results" then
        results = io.open(value, "w") or die("cannot write %s", value)
        results:setvbuf("line")
      else
        table.insert(filters[option], value)
      end
    elseif option:sub(1, 1) == "-" then
      die("unknown option %s", option)
    else
      local file = io.open(word) or die("cannot open %s", word)
      file:close()
      table.insert(word:find("%.lua$") and specs or programs, word)
    end
    i = i + 1
  end
end

local function indent(text)
  return "    " .. text:gsub("%s+$", ""):gsub("\n", "\n    ")
end

local function record(...)
  if results then results:write((table.concat({ ... }, "\t"):gsub("\n", " ")), "\n") end
end

local function pass(name)
  passed = passed + 1
  record("passed", name)
  if verbose then print("ok: " .. name) end
end

local function fail(name, message)
  failed = failed + 1
  record("failed", name)
  print("FAILED: " .. name)
  print(indent(message))
end

local function skip(name, reason)
  if require_kvm and reason:find("^no KVM") then
    return fail(name, reason .. ", and CKVM_REQUIRE_KVM is set")
  end
  skipped = skipped + 1
  record("skipped", name, reason)
  print("skipped: " .. name .. ": " .. reason)
end

-- Programs -------------------------------------------------------------------

local function run_program(program)
  local path = program:find("/") and program or "./" .. program
  local pipe = io.popen("'" .. path:gsub("'", "'\\''") .. "' 2>&1")
  local output = pipe:read("a")
  local ok, how, code = pipe:close()
  if ok then
    pass(program)
  elseif how == "exit" and code == 77 then -- as in Automake
    skip(program, output:match("([^\n]+)\n*$") or "no reason given")
  else
    fail(program, output .. ("(%s %d)"):format(how == "exit" and "status" or how, code))
  end
end

-- Specs ----------------------------------------------------------------------

local function load_busted()
  local found, core = pcall(require, "busted.core")
  if not found then
    die("the specs need busted for Lua 5.4 (Debian: lua-busted):\n%s", core)
  end
  return core()
end

local function all_specs()
  local list = {}
  for name in require("lfs").dir(here) do
    if name:find("_spec%.lua$") then table.insert(list, here .. "/" .. name) end
  end
  table.sort(list)
  return list
end

local function full_name(busted, element)
  local words = {}
  while element and element.descriptor ~= "file" do
    table.insert(words, 1, element.name)
    element = busted.context.parent(element)
  end
  if element then table.insert(words, 1, element.name:match("[^/]*$") .. ":") end
  return table.concat(words, " ")
end

-- A test reports by "test end", and says before that what went wrong; anything else that
-- fails (a file, a before_each) says so once and then has no test end.
local function listen(busted)
  local said

  local function outcome(status)
    return function(element, _, message, trace)
      message = tostring(message)
      if status == "error" and trace and trace.traceback then
        message = message .. trace.traceback
      end
      if element.descriptor == "it" then
        said = message
        return nil, true
      end
      local name = full_name(busted, element)
      if element.descriptor ~= "describe" and element.descriptor ~= "file" then
        name = full_name(busted, busted.context.parent(element)) .. " " .. element.descriptor
      end
      if status == "pending" then
        skip(name, (message:gsub("^[^\n]-:%d+: ", "")))
      else
        fail(name, message)
      end
      return nil, true
    end
  end

  for _, status in ipairs { "failure", "error", "pending" } do
    busted.subscribe({ status }, outcome(status))
  end
  busted.subscribe({ "test", "start" }, function()
    said = nil
    return nil, true
  end)
  busted.subscribe({ "test", "end" }, function(element, _, status)
    local name = full_name(busted, element)
    if status == "success" then
      pass(name)
    elseif status == "pending" then -- a `pending` block has no message but its name
      skip(name, said and said:gsub("^[^\n]-:%d+: ", "") or element.name)
    else
      fail(name, said or status)
    end
    return nil, true
  end)
end

local function run_specs(files)
  local busted = load_busted()
  require("busted")(busted)
  listen(busted)
  require("busted.modules.filter_loader")()(busted, {
    filter = filters["--filter"], filterOut = filters["--filter-out"],
    tags = filters["--tags"], excludeTags = filters["--exclude-tags"],
  })
  local load_files = require("busted.modules.test_file_loader")(busted, { "lua" })
  load_files(files, {}, { excludes = {}, recursive = false })
  require("busted.execute")(busted)(1, {})
end

parse(arg)
if #specs == 0 and #programs == 0 then specs = all_specs() end
for _, program in ipairs(programs) do run_program(program) end
if #specs > 0 then run_specs(specs) end

if passed + failed + skipped == 0 then die("there was no test to run") end
if results then results:close() end
print(("%d passed, %d failed, %d skipped"):format(passed, failed, skipped))
os.exit(failed == 0, true)

-- What the specs of the program ckvm-lua share: a directory for each test, and the program run in
-- it. CKVM_LUA names the program to test; by default it is the one that runs the specs.

local lfs = require "lfs"
local support = require "support"

local quote = support.quote

local cli = {}

local function own_directory()
  return lfs.symlinkattributes("/proc/self/exe", "target"):match("^(.*)/")
end

cli.program = os.getenv("CKVM_LUA") or own_directory() .. "/ckvm-lua"

local CLEAN <const> = "env -u LUA_INIT -u LUA_INIT_5_4 -u LUA_PATH -u LUA_PATH_5_4 -u LUA_CPATH"
  .. " -u LUA_CPATH_5_4 "

-- Make cli.directory, the test's own, and remove it.
function cli.setup_directory()
  cli.directory = support.make_directory()
end

function cli.remove_directory()
  support.remove_directory(cli.directory)
end

-- A file in there: its path, what is written to it, and what is in it.
function cli.path(name)
  return cli.directory .. "/" .. name
end

function cli.write(name, text)
  local file <close> = assert(io.open(cli.path(name), "wb"))
  file:write(text)
  return cli.path(name)
end

function cli.read(name)
  return support.content(cli.path(name))
end

function cli.status_of(pipe)
  local _, how, code = pipe:close()
  return how == "signal" and 128 + code or code, how
end

-- A shell's words to run the program with `...` as its arguments.
function cli.words(...)
  local list = { quote(cli.program) }
  for _, word in ipairs { ... } do table.insert(list, quote(word)) end
  return table.concat(list, " ")
end

-- A pipe from a command that runs in the test's directory, without Lua's variables.
function cli.popen(command)
  return io.popen(("cd %s && exec %s timeout -k 5 20 %s"):format(quote(cli.directory), CLEAN,
    command))
end

-- Runs a shell command in the test's directory; returns status, output and errors.
function cli.shell(command)
  local pipe = cli.popen(("sh -c %s 2>err </dev/null"):format(quote(command)))
  local output = pipe:read("a")
  return cli.status_of(pipe), output, cli.read("err")
end

function cli.run(...)
  return cli.shell("exec " .. cli.words(...))
end

-- Runs a script's text.
function cli.source(text, ...)
  return cli.run(cli.write("test.lua", text), ...)
end

function cli.lacks(part, text)
  assert(not text:find(part, 1, true), ("%q is in %q"):format(part, text))
end

return cli

-- The program ckvm-lua: its options, exit status, look-up of scripts, errors, Ctrl-C and prompt.
-- CKVM_LUA names the program to test; by default it is the one that runs the specs.

local lfs = require "lfs"
local support = require "support"

local function own_directory()
  return lfs.symlinkattributes("/proc/self/exe", "target"):match("^(.*)/")
end

local program = os.getenv("CKVM_LUA") or own_directory() .. "/ckvm-lua"
local clean = "env -u LUA_INIT -u LUA_INIT_5_4 -u LUA_PATH -u LUA_PATH_5_4 -u LUA_CPATH"
  .. " -u LUA_CPATH_5_4 "
local directory -- of one test

local function quote(word)
  return "'" .. word:gsub("'", "'\\''") .. "'"
end

local function path(name)
  return directory .. "/" .. name
end

local function write(name, text)
  local file <close> = assert(io.open(path(name), "wb"))
  file:write(text)
  return path(name)
end

local function read(name)
  local file <close> = assert(io.open(path(name), "rb"))
  return file:read("a")
end

local function status_of(pipe)
  local _, how, code = pipe:close()
  return how == "signal" and 128 + code or code, how
end

-- A shell's words to run the program with `...` as its arguments.
local function words(...)
  local list = { quote(program) }
  for _, word in ipairs { ... } do table.insert(list, quote(word)) end
  return table.concat(list, " ")
end

-- Runs a shell command in the test's directory; returns status, output and errors.
local function shell(command)
  local pipe = io.popen(("cd %s && exec %s timeout -k 5 20 sh -c %s 2>err </dev/null"):format(
    quote(directory), clean, quote(command)))
  local output = pipe:read("a")
  return status_of(pipe), output, read("err")
end

local function run(...)
  return shell("exec " .. words(...))
end

local function source(text, ...)
  return run(write("test.lua", text), ...)
end

local function contains(part, text)
  assert(text:find(part, 1, true), ("%q is not in %q"):format(part, text))
end

local function lacks(part, text)
  assert(not text:find(part, 1, true), ("%q is in %q"):format(part, text))
end

local function setup_directory()
  directory = os.tmpname()
  os.remove(directory)
  assert(lfs.mkdir(directory))
end

local function remove_directory()
  for name in lfs.dir(directory) do os.remove(path(name)) end
  lfs.rmdir(directory)
end

describe("ckvm-lua:", function()
  before_each(setup_directory)
  after_each(remove_directory)

  describe("wrong use", function()
    for _, option in ipairs { "--nope", "-x", "-e", "-l", "--help=x" } do
      it("is one line, a hint and status 2: " .. option, function()
        local status, output, errors = run(option)
        assert.equal(2, status)
        assert.equal("", output)
        assert.equal(2, select(2, errors:gsub("\n", "")))
        contains("Try 'ckvm-lua --help'", errors)
      end)
    end

    it("runs nothing", function()
      local status, output = run("-e", "print(1)", "--nope")
      assert.equal(2, status)
      assert.equal("", output)
    end)
  end)

  describe("--help", function()
    for _, option in ipairs { "-h", "--help" } do
      it("goes to standard output with status 0: " .. option, function()
        local status, output, errors = run(option)
        assert.equal(0, status)
        assert.equal("", errors)
        contains("Usage: ckvm-lua [options] [script [args]]", output)
      end)
    end

    it("names every option and the directory of the scripts", function()
      local _, output = run("--help")
      local options = "-e -l -i -v -h -E -W --version --help --trace-ioctl --probe --json"
      for option in options:gmatch("%S+") do
        contains("  " .. option:gsub("^%-%-", ""), (output:gsub("%-%-(%l)", "  %1")))
      end
      assert.matches("\n/[^\n]*/scripts%.\n$", output)
    end)
  end)

  describe("--version", function()
    for _, option in ipairs { "-v", "--version" } do
      it("names ckvm and Lua: " .. option, function()
        local status, output = run(option)
        assert.equal(0, status)
        assert.matches("^ckvm%-lua %d+%.%d+%.%d+, Lua 5%.4%.%d+\n$", output)
      end)
    end

    it("goes on with the script", function()
      local _, output = run("-v", write("test.lua", "print('script')"))
      assert.matches("^ckvm%-lua .*\nscript\n$", output)
    end)
  end)

  describe("-e", function()
    it("runs statements in order, before the script", function()
      local status, output = run("-e", "x = 1", "-ex = x + 1", write("test.lua", "print(x)"))
      assert.equal(0, status)
      assert.equal("2\n", output)
    end)

    it("needs no script", function()
      local status, output = run("-e", "print(1)")
      assert.equal(0, status)
      assert.equal("1\n", output)
    end)

    it("ends everything by an error, with status 1", function()
      local status, output, errors = run("-e", "error('x')", "-e", "print(1)")
      assert.equal(1, status)
      assert.equal("", output)
      contains("ckvm-lua: (command line):1: x\nstack traceback:\n", errors)
    end)
  end)

  describe("-l", function()
    it("requires a module into the global of its name", function()
      local status, output = run("-l", "ckvm", "-e", "print(ckvm == require 'ckvm')")
      assert.equal(0, status)
      assert.equal("true\n", output)
    end)

    it("requires a module into another global", function()
      local _, output = run("-l", "g=ckvm", "-e", "print(g == require 'ckvm', ckvm)")
      assert.equal("true\tnil\n", output)
    end)

    it("leaves out what follows a hyphen in a name", function()
      write("mod-v2.lua", "return 'module'")
      local _, output = run("-e", "package.path = './?.lua'", "-l", "mod-v2", "-e", "print(mod)")
      assert.equal("module\n", output)
    end)

    it("is an error for a module that is not there", function()
      local status, _, errors = run("-l", "no.such")
      assert.equal(1, status)
      contains("ckvm-lua: module 'no.such' not found:", errors)
    end)

    for _, name in ipairs { "lfs", "term" } do
      it("loads C modules of the distribution: " .. name, function()
        local status, output, errors = run("-l", name, "-e", "print(type(" .. name .. "))")
        assert.equal("", errors)
        assert.equal("table\n", output)
        assert.equal(0, status)
      end)
    end
  end)

  describe("-W", function()
    it("turns warnings on", function()
      local _, _, silent = run("-e", "warn('careful')")
      local _, _, errors = run("-W", "-e", "warn('careful')")
      assert.equal("", silent)
      contains("careful", errors)
    end)
  end)

  describe("the module ckvm", function()
    it("is loaded, and no global", function()
      local _, output = run("-e", "print(ckvm, type(package.loaded.ckvm), type(require 'ckvm'))")
      assert.equal("nil\ttable\ttable\n", output)
    end)
  end)

  describe("a script", function()
    it("finds its arguments in ... and arg, and the rest before them", function()
      local script = write("test.lua", "print(...) print(arg[0], #arg, arg[1], arg[-1], arg[-3])")
      local status, output = run("-e", "", script, "-e", "two")
      assert.equal(0, status)
      assert.equal(("-e\ttwo\n%s\t2\t-e\t\t%s\n"):format(script, program), output)
    end)

    it("keeps the options behind it", function()
      local status, output = source("print(...)", "--help", "-v", "--", "-")
      assert.equal(0, status)
      assert.equal("--help\t-v\t--\t-\n", output)
    end)

    it("may begin with a line for the kernel", function()
      local status, output = source("#!/usr/bin/env ckvm-lua\nprint(1)")
      assert.equal(0, status)
      assert.equal("1\n", output)
    end)

    it("follows --", function()
      write("-x.lua", "print('dash')")
      local _, output = run("--", "-x.lua")
      assert.equal("dash\n", output)
    end)

    it("is a file named - after --", function()
      write("-", "print('file', ...)")
      local _, output = run("--", "-", "a")
      assert.equal("file\ta\n", output)
    end)

    it("is standard input for -", function()
      local status, output = shell("echo 'print(arg[0], ...)' | " .. words("-", "a", "b"))
      assert.equal(0, status)
      assert.equal("-\ta\tb\n", output)
    end)

    it("is standard input without a script, if that is no terminal", function()
      local status, output = shell("echo 'print(arg[0], ...)' | " .. words("-lckvm"))
      assert.equal(0, status)
      assert.equal(program .. "\n", output)
    end)

    it("gives its own status by os.exit", function()
      assert.equal(7, (source("os.exit(7)")))
      assert.equal(1, (source("os.exit(false, true)")))
      assert.equal(0, (source("os.exit(true, true)")))
    end)

    it("has its state closed, also after an error", function()
      local text = "t = setmetatable({}, { __gc = function() print('closed') end })"
      local _, output = source(text)
      assert.equal("closed\n", output)
      _, output = source(text .. " error('x')")
      assert.equal("closed\n", output)
    end)
  end)

  describe("a script that cannot be loaded", function()
    local function refused(part, ...)
      local status, output, errors = run(...)
      assert.equal(1, status)
      assert.equal("", output)
      contains(part, errors)
      assert.matches("^ckvm%-lua: [^\n]+\n$", errors)
    end

    it("is one message for an empty name", function()
      refused("the script's name is empty", "")
    end)

    it("is one message for a missing file", function()
      refused("cannot open ./nowhere.lua", "./nowhere.lua")
    end)

    it("is one message that names both places where a name was looked for", function()
      refused("cannot find nowhere.lua, neither in the working directory nor in /", "nowhere.lua")
    end)

    it("is one message for a syntax error", function()
      refused("bad.lua:2: ", write("bad.lua", "x = 1\nx x"))
    end)

    it("is one message for bytecode", function()
      local script = write("code.lua", string.dump(load("return 1")))
      refused(script .. ": this is bytecode", script)
    end)

    it("is one message for bytecode on standard input", function()
      write("code.lua", string.dump(load("return 1")))
      local status, _, errors = shell(words("-") .. " <code.lua")
      assert.equal(1, status)
      assert.equal("ckvm-lua: stdin: this is bytecode; ckvm-lua runs Lua source only\n", errors)
    end)

    it("is one message for a directory", function()
      refused("cannot read " .. directory, directory)
    end)

    it("is one message for a file without permission", function()
      local script = write("closed.lua", "")
      os.execute("chmod 0 " .. quote(script))
      local status, _, errors = shell("exec " .. support.obedient() .. words(script))
      assert.equal(1, status)
      assert.matches("^ckvm%-lua: cannot open [^\n]+/closed.lua[^\n]+\n$", errors)
    end)
  end)

  describe("an error", function()
    it("has a traceback and status 1", function()
      local status, _, errors = source("local function f() error('oops') end\nf()")
      assert.equal(1, status)
      assert.matches("^ckvm%-lua: [^\n]*test%.lua:1: oops\nstack traceback:\n", errors)
      assert.matches("test%.lua:2: in main chunk", errors)
    end)

    it("comes after the output before it", function()
      local script = write("test.lua", "io.write('first\\n') error('x')")
      local _, output = shell(words(script) .. " 2>&1")
      assert.matches("^first\nckvm%-lua: ", output)
    end)

    it("is shown by its __tostring, with a traceback", function()
      local status, _, errors = source(
        "error(setmetatable({}, { __tostring = function() return 'an object' end }))")
      assert.equal(1, status)
      contains("ckvm-lua: an object\nstack traceback:\n", errors)
    end)

    for _, case in ipairs {
      { "nil", "(error object is a nil value)" },
      { "{}", "(error object is a table value)" },
      { "true", "(error object is a boolean value)" },
      { "42", "42" },
      { "print", "(error object is a function value)" },
    } do
      it("may be any value: " .. case[1], function()
        local status, _, errors = source("error(" .. case[1] .. ")")
        assert.equal(1, status)
        contains("ckvm-lua: " .. case[2] .. "\nstack traceback:\n", errors)
      end)
    end

    it("may have a __tostring that raises", function()
      local status, _, errors = source(
        "error(setmetatable({}, { __tostring = function() error('inner') end }))")
      assert.equal(1, status)
      contains("inner", errors)
    end)

    it("may have a __tostring that raises for ever", function()
      local status, _, errors = source(
        "error(setmetatable({}, { __tostring = function(self) error(self) end }))")
      assert.equal(1, status)
      assert.matches("^ckvm%-lua: ", errors)
    end)

    it("in a deep recursion has a short traceback", function()
      local status, _, errors = source("local function f() return 1 + f() end f()")
      assert.equal(1, status)
      contains("stack overflow", errors)
      contains("skipping", errors)
      assert.is_true(select(2, errors:gsub("\n", "")) < 40)
    end)

    it("comes out of a coroutine", function()
      local status, _, errors = source("coroutine.wrap(function() error('inside') end)()")
      assert.equal(1, status)
      contains("inside", errors)
    end)
  end)

  describe("standard output that cannot be written", function()
    for what, text in pairs {
      ["at the end"] = "io.write('x')", ["by print"] = "print('x')",
      ["before os.exit"] = "io.write('x') os.exit(0)",
      ["before os.exit that closes"] = "io.write('x') os.exit(true, true)",
    } do
      it("is an error: " .. what, function()
        if not io.open("/dev/full") then pending("no /dev/full") end
        local status, _, errors = shell(words("-e", text) .. " >/dev/full")
        assert.equal(1, status)
        assert.equal("ckvm-lua: standard output: No space left on device\n", errors)
      end)
    end

    it("does not matter if nothing was written", function()
      assert.equal(0, (shell(words("-e", "") .. " >&-")))
    end)

    it("is an error where there is none", function()
      for _, text in ipairs { "io.write('x')", "print('x')", "io.write('x') os.exit(0)" } do
        local status, _, errors = shell(words("-e", text) .. " >&-")
        assert.equal(1, status)
        assert.equal("ckvm-lua: standard output: Bad file descriptor\n", errors)
      end
    end)
  end)

  describe("a standard descriptor that is closed", function()
    for redirection, number in pairs { ["<&-"] = 0, [">&-"] = 1, ["2>&-"] = 2 } do
      it("is no other file's: " .. redirection, function()
        local status = shell(words("-e", [[
          local event = require("ckvm").eventfd()
          io.stdout:write("12345678") io.stdout:flush()
          io.stderr:write("12345678")
          local file = io.open("found", "w")
          file:write(event.fd > 2 and not event:read() and not io.read() and "nothing" or "a byte")
          file:close() ]]) .. " " .. redirection)
        assert.equal(number == 1 and 1 or 0, status)
        assert.equal("nothing", read("found"))
      end)
    end

    it("is not the trace's", function()
      support.need_kvm()
      local status = shell(words("--trace-ioctl=trace", "-e",
        "require('ckvm').open() print('a line')") .. " >&-")
      assert.equal(1, status)
      assert.matches("^KVM_GET_API_VERSION", read("trace"))
      lacks("a line", read("trace"))
    end)
  end)

  describe("the environment", function()
    local function with(variable, ...)
      return shell(variable .. " exec " .. words(...))
    end

    it("runs LUA_INIT before the options", function()
      local _, output = with("LUA_INIT='x = 1'", "-e", "print(x)")
      assert.equal("1\n", output)
    end)

    it("prefers LUA_INIT_5_4", function()
      local _, output = with("LUA_INIT='x = 1' LUA_INIT_5_4='x = 2'", "-e", "print(x)")
      assert.equal("2\n", output)
    end)

    it("runs the file of LUA_INIT=@file", function()
      write("init.lua", "x = 3")
      local _, output = with("LUA_INIT=@init.lua", "-e", "print(x)")
      assert.equal("3\n", output)
    end)

    it("fails with LUA_INIT", function()
      local status, output, errors = with("LUA_INIT='error(1)'", "-e", "print(x)")
      assert.equal(1, status)
      assert.equal("", output)
      assert.matches("^ckvm%-lua: ", errors)
      status, output, errors = with("LUA_INIT='x x'", "-e", "print(x)")
      assert.equal(1, status)
      assert.equal("", output)
      contains("LUA_INIT:1:", errors)
    end)

    it("keeps LUA_PATH and LUA_CPATH behind ckvm's own directories", function()
      local _, output = with("LUA_PATH='/my/?.lua' LUA_CPATH='/my/?.so'",
        "-e", "print(package.path) print(package.cpath)")
      assert.matches(";/my/%?%.lua\n", output)
      assert.matches("/my/%?%.so\n$", output)
    end)

    it("is ignored with -E", function()
      local _, output = with("LUA_INIT='print(1)' LUA_PATH='/my/?.lua'",
        "-E", "-e", "print(package.path)")
      lacks("1\n", output)
      lacks("/my/", output)
    end)
  end)

  describe("the look-up of scripts", function()
    local function scripts_directory()
      local _, output = run("--help")
      return output:match("\n(/[^\n]*)%.\n$")
    end

    it("prefers the working directory", function()
      write("hello.lua", "print('mine')")
      local _, output = run("hello.lua")
      assert.equal("mine\n", output)
    end)

    it("finds ckvm's scripts from any directory", function()
      local hello = scripts_directory() .. "/hello.lua"
      if not io.open(hello) then pending("no " .. hello) end
      support.need_kvm()
      local status, output, errors = run("hello.lua")
      assert.equal("", errors)
      assert.equal(0, status)
      assert.equal(output, (select(2, run(hello))))
    end)

    it("has no part in names with a slash", function()
      local _, _, errors = run("./hello.lua")
      contains("cannot open ./hello.lua", errors)
    end)

    it("takes the source tree's scripts and modules if the program is not installed", function()
      local tree = os.getenv("CKVM_SRCDIR")
      local built = tree and os.getenv("CKVM_BUILDDIR") .. "/ckvm-lua"
      if not built or lfs.attributes(built, "ino") ~= lfs.attributes(program, "ino") then
        pending("not run by make check")
      end
      assert.equal(tree .. "/scripts", scripts_directory())
      local _, output = run("-e", "print(package.path)")
      assert.equal(1, (output:find(tree .. "/lua/?.lua;" .. tree .. "/lua/?/init.lua;", 1, true)))
    end)

    it("takes the installed scripts and modules if it is elsewhere", function()
      local tree = os.getenv("CKVM_SRCDIR") or "/no/such/tree"
      assert.equal(0, (shell("cp " .. quote(program) .. " ckvm-lua")))
      local _, _, errors = shell("./ckvm-lua nowhere.lua")
      assert.matches("nor in /[^\n]*/ckvm/scripts\n", errors)
      lacks(tree .. "/", errors)
      local _, output = shell("./ckvm-lua -e 'print(package.path, package.cpath)'")
      lacks(tree .. "/", output)
    end)
  end)

  describe("--trace-ioctl", function()
    local text = [[
      local vm <close> = require("ckvm").open():create_vm()
      vm:add_memory { gpa = 0x1000, size = 0x1000 }
      vm:write(0x1000, "\xf4")
      local vcpu = vm:create_vcpu(0)
      vcpu:set_sregs { cs = { base = 0, selector = 0 } }
      vcpu:set_regs { rip = 0x1000, rflags = 2 }
      print((vcpu:run()))
      print(pcall(vm.create_vcpu, vm, 0))
    ]]

    local function is_trace(lines)
      assert.matches("KVM_GET_API_VERSION%(%d+, 0%) = 12\n", lines)
      assert.matches("KVM_CREATE_VM%(%d+, 0%) = %d+\n", lines)
      assert.matches("KVM_SET_USER_MEMORY_REGION%(%d+, %.%.%.%) = 0\n", lines)
      assert.matches("KVM_CREATE_VCPU%(%d+, 0%) = %d+\n", lines)
      assert.matches("KVM_RUN%(%d+, 0%) = 0\n", lines)
    end

    it("prints a line for each ioctl on standard error", function()
      support.need_kvm()
      local status, output, errors = run("--trace-ioctl", write("test.lua", text))
      assert.matches("^hlt\nfalse\t", output)
      assert.equal(0, status)
      is_trace(errors)
    end)

    it("writes them to a file", function()
      support.need_kvm()
      local status, _, errors = run("--trace-ioctl=trace", write("test.lua", text))
      assert.equal(0, status)
      assert.equal("", errors)
      is_trace(read("trace"))
    end)

    it("names the error of one that fails", function()
      support.need_kvm()
      local _, _, errors = run("--trace-ioctl", write("test.lua", [[
        local kvm = require("ckvm").open()
        print(pcall(kvm.create_vm, kvm, { type = 0x7fff0000 })) ]]))
      assert.matches("KVM_CREATE_VM%(%d+, 0x7fff0000%) = E%u+\n", errors)
    end)

    it("counts where it is given last, and leaves the other files alone", function()
      support.need_kvm()
      write("first", "kept")
      write("test.lua", text)
      assert.same({ 0, "" }, { (shell(words("--trace-ioctl=first", "--trace-ioctl=no/such/file",
        "--trace-ioctl=last", "test.lua") .. " >out")), read("err") })
      assert.equal("kept", read("first"))
      is_trace(read("last"))
      local status, _, errors = run("--trace-ioctl=first", "--trace-ioctl", "test.lua")
      assert.equal(0, status)
      assert.equal("kept", read("first"))
      is_trace(errors)
    end)

    it("leaves the file alone after wrong use", function()
      write("first", "kept")
      assert.equal(2, (run("--trace-ioctl=first", "--nope")))
      assert.equal(0, (run("--trace-ioctl=first", "--help")))
      assert.equal("kept", read("first"))
    end)

    it("prints nothing without ckvm.open", function()
      local _, _, errors = run("--trace-ioctl", "-e", "")
      assert.equal("", errors)
    end)

    it("is an error if it is lost", function()
      support.need_kvm()
      if not io.open("/dev/full") then pending("no /dev/full") end
      local statement = "require('ckvm').open() print('done') os.exit(true, true)"
      local status, output, errors = run("--trace-ioctl=/dev/full", "-e", statement)
      assert.equal(1, status)
      assert.equal("done\n", output)
      assert.equal("ckvm-lua: /dev/full: No space left on device\n", errors)
      assert.equal(1, (shell(words("--trace-ioctl", "-e", statement) .. " 2>/dev/full")))
    end)

    it("is an error for a file that cannot be made", function()
      local status, _, errors = run("--trace-ioctl=no/such/file", "-e", "print(1)")
      assert.equal(1, status)
      assert.equal("ckvm-lua: no/such/file: No such file or directory\n", errors)
    end)
  end)

  describe("Ctrl-C", function()
    local ready = "io.write('ready\\n') io.flush() "

    -- Sends SIGINT, or that signal, whenever the script says "ready".
    local function interrupt(text, signal)
      local command = ("cd %s && exec %s timeout -k 5 20 sh -c %s 2>err </dev/null"):format(
        quote(directory), clean,
        quote("echo $$; exec " .. words(write("test.lua", text))))
      local pipe = io.popen(command)
      local pid = pipe:read("l")
      local rest = {}
      for line in pipe:lines() do
        if line == "ready" then
          os.execute(("kill -%s %s"):format(signal or "INT", pid))
        else
          table.insert(rest, line)
        end
      end
      local status, how = status_of(pipe)
      return status, read("err"), table.concat(rest, "\n"), how
    end

    local function is_interrupted(status, errors, _, how)
      assert.equal("exit", how)
      assert.equal(130, status)
      assert.matches("^ckvm%-lua: [^\n]*interrupted!\nstack traceback:\n", errors)
      contains("test.lua:", errors)
    end

    it("stops a loop", function()
      is_interrupted(interrupt(ready .. "while true do end"))
    end)

    it("stops a loop in a coroutine", function()
      is_interrupted(interrupt("coroutine.wrap(function() " .. ready .. "while true do end end)()"))
    end)

    it("stops a loop in a coroutine of a coroutine", function()
      is_interrupted(interrupt([[
        local function inner() ]] .. ready .. [[ while true do end end
        coroutine.wrap(function() coroutine.wrap(inner)() end)() ]]))
    end)

    it("stops a loop over coroutines", function()
      is_interrupted(interrupt(ready .. [[
        while true do coroutine.wrap(function() coroutine.yield() end)() end ]]))
    end)

    it("stops a script that waits for input", function()
      if not os.execute("mkfifo " .. quote(path("fifo"))) then pending("no mkfifo") end
      is_interrupted(interrupt([[
        local file = io.open("fifo", "r+") ]] .. ready .. [[ file:read() while true do end ]]))
    end)

    it("runs the closing of variables, and closes the state", function()
      local status, _, output = interrupt([[
        gone = setmetatable({}, { __gc = function() print("collected") end })
        local x <close> = setmetatable({}, { __close = function() print("closed") end })
        ]] .. ready .. "while true do end")
      assert.equal(130, status)
      assert.equal("closed\ncollected", output)
    end)

    for signal, number in pairs { TERM = 15, HUP = 1 } do
      it("is what SIG" .. signal .. " is like, with another status", function()
        local status, errors, output, how = interrupt([[
          gone = setmetatable({}, { __gc = function() print("collected") end })
          local x <close> = setmetatable({}, { __close = function() print("closed") end })
          ]] .. ready .. "while true do end", signal)
        assert.same({ 128 + number, "exit" }, { status, how })
        contains("interrupted!\n", errors)
        assert.equal("closed\ncollected", output)
      end)

      it("ends at SIG" .. signal .. " also a script that catches all errors", function()
        -- By the signal, or by an error that comes up between two calls of pcall.
        local status, _, output = interrupt(
          ready .. "while true do pcall(function() while true do end end) end", signal)
        assert.same({ 128 + number, "" }, { status, output })
      end)

      it("ends a session at SIG" .. signal, function()
        write("input", "os.execute('kill -" .. signal .. " $PPID')\nprint('never')\n")
        local status, output = shell(words("-i") .. " <input")
        assert.equal(128 + number, status)
        lacks("never", output)
      end)
    end

    -- Not by os.execute, which ignores SIGINT meanwhile.
    for _, signal in ipairs { "INT", "TERM", "HUP" } do
      local kill = "io.popen('kill -" .. signal .. " $PPID'):close() "

      it("leaves SIG" .. signal .. " ignored where it was", function()
        local status, output, errors = shell("trap '' " .. signal .. "; "
          .. words("-e", kill .. "print('on')"))
        assert.same({ 0, "on\n", "" }, { status, output, errors })
      end)

      it("leaves SIG" .. signal .. " ignored in a session", function()
        write("input", kill .. "print('o' .. 'n')\n" .. kill .. "os.exit(3)\n")
        local status, output, errors = shell("trap '' " .. signal .. "; " .. words("-i")
          .. " <input")
        assert.same({ 3, "" }, { status, errors })
        contains("on\n", output)
      end)
    end

    it("can be caught, and the script goes on", function()
      local status, errors, output, how = interrupt(
        "print(pcall(function() " .. ready .. "while true do end end)) print('on')")
      assert.equal("exit", how)
      assert.equal(0, status)
      assert.equal("", errors)
      assert.matches("^false\t[^\n]*interrupted!\non$", output)
    end)

    it("ends the process the second time", function()
      local status, errors, output, how = interrupt(
        "local function spin() " .. ready .. "while true do end end pcall(spin) pcall(spin) "
        .. "print('never')")
      assert.equal("signal", how)
      assert.equal(130, status)
      assert.equal("", errors)
      assert.equal("", output)
    end)

    -- out 0x10, al and a jump: "\xfe" to itself, "\xfc" to the out. The handler is global.
    local function guest(jump)
      return [[
        local vm = require("ckvm").open():create_vm()
        vm:add_memory { gpa = 0x1000, size = 0x1000 }
        vm:write(0x1000, "\xe6\x10\xeb]] .. jump .. [[")
        function handler()
          handler = function() end
          ]] .. ready .. [[
        end
        vm:attach_io { port = 0x10, count = 1, write = function() handler() end }
        local vcpu = vm:create_vcpu(0)
        vcpu:set_sregs { cs = { base = 0, selector = 0 } }
        vcpu:set_regs { rip = 0x1000, rflags = 2 }
      ]]
    end

    it("stops a guest that never exits", function()
      support.need_kvm()
      is_interrupted(interrupt(guest("\\xfe") .. "vcpu:run()"))
    end)

    it("stops a guest that never exits in a coroutine", function()
      support.need_kvm()
      is_interrupted(interrupt(guest("\\xfe") .. "coroutine.wrap(function() vcpu:run() end)()"))
    end)

    it("stops a guest that exits all the time", function()
      support.need_kvm()
      is_interrupted(interrupt(guest("\\xfc") .. "vcpu:run()"))
    end)

    it("stops a handler that never ends", function()
      support.need_kvm()
      is_interrupted(interrupt(guest("\\xfe") .. [[
        function handler() ]] .. ready .. [[ while true do end end
        vcpu:run() ]]))
    end)

    it("stops a handler that never ends in a coroutine", function()
      support.need_kvm()
      is_interrupted(interrupt(guest("\\xfe") .. [[
        function handler() coroutine.wrap(function() ]] .. ready .. [[ while true do end end)() end
        coroutine.wrap(function() vcpu:run() end)() ]]))
    end)

    it("stops ckvm.probe, whatever it tries", function()
      support.need_kvm()
      is_interrupted(interrupt([[
        local function spin() ]] .. ready .. [[ while true do end end
        package.loaded["ckvm.probe.costs"] = { regs_us = spin, create_vm_us = print }
        require("ckvm").probe { only = { "costs.regs_us", "costs.create_vm_us" } } ]]))
    end)

    it("leaves a guest that can be run again", function()
      support.need_kvm()
      local status, errors, output = interrupt(guest("\\xfe") .. [[
        print(pcall(vcpu.run, vcpu))
        print((vcpu:run { timeout = 0 })) ]])
      assert.equal("", errors)
      assert.equal(0, status)
      assert.matches("^false\t[^\n]*interrupted!\ntimeout$", output)
    end)

    it("ends the process the second time in a guest", function()
      support.need_kvm()
      local status, errors, _, how = interrupt(guest("\\xfe") .. [[
        local first = handler
        pcall(vcpu.run, vcpu)
        handler = first
        vcpu:set_regs { rip = 0x1000 }
        pcall(vcpu.run, vcpu)
        print("never") ]])
      assert.equal("signal", how)
      assert.equal(130, status)
      assert.equal("", errors)
    end)
  end)

  describe("-i", function()
    local function session(input, ...)
      write("input", input)
      return shell(words("-i", ...) .. " <input")
    end

    it("shows the version and a prompt after the script", function()
      local status, output = session("x\n", write("test.lua", "x = 'from the script'"))
      assert.equal(0, status)
      assert.matches("^ckvm%-lua [^\n]*\n> from the script\n> \n$", output)
    end)

    it("shows no prompt after a script that fails", function()
      local status, output = session("print(1)\n", write("test.lua", "error('x')"))
      assert.equal(1, status)
      lacks("> ", output)
    end)

    it("prints the values of expressions", function()
      local _, output = session("1 + 1\n= 3\nnil, 'x'\nreturn 4\n\n-- nothing\n")
      assert.matches("\n> 2\n> 3\n> nil\tx\n> 4\n> > > \n$", output)
    end)

    it("prints what has no printable value, and goes on", function()
      local _, output, errors = session(
        "setmetatable({}, { __tostring = function() return {} end })\n'on'\n")
      contains("'__tostring' must return a string", errors)
      contains("> on\n", output)
    end)

    it("reads on until a statement is complete", function()
      local _, output = session("for i = 1, 2 do\nprint(i)\nend\n'on'\n")
      assert.matches("\n> >> >> 1\n2\n> on\n> \n$", output)
    end)

    it("lives on after errors of all kinds", function()
      local status, output, errors = session(
        "x x\nerror('one')\nerror({})\nerror()\nlocal function f() f() end f() f(\n1)\n'on'\n")
      assert.equal(0, status)
      contains("stdin:1: syntax error near", errors)
      contains("stdin:1: one\nstack traceback:\n", errors)
      contains("(error object is a table value)", errors)
      contains("> on\n", output)
    end)

    it("reports an incomplete statement at the end of input", function()
      local status, _, errors = session("f(")
      assert.equal(0, status)
      contains("near <eof>", errors)
    end)

    it("takes its prompts from _PROMPT and _PROMPT2", function()
      local _, output = session("_PROMPT, _PROMPT2 = 'one ', 'two '\nx = {\n}\n")
      assert.matches("\n> one two one \n$", output)
    end)

    it("works where unknown globals are errors", function()
      local status, output, errors = session("setmetatable(_G, { __index = error })\n'on'\n")
      assert.equal("", errors)
      assert.equal(0, status)
      contains("> on\n", output)
    end)

    it("ends by os.exit", function()
      assert.equal(3, (session("os.exit(3)\n")))
    end)
  end)

  describe("on a terminal", function()
    local input, output

    local function need_terminal()
      if not os.execute("script --version >/dev/null 2>&1") then
        pending("no script(1) of util-linux")
      end
    end

    -- Starts the program in a pseudo-terminal.
    local function start(...)
      need_terminal()
      assert(os.execute("mkfifo " .. quote(path("fifo"))))
      output = io.popen(("cd %s && exec %s timeout -k 5 20 script -qec %s /dev/null <fifo"):format(
        quote(directory), clean, quote("exec " .. words(...))))
      input = assert(io.open(path("fifo"), "w"))
      input:setvbuf("no")
    end

    -- Reads up to the given text at the end; returns all that was read.
    local function expect(text)
      local got = ""
      repeat
        local char = output:read(1)
        if not char then error(("%q does not come after %q"):format(text, got), 2) end
        got = got .. char
      until got:sub(-#text) == text
      return got
    end

    local function finish()
      input:write("os.exit(5)\n")
      output:read("a")
      input:close()
      return status_of(output)
    end

    it("shows a prompt without a script", function()
      start()
      assert.matches("^ckvm%-lua [^\n]*\n> $", expect("> "))
      input:write("6 * 7\n")
      expect("\n42\r\n> ")
      assert.equal(5, finish())
    end)

    it("drops the line that is being typed by Ctrl-C", function()
      start()
      expect("> ")
      input:write("x = (\n")
      expect(">> ")
      input:write("1\3")
      expect("\n> ")
      input:write("x\n")
      expect("\nnil\r\n> ")
      assert.equal(5, finish())
    end)

    it("stops the line that is running by Ctrl-C, each time", function()
      start()
      for _ = 1, 3 do
        expect("> ")
        input:write("io.write('rea', 'dy\\n') while true do end\n")
        expect("ready\r\n")
        input:write("\3")
        assert.matches("interrupted!\r\nstack traceback:", expect("in main chunk"))
      end
      expect("> ")
      assert.equal(5, finish())
    end)

    it("does not stop the next line by a Ctrl-C at the prompt", function()
      start()
      expect("> ")
      input:write("\3")
      expect("\n> ")
      input:write("for i = 1, 1e5 do end print('al' .. 'ive')\n")
      expect("alive\r\n> ")
      assert.equal(5, finish())
    end)

    for what, key in pairs { C = "\3", D = "\4" } do
      it("goes on after Ctrl-" .. what .. " while a line reads its input", function()
        start()
        expect("> ")
        input:write("io.write('rea', 'dy\\n') print(io.read())\n")
        expect("ready\r\n")
        input:write(key)
        expect("\n> ")
        input:write("'al' .. 'ive'\n")
        expect("alive\r\n> ")
        assert.equal(5, finish())
      end)
    end

    it("ends the session by Ctrl-D", function()
      start()
      expect("> ")
      input:write("\4")
      output:read("a")
      input:close()
      assert.equal(0, (status_of(output)))
    end)

    it("stops a guest by Ctrl-C", function()
      support.need_kvm()
      start("-i", write("test.lua", [[
        local vm = require("ckvm").open():create_vm()
        vm:add_memory { gpa = 0x1000, size = 0x1000 }
        vm:write(0x1000, "\xe6\x10\xeb\xfe") -- out 0x10, al; jmp $
        vm:attach_io { port = 0x10, count = 1, write = function() print("ready") end }
        vcpu = vm:create_vcpu(0)
        vcpu:set_sregs { cs = { base = 0, selector = 0 } }
        vcpu:set_regs { rip = 0x1000, rflags = 2 } ]]))
      expect("> ")
      input:write("vcpu:run()\n")
      expect("ready\r\n")
      input:write("\3")
      expect("interrupted!\r\n")
      expect("> ")
      assert.equal(5, finish())
    end)
  end)
end)

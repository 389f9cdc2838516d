-- The program ckvm-lua: its options, the look-up of scripts, what they find there, and the trace.

local cli = require "cli"
local lfs = require "lfs"
local support = require "support"

local contains, lacks, quote = support.contains, cli.lacks, support.quote
local run, shell, source, words = cli.run, cli.shell, cli.source, cli.words
local program, read, write = cli.program, cli.read, cli.write

describe("ckvm-lua:", function()
  before_each(cli.setup_directory)
  after_each(cli.remove_directory)

  describe("wrong use", function()
    for _, option in ipairs { "--nope", "-x", "-e", "-l", "--help=x" } do
      it("is one line, a hint and status 2: " .. option, function()
        local status, output, errors = run(option)
        assert.equal(2, status)
        assert.equal("", output)
        assert.equal(2, select(2, errors:gsub("\n", "")))
        assert.equal("ckvm-lua: ", errors:sub(1, 10))
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
      refused("cannot read " .. cli.directory, cli.directory)
    end)

    it("is one message for a file without permission", function()
      local script = write("closed.lua", "")
      os.execute("chmod 0 " .. quote(script))
      local status, _, errors = shell("exec " .. support.obedient() .. words(script))
      assert.equal(1, status)
      assert.matches("^ckvm%-lua: cannot open [^\n]+/closed.lua[^\n]+\n$", errors)
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
      assert.equal("ckvm-lua: --trace-ioctl=no/such/file: No such file or directory\n", errors)
    end)

    it("wants the name of a file after =", function()
      local status, output, errors = run("--trace-ioctl=", "-e", "print(1)")
      assert.same({ 2, "" }, { status, output })
      contains("ckvm-lua: --trace-ioctl= names no file\n", errors)
    end)
  end)
end)

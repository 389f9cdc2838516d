-- Errors of scripts that ckvm-lua runs, and standard descriptors that are full or closed.

local cli = require "cli"
local support = require "support"

local contains, lacks = support.contains, cli.lacks
local shell, source, words = cli.shell, cli.source, cli.words
local read, write = cli.read, cli.write

describe("ckvm-lua:", function()
  before_each(cli.setup_directory)
  after_each(cli.remove_directory)

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
end)

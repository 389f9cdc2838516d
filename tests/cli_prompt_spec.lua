-- The prompt of ckvm-lua: sessions by a pipe, and on a terminal.

local cli = require "cli"
local support = require "support"

local contains, lacks, quote = support.contains, cli.lacks, support.quote
local shell, words = cli.shell, cli.words
local path, status_of, write = cli.path, cli.status_of, cli.write

describe("ckvm-lua:", function()
  before_each(cli.setup_directory)
  after_each(cli.remove_directory)

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
      output = cli.popen(("script -qec %s /dev/null <fifo"):format(quote("exec " .. words(...))))
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

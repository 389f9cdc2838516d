-- Ctrl-C, SIGTERM and SIGHUP, wherever they reach ckvm-lua.

local cli = require "cli"
local support = require "support"

local contains, lacks, quote = support.contains, cli.lacks, support.quote
local shell, words = cli.shell, cli.words
local path, read, status_of, write = cli.path, cli.read, cli.status_of, cli.write

describe("ckvm-lua:", function()
  before_each(cli.setup_directory)
  after_each(cli.remove_directory)

  describe("Ctrl-C", function()
    local ready = "io.write('ready\\n') io.flush() "

    -- Sends SIGINT, or that signal, whenever the script says "ready".
    local function interrupt(text, signal)
      local pipe = cli.popen(("sh -c %s 2>err </dev/null"):format(
        quote("echo $$; exec " .. words(write("test.lua", text)))))
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
end)

-- ckvm.console: what a guest prints and what is typed, by way of a serial port.

local ckvm = require "ckvm"
local console = require "ckvm.console"
local support = require "support"
local uart = require "ckvm.dev.uart"

local blames, contains = support.blames, support.contains
local LIMITS <const> = support.LIMITS

-- Echoes what it gets until that is a dot. Polls:
local POLLING <const> =
  "\xba\xfd\x03\xec" ..  -- next: mov $0x3fd, %dx; in (%dx), %al
  "\xa8\x01\x74\xfb" ..  -- test $1, %al; jz back to the in
  "\xba\xf8\x03\xec" ..  -- mov $0x3f8, %dx; in (%dx), %al
  "\xee\x3c\x2e" ..      -- out %al, (%dx); cmp $'.', %al
  "\x75\xef\xf4"         -- jne next; hlt

-- The interrupt handler of one that sleeps, which ends with an out to port 0xf4.
local HANDLER <const> =
  "\xba\xfd\x03\xec" ..      -- next: mov $0x3fd, %dx; in (%dx), %al
  "\xa8\x01\x74\x0d" ..      -- test $1, %al; jz done
  "\xba\xf8\x03\xec" ..      -- mov $0x3f8, %dx; in (%dx), %al
  "\xee\x3c\x2e\x75\xef" ..  -- out %al, (%dx); cmp $'.', %al; jne next
  "\xe6\xf4\xeb\xeb" ..      -- out %al, $0xf4; jmp next
  "\xb0\x20\xe6\x20\xcf"    -- done: mov $0x20, %al; out %al, $0x20 (EOI); iret
local SLEEPING <const> =
  "\xb0\x11\xe6\x20\xb0\x20\xe6\x21" ..  -- the PIC: ICW1; ICW2, vectors from 0x20 on
  "\xb0\x04\xe6\x21\xb0\x01\xe6\x21" ..  -- ICW3; ICW4
  "\xb0\xef\xe6\x21" ..                  -- line 4 only
  "\xba\xfc\x03\xb0\x08\xee" ..          -- MCR: OUT2
  "\xba\xf9\x03\xb0\x01\xee" ..          -- IER: data
  "\xfb\xf4\xeb\xfd"                     -- sti; hlt, again and again

-- A guest that switched the FIFO on itself would clear it.
local function connect(vm, con, irq)
  local device = uart.new {
    irq = irq, write = function(bytes) con:write(bytes) end, ready = function() con:ready() end,
  }
  vm:attach_io { port = 0x3f8, count = 8, device = device }
  if irq then device:write(2, 1, 1) end
  con:connect(vm, device)
end

local function polling(con)
  local _, vm, vcpu = support.real_mode(POLLING)
  connect(vm, con)
  return vm, vcpu
end

-- Its run is stopped at the dot.
local function sleeping(con)
  local vm = ckvm.open():create_vm()
  vm:create_irqchip()
  vm:add_memory { gpa = 0, size = 0x10000 }
  vm:write(0x24 * 4, "\0\x20\0\0") -- vector of line 4: 0x2000
  vm:write(0x1000, SLEEPING)
  vm:write(0x2000, HANDLER)
  local vcpu = vm:create_vcpu(0)
  vcpu:set_sregs { cs = { base = 0, selector = 0 } }
  vcpu:set_regs { rip = 0x1000, rsp = 0x8000, rflags = 2 }
  vm:attach_io { port = 0xf4, write = function() vcpu:stop "dot" end }
  connect(vm, con, function(level) vm:irq_line { irq = 4, level = level } end)
  return vm, vcpu
end

-- Longer than any FIFO.
local LONG <const> = ("0123456789abcdef~"):rep(40) .. "."

describe("ckvm.console", function()
  it("refuses options that it does not know, and wrong ones", function()
    blames("console: unknown option 'two'", console.new, { two = "pty" })
    blames("console: to: string expected, got integer", console.new, { to = 1 })
    blames("console: input: a console to 'pty' has its own", console.new,
      { to = "pty", input = "" })
    blames("console: input: a console to 'terminal' has its own", console.new, { input = "" })
    blames("/no/such/file: No such file", console.new, { to = "/no/such/file" })
    blames("text: the console is not to a string", function()
      return console.new({ to = "/dev/null" }):text()
    end)
    blames("write: string expected, got nil", console.write, console.new { to = "string" })
  end)

  it("refuses a device that receives nothing, a second one, and any when it is closed", function()
    support.need_kvm()
    local con <close> = console.new { to = "string" }
    local vm = ckvm.open():create_vm()
    blames("connect: a device with receive and room expected", con.connect, con, vm, {})
    blames("connect: vm: VM expected, got nil", con.connect, con, nil, uart.new {})
    con:connect(vm, uart.new {})
    blames("connect: this console has a device", con.connect, con, vm, uart.new {})
    for _, to in ipairs { "terminal", "string", "/dev/null" } do
      local closed = console.new { to = to }
      closed:close()
      blames("connect: this console is closed", closed.connect, closed, vm, uart.new {})
    end
  end)

  it("tells whether a line has begun", function()
    local con <close> = console.new { to = "string" }
    assert.is_false(con:in_line())
    con:write("$ ")
    assert.is_true(con:in_line())
    con:write("\n")
    assert.is_false(con:in_line())
  end)

  it("may be closed twice, and printed to then", function()
    local con = console.new { to = "pty" }
    con:close()
    con:close()
    con:write("x")
    con:ready()
  end)

  for name, guest in pairs { ["a guest that polls"] = polling, ["one that sleeps"] = sleeping } do
    describe("with " .. name, function()
      before_each(support.need_kvm)

      it("types a string and collects what is printed", function()
        local con <close> = console.new { to = "string", input = "one\ntwo\0\255." }
        local _, vcpu = guest(con)
        assert(vcpu:run(LIMITS) ~= "timeout")
        assert.equal("one\ntwo\0\255.", con:text())
      end)

      it("goes both ways through a pseudo-terminal, with more than there is room for", function()
        local con <close> = console.new { to = "pty" }
        local vm, vcpu = guest(con)
        local other <close> = io.open(con.path, "r+")
        other:setvbuf("no")
        local sent, got = 0, ""
        vm:watch(other, "read", function()
          got = got .. ckvm.read_available(other)
        end)
        local sending
        sending = vm:watch(other, "write", function()
          other:write(LONG:sub(sent + 1, sent + 100))
          sent = sent + 100
          if sent >= #LONG then sending:detach() end
        end)
        local why = vcpu:run(LIMITS)
        assert(why == "hlt" or why == "stopped", why)
        local deadline <const> = ckvm.now() + 20 -- the kernel hands it on by and by
        while #got < #LONG and ckvm.now() < deadline do
          got = got .. ckvm.read_available(other)
        end
        assert(got == LONG, "what comes back differs")
      end)
    end)
  end

  describe("to a pseudo-terminal", function()
    before_each(support.need_kvm)

    it("goes on when a program that has used it ends", function()
      local con <close> = console.new { to = "pty" }
      local vm, vcpu = sleeping(con)
      io.open(con.path, "r+"):close()
      local other
      vm:after(0.05, function()
        other = io.open(con.path, "r+")
        other:setvbuf("no")
        other:write(".")
      end)
      assert.same({ "stopped", "dot" }, { vcpu:run(LIMITS) })
      assert.equal(".", other:read(1))
      other:close()
    end)

    it("does not wait for anybody to read", function()
      local con <close> = console.new { to = "pty" }
      for _ = 1, 200 do con:write(("x"):rep(1000)) end
    end)

    it("leaves no descriptor", function()
      local before <const> = support.settled_fds()
      for _ = 1, 5 do
        local con <close> = console.new { to = "pty" }
        local vm = polling(con)
        vm:close()
      end
      assert.equal(before, support.settled_fds())
    end)
  end)

  describe("to a file", function()
    before_each(support.need_kvm)

    it("writes there at once", function()
      local name = os.tmpname()
      local con <close> = console.new { to = name, input = "text." }
      local _, vcpu = polling(con)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      local file <close> = io.open(name)
      assert.equal("text.", file:read("a"))
      os.remove(name)
    end)

    it("raises when that is full", function()
      local con <close> = console.new { to = "/dev/full", input = "." }
      local _, vcpu = polling(con)
      contains("console: /dev/full: No space left", support.error_of(vcpu.run, vcpu, LIMITS))
    end)
  end)

  describe("to standard input", function()
    before_each(support.need_kvm)

    -- How often a guest's run is left for that file, while it reads nothing for a while.
    local function count_calls(file)
      local stdin <const> = io.stdin
      rawset(io, "stdin", file)
      local con <close> = console.new()
      rawset(io, "stdin", stdin)
      local _, vm, vcpu = support.real_mode("\xeb\xfe") -- jmp .
      local calls = 0
      local counter = {}
      function counter.watch(_, input, what, handler)
        return vm:watch(input, what, function(...)
          calls = calls + 1
          handler(...)
          vcpu:stop()
        end)
      end
      con:connect(counter, uart.new {})
      assert.equal("stopped", (vcpu:run(LIMITS)))
      assert.equal("timeout", (vcpu:run { timeout = 0.3 }))
      return calls
    end

    it("leaves the guest once for the end, and no more", function()
      local file <close> = io.open("/dev/null")
      assert.equal(1, count_calls(file))
    end)

    it("leaves it no more while there is no room", function()
      local file <close> = io.tmpfile()
      file:write(("x"):rep(9999))
      file:seek("set")
      assert.equal(1, count_calls(file))
    end)
  end)

  -- A guest in a ckvm-lua of its own that prints "ready" and echoes.
  local SCRIPT <const> = [[
    local ckvm, console = require "ckvm", require "ckvm.console"
    local vm = ckvm.open():create_vm()
    vm:add_memory { gpa = 0, size = 0x10000 }
    vm:write(0x1000, %q)
    local vcpu = vm:create_vcpu(0)
    vcpu:set_sregs { cs = { base = 0, selector = 0 } }
    vcpu:set_regs { rip = 0x1000, rflags = 2 }
    local con = console.new()
    local device = require("ckvm.dev.uart").new {
      write = function(bytes) con:write(bytes) end, ready = function() con:ready() end,
    }
    vm:attach_io { port = 0x3f8, count = 8, device = device }
    con:connect(vm, device)
    io.stderr:write(io.open("/proc/self/stat"):read("n"), "\n")
    con:write("ready\n")
    local why, value = vcpu:run { timeout = tonumber(os.getenv "LIMIT") or 20 }
    io.stderr:write(why, " ", value or "", "\n")
    %s ]]

  local function write_script(code, rest)
    local name = os.tmpname()
    local file <close> = assert(io.open(name, "w"))
    file:write(SCRIPT:format(code, rest or ""))
    return name
  end

  describe("to standard input and output that are no terminal", function()
    before_each(support.need_kvm)

    -- What it prints, and how it ended, with that before the command and after it.
    local function run(before, after)
      local name = write_script(POLLING)
      local pipe = io.popen(("exec 2>&1; %s timeout -k 5 90 %s %s %s"):format(before,
        support.quote(support.program()), name, after or ""))
      local output = pipe:read("a")
      assert.is_true(pipe:close())
      os.remove(name)
      return (output:gsub("^%d+\n", ""))
    end

    it("hands on all bytes, a Ctrl-A too", function()
      assert.equal("ready\na\1x\3b.hlt \n", run "printf 'a\\001x\\003b.' |")
    end)

    it("hands on more than there is room for, and waits", function()
      local text = ("x"):rep(4200) .. "." -- than is read at once, too
      assert.equal("ready\n" .. text .. "hlt \n", run("printf %s " .. text .. " | LIMIT=60"))
    end)

    it("goes on after the end of the input, and with none", function()
      assert.equal("ready\natimeout \n", run("printf a | LIMIT=0.4"))
      assert.equal("ready\ntimeout \n", run("LIMIT=0.4", "</dev/null"))
      assert.equal("ready\ntimeout \n", run("LIMIT=0.4", "<&-"))
    end)
  end)

  describe("to a terminal", function()
    local pause <const> = ckvm.eventfd()
    local master, path, slave, pipe, name
    before_each(support.need_kvm)

    local function settings()
      local stty <close> = assert(io.popen("stty -g <" .. path))
      return stty:read("l") or support.skip("no stty")
    end

    -- Starts the guest in a terminal; returns what the settings were before.
    local function start(code, rest)
      master, path, slave = ckvm.pty()
      assert(os.execute("stty sane <" .. path))
      local before = settings()
      name = write_script(code or POLLING, rest)
      pipe = io.popen(("exec timeout -k 5 20 %s %s <%s >%s 2>&1"):format(
        support.quote(support.program()), name, path, path))
      return before
    end

    -- Reads up to that; all that was read.
    local function expect(text)
      local got, deadline = "", ckvm.now() + 20
      repeat
        local byte = ckvm.read_available(master, 1)
        if byte == "" then pause:wait { timeout = 0.001 } end
        got = got .. byte
        assert(ckvm.now() < deadline, got)
      until got:sub(-#text) == text
      return got
    end

    local function finish(before)
      local _, how, status = pipe:close()
      os.remove(name)
      assert.equal(before, settings())
      slave:close()
      return how == "exit" and status or -status
    end

    it("hands on all keys but Ctrl-A, unchanged and without echo", function()
      local before = start()
      expect "ready\r\n"
      assert.not_equal(before, settings())
      master:write("\3\26\4\r\17.")
      assert.equal("\3\26\4\r\17.hlt \r\n", expect "hlt \r\n")
      assert.equal(0, finish(before))
    end)

    it("has a Ctrl-A of Ctrl-A a, and help", function()
      local before = start()
      expect "ready\r\n"
      master:write("\1a\1\1\1?\1zb.")
      local got = expect "hlt \r\n"
      contains("Ctrl-A x  ends the run\r\n", got)
      assert.equal("\1\1b.", (got:gsub("\r\nCtrl%-A x.-prints this\r\n", ""):gsub("hlt \r\n", "")))
      assert.equal(0, finish(before))
    end)

    it("ends a guest that reads nothing, whatever was typed before", function()
      local before = start "\xeb\xfe" -- jmp .
      expect "ready\r\n"
      master:write(("x"):rep(1000))
      master:write("\1")
      master:write("x")
      expect "stopped quit\r\n"
      assert.equal(0, finish(before))
    end)

    it("is put back after an error, and by os.exit", function()
      for rest, status in pairs { ["error 'oops'"] = 1, ["os.exit(7, true)"] = 7,
        ["os.exit(8)"] = 8 } do
        local before = start(nil, rest)
        expect "ready\r\n"
        master:write(".")
        assert.equal(status, finish(before))
      end
    end)

    for signal, number in pairs { INT = 2, TERM = 15, HUP = 1 } do
      it("is put back after SIG" .. signal .. " in the guest", function()
        local before = start "\xeb\xfe" -- jmp .
        local pid <const> = expect("ready\r\n"):match("^%d+")
        master:write("x")
        assert(os.execute(("kill -%s %s"):format(signal, pid)))
        contains("interrupted!", expect "in main chunk")
        assert.equal(128 + number, finish(before))
      end)
    end
  end)
end)

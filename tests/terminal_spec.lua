-- ckvm.pty, ckvm.read_available and ckvm.raw_terminal: what the io library lacks for a console.

local ckvm = require "ckvm"
local support = require "support"

local contains, error_of = support.contains, support.error_of

-- What stty(1) tells of a terminal, in one line.
local function settings(path)
  local pipe <close> = assert(io.popen("stty -g <" .. path))
  local text = pipe:read("l")
  if not text then support.skip("no stty") end
  return text
end

-- A pseudo-terminal that does what terminals do: lines, echo, Ctrl-C.
local function cooked()
  local master, path, slave = ckvm.pty()
  assert(os.execute("stty sane <" .. path))
  return master, path, slave
end

describe("ckvm.pty", function()
  it("hands on bytes unchanged, both ways", function()
    local bytes = "\0\1\3\4\n\r\n\17\19\26\127\255\xff\xff\0"
    local master, path, slave = ckvm.pty()
    master:write(bytes)
    assert.equal(bytes, slave:read(#bytes))
    slave:write(bytes)
    assert.equal(bytes, ckvm.read_available(master))
    local other <close> = io.open(path, "r+")
    other:setvbuf("no")
    other:write("more")
    assert.equal("more", ckvm.read_available(master))
  end)

  it("ends with its last user, and not before", function()
    local master, path, slave = ckvm.pty()
    io.open(path, "r+"):close()
    assert.equal("", ckvm.read_available(master))
    slave:close()
    assert.is_nil(ckvm.read_available(master))
  end)

  it("does not wait for a reader: the rest is lost", function()
    local master = ckvm.pty()
    local written
    for _ = 1, 1000 do
      written = master:write(("x"):rep(1000))
      if not written then break end
    end
    assert.is_nil(written)
  end)

  it("makes files that close, also by themselves", function()
    local before <const> = support.settled_fds()
    for _ = 1, 10 do
      local master, _, slave = ckvm.pty()
      master:close()
      contains("closed", tostring(master))
      assert.is_nil(ckvm.read_available(slave)) -- hung up
    end
    assert.equal(before, support.settled_fds())
  end)
end)

describe("ckvm.read_available", function()
  it("reads what is there, up to the end", function()
    local file <close> = assert(io.tmpfile())
    file:write("0123456789")
    file:seek("set")
    assert.equal("012", ckvm.read_available(file, 3))
    assert.equal("3456789", ckvm.read_available(file))
    assert.is_nil(ckvm.read_available(file))
  end)

  it("takes a descriptor's number, and an eventfd", function()
    local event <close> = ckvm.eventfd { initval = 7 }
    assert.equal("", ckvm.read_available(ckvm.eventfd()))
    assert.equal(string.pack("=I8", 7), ckvm.read_available(event.fd))
    event:signal(8)
    assert.equal(string.pack("=I8", 8), ckvm.read_available(event))
  end)

  it("refuses what is no file, and no number of bytes", function()
    contains("read_available: file expected, got no value", error_of(ckvm.read_available))
    contains("read_available: file expected, got string", error_of(ckvm.read_available, "0"))
    contains("-1 is no descriptor", error_of(ckvm.read_available, -1))
    for _, most in ipairs { 0, -1, 4097, math.maxinteger } do
      contains("not between 1 and 4096", error_of(ckvm.read_available, 0, most))
    end
    local file = io.tmpfile()
    file:close()
    contains("file is closed", error_of(ckvm.read_available, file))
    assert.equal("EBADF", error_of(ckvm.read_available, 1 << 20).code)
    local directory <close> = io.open("/")
    assert.equal("EISDIR", error_of(ckvm.read_available, directory).code)
    local pipe <close> = io.popen("cat >/dev/null", "w")
    assert.equal("EBADF", error_of(ckvm.read_available, pipe).code)
    assert.equal("EINVAL", error_of(ckvm.read_available, ckvm.eventfd { initval = 1 }, 7).code)
  end)
end)

describe("ckvm.raw_terminal", function()
  it("has keys handed on as they are, until it is closed", function()
    local master, path, slave = cooked()
    local before = settings(path)
    local terminal = ckvm.raw_terminal(slave)
    assert.not_equal(before, settings(path))
    master:write("\3\4\r")
    assert.equal("\3\4\r", ckvm.read_available(slave))
    assert.equal("", ckvm.read_available(master)) -- no echo
    terminal:close()
    terminal:close()
    assert.equal(before, settings(path))
  end)

  it("leaves output as it was", function()
    local master, _, slave = cooked()
    local _ <close> = ckvm.raw_terminal(slave)
    slave:write("line\n")
    assert.equal("line\r\n", ckvm.read_available(master))
  end)

  it("puts it back when it is collected, also where its file is closed", function()
    local _, path, slave = cooked()
    local before = settings(path)
    ckvm.raw_terminal(slave)
    slave:close()
    support.collect()
    assert.equal(before, settings(path))
  end)

  it("puts it back with the last of several, in any order", function()
    local _, path, slave = cooked()
    local before = settings(path)
    local terminals = {}
    for i = 1, 3 do terminals[i] = ckvm.raw_terminal(slave) end
    for _, i in ipairs { 2, 1, 3 } do
      assert.not_equal(before, settings(path))
      terminals[i]:close()
    end
    assert.equal(before, settings(path))
  end)

  it("knows a terminal by either of its sides, and from others", function()
    local one, path, slave = cooked()
    local other, other_path = cooked()
    local before <const>, raw = settings(path), {}
    for i, file in ipairs { one, slave, other } do raw[i] = ckvm.raw_terminal(file) end
    raw[1]:close()
    assert.not_equal(before, settings(path))
    raw[2]:close()
    assert.equal(before, settings(path))
    assert.not_equal(before, settings(other_path))
    raw[3]:close()
    assert.equal(before, settings(other_path))
  end)

  it("refuses what is no terminal", function()
    local file <close> = io.open("/dev/null")
    assert.equal("ENOTTY", error_of(ckvm.raw_terminal, file).code)
    assert.equal("EBADF", error_of(ckvm.raw_terminal, 1 << 20).code)
    contains("raw_terminal: file expected, got boolean", error_of(ckvm.raw_terminal, true))
  end)

  describe("puts it back when the program ends", function()
    local RAW <const> = "ckvm = require 'ckvm'; terminal = ckvm.raw_terminal(io.stdin) "

    -- Runs a script with a terminal as its input; returns its exit status.
    local function ends(script, shell)
      local _, path, slave = cooked()
      local before = settings(path)
      local name = os.tmpname()
      local file = assert(io.open(name, "w"))
      file:write(RAW, script)
      file:close()
      local command = ("exec 2>/dev/null; (%s timeout -k 5 20 %s %s <%s >/dev/null); echo $?")
        :format(shell or "", support.quote(support.program()), name, path)
      local pipe = io.popen(command)
      local status = pipe:read("n")
      pipe:close()
      os.remove(name)
      assert.equal(before, settings(path))
      slave:close()
      return status
    end

    local kill <const> = "local pid = io.open('/proc/self/stat'):read('n') "
    -- Not by os.execute, which ignores some of them meanwhile.
    local function kill_by(signal)
      return kill .. "io.popen('kill -" .. signal .. " ' .. pid):close() "
    end

    it("by itself", function() assert.equal(0, ends "") end)
    it("by an error", function() assert.equal(1, ends "error 'oops'") end)
    it("by os.exit that closes the state", function() assert.equal(3, ends "os.exit(3, true)") end)
    it("by os.exit that does not", function() assert.equal(4, ends "os.exit(4)") end)

    for signal, number in pairs { INT = 2, TERM = 15, HUP = 1 } do
      it("by SIG" .. signal, function()
        assert.equal(128 + number, ends(kill_by(signal) .. "while true do end"))
      end)

      it("by a second SIG" .. signal, function()
        assert.equal(128 + number, ends("pcall(function() " .. kill_by(signal)
          .. "while true do end end)" .. kill_by(signal) .. "while true do end"))
      end)
    end

    it("by SIGPIPE", function()
      assert.equal(141, ends([[
        local pipe = io.popen("exec <&-; sleep 0.3", "w")
        pipe:setvbuf("no")
        while true do pipe:write("x") end ]]))
    end)

    it("by SIGQUIT", function()
      assert.equal(131, ends(kill_by "QUIT" .. "while true do end", "ulimit -c 0;"))
    end)
  end)
end)

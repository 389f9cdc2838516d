-- Ranges that never enter Lua, with a value or a log, and batched ones.

local ckvm = require "ckvm"
local support = require "support"

local error_of, contains = support.error_of, support.contains
local guest, LIMITS, noter = support.guest, support.LIMITS, support.noter

local IN <const> = "\xe4\x10"              -- in $0x10, %al
local INW <const> = "\xe5\x10"             -- in $0x10, %ax
local OUT <const> = "\xe6\x10"             -- out %al, $0x10
local OUTW <const> = "\xe7\x10"            -- out %ax, $0x10
local OUTL <const> = "\x66\xe7\x10"        -- out %eax, $0x10
local STORE <const> = "\xa2\x00\x80"       -- mov %al, (0x8000)
local INC <const> = "\xfe\xc0"             -- inc %al
local HLT <const> = "\xf4"                 -- hlt
local SPIN <const> = "\xeb\xfe"            -- jmp .

local function nothing() end

describe("a range with a value", function()
  before_each(support.need_kvm)

  it("answers reads with its low bytes, and swallows writes", function()
    local _, vm, vcpu = guest(OUT .. INW .. "\xa2\x00\x80\x8a\x1e\x00\x80" -- mov (0x8000), %bl
      .. HLT)
    vm:attach_io { port = 0x10, value = 0x11223344 }
    vm:attach_mmio { gpa = 0x8000, size = 8, value = -2 }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(0x3344, vcpu.regs.rax)
    assert.equal(0xfe, vcpu.regs.rbx)
  end)

  it("never enters Lua", function()
    local _, vm, vcpu = guest(IN .. OUT .. HLT)
    vm:attach_io { port = 0x10, value = 1 }
    vm:on("io_in", function() error("in Lua") end)
    vm:on("io_out", function() error("in Lua") end)
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)

  it("may have a write handler, or a log", function()
    local _, vm, vcpu = guest(IN .. OUT .. HLT)
    local written
    local range = vm:attach_io {
      port = 0x10, value = 7, write = function(_, value) written = value end,
    }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(7, written)
    range:detach()
    local buffer = ckvm.buffer(16)
    vm:attach_io { port = 0x10, value = 8, log = buffer }
    vcpu:set_regs { rip = 0x1000 }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal("\8", buffer:take())
  end)

  it("answers each element of a string instruction", function()
    local _, vm, vcpu = guest("\xbf\x00\x20" -- mov $0x2000, %di
      .. "\xba\x10\x00"                      -- mov $0x10, %dx
      .. "\xb9\x04\x00"                      -- mov $4, %cx
      .. "\xf3\x6d"                          -- rep insw
      .. HLT)
    vm:attach_io { port = 0x10, value = 0x4142 }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal("BABABABA", vm:read(0x2000, 8))
  end)
end)

describe("ckvm.buffer", function()
  it("refuses sizes that are not of memory", function()
    contains("0 bytes", error_of(ckvm.buffer, 0))
    contains("-1 bytes", error_of(ckvm.buffer, -1))
    error_of(ckvm.buffer)
    error_of(ckvm.buffer, {})
    error_of(ckvm.buffer, 1.5)
    contains("number expected, got string", error_of(ckvm.buffer, "10"))
    assert.equal("ENOMEM", error_of(ckvm.buffer, 1 << 60).code)
    error_of(ckvm.buffer, math.maxinteger)
  end)

  it("is empty at first, and refuses to be used once closed", function()
    local buffer = ckvm.buffer(8)
    assert.equal("", buffer:take())
    assert.equal(0, buffer.length)
    assert.equal(8, buffer.size)
    buffer:close()
    buffer:close()
    contains("buffer is closed", error_of(buffer.take, buffer))
  end)

  it("refuses to take what is not a length", function()
    local buffer = ckvm.buffer(8)
    contains("negative", error_of(buffer.take, buffer, -1))
    error_of(buffer.take, buffer, "x")
    contains("number expected, got string", error_of(buffer.take, buffer, "1"))
    error_of(buffer.take, buffer, 0.5)
  end)
end)

describe("a range with a log", function()
  before_each(support.need_kvm)

  it("keeps the bytes of each write in order", function()
    local _, vm, vcpu = guest("\x66\xb8ABCD" -- mov $0x44434241, %eax
      .. OUT .. OUTW .. OUTL
      .. "\x66\xa3\x00\x80"                  -- mov %eax, (0x8000)
      .. HLT)
    local buffer = ckvm.buffer(64)
    vm:attach_io { port = 0x10, log = buffer }
    vm:attach_mmio { gpa = 0x8000, size = 1, log = buffer }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(11, buffer.length)
    assert.equal("AABABCDABCD", buffer:take())
    assert.equal("", buffer:take())
  end)

  it("gives its bytes in parts, oldest first", function()
    local _, vm, vcpu = guest("\x66\xb8ABCD" .. OUTL .. HLT) -- mov $0x44434241, %eax
    local buffer = ckvm.buffer(64)
    vm:attach_io { port = 0x10, log = buffer }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal("A", buffer:take(1))
    assert.equal("", buffer:take(0))
    assert.equal("BC", buffer:take(2))
    assert.equal("D", buffer:take(1000))
  end)

  it("wraps around", function()
    local _, vm, vcpu = guest(OUT .. INC .. OUT .. INC .. OUT .. INC .. HLT
      .. "\xeb\xf1") -- and again
    local buffer = ckvm.buffer(4)
    vm:attach_io { port = 0x10, log = buffer }
    for i = 0, 20 do
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(string.char(i * 3, i * 3 + 1, i * 3 + 2), buffer:take())
    end
  end)

  it("sends a write that finds it full where unclaimed ones go", function()
    local _, vm, vcpu = guest("\xb8\x41\x42" .. OUT .. OUTW .. OUT .. OUT .. HLT)
    local buffer = ckvm.buffer(2)
    vm:attach_io { port = 0x10, log = buffer }
    assert.equal("io_out", (vcpu:run(LIMITS))) -- not half of it
    assert.equal(0x4241, vcpu.exit.data)
    local caught = {}
    vm:on("io_out", noter(caught))
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal("AA", buffer:take())
    assert.same({ { n = 4, 0x10, 0x41, 1, vcpu } }, caught)
  end)

  it("outlives the object, and the buffer outlives the VM", function()
    local _, vm, vcpu = guest(OUT .. HLT)
    local buffer = ckvm.buffer(8)
    vm:attach_io { port = 0x10, log = buffer }
    vm:attach_io { port = 0x20, log = ckvm.buffer(8) }
    support.collect()
    assert.equal("hlt", (vcpu:run(LIMITS)))
    vm:close()
    assert.equal("\0", buffer:take())
  end)

  it("goes on when the buffer is closed", function()
    local _, vm, vcpu = guest(OUT .. HLT)
    local buffer = ckvm.buffer(8)
    vm:attach_io { port = 0x10, log = buffer }
    buffer:close()
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)
end)

-- The two kinds of batched range, and a write to each.
local batched = {
  { "by port", "attach_io", { port = 0x10 }, OUT, 0x10 },
  { "by MMIO", "attach_mmio", { gpa = 0x8000, size = 0x10 }, STORE, 0x8000 },
}
for _, kind in ipairs(batched) do
  local name <const>, method <const>, where <const>, WRITE <const>, address <const> =
    table.unpack(kind)

  describe("a batched range " .. name, function()
    before_each(support.need_kvm)

    local function attach(vm, write)
      local options = { batch = true, write = write }
      for key, value in pairs(where) do options[key] = value end
      return vm[method](vm, options)
    end

    -- 1: write; inc %al; loop 1b: so many times.
    local function repeated(count)
      local body = WRITE .. INC
      return "\xb9" .. string.pack("<I2", count) .. body .. "\xe2" .. string.char(0xfe - #body)
    end

    it("queues writes without an exit", function()
      local _, vm, vcpu = guest(repeated(5) .. HLT)
      local seen = {}
      attach(vm, noter(seen))
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(5, #seen)
      assert.equal(1, vcpu.stats.total)
      assert.equal(5, vcpu.stats.batched)
    end)

    it("delivers them in order, whole, with no vCPU", function()
      local _, vm, vcpu = guest(repeated(100) .. HLT)
      local seen = {}
      attach(vm, noter(seen))
      assert.equal("hlt", (vcpu:run(LIMITS)))
      for i = 1, 100 do assert.same({ n = 4, address, i - 1, 1, nil }, seen[i]) end
    end)

    it("delivers them before any later exit is handled", function()
      local OTHER <const> = "\xe6\x20" -- out %al, $0x20
      local _, vm, vcpu = guest(WRITE .. INC .. WRITE .. OTHER .. INC .. WRITE .. INC
        .. "\xe4\x20" .. WRITE .. HLT) -- in $0x20, %al
      local order = {}
      attach(vm, function(_, value) table.insert(order, value) end)
      vm:attach_io {
        port = 0x20,
        write = function() table.insert(order, "out") end,
        read = function()
          table.insert(order, "in")
          return 9
        end,
      }
      vm:on("hlt", function()
        table.insert(order, "hlt")
        return false
      end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ 0, 1, "out", 2, "in", 9, "hlt" }, order)
    end)

    it("delivers every write in order when the kernel's queue is full", function()
      local _, vm, vcpu = guest(repeated(600) .. HLT)
      local seen = {}
      attach(vm, function(_, value) table.insert(seen, value) end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(600, #seen)
      for i = 1, 600 do assert.equal((i - 1) & 0xff, seen[i]) end
    end)

    it("carries no vCPU when the kernel's queue is full, either", function()
      local _, vm, vcpu = guest(repeated(600) .. HLT)
      local with_vcpu = 0
      attach(vm, function(_, _, _, from) with_vcpu = with_vcpu + (from and 1 or 0) end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(0, with_vcpu)
    end)

    it("delivers before run returns for a timeout", function()
      local writes <const>, seen = repeated(3), {}
      local _, vm, vcpu = guest(writes .. SPIN)
      attach(vm, noter(seen))
      for _ = 1, 20 do -- on a busy machine the first may end before the guest has begun
        assert.equal("timeout", (vcpu:run { timeout = 0.3 }))
        if vcpu.regs.rip == 0x1000 + #writes then break end
      end
      assert.equal(3, #seen)
    end)

    it("delivers before run returns for a kick, a stop and a budget", function()
      local OTHER <const> = "\xe6\x20" -- out %al, $0x20
      local _, vm, vcpu = guest(WRITE .. OTHER .. WRITE .. OTHER .. WRITE .. OTHER .. SPIN)
      local seen, action = {}, nil
      attach(vm, noter(seen))
      vm:attach_io { port = 0x20, write = function() action() end }
      action = function() vcpu:kick() end
      assert.equal("kicked", (vcpu:run(LIMITS)))
      assert.equal(1, #seen)
      action = function() vcpu:stop() end
      assert.equal("stopped", (vcpu:run(LIMITS)))
      assert.equal(2, #seen)
      action = nothing
      assert.equal("exits", (vcpu:run { exits = 1, timeout = 20 }))
      assert.equal(3, #seen)
    end)

    it("delivers what run_once queued before the next run returns, for any reason", function()
      for _, limits in ipairs { { exits = 0 }, { timeout = 0 }, false } do
        local _, vm, vcpu = guest(repeated(3) .. HLT)
        local seen = {}
        attach(vm, noter(seen))
        assert.equal("hlt", vcpu:run_once())
        assert.equal(0, #seen) -- nothing dispatched
        if not limits then vcpu:kick() end
        vcpu:run(limits or LIMITS)
        assert.equal(3, #seen)
      end
    end)

    it("passes on what a handler raises, and the next run delivers the rest", function()
      local _, vm, vcpu = guest(repeated(5) .. HLT)
      local seen, oops = {}, {}
      attach(vm, function(_, value)
        table.insert(seen, value)
        if value == 2 then error(oops) end
      end)
      assert.equal(oops, error_of(vcpu.run, vcpu, LIMITS))
      assert.same({ 0, 1, 2 }, seen)
      vcpu:run(LIMITS)
      assert.same({ 0, 1, 2, 3, 4 }, seen)
    end)

    -- The exit that came with queued writes, whose handler is the first to be called.
    local function failing(code)
      local _, vm, vcpu = guest(code)
      local oops = {}
      attach(vm, function()
        if oops then
          local err = oops
          oops = nil
          error(err)
        end
      end)
      local seen = {}
      vm:attach_io { port = 0x20, read = function()
        table.insert(seen, "read")
        return 5
      end, write = function(_, value) table.insert(seen, value) end }
      assert.equal("table", type(error_of(vcpu.run, vcpu, LIMITS)))
      return vcpu, seen
    end
    local PORT_OUT <const>, PORT_IN <const> = "\xe6\x20", "\xe4\x20" -- out %al, $0x20; in

    it("whose handler raises loses no exit behind it", function()
      local vcpu, seen = failing(repeated(1) .. PORT_OUT .. HLT)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(1, #seen)
      vcpu, seen = failing(repeated(1) .. PORT_IN .. PORT_OUT .. HLT)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ "read", 5 }, seen)
      vcpu = failing(repeated(1) .. HLT .. PORT_OUT .. HLT)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(0, vcpu.stats.exits.io_out or 0)
    end)

    it("whose handler raises has the exit behind it for run_once, and for finish", function()
      local vcpu, seen = failing(repeated(1) .. PORT_IN .. PORT_OUT .. HLT)
      assert.equal("io_in", vcpu:run_once())
      vcpu.exit.data = 7
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ 7 }, seen)
      vcpu, seen = failing(repeated(1) .. PORT_IN .. PORT_OUT .. HLT)
      vcpu:finish()
      assert.same({ "read" }, seen)
      assert.equal(5, vcpu.regs.rax & 0xff)
    end)

    it("whose handler raises keeps the exit behind it, also from runs that are over", function()
      local vcpu, seen = failing(repeated(1) .. PORT_OUT .. HLT)
      assert.equal("timeout", (vcpu:run { timeout = 0 }))
      assert.equal("exits", (vcpu:run { exits = 0 }))
      vcpu:kick()
      assert.equal("kicked", (vcpu:run(LIMITS)))
      assert.same({}, seen)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(1, #seen)
    end)

    it("whose coroutine is closed loses no exit behind it", function()
      local _, vm, vcpu = guest(repeated(1) .. PORT_OUT .. HLT)
      local count = 0
      attach(vm, function() coroutine.yield() end)
      vm:attach_io { port = 0x20, write = function() count = count + 1 end }
      local co = coroutine.create(function() vcpu:run(LIMITS) end)
      coroutine.resume(co)
      coroutine.close(co)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(1, count)
    end)

    it("lets its handler yield", function()
      local _, vm, vcpu = guest(repeated(5) .. HLT)
      attach(vm, function(_, value) coroutine.yield(value) end)
      local run = coroutine.wrap(function() return (vcpu:run(LIMITS)) end)
      for i = 0, 4 do assert.equal(i, run()) end
      assert.equal("hlt", run())
    end)

    it("lets its handler stop the run, also before an exit that nobody handles", function()
      local _, vm, vcpu = guest(repeated(1) .. HLT)
      attach(vm, function() vcpu:stop("enough") end)
      assert.same({ "stopped", "enough" }, { vcpu:run(LIMITS) })
      assert.equal("hlt", vcpu.exit.reason)
    end)

    it("lets its handler stop the run, after the rest and the exit behind it", function()
      local _, vm, vcpu = guest(repeated(5) .. OUT .. OUT .. HLT)
      local count, exits = 0, 0
      attach(vm, function(_, value)
        count = count + 1
        if value == 1 then vcpu:stop("enough") end
      end)
      if method == "attach_mmio" then
        vm:attach_io { port = 0x10, write = function() exits = exits + 1 end }
        assert.same({ "stopped", "enough" }, { vcpu:run(LIMITS) })
        assert.equal(1, exits)
        assert.equal(5, count)
      else
        vcpu:run(LIMITS)
        assert.equal(7, count)
      end
    end)

    it("drops what is queued for it when it is detached", function()
      local _, vm, vcpu = guest(repeated(5) .. HLT)
      local seen, range = {}, nil
      range = attach(vm, function(_, value)
        table.insert(seen, value)
        if value == 1 then range:detach() end
      end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ 0, 1 }, seen)
      vcpu:set_regs { rip = 0x1000 }
      assert.equal(method == "attach_io" and "io_out" or "mmio_write", (vcpu:run(LIMITS)))
      assert.same({ 0, 1 }, seen)
    end)

    it("leaves what is queued to the one that takes its place", function()
      local _, vm, vcpu = guest(repeated(5) .. HLT)
      local seen, range = {}, nil
      range = attach(vm, function()
        range:detach()
        attach(vm, noter(seen))
      end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(4, #seen)
    end)

    it("leaves what is queued to vm:on when it is detached", function()
      local _, vm, vcpu = guest(repeated(3) .. HLT)
      local range, caught = attach(vm, nothing), {}
      vm:on(method == "attach_io" and "io_out" or "mmio_write", noter(caught))
      assert.equal("hlt", vcpu:run_once())
      range:detach()
      vcpu:run(LIMITS)
      assert.equal(3, #caught)
      assert.same({ n = 4, address, 0, 1, nil }, caught[1])
    end)

    it("stands a close of the vCPU, and of the VM, in its handler", function()
      for _, object in ipairs { "vcpu", "vm" } do
        local _, vm, vcpu = guest(repeated(5) .. HLT)
        attach(vm, function()
          if object == "vm" then vm:close() else vcpu:close() end
          support.collect()
        end)
        contains("closed", error_of(vcpu.run, vcpu, LIMITS))
      end
    end)

    it("writes a log without entering Lua", function()
      local _, vm, vcpu = guest("\xb0A" .. repeated(5) .. HLT) -- mov $'A', %al
      local buffer = ckvm.buffer(3)
      local options, caught = { batch = true, log = buffer }, {}
      for key, value in pairs(where) do options[key] = value end
      vm[method](vm, options)
      vm:on(method == "attach_io" and "io_out" or "mmio_write", noter(caught))
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal("ABC", buffer:take())
      assert.equal(2, #caught)
      assert.equal(68, caught[1][2])
    end)

    it("is claimed at attach time by vCPUs that exist already, and by later ones", function()
      local _, vm, vcpu = guest(repeated(3) .. HLT)
      local seen = {}
      attach(vm, noter(seen))
      local second <close> = vm:create_vcpu(1)
      second:set_sregs(vcpu:get_sregs())
      second:set_regs { rip = 0x1000, rflags = 2 }
      assert.equal("hlt", (second:run(LIMITS)))
      assert.equal(3, #seen)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(6, #seen)
    end)
  end)
end

describe("a batched range with a log", function()
  before_each(support.need_kvm)

  it("goes to vm:on when the log is full, and is dropped where there is no handler", function()
    for _, catches in ipairs { true, false } do
      local log, caught = ckvm.buffer(1), {}
      local _, vm, vcpu = guest(OUT .. INC .. OUT .. INC .. OUT .. HLT)
      vm:attach_io { port = 0x10, log = log, batch = true }
      if catches then vm:on("io_out", noter(caught)) end
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(1, log.length)
      assert.equal(catches and 2 or 0, #caught)
    end
  end)
end)

-- vm:watch and vm:after: handlers for what happens outside of the guest.

local ckvm = require "ckvm"
local support = require "support"

local contains, error_of = support.contains, support.error_of
local LIMITS = support.LIMITS

local THREAD <const> = "ckvm events"
local SPIN <const> = "\xeb\xfe"     -- jmp .
local OUT <const> = "\xe6\x10\xeb\xfc" -- loop: out %al, $0x10; jmp loop

local function guest(code)
  local _, vm, vcpu = support.real_mode(code or SPIN)
  return vm, vcpu
end

-- A pipe whose other end a command writes to.
local function pipe(command) return assert(io.popen(command)) end

describe("vm:after", function()
  before_each(support.need_kvm)

  it("calls its handler once, when it is time, in a guest that never exits", function()
    local vm, vcpu = guest()
    local count = 0
    local from <const> = ckvm.now()
    vm:after(0.2, function(which)
      count = count + 1
      assert.equal(vcpu, which)
      which:stop("done")
    end)
    assert.same({ "stopped", "done" }, { vcpu:run(LIMITS) })
    assert(ckvm.now() - from >= 0.2)
    assert.equal("timeout", (vcpu:run { timeout = 0.2 }))
    assert.equal(1, count)
  end)

  -- Has the vCPU stop after these seconds, which are in no order, each counted from when its turn
  -- comes here. Returns a function that raises unless they were called in the order of their times:
  -- one that was due before another had its turn, plus its seconds, has come before it.
  local function in_order(vm, vcpu, list)
    local called = {}
    for _, seconds in ipairs(list) do
      local timer = { first = ckvm.now() + seconds }
      vm:after(seconds, function()
        table.insert(called, timer)
        if #called == #list then vcpu:stop() end
      end)
      timer.last = ckvm.now() + seconds
    end
    return function()
      assert.equal(#list, #called)
      for i = 2, #called do assert(called[i - 1].first <= called[i].last) end
    end
  end

  it("calls them in their order, among a guest's exits", function()
    local vm, vcpu = guest(OUT)
    vm:attach_io { port = 0x10, write = function() end }
    local check = in_order(vm, vcpu, { 0.3, 0.25, 0.1, 0.2, 0.15 })
    assert.equal("stopped", (vcpu:run(LIMITS)))
    check()
  end)

  it("calls them in their order where nobody runs when it is time", function()
    local vm, vcpu = guest()
    vm:watch(ckvm.eventfd { initval = 1 }, "read", function() end) -- does not keep them from it
    local check = in_order(vm, vcpu, { 0.2, 0.1, 0, 0.15, 0.05 })
    ckvm.eventfd():wait { timeout = 0.4 }
    assert.equal("stopped", (vcpu:run(LIMITS)))
    check()
  end)

  it("is for the next run, where none is on then", function()
    local vm, vcpu = guest()
    vm:after(0, function() vcpu:stop("first") end)
    local late = vm:create_vcpu(1)
    ckvm.eventfd():wait { timeout = 0.05 }
    vm:after(0, function() late:stop("second") end)
    late:set_sregs { cs = { base = 0, selector = 0 } }
    late:set_regs { rip = 0x1000, rflags = 2 }
    assert.same({ "stopped", "first" }, { vcpu:run(LIMITS) })
    assert.same({ "stopped", "second" }, { late:run(LIMITS) })
  end)

  -- What sleeps in a handler is woken there, most often, and not in the guest.
  for how, after in pairs {
    ["has its instruction finished"] = function(vcpu) vcpu:finish() end,
    ["writes rip"] = function(vcpu) vcpu.regs.rip = 0x1000 end,
  } do
    it("calls its handler where a handler sleeps, and " .. how, function()
      local vm, vcpu = guest(OUT)
      local never = ckvm.eventfd()
      vm:attach_io { port = 0x10, write = function()
        never:wait { timeout = 0.02 }
        after(vcpu)
      end }
      vm:after(0.03, function() vcpu:stop("done") end)
      assert.same({ "stopped", "done" }, { vcpu:run(LIMITS) })
    end)
  end

  it("begins anew in its handler", function()
    local vm, vcpu = guest()
    local count = 0
    local function tick()
      count = count + 1
      if count == 20 then return vcpu:stop() end
      vm:after(0.001, tick)
    end
    vm:after(0, tick)
    assert.equal("stopped", (vcpu:run(LIMITS)))
    assert.equal(20, count)
  end)

  it("is set by a handler of the guest's", function()
    local vm, vcpu = guest("\xe6\x10" .. SPIN) -- out %al, $0x10
    vm:attach_io { port = 0x10, write = function() vm:after(0.01, function() vcpu:stop(1) end) end }
    assert.same({ "stopped", 1 }, { vcpu:run(LIMITS) })
  end)

  it("is not called when it is detached, or its VM closed", function()
    local vm, vcpu = guest()
    local watch = vm:after(0.01, error)
    watch:detach()
    watch:detach()
    do local _ <close> = vm:after(0.01, error) end
    assert.equal("timeout", (vcpu:run { timeout = 0.2 }))
    watch = vm:after(0.01, error)
    vm:close()
    watch:detach()
  end)

  it("refuses what is no time, or no function", function()
    local vm = guest()
    contains("-1.0 is not a time", error_of(vm.after, vm, -1, print))
    contains("number expected, got string", error_of(vm.after, vm, "1", print))
    contains("not a time", error_of(vm.after, vm, 0 / 0, print))
    contains("number expected", error_of(vm.after, vm, nil, print))
    contains("function expected", error_of(vm.after, vm, 1))
    vm:after(math.huge, print)
  end)
end)

describe("vm:watch", function()
  before_each(support.need_kvm)

  it("calls its handler with what it was given, when there is something to read", function()
    local vm, vcpu = guest()
    local event = ckvm.eventfd()
    vm:watch(event, "read", function(fd, which)
      assert.equal(event, fd)
      which:stop(fd:read())
    end)
    for i = 1, 20 do
      event:signal(i)
      assert.same({ "stopped", i }, { vcpu:run(LIMITS) })
    end
    assert.equal("timeout", (vcpu:run { timeout = 0.05 }))
  end)

  it("takes files, to their end", function()
    local vm, vcpu = guest()
    local lines = {}
    vm:watch(pipe "echo one; echo two; echo three", "read", function(file)
      local line = file:read()
      table.insert(lines, line)
      if not line then vcpu:stop() end
    end)
    assert.equal("stopped", (vcpu:run(LIMITS)))
    assert.same({ "one", "two", "three" }, lines)
  end)

  it("calls it again as long as it is ready, and lets the guest run on between", function()
    local vm, vcpu = guest(OUT)
    local exits, calls = 0, 0
    vm:attach_io { port = 0x10, write = function() exits = exits + 1 end }
    local watch
    watch = vm:watch(ckvm.eventfd { initval = 1 }, "read", function()
      calls = calls + 1
      if calls == 300 then -- of ten, none might be late enough for an exit
        watch:detach()
        vcpu:stop()
      end
    end)
    assert.equal("stopped", (vcpu:run(LIMITS)))
    assert.equal(300, calls)
    assert(exits > 0)
  end)

  it("tells of room to write", function()
    local vm, vcpu = guest()
    vm:watch(ckvm.eventfd(), "write", function() vcpu:stop("room") end)
    assert.same({ "stopped", "room" }, { vcpu:run(LIMITS) })
  end)

  it("gives all of them their turns", function()
    local vm, vcpu = guest()
    local seen, count = {}, 0
    for i = 1, 30 do
      vm:watch(ckvm.eventfd { initval = 1 }, "read", function()
        if not seen[i] then count = count + 1 end
        seen[i] = true
        if count == 30 then vcpu:stop() end
      end)
    end
    assert.equal("stopped", (vcpu:run(LIMITS)))
  end)

  it("does not call it for what somebody has read meanwhile", function()
    local vm, vcpu = guest()
    local event = ckvm.eventfd { initval = 1 }
    vm:watch(event, "read", error)
    vm:after(0.05, function() vcpu:stop() end)
    event:read()
    assert.equal("stopped", (vcpu:run(LIMITS)))
  end)

  it("does not need the file to stay open", function()
    local vm, vcpu = guest()
    local event = ckvm.eventfd()
    local same = ckvm.eventfd { initval = 1 }
    local fd <const> = same.fd
    vm:watch(fd, "read", function(given)
      assert.equal(fd, given)
      vcpu:stop()
    end)
    same:close()
    event:close()
    assert.equal("stopped", (vcpu:run(LIMITS)))
  end)

  it("has handlers that raise and yield as others do", function()
    local vm, vcpu = guest()
    local event = ckvm.eventfd { initval = 1 }
    local oops = {}
    vm:watch(event, "read", function()
      coroutine.yield("in")
      event:read()
      error(oops)
    end)
    local co = coroutine.create(function() return vcpu:run(LIMITS) end)
    assert.same({ true, "in" }, { coroutine.resume(co) })
    assert.same({ false, oops }, { coroutine.resume(co) })
    event:signal()
    co = coroutine.create(function() return vcpu:run(LIMITS) end)
    assert.same({ true, "in" }, { coroutine.resume(co) })
    coroutine.close(co)
    co = coroutine.create(function() return vcpu:run(LIMITS) end)
    assert.same({ true, "in" }, { coroutine.resume(co) })
  end)

  it("lets its handler close the VM, or run the vCPU", function()
    local vm, vcpu = guest()
    vm:watch(ckvm.eventfd { initval = 1 }, "read", function() vm:close() end)
    contains("closed", error_of(vcpu.run, vcpu, LIMITS))
    vm, vcpu = guest()
    local event, inner = ckvm.eventfd { initval = 1 }, nil
    vm:watch(event, "read", function()
      event:read()
      inner = vcpu:run { timeout = 0.05 }
    end)
    contains("run abandoned", error_of(vcpu.run, vcpu, LIMITS))
    assert.equal("timeout", inner)
  end)

  it("reaches one vCPU of vm:run, also one that sleeps in HLT", function()
    local _, vm = support.real_mode(SPIN)
    local second = vm:create_vcpu(1)
    second:set_sregs { cs = { base = 0, selector = 0 } }
    second:set_regs { rip = 0x1000, rflags = 2 }
    local calls = 0
    vm:after(0.05, function(vcpu)
      calls = calls + 1
      vcpu:stop("here")
    end)
    local why, _, value = vm:run(LIMITS)
    assert.same({ "stopped", "here", 1 }, { why, value, calls })

    vm = ckvm.open():create_vm()
    vm:create_irqchip()
    vm:add_memory { gpa = 0, size = 0x10000 }
    vm:write(0x1000, "\xf4") -- hlt
    local vcpu = vm:create_vcpu(0)
    vcpu:set_sregs { cs = { base = 0, selector = 0 } }
    vcpu:set_regs { rip = 0x1000, rflags = 2 }
    vm:after(0.05, function() vcpu:stop("awake") end)
    assert.same({ "stopped", "awake" }, { vcpu:run(LIMITS) })
  end)

  it("is idle while poll(2) refuses, and goes on after that", function()
    if not os.execute("prlimit --version >/dev/null 2>&1") then pending("no prlimit(1)") end
    local status, output, errors = support.run [[
      local ckvm = require "ckvm"
      local vm = ckvm.open():create_vm()
      vm:create_irqchip()
      vm:add_memory { gpa = 0, size = 0x10000 }
      vm:write(0x1000, "\xf4") -- hlt
      local vcpu = vm:create_vcpu(0)
      vcpu:set_sregs { cs = { base = 0, selector = 0 } }
      vcpu:set_regs { rip = 0x1000, rflags = 2 }
      local self = io.open("/proc/self/stat"):read("n")
      local event = ckvm.eventfd()
      vm:watch(event, "read", function() vcpu:stop("watched") end)
      local raise = io.popen("read _; prlimit --nofile=100: --pid " .. self, "w")
      os.execute("prlimit --nofile=1: --pid " .. self) -- fewer than are polled
      local before = os.clock()
      vm:after(0.5, function() vcpu:stop("late") end)
      print(vcpu:run { timeout = 20 })
      print(os.clock() - before < 0.25)
      raise:write("\n")
      raise:close()
      event:signal()
      print(vcpu:run { timeout = 20 })
    ]]
    assert.same({ 0, "stopped\tlate\ntrue\nstopped\twatched\n", "" },
      { status, output, errors })
  end)

  it("refuses what is no descriptor, no direction, no function", function()
    local vm = guest()
    local err = error_of(vm.watch, vm, 9999, "read", print)
    assert.equal("EBADF", err.code)
    contains("descriptor 9999: ", err)
    contains("descriptor", error_of(vm.watch, vm, -1, "read", print))
    contains("watch: ", error_of(vm.watch, vm, "x", "read", print))
    contains("'reed'", error_of(vm.watch, vm, 0, "reed", print))
    contains("function expected", error_of(vm.watch, vm, 0, "read"))
    local file = io.tmpfile()
    file:close()
    contains("file is closed", error_of(vm.watch, vm, file, "read", print))
  end)

  it("leaves no descriptor and no thread", function()
    support.collect()
    local fds <const>, before <const> = support.count_fds(), support.count_threads(THREAD)
    for i = 1, 3 do
      local vm = ckvm.open():create_vm()
      for _ = 1, 5 do vm:watch(0, "read", print) end
      vm:after(1000, print)
      support.expect_threads(THREAD, before + 1)
      if i < 3 then vm:close() end
    end
    support.collect()
    assert.equal(fds, support.count_fds())
    support.expect_threads(THREAD, before)
  end)
end)

-- vm:run: all vCPUs of a VM at once, each in a thread of its own.

local ckvm = require "ckvm"
local support = require "support"

local OUT <const> = "\xe6\x10\xeb\xfc"  -- loop: out %al, $0x10; jmp loop
local SPIN <const> = "\xeb\xfe"         -- jmp .
local OUT_HLT <const> = "\xe6\x10\xf4"  -- out %al, $0x10; hlt
local HLT <const> = "\xf4"

-- A VM with a vCPU for each of the codes, in real mode, about to run it.
local function machine(...)
  local vm = ckvm.open():create_vm()
  vm:add_memory { gpa = 0, size = 0x10000 }
  for i, code in ipairs { ... } do
    vm:write(i * 0x1000, code)
    local vcpu = vm:create_vcpu(i - 1)
    vcpu:set_sregs { cs = { base = 0, selector = 0 } }
    vcpu:set_regs { rip = i * 0x1000, rflags = 2 }
  end
  return vm, table.unpack(vm.vcpus)
end

-- Long enough for whatever has to come, so that no mistake hangs the suite.
local function run(vm, options)
  options = options or {}
  options.timeout = options.timeout or 20
  return vm:run(options)
end

-- Until both have been there: by then both guests run.
local function meeting(vm, done)
  local seen, met = {}, 0
  return vm:attach_io { port = 0x10, write = function(_, _, _, vcpu)
    if not seen[vcpu.id] then
      seen[vcpu.id] = true
      met = met + 1
    end
    if met == 2 then return done(vcpu) end
  end }
end

describe("vm:run", function()
  setup(support.need_kvm)

  it("runs all vCPUs until one is stopped: why, which, and the value", function()
    local vm, first, second = machine(OUT, OUT)
    meeting(vm, function(vcpu) vcpu:stop { vcpu.id } end)
    local why, vcpu, value = run(vm)
    assert.equal("stopped", why)
    assert(vcpu == first or vcpu == second)
    assert.same({ vcpu.id }, value)
  end)

  it("goes on where it was, again and again", function()
    local vm = machine(OUT, OUT)
    local count = 0
    vm:attach_io { port = 0x10, write = function(_, _, _, vcpu)
      count = count + 1
      if count % 5 == 0 then vcpu:stop(count) end
    end }
    for _ = 1, support.times(10000) do assert.equal("stopped", (run(vm))) end
    local sum = 0
    for _, vcpu in ipairs(vm.vcpus) do sum = sum + vcpu.stats.exits.io_out end
    assert.equal(count, sum)
  end)

  it("ends with an exit that nobody handles, and returns others of these later", function()
    local vm, first, second = machine(HLT, HLT)
    local seen = {}
    for _ = 1, 2 do
      local why, vcpu = run(vm)
      assert.equal("hlt", why)
      assert.equal("hlt", vcpu.exit.reason)
      seen[vcpu] = true
    end
    assert.same({ [first] = true, [second] = true }, seen)
  end)

  it("forgets an exit of a vCPU that has run since", function()
    local vm, first, second = machine(HLT, HLT)
    local _, which = run(vm)
    local other = which == first and second or first
    other:set_regs { rip = 0x1000 }
    assert.equal("hlt", other:run(support.LIMITS))
    assert.equal("hlt", (run(vm)))
  end)

  it("ends in time, and after so many exits of a vCPU", function()
    local vm = machine(SPIN, SPIN)
    assert.equal("timeout", (vm:run { timeout = 0.2 }))
    assert.equal("timeout", (vm:run { timeout = 0 }))
    local count, most = { [0] = 0, 0 }, 0
    vm = machine(OUT, OUT)
    vm:attach_io { port = 0x10, write = function(_, _, _, vcpu)
      count[vcpu.id] = count[vcpu.id] + 1
      most = math.max(most, count[vcpu.id])
    end }
    local why, vcpu = run(vm, { exits = 100 })
    assert.equal("exits", why)
    assert.equal(100, count[vcpu.id])
    assert.equal(100, most)
  end)

  it("ends with the run around it", function()
    local inner = machine(SPIN, SPIN)
    local why
    local vcpu = support.calling(function() why = inner:run() end)
    assert.equal("timeout", vcpu:run { timeout = 1 }) -- a handler may be late by as much
    assert.equal("timeout", why)
  end)

  it("is not noticed by the runs after it", function()
    local vm = machine(OUT, OUT, OUT)
    local range = meeting(vm, function(vcpu) vcpu:stop() end)
    run(vm)
    range:detach()
    vm:attach_io { port = 0x10, value = 0 }
    for _, vcpu in ipairs(vm.vcpus) do assert.equal("exits", vcpu:run { exits = 10 }) end
  end)

  it("shows no exit of another vCPU, as its thread may be changing that", function()
    local vm, first, second = machine(OUT, "\xe6\x11" .. SPIN) -- out %al, $0x11; jmp .
    assert.equal("io_out", second:run(support.LIMITS))
    local exit, seen = second.exit, {}
    vm:attach_io { port = 0x10, write = function(_, _, _, vcpu)
      seen.exit, seen.own = second.exit or "none", vcpu.exit.reason
      seen.read = support.error_of(function() return exit.data end)
      seen.write = support.error_of(function() exit.data = 1 end)
      seen.pairs = support.error_of(pairs, exit)
      vcpu:stop()
    end }
    assert.same({ "stopped", first }, { run(vm) })
    assert.same({ "none", "io_out" }, { seen.exit, seen.own })
    for _, how in ipairs { "read", "write", "pairs" } do
      support.contains("this exit is over", seen[how])
    end
  end)

  it("has other vCPUs refuse all but stop and kick", function()
    local vm, first, second = machine(OUT, OUT)
    local errors = {}
    meeting(vm, function(vcpu)
      local other = vcpu == first and second or first
      for _, name in ipairs { "get_regs", "run", "run_once", "finish", "get_fpu" } do
        errors[name] = support.error_of(other[name], other).code
      end
      errors.view = support.error_of(function() return other.regs.rip end).code
      errors.written = support.error_of(function() other.regs.rip = 0 end).code
      vcpu:stop()
    end)
    run(vm)
    assert.same({ get_regs = "EBUSY", run = "EBUSY", run_once = "EBUSY", finish = "EBUSY",
      get_fpu = "EBUSY", view = "EBUSY", written = "EBUSY" }, errors)
    assert.equal(0x1000, first:get_regs().rip & ~0xfff)
  end)

  it("lets a handler stop what another one runs once", function()
    local _, other = machine(SPIN)
    local vm = machine(OUT_HLT, "\xe6\x11\xeb\xfc") -- loop: out %al, $0x11; jmp loop
    local begun, ended
    vm:attach_io { port = 0x10, write = function()
      begun = true
      ended = other:run_once(support.LIMITS)
    end }
    vm:attach_io { port = 0x11, write = function()
      if begun then pcall(other.stop, other) end -- it may not be in the guest yet
    end }
    assert.equal("hlt", (run(vm)))
    assert.equal("kicked", ended)
  end)

  it("ends when a handler stops another vCPU, or kicks it", function()
    local vm, first, second = machine(OUT_HLT, SPIN)
    vm:on("hlt", function() end)
    vm:attach_io { port = 0x10, write = function() second:stop("done") end }
    local why, vcpu, value = run(vm)
    assert.equal("stopped", why)
    assert.equal(second, vcpu)
    assert.equal("done", value)

    vm:attach_io { port = 0x11, write = function() second:kick() end }
    vm:write(0x1000, "\xe6\x11\xeb\xfe") -- out %al, $0x11; jmp .
    first:set_regs { rip = 0x1000 }
    why, vcpu = run(vm)
    assert.equal("kicked", why)
    assert.equal(second, vcpu)
  end)

  it("is stopped before a vCPU has begun", function()
    local vm, _, second = machine(OUT, OUT)
    vm:attach_io { port = 0x10, write = function() second:stop() end }
    for _ = 1, 50 do
      local why, vcpu = run(vm)
      assert.equal("stopped", why)
      assert.equal(second, vcpu)
    end
  end)

  it("raises what a handler raises, as it is", function()
    local vm = machine(OUT, SPIN)
    local what = setmetatable({}, { __tostring = function() return "what" end })
    local range = vm:attach_io { port = 0x10, write = function() error(what) end }
    assert.equal(what, support.error_of(run, vm))
    range:detach()
    vm:attach_io { port = 0x10, value = 0 }
    assert.equal("timeout", (vm:run { timeout = 0.05 }))
  end)

  describe("with errors on two vCPUs", function()
    local vm, range

    -- The one that is in its handler first waits, with the lock given up, until the other is in
    -- its own, which raises `first`, and then raises `other`. Returns what comes of it.
    local function both(first, other)
      vm = machine(OUT, OUT)
      local waiting = ckvm.eventfd()
      local count = 0
      range = vm:attach_io { port = 0x10, write = function()
        count = count + 1
        if count == 1 then
          waiting:wait { timeout = 20 }
          error(other, 0)
        end
        waiting:signal()
        error(first, 0)
      end }
      return support.error_of(run, vm)
    end

    it("raises the first with the others in it if it is a table", function()
      local first = {}
      for _, other in ipairs { "two", 42, false, print, { id = 2 } } do
        local err = both(first, other)
        assert.equal(first, err)
        assert.same({ other }, first.others)
      end
      assert.same({ "(error object is a nil value)" }, both(first, nil).others)
    end)

    it("raises the first with the others' texts behind it if it is a string", function()
      assert.equal("one\nand on another vCPU: two", both("one", "two"))
      assert.equal("one\nand on another vCPU: 42", both("one", 42))
      assert.equal("one\nand on another vCPU: (error object is a nil value)", both("one", nil))
    end)

    it("raises the first, and the other by the next run, if it is anything else", function()
      for _, first in ipairs { 42, true, print, ckvm.buffer(8) } do
        assert.equal(first, both(first, "two"))
        assert.equal("two", support.error_of(run, vm))
        range:detach()
        vm:attach_io { port = 0x10, value = 0 }
        assert.equal("timeout", (vm:run { timeout = 0.05 }))
      end
      assert.is_nil(both(nil, 42))
      assert.equal(42, support.error_of(run, vm))
      assert.equal(42, both(42, nil))
      assert.is_nil(support.error_of(run, vm))
    end)

    it("forgets one of a vCPU that has run since", function()
      both(42, "two")
      range:detach()
      vm:attach_io { port = 0x10, value = 0 }
      for _, vcpu in ipairs(vm.vcpus) do assert.equal("timeout", vcpu:run { timeout = 0 }) end
      assert.equal("timeout", (vm:run { timeout = 0 }))
    end)
  end)

  it("has handlers that may resume coroutines, but not yield out of it", function()
    local vm = machine(OUT, SPIN)
    local values = {}
    local co = coroutine.wrap(function() for i = 1, 3 do coroutine.yield(i) end end)
    local range = vm:attach_io { port = 0x10, write = function(_, _, _, vcpu)
      table.insert(values, co())
      if #values == 3 then vcpu:stop() end
    end }
    run(vm)
    assert.same({ 1, 2, 3 }, values)
    range:detach()
    vm:attach_io { port = 0x10, write = function() coroutine.yield() end }
    coroutine.wrap(function()
      support.contains("attempt to yield", support.error_of(run, vm))
    end)()
  end)

  it("stops a handler that goes on for long after the deadline", function()
    local vm = machine(OUT, SPIN)
    vm:attach_io { port = 0x10, write = function() while true do end end }
    support.contains("handler still running", support.error_of(vm.run, vm, { timeout = 0.5 }))
  end)

  it("cannot be called by a handler of its own", function()
    local vm = machine(OUT, SPIN)
    local message
    vm:attach_io { port = 0x10, write = function(_, _, _, vcpu)
      message = support.error_of(vm.run, vm)
      vcpu:stop()
    end }
    run(vm)
    support.contains("the VM is running", message)
  end)

  it("takes a run over that is open", function()
    local vm = machine(OUT)
    local depth = 0
    vm:attach_io { port = 0x10, write = function(_, _, _, vcpu)
      depth = depth + 1
      if depth == 1 then
        assert.equal("stopped", (run(vm)))
      else
        vcpu:stop()
      end
    end }
    support.contains("run abandoned", support.error_of(vm.vcpus[1].run, vm.vcpus[1]))
  end)

  it("needs a vCPU", function()
    support.contains("no vCPU", support.error_of(ckvm.open():create_vm().run,
      ckvm.open():create_vm()))
  end)

  it("is over when a handler closes the VM, or a vCPU, or detaches what another waits for",
    function()
      local vm = machine(OUT, SPIN)
      vm:attach_io { port = 0x10, write = function() vm:close() end }
      support.contains("closed", support.error_of(run, vm))

      local first
      vm, first = machine(OUT, SPIN)
      vm:attach_io { port = 0x10, write = function() first:close() end }
      support.contains("closed", support.error_of(run, vm))
      assert.equal("timeout", (vm:run { timeout = 0.05 }))

      vm = machine(OUT, OUT)
      local range
      range = vm:attach_io { port = 0x10, write = function(_, _, _, vcpu)
        range:detach()
        vcpu:stop()
      end }
      run(vm)
    end)

  it("goes on while a handler adds memory, and removes it", function()
    local vm = machine(OUT, SPIN)
    local count = 0
    vm:attach_io { port = 0x10, write = function(_, _, _, vcpu)
      vm:add_memory { gpa = 0x100000, size = 0x10000 }:close()
      count = count + 1
      if count == 20 then vcpu:stop() end
    end }
    assert.equal("stopped", (run(vm)))
  end)

  it("keeps no VM alive whose handlers have resumed coroutines", function()
    support.collect()
    local before <const> = support.count_fds()
    local co = coroutine.wrap(function() while true do coroutine.yield() end end)
    for _ = 1, 5 do
      (function()
        local vm = machine(OUT_HLT, OUT_HLT)
        vm:attach_io { port = 0x10, write = function(_, _, _, vcpu)
          co()
          vcpu:stop()
        end }
        -- Some ends are kept. On a busy machine a handler may be too late, which is an error.
        for _ = 1, 5 do pcall(vm.run, vm, { timeout = 0.05 }) end
      end)()
    end
    support.collect()
    assert.equal(before, support.count_fds())
  end)

  it("has no thread left when the VM is closed, or collected", function()
    support.collect()
    local THREAD <const> = "vCPU %d+"
    local before <const> = support.count_threads(THREAD)
    local vm = machine(HLT, SPIN)
    run(vm)
    support.expect_threads(THREAD, before + 2)
    vm:close()
    support.expect_threads(THREAD, before)
    vm = machine(OUT, SPIN)
    vm:attach_io { port = 0x10, write = function() vm:close() end }
    support.error_of(run, vm)
    support.expect_threads(THREAD, before)
    vm = nil;
    (function() run((machine(HLT, SPIN))) end)()
    support.collect()
    support.expect_threads(THREAD, before)
  end)

  describe("in a process of its own", function()
    local PREFIX <const> = [[
      local ckvm = require "ckvm"
      local vm = ckvm.open():create_vm()
      vm:add_memory { gpa = 0, size = 0x10000 }
      for i = 0, 1 do
        vm:write(0x1000 * (i + 1), "\xe6\x10\xeb\xfc")
        local vcpu = vm:create_vcpu(i)
        vcpu:set_sregs { cs = { base = 0, selector = 0 } }
        vcpu:set_regs { rip = 0x1000 * (i + 1), rflags = 2 }
      end
      local pid = io.open("/proc/self/stat"):read("n")
      local function interrupt() io.popen("kill -INT " .. pid):close() end
    ]]

    local function check(script, status, text)
      local code, _, err = support.run(PREFIX .. script)
      support.contains(text, err)
      assert.equal(status, code)
    end

    it("ends with Ctrl-C, in the guest and in a handler", function()
      check([[
        local count = 0
        vm:attach_io { port = 0x10, write = function()
          count = count + 1
          if count == 100 then interrupt() end
        end }
        vm:run { timeout = 20 }
      ]], 130, "interrupted!")
      check([[
        local sent
        vm:attach_io { port = 0x10, write = function()
          if sent then return end
          sent = true
          interrupt()
          while true do end
        end }
        vm:run { timeout = 20 }
      ]], 130, "interrupted!")
    end)

    it("may end the process in a handler, with the state closed", function()
      check([[
        vm:attach_io { port = 0x10, write = function() os.exit(3, true) end }
        vm:run { timeout = 20 }
      ]], 3, "")
      check([[
        vm:attach_io { port = 0x10, write = function() os.exit(4) end }
        vm:run { timeout = 20 }
      ]], 4, "")
    end)
  end)
end)

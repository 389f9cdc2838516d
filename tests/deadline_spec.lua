-- Timeouts: of runs, of runs within others and of suspended ones, and of handlers that do not come
-- back.

local ckvm = require "ckvm"
local support = require "support"

local error_of, contains = support.error_of, support.contains
local guest, LIMITS, quiet, calling = support.guest, support.LIMITS, support.quiet, support.calling

local IN <const> = "\xe4\x10"              -- in $0x10, %al
local OUT <const> = "\xe6\x10"             -- out %al, $0x10
local INC_BX <const> = "\x43"              -- inc %bx
local HLT <const> = "\xf4"                 -- hlt
local SPIN <const> = "\xeb\xfe"            -- jmp .
local OUTS <const> = "\xe6\x10\xeb\xfc"    -- 1: out %al, $0x10; jmp 1b

local function nothing() end

-- Handlers that run a guest up to their own deadline are stopped if they come back from it later
-- than the timeout once more, or than a second: a busy machine needs that time.
local DEADLINE <const> = { timeout = 1 }
local LATE <const> = { timeout = 0.5 } -- the same, where what comes back is an error
local SUSPENDED <const> = { timeout = 0.3 } -- of runs that are not on when it has passed

-- What a run raises whose handler does not come back. Where the machine is busy its time may be up
-- before the guest calls the handler: then the run goes on.
local function overrun(vcpu)
  for _ = 1, 50 do
    local exits <const> = vcpu.stats.total
    local done, what = pcall(vcpu.run, vcpu, { timeout = 0.1 })
    if not done then return what end
    assert(vcpu.stats.total == exits, "it has called its handler, and ends with " .. what)
  end
  error("no handler is called")
end

local absent = 0 -- seconds that went by on purpose

-- Calls fn, while a run is suspended.
local function meanwhile(fn)
  local from <const> = ckvm.now()
  fn()
  absent = absent + ckvm.now() - from
end

-- A test of runs that take moments, and are suspended for longer than their timeout. Where the
-- machine is busy they may take that long themselves, and what comes of it says nothing: it is
-- tried again.
local function patient(test)
  return function()
    for i = 1, 20 do
      local from <const> = ckvm.now()
      absent = 0
      local done, err = pcall(test)
      if done then return end
      local took <const> = ckvm.now() - from - absent
      if took < SUSPENDED.timeout or i == 20 then error(err, 0) end
    end
  end
end

-- A guest that goes on for long after that, with no limit, until its handler stops it.
local function long()
  local _, vm, vcpu = guest(OUTS)
  local count = 0
  vm:attach_io {
    port = 0x10,
    write = function()
      count = count + 1
      if count == 3000000 then vcpu:stop("too late") end
    end,
  }
  return vcpu
end

describe("a timeout", function()
  before_each(support.need_kvm)

  it("of 0 ends the run before the guest", function()
    local vcpu = quiet(INC_BX .. HLT)
    for _, timeout in ipairs { 0, 0.0, -0.0 } do
      assert.equal("timeout", (vcpu:run { timeout = timeout }))
    end
    assert.equal(0, vcpu.regs.rbx)
    assert.equal(0, vcpu.stats.total)
    assert.is_nil(vcpu.exit)
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)

  it("ends a guest that never exits", function()
    local vcpu = quiet(SPIN)
    for _, timeout in ipairs { 1e-12, 1e-9, 1e-6, 1e-4, 0.001, 0.01 } do
      for _ = 1, 5 do assert.equal("timeout", (vcpu:run { timeout = timeout })) end
    end
    assert.equal(0x1000, vcpu.regs.rip)
  end)

  it("ends a guest that always exits, whoever answers", function()
    local vcpu, vm = quiet(OUTS)
    assert.equal("timeout", (vcpu:run(LATE)))
    local _, other_vm, other = guest(OUTS)
    other_vm:attach_io { port = 0x10, value = 0 }
    assert.equal("timeout", (other:run { timeout = 0.01 }))
    vm:on("hlt", nothing)
    vm:write(0x1000, "\xf4\xeb\xfd") -- 1: hlt; jmp 1b
    vcpu:set_regs { rip = 0x1000 }
    assert.equal("timeout", (vcpu:run(LATE)))
  end)

  it("ends one whose handlers yield", function()
    local _, vm, vcpu = guest(OUTS)
    vm:attach_io { port = 0x10, write = function() coroutine.yield() end }
    local co = coroutine.create(function() return (vcpu:run(LATE)) end)
    local why
    repeat why = select(2, coroutine.resume(co)) until why
    assert.equal("timeout", why)
  end)

  it("leaves nothing that ends a later run", function()
    local vcpu = quiet(SPIN)
    assert.equal("timeout", (vcpu:run { timeout = 0.001 }))
    for _ = 1, 20 do
      assert.equal("hlt", (quiet(OUT .. HLT):run(LIMITS)))
      quiet(OUT .. HLT):run { timeout = 0.3 }
    end
    local other <const> = quiet(SPIN) -- past the deadlines of all of these
    assert.equal("timeout", (other:run { timeout = 0.4 }))
    assert.equal("hlt", (quiet(OUT .. HLT):run()))
  end)

  it("acts after the whole exit, with its answer", function()
    local inner = quiet(SPIN)
    local vcpu = calling(function()
      assert(inner:run() == "timeout") -- to be past the deadline
      return 0x42
    end, IN .. INC_BX)
    assert.equal("timeout", (vcpu:run(DEADLINE)))
    assert.equal(0, vcpu.regs.rbx)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ 0x42, 1 }, { vcpu.regs.rax, vcpu.regs.rbx })
  end)

  it("ends a run within at the deadline of the run around it", function()
    for _, limits in ipairs { false, { timeout = 3600 }, { exits = 1000000000 } } do
      local inner, why = long(), nil
      local vcpu = calling(function() why = inner:run(limits or nil) end, OUT .. SPIN)
      assert.equal("timeout", (vcpu:run(DEADLINE)))
      assert.equal("timeout", why)
    end
  end)

  it("leaves the run around it alone when the one within has less", function()
    local inner, why = quiet(SPIN), nil
    local vcpu = calling(function() why = inner:run { timeout = 0.01 } end)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal("timeout", why)
  end)

  it("comes through a run between that has none, and through coroutines", function()
    local innermost, why = long(), nil
    local between, between_why
    between = calling(function()
      coroutine.wrap(function() why = innermost:run() end)()
    end, OUT .. SPIN)
    local vcpu = calling(function()
      coroutine.wrap(function() between_why = between:run() end)()
    end, OUT .. SPIN)
    assert.equal("timeout", (vcpu:run(DEADLINE)))
    assert.same({ "timeout", "timeout" }, { why, between_why })
  end)

  it("ends a run that was suspended and is resumed within", function()
    local inner = long()
    local run = coroutine.wrap(function() return (inner:run()) end)
    inner.vm:on("hlt", nothing)
    inner.vm:write(0x1000, "\xe6\x20" .. OUTS) -- out %al, $0x20
    inner.vm:attach_io { port = 0x20, write = function() coroutine.yield("suspended") end }
    assert.equal("suspended", run())
    local why
    local vcpu = calling(function() why = run() end, OUT .. SPIN)
    assert.equal("timeout", (vcpu:run(DEADLINE)))
    assert.equal("timeout", why)
  end)

  it("stands still while the run is suspended", patient(function()
    local _, vm, vcpu = guest(OUT .. INC_BX .. HLT)
    vm:attach_io { port = 0x10, write = function() coroutine.yield() end }
    local run = coroutine.wrap(function() return (vcpu:run(SUSPENDED)) end)
    run()
    meanwhile(function() assert.equal("timeout", (quiet(SPIN):run { timeout = 0.35 })) end)
    assert.equal("hlt", run())
    assert.equal(1, vcpu.regs.rbx)
  end))

  -- Time goes by, and no run notices.
  local function dawdle()
    local start <const> = ckvm.now()
    repeat until ckvm.now() - start > 0.35
  end

  -- A run in a coroutine, as far as its handler's first yield; then time goes by.
  local function suspend(handler, limits)
    local vcpu = calling(function()
      coroutine.yield()
      handler()
    end)
    local run = coroutine.wrap(function() return (vcpu:run(limits)) end)
    run()
    meanwhile(dawdle)
    return run
  end

  it("stands still for the handler, too, when it is resumed", patient(function()
    local why
    local run = suspend(function() why = quiet(HLT):run() end, SUSPENDED)
    assert.equal("hlt", run())
    assert.equal("hlt", why)
  end))

  it("stands still for every run that the coroutine is in", patient(function()
    local whys = {}
    local inner = calling(function()
      coroutine.yield()
      table.insert(whys, (quiet(HLT):run()))
    end)
    local run = suspend(function()
      table.insert(whys, (inner:run(SUSPENDED)))
      table.insert(whys, (quiet(HLT):run()))
    end, SUSPENDED)
    run() -- to the yield within
    meanwhile(dawdle)
    assert.equal("hlt", run())
    assert.same({ "hlt", "hlt", "hlt" }, whys)
  end))

  it("goes on for a handler whenever it is resumed, as long as it takes", function()
    local spinning, brief, why = quiet(SPIN), quiet(HLT), nil
    local vcpu = calling(function()
      for _ = 1, 6 do
        spinning:run { timeout = 0.2 }
        coroutine.yield()
      end
      why = brief:run()
    end)
    local run = coroutine.wrap(function() return (vcpu:run(DEADLINE)) end)
    for _ = 1, 6 do run() end
    assert.equal("timeout", run())
    assert.equal("timeout", why)
  end)

  it("goes on for a handler that yields while another run is suspended", function()
    local other = calling(coroutine.yield)
    local co <const> = coroutine.create(function() other:run(LIMITS) end)
    coroutine.resume(co)
    local spinning = quiet(SPIN)
    local vcpu = calling(function()
      for _ = 1, 6 do
        spinning:run { timeout = 0.2 }
        coroutine.yield()
      end
    end)
    local run = coroutine.wrap(function() return (vcpu:run(DEADLINE)) end)
    for _ = 1, 6 do run() end
    assert.equal("timeout", run())
    assert.equal("suspended", coroutine.status(co))
  end)

  it("of a suspended run that is closed is nobody's", function()
    local vcpu = calling(coroutine.yield)
    local co = coroutine.create(function() vcpu:run { timeout = 0.01 } end)
    coroutine.resume(co)
    coroutine.close(co)
    assert.equal("hlt", (quiet(OUT .. HLT):run()))
    dawdle() -- for longer than any grace
  end)

  it("of a suspended run ends no other", patient(function()
    local _, vm, vcpu = guest(OUT .. HLT)
    vm:attach_io { port = 0x10, write = function() coroutine.yield() end }
    local run = coroutine.wrap(function() return (vcpu:run(SUSPENDED)) end)
    run()
    meanwhile(function()
      assert.equal("timeout", (quiet(SPIN):run { timeout = 0.4 }))
      assert.equal("hlt", (quiet(OUT .. INC_BX .. HLT):run()))
    end)
    assert.equal("hlt", run())
  end))

  it("of a suspended run, once it has passed, keeps no other from going on", patient(function()
    local _, suspended_vm, suspended = guest(OUT .. HLT)
    suspended_vm:attach_io { port = 0x10, write = function() coroutine.yield() end }
    local co = coroutine.create(function() suspended:run(SUSPENDED) end)
    coroutine.resume(co)
    meanwhile(function() ckvm.eventfd():wait { timeout = 0.31 } end)
    local WAIT <const> = "\xb9\xff\xff\xe2\xfe" -- mov $0xffff, %cx; 1: loop 1b
    local _, vm, vcpu = guest(WAIT .. OUT .. WAIT .. OUT .. HLT)
    local count = 0
    vm:attach_io { port = 0x10, write = function() count = count + 1 end }
    assert.equal("hlt", (vcpu:run()))
    assert.equal(2, count)
    assert.equal("suspended", coroutine.status(co))
  end))

  it("of a suspended run stands still within the handler of another", patient(function()
    local _, vm, vcpu = guest(OUT .. INC_BX .. HLT)
    vm:attach_io { port = 0x10, write = function() coroutine.yield() end }
    local run = coroutine.wrap(function() return (vcpu:run(SUSPENDED)) end)
    local why
    local outer = calling(function()
      run()
      meanwhile(function() quiet(SPIN):run { timeout = 0.35 } end)
      why = run()
    end)
    assert.equal("hlt", (outer:run(LIMITS)))
    assert.equal("hlt", why)
  end))
end)

describe("a handler that is still running after the deadline", function()
  before_each(support.need_kvm)

  local function spin() while true do end end

  it("is stopped with an error, at any kind of exit", function()
    for _, code in ipairs { IN, OUT } do
      local vcpu = calling(spin, code)
      contains("deadline", overrun(vcpu))
      assert.equal("hlt", (vcpu:run(LIMITS)))
    end
    local vcpu, vm = quiet(HLT)
    vm:on("hlt", spin)
    contains("deadline", overrun(vcpu))
  end)

  it("is stopped within functions it calls", function()
    local vcpu = calling(function()
      table.sort({ 1, 2, 3, 4 }, spin)
    end)
    contains("deadline", overrun(vcpu))
  end)

  it("is stopped in a loop of calls into C", function()
    local vcpu = calling(function()
      local text = ("x"):rep(100)
      while true do text:find("y", 1, true) end
    end)
    contains("deadline", overrun(vcpu))
  end)

  it("is stopped in a coroutine that it resumed", function()
    local vcpu = calling(function() coroutine.wrap(spin)() end)
    contains("deadline", overrun(vcpu))
    local ok, message
    vcpu = calling(function() ok, message = coroutine.resume(coroutine.create(spin)) end)
    assert.equal("timeout", (vcpu:run(LATE)))
    assert.is_false(ok)
    contains("deadline", message)
  end)

  it("is stopped when the run itself is in a coroutine", function()
    local vcpu = calling(spin)
    local co = coroutine.create(function() vcpu:run(LATE) end)
    contains("deadline", select(2, coroutine.resume(co)))
  end)

  it("is stopped after it has yielded and been resumed", function()
    local vcpu = calling(function()
      coroutine.yield()
      spin()
    end)
    local co = coroutine.create(function() vcpu:run(LATE) end)
    coroutine.resume(co)
    contains("deadline", select(2, coroutine.resume(co)))
  end)

  it("is stopped after it has been resumed, whatever was done meanwhile", function()
    local status, out = support.run([[
      package.path = os.getenv("CKVM_SRCDIR") .. "/tests/?.lua;" .. package.path
      local guest = require("support").real_mode
      local function spin() while true do end end
      local function calling(handler)
        local _, vm, vcpu = guest("\xe6\x10\xf4") -- out %al, $0x10; hlt
        vm:attach_io { port = 0x10, write = handler }
        return vcpu
      end
      local function attempt(what, meanwhile)
        local vcpu = calling(function()
          coroutine.yield()
          spin()
        end)
        local co = coroutine.create(function() vcpu:run { timeout = 0.5 } end)
        coroutine.resume(co)
        local resume = meanwhile(co) or coroutine.resume
        print(what, select(2, resume(co)))
      end
      attempt("nothing", function() end)
      attempt("a run", function() calling(function() end):run() end)
      attempt("a run with a timeout", function()
        local _, _, vcpu = guest("\xeb\xfe") -- jmp .
        vcpu:run { timeout = 0.2 }
      end)
      attempt("another that is suspended", function()
        local vcpu = calling(coroutine.yield)
        local co = coroutine.create(function() vcpu:run { timeout = 0.01 } end)
        coroutine.resume(co)
        coroutine.resume(co)
      end)
      attempt("within a handler", function()
        return function(co)
          local result
          calling(function() result = table.pack(coroutine.resume(co)) end):run()
          return table.unpack(result)
        end
      end)
    ]], { shell = "ulimit -t 40" }) -- of the processor's seconds
    assert.equal(0, status)
    local count = 0
    for line in out:gmatch("[^\n]+") do
      contains("after the deadline", line)
      count = count + 1
    end
    assert.equal(5, count)
  end)

  it("may catch that error, and the run then times out", function()
    local ok, message
    local vcpu = calling(function() ok, message = pcall(spin) end)
    assert.equal("timeout", (vcpu:run(LATE)))
    assert.is_false(ok)
    contains("deadline", message)
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)

  it("is stopped though it catches that error, again and again", function()
    local status, out = support.run([[
      package.path = os.getenv("CKVM_SRCDIR") .. "/tests/?.lua;" .. package.path
      local _, vm, vcpu = require("support").real_mode("\xe6\x10\xf4")
      local function spin() while true do end end
      vm:attach_io { port = 0x10, write = function() while true do pcall(spin) end end }
      print(pcall(vcpu.run, vcpu, { timeout = 0.5 }))
    ]], { shell = "ulimit -t 20" }) -- of the processor's seconds
    assert.equal(0, status)
    contains("deadline", out)
  end)

  it("is stopped after runs within have come to their end", function()
    local brief, short = quiet(HLT), quiet(SPIN)
    for _, within in ipairs {
      function() brief:run() end,
      function() brief:run(LIMITS) end,
      function() short:run { timeout = 0.001 } end,
      function()
        local raises = calling(error)
        pcall(raises.run, raises, LIMITS)
      end,
      function()
        local inner = calling(coroutine.yield)
        coroutine.wrap(inner.run)(inner, LIMITS)
      end,
    } do
      local vcpu = calling(function()
        within()
        spin()
      end)
      contains("deadline", overrun(vcpu))
    end
  end)

  it("is stopped after a finish and a run_once in it, too", function()
    local other = quiet(HLT)
    for _, within in ipairs {
      function(vcpu) vcpu:finish() end,
      function() other:run_once() end,
    } do
      local vcpu = calling(function(_, _, _, vcpu)
        within(vcpu)
        spin()
      end)
      contains("deadline", overrun(vcpu))
    end
  end)

  it("is stopped by the deadline of a run around its own", function()
    local inner = calling(spin)
    local vcpu = calling(function() inner:run() end)
    contains("deadline", error_of(vcpu.run, vcpu, LATE))
    assert.equal("hlt", (inner:run(LIMITS)))
  end)

  it("may return late, if it returns", function()
    local inner = quiet(SPIN)
    local vcpu = calling(function()
      inner:run() -- up to the deadline
      for _ = 1, 1000 do nothing() end
      return 0x42
    end, IN)
    assert.equal("timeout", (vcpu:run(DEADLINE)))
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(0x42, vcpu.regs.rax)
  end)

  it("leaves no hook behind, and no deadline for the script", function()
    local vcpu = calling(spin)
    for _ = 1, 3 do
      overrun(vcpu)
      vcpu.regs.rip = 0x1000
    end
    assert.is_nil((debug.gethook()))
    local start <const> = ckvm.now()
    repeat until ckvm.now() - start > 0.2 -- longer than the grace of these
    assert.is_nil((debug.gethook()))
  end)

  it("leaves the script's own hook as it was", function()
    local vcpu = calling(spin)
    local function hook() end
    debug.sethook(hook, "l", 100000)
    local message = overrun(vcpu)
    local got, mask, count = debug.gethook()
    debug.sethook()
    contains("deadline", message)
    assert.equal(hook, got)
    assert.same({ "l", 100000 }, { mask, count })
  end)

  it("leaves the script's own hook as it was when nothing had to be stopped", function()
    local inner = quiet(SPIN)
    local vcpu = calling(function() inner:run() end)
    local function hook() end
    debug.sethook(hook, "", 100000)
    local why = vcpu:run(DEADLINE)
    local got, mask, count = debug.gethook()
    debug.sethook()
    assert.equal("timeout", why)
    assert.equal(hook, got)
    assert.same({ "", 100000 }, { mask, count })
  end)
end)

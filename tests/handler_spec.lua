-- Handlers that do more than answer: raise, yield, close what they run on, run other guests.

local support = require "support"

local error_of, contains = support.error_of, support.contains
local guest, LIMITS, attach = support.guest, support.LIMITS, support.attach
local each_access = support.each_access

local IN <const> = "\xe4\x10"              -- in $0x10, %al
local OUT <const> = "\xe6\x10"             -- out %al, $0x10
local LOAD <const> = "\xa0\x00\x80"        -- mov (0x8000), %al
local STORE <const> = "\xa2\x00\x80"       -- mov %al, (0x8000)
local LOADL <const> = "\x66\xa1\xfe\x8f"   -- mov (0x8ffe), %eax: across two pages
local INC_BX <const> = "\x43"              -- inc %bx
local HLT <const> = "\xf4"                 -- hlt
local SPIN <const> = "\xeb\xfe"            -- jmp .
local REP_INSB <const> = "\xbf\x00\x20"    -- mov $0x2000, %di
  .. "\xba\x10\x00"                        -- mov $0x10, %dx
  .. "\xb9\x06\x00"                        -- mov $6, %cx
  .. "\xf3\x6c"                            -- rep insb
local REP_OUTSB <const> = "\xbe\x00\x20"   -- mov $0x2000, %si
  .. "\xba\x10\x00"                        -- mov $0x10, %dx
  .. "\xb9\x06\x00"                        -- mov $6, %cx
  .. "\xf3\x6e"                            -- rep outsb

local function nothing() end

describe("a handler that raises", function()
  before_each(support.need_kvm)

  each_access(function(name, code)
    it("leaves run with its error unchanged, in " .. name, function()
      for _, err in ipairs { {}, "a string", 42, true, setmetatable({}, {}) } do
        local _, vm, vcpu = guest(code .. HLT)
        local function raise() error(err, 0) end
        attach(vm, raise, raise)
        assert.equal(err, error_of(vcpu.run, vcpu, LIMITS))
      end
    end)

    it("leaves a guest that can be looked at and run again, in " .. name, function()
      local _, vm, vcpu = guest(code .. INC_BX .. HLT)
      local function raise() error({}) end
      attach(vm, raise, raise)
      error_of(vcpu.run, vcpu, LIMITS)
      assert.equal(0, vcpu.regs.rbx)
      assert.equal(code, vm:read(0x1000, #code))
      assert.is_string(vcpu.exit.reason)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(1, vcpu.regs.rbx)
    end)
  end)

  it("may raise nil", function()
    local _, vm, vcpu = guest(OUT .. HLT)
    attach(vm, nil, function() error(nil) end)
    assert.same({ n = 2, false, nil }, table.pack(pcall(vcpu.run, vcpu, LIMITS)))
  end)

  it("leaves a read answered with all ones", function()
    for _, code in ipairs { "\xe5\x10", "\xa1\x00\x80" } do -- in $0x10, %ax; mov (0x8000), %ax
      local _, vm, vcpu = guest(code .. HLT)
      attach(vm, function() error({}) end)
      error_of(vcpu.run, vcpu, LIMITS)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(0xffff, vcpu.regs.rax)
    end
  end)

  it("leaves the rest of a string instruction answered with all ones", function()
    local _, vm, vcpu = guest(REP_INSB .. HLT)
    local count = 0
    attach(vm, function()
      count = count + 1
      if count == 4 then error({}) end
      return count
    end)
    error_of(vcpu.run, vcpu, LIMITS)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal("\1\2\3\xff\xff\xff", vm:read(0x2000, 6))
    assert.equal(4, count)
  end)

  it("leaves the second page of an access to the next run", function()
    local _, vm, vcpu = guest(LOADL .. HLT)
    local seen = {}
    attach(vm, function(gpa)
      table.insert(seen, gpa)
      if gpa == 0x8ffe then error({}) end
      return 0x1234
    end)
    error_of(vcpu.run, vcpu, LIMITS)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ 0x8ffe, 0x9000 }, seen)
    assert.equal(0x1234ffff, vcpu.regs.rax)
  end)

  it("leaves writes of an outs that came after to the next run", function()
    local _, vm, vcpu = guest(REP_OUTSB .. HLT)
    vm:write(0x2000, "abcdef")
    local seen = {}
    attach(vm, nil, function(_, value)
      table.insert(seen, string.char(value))
      if value == ("c"):byte() then error({}) end
    end)
    error_of(vcpu.run, vcpu, LIMITS)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal("abcdef", table.concat(seen))
  end)

  it("passes through the runs around it", function()
    local oops = {}
    local function nest(depth)
      local _, vm, vcpu = guest(OUT .. HLT)
      attach(vm, nil, function()
        if depth == 0 then error(oops) end
        nest(depth - 1)
      end)
      vcpu:run(LIMITS)
    end
    assert.equal(oops, error_of(nest, 10))
  end)

  it("keeps the registers that were written before", function()
    for _, code in ipairs { IN, OUT, LOAD, STORE } do
      local _, vm, vcpu = guest(code .. HLT)
      local function raise(...)
        local from = select(-1, ...)
        from.regs.rcx = 7
        error({})
      end
      attach(vm, raise, raise)
      error_of(vcpu.run, vcpu, LIMITS)
      assert.equal(7, vcpu.regs.rcx)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(7, vcpu.regs.rcx)
    end
  end)

  it("may be one of vm:on", function()
    local _, vm, vcpu = guest(HLT .. INC_BX .. HLT)
    local oops = {}
    vm:on("hlt", function() error(oops) end)
    assert.equal(oops, error_of(vcpu.run, vcpu, LIMITS))
    assert.equal("hlt", vcpu.exit.reason)
    vm:on("hlt", nil)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(1, vcpu.regs.rbx)
  end)

  it("may have run out of C stack, or of memory for a string", function()
    local _, vm, vcpu = guest(OUT .. OUT .. HLT)
    local function deep() return 1 + deep() end
    attach(vm, nil, deep)
    contains("stack overflow", error_of(vcpu.run, vcpu, LIMITS))
    assert.is_false((pcall(vcpu.run, vcpu, LIMITS)))
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)
end)

describe("a handler that yields", function()
  before_each(support.need_kvm)

  it("raises when the run is in no coroutine", function()
    local text = [[
      package.path = os.getenv("CKVM_SRCDIR") .. "/tests/?.lua;" .. package.path
      local _, vm, vcpu = require("support").real_mode("\xe6\x10\xf4")
      vm:attach_io { port = 0x10, write = function() coroutine.yield() end }
      print(pcall(vcpu.run, vcpu))
      print(vcpu:run())
    ]]
    local status, out = support.run(text)
    assert.equal(0, status)
    contains("outside a coroutine", out)
    contains("\nhlt\n", out)
  end)

  each_access(function(name, code, kind)
    it("gives and takes values, in " .. name, function()
      local _, vm, vcpu = guest(code .. code .. HLT)
      local function handler() return coroutine.yield(kind) end
      attach(vm, handler, handler)
      local co = coroutine.create(function() return vcpu:run(LIMITS) end)
      assert.same({ true, kind }, { coroutine.resume(co) })
      assert.same({ true, kind }, { coroutine.resume(co, 5) })
      assert.same({ true, "hlt" }, { coroutine.resume(co, 6) })
      assert.equal(kind == "read" and 6 or 0, vcpu.regs.rax)
    end)

    it("may raise when it is resumed, in " .. name, function()
      local _, vm, vcpu = guest(code .. HLT)
      local oops = {}
      local function handler()
        coroutine.yield()
        error(oops)
      end
      attach(vm, handler, handler)
      local co = coroutine.create(function() return vcpu:run(LIMITS) end)
      assert.is_true((coroutine.resume(co)))
      assert.same({ false, oops }, { coroutine.resume(co) })
      assert.equal("hlt", (vcpu:run(LIMITS)))
    end)
  end)

  it("may do so at each of many exits, with and without limits", function()
    for _, limits in ipairs { LIMITS, { exits = 1000 }, false } do
      local _, vm, vcpu = guest("\xb9\x00\x01" -- mov $256, %cx
        .. IN .. OUT .. "\xe2\xfa"             -- 1: in; out; loop 1b
        .. HLT)
      local function handler() return coroutine.yield("again") end
      attach(vm, handler, handler)
      local run = coroutine.wrap(function() return (vcpu:run(limits or nil)) end)
      local count = 0
      while run(count & 0xff) == "again" do count = count + 1 end
      assert.equal(512, count)
    end
  end)

  it("may do so within calls, pcall and iterators", function()
    local _, vm, vcpu = guest(IN .. HLT)
    attach(vm, function()
      local sum = 0
      for value in function() return coroutine.yield("next") end do
        local ok, twice = pcall(function() return coroutine.yield(value) * 2 end)
        assert(ok)
        sum = sum + twice
      end
      return sum
    end)
    local run = coroutine.wrap(function() return (vcpu:run(LIMITS)) end)
    assert.equal("next", run())
    assert.equal(3, run(3))
    assert.equal("next", run(3))
    assert.equal(4, run(4))
    assert.equal("next", run(4))
    assert.equal("hlt", run(nil))
    assert.equal(14, vcpu.regs.rax)
  end)

  it("may be called from a pcall around run", function()
    local _, vm, vcpu = guest(OUT .. HLT)
    attach(vm, nil, function() coroutine.yield() end)
    local co = coroutine.create(function() return pcall(vcpu.run, vcpu, LIMITS) end)
    assert.is_true((coroutine.resume(co)))
    assert.same({ true, true, "hlt" }, { coroutine.resume(co) })
  end)

  it("may be a handler of vm:on", function()
    local _, vm, vcpu = guest(IN .. HLT .. HLT)
    vm:on("io_in", function() return coroutine.yield("in") end)
    vm:on("hlt", function(exit) return coroutine.yield(exit.reason) end)
    local run = coroutine.wrap(function() return (vcpu:run(LIMITS)) end)
    assert.equal("in", run())
    assert.equal("hlt", run(5)) -- the handler's
    assert.equal("hlt", run(true))
    assert.equal("hlt", run(false)) -- the run's
    assert.is_false(pcall(run))
    assert.equal(5, vcpu.regs.rax)
  end)

  it("yields in the middle of a string instruction", function()
    local _, vm, vcpu = guest(REP_INSB .. HLT)
    attach(vm, function() return coroutine.yield("next") end)
    local run = coroutine.wrap(function() return (vcpu:run(LIMITS)) end)
    run()
    for i = 1, 5 do assert.equal("next", run(i)) end
    assert.equal("hlt", run(6))
    assert.equal("\1\2\3\4\5\6", vm:read(0x2000, 6))
  end)

  it("may wait while other guests run, with limits of their own", function()
    local runs = {}
    for i = 1, 8 do
      local _, vm, vcpu = guest(IN .. IN .. IN .. HLT)
      attach(vm, function() return coroutine.yield("in") end)
      runs[i] = coroutine.wrap(function()
        local why = vcpu:run(i % 2 == 0 and LIMITS or nil)
        return why, vcpu.regs.rax
      end)
    end
    for i = 1, 8 do assert.equal("in", runs[i]()) end
    for round = 1, 2 do
      for i = 8, 1, -1 do assert.equal("in", runs[i](round)) end
    end
    for i = 1, 8 do assert.same({ "hlt", i }, { runs[i](i) }) end
  end)

  it("passes through the runs around it", function()
    local function nest(depth)
      local _, vm, vcpu = guest(IN .. HLT)
      attach(vm, function()
        if depth == 0 then return coroutine.yield("deep") end
        return nest(depth - 1)
      end)
      assert(vcpu:run(LIMITS) == "hlt")
      return vcpu.regs.rax + 1
    end
    local run = coroutine.wrap(nest)
    assert.equal("deep", run(10))
    assert.equal(31, run(20))
  end)

  it("may be resumed by the handler of another guest, and in another coroutine", function()
    local _, vm, vcpu = guest(IN .. HLT)
    attach(vm, function() return coroutine.yield("in") end)
    local run = coroutine.wrap(function() return (vcpu:run(LIMITS)) end)
    assert.equal("in", run())
    local _, other_vm, other = guest(OUT .. HLT)
    local why
    attach(other_vm, nil, function() why = coroutine.wrap(function() return run(9) end)() end)
    assert.equal("hlt", (other:run(LIMITS)))
    assert.equal("hlt", why)
    assert.equal(9, vcpu.regs.rax)
  end)

  it("finds the registers as it left them, and may go on writing", function()
    local _, vm, vcpu = guest(IN .. HLT)
    attach(vm, function(_, _, from)
      from.regs.rcx = 5
      coroutine.yield()
      assert(from.regs.rcx == 6)
      from.regs.rdx = 7
      return 1
    end)
    local run = coroutine.wrap(function() return (vcpu:run(LIMITS)) end)
    run()
    assert.equal(5, vcpu.regs.rcx)
    vcpu.regs.rcx = 6
    assert.equal("hlt", run())
    assert.same({ 1, 6, 7 }, { vcpu.regs.rax, vcpu.regs.rcx, vcpu.regs.rdx })
  end)

  it("lets the vCPU be stopped and kicked meanwhile", function()
    local _, vm, vcpu = guest(OUT .. OUT .. HLT)
    attach(vm, nil, function() coroutine.yield() end)
    local function start()
      local run = coroutine.wrap(function() return vcpu:run(LIMITS) end)
      run()
      return run
    end
    local run = start()
    vcpu:stop("from outside")
    assert.same({ "stopped", "from outside" }, { run() })
    run = start()
    vcpu:kick()
    assert.equal("kicked", (run()))
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)
end)

describe("a run that is abandoned", function()
  before_each(support.need_kvm)

  local function suspended(code, handler)
    local _, vm, vcpu = guest(code)
    attach(vm, handler, handler)
    local co = coroutine.create(function() return vcpu:run(LIMITS) end)
    assert(coroutine.resume(co))
    return vcpu, co, vm
  end

  local function yield() return coroutine.yield("suspended") end

  each_access(function(name, code, kind)
    it("gives way to a second run, whose guest sees all ones, in " .. name, function()
      local vcpu, co = suspended(code .. HLT, yield)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(kind == "read" and 0xff or 0, vcpu.regs.rax)
      local ok, message = coroutine.resume(co, 5)
      assert.is_false(ok)
      contains("run abandoned", message)
      assert.equal(kind == "read" and 0xff or 0, vcpu.regs.rax)
    end)
  end)

  it("raises even if the second one failed, or ended at once", function()
    for _, limits in ipairs { { exits = 0 }, { timeout = 0 } } do
      local vcpu, co = suspended(IN .. HLT, yield)
      vcpu:run(limits)
      contains("run abandoned", select(2, coroutine.resume(co, 5)))
      assert.equal("hlt", (vcpu:run(LIMITS)))
    end
  end)

  it("gives way to run_once, too", function()
    local vcpu, co = suspended(IN .. HLT, yield)
    assert.equal("hlt", vcpu:run_once())
    assert.equal(0xff, vcpu.regs.rax)
    contains("run abandoned", select(2, coroutine.resume(co, 5)))
  end)

  it("answers the rest of a string instruction with all ones", function()
    local count = 0
    local vcpu, co, vm = suspended(REP_INSB .. HLT, function()
      count = count + 1
      if count == 3 then coroutine.yield() end
      return count
    end)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal("\1\2\xff\xff\xff\xff", vm:read(0x2000, 6))
    contains("run abandoned", select(2, coroutine.resume(co)))
    assert.equal(3, count)
  end)

  it("does not disturb the one that has taken over and is suspended, too", function()
    local vcpu, first = suspended(IN .. IN .. HLT, yield)
    local second = coroutine.create(function() return vcpu:run(LIMITS) end)
    assert.same({ true, "suspended" }, { coroutine.resume(second) })
    contains("run abandoned", select(2, coroutine.resume(first, 1)))
    assert.same({ true, "hlt" }, { coroutine.resume(second, 2) })
    assert.equal(2, vcpu.regs.rax)
  end)

  it("may be collected, and the guest be run again", function()
    for _, code in ipairs { IN, OUT, LOAD, STORE } do
      local vcpu = suspended(code .. INC_BX .. HLT, yield)
      support.collect()
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(1, vcpu.regs.rbx)
    end
  end)

  it("may be collected together with its VM", function()
    local weak = setmetatable({}, { __mode = "k" })
    for _ = 1, 20 do
      local vcpu, co = suspended(IN .. HLT, yield)
      weak[vcpu] = co
    end
    support.collect()
    assert.is_nil(next(weak))
  end)

  it("may be closed, and the guest be run again", function()
    local vcpu, co = suspended(IN .. HLT, yield)
    assert.is_true(coroutine.close(co))
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(0xff, vcpu.regs.rax)
  end)

  it("closes what its handler had open", function()
    local closed
    local vcpu, co = suspended(IN .. HLT, function()
      local _ <close> = setmetatable({}, { __close = function() closed = true end })
      return coroutine.yield()
    end)
    coroutine.close(co)
    assert.is_true(closed)
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)

  it("finds its vCPU or its VM closed", function()
    for _, object in ipairs { "vcpu", "vm" } do
      local vcpu, co, vm = suspended(IN .. HLT, yield)
      if object == "vcpu" then vcpu:close() else vm:close() end
      support.collect()
      contains("closed", select(2, coroutine.resume(co, 5)))
    end
  end)

  it("is what a run from its own handler makes of it", function()
    each_access(function(_, code, kind)
      local _, vm, vcpu = guest(code .. HLT)
      local inner
      local function handler()
        inner = vcpu:run(LIMITS)
        return 5
      end
      attach(vm, handler, handler)
      contains("run abandoned", error_of(vcpu.run, vcpu, LIMITS))
      assert.equal("hlt", inner)
      assert.equal(kind == "read" and 0xff or 0, vcpu.regs.rax)
    end)
  end)

  it("is what run_once from its own handler makes of it", function()
    local _, vm, vcpu = guest(IN .. HLT)
    local inner
    attach(vm, function()
      inner = vcpu:run_once()
      return 5
    end)
    contains("run abandoned", error_of(vcpu.run, vcpu, LIMITS))
    assert.equal("hlt", inner)
    assert.equal(0xff, vcpu.regs.rax)
  end)

  it("raises in each run that a nested handler took over", function()
    local _, vm, vcpu = guest(IN .. IN .. IN .. IN .. HLT)
    local errors = {}
    attach(vm, function()
      local ok, message = pcall(vcpu.run, vcpu, LIMITS)
      if not ok then table.insert(errors, message) end
      return 1
    end)
    contains("run abandoned", error_of(vcpu.run, vcpu, LIMITS))
    assert.equal(3, #errors)
    for _, message in ipairs(errors) do contains("run abandoned", message) end
  end)
end)

describe("a handler", function()
  before_each(support.need_kvm)

  it("may close its vCPU: run raises", function()
    each_access(function(_, code)
      local _, vm, vcpu = guest(code .. HLT)
      local function handler()
        vcpu:close()
        support.collect()
        return 1
      end
      attach(vm, handler, handler)
      contains("closed", error_of(vcpu.run, vcpu, LIMITS))
      contains("closed", error_of(vcpu.run, vcpu))
    end)
  end)

  it("may close its VM: run raises", function()
    each_access(function(_, code)
      local _, vm, vcpu = guest(code .. HLT)
      local function handler()
        vm:close()
        support.collect()
        return 1
      end
      attach(vm, handler, handler)
      contains("closed", error_of(vcpu.run, vcpu, LIMITS))
      contains("closed", error_of(vcpu.run, vcpu))
    end)
  end)

  it("may close its VM and raise, answer wrongly, or yield", function()
    for _, last in ipairs { "raise", "answer", "yield" } do
      local _, vm, vcpu = guest(IN .. HLT)
      attach(vm, function()
        vm:close()
        support.collect()
        if last == "raise" then error("mine") end
        if last == "yield" then coroutine.yield() end
        return last == "answer" and "x" or 1
      end)
      local co = coroutine.create(function() return vcpu:run(LIMITS) end)
      local ok, message = coroutine.resume(co)
      if last == "yield" then ok, message = coroutine.resume(co) end
      assert.is_false(ok)
      contains(last == "raise" and "mine" or "closed", message)
    end
  end)

  it("may close its vCPU and VM in the middle of a string instruction", function()
    for _, object in ipairs { "vcpu", "vm" } do
      local _, vm, vcpu = guest(REP_INSB .. HLT)
      local count = 0
      attach(vm, function()
        count = count + 1
        if count == 3 then
          if object == "vcpu" then vcpu:close() else vm:close() end
        end
        return 1
      end)
      contains("closed", error_of(vcpu.run, vcpu, LIMITS))
      assert.equal(3, count)
    end
  end)

  it("may close the vCPU and VM of a run around it", function()
    for _, object in ipairs { "vcpu", "vm" } do
      local _, vm, vcpu = guest(OUT .. HLT)
      local _, inner_vm, inner = guest(OUT .. HLT)
      local why
      attach(inner_vm, nil, function()
        if object == "vcpu" then vcpu:close() else vm:close() end
        support.collect()
      end)
      attach(vm, nil, function() why = inner:run(LIMITS) end)
      contains("closed", error_of(vcpu.run, vcpu, LIMITS))
      assert.equal("hlt", why)
    end
  end)

  it("may close the KVM handle", function()
    local kvm, vm, vcpu = guest(OUT .. HLT)
    attach(vm, nil, function() kvm:close() end)
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)

  it("may close the memory its guest runs from", function()
    each_access(function(_, code)
      local _, vm, vcpu, ram = guest(code .. SPIN)
      local function handler()
        ram:close()
        support.collect()
        return 1
      end
      attach(vm, handler, handler)
      local ok, why = pcall(vcpu.run, vcpu, { timeout = 0.5 })
      assert.is_not_nil(why)
      assert.is_true(ok or why.call == "KVM_RUN")
    end)
  end)

  it("may add memory, that the guest then finds", function()
    local _, vm, vcpu = guest(OUT .. LOAD .. HLT)
    vm:attach_io {
      port = 0x10,
      write = function()
        vm:add_memory { gpa = 0x8000, size = 0x1000 }
        vm:write_u8(0x8000, 0x5a)
      end,
    }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(0x5a, vcpu.regs.rax)
  end)

  it("may run the collector at every exit", function()
    local _, vm, vcpu = guest("\xb9\x40\x00" -- mov $64, %cx
      .. IN .. STORE .. "\xe2\xf9"           -- 1: in; mov; loop 1b
      .. HLT)
    local function handler()
      collectgarbage()
      return 1
    end
    attach(vm, handler, handler)
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)

  it("may be the last to know its VM", function()
    local count = 0
    local run
    do
      local _, vm, vcpu = guest(IN .. STORE .. HLT)
      local function handler()
        support.collect()
        count = count + 1
        return 1
      end
      attach(vm, handler, handler)
      run = coroutine.wrap(function() return vcpu:run(LIMITS) end)
    end
    support.collect()
    assert.equal("hlt", (run()))
    assert.equal(2, count)
  end)

  it("may run other guests, twenty deep", function()
    local function nest(depth)
      local _, vm, vcpu = guest(IN .. LOAD .. HLT)
      local first = true
      attach(vm, function()
        local deeper = first and depth > 1
        first = false
        return deeper and nest(depth - 1) or 1
      end)
      local why = vcpu:run(depth % 2 == 0 and LIMITS or nil)
      assert(why == "hlt", why)
      return depth
    end
    assert.equal(20, nest(20))
  end)

  it("may create a vCPU and run it", function()
    local _, vm, vcpu = guest(OUT .. HLT)
    local inner
    attach(vm, nil, function(_, _, _, from)
      if from ~= vcpu then return end
      local second <close> = vm:create_vcpu(1)
      second:set_sregs(vcpu:get_sregs())
      second:set_regs { rip = 0x1000, rflags = 2 }
      inner = second:run(LIMITS)
    end)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal("hlt", inner)
  end)

  it("may detach its range and answer wrongly, or with another in its place", function()
    for _, again in ipairs { false, true } do
      local _, vm, vcpu = guest(IN .. HLT)
      local range
      range = vm:attach_io {
        port = 0x10,
        read = function()
          range:detach()
          support.collect()
          if again then vm:attach_io { port = 0x10, count = 2, read = nothing } end
          return "x"
        end,
      }
      contains("io_in at 0x10", error_of(vcpu.run, vcpu, LIMITS))
      assert.equal("hlt", (vcpu:run(LIMITS)))
    end
  end)

  it("may be detached while it is suspended, with another in its place", function()
    local _, vm, vcpu = guest(IN .. "\x88\xc3" .. IN .. HLT) -- mov %al, %bl
    local range = vm:attach_io { port = 0x10, read = function() return coroutine.yield() end }
    local run = coroutine.wrap(function() return (vcpu:run(LIMITS)) end)
    run()
    range:detach()
    vm:attach_io { port = 0x10, read = function() return 2 end }
    support.collect()
    assert.equal("hlt", run(1))
    assert.same({ 1, 2 }, { vcpu.regs.rbx, vcpu.regs.rax })
  end)

  it("may be replaced while it runs, and vm:on within its own exit", function()
    local _, vm, vcpu = guest(HLT .. HLT)
    vm:on("hlt", function(exit)
      vm:on("hlt", nil)
      support.collect()
      assert(exit.reason == "hlt")
    end)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(0x1002, vcpu.regs.rip)
  end)
end)

-- Writing registers ------------------------------------------------------------

-- Three ways to write a field of a register view. Each returns its name and a function.

-- Handlers that do more than answer: raise, yield, close what they run on, run other guests, and
-- write registers while their access is open.

local support = require "support"

local error_of, contains = support.error_of, support.contains

local IN <const> = "\xe4\x10"              -- in $0x10, %al
local OUT <const> = "\xe6\x10"             -- out %al, $0x10
local LOAD <const> = "\xa0\x00\x80"        -- mov (0x8000), %al
local STORE <const> = "\xa2\x00\x80"       -- mov %al, (0x8000)
local LOADL <const> = "\x66\xa1\xfe\x8f"   -- mov (0x8ffe), %eax: across two pages
local STOREL <const> = "\x66\xa3\xfe\x8f"  -- mov %eax, (0x8ffe): likewise
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

local guest, LIMITS = support.guest, support.LIMITS

-- All that the guests here touch, answered by these two.
local function attach(vm, read, write)
  vm:attach_io { port = 0x10, read = read, write = write }
  vm:attach_mmio { gpa = 0x8000, size = 0x2000, read = read, write = write }
end

-- The four kinds of access of one byte.
local accesses <const> = {
  { "a port read", IN, "read" }, { "a port write", OUT, "write" },
  { "an MMIO read", LOAD, "read" }, { "an MMIO write", STORE, "write" },
}

-- Calls define(name, code, kind) for each of them, `it` names included.
local function each_access(define)
  for _, access in ipairs(accesses) do define(table.unpack(access)) end
end

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
local ways <const> = {
  { "a view", function(vcpu, name, value) vcpu.regs[name] = value end },
  { "set_regs with some fields", function(vcpu, name, value)
    vcpu:set_regs { [name] = value }
  end },
  { "set_regs with all fields", function(vcpu, name, value)
    local regs = vcpu:get_regs()
    regs[name] = value
    vcpu:set_regs(regs)
  end },
}

local function describe_registers(title, open)
  local function start(code, read, write)
    local _, vm, vcpu = guest(code, { open = open })
    if read or write then attach(vm, read, write) end
    return vcpu, vm
  end

  describe("registers " .. title .. ", written by a handler,", function()
    before_each(support.need_kvm)

    for _, way in ipairs(ways) do
      local by <const>, set <const> = table.unpack(way)

      each_access(function(name, code, kind)
        it("take effect after " .. name .. ", by " .. by, function()
          local vcpu
          local function handler()
            set(vcpu, "rbx", 0x1233)
            return 0x42
          end
          vcpu = start(code .. INC_BX .. HLT, handler, handler)
          assert.equal("hlt", (vcpu:run(LIMITS)))
          assert.equal(0x1234, vcpu.regs.rbx)
          assert.equal(kind == "read" and 0x42 or 0, vcpu.regs.rax)
          assert.equal(0x1000 + #code + 2, vcpu.regs.rip)
        end)

        it("take rip elsewhere after " .. name .. ", by " .. by, function()
          local vcpu
          local function handler()
            set(vcpu, "rip", 0x1000 + #code + 1)
            return 0x42
          end
          vcpu = start(code .. HLT .. INC_BX .. HLT, handler, handler)
          assert.equal("hlt", (vcpu:run(LIMITS)))
          assert.equal(1, vcpu.regs.rbx)
          assert.equal(kind == "read" and 0x42 or 0, vcpu.regs.rax)
          assert.equal(0x1000 + #code + 3, vcpu.regs.rip)
        end)
      end)

      it("win over the answer, by " .. by, function()
        for _, code in ipairs { IN, LOAD } do
          local vcpu
          vcpu = start(code .. HLT, function()
            set(vcpu, "rax", 0x12345678)
            return 0x42
          end)
          assert.equal("hlt", (vcpu:run(LIMITS)))
          assert.equal(0x12345678, vcpu.regs.rax)
        end
      end)
    end

    it("win over the answer also where they are what they were", function()
      for _, code in ipairs { IN, LOAD } do
        local vcpu
        vcpu = start(code .. HLT, function()
          vcpu.regs.rax = vcpu.regs.rax
          return 0x42
        end)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.equal(0, vcpu.regs.rax)
      end
    end)

    each_access(function(name, code)
      it("are read back as written in " .. name .. ", by view and by get_regs", function()
        local vcpu
        local function handler()
          vcpu.regs.rbx = 5
          assert(vcpu.regs.rbx == 5)
          assert(vcpu:get_regs().rbx == 5)
          vcpu:set_regs { rcx = 6 }
          assert(vcpu.regs.rcx == 6 and vcpu.regs.rbx == 5)
          assert(vcpu:get_regs().rcx == 6)
          return 1
        end
        vcpu = start(code .. HLT, handler, handler)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.equal(5, vcpu.regs.rbx)
        assert.equal(6, vcpu.regs.rcx)
        assert.equal(5, vcpu:get_regs().rbx)
      end)

      it("include segments, in " .. name, function()
        for _, by in ipairs { "view", "set_sregs", "whole" } do
          local vcpu, vm
          local function handler()
            if by == "view" then
              vcpu.sregs.ds.base = 0x2000
            elseif by == "set_sregs" then
              vcpu:set_sregs { ds = { base = 0x2000 } }
            else
              local sregs = vcpu:get_sregs()
              sregs.ds.base = 0x2000
              vcpu:set_sregs(sregs)
            end
            return 0x42
          end
          vcpu, vm = start(code .. "\x8a\x1e\x10\x00" .. HLT, handler, handler) -- mov (0x10), %bl
          vm:write_u8(0x2010, 0x77)
          assert.equal("hlt", (vcpu:run(LIMITS)))
          assert.equal(0x77, vcpu.regs.rbx)
          assert.equal(0x2000, vcpu.sregs.ds.base)
          assert.equal(code:sub(1, 1):find("[\xe4\xa0]") and 0x42 or 0, vcpu.regs.rax)
          assert.equal(0x1000 + #code + 5, vcpu.regs.rip)
        end
      end)

      it("include flags and both views at once, in " .. name, function()
        local vcpu
        local function handler()
          vcpu.regs.rflags = 3 -- carry
          vcpu.sregs.es.base = 0x3000
          vcpu.regs.rsi = 9
          return 0
        end
        vcpu = start(code .. "\x11\xdb" .. HLT, handler, handler) -- adc %bx, %bx
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.same({ 1, 9, 0x3000 }, { vcpu.regs.rbx, vcpu.regs.rsi, vcpu.sregs.es.base })
      end)

      it("may be written at each of many exits, in " .. name, function()
        local vcpu
        local function handler()
          vcpu.regs.rbx = vcpu.regs.rbx + 2
          return 0
        end
        vcpu = start("\xb9\x40\x00"                    -- mov $64, %cx
          .. code .. INC_BX                            -- 1: ...; inc %bx
          .. "\xe2" .. string.char(0x100 - #code - 3)  -- loop 1b
          .. HLT, handler, handler)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.equal(3 * 64, vcpu.regs.rbx)
      end)

      it("stay when the run ends with that exit, in " .. name, function()
        for _, how in ipairs { "stop", "exits", "raise" } do
          local vcpu
          local function handler()
            vcpu.regs.rbx = 5
            if how == "stop" then vcpu:stop() end
            if how == "raise" then error({}) end
            return 0x42
          end
          vcpu = start(code .. INC_BX .. HLT, handler, handler)
          if how == "raise" then
            error_of(vcpu.run, vcpu, LIMITS)
          else
            assert.equal(how == "stop" and "stopped" or how,
              (vcpu:run { exits = 1, timeout = 20 }))
          end
          assert.equal(5, vcpu.regs.rbx)
          assert.equal(5, vcpu:get_regs().rbx)
          vcpu.regs.rcx = 3
          assert.equal("hlt", (vcpu:run(LIMITS)))
          assert.equal(6, vcpu.regs.rbx)
          assert.equal(3, vcpu.regs.rcx)
        end
      end)
    end)

    it("may be written from outside while an access is open", function()
      local vcpu = start(IN .. LOAD .. HLT)
      assert.equal("io_in", (vcpu:run(LIMITS)))
      vcpu.exit.data = 0x42
      vcpu.regs.rbx = 5
      assert.equal("mmio_read", (vcpu:run(LIMITS)))
      assert.equal(0x42, vcpu.regs.rax)
      assert.equal(5, vcpu.regs.rbx)
      vcpu.exit.data = 0x43
      vcpu:set_regs { rcx = 6 }
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ 0x43, 6 }, { vcpu.regs.rax, vcpu.regs.rcx })
    end)

    -- An access across two pages is two exits: what is written in the first must wait for both.
    for _, at in ipairs { 0x8ffe, 0x9000 } do
      for _, field in ipairs { "rbx", "rip", "rax" } do
        it(("survive a read across two pages, %s at %#x"):format(field, at), function()
          local vcpu, seen
          seen = {}
          vcpu = start(LOADL .. HLT .. INC_BX .. HLT, function(gpa, size)
            table.insert(seen, { gpa, size })
            if gpa == at then vcpu.regs[field] = field == "rip" and 0x1005 or 0x777 end
            return gpa == 0x8ffe and 0x1122 or 0x3344
          end)
          assert.equal("hlt", (vcpu:run(LIMITS)))
          assert.same({ { 0x8ffe, 2 }, { 0x9000, 2 } }, seen)
          assert.equal(field == "rax" and 0x777 or 0x33441122, vcpu.regs.rax)
          assert.equal(field == "rbx" and 0x777 or field == "rip" and 1 or 0, vcpu.regs.rbx)
          assert.equal(field == "rip" and 0x1007 or 0x1005, vcpu.regs.rip)
        end)

        it(("survive a write across two pages, %s at %#x"):format(field, at), function()
          local vcpu, seen
          seen = {}
          vcpu = start("\x66\xb8\x22\x11\x44\x33" -- mov $0x33441122, %eax
            .. STOREL .. HLT .. INC_BX .. HLT, nil, function(gpa, value, size)
            table.insert(seen, { gpa, value, size })
            if gpa == at then vcpu.regs[field] = field == "rip" and 0x100b or 0x777 end
          end)
          assert.equal("hlt", (vcpu:run(LIMITS)))
          assert.same({ { 0x8ffe, 0x1122, 2 }, { 0x9000, 0x3344, 2 } }, seen)
          assert.equal(field == "rax" and 0x777 or 0x33441122, vcpu.regs.rax)
          assert.equal(field == "rbx" and 0x777 or field == "rip" and 1 or 0, vcpu.regs.rbx)
          assert.equal(field == "rip" and 0x100d or 0x100b, vcpu.regs.rip)
        end)
      end
    end

    it("survive both halves of an access across two pages", function()
      for _, code in ipairs { LOADL, STOREL } do
        local vcpu
        local function handler(gpa)
          if gpa == 0x8ffe then
            vcpu.regs.rbx, vcpu.regs.rcx = 1, 1
            vcpu.sregs.es.base = 0x10
          else
            assert(vcpu.regs.rbx == 1)
            vcpu.regs.rcx, vcpu.regs.rdx = 2, 2
          end
          return 0
        end
        vcpu = start(code .. HLT, handler, handler)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.same({ 1, 2, 2, 0x10 },
          { vcpu.regs.rbx, vcpu.regs.rcx, vcpu.regs.rdx, vcpu.sregs.es.base })
      end
    end)

    it("survive an instruction that reads and then writes", function()
      local vcpu, written
      vcpu = start("\xfe\x06\x00\x80" -- incb (0x8000)
        .. HLT, function()
        vcpu.regs.rbx = 1
        return 5
      end, function(_, value)
        written = value
        vcpu.regs.rcx = 2
      end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(6, written)
      assert.same({ 1, 2, 0x1005 }, { vcpu.regs.rbx, vcpu.regs.rcx, vcpu.regs.rip })
    end)

    it("survive in the middle of ins", function()
      local vcpu, vm, count
      count = 0
      vcpu, vm = start(REP_INSB .. HLT, function()
        count = count + 1
        if count == 3 then vcpu.regs.rbx = 5 end
        if count == 5 then vcpu:set_regs { rbp = 6 } end
        return count
      end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal("\1\2\3\4\5\6", vm:read(0x2000, 6))
      assert.same({ 5, 6, 0, 0x2006 },
        { vcpu.regs.rbx, vcpu.regs.rbp, vcpu.regs.rcx, vcpu.regs.rdi })
    end)

    it("survive in the middle of outs", function()
      local vcpu, vm, seen
      seen = {}
      vcpu, vm = start(REP_OUTSB .. HLT, nil, function(_, value)
        table.insert(seen, string.char(value))
        if #seen == 3 then vcpu.regs.rbx = 5 end
        if #seen == 5 then vcpu:set_regs { rbp = 6 } end
      end)
      vm:write(0x2000, "abcdef")
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal("abcdef", table.concat(seen))
      assert.same({ 5, 6, 0, 0x2006 },
        { vcpu.regs.rbx, vcpu.regs.rbp, vcpu.regs.rcx, vcpu.regs.rsi })
    end)

    it("survive in the middle of a move from and to MMIO", function()
      local vcpu, vm, count
      count = 0
      local function handler()
        count = count + 1
        if count == 2 then vcpu.regs.rbx = 5 end
        return count
      end
      vcpu, vm = start("\xb9\x04\x00"           -- mov $4, %cx
        .. "\xbe\x00\x80"                       -- mov $0x8000, %si
        .. "\xbf\x00\x20"                       -- mov $0x2000, %di
        .. "\xf3\xa4"                           -- rep movsb
        .. HLT, handler, handler)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal("\1\2\3\4", vm:read(0x2000, 4))
      assert.same({ 5, 0 }, { vcpu.regs.rbx, vcpu.regs.rcx })

      count = 0
      vcpu:set_regs { rip = 0x1000, rbx = 0 }
      vm:write(0x1003, "\xbe\x00\x20\xbf\x00\x80") -- mov $0x2000, %si; mov $0x8000, %di
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(4, count)
      assert.same({ 5, 0 }, { vcpu.regs.rbx, vcpu.regs.rcx })
    end)

    it("may be read in any handler, and are those at the access", function()
      local vcpu, seen
      seen = {}
      local function handler()
        table.insert(seen, vcpu.regs.rbx)
        return 0
      end
      vcpu = start(INC_BX .. IN .. INC_BX .. OUT .. INC_BX .. LOAD .. INC_BX .. STORE .. HLT,
        handler, handler)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ 1, 2, 3, 4 }, seen)
    end)

    it("take effect after an exit that is no access", function()
      for _, way in ipairs(ways) do
        local vcpu, vm = start(HLT .. INC_BX .. HLT .. INC_BX .. INC_BX .. HLT)
        vm:on("hlt", function(_, from)
          if from.regs.rbx ~= 0 then return false end
          way[2](from, "rbx", 4)
          way[2](from, "rip", 0x1003)
        end)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.same({ 6, 0x1006 }, { vcpu.regs.rbx, vcpu.regs.rip })
      end
    end)

    it("take effect when a batched write is delivered, before the exit behind it", function()
      for _, field in ipairs { "rbx", "rip" } do
        local vcpu, vm
        vcpu, vm = start("\xe6\x20" .. IN .. HLT .. INC_BX .. HLT, function() -- out %al, $0x20
          assert(field == "rip" or vcpu.regs.rbx == 5)
          return 0x42
        end)
        vm:attach_io {
          port = 0x20, batch = true,
          write = function() vcpu.regs[field] = field == "rip" and 0x1005 or 5 end,
        }
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.same({ 0x42, field == "rip" and 1 or 5 }, { vcpu.regs.rax, vcpu.regs.rbx })
      end
    end)

    it("may be swapped for those of another guest", function()
      local vcpu
      local _, _, other = guest("", { regs = { rbx = 0x99, rip = 0x1003 }, open = open })
      vcpu = start(IN .. HLT .. INC_BX .. HLT, function()
        vcpu:set_regs(other:get_regs())
        return 0x42
      end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ 0x9a, 0x1005 }, { vcpu.regs.rbx, vcpu.regs.rip })
    end)

    it("are not lost when a second run takes over", function()
      each_access(function(_, code)
        local vcpu
        local function handler()
          vcpu.regs.rbx = 5
          coroutine.yield()
        end
        vcpu = start(code .. INC_BX .. HLT, handler, handler)
        coroutine.wrap(function() vcpu:run(LIMITS) end)()
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.equal(6, vcpu.regs.rbx)
      end)
    end)

    it("that the kernel refuses are raised by the run, and then show the kernel's", function()
      each_access(function(_, code, kind)
        local vcpu
        local function handler()
          vcpu.sregs.cr4 = 1 << 40
          return 0x42
        end
        vcpu = start(code .. INC_BX .. HLT, handler, handler)
        local err = error_of(vcpu.run, vcpu, LIMITS)
        assert.equal("KVM_SET_SREGS", err.call)
        assert.equal("EINVAL", err.code)
        contains("KVM_SET_SREGS: EINVAL: ", err)
        assert.equal(0, vcpu.sregs.cr4)
        assert.equal(0, vcpu:get_sregs().cr4)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.equal(1, vcpu.regs.rbx)
        assert.equal(kind == "read" and 0x42 or 0, vcpu.regs.rax)
      end)
    end)
  end)

  describe("registers " .. title .. ", between runs,", function()
    before_each(support.need_kvm)

    it("are what the next run starts with, by view and by set", function()
      local vcpu = start(INC_BX .. HLT)
      vcpu.regs.rbx = 4
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(5, vcpu.regs.rbx)
      vcpu:set_regs { rip = 0x1000, rbx = 8 }
      assert.equal(8, vcpu.regs.rbx)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(9, vcpu.regs.rbx)
      vcpu.regs.rip = 0x1000
      assert.equal("hlt", vcpu:run_once())
      assert.equal(10, vcpu.regs.rbx)
    end)

    it("are sent to the kernel by get, and kept by set of others", function()
      local vcpu = start(HLT)
      vcpu.regs.rbx = 4
      assert.equal(4, vcpu:get_regs().rbx)
      vcpu.regs.rbx = 5
      vcpu:set_regs { rcx = 6 }
      assert.same({ 5, 6 }, { vcpu.regs.rbx, vcpu.regs.rcx })
      vcpu.sregs.es.base = 0x100
      vcpu.regs.rbx = 7
      assert.equal(0x100, vcpu:get_sregs().es.base)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ 7, 6, 0x100 }, { vcpu.regs.rbx, vcpu.regs.rcx, vcpu.sregs.es.base })
    end)

    it("that the kernel refuses are raised by the next run, and by get", function()
      local vcpu = start(INC_BX .. HLT)
      vcpu.sregs.cr4 = 1 << 40
      local err = error_of(vcpu.run, vcpu, LIMITS)
      contains("KVM_SET_SREGS: EINVAL: ", err)
      assert.equal(0, vcpu.sregs.cr4)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(1, vcpu.regs.rbx)
      vcpu.sregs.cr4 = 1 << 40
      assert.equal("KVM_SET_SREGS", error_of(vcpu.get_sregs, vcpu).call)
      assert.equal(0, vcpu.sregs.cr4)
      assert.equal("KVM_SET_SREGS", error_of(vcpu.set_sregs, vcpu, { cr4 = 1 << 40 }).call)
      assert.equal(0, vcpu.sregs.cr4)
    end)

    it("include events", function()
      local vcpu = start(HLT .. HLT)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(0, vcpu.events.nmi.masked)
      vcpu.events.nmi = { masked = 1 }
      assert.equal(1, vcpu:get_vcpu_events().nmi.masked)
      vcpu.events.nmi.masked = 0
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(0, vcpu.events.nmi.masked)
    end)
  end)

  describe("vcpu:finish, with registers " .. title .. ",", function()
    before_each(support.need_kvm)

    it("refuses a closed vCPU", function()
      local vcpu = start(HLT)
      vcpu:close()
      contains("closed", error_of(vcpu.finish, vcpu))
    end)

    it("does nothing where nothing is open", function()
      local vcpu = start(INC_BX .. HLT)
      vcpu:finish()
      assert.equal(0x1000, vcpu.regs.rip)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      vcpu:finish()
      vcpu:finish()
      assert.same({ 1, 0x1002 }, { vcpu.regs.rbx, vcpu.regs.rip })
    end)

    it("completes the instruction of a write, within its handler", function()
      for _, code in ipairs { OUT, STORE } do
        local vcpu, rip
        vcpu = start(code .. INC_BX .. HLT, nil, function()
          vcpu:finish()
          rip = vcpu.regs.rip
          vcpu:finish()
        end)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.equal(0x1000 + #code, rip)
        assert.same({ 1, 0x1002 + #code }, { vcpu.regs.rbx, vcpu.regs.rip })
      end
    end)

    it("makes registers that were written before it, and after it, count", function()
      for _, code in ipairs { OUT, STORE } do
        local vcpu
        vcpu = start(code .. INC_BX .. HLT .. INC_BX .. INC_BX .. HLT, nil, function()
          vcpu.regs.rbx = 4
          vcpu.regs.rcx = 4
          vcpu:finish()
          assert(vcpu.regs.rbx == 4 and vcpu.regs.rip == 0x1000 + #code)
          vcpu.regs.rcx = 5
          vcpu:set_regs { rip = 0x1002 + #code }
        end)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.same({ 6, 5, 0x1005 + #code }, { vcpu.regs.rbx, vcpu.regs.rcx, vcpu.regs.rip })
      end
    end)

    it("raises within a read handler, which can go on", function()
      for _, code in ipairs { IN, LOAD } do
        local vcpu, message
        vcpu = start(code .. HLT, function()
          message = error_of(vcpu.finish, vcpu)
          return 0x42
        end)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        contains("being answered", message)
        assert.equal(0x42, vcpu.regs.rax)
      end
    end)

    it("raises within a read handler that has yielded, also from outside", function()
      local vcpu
      vcpu = start(IN .. HLT, function() return coroutine.yield() end)
      local run = coroutine.wrap(function() return (vcpu:run(LIMITS)) end)
      run()
      contains("being answered", error_of(vcpu.finish, vcpu))
      assert.equal("hlt", run(0x42))
      assert.equal(0x42, vcpu.regs.rax)
    end)

    it("completes a write whose handler has yielded, and the run goes on", function()
      for _, code in ipairs { OUT, STORE } do
        local vcpu
        vcpu = start(code .. INC_BX .. HLT, nil, function() coroutine.yield() end)
        local run = coroutine.wrap(function() return (vcpu:run(LIMITS)) end)
        run()
        vcpu:finish()
        assert.equal(0x1000 + #code, vcpu.regs.rip)
        assert.equal("hlt", run())
        assert.equal(1, vcpu.regs.rbx)
      end
    end)

    it("completes the instruction of the exit that a run ended with", function()
      for _, code in ipairs { "\xe4\x20", "\xa0\x00\xb0" } do -- in $0x20, %al; mov (0xb000), %al
        local vcpu = start(code .. INC_BX .. HLT)
        vcpu:run(LIMITS)
        vcpu.exit.data = 0x42
        vcpu:finish()
        assert.same({ 0x42, 0, 0x1000 + #code }, { vcpu.regs.rax, vcpu.regs.rbx, vcpu.regs.rip })
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.same({ 0x42, 1 }, { vcpu.regs.rax, vcpu.regs.rbx })
      end
    end)

    it("completes what a handler left open when it raised", function()
      each_access(function(_, code, kind)
        local vcpu
        local function raise() error({}) end
        vcpu = start(code .. INC_BX .. HLT, raise, raise)
        error_of(vcpu.run, vcpu, LIMITS)
        vcpu:finish()
        assert.same({ kind == "read" and 0xff or 0, 0x1000 + #code },
          { vcpu.regs.rax, vcpu.regs.rip })
      end)
    end)

    it("completes what a stop left open", function()
      each_access(function(_, code, kind)
        local vcpu
        local function handler()
          vcpu:stop()
          return 0x42
        end
        vcpu = start(code .. INC_BX .. HLT, handler, handler)
        assert.equal("stopped", (vcpu:run(LIMITS)))
        vcpu:finish()
        assert.same({ kind == "read" and 0x42 or 0, 0, 0x1000 + #code },
          { vcpu.regs.rax, vcpu.regs.rbx, vcpu.regs.rip })
      end)
    end)

    it("has handlers answer the accesses that it brings", function()
      local vcpu, seen
      seen = {}
      vcpu = start("\x66\xb8\x22\x11\x44\x33" -- mov $0x33441122, %eax
        .. STOREL .. INC_BX .. HLT, nil, function(gpa, value)
        table.insert(seen, { gpa, value })
        if gpa == 0x8ffe then
          vcpu:finish()
          table.insert(seen, vcpu.regs.rip)
        end
      end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ { 0x8ffe, 0x1122 }, { 0x9000, 0x3344 }, 0x100a }, seen)
      assert.equal(1, vcpu.regs.rbx)
    end)

    it("has handlers answer the reads that it brings, outside a run", function()
      local _, vm, vcpu = guest(LOADL .. INC_BX .. HLT, { open = open })
      vm:attach_mmio { gpa = 0x9000, size = 0x1000, read = function() return 0x3344 end }
      assert.equal("mmio_read", (vcpu:run(LIMITS)))
      vcpu.exit.data = 0x1122
      vcpu:finish()
      assert.same({ 0x33441122, 0, 0x1004 }, { vcpu.regs.rax, vcpu.regs.rbx, vcpu.regs.rip })
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(1, vcpu.regs.rbx)
    end)

    it("is not disturbed when what is left of earlier runs is collected", function()
      local _, vm, vcpu = guest(LOADL .. HLT, { open = open })
      vm:attach_mmio {
        gpa = 0x9000, size = 0x1000,
        read = function()
          support.collect()
          return 0x3344
        end,
      }
      assert.equal("mmio_read", (vcpu:run(LIMITS)))
      vcpu.exit.data = 0x1122
      vcpu:finish()
      assert.equal(0x33441122, vcpu.regs.rax)
      assert.equal("hlt", (vcpu:run(LIMITS)))
    end)

    it("returns the name of an exit that it brings and nobody handles", function()
      local _, vm, vcpu = guest(LOADL .. INC_BX .. HLT, { open = open })
      vm:attach_io { port = 0x10, read = nothing }
      assert.equal("mmio_read", (vcpu:run(LIMITS)))
      vcpu.exit.data = 0x1122
      assert.equal("mmio_read", vcpu:finish())
      assert.equal(0x9000, vcpu.exit.phys_addr)
      vcpu.exit.data = 0x3344
      assert.is_nil(vcpu:finish())
      assert.same({ 0x33441122, 0x1004 }, { vcpu.regs.rax, vcpu.regs.rip })
      assert.equal("hlt", (vcpu:run(LIMITS)))
    end)

    it("is nothing more once a handler that it called has finished", function()
      local vcpu, rips
      rips = {}
      vcpu = start(STOREL .. INC_BX .. STOREL .. INC_BX .. HLT, nil, function()
        vcpu:finish()
        table.insert(rips, vcpu.regs.rip)
      end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ 0x1004, 0x1004, 0x1009, 0x1009 }, rips)
      assert.equal(2, vcpu.regs.rbx)
    end)

    it("passes on what a handler raises", function()
      local oops = {}
      local vcpu
      vcpu = start(STOREL .. INC_BX .. HLT, nil, function(gpa)
        if gpa == 0x9000 then error(oops) end
        vcpu:finish()
      end)
      assert.equal(oops, error_of(vcpu.run, vcpu, LIMITS))
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(1, vcpu.regs.rbx)
    end)

    it("lets a handler yield", function()
      local vcpu
      vcpu = start(STOREL .. INC_BX .. HLT, nil, function(gpa)
        if gpa == 0x9000 then return coroutine.yield("second") end
        vcpu:finish()
      end)
      local run = coroutine.wrap(function() return (vcpu:run(LIMITS)) end)
      assert.equal("second", run())
      assert.equal("hlt", run())
      assert.equal(1, vcpu.regs.rbx)
    end)

    it("keeps the limits, stops and kicks of the run around it", function()
      for _, code in ipairs { OUT, STORE, STOREL } do
        local vcpu, action
        vcpu = start(code .. code .. INC_BX .. HLT, nil, function(at)
          if at == 0x9000 then return end
          if action then action() end
          vcpu:finish()
        end)
        local count <const> = code == STOREL and 2 or 1
        assert.equal("exits", (vcpu:run { exits = count, timeout = 20 }))
        assert.equal(0, vcpu.regs.rbx)
        action = function() vcpu:stop("enough") end
        assert.same({ "stopped", "enough" }, { vcpu:run(LIMITS) })
        assert.equal(0, vcpu.regs.rbx)
        vcpu:set_regs { rip = 0x1000 }
        action = function() vcpu:kick() end
        assert.equal("kicked", (vcpu:run(LIMITS)))
        action = nil
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.equal(1, vcpu.regs.rbx)
      end
    end)

    it("works at every element of outs, and at none of ins", function()
      local vcpu, vm, seen
      seen = {}
      vcpu, vm = start(REP_OUTSB .. HLT, nil, function(_, value)
        vcpu:finish()
        table.insert(seen, string.char(value))
      end)
      vm:write(0x2000, "abcdef")
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal("abcdef", table.concat(seen))

      local refused = 0
      vcpu, vm = start(REP_INSB .. HLT, function()
        refused = refused + (pcall(vcpu.finish, vcpu) and 0 or 1)
        return 1
      end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(6, refused)
      assert.equal("\1\1\1\1\1\1", vm:read(0x2000, 6))
    end)
  end)
end

describe("a handler that reads and writes registers", function()
  before_each(support.need_kvm)

  -- The ioctls of four exits, after four to warm up, at each of which a handler reads two
  -- registers and writes one.
  local function ioctls(code, open)
    local status, _, err = support.run(([[
      package.path = os.getenv("CKVM_SRCDIR") .. "/tests/?.lua;" .. package.path
      local _, vm, vcpu = require("support").real_mode(%q, { open = %s, size = 0x8000 })
      local count = 0
      local function handler()
        if count == 4 or count == 8 then io.stderr:write("MARK\n") end
        count = count + 1
        vcpu.regs.rcx = vcpu.regs.rbx + vcpu.regs.rdx
        if count == 9 then vcpu:stop() end
        return 0
      end
      vm:attach_io { port = 0x10, read = handler, write = handler }
      vm:attach_mmio { gpa = 0x8000, size = 1, read = handler, write = handler }
      vcpu:run { timeout = 20 }
    ]]):format(code .. "\xeb" .. string.char(0xfe - #code), open), { "--trace-ioctl" }) -- jmp
    assert(status == 0, err)
    local counts = {}
    for name in err:match("MARK(.*)MARK"):gmatch("KVM_[%u_%d]+") do
      counts[name] = (counts[name] or 0) + 1
    end
    return counts
  end

  it("costs no ioctl where the run page has them, and one more KVM_RUN on a read", function()
    local _, _, vcpu = guest(HLT)
    if vcpu.vm:check_extension("sync_regs") & 3 ~= 3 then
      return pending("this KVM has no sync regs")
    end
    for _, code in ipairs { OUT, STORE } do assert.same({ KVM_RUN = 4 }, ioctls(code, "nil")) end
    for _, code in ipairs { IN, LOAD } do assert.same({ KVM_RUN = 8 }, ioctls(code, "nil")) end
  end)

  it("costs one get and one set an exit where it has not", function()
    for _, code in ipairs { OUT, STORE } do
      assert.same({ KVM_RUN = 4, KVM_GET_REGS = 4, KVM_SET_REGS = 4 },
        ioctls(code, "{ sync_regs = false }"))
    end
  end)
end)

describe_registers("in the run page", nil)
describe_registers("by ioctl", { sync_regs = false })

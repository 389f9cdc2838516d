-- How runs end: budgets, stops and kicks; run_once and the statistics.

local support = require "support"

local error_of, contains = support.error_of, support.contains
local guest, LIMITS, quiet, calling = support.guest, support.LIMITS, support.quiet, support.calling

local IN <const> = "\xe4\x10"              -- in $0x10, %al
local OUT <const> = "\xe6\x10"             -- out %al, $0x10
local LOAD <const> = "\xa0\x00\x80"        -- mov (0x8000), %al
local STORE <const> = "\xa2\x00\x80"       -- mov %al, (0x8000)
local INC_BX <const> = "\x43"              -- inc %bx
local HLT <const> = "\xf4"                 -- hlt
local SPIN <const> = "\xeb\xfe"            -- jmp .
local REP_INSB <const> = "\xbf\x00\x20"    -- mov $0x2000, %di
  .. "\xba\x10\x00"                        -- mov $0x10, %dx
  .. "\xb9\x06\x00"                        -- mov $6, %cx
  .. "\xf3\x6c"                            -- rep insb

local function nothing() end

describe("vcpu:run", function()
  before_each(support.need_kvm)

  local function refused(limits)
    local vcpu = quiet(HLT)
    return tostring(error_of(vcpu.run, vcpu, limits))
  end

  it("refuses a closed vCPU, and one whose VM is closed", function()
    local vcpu = quiet(HLT)
    vcpu:close()
    contains("vCPU is closed", error_of(vcpu.run, vcpu))
    local other <const>, other_vm <const> = quiet(HLT)
    other_vm:close()
    contains("vCPU is closed", error_of(other.run, other))
  end)

  it("refuses what is not a vCPU, and limits that are not a table", function()
    local vcpu, vm = quiet(HLT)
    contains("vCPU expected", error_of(vcpu.run))
    contains("vCPU expected", error_of(vcpu.run, vm))
    contains("table expected", refused(5))
    contains("table expected", refused("hlt"))
  end)

  it("names an unknown limit", function()
    contains("unknown option 'timeuot'", refused { timeuot = 1 })
  end)

  it("refuses timeouts that are not times from now on", function()
    contains("timeout", refused { timeout = -1 })
    contains("timeout", refused { timeout = -1e-12 })
    contains("timeout", refused { timeout = 0 / 0 })
    contains("timeout", refused { timeout = -math.huge })
    contains("timeout", refused { timeout = "1" })
    contains("timeout", refused { timeout = {} })
  end)

  it("refuses budgets that are not counts", function()
    contains("exits", refused { exits = -1 })
    contains("exits", refused { exits = 1.5 })
    contains("exits", refused { exits = "1" })
    contains("exits", refused { exits = math.huge })
  end)

  it("returns the name of an exit that nobody handles", function()
    for why, code in pairs {
      hlt = HLT, io_in = IN, io_out = OUT, mmio_read = LOAD, mmio_write = STORE,
    } do
      local _, _, vcpu = guest(code)
      assert.same({ n = 1, why }, table.pack(vcpu:run()))
      assert.equal(why, vcpu.exit.reason)
    end
  end)

  it("goes on where it left off", function()
    local _, _, vcpu = guest(OUT .. INC_BX .. IN .. INC_BX .. STORE .. INC_BX .. HLT)
    for i, why in ipairs { "io_out", "io_in", "mmio_write", "hlt" } do
      assert.equal(why, (vcpu:run(LIMITS)))
      assert.equal(i - 1, vcpu.regs.rbx)
    end
  end)

  it("answers reads that nobody handles with all ones", function()
    local _, _, vcpu = guest("\xe5\x10" .. "\x8b\x1e\x00\x80" .. HLT) -- in $0x10, %ax
    assert.equal("io_in", (vcpu:run(LIMITS)))                         -- mov (0x8000), %bx
    assert.equal(0xffff, vcpu.exit.data)
    assert.equal("mmio_read", (vcpu:run(LIMITS)))
    assert.equal(0xffff, vcpu.exit.data)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ 0xffff, 0xffff }, { vcpu.regs.rax, vcpu.regs.rbx })
  end)

  it("takes limits that never come", function()
    for _, limits in ipairs {
      {}, { timeout = math.huge }, { timeout = 1e300 }, { exits = math.maxinteger },
      { exits = 100.0 }, { timeout = 3600, exits = 1000 },
    } do
      assert.equal("hlt", (quiet(OUT .. OUT .. HLT):run(limits)))
    end
  end)
end)

describe("a budget of exits", function()
  before_each(support.need_kvm)

  it("of none ends the run before the guest", function()
    local vcpu = quiet(INC_BX .. HLT)
    assert.equal("exits", (vcpu:run { exits = 0 }))
    assert.equal(0, vcpu.regs.rbx)
    assert.equal(0, vcpu.stats.total)
  end)

  it("ends the run after that many, whoever answers them", function()
    local vcpu, vm = quiet(OUT .. INC_BX .. LOAD .. INC_BX .. "\xe6\x20" .. INC_BX -- out, $0x20
      .. "\xe6\x30" .. INC_BX .. HLT)                                             -- out, $0x30
    vm:attach_io { port = 0x20, value = 1 }
    vm:on("io_out", nothing)
    for i = 0, 3 do
      assert.equal("exits", (vcpu:run { exits = 1, timeout = 20 }))
      assert.equal(i, vcpu.regs.rbx)
    end
    vcpu:set_regs { rip = 0x1000, rbx = 0 }
    assert.equal("exits", (vcpu:run { exits = 3, timeout = 20 }))
    assert.equal(2, vcpu.regs.rbx)
    assert.equal("hlt", (vcpu:run { exits = 2, timeout = 20 }))
  end)

  it("counts a string instruction's exit once, and ends the run after all of it", function()
    local count = 0
    local vcpu, vm = calling(function()
      count = count + 1
      return count
    end, REP_INSB)
    assert.equal("exits", (vcpu:run { exits = 1, timeout = 20 }))
    assert.equal(vcpu.exit.count, count)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal("\1\2\3\4\5\6", vm:read(0x2000, 6))
  end)

  it("counts exits that handlers of vm:on handle", function()
    local vcpu, vm = quiet(HLT .. HLT .. HLT)
    vm:on("hlt", nothing)
    assert.equal("exits", (vcpu:run { exits = 2, timeout = 20 }))
    assert.equal(0x1002, vcpu.regs.rip)
  end)

  it("is its own in a nested run", function()
    local inner, why = quiet(OUT .. OUT .. OUT .. HLT), nil
    local vcpu = calling(function() why = inner:run { exits = 2 } end, OUT .. OUT)
    assert.equal("exits", (vcpu:run { exits = 1 }))
    assert.equal("exits", why)
    assert.equal("exits", (vcpu:run { exits = 1 }))
    assert.equal("hlt", why)
  end)
end)

describe("vcpu:stop", function()
  before_each(support.need_kvm)

  it("refuses a closed vCPU", function()
    local vcpu = quiet(HLT)
    vcpu:close()
    contains("vCPU is closed", error_of(vcpu.stop, vcpu))
  end)

  it("refuses a vCPU that is not in a run", function()
    local vcpu = quiet(HLT)
    contains("not in a run", error_of(vcpu.stop, vcpu, 1))
    assert.equal("hlt", (vcpu:run(LIMITS)))
    contains("not in a run", error_of(vcpu.stop, vcpu, 1))
    vcpu:set_regs { rip = 0x1000 }
    vcpu:run_once()
    contains("not in a run", error_of(vcpu.stop, vcpu, 1))
  end)

  it("ends the run with its value, of any type", function()
    for _, value in ipairs { 1, "x", true, false, {}, nothing, 2.5 } do
      local vcpu
      vcpu = calling(function() vcpu:stop(value) end)
      local why, got = vcpu:run(LIMITS)
      assert.equal("stopped", why)
      assert.equal(value, got)
    end
  end)

  it("may have no value", function()
    local vcpu
    vcpu = calling(function() vcpu:stop() end)
    assert.same({ n = 2, "stopped", nil }, table.pack(vcpu:run(LIMITS)))
  end)

  it("takes effect when the handler has returned, with its answer", function()
    local vcpu, after
    vcpu = calling(function()
      vcpu:stop()
      after = true
      return 0x42
    end, IN .. INC_BX)
    assert.equal("stopped", (vcpu:run(LIMITS)))
    assert.is_true(after)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ 0x42, 1 }, { vcpu.regs.rax, vcpu.regs.rbx })
  end)

  it("takes effect after the whole exit of a string instruction", function()
    local count, vcpu = 0, nil
    local vm
    vcpu, vm = calling(function()
      count = count + 1
      if count == 1 then vcpu:stop("first") end
      return count
    end, REP_INSB)
    assert.same({ "stopped", "first" }, { vcpu:run(LIMITS) })
    assert.equal(vcpu.exit.count, count)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal("\1\2\3\4\5\6", vm:read(0x2000, 6))
  end)

  it("keeps the last of several values, and none for the next run", function()
    local vcpu, again
    vcpu = calling(function()
      if not again then
        vcpu:stop(1)
        vcpu:stop(2)
      else
        vcpu:stop()
      end
    end, OUT .. OUT)
    assert.same({ "stopped", 2 }, { vcpu:run(LIMITS) })
    again = true
    assert.same({ n = 2, "stopped", nil }, table.pack(vcpu:run(LIMITS)))
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)

  it("is forgotten when the handler raises", function()
    local vcpu, done
    vcpu = calling(function()
      if done then return end
      done = true
      vcpu:stop()
      error({})
    end, OUT .. OUT)
    error_of(vcpu.run, vcpu, LIMITS)
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)

  it("works in handlers of vm:on", function()
    local vcpu, vm = quiet(HLT .. HLT)
    vm:on("hlt", function(_, from) from:stop("at hlt") end)
    assert.same({ "stopped", "at hlt" }, { vcpu:run(LIMITS) })
    vm:on("hlt", nil)
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)

  it("stops the run around the one whose handler calls it", function()
    local outer
    local inner, why = calling(function() outer:stop("from within") end), nil
    outer = calling(function() why = inner:run(LIMITS) end)
    assert.same({ "stopped", "from within" }, { outer:run(LIMITS) })
    assert.equal("hlt", why)
  end)
end)

describe("a signal that is not ckvm's", function()
  before_each(support.need_kvm)

  it("never ends a run", function()
    local vcpu = quiet("\xb9\xff\xff\xe2\xfe\x43" -- mov $0xffff, %cx; 1: loop 1b; inc %bx
      .. "\x80\xfb\x04\x75\xf5" .. HLT)           -- cmp $4, %bl; jne 0b
    local pipe = io.popen("for i in 1 2 3 4 5 6 7 8 9 10; do"
      .. " kill -STOP $PPID; kill -CONT $PPID; done")
    assert.equal("hlt", (vcpu:run(LIMITS)))
    pipe:close()
    assert.equal(4, vcpu.regs.rbx)
  end)
end)

describe("vcpu:kick", function()
  before_each(support.need_kvm)

  it("refuses a closed vCPU", function()
    local vcpu = quiet(HLT)
    vcpu:close()
    contains("vCPU is closed", error_of(vcpu.kick, vcpu))
  end)

  it("ends the next run at once, and no other", function()
    local vcpu = quiet(INC_BX .. HLT)
    vcpu:kick()
    assert.same({ n = 1, "kicked" }, table.pack(vcpu:run(LIMITS)))
    assert.equal(0, vcpu.regs.rbx)
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)

  it("counts once, however often it comes", function()
    local vcpu = quiet(INC_BX .. HLT)
    for _ = 1, 100 do vcpu:kick() end
    assert.equal("kicked", (vcpu:run(LIMITS)))
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)

  it("ends the run of the handler that calls it, after the whole exit", function()
    local vcpu
    vcpu = calling(function()
      vcpu:kick()
      vcpu:kick()
      return 0x42
    end, IN .. INC_BX .. INC_BX)
    assert.equal("kicked", (vcpu:run(LIMITS)))
    assert.equal(0, vcpu.regs.rbx)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ 0x42, 2 }, { vcpu.regs.rax, vcpu.regs.rbx })
  end)

  it("ends the run after all of a string instruction's exit", function()
    local count, vcpu = 0, nil
    local vm
    vcpu, vm = calling(function()
      count = count + 1
      if count == 1 then vcpu:kick() end
      return count
    end, REP_INSB)
    assert.equal("kicked", (vcpu:run(LIMITS)))
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal("\1\2\3\4\5\6", vm:read(0x2000, 6))
  end)

  it("does not lose the second page of an access", function()
    local _, vm, vcpu = guest("\x66\xa1\xfe\x8f" .. HLT) -- mov (0x8ffe), %eax
    local seen = {}
    vm:attach_mmio {
      gpa = 0x8000, size = 0x2000,
      read = function(gpa)
        table.insert(seen, gpa)
        vcpu:kick()
        return gpa == 0x8ffe and 0x1122 or 0x3344
      end,
    }
    local why
    repeat why = vcpu:run(LIMITS) until why ~= "kicked"
    assert.equal("hlt", why)
    assert.same({ 0x8ffe, 0x9000 }, seen)
    assert.equal(0x33441122, vcpu.regs.rax)
  end)

  it("keeps registers that its handler wrote", function()
    for _, open in ipairs { {}, { sync_regs = false } } do
      for _, code in ipairs { IN, OUT, LOAD, STORE } do
        local _, vm, vcpu = guest(code .. INC_BX .. HLT, { open = open })
        local function handler()
          vcpu.regs.rbx = 5
          vcpu.regs.rcx = 6
          vcpu:kick()
          return 0x42
        end
        vm:attach_io { port = 0x10, read = handler, write = handler }
        vm:attach_mmio { gpa = 0x8000, size = 1, read = handler, write = handler }
        assert.equal("kicked", (vcpu:run(LIMITS)))
        assert.same({ 5, 6 }, { vcpu.regs.rbx, vcpu.regs.rcx })
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.same({ 6, 6 }, { vcpu.regs.rbx, vcpu.regs.rcx })
        local read <const> = code == IN or code == LOAD
        assert.equal(read and 0x42 or 0, vcpu.regs.rax)
      end
    end
  end)

  it("reaches a run around the one whose handler calls it", function()
    local outer
    local inner, why = calling(function() outer:kick() end), nil
    outer = calling(function() why = inner:run(LIMITS) end, OUT .. INC_BX)
    assert.equal("kicked", (outer:run(LIMITS)))
    assert.equal("hlt", why)
    assert.equal(0, outer.regs.rbx)
    assert.equal("hlt", (outer:run(LIMITS)))
  end)

  it("is for one vCPU", function()
    local vcpu = quiet(HLT)
    local other <const> = quiet(HLT)
    vcpu:kick()
    assert.equal("hlt", (other:run(LIMITS)))
    assert.equal("kicked", (vcpu:run(LIMITS)))
  end)

  it("ends run_once", function()
    local vcpu = quiet(INC_BX .. HLT)
    vcpu:kick()
    assert.equal("kicked", vcpu:run_once())
    assert.equal(0, vcpu.regs.rbx)
    assert.equal("hlt", vcpu:run_once())
  end)

  it("survives a handler that raises", function()
    local vcpu
    vcpu = calling(function()
      vcpu:kick()
      error({})
    end)
    error_of(vcpu.run, vcpu, LIMITS)
    assert.equal("kicked", (vcpu:run(LIMITS)))
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)
end)

describe("vcpu:run_once", function()
  before_each(support.need_kvm)

  it("refuses a closed vCPU", function()
    local vcpu = quiet(HLT)
    vcpu:close()
    contains("vCPU is closed", error_of(vcpu.run_once, vcpu))
  end)

  it("has data that can be set for a read alone", function()
    local _, _, vcpu = guest(OUT .. IN .. HLT)
    assert.equal("io_out", vcpu:run_once())
    contains("'data' that can be set", error_of(function() vcpu.exit.data = 1 end))
    assert.equal("io_in", vcpu:run_once())
    vcpu.exit.data = 7
    assert.equal("hlt", vcpu:run_once())
    assert.equal(7, vcpu.regs.rax & 0xff)
  end)

  it("refuses an option that it does not have", function()
    local vcpu = quiet(HLT)
    contains("run_once: unknown option 'exits'", error_of(vcpu.run_once, vcpu, { exits = 1 }))
  end)

  it("ends a guest that never exits when its timeout has passed", function()
    local vcpu = quiet(SPIN)
    assert.equal("timeout", vcpu:run_once { timeout = 0 })
    assert.equal("timeout", vcpu:run_once { timeout = 0.01 })
    assert.is_nil(vcpu.exit)
  end)

  it("ends at the deadline of a run around it", function()
    local inner, why = quiet(SPIN), nil
    local _, vm, vcpu = guest(OUT .. HLT)
    vm:attach_io { port = 0x10, write = function() why = inner:run_once() end }
    assert.equal("timeout", (vcpu:run { timeout = 1 }))
    assert.equal("timeout", why)
  end)

  it("returns the exit and dispatches nothing", function()
    local _, vm, vcpu = guest(OUT .. IN .. STORE .. LOAD .. HLT)
    local function never() error("dispatched") end
    vm:attach_io { port = 0x10, read = never, write = never }
    vm:attach_mmio { gpa = 0x8000, size = 1, read = never, write = never }
    vm:on("hlt", never)
    for _, why in ipairs { "io_out", "io_in", "mmio_write", "mmio_read", "hlt" } do
      assert.same({ n = 1, why }, table.pack(vcpu:run_once()))
      assert.equal(why, vcpu.exit.reason)
    end
  end)

  it("is one KVM_RUN", function()
    local status, _, err = support.run([[
      package.path = os.getenv("CKVM_SRCDIR") .. "/tests/?.lua;" .. package.path
      local _, vm, vcpu = require("support").real_mode("\xe6\x10\xe6\x10\xf4")
      for i = 1, 3 do vcpu:run_once() end
    ]], { "--trace-ioctl" })
    assert.equal(0, status)
    assert.equal(3, select(2, err:gsub("KVM_RUN", "")))
  end)

  it("takes the answer to a read from the exit, all ones if there is none", function()
    local _, _, vcpu = guest(IN .. "\x88\xc3" .. IN .. HLT) -- mov %al, %bl
    assert.equal("io_in", vcpu:run_once())
    vcpu.exit.data = 0x42
    assert.equal("io_in", vcpu:run_once())
    assert.equal("hlt", vcpu:run_once())
    assert.same({ 0x42, 0xff }, { vcpu.regs.rbx, vcpu.regs.rax })
  end)

  it("keeps registers that were written while an access was open", function()
    for _, open in ipairs { {}, { sync_regs = false } } do
      for _, code in ipairs { IN, OUT, LOAD, STORE } do
        local _, _, vcpu = guest(code .. INC_BX .. HLT .. INC_BX .. HLT, { open = open })
        local read <const> = code == IN or code == LOAD
        vcpu:run_once()
        if read then vcpu.exit.data = 0x42 end
        vcpu.regs.rbx = 5
        vcpu:set_regs { rcx = 6, rip = 0x1002 + #code }
        assert.equal("hlt", vcpu:run_once())
        assert.same({ read and 0x42 or 0, 6, 6 },
          { vcpu.regs.rax, vcpu.regs.rbx, vcpu.regs.rcx })
        assert.equal(0x1004 + #code, vcpu.regs.rip)
      end
    end
  end)

  it("counts in the stats", function()
    local _, _, vcpu = guest(OUT .. HLT)
    vcpu:run_once()
    vcpu:run_once()
    assert.equal(2, vcpu.stats.total)
    assert.same({ io_out = 1, hlt = 1 }, vcpu.stats.exits)
  end)

  it("raises what the kernel refuses", function()
    local vcpu = quiet(HLT)
    vcpu.sregs.cr4 = 1 << 40
    contains("KVM_SET_SREGS: EINVAL: ", error_of(vcpu.run_once, vcpu))
    assert.equal("hlt", vcpu:run_once())
  end)
end)

describe("vcpu.stats", function()
  before_each(support.need_kvm)

  it("refuses a closed vCPU", function()
    local vcpu = quiet(HLT)
    vcpu:close()
    contains("vCPU is closed", error_of(function() return vcpu.stats end))
  end)

  it("counts exits by their names, whoever handles them", function()
    local vcpu, vm = quiet(OUT .. IN .. OUT .. LOAD .. STORE .. OUT
      .. "\xe6\x20\xe6\x30" .. HLT) -- out %al, $0x20; out %al, $0x30
    vm:attach_io { port = 0x20, value = 0 }
    assert.same({ 0, {} }, { vcpu.stats.total, vcpu.stats.exits })
    assert.equal("io_out", (vcpu:run(LIMITS)))
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ io_out = 5, io_in = 1, mmio_read = 1, mmio_write = 1, hlt = 1 },
      vcpu.stats.exits)
    assert.equal(9, vcpu.stats.total)
    assert.equal(0, vcpu.stats.batched)
  end)

  it("counts a string instruction's exit once", function()
    local vcpu = quiet(REP_INSB .. HLT)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(vcpu.stats.total - 1, vcpu.stats.exits.io_in)
  end)

  it("counts exits of each vCPU", function()
    local vcpu, vm = quiet(OUT .. HLT)
    local second <const> = vm:create_vcpu(1)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(2, vcpu.stats.total)
    assert.equal(0, second.stats.total)
  end)

  it("has the time in the guest and in handlers", function()
    local vcpu = quiet(OUT .. OUT .. HLT)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    local stats <const> = vcpu.stats
    assert.is_true(stats.guest_time > 0 and stats.handler_time > 0)
    assert.equal("float", math.type(stats.guest_time))
  end)
end)

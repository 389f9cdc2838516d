-- An exit as a script sees it: the view of the current one, and handlers of exits that are no
-- accesses.

local support = require "support"

local error_of, contains = support.error_of, support.contains
local guest, LIMITS, quiet, calling = support.guest, support.LIMITS, support.quiet, support.calling

local IN <const> = "\xe4\x10"              -- in $0x10, %al
local OUT <const> = "\xe6\x10"             -- out %al, $0x10
local INC_BX <const> = "\x43"              -- inc %bx
local HLT <const> = "\xf4"                 -- hlt
local SPIN <const> = "\xeb\xfe"            -- jmp .
local UD2 <const> = "\x0f\x0b"             -- ud2
local NOWHERE <const> = "\xea\0\0\0\x80"   -- ljmp $0x8000, $0: no memory there
local REP_INSB <const> = "\xbf\x00\x20"    -- mov $0x2000, %di
  .. "\xba\x10\x00"                        -- mov $0x10, %dx
  .. "\xb9\x06\x00"                        -- mov $6, %cx
  .. "\xf3\x6c"                            -- rep insb

local function nothing() end

describe("vcpu.exit", function()
  before_each(support.need_kvm)

  it("is nil before the first exit, and when a run ended without one", function()
    local vcpu = quiet(SPIN)
    assert.is_nil(vcpu.exit)
    vcpu:run { timeout = 0.001 }
    assert.is_nil(vcpu.exit)
    vcpu:kick()
    vcpu:run()
    assert.is_nil(vcpu.exit)
  end)

  it("is one view for each vCPU", function()
    local _, _, vcpu = guest(OUT .. IN)
    vcpu:run(LIMITS)
    local exit <const> = vcpu.exit
    assert.equal(exit, vcpu.exit)
    vcpu:run(LIMITS)
    assert.equal(exit, vcpu.exit)
  end)

  it("has the kernel's fields of port I/O", function()
    local _, _, vcpu = guest("\xb8\x34\x12\xe7\x10\xe4\x10") -- mov $0x1234, %ax; out; in
    vcpu:run(LIMITS)
    local exit <const> = vcpu.exit
    assert.same({ "io_out", 0x10, 2, 1, 0x1234 },
      { exit.reason, exit.port, exit.size, exit.count, exit.data })
    vcpu:run(LIMITS)
    assert.same({ "io_in", 0x10, 1, 1, 0xff },
      { vcpu.exit.reason, exit.port, exit.size, exit.count, exit.data })
  end)

  it("has the kernel's fields of MMIO", function()
    local _, _, vcpu = guest("\xb8\x34\x12\xa3\x08\x80\xa0\x08\x80") -- mov $0x1234, %ax; two more
    vcpu:run(LIMITS)
    local exit <const> = vcpu.exit
    assert.same({ "mmio_write", 0x8008, 2, 1, 0x1234 },
      { exit.reason, exit.phys_addr, exit.len, exit.is_write, exit.data })
    vcpu:run(LIMITS)
    assert.same({ "mmio_read", 0x8008, 1, 0, 0xff },
      { vcpu.exit.reason, exit.phys_addr, exit.len, exit.is_write, exit.data })
  end)

  it("has a string for the elements of a string instruction, which may be set", function()
    local _, vm, vcpu = guest(REP_INSB .. HLT)
    assert.equal("io_in", (vcpu:run(LIMITS)))
    local count <const> = vcpu.exit.count
    if count ~= 6 then return pending("this KVM splits INS") end
    assert.equal(("\xff"):rep(6), vcpu.exit.data)
    contains("6", error_of(function() vcpu.exit.data = "too long" end))
    contains("string expected", error_of(function() vcpu.exit.data = 5 end))
    vcpu.exit.data = "abcdef"
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal("abcdef", vm:read(0x2000, 6))
  end)

  it("refuses fields that the exit does not have", function()
    local _, _, vcpu = guest(OUT .. HLT)
    vcpu:run(LIMITS)
    local function get(field)
      return function() return vcpu.exit[field] end
    end
    contains("exit io_out has no field 'phys_addr'", error_of(get "phys_addr"))
    contains("no field 'prot'", error_of(get "prot"))
    vcpu:run(LIMITS)
    contains("exit hlt has no field 'data'", error_of(get "data"))
    error_of(get(1))
    error_of(get(nil))
  end)

  it("refuses to set what the kernel does not read back", function()
    local _, _, vcpu = guest(IN .. HLT)
    vcpu:run(LIMITS)
    for _, field in ipairs { "reason", "port", "size", "count", "prot" } do
      contains("'" .. field .. "'", error_of(function() vcpu.exit[field] = 1 end))
    end
    error_of(function() vcpu.exit.data = {} end)
    error_of(function() vcpu.exit.data = 1.5 end)
    error_of(function() vcpu.exit.data = "ab" end)
    vcpu:run(LIMITS)
    contains("'data'", error_of(function() vcpu.exit.data = 1 end))
  end)

  it("raises when it is read after the next KVM_RUN", function()
    local _, _, vcpu = guest(OUT .. OUT .. OUT .. SPIN)
    vcpu:run(LIMITS)
    local exit <const> = vcpu.exit
    assert.equal(0x10, exit.port)
    vcpu:run(LIMITS)
    contains("over", error_of(function() return exit.port end))
    contains("over", error_of(function() exit.data = 1 end))
    assert.equal(0x10, vcpu.exit.port)
    vcpu:run_once()
    contains("over", error_of(function() return exit.reason end))
    assert.equal(0x10, vcpu.exit.port)
    vcpu:run { timeout = 0.2 }
    contains("over", error_of(function() return exit.reason end))
  end)

  it("raises when it is kept from one handler to the next", function()
    local kept, message
    local vcpu, vm = calling(function(...)
      if kept then
        message = error_of(function() return kept.port end)
      else
        kept = select(-1, ...).exit
        assert(kept.port == 0x10 and kept.reason == "io_out")
      end
    end, OUT .. OUT)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    contains("over", message)
    vm:close()
  end)

  it("raises when its vCPU is closed", function()
    local _, vm, vcpu = guest(OUT)
    vcpu:run(LIMITS)
    local exit <const> = vcpu.exit
    vcpu:close()
    contains("closed", error_of(function() return exit.port end))
    error_of(function() return vcpu.exit end)
    vm:close()
    contains("closed", error_of(function() return exit.port end))
  end)

  it("stays valid in a handler that yields", function()
    local vcpu = calling(function(...)
      local exit <const> = select(-1, ...).exit
      coroutine.yield()
      assert(exit.port == 0x10)
    end)
    local run = coroutine.wrap(function() return (vcpu:run(LIMITS)) end)
    run()
    assert.equal("io_out", vcpu.exit.reason)
    assert.equal("hlt", run())
  end)
end)

describe("vm:on, for exits that are no accesses,", function()
  before_each(support.need_kvm)

  it("calls the handler with the exit and the vCPU", function()
    local vcpu, vm = quiet(HLT)
    local seen
    vm:on("hlt", function(...)
      seen = table.pack(...)
      assert(seen[1].reason == "hlt")
      return false
    end)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(2, seen.n)
    assert.equal(vcpu.exit, seen[1])
    assert.equal(vcpu, seen[2])
  end)

  it("goes on unless the handler returns false", function()
    for _, case in ipairs { { nil }, { true }, { 0 }, { "x" }, { {} } } do
      local vcpu, vm = quiet(HLT .. INC_BX .. OUT .. SPIN)
      vm:on("hlt", function() return case[1] end)
      vm:attach_io { port = 0x11, read = nothing }
      assert.equal("exits", (vcpu:run { exits = 2, timeout = 20 }))
      assert.equal(1, vcpu.regs.rbx)
    end
    local vcpu, vm = quiet(HLT .. INC_BX .. HLT)
    vm:on("hlt", function() return false end)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(0, vcpu.regs.rbx)
  end)

  it("knows exits by number", function()
    local vcpu, vm = quiet(HLT .. INC_BX .. HLT)
    vm:on(5, function() return vcpu.regs.rbx == 0 end) -- KVM_EXIT_HLT
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(1, vcpu.regs.rbx)
  end)

  -- A triple fault: an exception, and no room for its vector.
  local function triple_fault()
    local vcpu, vm = quiet(UD2 .. INC_BX .. HLT)
    vcpu:set_sregs { idt = { base = 0, limit = 0 } }
    return vcpu, vm
  end

  it("ends the run at a triple fault, as shutdown", function()
    local vcpu = triple_fault()
    assert.equal("shutdown", (vcpu:run(LIMITS)))
    assert.equal("shutdown", vcpu.exit.reason)
    local was_reset <const> = vcpu.sregs.cs.base == 0xffff0000
    assert.equal(was_reset and 0xfff0 or 0x1000, vcpu.regs.rip)
  end)

  it("ends the run after shutdown unless the handler returns true", function()
    for _, case in ipairs { { nil }, { false } } do
      local vcpu, vm = triple_fault()
      local count = 0
      vm:on("shutdown", function()
        count = count + 1
        return case[1]
      end)
      assert.equal("shutdown", (vcpu:run(LIMITS)))
      assert.equal(1, count)
    end
    local vcpu, vm = triple_fault()
    vm:on("shutdown", function(_, from)
      -- Where KVM has reset the vCPU; without nested paging it goes on only with another cr0.
      from:set_sregs { cs = { base = 0, selector = 0 }, cr0 = 0x10 }
      from.regs.rip = 0x1000 + #UD2
      return true
    end)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(1, vcpu.regs.rbx)
  end)

  it("ends the run at an instruction that KVM cannot emulate, with what it knows", function()
    local _, _, vcpu = guest(NOWHERE)
    local why = vcpu:run(LIMITS)
    assert.are_not.equal("timeout", why)
    if why ~= "internal_error" then return pending("this KVM gives " .. why) end
    assert.equal(1, vcpu.exit.suberror) -- KVM_INTERNAL_ERROR_EMULATION
    assert.equal(vcpu.exit.ndata, #vcpu.exit.data)
    assert.equal("string", type(vcpu.exit.insn_bytes))
    contains("suberror", error_of(function() vcpu.exit.suberror = 1 end))
  end)

  it("ends the run after internal_error unless the handler returns true", function()
    for _, result in ipairs { "nothing", "false", "true" } do
      local _, vm, vcpu = guest(NOWHERE .. INC_BX .. HLT)
      local count = 0
      vm:on("internal_error", function(exit, from)
        count = count + 1
        assert(exit.suberror == 1)
        from:set_sregs { cs = { base = 0, selector = 0 } }
        from.regs.rip = 0x1000 + #NOWHERE
        if result ~= "nothing" then return result == "true" end
      end)
      local why = vcpu:run(LIMITS)
      if count == 0 then return pending("this KVM gives " .. why) end
      assert.equal(1, count)
      assert.equal(result == "true" and "hlt" or "internal_error", why)
      assert.equal(result == "true" and 1 or 0, vcpu.regs.rbx)
    end
  end)

  it("survives a guest that executes anything", function()
    local seed = 20 -- printed by the failing assertion
    math.randomseed(seed)
    for _ = 1, 60 do
      local bytes = {}
      for i = 1, 64 do bytes[i] = string.char(math.random(0, 255)) end
      local vcpu, vm = quiet(table.concat(bytes))
      vm:on("io_in", function() return 0 end)
      vm:on("io_out", nothing)
      local ok, why = pcall(vcpu.run, vcpu, { timeout = 0.005, exits = 1000 })
      local late = type(why) == "string" and why:find "handler still running" -- the machine is busy
      assert.is_true(ok or late or why.call ~= nil, "seed " .. seed .. ": " .. tostring(why))
    end
  end)
end)

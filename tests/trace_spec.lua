-- ckvm.trace: a line for each exit, of what is attached through it and of what nobody claims.

local ckvm = require "ckvm"
local support = require "support"
local trace = require "ckvm.trace"
local uart = require "ckvm.dev.uart"

local blames, contains = support.blames, support.contains
local LIMITS <const> = support.LIMITS

-- A real-mode guest, a trace of it, and its lines without their times.
local function make(code, kinds)
  local _, vm, vcpu = support.guest(code)
  local lines = {}
  local bus = trace.new {
    vm = vm, kinds = kinds,
    output = function(line)
      local time, rest = line:match("^(%d+%.%d%d%d%d%d%d) (.*)$")
      assert(tonumber(time) >= 0)
      table.insert(lines, rest)
    end,
  }
  return bus, vcpu, lines
end

describe("ckvm.trace", function()
  before_each(support.need_kvm)

  it("refuses kinds that it does not know, and names those that there are", function()
    local _, vm = support.guest("\xf4")
    for _, kinds in ipairs { "io,nmi", { "io", "nmi" }, "nmi" } do
      blames("trace: unknown kind 'nmi'; there are debug, error, event, hlt, hypercall, io, mmio, "
        .. "msr", trace.new, { vm = vm, kinds = kinds })
    end
    assert.equal("debug error event hlt hypercall io mmio msr", table.concat(trace.kinds(), " "))
    blames("unknown kind ''", trace.new, { vm = vm, kinds = "io,,hlt" })
    blames("unknown kind '7'", trace.new, { vm = vm, kinds = { 7 } })
    blames("trace: kinds: string expected, got nil", trace.new, { vm = vm })
    blames("trace: kinds: string expected, got integer", trace.new, { vm = vm, kinds = 1 })
    blames("trace: unknown option 'to'", trace.new, { vm = vm, kinds = "io", to = 1 })
    blames("trace: vm: userdata expected, got nil", trace.new, { kinds = "io" })
    blames("vm: VM expected, got ckvm buffer", trace.new, { kinds = "io", vm = ckvm.buffer(1) })
    trace.new { vm = vm, kinds = " io , hlt " }
  end)

  it("tells of reads and writes, with what the guest gets", function()
    local bus, vcpu, lines = make("\xe4\x10\xe6\x11\xa0\x00\x80\xa2\x01\x80\xf4", "io,mmio,hlt")
    -- in $0x10, %al; out %al, $0x11; mov (0x8000), %al; mov %al, (0x8001); hlt
    local seen = {}
    bus:attach_io {
      port = 0x10, count = 2, read = function() return 0x1ff end, write = support.noter(seen),
    }
    bus:attach_mmio {
      gpa = 0x8000, size = 2, read = function() return -2 end, write = support.noter(seen),
    }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({
      "vCPU 0 io_in 0x10 1 0xff", "vCPU 0 io_out 0x11 1 0xff", "vCPU 0 mmio_read 0x8000 1 0xfe",
      "vCPU 0 mmio_write 0x8001 1 0xfe", "vCPU 0 hlt",
    }, lines)
    assert.same({ { 0x11, 0xff, 1, vcpu, n = 4 }, { 0x8001, 0xfe, 1, vcpu, n = 4 } }, seen)
  end)

  it("tells of devices, and of ranges with a value", function()
    local bus, vcpu, lines = make("\xba\xf8\x03\xec\xee\xe4\x20\xe6\x20\xf4", "io")
    -- mov $0x3f8, %dx; in (%dx), %al; out %al, (%dx); in $0x20, %al; out %al, $0x20; hlt
    local sent = {}
    local device = uart.new { write = function(byte) table.insert(sent, byte) end }
    device:receive("A")
    bus:attach_io { port = 0x3f8, count = 8, device = device }
    bus:attach_io { port = 0x20, value = 0x42 }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ "A" }, sent)
    assert.same({
      "vCPU 0 io_in 0x3f8 1 0x41", "vCPU 0 io_out 0x3f8 1 0x41", "vCPU 0 io_in 0x20 1 0x42",
      "vCPU 0 io_out 0x20 1 0x42",
    }, lines)
  end)

  it("tells of each element of a string instruction", function()
    local bus, vcpu, lines = make("\xb9\x03\x00\xf3\x6e\xf4", "io") -- mov $3, %cx; rep outsb; hlt
    vcpu:set_regs { rip = 0x1000, rsi = 0x1000, rdx = 0x10, rflags = 2 }
    bus:attach_io { port = 0x10, write = function() end }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({
      "vCPU 0 io_out 0x10 1 0xb9", "vCPU 0 io_out 0x10 1 0x3", "vCPU 0 io_out 0x10 1 0x0",
    }, lines)
  end)

  it("tells of what nobody claims, and the run ends as without it", function()
    for code, line in pairs {
      ["\xe4\x10"] = "io_in 0x10 1 unclaimed", ["\xe6\x10"] = "io_out 0x10 1 0x0 unclaimed",
      ["\xa0\x00\x80"] = "mmio_read 0x8000 1 unclaimed",
      ["\xa2\x00\x80"] = "mmio_write 0x8000 1 0x0 unclaimed",
    } do
      local _, vcpu, lines = make(code .. "\xf4", "io,mmio")
      assert.equal(line:match("%S+"), (vcpu:run(LIMITS)))
      assert.same({ "vCPU 0 " .. line }, lines)
    end
  end)

  it("tells of a direction that a range does not answer", function()
    local bus, vcpu, lines = make("\xe4\x10\xf4", "io")
    bus:attach_io { port = 0x10, write = function() end }
    assert.equal("io_in", (vcpu:run(LIMITS)))
    assert.same({ "vCPU 0 io_in 0x10 1 unclaimed" }, lines)
  end)

  it("tells of handlers that are set through it, and of what they answer", function()
    local bus, vcpu, lines = make("\xe4\x10\xe6\x10\xf4", "io,hlt")
    bus:on("io_in", function(port) return port + 1 end)
    bus:on("io_out", function() end)
    bus:on("hlt", function(_, which) which:stop "done" end)
    assert.same({ "stopped", "done" }, { vcpu:run(LIMITS) })
    assert.same({ "vCPU 0 io_in 0x10 1 0x11", "vCPU 0 io_out 0x10 1 0x11", "vCPU 0 hlt" }, lines)
    bus:on("hlt", nil)
    vcpu:set_regs { rip = 0x1004, rflags = 2 }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal("vCPU 0 hlt", lines[4])
  end)

  it("tells of MSRs that are left to the host", function()
    local _, vm, vcpu = support.guest("\xb9\x00\x4f\x0f\x32\xf4") -- mov $0x4f00, %cx; rdmsr; hlt
    local enabled = pcall(vm.enable_cap, vm, "x86_user_space_msr", 7)
    if not enabled then support.skip("no x86_user_space_msr") end
    local lines = {}
    local bus = trace.new {
      vm = vm, kinds = "msr",
      output = function(line) table.insert(lines, (line:gsub("^%S+ ", ""))) end,
    }
    bus:on("x86_rdmsr", function(exit) exit.data = 0x1234 end)
    vcpu:set_regs { rip = 0x1000, rcx = 0x12340000, rflags = 2 }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(0x1234, vcpu.regs.rax)
    assert.same({ "vCPU 0 x86_rdmsr index 0x12344f00 data 0x1234" }, lines)
  end)

  it("tells how a guest dies", function()
    local bus, vcpu, lines = make("\x0f\x0b", "error") -- ud2
    vcpu:set_sregs { idt = { base = 0, limit = 0 } }
    local why = vcpu:run(LIMITS)
    assert.matches("^vCPU 0 " .. why, lines[1])
    assert.equal(1, #lines)
    assert.equal(vcpu, bus.vcpus[1])
  end)

  it("leaves alone what is of another kind, and what never enters Lua", function()
    local bus, vcpu, lines = make("\xe4\x10\xe6\x20\xa0\x00\x80\xf4", "mmio")
    local log = ckvm.buffer(10)
    bus:attach_io { port = 0x10, read = function() return 7 end }
    bus:attach_io { port = 0x20, log = log }
    bus:attach_mmio { gpa = 0x8000, size = 1, value = 1 }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ "vCPU 0 mmio_read 0x8000 1 0x1" }, lines)
    assert.equal("\7", log:take())
  end)

  it("tells of batched writes, which have no vCPU", function()
    local bus, vcpu, lines = make("\xe6\x10\xe6\x10\xf4", "io")
    bus:attach_io { port = 0x10, batch = true, write = function() end }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(2, #lines)
    assert.matches("^vCPU [-0] io_out 0x10 1 0x0$", lines[1])
  end)

  it("lets handlers raise and yield", function()
    local bus, vcpu, lines = make("\xe4\x10\xe4\x11\xf4", "io")
    bus:attach_io { port = 0x10, read = function() return coroutine.yield("in") end }
    bus:attach_io { port = 0x11, read = function() error("oops", 0) end }
    local run = coroutine.create(function() return vcpu:run(LIMITS) end)
    assert.same({ true, "in" }, { coroutine.resume(run) })
    assert.same({ false, "oops" }, { coroutine.resume(run, 5) })
    assert.same({ "vCPU 0 io_in 0x10 1 0x5" }, lines)
  end)

  it("stands in the VM's place, also for what is wrong", function()
    local bus, vcpu = make("\xf4", "io,hlt")
    assert.equal(vcpu, bus.vcpus[1])
    bus:write(0x2000, "text")
    assert.equal("text", bus:read(0x2000, 4))
    contains("VM has no method or field 'attahc_io'", support.error_of(function()
      return bus:attahc_io {}
    end))
    blames("unknown option 'pot'", bus.attach_io, bus, { pot = 1 })
    blames("port: integer expected, got nil", bus.attach_io, bus, {})
    blames("table expected", bus.attach_mmio, bus, 7)
    blames("device: table expected, got number", bus.attach_io, bus, { port = 1, device = 3 })
    blames("'device' and 'read' exclude one another", bus.attach_io, bus,
      { port = 1, device = { read = print }, read = print })
    blames("'value' and 'read' exclude one another", bus.attach_io, bus,
      { port = 1, value = 1, read = print })
    blames("'value' and 'device' exclude one another", bus.attach_io, bus,
      { port = 1, value = 1, device = { read = print } })
    blames("value: integer expected, got string", bus.attach_io, bus, { port = 1, value = "x" })
    blames("function expected", bus.on, bus, "hlt", 1)
    bus:attach_io { port = 1, read = print }:detach()
  end)

  it("prints to standard error, if nothing else is said", function()
    local _, output, errors = support.run [[
      local vm = require("ckvm").open():create_vm()
      vm:add_memory { gpa = 0x1000, size = 0x1000 }
      vm:write(0x1000, "\xf4")
      local vcpu = vm:create_vcpu(0)
      vcpu:set_sregs { cs = { base = 0, selector = 0 } }
      vcpu:set_regs { rip = 0x1000, rflags = 2 }
      require("ckvm.trace").new { vm = vm, kinds = "hlt" }
      print(vcpu:run()) ]]
    assert.equal("hlt\n", output)
    assert.matches("^%d+%.%d+ vCPU 0 hlt\n$", errors)
  end)
end)

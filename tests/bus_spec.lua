-- The bus: which range an access belongs to, what its handler sees, and what its answer means;
-- vm:on for what no range claims.

local ckvm = require "ckvm"
local support = require "support"

local error_of, contains = support.error_of, support.contains
local guest, LIMITS, noter = support.guest, support.LIMITS, support.noter

local IN <const> = "\xe4\x10"              -- in $0x10, %al
local INW <const> = "\xe5\x10"             -- in $0x10, %ax
local INL <const> = "\x66\xe5\x10"         -- in $0x10, %eax
local OUT <const> = "\xe6\x10"             -- out %al, $0x10
local OUTW <const> = "\xe7\x10"            -- out %ax, $0x10
local OUTL <const> = "\x66\xe7\x10"        -- out %eax, $0x10
local LOAD <const> = "\xa0\x00\x80"        -- mov (0x8000), %al
local STORE <const> = "\xa2\x00\x80"       -- mov %al, (0x8000)
local HLT <const> = "\xf4"                 -- hlt

local function nothing() end

describe("vm:attach_io", function()
  before_each(support.need_kvm)

  local function refused(options)
    local _, vm = guest(HLT)
    return tostring(error_of(vm.attach_io, vm, options))
  end

  it("refuses a closed VM", function()
    local _, vm = guest(HLT)
    vm:close()
    contains("VM is closed", error_of(vm.attach_io, vm, { port = 1, read = nothing }))
  end)

  it("refuses what is not a table", function()
    contains("table expected", refused(nil))
    contains("table expected", refused(0x10))
  end)

  it("names an unknown option", function()
    contains("unknown option 'prot'", refused { prot = 0x10, read = nothing })
    contains("unknown option 'gpa'", refused { gpa = 0x10, read = nothing })
    contains("unknown option", refused { port = 0x10, read = nothing, "read" })
  end)

  it("refuses ports that do not exist", function()
    contains("port", refused { read = nothing })
    contains("port", refused { port = -1, read = nothing })
    contains("port", refused { port = 0x10000, read = nothing })
    contains("port", refused { port = 1.5, read = nothing })
    contains("port", refused { port = "16", read = nothing })
  end)

  it("refuses counts that are not of ports", function()
    contains("count", refused { port = 0x10, count = 0, read = nothing })
    contains("count", refused { port = 0x10, count = -1, read = nothing })
    contains("count", refused { port = 0xffff, count = 2, read = nothing })
    contains("count", refused { port = 1, count = math.maxinteger, read = nothing })
    contains("count", refused { port = 1, count = {}, read = nothing })
  end)

  it("refuses a range that nobody answers", function()
    contains("'read'", refused { port = 0x10 })
    contains("'read'", refused { port = 0x10, device = {} })
  end)

  it("refuses handlers that are not functions", function()
    contains("read: function expected, got number", refused { port = 0x10, read = 1 })
    contains("write: function expected, got string", refused { port = 0x10, write = "x" })
    contains("device", refused { port = 0x10, device = 5 })
    contains("read: function expected", refused { port = 0x10, device = { read = 1 } })
    contains("device: table expected, got number", refused { port = 0x10, device = 1 })
  end)

  it("refuses options that exclude one another, and names both", function()
    local buffer = ckvm.buffer(16)
    for _, pair in ipairs {
      { "device", "read" }, { "device", "write" }, { "value", "read" }, { "value", "device" },
      { "log", "write" }, { "log", "device" },
    } do
      local options = { port = 0x10 }
      for _, key in ipairs(pair) do
        options[key] = key == "device" and { read = nothing } or key == "value" and 1
          or key == "log" and buffer or nothing
      end
      local message = refused(options)
      contains("'" .. pair[1] .. "'", message)
      contains("'" .. pair[2] .. "'", message)
    end
  end)

  it("refuses logs that are not open buffers", function()
    local closed = ckvm.buffer(16)
    closed:close()
    contains("log: open buffer expected", refused { port = 0x10, log = {} })
    contains("log: open buffer expected", refused { port = 0x10, log = closed })
  end)

  it("refuses values that are not integers", function()
    contains("value", refused { port = 0x10, value = "1" })
    contains("value", refused { port = 0x10, value = 0.5 })
  end)

  it("refuses to batch reads", function()
    contains("batch", refused { port = 0x10, batch = true, read = nothing })
    contains("batch", refused { port = 0x10, batch = true, read = nothing, write = nothing })
    contains("batch", refused { port = 0x10, batch = true, value = 1 })
    contains("batch", refused { port = 0x10, batch = 1, write = nothing })
  end)

  it("blames the caller's line", function()
    local _, vm = guest(HLT)
    contains("bus_spec.lua:", error_of(function()
      local range = vm:attach_io { port = 0x10 }
      return range
    end))
  end)

  it("names both ranges where they would overlap", function()
    local _, vm = guest(HLT)
    vm:attach_io { port = 0x10, count = 8, read = nothing }
    local err = error_of(vm.attach_io, vm, { port = 0x17, count = 2, write = nothing })
    assert.equal("EEXIST", err.code)
    contains("0x10-0x17", err)
    contains("0x17-0x18", err)
  end)

  it("leaves nothing behind when refused", function()
    local _, vm, vcpu = guest(IN .. HLT)
    local other <const> = vm:attach_io { port = 0x11, read = nothing }
    for _ = 1, 20 do
      error_of(vm.attach_io, vm, { port = 0x10, count = 2, read = nothing })
    end
    other:detach()
    vm:attach_io { port = 0x10, count = 2, read = function() return 5 end }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(5, vcpu.regs.rax)
  end)

  it("takes neighbours, and the same numbers as an MMIO range", function()
    local _, vm = guest(HLT)
    vm:attach_io { port = 0x10, count = 8, read = nothing }
    vm:attach_io { port = 0x18, read = nothing }
    vm:attach_io { port = 0x0f, read = nothing }
    vm:attach_mmio { gpa = 0x10, size = 8, read = nothing }
  end)

  it("takes every port there is", function()
    local _, vm, vcpu = guest(IN .. "\xba\xff\xff\xec" .. HLT) -- mov $0xffff, %dx; in %dx, %al
    local seen = {}
    vm:attach_io { port = 0, count = 0x10000, read = noter(seen, 7) }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(0x10, seen[1][1])
    assert.equal(0xffff, seen[2][1])
  end)

  it("calls read with the port, the size and the vCPU", function()
    local _, vm, vcpu = guest(IN .. INW .. INL .. HLT)
    local seen = {}
    vm:attach_io { port = 0x10, count = 4, read = noter(seen, 0) }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ n = 3, 0x10, 1, vcpu }, seen[1])
    assert.same({ n = 3, 0x10, 2, vcpu }, seen[2])
    assert.same({ n = 3, 0x10, 4, vcpu }, seen[3])
    assert.equal(vcpu, seen[1][3])
  end)

  it("calls write with the port, the value, the size and the vCPU", function()
    local _, vm, vcpu = guest("\x66\xb8\x84\x83\x82\x81" -- mov $0x81828384, %eax
      .. OUT .. OUTW .. OUTL .. HLT)
    local seen = {}
    vm:attach_io { port = 0x10, write = noter(seen) }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ n = 4, 0x10, 0x84, 1, vcpu }, seen[1])
    assert.same({ n = 4, 0x10, 0x8384, 2, vcpu }, seen[2])
    assert.same({ n = 4, 0x10, 0x81828384, 4, vcpu }, seen[3])
  end)

  it("gives an access to the range of its first address, with its full size", function()
    local _, vm, vcpu = guest(INL .. OUTL .. HLT)
    local seen, others = {}, {}
    vm:attach_io { port = 0x10, read = noter(seen, 0x11223344), write = noter(seen) }
    vm:attach_io { port = 0x11, count = 3, read = noter(others, 0), write = noter(others) }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ 0x10, 4 }, { seen[1][1], seen[1][2] })
    assert.same({ 0x10, 0x11223344, 4 }, { seen[2][1], seen[2][2], seen[2][3] })
    assert.same({}, others)
  end)

  it("does not claim an access that begins before the range", function()
    local _, vm, vcpu = guest(INW .. HLT)
    vm:attach_io { port = 0x11, read = function() error("not mine") end }
    assert.equal("io_in", (vcpu:run(LIMITS)))
    assert.equal(0x10, vcpu.exit.port)
  end)

  it("leaves writes to a range without write unclaimed, and reads without read", function()
    local _, vm, vcpu = guest(OUT .. IN .. HLT)
    local range = vm:attach_io { port = 0x10, read = function() return 9 end }
    assert.equal("io_out", (vcpu:run(LIMITS)))
    range:detach()
    vm:attach_io { port = 0x10, write = nothing }
    assert.equal("io_in", (vcpu:run(LIMITS)))
  end)

  it("calls a device's methods with the offset in the range", function()
    local seen = {}
    local uart = {}
    uart.__index = uart
    function uart:read(offset, size, more)
      table.insert(seen, { self, offset, size, more })
      return self.answer
    end
    function uart:write(offset, value, size, more)
      table.insert(seen, { self, offset, value, size, more })
    end
    local device <const> = setmetatable({ answer = 0x42 }, uart)
    local _, vm, vcpu = guest(IN .. OUT .. HLT)
    vm:attach_io { port = 0xe, count = 8, device = device }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(device, seen[1][1])
    assert.same({ device, 2, 1 }, seen[1])
    assert.same({ device, 2, 0x42, 1 }, seen[2])
  end)

  it("takes a device that is only written, or only read", function()
    local _, vm, vcpu = guest(OUT .. IN .. HLT)
    local written
    vm:attach_io { port = 0x10, device = { write = function(_, _, value) written = value end } }
    assert.equal("io_in", (vcpu:run(LIMITS)))
    assert.equal(0, written)
  end)

  it("tells several vCPUs of a VM apart", function()
    local _, vm, vcpu = guest(OUT .. HLT)
    local second <close> = vm:create_vcpu(1)
    local seen = {}
    second:set_sregs(vcpu:get_sregs())
    second:set_regs { rip = 0x1000, rflags = 2 }
    vm:attach_io { port = 0x10, write = function(_, _, _, from) table.insert(seen, from) end }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal("hlt", (vcpu.run(second, LIMITS)))
    assert.equal(vcpu, seen[1])
    assert.equal(second, seen[2])
  end)
end)

describe("vm:attach_mmio", function()
  before_each(support.need_kvm)

  local function refused(options)
    local _, vm = guest(HLT)
    return tostring(error_of(vm.attach_mmio, vm, options))
  end

  it("refuses what attach_io refuses", function()
    contains("table expected", refused(nil))
    contains("unknown option 'port'", refused { port = 0x10, size = 1, read = nothing })
    contains("gpa", refused { size = 1, read = nothing })
    contains("gpa", refused { gpa = "0x1000", size = 1, read = nothing })
    contains("'read'", refused { gpa = 0x8000, size = 1 })
    contains("batch", refused { gpa = 0x8000, size = 1, batch = true, read = nothing })
  end)

  it("refuses sizes that are not of memory", function()
    contains("size", refused { gpa = 0x8000, read = nothing })
    contains("size", refused { gpa = 0x8000, size = 0, read = nothing })
    contains("size", refused { gpa = 0x8000, size = -1, read = nothing })
    contains("size", refused { gpa = 0x8000, size = math.mininteger, read = nothing })
    contains("size", refused { gpa = -1, size = 2, read = nothing })
  end)

  it("names both ranges where they would overlap", function()
    local _, vm = guest(HLT)
    vm:attach_mmio { gpa = 0xd0000000, size = 0x1000, read = nothing }
    local err = error_of(vm.attach_mmio, vm, { gpa = 0xcffff000, size = 0x1001, read = nothing })
    assert.equal("EEXIST", err.code)
    contains("0xd0000000-0xd0000fff", err)
    contains("0xcffff000-0xd0000000", err)
  end)

  it("names both ranges at the end of the address space", function()
    local _, vm = guest(HLT)
    vm:attach_mmio { gpa = -0x1000, size = 0x1000, read = nothing }
    local err = error_of(vm.attach_mmio, vm, { gpa = -1, size = 1, read = nothing })
    contains("0xfffffffffffff000-0xffffffffffffffff", err)
    contains("0xffffffffffffffff-0xffffffffffffffff", err)
  end)

  it("calls read and write with the address, the size and the vCPU", function()
    local _, vm, vcpu = guest("\xa1\x04\x80" -- mov (0x8004), %ax
      .. "\x66\xa3\x08\x80"                  -- mov %eax, (0x8008)
      .. HLT)
    local seen = {}
    vm:attach_mmio {
      gpa = 0x8000, size = 0x1000, read = noter(seen, 0x1234), write = noter(seen),
    }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ n = 3, 0x8004, 2, vcpu }, seen[1])
    assert.same({ n = 4, 0x8008, 0x1234, 4, vcpu }, seen[2])
  end)

  it("passes values of eight bytes whole", function()
    -- A move of sixteen bytes is two exits.
    local _, vm, vcpu = guest("\x66\x0f\x6f\x06\x00\x80" -- movdqa (0x8000), %xmm0
      .. "\x66\x0f\x7f\x06\x10\x80"                       -- movdqa %xmm0, (0x8010)
      .. HLT)
    vcpu:set_sregs { cr4 = 0x200 } -- OSFXSR
    local seen = {}
    local answers = { [0x8000] = -2, [0x8008] = 0x1122334455667788 }
    vm:attach_mmio {
      gpa = 0x8000, size = 0x1000,
      read = function(gpa, size)
        assert(size == 8)
        return answers[gpa]
      end,
      write = noter(seen),
    }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ n = 4, 0x8010, -2, 8, vcpu }, seen[1])
    assert.same({ n = 4, 0x8018, 0x1122334455667788, 8, vcpu }, seen[2])
  end)

  it("gives an access to the range of its first address, with its full size", function()
    local _, vm, vcpu = guest("\x66\xa1\x00\x80" .. HLT) -- mov (0x8000), %eax
    local seen = {}
    vm:attach_mmio { gpa = 0x8001, size = 0xfff, read = function() error("not mine") end }
    vm:attach_mmio { gpa = 0x7fff, size = 2, read = noter(seen, 0x11223344) }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ n = 3, 0x8000, 4, vcpu }, seen[1])
    assert.equal(0x11223344, vcpu.regs.rax)
  end)

  it("finds the right one of many ranges", function()
    local _, vm, vcpu = guest("\xb9\x00\x10" -- mov $0x1000, %cx
      .. "\xbe\x00\x80"                      -- mov $0x8000, %si
      .. "\x8a\x04"                          -- 1: mov (%si), %al
      .. "\x83\xc6\x40"                      -- add $0x40, %si
      .. "\x81\xfe\x00\xa0"                  -- cmp $0xa000, %si
      .. "\x72\xf5"                          -- jb 1b
      .. HLT)
    local seen, order = {}, {}
    for i = 0, 127 do table.insert(order, (i * 37) % 128) end -- not in order
    for _, i in ipairs(order) do
      vm:attach_mmio {
        gpa = 0x8000 + i * 0x40, size = 0x40,
        read = function(gpa)
          table.insert(seen, gpa == 0x8000 + i * 0x40 and i or -1)
          return 0
        end,
      }
    end
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(128, #seen)
    for i = 0, 127 do assert.equal(i, seen[i + 1]) end
  end)

  it("calls a device's methods with the offset in the range", function()
    local _, vm, vcpu = guest(LOAD .. STORE .. HLT)
    local seen = {}
    vm:attach_mmio {
      gpa = 0x7ff0, size = 0x100,
      device = {
        read = function(_, offset, size)
          table.insert(seen, { offset, size })
          return 3
        end,
        write = function(_, offset, value, size)
          table.insert(seen, { offset, value, size })
        end,
      },
    }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ { 0x10, 1 }, { 0x10, 3, 1 } }, seen)
  end)
end)

describe("range:detach", function()
  before_each(support.need_kvm)

  it("may come twice, after the VM, by close and by <close>", function()
    local _, vm = guest(HLT)
    local range = vm:attach_io { port = 0x10, read = nothing }
    range:detach()
    range:detach()
    range:close()
    range = vm:attach_io { port = 0x10, read = nothing }
    range:close()
    do
      local scoped <close> = vm:attach_io { port = 0x10, read = nothing }
      contains("range (", tostring(scoped))
    end
    range = vm:attach_mmio { gpa = 0x8000, size = 1, read = nothing }
    vm:close()
    range:detach()
    contains("closed", tostring(range))
  end)

  it("leaves the ports unclaimed", function()
    local _, vm, vcpu = guest(IN .. HLT)
    vm:attach_io({ port = 0x10, read = nothing }):detach()
    assert.equal("io_in", (vcpu:run(LIMITS)))
  end)

  it("is not what dropping the object does", function()
    local _, vm, vcpu = guest(IN .. LOAD .. HLT)
    vm:attach_io { port = 0x10, read = function() return 1 end }
    vm:attach_mmio { gpa = 0x8000, size = 1, read = function() return 2 end }
    support.collect()
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(2, vcpu.regs.rax)
  end)

  it("lets go of the handlers", function()
    local _, vm = guest(HLT)
    local weak = setmetatable({}, { __mode = "v" })
    do
      local device = { read = function() return 1 end }
      weak[1] = device
      vm:attach_io({ port = 0x10, device = device }):detach()
    end
    support.collect()
    assert.is_nil(weak[1])
  end)

  it("works from inside the handler, for itself and for others", function()
    local _, vm, vcpu = guest(IN .. LOAD .. HLT)
    local own, other
    other = vm:attach_mmio { gpa = 0x8000, size = 1, read = function() return 1 end }
    own = vm:attach_io {
      port = 0x10,
      read = function()
        own:detach()
        other:detach()
        support.collect()
        return 0x55
      end,
    }
    assert.equal("mmio_read", (vcpu:run(LIMITS)))
    assert.equal(0x55, vcpu.regs.rax)
    vcpu:set_regs { rip = 0x1000 }
    assert.equal("io_in", (vcpu:run(LIMITS)))
  end)

  it("takes effect at the next element of a string instruction", function()
    local _, vm, vcpu = guest("\xbf\x00\x20" -- mov $0x2000, %di
      .. "\xba\x10\x00"                      -- mov $0x10, %dx
      .. "\xb9\x04\x00"                      -- mov $4, %cx
      .. "\xf3\x6c"                          -- rep insb
      .. HLT)
    local range, catches
    catches = {}
    range = vm:attach_io {
      port = 0x10,
      read = function()
        range:detach()
        return 1
      end,
    }
    vm:on("io_in", noter(catches, 2))
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(3, #catches)
    assert.equal("\1\2\2\2", vm:read(0x2000, 4))
  end)

  it("makes room for another range, from inside the handler", function()
    local _, vm, vcpu = guest(IN .. IN .. HLT)
    local first
    first = vm:attach_io {
      port = 0x10, count = 4,
      read = function()
        first:detach()
        vm:attach_io { port = 0xf, count = 2, read = function() return 2 end }
        return 1
      end,
    }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(2, vcpu.regs.rax)
  end)

  it("goes with attach at every exit", function()
    local code = "\xb9\x00\x02" -- mov $512, %cx
      .. OUT                    -- 1: out %al, $0x10
      .. STORE                  -- mov %al, (0x8000)
      .. "\xe2\xf9"             -- loop 1b
      .. HLT
    local _, vm, vcpu = guest(code)
    local count = 0
    local io, mmio
    local function attach_io()
      io = vm:attach_io {
        port = 0x10,
        write = function()
          count = count + 1
          io:detach()
          attach_io()
        end,
      }
    end
    local function attach_mmio()
      mmio = vm:attach_mmio {
        gpa = 0x8000, size = 1,
        write = function()
          count = count + 1
          mmio:detach()
          attach_mmio()
        end,
      }
    end
    attach_io()
    attach_mmio()
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(1024, count)
  end)
end)

describe("a handler's answer", function()
  before_each(support.need_kvm)

  -- What %rax is after `code` read `answer`; all ones before.
  local function rax_after(code, answer)
    local _, vm, vcpu = guest(code .. HLT, { regs = { rax = -1 } })
    vm:attach_io { port = 0x10, read = function() return answer end }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    return vcpu.regs.rax
  end

  it("is the low `size` bytes of an integer", function()
    assert.equal(0xffffffffffffff34, rax_after(IN, 0x1234))
    assert.equal(0xffffffffffff5678, rax_after(INW, 0x12345678))
    assert.equal(0x55667788, rax_after(INL, 0x1122334455667788) & 0xffffffff)
  end)

  it("may be negative", function()
    assert.equal(0xfffffffffffffffe, rax_after(IN, -2))
    assert.equal(0xffffffffffff8000, rax_after(INW, -0x8000))
    assert.equal(0, rax_after(INL, math.mininteger) & 0xffffffff)
  end)

  it("may be a float with an integer value", function()
    assert.equal(0xffffffffffffff03, rax_after(IN, 3.0))
    assert.equal(0xfffffffffffffffd, rax_after(IN, -3.0))
    assert.equal(0, rax_after(INL, 2.0 ^ 53) & 0xffffffff)
  end)

  it("counts for its bytes alone, by MMIO too", function()
    local _, vm, vcpu = guest("\xa1\x00\x80" .. HLT, { regs = { rax = -1 } }) -- mov (0x8000), %ax
    vm:attach_mmio { gpa = 0x8000, size = 2, read = function() return 0xabcd1234 end }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(0xffffffffffff1234, vcpu.regs.rax)
  end)

  it("is one value: more are ignored", function()
    local _, vm, vcpu = guest(IN .. HLT)
    vm:attach_io { port = 0x10, read = function() return 1, 2, 3 end }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(1, vcpu.regs.rax)
  end)

  it("is ignored for a write, whatever it is", function()
    local _, vm, vcpu = guest(OUT .. STORE .. HLT)
    vm:attach_io { port = 0x10, write = function() return false, "x" end }
    vm:attach_mmio { gpa = 0x8000, size = 1, write = function() return {} end }
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)

  local wrong = {
    { "nothing", nil, "nil" },
    { "a string that looks like a number", "16", "string" },
    { "a boolean", true, "boolean" },
    { "false", false, "boolean" },
    { "a table", {}, "table" },
    { "a fraction", 2.5, "2.5" },
    { "a float beyond 64 bits", 1e300, "1e+300" },
    { "infinity", math.huge, "inf" },
  }
  for _, case in ipairs(wrong) do
    it("raises when it is " .. case[1] .. ", and names range, address and result", function()
      local _, vm, vcpu = guest("\xe4\x12" .. LOAD .. HLT) -- in $0x12, %al
      vm:attach_io { port = 0x10, count = 8, read = function() return case[2] end }
      local message = error_of(vcpu.run, vcpu, LIMITS)
      contains("io_in at 0x12", message)
      contains("0x10-0x17", message)
      contains(case[3], message)
      assert.equal("mmio_read", (vcpu:run(LIMITS)))
      assert.equal(0xff, vcpu.regs.rax) -- as if nobody had answered
    end)
  end

  it("raises for MMIO and for devices alike", function()
    local _, vm, vcpu = guest(LOAD .. HLT)
    vm:attach_mmio { gpa = 0x7ff8, size = 0x10, device = { read = nothing } }
    local message = error_of(vcpu.run, vcpu, LIMITS)
    contains("mmio_read at 0x8000", message)
    contains("0x7ff8-0x8007", message)
    contains("nil", message)
  end)

  it("raises for one element of a string instruction, and leaves the rest all ones", function()
    local _, vm, vcpu = guest("\xbf\x00\x20" -- mov $0x2000, %di
      .. "\xba\x10\x00"                      -- mov $0x10, %dx
      .. "\xb9\x04\x00"                      -- mov $4, %cx
      .. "\xf3\x6c"                          -- rep insb
      .. HLT)
    local count = 0
    vm:attach_io {
      port = 0x10,
      read = function()
        count = count + 1
        return count < 3 and count or "x"
      end,
    }
    contains("string", error_of(vcpu.run, vcpu, LIMITS))
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(3, count)
    assert.equal("\1\2\xff\xff", vm:read(0x2000, 4))
  end)
end)

describe("an MMIO access across a page boundary", function()
  before_each(support.need_kvm)

  -- mov %eax, (0x8ffd + i): the parts before and behind 0x9000, and what they carry of EAX.
  local cuts = {
    { store = "\x66\xa3\xfd\x8f", { 0x8ffd, 0x332211, 3 }, { 0x9000, 0x44, 1 } },
    { store = "\x66\xa3\xfe\x8f", { 0x8ffe, 0x2211, 2 }, { 0x9000, 0x4433, 2 } },
    { store = "\x66\xa3\xff\x8f", { 0x8fff, 0x11, 1 }, { 0x9000, 0x443322, 3 } },
  }

  it("is two accesses, whole between them, for writes", function()
    for _, cut in ipairs(cuts) do
      local seen = {}
      local _, vm, vcpu = guest(cut.store .. HLT, { regs = { rax = 0x44332211 } })
      vm:attach_mmio { gpa = 0x8000, size = 0x2000, write = function(gpa, value, size)
        table.insert(seen, { gpa, value, size })
      end }
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ cut[1], cut[2] }, seen)
    end
  end)

  it("is two accesses for reads, each answered with its bytes", function()
    for _, cut in ipairs(cuts) do
      local load = cut.store:gsub("\xa3", "\xa1") -- mov (0x8ffd + i), %eax
      local _, vm, vcpu = guest(load .. HLT)
      vm:attach_mmio { gpa = 0x8000, size = 0x2000, read = function(gpa)
        return gpa < 0x9000 and cut[1][2] or cut[2][2]
      end }
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(0x44332211, vcpu.regs.rax)
    end
  end)

  it("is logged whole", function()
    for _, cut in ipairs(cuts) do
      local log = ckvm.buffer(16)
      local _, vm, vcpu = guest(cut.store .. HLT, { regs = { rax = 0x44332211 } })
      vm:attach_mmio { gpa = 0x8000, size = 0x2000, log = log }
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal("\x11\x22\x33\x44", log:take())
    end
  end)
end)

describe("vm:on", function()
  before_each(support.need_kvm)

  local function refused(...)
    local _, vm = guest(HLT)
    return tostring(error_of(vm.on, vm, ...))
  end

  it("refuses a closed VM", function()
    local _, vm = guest(HLT)
    vm:close()
    contains("VM is closed", error_of(vm.on, vm, "hlt", nothing))
  end)

  it("names an exit that it does not know", function()
    contains("unknown exit 'halt'", refused("halt", nothing))
    contains("unknown exit ''", refused("", nothing))
    refused(nil, nothing)
    refused({}, nothing)
    refused(-1, nothing)
    refused(1.5, nothing)
    refused(1 << 32, nothing)
  end)

  it("knows io and mmio by their four names alone", function()
    for _, name in ipairs { "io", "mmio" } do
      contains("four names: io_in, io_out, mmio_read, and mmio_write", refused(name, nothing))
    end
    refused(2, nothing)
    refused(6, nothing)
  end)

  it("refuses what is not a function", function()
    contains("function expected", refused("hlt", 5))
    contains("function expected", refused("io_in", {}))
  end)

  it("catches reads that no range claims, with their signature", function()
    local _, vm, vcpu = guest(INW .. "\xa1\x00\x80" .. HLT) -- mov (0x8000), %ax
    local seen = {}
    vm:on("io_in", noter(seen, 0x1234))
    vm:on("mmio_read", noter(seen, 0x5678))
    vm:attach_io { port = 0x20, read = nothing }
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ n = 3, 0x10, 2, vcpu }, seen[1])
    assert.same({ n = 3, 0x8000, 2, vcpu }, seen[2])
    assert.equal(0x5678, vcpu.regs.rax)
  end)

  it("catches writes that no range claims, with their signature", function()
    local _, vm, vcpu = guest("\xb8\x34\x12" -- mov $0x1234, %ax
      .. OUTW .. "\xa3\x00\x80" .. HLT)      -- mov %ax, (0x8000)
    local seen = {}
    vm:on("io_out", noter(seen))
    vm:on("mmio_write", noter(seen))
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.same({ n = 4, 0x10, 0x1234, 2, vcpu }, seen[1])
    assert.same({ n = 4, 0x8000, 0x1234, 2, vcpu }, seen[2])
  end)

  it("does not see what a range claims", function()
    local _, vm, vcpu = guest(IN .. OUT .. LOAD .. STORE .. HLT)
    for _, exit in ipairs { "io_in", "io_out", "mmio_read", "mmio_write" } do
      vm:on(exit, function() error("claimed") end)
    end
    local function zero() return 0 end
    vm:attach_io { port = 0x10, read = zero, write = zero }
    vm:attach_mmio { gpa = 0x8000, size = 1, read = zero, write = zero }
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)

  it("ends the run at an access whose handler returns false", function()
    for exit, code in pairs { io_in = IN, io_out = OUT, mmio_read = LOAD, mmio_write = STORE } do
      local _, vm, vcpu = guest(code .. HLT)
      vm:on(exit, function() return false end)
      assert.equal(exit, (vcpu:run(LIMITS)))
      assert.equal(exit, vcpu.exit.reason)
      assert.equal("hlt", (vcpu:run(LIMITS)))
    end
  end)

  it("raises for an answer that is no integer, and names the access", function()
    local _, vm, vcpu = guest(IN .. HLT)
    vm:on("io_in", nothing)
    local message = error_of(vcpu.run, vcpu, LIMITS)
    contains("io_in at 0x10", message)
    contains("nil", message)
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(0xff, vcpu.regs.rax)
  end)

  it("replaces a handler, and removes it for nil, also from inside", function()
    local _, vm, vcpu = guest(OUT .. OUT .. OUT .. HLT)
    local order = {}
    vm:on("io_out", function() error("replaced") end)
    vm:on("io_out", function()
      table.insert(order, 1)
      vm:on("io_out", function()
        table.insert(order, 2)
        vm:on("io_out", nil)
      end)
    end)
    assert.equal("io_out", (vcpu:run(LIMITS)))
    assert.same({ 1, 2 }, order)
    assert.equal("hlt", (vcpu:run(LIMITS)))
  end)

  it("takes exits by number, also ones that have no name yet", function()
    local _, vm, vcpu = guest(HLT .. HLT)
    local seen = {}
    vm:on(1000, nothing)
    vm:on(5, noter(seen, false)) -- KVM_EXIT_HLT
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(1, #seen)
    vm:on("hlt", nil) -- the same one
    assert.equal("hlt", (vcpu:run(LIMITS)))
    assert.equal(1, #seen)
  end)

  it("does not keep the VM alive", function()
    local weak = setmetatable({}, { __mode = "k" })
    do
      local _, vm, vcpu = guest(HLT)
      weak[vm] = true
      vm:on("hlt", function() return vm, vcpu end)
      vm:attach_io { port = 0x10, read = function() return vm, vcpu end }
    end
    support.collect()
    assert.is_nil(next(weak))
  end)
end)

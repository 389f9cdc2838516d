-- What runs in the middle of a call, and closes what the call is about: metamethods of option
-- tables, finalizers, and conversions for messages. Each in a ckvm-lua of its own.

local support = require "support"

local HERE <const> = debug.getinfo(1, "S").source:match("^@(.*)/") or "."

local prelude = [[
package.path = arg[1] .. "/?.lua;" .. package.path
local ckvm = require "ckvm"
local support = require "support"
local kvm, vm, vcpu, ram
local function guest(code)
  kvm, vm, vcpu, ram = support.real_mode(code or "\xf4", { memory = { log_dirty = true } })
end
local function close_all()
  vcpu:close()
  ram:close()
  vm:close()
  kvm:close()
end
]]

local function survives(body)
  local status, output, errors = support.run(prelude .. body, { after = { HERE } })
  assert.equal("0 done\n", status .. " " .. output, errors:sub(1, 2000))
end

-- Calls that look at tables: __index of one that has nothing closes the object.
local table_calls = {
  ["kvm:create_vm"] = "kvm:create_vm(trap { type = nil })",
  ["vm:add_memory"] = "vm:add_memory(trap { gpa = 0x100000, size = 0x1000 })",
  ["vm:add_memory, all but one"] =
    "vm:add_memory(trap { gpa = 0x100000, size = 0x1000, file = '/dev/zero' })",
  ["vm:attach_io"] = "vm:attach_io(trap { port = 1, value = 0 })",
  ["vm:attach_io with a device"] = "vm:attach_io { port = 1, device = trap {} }",
  ["vm:attach_mmio"] = "vm:attach_mmio(trap { gpa = 0x200000, size = 1, value = 0 })",
  ["vcpu:run"] = "vcpu:run(trap { exits = 1 })",
  ["vcpu:set_regs"] = "vcpu:set_regs(trap { rax = 1 })",
  ["vcpu:set_sregs"] = "vcpu:set_sregs(trap {})",
  ["vcpu:set_sregs, in a part"] = [[
    local sregs = vcpu:get_sregs()
    sregs.cs.base = nil
    sregs.cs = trap(sregs.cs)
    vcpu:set_sregs(sregs)]],
  ["vcpu:set_vcpu_events"] = "vcpu:set_vcpu_events(trap { nmi = { pending = 0 } })",
  ["vcpu.events.nmi ="] = "vcpu.events.nmi = trap { pending = 0 }",
  ["vcpu.sregs.cs ="] = "vcpu.sregs.cs = trap { base = 0 }",
}

-- Calls that make something: a collection in the middle of them closes the object.
local making_calls = {
  ["ckvm.open"] = "ckvm.open():close()",
  ["kvm:create_vm"] = "kvm:create_vm():close()",
  ["vm:create_vcpu"] = "id = (id or 0) % 1000 + 1 vm:create_vcpu(id)",
  ["vm.vcpus"] = "local _ = vm.vcpus",
  ["vm:add_memory"] = "vm:add_memory { gpa = 0x100000, size = 0x1000 }",
  ["vm:add_memory that is refused"] = "vm:add_memory { gpa = 0, size = 0x1000 }",
  ["vm:move_memory that is refused"] = "vm:move_memory(ram, 1 << 62)",
  ["vm:read"] = "local _ = vm:read(0, 0x10000)",
  ["vm:read that is refused"] = "local _ = vm:read(0xffff, 2)",
  ["vm:dirty_pages"] = "vm:dirty_pages(ram)",
  ["vm:attach_io"] = "vm:attach_io { port = 1, read = function() return 1 end }",
  ["vm:attach_io that is refused"] =
    "pcall(vm.attach_io, vm, { port = 1, value = 0 }) vm:attach_io { port = 1, value = 0 }",
  ["vm:attach_mmio"] = "vm:attach_mmio { gpa = 0x100000, size = 1, value = 0 }",
  ["vm:on"] = "vm:on('hlt', function() end)",
  ["vcpu:get_sregs"] = "vcpu:get_sregs()",
  ["vcpu.sregs.interrupt_bitmap"] = "local _ = vcpu.sregs.interrupt_bitmap",
  ["vcpu.sregs.interrupt_bitmap ="] = "vcpu.sregs.interrupt_bitmap = { 0 }",
  ["vcpu.sregs.cs ="] = "vcpu.sregs.cs = { base = 0 }",
  ["pairs(vcpu.sregs)"] = "for _, part in pairs(vcpu.sregs) do part = part end",
  ["vcpu.stats"] = "local _ = vcpu.stats",
  ["vcpu.exit"] = "vcpu:run_once() local _ = vcpu.exit.reason",
  ["vcpu:run"] = "vcpu:run { timeout = 1, exits = 3 } vcpu:set_regs { rip = 0x1000 }",
  ["vcpu:finish"] = "vcpu:finish()",
}

describe("an object that is closed by a table's __index in the middle of a call", function()
  before_each(support.need_kvm)

  for name, body in pairs(table_calls) do
    it("makes it raise, or go on, and nothing worse: " .. name, function()
      survives(([[
local at
local function trap(fields)
  local seen = 0
  return setmetatable(fields, { __index = function()
    seen = seen + 1
    if seen == at then close_all() end
  end })
end
for n = 1, 24 do
  at = n
  guest()
  pcall(function() %s end)
  pcall(close_all)
end
print("done")]]):format(body))
    end)
  end
end)

describe("an object that is closed by a finalizer in the middle of a call", function()
  before_each(support.need_kvm)

  for name, body in pairs(making_calls) do
    it("makes it raise, or go on, and nothing worse: " .. name, function()
      survives(([[
local left -- collections until the one that closes
local function arm()
  setmetatable({}, { __gc = function()
    left = left - 1
    if left == 0 then close_all() elseif left > 0 then arm() end
  end })
end
local function call()
  %s
end
collectgarbage("setpause", 0) -- one after another, each in one step
collectgarbage("setstepmul", 1000)
for n = 1, 40 do
  collectgarbage("stop")
  guest(n %% 2 == 0 and "\xe4\x01\xe6\x02\xf4" or nil)
  left = n
  arm()
  collectgarbage("incremental", 0, 0, 40)
  collectgarbage("restart")
  pcall(call)
  pcall(call)
  left = 0
  pcall(close_all)
end
print("done")]]):format(body))
    end)
  end

  it("also while vm:run makes its threads, of which none is left", function()
    survives [[
local lfs = require "lfs"
local function threads()
  local count = 0
  for _ in lfs.dir("/proc/self/task") do count = count + 1 end
  return count
end
local before, closed = threads(), 0
local function arm()
  setmetatable({}, { __gc = function()
    if threads() == before then return arm() end
    close_all()
    closed = closed + 1
  end })
end
collectgarbage("setpause", 0) -- one after another, each in one step
collectgarbage("setstepmul", 1000)
for _ = 1, 5 do
  collectgarbage("stop")
  guest()
  for id = 1, 7 do vm:create_vcpu(id) end
  arm()
  collectgarbage("incremental", 0, 0, 40)
  collectgarbage("restart")
  assert(not pcall(vm.run, vm, { timeout = 20 }))
  assert(threads() == before, "a thread is left")
end
assert(closed == 5)
print("done")]]
  end)

  it("for want of descriptors, before the second try", function()
    local status, output, errors = support.run(prelude .. [[
for _, create in ipairs {
  function() kvm:create_vm() end, function() vm:create_vcpu(1) end,
  function() vm:add_memory { gpa = 0x100000, size = 0x1000, shared = true } end,
  function() vm:add_memory { gpa = 0x100000, size = 0x1000, file = "/dev/zero" } end,
} do
  collectgarbage()
  collectgarbage("stop")
  guest()
  local files = {}
  repeat
    local file = io.open("/dev/null")
    table.insert(files, file)
  until not file
  setmetatable({}, { __gc = close_all })
  pcall(create)
  for _, file in ipairs(files) do file:close() end
  collectgarbage("restart")
end
print("done")]], { after = { HERE }, shell = "ulimit -n 40" })
    assert.equal("0 done\n", status .. " " .. output, errors:sub(1, 2000))
  end)
end)

describe("a name that converts itself to a string", function()
  before_each(support.need_kvm)

  it("may close what it is asked of", function()
    survives([[
local key = setmetatable({}, { __tostring = function()
  close_all()
  return "key"
end })
for _, fn in ipairs {
  function() return kvm[key] end, function() vm[key] = 1 end, function() return vcpu[key] end,
  function() return vcpu.regs[key] end, function() vcpu.sregs.cs[key] = 1 end,
  function() vcpu:set_regs { [key] = 1 } end, function() vm:add_memory { [key] = 1 } end,
  function() kvm:create_vm { [key] = 1 } end, function() vcpu:run { [key] = 1 } end,
} do
  guest()
  assert(not pcall(fn))
end
print("done")]])
  end)
end)

describe("an object that a finalizer makes while the state is closed", function()
  it("leaves nothing behind", function()
    survives [[
      setmetatable({}, { __gc = function()
        guest()
        print("done")
      end })
      os.exit(true, true)]]
  end)
end)

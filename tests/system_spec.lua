-- ckvm.open and what it returns: /dev/kvm, its questions, its VMs; and the errors of all objects.

local ckvm = require "ckvm"
local lfs = require "lfs"
local support = require "support"

local contains, error_of = support.contains, support.error_of

-- "file:line" of the function that calls this, so many lines further down.
local function here(lines)
  local info = debug.getinfo(2, "Sl")
  return ("%s:%d"):format(info.short_src, info.currentline + (lines or 0))
end

-- Capabilities as the kernel's header has them: name without KVM_CAP_, in lower case -> number.
local function caps_of_header()
  local file <close> = io.open("/usr/include/linux/kvm.h")
  if not file then return nil end
  local caps = {}
  for name, number in file:read("a"):gmatch("#define%s+KVM_CAP_([%w_]+)%s+(%d+)%f[%s]") do
    caps[name:lower()] = tonumber(number)
  end
  return caps
end

describe("ckvm", function()
  it("has a version of three numbers", function()
    assert.matches("^%d+%.%d+%.%d+$", ckvm.version)
  end)

  it("is one module, however often it is required", function()
    assert.equal(ckvm, require "ckvm")
  end)
end)

describe("ckvm.now", function()
  it("is a time in seconds that goes on", function()
    local before = ckvm.now()
    assert.equal("float", math.type(before))
    local count = 0
    while ckvm.now() == before do count = count + 1 end
    assert.is_true(ckvm.now() > before)
    assert.is_true(ckvm.now() - before < 60, count)
  end)
end)

describe("ckvm.open", function()
  before_each(support.need_kvm)

  it("refuses what is neither a path nor a table", function()
    for _, path in ipairs { true, print, io.stdout } do
      contains("string expected, got ", error_of(ckvm.open, path))
    end
  end)

  it("names the option that has the wrong type", function()
    contains("path", error_of(ckvm.open, { path = true }))
    contains("path: an empty string", error_of(ckvm.open, ""))
    contains("sync_regs: true or false expected, got string",
      error_of(ckvm.open, { sync_regs = "no" }))
  end)

  it("names an unknown option", function()
    contains("open: unknown option 'pth'", error_of(ckvm.open, { pth = "/dev/kvm" }))
    contains("open: unknown option '1'", error_of(ckvm.open, { "/dev/kvm" }))
  end)

  it("takes no option that the table inherits", function()
    local kvm <close> = ckvm.open(setmetatable({}, { __index = { path = "/dev/null", pth = 1 } }))
    assert.equal(12, kvm:get_api_version())
  end)

  it("says that a file is missing, and which", function()
    local err = error_of(ckvm.open, "/dev/no-such-kvm")
    assert.equal("open", err.call)
    assert.equal("ENOENT", err.code)
    contains("/dev/no-such-kvm", err)
  end)

  it("says that a file is not a KVM, and which", function()
    local err = error_of(ckvm.open, "/dev/null")
    assert.equal("KVM_GET_API_VERSION", err.call)
    assert.equal("ENOTTY", err.code)
    contains("not a KVM", err)
    contains("/dev/null", err)
  end)

  it("says that a path is a directory, and which", function()
    local err = error_of(ckvm.open, { path = "/dev" })
    assert.equal("open", err.call)
    assert.equal("EISDIR", err.code)
    contains("/dev:", err)
  end)

  it("says that there is no permission, and for what", function()
    local name = os.tmpname()
    finally(function() os.remove(name) end)
    os.execute("chmod 0 " .. support.quote(name))
    local pipe <close> = io.popen(("%s%s -e %s 2>&1"):format(support.obedient(),
      support.quote(support.program()),
      support.quote(("print(pcall(require('ckvm').open, %q))"):format(name))))
    local output = pipe:read("a")
    contains("open: EACCES: ", output)
    contains("no permission to read and write it", output)
    contains(name, output)
  end)

  it("leaves no descriptor behind when it fails", function()
    local before = support.settled_fds()
    for _ = 1, 20 do
      error_of(ckvm.open, "/dev/null")
      error_of(ckvm.open, "/dev/no-such-kvm")
      error_of(ckvm.open, true)
    end
    assert.equal(before, support.count_fds())
  end)

  it("takes a path that is cut by a zero for what it is: no such file", function()
    assert.is_false(pcall(ckvm.open, "/dev/kvm\0.backup"))
  end)

  it("opens /dev/kvm without arguments, and with nil or an empty table", function()
    for _, path in ipairs { false, {}, { sync_regs = true }, { sync_regs = false } } do
      local kvm <close> = ckvm.open(path or nil)
      assert.equal(12, kvm:get_api_version())
    end
  end)

  it("opens a path, alone or as an option", function()
    local name = os.tmpname()
    finally(function() os.remove(name) end)
    os.remove(name)
    assert(lfs.link("/dev/kvm", name, true))
    local one <close> = ckvm.open(name)
    local other <close> = ckvm.open { path = name }
    assert.equal(12, one:get_api_version())
    assert.equal(12, other:get_api_version())
  end)
end)

describe("kvm:check_extension", function()
  local kvm
  before_each(function()
    support.need_kvm()
    kvm = ckvm.open()
  end)
  after_each(function() kvm:close() end)

  it("refuses a name that no kernel has, and names it", function()
    contains("unknown capability 'nr_vcpu'", error_of(kvm.check_extension, kvm, "nr_vcpu"))
    contains("unknown capability ''", error_of(kvm.check_extension, kvm, ""))
    contains("unknown capability 'NR_VCPUS'", error_of(kvm.check_extension, kvm, "NR_VCPUS"))
    contains("unknown capability '9'", error_of(kvm.check_extension, kvm, "9"))
  end)

  it("tells how names are written", function()
    for _, name in ipairs { "NR_VCPUS", "KVM_CAP_NR_VCPUS", "kvm_cap_nr_vcpus" } do
      contains(("'%s': did you mean 'nr_vcpus'?"):format(name),
        error_of(kvm.check_extension, kvm, name))
    end
    contains("'x': names are the kernel's in lower case, without KVM_CAP_",
      error_of(kvm.check_extension, kvm, "x"))
  end)

  it("refuses a name that only begins like one", function()
    error_of(kvm.check_extension, kvm, "nr_vcpus\0x")
  end)

  for _, number in ipairs { -1, 0.5, 1 << 31, 2 ^ 63, math.mininteger, 0 / 0 } do
    it("refuses the number " .. number, function()
      error_of(kvm.check_extension, kvm, number)
    end)
  end

  it("refuses other types", function()
    for _, cap in ipairs { true, {}, print } do
      contains("string expected, got " .. type(cap), error_of(kvm.check_extension, kvm, cap))
    end
    error_of(kvm.check_extension, kvm)
  end)

  it("is 0 for a capability that no kernel has yet", function()
    assert.equal(0, kvm:check_extension(0x7fffffff))
  end)

  it("takes a float that is an integer", function()
    assert.equal(kvm:check_extension(9), kvm:check_extension(9.0))
  end)

  it("knows what every KVM has", function()
    assert.equal(1, kvm:check_extension("user_memory"))
    assert.is_true(kvm:check_extension("nr_vcpus") > 0)
    assert.equal(kvm:check_extension(9), kvm:check_extension("nr_vcpus"))
  end)

  it("answers for every number from 0 to 400", function()
    for number = 0, 400 do
      assert.equal("integer", math.type(kvm:check_extension(number)))
    end
  end)

  it("knows every name of the kernel's header, as the number it has there", function()
    local caps = caps_of_header() or pending("no <linux/kvm.h>")
    local names = 0
    for name, number in pairs(caps) do
      assert.equal(kvm:check_extension(number), kvm:check_extension(name), name)
      names = names + 1
    end
    assert.is_true(names > 200, names)
  end)

  it("answers for a VM, too", function()
    local vm <close> = kvm:create_vm()
    assert.equal(1, vm:check_extension("user_memory"))
    assert.equal(0, vm:check_extension(0x7fffffff))
    contains("unknown capability 'x'", error_of(vm.check_extension, vm, "x"))
  end)
end)

describe("kvm:get_vcpu_mmap_size", function()
  before_each(support.need_kvm)

  it("is at least the page that is shared with the kernel", function()
    local kvm <close> = ckvm.open()
    local size = kvm:get_vcpu_mmap_size()
    assert.is_true(size >= 4096 and size % 4096 == 0, size)
  end)
end)

describe("kvm:create_vm", function()
  local kvm
  before_each(function()
    support.need_kvm()
    kvm = ckvm.open()
  end)
  after_each(function() kvm:close() end)

  it("names an unknown option", function()
    contains("create_vm: unknown option 'kind'", error_of(kvm.create_vm, kvm, { kind = 0 }))
    contains("create_vm: unknown option 'true'", error_of(kvm.create_vm, kvm, { [true] = 0 }))
  end)

  it("refuses anything but a table", function()
    for _, options in ipairs { 0, "0", true, print } do
      contains("table expected, got " .. type(options), error_of(kvm.create_vm, kvm, options))
    end
  end)

  it("names the type that is not an integer", function()
    contains("type: integer expected, got string", error_of(kvm.create_vm, kvm, { type = "0" }))
    contains("type: 0.5 is not", error_of(kvm.create_vm, kvm, { type = 0.5 }))
    contains("type: -1 is not", error_of(kvm.create_vm, kvm, { type = -1 }))
  end)

  it("names the type that the kernel refuses", function()
    for _, kind in ipairs { 77, 1 << 32, 1 << 40, math.maxinteger } do
      local err = error_of(kvm.create_vm, kvm, { type = kind })
      assert.equal("KVM_CREATE_VM", err.call)
      assert.equal("EINVAL", err.code)
      contains(("type %d "):format(kind), err)
    end
  end)

  it("creates VMs of type 0, as many as one likes", function()
    local one <close> = kvm:create_vm()
    local two <close> = kvm:create_vm {}
    local three <close> = kvm:create_vm { type = 0 }
    local four <close> = kvm:create_vm { type = 0.0 }
    assert.are_not.equal(one, two)
    assert.are_not.equal(three, four)
  end)
end)

describe("close", function()
  before_each(support.need_kvm)

  local function objects()
    local kvm, vm, vcpu, ram = support.real_mode("\xf4")
    local range = vm:attach_io { port = 1, value = 0 }
    return { kvm = kvm, vm = vm, vcpu = vcpu, ram = ram, range = range }
  end

  -- Calls fn with each order of the list.
  local function permute(list, n, fn)
    if n == 0 then return fn(list) end
    for i = 1, n do
      list[i], list[n] = list[n], list[i]
      permute(list, n - 1, fn)
      list[i], list[n] = list[n], list[i]
    end
  end

  it("may come in any order, and twice", function()
    local names = { "kvm", "vm", "vcpu", "ram", "range" }
    local before = support.settled_fds()
    permute(names, #names, function(order)
      local made = objects()
      for _, name in ipairs(order) do
        made[name]:close()
        made[name]:close()
        contains("closed", made[name])
      end
    end)
    assert.equal(before, support.count_fds())
  end)

  it("of kvm leaves its VMs whole", function()
    local made = objects()
    made.kvm:close()
    assert.equal("hlt", made.vcpu:run())
    made.vm:create_vcpu(1)
    made.vm:close()
  end)

  it("of a VM closes what belongs to it", function()
    local made = objects()
    made.vm:close()
    for _, name in ipairs { "vm", "vcpu", "ram", "range" } do contains("closed", made[name]) end
    made.kvm:create_vm():close()
  end)

  it("comes with <close>, in an error, too", function()
    local before = support.settled_fds()
    local kept
    pcall(function()
      local kvm <close> = ckvm.open()
      local vm <close> = kvm:create_vm()
      kept = { kvm, vm }
      error("out of here")
    end)
    assert.equal("kvm (closed)", tostring(kept[1]))
    assert.equal("VM (closed)", tostring(kept[2]))
    assert.equal(before, support.count_fds())
  end)

  it("comes with the collector", function()
    support.collect()
    local before = support.settled_fds()
    for _ = 1, 10 do objects() end
    support.collect()
    assert.equal(before, support.count_fds())
  end)

  it("refuses what is not such an object", function()
    local made = objects()
    contains("kvm expected", error_of(made.kvm.close, made.vm))
    contains("VM expected", error_of(made.vm.close, made.kvm))
    contains("vCPU expected", error_of(made.vcpu.close, {}))
    contains("memory expected", error_of(made.ram.close, io.stdout))
    error_of(made.range.close)
    made.vm:close()
    made.kvm:close()
  end)
end)

describe("a closed object", function()
  before_each(support.need_kvm)

  local calls = {
    kvm = { "get_api_version", "get_vcpu_mmap_size", "check_extension", "create_vm" },
    VM = {
      "check_extension", "create_vcpu", "add_memory", "move_memory", "dirty_pages", "read",
      "write", "fill", "attach_io", "attach_mmio", "on", "read_u8", "read_u16", "read_u32",
      "read_u64", "write_u8", "write_u16", "write_u32", "write_u64",
    },
    vCPU = {
      "get_regs", "set_regs", "get_sregs", "set_sregs", "get_vcpu_events", "set_vcpu_events",
      "run", "run_once", "finish", "stop", "kick",
    },
  }
  local fields = {
    VM = { "vcpus" },
    vCPU = { "regs", "sregs", "events", "exit", "id", "stats" },
    memory = { "gpa", "size", "slot" },
  }
  local made
  before_each(function()
    made = {}
    made.kvm, made.VM, made.vCPU, made.memory = support.real_mode("\xf4")
    for _, object in pairs(made) do object:close() end
  end)

  for kind, names in pairs(calls) do
    for _, name in ipairs(names) do
      it(("raises and says so: %s:%s"):format(kind, name), function()
        local err = error_of(function() made[kind][name](made[kind], 0, 0, 0) end)
        contains(kind .. " is closed", err)
        contains("system_spec.lua:", err)
      end)
    end
  end

  for kind, names in pairs(fields) do
    for _, name in ipairs(names) do
      it(("raises and says so: %s.%s"):format(kind, name), function()
        contains(kind .. " is closed", error_of(function() return made[kind][name] end))
      end)
    end
  end

  it("still converts to a string", function()
    for kind, object in pairs(made) do assert.equal(kind .. " (closed)", tostring(object)) end
  end)

  it("as an argument raises, too", function()
    local kvm <close> = ckvm.open()
    local vm <close> = kvm:create_vm()
    contains("memory is closed", error_of(vm.move_memory, vm, made.memory, 0))
    contains("memory is closed", error_of(vm.dirty_pages, vm, made.memory))
  end)
end)

describe("an object", function()
  local made
  before_each(function()
    support.need_kvm()
    made = {}
    made.kvm, made.VM, made.vCPU, made.memory = support.real_mode("\xf4")
    made.range = made.VM:attach_io { port = 1, value = 0 }
    made.buffer = ckvm.buffer(16)
  end)
  after_each(function()
    made.VM:close()
    made.kvm:close()
  end)

  it("converts to a string with its kind, and one of its own", function()
    for kind, object in pairs(made) do
      assert.matches("^" .. kind .. " %(0x%x+%)$", tostring(object))
    end
  end)

  it("raises for an unknown method or field, and names it", function()
    for kind, object in pairs(made) do
      for _, key in ipairs { "no_such", 1, true, "" } do
        local err = error_of(function() return object[key] end)
        contains(("%s has no method or field '%s'"):format(kind, key), err)
        contains("system_spec.lua:", err)
      end
    end
  end)

  it("raises for an unknown method when it is called", function()
    local err = error_of(function() made.vCPU:get_reg() end)
    contains("vCPU has no method or field 'get_reg'", err)
    contains(here(-2), err)
  end)

  it("has no fields that can be set, and says which it was", function()
    for kind, object in pairs(made) do
      local err = error_of(function() object.size = 1 end)
      contains(("%s has no field 'size' that can be set"):format(kind), err)
    end
  end)

  it("has a method for its own kind alone", function()
    contains("kvm expected", error_of(made.kvm.create_vm, made.VM))
    contains("VM expected", error_of(made.VM.read, made.vCPU, 0, 1))
    contains("vCPU expected", error_of(made.vCPU.run, made.memory))
    contains("buffer expected", error_of(made.buffer.take, made.range))
  end)

  it("hides its metatable", function()
    for _, object in pairs(made) do
      assert.are_not.equal("table", type(getmetatable(object)))
      assert.is_false(pcall(setmetatable, object, {}))
    end
  end)

  it("is a key like any other", function()
    local set = {}
    for _, object in pairs(made) do set[object] = true end
    for _, object in pairs(made) do assert.is_true(set[object]) end
  end)
end)

describe("an error", function()
  local kvm, vm
  before_each(function()
    kvm, vm = support.new_vm()
    vm:create_vcpu(0)
  end)
  after_each(function() support.close(vm, kvm) end)

  it("has call, code, errno, where and message", function()
    local err = error_of(function() vm:create_vcpu(0) end)
    assert.equal("KVM_CREATE_VCPU", err.call)
    assert.equal("EEXIST", err.code)
    assert.equal(17, err.errno)
    assert.equal(here(-4), err.where)
    assert.equal("vCPU 0 exists already", err.message)
  end)

  it("reads where: call: code: message", function()
    local err = error_of(function() vm:create_vcpu(0) end)
    assert.equal(here(-1) .. ": KVM_CREATE_VCPU: EEXIST: vCPU 0 exists already", tostring(err))
  end)

  it("reads the same where there is no line to blame", function()
    local err = error_of(vm.create_vcpu, vm, 0)
    assert.equal("", err.where)
    assert.equal("KVM_CREATE_VCPU: EEXIST: vCPU 0 exists already", tostring(err))
  end)

  it("can be changed by a script, and still be read", function()
    local err = error_of(vm.create_vcpu, vm, 0)
    err.message, err.where, err.code = nil, {}, nil
    assert.equal("string", type(tostring(err)))
  end)

  it("blames the line of the call, inside a function, a coroutine and a handler", function()
    local function create()
      vm:create_vcpu(0)
    end
    local line = here(-2)
    assert.equal(line, error_of(create).where)
    local _, err = coroutine.resume(coroutine.create(create))
    assert.equal(line, err.where)
  end)

  it("of misuse is a string that blames the line of the call", function()
    local misuses = {
      function() kvm:check_extension("no_such") end, function() kvm:create_vm { no = 1 } end,
      function() vm:read(0) end, function() vm:write_u8(0, 256) end,
      function() vm:add_memory { gpa = 1, size = 4096 } end, function() vm.nothing() end,
      function() vm:create_vcpu(-1) end, function() ckvm.open { no = 1 } end,
    }
    local first = here(-5)
    local file = first:match("^(.*):%d+$")
    for i, misuse in ipairs(misuses) do
      local line = tonumber(first:match("%d+$")) + (i - 1) // 2
      local err = error_of(misuse)
      assert.equal("string", type(err))
      contains(("%s:%d: "):format(file, line), err)
    end
  end)

  it("that nobody catches ends a script with one line and a traceback", function()
    local status, output, errors = support.run([[
local kvm = require "ckvm".open()
local vm = kvm:create_vm()
vm:create_vcpu(0)
vm:create_vcpu(0)
]])
    assert.equal(1, status)
    assert.equal("", output)
    assert.matches("^[^\n]*:4: KVM_CREATE_VCPU: EEXIST: vCPU 0 exists already\n", errors)
    contains("stack traceback", errors)
  end)
end)

describe("a create for want of descriptors", function()
  before_each(support.need_kvm)

  -- `body` with kvm open, no collection by itself, and room for few descriptors.
  local function starved(body)
    return support.run([[
local ckvm = require "ckvm"
local kvm = ckvm.open()
collectgarbage("stop")
]] .. body .. "\nprint('done')", { shell = "ulimit -n 24" })
  end

  for name, body in pairs {
    ["ckvm.open"] = "for _ = 1, 100 do ckvm.open() end",
    ["kvm:create_vm"] = "for _ = 1, 100 do kvm:create_vm() end",
    ["vm:create_vcpu"] = "for _ = 1, 100 do kvm:create_vm():create_vcpu(0) end",
    ["vm:add_memory, shared"] = [[
      for _ = 1, 100 do
        local vm = kvm:create_vm()
        vm:add_memory { gpa = 0, size = 4096, shared = true }
      end]],
    ["vm:add_memory of a file"] = [[
      local name = os.tmpname()
      io.open(name, "w"):write(("x"):rep(4096)):close()
      for _ = 1, 100 do
        local vm = kvm:create_vm()
        local ok, err = pcall(vm.add_memory, vm, { gpa = 0, size = 4096, file = name })
        if not ok then os.remove(name) error(err, 0) end
      end
      os.remove(name)]],
  } do
    it("collects and tries again: " .. name, function()
      local status, output, errors = starved(body)
      assert.equal("", errors)
      assert.equal("done\n", output)
      assert.equal(0, status)
    end)
  end

  it("raises if collecting did not help, and the script goes on", function()
    local status, output, errors = starved([[
local vms, err = {}
repeat
  local ok, made = pcall(kvm.create_vm, kvm)
  if ok then table.insert(vms, made) else err = made end
until err
print(err.call, err.code)
for _, vm in ipairs(vms) do vm:close() end
kvm:create_vm()]])
    assert.equal("", errors)
    assert.equal("KVM_CREATE_VM\tEMFILE\ndone\n", output)
    assert.equal(0, status)
  end)

  it("raises an error that names a file that cannot be opened for it", function()
    local status, output, errors = starved([[
local vm, files, err = kvm:create_vm(), {}
repeat
  local file = io.open("/dev/null")
  table.insert(files, file)
until not file
local ok, err = pcall(vm.add_memory, vm, { gpa = 0, size = 4096, file = "/dev/zero" })
print(type(err), err.call, err.code)]])
    assert.equal("", errors)
    assert.equal("table\topen\tEMFILE\ndone\n", output)
    assert.equal(0, status)
  end)
end)

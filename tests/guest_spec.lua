-- What a VM can be beside a PC: encrypted, a guest of Xen or Hyper-V, with a filter on its PMU.

local ckvm = require "ckvm"
local support = require "support"

local contains, error_of = support.contains, support.error_of

-- The kernel's refusal, where it has none of it.
local function refused(name, method, ...)
  local err = error_of(method, ...)
  assert.equal("KVM_" .. name:upper(), err.call)
  assert.equal("ENOTTY", err.code)
  return err
end

describe("the calls of encrypted guests, Xen and Hyper-V", function()
  local kvm, vm, vcpu, ram
  before_each(function()
    support.need_kvm()
    kvm, vm, vcpu, ram = support.real_mode("\xf4")
  end)
  after_each(function() support.close(vm, kvm) end)

  it("refuse a closed object, unknown options and wrong types", function()
    contains("id: no command 'launch'", error_of(vm.memory_encrypt_op, vm, { id = "launch" }))
    contains("id: no command '99'", error_of(vm.memory_encrypt_op, vm, { id = 99 }))
    contains("id: string expected, got nil", error_of(vm.memory_encrypt_op, vm, {}))
    contains("launch_start: unknown field 'dh_uaddr'",
      error_of(vm.memory_encrypt_op, vm, { id = "launch_start", dh_uaddr = 0x1000 }))
    contains("init: unknown field 'data'",
      error_of(vm.memory_encrypt_op, vm, { id = "init", data = "x" }))
    contains("dh: string or table expected, got number",
      error_of(vm.memory_encrypt_op, vm, { id = "launch_start", dh = 0x1000 }))
    contains("memory: memory expected, got userdata",
      error_of(vm.memory_encrypt_reg_region, vm, { memory = vm, size = 1 }))
    contains("unknown option 'addr'",
      error_of(vm.memory_encrypt_reg_region, vm, { memory = ram, addr = 0x1000, size = 1 }))
    contains("type: unknown name 'shared_info_hva'",
      error_of(vm.xen_hvm_set_attr, vm, { type = "shared_info_hva" }))
    contains("type: 6 is none without an address of the host's",
      error_of(vm.xen_hvm_set_attr, vm, { type = 6 }))
    contains("type: 9 is none", error_of(vcpu.xen_vcpu_get_attr, vcpu, 9))
    contains("unknown field 'vector'",
      error_of(vm.xen_hvm_set_attr, vm, { type = "long_mode", vector = 1 }))
    contains("unknown option 'blob_addr_32'",
      error_of(vm.xen_hvm_config, vm, { blob_addr_32 = 0x1000 }))
    contains("fd: integer expected, got nil", error_of(vm.hyperv_eventfd, vm, { conn_id = 1 }))
    contains("port: integer expected, got nil", error_of(vm.xen_hvm_evtchn_send, vm, {}))
    vm:close()
    for _, name in ipairs {
      "memory_encrypt_op", "memory_encrypt_reg_region", "xen_hvm_config", "xen_hvm_get_attr",
      "xen_hvm_set_attr", "hyperv_eventfd", "set_pmu_event_filter",
    } do
      contains("VM is closed", error_of(vm[name], vm, {}))
    end
  end)

  it("take no memory beyond its end", function()
    for _, wrong in ipairs {
      { offset = 0x10000, size = 1 }, { offset = -1, size = 1 }, { size = 0x10001 },
      { offset = 1, size = 0x10000 }, { offset = math.mininteger, size = math.mininteger },
      { size = 1 << 32 }, { size = -1 },
    } do
      wrong.memory = ram
      contains("the memory has no", error_of(vm.memory_encrypt_reg_region, vm, wrong))
      contains("the memory has no",
        error_of(vm.memory_encrypt_op, vm, { id = "launch_update_data", data = wrong }))
    end
    ram:close()
    contains("memory is closed",
      error_of(vm.memory_encrypt_reg_region, vm, { memory = ram, size = 1 }))
  end)

  it("are refused by a KVM that has no encryption", function()
    local err = refused("memory_encrypt_op", vm.memory_encrypt_op, vm, { id = "init" })
    contains("not encrypted", err)
    refused("memory_encrypt_op", vm.memory_encrypt_op, vm,
      { id = "launch_update_data", data = { memory = ram, size = 0x1000 } })
    for _, name in ipairs { "memory_encrypt_reg_region", "memory_encrypt_unreg_region" } do
      refused(name, vm[name], vm, { memory = ram, size = 0x1000 })
    end
  end)

  it("are refused by a KVM that is built without Xen, and taken by one with it", function()
    if vm:check_extension("xen_hvm") ~= 0 then
      vm:xen_hvm_config { flags = "intercept_hcall", msr = 0x40000000 }
      vm:xen_hvm_set_attr { type = "long_mode", long_mode = 1 }
      return assert.same({ type = "long_mode", long_mode = 1 }, vm:xen_hvm_get_attr("long_mode"))
    end
    contains("without Xen", refused("xen_hvm_config", vm.xen_hvm_config, vm,
      { flags = { "intercept_hcall" }, msr = 0x40000000 }))
    refused("xen_hvm_get_attr", vm.xen_hvm_get_attr, vm, "long_mode")
    refused("xen_hvm_set_attr", vm.xen_hvm_set_attr, vm, { type = "long_mode", long_mode = 1 })
    refused("xen_hvm_evtchn_send", vm.xen_hvm_evtchn_send, vm, { port = 1 })
    -- On x86 a vCPU says EINVAL to what it does not know.
    local err = error_of(vcpu.xen_vcpu_get_attr, vcpu, "vcpu_info")
    assert.equal("EINVAL", err.code)
    contains("without Xen", err)
    local info = { type = "vcpu_info", gpa = 0 }
    err = error_of(vcpu.xen_vcpu_set_attr, vcpu, info)
    assert.equal("EINVAL", err.code)
    contains("without Xen", err)
  end)

  it("are refused by a KVM that is built without Hyper-V", function()
    if vm:check_extension("hyperv_eventfd") ~= 0 then pending("this KVM has Hyper-V's") end
    local event <close> = ckvm.eventfd()
    contains("without Hyper-V",
      refused("hyperv_eventfd", vm.hyperv_eventfd, vm, { conn_id = 1, fd = event.fd }))
  end)
end)

describe("vm:set_pmu_event_filter", function()
  local kvm, vm
  before_each(function()
    kvm, vm = support.new_vm()
    if vm:check_extension("pmu_event_filter") == 0 then support.skip("no PMU event filter") end
  end)
  after_each(function() support.close(vm, kvm) end)

  local function set(options) return vm:set_pmu_event_filter(options) end

  it("names what is wrong", function()
    contains("action: name or integer expected, got nil", error_of(set, {}))
    contains("action: unknown name 'drop'", error_of(set, { action = "drop" }))
    contains("events: list expected, got number", error_of(set, { action = "deny", events = 1 }))
    contains("events: integer expected, got string",
      error_of(set, { action = "deny", events = { "x" } }))
    contains("flags: unknown name 'x'", error_of(set, { action = "deny", flags = "x" }))
    contains("unknown option 'nevents'", error_of(set, { action = "deny", nevents = 1 }))
  end)

  it("takes any list that the kernel takes", function()
    set { action = "allow" }
    set { action = "deny", events = { 0xc0, 0x3c } , fixed_counter_bitmap = 1 }
    set { action = 0, events = {} }
    if vm:check_extension("pmu_event_masked_events") ~= 0 then
      set { action = "allow", flags = "masked_events", events = { 0xc0 | 0xff << 56 } }
    end
  end)

  it("is refused by the kernel with its errno", function()
    local many = {}
    for i = 1, 301 do many[i] = i end
    assert.equal("E2BIG", error_of(set, { action = "allow", events = many }).code)
    assert.equal("EINVAL", error_of(set, { action = 2 }).code)
    assert.equal("EINVAL", error_of(set, { action = "allow", flags = 8 }).code)
  end)
end)

describe("kvm's numbers", function()
  it("are what the kernel says, or what it always was", function()
    support.need_kvm()
    local kvm <close> = ckvm.open()
    assert.equal(kvm:check_extension("nr_vcpus"), kvm:get_nr_vcpus())
    assert.is_true(kvm:get_max_vcpus() >= kvm:get_nr_vcpus())
    assert.is_true(kvm:get_max_vcpu_id() >= kvm:get_max_vcpus())
    assert.is_true(kvm:get_nr_memslots() >= 32)
    kvm:close()
    for _, what in ipairs { "nr_vcpus", "max_vcpus", "max_vcpu_id", "nr_memslots" } do
      local name = "get_" .. what
      contains("kvm is closed", error_of(kvm[name], kvm))
    end
  end)
end)

-- With a kernel that has it all.
describe("structs of encrypted guests and Xen", function()
  local build = support.program():match("^(.*)/")
  local open = package.loadlib(build .. "/tests/.libs/fake_kernel.so", "luaopen_fake_kernel")
  local fake = open and open()
  local kvm, vm, ram
  before_each(function()
    if not fake then support.skip("tests/fake_kernel.so is not built: make check") end
    fake.install()
    kvm = ckvm.open { path = "/dev/null" }
    vm = kvm:create_vm()
    ram = vm:add_memory { gpa = 0, size = 0x2000 }
  end)
  after_each(function()
    if fake then fake.remove() end
    support.close(vm, kvm)
  end)

  it("have strings in the place of addresses, copied in and out", function()
    assert.same(
      { handle = 3, policy = 9, dh = "key", session = "SSSS", error = 0 },
      vm:memory_encrypt_op { id = "launch_start", policy = 9, dh = "key", session = "abcd" })
    assert.same({ handle = 0, policy = 0, error = 0 },
      vm:memory_encrypt_op { id = 2 })
  end)

  it("have memory and an offset in the place of addresses", function()
    vm:write(0x10, "source")
    assert.equal(0, vm:memory_encrypt_op({
      id = "dbg_decrypt", src = { memory = ram, offset = 0x10, size = 6 },
      dst = { memory = ram, offset = 0x1000, size = 6 },
    }).error)
    assert.equal("source", vm:read(0x1000, 6))
    assert.equal("source", vm:memory_encrypt_op({
      id = "dbg_decrypt", src = { memory = ram, offset = 0x10, size = 6 }, dst = "123456",
    }).dst)
    contains("src and dst have different sizes", error_of(vm.memory_encrypt_op, vm, {
      id = "dbg_decrypt", src = { memory = ram, size = 1 }, dst = { memory = ram, size = 2 } }))
  end)

  it("tell what the firmware said", function()
    local err = error_of(vm.memory_encrypt_op, vm, { id = "launch_finish" })
    assert.equal("EIO", err.code)
    contains("the firmware's error 5", err)
  end)

  it("have the field that goes with the type", function()
    local vcpu = vm:create_vcpu(0)
    for _, attr in ipairs {
      { type = "long_mode", long_mode = 1 },
      { type = "shared_info", shared_info = { gfn = 0x123456789 } },
      { type = "upcall_vector", vector = 0xf3 },
      { type = "xen_version", xen_version = 0x40011 },
      { type = "runstate_update_flag", runstate_update_flag = 1 },
    } do
      vm:xen_hvm_set_attr(attr)
      assert.same(attr, vm:xen_hvm_get_attr(attr.type))
    end
    vm:xen_hvm_set_attr { type = "evtchn", evtchn = {
      send_port = 1, type = 2, deliver = { port = { port = 3, vcpu = 4, priority = 5 } } } }
    local event = vm:xen_hvm_get_attr(3).evtchn
    assert.equal(4, event.deliver.port.vcpu)
    assert.equal(4, event.deliver.eventfd.fd) -- a union
    for _, attr in ipairs {
      { type = "vcpu_info", gpa = 0x1000 }, { type = "vcpu_id", vcpu_id = 7 },
      { type = "timer", timer = { port = 1, priority = 2, expires_ns = 1 << 40 } },
      { type = "upcall_vector", vector = 3 },
      { type = "runstate_data", runstate = { state = 1, state_entry_time = 2, time_running = 3,
        time_runnable = 4, time_blocked = 5, time_offline = 6 } },
    } do
      vcpu:xen_vcpu_set_attr(attr)
      assert.same(attr, vcpu:xen_vcpu_get_attr(attr.type))
    end
  end)
end)

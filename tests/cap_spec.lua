-- enable_cap, of VMs and vCPUs.

local support = require "support"

local contains, error_of = support.contains, support.error_of

describe("enable_cap", function()
  local kvm, vm
  before_each(function() kvm, vm = support.new_vm() end)
  after_each(function() support.close(vm, kvm) end)

  local function both(fn)
    fn(vm)
    fn(vm:create_vcpu(0))
  end

  it("refuses a closed object, and what is none", function()
    local vcpu = vm:create_vcpu(0)
    vcpu:close()
    contains("vCPU is closed", error_of(vcpu.enable_cap, vcpu, "hyperv_synic"))
    local enable_cap = vm.enable_cap
    contains("VM expected", error_of(enable_cap, vcpu, "split_irqchip"))
    contains("VM expected", error_of(enable_cap, nil, "split_irqchip"))
    vm:close()
    contains("VM is closed", error_of(enable_cap, vm, "split_irqchip"))
  end)

  it("names an unknown capability, option and element", function()
    both(function(object)
      contains("unknown capability 'hyperspace'", error_of(object.enable_cap, object, "hyperspace"))
      contains("unknown capability 'hyperspace'",
        error_of(object.enable_cap, object, { cap = "hyperspace" }))
      contains("enable_cap: unknown option 'arg'",
        error_of(object.enable_cap, object, { cap = "split_irqchip", arg = {} }))
      contains("args[5]: no such element",
        error_of(object.enable_cap, object, { cap = "split_irqchip", args = { 1, 2, 3, 4, 5 } }))
      contains("args[x]: no such element",
        error_of(object.enable_cap, object, { cap = "split_irqchip", args = { x = 1 } }))
    end)
  end)

  it("refuses arguments of the wrong type and number", function()
    both(function(object)
      for _, value in ipairs { "24", {}, print, 0.5 } do
        contains("args: ", error_of(object.enable_cap, object, "split_irqchip", value))
        contains("args: ",
          error_of(object.enable_cap, object, { cap = "split_irqchip", args = { value } }))
      end
      contains("four arguments",
        error_of(object.enable_cap, object, "split_irqchip", 1, 2, 3, 4, 5))
      contains("into the table", error_of(object.enable_cap, object, { cap = "split_irqchip" }, 24))
      contains("list expected",
        error_of(object.enable_cap, object, { cap = "split_irqchip", args = 24 }))
      contains("capability: string expected", error_of(object.enable_cap, object))
      contains("capability: string expected", error_of(object.enable_cap, object, {}))
      contains("not a capability's number", error_of(object.enable_cap, object, -1))
      contains("flags: ", error_of(object.enable_cap, object, { cap = 0, flags = 1 << 32 }))
    end)
  end)

  it("says which capability the kernel refuses", function()
    both(function(object)
      for _, cap in ipairs { 0, "irqchip", { cap = "irqchip" } } do
        local err = error_of(object.enable_cap, object, cap)
        assert.equal("KVM_ENABLE_CAP", err.call)
        assert.equal("EINVAL", err.code)
        contains("capability irqchip: ", err)
      end
      contains("capability 696969: ", error_of(object.enable_cap, object, 696969))
    end)
    local err = error_of(vm.enable_cap, vm, { cap = "split_irqchip", flags = 1, args = { 24 } })
    assert.equal("EINVAL", err.code)
  end)

  it("enables one of a VM, by name, number and table", function()
    if vm:check_extension("split_irqchip") == 0 then pending("no split irqchip") end
    vm:enable_cap("split_irqchip", 24)
    for _, args in ipairs {
      table.pack(121, 24), table.pack { cap = "split_irqchip", args = { 24 } },
    } do
      local other <close> = kvm:create_vm()
      other:enable_cap(table.unpack(args))
      -- There is one now.
      assert.equal("EEXIST", error_of(other.enable_cap, other, "split_irqchip", 24).code)
    end
  end)

  it("takes true and false for 1 and 0, and arguments at any place", function()
    if vm:check_extension("x86_user_space_msr") == 0 then pending("no MSR exits") end
    vm:enable_cap("x86_user_space_msr", true)
    vm:enable_cap { cap = "x86_user_space_msr", args = { [1] = false } }
    if vm:check_extension("halt_poll") > 0 then
      vm:enable_cap { cap = "halt_poll", flags = 0, args = { [1] = 1000, [4] = 0 } }
    end
  end)

  it("takes a VM for its descriptor", function()
    local cap = "vm_copy_enc_context_from"
    if vm:check_extension(cap) == 0 then pending("no encrypted guests") end
    local other <close> = kvm:create_vm()
    -- Neither is an encrypted guest.
    contains(cap, error_of(vm.enable_cap, vm, cap, other))
    other:close()
    contains("VM is closed", error_of(vm.enable_cap, vm, cap, other))
  end)

  it("enables one of a vCPU", function()
    if vm:check_extension("hyperv_synic") == 0 then pending("no Hyper-V") end
    if vm:check_extension("split_irqchip") > 0 then vm:enable_cap("split_irqchip", 24) end
    vm:create_vcpu(0):enable_cap("hyperv_synic")
  end)

  it("lends hyperv_enlightened_vmcs the memory that it wants, and no script's address", function()
    local vcpu = vm:create_vcpu(0)
    for _, cap in ipairs { "hyperv_enlightened_vmcs", 163 } do
      contains("takes no arguments", error_of(vcpu.enable_cap, vcpu, cap, 0x1000))
      contains("takes no arguments",
        error_of(vcpu.enable_cap, vcpu, { cap = cap, args = { 0x1000 } }))
    end
    local enabled, version = pcall(vcpu.enable_cap, vcpu, "hyperv_enlightened_vmcs")
    if enabled then
      assert.equal("integer", math.type(version))
    else
      contains("capability hyperv_enlightened_vmcs", version)
    end
  end)
end)

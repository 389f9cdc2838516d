-- Capabilities that have to be enabled: which of them this KVM takes, each on a VM of its own.

local enable_cap = {}

-- Name and argument; without one, the value of check_extension.
local LIST <const> = {
  { "x86_user_space_msr", 7 }, { "exit_hypercall" }, { "exception_payload", 1 },
  { "exit_on_emulation_failure", 1 }, { "x86_triple_fault_event", 1 }, { "x86_disable_exits" },
  { "x86_bus_lock_exit", 2 }, { "x86_notify_vmexit", 1 << 44 | 3 }, { "split_irqchip", 24 },
  { "x2apic_api", 3 }, { "manual_dirty_log_protect2", 1 }, { "dirty_log_ring_acq_rel", 1 << 16 },
  { "max_vcpu_id", 1 }, { "halt_poll", 0 }, { "pmu_capability", 1 }, { "msr_platform_info", 0 },
  { "disable_quirks2" }, { "vm_disable_nx_huge_pages", 0 },
}

local function code_of(message)
  return type(message) == "table" and message.code or tostring(message)
end

local function enable(kvm, name, argument)
  local vm <close> = kvm:create_vm()
  local value = vm:check_extension(name)
  local done, message = pcall(vm.enable_cap, vm, name, argument or value)
  if not done then return false, code_of(message) end
  return true, value == 0 and "but check_extension has 0" or nil
end

-- What is printed: a label for each.
enable_cap.entries = {}

for _, entry in ipairs(LIST) do
  local name, argument = table.unpack(entry)
  enable_cap[name] = function(kvm) return enable(kvm, name, argument) end
  table.insert(enable_cap.entries, { name, name })
end

return enable_cap

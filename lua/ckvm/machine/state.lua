-- What a machine is like when it is new, for ckvm.machine: what the kernel keeps of the VM and the
-- vCPUs, and what devices have saved. Memory and general registers are not in it.

local state = {}

local CHIPS <const> = { "pic_master", "pic_slave", "ioapic" }
-- In the order that they are put back; each has a get_ and a set_.
local REGISTERS <const> = { "sregs", "fpu", "xcrs", "debugregs", "vcpu_events" }

local function save_vcpu(vcpu, msrs, has_apic)
  local saved = { msrs = vcpu:get_msrs(msrs), lapic = has_apic and vcpu:get_lapic() }
  for _, name in ipairs(REGISTERS) do saved[name] = vcpu["get_" .. name](vcpu) end
  return saved
end

-- Those that have changed: of the others, the kernel refuses some whatever the value.
local function restore_msrs(vcpu, saved)
  local list, changed = {}, {}
  for msr in pairs(saved) do table.insert(list, msr) end
  for msr, value in pairs(vcpu:get_msrs(list)) do
    if value ~= saved[msr] then table.insert(changed, { index = msr, data = saved[msr] }) end
  end
  vcpu:set_msrs(changed)
end

local function restore_vcpu(vcpu, saved)
  for _, name in ipairs(REGISTERS) do vcpu["set_" .. name](vcpu, saved[name]) end
  restore_msrs(vcpu, saved.msrs)
  if saved.lapic then vcpu:set_lapic(saved.lapic) end
end

local function save_devices(devices)
  local saved = {}
  for i, entry in ipairs(devices) do
    local device = entry.device or entry
    if not device.reset and device.save and device.load then saved[i] = device:save() end
  end
  return saved
end

-- Of a machine that has just been made: kvm, vm, vcpus, irqchip, devices.
function state.save(machine, kvm)
  local saved = { vcpus = {}, chips = {} }
  local msrs <const> = kvm:get_msr_index_list()
  for i, vcpu in ipairs(machine.vcpus) do
    saved.vcpus[i] = save_vcpu(vcpu, msrs, machine.irqchip)
  end
  if machine.irqchip then
    for i, name in ipairs(CHIPS) do saved.chips[i] = machine.vm:get_irqchip(name) end
    saved.pit = machine.vm:get_pit2()
  end
  saved.devices = save_devices(machine.devices)
  return saved
end

function state.restore(machine, saved)
  for i, vcpu in ipairs(machine.vcpus) do restore_vcpu(vcpu, saved.vcpus[i]) end
  if machine.irqchip then
    for _, chip in ipairs(saved.chips) do machine.vm:set_irqchip(chip) end
    machine.vm:set_pit2(saved.pit)
  end
end

-- To be called after restore: devices tell the interrupt controllers of their lines.
function state.restore_devices(machine, saved)
  for i, entry in ipairs(machine.devices) do
    local device = entry.device or entry
    if device.reset then
      device:reset()
    elseif saved.devices[i] then
      device:load(saved.devices[i])
    end
  end
end

return state

-- Several vCPUs that know of one another: INIT and SIPI, interrupts between them, timers that end
-- HLT, all through the in-kernel irqchip.

local ckvm = require "ckvm"
local support = require "support"
local x86 = require "ckvm.x86"

local LIMITS = support.LIMITS

local GDT <const>, IDT <const>, HANDLER <const> = 0x1000, 0x2000, 0x3000
local AP_CODE <const>, BSP_CODE <const>, STACKS <const> = 0x8000, 0x9000, 0xa000
local READY <const>, TABLES <const> = 0x7000, 0x10000
local VECTOR <const> = 0x41

local APIC <const> = 0xfee00000 -- movl $value, (APIC + offset), by way of rdi
local function apic(offset, value)
  return "\xbf" .. ("<I4"):pack(APIC + offset) .. "\xc7\x07" .. ("<I4"):pack(value)
end

local ENABLE <const> = apic(0xf0, 0x1ff)           -- the spurious interrupt vector register
local EOI <const> = apic(0xb0, 0)
-- mov (%rsp), %rax; cmpb $0xf4, (%rax); jne over the next; incq (%rsp): kvm_amd on an emulator that
-- forgets the shadow of STI lets interrupts in between STI and HLT, and then HLT never ends.
local SKIP_HLT <const> = "\x48\x8b\x04\x24\x80\x38\xf4\x75\x04\x48\xff\x04\x24"
local HLT_LOOP <const> = "\xfb\xf4\xeb\xfc"        -- sti; hlt; jmp back
local PAUSE_LOOP <const> = "\xf3\x90\xeb\xfc"      -- pause; jmp back

-- Guests of these vCPUs have an irqchip, and long mode with all of it mapped.
local function machine(count)
  local kvm = ckvm.open()
  local vm = kvm:create_vm()
  vm:create_irqchip()
  vm:add_memory { gpa = 0, size = 0x20000 }
  -- Without CPUID KVM's APIC timers are never periodic.
  for id = 0, count - 1 do vm:create_vcpu(id):set_cpuid2(kvm:get_supported_cpuid()) end
  return vm, x86.identity_map(vm, TABLES, 4 << 30)
end

-- Has a vCPU run code in long mode, with a handler for the vector that writes to port 0x10.
local function start(vcpu, cr3, rip, code)
  local vm = vcpu.vm
  local gdt <const> = x86.gdt()
  vm:write(GDT, gdt)
  vm:write(IDT, x86.idt { [VECTOR] = HANDLER })
  vm:write(HANDLER, "\xe6\x10\x57" .. EOI .. "\x5f" .. SKIP_HLT .. "\x48\xcf") -- ...; iretq
  vm:write(rip, code)
  vcpu:set_mp_state "runnable"
  x86.enter(vcpu, "long", {
    rip = rip, rsp = STACKS + 0x800 * (vcpu.id + 1), cr3 = cr3,
    gdt = { base = GDT, limit = #gdt - 1 }, idt = { base = IDT, limit = 0xfff },
  })
end

describe("vCPUs with an irqchip", function()
  before_each(support.need_kvm)

  it("are started by INIT and SIPI", function()
    local vm, cr3 = machine(3)
    start(vm.vcpus[1], cr3, BSP_CODE,
      apic(0x300, 0xc4500) .. apic(0x300, 0xc4608) .. PAUSE_LOOP) -- to all but itself
    vm:write(AP_CODE, "\xb0\x42\xe6\x10\xf4") -- mov $0x42, %al; out %al, $0x10; hlt
    local started = {}
    vm:attach_io { port = 0x10, write = function(_, value, _, vcpu)
      started[vcpu.id] = value
      if started[1] and started[2] then vcpu:stop() end
    end }
    assert.equal("stopped", (vm:run(LIMITS)))
    assert.same({ 0x42, 0x42 }, started)
  end)

  it("interrupt one another out of HLT, many times", function()
    local vm, cr3 = machine(2)
    local times <const> = math.max(20, support.times(10000))
    -- Each interrupts the other and sleeps until it is interrupted: once both are up, nobody spins,
    -- so that a busy machine runs who is awake. An interrupt that comes before HLT waits for STI.
    local ping <const> = "\xfa" .. apic(0x300, VECTOR) .. "\xfb\xf4" -- cli; ...; sti; hlt
    local loop <const> = ping .. "\xeb" .. ("b"):pack(-#ping - 2)    -- jmp to the cli
    start(vm.vcpus[2], cr3, AP_CODE, ENABLE .. apic(0x310, 0)
      .. "\xc6\x04\x25" .. ("<I4"):pack(READY) .. "\x01" -- movb $1, (READY)
      .. "\xfb\xf4" .. loop)                              -- sti; hlt
    start(vm.vcpus[1], cr3, BSP_CODE, ENABLE .. apic(0x310, 1 << 24)
      .. "\xf3\x90"                                      -- pause
      .. "\x80\x3c\x25" .. ("<I4"):pack(READY) .. "\x00" -- cmpb $0, (READY)
      .. "\x74\xf4" .. loop)                              -- je to the pause
    local count, last = 0, 0
    vm:attach_io { port = 0x10, write = function(_, _, _, vcpu)
      assert.equal(1 - last, vcpu.id)
      count, last = count + 1, vcpu.id
      if count == times then vcpu:stop() end
    end }
    assert.equal("stopped", (vm:run { timeout = 600 }))
    assert.equal(times, count)
  end)

  it("sleep in HLT until their timers go off", function()
    local vm, cr3 = machine(2)
    for i, vcpu in ipairs(vm.vcpus) do
      start(vcpu, cr3, i == 1 and BSP_CODE or AP_CODE, ENABLE
        .. apic(0x3e0, 0xb) .. apic(0x320, VECTOR | 1 << 17) -- divided by 1; periodic
        .. apic(0x380, 1000000) .. HLT_LOOP)
    end
    local ticks = { [0] = 0, 0 }
    vm:attach_io { port = 0x10, write = function(_, _, _, vcpu)
      ticks[vcpu.id] = ticks[vcpu.id] + 1
      if ticks[0] >= 10 and ticks[1] >= 10 then vcpu:stop() end
    end }
    assert.equal("stopped", (vm:run(LIMITS)))
  end)
end)

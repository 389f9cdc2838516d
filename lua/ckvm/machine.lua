--- A guest from one table: memory, vCPUs in a mode, code, and what answers its ports and addresses.
--
-- The VM and its vCPUs are there to be changed, as `m.vm` and `m.vcpus`, before it runs and in its
-- handlers. The functions that take a machine are its methods: `m:run()`, and `local m <close>`.
-- @module ckvm.machine
-- @usage
-- local m = require("ckvm.machine").new {
--   mode = "long",
--   code = "\xb0\x2a\xe6\xe9\xf4", -- mov $42, %al; out %al, $0xe9; hlt
--   devices = { { port = 0xe9, write = function(_, value) print(value) end } },
-- }
-- assert(m:run { timeout = 10 } == "hlt")
local check = require "ckvm.check"
local boot = require "ckvm.boot"
local ckvm = require "ckvm"
local config = require "ckvm.machine.config"
local dev = require "ckvm.dev"
local state = require "ckvm.machine.state"
local trace = require "ckvm.trace"
local x86 = require "ckvm.x86"

local machine = {}
local meta = { __index = machine }

local HOLE <const>, TABLES <const>, STUBS_SIZE <const> =
  config.HOLE, config.TABLES, config.STUBS_SIZE
local GDT <const> = 0x500 -- below the tables
local ABOVE <const> = 4 << 30 -- where memory goes on behind the hole
local REACH <const> = 4 << 30 -- what long mode has mapped
local LARGE_PAGE <const> = 2 << 20
local STUBS_PORT <const> = 0xf0

-- Making ---------------------------------------------------------------------

local function add_memory(vm, size)
  vm:add_memory { gpa = 0, size = math.min(size, HOLE) }
  if size > HOLE then vm:add_memory { gpa = ABOVE, size = size - HOLE } end
end

-- The processor that KVM can make of this one. Some KVMs leave two things to be said: that it is a
-- guest's, without which Linux does not look for what KVM has for guests, such as a clock, and
-- spends seconds on measuring the time; and that the timers of local APICs go off by the TSC.
local function cpuid_of(kvm, irqchip)
  local list = kvm:get_supported_cpuid()
  x86.cpuid_set(list, "hypervisor", true)
  if irqchip and kvm:check_extension "tsc_deadline_timer" > 0 then
    x86.cpuid_set(list, "tsc_deadline_timer", true)
  end
  return list
end

-- What devices are attached to in the VM's place.
local function trace_of(vm, options)
  local copy = dev.copy(options)
  copy.vm = vm
  return trace.new(copy)
end

local function attach(bus, device)
  return device.port and bus:attach_io(device) or bus:attach_mmio(device)
end

-- What ring 3 takes, for each vCPU: all ports but that of the stubs, and the first 4 GiB mapped to
-- themselves, but for these tables. A vCPU in a stub stops with the fault.
local function make_stubs(self)
  local from <const>, ports = TABLES + #self.vcpus * STUBS_SIZE, {}
  for port = 0, 0xffff do
    if port ~= STUBS_PORT then table.insert(ports, port) end
  end
  local map <const> = {
    { va = from, size = LARGE_PAGE - from % LARGE_PAGE, user = true },
    { va = from + LARGE_PAGE & -LARGE_PAGE, page = LARGE_PAGE, user = true },
  }
  map[2].size = REACH - map[2].va
  for i in ipairs(self.vcpus) do
    self.stubs[i] = x86.user_stubs(self.vm, TABLES + (i - 1) * STUBS_SIZE,
      { map = map, ports = ports })
  end
  self.vm:attach_io { port = STUBS_PORT, write = function(_, _, _, vcpu)
    vcpu:stop(x86.fault(vcpu))
  end }
end

-- The image is loaded anew, as it may have written to itself.
local function start_image(self, vcpu)
  boot.enter(vcpu, boot.load(self.vm, self.image, self.options))
end

local function start(self, vcpu)
  local gdt <const> = x86.gdt()
  local options = { rip = self.at, rsp = self.at }
  if self.mode == "user" then
    for name, value in pairs(self.stubs[vcpu.id + 1]) do options[name] = value end
  elseif self.mode ~= "real" then
    self.vm:write(GDT, gdt)
    options.gdt = { base = GDT, limit = #gdt - 1 }
  end
  if self.mode == "long" then
    options.cr3 = x86.identity_map(self.vm, TABLES, REACH)
  end
  x86.enter(vcpu, self.mode, options)
end

-- Where all vCPUs begin: with an irqchip, those behind the first wait to be started by it.
local function start_all(self)
  if self.code then self.vm:write(self.at, self.code) end
  for i, vcpu in ipairs(self.vcpus) do
    if i > 1 and self.irqchip then
      vcpu:set_mp_state "uninitialized"
    else
      if self.irqchip then vcpu:set_mp_state "runnable" end
      if self.image then start_image(self, vcpu) else start(self, vcpu) end
      if next(self.regs) then vcpu:set_regs(self.regs) end
    end
  end
end

-- The VM with its memory and its vCPUs, which are not yet where they start.
local function make(self, options)
  self.opened = not options.kvm and ckvm.open() or nil
  local kvm <const> = options.kvm or self.opened
  local vm = kvm:create_vm()
  self.vm, self.vcpus, self.stubs, self.bus = vm, {}, {}, vm
  if self.irqchip then
    vm:create_irqchip()
    vm:create_pit2 { flags = 1 } -- with the speaker's port, 0x61, by which guests measure time
  end
  add_memory(vm, self.memory)
  local cpuid <const> = cpuid_of(kvm, self.irqchip)
  for id = 0, self.cpus - 1 do
    self.vcpus[id + 1] = vm:create_vcpu(id)
    self.vcpus[id + 1]:set_cpuid2(x86.cpuid_topology(cpuid, { id = id, cpus = self.cpus }))
  end
  if self.mode == "user" then make_stubs(self) end
  if options.trace then self.bus = trace_of(vm, options.trace) end
end

--- Makes a machine, ready to run.
--
-- The first vCPU starts at the code, with clear registers and, but for real mode, flat segments and
-- a GDT; in long mode the first 4 GiB are mapped to themselves. The others start there,
-- too; with an irqchip they wait for the first one's INIT and SIPI. Memory is from 0 on, but for
-- the last of the first 4 GiB: what is more than 3 GiB goes behind that.
--
-- In user mode the code runs in ring 3, with all ports but 0xf0, where the KVM has ports there,
-- and memory up to 4 GiB, but for the lowest: an exception or a SYSCALL ends the run, with
-- `"stopped"` and what `ckvm.x86.fault` tells of it. With `ckvm.x86.resume` it can go on.
-- @tparam table options
-- @tparam[opt=0x1000000] integer options.memory bytes, whole pages, 1 MiB at least
-- @tparam[opt=1] integer options.cpus how many vCPUs
-- @tparam[opt="real"] string options.mode `"real"`, `"protected"`, `"long"` or `"user"`
-- @tparam[opt] string options.code bytes, put into memory at `at`
-- @tparam[opt] integer options.at address of the code, and where it starts: 0x7c00 in real mode,
-- 0x100000 in the others
-- @tparam[opt] string options.image bytes of an image that `ckvm.boot` knows, in the place of
-- `mode`, `code` and `at`
-- @tparam[opt="image"] string options.name of the image, for messages
-- @tparam[opt] string options.format its format, for what `ckvm.boot.detect` takes for another
-- @tparam[opt] string options.cmdline its command line
-- @tparam[opt] table options.modules a list of `{ bytes =, cmdline = }`, for images that take
-- modules
-- @tparam[opt] table options.acpi what the image is to find as ACPI tables, as for
-- `ckvm.acpi.tables`; `cpus` is the machine's unless told
-- @tparam[opt] table options.regs more registers than rip, values by name, as `vcpu:set_regs` takes
-- them
-- @tparam[opt] table options.devices list of what `vm:attach_io` and `vm:attach_mmio` take, and of
-- objects with a method `attach(vm)`
-- @tparam[opt=false] boolean options.irqchip the kernel's interrupt controllers, and its PIT
-- @tparam[opt] table options.trace which exits to tell of, and to whom: `kinds` and `output` of
-- `ckvm.trace`
-- @tparam[opt] kvm options.kvm the system; if left out, it is opened
-- @treturn table the machine, with fields `vm` and `vcpus`
-- @raise what the calls raise that it makes, with all closed that was made; a string for a wrong
-- table or image
-- @usage
-- local m = require("ckvm.machine").new { memory = 1 << 20, code = "\xf4" }
function machine.new(options)
  check.options("machine", options, config.OPTIONS)
  local self = config.read(options)
  local _ <close> = check.at_error(function() machine.close(self) end)
  check.blame(function() make(self, options) end)
  for _, device in ipairs(self.devices) do
    if device.attach then
      device:attach(self.bus)
    else
      check.blame(function() attach(self.bus, device) end)
    end
  end
  self.new_state = state.save(self, options.kvm or self.opened)
  check.blame(function() start_all(self) end)
  return setmetatable(self, meta)
end

-- Running --------------------------------------------------------------------

local function is_interrupt(err)
  return type(err) == "string" and err:find("interrupted!", 1, true) ~= nil
end

-- Ends and errors of vCPUs that vm:run has kept are none of the machine that starts anew. In no
-- time no guest runs. There are less of them than vCPUs: what is raised after that is another.
local function forget_ends(self)
  local ran, why
  for _ = 1, #self.vcpus do
    ran, why = pcall(self.vm.run, self.vm, { timeout = 0 })
    if ran and why == "timeout" then return end
    if is_interrupt(why) then break end
  end
  if not ran then error(why, 0) end
end

--- Puts the code or the image, the tables, the vCPUs and the kernel's interrupt controllers back to
-- where the machine started. Of devices, those with a method `reset` have it called, and those with
-- `save` and `load` are as they were when they were attached. The rest of memory stays as it is.
-- @tparam table self the machine
-- @treturn table the machine
-- @raise what `vcpu:set_sregs` and the devices raise
-- @usage
-- local m = require("ckvm.machine").new { code = "\xf4" }
-- m:run()
-- m:reset():run()
function machine.reset(self)
  check.blame(function()
    if #self.vcpus > 1 then forget_ends(self) end
    state.restore(self, self.new_state)
  end)
  state.restore_devices(self, self.new_state)
  check.blame(function() start_all(self) end)
  return self
end

--- Runs it, all vCPUs at once: `vcpu:run` of the only one, or `vm:run`.
-- @tparam table self the machine
-- @tparam[opt] table options as for `vm:run`
-- @treturn string why it ended, as from `vm:run`
-- @treturn vcpu the one that did
-- @treturn[opt] any the value that was given to `vcpu:stop`
-- @raise what `vm:run` raises
-- @usage
-- local m = require("ckvm.machine").new { code = "\xf4" }
-- print(m:run { timeout = 1 })
function machine.run(self, options)
  if #self.vcpus > 1 then return self.vm:run(options) end
  local why, value = self.vcpus[1]:run(options)
  if value == nil then return why, self.vcpus[1] end
  return why, self.vcpus[1], value
end

--- Closes the VM, and with it all that the machine has; a system that it was given stays open.
-- @tparam table self the machine
-- @raise only for misuse
-- @usage
-- require("ckvm.machine").new { code = "\xf4" }:close()
function machine.close(self)
  if self.vm then self.vm:close() end
  if self.opened then self.opened:close() end
end

meta.__close = machine.close

return machine

-- Walks every method and field of every object, and every function of the module, and makes each
-- ioctl, system call and allocation of it fail in turn. What comes of it is an error that names
-- the step, and objects that still work and close, with nothing left behind.
--
-- tests/c/faults.c runs it. A new get_x needs no line here, nor a set_x that takes what get_x
-- gives; any other method needs one below.

local ckvm = require "ckvm"
local faults = require "faults"
local lfs = require "lfs"

local ENOSPC <const>, ENOMEM <const> = 28, 12 -- how system calls fail here, and memory

-- The world ------------------------------------------------------------------------------------

local function make_world()
  local w = {}
  w.kvm = ckvm.open()
  w.vm = w.kvm:create_vm()
  w.memory = w.vm:add_memory { gpa = 0, size = 0x10000, log_dirty = true }
  w.vm:write(0x1000, "\xe6\x10\xf4") -- out %al, $0x10; hlt
  w.vcpu = w.vm:create_vcpu(0)
  w.vcpu:set_sregs { cs = { base = 0, selector = 0 } }
  w.vcpu:set_regs { rip = 0x1000, rflags = 2 }
  return w
end

local _, _, tty = ckvm.pty()

-- More objects, by kind: made where a method of theirs is walked.
local makers = {
  range = function(w) return w.vm:attach_io { port = 0x10, write = function() end } end,
  buffer = function() return ckvm.buffer(64) end,
  eventfd = function() return ckvm.eventfd() end,
  device = function(w) return w.vm:create_device { type = "vfio" } end,
  guest_memfd = function(w) return w.vm:create_guest_memfd { size = 0x1000 } end,
  stats = function(w) return w.vm:get_stats_fd() end,
  watch = function(w) return w.vm:after(60, print) end,
  terminal = function() return ckvm.raw_terminal(tty) end,
}

local function object_of(w, kind)
  if kind == "ckvm" then return ckvm end
  if not w[kind] then
    local ok, object = pcall(makers[kind], w)
    if not ok then return nil, tostring(object) end
    w[kind] = object
  end
  return w[kind]
end

-- Views are userdata, too.
local function is_object(value)
  return type(value) == "userdata" and debug.getmetatable(value).__close ~= nil
end

-- In one order or another.
local function close_world(w, order)
  local objects = { w.range, w.buffer, w.eventfd, w.device, w.guest_memfd, w.stats, w.watch,
    w.terminal }
  if order % 3 == 0 then w.vm:close() end
  for _, object in pairs(objects) do object:close() end
  if order % 3 == 1 then w.kvm:close() end
  for _, object in ipairs { w.vcpu, w.memory, w.vm, w.kvm } do object:close() end
  for key in pairs(w) do w[key] = nil end
end

local function count_fds()
  local count = 0
  for _ in lfs.dir("/proc/self/fd") do count = count + 1 end
  return count
end

-- The methods ------------------------------------------------------------------------------------

local function args(...)
  local list = table.pack(...)
  return { args = function() return table.unpack(list, 1, list.n) end }
end

local function with(fn) return { args = fn } end -- the arguments need the world

local function irqchip(...) -- they need interrupt controllers
  local call = args(...)
  call.setup = function(w)
    w.vcpu:close()
    w.vm:close()
    w.vm = w.kvm:create_vm()
    w.vm:create_irqchip()
    w.memory = w.vm:add_memory { gpa = 0, size = 0x10000, log_dirty = true }
    w.vcpu = w.vm:create_vcpu(0)
  end
  return call
end

local function bare(...) -- they come before vCPUs
  local call = args(...)
  call.setup = function(w)
    w.vm:close()
    w.vm = w.kvm:create_vm()
  end
  return call
end

local function page(options)
  options.gpa, options.size = 0x100000, 0x1000
  return args(options)
end

local function on_memory(options, ...) -- they need memory of that kind, at 0x100000
  local call = args(...)
  call.setup = function(w)
    options.gpa, options.size = 0x100000, 0x1000
    w.memory:close()
    w.memory = w.vm:add_memory(options)
  end
  return call
end

local function on_file(...) return on_memory({ file = "/dev/zero" }, ...) end

local NONE <const> = args()
local REGION <const> = function(w)
  return {
    slot = 7, guest_phys_addr = 0x100000, memory_size = 0x1000, memory = w.memory, offset = 0x2000,
    flags = "log_dirty_pages",
  }
end

-- Several calls of one name are a list.
local calls = {
  ckvm = {
    open = { NONE, args { sync_regs = false, cloexec = false } },
    from_fd = with(function(w) return w.kvm.fd end),
    buffer = args(100),
    eventfd = args { initval = 5 },
    now = NONE,
    pty = NONE,
    raw_terminal = args(tty),
    read_available = args(tty, 10),
    probe = false, -- makes guests of its own, and takes its time
  },
  kvm = {
    check_extension = args("nr_vcpus"),
    capabilities = NONE,
    create_vm = NONE,
    vm_from_fd = with(function(w) return w.vm.fd end),
    get_msrs = args { 0x10a },
    has_device_attr = args { attr = 0 },
    get_device_attr = { args { attr = 0 }, args { attr = 0, group = 9, size = 10000 } },
    set_device_attr = args { attr = 0, value = 1 },
  },
  vm = {
    run = args { exits = 1, timeout = 10 },
    check_extension = args("nr_vcpus"),
    create_vcpu = args(1),
    vcpu_from_fd = with(function(w) return w.vcpu.fd end),
    add_memory = {
      page {}, page { log_dirty = true }, page { shared = true }, page { file = "/dev/zero" },
      args { gpa = 0x200000, size = 0x200000, hugepages = true },
      with(function(w) return { gpa = 0x100000, size = 0x1000, memory = w.memory } end),
      {
        setup = function(w)
          local has = w.vm:check_extension("guest_memfd") ~= 0
          w.guest_memfd = has and makers.guest_memfd(w) or nil
        end,
        args = function(w)
          return { gpa = 0x100000, size = 0x1000, guest_memfd = w.guest_memfd }
        end,
      },
    },
    move_memory = with(function(w) return w.memory, 0x200000 end),
    dirty_pages = with(function(w) return w.memory end),
    get_dirty_log = with(function(w) return w.memory end),
    clear_dirty_log = with(function(w)
      return { memory = w.memory, dirty_bitmap = ("\0"):rep(8) }
    end),
    register_coalesced_mmio = args { gpa = 0x300000, size = 0x100 },
    unregister_coalesced_mmio = args { gpa = 0x300000, size = 0x100 },
    set_user_memory_region = with(REGION),
    set_user_memory_region2 = with(REGION),
    create_guest_memfd = args { size = 0x1000 },
    create_device = { args { type = "vfio" }, args { type = "vfio", test = true } },
    has_device_attr = args { attr = 0 },
    get_device_attr = args { attr = 0, size = 8 },
    set_device_attr = args { attr = 0, value = 1, size = 8 },
    set_memory_attributes = args { address = 0, size = 0x1000 },
    set_nr_mmu_pages = args(1000),
    memory_encrypt_op = args { id = "launch_start", dh = "x" },
    memory_encrypt_reg_region = with(function(w) return { memory = w.memory, size = 0x1000 } end),
    memory_encrypt_unreg_region = with(function(w) return { memory = w.memory, size = 0x1000 } end),
    xen_hvm_config = args { flags = "intercept_hcall" },
    xen_hvm_get_attr = args("long_mode"),
    xen_hvm_set_attr = args { type = "long_mode", long_mode = 1 },
    xen_hvm_evtchn_send = args { port = 1 },
    hyperv_eventfd = args { conn_id = 1, fd = 0 },
    set_pmu_event_filter = args { action = "allow", events = { 0xc0 } },
    read = { args(0x1000, 100), on_file(0x100000, 100) },
    read_u8 = args(0x1000), read_u16 = args(0x1000), read_u32 = args(0x1000),
    read_u64 = args(0x1000),
    write = { args(0x1000, "abc"), on_file(0x100000, "abc") },
    write_u8 = args(0x1000, 1), write_u16 = args(0x1000, 1), write_u32 = args(0x1000, 1),
    write_u64 = args(0x1000, 1),
    fill = { args(0x1000, 100, 1), on_file(0x100000, 100, 1) },
    zap_memory = {
      args(0x1000, 0x1000), on_memory({ shared = true }, 0x100000, 0x1000),
    },
    on = args("hlt", function() end),
    watch = args(0, "read", function() end),
    after = args(0, function() end),
    attach_io = {
      args { port = 0x20, write = function() end }, args { port = 0x20, value = 1 },
      args { port = 0x20, batch = true, write = function() end },
      args { port = 0x20, device = { read = function() end, write = function() end } },
    },
    attach_mmio = args { gpa = 0x300000, size = 0x1000, read = function() end },
    enable_cap = bare("split_irqchip", 24),
    create_irqchip = bare(),
    create_pit2 = irqchip(),
    create_pit = irqchip(),
    get_pit2 = irqchip(),
    get_pit = irqchip(),
    irq_line = irqchip { irq = 4, level = true },
    irq_line_status = irqchip { irq = 4, level = true },
    signal_msi = irqchip { address_lo = 0xfee00000, data = 0x20 },
    set_gsi_routing = irqchip { { gsi = 4, irqchip = "ioapic", pin = 4 } },
    irqfd = irqchip { fd = ckvm.eventfd(), gsi = 4 },
    ioeventfd = args { fd = ckvm.eventfd(), port = 0x30, len = 1 },
    set_boot_cpu_id = bare(0),
    set_identity_map_addr = bare(0xfffbc000),
    set_tss_addr = bare(0xfffbd000),
    set_tsc_khz = args(1000000),
    reinject_control = irqchip { pit_reinject = 1 },
    get_irqchip = irqchip(0),
    set_irqchip = with(function() return { chip_id = 0 } end),
    x86_set_msr_filter = args {
      flags = "default_deny",
      ranges = { { flags = "read", base = 0x10, nmsrs = 1, bitmap = "\x01" } },
    },
  },
  vcpu = {
    run = { args { timeout = 5 }, args { timeout = 5, exits = 1 } },
    run_once = args { timeout = 5 },
    finish = NONE,
    stop = false, -- takes a run
    kick = NONE,
    enable_cap = args("hyperv_synic"),
    get_msrs = args { 0x10 },
    set_msrs = args { [0x10] = 0 },
    set_cpuid = args {},
    set_cpuid2 = args {},
    get_one_reg = args(0),
    set_one_reg = args(0, 0),
    has_device_attr = args { attr = 0 },
    get_device_attr = args { attr = 0 },
    set_device_attr = args { attr = 0, value = 0 },
    xen_vcpu_get_attr = args("vcpu_info"),
    xen_vcpu_set_attr = args { type = "vcpu_info", gpa = 0x1000 },
    pre_fault_memory = args { gpa = 0, size = 0x1000 },
    read = args(0x1000, 10),
    write = args(0x1000, "abc"),
    read_cstring = args(0x1000, 100),
    translate = args(0x1000),
    interrupt = args(8),
    kvmclock_ctrl = NONE,
    nmi = NONE,
    smi = NONE,
    set_signal_mask = args {},
    set_guest_debug = args { control = 0 },
    set_tsc_khz = args(1000000),
    set_vapic_addr = args(0x1000),
    tpr_access_reporting = args { enabled = 0 },
    x86_set_mce = args { bank = 0, status = 0 },
    x86_setup_mce = args(0),
    set_xsave = with(function(w) return w.vcpu:get_xsave() end),
    get_lapic = irqchip(),
  },
  memory = {},
  range = { detach = NONE },
  watch = { detach = NONE },
  buffer = { take = NONE },
  eventfd = { signal = args(1), read = NONE, wait = args { timeout = 0.001 } },
  device = {
    has_device_attr = args { attr = "vfio_file_add" },
    get_device_attr = args { attr = "vfio_file_add" },
    set_device_attr = args { attr = "vfio_file_add", value = 0 },
  },
  guest_memfd = {},
  stats = {},
  terminal = {},
}

-- Where a failure is not one of the call: what goes on without, and says so by what it can do.
-- MADV_DONTFORK spares children a copy; and an eventfd that cannot be written is readable, and one
-- that cannot be read is not.
local minor = {
  ["ckvm.open"] = { KVM_CHECK_EXTENSION = true },
  ["ckvm.from_fd"] = { KVM_CHECK_EXTENSION = true },
  ["vm:create_guest_memfd"] = { fcntl = true }, -- FD_CLOEXEC
  ["vm:add_memory"] = { fcntl = true, madvise = true }, -- seals
  ["vm:create_vcpu"] = { madvise = true },
  ["vm:vcpu_from_fd"] = { madvise = true },
  ["vm:watch"] = { write = true },
  ["vm:after"] = { write = true },
  ["eventfd:wait"] = { read = true }, -- what woke it; for its own see eventfd:read
  ["vm:close"] = { KVM_SET_USER_MEMORY_REGION = true },
  ["terminal:close"] = { tcsetattr = true }, -- it may be gone
  ["memory:close"] = { KVM_SET_USER_MEMORY_REGION = true }, -- stays, until the VM ends
  -- The run arms its timer once more; one that is not stopped wakes nobody.
  ["vcpu:run"] = { timer_settime = true },
  ["vm:run"] = { timer_create = true, timer_settime = true },
  ["vcpu:run_once"] = { timer_settime = true },
  ["range:detach"] = { KVM_UNREGISTER_COALESCED_MMIO = true },
}

-- What a failure leaves undone for good, so that the same call fails again.
local lasting = {
  ["vm:create_vcpu"] = true, -- the kernel has a vCPU of that id
}

-- What a failure keeps, rather than take it from a kernel that may still use it.
local kept = {
  ["vm:close"] = { KVM_SET_USER_MEMORY_REGION = "maps" },
}

-- The walk ---------------------------------------------------------------------------------------

local problems, walked, injected = {}, 0, 0
local current

local function problem(format, ...)
  problems[#problems + 1] = current .. ": " .. format:format(...)
end

-- Methods and fields by name, of an object or the module.
local function members(object)
  if object == ckvm then return ckvm end
  local _, table = debug.getupvalue(debug.getmetatable(object).__index, 2)
  return table
end

local function baseline()
  collectgarbage()
  collectgarbage()
  local blocks, maps = faults.live()
  return { fds = count_fds(), blocks = blocks, maps = maps }
end

local function check_left(before, at, failed)
  local after = baseline()
  for what, count in pairs(before) do
    if after[what] ~= count and (kept[current] or {})[failed] ~= what then
      problem("failure %d, of %s, leaves %d %s", at, failed, after[what] - count, what)
    end
  end
end

local function is_failure(err, failed)
  if type(err) ~= "table" then return false end
  if failed == "malloc" then return err.errno == ENOMEM end
  local same = failed:find("^KVM_") == nil or err.call == failed
  return err.errno == ENOSPC and same
end

-- What the call leaves is not to be seen from here on: it may go.
local function invoke_in(w, kind, name, call, how, at)
  if call.setup then call.setup(w) end
  local object, reason = object_of(w, kind)
  if not object then return nil, reason end
  local method = call.field and function(o) return o[name] end or object[name]
  local function invoke()
    if object == ckvm then return method(call.args(w)) end
    return method(object, call.args(w))
  end
  local ok, result, events, failed = faults.call(how, at, invoke)
  if failed and not ok and how == "system" and call.works and not lasting[current] then
    local again, err = pcall(invoke)
    if not again then problem("fails for good after %s: %s", failed, tostring(err)) end
    if is_object(err) then err:close() end
  end
  if ok and is_object(result) and name ~= "vm" then result:close() end
  return ok, not ok and result or nil, events, failed
end

-- One call in a world of its own; returns what faults.call does.
local function try(kind, name, call, how, at)
  local before = baseline()
  local w <const> = make_world()
  local first <const> = { w.vcpu, w.memory, w.vm } -- which setup may replace
  local ok, err, events, failed = invoke_in(w, kind, name, call, how, at)
  for i = 1, 3 do
    first[i]:close()
    first[i] = nil
  end
  close_world(w, at)
  if at > 0 then check_left(before, at, failed) end
  return ok, err, events, failed
end

local function judge(call, ok, result, failed)
  local is_minor = (minor[current] or {})[failed]
  if not call.works and (failed == "malloc" or is_minor) then
    return -- tried again, and refused; or refused anyway
  elseif ok then
    if failed ~= "malloc" and not is_minor then
      problem("does not mind that %s fails", failed)
    end
  elseif not is_failure(result, failed) then
    problem("%s fails: %s", failed, tostring(result))
  end
end

local function walk(kind, name, call)
  local ok, result, events = try(kind, name, call, "none", 0)
  if ok == nil then return end -- this KVM has no such object
  if not ok and type(result) == "string" and not call.field then
    return problem("needs arguments, in tests/faults.lua: %s", result)
  end
  call.works, walked = ok, walked + 1
  for _, how in ipairs { "system", "lua" } do
    local at = 1
    repeat
      local failed
      ok, result, events, failed = try(kind, name, call, how, at)
      if failed and how == "system" then judge(call, ok, result, failed) end
      if failed then injected = injected + 1 end
      at = at + 1
    until not failed
  end
  return events
end

local function calls_of(kind, name, all)
  local known = calls[kind][name]
  if known ~= nil then return known end
  local getter = name:gsub("^set_", "get_")
  if name:find("^set_") and type(all[getter]) == "function" then
    local get = calls[kind][getter] or NONE
    return {
      setup = get.setup,
      args = function(w) return w[kind][getter](w[kind], get.args(w)) end,
    }
  end
  return NONE
end

local function walk_object(kind)
  local w = make_world()
  local object = object_of(w, kind)
  local all = object and members(object) or {}
  close_world(w, 1)
  local names = {}
  for name in pairs(all) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    current = kind .. (kind == "ckvm" and "." or ":") .. name
    if type(all[name]) == "userdata" then
      walk(kind, name, { field = true, args = function() end })
    elseif type(all[name]) == "function" then
      local known = calls_of(kind, name, all)
      for _, call in ipairs(known and (known.args and { known } or known) or {}) do
        walk(kind, name, call)
      end
    end
  end
end

local only = os.getenv("CKVM_FAULTS")
for _, kind in ipairs {
  "ckvm", "kvm", "vm", "vcpu", "memory", "range", "buffer", "eventfd", "watch", "terminal",
  "device", "guest_memfd", "stats",
} do
  if not only or only == kind then walk_object(kind) end
end

print(("%d calls walked, %d failures made"):format(walked, injected))
if #problems > 0 then error(table.concat(problems, "\n"), 0) end

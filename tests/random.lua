-- Random calls of every method, inside and outside of handlers, under a stressed collector: ends in
-- results or in errors, and leaves nothing open. In a process of its own, for the collector goes
-- through all that there is, again and again.
--
--   ckvm-lua tests/random.lua [calls [seed]]

package.path = arg[0]:gsub("[^/]*$", "") .. "?.lua;" .. package.path
local ckvm = require "ckvm"
local support = require "support"

local random = math.random
local master, _, tty = ckvm.pty() -- both stay open
local files = { tty, tty, master, -1, 1 << 20, "", ckvm.eventfd() }

local CODE <const>, MMIO <const>, PORT <const>, BATCHED <const> = 0x1000, 0x20000, 0x10, 0x20
local MOST <const>, DEEPEST <const> = 6, 5 -- objects of a kind, handlers within handlers

-- Each loop has an exit in it; elsewhere memory is full of hlt, so that no guest runs for long.
local instructions = {
  "\xe4\x10", "\xe6\x10", "\x66\xe5\x10", "\x66\xe7\x12", -- in and out, of one byte and of four
  "\xe6\x20", "\xf4", "\x0f\x0b", "\x0f\xa2",             -- out to a batched port, hlt, ud2, cpuid
  "\xb9\x05\x00\xf3\x6c", "\xb9\x05\x00\xf3\x6e",         -- mov $5, %cx; rep insb, rep outsb
  "\x66\xa1\xfe\xff", "\x66\xa3\xfe\xff",                 -- mov (0xfffe), %eax, and back
  "\xfe\x06\x00\x00", "\xa4",                             -- incb (0); movsb
}

local types = support.types()
local kinds = { "view" }
for name in pairs(types) do kinds[#kinds + 1] = name end
table.sort(kinds)
local world -- lists of objects by kind, and of coroutines; the depth of handlers; calls made

local function pick(list) return list[random(#list)] end

-- A new object has a place in the world, or takes that of another.
local function keep(kind, thing)
  local list = world[kind]
  if thing ~= nil then list[#list < MOST and #list + 1 or random(MOST)] = thing end
end

local function sorted_keys(t) -- pairs has another order in each process
  local keys = {}
  for key in pairs(t) do keys[#keys + 1] = key end
  table.sort(keys)
  return keys
end

-- Values -----------------------------------------------------------------------------------------

local act, value -- a random call; any value

local integers = { 0, 1, 4, 8, 0xff, 0xfff, CODE, 0x8000, 0x10000, MMIO, 0xfffff000, 1 << 32,
  1 << 52, math.maxinteger, math.mininteger, -1, -0x1000, PORT, BATCHED }
local floats = { 0.5, -1.0, 2.0 ^ 63, 1e300, 0 / 0, 1 / 0, -1 / 0 }
local strings = { "", "\0", "hlt\0", "hlt", "io_in", "nr_vcpus", "rax", "rip", "cs", "nmi",
  "data", "reason", "/dev/null", "/proc/self/mem", "timeout", "close", ("\xf4"):rep(5000) }
local exits = { "hlt", "io_in", "io_out", "mmio_read", "mmio_write", "shutdown", "internal_error" }

local function handler()
  return function()
    if world.depth >= DEEPEST then return 0 end
    world.depth = world.depth + 1
    for _ = 1, random(0, 2) do act() end
    world.depth = world.depth - 1
    local choice = random(24)
    if choice == 1 then error {} end
    if choice == 2 and coroutine.isyieldable() then coroutine.yield() end
    if choice == 3 then return pick(strings) end
    if choice == 4 then return random(2) == 1 end
    return pick(integers)
  end
end

local hostile = {
  __index = function() act() return pick(integers) end,
  __gc = function() act() end,
  __tostring = function() act() return pick(strings) end,
}

local function any_table()
  local t = {}
  for _ = 1, random(0, 3) do t[random(4) == 1 and random(3) or pick(strings)] = value() end
  return random(3) == 1 and setmetatable(t, hostile) or t
end

local values = {
  function() return pick(integers) + random(-2, 2) end,
  function() return random(0) end,
  function() return pick(floats) end,
  function() return pick(strings) end,
  function() return random(2) == 1 end,
  function() return coroutine.create(handler()) end,
  function() return pick(world[pick(kinds)]) end,
  handler, any_table,
}
function value() return pick(values)() end

-- Makers of what fits: one of a list, an object, a table of options (most of the time).
local function one(...)
  local list = { ... }
  return function() return pick(list) end
end

local function some(kind)
  return function() return pick(world[kind]) end
end

local function options(needed, optional)
  local needed_keys, optional_keys = sorted_keys(needed), sorted_keys(optional)
  return function()
    local t = {}
    for _, key in ipairs(needed_keys) do t[key] = needed[key]() end
    for _, key in ipairs(optional_keys) do
      if random(4) == 1 then t[key] = random(20) == 1 and value() or optional[key]() end
    end
    if random(12) == 1 then t[pick(strings)] = value() end
    return t
  end
end

local function either(...)
  local makers <const> = { ... }
  return function() return pick(makers)() end
end

-- Calls ------------------------------------------------------------------------------------------

local page = one(0, 0x1000, 0x8000, 0x10000, MMIO, 1 << 30, 1 << 51)
local address = one(0, CODE, 0xfffe, 0xffff, 0x10000, MMIO, MMIO + 0xfff, 0xfffff000, -1)
local yes, bit = one(true), one(0, 1)

local function little() return random(0, 9) end
local function hlts() return ("\xf4"):rep(random(40)) end
local function device() return { read = handler(), write = handler() } end
-- A wait has an end, whatever else is random.
local function little_time() return { timeout = pick { 0, 0.001 } } end
-- Every run has a limit of time: a guest may have come to spin.
local function limits()
  return { timeout = 0.002, exits = random(4) == 1 and random(0, 9) or nil }
end

local some_port = one(PORT, PORT + 2, BATCHED, 0x1234, 0x8000, 0xffff)
local answers = { read = handler, write = handler, value = bit, log = some "buffer", batch = yes,
  device = device, count = little }
local mmio_answers = { read = handler, write = handler, value = bit, device = device }
local segment = options({}, { base = one(0, 0x1000, MMIO), limit = one(0xffff, 0xffffffff),
  selector = little, db = bit, l = bit })

local cap = one("x86_user_space_msr", "exit_hypercall", "split_irqchip", "dirty_log_ring",
  "manual_dirty_log_protect2", 3)
local msr = one(0x10, 0x174, 0x175, 0xc0000080, 0xc0000100, 0x474f4f00)
local ranges = options({ base = msr, nmsrs = one(1, 8), flags = one("read", 3) },
  { bitmap = one("\0", "\xff") })
local chip = one("pic_master", "pic_slave", "ioapic", 0)
local level = options({ irq = little, level = bit }, {})
local route = options({ gsi = little, irqchip = chip, pin = little }, { flags = bit })
local irqfd = options({ fd = some "eventfd", gsi = little },
  { resamplefd = some "eventfd", deassign = yes })
local ioeventfd = options({ port = one(PORT, BATCHED), fd = some "eventfd" },
  { len = one(0, 1, 3, 4), datamatch = bit, deassign = yes, flags = little })
local attribute = options({ attr = little }, { group = little, value = value })
local fd_of = function(kind)
  return function()
    local thing = random(4) > 1 and pick(world[kind])
    return thing and thing.fd or random(-1, 40)
  end
end
local part = options({ memory = some "memory" }, { offset = address, size = page })
local region = options({ slot = little, guest_phys_addr = page, memory_size = page,
  memory = some "memory" }, { offset = page, flags = one(0, 1, "readonly", "log_dirty_pages"),
  guest_memfd = some "guest_memfd", guest_memfd_offset = page })
local reg = one(0x2030000200000174, 0x20300002c0000100, 0x2040000200000174, -1)
local entry = options({ ["function"] = little }, { index = little, eax = value, flags = bit })
local registers = options({}, { rip = one(CODE), rax = value, rcx = little, rsi = address,
  rflags = one(2, 0x102, 0x202) })
local special = options({}, { ds = segment, cs = segment, cr0 = one(0x10, 0x11, -1),
  cr3 = address, cr4 = one(0, 0x20, 1 << 40), efer = one(0, 0x500) })

local function list_of(make)
  return function()
    local list = {}
    for i = 1, random(0, 4) do list[i] = make() end
    return list
  end
end

-- A block that was got, of the size that is wanted, or cut.
local function block(size)
  return function() return ("\0"):rep(random(8) == 1 and random(0, 5000) or size) end
end

local function msr_values()
  local map = {}
  for _ = 1, random(0, 3) do map[msr()] = little() end
  return map
end

-- By kind, each method and what it takes. A method that is not here takes nothing, or a set_x
-- what get_x gave.
local methods = {
  kvm = { create_vm = { options({}, { type = one(0) }) }, check_extension = { one("nr_vcpus", 3) },
    get_msrs = { list_of(msr) }, vm_from_fd = { fd_of "vm" }, has_device_attr = { attribute },
    get_device_attr = { attribute }, set_device_attr = { attribute } },
  vm = { run = { limits }, check_extension = { little }, create_vcpu = { little },
    on = { one("hlt", 5), handler }, after = { one(0, 0.0001, 1), handler },
    watch = { either(some "eventfd", fd_of "eventfd"), one("read", "write"), handler },
    vcpu_from_fd = { fd_of "vcpu" },
    add_memory = { options({ gpa = page, size = one(0x1000, 0x2000) }, { readonly = yes,
      log_dirty = yes, shared = yes, slot = little, file = one("/dev/zero", "/dev/null"),
      guest_memfd = some "guest_memfd", memory = some "memory" }) },
    move_memory = { some "memory", page }, dirty_pages = { some "memory" },
    set_user_memory_region = { region }, set_user_memory_region2 = { region },
    create_guest_memfd = { options({ size = page }, { flags = bit }) },
    set_memory_attributes = { options({ address = page, size = page, attributes = bit }, {}) },
    read = { address, little }, write = { address, hlts }, fill = { address, little, one(0xf4) },
    zap_memory = { page, one(0x1000, 0x2000) },
    read_u8 = { address }, read_u16 = { address }, read_u32 = { address }, read_u64 = { address },
    write_u8 = { address, little }, write_u16 = { address, one(0xf4f4) },
    write_u32 = { address, one(0xf4f4f4f4) }, write_u64 = { address, one(-1) },
    attach_io = { either(options({ port = some_port }, answers),
      options({ port = some_port, read = handler }, { write = handler, count = little }),
      options({ port = some_port, write = handler, batch = yes }, {}),
      options({ port = some_port, device = device }, {})) },
    attach_mmio = { options({ gpa = one(0x10000, MMIO, 0xfffff000), size = one(1, 4, 0x1000) },
      mmio_answers) },
    get_irqchip = { chip }, irq_line = { level }, irq_line_status = { level },
    set_irqchip = { options({ chip_id = chip }, { imr = bit, irr = value }) },
    signal_msi = { options({ address_lo = one(0xfee00000) }, { data = little }) },
    set_gsi_routing = { list_of(route) }, irqfd = { irqfd }, ioeventfd = { ioeventfd },
    create_pit2 = { options({}, { flags = bit }) },
    set_pit = { options({}, { channels = list_of(options({}, { count = little })) }) },
    set_pit2 = { options({}, { channels = list_of(options({}, { mode = little })) }) },
    register_coalesced_mmio = { options({ port = one(PORT, BATCHED), size = little }, {}) },
    unregister_coalesced_mmio = { options({ port = one(PORT, BATCHED), size = little }, {}) },
    reinject_control = { options({}, { pit_reinject = yes }) },
    set_clock = { options({}, { clock = value }) }, set_tss_addr = { address },
    set_identity_map_addr = { address }, set_boot_cpu_id = { little },
    set_nr_mmu_pages = { one(0, 64, 1000) },
    get_dirty_log = { some "memory" }, clear_dirty_log = { options({ memory = some "memory",
      dirty_bitmap = one("\xff", "\xff\xff") }, { first_page = little, num_pages = little }) },
    create_device = { options({ type = one("vfio", "tdx", 4, 7) }, { test = yes }) },
    has_device_attr = { attribute }, get_device_attr = { attribute },
    set_device_attr = { attribute },
    enable_cap = { cap, one(0, 1, 3, 24, 4096) }, set_tsc_khz = { one(0) },
    x86_set_msr_filter = { options({}, { flags = bit, ranges = list_of(ranges) }) },
    set_pmu_event_filter = { options({ action = one("allow", "deny", 0) },
      { events = list_of(little), flags = bit }) },
    memory_encrypt_op = { options({ id = one("init", "launch_start", 5) }, { dh = hlts }) },
    memory_encrypt_reg_region = { part }, memory_encrypt_unreg_region = { part },
    xen_hvm_config = { options({}, { flags = bit, msr = msr }) },
    xen_hvm_get_attr = { one("long_mode", "vector", 2) },
    xen_hvm_set_attr = { options({ type = one("long_mode", "vector") }, { long_mode = bit }) },
    xen_hvm_evtchn_send = { options({}, { port = little, vcpu = little, priority = little }) },
    hyperv_eventfd = { options({ fd = fd_of "eventfd" }, { conn_id = little, flags = bit }) } },
  vcpu = { run = { limits }, interrupt = { little }, stop = { little }, set_regs = { registers },
    set_sregs = { special }, set_sregs2 = { special }, enable_cap = { cap },
    set_cpuid2 = { list_of(entry) }, set_cpuid = { list_of(entry) }, get_msrs = { list_of(msr) },
    set_msrs = { msr_values },
    set_fpu = { options({}, { fcw = little, xmm = list_of(block(16)) }) },
    set_xcrs = { options({}, { xcrs = list_of(options({ xcr = bit }, {})) }) },
    set_debugregs = { options({}, { db = list_of(address), dr7 = little }) },
    set_lapic = { block(1024) }, set_xsave = { block(4096) }, set_nested_state = { block(128) },
    set_mp_state = { one("runnable", "halted", "uninitialized", 5) },
    get_one_reg = { reg }, set_one_reg = { reg, little }, set_tsc_khz = { one(0) },
    set_vapic_addr = { page }, tpr_access_reporting = { options({ enabled = bit }, {}) },
    x86_setup_mce = { little },
    x86_set_mce = { options({}, { bank = little, status = value }) },
    set_guest_debug = { options({}, { control = one("enable", 3, { "enable", "inject_bp" }) }) },
    set_signal_mask = { list_of(one(1, 10, 64)) }, translate = { address },
    read = { address, little }, write = { address, hlts }, read_cstring = { address, little },
    has_device_attr = { attribute }, get_device_attr = { attribute },
    set_device_attr = { attribute },
    pre_fault_memory = { options({ gpa = page, size = page }, { flags = bit }) },
    xen_vcpu_get_attr = { one("vcpu_info", "runstate_addr", 5) },
    xen_vcpu_set_attr = { options({ type = one("vcpu_info", "timer") }, { gpa = page }) },
    set_vcpu_events = { options({}, { nmi = options({}, { pending = bit, masked = bit }),
      interrupt = options({}, { shadow = bit }), flags = little }) } },
  buffer = { take = { little } }, eventfd = { signal = { little }, wait = { little_time } },
  device = { has_device_attr = { attribute }, get_device_attr = { attribute },
    set_device_attr = { attribute } },
}
local view_fields = { "rax", "rip", "cs", "ds", "efer", "nmi", "data", "reason",
  "interrupt_bitmap" }
local made = { create_vm = "vm", vm_from_fd = "vm", create_vcpu = "vcpu", vcpu_from_fd = "vcpu",
  add_memory = "memory", attach_io = "range", attach_mmio = "range", get_stats_fd = "stats",
  watch = "watch", after = "watch", create_device = "device", create_guest_memfd = "guest_memfd" }
local apart = { close = true, run_once = true } -- acts of their own
local limited = { run = true, wait = true } -- or they might take for ever

-- What a method takes that is not in the table.
local function others(thing, name, names)
  local getter = name:gsub("^set_", "get_")
  if getter == name or not names[getter] then return {} end
  local ok, got = pcall(thing[getter], thing)
  if ok and type(got) == "table" and random(4) == 1 then
    local key = pick(sorted_keys(got))
    got[key] = value()
  end
  return { ok and got or value() }
end

local function call()
  local kind = pick(kinds)
  local thing, name = pick(world[kind]), pick(world.names[kind])
  local args = {}
  local makers = methods[kind] and methods[kind][name]
  for i, make in ipairs(makers or {}) do
    args[i] = not limited[name] and random(40) == 1 and value() or make()
  end
  if not makers then args = others(thing, name, types[kind].functions) end
  world.calls = world.calls + 1
  local path = kind .. ":" .. name
  local ok, result = pcall(thing[name], thing, table.unpack(args, 1, 3))
  if not ok then
    if not makers and #args == 0 and tostring(result):find("bad argument #2", 1, true) then
      world.unknown[path] = result
    end
    error(result, 0)
  end
  world.worked[path] = true
  if made[name] then keep(made[name], result) end
end

-- An empty world, but for the system.
local function new_world()
  world = { calls = 0, depth = 0, coroutine = {}, names = {}, fields = { view = view_fields },
    worked = {}, unknown = {} }
  for _, kind in ipairs(kinds) do
    world[kind], world.names[kind] = {}, {}
    for _, name in ipairs(sorted_keys(types[kind] and types[kind].functions or {})) do
      table.insert(world.names[kind], not apart[name] and name or nil)
    end
    world.fields[kind] = world.fields[kind] or sorted_keys(types[kind].fields)
  end
  keep("kvm", ckvm.open())
end

-- A guest whose loop is made of some of the instructions, with an exit in any case.
local function new_guest()
  local vm = pick(world.kvm):create_vm()
  keep("vm", vm)
  if random(3) == 1 then vm:create_irqchip() end -- before there are vCPUs
  keep("memory", vm:add_memory { gpa = 0, size = 0x10000, log_dirty = random(2) == 1 })
  vm:fill(0, 0x10000, 0xf4)
  local code = "\xe6\x10"
  for _ = 1, random(8) do code = code .. pick(instructions) end
  vm:write(CODE, code .. "\xe9" .. ("<i2"):pack(-#code - 3))
  local vcpu = vm:create_vcpu(9)
  keep("vcpu", vcpu)
  vcpu:set_sregs { cs = { base = 0, selector = 0 }, ds = { base = pick { 0, MMIO } } }
  vcpu:set_regs { rip = CODE, rflags = 2, rdx = PORT, rsi = 0xfffd, rdi = 0x8000 }
  vm:attach_io { port = PORT, count = random(4), read = handler(), write = handler() }
  vm:attach_mmio { gpa = MMIO, size = 0x1000, read = handler(), write = handler() }
  for _ = 1, 3 do vm:on(pick(exits), handler()) end
end

local function run_in_coroutine()
  local vcpu = pick(world.vcpu)
  local co = coroutine.create(function() vcpu:run(limits()) end)
  keep("coroutine", co)
  coroutine.resume(co)
end

local function run_once()
  local vcpu = pick(world.vcpu)
  vcpu:kick() -- or it might not come back
  vcpu:run_once()
end

local acts = {
  call, call, call, call, call, call, call, call, new_guest, run_in_coroutine, run_once,
  function() pick(world.vcpu):run(limits()) end,
  function() pick(world[pick(kinds)]):close() end,
  function() coroutine.resume(pick(world.coroutine)) end,
  function() coroutine.close(pick(world.coroutine)) end,
  function() collectgarbage(pick { "collect", "step", "incremental", "generational" }) end,
  function() setmetatable({}, hostile) end,
  function() keep("buffer", ckvm.buffer(random(40))) end,
  function() keep("eventfd", ckvm.eventfd { initval = random(0, 2) }) end,
  function() keep("terminal", ckvm.raw_terminal(pick(files))) end,
  function() return ckvm.read_available(pick(files), pick { 1, 100, value() }) end,
  function() keep("kvm", ckvm.open { sync_regs = random(2) == 1 }) end,
  function() keep("view", pick(world.vcpu)[pick { "regs", "sregs", "events", "exit" }]) end,
  function() pick(world.view)[pick(view_fields)] = value() end,
  function() return tostring(pick(world.view)) end,
  function()
    local kind = pick(kinds)
    return tostring(pick(world[kind])[pick(world.fields[kind])])
  end,
}

function act()
  if world then pcall(pick(acts)) end
end

local calls = tonumber(arg[1]) or 10000
local seed = math.tointeger(tonumber(arg[2])) or os.time()

ckvm.eventfd():wait { timeout = 0 } -- a state's first wait keeps a descriptor
local before <const> = support.settled_fds()
math.randomseed(seed)
collectgarbage("incremental", 50, 1000)
new_world()
while world.calls < calls do
  world.depth = 0 -- a handler that has yielded may never be back
  act()
end
local worked, never <const> = 0, {}
for _, kind in ipairs(kinds) do
  for _, name in ipairs(world.names[kind]) do
    if world.worked[kind .. ":" .. name] then
      worked = worked + 1
    else
      table.insert(never, kind .. ":" .. name)
    end
  end
end
local path, message = next(world.unknown)
if path then error(("%s has to be in the table of methods: %s"):format(path, message), 0) end
world = nil
collectgarbage("incremental", 200, 100)
local left <const> = support.settled_fds() - before
print(("%d calls, seed %d: %d methods worked; never: %s"):format(calls, seed, worked,
  table.concat(never, " ")))
if left ~= 0 then error(("%d descriptors are left open"):format(left), 0) end

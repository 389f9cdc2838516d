-- Random calls of every method, inside and outside of handlers, under a stressed collector. A
-- failure names its seed: CKVM_SEED repeats those calls.

local ckvm = require "ckvm"
local support = require "support"

local random = math.random

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

local kinds = { "kvm", "vm", "vcpu", "memory", "range", "buffer", "view", "eventfd", "statistics" }
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

-- By kind, each method and what it takes.
local methods = {
  kvm = { get_api_version = {}, create_vm = { options({}, { type = one(0) }) },
    check_extension = { one("nr_vcpus", 3) }, get_vcpu_mmap_size = {}, get_supported_cpuid = {},
    get_emulated_cpuid = {}, get_supported_hv_cpuid = {}, get_msr_index_list = {},
    get_msr_feature_index_list = {}, get_msrs = { list_of(msr) }, x86_get_mce_cap_supported = {} },
  vm = { check_extension = { little }, create_vcpu = { little }, on = { one("hlt", 5), handler },
    add_memory = { options({ gpa = page, size = one(0x1000, 0x2000) }, { readonly = yes,
      log_dirty = yes, shared = yes, slot = little, file = one("/dev/zero", "/dev/null") }) },
    move_memory = { some "memory", page }, dirty_pages = { some "memory" },
    read = { address, little }, write = { address, hlts }, fill = { address, little, one(0xf4) },
    read_u8 = { address }, read_u64 = { address }, write_u16 = { address, one(0xf4f4) },
    attach_io = { options({ port = one(PORT, PORT + 2, BATCHED, 0xffff) }, answers) },
    attach_mmio = { options({ gpa = one(0x10000, MMIO, 0xfffff000), size = one(1, 4, 0x1000) },
      mmio_answers) },
    create_irqchip = {}, get_irqchip = { chip }, irq_line = { level }, irq_line_status = { level },
    set_irqchip = { options({ chip_id = chip }, { imr = bit, irr = value }) },
    signal_msi = { options({ address_lo = one(0xfee00000) }, { data = little }) },
    set_gsi_routing = { list_of(route) }, irqfd = { irqfd }, ioeventfd = { ioeventfd },
    create_pit = {}, create_pit2 = { options({}, { flags = bit }) }, get_pit = {}, get_pit2 = {},
    set_pit = { options({}, { channels = list_of(options({}, { count = little })) }) },
    set_pit2 = { options({}, { channels = list_of(options({}, { mode = little })) }) },
    register_coalesced_mmio = { options({ port = one(PORT, BATCHED), size = little }, {}) },
    unregister_coalesced_mmio = { options({ port = one(PORT, BATCHED), size = little }, {}) },
    reinject_control = { options({}, { pit_reinject = yes }) }, get_clock = {},
    set_clock = { options({}, { clock = value }) }, set_tss_addr = { address },
    set_identity_map_addr = { address }, set_boot_cpu_id = { little }, get_stats_fd = {},
    get_dirty_log = { some "memory" }, clear_dirty_log = { options({ memory = some "memory",
      dirty_bitmap = one("\xff", "\xff\xff") }, { first_page = little, num_pages = little }) },
    enable_cap = { cap, one(0, 1, 3, 24, 4096) }, get_tsc_khz = {}, set_tsc_khz = { one(0) },
    x86_set_msr_filter = { options({}, { flags = bit, ranges = list_of(ranges) }) } },
  vcpu = { run = { limits }, finish = {}, interrupt = { little }, get_stats_fd = {}, stop = {
    little }, kick = {}, get_regs = {},
    get_sregs = {}, get_vcpu_events = {}, set_regs = { registers },
    set_sregs = { special }, get_sregs2 = {}, set_sregs2 = { special }, enable_cap = { cap },
    get_cpuid2 = {}, set_cpuid2 = { list_of(entry) }, set_cpuid = { list_of(entry) },
    get_msrs = { list_of(msr) }, set_msrs = { msr_values }, get_supported_hv_cpuid = {},
    get_fpu = {}, set_fpu = { options({}, { fcw = little, xmm = list_of(block(16)) }) },
    get_xcrs = {}, set_xcrs = { options({}, { xcrs = list_of(options({ xcr = bit }, {})) }) },
    get_debugregs = {}, set_debugregs = { options({}, { db = list_of(address), dr7 = little }) },
    get_lapic = {}, set_lapic = { block(1024) }, get_xsave = {}, get_xsave2 = {},
    set_xsave = { block(4096) }, get_nested_state = {}, set_nested_state = { block(128) },
    get_mp_state = {}, set_mp_state = { one("runnable", "halted", "uninitialized", 5) },
    get_one_reg = { reg }, set_one_reg = { reg, little }, get_reg_list = {}, nmi = {}, smi = {},
    kvmclock_ctrl = {}, get_tsc_khz = {}, set_tsc_khz = { one(0) }, set_vapic_addr = { page },
    tpr_access_reporting = { options({ enabled = bit }, {}) }, x86_setup_mce = { little },
    x86_set_mce = { options({}, { bank = little, status = value }) },
    set_guest_debug = { options({}, { control = one("enable", 3, { "enable", "inject_bp" }) }) },
    set_signal_mask = { list_of(one(1, 10, 64)) }, translate = { address },
    read = { address, little }, write = { address, hlts }, read_cstring = { address, little },
    set_vcpu_events = { options({}, { nmi = options({}, { pending = bit, masked = bit }),
      interrupt = options({}, { shadow = bit }), flags = little }) } },
  memory = { close = {} }, range = { detach = {} }, buffer = { take = { little } },
  eventfd = { signal = { little }, read = {}, wait = { little_time } },
  statistics = { read = {}, describe = {} },
}
local fields = {
  vm = { "vcpus" }, vcpu = { "regs", "sregs", "events", "exit", "stats", "vm", "id" },
  memory = { "gpa", "size", "slot" }, buffer = { "length", "size" }, kvm = { "" },
  eventfd = { "fd" }, statistics = { "id", "fd" }, range = { "" },
  view = { "rax", "rip", "cs", "ds", "efer", "nmi", "data", "reason", "interrupt_bitmap" },
}
local made = { create_vm = "vm", create_vcpu = "vcpu", add_memory = "memory",
  attach_io = "range", attach_mmio = "range", get_stats_fd = "statistics" }

local function call()
  local kind = pick(kinds)
  local thing, name = pick(world[kind]), pick(world.names[kind])
  local args = {}
  for i, make in ipairs(name and methods[kind][name] or {}) do
    args[i] = name ~= "run" and name ~= "wait" and random(40) == 1 and value() or make()
  end
  world.calls = world.calls + 1
  local result = thing[name](thing, table.unpack(args, 1, 3))
  if made[name] then keep(made[name], result) end
end

-- A guest whose loop is made of some of the instructions, with an exit in any case.
local function new_guest()
  local vm = pick(world.kvm):create_vm()
  keep("vm", vm)
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
  function() keep("kvm", ckvm.open { sync_regs = random(2) == 1 }) end,
  function() keep("view", pick(world.vcpu)[pick { "regs", "sregs", "events", "exit" }]) end,
  function() pick(world.view)[pick(fields.view)] = value() end,
  function()
    local kind = pick(kinds)
    return tostring(pick(world[kind])[pick(fields[kind])])
  end,
}

function act()
  if world then pcall(pick(acts)) end
end

describe("random calls #slow", function()
  local seed = math.tointeger(tonumber(os.getenv "CKVM_SEED")) or os.time()
  local calls = support.times(1000000)

  setup(support.need_kvm)

  it("end in results or in errors, and leave nothing open: CKVM_SEED=" .. seed, function()
    print("CKVM_SEED=" .. seed)
    ckvm.eventfd():wait { timeout = 0 } -- a state's first wait keeps a descriptor
    local before = support.settled_fds()
    math.randomseed(seed)
    collectgarbage("incremental", 50, 1000)
    world = { calls = 0, coroutine = {}, kvm = { ckvm.open() }, names = {} }
    for _, kind in ipairs(kinds) do
      world[kind] = world[kind] or {}
      world.names[kind] = sorted_keys(methods[kind] or {})
    end
    while world.calls < calls do
      world.depth = 0 -- a handler that has yielded may never be back
      act()
    end
    world = nil
    collectgarbage("incremental", 200, 100)
    assert.equal(before, support.settled_fds())
  end)
end)

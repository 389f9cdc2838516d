-- What a list of CPUID entries tells of a vCPU's number and of the others, for ckvm.x86.

local check = require "ckvm.check"
local cpuid = require "ckvm.x86.cpuid"
local entries = require "ckvm.x86.entries"

local topology = {}

local find <const>, need <const>, put <const> = entries.find, entries.need, entries.put

local OPTIONS <const> = { id = "integer", cpus = "integer?", threads = "integer?" }
local MOST <const>, MOST_THREADS <const> = 0xffff, 0x100 -- what the leaves can count to

-- How many bits numbers below count take.
local function width(count)
  local bits = 0
  while 1 << bits < count do bits = bits + 1 end
  return bits
end

local function remove_all(list, leaf)
  for i = #list, 1, -1 do
    if list[i]["function"] == leaf then table.remove(list, i) end
  end
end

-- The leaves 0xb and 0x1f: threads of a core, those of the package, and the end of the levels.
local function put_levels(list, leaf, whole)
  remove_all(list, leaf)
  local levels <const> = {
    [0] = { whole.thread_bits, whole.threads, 1 }, { whole.bits, whole.cpus, 2 },
    { 0, 0, 0 },
  }
  for i = 0, #levels do
    local entry = need(list, leaf, i)
    local shift, count, kind = table.unpack(levels[i])
    entry.eax, entry.ebx, entry.ecx, entry.edx = shift, count, kind << 8 | i, whole.id
  end
end

-- Leaf 4, and AMD's 0x8000001d: how many APIC ids share a cache, the last level all of them; leaf 4
-- also how many cores the package has.
local function put_caches(list, whole)
  for _, entry in ipairs(list) do
    local leaf <const> = entry["function"]
    if (leaf == 4 or leaf == 0x8000001d) and (entry.eax or 0) & 0x1f ~= 0 then
      local level <const> = entry.eax >> 5 & 7
      local sharing = level >= 3 and whole.bits or whole.thread_bits
      put(entry, "eax", 14, 25, math.min(1 << sharing, 0x1000) - 1)
      if leaf == 4 then
        put(entry, "eax", 26, 31, math.min(1 << whole.bits - whole.thread_bits, 0x40) - 1)
      end
    end
  end
end

-- What AMD's processors tell beside.
local function put_amd(list, whole)
  local sizes, core = find(list, 0x80000008), find(list, 0x8000001e)
  if sizes then
    put(sizes, "ecx", 0, 7, math.min(whole.cpus - 1, 0xff))
    put(sizes, "ecx", 12, 15, math.min(whole.bits, 0xf))
  end
  if core then
    core.eax, core.ecx = whole.id, 0
    core.ebx = whole.id >> whole.thread_bits & 0xff | whole.threads - 1 << 8
  end
  if find(list, 0x80000001) then cpuid.cpuid_set(list, "cmp_legacy", whole.cpus > 1) end
end

local function check_options(options)
  local id <const>, threads <const> = options.id, options.threads or 1
  local cpus <const> = options.cpus or id + 1
  local function fail(...) error((...):format(select(2, ...)), 4) end
  if id < 0 or id >= MOST then
    fail("id: %d is not between 0 and %d", id, MOST - 1)
  elseif cpus <= id or cpus > MOST then
    fail("cpus: %d is not between %d, with vCPU %d, and %d", cpus, id + 1, id, MOST)
  elseif threads < 1 or threads > MOST_THREADS or threads & threads - 1 ~= 0 then
    fail("threads: %d is no power of 2 up to %d", threads, MOST_THREADS)
  end
  return { id = id, cpus = cpus, threads = math.min(threads, cpus), thread_bits = width(threads),
    bits = math.max(width(cpus), width(threads)) }
end

--- Has a list of CPUID entries tell the number of a vCPU, and of how many in one package it is one.
--
-- The number is the APIC id, which KVM makes of the vCPU's. It stands in the leaves 1, 0xb, 0x1f
-- and 0x8000001e, how many there are also in 4, 0x80000008 and 0x8000001d; of these the ones from 4
-- on are changed where they are there, or, for 0xb, within what leaf 0 says to be there.
-- @function ckvm.x86.cpuid_topology
-- @tparam table list as `kvm:get_supported_cpuid` returns it, which is changed
-- @tparam table options
-- @tparam integer options.id number of the vCPU, from 0 on
-- @tparam[opt] integer options.cpus how many there are: `id + 1` if left out
-- @tparam[opt=1] integer options.threads how many of them are threads of one core: a power of 2
-- @treturn table the list
-- @raise only for misuse
-- @usage
-- local list = kvm:get_supported_cpuid()
-- vcpu:set_cpuid2(x86.cpuid_topology(list, { id = vcpu.id, cpus = 4, threads = 2 }))
function topology.cpuid_topology(list, options)
  entries.check(list)
  check.options("cpuid_topology", options, OPTIONS)
  local whole = check_options(options)
  local one = need(list, 1)
  put(one, "ebx", 24, 31, whole.id)
  put(one, "ebx", 16, 23, math.min(1 << whole.bits, 0xff))
  cpuid.cpuid_set(list, "ht", whole.cpus > 1)
  put_caches(list, whole)
  if need(list, 0).eax >= 0xb then put_levels(list, 0xb, whole) end
  if find(list, 0x1f) then put_levels(list, 0x1f, whole) end
  local vendor <const> = cpuid.cpuid_vendor(list)
  if vendor == "AuthenticAMD" or vendor == "HygonGenuine" then put_amd(list, whole) end
  return list
end

return topology

-- Lists of CPUID entries, as kvm:get_supported_cpuid() returns and vcpu:set_cpuid2() takes them,
-- changed by the names of what they tell, for ckvm.x86.

local check = require "ckvm.check"
local entries = require "ckvm.x86.entries"

local cpuid = {}

local check_list <const>, find <const>, need <const> = entries.check, entries.find, entries.need

-- Features -------------------------------------------------------------------

local places -- by name: { leaf, subleaf, register, bit }

local function read_places()
  local found, features = {}, require "ckvm.x86.features"
  for _, row in ipairs(features.rows) do
    local leaf, subleaf, register, names = table.unpack(row, 1, 4)
    local bit = 0
    for word in names:gmatch "%S+" do
      local to = word:match "^@(%d+)$"
      if to then
        bit = math.tointeger(to)
      else
        if word ~= "-" then found[word] = { leaf, subleaf, register, bit } end
        bit = bit + 1
      end
    end
  end
  for alias, name in pairs(features.aliases) do found[alias] = found[name] end
  return found
end

-- How many letters are to be changed, left out or put in.
local function distance(a, b)
  local row = {}
  for j = 0, #b do row[j] = j end
  for i = 1, #a do
    local diagonal = row[0]
    row[0] = i
    for j = 1, #b do
      local changed = diagonal + (a:byte(i) == b:byte(j) and 0 or 1)
      diagonal = row[j]
      row[j] = math.min(changed, diagonal + 1, row[j - 1] + 1)
    end
  end
  return row[#b]
end

-- By their letters and digits alone: SSE4.2 is next to sse4_2.
local function letters(name) return (name:lower():gsub("%W", ""):gsub("_", "")) end

local function nearest(name)
  local best, least
  for known in pairs(places) do
    local far = distance(letters(name), letters(known))
    if not best or far < least or far == least and known < best then best, least = known, far end
  end
  return best
end

local function place_of(name)
  places = places or read_places()
  if type(name) ~= "string" then
    error(("name: string expected, got %s"):format(math.type(name) or type(name)), 3)
  end
  if not places[name] then
    error(("unknown feature '%s' of CPUID; the nearest is '%s'"):format(name,
      nearest(name:sub(1, 40))), 3)
  end
  return table.unpack(places[name], 1, 4)
end

--- Tells whether a list of CPUID entries has a feature.
--
-- Names are those of Linux's `/proc/cpuinfo` (`"sse4_2"`, `"x2apic"`, `"tsc_deadline_timer"`,
-- `"hypervisor"`, `"la57"`), others those of the manuals; of KVM's own leaf `"kvm_pv_eoi"` and its
-- kin.
-- @function ckvm.x86.cpuid_has
-- @tparam table list as `kvm:get_supported_cpuid` returns it
-- @tparam string name a feature
-- @treturn boolean whether it has it: it has not what is in a leaf that is not there
-- @raise only for misuse; an unknown name with the nearest that there is
-- @usage
-- print(x86.cpuid_has(kvm:get_supported_cpuid(), "avx2"))
function cpuid.cpuid_has(list, name)
  check_list(list)
  local leaf, subleaf, register, bit = place_of(name)
  local entry = find(list, leaf, subleaf)
  return entry ~= nil and (entry[register] or 0) >> bit & 1 == 1
end

--- Has a list of CPUID entries tell of a feature, or no longer tell of it. A leaf that is not there
-- is added. A KVM that runs the guest natively may show it what the host has in any case.
-- @function ckvm.x86.cpuid_set
-- @tparam table list as `kvm:get_supported_cpuid` returns it, which is changed
-- @tparam string name a feature, as for `ckvm.x86.cpuid_has`
-- @tparam boolean on whether it has it
-- @treturn table the list
-- @raise only for misuse; an unknown name with the nearest that there is
-- @usage
-- local list = kvm:get_supported_cpuid()
-- x86.cpuid_set(list, "hypervisor", false)
-- vcpu:set_cpuid2(list)
function cpuid.cpuid_set(list, name, on)
  check_list(list)
  local leaf, subleaf, register, bit = place_of(name)
  check.argument("on", on, "boolean")
  if on or find(list, leaf, subleaf) then
    entries.put(need(list, leaf, subleaf), register, bit, bit, on and 1 or 0)
  end
  return list
end

--- Tells which features a list of CPUID entries has.
-- @function ckvm.x86.cpuid_names
-- @tparam table list as `kvm:get_supported_cpuid` returns it
-- @treturn string[] their names, sorted
-- @raise only for misuse
-- @usage
-- print(table.concat(x86.cpuid_names(kvm:get_supported_cpuid()), " "))
function cpuid.cpuid_names(list)
  check_list(list)
  places = places or read_places()
  local aliases <const>, names = require("ckvm.x86.features").aliases, {}
  for name, place in pairs(places) do
    local entry = find(list, place[1], place[2])
    if not aliases[name] and entry and (entry[place[3]] or 0) >> place[4] & 1 == 1 then
      table.insert(names, name)
    end
  end
  table.sort(names)
  return names
end

-- Strings --------------------------------------------------------------------

local VENDOR_SIZE <const>, BRAND_SIZE <const> = 12, 48
local EXTENDED <const>, BRAND <const> = 0x80000000, 0x80000002

local function check_text(what, text, size)
  if type(text) ~= "string" then
    error(("%s: string expected, got %s"):format(what, math.type(text) or type(text)), 3)
  elseif #text > size or text:find("\0", 1, true) then
    error(("%s: %q is not of up to %d characters"):format(what, text, size), 3)
  end
end

--- Has a list of CPUID entries name another vendor.
-- @function ckvm.x86.cpuid_vendor
-- @tparam table list as `kvm:get_supported_cpuid` returns it, which is changed
-- @tparam[opt] string vendor up to 12 characters; nothing changes without it
-- @treturn string the vendor before
-- @raise only for misuse
-- @usage
-- local list = kvm:get_supported_cpuid()
-- x86.cpuid_vendor(list, "GenuineIntel")
-- assert(x86.cpuid_vendor(list) == "GenuineIntel")
function cpuid.cpuid_vendor(list, vendor)
  check_list(list)
  if vendor ~= nil then check_text("vendor", vendor, VENDOR_SIZE) end
  local before = find(list, 0) or { ebx = 0, ecx = 0, edx = 0 }
  local old = string.pack("<I4I4I4", before.ebx or 0, before.edx or 0, before.ecx or 0)
  if vendor then
    local padded = vendor .. ("\0"):rep(VENDOR_SIZE - #vendor)
    for _, entry in ipairs { need(list, 0), find(list, EXTENDED) } do
      -- The second has none where it is Intel.
      if entry["function"] == 0 or entry.ebx ~= 0 then
        entry.ebx, entry.edx, entry.ecx = string.unpack("<I4I4I4", padded)
      end
    end
  end
  return (old:gsub("\0+$", ""))
end

--- Has a list of CPUID entries name another processor: its brand string, the model name of Linux.
-- @function ckvm.x86.cpuid_brand
-- @tparam table list as `kvm:get_supported_cpuid` returns it, which is changed
-- @tparam[opt] string brand up to 48 characters; nothing changes without it
-- @treturn string the brand before
-- @raise only for misuse
-- @usage
-- local list = kvm:get_supported_cpuid()
-- x86.cpuid_brand(list, "A processor of ckvm")
function cpuid.cpuid_brand(list, brand)
  check_list(list)
  if brand ~= nil then check_text("brand", brand, BRAND_SIZE) end
  local old, padded = "", brand and brand .. ("\0"):rep(BRAND_SIZE - #brand)
  for i = 0, 2 do
    local entry = find(list, BRAND + i) or {}
    for _, register in ipairs(entries.REGISTERS) do
      old = old .. string.pack("<I4", entry[register] or 0)
    end
    if brand then
      entry = need(list, BRAND + i)
      entry.eax, entry.ebx, entry.ecx, entry.edx =
        string.unpack("<I4I4I4I4", padded, i * 16 + 1)
    end
  end
  return (old:gsub("\0.*$", ""))
end

return cpuid

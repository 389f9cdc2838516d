-- Lists of CPUID entries, as kvm:get_supported_cpuid() returns and vcpu:set_cpuid2() takes them:
-- finding and changing them, for ckvm.x86.

local entries = {}

local SIGNIFICANT_INDEX <const> = 1 -- a flag: the entry is for one subleaf
entries.REGISTERS = { "eax", "ebx", "ecx", "edx" }

local function is_entry(entry)
  if type(entry) ~= "table" or math.type(entry["function"]) ~= "integer" then return false end
  for _, name in ipairs { "index", table.unpack(entries.REGISTERS) } do
    local value = entry[name]
    if value ~= nil and (math.type(value) ~= "integer" or value >> 32 ~= 0) then return false end
  end
  return true
end

-- Of a function's first argument.
function entries.check(list)
  if type(list) ~= "table" then
    error(("list: table expected, got %s"):format(math.type(list) or type(list)), 3)
  end
  for i, entry in ipairs(list) do
    if not is_entry(entry) then
      error(("list[%d]: this is no entry of CPUID"):format(i), 3)
    end
  end
end

-- The entry of a leaf, and of a subleaf if that is given; or nil.
function entries.find(list, leaf, subleaf)
  for _, entry in ipairs(list) do
    if entry["function"] == leaf and (not subleaf or (entry.index or 0) == subleaf) then
      return entry
    end
  end
end

local function add(list, leaf, subleaf)
  local entry = { ["function"] = leaf, index = subleaf or 0,
    flags = subleaf and SIGNIFICANT_INDEX or 0 }
  for _, name in ipairs(entries.REGISTERS) do entry[name] = 0 end
  table.insert(list, entry)
  return entry
end

-- The entry's eax tells of a last leaf, or subleaf: up to that one at least.
local function reach(entry, last) entry.eax = math.max(entry.eax or 0, last) end

-- The entry, which is made if it is not there, within what the first leaf of its range, and of leaf
-- 7 the first subleaf, tells to be there.
function entries.need(list, leaf, subleaf)
  local entry = entries.find(list, leaf, subleaf) or add(list, leaf, subleaf)
  local first <const> = leaf & 0xffff0000
  reach(entries.find(list, first) or add(list, first), leaf)
  if leaf == 7 and subleaf > 0 then
    reach(entries.find(list, leaf, 0) or add(list, leaf, 0), subleaf)
  end
  return entry
end

-- Bits first to last of a register become a value.
function entries.put(entry, register, first, last, value)
  local mask <const> = (1 << last - first + 1) - 1 << first
  entry[register] = (entry[register] or 0) & ~mask | value << first & mask
end

return entries

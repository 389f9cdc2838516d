-- Page tables of long mode, for ckvm.x86.

local check = require "ckvm.check"

local pages = {}

local PAGE <const> = 0x1000
local ENTRIES <const> = 512 -- of a page table
local LARGE_PAGE <const> = 2 << 20

--- Bits of an entry of a page table.
-- @field ckvm.x86.page
pages.page = {
  present = 1 << 0, write = 1 << 1, user = 1 << 2, write_through = 1 << 3, no_cache = 1 << 4,
  accessed = 1 << 5, dirty = 1 << 6, large = 1 << 7, global = 1 << 8, no_execute = 1 << 63,
}

local page <const> = pages.page

local function directories(size)
  if math.type(size) ~= "integer" or size < 1 or size > ENTRIES << 30 then
    error(("size: %s is not between 1 and 0x%x"):format(tostring(size), ENTRIES << 30), 3)
  end
  return (size - 1 >> 30) + 1
end

--- How many bytes `identity_map` takes for its tables.
-- @function ckvm.x86.identity_map_size
-- @tparam integer size bytes that are mapped, at most 512 GiB
-- @treturn integer bytes, a multiple of the page size
-- @raise only for misuse
-- @usage
-- assert(x86.identity_map_size(4 << 30) == 6 * 0x1000)
function pages.identity_map_size(size)
  return (2 + directories(size)) * PAGE
end

--- Maps all addresses below `size` to themselves, in 2 MiB pages that ring 0 may read, write and
-- execute; at least 1 GiB, in whole GiB.
-- @function ckvm.x86.identity_map
-- @tparam vm vm the VM in whose memory the tables are built
-- @tparam integer gpa guest physical address of `identity_map_size(size)` bytes, page-aligned
-- @tparam integer size bytes to map, at most 512 GiB
-- @treturn integer the value for CR3
-- @raise a string where there is no memory for the tables
-- @usage
-- vcpu:set_sregs { cr3 = x86.identity_map(vm, 0x1000, 1 << 30) }
function pages.identity_map(vm, gpa, size)
  check.argument("vm", vm, "ckvm VM")
  local count <const> = directories(size)
  if math.type(gpa) ~= "integer" or gpa % PAGE ~= 0 then
    error(("gpa: %s is not a multiple of the page size"):format(tostring(gpa)), 2)
  end
  local flags <const> = page.present | page.write
  local tables = { string.pack("<I8", gpa + PAGE | flags), ("\0"):rep(PAGE - 8) }
  for i = 0, ENTRIES - 1 do
    local entry = i < count and gpa + (2 + i) * PAGE | flags or 0
    table.insert(tables, string.pack("<I8", entry))
  end
  for i = 0, count * ENTRIES - 1 do
    table.insert(tables, string.pack("<I8", i * LARGE_PAGE | flags | page.large))
  end
  check.blame(function() vm:write(gpa, table.concat(tables)) end)
  return gpa
end

-- Any layout -----------------------------------------------------------------

local ADDRESS <const> = 0xffffffffff000 -- the bits of an entry that are an address
local SHIFTS <const> = { [PAGE] = 12, [LARGE_PAGE] = 21, [1 << 30] = 30 }
local TOP_SHIFT <const> = 39

local function leaf_flags(mapping)
  return page.present | (mapping.write == false and 0 or page.write)
    | (mapping.user and page.user or 0) | (mapping.execute == false and page.no_execute or 0)
    | ((mapping.page or PAGE) ~= PAGE and page.large or 0)
end

local MAPPING <const> = {
  va = "integer", gpa = "integer?", size = "integer", page = "integer?", write = "boolean?",
  user = "boolean?", execute = "boolean?",
}

local function check_mapping(mapping)
  local unit = mapping.page or PAGE
  if not SHIFTS[unit] then
    error(("page: %s is not 4 KiB, 2 MiB or 1 GiB"):format(tostring(unit)), 3)
  end
  for _, key in ipairs { "va", "gpa", "size" } do
    local value = mapping[key] or mapping.va
    if value % unit ~= 0 or key == "size" and value < 0 then
      error(("%s: %d is not a multiple of the page size"):format(key, tostring(value)), 3)
    end
  end
end

--- Builds 4-level page tables for any layout: a list of mappings `{ va =, gpa =, size =, page =,
-- write =, user =, execute = }`. `gpa` is `va` by default, `page` (4 KiB, 2 MiB or 1 GiB) 4 KiB;
-- pages may be written and executed unless `write` or `execute` is false, by ring 0 alone unless
-- `user` is true. `execute = false` needs `x86.efer.nxe`.
-- @function ckvm.x86.page_tables
-- @tparam vm vm the VM in whose memory the tables are built
-- @tparam integer gpa guest physical address, page-aligned
-- @tparam table mappings the list; later ones win
-- @treturn integer the value for CR3
-- @treturn integer guest physical address behind the tables
-- @raise a string where there is no memory for the tables
-- @usage
-- local cr3 = x86.page_tables(vm, 0x1000, {
--   { va = 0xffff800000000000, gpa = 0, size = 0x10000 },
--   { va = 0x400000, gpa = 0x8000, size = 0x2000, user = true, write = false },
-- })
function pages.page_tables(vm, gpa, mappings)
  check.argument("vm", vm, "ckvm VM")
  check.argument("mappings", mappings, "table")
  if math.type(gpa) ~= "integer" or gpa % PAGE ~= 0 then
    error(("gpa: %s is not a multiple of the page size"):format(tostring(gpa)), 2)
  end
  local free = gpa

  local function new_table()
    vm:fill(free, PAGE, 0)
    free = free + PAGE
    return free - PAGE
  end

  local function next_table(slot)
    local entry = vm:read_u64(slot)
    if entry & page.present == 0 or entry & page.large ~= 0 then
      entry = new_table() | page.present | page.write | page.user
      vm:write_u64(slot, entry)
    end
    return entry & ADDRESS
  end

  local function map(va, shift, entry)
    local at, level = gpa, TOP_SHIFT
    while level > shift do
      at = next_table(at + (va >> level & ENTRIES - 1) * 8)
      level = level - 9
    end
    vm:write_u64(at + (va >> level & ENTRIES - 1) * 8, entry)
  end

  for _, mapping in ipairs(mappings) do
    check.fields("mapping", mapping, MAPPING)
    check_mapping(mapping)
  end
  check.blame(function()
    new_table()
    for _, mapping in ipairs(mappings) do
      local unit = mapping.page or PAGE
      local first, flags = mapping.gpa or mapping.va, leaf_flags(mapping)
      for offset = 0, mapping.size - 1, unit do
        map(mapping.va + offset, SHIFTS[unit], first + offset | flags)
      end
    end
  end)
  return gpa, free
end

return pages

--- What the KVM of this host has, and what of it works when it is tried.
--
-- Nothing is taken from a CPU flag, a vendor or a version. Each probe runs guests of its own, with
-- deadlines: one that hangs or fails says so, and the others go on.
-- @module ckvm.probe
-- @usage
-- local ckvm = require "ckvm"
-- local found = ckvm.probe { only = { "ring3.syscall", "modes.long.speed" } }
-- print(found.ring3.syscall, found.modes.long.speed)
local ckvm = require "ckvm"

local probe = {}


-- What is tried. Of each: the name of the result and of the function, a label, and the module,
-- where it is not the group's.

--- The modes that guests are tried in: name, and name in print.
-- @field ckvm.probe.modes
probe.modes = {
  { "real", "real" }, { "protected", "protected" }, { "long", "ring 0" }, { "user", "ring 3" },
}

--- What is tried in each mode: name, words, and where the probe is.
-- @field ckvm.probe.in_modes
probe.in_modes = {
  { "instruction_ns", "an instruction", "modes" },
  { "out_us", "exit at an OUT", "modes" },
  { "mmio_us", "exit at a store (MMIO)", "modes" },
  { "batched_out_us", "OUT that is coalesced", "modes" },
  { "speed", "code runs", "modes" },
  { "rip_at_out", "RIP at an OUT's exit", "memory" },
  { "page_table_edit", "page table edits seen by", "memory" },
  { "dirty_log", "dirty log has stores", "memory" },
  { "fetch_dirties", "dirty log has fetches", "memory" },
  { "cpuid", "CPUID is the vCPU's", "cpuid" },
  { "single_step", "single step", "debug" },
  { "sw_breakpoint", "software breakpoint", "debug" },
  { "hw_breakpoint", "hardware breakpoint", "debug" },
  { "instructions", nil, "instructions" },
}

--- What is tried besides: name, words, and the probes of the group.
-- @field ckvm.probe.groups
probe.groups = {
  { "ring3", "Ring 3 of long mode", {
    { "syscall", "SYSCALL to ring 0" },
    { "sysret", "SYSRET to ring 3" },
    { "iretq", "IRETQ to ring 3" },
    { "io_bitmap", "I/O bitmap of the TSS" },
    { "iopl", "IOPL 3: OUT and CLI" },
    { "ud2", "UD2 to the IDT" },
    { "page_fault", "page fault to the IDT" },
    { "int3", "INT3 to the IDT" },
    { "int_n", "INT n, by its gate's DPL" },
    { "sse", "SSE" },
    { "avx", "AVX" },
    { "avx512", "AVX-512" },
  } },
  { "exits", "Exits and memory", {
    { "coalesced_pio", "coalesced OUTs" },
    { "coalesced_mmio", "coalesced MMIO" },
    { "ioeventfd_pio", "ioeventfd at a port" },
    { "ioeventfd_mmio", "ioeventfd at an address" },
    { "sync_regs", "registers in the run page" },
    { "readonly", "read-only memory", "memory" },
    { "user_space_msr", "MSRs answered by the host" },
    { "msr_filter", "MSR filter" },
  } },
  { "enable_cap", "Capabilities that are taken by enable_cap",
    require("ckvm.probe.enable_cap").entries },
  { "costs", "Costs", {
    { "regs_us", "registers got or set" },
    { "cpuid_us", "CPUID in ring 0 (no exit)", "modes" },
    { "create_vm_us", "VM, created and closed" },
  } },
}

-- Options --------------------------------------------------------------------

-- Lua's own level, or that of who called ckvm.probe, which is C.
local function blame(message)
  error(message, debug.getinfo(3, "S").what == "C" and 4 or 3)
end

local function each_path(visit)
  for _, mode in ipairs(probe.modes) do
    for _, row in ipairs(probe.in_modes) do visit("modes." .. mode[1] .. "." .. row[1]) end
  end
  for _, group in ipairs(probe.groups) do
    for _, entry in ipairs(group[3]) do visit(group[1] .. "." .. entry[1]) end
  end
end

local function covers(word, path)
  return path == word or path:sub(1, #word + 1) == word .. "."
end

local function is_known(word)
  local found = word == "capabilities"
  each_path(function(path) found = found or covers(word, path) end)
  return found
end

-- Returns a function that tells whether a path is wanted.
local function selection(only)
  if only == nil then return function() return true end end
  return function(path)
    for _, word in ipairs(only) do
      if covers(word, path) then return true end
    end
    return false
  end
end

-- Running --------------------------------------------------------------------

-- By name, all parts: before guests take the descriptors, without which no module is found.
local function load_parts()
  local parts = {}
  for _, row in ipairs(probe.in_modes) do parts[row[3]] = require("ckvm.probe." .. row[3]) end
  for _, group in ipairs(probe.groups) do
    for _, entry in ipairs(group[3]) do
      local name = entry[3] or group[1]
      parts[name] = require("ckvm.probe." .. name)
    end
  end
  return parts
end

local function first_line(path)
  local file <close> = io.open(path)
  return file and file:read("l") or "unknown"
end

-- Ctrl-C is no failure of the probe that it stops.
local function is_interrupt(message)
  return type(message) == "string" and message:find("interrupted!$") ~= nil
end

-- One probe, into result[...][name]; what it says about it into notes or errors by path.
local function try(result, into, path, fn, ...)
  local name = path:match("[^.]*$")
  local done, value, note = pcall(fn, ...)
  if done then
    into[name] = value
    result.notes[path] = note
  elseif is_interrupt(value) then
    error(value, 0)
  else
    result.errors[path] = tostring(value)
  end
end

local function try_mode(result, kvm, mode, parts, wanted)
  local into = result.modes[mode] or {}
  for _, row in ipairs(probe.in_modes) do
    local name, _, module = table.unpack(row)
    local path = ("modes.%s.%s"):format(mode, name)
    if wanted(path) then
      result.modes[mode] = into
      try(result, into, path, parts[module][name], kvm, mode, into)
    end
  end
end

local function try_group(result, kvm, group, parts, wanted)
  local key, _, entries = table.unpack(group)
  for _, entry in ipairs(entries) do
    local path = key .. "." .. entry[1]
    if wanted(path) then
      result[key] = result[key] or {}
      try(result, result[key], path, parts[entry[3] or key][entry[1]], kvm)
    end
  end
end

--- Probes. `ckvm.probe` is this function.
--
-- The result is a table of tables: `capabilities` (values that are not 0, by name), `modes` by
-- name (`real`, `protected`, `long` for its ring 0, `user` for its ring 3), `ring3`, `exits`,
-- `enable_cap` and `costs`. In these a probe's result stands under its name: true or false, a word
-- or a number, whose unit (`_ns`, `_us`) ends the name; see `in_modes` and `groups` of this module
-- for the names. `instructions` has "works" or what came instead, by name. `errors` has, by path
-- (`"ring3.syscall"`), why a probe has failed, `notes` what some add to their result, or why they
-- have none. Beside them stand `ckvm`, `kernel`, `api_version`, `vcpu_mmap_size` and `seconds`, the
-- time it all took.
-- @tparam[opt] table options
-- @tparam[opt] kvm options.kvm an open one to use
-- @tparam[opt] string[] options.only paths of probes, or their beginnings: "modes.user.speed"
-- @treturn table as it says above
-- @raise what `ckvm.open` raises
-- @usage
-- local probe = require "ckvm.probe"
-- local found = probe.run { only = { "modes.real.speed" } }
-- print(found.modes.real.speed)
function probe.run(options)
  options = options or {}
  if type(options) ~= "table" then blame("probe: a table of options expected") end
  for key in pairs(options) do
    if key ~= "kvm" and key ~= "only" then
      blame(("unknown option '%s' of probe"):format(tostring(key)))
    end
  end
  if options.only ~= nil and type(options.only) ~= "table" then
    blame("only: a list of names expected")
  end
  for _, word in ipairs(options.only or {}) do
    if type(word) ~= "string" or not is_known(word) then
      blame(("only: there is no probe '%s'"):format(tostring(word)))
    end
  end

  local from, wanted, parts = ckvm.now(), selection(options.only), load_parts()
  local opened <close> = not options.kvm and ckvm.open()
  local kvm = options.kvm or opened
  local result = {
    ckvm = ckvm.version, kernel = first_line("/proc/sys/kernel/osrelease"),
    api_version = kvm:get_api_version(), vcpu_mmap_size = kvm:get_vcpu_mmap_size(),
    modes = {}, notes = {}, errors = {},
  }
  if wanted("capabilities") then result.capabilities = kvm:capabilities() end
  for _, mode in ipairs(probe.modes) do try_mode(result, kvm, mode[1], parts, wanted) end
  for _, group in ipairs(probe.groups) do try_group(result, kvm, group, parts, wanted) end
  result.seconds = ckvm.now() - from
  return result
end

--- What `run` has returned, as text of 80 columns.
-- @tparam table found as from `ckvm.probe.run`
-- @treturn string lines
-- @raise what Lua does
-- @usage
-- local probe = require "ckvm.probe"
-- print(probe.text(probe.run { only = { "capabilities" } }))
function probe.text(found)
  return require("ckvm.probe.text")(probe, found)
end

--- The same as JSON, with sorted keys.
-- @tparam table found as from `ckvm.probe.run`
-- @treturn string one object
-- @raise what Lua does
-- @usage
-- local probe = require "ckvm.probe"
-- print(probe.json(probe.run { only = { "capabilities" } }))
function probe.json(found)
  return require("ckvm.probe.json")(found)
end

--- `ckvm-lua --probe`: probes and prints.
-- @tparam boolean json or else text
-- @treturn string|nil why there is no KVM
-- @raise what Lua does
-- @usage
-- local main = require("ckvm.probe").main -- for programs that are such a command
function probe.main(json)
  local show = require("ckvm.probe." .. (json and "json" or "text")) -- while a file can be opened
  load_parts()
  local opened, kvm = pcall(ckvm.open)
  if not opened and type(kvm) == "table" then
    return ("%s: %s: %s"):format(kvm.call, kvm.code, kvm.message)
  end
  local found = probe.run(opened and { kvm = kvm } or nil)
  io.write(json and show(found) or show(probe, found))
end

return probe

--- What a guest does, a line for each exit: time, vCPU, port or address, size, value and answer.
--
-- A trace stands in the VM's place where ranges and handlers are given to it: `attach_io`,
-- `attach_mmio` and `on` are the trace's, all else is the VM's. It sees what comes to the handlers
-- of those, and what nobody claims. What never enters Lua it cannot see: the kernel's devices, and
-- ranges with `log`. Without a trace nothing is in the way of an exit.
--
-- A line is the time since the trace was made, in seconds; the vCPU (`-` for a batched write); and
-- the exit. Of an access that is the port or address, its size in bytes, and the value: what is
-- written, or what the guest gets.
--
--     0.000153 vCPU 0 io_in 0x3fd 1 0x60
--     0.000171 vCPU 0 io_out 0x3f8 1 0x41
--     0.000186 vCPU 0 mmio_read 0xfee00020 4 unclaimed
-- @module ckvm.trace
-- @usage
-- local bus = require("ckvm.trace").new { vm = vm, kinds = "io,hlt", output = print }
-- bus:attach_io { port = 0x80, write = function() end }
-- vcpu:run { timeout = 1 }
local check = require "ckvm.check"
local ckvm = require "ckvm"
local dev = require "ckvm.dev"

local trace = {}

local KINDS <const> = {
  io = { "io_in", "io_out" }, mmio = { "mmio_read", "mmio_write" }, hlt = { "hlt" },
  msr = { "x86_rdmsr", "x86_wrmsr" }, hypercall = { "hypercall" }, debug = { "debug" },
  event = { "system_event" }, error = { "shutdown", "internal_error", "fail_entry" },
}

-- What is told of the exits that are no accesses.
local FIELDS <const> = {
  x86_rdmsr = { "index", "data" }, x86_wrmsr = { "index", "data" }, hypercall = { "nr", "ret" },
  debug = { "exception", "pc" }, system_event = { "type" }, internal_error = { "suberror" },
  fail_entry = { "hardware_entry_failure_reason" },
}

-- Kinds ------------------------------------------------------------------------

--- The names of all kinds, sorted.
-- @treturn table a list of strings
-- @raise only for misuse
-- @usage
-- print(table.concat(require("ckvm.trace").kinds(), " "))
function trace.kinds()
  local list = {}
  for name in pairs(KINDS) do table.insert(list, name) end
  table.sort(list)
  return list
end

-- The names of the exits, as a set.
local function exits_of(kinds)
  local list, exits = kinds, {}
  if type(kinds) == "string" then
    list = {}
    for name in (kinds .. ","):gmatch("%s*(.-)%s*,") do table.insert(list, name) end
  end
  for _, kind in ipairs(list) do
    if not KINDS[kind] then
      error(("trace: unknown kind '%s'; there are %s"):format(tostring(kind),
        table.concat(trace.kinds(), ", ")), 3)
    end
    for _, exit in ipairs(KINDS[kind]) do exits[exit] = true end
  end
  return exits
end

-- Lines ------------------------------------------------------------------------

local function say(self, vcpu, format, ...)
  self.output(("%.6f vCPU %s "):format(ckvm.now() - self.from, vcpu and vcpu.id or "-")
    .. format:format(...))
end

-- The low bytes that count; what is no integer is refused by the run, or means that nobody answers.
local function value_of(value, size)
  local number = math.tointeger(value)
  if type(value) ~= "number" or not number then return "unclaimed" end
  return ("0x%x"):format(size < 8 and number & (1 << 8 * size) - 1 or number)
end

local function print_to_stderr(line) io.stderr:write(line, "\n") end

-- Handlers ---------------------------------------------------------------------

local function traced_read(self, name, read)
  if not read or not self.exits[name] then return read end
  return function(address, size, vcpu)
    local value = read(address, size, vcpu)
    say(self, vcpu, "%s 0x%x %d %s", name, address, size, value_of(value, size))
    return value
  end
end

-- Told before it is done, as other things may come of it.
local function traced_write(self, name, write)
  if not write or not self.exits[name] then return write end
  return function(address, value, size, vcpu)
    say(self, vcpu, "%s 0x%x %d %s", name, address, size, value_of(value, size))
    return write(address, value, size, vcpu)
  end
end

local function unclaimed_write(self, name)
  return function(address, value, size, vcpu)
    say(self, vcpu, "%s 0x%x %d %s unclaimed", name, address, size, value_of(value, size))
    return false
  end
end

local function refuse() return false end

-- With what the handler has answered.
local function traced_exit(self, name, handler)
  return function(exit, vcpu)
    local result = handler(exit, vcpu)
    local words = { name }
    for _, field in ipairs(FIELDS[name] or {}) do
      local read, value = pcall(function() return exit[field] end)
      if read and math.type(value) == "integer" then
        table.insert(words, ("%s 0x%x"):format(field, value))
      end
    end
    say(self, vcpu, "%s", table.concat(words, " "))
    return result
  end
end

local function traced_handler(self, name, handler)
  if name == "io_in" or name == "mmio_read" then
    return traced_read(self, name, handler or refuse)
  elseif name == "io_out" or name == "mmio_write" then
    return handler and traced_write(self, name, handler) or unclaimed_write(self, name)
  end
  return traced_exit(self, name, handler or refuse)
end

-- Ranges -----------------------------------------------------------------------

-- The functions that answer a range, as a range of functions has them.
local function handlers_of(options, first)
  local device <const>, value <const> = options.device, options.value
  if device then
    return device.read and function(address, size) return device:read(address - first, size) end,
      device.write and function(address, data, size) device:write(address - first, data, size) end
  elseif value then
    return function() return value end, options.write or dev.ignore
  end
  return options.read, options.write
end

-- Whether what answers is one of what there can be: a device, a value, or functions.
local function is_answered(options)
  local device <const>, value <const>, read <const> = options.device, options.value, options.read
  if device then
    return (type(device) == "table" or type(device) == "userdata")
      and not (value or read or options.write)
  end
  return not value or math.type(value) == "integer" and not read
end

-- The options of a range that is traced, in the place of these. What is wrong with them is for the
-- VM to say.
local function wrap(self, options, first, read_name, write_name)
  if type(options) ~= "table" or math.type(first) ~= "integer" or options.log
    or not (self.exits[read_name] or self.exits[write_name]) or not is_answered(options) then
    return options
  end
  local copy = dev.copy(options)
  copy.device, copy.value = nil, nil
  local read, write = handlers_of(options, first)
  copy.read = traced_read(self, read_name, read)
  copy.write = traced_write(self, write_name, write)
  return copy
end

-- The trace --------------------------------------------------------------------

-- All that the VM has besides.
local function forward(self, key)
  local value = rawget(self, "vm")[key]
  if type(value) ~= "function" then return value end
  return function(_, ...) return value(rawget(self, "vm"), ...) end
end

local meta = {
  __index = function(self, key)
    local method = trace[key]
    if method == nil then return forward(self, key) end
    return method
  end,
}

--- Begins a trace, of what is attached through it from now on, and of what nobody claims. Handlers
-- that `vm:on` has for these exits are replaced.
-- @tparam table options
-- @tparam vm options.vm whose exits are traced
-- @tparam string|table options.kinds which of them: `"io,mmio"` or `{ "io", "mmio" }`, of `io`,
-- `mmio`, `hlt`, `msr`, `hypercall`, `debug`, `event` (system_event) and `error` (shutdown,
-- internal_error, fail_entry)
-- @tparam[opt] fun(line:string) options.output called with each line, without its newline; if left
-- out, they go to standard error
-- @treturn table the trace, to be used in the VM's place
-- @raise a string that names all kinds, for one that is unknown
-- @usage
-- local lines = {}
-- local bus = require("ckvm.trace").new {
--   vm = vm, kinds = { "io" }, output = function(line) table.insert(lines, line) end,
-- }
function trace.new(options)
  local kinds = type(options) == "table" and type(options.kinds) or "string"
  check.options("trace", options, { vm = "userdata", kinds = kinds == "table" and kinds or "string",
    output = "function?" })
  check.argument("vm", options.vm, "ckvm VM")
  local self = setmetatable({
    vm = options.vm, exits = exits_of(options.kinds), output = options.output or print_to_stderr,
    from = ckvm.now(),
  }, meta)
  for name in pairs(self.exits) do self.vm:on(name, traced_handler(self, name)) end
  return self
end

--- `vm:attach_io`, traced.
-- @tparam table options as for `vm:attach_io`
-- @treturn range the range
-- @raise what `vm:attach_io` raises
-- @usage
-- local bus = require("ckvm.trace").new { vm = vm, kinds = "io" }
-- bus:attach_io { port = 0x80, write = function() end }
function trace:attach_io(options)
  local first = type(options) == "table" and options.port
  local range
  check.blame(function()
    range = self.vm:attach_io(wrap(self, options, first, "io_in", "io_out"))
  end)
  return range
end

--- `vm:attach_mmio`, traced.
-- @tparam table options as for `vm:attach_mmio`
-- @treturn range the range
-- @raise what `vm:attach_mmio` raises
-- @usage
-- local bus = require("ckvm.trace").new { vm = vm, kinds = "mmio" }
-- bus:attach_mmio { gpa = 0xd0000000, size = 0x1000, read = function() return 0 end }
function trace:attach_mmio(options)
  local first = type(options) == "table" and options.gpa
  local range
  check.blame(function()
    range = self.vm:attach_mmio(wrap(self, options, first, "mmio_read", "mmio_write"))
  end)
  return range
end

--- `vm:on`, traced.
-- @tparam string|integer exit name of the exit
-- @tparam[opt] function handler as for `vm:on`
-- @raise what `vm:on` raises
-- @usage
-- local bus = require("ckvm.trace").new { vm = vm, kinds = "hlt", output = print }
-- bus:on("hlt", function(_, which) which:stop "done" end)
function trace:on(exit, handler)
  if self.exits[exit] and (handler == nil or type(handler) == "function") then
    handler = traced_handler(self, exit, handler)
  end
  check.blame(function() self.vm:on(exit, handler) end)
end

return trace

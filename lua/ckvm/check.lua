--- What a function checks of what it is given: errors that blame the line that has called it, and
-- not the one where they were noticed.
--
-- Types are named as `math.type` and `type` tell them, and `"ckvm VM"` and the like for ckvm's
-- objects; `"number"` stands for integers and floats, `"userdata"` for every object. In a table of
-- types, a `?` behind one says that the value may be left out.
-- @module ckvm.check
-- @usage
-- local check = require "ckvm.check"
-- local function blink(times, options)
--   check.argument("times", times, "integer")
--   check.options("blink", options, { color = "string?" })
-- end
-- blink(3, { color = "red" })
local check = {}

local WIDE <const> = { number = true, userdata = true } -- types that others are of, too

-- "integer", "table", "ckvm vCPU".
local function type_of(value)
  local kind = type(value) == "userdata" and getmetatable(value)
  return type(kind) == "string" and kind or math.type(value) or type(value)
end

-- In the words of messages: "vCPU".
local function in_words(kind) return (kind:gsub("^ckvm ", "")) end

local function fits(value, kind)
  return type_of(value) == kind or WIDE[kind] and type(value) == kind
end

--- Checks one argument.
-- @tparam string name of the argument, for messages
-- @tparam any value what it is
-- @tparam string expected its type
-- @raise only for misuse: a string that names the argument
-- @usage
-- local check = require "ckvm.check"
-- local function wait(seconds) check.argument("seconds", seconds, "integer") end
-- wait(1)
function check.argument(name, value, expected)
  if not fits(value, expected) then
    error(("%s: %s expected, got %s"):format(name, in_words(expected), type_of(value)), 3)
  end
end

-- Of a table whose entries are called fields or options: what is wrong with it, if anything is.
local function wrong(kind, name, entries, types)
  if type(entries) ~= "table" then
    return ("%s: table of %ss expected, got %s"):format(name, kind, type_of(entries))
  end
  for key in pairs(entries) do
    if not types[key] then return ("%s: unknown %s '%s'"):format(name, kind, tostring(key)) end
  end
  for key, expected in pairs(types) do
    local value <const>, base <const> = entries[key], expected:match("^[^?]+")
    local left_out <const> = value == nil and expected ~= base
    if not left_out and not fits(value, base) then
      return ("%s: %s: %s expected, got %s"):format(name, key, in_words(base), type_of(value))
    end
  end
end

--- Checks a function's table of options.
-- @tparam string name of the function, for messages
-- @tparam table options what is checked
-- @tparam table types the type of each option, by its name
-- @raise only for misuse: a string that names the option
-- @usage
-- local check = require "ckvm.check"
-- local function blink(options) check.options("blink", options, { color = "string?" }) end
-- blink {}
function check.options(name, options, types)
  local message <const> = wrong("option", name, options, types)
  if message then error(message, 3) end
end

--- Checks a table that describes something.
-- @tparam string name of what it describes, for messages
-- @tparam table fields what is checked
-- @tparam table types the type of each field, by its name
-- @raise only for misuse: a string that names the field
-- @usage
-- local check = require "ckvm.check"
-- local function draw(point) check.fields("point", point, { x = "integer", y = "integer" }) end
-- draw { x = 1, y = 2 }
function check.fields(name, fields, types)
  local message <const> = wrong("field", name, fields, types)
  if message then error(message, 3) end
end

local NEAR <const> = 16 -- levels of the stack: no error blames a line further up

-- The message without the position that `error` has put before it, which is that of a line that
-- is being run. What only looks like one, such as the name of a file, stays.
local function without_position(message)
  if type(message) ~= "string" then return message end
  for level = 2, NEAR do
    local frame <const> = debug.getinfo(level, "Sl")
    if not frame then break end
    local position <const> = ("%s:%d: "):format(frame.short_src, frame.currentline)
    if message:sub(1, #position) == position then return message:sub(#position + 1) end
  end
  return message
end

--- Calls a function; what that raises blames the line that has called the caller.
-- @tparam function fn what is called, without arguments
-- @raise what it raises: a string without the position that it had, an error object with
-- another `where`, or what else it was
-- @usage
-- local check = require "ckvm.check"
-- local function clear(vcpu) check.blame(function() vcpu:set_regs { rax = 0 } end) end
-- clear(vcpu)
function check.blame(fn)
  local done, message = xpcall(fn, without_position)
  if done then return end
  if type(message) == "string" then error(message, 3) end
  if type(message) == "table" then
    local _, where = pcall(error, "", 4)
    message.where = where:match("^(.-):? ?$")
  end
  error(message, 0)
end

--- Has a function called where an error leaves the block, for what would be left half made.
-- @tparam function undo what is called then, without arguments
-- @treturn table what is to be closed: the value of a local variable with `<close>`
-- @raise only for misuse; where `undo` raises, that error takes the other one's place
-- @usage
-- local check = require "ckvm.check"
-- local function make()
--   local file = io.tmpfile()
--   local _ <close> = check.at_error(function() file:close() end)
--   file:write("a header")
--   return file
-- end
-- make():close()
function check.at_error(undo)
  check.argument("undo", undo, "function")
  return setmetatable({}, { __close = function(_, err)
    if err ~= nil then undo() end
  end })
end

return check

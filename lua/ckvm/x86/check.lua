-- Misuse of ckvm.x86: errors that blame the line of who called its function.

local check = {}

-- "integer", "table", "ckvm vCPU".
local function type_of(value)
  local kind = type(value) == "userdata" and getmetatable(value)
  return type(kind) == "string" and kind or math.type(value) or type(value)
end

-- Of a function's argument.
function check.argument(name, value, expected)
  if type_of(value) ~= expected then
    error(("%s: %s expected, got %s"):format(name, (expected:gsub("^ckvm ", "")),
      type_of(value)), 3)
  end
end

-- Of a table that is one: the types of what it may have, by name; each without a "?" is needed.
function check.fields(what, fields, types)
  if type(fields) ~= "table" then
    error(("%s: table expected, got %s"):format(what, type_of(fields)), 3)
  end
  for key in pairs(fields) do
    if not types[key] then error(("unknown field '%s' of %s"):format(tostring(key), what), 3) end
  end
  for key, expected in pairs(types) do
    local found, kind = type_of(fields[key]), expected:match("%l+")
    if found ~= kind and not (found == "nil" and expected ~= kind) then
      error(("%s: %s expected, got %s"):format(key, kind, found), 3)
    end
  end
end

-- Calls fn. What it raises names the line that has called the caller.
function check.blame(fn)
  local done, message = pcall(fn)
  if done then return end
  if type(message) == "string" then error((message:gsub("^[^\n]-:%d+: ", "")), 3) end
  local _, where = pcall(error, "", 4)
  message.where = where:match("^(.-):? ?$")
  error(message, 0)
end

return check

-- Plain tables as JSON: objects with string keys, sorted, of strings, numbers and booleans. What
-- the probe has needs no more, and ckvm depends on no JSON library.

local ESCAPES <const> = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\t"] = "\\t" }

local function escape(char)
  return ESCAPES[char] or ("\\u%04x"):format(char:byte())
end

local function encode_string(text)
  if not utf8.len(text) then text = text:gsub("[\x80-\xff]", "?") end
  return '"' .. text:gsub('[%c"\\]', escape) .. '"'
end

local encode

local function encode_object(object, indent)
  local keys, lines = {}, {}
  for key in pairs(object) do table.insert(keys, key) end
  table.sort(keys)
  if #keys == 0 then return "{}" end
  local inner = indent .. "  "
  for _, key in ipairs(keys) do
    table.insert(lines, inner .. encode_string(key) .. ": " .. encode(object[key], inner))
  end
  return "{\n" .. table.concat(lines, ",\n") .. "\n" .. indent .. "}"
end

function encode(value, indent)
  local kind = math.type(value) or type(value)
  if kind == "table" then return encode_object(value, indent) end
  if kind == "string" then return encode_string(value) end
  return kind == "float" and ("%.4g"):format(value) or tostring(value)
end

return function(value)
  return encode(value, "") .. "\n"
end

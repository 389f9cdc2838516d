-- Definitions for LuaLS, the language server that most editors use: a file for each module.
local model = require "model"

local luals = {}

local PLAIN <const> = {
  integer = true, number = true, string = true, boolean = true, table = true, ["function"] = true,
  ["nil"] = true, any = true, fun = true, userdata = true,
}

luals.PLAIN = PLAIN

local function class(name)
  return name:find("^ckvm") and name or "ckvm." .. name
end

local function luals_type(kind)
  return model.map_type(kind, function(name) return PLAIN[name] and name or class(name) end)
end

-- What a script gives need not have all of a struct's fields.
local function given_type(kind, api)
  return model.map_type(kind, function(name)
    local chapter = api.by_name[name]
    if PLAIN[name] then return name end
    return class(name) .. (chapter and chapter.kind == "struct" and ".given" or "")
  end)
end

-- A field's or parameter's text is one line.
local function flat(text)
  return (text:gsub("%s+", " "))
end

local function trim(line)
  return line:match("^(.-)%s*$")
end

local function add_text(out, text)
  for line in (text .. "\n"):gmatch("(.-)\n") do
    table.insert(out, trim("--- " .. line))
  end
end

local function add_usage(out, item)
  for _, usage in ipairs(item.usage) do add_text(out, "```lua\n" .. usage .. "\n```") end
end

local function add_field(out, field, optional, kind)
  table.insert(out, trim(("---@field %s%s %s %s"):format(field.name, optional and "?" or "", kind,
    flat(field.text))))
end

local function add_fields(out, list)
  for _, field in ipairs(list) do add_field(out, field, field.optional, luals_type(field.type)) end
end

local function add_given(out, struct, api)
  table.insert(out, "---@class " .. class(struct.name) .. ".given")
  for _, field in ipairs(struct.fields) do
    add_field(out, field, true, given_type(field.type, api))
  end
  table.insert(out, "")
end

-- An option table is a class of its own.
local function options_class(item, param)
  return ("%s.%s.%s"):format(class(item.chapter.name), item.name, param.name)
end

local function add_options(out, item)
  for _, param in ipairs(item.params) do
    if param.of then
      table.insert(out, "---@class " .. options_class(item, param))
      add_fields(out, param.of)
      table.insert(out, "")
    end
  end
end

local function param_type(item, param, api)
  if not param.of then return given_type(param.type, api) end
  return (param.type:gsub("%f[%w]table%f[%W]", (options_class(item, param):gsub("%%", "%%%%"))))
end

local function add_function(out, item, owner, api)
  add_options(out, item)
  add_text(out, item.text)
  add_usage(out, item)
  for _, text in ipairs(item.raises) do add_text(out, "\nErrors: " .. text) end
  for _, entry in ipairs(item.api) do
    add_text(out, ("\napi.rst %s %s"):format(entry.section, entry.ioctl or ""))
  end
  local names = {}
  for _, param in ipairs(item.params) do
    table.insert(names, param.name)
    table.insert(out, trim(("---@param %s%s %s %s"):format(param.name,
      param.optional and param.name ~= "..." and "?" or "", param_type(item, param, api),
      flat(param.text))))
  end
  for _, result in ipairs(item.returns) do
    table.insert(out, ("---@return %s%s # %s"):format(luals_type(result.type),
      result.optional and "?" or "", flat(result.text)))
  end
  local path = owner .. (item.colon and ":" or ".") .. item.name
  table.insert(out, ("function %s(%s) end\n"):format(path, table.concat(names, ", ")))
end

local function parent_of(chapter, api)
  local object = api.by_name.object
  return chapter.kind == "type" and chapter ~= object and object and chapter.name ~= "exit"
    and chapter.name ~= "error" and " : " .. class "object" or ""
end

local function add_chapter(out, chapter, api)
  local owner = chapter.name:gsub("[^%w]", "_")
  add_text(out, chapter.text)
  add_usage(out, chapter)
  table.insert(out, "---@class " .. class(chapter.name) .. parent_of(chapter, api))
  add_fields(out, chapter.fields)
  table.insert(out, ("local %s = {}\n"):format(owner))
  for _, item in ipairs(chapter.functions) do add_function(out, item, owner, api) end
  return owner
end

-- The definitions by file name: ckvm.lua has the objects, too.
function luals.files(source)
  local files = {}
  for _, module in ipairs(source.api) do
    if module.kind == "module" then
      local out = { "---@meta " .. module.name .. "\n" }
      if module.name == "ckvm" then
        for _, chapter in ipairs(source.api) do
          if chapter.kind ~= "module" then
            table.insert(out, "do")
            add_chapter(out, chapter, source.api)
            table.insert(out, "end\n")
            if chapter.kind == "struct" then add_given(out, chapter, source.api) end
          end
        end
      end
      table.insert(out, "return " .. add_chapter(out, module, source.api) .. "\n")
      files[module.name:gsub("%.", "/") .. ".lua"] = table.concat(out, "\n")
    end
  end
  return files
end

return luals

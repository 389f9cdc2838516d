-- The Lua API as its doc blocks tell it: chapters (modules, types, structs) with functions and
-- fields, from which the site, the manual page and the definitions for editors are written.
--
-- chapter: { name, kind, text, usage, functions, fields, api }
-- function: { name, chapter, text, params, returns, raises, api, c, usage, block }
-- param, field: { name, type, text, optional, default, of = list of params for an option table }
-- api: { section, ioctl }
local blocks = require "blocks"

local model = {}

-- As a reader meets them; what is not here follows by name.
local ORDER <const> = {
  "ckvm", "object", "kvm", "vm", "vcpu", "memory", "guest_memfd", "range", "buffer", "eventfd",
  "watch", "terminal", "device", "stats", "exit", "error",
}

local function typed(block, tag)
  local kind, name, text = tag.rest:match("^(%S+)%s+(%S+)%s*(.*)$")
  if not kind then blocks.fail(block, "@%s takes a type and a name", tag.name) end
  return { name = name, type = kind, text = text, optional = tag.optional, default = tag.default }
end

-- `options.gpa` is a part of the parameter `options`.
local function add_param(block, item, param)
  local whole, part = param.name:match("^([%w_]+)%.(.+)$")
  if not whole then return table.insert(item.params, param) end
  for _, other in ipairs(item.params) do
    if other.name == whole then
      other.of = other.of or {}
      param.name = part
      return table.insert(other.of, param)
    end
  end
  blocks.fail(block, "%s: there is no parameter %s", param.name, whole)
end

-- Several fields of one kind may share a line: rax,rbx,rcx.
local function add_fields(block, list, tag)
  local field = typed(block, tag)
  for name in field.name:gmatch("[^,]+") do
    table.insert(list, {
      name = name, type = field.type, text = field.text, block = block, optional = field.optional,
    })
  end
end

local take = {}

function take.tparam(block, item, tag) add_param(block, item, typed(block, tag)) end

function take.treturn(block, item, tag)
  local kind, text = tag.rest:match("^(%S+)%s*(.*)$")
  if not kind then blocks.fail(block, "@treturn takes a type") end
  table.insert(item.returns, { type = kind, text = text, optional = tag.optional })
end

function take.tfield(block, item, tag) add_fields(block, item.fields, tag) end

function take.raise(_, item, tag) table.insert(item.raises, tag.rest) end

function take.api(block, item, tag)
  local section, ioctl = tag.rest:match("^([%d.-]+)%s*(%S*)$")
  if not section then blocks.fail(block, "@api takes a section of api.rst or -, and an ioctl") end
  table.insert(item.api, { section = section, ioctl = ioctl ~= "" and ioctl or nil })
end

function take.c(_, item, tag)
  for name in tag.rest:gmatch("[%w_]+") do table.insert(item.c, name) end
end

function take.usage(_, item, tag) table.insert(item.usage, tag.rest) end

local function new_item(block, name)
  local item = {
    name = name, text = block.text, block = block, functions = {}, fields = {}, params = {},
    returns = {}, raises = {}, api = {}, c = {}, usage = {},
  }
  for _, tag in ipairs(block.tags) do
    if take[tag.name] then take[tag.name](block, item, tag) end
  end
  return item
end

-- Filling --------------------------------------------------------------------

local function add_chapter(all, block, tag)
  local chapter = new_item(block, tag.rest)
  if all.by_name[chapter.name] then blocks.fail(block, "%s is there twice", chapter.name) end
  chapter.kind = tag.name
  all.by_name[chapter.name] = chapter
  table.insert(all, chapter)
end

-- lua/ckvm/x86/pages.lua is a part of ckvm.x86.
local function module_of(all, file)
  local whole = file:gsub("^(lua/ckvm/%w+)/.*$", "%1.lua")
  return all.module_of[file] or all.module_of[whole]
end

-- "vm:add_memory" or "ckvm.open", in a Lua module by its local name: "x86.enter".
local function chapter_of(all, block, path)
  local owner, name = path:match("^(.+)[.:]([^.:]+)$")
  local chapter = all.by_name[owner] or all.by_name[module_of(all, block.file)]
  if not owner or not chapter then blocks.fail(block, "%s: no chapter for it", path) end
  return chapter, name
end

-- Alike functions may share a block: `@function vm:read_u8, vm:read_u16`.
local function add_function(all, block, tag)
  for path in tag.rest:gmatch("[^%s,]+") do
    local chapter, name = chapter_of(all, block, path)
    local item = new_item(block, name)
    item.chapter = chapter
    item.colon = path:find(":", 1, true) ~= nil
    table.insert(chapter.functions, item)
  end
end

-- `@state vcpu:regs kvm_regs`: get_regs and set_regs, each where @api has its ioctl.
local function add_state(all, block, tag)
  local path, struct = tag.rest:match("^(%S+)%s+(%S+)$")
  if not path then blocks.fail(block, "@state takes a name and a struct") end
  local chapter, name = chapter_of(all, block, path)
  for _, prefix in ipairs { "get", "set" } do
    local item = new_item(block, prefix .. "_" .. name)
    local api = {}
    for _, entry in ipairs(item.api) do
      if entry.ioctl and entry.ioctl:find("_" .. prefix:upper() .. "_") then
        table.insert(api, entry)
      end
    end
    item.chapter, item.colon, item.api = chapter, true, api
    if prefix == "get" then
      item.returns = { { type = struct, text = "a fresh table" } }
    else
      item.params = { { name = "values", type = struct, text = "fields to set" } }
    end
    if api[1] then table.insert(chapter.functions, item) end
  end
end

local function add_field(all, block, tag)
  local chapter, name = chapter_of(all, block, tag.rest)
  local item = new_item(block, name)
  table.insert(chapter.fields, {
    name = name, type = item.returns[1] and item.returns[1].type or "table", text = block.text,
    block = block,
  })
end

local ADD <const> = { ["function"] = add_function, state = add_state, field = add_field }

local function rank(chapter)
  for i, name in ipairs(ORDER) do
    if chapter.name == name then return i end
  end
  return #ORDER + (chapter.kind == "type" and 1 or chapter.kind == "module" and 2 or 3)
end

local function sort(all)
  table.sort(all, function(a, b)
    local i, j = rank(a), rank(b)
    if i ~= j then return i < j end
    return a.name < b.name
  end)
end

-- Which C functions of the header do what a method does: those that @c names, and by its name.
local function add_c(all, declared)
  local prefix <const> = {
    ckvm = "ckvm_", kvm = "ckvm_", vm = "ckvm_vm_", vcpu = "ckvm_vcpu_", memory = "ckvm_memory_",
    range = "ckvm_range_", buffer = "ckvm_buffer_", device = "ckvm_device_",
    eventfd = "ckvm_eventfd_",
  }
  for _, chapter in ipairs(all) do
    for _, item in ipairs(chapter.functions) do
      local name = (prefix[chapter.name] or "?") .. item.name
      if declared[name] then table.insert(item.c, 1, name) end
    end
  end
end

-- sources: a list of { file, text }; declared: the set of the C API's functions.
function model.build(sources, declared)
  local all = { by_name = {}, module_of = {} }
  local rest = {}
  for _, source in ipairs(sources) do
    for _, block in ipairs(blocks.read(source[1], source[2])) do
      local tag, is_head = blocks.subject(block)
      if not tag then blocks.fail(block, "the block does not say what it is about") end
      if is_head then
        add_chapter(all, block, tag)
        if tag.name == "module" then all.module_of[block.file] = tag.rest end
      else
        table.insert(rest, { block, tag })
      end
    end
  end
  for _, entry in ipairs(rest) do ADD[entry[2].name](all, entry[1], entry[2]) end
  sort(all)
  for _, chapter in ipairs(all) do
    table.sort(chapter.functions, function(a, b) return a.name < b.name end)
  end
  add_c(all, declared)
  return all
end

-- Names ----------------------------------------------------------------------

-- "vm:add_memory", "ckvm.open".
function model.path(item)
  return item.chapter.name .. (item.colon and ":" or ".") .. item.name
end

-- "vm:add_memory { gpa =, size =, [slot =] }", "vm:fill(gpa, length, [byte])".
function model.signature(item)
  local only = #item.params == 1 and item.params[1].of and not item.params[1].optional
  local words = {}
  for _, param in ipairs(only and item.params[1].of or item.params) do
    local word = param.name .. (only and " =" or "")
    table.insert(words, param.optional and "[" .. word .. "]" or word)
  end
  local list = table.concat(words, ", ")
  return model.path(item) .. (only and " { " .. list .. " }" or "(" .. list .. ")")
end

-- Calls visit(name) for each word of a type that names one: "vcpu[]|nil", "fun(port:integer)".
function model.each_type(kind, visit)
  kind = kind:gsub("([%w_]+)%??:", "") -- names of a function's parameters
  for name in kind:gmatch("[%a_][%w_.]*") do visit(name) end
end

-- The type with each name of a chapter replaced by what `replace` gives for it.
function model.map_type(kind, replace)
  return (kind:gsub("([%a_][%w_.]*)(%??:?)", function(name, colon)
    return (colon:find(":") and name or replace(name)) .. colon
  end))
end

return model

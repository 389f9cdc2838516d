-- The doc blocks beside the methods: one for each method and field that there is, with all that a
-- reader needs, and none for what there is not. Their examples run.

local ckvm = require "ckvm"
local images = require "boot_images"
local support = require "support"

local top = debug.getinfo(1, "S").source:match("^@(.*)tests/[^/]*$")
package.path = top .. "doc/reference/?.lua;" .. package.path

local model = require "model"
local source = require("sources").read(top == "" and "." or top)
local api = source.api
local PLAIN <const> = require("luals").PLAIN

local function names_of(list)
  local set = {}
  for _, entry in ipairs(list) do set[entry.name] = true end
  return set
end

-- Raises with what one of the sets has and the other has not.
local function same_names(there, documented, what)
  local list = {}
  for name in pairs(there) do
    if not documented[name] then table.insert(list, name .. " has no block") end
  end
  for name in pairs(documented) do
    if not there[name] then table.insert(list, name .. " has a block, and is not there") end
  end
  table.sort(list)
  if list[1] then error(what .. ": " .. table.concat(list, ", "), 0) end
end

local function each_function(visit)
  for _, chapter in ipairs(api) do
    for _, item in ipairs(chapter.functions) do visit(item, model.path(item)) end
  end
end

-- Every parameter, result and field, with a name for messages.
local function each_typed(visit)
  local function all(list, path)
    for _, entry in ipairs(list) do
      local name = path .. " " .. (entry.name or "returns")
      visit(entry, name)
      all(entry.of or {}, name)
    end
  end
  for _, chapter in ipairs(api) do all(chapter.fields, chapter.name) end
  each_function(function(item, path)
    all(item.params, path)
    all(item.returns, path)
  end)
end

-- What there is ----------------------------------------------------------------

local function members_of(module)
  local entry = { functions = {}, fields = {} }
  for key, value in pairs(module) do
    entry[type(value) == "function" and "functions" or "fields"][key] = true
  end
  return entry
end

local function compare(name, entry, shared)
  local chapter = assert(api.by_name[name], "no block with @type or @module " .. name)
  for key in pairs(shared) do entry.functions[key] = nil end
  same_names(entry.functions, names_of(chapter.functions), name)
  same_names(entry.fields, names_of(chapter.fields), name)
end

-- By the name that they are called by in messages, the keys of option tables in the sources.
local function option_keys()
  local found = {}
  local pipe <close> = assert(io.popen(("cat '%s'src/luackvm/*.c"):format(top)))
  for body in pipe:read("a"):gmatch("\n{\n(.-)\n}\n") do
    local list = body:match("keys%[%] = (%b{})")
    local who = body:match('luackvm_check_keys%(L, [^,]+, "([%w_]+)", keys%)')
    if list and who then
      found[who] = {}
      for key in list:gmatch('"([%w_]+)"') do found[who][key] = true end
    end
  end
  return found
end

local function ioctl_names()
  local names = {}
  for name in source.read("src/libckvm/ioctl.c"):gmatch("R%((KVM_[%w_]+)%)") do
    names[name] = true
  end
  assert(next(names))
  return names
end

-- Examples ---------------------------------------------------------------------

-- What examples may use without making it.
local function environment()
  local env = setmetatable({
    ckvm = ckvm, dev = require "ckvm.dev", x86 = require "ckvm.x86",
  }, { __index = _G })
  env.kvm, env.vm, env.vcpu, env.ram = support.real_mode("\xf4") -- hlt
  env.range = env.vm:attach_io { port = 0x3f8, value = 0 }
  env.buffer = ckvm.buffer(16)
  env.eventfd = ckvm.eventfd()
  env.stats = env.vm:get_stats_fd()
  env.watch = env.vm:after(60, print)
  env.flat = images.multiboot { code = "\x31\xc0\xe7\xf4" } -- xor %eax, %eax; out %eax, $0xf4
  return env
end

-- What a KVM says that has not got the feature.
local LACKING <const> = {
  ENOTTY = true, EOPNOTSUPP = true, ENOTSUP = true, ENODEV = true, ENXIO = true,
}

-- An example works, or is refused for want of the feature, as its block says.
local function run_example(name, text, raises)
  local run = assert(load(text, "=" .. name, "t", environment()))
  local output <const>, print_before <const> = io.output(), print
  io.output(io.tmpfile())
  _G.print = function() end
  local ok, err = pcall(run)
  io.output():close()
  io.output(output)
  _G.print = print_before
  if ok then return end
  local code = type(err) == "table" and LACKING[err.code] and err.code
  if not code then error(err, 0) end
  -- The C library knows one errno by two names.
  local other = code == "ENOTSUP" and "EOPNOTSUPP" or code
  assert(raises:find(code, 1, true) or raises:find(other, 1, true),
    ("%s: %s, of which @raise says nothing"):format(err.call, code))
end

describe("the reference", function()
  it("has every method and field of every object, and no others", function()
    local shared = names_of(api.by_name.object.functions)
    local found = support.types()
    assert(found.vm and found.vcpu)
    for name, entry in pairs(found) do compare(name, entry, shared) end
    for _, chapter in ipairs(api) do
      local view = chapter.name == "exit" or chapter.name == "error" or chapter.name == "object"
      assert(chapter.kind ~= "type" or view or found[chapter.name], chapter.name)
    end
  end)

  it("has every function and field of every module, and no others", function()
    -- The files in directories of lua/ckvm are parts of modules, but for the devices.
    local command = ("cd '%slua' && ls ckvm/*.lua ckvm/dev/*.lua"):format(top)
    local pipe <close> = assert(io.popen(command))
    local modules = { ckvm = true }
    for name in pipe:lines() do modules[name:gsub("%.lua$", ""):gsub("/", ".")] = true end
    for name in pairs(modules) do compare(name, members_of(require(name)), {}) end
    for _, chapter in ipairs(api) do
      assert(chapter.kind ~= "module" or modules[chapter.name], chapter.name)
    end
  end)

  it("has the fields of what is raised", function()
    local fields = {}
    for name in pairs(support.error_of(ckvm.open, "/dev/null")) do fields[name] = true end
    same_names(fields, names_of(api.by_name.error.fields), "error")
  end)

  it("has the fields of exits, as the README has them", function()
    local fields = { reason = true }
    for name in source.read("README.md"):match("Every exit has these besides: (.-)%. "):gmatch(
      "`([^`]+)`") do
      fields[name] = true
    end
    local body = source.read("README.md"):match("\n| exit |[^\n]*\n|[-|]+\n(.-)\n\n")
    for cells in body:gmatch("|[^|]*|[^|]*|([^|\n]*)|") do
      for name in cells:gmatch("`([^`]+)`") do fields[name] = true end
    end
    same_names(fields, names_of(api.by_name.exit.fields), "exit")
  end)

  it("has the fields of structs", function()
    local function same(struct, value)
      local chapter = assert(api.by_name[struct], struct)
      local fields = {}
      for name in pairs(value) do fields[name] = true end
      same_names(fields, names_of(chapter.fields), struct)
      for _, field in ipairs(chapter.fields) do
        local inner = value[field.name]
        if api.by_name[field.type] then same(field.type, inner) end
        local list = field.type:match("^(.*)%[%]$")
        if api.by_name[list] and inner[1] then same(list, inner[1]) end
      end
    end
    support.need_kvm()
    local env = environment()
    each_function(function(item)
      local object, result = env[item.chapter.name], item.returns[1]
      local struct = result and api.by_name[result.type]
      if item.name:find("^get_") and #item.params == 0 and struct and struct.kind == "struct" then
        local ok, value = pcall(object[item.name], object)
        if ok then same(result.type, value) end -- or this KVM has not got it
      end
    end)
    same("vcpu_stats", env.vcpu.stats)
  end)

  it("says of each function what it does, and how it fails, with an example", function()
    each_function(function(item, path)
      assert(item.text:find("%.$") or item.text:find("%.\n"), path .. ": no sentence")
      assert(#item.raises > 0, path .. ": no @raise")
      assert(#item.usage > 0, path .. ": no @usage")
    end)
  end)

  it("says what each parameter, result and field is, in types that there are", function()
    each_typed(function(entry, name)
      assert(entry.text ~= "" or entry.of, name .. ": no text")
      model.each_type(entry.type, function(word)
        assert(PLAIN[word] or api.by_name[word], name .. ": unknown type " .. word)
      end)
    end)
  end)

  it("has a unit for each number", function()
    local units = {
      "byte", "address", "number", "how many", "second", "value", "bits", "0 or 1", "offset", "Hz",
    }
    each_typed(function(entry, name)
      local number = (" " .. entry.type):find("[^%w:(]integer") or entry.type == "number"
      -- A string is a name for the number, a table has numbers with units of their own.
      if not number or entry.type:find("string") or entry.of then return end
      for _, unit in ipairs(units) do
        if entry.text:find(unit, 1, true) then return end
      end
      error(("%s: '%s' has none of the units: %s"):format(name, entry.text,
        table.concat(units, ", ")), 0)
    end)
  end)

  it("has the options that the sources take, and no others", function()
    local keys = option_keys()
    assert(keys.add_memory and keys.run)
    local documented = {}
    each_function(function(item, path)
      for _, param in ipairs(item.params) do
        if param.of and keys[item.name] and item.block.file:find("%.c$") then
          same_names(keys[item.name], names_of(param.of), path)
          documented[item.name] = true
        end
      end
    end)
    for _, chapter in ipairs(api) do
      if chapter.kind == "struct" and keys[chapter.name] then
        same_names(keys[chapter.name], names_of(chapter.fields), chapter.name)
        documented[chapter.name] = true
      end
    end
    for name in pairs(keys) do assert(documented[name], name .. " has options without a block") end
  end)

  it("has options of the module's functions that these know", function()
    for _, item in ipairs(api.by_name.ckvm.functions) do
      for _, part in ipairs(item.params[1] and item.params[1].of or {}) do
        local _, err = pcall(ckvm[item.name], { [part.name] = print, [""] = 1 })
        assert(not tostring(err):find("'" .. part.name .. "'", 1, true), item.name .. part.name)
      end
    end
  end)

  it("names the section of api.rst, and the ioctl, where a method is one", function()
    local known = ioctl_names()
    each_function(function(item, path)
      local named = {}
      for _, entry in ipairs(item.api) do
        assert(entry.section:find("^%d+%.%d+$") or entry.section == "-", path)
        if entry.ioctl then
          assert(known[entry.ioctl], path .. ": unknown ioctl " .. entry.ioctl)
          named[entry.ioctl] = true
        end
      end
      local own = "KVM_" .. item.name:upper()
      assert(not item.colon or not known[own] or named[own], path .. ": no @api for " .. own)
    end)
  end)

  for _, chapter in ipairs(api) do
    local function each_usage(item, name)
      for i, usage in ipairs(item.usage) do
        local which <const> = i > 1 and ", " .. i or ""
        local promise <const> = "has examples that work, or are refused as it says: "
        it(promise .. name .. which, function()
          support.need_kvm()
          run_example(name, usage, table.concat(item.raises or {}, " "))
        end)
      end
    end
    each_usage(chapter, chapter.name)
    for _, item in ipairs(chapter.functions) do each_usage(item, model.path(item)) end
  end
end)

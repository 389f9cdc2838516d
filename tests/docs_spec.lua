-- What is made from the doc blocks and the headers: the site, the manual page, the definitions for
-- editors; and the two lists beside them, of kvm-ioctls' calls and of C functions without a method.

local ckvm = require "ckvm"
local support = require "support"

local top = debug.getinfo(1, "S").source:match("^@(.*)tests/[^/]*$")
package.path = top .. "doc/reference/?.lua;" .. package.path

local model = require "model"
local source = require("sources").read(top == "" and "." or top)
local api = source.api

local function each_function(visit)
  for _, chapter in ipairs(api) do
    for _, item in ipairs(chapter.functions) do visit(item, model.path(item)) end
  end
end

-- The functions of a header, in order, and as a set.
local function declared(title)
  for _, entry in ipairs(source.headers) do
    if entry.title == title then
      local set, list = require("header").functions(entry.chapters)
      return list, set
    end
  end
end

-- The site ---------------------------------------------------------------------

describe("make docs", function()
  local pages = require("html").pages(source)

  it("has links that lead somewhere", function()
    local anchors = {}
    for name, text in pairs(pages) do
      anchors[name] = {}
      for id in text:gmatch(' id="([^"]*)"') do
        assert(not anchors[name][id], name .. " has two of " .. id)
        anchors[name][id] = true
      end
    end
    for name, text in pairs(pages) do
      for target in text:gmatch(' href="([^"]*)"') do
        local page, id = target:match("^([^#]*)#?(.*)$")
        assert(anchors[page], name .. ": " .. target)
        assert(id == "" or anchors[page][id], name .. ": " .. target)
      end
    end
  end)

  it("has all methods, and all functions of the headers", function()
    each_function(function(item, path)
      local page = pages[item.chapter.name .. ".html"]
      assert(page:find(('<h3 id="%s">'):format(item.name), 1, true), path)
    end)
    for _, entry in ipairs(source.headers) do
      for _, name in ipairs((declared(entry.title))) do
        assert(pages[entry.title .. ".html"]:find(('<b id="%s">'):format(name), 1, true), name)
      end
    end
  end)

  it("finds every function that a header exports", function()
    for _, entry in ipairs(source.headers) do
      local _, count = source.read(entry.file):gsub("\nCKVM_API ", "")
      assert.equal(count, #declared(entry.title))
    end
  end)

  it("has an index by ioctl", function()
    local index = pages["ioctls.html"]
    each_function(function(item, path)
      for _, entry in ipairs(item.api) do
        local row = entry.ioctl and ("<tr><td>%s<td>%s<td>"):format(entry.ioctl, entry.section)
        assert(not row or index:find(row, 1, true), path)
        assert(not row or index:find(">" .. path .. "<", 1, true), path)
      end
    end)
    support.contains('href="libckvm.html#ckvm_vm_add_memory"', index)
  end)

  it("names C functions that there are", function()
    local _, set = declared("libckvm")
    each_function(function(item, path)
      for _, name in ipairs(item.c) do assert(set[name], path .. ": " .. name) end
    end)
  end)

  it("closes what it opens", function()
    local void <const> = { meta = true, tr = true, td = true, th = true } -- may stay open
    for name, text in pairs(pages) do
      local open = {}
      for slash, tag in text:gsub("<!.->", ""):gmatch("<(/?)(%l%w*)[^>]*>") do
        if slash ~= "" and not void[tag] then
          assert.equal(table.remove(open), tag, name)
        elseif not void[tag] then
          table.insert(open, tag)
        end
      end
      assert.same({}, open, name)
    end
  end)
end)

-- The manual page, the definitions ---------------------------------------------

describe("ckvm(3lua)", function()
  local page = require("man").page(source)

  it("has all chapters and methods", function()
    for _, chapter in ipairs(api) do
      local heading = chapter.kind == "struct" and ".Ss " .. chapter.name
        or ".Sh " .. chapter.name:upper()
      assert(page:find("\n" .. heading .. "\n", 1, true), heading)
    end
    each_function(function(_, path) assert(page:find("\n.Ss " .. path, 1, true), path) end)
  end)

  it("ends the lists and displays that it begins", function()
    local open = {}
    for macro in page:gmatch("\n%.(%u%l)") do
      if macro == "Bl" or macro == "Bd" then table.insert(open, macro) end
      if macro == "El" or macro == "Ed" then
        assert.equal(table.remove(open), macro == "El" and "Bl" or "Bd")
      end
    end
    assert.same({}, open)
  end)

  it("has only macros of mdoc at the beginning of lines", function()
    local known = {}
    for name in ("Dd Dt Os Sh Nm Nd Dl Ss Bl It El Bd Ed Pp Xr"):gmatch("%a+") do
      known[name] = true
    end
    for macro in page:gmatch("\n[.'](%S*)") do
      assert(known[macro] or macro == '\\"', macro)
    end
  end)
end)

describe("the definitions for editors", function()
  local files = require("luals").files(source)

  it("are Lua, with all functions", function()
    local all = ""
    for name, text in pairs(files) do
      assert(load(text, "=" .. name))()
      all = all .. text
    end
    each_function(function(item)
      local owner = item.chapter.name:gsub("[^%w]", "_") .. (item.colon and ":" or ".")
      support.contains(("\nfunction %s%s("):format(owner, item.name), all)
    end)
  end)

  it("are one file for each module", function()
    for _, chapter in ipairs(api) do
      local name = chapter.name:gsub("%.", "/") .. ".lua"
      assert.equal(chapter.kind == "module", files[name] ~= nil, name)
    end
  end)

  it("name classes that they define", function()
    local classes, used = {}, {}
    for _, text in pairs(files) do
      for name in text:gmatch("%-%-%-@class ([%w_.]+)") do classes[name] = true end
      for tag, words in text:gmatch("%-%-%-@([fpr]%l+) ([^\n]*)") do
        local kind = tag == "return" and words:match("^%S+") or words:match("^%S+ (%S+)")
        for name in kind:gmatch("%f[%w]ckvm%.[%w_.]+") do used[name] = true end
      end
    end
    assert(next(used))
    for name in pairs(used) do assert(classes[name], name) end
  end)
end)

-- The lists ----------------------------------------------------------------------

describe("doc/kvm-ioctls.md", function()
  local rows = {}
  for section in (source.read("doc/kvm-ioctls.md") .. "\n## "):gmatch("## (.-)%f[#\0]") do
    for line in section:gmatch("\n|([^\n]*)|") do
      local cells = {}
      for cell in (line .. "|"):gmatch("%s*(.-)%s*|") do table.insert(cells, cell) end
      cells.object = ({ Kvm = "kvm", VmFd = "vm", VcpuFd = "vcpu", DeviceFd = "device" })[
        section:match("^%w+")]
      if cells[1]:find("`") then table.insert(rows, cells) end
    end
  end

  local paths, fields = {}, {}
  each_function(function(_, path) paths[path] = true end)
  for _, chapter in ipairs(api) do
    fields[chapter.name] = true
    for _, field in ipairs(chapter.fields) do fields[chapter.name .. "." .. field.name] = true end
  end

  it("has a row for each call", function()
    assert(#rows > 100, #rows)
    for _, cells in ipairs(rows) do assert.equal(4, #cells, cells[1]) end
  end)

  it("names methods and functions that there are", function()
    local _, set = declared("libckvm")
    for _, cells in ipairs(rows) do
      for name in cells[3]:gmatch("`([%l_]+[.:][%w_.]+)`") do
        assert(paths[name] or fields[name], name)
      end
      for name in cells[4]:gmatch("`(ckvm_[%w_]+)`") do assert(set[name], name) end
    end
  end)

  it("leaves no cell empty for what there is", function()
    local _, set = declared("libckvm")
    for _, cells in ipairs(rows) do
      local name = cells[2]:match("^KVM_(.*)$")
      if name and cells.object then
        local method = cells.object .. ":" .. name:lower()
        local prefix = cells.object == "kvm" and "ckvm_" or "ckvm_" .. cells.object .. "_"
        assert(cells[3] ~= "" or not paths[method], method)
        assert(cells[4] ~= "" or not set[prefix .. name:lower()], prefix .. name:lower())
      end
    end
  end)
end)

describe("ckvm.h", function()
  -- What the binding calls by its name, or has a method for that has its name.
  local function called()
    local pipe <close> = assert(io.popen(("cat '%s'src/luackvm/*.[ch]"):format(top)))
    local names = {}
    for name in pipe:read("a"):gmatch("%f[%w_]ckvm_[%w_]+") do names[name] = true end
    each_function(function(item)
      for _, name in ipairs(item.c) do names[name] = true end
    end)
    return names
  end

  it("has no function without a method, but for those with a reason", function()
    local names, unbound = called(), require "unbound"
    local list, set = declared("libckvm")
    for _, name in ipairs(list) do
      assert(names[name] or unbound[name], name .. " is neither bound nor in unbound.lua")
    end
    for name, reason in pairs(unbound) do
      assert(set[name] and not names[name], name .. " is in unbound.lua, and need not be")
      assert(#reason > 5, name)
    end
  end)

  it("has the version of the module", function()
    local text, numbers = source.read("src/libckvm/ckvm.h"), {}
    for _, part in ipairs { "MAJOR", "MINOR", "PATCH" } do
      table.insert(numbers, (text:match("_VERSION_" .. part .. " (%d+)")))
    end
    assert.equal(table.concat(numbers, "."), ckvm.version)
  end)
end)

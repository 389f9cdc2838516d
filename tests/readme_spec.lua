-- README.md: its code runs and prints what it says, its tables name what there is, its links lead
-- somewhere.

local ckvm = require "ckvm"
local lfs = require "lfs"
local support = require "support"

local top = debug.getinfo(1, "S").source:match("^@(.*)tests/[^/]*$")
local build = support.program():match("^(.*)/")

local function read(name)
  local file <close> = assert(io.open(top .. name, "rb"))
  return file:read("a")
end

local readme = read("README.md")

-- The code blocks in a language: { text, what the text block after it shows }.
local function blocks(language)
  local list, last = {}, nil
  for kind, text in readme:gmatch("\n```(%a+)\n(.-)\n```") do
    if kind == language then
      last = { text = text .. "\n" }
      table.insert(list, last)
    elseif kind == "text" and last then
      last.output = text .. "\n"
    end
    if kind ~= language then last = nil end
  end
  assert(#list > 0, "no block of " .. language)
  return list
end

-- The rows of the table whose first column is headed so, each a list of cells.
local function rows(heading)
  local list = {}
  local body = assert(readme:match("\n| " .. heading .. " |[^\n]*\n|[-|]+\n(.-)\n\n"), heading)
  for line in body:gmatch("[^\n]+") do
    local cells = {}
    for cell in line:gmatch("|([^|]*)%f[|]") do table.insert(cells, cell) end
    table.insert(list, cells)
  end
  return list
end

local function each_word(text, visit)
  for word in text:gmatch("`([^`]+)`") do visit(word) end
end

local function sorted(set)
  local list = {}
  for name in pairs(set) do table.insert(list, name) end
  table.sort(list)
  return list
end

local function exists(name)
  return lfs.attributes(name, "mode") ~= nil
end

-- Exits, as the sources have them --------------------------------------------

local function exit_names()
  local names = {}
  local source = read("src/libckvm/exit.c")
  for name in source:match("names%[%] = {(.-)};"):gmatch('"([%w_]+)"') do names[name] = true end
  for name in source:match("accesses%[%] = {(.-)};"):gmatch('"([%w_]+)"') do names[name] = true end
  names.io, names.mmio = nil, nil -- they have the four others
  return names
end

-- By the name of the field list, its fields, each true or, if a script can set it, "*".
local function field_lists(source)
  local lists = {}
  local msr_reason = source:match("#define MSR_REASON AT%(\"(%w+_%w+)\"")
  for name, body in source:gmatch("luackvm_field ([%w_]+)%[%] = (%b{});") do
    local fields = {}
    for macro, arguments in body:gmatch("([%u_]+)(%b())") do
      local field = arguments:match('^%("([%w_]+)"') or arguments:match("^%([%w_.]+,%s*([%w_]+)")
      local set = macro:find("ANSWER", 1, true) or arguments:find("PAYLOAD_ANSWER", 1, true)
      fields[field] = set and "*" or true
    end
    for field in body:gmatch('%.name = "([%w_]+)"') do fields[field] = true end
    if body:find("MSR_REASON", 1, true) then fields[msr_reason] = true end
    lists[name] = fields
  end
  return lists
end

-- By the exit's name, its fields; and those that every exit has.
local function exit_fields()
  local source = read("src/luackvm/payload.c")
  local lists, exits = field_lists(source), {}
  local payloads = source:match("payloads%[%] = (%b{});")
  for reason, list in payloads:gmatch("{ KVM_EXIT_([%u%d_]+), ([%w_]+)") do
    local fields = exits[reason:lower()] or {}
    exits[reason:lower()] = fields
    for field, star in pairs(assert(lists[list], list)) do fields[field] = star end
  end
  for name, source_name in pairs { io_in = "io", mmio_read = "mmio" } do
    exits[name] = { data = "*" }
    for field in pairs(exits[source_name]) do exits[name][field] = true end
  end
  exits.io_out, exits.mmio_write = exits.io, exits.mmio
  exits.io_out.data, exits.mmio_write.data, exits.loongarch_iocsr.data = true, true, "*"
  exits.io, exits.mmio = nil, nil
  return exits, lists.page
end

local function listed_fields(text)
  local listed = {}
  for field, star in text:gmatch("`([^`]+)`(%*?)") do
    listed[field] = star == "*" and "*" or true
  end
  return listed
end

describe("README.md:", function()
  for i, block in ipairs(blocks("lua")) do
    it("runs script " .. i, function()
      support.need_kvm()
      local status, output, errors = support.run(block.text)
      assert.equal("", errors)
      assert.equal(0, status)
      assert.equal(block.output, output)
    end)
  end

  for i, block in ipairs(blocks("c")) do
    it("compiles and runs C program " .. i, function()
      support.need_kvm()
      local library = build .. "/.libs/libckvm.a"
      if not os.execute("command -v cc >/dev/null") then pending("no C compiler") end
      if not exists(library) then pending("no libckvm.a in this build") end
      local name = os.tmpname()
      local makefile <close> = assert(io.open(build .. "/Makefile"))
      local settings, flags = makefile:read("a"), ""
      for _, kind in ipairs { "SANITIZER", "COVERAGE" } do
        flags = flags .. " " .. (settings:match("\n" .. kind .. "_CFLAGS = ([^\n]*)") or "")
      end
      local compile = assert(io.popen(
        ("cc -Wall -Werror -x c %s -I%ssrc/libckvm -o %s - -x none %s 2>&1 -lrt -pthread"):format(
          flags, top, name, library), "w"))
      compile:write(block.text)
      assert(compile:close())
      local pipe = io.popen(name .. " 2>&1")
      local output = pipe:read("a")
      local ended = pipe:close()
      os.remove(name)
      assert.equal(block.output, output)
      assert(ended)
    end)
  end

  it("names shell commands that there are", function()
    local known = { cd = true, sudo = true, make = true, mkdir = true, autoreconf = true }
    for _, block in ipairs(blocks("sh")) do
      for line in block.text:gsub(" && ", "\n"):gmatch("[^\n]+") do
        local words = {}
        for word in line:gsub("%s+#.*", ""):gmatch("%S+") do table.insert(words, word) end
        local command, argument = words[1], words[2]
        if command:find("^%./") then
          assert(exists(top .. command), line)
          assert(read(command):find("\n%s*" .. argument .. "[|)]"), line)
        elseif command == "build/ckvm-lua" then
          assert(exists(build .. "/ckvm-lua") and exists(top .. argument), line)
        elseif command == "../configure" then
          assert(exists(top .. "configure.ac"), line)
        else
          assert(known[command] or command:find("^lua"), line)
        end
      end
    end
  end)

  it("shows how boot.lua starts", function()
    support.need_kvm()
    local args = readme:match("\nbuild/ckvm%-lua scripts/boot.lua ([^\n]*)\n")
    local after = {}
    for word in args:gmatch("%S+") do table.insert(after, word) end
    local status, output = support.run(
      ("return assert(loadfile(%q))(...)"):format(top .. "scripts/boot.lua"), { after = after })
    assert.equal("Hello from long mode.\r\n", output)
    assert.equal(0, status)
  end)

  it("lists every script", function()
    local listed, found = {}, {}
    for _, row in ipairs(rows("script")) do
      each_word(row[1], function(name) listed[name] = true end)
    end
    for name in lfs.dir(top .. "scripts") do
      if name:find("%.lua$") then found[name] = true end
    end
    assert.same(sorted(found), sorted(listed))
  end)

  it("has each kind of methods once", function()
    local seen = {}
    for _, row in ipairs(rows("object")) do
      assert(not seen[row[1]], row[1])
      seen[row[1]] = true
    end
  end)

  it("lists methods and fields that there are", function()
    support.need_kvm()
    local kvm <close> = ckvm.open()
    local vm <close> = kvm:create_vm()
    local objects = { ckvm = ckvm, kvm = kvm, vm = vm, vcpu = vm:create_vcpu(0) }
    objects.memory = vm:add_memory { gpa = 0, size = 0x1000 }
    objects.range = vm:attach_io { port = 0, value = 0 }
    objects.buffer = ckvm.buffer(1)
    objects.vcpu:kick()
    objects.vcpu:run() -- so that there is an exit
    for _, row in ipairs(rows("object")) do
      local object = objects[row[1]:match("%l+")]
      each_word(row[2], function(word)
        local name, rest = word:match("^([%l%d_]+)(.*)$")
        if object and name and (rest == "" or rest:find("^[({ ]")) and not rest:find("^ =")
          and not name:find("^u%d") then
          assert(name == "exit" or object[name] ~= nil, row[1] .. name)
        end
      end)
    end
  end)

  it("lists every method of the sources", function()
    local cells = { object = "" } -- by object, what is in code in its rows
    for _, row in ipairs(rows("object")) do
      for object in row[1]:gsub("all", "object"):gmatch("%f[%w_]%l[%w_]*") do
        cells[object] = (cells[object] or "") .. row[2]
      end
    end
    local missing = {}
    for name in lfs.dir(top .. "src/luackvm") do
      local source = name:find("%.c$") and read("src/luackvm/" .. name) or ""
      for object, method in source:gmatch("@function (%l[%w_]*)[:.](%l[%w_]*)") do
        local listed = (cells[object] or ""):find("`" .. method .. "%f[^%w_]")
        local is_wider = method:find("_u%d%d$") -- they are after the one of 8 bits
        if not listed and not is_wider then missing[object .. ":" .. method] = true end
      end
    end
    assert.same({}, sorted(missing))
  end)

  describe("the table of exits", function()
    it("has all names, and no others", function()
      local listed = {}
      for _, row in ipairs(rows("exit")) do
        each_word(row[1], function(name) listed[name] = true end)
      end
      assert.same(sorted(exit_names()), sorted(listed))
    end)

    it("has names that vm:on takes", function()
      support.need_kvm()
      local vm <close> = ckvm.open():create_vm()
      for _, row in ipairs(rows("exit")) do
        each_word(row[1], function(name) vm:on(name, print) end)
      end
    end)

    it("has each exit's fields, and a star where they can be set", function()
      local fields = exit_fields()
      for _, row in ipairs(rows("exit")) do
        each_word(row[1], function(name)
          assert.same(fields[name] or {}, listed_fields(row[3]), name)
          fields[name] = nil
        end)
      end
      assert.same({}, sorted(fields))
    end)

    it("is followed by what every exit has", function()
      local _, page = exit_fields()
      assert.same(page, listed_fields(readme:match("\nEvery exit has these besides:(.-)%. ")))
    end)
  end)

  it("says nothing twice", function()
    local seen = {}
    for line in readme:gsub("\n```.-\n```", "\n"):gmatch("[^\n]+") do
      local start = line:sub(1, 40)
      assert(line:find("^|") or #start < 40 or not seen[start], line)
      seen[start] = true
    end
  end)

  it("names files and directories that there are", function()
    for target in readme:gmatch("%]%(([^)]+)%)") do assert(exists(top .. target), target) end
    for name in readme:gmatch("\n| `([%w/-]+/)` |") do assert(exists(top .. name), name) end
  end)
end)

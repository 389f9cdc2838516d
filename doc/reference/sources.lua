-- Where the reference comes from: the doc blocks of src/luackvm and lua/ckvm, and the headers.
local header = require "header"
local model = require "model"

local sources = {}

local function read(name)
  local file <close> = assert(io.open(name, "rb"))
  return file:read("a")
end

local function list(top, pattern)
  local pipe <close> = assert(io.popen(("cd '%s' && ls %s 2>/dev/null"):format(top, pattern)))
  local names = {}
  for name in pipe:lines() do table.insert(names, name) end
  return names
end

local HEADERS <const> = {
  { file = "src/libckvm/ckvm.h", title = "libckvm" },
  { file = "src/luackvm/ckvm_lua.h", title = "libckvm-lua" },
}

-- { api = the model, headers = { { file, title, chapters }... }, read = of a file in the tree }
function sources.read(top)
  local texts, headers, declared = {}, {}, {}
  for _, name in ipairs(list(top, "src/luackvm/*.c lua/ckvm/*.lua lua/ckvm/*/*.lua")) do
    table.insert(texts, { name, read(top .. "/" .. name) })
  end
  for i, entry in ipairs(HEADERS) do
    local chapters = header.read(read(top .. "/" .. entry.file))
    headers[i] = { file = entry.file, title = entry.title, chapters = chapters }
    for name in pairs((header.functions(chapters))) do declared[name] = true end
  end
  return {
    api = model.build(texts, declared), headers = headers,
    read = function(name) return read(top .. "/" .. name) end,
  }
end

return sources

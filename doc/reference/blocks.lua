-- Reads doc blocks out of sources: LDoc's `/***` comments of C and `---` comments of Lua. Unlike
-- LDoc, which takes a C file for one module, a file may add to any number of chapters: a block
-- says whose it is.
--
-- A block is { file, line, text, tags }, a tag { name, rest, optional, default }.
local blocks = {}

local KNOWN <const> = {
  module = true, type = true, struct = true, ["function"] = true, state = true, field = true,
  tparam = true, treturn = true, tfield = true, raise = true, api = true, c = true, usage = true,
}

local function fail(block, format, ...)
  error(("%s:%d: %s"):format(block.file, block.line, format:format(...)), 0)
end

-- "[opt=0] integer id its number" -> true, "0", and what follows.
local function modifiers(rest)
  local inside, after = rest:match("^%[(.-)%]%s*(.*)$")
  if not inside then return false, nil, rest end
  return true, inside:match("^opt=(.*)$"), after
end

local function add_tag(block, name, rest)
  if not KNOWN[name] then fail(block, "unknown tag @%s", name) end
  local optional, default, after = modifiers(rest)
  table.insert(block.tags, { name = name, optional = optional, default = default, rest = after })
end

local function parse(file, line, lines)
  local block = { file = file, line = line, tags = {} }
  local text = {}
  for _, content in ipairs(lines) do
    local name, rest = content:match("^@(%a+)%s*(.-)%s*$")
    local tag = block.tags[#block.tags]
    if name then
      add_tag(block, name, rest)
    elseif not tag then
      table.insert(text, content)
    elseif tag.name == "usage" then
      tag.rest = tag.rest == "" and content or tag.rest .. "\n" .. content
    else
      tag.rest = tag.rest .. " " .. content:match("^%s*(.-)%s*$")
    end
  end
  block.text = table.concat(text, "\n"):match("^%s*(.-)%s*$")
  for _, tag in ipairs(block.tags) do tag.rest = tag.rest:match("^(.-)%s*$") end
  return block
end

local function lines_of(text)
  local list = {}
  for line in (text .. "\n"):gmatch("(.-)\n") do table.insert(list, line) end
  return list
end

local function read_c(file, text, found)
  local number, lines, start = 0, nil, nil
  for line in (text .. "\n"):gmatch("(.-)\n") do
    number = number + 1
    if line:find("^/%*%*%*") then
      lines, start = {}, number
      line = line:gsub("^/%*%*%*%s?", " * ")
    end
    if lines then
      local last = line:find("%*/%s*$")
      local content = line:gsub("%s*%*/%s*$", ""):gsub("^ %* ?", "")
      if content ~= "" or not last then table.insert(lines, content) end
      if last then
        table.insert(found, parse(file, start, lines))
        lines = nil
      end
    end
  end
end

local HEADS <const> = { module = true, type = true, struct = true }
local ITEMS <const> = { ["function"] = true, state = true, field = true }

-- The tag that says what a block is about, and whether that begins a chapter; nil: none does.
function blocks.subject(block)
  for _, tag in ipairs(block.tags) do
    if HEADS[tag.name] or ITEMS[tag.name] then return tag, HEADS[tag.name] end
  end
end

-- What a block of Lua is about may stand in the line after it.
local function add_subject(block, line)
  local name = line:match("^function ([%w_.:]+)") or line:match("^([%a_][%w_]*%.[%w_]+) = function")
  if name then return add_tag(block, "function", name) end
  name = line:match("^([%a_][%w_]*%.[%w_]+) =")
  if name then add_tag(block, "field", name) end
end

local function read_lua(file, text, found)
  local lines = lines_of(text)
  local i = 1
  while i <= #lines do
    if lines[i]:find("^%-%-%-%f[^-]") then
      local start, contents = i, {}
      while lines[i] and lines[i]:find("^%-%-") do
        table.insert(contents, (lines[i]:gsub("^%-%-%-? ?", "")))
        i = i + 1
      end
      local block = parse(file, start, contents)
      if not blocks.subject(block) then add_subject(block, lines[i] or "") end
      table.insert(found, block)
    else
      i = i + 1
    end
  end
end

-- All blocks of a file, in order.
function blocks.read(file, text)
  local found = {}
  if file:find("%.lua$") then read_lua(file, text, found) else read_c(file, text, found) end
  return found
end

blocks.fail = fail

return blocks

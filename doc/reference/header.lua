-- Reads a C header whose comments are prose: chapters, and in each what a comment says and the
-- declarations that follow it.
local header = {}

local RULE <const> = "^/%* (.-) %-%-%-+ %*/$"

-- The text of a comment without its frame.
local function unframe(comment)
  return (comment:gsub("^/%*%s?", ""):gsub("%s*%*/$", ""):gsub("\n ?%*/?[ \t]?", "\n"))
end

local function declared_in(code)
  local names = {}
  for declaration in code:gmatch("CKVM_API[^;]+;") do
    local name = declaration:match("([%w_]+)%s*%(")
    if name then table.insert(names, name) end
  end
  return names
end

-- The lines between the guards.
local function body(text)
  text = text:match('\nextern "C" {\n#endif\n(.*)\n#ifdef __cplusplus\n}')
  local macros = "#define CKVM_API\n#endif\n"
  local _, last = text:find(macros, 1, true)
  return last and text:sub(last + 1) or text
end

local function trim(text)
  return (text:gsub("^\n+", ""):gsub("%s+$", ""))
end

-- Returns { text = of the first comment, { title, { { text, code, names }... } }... }
function header.read(text)
  local intro = text:match("\n(/%*\n.-%*/)")
  local chapters = { text = unframe(intro) }
  local chapter = { title = "Objects" }
  local comment, code = nil, {}

  local function flush()
    local lines = trim(table.concat(code, "\n"))
    if comment or lines ~= "" then
      table.insert(chapter, { text = comment or "", code = lines, names = declared_in(lines) })
    end
    comment, code = nil, {}
  end

  local inside
  for line in (body(text) .. "\n"):gmatch("(.-)\n") do
    local title = line:match(RULE)
    if title then
      flush()
      if #chapter > 0 then table.insert(chapters, chapter) end
      chapter = { title = title }
    elseif inside or line:find("^/%*") then
      if not inside then
        flush()
        inside = {}
      end
      table.insert(inside, line)
      if line:find("%*/$") then
        comment, inside = trim(unframe(table.concat(inside, "\n"))), nil
      end
    else
      table.insert(code, line)
    end
  end
  flush()
  if #chapter > 0 then table.insert(chapters, chapter) end
  return chapters
end

-- The functions it declares: a set, and a list in order.
function header.functions(chapters)
  local set, list = {}, {}
  for _, chapter in ipairs(chapters) do
    for _, part in ipairs(chapter) do
      for _, name in ipairs(part.names) do
        set[name] = true
        table.insert(list, name)
      end
    end
  end
  return set, list
end

return header

-- HTML from as much Markdown as doc/ and the blocks use: headings, paragraphs, lists, tables, code,
-- `code`, **bold** and links.
local markdown = {}

function markdown.escape(text)
  local entities = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;" }
  return (text:gsub('[&<>"]', entities))
end

local escape <const> = markdown.escape

function markdown.slug(text)
  return (text:lower():gsub("[^%w _-]", ""):gsub(" ", "-"))
end

-- links: a function that turns a target, or a name in backquotes, into a reference (nil: none).
function markdown.inline(text, links)
  local kept = {}
  local function keep(html)
    table.insert(kept, html)
    return "\0" .. #kept .. "\0"
  end
  text = text:gsub("`([^`]+)`", function(code)
    local target = links and links(code)
    local html = "<code>" .. escape(code) .. "</code>"
    return keep(target and ('<a href="%s">%s</a>'):format(target, html) or html)
  end)
  text = escape(text)
  text = text:gsub("%[([^%]]+)%]%(([^)]+)%)", function(words, target)
    return ('<a href="%s">%s</a>'):format(links and links(target) or target, words)
  end)
  text = text:gsub("%*%*(.-)%*%*", "<strong>%1</strong>")
  return (text:gsub("%z(%d+)%z", function(i) return kept[tonumber(i)] end))
end

local function row(line, cell, links)
  local cells = {}
  for text in line:gmatch("|([^|]*)%f[|]") do
    local html = markdown.inline(text:match("^%s*(.-)%s*$"), links)
    table.insert(cells, ("<%s>%s</%s>"):format(cell, html, cell))
  end
  return "<tr>" .. table.concat(cells) .. "</tr>"
end

-- Each block: the pattern that its first line has, and what turns its lines into HTML.
local function heading(lines, links)
  local marks, text = lines[1]:match("^(#+)%s+(.*)$")
  return ('<h%d id="%s">%s</h%d>'):format(#marks, markdown.slug(text), markdown.inline(text, links),
    #marks)
end

local function code(lines)
  return "<pre>" .. escape(table.concat(lines, "\n", 2, #lines - 1)) .. "</pre>"
end

local function indented(lines)
  for i, line in ipairs(lines) do lines[i] = line:gsub("^    ", "") end
  return "<pre>" .. escape(table.concat(lines, "\n")) .. "</pre>"
end

local function tabular(lines, links)
  local html = { "<table>", row(lines[1], "th", links) }
  for i = 3, #lines do table.insert(html, row(lines[i], "td", links)) end
  table.insert(html, "</table>")
  return table.concat(html, "\n")
end

local function listing(lines, links)
  local items = {}
  for _, line in ipairs(lines) do
    local text = line:match("^%s*%- (.*)$")
    if text then table.insert(items, text) else items[#items] = items[#items] .. " " .. line end
  end
  for i, item in ipairs(items) do items[i] = "<li>" .. markdown.inline(item, links) .. "</li>" end
  return "<ul>\n" .. table.concat(items, "\n") .. "\n</ul>"
end

local function paragraph(lines, links)
  return "<p>" .. markdown.inline(table.concat(lines, "\n"), links) .. "</p>"
end

local function kind_of(line)
  return line:find("^#+ ") and heading or line:find("^```") and code
    or line:find("^    ") and indented or line:find("^|") and tabular
    or line:find("^%s*%- ") and listing or paragraph
end

-- Does the line go on with a block of that kind, which has these lines?
local function goes_on(kind, line, lines)
  if kind == heading then return false end
  if kind == code then return #lines < 2 or not lines[#lines]:find("^```") end
  if line == "" then return false end
  if kind == listing then return kind_of(line) == listing or line:find("^%s") end
  return kind_of(line) == kind
end

function markdown.html(text, links)
  local html, kind, lines = {}, nil, nil
  local function flush()
    if kind then table.insert(html, kind(lines, links)) end
    kind = nil
  end
  for line in (text .. "\n"):gmatch("(.-)\n") do
    if kind and goes_on(kind, line, lines) then
      table.insert(lines, line)
    else
      flush()
      if line ~= "" then kind, lines = kind_of(line), { line } end
    end
  end
  flush()
  return table.concat(html, "\n")
end

return markdown

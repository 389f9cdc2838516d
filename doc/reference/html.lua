-- The reference as HTML: a page for each chapter, one for each header, the index of ioctls, and
-- the guides.
local markdown = require "markdown"
local model = require "model"

local html = {}

local escape <const> = markdown.escape

local STYLE <const> = [[
body { font: 16px/1.5 sans-serif; max-width: 50em; margin: 1em auto; padding: 0 1em; color: #222; }
nav { border-bottom: 1px solid #ccc; padding-bottom: .5em; }
nav a { margin-right: .8em; }
a { color: #05a; text-decoration: none; }
code, pre { font: 14px/1.4 monospace; }
pre { background: #f5f5f5; padding: .6em; overflow-x: auto; }
table { border-collapse: collapse; }
td, th { text-align: left; vertical-align: top; padding: .2em .8em .2em 0; }
td { border-bottom: 1px solid #eee; }
dt { margin-top: .3em; }
h3 { border-top: 1px solid #ccc; padding-top: .5em; }
]]

-- Pages ----------------------------------------------------------------------

local GUIDES <const> = {
  { file = "doc/guide.md", page = "guide.html", title = "From api.rst to ckvm" },
  { file = "doc/write-a-device.md", page = "write-a-device.html",
    title = "Write a device in 40 lines" },
  { file = "doc/kvm-ioctls.md", page = "kvm-ioctls.html", title = "From kvm-ioctls to ckvm" },
}

local function page_of(chapter)
  return chapter.kind == "struct" and "structs.html" or chapter.name .. ".html"
end

local function header_page(entry)
  return entry.title .. ".html"
end

local function anchor(chapter, name)
  return chapter.kind == "struct" and chapter.name .. "." .. name or name
end

-- What `words` in backquotes, and targets of links, lead to.
local function make_links(source)
  local links = {}
  for _, chapter in ipairs(source.api) do
    links[chapter.name] = page_of(chapter)
      .. (chapter.kind == "struct" and "#" .. chapter.name or "")
    for _, item in ipairs(chapter.functions) do
      links[model.path(item)] = page_of(chapter) .. "#" .. item.name
      links[model.path(item) .. "()"] = links[model.path(item)]
    end
    for _, field in ipairs(chapter.fields) do
      links[chapter.name .. "." .. field.name] = page_of(chapter) .. "#"
        .. anchor(chapter, field.name)
    end
  end
  for _, entry in ipairs(source.headers) do
    for _, chapter in ipairs(entry.chapters) do
      for _, part in ipairs(chapter) do
        for _, name in ipairs(part.names) do links[name] = header_page(entry) .. "#" .. name end
      end
    end
  end
  for _, guide in ipairs(GUIDES) do links[guide.file:match("[^/]*$")] = guide.page end
  return function(word) return links[word] end
end

local function navigation(source)
  local list = { '<a href="index.html">contents</a>' }
  local function add(page, title)
    table.insert(list, ('<a href="%s">%s</a>'):format(page, escape(title)))
  end
  for _, chapter in ipairs(source.api) do
    if chapter.kind ~= "struct" then add(page_of(chapter), chapter.name) end
  end
  add("structs.html", "structs")
  add("ioctls.html", "ioctls")
  for _, entry in ipairs(source.headers) do add(header_page(entry), entry.title) end
  for _, guide in ipairs(GUIDES) do add(guide.page, guide.title) end
  return "<nav>" .. table.concat(list, "\n") .. "</nav>"
end

local function page(context, title, body)
  return table.concat({
    "<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8">',
    "<title>" .. escape(title) .. "</title>", "<style>" .. STYLE .. "</style></head><body>",
    context.navigation, body, "</body></html>\n",
  }, "\n")
end

-- Parts ----------------------------------------------------------------------

local function type_html(context, kind)
  local words = {}
  local text = model.map_type(kind, function(name)
    local target = context.links(name)
    table.insert(words, target and ('<a href="%s">%s</a>'):format(target, name) or name)
    return "\0" .. #words .. "\0"
  end)
  text = escape(text):gsub("%z(%d+)%z", function(i) return words[tonumber(i)] end)
  return "<code>" .. text .. "</code>"
end

local function typed_html(context, entry, id)
  local kind = type_html(context, entry.type)
  local note = entry.default and (", %s if left out"):format(entry.default)
    or entry.optional and ", optional" or ""
  local nested = ""
  for _, part in ipairs(entry.of or {}) do nested = nested .. typed_html(context, part) end
  if nested ~= "" then nested = "<dl>" .. nested .. "</dl>" end
  return ("<dt%s><code>%s</code>: %s%s</dt><dd>%s%s</dd>"):format(
    id and (' id="%s"'):format(id) or "", escape(entry.name or "returns"), kind, escape(note),
    markdown.inline(entry.text, context.links), nested)
end

local function usage_html(item)
  local list = {}
  for _, usage in ipairs(item.usage) do table.insert(list, "<pre>" .. escape(usage) .. "</pre>") end
  return table.concat(list, "\n")
end

local function api_html(item)
  local list = {}
  for _, entry in ipairs(item.api) do
    table.insert(list, "api.rst " .. entry.section .. (entry.ioctl and " " .. entry.ioctl or ""))
  end
  return table.concat(list, ", ")
end

local function c_html(context, item)
  local list = {}
  for i, name in ipairs(item.c) do list[i] = markdown.inline("`" .. name .. "`", context.links) end
  return table.concat(list, ", ")
end

local function function_html(context, item)
  local body = {
    ('<h3 id="%s"><code>%s</code></h3>'):format(item.name, escape(model.signature(item))),
    markdown.html(item.text, context.links), "<dl>",
  }
  for _, param in ipairs(item.params) do table.insert(body, typed_html(context, param)) end
  for _, result in ipairs(item.returns) do table.insert(body, typed_html(context, result)) end
  for _, text in ipairs(item.raises) do
    table.insert(body, "<dt>errors</dt><dd>" .. markdown.inline(text, context.links) .. "</dd>")
  end
  if item.api[1] then table.insert(body, "<dt>kernel</dt><dd>" .. api_html(item) .. "</dd>") end
  if item.c[1] then table.insert(body, "<dt>in C</dt><dd>" .. c_html(context, item) .. "</dd>") end
  table.insert(body, "</dl>")
  table.insert(body, usage_html(item))
  return table.concat(body, "\n")
end

local function fields_html(context, chapter)
  if not chapter.fields[1] then return "" end
  local list = { "<dl>" }
  for _, field in ipairs(chapter.fields) do
    table.insert(list, typed_html(context, field, anchor(chapter, field.name)))
  end
  table.insert(list, "</dl>")
  return table.concat(list, "\n")
end

local function chapter_html(context, chapter)
  local struct = chapter.kind == "struct"
  local body = {
    ('<h%d id="%s">%s</h%d>'):format(struct and 2 or 1, chapter.name, chapter.name,
      struct and 2 or 1),
    markdown.html(chapter.text, context.links), usage_html(chapter),
  }
  if chapter.fields[1] and not struct then table.insert(body, "<h2>Fields</h2>") end
  table.insert(body, fields_html(context, chapter))
  for _, item in ipairs(chapter.functions) do table.insert(body, function_html(context, item)) end
  return table.concat(body, "\n")
end

local function header_html(context, entry)
  local body = {
    "<h1>" .. entry.title .. "</h1>", markdown.html(entry.chapters.text, context.links),
  }
  for _, chapter in ipairs(entry.chapters) do
    table.insert(body, ('<h2 id="%s">%s</h2>'):format(markdown.slug(chapter.title),
      escape(chapter.title)))
    for _, part in ipairs(chapter) do
      table.insert(body, markdown.html(part.text, context.links))
      local code = escape(part.code)
      for _, name in ipairs(part.names) do
        local bold = ('<b id="%s">%s</b>'):format(name, name)
        code = code:gsub("%f[%w_]" .. name .. "%f[^%w_]", bold, 1)
      end
      if code ~= "" then table.insert(body, "<pre>" .. code .. "</pre>") end
    end
  end
  return table.concat(body, "\n")
end

-- Whole pages ----------------------------------------------------------------

local function ioctl_rows(source)
  local rows = {}
  for _, chapter in ipairs(source.api) do
    for _, item in ipairs(chapter.functions) do
      for _, entry in ipairs(item.api) do
        if entry.ioctl then
          table.insert(rows, { entry.ioctl, entry.section, model.path(item), item })
        end
      end
    end
  end
  table.sort(rows, function(a, b) return a[1] .. " " .. a[3] < b[1] .. " " .. b[3] end)
  return rows
end

local function ioctls(context, source)
  local body = { "<h1>ioctls</h1>", "<table><tr><th>ioctl<th>api.rst<th>Lua<th>C</tr>" }
  for _, row in ipairs(ioctl_rows(source)) do
    table.insert(body, ("<tr><td>%s<td>%s<td>%s<td>%s</tr>"):format(row[1], row[2],
      markdown.inline("`" .. row[3] .. "`", context.links), c_html(context, row[4])))
  end
  table.insert(body, "</table>")
  return table.concat(body, "\n")
end

local function index(context, source)
  local body = {
    "<h1>ckvm</h1>",
    markdown.html("Linux KVM behind Lua: what scripts and C programs can call.\n", context.links),
    "<dl>",
  }
  for _, chapter in ipairs(source.api) do
    if chapter.kind ~= "struct" then
      local summary = chapter.text:match("^(.-%.)%s") or chapter.text
      table.insert(body, ('<dt><a href="%s">%s</a></dt><dd>%s</dd>'):format(page_of(chapter),
        chapter.name, markdown.inline(summary, context.links)))
    end
  end
  local more = {
    { "structs.html", "structs", "The kernel's structs, as tables." },
    { "ioctls.html", "ioctls", "Every ioctl, with what makes it." },
  }
  for _, entry in ipairs(source.headers) do
    table.insert(more, { header_page(entry), entry.title, "The C API: " .. entry.file .. "." })
  end
  for _, guide in ipairs(GUIDES) do table.insert(more, { guide.page, guide.title, "" }) end
  for _, entry in ipairs(more) do
    table.insert(body, ('<dt><a href="%s">%s</a></dt><dd>%s</dd>'):format(table.unpack(entry)))
  end
  table.insert(body, "</dl>")
  return table.concat(body, "\n")
end

-- Returns the pages by file name.
function html.pages(source)
  local context = { links = make_links(source), navigation = navigation(source) }
  local pages, structs = {}, { "<h1>structs</h1>" }
  for _, chapter in ipairs(source.api) do
    if chapter.kind == "struct" then
      table.insert(structs, chapter_html(context, chapter))
    else
      pages[page_of(chapter)] = page(context, chapter.name, chapter_html(context, chapter))
    end
  end
  pages["structs.html"] = page(context, "structs", table.concat(structs, "\n"))
  pages["ioctls.html"] = page(context, "ioctls", ioctls(context, source))
  pages["index.html"] = page(context, "ckvm", index(context, source))
  for _, entry in ipairs(source.headers) do
    pages[header_page(entry)] = page(context, entry.title, header_html(context, entry))
  end
  for _, guide in ipairs(GUIDES) do
    local body = markdown.html(source.read(guide.file), context.links)
    pages[guide.page] = page(context, guide.title, body)
  end
  return pages
end

return html

-- The manual page of the Lua module, ckvm(3lua), in mdoc.
local model = require "model"

local man = {}

-- What must not be taken for markup; `code` is bold.
local function escape(text)
  text = text:gsub("\\", "\\e"):gsub("`([^`]*)`", "\\fB%1\\fR")
  return (text:gsub("%f[^\n%z][.']", "\\&%0"))
end

-- The argument of a macro, which must not lose its quotes.
local function argument(text)
  return (escape(text):gsub('"', "\\(dq"))
end

local function add(out, ...)
  for _, line in ipairs { ... } do table.insert(out, line) end
end

-- Paragraphs and lists; mdoc has a macro for what a blank line is elsewhere.
local function add_text(out, text)
  local first = true
  for part in (text .. "\n\n"):gmatch("(.-)\n%s*\n") do
    if part ~= "" then
      if not first then add(out, ".Pp") end
      add(out, (escape(part):gsub("\n%s+", "\n"):gsub("([.:]) (%u)", "%1\n%2")))
      first = false
    end
  end
end

local function add_code(out, code)
  add(out, ".Bd -literal -offset indent", (escape(code):gsub("\n\n", "\n\\&\n")), ".Ed")
end

local function add_entry(out, entry)
  local note = entry.default and (", %s if left out"):format(entry.default)
    or entry.optional and ", optional" or ""
  local name = entry.name or "returns"
  add(out, ".It " .. argument(("`%s`: %s%s"):format(name, entry.type, note)))
  if entry.text ~= "" then add_text(out, entry.text) end
  if entry.of then
    add(out, ".Bl -tag -width 4n -compact")
    for _, part in ipairs(entry.of) do add_entry(out, part) end
    add(out, ".El")
  end
end

local function add_list(out, list)
  if not list[1] then return end
  add(out, ".Bl -tag -width 4n -compact")
  for _, entry in ipairs(list) do add_entry(out, entry) end
  add(out, ".El")
end

local function add_function(out, item)
  add(out, ".Ss " .. argument(model.signature(item)))
  add_text(out, item.text)
  local list = {}
  for _, param in ipairs(item.params) do table.insert(list, param) end
  for _, result in ipairs(item.returns) do table.insert(list, result) end
  add_list(out, list)
  for _, text in ipairs(item.raises) do add(out, ".Pp", "Errors: " .. escape(text)) end
  local words = {}
  for _, entry in ipairs(item.api) do
    table.insert(words, ("%s %s"):format(entry.section, entry.ioctl or ""))
  end
  if words[1] then add(out, ".Pp", "api.rst: " .. table.concat(words, ", ")) end
  for _, usage in ipairs(item.usage) do add_code(out, usage) end
end

local function add_chapter(out, chapter)
  if chapter.kind == "struct" then
    add(out, ".Ss " .. chapter.name)
  else
    add(out, ".Sh " .. chapter.name:upper())
  end
  add_text(out, chapter.text)
  for _, usage in ipairs(chapter.usage) do add_code(out, usage) end
  add_list(out, chapter.fields)
  for _, item in ipairs(chapter.functions) do add_function(out, item) end
end

-- The date is that of the other manual page, so that a build is the same whenever it is made.
function man.page(source)
  local date = source.read("doc/ckvm-lua.1"):match("%.Dd ([^\n]+)")
  local out = {
    '.\\" SPDX-License-Identifier: MIT', ".Dd " .. date, ".Dt CKVM 3lua", ".Os ckvm", ".Sh NAME",
    ".Nm ckvm", ".Nd Linux KVM for Lua scripts", ".Sh SYNOPSIS",
    '.Dl local ckvm = require \\(dqckvm\\(dq',
  }
  local structs = false
  for _, chapter in ipairs(source.api) do
    if chapter.kind == "struct" and not structs then
      structs = true
      add(out, ".Sh STRUCTS")
    end
    add_chapter(out, chapter)
  end
  add(out, ".Sh SEE ALSO", ".Xr ckvm-lua 1 ,", ".Xr lua 1")
  return table.concat(out, "\n") .. "\n"
end

return man

-- What the probe has found, for people: groups, aligned, in 80 columns.

local WIDTH <const> = 80
local LABEL <const>, CELL <const> = 28, 12 -- columns of the table of modes
local ANSWER <const> = 3 -- columns of "yes"

-- Three digits, and no exponent.
local function number_text(value)
  local decimals = value >= 100 and 0 or value >= 10 and 1 or value >= 1 and 2 or 3
  return ("%." .. decimals .. "f"):format(value)
end

local function value_text(name, value)
  if value == true then return "yes" end
  if value == false then return "no" end
  if type(value) ~= "number" then return value end
  return number_text(value) .. " " .. name:match("_(%w+)$") -- out_us: microseconds
end

-- Words, as many a line as fit, the lines after the first indented.
local function wrap(lines, first, words, indent)
  local line, fresh = first, true
  for _, word in ipairs(words) do
    if #line + 1 + #word > WIDTH and not fresh then
      table.insert(lines, line)
      line = indent
    end
    line, fresh = line .. (line == indent and "" or " ") .. word, false
  end
  table.insert(lines, (line:gsub("%s+$", "")))
end

local function split(text)
  local words = {}
  for word in text:gmatch("%S+") do table.insert(words, word) end
  return words
end

local function sorted_keys(object)
  local keys = {}
  for key in pairs(object) do table.insert(keys, key) end
  table.sort(keys)
  return keys
end

local function heading(lines, text)
  if #lines > 0 then table.insert(lines, "") end
  table.insert(lines, text)
end

-- Modes ----------------------------------------------------------------------

local function mode_row(probe, found, name, title)
  local line, any = ("  %-" .. LABEL - 2 .. "s"):format(title), false
  for _, mode in ipairs(probe.modes) do
    local value = (found.modes[mode[1]] or {})[name]
    local path = ("modes.%s.%s"):format(mode[1], name)
    local cell = value ~= nil and value_text(name, value) or found.errors[path] and "failed"
      or found.notes[path]
    any = any or cell
    if not cell or #cell >= CELL then cell = "-" end
    line = line .. ("%-" .. CELL .. "s"):format(cell)
  end
  return any and line:gsub("%s+$", "")
end

local function print_modes(lines, probe, found)
  if not next(found.modes) then return end
  local head = ("%-" .. LABEL .. "s"):format("Modes")
  for _, mode in ipairs(probe.modes) do head = head .. ("%-" .. CELL .. "s"):format(mode[2]) end
  heading(lines, (head:gsub("%s+$", "")))
  for _, row in ipairs(probe.in_modes) do
    local line = row[2] and mode_row(probe, found, row[1], row[2])
    if line then table.insert(lines, line) end
  end
end

-- Instructions that fail, by how: the list of a mode.
local function by_failure(instructions)
  local result = {}
  for _, name in ipairs(sorted_keys(instructions)) do
    local ended = instructions[name]
    if ended ~= "works" then
      result[ended] = result[ended] or {}
      table.insert(result[ended], name .. ",")
    end
  end
  for _, names in pairs(result) do names[#names] = names[#names]:sub(1, -2) end
  return result
end

local function print_instructions(lines, probe, found)
  for _, mode in ipairs(probe.modes) do
    local instructions = (found.modes[mode[1]] or {}).instructions
    if instructions then
      local failures, count = by_failure(instructions), #sorted_keys(instructions)
      heading(lines, ("Of %d instructions in %s, these do not work%s"):format(count,
        mode[2] == "real" and "real mode" or mode[2], next(failures) and "" or ": none"))
      for _, ended in ipairs(sorted_keys(failures)) do
        wrap(lines, ("  %s:"):format(ended), failures[ended], "    ")
      end
    end
  end
end

-- Groups ---------------------------------------------------------------------

local function print_group(lines, found, group)
  local key, title, entries = table.unpack(group)
  if not found[key] then return end
  heading(lines, title)
  for _, entry in ipairs(entries) do
    local name, label = table.unpack(entry)
    local path, value = key .. "." .. name, found[key][name]
    local failed = found.errors[path]
    if value ~= nil or failed then
      local note = failed or found.notes[path] or ""
      wrap(lines, ("  %-" .. LABEL - 2 .. "s%-" .. ANSWER .. "s"):format(label,
        failed and "failed" or value_text(name, value)), split(note), (" "):rep(LABEL + ANSWER + 1))
    end
  end
end

local function print_capabilities(lines, found)
  if not found.capabilities then return end
  local words = {}
  for _, name in ipairs(sorted_keys(found.capabilities)) do
    local value = found.capabilities[name]
    table.insert(words, value == 1 and name or ("%s=%d"):format(name, value))
  end
  heading(lines, ("Capabilities (%d)"):format(#words))
  wrap(lines, " ", words, "  ")
end

local function print_errors(lines, found)
  local paths = sorted_keys(found.errors)
  if #paths == 0 then return end
  heading(lines, "Failed")
  for _, path in ipairs(paths) do
    wrap(lines, ("  %s:"):format(path), split(found.errors[path]), "    ")
  end
end

return function(probe, found)
  local lines = {}
  heading(lines, ("ckvm %s on Linux %s"):format(found.ckvm, found.kernel))
  table.insert(lines, ("KVM API %d, run page of %d bytes; probed in %.2f s"):format(
    found.api_version, found.vcpu_mmap_size, found.seconds))
  print_modes(lines, probe, found)
  for _, group in ipairs(probe.groups) do print_group(lines, found, group) end
  print_instructions(lines, probe, found)
  print_capabilities(lines, found)
  print_errors(lines, found)
  return table.concat(lines, "\n") .. "\n"
end

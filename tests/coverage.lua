-- Prints which share of its lines a suite has run, file by file, from what gcov says in a build
-- with --enable-coverage; fails where libckvm has less than it is to have.
--
--   ckvm-lua tests/coverage.lua GCOV LEAST DIRECTORY [--missing]
--
-- LEAST is in per cent, DIRECTORY that of the build. --missing names the lines not run, too.

local gcov, least, directory, option = table.unpack(arg)
local LIBRARY <const> = "src/libckvm/"

local function lines_of(command)
  local pipe <close> = assert(io.popen(command))
  return pipe:read("a")
end

-- By file and line, whether any object that has it ran it: what is in a header is in several.
local function read(text)
  local files, lines = {}, nil
  for count, number, rest in text:gmatch("%s*([^:\n]+):%s*(%d+):([^\n]*)") do
    if number == "0" then
      local name = rest:match("^Source:.-(src/%S+)$")
      if name then
        files[name] = files[name] or {}
        lines = files[name]
      elseif rest:find("^Source:") then
        lines = nil -- the system's
      end
    elseif lines and count:find("[%d#=]") then
      number = tonumber(number)
      lines[number] = lines[number] or count:find("%d") ~= nil
    end
  end
  return files
end

local function sum(lines)
  local run, all, missing = 0, 0, {}
  for number, ran in pairs(lines) do
    all = all + 1
    if ran then run = run + 1 else table.insert(missing, number) end
  end
  table.sort(missing)
  return run, all, table.concat(missing, " ")
end

local function show(name, run, all)
  print(("%-28s %6.2f %% of %5d lines"):format(name, 100 * run / all, all))
end

local files = read(lines_of(("cd '%s' && find src -name '*.gcda' -exec %s -t {} +"):format(
  directory, gcov)))
local names = {}
for name in pairs(files) do table.insert(names, name) end
table.sort(names)
if #names == 0 then
  io.stderr:write("make coverage: nothing was counted; it takes configure --enable-coverage\n")
  os.exit(1)
end

local library_run, library_all, run_of_all, all_of_all = 0, 0, 0, 0
for _, name in ipairs(names) do
  local run, all, missing = sum(files[name])
  show(name, run, all)
  if option == "--missing" and missing ~= "" then print("  not run: " .. missing) end
  run_of_all, all_of_all = run_of_all + run, all_of_all + all
  if name:find(LIBRARY, 1, true) == 1 then
    library_run, library_all = library_run + run, library_all + all
  end
end
show("all", run_of_all, all_of_all)
show("libckvm", library_run, library_all)
if 100 * library_run < tonumber(least) * library_all then
  io.stderr:write(("make coverage: libckvm is below %s %%\n"):format(least))
  os.exit(1)
end

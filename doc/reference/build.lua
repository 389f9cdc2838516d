-- Writes what is made from the doc blocks and the headers.
--
--   ckvm-lua doc/reference/build.lua html | luals DIRECTORY
--   ckvm-lua doc/reference/build.lua man FILE

local here = arg[0]:match("^(.*)/") or "."
package.path = here .. "/?.lua;" .. package.path

local function write(name, text)
  os.execute(("mkdir -p '%s'"):format(name:match("^(.*)/") or "."))
  local file <close> = assert(io.open(name, "wb"))
  assert(file:write(text))
end

local function write_all(directory, files)
  for name, text in pairs(files) do write(directory .. "/" .. name, text) end
end

local make = {}

function make.html(source, target) write_all(target, require("html").pages(source)) end

function make.luals(source, target) write_all(target, require("luals").files(source)) end

function make.man(source, target) write(target, require("man").page(source)) end

local what, target = table.unpack(arg)
if not make[what] or not target then
  io.stderr:write("usage: build.lua html | luals DIRECTORY, build.lua man FILE\n")
  os.exit(2)
end
make[what](require("sources").read(here .. "/../.."), target)

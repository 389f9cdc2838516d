-- A script's peak resident size when its guest has 16 MiB of memory:
--
--   ckvm-lua bench/resident.lua scripts/hello.lua

local file <close> = assert(io.open(arg[1]))
local text, changes = file:read("a"):gsub("(MEMORY_SIZE <const> =) %w+", "%1 16 << 20")
assert(changes == 1, "the script has no MEMORY_SIZE")
assert(load(text, "@" .. arg[1]))()

for line in io.lines("/proc/self/status") do
  if line:find("^VmHWM:") then print(line) end
end

-- tests/hostile.lua runs guests that do anything: for a hundredth of 100,000 programs, and with a
-- new seed, unless told.

local support = require "support"

local SCRIPT <const> = debug.getinfo(1, "S").source:match("^@(.*)_spec.lua$") .. ".lua"
-- What ASan keeps of freed memory would be taken for a leak.
local ENVIRONMENT <const> = 'ASAN_OPTIONS="$ASAN_OPTIONS:quarantine_size_mb=1"'

describe("Hostile guests #slow", function()
  setup(support.need_kvm)

  it("end in time, in a way that has a name, and leave nothing behind", function()
    local fragile = os.getenv "CKVM_FRAGILE_CPU" -- what random state does to it
    if fragile then support.skip(fragile) end
    local seed = os.getenv "CKVM_SEED" or tostring(os.time())
    print("CKVM_SEED=" .. seed)
    local pipe = io.popen(("%s %s %s %d %s 2>&1"):format(ENVIRONMENT,
      support.quote(support.program()), support.quote(SCRIPT), support.times(100000),
      support.quote(seed)))
    local output = pipe:read("a")
    local ok, how, code = pipe:close()
    if not ok then error(("%s(%s %d)"):format(output, how, code), 0) end
    support.contains("programs, seed " .. seed, output)
    for _, mode in ipairs { "real", "protected", "long", "user" } do
      support.contains("\n" .. mode .. " ", "\n" .. output)
    end
  end)
end)

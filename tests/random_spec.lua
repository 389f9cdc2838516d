-- tests/random.lua calls every method at random: for a hundredth of a million times, and with a new
-- seed, unless told.

local support = require "support"

local SCRIPT <const> = debug.getinfo(1, "S").source:match("^@(.*)_spec.lua$") .. ".lua"

describe("Random calls #slow", function()
  setup(support.need_kvm)

  it("end in results or in errors, and leave nothing open", function()
    local seed = os.getenv "CKVM_SEED" or tostring(os.time())
    print("CKVM_SEED=" .. seed)
    local pipe = io.popen(("%s %s %d %s 2>&1"):format(support.quote(support.program()),
      support.quote(SCRIPT), support.times(1000000), support.quote(seed)))
    local output = pipe:read("a")
    local ok, how, code = pipe:close()
    if not ok then error(("%s(%s %d)"):format(output, how, code), 0) end
    support.contains("methods worked", output)
  end)
end)

-- What ./bootstrap says where it cannot build.

local lfs = require "lfs"
local support = require "support"

local contains, quote = support.contains, support.quote

describe("./bootstrap build", function()
  local directory

  before_each(function()
    directory = support.make_directory()
    local source = (os.getenv("CKVM_SRCDIR") or ".") .. "/bootstrap"
    assert(os.execute(("cp %s %s"):format(quote(source), quote(directory))))
  end)
  after_each(function() support.remove_directory(directory) end)

  -- Without what root may do: that is to write anywhere.
  for what, prepare in pairs {
    ["a file in the place of build/"] = function(build) io.open(build, "w"):close() end,
    ["a directory in the place of its log"] = function(build)
      assert(lfs.mkdir(build))
      assert(lfs.mkdir(build .. "/make.log"))
    end,
  } do
    it("says in one line that it cannot write: " .. what, function()
      prepare(directory .. "/build")
      local pipe <close> = io.popen(quote(directory .. "/bootstrap") .. " build 2>&1; echo $?")
      local output = pipe:read("a")
      contains("bootstrap: cannot write to " .. directory .. "/build/make.log: ", output)
      assert.matches("^[^\n]*\n1\n$", output)
    end)
  end
end)

-- The coroutine functions that the module puts in the place of Lua's are to be as Lua's are. What a
-- script does with Lua's own beside them, tests/installcheck tries in stock Lua.

local support = require "support"

local contains, error_of = support.contains, support.error_of

describe("coroutine.close", function()
  it("closes what is suspended and what is dead, and says what went wrong", function()
    local co = coroutine.create(function()
      local _ <close> = setmetatable({}, { __close = function() error("closing", 0) end })
      coroutine.yield()
    end)
    coroutine.resume(co)
    assert.same({ false, "closing" }, { coroutine.close(co) })
    assert.same({ true }, { coroutine.close(co) })
  end)

  it("refuses one that runs, and what is none", function()
    contains("cannot close a running coroutine", error_of(coroutine.close, coroutine.running()))
    assert.is_false((pcall(coroutine.close, 1)))
  end)

  it("ends in an error, not in a crash, where closing closes without end", function()
    local status, out = support.run([[
      local function descend()
        local co = coroutine.create(function()
          local _ <close> = setmetatable({}, { __close = descend })
          coroutine.yield()
        end)
        coroutine.resume(co)
        return coroutine.close(co)
      end
      print(pcall(descend))
      print("done")]])
    assert.equal(0, status)
    contains("done", out)
  end)
end)

describe("coroutine.wrap", function()
  it("passes values both ways, and an error with the place of the call", function()
    local double = coroutine.wrap(function(n)
      while true do n = coroutine.yield(2 * n) end
    end)
    assert.equal(4, double(2))
    assert.equal(6, double(3))
    local failing = coroutine.wrap(function() error("inside", 0) end)
    contains("inside", error_of(failing))
    local object = {}
    assert.equal(object, error_of(coroutine.wrap(function() error(object) end)))
  end)

  it("closes the pending variables of one that has failed", function()
    local closed
    pcall(coroutine.wrap(function()
      local _ <close> = setmetatable({}, { __close = function() closed = true end })
      error("x")
    end))
    assert.is_true(closed)
  end)
end)

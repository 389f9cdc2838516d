local check = require "ckvm.check"
local ckvm = require "ckvm"
local support = require "support"

local blames = support.blames

-- A function of a module, and its options.
local function blink(times, options)
  check.argument("times", times, "integer")
  check.options("blink", options, { color = "string?", lamp = "table", on = "userdata?" })
end

describe("ckvm.check", function()
  it("takes what fits", function()
    local event <close> = ckvm.eventfd()
    blink(1, { lamp = {} })
    blink(1, { lamp = {}, color = "red", on = event })
  end)

  it("names an argument, and what it is", function()
    blames("times: integer expected, got nil", blink)
    blames("times: integer expected, got float", blink, 1.0, {})
    local event <close> = ckvm.eventfd()
    blames("times: integer expected, got ckvm eventfd", blink, event)
  end)

  it("names an option that is unknown, missing or of another type", function()
    blames("blink: table of options expected, got nil", blink, 1)
    blames("blink: unknown option 'colour'", blink, 1, { colour = "red", lamp = {} })
    blames("blink: lamp: table expected, got nil", blink, 1, { color = "red" })
    blames("blink: color: string expected, got boolean", blink, 1, { color = false, lamp = {} })
    blames("blink: on: userdata expected, got table", blink, 1, { on = {}, lamp = {} })
  end)

  it("names objects of ckvm in its own words", function()
    local function run(vcpu) check.argument("vcpu", vcpu, "ckvm vCPU") end
    blames("vcpu: vCPU expected, got integer", run, 1)
  end)

  it("calls what it checks with fields by that word", function()
    local function draw(point) check.fields("point", point, { x = "integer" }) end
    draw { x = 1 }
    blames("point: table of fields expected, got integer", draw, 5)
    blames("point: unknown field 'y'", draw, { x = 1, y = 2 })
  end)

  it("blames the caller for what a call raises", function()
    local function fail(value) check.blame(function() error(value) end) end
    blames("no lamp", fail, "no lamp")
    local object = { message = "broken" }
    assert.equal(object, support.error_of(function() fail(object) end))
    support.contains("check_spec.lua:", object.where)
    assert.same({ false, 5 }, { pcall(fail, 5) })
    assert.same({ false, false }, { pcall(fail, false) })
  end)

  it("undoes where an error leaves the block, and nowhere else", function()
    local undone = 0
    local function leave(err)
      local _ <close> = check.at_error(function() undone = undone + 1 end)
      if err ~= nil then error(err, 0) end
      return "made"
    end
    assert.equal("made", leave())
    assert.equal(0, undone)
    assert.same({ false, "broken" }, { pcall(leave, "broken") })
    assert.same({ false, false }, { pcall(leave, false) })
    assert.equal(2, undone)
    blames("undo: function expected, got nil", check.at_error)
  end)

  it("leaves what only looks like a position in a message", function()
    local function fail(message, level)
      check.blame(function() error(message, level) end)
    end
    for _, level in ipairs { 0, 1, 2, 3 } do
      for _, name in ipairs { "img:5", "a.lua:12", "dir/a:1: b:2" } do
        local err = support.error_of(function() fail(name .. ": is none", level) end)
        assert.equal(name .. ": is none", err:match("^[^\n:]*check_spec.lua:%d+: (.*)$"))
      end
    end
  end)

  it("takes one position away, however many calls of it there are", function()
    local function inner() check.blame(function() error("img:5: is none") end) end
    local function outer() check.blame(inner) end
    local err = support.error_of(function() outer() end)
    assert.matches("^[^\n:]*check_spec.lua:%d+: img:5: is none$", err)
  end)

  it("has a word for an error without end, too", function()
    local function deeper(n) return 1 + deeper(n + 1) end
    local err = support.error_of(function() check.blame(function() deeper(1) end) end)
    support.contains("stack overflow", err)
  end)
end)

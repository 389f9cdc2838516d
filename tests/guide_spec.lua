-- The guides in doc/: their examples run, each after what they share, and print what they say.

local support = require "support"

local top = debug.getinfo(1, "S").source:match("^@(.*)tests/[^/]*$")

local function read(name)
  local file <close> = assert(io.open(top .. name, "rb"))
  return file:read("a")
end

-- What the examples share, and the list of them: { title, the example, what it prints }.
local function parse(guide)
  local examples = {}
  for title, code, output in guide:gmatch(
    "\n## (%d+%. [^\n]+)\n.-\n```lua\n(.-\n)```\n\n```text\n(.-\n)```") do
    table.insert(examples, { title, code, output })
  end
  return guide:match("\n```lua\n(.-\n)```"), examples
end

local function lines_of(text)
  return select(2, text:gsub("\n", ""))
end

for _, name in ipairs { "doc/guide.md", "doc/write-a-device.md" } do
  local guide = read(name)
  local shared, examples = parse(guide)

  describe(name .. ":", function()
    it("has an output for each example", function()
      local _, headings = guide:gsub("\n## ", "")
      assert.equal(headings, #examples)
    end)

    for _, example in ipairs(examples) do
      it("runs " .. example[1], function()
        support.need_kvm()
        local status, output, errors = support.run(shared .. example[2])
        assert.equal("", errors)
        assert.equal(0, status)
        assert.equal(example[3], output)
      end)
    end
  end)
end

describe("doc/guide.md:", function()
  local _, examples = parse(read "doc/guide.md")

  it("has ten examples or more, of 5 to 15 lines", function()
    assert(#examples >= 10, #examples)
    for _, example in ipairs(examples) do
      local lines = lines_of(example[2])
      assert(lines >= 5 and lines <= 15, example[1])
    end
  end)
end)

describe("doc/write-a-device.md:", function()
  it("has a device of 40 lines", function()
    local lines = lines_of((parse(read "doc/write-a-device.md"):gsub("\n%s*\n", "\n")))
    assert(lines <= 40, lines)
  end)

  it("has a device whose state is not changed by a wait of before it was loaded", function()
    local shared <const> = parse(read "doc/write-a-device.md")
    local _, output, errors = support.run(shared .. [[

      local waits = false
      local device = countdown.new { after = function()
        waits = true
        return { detach = function() waits = false end }
      end }
      local state = device:save()
      device:write(0, 20, 1)
      device:load(state)
      print(waits)
    ]])
    assert.same({ "", "false\n" }, { errors, output })
  end)
end)

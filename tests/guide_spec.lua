-- doc/guide.md: its examples run, each after the function that they share, and print what it says.

local support = require "support"

local top = debug.getinfo(1, "S").source:match("^@(.*)tests/[^/]*$")

local function read(name)
  local file <close> = assert(io.open(top .. name, "rb"))
  return file:read("a")
end

local guide = read("doc/guide.md")
local shared = guide:match("\n```lua\n(.-\n)```")

-- { title, the example, what it prints }
local examples = {}
for title, code, output in guide:gmatch(
  "\n## (%d+%. [^\n]+)\n.-\n```lua\n(.-\n)```\n\n```text\n(.-\n)```") do
  table.insert(examples, { title, code, output })
end

describe("doc/guide.md:", function()
  it("has ten examples or more, each with its output", function()
    local _, headings = guide:gsub("\n## ", "")
    assert(headings >= 10, headings)
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

  it("has examples of 5 to 15 lines", function()
    for _, example in ipairs(examples) do
      local _, lines = example[2]:gsub("\n", "")
      assert(lines >= 5 and lines <= 15, example[1])
    end
  end)
end)

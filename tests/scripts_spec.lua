-- The scripts: what each prints, to the letter. boot.lua is in scripts_boot_spec.lua.

local lfs = require "lfs"
local support = require "support"

local scripts = debug.getinfo(1, "S").source:match("^@(.*)tests/[^/]*$") .. "scripts/"

local function run(name, ...)
  local text = ("return assert(loadfile(%q))(...)"):format(scripts .. name)
  return support.run(text, { after = { ... } })
end

local function expect(status, output, errors, ...)
  local got_status, got_output, got_errors = run(...)
  assert.equal(errors, got_errors)
  assert.equal(output, got_output)
  assert.equal(status, got_status)
end

describe("scripts:", function()
  before_each(support.need_kvm)

  describe("hello.lua", function()
    local exits = [[
io_out      port 0x3f8: "5"
io_in       port 0x3f8
mmio_write  0x8000: 0
mmio_read   0x8000
hlt
]]
    local clean = [[
0 dirty pages
The guest stored nothing in memory. VT-x marks the page it runs code from, too; this KVM does not.
]]

    -- VT-x marks pages that are only fetched from, others do not.
    it("prints each exit and counts the dirty pages", function()
      local status, output, errors = run("hello.lua")
      assert.equal("", errors)
      assert.equal(0, status)
      assert.equal(exits, output:sub(1, #exits))
      local rest = output:sub(#exits + 1)
      assert(rest == clean or rest == "1 dirty pages\n", rest)
    end)
  end)

  it("echo.lua reads a device and takes a log", function()
    expect(0, "hlt\nthe quick brown fox\n39 reads, 19 writes\n", "", "echo.lua")
  end)

  it("adder.lua asks the guest through handlers that yield", function()
    expect(0, "2 + 3 = 5\n400 + 58 = 458\n65535 + 2 = 1\n0 + 0 = 0\nhlt\n", "", "adder.lua")
  end)

  it("rewind.lua takes both branches from one state", function()
    expect(0, [[
io_out	port 0x10
io_in	port 0x11, answered 0
hlt	rip 0x100e, "L"
io_in	port 0x11, answered 1
hlt	rip 0x1014, "R"
]], "", "rewind.lua")
  end)

  it("have a first comment with the command, and all but boot.lua are short", function()
    for name in lfs.dir(scripts) do
      if name:find("%.lua$") then
        local count, text = 0, ""
        for line in io.lines(scripts .. name) do
          count = count + 1
          text = text .. line .. "\n"
        end
        assert(text:find("^%-%- "), name)
        support.contains("\n--   ckvm-lua scripts/" .. name, text)
        assert(count <= 60 or name == "boot.lua", name .. " is long")
      end
    end
  end)
end)

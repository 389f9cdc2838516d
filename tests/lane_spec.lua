-- tests/lane: its own part, without starting a machine; `make check-svm` is the proof of the rest.

local support = require "support"
local contains, quote = support.contains, support.quote

local LANE <const> = (os.getenv("CKVM_SRCDIR") or ".") .. "/tests/lane"

-- The status, output and errors of tests/lane with these words, after what a shell did.
local function lane(words, before)
  local errors = os.tmpname()
  local pipe = io.popen(("%s; %s %s 2>%s </dev/null"):format(
    before or ":", quote(LANE), words, errors))
  local output = pipe:read("a")
  local _, _, status = pipe:close()
  local file <close> = io.open(errors)
  os.remove(errors)
  return status, output, file:read("a")
end

describe("tests/lane", function()
  local function refused(message, words, before)
    local status, output, errors = lane(words, before)
    assert.same({ 125, "" }, { status, output })
    contains(message, errors)
  end

  it("tells how to use it", function()
    local status, output = lane("--help")
    assert.equal(0, status)
    contains("Usage: tests/lane ", output)
    refused("Usage: tests/lane ", "")
  end)

  it("names what it does not know", function()
    refused("there is no lane 'moon'", "moon -- true")
    refused("there is no option '--fast'", "--fast native -- true")
    refused("no command to run", "svm")
    refused("no command to run", "native --")
    refused("--timeout takes seconds", "--timeout")
    refused("--fetch takes a file", "--fetch")
  end)

  it("runs a command on this machine as it is", function()
    assert.same({ 7, "a b|*|\n", "x\n" },
      { lane([[native -- sh -c 'printf "%s|" "$@"; echo; echo x >&2; exit 7' sh 'a b' '*']]) })
    assert.same({ 0, "y\n", "" }, { lane("native echo y") })
  end)

  it("names the package that it lacks", function()
    local directory = os.tmpname()
    finally(function() os.execute("rm -rf " .. directory) end)
    local few = ("rm %s; mkdir %s; ln -s $(command -v bash) $(command -v dirname) %s; PATH=%s")
      :format(directory, directory, directory, directory)
    refused("qemu-system-x86_64 is missing (Debian: qemu-system-x86)", "svm -- true", few)
  end)
end)

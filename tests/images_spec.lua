-- Images that others have made (tests/images), under scripts/boot.lua: until they have said what
-- they are. Each where the KVM can run it, as the probe tells.

local ckvm = require "ckvm"
local support = require "support"

local top = debug.getinfo(1, "S").source:match("^@(.*)tests/[^/]*$")
local quote = support.quote

-- The path of an image, which is not downloaded here.
local function image(name)
  local pipe = io.popen(quote(top .. "tests/images") .. " --kept " .. name .. " 2>&1")
  local text = pipe:read("a")
  if not pipe:close() then support.skip(text:match("[^\n]*")) end
  return text:match("([^\n]+)\n$")
end

-- Whether the guest's own instructions run as they are, in ring 0, too: an emulator is too slow for
-- what these images unpack, and knows too few.
local function need_native()
  support.need_kvm()
  if ckvm.probe({ only = { "modes.protected.speed" } }).modes.protected.speed ~= "native" then
    support.skip "this KVM emulates ring 0"
  end
end

-- Boots with these options until the text is on the console, without what only moves the cursor;
-- returns it.
local function boots(text, seconds, options)
  local console = os.tmpname()
  finally(function() os.remove(console) end)
  local pipe = io.popen(([[
    exec timeout -s INT %d %s %s --console %s %s 2>&1 </dev/null & echo $!; wait]])
    :format(seconds, quote(support.program()), quote(top .. "scripts/boot.lua"), quote(console),
      options))
  local pid, seen, waited = pipe:read("l"), "", ckvm.eventfd()
  for _ = 1, seconds * 5 do
    waited:wait { timeout = 0.2 }
    local file <close> = assert(io.open(console, "rb"))
    seen = file:read("a"):gsub("\27%[[%d;?]*%a", ""):gsub("[\r\n]", "")
    if seen:find(text) then break end
  end
  os.execute("kill -INT " .. pid .. " 2>/dev/null")
  local rest = pipe:read("a")
  pipe:close()
  assert(seen:find(text), seen:sub(-400) .. rest)
end

describe("boot.lua boots", function()
  local directory

  before_each(function() directory = support.make_directory() end)
  after_each(function() directory = support.remove_directory(directory) end)

  it("the loader on iPXE's disk, with the BIOS in Lua", function()
    support.need_kvm()
    boots("ISOLINUX %d.*Anvin et al", 60, quote(image "ipxe"))
  end)

  it("iPXE, with the BIOS in Lua, until it waits for a key", function()
    need_native()
    boots("Press Ctrl%-B for the iPXE command line", 100, quote(image "ipxe"))
  end)

  it("iPXE's .lkrn, which starts in real mode, until it waits for a key", function()
    need_native()
    boots("Press Ctrl%-B for the iPXE command line", 100, quote(image "lkrn"))
  end)

  it("iPXE's .lkrn with a script, which asks for its command line", function()
    need_native()
    local path = directory .. "/script"
    local script <close> = assert(io.open(path, "w"))
    script:write("#!ipxe\necho a script\nshell\n")
    script:close()
    boots("a script *iPXE>", 100, ("--initrd %s %s"):format(quote(path), quote(image "lkrn")))
  end)

  it("iPXE's .lkrn with a command", function()
    need_native()
    boots("a command", 100, "--append 'echo a command' " .. quote(image "lkrn"))
  end)

  it("GRUB, with the BIOS in Lua, until it has its menu", function()
    need_native()
    boots("GNU GRUB *version %d", 100, quote(image "grub"))
  end)

  it("memtest86+, until it tests", function()
    need_native()
    boots("Memtest86%+ v%d.*Status: Testing", 100,
      "--append console=ttyS0,115200 " .. quote(image "memtest"))
  end)
end)

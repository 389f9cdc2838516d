-- ckvm.dev.fw_cfg: items, the directory of files, and a guest that reads the signature.

local fw_cfg = require "ckvm.dev.fw_cfg"
local support = require "support"

local blames = support.blames

local SELECTOR <const>, DATA <const> = 0, 1

local function get(device, key, size)
  device:write(SELECTOR, key, 2)
  local bytes = {}
  for i = 1, size do bytes[i] = string.char(device:read(DATA, 1)) end
  return table.concat(bytes)
end

describe("ckvm.dev.fw_cfg", function()
  it("refuses options that it does not know, and wrong ones", function()
    blames("fw_cfg: unknown option 'file'", fw_cfg.new, { file = {} })
    blames("fw_cfg: files: table expected, got string", fw_cfg.new, { files = "x" })
  end)

  it("refuses files without a name or a text", function()
    for _, name in ipairs { 1, "", ("x"):rep(56), "a\0b" } do
      blames("is no name of 1 to 55 bytes", fw_cfg.new, { files = { [name] = "" } })
    end
    blames("fw_cfg: files: a: string expected, got number", fw_cfg.new, { files = { a = 1 } })
  end)

  it("refuses items that are none, or there already", function()
    for _, key in ipairs { -1, 0x10000, 0x4005, 1.5, "5" } do
      blames(("items: %s is no number of an item"):format(key), fw_cfg.new,
        { items = { [key] = "" } })
    end
    blames("fw_cfg: items: 0x5: string expected, got number", fw_cfg.new, { items = { [5] = 1 } })
    for _, key in ipairs { 0, 1, 0x19, 0x20 } do
      blames(("fw_cfg: items: 0x%x is there already"):format(key), fw_cfg.new,
        { items = { [key] = "" }, files = { a = "" } })
    end
  end)

  it("has a signature, and a version without DMA", function()
    local device = fw_cfg.new {}
    assert.equal("QEMU\0\0", get(device, 0, 6))
    assert.equal("\1\0\0\0\0", get(device, 1, 5))
    assert.equal("\0\0\0\0", get(device, 0x19, 4))
    assert.equal("\0\0", get(device, 0x20, 2))
  end)

  it("has files in the order of their names", function()
    local device = fw_cfg.new {
      files = { ["opt/b"] = "two", ["opt/a"] = "1", [("n"):rep(55)] = "" },
    }
    local function entry(size, key, name)
      return string.pack(">I4I2I2", size, key, 0) .. name .. ("\0"):rep(56 - #name)
    end
    assert.equal("\0\0\0\3" .. entry(0, 0x20, ("n"):rep(55)) .. entry(1, 0x21, "opt/a")
      .. entry(3, 0x22, "opt/b"), get(device, 0x19, 4 + 3 * 64))
    assert.equal("1\0", get(device, 0x21, 2))
    assert.equal("two\0", get(device, 0x22, 4))
  end)

  it("has items, for a selector of the write bit, too", function()
    local device = fw_cfg.new { items = { [5] = "\2\0", [0x8002] = "e820" } }
    assert.equal("\2\0\0", get(device, 5, 3))
    assert.equal("\2\0", get(device, 0x4005, 2))
    assert.equal("e820", get(device, 0x8002, 4))
    assert.equal("\0", get(device, 2, 1))
  end)

  it("begins anew with each selector of two bytes", function()
    local device = fw_cfg.new {}
    assert.equal(("Q"):byte(), device:read(DATA, 1))
    device:write(SELECTOR, 1, 1)
    device:write(SELECTOR, 1, 4)
    device:write(DATA, 1, 2)
    assert.equal(0xff00 | ("E"):byte(), device:read(DATA, 2))
    assert.equal(("M"):byte() << 8 | 0xff, device:read(SELECTOR, 2))
    device:write(SELECTOR, 0xffff0000, 2)
    assert.equal(("Q"):byte(), device:read(DATA, 1))
  end)

  it("answers every offset, size and value", function()
    local device = fw_cfg.new { files = { a = "text" } }
    for _, value in ipairs { 0, 1, 0x19, 0x20, 0x4020, 0xffff, -1, math.mininteger } do
      for _, offset in ipairs { -1, 0, 1, 2, math.maxinteger } do
        for _, size in ipairs { 1, 2, 4 } do
          device:write(offset, value, size)
          local answer = device:read(offset, size)
          assert(answer >= 0 and answer < 1 << 8 * size)
        end
      end
    end
  end)

  it("takes a state back, into another one", function()
    local device = fw_cfg.new {}
    get(device, 0, 2)
    local state = device:save()
    get(device, 1, 1)
    local other = fw_cfg.new {}
    other:load(state)
    assert.same(state, other:save())
    assert.equal(("M"):byte(), other:read(DATA, 1))
    blames("state: offset: integer expected, got nil", other.load, other, { selector = 0 })
  end)

  it("tells a guest its signature", function()
    support.need_kvm()
    local _, vm, vcpu = support.real_mode(
      "\xba\x10\x05\x31\xc0\xef" ..  -- mov $0x510, %dx; xor %ax, %ax; out %ax, (%dx)
      "\x42\xbf\x00\x30" ..          -- inc %dx; mov $0x3000, %di
      "\xb9\x04\x00\xf3\x6c\xf4")    -- mov $4, %cx; rep insb; hlt
    vm:attach_io { port = 0x510, count = 2, device = fw_cfg.new {} }
    assert.equal("hlt", (vcpu:run(support.LIMITS)))
    assert.equal("QEMU", vm:read(0x3000, 4))
  end)
end)

-- States of device models, as from a file that anybody may have written: `load` refuses one by the
-- name of what is wrong with it, and changes nothing; or the device goes on with it, and raises
-- nothing. For a hundredth of 50,000 states, with a new seed, unless told.

local ata = require "ckvm.dev.ata"
local dev = require "ckvm.dev"
local disk = require "ckvm.disk"
local fw_cfg = require "ckvm.dev.fw_cfg"
local i8042 = require "ckvm.dev.i8042"
local pci = require "ckvm.dev.pci"
local pm = require "ckvm.dev.pm"
local port92 = require "ckvm.dev.port92"
local ram = require "ckvm.dev.ram"
local rtc = require "ckvm.dev.rtc"
local support = require "support"
local test = require "ckvm.dev.test"
local uart = require "ckvm.dev.uart"

local blames = support.blames
local random = math.random

local MOST_BYTES <const> = 0x4000 -- of all strings in a state

local function pick(list) return list[random(#list)] end

-- The models ---------------------------------------------------------------------

-- By name, a function that makes one: the device, what more there is at ports, and how many ports
-- each has; and what the host does with it at times.
local models = {}

function models.uart()
  local device = uart.new {}
  return device, { { device, 8 } }, function() device:receive(("x"):rep(random(0, 20))) end
end

function models.i8042()
  local device = i8042.new {}
  return device, { { device, 5 }, { device.command_port, 1 } },
    function() device:press(("x"):rep(random(0, 20))) end
end

-- Its timers are there, and never go off.
function models.rtc()
  local seconds = 1e9
  local function time()
    seconds = seconds + random(0, 3) / 2
    return seconds
  end
  local device = rtc.new {
    time = time, now = time, after = function() return { detach = function() end } end,
  }
  return device, { { device, 2 } }, function() device:reset() end
end

function models.pm()
  local device = pm.new {}
  return device, { { device, 12 }, { device.reset_register, 1 } },
    function() device:press_power_button() end
end

function models.port92()
  local device = port92.new {}
  return device, { { device, 1 } }
end

function models.fw_cfg()
  local device = fw_cfg.new { files = { name = "text" } }
  return device, { { device, 2 } }
end

function models.pci()
  local device = pci.new {}
  device:add { device = 3, func = 1, config = "\x34\x12\x11\x11" }
  return device, { { device, 8 } }
end

function models.test()
  local device = test.new {}
  return device, { { device, 12 }, { device.lines, 24 } }
end

function models.ram()
  local device = ram.new { size = 16 }
  return device, { { device, 16 } }
end

local function with_disk(image)
  local device = ata.new { disk = image }
  return device, { { device, 8 }, { device.control_port, 1 } }
end

-- Of few sectors, which raises where ckvm.disk only returns nil.
function models.ata()
  local image = disk.new(("\0"):rep(512 * 20))
  return with_disk {
    sectors = 20,
    read = function(_, first, count) return assert(image:read(first, count)) end,
    write = function(_, first, bytes) return assert(image:write(first, bytes)) end,
  }
end

function models.ata_readonly()
  return with_disk { sectors = 20, readonly = true,
    read = function(_, _, count) return ("\0"):rep(512 * count) end }
end

local function names_of_models()
  local names = {}
  for name in pairs(models) do table.insert(names, name) end
  table.sort(names)
  return names
end

-- States -------------------------------------------------------------------------

local NUMBERS <const> = {
  0, 1, 2, 3, 4, 7, 8, 16, 17, 20, 63, 64, 127, 128, 200, 255, 256, 511, 512, 4096, 8192, 0xffff,
  0x10000, 1 << 32, 1 << 40, 1 << 48, 1 << 62, math.maxinteger, math.mininteger, -1, -2, -129,
}
local LENGTHS <const> = { 0, 1, 2, 3, 7, 8, 9, 16, 17, 127, 128, 129, 256, 511, 512, 8192, 8193 }
local KINDS <const> = { 1, 1.5, "x", true, {} }

-- Another value, most often of the same type.
local function mutation(value)
  if random(20) == 1 then return pick(KINDS) end
  if math.type(value) == "integer" then
    return random(4) == 1 and random(0, 255) or pick(NUMBERS)
  elseif type(value) == "boolean" then
    return not value
  elseif type(value) ~= "string" or random(4) == 1 then
    return pick { "", "in", "out", "up" }
  end
  return string.char(random(0, 255)):rep(random(2) == 1 and #value or pick(LENGTHS))
end

local function mutate(state)
  local keys = {}
  for key in pairs(state) do table.insert(keys, key) end
  table.sort(keys)
  for _ = 1, random(3) do
    local key <const> = pick(keys)
    state[key] = mutation(state[key])
  end
end

-- Each port of the device is read and written, in all sizes, and random ones once more.
local function exercise(ports, poke)
  for _, entry in ipairs(ports) do
    local device <const>, count <const> = entry[1], entry[2]
    for i = 1, 4 * count do
      local offset = i <= count and i - 1 or random(0, count - 1)
      local size <const> = 1 << random(0, 2)
      if random(2) == 1 then
        device:write(offset, random(3) == 1 and random(0) or random(0, 255), size)
      end
      local value = device:read(offset, size)
      assert(math.type(value) == "integer", "no integer")
      if poke and random(16) == 1 then poke() end
    end
  end
end

local function check_size(state)
  local bytes = 0
  for _, value in pairs(state) do
    if type(value) == "string" then bytes = bytes + #value end
  end
  assert(bytes <= MOST_BYTES, bytes .. " bytes")
end

-- Whether the state was taken.
local function try(name, state)
  local device, ports, poke = models[name]()
  local before <const> = device:save()
  local taken, message = pcall(function() device:load(state) end)
  if not taken then
    assert(type(message) == "string" and message:find("^[^\n]-%f[:]:%d+: state: "), message)
    if name ~= "pm" then assert.same(before, device:save()) end -- whose time goes on
  end
  for _ = 1, 3 do exercise(ports, poke) end
  check_size(device:save())
  return taken
end

local function set_seed()
  local seed = tonumber(os.getenv "CKVM_SEED") or os.time()
  print("CKVM_SEED=" .. seed)
  math.randomseed(seed)
  return seed
end

describe("load of a device", function()
  it("takes what save has returned, whatever the guest has done before", function()
    set_seed()
    for _, name in ipairs(names_of_models()) do
      for _ = 1, support.times(2000) do
        local device, ports, poke = models[name]()
        for _ = 1, random(0, 3) do exercise(ports, poke) end
        models[name]():load(device:save())
      end
    end
  end)

  it("refuses a random state by name, or the device goes on with it", function()
    local seed <const>, names <const> = set_seed(), names_of_models()
    local taken = 0
    for i = 1, support.times(50000) do
      local name <const> = names[i % #names + 1]
      local device, ports, poke = models[name]()
      exercise(ports, poke)
      local state = device:save()
      mutate(state)
      local done, result = pcall(try, name, state)
      if not done then
        error(("state %d of CKVM_SEED=%d, for %s: %s"):format(i, seed, name, tostring(result)), 0)
      end
      if result then taken = taken + 1 end
    end
    assert(taken > 0, "CKVM_SEED=" .. seed) -- nearly half of them
  end)

  -- Each of these, by itself, in a state that is right but for it: what raised later, or grew.
  for _, case in ipairs {
    { "uart", "rx: 17 bytes are not between 0 and 16", { rx = ("x"):rep(17), fcr = 1 } },
    { "uart", "rx: without FIFO there is room for 1 byte", { rx = "xx" } },
    { "uart", "fcr: 256 is not between 0 and 255", { fcr = 256 } },
    { "i8042", "last: 256 is not between 0 and 255", { last = 256 } },
    { "i8042", "set: 0 is not between 1 and 3", { set = 0 } },
    { "i8042", "queue: 17 bytes are not between 0 and 16", { queue = ("x"):rep(17) } },
    { "i8042", "command: 0x20 waits for no byte", { command = 0x20 } },
    { "rtc", "index: 128 is not between 0 and 127", { index = 128 } },
    { "rtc", "memory: 127 bytes are not between 128 and 128", { memory = ("\0"):rep(127) } },
    { "rtc", "held: 1 bytes are neither 0 nor 8", { held = "x" } },
    { "rtc", "offset: -9223372036854775808 is not between", { offset = math.mininteger } },
    { "pm", "status: 65536 is not between", { status = 65536 } },
    { "port92", "value: 11 is not between 0 and 10", { value = 11 } },
    { "fw_cfg", "offset: -1 is not between", { offset = -1 } },
    { "pci", "00.0: 255 bytes are not between 256 and 256", { ["00.0"] = ("\0"):rep(255) } },
    { "test", "levels: 16777216 is not between", { levels = 1 << 24 } },
    { "ata", "buffer: 8193 bytes are not between", { buffer = ("x"):rep(8193) } },
    { "ata", "direction: 'up' is none of", { direction = "up" } },
    { "ata", "first: 20 with 1 sectors to come is beyond the disk's 20",
      { direction = "in", first = 20, left = 1 } },
    { "ata", "block: 0 is not between 1 and the 0 sectors to come", { direction = "out" } },
    { "ata", "buffer: 512 bytes of a sector that is half written",
      { direction = "out", left = 1, block = 1, buffer = ("x"):rep(512) } },
    { "ata_readonly", "direction: nothing is written to a disk that is read-only",
      { direction = "out", left = 1, block = 1 } },
  } do
    local name <const>, message <const>, fields <const> = table.unpack(case)
    it("refuses of " .. name .. " what is wrong: " .. message, function()
      local device <const> = models[name]()
      local state = device:save()
      for key, value in pairs(fields) do state[key] = value end
      blames("state: " .. message, device.load, device, state)
    end)
  end

  it("looks at what it copies, whatever a metatable answers", function()
    local device <const> = models.uart()
    local saved <const> = device:save()
    for _, state in ipairs {
      setmetatable({}, { __index = saved }),
      setmetatable(device:save(), { __pairs = function() return next, { rx = "" } end }),
    } do
      blames("state: ", device.load, device, state)
      assert.same(saved, device:save())
    end
  end)

  it("takes limits of numbers that are no integers", function()
    local function load(level)
      local state <const> = dev.restore({ level = level }, { level = 0.5 }, { level = { 0, 1 } })
      return state.level
    end
    assert.equal(1.0, load(1.0))
    blames("state: level: 1.5 is not between 0 and 1", load, 1.5)
    blames("nan is not between 0 and 1", load, 0 / 0)
  end)
end)

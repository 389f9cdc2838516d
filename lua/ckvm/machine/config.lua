-- The table that ckvm.machine makes a guest of: its checks, and what stands for what is left out.

local dev = require "ckvm.dev"

local config = {}

config.HOLE = 3 << 30 -- where a PC has devices and not memory, until 4 GiB
-- Below 1 MiB, where no code of protected and long mode is: page tables for 4 GiB; in user mode the
-- stubs of each vCPU, with its page tables.
config.TABLES, config.STUBS_SIZE = 0x1000, 0xf000

local STACK_SIZE <const> = 0x1000 -- that ring 3 has below its code, at least
local NO_USER <const> = 0x10000 -- where the tables of other modes end
local PAGE <const>, MOST_MEMORY <const> = 0x1000, 256 << 30
local STARTS <const> = { real = 0x7c00, protected = 0x100000, long = 0x100000, user = 0x100000 }

config.OPTIONS = { -- as check.options takes them
  memory = "integer?", cpus = "integer?", mode = "string?", code = "string?", at = "integer?",
  regs = "table?", devices = "table?", irqchip = "boolean?", kvm = "userdata?", image = "string?",
  name = "string?", cmdline = "string?", modules = "table?", acpi = "table?",
  format = "string?", trace = "table?",
}
local OF_IMAGES <const> = { "name", "cmdline", "modules", "acpi", "format" }

local function fail(level, ...) error((...):format(select(2, ...)), level + 1) end

-- An image says itself where it starts, and in which mode.
local function check_image(options)
  for _, key in ipairs(options.image and { "code", "mode", "at" } or OF_IMAGES) do
    if options[key] ~= nil then
      local why <const> = options.image and "an image, which has its own" or "no image"
      fail(4, "%s: there is %s", key, why)
    end
  end
  if options.image and (options.cpus or 1) > 1 and not options.irqchip then
    fail(4, "cpus: %d with an image take an irqchip, for the first to start the others",
      options.cpus)
  end
end

local function check_devices(devices)
  for i, device in ipairs(devices or {}) do
    local kind <const> = math.type(device) or type(device)
    if kind ~= "table" then
      fail(4, "devices: table expected as number %d, got %s", i, kind)
    end
  end
end

local function acpi_of(options, cpus)
  local copy = dev.copy(options)
  copy.cpus = copy.cpus or cpus
  return copy
end

-- of: what `read` returns.
local function check_places(of)
  local low <const> = of.options.memory
  local tables <const> = of.mode == "user"
    and config.TABLES + of.cpus * config.STUBS_SIZE + STACK_SIZE or NO_USER
  if of.memory < 0x100000 or of.memory % PAGE ~= 0 or of.memory > MOST_MEMORY then
    fail(4, "memory: 0x%x is not a number of whole pages between 1 MiB and 256 GiB", of.memory)
  elseif of.cpus < 1 then
    fail(4, "cpus: %d is less than 1", of.cpus)
  elseif of.at < 0 or of.at >= low then
    fail(4, "at: 0x%x is not in memory, which ends at 0x%x", of.at, low)
  elseif #(of.code or "") > low - of.at then
    fail(4, "code: 0x%x bytes at 0x%x do not fit in memory, which ends at 0x%x", #of.code, of.at,
      low)
  elseif of.mode ~= "real" and of.at < tables then
    fail(4, "at: 0x%x is where the machine has descriptors and page tables, below 0x%x", of.at,
      tables)
  end
end

-- Returns the fields of a machine; `options` of these are for ckvm.boot. What makes no sense blames
-- who has called the caller.
function config.read(given)
  check_image(given)
  check_devices(given.devices)
  local memory <const>, cpus <const> = given.memory or 16 << 20, given.cpus or 1
  local mode <const>, low <const> = given.mode or "real", math.min(memory, config.HOLE)
  if not STARTS[mode] then fail(3, "mode: '%s' is none of real, protected, long, user", mode) end
  local of <const> = {
    memory = memory, cpus = cpus, mode = mode, at = given.at or STARTS[mode], code = given.code,
    regs = given.regs or {}, devices = given.devices or {}, irqchip = given.irqchip,
    image = given.image,
    options = {
      name = given.name, cmdline = given.cmdline, modules = given.modules, format = given.format,
      memory = low, high_memory = memory - low, acpi = given.acpi and acpi_of(given.acpi, cpus),
    },
  }
  check_places(of)
  return of
end

return config

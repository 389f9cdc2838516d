-- What a BIOS boots, for ckvm.bios: the first sector of its disk, or an image in the place of that.
-- Messages are without a position.

local boot = require "ckvm.boot"

local image = {}

local STARTED <const> = { sector = true, linux16 = true } -- by a BIOS, and not beside it

local function load(bios, bytes, options)
  return boot.load(bios.vm, bytes, {
    name = options.name, memory = bios.memory, format = options.format, cmdline = options.cmdline,
    modules = options.modules,
  })
end

local function load_disk(bios)
  local disk <const> = bios.disk
  if not disk then error("disk: there is none to boot", 0) end
  local bytes, message = disk:read(0, math.min(2, disk.sectors)) -- a kernel is told by the second
  if not bytes then error(message, 0) end
  return load(bios, bytes, { name = disk.name or "disk", format = "sector" })
end

local function load_image(bios, options)
  local format <const> = options.format or boot.detect(options.image)
  if format and not STARTED[format] then -- what has none is refused by name
    error(("%s: the format '%s' is none that a BIOS starts"):format(options.name or "image",
      format), 0)
  end
  return load(bios, options.image, options)
end

-- Loads the image of the options, or the disk's sector; returns where to start.
function image.load(bios, options)
  local start = options and load_image(bios, options) or load_disk(bios)
  if bios.drive then start.regs.rdx = bios.drive end
  return start
end

return image

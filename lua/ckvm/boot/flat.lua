-- A flat binary, for ckvm.boot: 16-bit code without a header. What is nothing else is one.

local flat = { at = true } -- the options that it takes

local START <const>, END <const> = 0x7c00, 0x10000 -- as a boot sector; of a real-mode segment

function flat.detect() return true end

function flat.load(image, ram, options)
  local at = options.at or START
  if at < 0 or at >= END then
    image:fail("at 0x%x is not below 0x%x, where real-mode code ends", at, END)
  elseif #image.bytes == 0 then
    image:fail("has 0 bytes")
  end
  ram:load("image", at, #image.bytes, 0, #image.bytes, { "at", "size" })
  ram:settle()
  return { mode = "real", rip = at, regs = { rsp = at & ~1 } }
end

return flat

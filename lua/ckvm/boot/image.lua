-- The bytes of an image, none of which is trusted, for ckvm.boot: what is read of them is in them,
-- and what is wrong with them is said in the image's name.

local image = {}
image.__index = image

-- Whether `size` bytes from `first` on end by `limit`, all of them unsigned.
local function inside(first, size, limit)
  return not math.ult(limit, size) and not math.ult(limit - size, first)
end
image.inside = inside

function image.new(bytes, name)
  return setmetatable({ bytes = bytes, name = name }, image)
end

-- Raises: no line is to blame for what a file has in it.
function image:fail(message, ...)
  error(self.name .. ": " .. message:format(...), 0)
end

function image:check_inside(what, offset, size)
  if not inside(offset, size, #self.bytes) then
    self:fail("%s: offset 0x%x + 0x%x bytes is beyond the image, which ends at 0x%x", what, offset,
      size, #self.bytes)
  end
end

-- string.unpack of a structure, which messages call `what`.
function image:unpack(format, offset, what)
  self:check_inside(what, offset, string.packsize(format))
  return string.unpack(format, self.bytes, offset + 1)
end

-- The offset of the first header for which `is_one(offset)` is true, of those that begin with
-- `magic`, stand on a multiple of `align`, and have `size` bytes that end by `limit`; and else nil
-- and the offset of the first that is none.
function image:find(magic, align, size, limit, is_one)
  local bytes, first, from = self.bytes:sub(1, limit), nil, 1
  while true do
    local found = bytes:find(magic, from, true)
    if not found or not inside(found - 1, size, #bytes) then return nil, first end
    local offset = found - 1
    if offset % align == 0 then
      if is_one(offset) then return offset end
      first = first or offset
    end
    from = found + 1
  end
end

return image

-- What descriptor tables of 32 and of 64 bits share: lists by vector, and bitmaps by port. What is
-- wrong blames the line of who called the caller.

local vectors = {}

-- The number that a list has for a vector, 0 if it has none.
function vectors.number(what, list, vector, most)
  local number = list and list[vector] or 0
  if math.type(number) ~= "integer" or number < 0 or number > most then
    error(("%s: %s is not between 0 and %d"):format(what, tostring(number), most), 5)
  end
  return number
end

-- A table of gates, up to the last vector that has a handler: what make(vector, address) returns
-- for each, `none` for those without one.
function vectors.gates(handlers, none, make)
  local gates, last = {}, -1
  for vector, address in pairs(handlers) do
    if math.type(vector) ~= "integer" or vector < 0 or vector > 255 then
      error(("vector: %s is not between 0 and 255"):format(tostring(vector)), 3)
    elseif math.type(address) ~= "integer" then
      error(("handler: integer expected, got %s"):format(math.type(address) or type(address)), 3)
    end
    last = math.max(last, vector)
  end
  for vector = 0, last do
    local address = handlers[vector]
    table.insert(gates, address and make(vector, address) or none)
  end
  return table.concat(gates)
end

-- The bitmap of ports that ring 3 may not access, up to the last byte that has one it may.
function vectors.port_bitmap(ports)
  local denied, count = {}, 0
  for _, port in ipairs(ports) do
    if math.type(port) ~= "integer" or port < 0 or port > 0xffff then
      error(("ports: %s is not between 0 and 65535"):format(tostring(port)), 3)
    end
    count = math.max(count, port // 8 + 1)
  end
  for i = 1, count do denied[i] = 0xff end
  for _, port in ipairs(ports) do
    denied[port // 8 + 1] = denied[port // 8 + 1] & ~(1 << port % 8)
  end
  for i, byte in ipairs(denied) do denied[i] = string.char(byte) end
  -- The CPU reads two bytes at a time: one more is to be there, all ones.
  return table.concat(denied) .. "\xff"
end

return vectors

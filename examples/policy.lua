-- The policy of examples/embed.c: who answers what the program leaves open. It is given the VM,
-- and may be changed without building anything.

local vm = ...
local secret <const> = 42
local line = {}

-- A console: whole lines only, and no control characters.
vm:attach_io {
  port = 0x3f8,
  write = function(_, value)
    if value == 10 then
      print("guest: " .. table.concat(line))
      line = {}
    elseif value >= 32 and value < 127 then
      table.insert(line, string.char(value))
    end
  end,
}

-- It may read here, and not write.
vm:attach_mmio {
  gpa = 0x8000,
  size = 0x1000,
  read = function() return secret end,
  write = function(gpa, value)
    print(("refused: the guest's write of %d to %#x"):format(value, gpa))
  end,
}

-- Anything else is a bus with nobody on it.
vm:on("io_in", function(_, size) return (1 << 8 * size) - 1 end)
vm:on("io_out", function() end)

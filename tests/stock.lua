-- What holds in stock Lua, too, where the module is not there from the start: run by installcheck.

local resume = coroutine.resume -- Lua's own, as a library has it that was loaded before
local ckvm = require "ckvm"
assert(resume ~= coroutine.resume)

local function guest()
  local vm = ckvm.open():create_vm()
  vm:add_memory { gpa = 0x1000, size = 0x1000 }
  vm:write(0x1000, "\xe6\x10\xf4") -- out %al, $0x10; hlt
  local vcpu = vm:create_vcpu(0)
  vcpu:set_sregs { cs = { base = 0, selector = 0 } }
  vcpu:set_regs { rip = 0x1000, rflags = 2 }
  return vm, vcpu
end

-- A deadline finds the coroutine that runs, and none that is gone.
do
  local vm, vcpu = guest()
  vm:attach_io { port = 0x10, write = function()
    for _ = 1, 3 do
      resume(coroutine.create(function() coroutine.resume(coroutine.create(function() end)) end))
    end
    collectgarbage()
    local filler = {}
    for i = 1, 1000 do filler[i] = coroutine.create(print) end
    while #filler > 0 do end
  end }
  local ok, message = pcall(vcpu.run, vcpu, { timeout = 0.5 })
  assert(not ok and tostring(message):find("deadline"), message)
end

-- A suspended run's clock stands still, and goes on when it is resumed; where Lua's own function
-- does both, that is only known once the handler returns, or another run was meanwhile.
local function quiet()
  local vm, vcpu = guest()
  vm:attach_io { port = 0x10, write = function() end }
  return vcpu
end

local function dawdle() -- longer than any deadline here
  local start <const> = ckvm.now()
  repeat until ckvm.now() - start > 0.6
end

for _, first in ipairs { resume, coroutine.resume } do
  for _, second in ipairs { resume, coroutine.resume } do
    for _, meanwhile in ipairs { function() end, function() quiet():run { timeout = 10 } end } do
      local vm, vcpu = guest()
      local why
      vm:attach_io { port = 0x10, write = function()
        coroutine.yield()
        why = quiet():run()
        while true do end
      end }
      local co = coroutine.create(function() vcpu:run { timeout = 0.5 } end)
      assert(first(co))
      dawdle()
      meanwhile()
      local ok, message = second(co)
      assert(not ok and tostring(message):find("deadline"), message)
      assert(why == "hlt" or first == resume and second == resume, why)
      for _ = 1, 3000000 do end -- no hook, and no timer, is left
    end
  end
end

-- Taken a second time, the module is the same one, and its objects are known to it.
do
  local vm, vcpu = guest()
  vm:on("io_out", function() end)
  package.loaded.ckvm = nil
  assert(require "ckvm" == ckvm)
  assert(vcpu:run { timeout = 10 } == "hlt")
  vm:close()
end

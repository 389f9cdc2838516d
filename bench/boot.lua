-- How long Linux takes to user space under boot.lua, beside QEMU on the same KVM with the same
-- kernel, first files and command line: in turns, from the start of the process to the line that
-- tests/linux.init prints.
--
--   ckvm-lua bench/boot.lua [times]      (make bench-boot runs it under kvm_amd)

local ckvm = require "ckvm"

local here = arg[0]:match("^(.*)/[^/]*$")
local TIMES <const> = tonumber(arg[1]) or 3
local APPEND <const> = "console=ttyS0 quiet"

local function output_of(command)
  local pipe = io.popen(command)
  local text = pipe:read("a")
  assert(pipe:close(), text)
  return text
end

-- Seconds until user space has printed, which is the end of it.
local function time_of(command)
  local since <const> = ckvm.now()
  local pipe = io.popen("echo $$; exec " .. command .. " </dev/null 2>&1")
  local pid <const>, all = pipe:read("l"), {}
  local found
  for line in pipe:lines() do
    table.insert(all, line)
    if line:find("user space:", 1, true) then
      found = ckvm.now() - since
      break
    end
  end
  os.execute("kill -KILL " .. pid)
  pipe:close()
  return found or error("no user space: " .. table.concat(all, "\n"), 0)
end

local initrd <const> = os.tmpname()
local kernel <const> = output_of(("'%s/../tests/images' --initrd %s linux"):format(here, initrd))
  :match("[^\n]+")
local commands <const> = {
  { "boot.lua", ("./ckvm-lua '%s/../scripts/boot.lua' --append '%s' --initrd %s %s")
    :format(here, APPEND, initrd, kernel) },
  { "QEMU -accel kvm", ("qemu-system-x86_64 -accel kvm -cpu host -m 256 -nodefaults -no-reboot "
    .. "-display none -serial stdio -kernel %s -initrd %s -append '%s'")
    :format(kernel, initrd, APPEND) },
}
local best = {}
for _ = 1, TIMES do
  for i, entry in ipairs(commands) do
    best[i] = math.min(best[i] or math.huge, time_of(entry[2]))
  end
end
os.remove(initrd)
print(("Linux to user space, the best of %d, seconds"):format(TIMES))
for i, entry in ipairs(commands) do
  print(("%-20s %6.1f %6.2f"):format(entry[1], best[i], best[i] / best[2]))
end

-- Debian's stock cloud kernel under scripts/boot.lua: to user space, a line typed at its console,
-- and off by ACPI. For KVMs that run a Linux, and where tests/images has one.

local ckvm = require "ckvm"
local support = require "support"

local top = debug.getinfo(1, "S").source:match("^@(.*)tests/[^/]*$")
local quote = support.quote

-- Whether this KVM can: a system call has to get to ring 0.
local function need_linux()
  support.need_kvm()
  if not ckvm.probe({ only = { "ring3.syscall" } }).ring3.syscall then
    support.skip "this KVM does not take SYSCALL from ring 3 to ring 0"
  end
end

-- The path of the kernel and of its first files, which are written there.
local function kernel(initrd)
  local pipe = io.popen(("%s --kept --initrd %s linux 2>&1"):format(quote(top .. "tests/images"),
    quote(initrd)))
  local text = pipe:read("a")
  if not pipe:close() then support.skip(text:match("[^\n]*")) end
  return text:match("([^\n]+)\n$")
end

-- Boots it with these options, and types a line when it asks for one, or has ended. Returns the
-- exit status and all that was printed.
local function run(directory, options, linux)
  local pipe = io.popen(([[
    in=%s; : >"$in/output"
    { until grep -q 'type a line' "$in/output" || [ -e "$in/status" ]; do sleep 0.3; done
      echo hello, guest; } 2>/dev/null |
    { timeout -k 5 300 %s %s --initrd "$in/initrd" %s %s >"$in/output" 2>&1
      echo $? >"$in/status"; }
    cat "$in/status"]]):format(quote(directory), quote(support.program()),
    quote(top .. "scripts/boot.lua"), options, quote(linux)))
  local status = pipe:read("n")
  pipe:close()
  local file <close> = assert(io.open(directory .. "/output", "rb"))
  return status, file:read("a")
end

describe("Debian's kernel", function()
  local directory

  before_each(function() directory = support.make_directory() end)

  after_each(function() directory = support.remove_directory(directory) end)

  for cpus = 1, 2 do
    it(("boots with %d vCPUs, answers, and switches itself off"):format(cpus), function()
      need_linux()
      local linux, since = kernel(directory .. "/initrd"), ckvm.now()
      local status, output = run(directory,
        ("--cpus %d --append 'console=ttyS0 quiet'"):format(cpus), linux)
      print(("boot and power-off with %d vCPUs: %.1f s, user space after %s s of the guest's")
        :format(cpus, ckvm.now() - since, output:match("CPUs, ([%d.]+) seconds")))
      support.contains(("user space: %d CPUs"):format(cpus), output)
      support.contains("you typed: hello, guest", output)
      support.contains("on the bus: 0000:00:00.0 pci:v00008086d00001237", output)
      support.contains("the clock was set by the RTC: 1", output)
      assert(output:find("interrupts: 8: [^\r\n]*IO%-APIC +8%-edge +rtc0"), output)
      assert(output:find("\nboot.lua: poweroff at rip 0x%x+ after %d+ exits\n$"), output)
      assert.equal(0, status)
    end)
  end
end)

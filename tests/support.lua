-- What the specs share: a real-mode guest in one call, the error of a refused call, a script in a
-- ckvm-lua of its own. Each test still builds what it needs.

local ckvm = require "ckvm"
local lfs = require "lfs"

local support = {}

-- Makes the test pending, in a before_each, too, whose environment has no `pending`.
function support.skip(reason)
  require("busted.core")().pending(reason)
end

-- Makes the test pending where there is no KVM to test with; run.lua makes that a failure where
-- KVM is required. The reason names no line, or busted and run.lua would take what is before it
-- for the place.
function support.need_kvm()
  local opened, kvm = pcall(ckvm.open)
  if opened then return kvm:close() end
  local reason = tostring(kvm):gsub("^[^\n]-:%d+: ", "")
  support.skip("no KVM: " .. reason)
end

-- A guest in real mode: memory from 0 on, `code` at 0x1000, about to run it with clear registers.
-- Options: size = of the memory (0x10000), open = the argument of ckvm.open, regs = more of them,
-- memory = more options of add_memory.
function support.real_mode(code, options)
  options = options or {}
  local kvm = ckvm.open(options.open)
  local vm = kvm:create_vm()
  local memory = { gpa = 0, size = options.size or 0x10000 }
  for key, value in pairs(options.memory or {}) do memory[key] = value end
  local ram = vm:add_memory(memory)
  vm:write(0x1000, code)
  local vcpu = vm:create_vcpu(0)
  vcpu:set_sregs { cs = { base = 0, selector = 0 } }
  local regs = { rip = 0x1000, rflags = 2, rdx = 0 } -- after a reset rdx tells the CPU's model
  for name, value in pairs(options.regs or {}) do regs[name] = value end
  vcpu:set_regs(regs)
  return kvm, vm, vcpu, ram
end

-- A KVM and a VM of it.
function support.new_vm()
  support.need_kvm()
  local kvm = ckvm.open()
  return kvm, kvm:create_vm()
end

-- Closes these, but for those that there are not (yet). Returns nothing, to take their place.
function support.close(...)
  for i = 1, select("#", ...) do
    local object = select(i, ...)
    if object then object:close() end
  end
end

-- For runs that end by themselves, so that no mistake hangs the suite.
support.LIMITS = { timeout = 20 }

-- A guest whose addresses from 0x8000 on have no memory behind them.
function support.guest(code, options)
  options = options or {}
  options.size = 0x8000
  return support.real_mode(code, options)
end

-- The same with nothing but zeros answered at the port and the addresses that it uses.
function support.quiet(code, options)
  local _, vm, vcpu = support.guest(code, options)
  local function zero() return 0 end
  vm:attach_io { port = 0x10, read = zero, write = zero }
  vm:attach_mmio { gpa = 0x8000, size = 0x1000, read = zero, write = zero }
  return vcpu, vm
end

-- A guest that calls handler at its access of port 0x10, an `out` if no code is given, and halts.
function support.calling(handler, code)
  local _, vm, vcpu = support.guest((code or "\xe6\x10") .. "\xf4") -- out %al, $0x10; hlt
  vm:attach_io { port = 0x10, read = handler, write = handler }
  return vcpu, vm
end

-- All that such guests touch, answered by these two.
function support.attach(vm, read, write)
  vm:attach_io { port = 0x10, read = read, write = write }
  vm:attach_mmio { gpa = 0x8000, size = 0x2000, read = read, write = write }
end

-- Calls define(name, code, kind) for each of the four kinds of access of one byte, `it` names
-- included.
function support.each_access(define)
  define("a port read", "\xe4\x10", "read")          -- in $0x10, %al
  define("a port write", "\xe6\x10", "write")        -- out %al, $0x10
  define("an MMIO read", "\xa0\x00\x80", "read")     -- mov (0x8000), %al
  define("an MMIO write", "\xa2\x00\x80", "write")   -- mov %al, (0x8000)
end

-- A handler that notes its arguments in the list, and answers `answer`.
function support.noter(list, answer)
  return function(...)
    table.insert(list, table.pack(...))
    return answer
  end
end

-- By name in lower case, the functions and the fields of each type of objects: sets of names.
function support.types()
  local found = {}
  for _, meta in pairs(debug.getregistry()) do
    local name = type(meta) == "table" and rawget(meta, "__name")
    local index = type(name) == "string" and name:find("^ckvm ") and rawget(meta, "__index")
    local _, members = debug.getupvalue(index or print, 2)
    if type(members) == "table" then
      local entry = { functions = {}, fields = {} }
      for key, value in pairs(members) do
        entry[type(value) == "function" and "functions" or "fields"][key] = true
      end
      found[name:match("^ckvm (.*)$"):lower()] = entry
    end
  end
  return found
end

-- What fn(...) raises: a string, or an error object.
function support.error_of(fn, ...)
  local raised = table.pack(pcall(fn, ...))
  if raised[1] then error("nothing is raised", 2) end
  return raised[2]
end

-- Raises unless fn(...) raises a string that has the message in it, and blames the line here that
-- has called it.
function support.blames(message, fn, ...)
  local args = table.pack(...)
  local err = support.error_of(function() local _ = fn(table.unpack(args, 1, args.n)) end)
  support.contains("support.lua:", err)
  support.contains(message, err)
end

-- Raises unless text (or what it converts to) has that part, taken literally.
function support.contains(part, text)
  text = tostring(text)
  if not text:find(part, 1, true) then error(("%q is not in %q"):format(part, text), 2) end
end

function support.quote(word)
  return "'" .. word:gsub("'", "'\\''") .. "'"
end

-- The ckvm-lua to run scripts with.
function support.program()
  local build = os.getenv("CKVM_BUILDDIR")
  return os.getenv("CKVM_LUA") or build and build .. "/ckvm-lua"
    or lfs.symlinkattributes("/proc/self/exe", "target")
end

local function take(name)
  local file <close> = assert(io.open(name, "rb"))
  os.remove(name)
  return file:read("a")
end

-- Runs a script's text in a ckvm-lua of its own: args go before it ("--trace-ioctl"), or, as
-- { before = {...}, after = {...}, shell = "ulimit -n 20" }, before and after, and in a shell
-- that did that. Returns its exit status (128 + n for signal n), output and errors.
function support.run(script, args)
  args = args or {}
  if args[1] then args = { before = args } end
  local name, err = os.tmpname(), os.tmpname()
  do
    local file <close> = assert(io.open(name, "wb"))
    file:write(script)
  end
  local words = { support.quote(support.program()) }
  for _, word in ipairs(args.before or {}) do table.insert(words, support.quote(word)) end
  table.insert(words, name)
  for _, word in ipairs(args.after or {}) do table.insert(words, support.quote(word)) end
  local command = ("%s; exec timeout -k 5 60 %s 2>%s </dev/null"):format(
    args.shell or ":", table.concat(words, " "), err)
  local pipe = assert(io.popen(command))
  local output = pipe:read("a")
  local _, how, code = pipe:close()
  os.remove(name)
  return how == "signal" and 128 + code or code, output, take(err)
end

-- A file with that text, removed at the end of the test by the function it is given to.
function support.new_file(text)
  local name = os.tmpname()
  local file <close> = assert(io.open(name, "wb"))
  file:write(text)
  return name, function() os.remove(name) end
end

function support.content(name)
  local file <close> = assert(io.open(name, "rb"))
  return file:read("a")
end

-- A directory of a test's own, and its end, with the files in it: nil for what holds its name.
function support.make_directory()
  local directory = os.tmpname()
  os.remove(directory)
  assert(lfs.mkdir(directory))
  return directory
end

function support.remove_directory(directory)
  if not directory then return end
  for name in lfs.dir(directory) do os.remove(directory .. "/" .. name) end
  lfs.rmdir(directory)
end

-- How often to do what `make soak` does `full` times: CKVM_SHARE is the percent of it, 1 unless
-- told.
function support.times(full)
  return math.ceil(full / 100 * (tonumber(os.getenv "CKVM_SHARE") or 1))
end

-- What a shell puts before a command that is to open no file against its permissions: for root,
-- who has to give up two capabilities, and who then still may do what an owner may.
function support.obedient()
  local id <close> = io.popen("id -u")
  if id:read("n") ~= 0 then return "" end
  return "setpriv --inh-caps=-all --bounding-set=-dac_override,-dac_read_search "
end

-- How many descriptors this process has open.
function support.count_fds()
  local count = 0
  for name in lfs.dir("/proc/self/fd") do
    if name ~= "." and name ~= ".." then count = count + 1 end
  end
  return count - 1 -- the one that counts
end

-- How many threads this process has whose name is that pattern. KVM itself has one for a VM, too.
function support.count_threads(pattern)
  local count = 0
  for id in lfs.dir("/proc/self/task") do
    local file = io.open("/proc/self/task/" .. id .. "/comm")
    local name = file and file:read("l") or ""
    if file then file:close() end
    if name:find("^" .. pattern .. "$") then count = count + 1 end
  end
  return count
end

-- Raises unless there are as many. One that has begun has its name a little later, and one that
-- was joined goes then.
function support.expect_threads(pattern, expected)
  local count
  for _ = 1, 100000 do
    count = support.count_threads(pattern)
    if count == expected then return end
  end
  error(("%d threads '%s', not %d"):format(count, pattern, expected), 2)
end

-- Collects until nothing more comes of it.
function support.collect()
  for _ = 1, 4 do collectgarbage() end
end

-- The same, with nothing left of earlier tests that a collection might close in between.
function support.settled_fds()
  support.collect()
  return support.count_fds()
end

return support

-- The C programs of examples/, as `make check` builds them.

local lfs = require "lfs"
local support = require "support"

local source = os.getenv("CKVM_SRCDIR") or "."
local build = os.getenv("CKVM_BUILDDIR") or "."
local path -- of a policy written by a test

local quote = support.quote

-- Returns the status, and what was printed with errors last.
local function example(name, argument)
  local program = build .. "/examples/" .. name
  if not lfs.attributes(program) then pending(program .. " is not built") end
  local errors = os.tmpname()
  local pipe = io.popen(("exec timeout -k 5 60 %s %s 2>%s"):format(
    quote(program), argument and quote(argument) or "", quote(errors)))
  local output = pipe:read("a")
  local _, _, status = pipe:close()
  local file <close> = io.open(errors)
  os.remove(errors)
  return status, output, file:read("a")
end

local function policy(text)
  path = os.tmpname()
  local file <close> = io.open(path, "w")
  file:write(text)
  return path
end

describe("examples/embed", function()
  before_each(support.need_kvm)
  after_each(function()
    if path then os.remove(path) end
    path = nil
  end)

  it("answers one port itself, and leaves the rest to policy.lua", function()
    local status, output, errors = example("embed", source .. "/examples/policy.lua")
    assert.equal("", errors)
    assert.equal("guest: 2*\nhalt 1\nrefused: the guest's write of 10 to 0x8010\nhalt 2\n"
      .. "the counter was read 2 times\n", output)
    assert.equal(0, status)
  end)

  it("takes another policy without a rebuild", function()
    local status, output, errors = example("embed", policy [[
      local vm = ...
      vm:on("io_out", function(port, value) print(("%x: %d"):format(port, value)) end)
      vm:on("mmio_read", function() return 7 end)
      vm:on("mmio_write", function() end) ]])
    assert.equal("", errors)
    assert.equal("3f8: 50\n3f8: 7\n3f8: 10\nhalt 1\nhalt 2\nthe counter was read 2 times\n", output)
    assert.equal(0, status)
  end)

  it("reports an error of the script with its traceback", function()
    local status, output, errors = example("embed", policy
      "local function deep() error('no good') end\ndeep()\n")
    assert.equal("the counter was read 0 times\n", output)
    assert.matches("^embed: [^\n]*:1: no good\nstack traceback:\n.*in local 'deep'", errors)
    assert.equal(1, status)
  end)

  it("reports an error of a handler with its traceback", function()
    local status, output, errors = example("embed", policy [[
      local vm = ...
      vm:on("io_out", function(port) error(("what is %x?"):format(port)) end) ]])
    assert.equal("the counter was read 2 times\n", output)
    assert.matches("^embed: [^\n]*:2: what is 3f8%?\nstack traceback:\n", errors)
    assert.equal(1, status)
  end)

  it("reports a script that does not compile, and one that is missing", function()
    local status, _, errors = example("embed", policy "vm :")
    assert.matches("^embed: [^\n]*near <eof>", errors)
    assert.equal(1, status)
    status, _, errors = example("embed", "/no/such/policy.lua")
    assert.matches("^embed: cannot open /no/such/policy.lua", errors)
    assert.equal(1, status)
  end)
end)

describe("examples/worker", function()
  before_each(support.need_kvm)

  it("answers a guest from a thread of its own, and kicks one from another", function()
    local status, output, errors = example("worker")
    assert.equal("", errors)
    assert.equal('the guest wrote "ok" and ended by hlt\n'
      .. 'the guest wrote ".........." and ended by kicked\n', output)
    assert.equal(0, status)
  end)
end)

-- What configure found out, as the Makefile has it.
local function make_variable(name)
  local file <close> = assert(io.open(build .. "/Makefile"))
  return file:read("a"):match("\n" .. name .. " = ([^\n]*)") or ""
end

describe("C++", function()
  local function compile(text)
    local compiler = make_variable("CXX")
    if compiler == "" then compiler = "c++" end
    if not os.execute(compiler .. " --version >/dev/null 2>&1") then
      pending("no C++ compiler")
    end
    local pipe = io.popen(("%s -x c++ -fsyntax-only -Wall -Wextra -I%s -I%s %s 2>&1 %s"):format(
      compiler, quote(source .. "/src/libckvm"), quote(source .. "/src/luackvm"),
      make_variable("LUA_CFLAGS"), text))
    local output = pipe:read("a")
    pipe:close()
    return output
  end

  it("compiles the headers, once and twice, without a warning", function()
    assert.equal("", compile("- <<'END'\n" .. [[
      #include <ckvm.h>
      #include <ckvm_lua.h>
      #include <ckvm.h>
      extern "C" int (*const the_names_are_of_c)(lua_State *) = luaopen_ckvm;
      static_assert(CKVM_EXIT_MMIO_WRITE == CKVM_EXIT_IO_IN + 3, "the four accesses");
      int error_of(struct ckvm_vcpu *vcpu) { return ckvm_vcpu_run(vcpu, nullptr); }
]] .. "END"))
  end)

  for _, name in ipairs { "embed", "worker" } do
    it("compiles " .. name .. ".c without a warning", function()
      assert.equal("", compile(quote(source .. "/examples/" .. name .. ".c")))
    end)
  end
end)

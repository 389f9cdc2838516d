-- Capabilities: every one that the kernel's header defines, and compat.h, by name and by number.

local ckvm = require "ckvm"
local support = require "support"
local contains, error_of = support.contains, support.error_of

local top = debug.getinfo(1, "S").source:match("^@(.*)tests/[^/]*$")

-- By name, the number of each KVM_CAP_* of a header; nil if there is no such file.
local function definitions(path)
  local file <close> = io.open(path)
  local text, numbers = file and file:read("a") or "", {}
  for name, number in text:gmatch("#define KVM_CAP_([%u%d_]+)%s+(%d+)") do
    numbers[name:lower()] = math.tointeger(number)
  end
  return next(numbers) and numbers
end

describe("kvm:check_extension", function()
  for name, path in pairs {
    ["the installed kernel header"] = "/usr/include/linux/kvm.h",
    ["compat.h"] = top .. "src/libckvm/compat.h",
  } do
    it("takes every name of " .. name .. ", and means its number", function()
      support.need_kvm()
      local numbers = definitions(path) or pending("no " .. path)
      local kvm <close> = ckvm.open()
      for capability, number in pairs(numbers) do
        assert.equal(kvm:check_extension(number), kvm:check_extension(capability), capability)
      end
    end)
  end
end)

describe("kvm:capabilities", function()
  it("has those that check_extension is not 0 for, by name", function()
    support.need_kvm()
    local kvm <close> = ckvm.open()
    local found = kvm:capabilities()
    for name, value in pairs(found) do
      assert.is_true(value > 0)
      assert.equal(value, kvm:check_extension(name))
    end
    for name in pairs(definitions(top .. "src/libckvm/compat.h")) do
      assert.equal(found[name] or 0, kvm:check_extension(name))
    end
    assert.equal(kvm:check_extension("nr_vcpus"), found.nr_vcpus)
    assert.is_true(found.user_memory > 0)
  end)

  it("is refused on a closed handle, and on anything else", function()
    support.need_kvm()
    local kvm = ckvm.open()
    local capabilities = kvm.capabilities
    kvm:close()
    contains("closed", error_of(capabilities, kvm))
    contains("kvm", error_of(capabilities, {}))
  end)
end)

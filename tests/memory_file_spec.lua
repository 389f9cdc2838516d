-- Guest memory with a file behind it: what is refused, what is shared, and files that shrink.

local support = require "support"

local contains, error_of = support.contains, support.error_of
local new_file, content = support.new_file, support.content

local PAGE <const> = 0x1000

local kvm, vm

local function setup() kvm, vm = support.new_vm() end
local function teardown() kvm, vm = support.close(vm, kvm) end

describe("vm:add_memory", function()
  before_each(setup)
  after_each(teardown)

  local function refused(options)
    support.collect()
    local before = support.settled_fds()
    local err = error_of(vm.add_memory, vm, options)
    assert.equal(before, support.count_fds())
    return err
  end

  describe("file =", function()
    it("says that a file is missing, and which", function()
      local err = refused { gpa = 0, size = PAGE, file = "/dev/no-such-file" }
      assert.equal("open", err.call)
      assert.equal("ENOENT", err.code)
      contains("/dev/no-such-file", err)
    end)

    it("says which file cannot be mapped", function()
      for _, name in ipairs { "/dev", "/dev/null", "/proc/self/mem" } do
        contains(name, refused { gpa = 0, size = PAGE, file = name })
        contains(name, refused { gpa = 0, size = PAGE, file = name, shared = true })
      end
    end)

    it("says that a file has to be a regular one, where it cannot be mapped", function()
      for _, name in ipairs { "/dev", "/dev/null" } do
        local err = refused { gpa = 0, size = PAGE, file = name }
        assert.same({ "mmap", "ENODEV" }, { err.call, err.code })
        contains(name .. " cannot be mapped: a regular file is needed", err)
      end
    end)

    it("does not wait for somebody who writes to a pipe", function()
      local name, remove = new_file("")
      finally(remove)
      os.execute(("rm %s && mkfifo %s"):format(name, name))
      local status, output, errors = support.run(([[
local vm = require "ckvm".open():create_vm()
print(pcall(vm.add_memory, vm, { gpa = 0, size = 4096, file = %q }))]]):format(name))
      assert.equal("", errors)
      contains("false\t", output)
      contains(name, output)
      assert.equal(0, status)
    end)

    it("names a file that is too short, and what it was to hold", function()
      local name, remove = new_file(("x"):rep(PAGE))
      finally(remove)
      for _, shared in ipairs { false, true } do
        local err = refused { gpa = 0, size = 2 * PAGE, file = name, shared = shared }
        contains(name, err)
        contains("0x2000", err)
        contains("shorter", err)
        err = refused { gpa = 0, size = PAGE, file = name, offset = PAGE, shared = shared }
        contains("0x1000 bytes from 0x1000 on", err)
        refused { gpa = 0, size = PAGE, file = name, offset = 1 << 50, shared = shared }
        refused { gpa = 0, size = PAGE, file = name, offset = math.maxinteger - PAGE + 1 }
        refused { gpa = 0, size = 1 << 62, file = name }
      end
    end)

    it("refuses an empty file", function()
      local name, remove = new_file("")
      finally(remove)
      contains("shorter", refused { gpa = 0, size = PAGE, file = name })
    end)

    it("refuses an offset that is none, or of nothing", function()
      contains("offset: 0x1 is not a multiple",
        refused { gpa = 0, size = PAGE, file = "/dev/zero", offset = 1 })
      contains("offset: -4096 is not",
        refused { gpa = 0, size = PAGE, file = "/dev/zero", offset = -PAGE })
      contains("offset: of what?", refused { gpa = 0, size = PAGE, offset = PAGE })
    end)

    it("has the file's bytes, and zeros to the end of its last page", function()
      local name, remove = new_file(("x"):rep(PAGE) .. "tail")
      finally(remove)
      vm:add_memory { gpa = 0, size = 2 * PAGE, file = name }
      assert.equal("xxtail\0\0", vm:read(PAGE - 2, 8))
      assert.equal(0, vm:read_u8(2 * PAGE - 1))
    end)

    it("begins at the offset", function()
      local name, remove = new_file(("a"):rep(PAGE) .. ("b"):rep(PAGE) .. ("c"):rep(PAGE))
      finally(remove)
      vm:add_memory { gpa = 0, size = PAGE, file = name, offset = PAGE }
      assert.equal(("b"):rep(PAGE), vm:read(0, PAGE))
    end)

    it("keeps writes to itself, unless it is shared", function()
      local name, remove = new_file(("x"):rep(PAGE))
      finally(remove)
      vm:add_memory { gpa = 0, size = PAGE, file = name }
      vm:write(0, "private")
      vm:fill(16, 16, 0)
      assert.equal("privatex", vm:read(0, 8))
      assert.equal(("x"):rep(PAGE), content(name))
    end)

    it("writes to the file if it is shared: the host's stores and the guest's", function()
      local name, remove = new_file(("x"):rep(2 * PAGE))
      finally(remove)
      -- movb $0x42, (0x8000); hlt
      local _, machine <close>, vcpu = support.real_mode("\xc6\x06\x00\x80\x42\xf4",
        { size = 0x8000 })
      machine:add_memory { gpa = 0x8000, size = PAGE, file = name, offset = PAGE, shared = true }
      machine:write(0x8001, "host")
      machine:fill(0x8ffe, 2, 0x2e)
      assert.equal("hlt", vcpu:run { timeout = 10 })
      local text = content(name)
      assert.equal(("x"):rep(PAGE) .. "Bhostxxx", text:sub(1, PAGE + 8))
      assert.equal("xx..", text:sub(-4))
    end)

    it("is never written if it is readonly, too: the host's stores raise", function()
      local name, remove = new_file(("x"):rep(PAGE))
      finally(remove)
      vm:add_memory { gpa = 0, size = PAGE, file = name, shared = true, readonly = true }
      assert.equal("xxxx", vm:read(0, 4))
      for _, err in ipairs {
        error_of(vm.write, vm, 0, "no"), error_of(vm.fill, vm, 0, PAGE, 0),
        error_of(vm.write_u64, vm, 0, 0),
      } do
        contains("at 0x0: 0x0: the file behind it is mapped read-only", err)
      end
      assert.equal(("x"):rep(PAGE), content(name))
    end)

    it("may shrink later: the host's access raises, and nothing crashes", function()
      local name, remove = new_file(("x"):rep(4 * PAGE))
      finally(remove)
      for _, shared in ipairs { false, true } do
        local file <close> = assert(io.open(name, "wb"))
        file:write(("x"):rep(4 * PAGE))
        file:flush()
        local ram = vm:add_memory { gpa = 0, size = 4 * PAGE, file = name, shared = shared }
        assert.equal("x", vm:read(PAGE, 1))
        io.open(name, "wb"):close()
        for call, err in pairs {
          ["read of 16384 bytes at 0x0: 0x0"] = error_of(vm.read, vm, 0, 4 * PAGE),
          ["write of 1 bytes at 0x1000: 0x1000"] = error_of(vm.write, vm, PAGE, "x"),
          ["fill of 16384 bytes at 0x0: 0x0"] = error_of(vm.fill, vm, 0, 4 * PAGE, 1),
          ["read of 1 bytes at 0x1001: 0x1001"] = error_of(vm.read_u8, vm, PAGE + 1),
          ["write of 8 bytes at 0x2000: 0x2000"] = error_of(vm.write_u64, vm, 2 * PAGE, 1),
        } do
          assert.equal("EFAULT", err.code, call)
          contains("file: EFAULT: " .. call .. ": the file behind it has become too short", err)
        end
        vm:zap_memory(0, 4 * PAGE)
        ram:close()
      end
    end)

    it("may shrink later: what there is can be used, and errors name where it ends", function()
      local name, remove = new_file(("x"):rep(2 * PAGE))
      finally(remove)
      for _, shared in ipairs { false, true } do
        io.open(name, "wb"):write(("x"):rep(4 * PAGE)):close()
        local low = vm:add_memory { gpa = 0, size = PAGE }
        local ram = vm:add_memory { gpa = PAGE, size = 4 * PAGE, file = name, shared = shared,
          log_dirty = true }
        local dirty = vm:dirty_pages(ram)
        io.open(name, "wb"):write(("x"):rep(2 * PAGE)):close()
        for _, err in ipairs {
          error_of(vm.read, vm, PAGE - 5, 4 * PAGE),
          error_of(vm.write, vm, PAGE - 5, ("y"):rep(4 * PAGE)),
          error_of(vm.fill, vm, PAGE - 5, 4 * PAGE, 0x7a),
        } do
          contains(" of 16384 bytes at 0xffb: 0x3000: the file behind it has become too short",
            err)
        end
        assert.equal(("z"):rep(2 * PAGE), vm:read(PAGE, 2 * PAGE))
        vm:zap_memory(PAGE, 4 * PAGE)
        assert.equal("z", vm:read(3 * PAGE - 1, 1))
        assert.same(dirty, vm:dirty_pages(ram))
        ram:close()
        low:close()
      end
    end)

    it("may shrink later: so it is by virtual address", function()
      local name, remove = new_file(("x"):rep(2 * PAGE))
      finally(remove)
      local _, machine <close>, vcpu = support.real_mode("\xf4", { size = 0x8000 })
      machine:add_memory { gpa = 0x8000, size = 2 * PAGE, file = name, shared = true }
      io.open(name, "wb"):write(("x"):rep(PAGE)):close()
      for call, err in pairs {
        ["read at 0x8010"] = error_of(vcpu.read, vcpu, 0x8010, PAGE),
        ["write at 0x8fff"] = error_of(vcpu.write, vcpu, 0x8fff, "yy"),
        ["read_cstring at 0x8000"] = error_of(vcpu.read_cstring, vcpu, 0x8000, 2 * PAGE),
      } do
        assert.equal("EFAULT", err.code, call)
        contains(call .. ": 0x9000: the file behind it has become too short", err)
      end
      assert.equal("y", vcpu:read(0x8fff, 1))
    end)

    it("may shrink later: the guest's access ends the run", function()
      local name, remove = new_file(("\xf4"):rep(PAGE))
      finally(remove)
      local _, machine <close>, vcpu = support.real_mode("\xa0\x00\x80\xf4", { size = 0x8000 })
      machine:add_memory { gpa = 0x8000, size = PAGE, file = name, shared = true }
      io.open(name, "wb"):close()
      -- EFAULT of KVM_RUN, or what a KVM in software makes of it
      local _, why = pcall(vcpu.run, vcpu, { timeout = 10 })
      assert.are_not.equal("hlt", why)
      assert.equal(0, vcpu.regs.rax)
    end)

    it("may be removed, and stays mapped", function()
      local name = new_file(("x"):rep(PAGE))
      vm:add_memory { gpa = 0, size = PAGE, file = name, shared = true }
      os.remove(name)
      vm:write(0, "y")
      assert.equal("yx", vm:read(0, 2))
    end)
  end)
end)

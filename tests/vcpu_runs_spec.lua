-- Registers that are written between two runs and in handlers, by call and by view, and the ioctls
-- that registers cost.

local ckvm = require "ckvm"
local registers = require "registers"
local support = require "support"

local contains, error_of = support.contains, support.error_of
local BAD_CR4 <const> = registers.BAD_CR4

local HERE <const> = debug.getinfo(1, "S").source:match("^@(.*)/") or "."

local OUT_HLT <const> = "\xe6\x10\xf4" -- out %al, $0x10; hlt
local IN_HLT <const> = "\xe4\x10\xf4" -- in $0x10, %al; hlt
-- mov $100, %cx; again: out %al, $0x10; dec %cx; jnz again; hlt
local HUNDRED_OUTS <const> = "\xb9\x64\x00\xe6\x10\x49\x75\xfb\xf4"

for _, mode in ipairs(registers.MODES) do
  local name, open = mode[1], mode[2]

  describe("Registers " .. name .. ":", function()
    local kvm, vm, vcpu

    local function guest(code, regs)
      kvm, vm, vcpu = registers.guest(open, code, regs)
      return vcpu, vm
    end

    after_each(function() kvm, vm, vcpu = support.close(vm, kvm) end)

    local function run(why)
      assert.equal(why or "hlt", (vcpu:run { timeout = 10 }))
    end

    describe("between two runs", function()
      it("what is written outlives a run that does not enter the guest", function()
        guest("\x01\xd8\xf4") -- add %bx, %ax; hlt
        vcpu.regs.rax, vcpu.regs.rbx = 40, 2
        vcpu:kick()
        run("kicked")
        assert.equal("timeout", (vcpu:run { timeout = 0 }))
        assert.equal("exits", (vcpu:run { exits = 0 }))
        assert.equal(40, vcpu.regs.rax)
        run()
        assert.equal(42, vcpu.regs.rax)
      end)

      for _, by in ipairs { "view", "call" } do
        local function set(reg, value)
          if by == "view" then vcpu.regs[reg] = value else vcpu:set_regs { [reg] = value } end
        end

        it("what is written while a read is open lets it finish, by " .. by, function()
          guest(IN_HLT, { rax = 0x1100 })
          run("io_in")
          vcpu.exit.data = 0x22
          set("rbx", 7)
          assert.equal(7, vcpu:get_regs().rbx)
          assert.equal(7, vcpu.regs.rbx)
          run()
          assert.equal(0x1122, vcpu.regs.rax)
          assert.equal(7, vcpu.regs.rbx)
          assert.equal(0x1003, vcpu.regs.rip)
        end)

        it("the same with run_once, by " .. by, function()
          guest(IN_HLT, { rax = 0x1100 })
          assert.equal("io_in", vcpu:run_once())
          vcpu.exit.data = 0x22
          set("rbx", 7)
          assert.equal("hlt", vcpu:run_once())
          assert.equal(0x1122, vcpu.regs.rax)
          assert.equal(7, vcpu.regs.rbx)
        end)

        it("rip that is written while an access is open is where it goes on, by " .. by, function()
          for code, why in pairs { [IN_HLT] = "io_in", [OUT_HLT] = "io_out" } do
            guest(code)
            vm:write(0x2000, "\x43\xf4") -- inc %bx; hlt
            run(why)
            set("rip", 0x2000)
            run()
            assert.equal(0x2002, vcpu.regs.rip)
            assert.equal(1, vcpu.regs.rbx)
            vm:close()
            kvm:close()
          end
        end)
      end

      it("a set that the kernel refuses is raised, at the latest by the next run", function()
        guest(IN_HLT)
        run("io_in")
        vcpu.exit.data = 0x22
        local err = error_of(function()
          vcpu:set_sregs { cr4 = BAD_CR4 }
          vcpu:run { timeout = 10 }
        end)
        assert.equal("KVM_SET_SREGS", err.call)
        assert.equal(0, vcpu.sregs.cr4)
        run()
        assert.equal(0x22, vcpu.regs.rax)
      end)
    end)

    describe("in a handler", function()
      it("a view shows the guest's registers, without a call", function()
        guest(HUNDRED_OUTS, { rbx = 0x1234 })
        local seen = {}
        vm:on("io_out", function(_, _, _, cpu)
          table.insert(seen, cpu.regs.rcx)
          assert.equal(0x1234, cpu.regs.rbx)
        end)
        run()
        assert.equal(100, #seen)
        for i, rcx in ipairs(seen) do assert.equal(101 - i, rcx) end
      end)

      it("a view that is written takes effect after a write", function()
        guest(HUNDRED_OUTS)
        local count = 0
        vm:on("io_out", function()
          count = count + 1
          vcpu.regs.rcx = vcpu.regs.rcx // 2 + 1
          vcpu.regs.rbx = vcpu.regs.rbx + count
        end)
        run()
        -- 100 -> 51 - 1 -> 26 - 1 -> ... -> 1 -> 1 - 1
        assert.equal(0, vcpu.regs.rcx)
        assert.equal(count * (count + 1) // 2, vcpu.regs.rbx)
      end)

      it("a view that is written takes effect after a read, and wins over the answer", function()
        guest(IN_HLT, { rax = 0x1100 })
        vm:on("io_in", function()
          vcpu.regs.rbx = 3
          return 0x22
        end)
        run()
        assert.equal(0x1122, vcpu.regs.rax)
        assert.equal(3, vcpu.regs.rbx)
        vcpu:set_regs { rip = 0x1000 }
        vm:on("io_in", function()
          vcpu.regs.rax = 0x33
          return 0x44
        end)
        run()
        assert.equal(0x33, vcpu.regs.rax)
      end)

      it("rip that is written is where the guest goes on: after a read, and a write", function()
        for _, code in ipairs { IN_HLT, OUT_HLT } do
          guest(code)
          vm:write(0x2000, "\x43\xf4") -- inc %bx; hlt
          vm:on(code == IN_HLT and "io_in" or "io_out", function()
            vcpu.regs.rip = 0x2000
            return 0x22
          end)
          run()
          assert.equal(0x2002, vcpu.regs.rip)
          assert.equal(1, vcpu.regs.rbx)
          assert.equal(code == IN_HLT and 0x22 or 0, vcpu.regs.rax)
          vm:close()
          kvm:close()
        end
      end)

      it("set_regs does the same, and get_regs shows what was set", function()
        guest(IN_HLT .. OUT_HLT, { rax = 0x1100 })
        local seen
        vm:on("io_in", function()
          vcpu:set_regs { rbx = 5, rax = 0x3300 }
          seen = vcpu:get_regs()
          return 0x22
        end)
        vm:on("io_out", function() vcpu:set_regs { rdx = 6 } end)
        run()
        assert.equal(5, seen.rbx)
        assert.equal(0x3300, seen.rax)
        assert.equal(0x3300, vcpu.regs.rax)
        assert.equal(5, vcpu.regs.rbx)
        vcpu:set_regs { rip = 0x1003 }
        run()
        assert.equal(6, vcpu.regs.rdx)
        assert.equal(5, vcpu.regs.rbx)
      end)

      it("set_sregs does the same", function()
        guest(IN_HLT)
        vm:write(0x1000, "\xe4\x10\x8a\x1e\x00\x00\xf4") -- in; movb (0), %bl; hlt
        vm:write_u8(0x500, 42)
        vm:on("io_in", function()
          vcpu:set_sregs { ds = { base = 0x500 } }
          return 0x22
        end)
        run()
        assert.equal(0x22, vcpu.regs.rax)
        assert.equal(42, vcpu.regs.rbx)
      end)

      it("a view's write outlives an error of the handler", function()
        guest(IN_HLT)
        vm:on("io_in", function()
          vcpu.regs.rbx = 9
          error("no")
        end)
        contains("no", error_of(vcpu.run, vcpu))
        run()
        assert.equal(9, vcpu.regs.rbx)
        assert.equal(0xff, vcpu.regs.rax & 0xff)
      end)
    end)
  end)
end

describe("The ioctls of registers", function()
  -- Runs body in a ckvm-lua that traces, with `ckvm`, `support` and `mark`; returns a table that
  -- has for each mark the names of the ioctls that came after it.
  local function trace(body, options)
    support.need_kvm()
    local status, output, errors = support.run([[
package.path = arg[1] .. "/?.lua;" .. package.path
local support = require "support"
local function mark(name) io.stderr:write("-- ", name, "\n") end
local open = arg[2] == "false" and { sync_regs = false } or nil
local function guest(code)
  return support.real_mode(load("return '" .. code .. "'")(), { open = open })
end
]] .. body, { before = { "--trace-ioctl" },
      after = { HERE, tostring(options and options.sync_regs) } })
    assert.equal("0 ", status .. " " .. output, errors:sub(-400))
    local sections, section = {}, {}
    for line in errors:gmatch("[^\n]+") do
      local name, ioctl = line:match("^%-%- (.*)"), line:match("^(KVM_[%u%d_]+)%(")
      assert(name or ioctl, line)
      if name then
        section = {}
        sections[name] = section
      else
        table.insert(section, ioctl)
      end
    end
    return sections
  end

  local function count(list)
    local counts = {}
    for _, name in ipairs(list) do counts[name] = (counts[name] or 0) + 1 end
    return counts
  end

  local function need_sync_regs()
    support.need_kvm()
    local kvm <close> = ckvm.open()
    if kvm:check_extension("sync_regs") & 7 ~= 7 then pending("no sync regs") end
  end

  local outs = [[
local kvm, vm, vcpu = guest("\xb9\x64\x00\xe6\x10\x49\x75\xfb\xf4")
]]

  it("are none for a run that looks at none", function()
    local seen = trace(outs .. [[
vm:on("io_out", function() end)
mark "run"
assert(vcpu:run() == "hlt")
mark "end"]])
    assert.same({ KVM_RUN = 101 }, count(seen.run))
  end)

  it("are one for a full table, and two for a part of one", function()
    for _, sync in ipairs { true, false } do
      local seen = trace([[
local kvm, vm, vcpu = guest("\xf4")
for _, kind in ipairs { "regs", "sregs", "vcpu_events" } do
  local full = vcpu["get_" .. kind](vcpu)
  mark(kind)
  vcpu["set_" .. kind](vcpu, full)
  mark "end"
end
mark "part"
vcpu:set_regs { rax = 1 }
mark "end"]], { sync_regs = sync })
      assert.same({ "KVM_SET_REGS" }, seen.regs)
      assert.same({ "KVM_SET_SREGS" }, seen.sregs)
      assert.same({ "KVM_SET_VCPU_EVENTS" }, seen.vcpu_events)
      assert.same({ "KVM_GET_REGS", "KVM_SET_REGS" }, seen.part)
    end
  end)

  it("are one for an empty view, however much is read", function()
    for _, sync in ipairs { true, false } do
      local seen = trace([[
local kvm, vm, vcpu = guest("\xf4")
mark "regs"
for _ = 1, 3 do for _ in pairs(vcpu.regs) do end end
mark "sregs"
for _ = 1, 3 do for _, name in ipairs { "cs", "ss" } do
  for _ in pairs(vcpu.sregs[name]) do end
end end
mark "events"
local _ = vcpu.events.nmi.pending + vcpu.events.flags
mark "set"
vcpu:set_regs { rax = 2 }
mark "again"
_ = vcpu.regs.rax + vcpu.regs.rbx
mark "end"]], { sync_regs = sync })
      assert.same({ "KVM_GET_REGS" }, seen.regs)
      assert.same({ "KVM_GET_SREGS" }, seen.sregs)
      assert.same({ "KVM_GET_VCPU_EVENTS" }, seen.events)
      assert.same({ "KVM_GET_REGS" }, seen.again)
    end
  end)

  it("are at most one a run for handlers that read and write a view, with sync regs", function()
    need_sync_regs()
    local seen = trace(outs .. [[
vm:on("io_out", function(_, _, _, cpu)
  local regs, sregs, events = cpu.regs, cpu.sregs, cpu.events
  regs.rbx = regs.rcx + regs.rdx
  sregs.cr2 = sregs.cr2 + 0x1000
  events.nmi.masked = events.nmi.pending
end)
mark "first"
assert(vcpu:run() == "hlt")
mark "second"
vcpu.regs.rip = 0x1000
assert(vcpu:run() == "hlt")
mark "end"
assert(vcpu.regs.rbx == 1 and vcpu.sregs.cr2 == 0x1000 * 200)]])
    local first = count(seen.first)
    assert.is_true((first.KVM_GET_REGS or 0) <= 1)
    assert.is_true((first.KVM_GET_SREGS or 0) <= 1)
    assert.is_true((first.KVM_GET_VCPU_EVENTS or 0) <= 1)
    assert.is_nil(first.KVM_SET_REGS)
    assert.is_nil(first.KVM_SET_SREGS)
    assert.is_nil(first.KVM_SET_VCPU_EVENTS)
    local second = count(seen.second)
    second.KVM_RUN = nil -- sregs are written behind the instruction: two for each exit
    assert.same({}, second)
  end)

  it("are none for a view that was read before the run, with sync regs", function()
    need_sync_regs()
    local seen = trace(outs .. [[
local sum = vcpu.regs.rbx
vm:on("io_out", function(_, _, _, cpu)
  sum = sum + cpu.regs.rcx
  cpu.regs.rbx = sum
end)
mark "run"
assert(vcpu:run() == "hlt")
mark "end"
assert(vcpu.regs.rbx == 5050)]])
    assert.same({ KVM_RUN = 101 }, count(seen.run))
  end)

  it("are one KVM_RUN more for a register that is written during a read", function()
    need_sync_regs()
    local seen = trace([[
local kvm, vm, vcpu = guest("\xe4\x10\xf4")
vcpu.regs.rbx = 0
vm:on("io_in", function(_, _, cpu)
  cpu.regs.rbx = 7
  return 1
end)
mark "run"
assert(vcpu:run() == "hlt")
mark "end"
assert(vcpu.regs.rbx == 7 and vcpu.regs.rax == 1)]])
    assert.same({ KVM_RUN = 3 }, count(seen.run))
  end)

  it("are one get and one set an exit without sync regs, however much is read and written",
    function()
      local seen = trace(outs .. [[
vm:on("io_out", function(_, _, _, cpu)
  local regs = cpu.regs
  regs.rbx = regs.rcx + regs.rdx
  regs.rsi = regs.rbx
  regs.rdi = regs.rsi
end)
mark "run"
assert(vcpu:run() == "hlt")
mark "end"
assert(vcpu.regs.rdi == 1)]], { sync_regs = false })
      assert.same({ KVM_RUN = 101, KVM_GET_REGS = 100, KVM_SET_REGS = 100 }, count(seen.run))
    end)

  it("are one get an exit without sync regs where nothing is written", function()
    local seen = trace(outs .. [[
vm:on("io_out", function(_, _, _, cpu) return cpu.regs.rcx + cpu.regs.rip end)
mark "run"
assert(vcpu:run() == "hlt")
mark "end"]], { sync_regs = false })
    assert.same({ KVM_RUN = 101, KVM_GET_REGS = 100 }, count(seen.run))
  end)
end)

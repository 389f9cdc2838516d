-- Registers that a handler writes while its access is open, by run page and by ioctl; vcpu:finish.

local support = require "support"

local error_of, contains = support.error_of, support.contains
local guest, LIMITS, attach = support.guest, support.LIMITS, support.attach
local each_access = support.each_access

local IN <const> = "\xe4\x10"              -- in $0x10, %al
local OUT <const> = "\xe6\x10"             -- out %al, $0x10
local LOAD <const> = "\xa0\x00\x80"        -- mov (0x8000), %al
local STORE <const> = "\xa2\x00\x80"       -- mov %al, (0x8000)
local LOADL <const> = "\x66\xa1\xfe\x8f"   -- mov (0x8ffe), %eax: across two pages
local STOREL <const> = "\x66\xa3\xfe\x8f"  -- mov %eax, (0x8ffe): likewise
local INC_BX <const> = "\x43"              -- inc %bx
local HLT <const> = "\xf4"                 -- hlt
local REP_INSB <const> = "\xbf\x00\x20"    -- mov $0x2000, %di
  .. "\xba\x10\x00"                        -- mov $0x10, %dx
  .. "\xb9\x06\x00"                        -- mov $6, %cx
  .. "\xf3\x6c"                            -- rep insb
local REP_OUTSB <const> = "\xbe\x00\x20"   -- mov $0x2000, %si
  .. "\xba\x10\x00"                        -- mov $0x10, %dx
  .. "\xb9\x06\x00"                        -- mov $6, %cx
  .. "\xf3\x6e"                            -- rep outsb

local function nothing() end

local ways <const> = {
  { "a view", function(vcpu, name, value) vcpu.regs[name] = value end },
  { "set_regs with some fields", function(vcpu, name, value)
    vcpu:set_regs { [name] = value }
  end },
  { "set_regs with all fields", function(vcpu, name, value)
    local regs = vcpu:get_regs()
    regs[name] = value
    vcpu:set_regs(regs)
  end },
}

local function describe_registers(title, open)
  local function start(code, read, write)
    local _, vm, vcpu = guest(code, { open = open })
    if read or write then attach(vm, read, write) end
    return vcpu, vm
  end

  describe("registers " .. title .. ", written by a handler,", function()
    before_each(support.need_kvm)

    for _, way in ipairs(ways) do
      local by <const>, set <const> = table.unpack(way)

      each_access(function(name, code, kind)
        it("take effect after " .. name .. ", by " .. by, function()
          local vcpu
          local function handler()
            set(vcpu, "rbx", 0x1233)
            return 0x42
          end
          vcpu = start(code .. INC_BX .. HLT, handler, handler)
          assert.equal("hlt", (vcpu:run(LIMITS)))
          assert.equal(0x1234, vcpu.regs.rbx)
          assert.equal(kind == "read" and 0x42 or 0, vcpu.regs.rax)
          assert.equal(0x1000 + #code + 2, vcpu.regs.rip)
        end)

        it("take rip elsewhere after " .. name .. ", by " .. by, function()
          local vcpu
          local function handler()
            set(vcpu, "rip", 0x1000 + #code + 1)
            return 0x42
          end
          vcpu = start(code .. HLT .. INC_BX .. HLT, handler, handler)
          assert.equal("hlt", (vcpu:run(LIMITS)))
          assert.equal(1, vcpu.regs.rbx)
          assert.equal(kind == "read" and 0x42 or 0, vcpu.regs.rax)
          assert.equal(0x1000 + #code + 3, vcpu.regs.rip)
        end)
      end)

      it("win over the answer, by " .. by, function()
        for _, code in ipairs { IN, LOAD } do
          local vcpu
          vcpu = start(code .. HLT, function()
            set(vcpu, "rax", 0x12345678)
            return 0x42
          end)
          assert.equal("hlt", (vcpu:run(LIMITS)))
          assert.equal(0x12345678, vcpu.regs.rax)
        end
      end)
    end

    it("win over the answer also where they are what they were", function()
      for _, code in ipairs { IN, LOAD } do
        local vcpu
        vcpu = start(code .. HLT, function()
          vcpu.regs.rax = vcpu.regs.rax
          return 0x42
        end)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.equal(0, vcpu.regs.rax)
      end
    end)

    each_access(function(name, code)
      it("are read back as written in " .. name .. ", by view and by get_regs", function()
        local vcpu
        local function handler()
          vcpu.regs.rbx = 5
          assert(vcpu.regs.rbx == 5)
          assert(vcpu:get_regs().rbx == 5)
          vcpu:set_regs { rcx = 6 }
          assert(vcpu.regs.rcx == 6 and vcpu.regs.rbx == 5)
          assert(vcpu:get_regs().rcx == 6)
          return 1
        end
        vcpu = start(code .. HLT, handler, handler)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.equal(5, vcpu.regs.rbx)
        assert.equal(6, vcpu.regs.rcx)
        assert.equal(5, vcpu:get_regs().rbx)
      end)

      it("include segments, in " .. name, function()
        for _, by in ipairs { "view", "set_sregs", "whole" } do
          local vcpu, vm
          local function handler()
            if by == "view" then
              vcpu.sregs.ds.base = 0x2000
            elseif by == "set_sregs" then
              vcpu:set_sregs { ds = { base = 0x2000 } }
            else
              local sregs = vcpu:get_sregs()
              sregs.ds.base = 0x2000
              vcpu:set_sregs(sregs)
            end
            return 0x42
          end
          vcpu, vm = start(code .. "\x8a\x1e\x10\x00" .. HLT, handler, handler) -- mov (0x10), %bl
          vm:write_u8(0x2010, 0x77)
          assert.equal("hlt", (vcpu:run(LIMITS)))
          assert.equal(0x77, vcpu.regs.rbx)
          assert.equal(0x2000, vcpu.sregs.ds.base)
          assert.equal(code:sub(1, 1):find("[\xe4\xa0]") and 0x42 or 0, vcpu.regs.rax)
          assert.equal(0x1000 + #code + 5, vcpu.regs.rip)
        end
      end)

      it("include flags and both views at once, in " .. name, function()
        local vcpu
        local function handler()
          vcpu.regs.rflags = 3 -- carry
          vcpu.sregs.es.base = 0x3000
          vcpu.regs.rsi = 9
          return 0
        end
        vcpu = start(code .. "\x11\xdb" .. HLT, handler, handler) -- adc %bx, %bx
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.same({ 1, 9, 0x3000 }, { vcpu.regs.rbx, vcpu.regs.rsi, vcpu.sregs.es.base })
      end)

      it("may be written at each of many exits, in " .. name, function()
        local vcpu
        local function handler()
          vcpu.regs.rbx = vcpu.regs.rbx + 2
          return 0
        end
        vcpu = start("\xb9\x40\x00"                    -- mov $64, %cx
          .. code .. INC_BX                            -- 1: ...; inc %bx
          .. "\xe2" .. string.char(0x100 - #code - 3)  -- loop 1b
          .. HLT, handler, handler)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.equal(3 * 64, vcpu.regs.rbx)
      end)

      it("stay when the run ends with that exit, in " .. name, function()
        for _, how in ipairs { "stop", "exits", "raise" } do
          local vcpu
          local function handler()
            vcpu.regs.rbx = 5
            if how == "stop" then vcpu:stop() end
            if how == "raise" then error({}) end
            return 0x42
          end
          vcpu = start(code .. INC_BX .. HLT, handler, handler)
          if how == "raise" then
            error_of(vcpu.run, vcpu, LIMITS)
          else
            assert.equal(how == "stop" and "stopped" or how,
              (vcpu:run { exits = 1, timeout = 20 }))
          end
          assert.equal(5, vcpu.regs.rbx)
          assert.equal(5, vcpu:get_regs().rbx)
          vcpu.regs.rcx = 3
          assert.equal("hlt", (vcpu:run(LIMITS)))
          assert.equal(6, vcpu.regs.rbx)
          assert.equal(3, vcpu.regs.rcx)
        end
      end)
    end)

    it("may be written from outside while an access is open", function()
      local vcpu = start(IN .. LOAD .. HLT)
      assert.equal("io_in", (vcpu:run(LIMITS)))
      vcpu.exit.data = 0x42
      vcpu.regs.rbx = 5
      assert.equal("mmio_read", (vcpu:run(LIMITS)))
      assert.equal(0x42, vcpu.regs.rax)
      assert.equal(5, vcpu.regs.rbx)
      vcpu.exit.data = 0x43
      vcpu:set_regs { rcx = 6 }
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ 0x43, 6 }, { vcpu.regs.rax, vcpu.regs.rcx })
    end)

    -- An access across two pages is two exits: what is written in the first must wait for both.
    for _, at in ipairs { 0x8ffe, 0x9000 } do
      for _, field in ipairs { "rbx", "rip", "rax" } do
        it(("survive a read across two pages, %s at %#x"):format(field, at), function()
          local vcpu, seen
          seen = {}
          vcpu = start(LOADL .. HLT .. INC_BX .. HLT, function(gpa, size)
            table.insert(seen, { gpa, size })
            if gpa == at then vcpu.regs[field] = field == "rip" and 0x1005 or 0x777 end
            return gpa == 0x8ffe and 0x1122 or 0x3344
          end)
          assert.equal("hlt", (vcpu:run(LIMITS)))
          assert.same({ { 0x8ffe, 2 }, { 0x9000, 2 } }, seen)
          assert.equal(field == "rax" and 0x777 or 0x33441122, vcpu.regs.rax)
          assert.equal(field == "rbx" and 0x777 or field == "rip" and 1 or 0, vcpu.regs.rbx)
          assert.equal(field == "rip" and 0x1007 or 0x1005, vcpu.regs.rip)
        end)

        it(("survive a write across two pages, %s at %#x"):format(field, at), function()
          local vcpu, seen
          seen = {}
          vcpu = start("\x66\xb8\x22\x11\x44\x33" -- mov $0x33441122, %eax
            .. STOREL .. HLT .. INC_BX .. HLT, nil, function(gpa, value, size)
            table.insert(seen, { gpa, value, size })
            if gpa == at then vcpu.regs[field] = field == "rip" and 0x100b or 0x777 end
          end)
          assert.equal("hlt", (vcpu:run(LIMITS)))
          assert.same({ { 0x8ffe, 0x1122, 2 }, { 0x9000, 0x3344, 2 } }, seen)
          assert.equal(field == "rax" and 0x777 or 0x33441122, vcpu.regs.rax)
          assert.equal(field == "rbx" and 0x777 or field == "rip" and 1 or 0, vcpu.regs.rbx)
          assert.equal(field == "rip" and 0x100d or 0x100b, vcpu.regs.rip)
        end)
      end
    end

    it("survive both halves of an access across two pages", function()
      for _, code in ipairs { LOADL, STOREL } do
        local vcpu
        local function handler(gpa)
          if gpa == 0x8ffe then
            vcpu.regs.rbx, vcpu.regs.rcx = 1, 1
            vcpu.sregs.es.base = 0x10
          else
            assert(vcpu.regs.rbx == 1)
            vcpu.regs.rcx, vcpu.regs.rdx = 2, 2
          end
          return 0
        end
        vcpu = start(code .. HLT, handler, handler)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.same({ 1, 2, 2, 0x10 },
          { vcpu.regs.rbx, vcpu.regs.rcx, vcpu.regs.rdx, vcpu.sregs.es.base })
      end
    end)

    it("survive an instruction that reads and then writes", function()
      local vcpu, written
      vcpu = start("\xfe\x06\x00\x80" -- incb (0x8000)
        .. HLT, function()
        vcpu.regs.rbx = 1
        return 5
      end, function(_, value)
        written = value
        vcpu.regs.rcx = 2
      end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(6, written)
      assert.same({ 1, 2, 0x1005 }, { vcpu.regs.rbx, vcpu.regs.rcx, vcpu.regs.rip })
    end)

    it("survive in the middle of ins", function()
      local vcpu, vm, count
      count = 0
      vcpu, vm = start(REP_INSB .. HLT, function()
        count = count + 1
        if count == 3 then vcpu.regs.rbx = 5 end
        if count == 5 then vcpu:set_regs { rbp = 6 } end
        return count
      end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal("\1\2\3\4\5\6", vm:read(0x2000, 6))
      assert.same({ 5, 6, 0, 0x2006 },
        { vcpu.regs.rbx, vcpu.regs.rbp, vcpu.regs.rcx, vcpu.regs.rdi })
    end)

    it("survive in the middle of outs", function()
      local vcpu, vm, seen
      seen = {}
      vcpu, vm = start(REP_OUTSB .. HLT, nil, function(_, value)
        table.insert(seen, string.char(value))
        if #seen == 3 then vcpu.regs.rbx = 5 end
        if #seen == 5 then vcpu:set_regs { rbp = 6 } end
      end)
      vm:write(0x2000, "abcdef")
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal("abcdef", table.concat(seen))
      assert.same({ 5, 6, 0, 0x2006 },
        { vcpu.regs.rbx, vcpu.regs.rbp, vcpu.regs.rcx, vcpu.regs.rsi })
    end)

    it("survive in the middle of a move from and to MMIO", function()
      local vcpu, vm, count
      count = 0
      local function handler()
        count = count + 1
        if count == 2 then vcpu.regs.rbx = 5 end
        return count
      end
      vcpu, vm = start("\xb9\x04\x00"           -- mov $4, %cx
        .. "\xbe\x00\x80"                       -- mov $0x8000, %si
        .. "\xbf\x00\x20"                       -- mov $0x2000, %di
        .. "\xf3\xa4"                           -- rep movsb
        .. HLT, handler, handler)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal("\1\2\3\4", vm:read(0x2000, 4))
      assert.same({ 5, 0 }, { vcpu.regs.rbx, vcpu.regs.rcx })

      count = 0
      vcpu:set_regs { rip = 0x1000, rbx = 0 }
      vm:write(0x1003, "\xbe\x00\x20\xbf\x00\x80") -- mov $0x2000, %si; mov $0x8000, %di
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(4, count)
      assert.same({ 5, 0 }, { vcpu.regs.rbx, vcpu.regs.rcx })
    end)

    it("may be read in any handler, and are those at the access", function()
      local vcpu, seen
      seen = {}
      local function handler()
        table.insert(seen, vcpu.regs.rbx)
        return 0
      end
      vcpu = start(INC_BX .. IN .. INC_BX .. OUT .. INC_BX .. LOAD .. INC_BX .. STORE .. HLT,
        handler, handler)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ 1, 2, 3, 4 }, seen)
    end)

    it("take effect after an exit that is no access", function()
      for _, way in ipairs(ways) do
        local vcpu, vm = start(HLT .. INC_BX .. HLT .. INC_BX .. INC_BX .. HLT)
        vm:on("hlt", function(_, from)
          if from.regs.rbx ~= 0 then return false end
          way[2](from, "rbx", 4)
          way[2](from, "rip", 0x1003)
        end)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.same({ 6, 0x1006 }, { vcpu.regs.rbx, vcpu.regs.rip })
      end
    end)

    it("take effect when a batched write is delivered, before the exit behind it", function()
      for _, field in ipairs { "rbx", "rip" } do
        local vcpu, vm
        vcpu, vm = start("\xe6\x20" .. IN .. HLT .. INC_BX .. HLT, function() -- out %al, $0x20
          assert(field == "rip" or vcpu.regs.rbx == 5)
          return 0x42
        end)
        vm:attach_io {
          port = 0x20, batch = true,
          write = function() vcpu.regs[field] = field == "rip" and 0x1005 or 5 end,
        }
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.same({ 0x42, field == "rip" and 1 or 5 }, { vcpu.regs.rax, vcpu.regs.rbx })
      end
    end)

    it("may be swapped for those of another guest", function()
      local vcpu
      local _, _, other = guest("", { regs = { rbx = 0x99, rip = 0x1003 }, open = open })
      vcpu = start(IN .. HLT .. INC_BX .. HLT, function()
        vcpu:set_regs(other:get_regs())
        return 0x42
      end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ 0x9a, 0x1005 }, { vcpu.regs.rbx, vcpu.regs.rip })
    end)

    it("are not lost when a second run takes over", function()
      each_access(function(_, code)
        local vcpu
        local function handler()
          vcpu.regs.rbx = 5
          coroutine.yield()
        end
        vcpu = start(code .. INC_BX .. HLT, handler, handler)
        coroutine.wrap(function() vcpu:run(LIMITS) end)()
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.equal(6, vcpu.regs.rbx)
      end)
    end)

    it("that the kernel refuses are raised by the run, and then show the kernel's", function()
      each_access(function(_, code, kind)
        local vcpu
        local function handler()
          vcpu.sregs.cr4 = 1 << 40
          return 0x42
        end
        vcpu = start(code .. INC_BX .. HLT, handler, handler)
        local err = error_of(vcpu.run, vcpu, LIMITS)
        assert.equal("KVM_SET_SREGS", err.call)
        assert.equal("EINVAL", err.code)
        contains("KVM_SET_SREGS: EINVAL: ", err)
        assert.equal(0, vcpu.sregs.cr4)
        assert.equal(0, vcpu:get_sregs().cr4)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.equal(1, vcpu.regs.rbx)
        assert.equal(kind == "read" and 0x42 or 0, vcpu.regs.rax)
      end)
    end)
  end)

  describe("registers " .. title .. ", between runs,", function()
    before_each(support.need_kvm)

    it("are what the next run starts with, by view and by set", function()
      local vcpu = start(INC_BX .. HLT)
      vcpu.regs.rbx = 4
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(5, vcpu.regs.rbx)
      vcpu:set_regs { rip = 0x1000, rbx = 8 }
      assert.equal(8, vcpu.regs.rbx)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(9, vcpu.regs.rbx)
      vcpu.regs.rip = 0x1000
      assert.equal("hlt", vcpu:run_once())
      assert.equal(10, vcpu.regs.rbx)
    end)

    it("are sent to the kernel by get, and kept by set of others", function()
      local vcpu = start(HLT)
      vcpu.regs.rbx = 4
      assert.equal(4, vcpu:get_regs().rbx)
      vcpu.regs.rbx = 5
      vcpu:set_regs { rcx = 6 }
      assert.same({ 5, 6 }, { vcpu.regs.rbx, vcpu.regs.rcx })
      vcpu.sregs.es.base = 0x100
      vcpu.regs.rbx = 7
      assert.equal(0x100, vcpu:get_sregs().es.base)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ 7, 6, 0x100 }, { vcpu.regs.rbx, vcpu.regs.rcx, vcpu.sregs.es.base })
    end)

    it("that the kernel refuses are raised by the next run, and by get", function()
      local vcpu = start(INC_BX .. HLT)
      vcpu.sregs.cr4 = 1 << 40
      local err = error_of(vcpu.run, vcpu, LIMITS)
      contains("KVM_SET_SREGS: EINVAL: ", err)
      assert.equal(0, vcpu.sregs.cr4)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(1, vcpu.regs.rbx)
      vcpu.sregs.cr4 = 1 << 40
      assert.equal("KVM_SET_SREGS", error_of(vcpu.get_sregs, vcpu).call)
      assert.equal(0, vcpu.sregs.cr4)
      assert.equal("KVM_SET_SREGS", error_of(vcpu.set_sregs, vcpu, { cr4 = 1 << 40 }).call)
      assert.equal(0, vcpu.sregs.cr4)
    end)

    it("include events", function()
      local vcpu = start(HLT .. HLT)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(0, vcpu.events.nmi.masked)
      vcpu.events.nmi = { masked = 1 }
      assert.equal(1, vcpu:get_vcpu_events().nmi.masked)
      vcpu.events.nmi.masked = 0
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(0, vcpu.events.nmi.masked)
    end)
  end)

  describe("vcpu:finish, with registers " .. title .. ",", function()
    before_each(support.need_kvm)

    it("refuses a closed vCPU", function()
      local vcpu = start(HLT)
      vcpu:close()
      contains("closed", error_of(vcpu.finish, vcpu))
    end)

    it("does nothing where nothing is open", function()
      local vcpu = start(INC_BX .. HLT)
      vcpu:finish()
      assert.equal(0x1000, vcpu.regs.rip)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      vcpu:finish()
      vcpu:finish()
      assert.same({ 1, 0x1002 }, { vcpu.regs.rbx, vcpu.regs.rip })
    end)

    it("completes the instruction of a write, within its handler", function()
      for _, code in ipairs { OUT, STORE } do
        local vcpu, rip
        vcpu = start(code .. INC_BX .. HLT, nil, function()
          vcpu:finish()
          rip = vcpu.regs.rip
          vcpu:finish()
        end)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.equal(0x1000 + #code, rip)
        assert.same({ 1, 0x1002 + #code }, { vcpu.regs.rbx, vcpu.regs.rip })
      end
    end)

    it("makes registers that were written before it, and after it, count", function()
      for _, code in ipairs { OUT, STORE } do
        local vcpu
        vcpu = start(code .. INC_BX .. HLT .. INC_BX .. INC_BX .. HLT, nil, function()
          vcpu.regs.rbx = 4
          vcpu.regs.rcx = 4
          vcpu:finish()
          assert(vcpu.regs.rbx == 4 and vcpu.regs.rip == 0x1000 + #code)
          vcpu.regs.rcx = 5
          vcpu:set_regs { rip = 0x1002 + #code }
        end)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.same({ 6, 5, 0x1005 + #code }, { vcpu.regs.rbx, vcpu.regs.rcx, vcpu.regs.rip })
      end
    end)

    it("raises within a read handler, which can go on", function()
      for _, code in ipairs { IN, LOAD } do
        local vcpu, message
        vcpu = start(code .. HLT, function()
          message = error_of(vcpu.finish, vcpu)
          return 0x42
        end)
        assert.equal("hlt", (vcpu:run(LIMITS)))
        contains("being answered", message)
        assert.equal(0x42, vcpu.regs.rax)
      end
    end)

    it("raises within a read handler that has yielded, also from outside", function()
      local vcpu
      vcpu = start(IN .. HLT, function() return coroutine.yield() end)
      local run = coroutine.wrap(function() return (vcpu:run(LIMITS)) end)
      run()
      contains("being answered", error_of(vcpu.finish, vcpu))
      assert.equal("hlt", run(0x42))
      assert.equal(0x42, vcpu.regs.rax)
    end)

    it("completes a write whose handler has yielded, and the run goes on", function()
      for _, code in ipairs { OUT, STORE } do
        local vcpu
        vcpu = start(code .. INC_BX .. HLT, nil, function() coroutine.yield() end)
        local run = coroutine.wrap(function() return (vcpu:run(LIMITS)) end)
        run()
        vcpu:finish()
        assert.equal(0x1000 + #code, vcpu.regs.rip)
        assert.equal("hlt", run())
        assert.equal(1, vcpu.regs.rbx)
      end
    end)

    it("completes the instruction of the exit that a run ended with", function()
      for _, code in ipairs { "\xe4\x20", "\xa0\x00\xb0" } do -- in $0x20, %al; mov (0xb000), %al
        local vcpu = start(code .. INC_BX .. HLT)
        vcpu:run(LIMITS)
        vcpu.exit.data = 0x42
        vcpu:finish()
        assert.same({ 0x42, 0, 0x1000 + #code }, { vcpu.regs.rax, vcpu.regs.rbx, vcpu.regs.rip })
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.same({ 0x42, 1 }, { vcpu.regs.rax, vcpu.regs.rbx })
      end
    end)

    it("completes what a handler left open when it raised", function()
      each_access(function(_, code, kind)
        local vcpu
        local function raise() error({}) end
        vcpu = start(code .. INC_BX .. HLT, raise, raise)
        error_of(vcpu.run, vcpu, LIMITS)
        vcpu:finish()
        assert.same({ kind == "read" and 0xff or 0, 0x1000 + #code },
          { vcpu.regs.rax, vcpu.regs.rip })
      end)
    end)

    it("completes what a stop left open", function()
      each_access(function(_, code, kind)
        local vcpu
        local function handler()
          vcpu:stop()
          return 0x42
        end
        vcpu = start(code .. INC_BX .. HLT, handler, handler)
        assert.equal("stopped", (vcpu:run(LIMITS)))
        vcpu:finish()
        assert.same({ kind == "read" and 0x42 or 0, 0, 0x1000 + #code },
          { vcpu.regs.rax, vcpu.regs.rbx, vcpu.regs.rip })
      end)
    end)

    it("has handlers answer the accesses that it brings", function()
      local vcpu, seen
      seen = {}
      vcpu = start("\x66\xb8\x22\x11\x44\x33" -- mov $0x33441122, %eax
        .. STOREL .. INC_BX .. HLT, nil, function(gpa, value)
        table.insert(seen, { gpa, value })
        if gpa == 0x8ffe then
          vcpu:finish()
          table.insert(seen, vcpu.regs.rip)
        end
      end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ { 0x8ffe, 0x1122 }, { 0x9000, 0x3344 }, 0x100a }, seen)
      assert.equal(1, vcpu.regs.rbx)
    end)

    it("has handlers answer the reads that it brings, outside a run", function()
      local _, vm, vcpu = guest(LOADL .. INC_BX .. HLT, { open = open })
      vm:attach_mmio { gpa = 0x9000, size = 0x1000, read = function() return 0x3344 end }
      assert.equal("mmio_read", (vcpu:run(LIMITS)))
      vcpu.exit.data = 0x1122
      vcpu:finish()
      assert.same({ 0x33441122, 0, 0x1004 }, { vcpu.regs.rax, vcpu.regs.rbx, vcpu.regs.rip })
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(1, vcpu.regs.rbx)
    end)

    it("is not disturbed when what is left of earlier runs is collected", function()
      local _, vm, vcpu = guest(LOADL .. HLT, { open = open })
      vm:attach_mmio {
        gpa = 0x9000, size = 0x1000,
        read = function()
          support.collect()
          return 0x3344
        end,
      }
      assert.equal("mmio_read", (vcpu:run(LIMITS)))
      vcpu.exit.data = 0x1122
      vcpu:finish()
      assert.equal(0x33441122, vcpu.regs.rax)
      assert.equal("hlt", (vcpu:run(LIMITS)))
    end)

    it("returns the name of an exit that it brings and nobody handles", function()
      local _, vm, vcpu = guest(LOADL .. INC_BX .. HLT, { open = open })
      vm:attach_io { port = 0x10, read = nothing }
      assert.equal("mmio_read", (vcpu:run(LIMITS)))
      vcpu.exit.data = 0x1122
      assert.equal("mmio_read", vcpu:finish())
      assert.equal(0x9000, vcpu.exit.phys_addr)
      vcpu.exit.data = 0x3344
      assert.is_nil(vcpu:finish())
      assert.same({ 0x33441122, 0x1004 }, { vcpu.regs.rax, vcpu.regs.rip })
      assert.equal("hlt", (vcpu:run(LIMITS)))
    end)

    it("is nothing more once a handler that it called has finished", function()
      local vcpu, rips
      rips = {}
      vcpu = start(STOREL .. INC_BX .. STOREL .. INC_BX .. HLT, nil, function()
        vcpu:finish()
        table.insert(rips, vcpu.regs.rip)
      end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.same({ 0x1004, 0x1004, 0x1009, 0x1009 }, rips)
      assert.equal(2, vcpu.regs.rbx)
    end)

    it("passes on what a handler raises", function()
      local oops = {}
      local vcpu
      vcpu = start(STOREL .. INC_BX .. HLT, nil, function(gpa)
        if gpa == 0x9000 then error(oops) end
        vcpu:finish()
      end)
      assert.equal(oops, error_of(vcpu.run, vcpu, LIMITS))
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(1, vcpu.regs.rbx)
    end)

    it("lets a handler yield", function()
      local vcpu
      vcpu = start(STOREL .. INC_BX .. HLT, nil, function(gpa)
        if gpa == 0x9000 then return coroutine.yield("second") end
        vcpu:finish()
      end)
      local run = coroutine.wrap(function() return (vcpu:run(LIMITS)) end)
      assert.equal("second", run())
      assert.equal("hlt", run())
      assert.equal(1, vcpu.regs.rbx)
    end)

    it("keeps the limits, stops and kicks of the run around it", function()
      for _, code in ipairs { OUT, STORE, STOREL } do
        local vcpu, action
        vcpu = start(code .. code .. INC_BX .. HLT, nil, function(at)
          if at == 0x9000 then return end
          if action then action() end
          vcpu:finish()
        end)
        local count <const> = code == STOREL and 2 or 1
        assert.equal("exits", (vcpu:run { exits = count, timeout = 20 }))
        assert.equal(0, vcpu.regs.rbx)
        action = function() vcpu:stop("enough") end
        assert.same({ "stopped", "enough" }, { vcpu:run(LIMITS) })
        assert.equal(0, vcpu.regs.rbx)
        vcpu:set_regs { rip = 0x1000 }
        action = function() vcpu:kick() end
        assert.equal("kicked", (vcpu:run(LIMITS)))
        action = nil
        assert.equal("hlt", (vcpu:run(LIMITS)))
        assert.equal(1, vcpu.regs.rbx)
      end
    end)

    it("works at every element of outs, and at none of ins", function()
      local vcpu, vm, seen
      seen = {}
      vcpu, vm = start(REP_OUTSB .. HLT, nil, function(_, value)
        vcpu:finish()
        table.insert(seen, string.char(value))
      end)
      vm:write(0x2000, "abcdef")
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal("abcdef", table.concat(seen))

      local refused = 0
      vcpu, vm = start(REP_INSB .. HLT, function()
        refused = refused + (pcall(vcpu.finish, vcpu) and 0 or 1)
        return 1
      end)
      assert.equal("hlt", (vcpu:run(LIMITS)))
      assert.equal(6, refused)
      assert.equal("\1\1\1\1\1\1", vm:read(0x2000, 6))
    end)
  end)
end

describe("a handler that reads and writes registers", function()
  before_each(support.need_kvm)

  it("has the later one of a register and its MSR", function()
    local FS_BASE <const> = 0xc0000100
    for _, code in ipairs { IN, OUT } do
      local vcpu
      vcpu = support.calling(function()
        vcpu.sregs.fs.base = 0x777
        vcpu:set_msrs { [FS_BASE] = 0x888 }
        assert.equal(0x888, vcpu.sregs.fs.base)
        vcpu.sregs.gs.base = 0x999
        return 0
      end, code)
      vcpu:run(LIMITS)
      assert.equal(0x888, vcpu.sregs.fs.base)
      assert.equal(0x888, vcpu:get_msrs { FS_BASE }[FS_BASE])
      assert.equal(0x999, vcpu.sregs.gs.base)
    end
  end)

  -- The ioctls of four exits, after four to warm up, at each of which a handler reads two
  -- registers and writes one.
  local function ioctls(code, open)
    local status, _, err = support.run(([[
      package.path = os.getenv("CKVM_SRCDIR") .. "/tests/?.lua;" .. package.path
      local _, vm, vcpu = require("support").real_mode(%q, { open = %s, size = 0x8000 })
      local count = 0
      local function handler()
        if count == 4 or count == 8 then io.stderr:write("MARK\n") end
        count = count + 1
        vcpu.regs.rcx = vcpu.regs.rbx + vcpu.regs.rdx
        if count == 9 then vcpu:stop() end
        return 0
      end
      vm:attach_io { port = 0x10, read = handler, write = handler }
      vm:attach_mmio { gpa = 0x8000, size = 1, read = handler, write = handler }
      vcpu:run { timeout = 20 }
    ]]):format(code .. "\xeb" .. string.char(0xfe - #code), open), { "--trace-ioctl" }) -- jmp
    assert(status == 0, err)
    local counts = {}
    for name in err:match("MARK(.*)MARK"):gmatch("KVM_[%u_%d]+") do
      counts[name] = (counts[name] or 0) + 1
    end
    return counts
  end

  it("costs no ioctl where the run page has them, and one more KVM_RUN on a read", function()
    local _, _, vcpu = guest(HLT)
    if vcpu.vm:check_extension("sync_regs") & 3 ~= 3 then
      return pending("this KVM has no sync regs")
    end
    for _, code in ipairs { OUT, STORE } do assert.same({ KVM_RUN = 4 }, ioctls(code, "nil")) end
    for _, code in ipairs { IN, LOAD } do assert.same({ KVM_RUN = 8 }, ioctls(code, "nil")) end
  end)

  it("costs one get and one set an exit where it has not", function()
    for _, code in ipairs { OUT, STORE } do
      assert.same({ KVM_RUN = 4, KVM_GET_REGS = 4, KVM_SET_REGS = 4 },
        ioctls(code, "{ sync_regs = false }"))
    end
  end)
end)

describe_registers("in the run page", nil)
describe_registers("by ioctl", { sync_regs = false })

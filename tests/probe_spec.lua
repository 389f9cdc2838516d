-- ckvm.probe and ckvm-lua --probe: the shape of what they find, that two runs agree, and that a
-- feature is there exactly when a guest of this spec's own finds it.

local ckvm = require "ckvm"
local probe = require "ckvm.probe"
local support = require "support"
local x86 = require "ckvm.x86"

local MEASURES <const> = { ns = true, us = true } -- names that end so are numbers

local function each_result(found, visit)
  for mode, results in pairs(found.modes) do
    for name, value in pairs(results) do visit("modes." .. mode .. "." .. name, name, value) end
  end
  for _, group in ipairs(probe.groups) do
    for name, value in pairs(found[group[1]] or {}) do
      visit(group[1] .. "." .. name, name, value)
    end
  end
end

-- What two runs have to agree on: no measured number.
local function features(found)
  local result = {}
  each_result(found, function(path, name, value)
    if not MEASURES[name:match("_(%w+)$")] then result[path] = value end
  end)
  return result
end

-- Whether Lua can read what the text says: JSON's objects are nearly tables.
local function decode(json)
  local text = json:gsub('("[^"\n]*"): ', "[%1] = ")
  return assert(load("return " .. text, "json", "t", {}))()
end

describe("ckvm.probe:", function()
  describe("run", function()
    it("refuses what is no option", function()
      support.contains("probe_spec.lua:", support.error_of(function() ckvm.probe { speed = 1 } end))
      support.contains("unknown option 'speed' of probe",
        support.error_of(ckvm.probe, { speed = 1 }))
      support.contains("a table of options expected", support.error_of(probe.run, "ring3"))
      support.contains("only: a list of names expected",
        support.error_of(ckvm.probe, { only = "ring3" }))
    end)

    for _, name in ipairs { "ring", "ring3.", "ring3.sys", "modes.virtual", "x", "", 1, false } do
      it("refuses a probe that is not there: " .. tostring(name), function()
        support.contains(("there is no probe '%s'"):format(name),
          support.error_of(ckvm.probe, { only = { name } }))
      end)
    end

    it("says of each probe that there are too few descriptors, or that there is none", function()
      support.need_kvm()
      local status, output, errors = support.run([[
        local ckvm = require "ckvm"
        local list = {}
        pcall(function() while true do table.insert(list, ckvm.eventfd()) end end)
        print(select(2, pcall(ckvm.probe)).code)
        table.remove(list):close()
        local found = ckvm.probe()
        print(found.errors["modes.real.speed"], found.errors["ring3.syscall"])
      ]], { shell = "ulimit -n 20" })
      assert.equal("", errors)
      assert.equal(0, status)
      assert.matches("^EMFILE\n[^\t]*: KVM_CREATE_VM: EMFILE: [^\t]*\t[^\t]*: EMFILE: ", output)
    end)

    it("refuses a KVM that is closed, or none", function()
      support.need_kvm()
      local kvm = ckvm.open()
      kvm:close()
      support.contains("closed", support.error_of(ckvm.probe, { kvm = kvm, only = { "costs" } }))
      support.error_of(ckvm.probe, { kvm = 1 })
    end)
  end)

  describe("the result", function()
    local found

    before_each(function()
      support.need_kvm()
      found = found or ckvm.probe()
    end)

    it("has what KVM says", function()
      local kvm <close> = ckvm.open()
      assert.equal(kvm:get_api_version(), found.api_version)
      assert.equal(kvm:get_vcpu_mmap_size(), found.vcpu_mmap_size)
      assert.equal(kvm:check_extension("nr_memslots"), found.capabilities.nr_memslots)
      for name, value in pairs(found.capabilities) do
        assert.is_true(math.type(value) == "integer" and value ~= 0, name)
        if not name:find("^cap_%d") then assert.equal(kvm:check_extension(name), value) end
      end
      assert.equal(ckvm.version, found.ckvm)
      assert.matches("^%d+%.%d+", found.kernel)
    end)

    it("has a value or an error of each probe, or nothing where it makes no sense", function()
      for path, message in pairs(found.errors) do
        assert.equal("string", type(message))
        assert.is_nil(features(found)[path])
      end
      for _, mode in ipairs(probe.modes) do
        assert.equal("table", type(found.modes[mode[1]]))
      end
      for _, group in ipairs(probe.groups) do
        for _, entry in ipairs(group[3]) do
          local path = group[1] .. "." .. entry[1]
          assert.is_true(found[group[1]][entry[1]] ~= nil or found.errors[path] ~= nil, path)
        end
      end
    end)

    it("has numbers that are measured, and words", function()
      each_result(found, function(path, name, value)
        if MEASURES[name:match("_(%w+)$")] then
          assert.is_true(math.type(value) == "float" and value > 0, path)
        elseif name == "instructions" then
          for instruction, ended in pairs(value) do
            assert.equal("string", type(instruction) == "string" and type(ended))
          end
        else
          assert.is_true(type(value) == "boolean" or type(value) == "string", path)
        end
      end)
    end)

    it("has nothing that failed", function()
      assert.same({}, found.errors)
    end)

    it("agrees with another run on all that is not measured", function()
      assert.same(features(found), features(ckvm.probe()))
    end)

    it("has exceptions that reach ring 0, and instructions that every KVM has", function()
      for _, name in ipairs { "ud2", "page_fault", "int3", "iretq", "sse" } do
        assert.is_true(found.ring3[name], name)
      end
      for _, mode in ipairs { "real", "long", "user" } do
        for _, name in ipairs { "DIV", "UD2", "REP MOVS", "CMPXCHG8B", "RDTSC" } do
          assert.equal("works", found.modes[mode].instructions[name], name)
        end
      end
    end)

    it("is text of 80 columns that has every label", function()
      local text = probe.text(found)
      for line in text:gmatch("[^\n]*") do assert.is_true(utf8.len(line) <= 80, line) end
      for _, row in ipairs(probe.in_modes) do
        if row[2] then support.contains(row[2], text) end
      end
      for _, group in ipairs(probe.groups) do
        for _, entry in ipairs(group[3]) do support.contains(entry[2], text) end
      end
    end)

    it("is JSON that says the same", function()
      local again = decode(probe.json(found))
      assert.same(features(found), features(again))
      assert.same(found.capabilities, again.capabilities)
      assert.same(found.notes, again.notes)
      assert.near(found.seconds, again.seconds, found.seconds / 100)
    end)
  end)

  describe("only", function()
    before_each(support.need_kvm)

    it("runs what it names, by path or beginning", function()
      local found = ckvm.probe { only = { "ring3.ud2", "modes.real.speed" } }
      assert.same({ ud2 = true }, found.ring3)
      assert.is_string(found.modes.real.speed)
      assert.is_nil(found.modes.long)
      assert.is_nil(found.costs)
      assert.is_nil(found.capabilities)
      assert.is_nil(ckvm.probe({ only = { "ring3" } }).exits)
    end)

    it("prints as text and JSON", function()
      local found = ckvm.probe { only = { "ring3.ud2" } }
      assert.matches("\n\nRing 3 of long mode\n  UD2 to the IDT +yes\n$", probe.text(found))
      assert.same({ ud2 = true }, decode(probe.json(found)).ring3)
      found = ckvm.probe { only = {} }
      assert.same({}, found.modes)
      assert.equal(2, select(2, probe.text(found):gsub("\n", "")))
    end)
  end)

  describe("a probe that fails", function()
    it("says why, and the others go on", function()
      support.need_kvm()
      local kvm, real = ckvm.open(), nil
      local broken = setmetatable({}, { __index = function(_, name)
        return function(_, ...) return real[name](real, ...) end
      end })
      real, broken.create_vm = kvm, function() error("no VM today", 0) end
      local found = ckvm.probe { kvm = broken, only = { "ring3.ud2", "capabilities" } }
      assert.same({ ["ring3.ud2"] = "no VM today" }, found.errors)
      assert.same({}, found.ring3)
      assert.is_not_nil(found.capabilities.user_memory)
      assert.matches("UD2 to the IDT +failed no VM today\n", probe.text(found))
      assert.equal("no VM today", decode(probe.json(found)).errors["ring3.ud2"])
      kvm:close()
    end)
  end)

  describe("json", function()
    it("escapes what JSON wants escaped", function()
      assert.equal('{\n  "a\\"\\\\\\n": "\\u0001?",\n  "b": {}\n}\n',
        probe.json { ['a"\\\n'] = "\1\xff", b = {} })
      assert.equal('{\n  "n": 1.5e-07\n}\n', probe.json { n = 0.00000015 })
    end)
  end)

  describe("agrees with a guest of this spec's:", function()
    before_each(support.need_kvm)

    local function only(path)
      local value = ckvm.probe { only = { path } }
      for name in path:gmatch("[^.]+") do value = value[name] end
      return value
    end

    it("rip_at_out", function()
      local _, _, vcpu = support.real_mode("\xe6\x10\xf4")
      assert.equal("io_out", vcpu:run(support.LIMITS))
      assert.equal(vcpu.regs.rip == 0x1000 and "at" or "behind", only "modes.real.rip_at_out")
    end)

    it("fetch_dirties", function()
      local _, vm, vcpu, ram = support.real_mode("\xf4", { memory = { log_dirty = true } })
      vm:dirty_pages(ram)
      assert.equal("hlt", vcpu:run(support.LIMITS))
      assert.equal(#vm:dirty_pages(ram) > 0, only "modes.real.fetch_dirties")
    end)

    it("instructions", function()
      local vm = ckvm.open():create_vm()
      vm:add_memory { gpa = 0, size = 0x10000 }
      vm:write(0x1000, "\xcc\xf4") -- int3; hlt
      vm:write(0x2000, "\xf4")
      vm:write(0x3000, x86.gdt())
      vm:write(0x4000, x86.idt { [3] = 0x2000 })
      local vcpu = vm:create_vcpu(0)
      x86.enter(vcpu, "long", {
        rip = 0x1000, rsp = 0x1000, gdt = { base = 0x3000, limit = 0x47 },
        idt = { base = 0x4000, limit = 0x3f }, cr3 = x86.identity_map(vm, 0x5000, 1),
      })
      local ended = vcpu:run(support.LIMITS)
      local found = only "modes.long.instructions"
      assert.equal(ended == "hlt" and vcpu.regs.rip == 0x2001 and "works" or ended, found.INT3)
    end)

    it("cpuid", function()
      local kvm, vm, vcpu = support.real_mode("\x0f\xa2\xf4") -- cpuid; hlt
      vcpu:set_cpuid2 { { ["function"] = 0, eax = 1, ebx = 0x11, ecx = 0x22, edx = 0x33 } }
      assert.equal("hlt", vcpu:run(support.LIMITS))
      local regs = vcpu.regs
      local same = regs.rbx == 0x11 and regs.rcx == 0x22 and regs.rdx == 0x33
      assert.equal(same, ckvm.probe({ kvm = kvm, only = { "modes.real.cpuid" } }).modes.real.cpuid)
      vm:close()
    end)

    it("single_step", function()
      local kvm, _, vcpu = support.real_mode("\x90\x90\xf4")
      vcpu:set_guest_debug { control = { "enable", "singlestep" } }
      local steps = 0
      while vcpu:run(support.LIMITS) == "debug" and vcpu.regs.rip == 0x1001 + steps do
        steps = steps + 1
        if steps == 2 then break end
      end
      local found = ckvm.probe { kvm = kvm, only = { "modes.real.single_step" } }
      assert.equal(steps == 2, found.modes.real.single_step)
    end)

    it("sw_breakpoint, hw_breakpoint", function()
      local found = ckvm.probe({ only = { "modes.real" } }).modes.real
      for name, debug in pairs {
        sw_breakpoint = { control = { "enable", "use_sw_bp" } },
        hw_breakpoint = {
          control = { "enable", "use_hw_bp" },
          arch = { debugreg = { 0x1001, 0, 0, 0, 0, 0, 0, 0x402 } },
        },
      } do
        local _, vm, vcpu = support.real_mode("\x90\xcc\xf4")
        vm:write_u32(3 * 4, 0x2000)
        vm:write(0x2000, "\xf4")
        vcpu:set_guest_debug(debug)
        local ended = vcpu:run(support.LIMITS)
        assert.equal(ended == "debug" and vcpu.regs.rip == 0x1001, found[name], name)
      end
    end)

    it("enable_cap", function()
      local vm <close> = ckvm.open():create_vm()
      for _, name in ipairs { "x86_user_space_msr", "pmu_capability", "exception_payload" } do
        assert.equal(pcall(vm.enable_cap, vm, name, 1), only("enable_cap." .. name), name)
      end
    end)

    it("user_space_msr", function()
      local _, vm, vcpu = support.real_mode("\x66\xb9\0\x4f\x4f\x47\x0f\x32\xf4") -- of 0x474f4f00
      local enabled = pcall(vm.enable_cap, vm, "x86_user_space_msr", 2)
      assert.equal(enabled and vcpu:run(support.LIMITS) == "x86_rdmsr", only "exits.user_space_msr")
    end)

    it("coalesced_pio", function()
      local kvm <close> = ckvm.open()
      assert.equal(kvm:check_extension("coalesced_pio") > 0, only "exits.coalesced_pio")
    end)
  end)

  describe("ckvm-lua --probe", function()
    it("prints the text, or the JSON", function()
      support.need_kvm()
      local pipe <close> = io.popen(support.quote(support.program()) .. " --probe 2>&1")
      assert.matches("^ckvm .*\n\nModes .*\n\nRing 3 of .*\n\nCosts\n.*\n\nCapabilities %(%d+%)\n",
        pipe:read("a"))
      local json <close> = io.popen(support.quote(support.program()) .. " --probe --json 2>&1")
      assert.equal(ckvm.version, decode(json:read("a")).ckvm)
    end)

    local function fails(args, status, message)
      local command = ("%s %s 2>&1"):format(support.quote(support.program()), args)
      local pipe = io.popen(command)
      support.contains(message, pipe:read("a"))
      assert.equal(status, select(3, pipe:close()))
    end

    it("says what to do where there is no KVM, in one line", function()
      local without = [[-e "local c = require 'ckvm'; local o = c.open
        c.open = function() return o '/dev/null/kvm' end" --probe]]
      fails(without, 1, "ckvm-lua: open: ENOTDIR: ")
    end)

    it("refuses a script beside it, and --json without it", function()
      fails("--probe x.lua", 2, "--probe takes no script")
      fails("--json", 2, "--json goes with --probe")
    end)
  end)
end)

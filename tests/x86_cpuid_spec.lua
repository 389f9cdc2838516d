-- x86.cpuid_*: lists of CPUID entries, changed by name.

local ckvm = require "ckvm"
local support = require "support"
local x86 = require "ckvm.x86"

local blames = support.blames

local function entry(leaf, values, index)
  local made = { ["function"] = leaf, index = index or 0, flags = index and 1 or 0,
    eax = 0, ebx = 0, ecx = 0, edx = 0 }
  for name, value in pairs(values or {}) do made[name] = value end
  return made
end

local function find(list, leaf, index)
  for _, found in ipairs(list) do
    if found["function"] == leaf and found.index == (index or 0) then return found end
  end
end

local function packed(text, first)
  local found = entry(0)
  found.eax, found.ebx, found.ecx, found.edx = string.unpack("<I4I4I4I4", text, first)
  return { eax = found.eax, ebx = found.ebx, ecx = found.ecx, edx = found.edx }
end

-- What CPUID tells a guest in ring 0: eax, ebx, ecx, edx.
local function seen(list, leaf, subleaf)
  -- cpuid; hlt
  local _, _, vcpu = support.real_mode("\x0f\xa2\xf4", { regs = { rax = leaf, rcx = subleaf } })
  vcpu:set_cpuid2(list)
  assert.equal("hlt", (vcpu:run(support.LIMITS)))
  local regs = vcpu.regs
  return regs.rax, regs.rbx, regs.rcx, regs.rdx
end

describe("x86.cpuid_has", function()
  it("knows the bit of each name", function()
    -- From the manuals: leaf, subleaf, register, bit.
    for name, place in pairs {
      sse3 = { 1, 0, "ecx", 0 }, pni = { 1, 0, "ecx", 0 }, vmx = { 1, 0, "ecx", 5 },
      fma = { 1, 0, "ecx", 12 }, sse4_2 = { 1, 0, "ecx", 20 }, x2apic = { 1, 0, "ecx", 21 },
      tsc_deadline_timer = { 1, 0, "ecx", 24 }, xsave = { 1, 0, "ecx", 26 },
      hypervisor = { 1, 0, "ecx", 31 }, fpu = { 1, 0, "edx", 0 }, apic = { 1, 0, "edx", 9 },
      sse2 = { 1, 0, "edx", 26 }, ht = { 1, 0, "edx", 28 }, arat = { 6, 0, "eax", 2 },
      epb = { 6, 0, "ecx", 3 }, fsgsbase = { 7, 0, "ebx", 0 }, avx2 = { 7, 0, "ebx", 5 },
      smap = { 7, 0, "ebx", 20 }, sha_ni = { 7, 0, "ebx", 29 }, avx512vl = { 7, 0, "ebx", 31 },
      umip = { 7, 0, "ecx", 2 }, pku = { 7, 0, "ecx", 3 }, la57 = { 7, 0, "ecx", 16 },
      rdpid = { 7, 0, "ecx", 22 }, pks = { 7, 0, "ecx", 31 }, fsrm = { 7, 0, "edx", 4 },
      serialize = { 7, 0, "edx", 14 }, amx_tile = { 7, 0, "edx", 24 },
      spec_ctrl = { 7, 0, "edx", 26 }, arch_capabilities = { 7, 0, "edx", 29 },
      avx_vnni = { 7, 1, "eax", 4 }, fred = { 7, 1, "eax", 17 }, lam = { 7, 1, "eax", 26 },
      xsaves = { 0xd, 1, "eax", 3 }, kvm_pv_eoi = { 0x40000001, 0, "eax", 6 },
      kvm_clocksource_stable_bit = { 0x40000001, 0, "eax", 24 },
      lahf_lm = { 0x80000001, 0, "ecx", 0 }, svm = { 0x80000001, 0, "ecx", 2 },
      topoext = { 0x80000001, 0, "ecx", 22 }, syscall = { 0x80000001, 0, "edx", 11 },
      nx = { 0x80000001, 0, "edx", 20 }, pdpe1gb = { 0x80000001, 0, "edx", 26 },
      rdtscp = { 0x80000001, 0, "edx", 27 }, lm = { 0x80000001, 0, "edx", 29 },
      constant_tsc = { 0x80000007, 0, "edx", 8 }, wbnoinvd = { 0x80000008, 0, "ebx", 9 },
      virt_ssbd = { 0x80000008, 0, "ebx", 25 }, npt = { 0x8000000a, 0, "edx", 0 },
      vgif = { 0x8000000a, 0, "edx", 16 }, sev_es = { 0x8000001f, 0, "eax", 3 },
      autoibrs = { 0x80000021, 0, "eax", 8 },
    } do
      local leaf, index, register, bit = table.unpack(place)
      local list = { entry(leaf, {}, index), entry(leaf, {}, index + 1) }
      assert.is_false(x86.cpuid_has(list, name))
      list[2][register] = 0xffffffff -- another subleaf
      assert.is_false(x86.cpuid_has(list, name))
      for other in ("eax ebx ecx edx"):gmatch "%l+" do list[1][other] = 0xffffffff end
      list[1][register] = 0xffffffff & ~(1 << bit)
      assert.is_false(x86.cpuid_has(list, name), name)
      list[1] = entry(leaf, { [register] = 1 << bit }, index)
      assert.is_true(x86.cpuid_has(list, name), name)
    end
  end)

  it("is false where the leaf is not there", function()
    assert.is_false(x86.cpuid_has({}, "avx2"))
    assert.is_false(x86.cpuid_has({ { ["function"] = 7 } }, "avx2"))
  end)

  it("names the name that it does not know, and the nearest", function()
    blames("unknown feature 'sse42' of CPUID; the nearest is 'sse4_2'", x86.cpuid_has, {}, "sse42")
    blames("unknown feature 'AVX2' of CPUID; the nearest is 'avx2'", x86.cpuid_has, {}, "AVX2")
    blames("unknown feature 'SSE4.2' of CPUID; the nearest is 'sse4_2'", x86.cpuid_has, {},
      "SSE4.2")
    blames("unknown feature 'x2apik' of CPUID; the nearest is 'x2apic'", x86.cpuid_has, {},
      "x2apik")
    blames("unknown feature '-'", x86.cpuid_has, {}, "-")
    blames("unknown feature ''", x86.cpuid_has, {}, "")
    blames("unknown feature 'xxx", x86.cpuid_has, {}, ("x"):rep(1 << 20))
  end)

  it("refuses what is no list and no name", function()
    blames("list: table expected, got nil", x86.cpuid_has)
    blames("list[2]: this is no entry of CPUID", x86.cpuid_has, { entry(0), 5 }, "nx")
    blames("list[1]: this is no entry of CPUID", x86.cpuid_has, { {} }, "nx")
    for _, wrong in ipairs { { eax = "1" }, { edx = 1 << 32 }, { ebx = -1 }, { index = 0.5 } } do
      wrong["function"] = 0
      blames("list[1]: this is no entry of CPUID", x86.cpuid_vendor, { wrong })
    end
    blames("name: string expected, got integer", x86.cpuid_has, {}, 5)
  end)
end)

describe("x86.cpuid_set", function()
  it("changes this bit and no other", function()
    local list = { entry(0, { eax = 7 }), entry(7, { ebx = 0xf0f0f0f0 }, 0), entry(7, {}, 1) }
    assert.equal(list, x86.cpuid_set(list, "bmi1", true))
    assert.equal(0xf0f0f0f8, list[2].ebx)
    x86.cpuid_set(list, "avx2", false)
    assert.equal(0xf0f0f0d8, list[2].ebx)
    assert.same({ entry(0, { eax = 7 }), entry(7, { ebx = 0xf0f0f0d8 }, 0), entry(7, {}, 1) }, list)
  end)

  it("adds a leaf, which the first of its range then tells to be there", function()
    local list = { entry(0, { eax = 1 }), entry(0x80000000, { eax = 0x80000021 }) }
    x86.cpuid_set(list, "lam", true)
    x86.cpuid_set(list, "npt", true)
    x86.cpuid_set(list, "arat", false)
    assert.same({
      entry(0, { eax = 7 }), entry(0x80000000, { eax = 0x80000021 }),
      entry(7, { eax = 1 << 26 }, 1), entry(7, { eax = 1 }, 0), entry(0x8000000a, { edx = 1 }),
    }, list)
    x86.cpuid_set(list, "bhi_ctrl", true)
    x86.cpuid_set(list, "sha512", true)
    assert.equal(2, list[4].eax) -- subleaves
  end)

  it("refuses other arguments", function()
    blames("list: table expected, got string", x86.cpuid_set, "x", "nx", true)
    blames("unknown feature 'nxx' of CPUID; the nearest is 'nx'", x86.cpuid_set, {}, "nxx", true)
    blames("on: boolean expected, got nil", x86.cpuid_set, {}, "nx")
  end)

  it("is what a guest in ring 0 sees", function()
    support.need_kvm()
    local kvm = ckvm.open()
    for _, on in ipairs { true, false, true } do
      local list = kvm:get_supported_cpuid()
      x86.cpuid_set(list, "hypervisor", on)
      x86.cpuid_set(list, "svm", on)
      local _, _, ecx = seen(list, 1)
      assert.equal(on and 1 or 0, ecx >> 31 & 1)
      _, _, ecx = seen(list, 0x80000001)
      assert.equal(on and 1 or 0, ecx >> 2 & 1)
    end
  end)
end)

describe("x86.cpuid_names", function()
  it("lists what is there, each by one name", function()
    local list = { entry(1, { ecx = 1 | 1 << 31, edx = 1 }), entry(7, { eax = 1 << 4 }, 1) }
    assert.same({ "avx_vnni", "fpu", "hypervisor", "pni" }, x86.cpuid_names(list))
    assert.same({}, x86.cpuid_names {})
  end)

  it("lists what cpuid_has confirms, and can be taken away by name", function()
    support.need_kvm()
    local list = ckvm.open():get_supported_cpuid()
    local names = x86.cpuid_names(list)
    assert(#names > 20, #names)
    for _, name in ipairs(names) do
      assert.is_true(x86.cpuid_has(list, name))
      x86.cpuid_set(list, name, false)
    end
    assert.same({}, x86.cpuid_names(list))
  end)
end)

describe("x86.cpuid_vendor", function()
  it("returns what it was, and changes it", function()
    local list = { entry(0, packed("\7\0\0\0GenuntelineI")),
      entry(0x80000000, { eax = 0x80000008 }) }
    assert.equal("GenuineIntel", x86.cpuid_vendor(list))
    assert.equal("GenuineIntel", x86.cpuid_vendor(list, "ckvm"))
    assert.equal("ckvm", x86.cpuid_vendor(list))
    assert.same({ 7, 0 }, { list[1].eax, list[2].ebx })
  end)

  it("changes it in both places where there are two", function()
    local amd = "AuthcAMDenti"
    local list = { entry(0, packed("\7\0\0\0" .. amd)),
      entry(0x80000000, packed("\x08\0\0\x80" .. amd)) }
    x86.cpuid_vendor(list, "HygonGenuine")
    assert.same(packed("\x08\0\0\x80HygouinenGen"),
      { eax = list[2].eax, ebx = list[2].ebx, ecx = list[2].ecx, edx = list[2].edx })
  end)

  it("refuses what does not fit", function()
    blames('vendor: "a longer name" is not of up to 12', x86.cpuid_vendor, {}, "a longer name")
    blames("vendor: string expected, got integer", x86.cpuid_vendor, {}, 5)
    assert.equal("", x86.cpuid_vendor {})
  end)

  it("is what a guest in ring 0 sees", function()
    support.need_kvm()
    local list = ckvm.open():get_supported_cpuid()
    x86.cpuid_vendor(list, "ckvm")
    local _, ebx, ecx, edx = seen(list, 0)
    assert.equal("ckvm" .. ("\0"):rep(8), string.pack("<I4I4I4", ebx, edx, ecx))
  end)
end)

describe("x86.cpuid_brand", function()
  it("returns what it was, and changes it, adding leaves", function()
    local list, brand = {}, ("0123456789abcdef"):rep(3)
    assert.equal("", x86.cpuid_brand(list, "A processor"))
    assert.equal("A processor", x86.cpuid_brand(list, brand))
    assert.equal(brand, x86.cpuid_brand(list))
    assert.equal(0x80000004, find(list, 0x80000000).eax)
    assert.equal(4, #list)
  end)

  it("refuses what does not fit", function()
    blames("is not of up to 48 characters", x86.cpuid_brand, {}, ("x"):rep(49))
    blames("is not of up to 48 characters", x86.cpuid_brand, {}, "a\0b")
    blames("brand: string expected, got boolean", x86.cpuid_brand, {}, true)
  end)

  it("is what a guest in ring 0 sees", function()
    support.need_kvm()
    local list, text = ckvm.open():get_supported_cpuid(), ""
    x86.cpuid_brand(list, "A processor of ckvm, of many letters")
    for leaf = 0x80000002, 0x80000004 do
      text = text .. string.pack("<I4I4I4I4", seen(list, leaf))
    end
    assert.equal("A processor of ckvm, of many letters" .. ("\0"):rep(12), text)
  end)
end)

describe("x86.cpuid_topology", function()
  local AMD <const> = packed("\x10\0\0\0AuthcAMDenti")

  it("tells the number, and how many there are", function()
    local list = x86.cpuid_topology({ entry(0, { eax = 0x1f }), entry(1, { ebx = 0x00ff5678 }) },
      { id = 5, cpus = 6, threads = 2 })
    assert.equal(0x05085678, find(list, 1).ebx) -- numbers up to 8 of them
    assert.is_true(x86.cpuid_has(list, "ht"))
    for i, expected in ipairs { { 1, 2, 0x100, 5 }, { 3, 6, 0x201, 5 }, { 0, 0, 2, 5 } } do
      local level = find(list, 0xb, i - 1)
      assert.same(expected, { level.eax, level.ebx, level.ecx, level.edx })
      assert.equal(1, level.flags)
    end
    assert.is_nil(find(list, 0x1f))
    x86.cpuid_topology(list, { id = 0, cpus = 1 })
    assert.equal(0x00015678, find(list, 1).ebx)
    assert.is_false(x86.cpuid_has(list, "ht"))
    assert.same({ 0, 1 }, { find(list, 0xb, 1).eax, find(list, 0xb, 1).ebx })
    assert.equal(5, #list)
    x86.cpuid_topology(list, { id = 0, threads = 4 })
    assert.same({ 2, 1 }, { find(list, 0xb, 0).eax, find(list, 0xb, 0).ebx })
  end)

  it("has no leaf 0xb where leaf 0 ends before", function()
    local list = x86.cpuid_topology({ entry(0, { eax = 7 }) }, { id = 1 })
    assert.is_nil(find(list, 0xb))
    assert.equal(0x01020000, find(list, 1).ebx)
  end)

  it("tells it in the leaves of Intel, and of AMD", function()
    local list = x86.cpuid_topology({
      entry(0, { eax = 0x1f }), entry(0x1f, {}, 0),
      entry(4, { eax = 0xfc000121 }, 0), entry(4, { eax = 0x163 }, 1), entry(4, {}, 2),
      entry(0x80000008, { ecx = 0x5555 }),
    }, { id = 3, cpus = 4, threads = 2 })
    assert.equal(1 << 26 | 1 << 14 | 0x121, find(list, 4, 0).eax)
    assert.equal(1 << 26 | 3 << 14 | 0x163, find(list, 4, 1).eax)
    assert.equal(0, find(list, 4, 2).eax)
    assert.equal(4, find(list, 0x1f, 1).ebx)
    assert.equal(0x5555, find(list, 0x80000008).ecx)

    list = x86.cpuid_topology({ entry(0, AMD), entry(0x80000001), entry(0x8000001e),
      entry(0x80000008, { ecx = 0xffff }), entry(0x8000001d, { eax = 0x3c121 }, 0),
      entry(0x8000001d, { eax = 0x163 }, 3),
    }, { id = 3, cpus = 4, threads = 2 })
    assert.equal(1 << 14 | 0x121, find(list, 0x8000001d, 0).eax)
    assert.equal(3 << 14 | 0x163, find(list, 0x8000001d, 3).eax)
    assert.equal(0x2f03, find(list, 0x80000008).ecx)
    local core = find(list, 0x8000001e)
    assert.same({ 3, 0x101, 0 }, { core.eax, core.ebx, core.ecx })
    assert.is_true(x86.cpuid_has(list, "cmp_legacy"))
  end)

  it("fits into the fields, however many there are", function()
    local list = x86.cpuid_topology({ entry(0, AMD), entry(4, { eax = 0x163 }, 0),
      entry(0x80000008) }, { id = 0xfffe, cpus = 0xffff })
    assert.equal(0xfeff0000, find(list, 1).ebx)
    assert.equal(0xffffc163, find(list, 4).eax)
    assert.equal(0xf0ff, find(list, 0x80000008).ecx)
    for _, found in ipairs(list) do
      for register in ("eax ebx ecx edx"):gmatch "%l+" do
        assert(found[register] >= 0 and found[register] <= 0xffffffff)
      end
    end
  end)

  it("refuses numbers that cannot be", function()
    blames("cpuid_topology: table of options expected, got integer", x86.cpuid_topology, {}, 5)
    blames("id: integer expected, got nil", x86.cpuid_topology, {}, {})
    blames("cpuid_topology: unknown option 'cores'", x86.cpuid_topology, {}, { id = 0, cores = 2 })
    blames("id: -1 is not between 0 and 65534", x86.cpuid_topology, {}, { id = -1 })
    blames("id: 65535 is not between", x86.cpuid_topology, {}, { id = 0xffff })
    blames("cpus: 2 is not between 3, with vCPU 2, and 65535", x86.cpuid_topology, {},
      { id = 2, cpus = 2 })
    blames("threads: 3 is no power of 2", x86.cpuid_topology, {}, { id = 2, threads = 3 })
    blames("threads: 0 is no power of 2", x86.cpuid_topology, {}, { id = 2, threads = 0 })
    blames("list: table expected, got nil", x86.cpuid_topology)
  end)

  it("is what a guest in ring 0 sees", function()
    support.need_kvm()
    local list = ckvm.open():get_supported_cpuid()
    x86.cpuid_topology(list, { id = 0, cpus = 4 })
    local _, ebx, _, edx = seen(list, 1)
    assert.same({ 4, 1 }, { ebx >> 16, edx >> 28 & 1 })
    if find(list, 0).eax >= 0xb then
      local _, count, kind = seen(list, 0xb, 1)
      assert.same({ 4, 0x201 }, { count, kind })
    end
  end)
end)

-- ckvm.acpi: tables whose addresses, lengths and checksums are right, and that ACPICA understands.

local acpi = require "ckvm.acpi"
local lfs = require "lfs"
local pci = require "ckvm.dev.pci"
local support = require "support"

local AT <const> = 0xe0000
local PC <const> = { cpus = 2, reset = 0xcf9, rtc = true, i8042 = true, pci = true,
  uarts = { { port = 0x3f8, irq = 4 }, { port = 0x2f8, irq = 3 } } }

local function sum(bytes)
  local total = 0
  for i = 1, #bytes do total = total + bytes:byte(i) end
  return total & 0xff
end

-- The table at an address, which is to have that signature.
local function table_at(bytes, gpa, signature)
  local at = gpa - AT
  local found, size = string.unpack("<c4I4", bytes, at + 1)
  assert.equal(signature, found)
  assert(at + size <= #bytes)
  return bytes:sub(at + 1, at + size)
end

-- All of them by signature, found as a guest does.
local function tables(options)
  local bytes = acpi.tables(options, AT)
  local rsdt_at, xsdt_at = string.unpack("<I4", bytes, 17), string.unpack("<I8", bytes, 25)
  local found = { RSDP = bytes:sub(1, 36), RSDT = table_at(bytes, rsdt_at, "RSDT"),
    XSDT = table_at(bytes, xsdt_at, "XSDT") }
  local facp_at, apic_at = string.unpack("<I4I4", found.RSDT, 37)
  found.FACP, found.APIC = table_at(bytes, facp_at, "FACP"), table_at(bytes, apic_at, "APIC")
  local facs_at, dsdt_at = string.unpack("<I4I4", found.FACP, 37)
  found.FACS, found.DSDT = table_at(bytes, facs_at, "FACS"), table_at(bytes, dsdt_at, "DSDT")
  return found, { FACP = facp_at, APIC = apic_at, FACS = facs_at, DSDT = dsdt_at }
end

-- The entries of the MADT, each as its bytes.
local function entries(madt)
  local list, at = {}, 45
  while at <= #madt do
    local size = madt:byte(at + 1)
    table.insert(list, madt:sub(at, at + size - 1))
    at = at + size
  end
  return list
end

describe("ckvm.acpi", function()
  it("has tables with right checksums, where they say that they are", function()
    local found, places = tables(PC)
    assert.equal("RSD PTR ", found.RSDP:sub(1, 8))
    assert.equal(0, sum(found.RSDP:sub(1, 20)))
    for name, bytes in pairs(found) do
      if name ~= "FACS" then assert.equal(0, sum(bytes), name) end
    end
    assert.equal(0, places.FACS % 64)
    assert.same({ places.FACP, places.APIC, 53 }, { string.unpack("<I8I8", found.XSDT, 37) })
    assert.same({ 0, places.DSDT, 149 }, { string.unpack("<I8I8", found.FACP, 133) })
  end)

  it("tells of each CPU", function()
    local cpus = {}
    for _, entry in ipairs(entries(tables({ cpus = 3 }).APIC)) do
      local kind, _, uid, id, flags = string.unpack("<BBBB I4", entry .. "\0\0")
      if kind == 0 then table.insert(cpus, { uid, id, flags }) end
    end
    assert.same({ { 0, 0, 1 }, { 1, 1, 1 }, { 2, 2, 1 } }, cpus)
  end)

  it("tells where power management is", function()
    local facp = tables({ pm = 0xb000, sci = 10, reset = 0xcf9 }).FACP
    assert.equal(10, (string.unpack("<I2", facp, 47)))
    assert.same({ 0xb000, 0xb004, 0xb008 }, { (string.unpack("<I4", facp, 57)),
      (string.unpack("<I4", facp, 65)), (string.unpack("<I4", facp, 77)) })
    assert.equal(0xcf9, (string.unpack("<I8", facp, 121)))
    local override
    for _, entry in ipairs(entries(tables({ sci = 10 }).APIC)) do
      if entry:byte() == 2 then override = entry end
    end
    assert.equal("\2\10\0\10\10\0\0\0\13\0", override)
  end)

  it("without a reset register has none", function()
    local flags = string.unpack("<I4", tables({}).FACP, 113)
    assert.equal(0, flags & 1 << 10)
    assert.equal(("\0"):rep(12), tables({}).FACP:sub(117, 128))
  end)

  it("is understood by ACPICA's disassembler", function()
    if not os.execute("command -v iasl >/dev/null") then support.skip("no iasl") end
    local directory = os.tmpname()
    os.remove(directory)
    lfs.mkdir(directory)
    local found = tables(PC)
    for _, name in ipairs { "FACP", "APIC", "FACS", "DSDT", "RSDT", "XSDT" } do
      local file <close> = assert(io.open(directory .. "/" .. name .. ".dat", "wb"))
      file:write(found[name])
    end
    local pipe = io.popen("cd " .. directory .. " && for i in *.dat; do iasl -d $i; done 2>&1;"
      .. " cat DSDT.dsl; iasl -p again DSDT.dsl 2>&1; rm -r " .. directory)
    local text = pipe:read("a")
    assert.is_true(pipe:close())
    local sound = "Compilation successful. 0 Errors, 0 Warnings, 0 Remarks"
    support.contains(sound, text)
    text = text:gsub(sound, "")
    assert.is_nil(text:lower():match("[^\n]*error[^\n]*"))
    assert.is_nil(text:lower():match("[^\n]*warning[^\n]*"))
    assert.is_nil(text:match("[^\n]*[Ii]ncorrect checksum[^\n]*"))
    for _, part in ipairs { "Name (_S5", "Device (COM1)", "Device (COM2)", 'EisaId ("PNP0501")',
      "0x02F8", "Device (RTC)", "Device (KBD)", "Device (PCI0)", 'EisaId ("PNP0A03")' } do
      support.contains(part, text)
    end
    assert.is_nil(text:find("PNP0F13", 1, true)) -- a mouse
  end)

  it("tells of the PCI bus, and of its lines, only if there is one", function()
    local dsdt = tables({ pci = true }).DSDT
    local prt = dsdt:match("_PRT.*")
    assert.equal(31 * 4, prt:byte(8)) -- behind an opcode and three bytes of length
    for device = 1, 31 do
      for pin = 1, 4 do
        local entry = string.pack("<BI4", 0x0c, device << 16 | 0xffff)
          .. (pin == 1 and "\0" or pin == 2 and "\1" or "\x0a" .. string.char(pin - 1))
          .. "\0\x0a" .. string.char(pci.line(device, pin))
        assert(prt:find(entry, 1, true), ("no route of %d.%d"):format(device, pin))
      end
    end
    assert(dsdt:find(string.pack("<I4I4I4I4", 0xc0000000, 0xfebfffff, 0, 0x3ec00000), 1, true))
    assert.is_nil(tables({}).DSDT:find("PCI0", 1, true))
  end)

  it("has room for as many CPUs as it takes", function()
    local bytes = acpi.tables({ cpus = 254 }, AT)
    assert(#bytes < 0x10000)
    assert.equal(254 + 3, #entries(tables({ cpus = 254 }).APIC))
  end)

  it("refuses what it cannot tell, and blames the caller", function()
    local blames = support.blames
    blames("acpi: table of options expected, got nil", acpi.tables)
    blames("acpi: unknown option 'hpet'", acpi.tables, { hpet = true }, AT)
    blames("acpi: pci: boolean expected, got integer", acpi.tables, { pci = 0xcf8 }, AT)
    blames("acpi: cpus: 255 is not between 1 and 254", acpi.tables, { cpus = 255 }, AT)
    blames("acpi: cpus: 0 is not between 1 and 254", acpi.tables, { cpus = 0 }, AT)
    blames("acpi: pm: 65535 is not between 0 and 65524", acpi.tables, { pm = 65535 }, AT)
    blames("acpi: sci: 16 is not between 0 and 15", acpi.tables, { sci = 16 }, AT)
    blames("acpi: reset: -1 is not between 0 and 65535", acpi.tables, { reset = -1 }, AT)
    blames("acpi: gpa: nil is no multiple of 64 below 4 GiB", acpi.tables, {})
    blames("acpi: gpa: 917505 is no multiple of 64", acpi.tables, {}, AT + 1)
    blames("acpi: port of a UART: nil is not between 0 and 65528", acpi.tables,
      { uarts = { { irq = 4 } } }, AT)
    blames("acpi: uarts: table expected, got number", acpi.tables, { uarts = { 0x3f8 } }, AT)
    blames("acpi: irq of a UART: 16 is not between 0 and 15", acpi.tables,
      { uarts = { { port = 0x3f8, irq = 16 } } }, AT)
    blames("acpi: number of uarts: 10 is not between 0 and 9", acpi.tables,
      { uarts = { {}, {}, {}, {}, {}, {}, {}, {}, {}, {} } }, AT)
  end)
end)

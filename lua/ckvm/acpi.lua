--- The ACPI tables by which a guest finds its CPUs, its interrupt controllers, its PCI bus and the
-- way to switch itself off.
--
-- They tell of the kernel's interrupt controllers (`vm:create_irqchip`), of `ckvm.dev.pm`, and of
-- those devices of a PC that the options name. They make none of these. Guests find them by the
-- RSDP, whose signature they look for at multiples of 16 between 0xe0000 and 0xfffff, or by the
-- boot protocol (`ckvm.boot`, option `acpi`).
--
-- Source: the ACPI specification 6.5, chapter 5; FADT and MADT are those of ACPI 4.0.
-- @module ckvm.acpi
-- @usage
-- local acpi = require "ckvm.acpi"
-- vm:write(0x8000, acpi.tables({ cpus = 2 }, 0x8000)) -- of a PC: at 0xe0000
local aml = require "ckvm.acpi.aml"
local check = require "ckvm.check"
local pci = require "ckvm.dev.pci"

local acpi = {}

local OEM <const>, TABLE <const>, CREATOR <const> = "CKVM  ", "CKVM    ", "CKVM"
local HEADER <const> = "<c4I4BBc6c8I4c4I4"
local HEADER_SIZE <const>, CHECKSUM <const> = 36, 9
local ALIGN <const> = 64 -- as the FACS needs it
local RSDP_SIZE <const> = 36
local PM <const>, SCI <const> = 0x600, 9 -- unless told

local OPTIONS <const> = {
  cpus = "integer?", pm = "integer?", sci = "integer?", reset = "integer?", uarts = "table?",
  rtc = "boolean?", i8042 = "boolean?", pci = "boolean?",
}
local MOST_CPUS <const> = 254 -- of local APIC entries, whose ids have a byte
local MOST_UARTS <const> = 9 -- COM1 and on
local MOST_GPA <const> = 0xffff0000

-- Tables -----------------------------------------------------------------------

-- Bytes that sum up to 0 with the one at `at`, which is 0 before.
local function with_checksum(bytes, at)
  local sum = 0
  for i = 1, #bytes do sum = sum + bytes:byte(i) end
  return bytes:sub(1, at) .. string.char(-sum & 0xff) .. bytes:sub(at + 2)
end

local function description(signature, revision, body)
  return with_checksum(string.pack(HEADER, signature, HEADER_SIZE + #body, revision, 0, OEM, TABLE,
    1, CREATOR, 1) .. body, CHECKSUM)
end

-- Power management: how to switch off, and what has no way of its own to be found.
local OFF <const> = 5 -- SLP_TYP of ckvm.dev.pm

local function serial_port(number, uart)
  return aml.device("COM" .. number,
    aml.name("_HID", aml.eisa_id "PNP0501"), aml.name("_UID", aml.integer(number)),
    aml.name("_CRS", aml.resources(aml.ports(uart.port, 8), aml.irq(uart.irq))))
end

-- Where PCI devices may be: ckvm.machine has no memory from 3 GiB to 4 GiB, and at the end of that
-- are interrupt controllers and firmware.
local MMIO <const>, MMIO_LAST <const> = 0xc0000000, 0xfebfffff
local CONFIG <const>, CONFIG_PORTS <const> = 0xcf8, 8
local ANY_FUNCTION <const> = 0xffff

-- Each pin of each device: its line, which goes to the interrupt controllers by no other one. The
-- host bridge is device 0.
local function routes()
  local list = {}
  for device = 1, 31 do
    for pin = 1, 4 do
      table.insert(list, aml.package(aml.integer(device << 16 | ANY_FUNCTION),
        aml.integer(pin - 1), aml.integer(0), aml.integer(pci.line(device, pin))))
    end
  end
  return aml.package(table.unpack(list))
end

local function host_bridge()
  return aml.device("PCI0", aml.name("_HID", aml.eisa_id "PNP0A03"),
    aml.name("_UID", aml.integer(0)), aml.name("_BBN", aml.integer(0)),
    aml.name("_CRS", aml.resources(aml.buses(0, 0), aml.ports(CONFIG, CONFIG_PORTS),
      aml.port_window(0, CONFIG - 1), aml.port_window(CONFIG + CONFIG_PORTS, 0xffff),
      aml.memory_window(MMIO, MMIO_LAST))),
    aml.name("_PRT", routes()))
end

local function devices(options)
  local list = {}
  for number, uart in ipairs(options.uarts or {}) do
    table.insert(list, serial_port(number, uart))
  end
  if options.rtc then
    table.insert(list, aml.device("RTC_", aml.name("_HID", aml.eisa_id "PNP0B00"),
      aml.name("_CRS", aml.resources(aml.ports(0x70, 2), aml.irq(8)))))
  end
  if options.i8042 then
    table.insert(list, aml.device("KBD_", aml.name("_HID", aml.eisa_id "PNP0303"),
      aml.name("_CRS", aml.resources(aml.ports(0x60, 1), aml.ports(0x64, 1), aml.irq(1)))))
  end
  if options.pci then table.insert(list, host_bridge()) end
  return table.concat(list)
end

local function dsdt(options)
  local off <const>, zero <const> = aml.integer(OFF), aml.integer(0)
  return description("DSDT", 2, aml.name("_S5_", aml.package(off, off, zero, zero))
    .. aml.scope("_SB_", devices(options)))
end

local function facs()
  return string.pack("<c4I4I4I4I4I4I8BI3I4", "FACS", 64, 0, 0, 0, 0, 0, 2, 0, 0) .. ("\0"):rep(24)
end

-- A generic address: a port with so many bytes, or none.
local IN_PORTS <const>, NONE <const> = 1, ("\0"):rep(12)

local function address(port, size)
  return string.pack("<BBBBI8", IN_PORTS, size * 8, 0, 0, port)
end

-- Flags: WBINVD works, HLT does, no sleep button, no fixed RTC event, and the reset register.
local WBINVD <const>, PROC_C1 <const>, NO_SLEEP <const> = 1 << 0, 1 << 2, 1 << 5
local NO_RTC <const>, RESET <const> = 1 << 6, 1 << 10
local LEGACY <const>, HAS_8042 <const>, NO_VGA <const>, NO_CMOS_RTC <const> = 1, 2, 4, 1 << 5
local RESET_NOW <const>, CENTURY <const>, NO_C_STATE <const> = 6, 0x32, 0xfff

local function fadt(options, facs_at, dsdt_at)
  local event <const>, reset <const> = options.pm or PM, options.reset
  local control <const>, timer <const> = event + 4, event + 8
  local flags = WBINVD | PROC_C1 | NO_SLEEP | NO_RTC | (reset and RESET or 0)
  local legacy = LEGACY | NO_VGA | (options.i8042 and HAS_8042 or 0)
    | (options.rtc and 0 or NO_CMOS_RTC)
  return description("FACP", 4, string.pack("<I4I4BBI2", facs_at, dsdt_at, 0, 0, options.sci or SCI)
    .. string.pack("<I4BBBB", 0, 0, 0, 0, 0) -- no SMI_CMD: ACPI is on
    .. string.pack("<I4I4I4I4I4I4I4I4", event, 0, control, 0, 0, timer, 0, 0)
    .. string.pack("<BBBBBBBB", 4, 2, 0, 4, 0, 0, 0, 0) -- their lengths
    .. string.pack("<I2I2I2I2BBBBBI2BI4", NO_C_STATE, NO_C_STATE, 0, 0, 0, 0, 0, 0,
      options.rtc and CENTURY or 0, legacy, 0, flags)
    .. (reset and address(reset, 1) or NONE)
    .. string.pack("<BI2BI8I8", reset and RESET_NOW or 0, 0, 0, 0, dsdt_at)
    .. address(event, 4) .. NONE .. address(control, 2) .. NONE .. NONE .. address(timer, 4)
    .. NONE .. NONE)
end

-- The local APICs, whose ids are the vCPUs', and the IOAPIC, on whose pins the ISA lines are.
local LOCAL_APIC <const>, IO_APIC <const> = 0xfee00000, 0xfec00000
local HAS_PICS <const>, ENABLED <const> = 1, 1
local LEVEL_HIGH <const>, ALL_CPUS <const>, LINT1 <const> = 0xd, 0xff, 1

local function madt(options)
  local cpus <const>, sci <const> = options.cpus or 1, options.sci or SCI
  local entries = { string.pack("<I4I4", LOCAL_APIC, HAS_PICS) }
  for id = 0, cpus - 1 do
    table.insert(entries, string.pack("<BBBBI4", 0, 8, id, id, ENABLED))
  end
  table.insert(entries, string.pack("<BBBBI4I4", 1, 12, cpus, 0, IO_APIC, 0))
  -- The only line that is not as ISA has it.
  table.insert(entries, string.pack("<BBBBI4I2", 2, 10, 0, sci, sci, LEVEL_HIGH))
  table.insert(entries, string.pack("<BBBI2B", 4, 6, ALL_CPUS, 0, LINT1))
  return description("APIC", 3, table.concat(entries))
end

local function rsdp(rsdt_at, xsdt_at)
  local bytes = string.pack("<c8Bc6BI4", "RSD PTR ", 0, OEM, 2, rsdt_at)
  bytes = with_checksum(bytes, 8) .. string.pack("<I4I8I4", RSDP_SIZE, xsdt_at, 0)
  return with_checksum(bytes, 32)
end

-- All of them ------------------------------------------------------------------

local function check_range(name, value, first, last)
  if math.type(value) ~= "integer" or value < first or value > last then
    error(("acpi: %s: %s is not between %d and %d"):format(name, tostring(value), first, last), 4)
  end
end

local function check_values(options, gpa)
  check_range("cpus", options.cpus or 1, 1, MOST_CPUS)
  check_range("pm", options.pm or PM, 0, 0xfff4)
  check_range("sci", options.sci or SCI, 0, 15)
  check_range("reset", options.reset or 0, 0, 0xffff)
  check_range("number of uarts", #(options.uarts or {}), 0, MOST_UARTS)
  for _, uart in ipairs(options.uarts or {}) do
    if type(uart) ~= "table" then
      error(("acpi: uarts: table expected, got %s"):format(type(uart)), 3)
    end
    check_range("port of a UART", uart.port, 0, 0xfff8)
    check_range("irq of a UART", uart.irq, 0, 15)
  end
  if math.type(gpa) ~= "integer" or gpa % ALIGN ~= 0 or gpa < 0 or gpa > MOST_GPA then
    error(("acpi: gpa: %s is no multiple of %d below 4 GiB"):format(tostring(gpa), ALIGN), 3)
  end
end

--- The tables, to be put at an address: RSDP, RSDT, XSDT, FADT, FACS, MADT and DSDT. The RSDP is
-- the first of them.
-- @tparam table options
-- @tparam[opt=1] integer options.cpus how many, up to 254; their ids are 0 and on
-- @tparam[opt=0x600] integer options.pm number of the first port of `ckvm.dev.pm`, by which the
-- guest switches itself off
-- @tparam[opt=9] integer options.sci number of the interrupt line of `ckvm.dev.pm`
-- @tparam[opt] integer options.reset number of the port of the reset register, 0xcf9 in PCs
-- @tparam[opt] table options.uarts list of `{ port =, irq = }` of the serial ports
-- @tparam[opt=false] boolean options.rtc there is `ckvm.dev.rtc` at 0x70, with line 8
-- @tparam[opt=false] boolean options.i8042 there is `ckvm.dev.i8042` at 0x60, with line 1
-- @tparam[opt=false] boolean options.pci there is `ckvm.dev.pci` at 0xcf8: its functions may be at
-- the other ports and from 0xc0000000 to 0xfebfffff, where no memory must be, and have the lines of
-- `ckvm.dev.pci.line`
-- @tparam integer gpa where they will be: guest physical address, a multiple of 64
-- @treturn string their bytes
-- @raise only for misuse
-- @usage
-- local acpi = require "ckvm.acpi"
-- local bytes = acpi.tables({ pm = 0x600, uarts = { { port = 0x3f8, irq = 4 } } }, 0xe0000)
-- assert(bytes:sub(1, 8) == "RSD PTR ")
function acpi.tables(options, gpa)
  check.options("acpi", options, OPTIONS)
  check_values(options, gpa)
  local parts, free = {}, gpa + ALIGN -- behind the RSDP
  local function add(bytes)
    local at = free
    table.insert(parts, bytes .. ("\0"):rep(-#bytes % ALIGN))
    free = free + #parts[#parts]
    return at
  end
  local facp = add(fadt(options, add(facs()), add(dsdt(options))))
  local apic = add(madt(options))
  local rsdt = add(description("RSDT", 1, string.pack("<I4I4", facp, apic)))
  local xsdt = add(description("XSDT", 1, string.pack("<I8I8", facp, apic)))
  return rsdp(rsdt, xsdt) .. ("\0"):rep(ALIGN - RSDP_SIZE) .. table.concat(parts)
end

return acpi

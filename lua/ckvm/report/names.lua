-- What answers where in a PC: well-known ports and addresses, for reports and traces.

local names = {}

-- First, last, what is there. What comes first counts.
local PORTS <const> = {
  { 0x00, 0x0f, "DMA controller" }, { 0x20, 0x21, "first PIC" }, { 0x40, 0x43, "PIT" },
  { 0x60, 0x60, "keyboard controller" }, { 0x61, 0x61, "NMI status, speaker" },
  { 0x64, 0x64, "keyboard controller" }, { 0x70, 0x71, "CMOS, real-time clock" },
  { 0x80, 0x80, "POST code, or a delay" }, { 0x81, 0x8f, "DMA pages" },
  { 0x92, 0x92, "A20 gate" }, { 0xa0, 0xa1, "second PIC" }, { 0xb2, 0xb3, "SMI command" },
  { 0xc0, 0xdf, "second DMA controller" }, { 0xe9, 0xe9, "debug console" },
  { 0xf0, 0xf1, "FPU error" }, { 0xf4, 0xf7, "debug exit" },
  { 0x170, 0x177, "second IDE channel" }, { 0x1ce, 0x1d0, "VBE display" },
  { 0x1f0, 0x1f7, "first IDE channel" }, { 0x201, 0x201, "game port" },
  { 0x220, 0x22f, "sound card" }, { 0x278, 0x27a, "second parallel port" },
  { 0x2e8, 0x2ef, "fourth serial port, COM4" }, { 0x2f8, 0x2ff, "second serial port, COM2" },
  { 0x330, 0x331, "MIDI" }, { 0x376, 0x376, "second IDE channel" },
  { 0x378, 0x37a, "first parallel port" }, { 0x388, 0x38b, "sound card" },
  { 0x3b0, 0x3df, "VGA" }, { 0x3e8, 0x3ef, "third serial port, COM3" },
  { 0x3f6, 0x3f6, "first IDE channel" }, { 0x3f0, 0x3f7, "floppy controller" },
  { 0x3f8, 0x3ff, "first serial port, COM1" }, { 0x402, 0x402, "firmware's debug output" },
  { 0x4d0, 0x4d1, "PIC edge or level" }, { 0x505, 0x505, "pvpanic" }, { 0x510, 0x51b, "fw_cfg" },
  { 0x600, 0x63f, "ACPI power management" }, { 0xae00, 0xae13, "ACPI hotplug" },
  { 0xaf00, 0xaf1f, "ACPI CPU hotplug" }, { 0xb000, 0xb03f, "ACPI power management" },
  { 0xcf9, 0xcf9, "reset" }, { 0xcf8, 0xcff, "PCI configuration" }, { 0x5658, 0x5659, "VMware" },
}

local ADDRESSES <const> = {
  { 0xa0000, 0xbffff, "VGA memory" }, { 0xc0000, 0xdffff, "ROMs of cards" },
  { 0xe0000, 0xfffff, "BIOS" }, { 0xb0000000, 0xbfffffff, "PCI configuration space" },
  { 0xe0000000, 0xefffffff, "PCI configuration space" }, { 0xfec00000, 0xfec00fff, "IOAPIC" },
  { 0xfed00000, 0xfed003ff, "HPET" }, { 0xfed40000, 0xfed44fff, "TPM" },
  { 0xfee00000, 0xfee00fff, "local APIC" }, { 0xff000000, 0xffffffff, "firmware" },
}

local function find(list, address)
  for _, entry in ipairs(list) do
    if address >= entry[1] and address <= entry[2] then return entry[3] end
  end
end

-- nil for one that is not well known.
function names.port(port) return find(PORTS, port) end
function names.address(gpa) return find(ADDRESSES, gpa) end

return names

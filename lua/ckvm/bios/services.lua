-- Who serves which interrupt, for ckvm.bios, and what becomes of one that nobody does.

local call = require "ckvm.bios.call"
local clock = require "ckvm.bios.clock"
local keyboard = require "ckvm.bios.keyboard"
local rom = require "ckvm.bios.rom"
local system = require "ckvm.bios.system"

local services = {}

local BY_VECTOR <const> = {
  [0x10] = require "ckvm.bios.video", [0x13] = require "ckvm.bios.drive",
  [0x15] = system.serve, [0x16] = keyboard.serve, [0x1a] = clock.serve, [rom.WAIT] = system.wait,
}

BY_VECTOR[0x11] = function(bios, frame) frame.ax = bios.vm:read_u16(0x410) end
BY_VECTOR[0x12] = function(bios, frame) frame.ax = bios.vm:read_u16(0x413) end
BY_VECTOR[0x14] = function(_, frame) frame:refuse() end -- serial ports
BY_VECTOR[0x17] = BY_VECTOR[0x14] -- printers
BY_VECTOR[0x18] = function(_, frame) frame.vcpu:stop "no bootable disk" end
BY_VECTOR[0x19] = function(bios, frame) bios.reboot(frame.vcpu) end

-- Exceptions that a guest may have meant; from 8 on a PC has device interrupts there, too.
local NAMES <const> = {
  [0] = "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", [0xa] = "#TS",
  [0xb] = "#NP", [0xc] = "#SS", [0xd] = "#GP", [0xe] = "#PF",
}

local function unhandled(bios, frame)
  local name = NAMES[frame.vector] and (" (%s)"):format(NAMES[frame.vector]) or ""
  bios.unhandled(frame.vcpu, ("INT 0x%x%s has no handler; it returns to %s"):format(frame.vector,
    name, frame:return_address()))
end

-- Serves a trap. The port is the BIOS's alone: an OUT of the guest's own does nothing.
function services.trap(bios, vcpu)
  local vector = rom.vector(vcpu.sregs.cs.base + vcpu.regs.rip)
  if not vector then return end
  clock.update(bios)
  local serve = BY_VECTOR[vector] or unhandled
  serve(bios, call.new(bios, vcpu, vector))
end

return services

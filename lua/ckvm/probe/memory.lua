-- Memory, as a mode sees it: page tables that the host edits, dirty pages; and RIP at an exit.

local guest = require "ckvm.probe.guest"

local PRESENT <const>, WRITE <const>, USER <const> = 1, 2, 4
local WINDOW_FLAGS <const> = PRESENT | WRITE | USER

local memory = {}

-- mov (%rdi), %al; mov %al, (%rsi); jmp to the start
local LOOK <const> = "\x8a\x07\x88\x06\xeb\xfa"

-- What the guest finds in the window: the first byte of the frame that is mapped there, for it.
local function look(one)
  local ended = one:run()
  if ended ~= "mmio_write" then error("the guest ends in " .. ended, 0) end
  return one.vcpu.exit.data
end

local function map(one, frame)
  one.vm:write_u64(guest.WINDOW_ENTRY, guest.FRAMES[frame] | WINDOW_FLAGS)
end

-- CR3 to another value and back: the guest's translations are flushed.
local function reload_cr3(one)
  local cr3 = one.vcpu.sregs.cr3
  one.vcpu:finish()
  one.vcpu:set_sregs { cr3 = cr3 | 8 } -- PWT: the tables are the same
  one.vcpu:set_sregs { cr3 = cr3 }
end

local function move_away_and_back(one)
  one.vm:move_memory(one.ram, 1 << 32)
  one.vm:move_memory(one.ram, 0)
end

-- When a mode with paging sees that the host has changed an entry of a live page table: "at
-- once", or what it takes: "set_sregs" (of CR3) or "move_memory"; or "never".
function memory.page_table_edit(kvm, mode)
  if mode ~= "long" and mode ~= "user" then return nil end
  local one <close> = guest.new(kvm, mode, LOOK)
  for frame, gpa in ipairs(guest.FRAMES) do one.vm:write_u8(gpa, frame) end
  one:enter { rdi = guest.WINDOW, rsi = guest.MMIO }
  if look(one) ~= 1 then error("the guest does not see the page that is mapped", 0) end
  map(one, 2)
  if look(one) == 2 then return "at once" end
  reload_cr3(one)
  if look(one) == 2 then return "set_sregs" end
  move_away_and_back(one)
  if look(one) == 2 then return "move_memory" end
  return "never"
end

-- The pages that a guest has dirtied by running this, as a set.
local function dirtied(kvm, mode, code)
  local one <close> = guest.new(kvm, mode, code, { memory = { log_dirty = true } })
  one.vm:dirty_pages(one.ram)
  local ended = one:run()
  if ended ~= "end" then error("the guest ends in " .. ended, 0) end
  local set = {}
  for _, gpa in ipairs(one.vm:dirty_pages(one.ram)) do set[gpa] = true end
  return set
end

-- Does the dirty log have the page of a store?
function memory.dirty_log(kvm, mode)
  return dirtied(kvm, mode, "\xc6\x07\x01")[guest.DATA] == true -- movb $1, (%rdi)
end

-- Does it have a page that was only fetched from?
function memory.fetch_dirties(kvm, mode)
  return dirtied(kvm, mode, "")[guest.CODE] == true
end

-- Where RIP is at the exit of an OUT: "behind" it or "at" it.
function memory.rip_at_out(kvm, mode)
  local one <close> = guest.new(kvm, mode, "\xe6\x10")
  local ended = one:run()
  if ended ~= "io_out" then return nil, ended end
  local offset = one.vcpu.regs.rip - guest.CODE
  return offset == 0 and "at" or offset == 2 and "behind" or ("%+d"):format(offset)
end

-- Is a store to read-only memory an exit, and the memory unchanged?
function memory.readonly(kvm)
  local one <close> = guest.new(kvm, "real", "\xc6\x07\x01") -- movb $1, (%bx)
  local page = one.vm:add_memory { gpa = guest.MMIO, size = guest.PAGE, readonly = true }
  one:enter { rbx = page.gpa }
  local ended = one:run()
  if ended == "mmio_write" and one.vm:read_u8(page.gpa) == 0 then return true end
  return false, "ends in " .. ended
end

return memory

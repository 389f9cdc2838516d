-- The guests of ckvm.probe: 56 KiB of memory, code that starts in one of four modes, and stubs
-- that tell which exception came up. A guest ends by a port or, in ring 3, which may have none, by
-- an address.

local ckvm = require "ckvm"
local x86 = require "ckvm.x86"

local guest = {}
guest.__index = guest

guest.PAGE = 0x1000
guest.CODE, guest.DATA = 0x1000, 0x2000      -- ring 3 may use these, and the stack
guest.SUPERVISOR = 0x4000                    -- of ring 0 alone, with its stack
guest.USER_STUB = 0x7000                     -- ring 3 may use it: it ends the guest
guest.WINDOW = 0xe000                        -- a virtual page, of ring 3, mapped to FRAMES[1]
guest.FRAMES = { 0xc000, 0xd000 }            -- physical pages
guest.WINDOW_ENTRY = 0xb000 + 0xe * 8        -- the entry of the window, in the last page table
guest.MMIO = 0xf000                          -- no memory
guest.PORT, guest.DENIED = 0x10, 0x20        -- ring 3 may use the first by the TSS, not the second

local SIZE <const>, STACK <const> = 0xe000, 0x4000
local RING0_STACK <const>, STUBS <const>, STUB_SIZE <const> = 0x5000, 0x5000, 16
local GDT <const>, TSS <const>, IDT <const>, TABLES <const> = 0x6000, 0x6100, 0x6800, 0x8000
local TRAP <const>, END <const> = 0xf0, 0xf1 -- ports, of the stubs and of the end
local END_ADDRESS <const> = guest.MMIO + 0xff0
local OUT_END <const> = "\xe6" .. string.char(END) -- out %al, $END
local STORE_END <const> = "\xa2" .. string.pack("<I8", END_ADDRESS) -- movabs %al, END_ADDRESS
local VECTORS <const> = 64
local GATES <const> = { [3] = 3, [0x30] = 3 } -- what ring 3 may raise by INT

-- Seconds: of the CPU's time, which a busy host does not stretch; of the clock, for the first
-- slice and for all.
local ENOUGH <const>, SLICE <const>, LIMIT <const> = 0.5, 0.004, 5

-- In pages: those of ring 3, of ring 0, the stub of ring 3, the window, and no memory.
local LAYOUT <const> = {
  { va = guest.CODE, size = 3 * guest.PAGE, user = true },
  { va = guest.SUPERVISOR, size = 3 * guest.PAGE },
  { va = guest.USER_STUB, size = guest.PAGE, user = true },
  { va = guest.WINDOW, gpa = guest.FRAMES[1], size = guest.PAGE, user = true },
  { va = guest.MMIO, size = guest.PAGE, user = true },
}

local NAMES <const> = {
  [0] = "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "vector 9", "#TS", "#NP",
  "#SS", "#GP", "#PF", "vector 15", "#MF", "#AC", "#MC", "#XM",
}

-- The usual name of an exception.
function guest.exception_name(vector)
  return NAMES[vector] or ("vector 0x%x"):format(vector)
end

-- Where the stub of a vector is, in a page of ring 0's.
function guest.stub(vector)
  return STUBS + vector * STUB_SIZE
end

local function build(vm)
  local handlers, vectors, stubs = {}, {}, {}
  for vector = 0, VECTORS - 1 do
    handlers[vector] = guest.stub(vector)
    table.insert(vectors, string.pack("<I2I2", handlers[vector], 0))
    table.insert(stubs, "\xe6" .. string.char(TRAP) .. ("\xf4"):rep(STUB_SIZE - 2)) -- out; hlt
  end
  local tss = x86.tss { rsp0 = RING0_STACK, ports = { guest.PORT } }
  local place = { base = TSS, limit = #tss - 1 }
  vm:write(0, table.concat(vectors)) -- of real mode
  vm:write(STUBS, table.concat(stubs))
  vm:write(guest.USER_STUB, STORE_END)
  vm:write(TSS, tss)
  vm:write(GDT, x86.gdt(place))
  vm:write(IDT, x86.idt(handlers, GATES))
  x86.page_tables(vm, TABLES, LAYOUT)
  return place
end

-- A VM of its own, about to run `code` in that mode of `x86.enter`. Options: `memory`, of
-- `vm:add_memory`.
function guest.new(kvm, mode, code, options)
  local vm = kvm:create_vm()
  local memory = { gpa = 0, size = SIZE }
  for key, value in pairs(options and options.memory or {}) do memory[key] = value end
  local self = setmetatable({ vm = vm, mode = mode, ram = vm:add_memory(memory) }, guest)
  self.tss = build(vm)
  self.vcpu = vm:create_vcpu(0)
  self:load(code)
  self:enter()
  return self
end

function guest:close()
  self.vm:close()
end

guest.__close = guest.close

-- Puts the code in place, with the guest's end behind it.
function guest:load(code)
  self.vm:write(guest.CODE, code .. (self.mode == "user" and STORE_END or OUT_END))
end

-- Back to the start of the code, with these registers (rdi and rbx are DATA, so that one encoding
-- means it in all modes).
function guest:enter(regs)
  self.vcpu:finish() -- an access that is open would undo a rip that is the same as before
  local start = { rip = guest.CODE, rsp = STACK, rflags = regs and regs.rflags }
  if self.mode == "long" or self.mode == "user" then
    start.cr3, start.tss = TABLES, self.tss
    start.gdt = { base = GDT, limit = 0x47 }
    start.idt = { base = IDT, limit = VECTORS * 16 - 1 }
  end
  x86.enter(self.vcpu, self.mode, start)
  local all = { rdi = guest.DATA, rbx = guest.DATA, rsi = guest.DATA }
  for name, value in pairs(regs or {}) do all[name] = value end
  self.vcpu:set_regs(all)
end

-- Runs it, for so long: returns `"end"` when its code is done, the name of the exception that came
-- up, or what `vcpu:run` has returned; after an `io_out` also the port.
function guest:run_for(seconds)
  local why = self.vcpu:run { timeout = seconds }
  local exit = self.vcpu.exit
  if why == "mmio_write" and exit.phys_addr == END_ADDRESS then return "end" end
  if why ~= "io_out" then return why end
  if exit.port == TRAP then
    return guest.exception_name((self.vcpu.regs.rip - STUBS) // STUB_SIZE)
  end
  return exit.port == END and "end" or why, exit.port
end

-- Runs it until it ends, or has had enough seconds of the CPU's time: `"timeout"`. The slices get
-- longer, as on a slow host the first may end before the guest is entered.
function guest:run(enough)
  local cpu, clock, slice = os.clock(), ckvm.now(), SLICE
  local ended, port
  repeat
    ended, port = self:run_for(slice)
    slice = slice * 2
  until ended ~= "timeout" or os.clock() - cpu >= (enough or ENOUGH) or ckvm.now() - clock >= LIMIT
  return ended, port
end

-- The ring that the guest is in.
function guest:ring()
  return self.vcpu.sregs.cs.selector & 3
end

return guest

--- What an x86 guest is set up with: names for control bits, page tables, descriptor tables, and
-- the state of a vCPU that starts in a mode.
--
-- The bits are numbers, to be combined with `|`. Nothing here needs the rest: a script can build
-- page tables and set the segments by itself, or the other way round.
-- @module ckvm.x86
-- @usage
-- local x86 = require "ckvm.x86"
-- local cr3 = x86.identity_map(vm, 0x1000, 4 << 30)
-- x86.enter(vcpu, "long", { rip = 0x100000, rsp = 0x100000, cr3 = cr3 })
local check = require "ckvm.check"

local x86 = {}

local RESERVED <const> = 2 -- the bit of rflags that is always set

for _, part in ipairs {
  "bits", "cpuid", "pages", "segments", "segments32", "topology", "user",
} do
  for name, value in pairs(require("ckvm.x86." .. part)) do x86[name] = value end
end

local cr0 <const>, cr4 <const>, efer <const> = x86.cr0, x86.cr4, x86.efer
local rflags <const>, msr <const> = x86.rflags, x86.msr
local selector <const>, segment <const> = x86.selector, x86.segment

-- Modes ----------------------------------------------------------------------

local function flat(code, data)
  return { cs = code, ds = data, es = data, fs = data, gs = data, ss = data }
end

local modes = {}

function modes.real(start)
  if start.rip < 0 or start.rip > 0xffff then
    error(("rip: 0x%x is beyond 0xffff, where a real-mode segment ends"):format(start.rip), 3)
  end
  local limits = { selector = 0, limit = 0xffff, bits = 16 }
  local sregs = flat(segment("code", limits), segment("data", limits))
  sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = cr0.et, 0, 0, 0
  sregs.idt = { base = 0, limit = 0x3ff }
  return sregs
end

function modes.protected(start)
  local sregs = flat(segment("code", { selector = selector.code32 }),
    segment("data", { selector = selector.data }))
  sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = cr0.pe | cr0.et | cr0.ne, 0, 0, 0
  sregs.idt = start.idt or { base = 0, limit = 0 }
  return sregs
end

-- The descriptor caches are filled in: a GDT is needed when the guest loads a segment.
local function long_mode(start, code, data)
  if not start.cr3 then error("cr3: long mode needs page tables", 3) end
  local sregs = flat(segment("code", { selector = code, bits = 64 }),
    segment("data", { selector = data }))
  sregs.cr0 = cr0.pe | cr0.mp | cr0.et | cr0.ne | cr0.wp | cr0.pg
  sregs.cr3 = start.cr3
  sregs.cr4 = cr4.pae | cr4.osfxsr | cr4.osxmmexcpt
  sregs.efer = efer.lme | efer.lma | (start.efer or 0) | (start.syscall and efer.sce or 0)
  sregs.idt = start.idt or { base = 0, limit = 0 }
  return sregs
end

function modes.long(start)
  return long_mode(start, selector.code, selector.data)
end

function modes.user(start)
  return long_mode(start, selector.user_code, selector.user_data)
end

-- What `enter` takes.
local OPTIONS <const> = {
  real = { rip = "integer", rsp = "integer?", rflags = "integer?" },
  protected = { rip = "integer", rsp = "integer?", rflags = "integer?",
    gdt = "table?", idt = "table?", tss = "table?" },
  long = { rip = "integer", rsp = "integer?", rflags = "integer?",
    gdt = "table?", idt = "table?", tss = "table?",
    cr3 = "integer?", syscall = "integer?", efer = "integer?" },
}
OPTIONS.user = OPTIONS.long
local PLACE <const> = { base = "integer", limit = "integer" }

-- What SYSCALL clears: what no handler expects to be set.
local SYSCALL_MASK <const> = rflags.tf | rflags["if"] | rflags.df | rflags.nt | rflags.ac

--- Puts a vCPU at the start of a program: flat segments, control registers, and clear general
-- registers with interrupts off.
--
-- `"real"`: 16-bit code, all segments at 0, interrupt vectors at 0. `"protected"`: 32-bit code in
-- ring 0, no paging. `"long"`: 64-bit code in ring 0, with SSE switched on. `"user"`: the same in
-- ring 3, in pages that are the user's.
--
-- Beside real mode there is no IDT unless it is given, so that an exception is a triple fault, and
-- the GDT (which a guest needs when it loads a segment) and TR stay what they were. `gdt`, `idt`
-- and `tss` are `{ base =, limit = }` of what the functions of these names have built, in protected
-- mode `gdt32`, `idt32` and `tss32`. Exceptions
-- in ring 3 need `idt` and `tss`: `ckvm.x86.user_stubs` makes all that they take.
-- @tparam vcpu vcpu that is to start there
-- @tparam string mode `"real"`, `"protected"`, `"long"` or `"user"`
-- @tparam table start
-- @tparam integer start.rip address of the first instruction
-- @tparam[opt=0] integer start.rsp address of the end of the stack
-- @tparam[opt=2] integer start.rflags bits
-- @tparam[opt] table start.gdt but for real mode
-- @tparam[opt] table start.idt but for real mode
-- @tparam[opt] integer start.cr3 address of the page tables, as `ckvm.x86.page_tables` and
-- `ckvm.x86.identity_map` return it; for `"long"` and `"user"`, which need it
-- @tparam[opt] table start.tss but for real mode
-- @tparam[opt] integer start.syscall address of the handler that SYSCALL goes to, which is off
-- without one; for `"long"` and `"user"`
-- @tparam[opt=0] integer start.efer more bits of EFER, as `x86.efer.nxe` is; for `"long"` and
-- `"user"`
-- @raise what `vcpu:set_sregs`, `vcpu:set_regs` and `vcpu:set_msrs` raise
-- @usage
-- x86.enter(vcpu, "real", { rip = 0x1000 })
function x86.enter(vcpu, mode, start)
  check.argument("vcpu", vcpu, "ckvm vCPU")
  local setup = modes[mode]
  if not setup then error(("unknown mode '%s'"):format(tostring(mode)), 2) end
  check.options(mode .. " mode", start, OPTIONS[mode])
  local sregs = setup(start)
  sregs.gdt = start.gdt
  if start.tss then
    check.fields("tss", start.tss, PLACE)
    sregs.tr = segment("tss",
      { selector = selector.tss, base = start.tss.base, limit = start.tss.limit })
  end
  local regs = { rip = start.rip, rsp = start.rsp or 0, rflags = start.rflags or RESERVED }
  check.blame(function()
    vcpu:set_sregs(sregs)
    if start.syscall then
      vcpu:set_msrs { [msr.star] = x86.star, [msr.lstar] = start.syscall,
        [msr.fmask] = SYSCALL_MASK }
    end
    for name in pairs(vcpu:get_regs()) do regs[name] = regs[name] or 0 end
    vcpu:set_regs(regs)
    vcpu.regs.rip = start.rip -- also where it is the same: an access that is open moves on from it
  end)
end

return x86

-- Which instructions a mode knows: each is run once, alone, and how it ended is told.

local guest = require "ckvm.probe.guest"
local x86 = require "ckvm.x86"

-- Of the CPU's time, for one that may never end: as many times what a guest without any has taken,
-- and no fewer seconds.
local TIMES <const>, LEAST <const> = 20, 0.008
local PATIENCE <const> = 3 -- as many times that, once more, before it is said to have no end
local MXCSR <const> = 0x1f80 -- as after reset; the first word of the data page
local TSC <const> = 0x10     -- an MSR, in ecx
local SSE <const> = x86.cr4.osfxsr | x86.cr4.osxmmexcpt

-- Where an instruction is tried: r(eal mode), 0 (ring 0 of long mode), 3 (its ring 3).
local ALL <const> = "r03"

-- Name, bytes, where (ALL), registers, and the exception it is to raise, if any; or, under
-- `wrong`, what rax is after the older instruction that an ignorant decoder takes it for. A memory
-- operand is (%rdi), or (%bx), at the data page: one encoding for all modes.
local LIST <const> = {
  { "INT", "\xcd\x30", ALL, nil, "vector 0x30" },
  { "INT3", "\xcc", ALL, nil, "#BP" },
  { "UD2", "\x0f\x0b", ALL, nil, "#UD" },
  { "DIV by 0", "\xf7\xf1", ALL, { rcx = 0 }, "#DE" },
  { "DIV", "\xf7\xf1" }, { "MUL", "\xf7\xe1" }, { "IMUL", "\x0f\xaf\xc1" },
  { "PUSHF POPF", "\x9c\x9d" }, { "ENTER LEAVE", "\xc8\0\0\0\xc9" }, { "SHLD", "\x0f\xa4\xc1\4" },
  { "BT", "\x0f\xa3\x07" }, { "BSF", "\x0f\xbc\xc1" }, { "CMOV", "\x0f\x44\xc1" },
  { "SETcc", "\x0f\x94\xc0" }, { "XADD", "\xf0\x0f\xc1\x07" }, { "CMPXCHG", "\xf0\x0f\xb1\x07" },
  { "CMPXCHG8B", "\x0f\xc7\x0f" }, { "CMPXCHG16B", "\x48\x0f\xc7\x0f", "03" },
  { "REP MOVS", "\xf3\xa4" }, { "REP STOS", "\xf3\xaa" }, { "REPE CMPS", "\xf3\xa6" },
  { "LODS", "\xac" }, { "SCAS", "\xae" }, { "IN", "\xe4\x10" }, { "OUT", "\xe6\x10" },
  { "INS", "\x6c", ALL, { rdx = guest.PORT } }, { "OUTS", "\x6e", ALL, { rdx = guest.PORT } },
  { "MOVBE", "\x0f\x38\xf0\x07" }, { "MOVNTI", "\x0f\xc3\x07" }, { "POPCNT", "\xf3\x0f\xb8\xc1" },
  { "LZCNT", "\xf3\x0f\xbd\xc1", wrong = { 4, "runs as BSR" } },
  { "TZCNT", "\xf3\x0f\xbc\xc1", ALL, { rcx = 0 }, wrong = { 0, "runs as BSF" } },
  { "CRC32", "\xf2\x0f\x38\xf1\xc1" }, { "ADCX", "\x66\x0f\x38\xf6\xc1" },
  { "RDRAND", "\x0f\xc7\xf0" }, { "RDSEED", "\x0f\xc7\xf8" }, { "RDPID", "\xf3\x0f\xc7\xf8" },
  { "CPUID", "\x0f\xa2" }, { "RDTSC", "\x0f\x31" }, { "RDTSCP", "\x0f\x01\xf9" },
  { "PAUSE", "\xf3\x90" }, { "MFENCE", "\x0f\xae\xf0" }, { "PREFETCH", "\x0f\x18\x0f" },
  { "CLFLUSH", "\x0f\xae\x3f" }, { "CLFLUSHOPT", "\x66\x0f\xae\x3f" },
  { "CLWB", "\x66\x0f\xae\x37" },
  -- the system
  { "SGDT", "\x0f\x01\x07" }, { "SIDT", "\x0f\x01\x0f" }, { "SMSW", "\x0f\x01\xe0" },
  { "SLDT", "\x0f\x00\xc0", "03" }, { "STR", "\x0f\x00\xc8", "03" },
  { "LAR", "\x0f\x02\xc0", "03" }, { "LSL", "\x0f\x03\xc0", "03" },
  { "VERR", "\x0f\x00\xe0", "03" }, { "VERW", "\x0f\x00\xe8", "03" },
  { "LGDT", "\x0f\x01\x17", "r0" }, { "LIDT", "\x0f\x01\x1f", "r0" },
  { "LLDT", "\x0f\x00\xd0", "0" }, { "LTR", "\x0f\x00\xd8", "0", { rax = x86.selector.tss } },
  { "CLTS", "\x0f\x06", "r0" }, { "MOV CR", "\x0f\x20\xc0\x0f\x22\xc0", "r0" },
  { "MOV DR", "\x0f\x21\xf8\x0f\x23\xf8", "r0" }, { "CLI STI", "\xfa\xfb", "r0" },
  { "RDMSR", "\x0f\x32", "r0" }, { "WRMSR", "\x0f\x30", "r0" },
  { "INVLPG", "\x0f\x01\x3f", "r0" }, { "INVPCID", "\x66\x0f\x38\x82\x0f", "0", { rcx = 2 } },
  { "WBINVD", "\x0f\x09", "r0" }, { "CLAC", "\x0f\x01\xca", "0" }, { "STAC", "\x0f\x01\xcb", "0" },
  { "MONITOR", "\x0f\x01\xc8", "r0", { rcx = 0, rax = guest.DATA } },
  { "SWAPGS", "\x0f\x01\xf8", "0" },
  -- push $ss, %rsp, flags, $cs and the address behind it, which lea 3(%rip) has
  { "IRETQ", "\x6a\x10\x54\x9c\x6a\x08\x48\x8d\5\3\0\0\0\x50\x48\xcf", "0" },
  { "LRETQ", "\x6a\x08\x48\x8d\5\3\0\0\0\x50\x48\xcb", "0" },
  -- x87, MMX, SSE
  { "FNINIT", "\xdb\xe3" }, { "FADD", "\xdb\xe3\xd9\xe8\xd8\xc0" }, { "FNSTCW", "\xd9\x3f" },
  { "FXSAVE", "\x0f\xae\x07" }, { "FXRSTOR", "\x0f\xae\x0f" }, { "STMXCSR", "\x0f\xae\x1f" },
  { "LDMXCSR", "\x0f\xae\x17" }, { "PADDB", "\x0f\xfc\xc1" }, { "EMMS", "\x0f\x77" },
  { "MOVUPS", "\x0f\x10\x07" }, { "MOVAPS", "\x0f\x28\x07" }, { "MOVDQA", "\x66\x0f\x6f\x07" },
  { "LDDQU", "\xf2\x0f\xf0\x07" }, { "ADDPS", "\x0f\x58\xc1" }, { "ADDSD", "\xf2\x0f\x58\xc1" },
  { "CVTSI2SD", "\xf2\x0f\x2a\xc1" }, { "PXOR", "\x66\x0f\xef\xc1" },
  { "PSHUFB", "\x66\x0f\x38\x00\xc1" }, { "PTEST", "\x66\x0f\x38\x17\xc1" },
  { "AESENC", "\x66\x0f\x38\xdc\xc1" }, { "PCLMULQDQ", "\x66\x0f\x3a\x44\xc1\0" },
  { "SHA1NEXTE", "\x0f\x38\xc8\xc1" },
  -- what takes CR4.OSXSAVE, and XCR0
  { "XGETBV", "\x0f\x01\xd0", ALL, { rcx = 0 } },
  { "XSETBV", "\x0f\x01\xd1", "r0", { rcx = 0, rax = 7 } },
  { "XSAVE", "\x0f\xae\x27", ALL, { rax = 3 } }, { "XRSTOR", "\x0f\xae\x2f", ALL, { rax = 3 } },
  { "VADDPS", "\xc5\xf4\x58\xc1", "03" }, { "VPADDD (AVX2)", "\xc5\xf5\xfe\xc1", "03" },
  { "ANDN (BMI1)", "\xc4\xe2\x70\xf2\xc1", "03" },
  { "VPADDD (AVX-512)", "\x62\xf1\x75\x48\xfe\xc1", "03" },
  -- may never return
  { "VMCALL", "\x0f\x01\xc1" }, { "VMMCALL", "\x0f\x01\xd9" },
}

local PLACES <const> = { real = "r", long = "0", user = "3" }

local instructions = {}

-- The parts of the state that XSAVE may have, as leaf 0xd tells; x87 is always one.
local function supported_xcr0(kvm)
  for _, entry in ipairs(kvm:get_supported_cpuid()) do
    if entry["function"] == 0xd and entry.index == 0 then return entry.eax | entry.edx << 32 end
  end
  return 1
end

-- A guest that runs it, with the port that IN, OUT, INS and OUTS use, and all that the KVM supports
-- switched on.
local function new_guest(kvm, mode)
  local one = guest.new(kvm, mode, "")
  one.vm:attach_io { port = guest.PORT, value = 0 }
  one.vcpu:set_cpuid2(kvm:get_supported_cpuid())
  local from = os.clock()
  one:run()
  one.enough = math.max(LEAST, (os.clock() - from) * TIMES)
  one.cr4 = one.vcpu.sregs.cr4 | SSE
  if pcall(one.vcpu.set_sregs, one.vcpu, { cr4 = one.cr4 | x86.cr4.osxsave }) then
    one.cr4 = one.cr4 | x86.cr4.osxsave
    pcall(one.vcpu.set_xcrs, one.vcpu, { xcrs = { { xcr = 0, value = supported_xcr0(kvm) } } })
  end
  return one
end

local function run(one, code, regs, patience)
  local all = { rcx = TSC }
  for name, value in pairs(regs or {}) do all[name] = value end
  one.vm:fill(guest.DATA, guest.PAGE, 0)
  one.vm:write_u32(guest.DATA, MXCSR)
  one:load(code)
  one:enter(all)
  one.vcpu:set_sregs { cr4 = one.cr4 }
  return one:run(one.enough * (patience or 1))
end

-- "works", or what came instead.
local function verdict(one, ended, entry)
  if ended == "end" and entry.wrong and one.vcpu.regs.rax == entry.wrong[1] then
    return entry.wrong[2]
  elseif ended == "end" and entry[5] then
    return "nothing raised"
  end
  return ended == (entry[5] or "end") and "works" or ended
end

-- Runs each instruction in a mode: how it ended, by name: `"works"`, an exception's name, or the
-- exit (`"internal_error"`, `"timeout"`).
-- `only`: names of those to try
function instructions.try(kvm, mode, only)
  local one, result = new_guest(kvm, mode), {}
  for _, entry in ipairs(LIST) do
    local name, code, places, regs = table.unpack(entry, 1, 4)
    if (places or ALL):find(PLACES[mode], 1, true) and (not only or only[name]) then
      local ended = run(one, code, regs)
      if ended == "timeout" then -- or the host was busy
        one:close()
        one = new_guest(kvm, mode)
        ended = run(one, code, regs, PATIENCE)
      end
      result[name] = verdict(one, ended, entry)
      if ended == "timeout" or ended == "shutdown" then
        one:close()
        one = new_guest(kvm, mode)
      end
    end
  end
  one:close()
  return result
end

-- The same, as a probe.
function instructions.instructions(kvm, mode)
  if PLACES[mode] then return instructions.try(kvm, mode) end
end

return instructions

-- Names the few instructions that a guest's end is most often about, from their bytes, and knows
-- those that a KVM may lack which emulates ring 0 and real mode.

local instruction = {}

local PREFIXES <const> = {
  [0x26] = true, [0x2e] = true, [0x36] = true, [0x3e] = true, [0x64] = true, [0x65] = true,
  [0x66] = true, [0x67] = true, [0xf0] = true, [0xf2] = true, [0xf3] = true,
}

-- What comes before the opcode: where that is, the prefixes as a set, and REX.
local function strip(bytes, bits)
  local at, prefixes = 1, {}
  while PREFIXES[bytes:byte(at)] do
    prefixes[bytes:byte(at)] = true
    at = at + 1
  end
  local rex = bits == 64 and bytes:byte(at)
  if rex and rex >> 4 == 4 then return at + 1, prefixes, rex end
  return at, prefixes, 0
end

-- By opcode: a name, and whether a KVM that emulates may lack it. Of its arguments one is a set of
-- prefixes, `next` the byte after the opcode (ModR/M where there is one).
local function plain(name) return function() return name, false end end
local function lacked(name) return function() return name, true end end

local function reg(modrm) return modrm >> 3 & 7 end

local ONE <const> = {
  [0xf4] = plain "hlt", [0xfa] = plain "cli", [0xfb] = plain "sti", [0x90] = plain "nop",
  [0xc3] = plain "ret", [0xcb] = plain "lret", [0xcf] = plain "iret", [0xcc] = lacked "int3",
  [0xe4] = plain "in", [0xe5] = plain "in", [0xec] = plain "in", [0xed] = plain "in",
  [0xe6] = plain "out", [0xe7] = plain "out", [0xee] = plain "out", [0xef] = plain "out",
  [0x6c] = plain "ins", [0x6d] = plain "ins", [0x6e] = plain "outs", [0x6f] = plain "outs",
  [0xcd] = function(_, next) return ("int 0x%02x"):format(next), true end,
  [0xeb] = function(_, next) return next == 0xfe and "jmp to itself" or "jmp", false end,
  [0x9b] = lacked "fwait",
}
for opcode = 0xd8, 0xdf do ONE[opcode] = lacked "an x87 instruction" end

-- In 64-bit code always, elsewhere where ModR/M names no memory.
local function or_vector(name, other)
  return function(_, next, bits)
    if bits == 64 or next >= 0xc0 then return name, true end
    return other, false
  end
end
ONE[0xc4] = or_vector("an AVX instruction", "les")
ONE[0xc5] = or_vector("an AVX instruction", "lds")
ONE[0x62] = or_vector("an AVX-512 instruction", "bound")

local SYSTEM <const> = {
  [0xc1] = lacked "vmcall", [0xc8] = lacked "monitor", [0xc9] = lacked "mwait",
  [0xca] = lacked "clac", [0xcb] = lacked "stac", [0xd0] = lacked "xgetbv",
  [0xd1] = lacked "xsetbv", [0xd9] = lacked "vmmcall", [0xf9] = lacked "rdtscp",
}
local STATE <const> = { -- 0f ae, by the reg field
  [2] = "ldmxcsr", [3] = "stmxcsr", [4] = "xsave", [5] = "xrstor", [6] = "xsaveopt or clwb",
}

local TWO <const> = {
  [0x05] = plain "syscall", [0x06] = plain "clts", [0x07] = plain "sysret", [0x0b] = plain "ud2",
  [0x30] = plain "wrmsr", [0x31] = plain "rdtsc", [0x32] = plain "rdmsr", [0x34] = plain "sysenter",
  [0x35] = plain "sysexit", [0xa2] = plain "cpuid", [0x02] = lacked "lar", [0x03] = lacked "lsl",
  [0x20] = plain "mov from cr", [0x22] = plain "mov to cr",
  [0x3a] = lacked "an SSE4 instruction",
}
TWO[0x00] = function(_, next)
  if reg(next) == 4 or reg(next) == 5 then return "verr or verw", true end
  return reg(next) == 3 and "ltr" or nil, false
end
TWO[0x01] = function(prefixes, next, bits)
  if SYSTEM[next] then return SYSTEM[next](prefixes, next, bits) end
  return next < 0xc0 and ({ [2] = "lgdt", [3] = "lidt", [7] = "invlpg" })[reg(next)] or nil, false
end
TWO[0x38] = function(prefixes, next)
  if next == 0x82 then return "invpcid", true end
  if prefixes[0xf2] then return "crc32", true end
  return next >= 0xdb and next <= 0xdf and "an AES instruction" or "an SSE4 instruction", true
end
TWO[0xae] = function(_, next)
  if next >= 0xc0 then return "a fence", false end
  return STATE[reg(next)] or "fxsave or fxrstor", STATE[reg(next)] ~= nil
end
TWO[0xb8] = function(prefixes) return prefixes[0xf3] and "popcnt", true end
TWO[0xc7] = function(_, next, _, rex)
  if reg(next) ~= 1 then return nil, false end
  return rex & 8 ~= 0 and "cmpxchg16b" or "cmpxchg8b", rex & 8 ~= 0
end
local SSE <const> = {
  { 0x2a, 0x2a }, { 0x2c, 0x2f }, { 0x51, 0x6d }, { 0x70, 0x76 }, { 0x7c, 0x7d }, { 0xc2, 0xc2 },
  { 0xc6, 0xc6 }, { 0xd0, 0xd5 }, { 0xd8, 0xe6 }, { 0xe8, 0xfe },
}
for _, range in ipairs(SSE) do
  for opcode = range[1], range[2] do TWO[opcode] = lacked "an SSE instruction" end
end

-- bytes: at the instruction; bits: 16, 32 or 64, of the code. Returns its name, or nil, and whether
-- a KVM that emulates may lack it.
function instruction.name(bytes, bits)
  local at, prefixes, rex = strip(bytes, bits)
  local map = ONE
  if bytes:byte(at) == 0x0f then
    map, at = TWO, at + 1
  end
  local opcode, next = bytes:byte(at, at + 1)
  local entry = opcode and map[opcode]
  if not entry then return nil, false end
  return entry(prefixes, next or 0, bits, rex)
end

-- What is no code, in words; nil for what may be.
function instruction.filler(bytes)
  if #bytes < 8 then return nil end
  if bytes:find("^\0+$") then return "zeros" end
  if bytes:find("^\xff+$") then return "bytes 0xff" end
end

return instruction

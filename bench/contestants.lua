-- The contestants by name: each makes a machine and returns a function that has its guest take as
-- many exits (or batched writes) as it is told. The C ones are in plain.c and library.c.

local ckvm = require "ckvm"
local loops = require "loops"

-- As in bench.h.
local MEMORY <const>, MEMORY_SIZE <const> = 0x1000, 0x4000
local PORT <const>, SYNC_PORT <const>, MMIO <const> = 0x3f8, 0x10, 0x8000
local ROUND <const> = 100

-- Guests -----------------------------------------------------------------------------------------

-- Many times the same instruction, and a jump back (jmp rel16): exits and next to nothing else.
local function forever(instructions)
  return instructions .. "\xe9" .. string.pack("<i2", -#instructions - 3)
end

local OUT <const> = "\xee"          -- out %al, (%dx)
local IN <const> = "\xec"           -- in (%dx), %al
local LOAD <const> = "\xa0\x00\x80" -- mov (0x8000), %al
local SYNC <const> = "\xe6\x10"     -- out %al, $0x10

local guests = {
  out = forever(OUT:rep(1000)),
  in_ = forever(IN:rep(1000)),
  mmio = forever(LOAD:rep(1000)),
  batch = forever((OUT:rep(ROUND) .. SYNC):rep(10)),
}

local function new_machine(kvm, code)
  local vm = kvm:create_vm()
  vm:add_memory { gpa = MEMORY, size = MEMORY_SIZE }
  vm:write(MEMORY, code)
  local vcpu = vm:create_vcpu(0)
  vcpu:set_sregs { cs = { base = 0, selector = 0 } }
  vcpu:set_regs { rip = MEMORY, rdx = PORT, rflags = 2 }
  return vm, vcpu
end

-- A machine with `handlers` (of attach_io) at the port.
local function port_machine(code, handlers)
  local vm, vcpu = new_machine(ckvm.open(), code)
  handlers.port = PORT
  vm:attach_io(handlers)
  return vm, vcpu
end

local function run(vcpu, limits)
  local why = vcpu:run(limits)
  if why ~= "exits" then error("unexpected end: " .. why) end
end

local function runner(vcpu)
  return function(exits) run(vcpu, { exits = exits }) end
end

local function port_runner(code, handlers)
  local _, vcpu = port_machine(code, handlers)
  return runner(vcpu)
end

-- Contestants ------------------------------------------------------------------------------------

local contestants = {}

function contestants.plain_out() return loops.plain(guests.out) end
function contestants.plain_in() return loops.plain(guests.in_) end
function contestants.plain_mmio() return loops.plain(guests.mmio) end
function contestants.plain_write() return loops.plain_write(guests.out) end
function contestants.plain_read() return loops.plain_read(guests.in_) end
function contestants.plain_unbatched() return loops.plain(guests.batch) end
function contestants.plain_batched() return loops.plain_batched(guests.batch) end
function contestants.plain_create() return loops.plain_create(guests.out) end

function contestants.callback() return loops.callback(guests.out) end
function contestants.hand_back() return loops.hand_back(guests.out) end
function contestants.create() return loops.create(guests.out) end

-- Handlers alone, called from C as often as there would be exits.
function contestants.call_empty()
  return loops.calls(function() end)
end

function contestants.call_sum()
  local sum = 0
  return loops.calls(function(_, value) sum = sum + value end)
end

function contestants.lua_empty()
  return port_runner(guests.out, { write = function() end })
end

function contestants.lua_out()
  local sum = 0
  return port_runner(guests.out, { write = function(_, value) sum = sum + value end })
end

function contestants.lua_in()
  return port_runner(guests.in_, { read = function() return 0 end })
end

function contestants.lua_mmio()
  local vm, vcpu = new_machine(ckvm.open(), guests.mmio)
  vm:attach_mmio { gpa = MMIO, size = 0x1000, read = function() return 0 end }
  return runner(vcpu)
end

-- A byte that is sent, as far as the device: what becomes of it is not its business.
function contestants.lua_uart()
  return port_runner(guests.out,
    { count = 8, device = require("ckvm.dev.uart").new { write = function() end } })
end

-- Exits of both count.
function contestants.lua_two_vcpus()
  local vm, vcpu = new_machine(ckvm.open(), guests.out)
  local second = vm:create_vcpu(1)
  second:set_sregs(vcpu:get_sregs())
  second:set_regs(vcpu:get_regs())
  local left = 0
  vm:attach_io { port = PORT, write = function(_, _, _, which)
    left = left - 1
    if left <= 0 then which:stop() end
  end }
  return function(exits)
    left = exits
    repeat vm:run() until left <= 0
  end
end

local function use_registers(vcpu)
  local regs = vcpu.regs
  regs.rsi = regs.rax + regs.rcx
end

function contestants.lua_write()
  return port_runner(guests.out, {
    write = function(_, _, _, vcpu) use_registers(vcpu) end,
  })
end

function contestants.lua_read()
  return port_runner(guests.in_, {
    read = function(_, _, vcpu)
      use_registers(vcpu)
      return 0
    end,
  })
end

-- Each exit is a yield out of the run and a resume into it.
function contestants.lua_coroutine()
  local yield = coroutine.yield
  local _, vcpu = port_machine(guests.out, { write = function() yield(true) end })
  return function(exits)
    local resume = coroutine.wrap(run)
    local more = resume(vcpu, { exits = exits })
    while more do more = resume() end
  end
end

function contestants.lua_batched()
  local sum = 0
  local vm, vcpu = port_machine(guests.batch, {
    batch = true,
    write = function(_, value) sum = sum + value end,
  })
  vm:attach_io { port = SYNC_PORT, write = function() end }
  return function(writes) run(vcpu, { exits = writes // ROUND }) end
end

function contestants.lua_create()
  local kvm = ckvm.open()
  return function(count)
    for _ = 1, count do
      local vm, vcpu = new_machine(kvm, guests.out)
      if vcpu:run() ~= "io_out" then error("unexpected end") end
      vm:close()
    end
  end
end

return contestants

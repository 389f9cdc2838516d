-- register_coalesced_mmio: writes that the kernel queues, whoever answers there.

local support = require "support"

local contains, error_of, LIMITS = support.contains, support.error_of, support.LIMITS

-- movb $1, 0x9000; movb $2, 0x9001; out %al, $0x10; hlt
local CODE <const> = "\xc6\x06\x00\x90\x01\xc6\x06\x01\x90\x02\xe6\x10\xf4"

describe("register_coalesced_mmio", function()
  local kvm, vm, vcpu
  before_each(function()
    support.need_kvm()
    kvm, vm, vcpu = support.guest(CODE, { regs = { rax = 7 } })
    if kvm:check_extension("coalesced_mmio") == 0 or kvm:check_extension("coalesced_pio") == 0 then
      support.skip("no coalesced_mmio and coalesced_pio")
    end
  end)
  after_each(function() support.close(vm, kvm) end)

  -- All writes that come, as "address=value" with "!" for those without a vCPU.
  local function record()
    local seen = {}
    local function write(address, value, _, cpu)
      table.insert(seen, ("%x=%d%s"):format(address, value, cpu and "" or "!"))
    end
    return seen, write
  end

  for _, name in ipairs { "register_coalesced_mmio", "unregister_coalesced_mmio" } do
    it("refuses wrong options, and a closed VM: " .. name, function()
      local function refuses(message, options)
        contains(message, error_of(vm[name], vm, options))
      end
      refuses(name .. ": unknown option 'count'", { port = 1, count = 1 })
      refuses("one of 'port' and 'gpa' is needed", { size = 1 })
      refuses("one of 'port' and 'gpa' is needed", { port = 1, gpa = 1, size = 1 })
      refuses("port: 65536 is not between", { port = 0x10000, size = 1 })
      refuses("size: integer expected, got nil", { port = 1 })
      refuses("size: 0 is not between", { port = 1, size = 0 })
      refuses("size: 4294967296 is not between", { gpa = 0, size = 1 << 32 })
      for _, options in ipairs { { port = 0xffff, size = 2 }, { gpa = -1, size = 2 } } do
        local err = error_of(vm[name], vm, options)
        assert.equal("EINVAL", err.code)
        contains("not so many", err)
      end
      vm:close()
      refuses("VM is closed", { port = 1, size = 1 })
    end)
  end

  it("queues writes to an address: they come before the next exit, without a vCPU", function()
    local seen, write = record()
    vm:attach_mmio { gpa = 0x9000, size = 2, read = function() return 0 end, write = write }
    vm:attach_io { port = 0x10, write = write }
    vm:register_coalesced_mmio { gpa = 0x9000, size = 2 }
    assert.equal("hlt", vcpu:run(LIMITS))
    assert.same({ "9000=1!", "9001=2!", "10=7" }, seen)
    assert.equal(2, vcpu.stats.batched)
    assert.is_nil(vcpu.stats.exits.mmio_write)
  end)

  it("queues writes to a port", function()
    local seen, write = record()
    vm:attach_mmio { gpa = 0x9000, size = 2, write = write }
    vm:attach_io { port = 0x10, write = write }
    vm:register_coalesced_mmio { port = 0x10, size = 1 }
    assert.equal("hlt", vcpu:run(LIMITS))
    assert.same({ "9000=1", "9001=2", "10=7!" }, seen)
  end)

  it("queues what only vm:on answers, and drops what nobody does", function()
    local seen, write = record()
    vm:on("io_out", write)
    vm:register_coalesced_mmio { port = 0x10, size = 1 }
    vm:register_coalesced_mmio { gpa = 0x9000, size = 0x10 }
    assert.equal("hlt", vcpu:run(LIMITS))
    assert.same({ "10=7!" }, seen)
  end)

  it("ends with unregistering, which may be for nothing", function()
    vm:register_coalesced_mmio { gpa = 0x9000, size = 2 }
    vm:register_coalesced_mmio { gpa = 0x9000, size = 2 }
    vm:unregister_coalesced_mmio { gpa = 0xa000, size = 2 }
    vm:unregister_coalesced_mmio { port = 0x9000, size = 2 }
    vm:unregister_coalesced_mmio { gpa = 0x9000, size = 2 }
    vm:unregister_coalesced_mmio { gpa = 0x9000, size = 2 }
    assert.equal("mmio_write", vcpu:run(LIMITS))
    assert.equal(0x9000, vcpu.exit.phys_addr)
  end)

  it("keeps away from ranges with batch, and they from it", function()
    local range = vm:attach_mmio { gpa = 0x9000, size = 4, batch = true, write = function() end }
    for _, name in ipairs { "register_coalesced_mmio", "unregister_coalesced_mmio" } do
      local err = error_of(vm[name], vm, { gpa = 0x9003, size = 2 })
      assert.equal("EEXIST", err.code)
      contains("batch = true", err)
    end
    vm:register_coalesced_mmio { gpa = 0x9004, size = 2 }
    range:detach()
    vm:register_coalesced_mmio { gpa = 0x9000, size = 4 }
    local options = { gpa = 0x9003, size = 1, batch = true, write = function() end }
    local err = error_of(vm.attach_mmio, vm, options)
    assert.equal("EEXIST", err.code)
    contains("batch = true", err)
    vm:unregister_coalesced_mmio { gpa = 0x9000, size = 4 }
    vm:attach_mmio(options)
  end)
end)

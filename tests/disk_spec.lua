-- ckvm.disk: sectors of files and of memory, geometry, and what is refused.

local disk = require "ckvm.disk"
local support = require "support"

local blames = support.blames

local function sector(letter) return letter:rep(512) end

-- Calls fn(path) with a file of these bytes.
local function with_file(bytes, fn)
  local path = os.tmpname()
  local file = assert(io.open(path, "wb"))
  file:write(bytes):close()
  local done, message = pcall(fn, path)
  os.remove(path)
  if not done then error(message, 0) end
end

local function content(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read("a")
end

describe("ckvm.disk", function()
  it("refuses what is no image", function()
    blames("disk: path: string expected, got nil", disk.open)
    blames("disk: bytes: string expected, got number", disk.new, 512)
    blames("disk: unknown option 'read_only'", disk.open, "/dev/null", { read_only = true })
    blames("disk: readonly: boolean expected, got integer", disk.new, "x", { readonly = 1 })
    blames("disk: a disk of 0 bytes", disk.new, "")
    blames("/nowhere/disk.img: No such file or directory", disk.open, "/nowhere/disk.img")
    blames("/tmp: Is a directory", disk.open, "/tmp")
    blames("/tmp: ", disk.open, "/tmp", { readonly = true }) -- what it says is the file system's
    local pipe = support.make_directory() .. "/pipe"
    assert(os.execute("mkfifo " .. pipe))
    blames(pipe .. ": is no regular file or block device", disk.open, pipe)
    support.remove_directory(pipe:match "^(.*)/")
    with_file("", function(path) blames(path .. ": a disk of 0 bytes", disk.open, path) end)
  end)

  it("blames who reads or writes with wrong arguments", function()
    local d = disk.new(sector "a")
    blames("disk: first: integer expected, got string", d.read, d, "0", 1)
    blames("disk: count: integer expected, got float", d.read, d, 0, 1.0)
    blames("disk: first: integer expected, got nil", d.write, d)
    blames("disk: bytes: string expected, got number", d.write, d, 0, 1)
    blames("disk: 511 bytes are no whole sectors of 512", d.write, d, 0, ("x"):rep(511))
  end)

  for kind, with in pairs {
    memory = function(bytes, fn) fn(disk.new(bytes)) end,
    ["a file"] = function(bytes, fn)
      with_file(bytes, function(path)
        local d <close> = disk.open(path)
        fn(d)
      end)
    end,
  } do
    it("reads and writes sectors, in " .. kind, function()
      with(sector "a" .. sector "b" .. sector "c", function(d)
        assert.equal(3, d.sectors)
        assert.equal(sector "b" .. sector "c", d:read(1, 2))
        assert.equal("", d:read(3, 0))
        assert.is_true(d:write(0, sector "x" .. sector "y"))
        assert.is_true(d:write(3, ""))
        assert.equal(sector "x" .. sector "y" .. sector "c", d:read(0, 3))
      end)
    end)

    it("refuses sectors that there are not, in " .. kind, function()
      with(sector "a" .. sector "b", function(d)
        local most, least = math.maxinteger, math.mininteger
        for _, range in ipairs {
          { 2, 1 }, { 1, 2 }, { 3, 0 }, { -1, 1 }, { 0, -1 }, { most, 1 }, { 1, most },
          { most, most }, { least, 1 }, { 0, least }, { least, least },
        } do
          local bytes, message = d:read(range[1], range[2])
          assert.is_nil(bytes)
          assert.equal(("%s: %d sectors from %d on are not among its 2"):format(d.name, range[2],
            range[1]), message)
        end
        for _, first in ipairs { 2, -1, most, least } do
          assert.is_nil((d:write(first, sector "x")))
        end
        assert.is_nil((d:write(1, sector "x" .. sector "y")))
        assert.equal(sector "a" .. sector "b", d:read(0, 2))
      end)
    end)

    it("has zeros behind a sector that is no whole one, in " .. kind, function()
      with(sector "a" .. "end", function(d)
        assert.equal(2, d.sectors)
        assert.equal("end" .. ("\0"):rep(509), d:read(1, 1))
        assert.equal(sector "a" .. "end" .. ("\0"):rep(509), d:read(0, 2))
        assert.is_true(d:write(1, sector "z"))
        assert.equal(sector "a" .. sector "z", d:read(0, 2))
      end)
    end)
  end

  it("has a write in the file at once", function()
    with_file(sector "a" .. "end", function(path)
      local d <close> = disk.open(path)
      d:write(0, sector "x")
      assert.equal(sector "x" .. "end", content(path))
      d:write(1, "END" .. ("\0"):rep(509))
      assert.equal(sector "x" .. "END" .. ("\0"):rep(509), content(path))
    end)
  end)

  it("writes nothing that is read-only", function()
    with_file(sector "a", function(path)
      local d <close> = disk.open(path, { readonly = true })
      assert.is_true(d.readonly)
      assert.same({ nil, path .. ": read-only", n = 2 }, table.pack(d:write(0, sector "x")))
      assert.equal(sector "a", content(path))
    end)
    local d = disk.new(sector "a", { readonly = true })
    assert.is_nil((d:write(0, sector "x")))
    assert.equal(sector "a", d:read(0, 1))
  end)

  it("tells when the file has become shorter", function()
    with_file(sector "a" .. sector "b", function(path)
      local d <close> = disk.open(path)
      assert(io.open(path, "wb")):write(sector "a"):close()
      assert.same({ nil, path .. ": the file ends before byte 1024", n = 2 },
        table.pack(d:read(0, 2)))
      assert.equal(sector "a", d:read(0, 1))
    end)
  end)

  it("tells when there is no room for what is written", function()
    local full = io.open("/dev/full", "r+b")
    if not full then return pending "no /dev/full" end
    full:setvbuf "no"
    local d = disk.new(sector "a")
    with_file(sector "a", function(path)
      local file <close> = disk.open(path)
      file.file:close()
      file.file = full
      d = table.pack(file:write(0, sector "x"))
      assert.same({ nil, path .. ": No space left on device", n = 2 }, d)
    end)
  end)

  it("is closed once and for all", function()
    with_file(sector "a", function(path)
      local before = support.count_fds()
      local d = disk.open(path)
      d:close()
      d:close()
      assert.equal(before, support.count_fds())
      assert.same({ nil, path .. ": closed", n = 2 }, table.pack(d:read(0, 1)))
      assert.same({ nil, path .. ": closed", n = 2 }, table.pack(d:write(0, sector "x")))
    end)
    local d = disk.new(sector "a")
    do local _ <close> = d end
    assert.is_nil((d:read(0, 1)))
  end)

  describe("has the geometry", function()
    -- Sectors, then cylinders, heads, sectors of a track, and whether it is a floppy disk.
    for _, case in ipairs {
      { 320, 40, 1, 8, true }, { 720, 40, 2, 9, true }, { 1440, 80, 2, 9, true },
      { 2400, 80, 2, 15, true }, { 2880, 80, 2, 18, true }, { 5760, 80, 2, 36, true },
      { 1, 1, 16, 63, false }, { 2881, 2, 16, 63, false },
      { 1024 * 16 * 63, 1024, 16, 63, false }, { 1025 * 16 * 63, 512, 32, 63, false },
      { 1024 * 128 * 63, 1024, 128, 63, false }, { 1025 * 128 * 63, 514, 255, 63, false },
      { 1 << 30, 1024, 255, 63, false },
    } do
      it(("of %d sectors"):format(case[1]), function()
        with_file("", function(path)
          local file = assert(io.open(path, "wb"))
          file:seek("set", case[1] * 512 - 1) -- a hole, which takes no room
          file:write("\0"):close()
          local d <close> = disk.open(path)
          assert.same(case, { d.sectors, d.cylinders, d.heads, d.sectors_per_track, d.floppy })
        end)
      end)
    end
  end)
end)

/* SPDX-License-Identifier: MIT */
/* Guest memory: adding and moving it, and the object. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "luackvm.h"

#define PAGE 4096
#define HUGE_2M (2u << 20)
#define HUGE_1G (1u << 30)

/***
 * A slot of guest memory: `vm:add_memory` makes one. It stays when Lua lets go
 * of it; `close` takes it from the guest.
 *
 * @type memory
 * @tfield integer gpa guest physical address of its first byte
 * @tfield integer size bytes
 * @tfield integer slot number of the slot
 */

static void ref(void *object)
{
	ckvm_memory_ref(object);
}

static void unref(void *object)
{
	ckvm_memory_unref(object);
}

static void end(void *object)
{
	ckvm_memory_close(object);
}

static int close_memory(lua_State *L)
{
	luackvm_release(lua_touserdata(L, 1));
	if (lua_getiuservalue(L, 1, 1) == LUA_TUSERDATA)
		luackvm_disown(L, 2, 1);
	return 0;
}

/* Adding ------------------------------------------------------------------ */

void luackvm_check_pages(lua_State *L, const char *name, uint64_t value)
{
	if (value % PAGE)
		luaL_error(L,
			   "%s: %s is not a multiple of the page size, 0x1000",
			   name, luackvm_hex(L, value));
}

/* hugepages = true, "2M" or "1G". */
static void read_hugepages(lua_State *L, struct ckvm_memory_config *config)
{
	if (luackvm_get(L, 2, "hugepages") != LUA_TSTRING) {
		lua_pop(L, 1);
		if (luackvm_flag(L, 2, "hugepages"))
			config->flags |= CKVM_MEMORY_HUGEPAGES;
		return;
	}
	if (luackvm_is(L, -1, "2M"))
		config->hugepage_size = HUGE_2M;
	else if (luackvm_is(L, -1, "1G"))
		config->hugepage_size = HUGE_1G;
	else
		luaL_error(L, "hugepages: '%s' is neither 2M nor 1G",
			   lua_tostring(L, -1));
	config->flags |= CKVM_MEMORY_HUGEPAGES;
	lua_pop(L, 1);
}

static void read_config(lua_State *L, struct ckvm_memory_config *config)
{
	static const struct {
		const char *key;
		uint32_t flag;
	} flags[] = {
		{ "readonly", CKVM_MEMORY_READONLY },
		{ "log_dirty", CKVM_MEMORY_LOG_DIRTY },
		{ "shared", CKVM_MEMORY_SHARED },
	};

	config->gpa = luackvm_address(L, 2, "gpa");
	luackvm_check_pages(L, "gpa", config->gpa);
	config->bytes =
		(uint64_t)luackvm_integer(L, 2, "size", 1, LUA_MAXINTEGER);
	luackvm_check_pages(L, "size", config->bytes);
	for (size_t i = 0; i < ARRAY_SIZE(flags); i++)
		if (luackvm_flag(L, 2, flags[i].key))
			config->flags |= flags[i].flag;
	read_hugepages(L, config);
	if (luackvm_has(L, 2, "slot")) {
		config->flags |= CKVM_MEMORY_SLOT;
		config->slot =
			(uint32_t)luackvm_integer(L, 2, "slot", 0, INT32_MAX);
	}
	if (luackvm_has(L, 2, "offset")) {
		config->offset = (uint64_t)luackvm_integer(L, 2, "offset", 0,
							   LUA_MAXINTEGER);
		luackvm_check_pages(L, "offset", config->offset);
		if (!luackvm_has(L, 2, "file") && !luackvm_has(L, 2, "memory"))
			luaL_error(L, "offset: of what? 'file' is not given");
	}
	config->memory = luackvm_memory_option(L, "memory");
	config->guest_memfd = luackvm_guest_memfd_option(L, "guest_memfd");
	if (luackvm_has(L, 2, "guest_memfd_offset")) {
		config->guest_memfd_offset = (uint64_t)luackvm_integer(
			L, 2, "guest_memfd_offset", 0, LUA_MAXINTEGER);
		luackvm_check_pages(L, "guest_memfd_offset",
				    config->guest_memfd_offset);
		if (!config->guest_memfd)
			luaL_error(L, "guest_memfd_offset: of what? "
				      "'guest_memfd' is not given");
	}
}

/* The path in `file`, or NULL; on the stack to stay. */
static const char *file_path(lua_State *L)
{
	if (luackvm_get(L, 2, "file") == LUA_TNIL)
		return NULL;
	return luackvm_text(L, -1, "file");
}

static bool failed_at(const char *step)
{
	return !strcmp(ckvm_errop(), step);
}

static int describe_overlap(lua_State *L, struct ckvm_vm *vm,
			    const struct ckvm_memory_config *config,
			    const char *bytes, const char *gpa)
{
	struct ckvm_memory *other =
		ckvm_vm_find_memory(vm, config->gpa, config->bytes);
	uint64_t other_gpa, other_bytes;
	int slot;

	if (!other) /* any more */
		return luackvm_fail(L, -EEXIST, NULL);
	other_gpa = ckvm_memory_gpa(other);
	other_bytes = ckvm_memory_size(other);
	slot = (int)ckvm_memory_slot(other);
	ckvm_memory_unref(other);
	return luackvm_fail(L, -EEXIST,
			    "%s bytes at %s overlap slot %d, %s at %s", bytes,
			    gpa, slot, luackvm_hex(L, other_bytes),
			    luackvm_hex(L, other_gpa));
}

static const char *huge_size(const struct ckvm_memory_config *config)
{
	if (!config->hugepage_size)
		return "the host's default";
	return config->hugepage_size == HUGE_1G ? "1G" : "2M";
}

static const char *no_huge_pages(lua_State *L,
				 const struct ckvm_memory_config *config)
{
	return lua_pushfstring(L, "this host has no huge pages of %s",
			       huge_size(config));
}

/* Pushes the hint for too few huge pages. */
static const char *reserve_hint(lua_State *L,
				const struct ckvm_memory_config *config,
				const char *bytes)
{
	const char *file = "/proc/sys/vm/nr_hugepages";

	if (config->hugepage_size)
		file = lua_pushfstring(L,
				       "/sys/kernel/mm/hugepages/"
				       "hugepages-%dkB/nr_hugepages",
				       (int)(config->hugepage_size >> 10));
	return lua_pushfstring(L,
			       "%s bytes in huge pages (%s), and not so many "
			       "are free: reserve them, by writing how many "
			       "there should be to %s",
			       bytes, huge_size(config), file);
}

/* Pushes the hint for -EINVAL; NULL: there is none. */
static const char *invalid_hint(lua_State *L,
				const struct ckvm_memory_config *config,
				const char *bytes, const char *gpa)
{
	if (failed_at("slot"))
		return "needed, since this VM comes from elsewhere, and may "
		       "have others";
	if (failed_at("memory"))
		return lua_pushfstring(L, "%s bytes at %s do not fit", bytes,
				       gpa);
	if (failed_at("hugepages") && config->flags & CKVM_MEMORY_FILE)
		return "there is a file, too, which has pages of its own";
	if (failed_at("hugepages"))
		return lua_pushfstring(
			L,
			"%s bytes are not a multiple of the huge page size, %s",
			bytes, huge_size(config));
	if (failed_at("mmap") && config->hugepage_size)
		return no_huge_pages(L, config);
	if (failed_at("KVM_SET_USER_MEMORY_REGION2"))
		return "is it this VM's guest_memfd, and long enough? It "
		       "cannot be read-only, logged or moved";
	if (!failed_at("KVM_SET_USER_MEMORY_REGION"))
		return NULL;
	if (config->flags & CKVM_MEMORY_SLOT)
		gpa = lua_pushfstring(L, "%s in slot %d", gpa,
				      (int)config->slot);
	return lua_pushfstring(L,
			       "%s bytes at %s: beyond this KVM's physical "
			       "addresses, or its slots (nr_memslots); or the "
			       "slot is taken by another object of this VM",
			       bytes, gpa);
}

static int describe_failure(lua_State *L, struct ckvm_vm *vm,
			    const struct ckvm_memory_config *config,
			    const char *path, int error)
{
	const char *bytes = luackvm_hex(L, config->bytes);
	const char *gpa = luackvm_hex(L, config->gpa), *hint = NULL;

	if (error == -EEXIST && !failed_at("slot"))
		return describe_overlap(L, vm, config, bytes, gpa);
	if (error == -EEXIST)
		hint = lua_pushfstring(L, "slot %d is taken",
				       (int)config->slot);
	else if (error == -EINVAL)
		hint = invalid_hint(L, config, bytes, gpa);
	else if (error == -ENOMEM && config->flags & CKVM_MEMORY_HUGEPAGES)
		hint = reserve_hint(L, config, bytes);
	else if (error == -ENODEV && config->hugepage_size) /* memfd_create */
		hint = no_huge_pages(L, config);
	else if (error == -ENODEV && path)
		hint = lua_pushfstring(L,
				       "%s cannot be mapped: a regular file "
				       "is needed",
				       path);
	else if (error == -ENOMEM)
		hint = lua_pushfstring(L, "%s bytes of memory", bytes);
	else if (failed_at("guest_memfd"))
		hint = "it is all of the memory: there is a file, shared, "
		       "hugepages or other memory, too";
	else if (error == -EBUSY && failed_at("memory"))
		hint = "there is a file, shared or hugepages, too";
	else if (error == -ERANGE && failed_at("memory"))
		hint = lua_pushfstring(
			L, "the other is shorter than %s bytes from %s on",
			bytes, luackvm_hex(L, config->offset));
	else if (error == -ERANGE && path)
		hint = lua_pushfstring(
			L, "%s is shorter than %s bytes from %s on", path,
			bytes, luackvm_hex(L, config->offset));
	if (hint)
		return luackvm_fail(L, error, "%s", hint);
	return path ? luackvm_fail(L, error, "%s: %s", path, strerror(-error))
		    : luackvm_fail(L, error, NULL);
}

static int open_file(lua_State *L, const struct ckvm_memory_config *config,
		     const char *path)
{
	bool writes = config->flags & CKVM_MEMORY_SHARED &&
		      !(config->flags & CKVM_MEMORY_READONLY);
	bool tried = false;
	int fd;

	do
		fd = open(path, (writes ? O_RDWR : O_RDONLY) | O_CLOEXEC |
					O_NONBLOCK /* a pipe would wait */);
	while (fd < 0 && luackvm_retry(L, -errno, &tried));
	if (fd < 0)
		luackvm_fail_call(L, "open", -errno, path);
	return fd;
}

/***
 * Maps memory and gives it to the guest.
 *
 * @function vm:add_memory
 * @tparam table options
 * @tparam integer options.gpa guest physical address, page-aligned
 * @tparam integer options.size bytes, whole pages
 * @tparam[opt] integer options.slot number; if left out, the first free one
 * @tparam[opt=false] boolean options.readonly what the guest writes is an
 *  `mmio_write`
 * @tparam[opt=false] boolean options.log_dirty for `vm:dirty_pages`
 * @tparam[opt] string options.file to map, by its path
 * @tparam[opt] memory options.memory whose bytes these are, too; it may be
 *  another VM's
 * @tparam[opt=0] integer options.offset bytes into the file or that memory,
 *  whole pages
 * @tparam[opt=false] boolean options.shared the file is written, too; without a
 *  file, memory that can be shared
 * @tparam[opt=false] boolean|string options.hugepages true, "2M" or "1G"
 * @tparam[opt] guest_memfd options.guest_memfd where the guest has pages to
 *  itself
 * @tparam[opt=0] integer options.guest_memfd_offset bytes into it, whole pages
 * @treturn memory the slot
 * @raise `EEXIST` if it overlaps a slot, or the slot is taken; `EINVAL` beyond
 *  the guest's addresses or slots; `ENOMEM`; `ERANGE` if the file or the other
 *  memory is too short
 * @api 4.35 KVM_SET_USER_MEMORY_REGION
 * @usage
 * local rom = vm:add_memory { gpa = 0xf0000, size = 0x10000, readonly = true }
 * print(rom.slot)
 */
int luackvm_add_memory(lua_State *L)
{
	static const char *const keys[] = {
		"gpa",	     "size",   "slot",	      "readonly",
		"log_dirty", "file",   "offset",      "shared",
		"hugepages", "memory", "guest_memfd", "guest_memfd_offset",
		NULL
	};
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct ckvm_memory_config config = { .size = sizeof(config) };
	struct ckvm_memory *memory;
	struct luackvm_box *box;
	const char *path;
	bool tried = false;
	int error;

	luackvm_check_keys(L, 2, "add_memory", keys);
	lua_settop(L, 2);
	read_config(L, &config);
	path = file_path(L);
	box = luackvm_new_box(L, &luackvm_memory);
	if (path) {
		config.flags |= CKVM_MEMORY_FILE;
		config.fd = open_file(L, &config, path);
	}
	do
		error = ckvm_vm_add_memory(vm, &config, &memory);
	while (error && luackvm_retry(L, error, &tried));
	if (path)
		close(config.fd);
	if (error)
		return describe_failure(L, vm, &config, path, error);
	luackvm_fill(L, box, memory, true);
	lua_pushvalue(L, 1);
	lua_setiuservalue(L, -2, 1);
	luackvm_adopt(L, 1);
	return 1;
}

struct ckvm_memory *luackvm_own_memory(lua_State *L, int index)
{
	struct ckvm_memory *memory = luackvm_check(L, index, &luackvm_memory);

	lua_getiuservalue(L, index, 1);
	luaL_argcheck(L, lua_rawequal(L, -1, 1), index, "memory of another VM");
	lua_pop(L, 1);
	return memory;
}

/***
 * Moves memory to another address, contents and all.
 *
 * @function vm:move_memory
 * @tparam memory memory of this VM
 * @tparam integer gpa guest physical address, page-aligned
 * @raise `EEXIST` if it overlaps another slot, `EINVAL` beyond the guest's
 *  addresses
 * @api 4.35 KVM_SET_USER_MEMORY_REGION
 * @c ckvm_memory_move
 * @usage
 * vm:move_memory(ram, 0x100000)
 */
int luackvm_move_memory(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct ckvm_memory *memory = luackvm_own_memory(L, 2);
	struct ckvm_memory_config config = { 0 };
	int error;

	config.gpa = luackvm_arg_address(L, 3);
	config.bytes = ckvm_memory_size(memory);
	luackvm_check_pages(L, "gpa", config.gpa);
	error = ckvm_memory_move(memory, config.gpa);
	if (error)
		return describe_failure(L, vm, &config, NULL, error);
	return 0;
}

/* The object -------------------------------------------------------------- */

static void push_gpa(lua_State *L, struct luackvm_box *box)
{
	const struct ckvm_memory *memory = luackvm_open_object(L, box);

	lua_pushinteger(L, (lua_Integer)ckvm_memory_gpa(memory));
}

static void push_size(lua_State *L, struct luackvm_box *box)
{
	const struct ckvm_memory *memory = luackvm_open_object(L, box);

	lua_pushinteger(L, (lua_Integer)ckvm_memory_size(memory));
}

static void push_slot(lua_State *L, struct luackvm_box *box)
{
	const struct ckvm_memory *memory = luackvm_open_object(L, box);

	lua_pushinteger(L, ckvm_memory_slot(memory));
}

static const struct luackvm_property properties[] = {
	{ "gpa", push_gpa },
	{ "size", push_size },
	{ "slot", push_slot },
	{ NULL, NULL },
};

const struct luackvm_type luackvm_memory = {
	.name = "memory",
	.properties = properties,
	.ref = ref,
	.unref = unref,
	.end = end,
	.close = close_memory,
	.values = 1,
};

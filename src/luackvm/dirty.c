/* SPDX-License-Identifier: MIT */
/* The dirty log: pages as a list of addresses, and as the kernel's bitmap. */
#include <errno.h>
#include <string.h>

#include "luackvm.h"

#define PAGE 4096

/* Pushes a bitmap for the memory at 2; returns how many words. */
static size_t push_bitmap(lua_State *L, const struct ckvm_memory *memory)
{
	size_t words = (ckvm_memory_size(memory) / PAGE + 63) / 64;

	lua_newuserdatauv(L, words * 8, 0);
	return words;
}

static int refuse(lua_State *L, int error)
{
	if (error == -ENOENT && !strcmp(ckvm_errop(), "log_dirty"))
		return luaL_error(L, "the memory was added without log_dirty");
	return luackvm_fail(L, error, NULL);
}

static void push_addresses(lua_State *L, uint64_t gpa, const uint64_t *bitmap,
			   size_t words)
{
	lua_Integer n = 0;

	for (size_t i = 0; i < words; i++)
		for (uint64_t bits = bitmap[i]; bits; bits &= bits - 1) {
			uint64_t page =
				i * 64 + (unsigned)__builtin_ctzll(bits);

			lua_pushinteger(L, (lua_Integer)(gpa + page * PAGE));
			lua_rawseti(L, -2, ++n);
		}
}

/* Pushes the bitmap that one of the readers of the log gets, and its memory. */
static struct ckvm_memory *push_taken(lua_State *L,
				      int64_t (*take)(struct ckvm_memory *,
						      uint64_t *, size_t),
				      size_t *words, int64_t *count)
{
	struct ckvm_memory *memory;

	luackvm_check(L, 1, &luackvm_vm);
	memory = luackvm_own_memory(L, 2);
	*words = push_bitmap(L, memory);
	*count = take(memory, lua_touserdata(L, -1), *words);
	if (*count < 0)
		refuse(L, (int)*count);
	return memory;
}

/***
 * Which pages the guest has written since the last call, or since the memory
 * was added.
 *
 * @function vm:dirty_pages
 * @tparam memory memory of this VM, added with `log_dirty`
 * @treturn integer[] guest physical addresses of pages, in order
 * @raise what the kernel says; memory that is not logged is misuse
 * @api 4.8 KVM_GET_DIRTY_LOG
 * @c ckvm_memory_dirty
 * @usage
 * local log = vm:add_memory { gpa = 0x200000, size = 0x1000, log_dirty = true }
 * assert(#vm:dirty_pages(log) == 0)
 */
static int dirty_pages(lua_State *L)
{
	struct ckvm_memory *memory;
	int64_t count;
	size_t words;

	memory = push_taken(L, ckvm_memory_dirty, &words, &count);
	lua_createtable(L, (int)(count < INT32_MAX ? count : 0), 0);
	push_addresses(L, ckvm_memory_gpa(memory), lua_touserdata(L, -2),
		       words);
	return 1;
}

/***
 * The same for another reader, as the kernel's bitmap: what `vm:dirty_pages`
 * has returned is still in it. With the capability `manual_dirty_log_protect2`
 * enabled, pages stay in it until `vm:clear_dirty_log`.
 *
 * @function vm:get_dirty_log
 * @tparam memory memory of this VM, added with `log_dirty`
 * @treturn string a bit for each page, the first one lowest, in whole 64-bit
 *  words
 * @raise what the kernel says; memory that is not logged is misuse
 * @api 4.8 KVM_GET_DIRTY_LOG
 * @c ckvm_memory_get_dirty_log
 * @usage
 * local log = vm:add_memory { gpa = 0x200000, size = 0x1000, log_dirty = true }
 * assert(#vm:get_dirty_log(log) == 8)
 */
static int get_dirty_log(lua_State *L)
{
	int64_t count;
	size_t words;

	push_taken(L, ckvm_memory_get_dirty_log, &words, &count);
	lua_pushlstring(L, lua_touserdata(L, -1), words * 8);
	return 1;
}

/* Pushes the option dirty_bitmap for that many pages, in whole words. */
static const uint64_t *push_option_bitmap(lua_State *L, uint64_t pages)
{
	size_t least = (pages + 7) / 8, most = (pages + 63) / 64 * 8, length;
	const char *text;
	void *bitmap;

	if (luackvm_get(L, 2, "dirty_bitmap") != LUA_TSTRING)
		luaL_error(L, "dirty_bitmap: string expected, got %s",
			   luaL_typename(L, -1));
	text = lua_tolstring(L, -1, &length);
	if (length < least || length > most)
		luaL_error(L,
			   "dirty_bitmap: %I bytes for %I pages expected, got "
			   "%I",
			   (lua_Integer)least, (lua_Integer)pages,
			   (lua_Integer)length);
	bitmap = lua_newuserdatauv(L, most, 0);
	memset(bitmap, 0, most);
	memcpy(bitmap, text, length);
	return bitmap;
}

/* The option memory, which is this VM's. */
static struct ckvm_memory *own_memory_option(lua_State *L)
{
	struct ckvm_memory *memory = luackvm_memory_option(L, "memory");

	if (!memory)
		luaL_error(L, "memory: memory expected, got nil");
	luackvm_get(L, 2, "memory");
	lua_getiuservalue(L, -1, 1);
	if (!lua_rawequal(L, -1, 1))
		luaL_error(L, "memory: memory of another VM");
	lua_pop(L, 2);
	return memory;
}

/***
 * Takes pages out of what `vm:get_dirty_log` returns, and logs them anew, with
 * the capability `manual_dirty_log_protect2` enabled.
 *
 * @function vm:clear_dirty_log
 * @tparam table options
 * @tparam memory options.memory of this VM, added with `log_dirty`
 * @tparam string options.dirty_bitmap bits for the pages that are to be taken
 *  out
 * @tparam[opt=0] integer options.first_page number of the first page, a
 *  multiple of 64
 * @tparam[opt] integer options.num_pages how many pages; if left out, all from
 *  there on
 * @raise `EINVAL` for pages that are no multiples of 64, but for the last
 * @api 4.117 KVM_CLEAR_DIRTY_LOG
 * @c ckvm_memory_clear_dirty_log
 * @usage
 * vm:enable_cap("manual_dirty_log_protect2", 1)
 * local log = vm:add_memory { gpa = 0x200000, size = 0x1000, log_dirty = true }
 * vm:clear_dirty_log { memory = log, dirty_bitmap = vm:get_dirty_log(log) }
 */
static int clear_dirty_log(lua_State *L)
{
	static const char *const keys[] = { "memory", "dirty_bitmap",
					    "first_page", "num_pages", NULL };
	lua_Integer first = 0, count, pages;
	struct ckvm_memory *memory;
	const uint64_t *bitmap;
	int error;

	luackvm_check(L, 1, &luackvm_vm);
	luackvm_check_keys(L, 2, "clear_dirty_log", keys);
	lua_settop(L, 2);
	memory = own_memory_option(L);
	pages = (lua_Integer)(ckvm_memory_size(memory) / PAGE);
	if (luackvm_has(L, 2, "first_page"))
		first = luackvm_integer(L, 2, "first_page", 0, pages);
	count = pages - first;
	if (luackvm_has(L, 2, "num_pages"))
		count = luackvm_integer(L, 2, "num_pages", 0, pages - first);
	bitmap = push_option_bitmap(L, (uint64_t)count);
	error = ckvm_memory_clear_dirty_log(memory, (uint64_t)first,
					    (uint64_t)count, bitmap);
	return error ? refuse(L, error) : 0;
}

const luaL_Reg luackvm_dirty_vm_methods[] = {
	{ "dirty_pages", dirty_pages },
	{ "get_dirty_log", get_dirty_log },
	{ "clear_dirty_log", clear_dirty_log },
	{ NULL, NULL },
};

/* SPDX-License-Identifier: MIT */
/* Model-specific registers: index lists, values, and the filter. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <linux/kvm.h>

#include "luackvm.h"

/* Index lists ------------------------------------------------------------- */

static void push_indices(lua_State *L, const struct kvm_msr_list *list)
{
	lua_createtable(L, (int)list->nmsrs, 0);
	for (uint32_t i = 0; i < list->nmsrs; i++) {
		lua_pushinteger(L, list->indices[i]);
		lua_rawseti(L, -2, (lua_Integer)i + 1);
	}
}

static int get_list(lua_State *L,
		    int (*get)(struct ckvm *kvm, struct kvm_msr_list **out))
{
	struct kvm_msr_list *list = NULL;
	void **slot;
	int result;

	lua_settop(L, 1);
	slot = luackvm_push_pointer(L);
	result = get(luackvm_check(L, 1, &luackvm_system), &list);
	*slot = list;
	if (result < 0)
		return luackvm_fail(L, result, NULL);
	push_indices(L, list);
	return 1;
}

/***
 * The MSRs that a vCPU has on this KVM, as far as they are to be saved.
 *
 * @function kvm:get_msr_index_list
 * @treturn integer[] number of each
 * @raise what the kernel says
 * @api 4.3 KVM_GET_MSR_INDEX_LIST
 * @usage
 * print(#kvm:get_msr_index_list())
 */
static int get_msr_index_list(lua_State *L)
{
	return get_list(L, ckvm_get_msr_index_list);
}

/***
 * The MSRs that tell what KVM can do, for `kvm:get_msrs`.
 *
 * @function kvm:get_msr_feature_index_list
 * @treturn integer[] number of each
 * @raise what the kernel says
 * @api 4.3 KVM_GET_MSR_FEATURE_INDEX_LIST
 * @usage
 * print(#kvm:get_msr_feature_index_list())
 */
static int get_msr_feature_index_list(lua_State *L)
{
	return get_list(L, ckvm_get_msr_feature_index_list);
}

/* Values ------------------------------------------------------------------ */

static uint32_t to_index(lua_State *L, int index)
{
	lua_Integer value = luackvm_to_integer(L, index, "MSR");

	if (value < 0 || value > UINT32_MAX)
		luaL_error(L, "MSR: %I does not fit in 32 bits", value);
	return (uint32_t)value;
}

static int refuse(lua_State *L, const struct kvm_msr_entry *entry, int error,
		  bool is_set)
{
	char name[2 + 8 + 1], value[2 + 16 + 1];

	if (error != -EINVAL)
		return luackvm_fail(L, error, NULL);
	snprintf(name, sizeof(name), "0x%x", entry->index);
	snprintf(value, sizeof(value), "0x%llx", entry->data);
	return is_set ? luackvm_fail(L, error, "MSR %s does not take %s", name,
				     value)
		      : luackvm_fail(L, error, "MSR %s cannot be read", name);
}

/* The list at 2 as entries, which are pushed. */
static struct kvm_msr_entry *read_indices(lua_State *L, size_t *count)
{
	struct kvm_msr_entry *entries;
	size_t seen = 0;

	luaL_checktype(L, 2, LUA_TTABLE);
	*count = lua_rawlen(L, 2);
	entries = lua_newuserdatauv(L, *count * sizeof(*entries), 0);
	memset(entries, 0, *count * sizeof(*entries));
	for (lua_pushnil(L); lua_next(L, 2); lua_pop(L, 1), seen++) {
		lua_Integer i = luackvm_list_key(L, "MSRs", *count);

		entries[i - 1].index = to_index(L, -1);
	}
	if (seen < *count)
		luaL_error(L, "MSRs: the list has holes");
	return entries;
}

static int push_values(lua_State *L, const struct kvm_msr_entry *entries,
		       size_t count)
{
	lua_createtable(L, 0, count < INT32_MAX ? (int)count : 0);
	for (size_t i = 0; i < count; i++) {
		lua_pushinteger(L, (lua_Integer)entries[i].data);
		lua_rawseti(L, -2, entries[i].index);
	}
	return 1;
}

/***
 * Values of the MSRs that tell what KVM can do.
 *
 * @function kvm:get_msrs
 * @tparam integer[] msrs number of each
 * @treturn table values, by the number of the MSR
 * @raise `EINVAL` with the MSR that cannot be read
 * @api 4.18 KVM_GET_MSRS
 * @usage
 * for msr, value in pairs(kvm:get_msrs(kvm:get_msr_feature_index_list())) do
 *   print(("0x%x: 0x%x"):format(msr, value))
 * end
 */
static int get_feature_msrs(lua_State *L)
{
	struct kvm_msr_entry *entries;
	size_t count, done;
	int error;

	luackvm_check(L, 1, &luackvm_system);
	entries = read_indices(L, &count);
	error = ckvm_get_msrs(luackvm_check(L, 1, &luackvm_system), entries,
			      count, &done);
	return error ? refuse(L, &entries[done], error, false)
		     : push_values(L, entries, count);
}

/***
 * Values of MSRs.
 *
 * @function vcpu:get_msrs
 * @tparam integer[] msrs number of each
 * @treturn table values, by the number of the MSR
 * @raise `EINVAL` with the MSR that cannot be read
 * @api 4.18 KVM_GET_MSRS
 * @usage
 * print(vcpu:get_msrs({ 0x174 })[0x174])
 */
static int get_msrs(lua_State *L)
{
	struct kvm_msr_entry *entries;
	size_t count, done;
	int error;

	luackvm_check(L, 1, &luackvm_vcpu);
	entries = read_indices(L, &count);
	error = ckvm_vcpu_get_msrs(luackvm_check(L, 1, &luackvm_vcpu), entries,
				   count, &done);
	return error ? refuse(L, &entries[done], error, false)
		     : push_values(L, entries, count);
}

/***
 * An MSR and its value.
 *
 * @struct kvm_msr_entry
 * @tfield integer index number of the MSR
 * @tfield integer data value
 */
#define F(member) LUACKVM_SCALAR(struct kvm_msr_entry, member)
static const struct luackvm_field entry_fields[] = { F(index), F(data),
						     LUACKVM_END };
#undef F
static const struct luackvm_struct entry_struct = {
	"kvm_msr_entry", sizeof(struct kvm_msr_entry), entry_fields, 0
};

static int by_index(const void *left, const void *right)
{
	uint32_t a = ((const struct kvm_msr_entry *)left)->index;
	uint32_t b = ((const struct kvm_msr_entry *)right)->index;

	return (a > b) - (a < b);
}

/* { [index] = value }, as pushed entries by index: Lua has no order in it. */
static struct kvm_msr_entry *read_map(lua_State *L, size_t *count)
{
	struct kvm_msr_entry *entries;
	size_t seen = 0;

	*count = 0;
	for (lua_pushnil(L); lua_next(L, 2); lua_pop(L, 1))
		++*count;
	entries = lua_newuserdatauv(L, *count * sizeof(*entries), 0);
	memset(entries, 0, *count * sizeof(*entries));
	for (lua_pushnil(L); seen < *count && lua_next(L, 2); lua_pop(L, 1)) {
		entries[seen].index = to_index(L, -2);
		entries[seen++].data =
			(uint64_t)luackvm_to_integer(L, -1, "value of an MSR");
	}
	*count = seen;
	qsort(entries, seen, sizeof(*entries), by_index);
	return entries;
}

/***
 * Sets MSRs: values by number, in the order of the numbers; or a list, in its
 * order.
 *
 * @function vcpu:set_msrs
 * @tparam table|kvm_msr_entry[] msrs `{ [0x174] = 8 }` or `{ { index =, data =
 *  } }`
 * @raise `EINVAL` with the MSR that does not take its value; those before it
 *  are set
 * @api 4.19 KVM_SET_MSRS
 * @usage
 * vcpu:set_msrs { [0x174] = 8, [0x175] = 0x1000 }
 */
static int set_msrs(lua_State *L)
{
	struct kvm_msr_entry *entries;
	size_t count, done;
	bool is_list;
	int error;

	luackvm_check(L, 1, &luackvm_vcpu);
	luaL_checktype(L, 2, LUA_TTABLE);
	lua_settop(L, 2);
	is_list = lua_rawgeti(L, 2, 1) == LUA_TTABLE;
	entries = is_list ? luackvm_read_list(L, 2, &entry_struct, 0, &count)
			  : read_map(L, &count);
	error = ckvm_vcpu_set_msrs(luackvm_check(L, 1, &luackvm_vcpu), entries,
				   count, &done);
	return error ? refuse(L, &entries[done], error, true) : 0;
}

/* The filter -------------------------------------------------------------- */

#define MOST_MSRS (KVM_MSR_FILTER_MAX_BITMAP_SIZE * 8)

static const struct luackvm_constant filter_flags[] = {
	{ "default_allow", KVM_MSR_FILTER_DEFAULT_ALLOW },
	{ "default_deny", KVM_MSR_FILTER_DEFAULT_DENY },
	{ NULL, 0 },
};

static const struct luackvm_constant range_flags[] = {
	{ "read", KVM_MSR_FILTER_READ },
	{ "write", KVM_MSR_FILTER_WRITE },
	{ NULL, 0 },
};

/***
 * Which MSRs a guest may access.
 *
 * @struct kvm_msr_filter
 * @tfield integer|string flags bits, or the name, of what holds for the rest:
 *  "default_allow" or "default_deny"
 * @tfield kvm_msr_filter_range[] ranges at most 16
 */

/***
 * MSRs that follow one another.
 *
 * @struct kvm_msr_filter_range
 * @tfield integer|string|string[] flags bits, or names, of the accesses meant:
 *  "read", "write"
 * @tfield integer base number of the first MSR
 * @tfield integer nmsrs how many, at most 12288
 * @tfield string|boolean[] bitmap for each, whether it is allowed; a string
 *  has a bit for each, from the lowest on
 */

/* The kernel reads bitmaps in whole words: there is room for the longest. */
struct filter {
	struct kvm_msr_filter kernel;
	uint8_t bitmap[KVM_MSR_FILTER_MAX_RANGES]
		      [KVM_MSR_FILTER_MAX_BITMAP_SIZE];
};

/* A list of true and false at the top. */
static void read_list_bitmap(lua_State *L, struct kvm_msr_filter_range *range)
{
	int list = lua_gettop(L);

	if (lua_rawlen(L, list) != range->nmsrs)
		luaL_error(L, "bitmap: list of %d expected, got %I",
			   (int)range->nmsrs, (lua_Integer)lua_rawlen(L, list));
	for (lua_pushnil(L); lua_next(L, list); lua_pop(L, 1)) {
		lua_Integer i = luackvm_list_key(L, "bitmap", range->nmsrs);

		if (!lua_isboolean(L, -1))
			luaL_error(L, "bitmap: true or false expected, got %s",
				   luaL_typename(L, -1));
		if (lua_toboolean(L, -1))
			range->bitmap[(i - 1) / 8] |= 1 << (i - 1) % 8;
	}
}

/* A string, or a list of true and false. */
static void read_bitmap(lua_State *L, struct kvm_msr_filter_range *range)
{
	size_t length, expected = (range->nmsrs + 7) / 8;
	const char *bytes;

	if (lua_istable(L, -1)) {
		read_list_bitmap(L, range);
		return;
	}
	if (lua_type(L, -1) != LUA_TSTRING)
		luaL_error(L, "bitmap: string or list expected, got %s",
			   luaL_typename(L, -1));
	bytes = lua_tolstring(L, -1, &length);
	if (length != expected)
		luaL_error(L, "bitmap: %d bytes for %d MSRs expected, got %I",
			   (int)expected, (int)range->nmsrs,
			   (lua_Integer)length);
	memcpy(range->bitmap, bytes, length);
}

/* The range's table is on top, and goes. */
static void read_range(lua_State *L, struct kvm_msr_filter_range *range)
{
	static const char *const keys[] = { "flags", "nmsrs", "base", "bitmap",
					    NULL };
	int table = lua_gettop(L);

	if (!lua_istable(L, table))
		luaL_error(L, "ranges: table expected, got %s",
			   luaL_typename(L, table));
	luackvm_check_keys(L, table, "kvm_msr_filter_range", keys);
	luackvm_get(L, table, "flags");
	range->flags = luackvm_flags(L, -1, "flags", range_flags);
	range->nmsrs =
		(uint32_t)luackvm_integer(L, table, "nmsrs", 0, MOST_MSRS);
	range->base =
		(uint32_t)luackvm_integer(L, table, "base", 0, UINT32_MAX);
	luackvm_get(L, table, "bitmap");
	read_bitmap(L, range);
	lua_settop(L, table - 1);
}

static void read_ranges(lua_State *L, struct filter *filter)
{
	int list = lua_gettop(L);

	if (!lua_istable(L, list))
		luaL_error(L, "ranges: list expected, got %s",
			   luaL_typename(L, list));
	if (lua_rawlen(L, list) > KVM_MSR_FILTER_MAX_RANGES)
		luaL_error(L, "ranges: %I of them, KVM takes %d",
			   (lua_Integer)lua_rawlen(L, list),
			   KVM_MSR_FILTER_MAX_RANGES);
	for (lua_pushnil(L); lua_next(L, list);) {
		lua_Integer i = luackvm_list_key(L, "ranges",
						 KVM_MSR_FILTER_MAX_RANGES);

		filter->kernel.ranges[i - 1].bitmap = filter->bitmap[i - 1];
		read_range(L, &filter->kernel.ranges[i - 1]);
	}
}

/***
 * Which MSRs the guest may access. A refused access is #GP or, with the
 * capability `x86_user_space_msr`, the exit `x86_rdmsr` or `x86_wrmsr`.
 *
 * @function vm:x86_set_msr_filter
 * @tparam kvm_msr_filter filter without ranges, there is none
 * @raise `EINVAL` for a range without flags, or if all is denied
 * @api 4.97 KVM_X86_SET_MSR_FILTER
 * @usage
 * vm:x86_set_msr_filter { flags = "default_allow", ranges = {
 *   { flags = "write", base = 0x174, nmsrs = 3, bitmap = { true, true, false }
 *  }, } }
 */
static int x86_set_msr_filter(lua_State *L)
{
	static const char *const keys[] = { "flags", "ranges", NULL };
	struct filter *filter;
	int error;

	luackvm_check(L, 1, &luackvm_vm);
	luackvm_check_keys(L, 2, "kvm_msr_filter", keys);
	filter = lua_newuserdatauv(L, sizeof(*filter), 0);
	memset(filter, 0, sizeof(*filter));
	if (luackvm_get(L, 2, "flags") != LUA_TNIL)
		filter->kernel.flags =
			luackvm_flags(L, -1, "flags", filter_flags);
	if (luackvm_get(L, 2, "ranges") != LUA_TNIL)
		read_ranges(L, filter);
	error = ckvm_vm_x86_set_msr_filter(luackvm_check(L, 1, &luackvm_vm),
					   &filter->kernel);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

const luaL_Reg luackvm_msr_kvm_methods[] = {
	{ "get_msr_index_list", get_msr_index_list },
	{ "get_msr_feature_index_list", get_msr_feature_index_list },
	{ "get_msrs", get_feature_msrs },
	{ NULL, NULL },
};

const luaL_Reg luackvm_msr_vm_methods[] = {
	{ "x86_set_msr_filter", x86_set_msr_filter },
	{ NULL, NULL },
};

const luaL_Reg luackvm_msr_vcpu_methods[] = {
	{ "get_msrs", get_msrs },
	{ "set_msrs", set_msrs },
	{ NULL, NULL },
};

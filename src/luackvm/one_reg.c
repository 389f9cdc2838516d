/* SPDX-License-Identifier: MIT */
/* Registers one by one, by the kernel's ids. */
#include <stdio.h>
#include <string.h>

#include <linux/kvm.h>

#include "luackvm.h"

#define LARGEST ((size_t)1 << (KVM_REG_SIZE_MASK >> KVM_REG_SIZE_SHIFT))

static uint64_t arg_id(lua_State *L)
{
	return (uint64_t)luackvm_to_integer(L, 2, "id");
}

static int fail(lua_State *L, uint64_t id, int error)
{
	const char *hint = luackvm_hint(error);
	char name[2 + 16 + 1];

	snprintf(name, sizeof(name), "0x%llx", (unsigned long long)id);
	return luackvm_fail(L, error, "register %s: %s", name, hint);
}

/***
 * One register, by the kernel's id. On x86 since Linux 6.18.
 *
 * @function vcpu:get_one_reg
 * @tparam integer id number of the register, as the kernel's header makes it
 * @treturn integer|string the value; a string for one of more than eight bytes
 * @raise `ENOENT` or `EINVAL` if there is no such register, with its id
 * @api 4.69 KVM_GET_ONE_REG
 * @usage
 * local ok, list = pcall(vcpu.get_reg_list, vcpu)
 * for _, id in ipairs(ok and list or {}) do print(vcpu:get_one_reg(id)) end
 */
static int get_one_reg(lua_State *L)
{
	struct ckvm_vcpu *vcpu = luackvm_check(L, 1, &luackvm_vcpu);
	uint64_t id = arg_id(L);
	size_t size = ckvm_reg_size(id);
	uint8_t data[LARGEST];
	int error = ckvm_vcpu_get_one_reg(vcpu, id, data, sizeof(data));

	if (error)
		return fail(L, id, error);
	if (size <= sizeof(lua_Integer))
		lua_pushinteger(L, (lua_Integer)luackvm_load(data, size));
	else
		lua_pushlstring(L, (const char *)data, size);
	return 1;
}

/* The value at 3, of that size. */
static void read_value(lua_State *L, uint8_t *data, size_t size)
{
	size_t length;
	const char *bytes;

	if (size <= sizeof(lua_Integer)) {
		luackvm_store(data, size,
			      luackvm_field_value(L, 3, "value", size));
		return;
	}
	if (lua_type(L, 3) != LUA_TSTRING)
		luaL_error(L, "value: string of %I bytes expected, got %s",
			   (lua_Integer)size, luaL_typename(L, 3));
	bytes = lua_tolstring(L, 3, &length);
	if (length != size)
		luaL_error(L, "value: string of %I bytes expected, got %I",
			   (lua_Integer)size, (lua_Integer)length);
	memcpy(data, bytes, length);
}

/***
 * Sets one register.
 *
 * @function vcpu:set_one_reg
 * @tparam integer id number of the register
 * @tparam integer|string value a string for a register of more than eight bytes
 * @raise `ENOENT` or `EINVAL` if there is no such register, with its id
 * @api 4.68 KVM_SET_ONE_REG
 * @usage
 * local ok, list = pcall(vcpu.get_reg_list, vcpu)
 * for _, id in ipairs(ok and list or {}) do
 *   vcpu:set_one_reg(id, vcpu:get_one_reg(id))
 * end
 */
static int set_one_reg(lua_State *L)
{
	struct ckvm_vcpu *vcpu = luackvm_check(L, 1, &luackvm_vcpu);
	uint64_t id = arg_id(L);
	uint8_t data[LARGEST];
	int error;

	read_value(L, data, ckvm_reg_size(id));
	error = ckvm_vcpu_set_one_reg(vcpu, id, data, sizeof(data));
	return error ? fail(L, id, error) : 0;
}

/***
 * The ids of the registers that `vcpu:get_one_reg` takes.
 *
 * @function vcpu:get_reg_list
 * @treturn integer[] number of each register
 * @raise `EINVAL` where KVM has none: on x86 before Linux 6.18
 * @api 4.84 KVM_GET_REG_LIST
 * @usage
 * local ok, list = pcall(vcpu.get_reg_list, vcpu)
 */
static int get_reg_list(lua_State *L)
{
	struct kvm_reg_list *list = NULL;
	void **slot;
	int result;

	lua_settop(L, 1);
	slot = luackvm_push_pointer(L);
	result = ckvm_vcpu_get_reg_list(luackvm_check(L, 1, &luackvm_vcpu),
					&list);
	*slot = list;
	if (result < 0)
		return luackvm_fail(L, result, NULL);
	lua_createtable(L, result, 0);
	for (int i = 0; i < result; i++) {
		lua_pushinteger(L, (lua_Integer)list->reg[i]);
		lua_rawseti(L, -2, i + 1);
	}
	return 1;
}

const luaL_Reg luackvm_reg_vcpu_methods[] = {
	{ "get_one_reg", get_one_reg },
	{ "set_one_reg", set_one_reg },
	{ "get_reg_list", get_reg_list },
	{ NULL, NULL },
};

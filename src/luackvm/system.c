/* SPDX-License-Identifier: MIT */
/* ckvm.open() and the methods of what it returns: /dev/kvm. */
#include <errno.h>

#include "luackvm.h"

/* ckvm.open(path) or ckvm.open{ path =, sync_regs = }. */
int luackvm_open(lua_State *L)
{
	static const char *const keys[] = { "path", "sync_regs", NULL };
	struct ckvm_lua *lua = ckvm_lua_get(L);
	struct ckvm_options options = { .size = sizeof(options) };
	struct luackvm_box *box;
	struct ckvm *kvm;
	bool tried = false;
	int error;

	if (lua_istable(L, 1)) {
		luackvm_check_keys(L, 1, "open", keys);
		if (luackvm_has(L, 1, "sync_regs") &&
		    !luackvm_flag(L, 1, "sync_regs"))
			options.flags |= CKVM_NO_SYNC_REGS;
		luackvm_get(L, 1, "path");
		lua_replace(L, 1);
	}
	lua_settop(L, 1);
	options.path =
		lua_isnil(L, 1) ? "/dev/kvm" : luackvm_text(L, 1, "path");
	if (lua->hooked)
		options.hook = &lua->hook;
	box = luackvm_new_box(L, &luackvm_system);
	do
		error = ckvm_open(&options, &kvm);
	while (error && luackvm_retry(L, error, &tried));
	if (error)
		return luackvm_fail(L, error, "%s: %s", options.path,
				    luackvm_hint(error));
	luackvm_fill(L, box, kvm, true);
	return 1;
}

static void end(void *object)
{
	ckvm_close(object);
}

static int push_count(lua_State *L, int result)
{
	if (result < 0)
		return luackvm_fail(L, result, NULL);
	lua_pushinteger(L, result);
	return 1;
}

static int get_api_version(lua_State *L)
{
	return push_count(
		L, ckvm_get_api_version(luackvm_check(L, 1, &luackvm_system)));
}

static int get_vcpu_mmap_size(lua_State *L)
{
	return push_count(L, ckvm_get_vcpu_mmap_size(
				     luackvm_check(L, 1, &luackvm_system)));
}

static int check_extension(lua_State *L)
{
	struct ckvm *kvm = luackvm_check(L, 1, &luackvm_system);

	return push_count(L, ckvm_check_extension(kvm, luackvm_arg_cap(L, 2)));
}

unsigned int luackvm_arg_cap(lua_State *L, int arg)
{
	lua_Integer number;
	const char *name;

	if (lua_type(L, arg) == LUA_TNUMBER) {
		number = luaL_checkinteger(L, arg);
		luaL_argcheck(L, number >= 0 && number <= INT32_MAX, arg,
			      "not a capability's number");
		return (unsigned int)number;
	}
	name = luackvm_text(L, arg, "capability");
	number = ckvm_cap_number(name);
	luaL_argcheck(L, number >= 0, arg,
		      lua_pushfstring(L, "unknown capability '%s'", name));
	return (unsigned int)number;
}

/* Those that it has, by name: what check_extension says of each. */
static int capabilities(lua_State *L)
{
	const char *name;
	int value;

	luackvm_check(L, 1, &luackvm_system);
	lua_newtable(L);
	for (unsigned int cap = 0; cap < CKVM_CAPS; cap++) {
		name = ckvm_cap_name(cap);
		if (!name)
			continue;
		/* Tables and strings are made in between: it may be closed. */
		value = ckvm_check_extension(
			luackvm_check(L, 1, &luackvm_system), cap);
		if (value < 0)
			return luackvm_fail(L, value, NULL);
		lua_pushinteger(L, value);
		if (value)
			lua_setfield(L, -2, name);
		else
			lua_pop(L, 1);
	}
	return 1;
}

static int create_vm(lua_State *L)
{
	static const char *const keys[] = { "type", NULL };
	unsigned long type = 0;
	struct luackvm_box *box;
	struct ckvm_vm *vm;
	bool tried = false;
	int error;

	luackvm_check(L, 1, &luackvm_system);
	if (!lua_isnoneornil(L, 2)) {
		luackvm_check_keys(L, 2, "create_vm", keys);
		if (luackvm_has(L, 2, "type"))
			type = (unsigned long)luackvm_integer(L, 2, "type", 0,
							      LUA_MAXINTEGER);
	}
	box = luackvm_new_box(L, &luackvm_vm);
	do
		error = ckvm_create_vm(luackvm_check(L, 1, &luackvm_system),
				       type, &vm);
	while (error && luackvm_retry(L, error, &tried));
	if (error == -EINVAL)
		return luackvm_fail(L, error, "no VM type %I on this KVM",
				    (lua_Integer)type);
	if (error)
		return luackvm_fail(L, error, NULL);
	luackvm_fill_vm(L, box, vm, true);
	return 1;
}

static const luaL_Reg system_methods[] = {
	{ "get_api_version", get_api_version },
	{ "get_vcpu_mmap_size", get_vcpu_mmap_size },
	{ "check_extension", check_extension },
	{ "capabilities", capabilities },
	{ "create_vm", create_vm },
	{ NULL, NULL },
};

static void push_fd(lua_State *L, struct luackvm_box *box)
{
	lua_pushinteger(L, ckvm_fd(luackvm_open_object(L, box)));
}

static const struct luackvm_property properties[] = {
	{ "fd", push_fd },
	{ NULL, NULL },
};

static const luaL_Reg *const methods[] = {
	system_methods,
	luackvm_cpuid_kvm_methods,
	luackvm_msr_kvm_methods,
	luackvm_device_system_methods,
	NULL,
};

const struct luackvm_type luackvm_system = {
	.name = "kvm",
	.methods = methods,
	.properties = properties,
	.end = end,
};

/* SPDX-License-Identifier: MIT */
/* The module "ckvm": its functions, and the registration of its types. */
#include "luackvm.h"

static const struct luackvm_type *const types[] = {
	&luackvm_system, &luackvm_vm,	 &luackvm_vcpu,
	&luackvm_memory, &luackvm_range, &luackvm_buffer,
};

static const luaL_Reg functions[] = {
	{ "open", luackvm_open },
	{ "buffer", luackvm_new_buffer },
	{ NULL, NULL },
};

int luaopen_ckvm(lua_State *L)
{
	struct ckvm_lua *lua;

	luaL_checkversion(L);
	lua = luackvm_state(L);
	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		luackvm_register_type(L, types[i]);
	luackvm_register_error(L);
	luackvm_track_coroutines(L, lua);
	luaL_newlib(L, functions);
	lua_pushstring(L, ckvm_version());
	lua_setfield(L, -2, "version");
	return 1;
}

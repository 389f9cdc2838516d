/* SPDX-License-Identifier: MIT */
/* A Lua state with the module in it, for the C tests of the binding. */
#ifndef TEST_LUA_STATE_H
#define TEST_LUA_STATE_H

#include "test.h"

#include <lua.h>
#include <lualib.h>
#include <lauxlib.h>

#include "ckvm_lua.h"

static lua_State *open_state(void)
{
	lua_State *L = luaL_newstate();

	if (!L)
		exit(1);
	luaL_openlibs(L);
	luaL_requiref(L, "ckvm", luaopen_ckvm, 1);
	lua_settop(L, 0);
	return L;
}

static void run(lua_State *L, const char *code)
{
	if (luaL_dostring(L, code) != LUA_OK) {
		fprintf(stderr, "%s\n", lua_tostring(L, -1));
		exit(1);
	}
}

#endif

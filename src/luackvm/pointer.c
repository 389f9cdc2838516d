/* SPDX-License-Identifier: MIT */
/* What the collector frees that no table of methods comes with. */
#include <stdlib.h>

#include "luackvm.h"

static const char key;

void luackvm_collect_with(lua_State *L, const void *unique,
			  lua_CFunction collect)
{
	if (lua_rawgetp(L, LUA_REGISTRYINDEX, unique) != LUA_TTABLE) {
		lua_pop(L, 1);
		lua_createtable(L, 0, 1);
		lua_pushcfunction(L, collect);
		lua_setfield(L, -2, "__gc");
		lua_pushvalue(L, -1);
		lua_rawsetp(L, LUA_REGISTRYINDEX, unique);
	}
	lua_setmetatable(L, -2);
}

static int collect(lua_State *L)
{
	void **pointer = lua_touserdata(L, 1);

	free(*pointer);
	*pointer = NULL;
	return 0;
}

void **luackvm_push_pointer(lua_State *L)
{
	void **pointer = lua_newuserdatauv(L, sizeof(*pointer), 0);

	*pointer = NULL;
	luackvm_collect_with(L, &key, collect);
	return pointer;
}

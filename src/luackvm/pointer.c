/* SPDX-License-Identifier: MIT */
/* Memory that libckvm has allocated, kept while Lua calls may raise. */
#include <stdlib.h>

#include "luackvm.h"

static const char key;

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
	if (lua_rawgetp(L, LUA_REGISTRYINDEX, &key) != LUA_TTABLE) {
		lua_pop(L, 1);
		lua_createtable(L, 0, 1);
		lua_pushcfunction(L, collect);
		lua_setfield(L, -2, "__gc");
		lua_pushvalue(L, -1);
		lua_rawsetp(L, LUA_REGISTRYINDEX, &key);
	}
	lua_setmetatable(L, -2);
	return pointer;
}

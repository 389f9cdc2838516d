/* SPDX-License-Identifier: MIT */
/* Enumerations and flags by the kernel's names, or as numbers. */
#include <string.h>

#include "luackvm.h"

static const struct luackvm_constant *
find(lua_State *L, int index, const char *what,
     const struct luackvm_constant *constant)
{
	const char *name = luackvm_text(L, index, what);

	for (; constant->name; constant++)
		if (!strcmp(constant->name, name))
			return constant;
	luaL_error(L, "%s: unknown name '%s'", what, name);
	return NULL;
}

uint32_t luackvm_constant(lua_State *L, int index, const char *what,
			  const struct luackvm_constant *names)
{
	lua_Integer value;

	if (lua_type(L, index) == LUA_TSTRING)
		return find(L, index, what, names)->value;
	if (lua_type(L, index) != LUA_TNUMBER)
		luaL_error(L, "%s: name or integer expected, got %s", what,
			   luaL_typename(L, index));
	value = luackvm_to_integer(L, index, what);
	if (value < 0 || value > UINT32_MAX)
		luaL_error(L, "%s: %I does not fit in 32 bits", what, value);
	return (uint32_t)value;
}

void luackvm_push_constant(lua_State *L, uint32_t value,
			   const struct luackvm_constant *constant)
{
	for (; constant->name; constant++)
		if (constant->value == value) {
			lua_pushstring(L, constant->name);
			return;
		}
	lua_pushinteger(L, value);
}

uint32_t luackvm_flags(lua_State *L, int index, const char *what,
		       const struct luackvm_constant *names)
{
	uint32_t flags = 0;

	if (!lua_istable(L, index))
		return luackvm_constant(L, index, what, names);
	index = lua_absindex(L, index);
	luaL_checkstack(L, 6, NULL);
	for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1)) {
		luackvm_list_key(L, what, lua_rawlen(L, index));
		flags |= luackvm_constant(L, -1, what, names);
	}
	return flags;
}

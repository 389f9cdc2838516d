/* SPDX-License-Identifier: MIT */
/* Enumerations and flags by the kernel's names, or as numbers. */
#include <ctype.h>
#include <string.h>
#include <strings.h>

#include "luackvm.h"

int luackvm_unknown(lua_State *L, int arg, const char *kind, const char *prefix,
		    int (*find)(const char *name))
{
	const char *name = lua_tostring(L, arg), *rest = name, *lower;
	luaL_Buffer buffer;

	if (!strncasecmp(rest, prefix, strlen(prefix)))
		rest += strlen(prefix);
	luaL_buffinit(L, &buffer);
	for (; *rest; rest++)
		luaL_addchar(&buffer, (char)tolower((unsigned char)*rest));
	luaL_pushresult(&buffer);
	lower = lua_tostring(L, -1);
	if (find(lower) >= 0)
		lua_pushfstring(L, "unknown %s '%s': did you mean '%s'?", kind,
				name, lower);
	else
		lua_pushfstring(L,
				"unknown %s '%s': names are the kernel's in "
				"lower case, without %s",
				kind, name, prefix);
	return luaL_argerror(L, arg, lua_tostring(L, -1));
}

/* Pushes all of them, for a message. */
static const char *push_names(lua_State *L,
			      const struct luackvm_constant *constant)
{
	luaL_Buffer buffer;

	luaL_buffinit(L, &buffer);
	for (int i = 0; constant[i].name; i++) {
		if (i)
			luaL_addstring(&buffer, ", ");
		luaL_addstring(&buffer, constant[i].name);
	}
	luaL_pushresult(&buffer);
	return lua_tostring(L, -1);
}

static const struct luackvm_constant *
find(lua_State *L, int index, const char *what,
     const struct luackvm_constant *constant)
{
	const char *name = luackvm_text(L, index, what);

	for (int i = 0; constant[i].name; i++)
		if (!strcmp(constant[i].name, name))
			return &constant[i];
	luaL_error(L, "%s: unknown name '%s'; known: %s", what, name,
		   push_names(L, constant));
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

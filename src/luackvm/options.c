/* SPDX-License-Identifier: MIT */
/* Option tables and arguments, with messages that name what is wrong. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "luackvm.h"

const char *luackvm_text(lua_State *L, int index, const char *what)
{
	size_t length;
	const char *text;

	if (lua_type(L, index) != LUA_TSTRING)
		luaL_error(L, "%s: string expected, got %s", what,
			   luaL_typename(L, index));
	text = lua_tolstring(L, index, &length);
	if (strlen(text) != length)
		luaL_error(L, "%s: '%s' goes on behind a zero byte", what,
			   text);
	return text;
}

bool luackvm_is(lua_State *L, int index, const char *text)
{
	size_t length;
	const char *other;

	if (lua_type(L, index) != LUA_TSTRING)
		return false;
	other = lua_tolstring(L, index, &length);
	return length == strlen(text) && !memcmp(other, text, length);
}

/* The key at index -2. */
static bool is_known(lua_State *L, const char *const *keys)
{
	for (; *keys; keys++)
		if (luackvm_is(L, -2, *keys))
			return true;
	return false;
}

void luackvm_check_keys(lua_State *L, int table, const char *who,
			const char *const *keys)
{
	luaL_checktype(L, table, LUA_TTABLE);
	for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) {
		if (is_known(L, keys))
			continue;
		lua_pushvalue(L, -2);
		luaL_error(L, "%s: unknown option '%s'", who,
			   luaL_tolstring(L, -1, NULL));
	}
}

void luackvm_push_rest(lua_State *L, int table, const char *const *keys)
{
	table = lua_absindex(L, table);
	lua_newtable(L);
	for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) {
		if (is_known(L, keys))
			continue;
		lua_pushvalue(L, -2);
		lua_pushvalue(L, -2);
		lua_rawset(L, -5);
	}
}

lua_Integer luackvm_list_length(lua_State *L, int table, const char *who)
{
	lua_Integer length;

	luaL_checktype(L, table, LUA_TTABLE);
	length = (lua_Integer)lua_rawlen(L, table);
	for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) {
		lua_Integer i = lua_isinteger(L, -2) ? lua_tointeger(L, -2) : 0;

		if (i >= 1 && i <= length)
			continue;
		lua_pushvalue(L, -2);
		luaL_error(L, "%s: a list, and '%s' is no place in it", who,
			   luaL_tolstring(L, -1, NULL));
	}
	return length;
}

int luackvm_get(lua_State *L, int table, const char *key)
{
	table = lua_absindex(L, table);
	lua_pushstring(L, key);
	return lua_rawget(L, table);
}

bool luackvm_has(lua_State *L, int table, const char *key)
{
	bool has = luackvm_get(L, table, key) != LUA_TNIL;

	lua_pop(L, 1);
	return has;
}

bool luackvm_flag(lua_State *L, int table, const char *key)
{
	int type = luackvm_get(L, table, key);
	bool on = lua_toboolean(L, -1);

	lua_pop(L, 1);
	if (type != LUA_TNIL && type != LUA_TBOOLEAN)
		luaL_error(L, "%s: true or false expected, got %s", key,
			   lua_typename(L, type));
	return on;
}

lua_Integer luackvm_to_integer(lua_State *L, int index, const char *key)
{
	int ok = 0;
	lua_Integer value = 0;

	if (lua_type(L, index) != LUA_TNUMBER)
		luaL_error(L, "%s: integer expected, got %s", key,
			   luaL_typename(L, index));
	value = lua_tointegerx(L, index, &ok);
	if (!ok)
		luaL_error(L, "%s: %s is not a 64-bit integer", key,
			   lua_tostring(L, index));
	return value;
}

lua_Integer luackvm_integer(lua_State *L, int table, const char *key,
			    lua_Integer low, lua_Integer high)
{
	lua_Integer value;

	luackvm_get(L, table, key);
	value = luackvm_to_integer(L, -1, key);
	lua_pop(L, 1);
	if (value < low || value > high)
		luaL_error(L, "%s: %I is not between %I and %I", key, value,
			   low, high);
	return value;
}

uint64_t luackvm_address(lua_State *L, int table, const char *key)
{
	lua_Integer value;

	luackvm_get(L, table, key);
	value = luackvm_to_integer(L, -1, key);
	lua_pop(L, 1);
	return (uint64_t)value;
}

uint64_t luackvm_seconds(lua_State *L, int table, const char *key)
{
	lua_Number seconds;
	int type = luackvm_get(L, table, key);

	seconds = lua_tonumber(L, -1);
	lua_pop(L, 1);
	if (type != LUA_TNUMBER)
		luaL_error(L, "%s: seconds expected, got %s", key,
			   lua_typename(L, type));
	if (!(seconds >= 0)) /* nor NaN */
		luaL_error(L, "%s: %f is not a time from now on", key, seconds);
	return seconds < 9e9 ? (uint64_t)(seconds * 1e9) : INT64_MAX;
}

const char *luackvm_hex(lua_State *L, uint64_t value)
{
	char text[2 + 16 + 1];

	snprintf(text, sizeof(text), "0x%" PRIx64, value);
	return lua_pushstring(L, text);
}

lua_Integer luackvm_arg_integer(lua_State *L, int arg)
{
	luaL_checktype(L, arg, LUA_TNUMBER); /* Lua would take "10", too */
	return luaL_checkinteger(L, arg);
}

uint64_t luackvm_arg_address(lua_State *L, int arg)
{
	if (lua_type(L, arg) != LUA_TNUMBER)
		luaL_typeerror(L, arg, "address");
	return (uint64_t)luaL_checkinteger(L, arg);
}

size_t luackvm_arg_length(lua_State *L, int arg)
{
	lua_Integer length = luackvm_arg_integer(L, arg);

	luaL_argcheck(L, length >= 0, arg,
		      lua_pushfstring(L, "length %I is negative", length));
	return (size_t)length;
}

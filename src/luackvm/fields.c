/* SPDX-License-Identifier: MIT */
/* Kernel structs to Lua tables and back, by the field tables. */
#include <string.h>

#include "luackvm.h"

/* Scalars ----------------------------------------------------------------- */

uint64_t luackvm_load(const void *data, size_t size)
{
	uint64_t value = 0;

	/* A length that the compiler knows is no call of memcpy. */
	switch (size) {
	case 1:
		return *(const uint8_t *)data;
	case 8:
		memcpy(&value, data, 8);
		return value;
	default:
		memcpy(&value, data, size);
		return value;
	}
}

void luackvm_store(void *data, size_t size, uint64_t value)
{
	memcpy(data, &value, size);
}

static uint64_t read_bits(lua_State *L, int index, const char *name,
			  unsigned int bits)
{
	lua_Integer value;

	/* A flag of the kernel's is a byte; true and false read better. */
	if (bits == 8 && lua_isboolean(L, index))
		return (uint64_t)lua_toboolean(L, index);
	value = luackvm_to_integer(L, index, name);
	if (bits < 64 && (uint64_t)value >> bits)
		luaL_error(L, "%s: %I does not fit in %d bits", name, value,
			   (int)bits);
	return (uint64_t)value;
}

uint64_t luackvm_field_value(lua_State *L, int index, const char *name,
			     size_t size)
{
	return read_bits(L, index, name, (unsigned int)size * 8);
}

uint64_t luackvm_scalar(lua_State *L, int index, const char *name,
			const struct luackvm_field *field)
{
	return read_bits(L, index, name,
			 field->bits ? field->bits : field->size * 8u);
}

/* To a table -------------------------------------------------------------- */

/* An array of bytes, which is one string. */
static bool is_string(const struct luackvm_field *field)
{
	return field->bytes && field->size == 1;
}

static void push_element(lua_State *L, const struct luackvm_field *field,
			 const void *at)
{
	if (field->sub)
		luackvm_push_struct(L, field->sub, at);
	else if (field->bytes)
		lua_pushlstring(L, at, field->size);
	else
		lua_pushinteger(L, (lua_Integer)luackvm_load(at, field->size));
}

static void push_array(lua_State *L, const struct luackvm_field *field,
		       const uint8_t *at)
{
	lua_createtable(L, field->count, 0);
	for (int i = 0; i < field->count; i++) {
		push_element(L, field, at + (size_t)i * field->size);
		lua_rawseti(L, -2, i + 1);
	}
}

void luackvm_push_field(lua_State *L, const struct luackvm_field *field,
			const void *at)
{
	if (is_string(field))
		lua_pushlstring(L, at, field->count);
	else if (field->count)
		push_array(L, field, at);
	else
		push_element(L, field, at);
}

void luackvm_push_struct(lua_State *L, const struct luackvm_struct *def,
			 const void *data)
{
	const struct luackvm_field *field;

	luaL_checkstack(L, 4, NULL);
	lua_newtable(L);
	for (field = def->fields; field->name; field++) {
		luackvm_push_field(L, field,
				   (const uint8_t *)data + field->offset);
		lua_setfield(L, -2, field->name);
	}
}

/* The field's value is on top. */
static bool is_full_field(lua_State *L, const struct luackvm_field *field)
{
	bool full = !lua_isnil(L, -1);

	if (!full || is_string(field) || (!field->sub && !field->count))
		return full;
	if (!lua_istable(L, -1))
		return false;
	if (!field->sub)
		return lua_rawlen(L, -1) >= field->count;
	if (!field->count)
		return luackvm_is_full(L, lua_gettop(L), field->sub);
	for (int i = 1; i <= field->count && full; i++) {
		full = lua_rawgeti(L, -1, i) == LUA_TTABLE &&
		       luackvm_is_full(L, lua_gettop(L), field->sub);
		lua_pop(L, 1);
	}
	return full;
}

bool luackvm_is_full(lua_State *L, int index, const struct luackvm_struct *def)
{
	const struct luackvm_field *field;
	bool full = true;

	luaL_checkstack(L, 4, NULL);
	for (field = def->fields; field->name && full; field++) {
		luackvm_get(L, index, field->name);
		full = is_full_field(L, field);
		lua_pop(L, 1);
	}
	return full;
}

/* From a table ------------------------------------------------------------ */

/* The field whose name is at -2. */
static const struct luackvm_field *find_field(lua_State *L,
					      const struct luackvm_struct *def)
{
	const struct luackvm_field *field;

	for (field = def->fields; field->name; field++)
		if (luackvm_is(L, -2, field->name))
			return field;
	return NULL;
}

static uint32_t read_fields(lua_State *L, int index, const char *path,
			    const struct luackvm_struct *def, uint8_t *data);

static void check_table(lua_State *L, const char *name)
{
	if (!lua_istable(L, -1))
		luaL_error(L, "%s: table expected, got %s", name,
			   luaL_typename(L, -1));
}

/* The value is on top, as it is for the others below. */
static void read_bytes(lua_State *L, const char *name, uint8_t *data,
		       size_t size)
{
	size_t length;
	const char *bytes;

	if (lua_type(L, -1) != LUA_TSTRING)
		luaL_error(L, "%s: string of %I bytes expected, got %s", name,
			   (lua_Integer)size, luaL_typename(L, -1));
	bytes = lua_tolstring(L, -1, &length);
	if (length != size)
		luaL_error(L, "%s: string of %I bytes expected, got %I bytes",
			   name, (lua_Integer)size, (lua_Integer)length);
	memcpy(data, bytes, length);
}

static uint32_t read_element(lua_State *L, const struct luackvm_field *field,
			     const char *name, uint8_t *data)
{
	if (field->sub) {
		check_table(L, name);
		return read_fields(L, lua_gettop(L), name, field->sub, data);
	}
	if (field->bytes)
		read_bytes(L, name, data, field->size);
	else if (field->names && lua_type(L, -1) != LUA_TNUMBER)
		luackvm_store(data, field->size,
			      luackvm_flags(L, -1, name, field->names));
	else
		luackvm_store(data, field->size,
			      luackvm_scalar(L, -1, name, field));
	return 0;
}

static void read_array(lua_State *L, const struct luackvm_field *field,
		       const char *name, uint8_t *data)
{
	check_table(L, name);
	luaL_checkstack(L, 8, NULL);
	for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
		lua_Integer i = lua_isinteger(L, -2) ? lua_tointeger(L, -2) : 0;
		const char *key = luaL_tolstring(L, -2, NULL);

		if (i < 1 || i > field->count)
			luaL_error(L, "%s[%s]: no such element", name, key);
		key = lua_pushfstring(L, "%s[%I]", name, i);
		lua_pushvalue(L, -3);
		read_element(L, field, key, data + (i - 1) * field->size);
		lua_pop(L, 3);
	}
}

/* Returns the validity flags that it names. */
static uint32_t read_field(lua_State *L, const struct luackvm_field *field,
			   const char *name, uint8_t *data)
{
	uint32_t flags = 0;

	if (is_string(field))
		read_bytes(L, name, data, field->count);
	else if (field->count)
		read_array(L, field, name, data);
	else
		flags = read_element(L, field, name, data);
	return flags | field->flag;
}

/* Returns the validity flags that were named. `path` is for messages. */
static uint32_t read_fields(lua_State *L, int index, const char *path,
			    const struct luackvm_struct *def, uint8_t *data)
{
	uint32_t flags = 0;

	luaL_checkstack(L, 6, NULL);
	for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 2)) {
		const struct luackvm_field *field = find_field(L, def);
		const char *name;

		if (!field) {
			lua_pushvalue(L, -2);
			luaL_error(L, "%s: unknown field '%s'", path,
				   luaL_tolstring(L, -1, NULL));
			return 0;
		}
		name = lua_pushfstring(L, "%s.%s", path, field->name);
		lua_insert(L, -2);
		flags |= read_field(L, field, name, data + field->offset);
	}
	return flags;
}

/* The fields that a flag guards set it, unless the flags are given, too. */
static void read_named(lua_State *L, int index, const char *path,
		       const struct luackvm_struct *def, void *data)
{
	uint32_t flags = read_fields(L, index, path, def, data), old;

	if (!def->flags || luackvm_has(L, index, "flags"))
		return;
	memcpy(&old, (uint8_t *)data + def->flags, sizeof(old));
	flags |= old;
	memcpy((uint8_t *)data + def->flags, &flags, sizeof(flags));
}

void luackvm_read_struct(lua_State *L, int index,
			 const struct luackvm_struct *def, void *data)
{
	luaL_checktype(L, index, LUA_TTABLE);
	read_named(L, lua_absindex(L, index), def->name, def, data);
}

/* Lists ------------------------------------------------------------------- */

void luackvm_push_list(lua_State *L, const struct luackvm_struct *def,
		       const void *elements, size_t count)
{
	const uint8_t *at = elements;

	lua_createtable(L, count < INT32_MAX ? (int)count : 0, 0);
	for (size_t i = 0; i < count; i++, at += def->size) {
		luackvm_push_struct(L, def, at);
		lua_rawseti(L, -2, (lua_Integer)i + 1);
	}
}

lua_Integer luackvm_list_key(lua_State *L, const char *name, size_t count)
{
	lua_Integer i = lua_isinteger(L, -2) ? lua_tointeger(L, -2) : 0;

	if (i < 1 || (lua_Unsigned)i > count) {
		lua_pushvalue(L, -2);
		luaL_error(L, "%s[%s]: no such element", name,
			   luaL_tolstring(L, -1, NULL));
	}
	return i;
}

/* A collection may change the table at any time: its size counts but once. */
void *luackvm_read_list(lua_State *L, int index,
			const struct luackvm_struct *def, size_t header,
			size_t *count)
{
	size_t seen = 0, size;
	uint8_t *data;

	luaL_checktype(L, index, LUA_TTABLE);
	index = lua_absindex(L, index);
	*count = lua_rawlen(L, index);
	size = header + *count * def->size;
	data = lua_newuserdatauv(L, size, 0);
	memset(data, 0, size);
	for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 2), seen++) {
		lua_Integer i = luackvm_list_key(L, def->name, *count);
		const char *name = lua_pushfstring(L, "%s[%I]", def->name, i);

		lua_insert(L, -2);
		check_table(L, name);
		read_named(L, lua_gettop(L), name, def,
			   data + header + (size_t)(i - 1) * def->size);
	}
	if (seen < *count)
		luaL_error(L, "%s: the list has holes", def->name);
	return data;
}

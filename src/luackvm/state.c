/* SPDX-License-Identifier: MIT */
/*
 * get_x and set_x for the structs that the kernel gets and sets whole. Where it
 * has both, set_x keeps what the table leaves out; where it has no get, that is
 * zero.
 */
#include <errno.h>

#include "luackvm.h"

/* Upvalues of both: the object's type, and the state. */
static const struct luackvm_state *state_of(lua_State *L)
{
	return lua_touserdata(L, lua_upvalueindex(2));
}

static void *self(lua_State *L)
{
	return luackvm_check(L, 1, lua_touserdata(L, lua_upvalueindex(1)));
}

static int get(lua_State *L)
{
	const struct luackvm_state *state = state_of(L);
	uint64_t data[LUACKVM_MAX_STRUCT / 8] = { 0 };
	int error = state->get(self(L), data);

	if (error)
		return luackvm_fail(L, error, NULL);
	luackvm_push_struct(L, state->def, data);
	return 1;
}

/* No Lua before luackvm_fail, which takes the step that failed first. */
static int refuse(lua_State *L, const struct luackvm_state *state,
		  const void *data, int error)
{
	char text[256]; /* the longest has 230 */

	if (error != -EINVAL || !state->explain)
		return luackvm_fail(L, error, NULL);
	state->explain(data, text, sizeof(text));
	return luackvm_fail(L, error, "%s", text);
}

static int set(lua_State *L)
{
	const struct luackvm_state *state = state_of(L);
	uint64_t data[LUACKVM_MAX_STRUCT / 8] = { 0 };
	void *object = self(L);
	int error = 0;

	luaL_checktype(L, 2, LUA_TTABLE);
	if (state->get && !luackvm_is_full(L, 2, state->def))
		error = state->get(object, data);
	if (error)
		return luackvm_fail(L, error, NULL);
	luackvm_read_struct(L, 2, state->def, data);
	error = state->set(object, data);
	return error ? refuse(L, state, data, error) : 0;
}

static void add(lua_State *L, const struct luackvm_type *type,
		const struct luackvm_state *state, const char *prefix,
		lua_CFunction method)
{
	lua_pushfstring(L, "%s_%s", prefix, state->name);
	lua_pushlightuserdata(L, (void *)(uintptr_t)type);
	lua_pushlightuserdata(L, (void *)(uintptr_t)state);
	lua_pushcclosure(L, method, 2);
	lua_rawset(L, -3);
}

void luackvm_add_states(lua_State *L, const struct luackvm_type *type,
			const struct luackvm_state *states)
{
	for (; states->name; states++) {
		if (states->get)
			add(L, type, states, "get", get);
		if (states->set)
			add(L, type, states, "set", set);
	}
}

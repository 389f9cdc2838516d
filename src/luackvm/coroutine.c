/* SPDX-License-Identifier: MIT */
/*
 * Which coroutine runs. A hook that stops Lua code belongs to one coroutine,
 * and nothing in Lua's API tells which is running; so resume, wrap and close
 * are replaced by ones that note it, and do what Lua's do otherwise.
 */
#include <lualib.h>

#include "luackvm.h"

static struct ckvm_lua *upvalue_state(lua_State *L)
{
	return lua_touserdata(L, lua_upvalueindex(1));
}

/*
 * L runs again, and co has ended or yielded. L may have been resumed behind our
 * back, so it is anchored; and an interrupt that set its hook on co would be
 * lost.
 */
static void back_in(struct ckvm_lua *lua, lua_State *L, lua_State *co)
{
	/* First: to enter L may park co's as one that has long been back. */
	if (unlikely(lua->thread->frame))
		luackvm_park(lua, co);
	luackvm_enter(lua, L);
	if (unlikely(lua->interrupted))
		luackvm_late(lua->thread);
}

/* Moves `count` values over and resumes: how many came back, or -1. */
static int resume(lua_State *L, lua_State *co, int count)
{
	struct ckvm_lua *lua = upvalue_state(L);
	int status, results = 0;

	if (!lua_checkstack(co, count)) {
		lua_pushliteral(L, "too many arguments to resume");
		return -1;
	}
	luackvm_enter(lua, L);
	lua_xmove(L, co, count);
	lua->thread->running = co;
	if (unlikely(lua->thread->frame || lua->parked))
		luackvm_unpark(lua, co);
	status = lua_resume(co, L, count, &results);
	back_in(lua, L, co);
	if (status != LUA_OK && status != LUA_YIELD) {
		lua_xmove(co, L, 1);
		return -1;
	}
	if (!lua_checkstack(L, results + 1)) {
		lua_pop(co, results);
		lua_pushliteral(L, "too many results to resume");
		return -1;
	}
	lua_xmove(co, L, results);
	return results;
}

static lua_State *check_coroutine(lua_State *L)
{
	lua_State *co = lua_tothread(L, 1);

	luaL_argexpected(L, co, 1, "coroutine");
	return co;
}

static int co_resume(lua_State *L)
{
	lua_State *co = check_coroutine(L);
	int results = resume(L, co, lua_gettop(L) - 1);

	if (results < 0) {
		lua_pushboolean(L, 0);
		lua_insert(L, -2);
		return 2;
	}
	lua_pushboolean(L, 1);
	lua_insert(L, -(results + 1));
	return results + 1;
}

/* Calls Lua's own close, at upvalue `close`: pushes true, or false and why. */
static int close_with(lua_State *L, int close, lua_State *co)
{
	struct ckvm_lua *lua = upvalue_state(L);
	int top = lua_gettop(L);

	luackvm_enter(lua, L);
	lua_pushvalue(L, close);
	lua_pushthread(co);
	lua_xmove(co, L, 1);
	lua->thread->running = co;
	lua_call(L, 1, LUA_MULTRET);
	back_in(lua, L, co);
	return lua_gettop(L) - top;
}

/* An error goes on in the caller, with the place where it calls. */
static int call_wrapped(lua_State *L)
{
	lua_State *co = lua_tothread(L, lua_upvalueindex(2));
	int results = resume(L, co, lua_gettop(L)), status;

	if (results >= 0)
		return results;
	status = lua_status(co);
	if (status != LUA_OK && status != LUA_YIELD)
		close_with(L, lua_upvalueindex(3), co);
	if (status != LUA_ERRMEM && lua_type(L, -1) == LUA_TSTRING) {
		luaL_where(L, 1);
		lua_insert(L, -2);
		lua_concat(L, 2);
	}
	return lua_error(L);
}

static int co_wrap(lua_State *L)
{
	lua_State *co;

	luaL_checktype(L, 1, LUA_TFUNCTION);
	lua_pushvalue(L, lua_upvalueindex(1));
	co = lua_newthread(L);
	lua_pushvalue(L, 1);
	lua_xmove(L, co, 1);
	lua_pushvalue(L, lua_upvalueindex(2));
	lua_pushcclosure(L, call_wrapped, 3);
	return 1;
}

static int co_close(lua_State *L)
{
	return close_with(L, lua_upvalueindex(2), check_coroutine(L));
}

void luackvm_track_coroutines(lua_State *L, struct ckvm_lua *lua)
{
	static const luaL_Reg functions[] = {
		{ "resume", co_resume },
		{ "wrap", co_wrap },
		{ "close", co_close },
		{ NULL, NULL },
	};

	luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
	if (lua_getfield(L, -1, LUA_COLIBNAME) == LUA_TTABLE) {
		lua_pushlightuserdata(L, lua);
		lua_getfield(L, -2, "close");
		luaL_setfuncs(L, functions, 2);
	}
	lua_pop(L, 2);
}

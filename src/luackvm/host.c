/* SPDX-License-Identifier: MIT */
/* The binding's part of a Lua state, and runs for hosts in C. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "luackvm.h"

static const char key;

/* The state --------------------------------------------------------------- */

uint64_t luackvm_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* The last finalizer, being the first. The timer must not find what is gone. */
static int forget_state(lua_State *L)
{
	luackvm_close_all(L);
	luackvm_end_wake(lua_touserdata(L, 1));
	luackvm_end_threads(lua_touserdata(L, 1));
	return 0;
}

static lua_State *main_thread(lua_State *L)
{
	lua_State *main;

	lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
	main = lua_tothread(L, -1);
	lua_pop(L, 1);
	return main;
}

struct ckvm_lua *ckvm_lua_get(lua_State *L)
{
	struct ckvm_lua *lua;

	lua_rawgetp(L, LUA_REGISTRYINDEX, &key);
	lua = lua_touserdata(L, -1);
	lua_pop(L, 1);
	return lua;
}

struct ckvm_lua *luackvm_state(lua_State *L)
{
	struct ckvm_lua *lua = ckvm_lua_get(L);

	if (lua)
		return lua;
	lua = lua_newuserdatauv(L, sizeof(*lua), 0);
	memset(lua, 0, sizeof(*lua));
	lua->lock = 1; /* whoever loads the module is in the state */
	lua->wake = -1;
	luackvm_begin_threads(lua);
	lua->thread->running = main_thread(L);
	lua_createtable(L, 0, 1);
	lua_pushcfunction(L, forget_state);
	lua_setfield(L, -2, "__gc");
	lua_setmetatable(L, -2);
	lua_rawsetp(L, LUA_REGISTRYINDEX, &key);
	return lua;
}

void ckvm_lua_set_hook(struct ckvm_lua *lua, const struct ckvm_hook *hook)
{
	lua->hooked = hook;
	if (hook)
		lua->hook = *hook;
}

void luackvm_enter(struct ckvm_lua *lua, lua_State *L)
{
	if (lua->thread->running == L)
		return;
	/* Somebody resumed L behind our back, and may drop it likewise. */
	lua_pushthread(L);
	lua_rawsetp(L, LUA_REGISTRYINDEX, lua->thread);
	lua->thread->running = L;
	if (unlikely(lua->parked))
		luackvm_unpark(lua, L);
}

/* C hosts ----------------------------------------------------------------- */

static int protected_run(lua_State *L)
{
	struct ckvm_vcpu *vcpu = lua_touserdata(L, 1);
	const struct ckvm_limits *limits = lua_touserdata(L, 2);
	struct ckvm_vm *vm = ckvm_vcpu_vm(vcpu);

	lua_settop(L, 0);
	if (!luackvm_push_known(L, vcpu)) {
		if (!luackvm_push_known(L, vm))
			return luaL_error(L, "the vCPU's VM is not known here: "
					     "ckvm_lua_push_vm comes first");
		luackvm_push_vcpu(L, 1, vcpu);
		lua_remove(L, 1);
	}
	luackvm_forget_stop(L);
	lua_pushinteger(L, luackvm_run_with(L, limits));
	return 1;
}

static int add_traceback(lua_State *L)
{
	const char *message = lua_tostring(L, 1);

	if (message)
		luaL_traceback(L, L, message, 1);
	return 1;
}

int ckvm_lua_run(lua_State *L, struct ckvm_vcpu *vcpu,
		 const struct ckvm_limits *limits)
{
	int top = lua_gettop(L), status, end;

	if (!lua_checkstack(L, 8))
		return -ENOMEM;
	lua_pushcfunction(L, add_traceback);
	lua_pushcfunction(L, protected_run);
	lua_pushlightuserdata(L, vcpu);
	lua_pushlightuserdata(L, (void *)(uintptr_t)limits);
	status = lua_pcall(L, 2, 1, top + 1);
	lua_remove(L, top + 1);
	if (status != LUA_OK)
		return -ECANCELED;
	end = (int)lua_tointeger(L, -1);
	lua_pop(L, 1);
	return end;
}

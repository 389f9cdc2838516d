/* SPDX-License-Identifier: MIT */
/* The Lua module "loops": contestants in C, a clock, and processes to time. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <string.h>
#include <time.h>
#include <sys/wait.h>

#include <ckvm.h>

#include "bench.h"

#define MOST_WORDS 8

CKVM_API int luaopen_loops(lua_State *L);

/* Seconds. */
static int now(lua_State *L)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	lua_pushnumber(L, (lua_Number)ts.tv_sec + 1e-9 * (double)ts.tv_nsec);
	return 1;
}

/*
 * calls(function)(count): what a handler costs with no guest and no ckvm, the
 * function and its arguments pushed as a run of the vCPU would.
 */
static int call_all(lua_State *L)
{
	lua_Integer count = luaL_checkinteger(L, 1);

	lua_settop(L, 1);
	lua_createtable(L, 1, 0);
	lua_pushvalue(L, lua_upvalueindex(1));
	lua_rawseti(L, 2, 1);
	while (count--) {
		lua_rawgeti(L, 2, 1);
		lua_pushinteger(L, BENCH_PORT);
		lua_pushinteger(L, count);
		lua_pushinteger(L, 1);
		lua_pushvalue(L, 2);
		lua_call(L, 4, 0);
	}
	return 0;
}

static int calls(lua_State *L)
{
	lua_settop(L, 1);
	lua_pushcclosure(L, call_all, 1);
	return 1;
}

/* Processes --------------------------------------------------------------- */

static int spawn_silently(pid_t *pid, char *words[])
{
	extern char **environ;
	posix_spawn_file_actions_t actions;
	int error;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
	error = posix_spawn(pid, words[0], &actions, NULL, words, environ);
	posix_spawn_file_actions_destroy(&actions);
	return error;
}

/* spawn(program, ...): waits until it has ended well, with its output gone. */
static int spawn(lua_State *L)
{
	char *words[MOST_WORDS + 1] = { NULL };
	int count = lua_gettop(L), error, status = 0;
	pid_t pid;

	luaL_argcheck(L, count <= MOST_WORDS, count, "too many");
	for (int i = 0; i < count; i++)
		words[i] = (char *)(uintptr_t)luaL_checkstring(L, i + 1);
	error = spawn_silently(&pid, words);
	if (!error && waitpid(pid, &status, 0) < 0)
		error = errno;
	if (error || status)
		return luaL_error(L, "%s: %s", words[0],
				  error ? strerror(error) : "failed");
	return 0;
}

int luaopen_loops(lua_State *L)
{
	static const luaL_Reg functions[] = {
		{ "now", now },
		{ "calls", calls },
		{ "spawn", spawn },
		{ "plain", bench_plain },
		{ "plain_write", bench_plain_write },
		{ "plain_read", bench_plain_read },
		{ "plain_batched", bench_plain_batched },
		{ "plain_create", bench_plain_create },
		{ "callback", bench_callback },
		{ "hand_back", bench_hand_back },
		{ "create", bench_create },
		{ NULL, NULL },
	};

	luaL_newlib(L, functions);
	return 1;
}

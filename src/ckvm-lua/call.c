/* SPDX-License-Identifier: MIT */
/*
 * Calls into Lua with a traceback, and with Ctrl-C, SIGTERM and SIGHUP as
 * errors in the script.
 */
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <lauxlib.h>

#include "host.h"

#define GRACE 2 /* seconds from SIGTERM or SIGHUP to the end in any case */

/* What the signal handler needs. */
static struct ckvm_lua *volatile binding;
static volatile sig_atomic_t interrupted; /* by which signal */

/* No SA_RESTART: a script that waits in io.read() is to be woken up. */
static void set_handler(int signal, void (*handler)(int))
{
	struct sigaction action = { .sa_handler = handler };

	sigemptyset(&action.sa_mask);
	sigaction(signal, &action, NULL);
}

/* By its default action, when this returns; with the terminal as it was. */
static void end_process(int signal)
{
	ckvm_lua_restore_terminals();
	set_handler(signal, SIG_DFL);
	raise(signal);
}

/*
 * nohup(1) and its like, and shells for what runs behind them, have signals
 * ignored, and so they stay.
 */
static void set_unless_ignored(int signal, void (*handler)(int))
{
	struct sigaction action;

	if (sigaction(signal, NULL, &action) || action.sa_handler != SIG_IGN)
		set_handler(signal, handler);
}

void host_set_sigint(void (*handler)(int))
{
	set_unless_ignored(SIGINT, handler ? handler : end_process);
}

static void set_handlers(void (*handler)(int))
{
	host_set_sigint(handler);
	set_unless_ignored(SIGTERM, handler);
	set_unless_ignored(SIGHUP, handler);
}

/* The script has caught the error, or waits for another program. */
static void end_late(int signal)
{
	(void)signal;
	end_process(interrupted);
}

/* The first one stops the script; the next one ends the process. */
static void stop_script(int signal)
{
	set_handlers(end_process);
	interrupted = signal;
	if (signal != SIGINT) {
		set_handler(SIGALRM, end_late);
		alarm(GRACE);
	}
	if (binding)
		ckvm_lua_interrupt(binding);
}

static int forget_binding(lua_State *L)
{
	(void)L;
	binding = NULL;
	return 0;
}

/*
 * os.exit(n, true) closes the state while Ctrl-C is armed. Finalizers run in
 * the reverse order of creation, so this one comes before the module's own.
 */
static void forget_binding_at_close(lua_State *L)
{
	lua_newuserdatauv(L, 0, 0);
	lua_createtable(L, 0, 1);
	lua_pushcfunction(L, forget_binding);
	lua_setfield(L, -2, "__gc");
	lua_setmetatable(L, -2);
	luaL_ref(L, LUA_REGISTRYINDEX);
}

struct ckvm_lua *host_bind(lua_State *L)
{
	binding = ckvm_lua_get(L);
	forget_binding_at_close(L);
	set_handlers(end_process);
	set_unless_ignored(SIGPIPE, end_process);
	set_unless_ignored(SIGQUIT, end_process);
	return binding;
}

int host_interrupted(void)
{
	return interrupted;
}

/*
 * A Ctrl-C that came when the chunk was as good as done must not stop the next
 * one: it is spent here.
 */
int host_settle_interrupt(lua_State *L)
{
	if (interrupted && luaL_dostring(L, "for _ = 1, 10 do end"))
		lua_pop(L, 1);
	if (interrupted == SIGINT)
		interrupted = 0;
	return !interrupted;
}

/* Turns any error value into a string with a traceback. */
static int message_handler(lua_State *L)
{
	const char *text = lua_tostring(L, 1);

	if (!text && luaL_getmetafield(L, 1, "__tostring") != LUA_TNIL)
		text = luaL_tolstring(L, 1, NULL);
	if (!text)
		text = lua_pushfstring(L, "(error object is a %s value)",
				       luaL_typename(L, 1));
	luaL_traceback(L, L, text, 1);
	return 1;
}

/* Prints the message on top of the stack, if status says there is one. */
int host_report(lua_State *L, int status)
{
	if (status == LUA_OK)
		return status;
	fflush(stdout); /* what led to the error comes before it */
	fprintf(stderr, PROGRAM ": %s\n", lua_tostring(L, -1));
	lua_pop(L, 1);
	return status;
}

/* lua_pcall with a traceback, and signals as errors while it lasts. */
int host_call(lua_State *L, int arguments, int results)
{
	int base = lua_gettop(L) - arguments;
	int status;

	lua_pushcfunction(L, message_handler);
	lua_insert(L, base);
	set_handlers(stop_script);
	status = lua_pcall(L, arguments, results, base);
	set_handlers(end_process);
	lua_remove(L, base);
	return status;
}

/* Calls the chunk that was loaded with `status`; reports either failure. */
int host_run(lua_State *L, int status, int arguments)
{
	if (status == LUA_OK)
		status = host_call(L, arguments, 0);
	return host_report(L, status);
}

/* SPDX-License-Identifier: MIT */
/* What the parts of ckvm-lua share. */
#ifndef CKVM_HOST_H
#define CKVM_HOST_H

#include <stdio.h>

#include <lua.h>

#include <ckvm.h>
#include <ckvm_lua.h>

#define PROGRAM "ckvm-lua"

struct action { /* -e, -l and -W: done in the order they were given */
	int option;
	const char *argument;
};

struct options {
	int argc;
	char **argv;
	int script; /* its index in argv; argc for none */
	int version, interactive, no_environment;
	int probe, json;
	int trace;
	const char *trace_path; /* NULL: standard error */
	int statements;		/* how many of the actions are -e */
	int count;
	struct action *actions;
};

/* call.c. Statuses are Lua's. */

/* Has signals stop the scripts of this state, which has loaded the module. */
struct ckvm_lua *host_bind(lua_State *L);

/* lua_pcall with a traceback, and signals as errors while it lasts. */
int host_call(lua_State *L, int arguments, int results);

/* Prints the message on top of the stack, if status says there is one. */
int host_report(lua_State *L, int status);

/* Calls the chunk that was loaded with `status`; reports either failure. */
int host_run(lua_State *L, int status, int arguments);

/* The signal that there was, if it is not settled; 0: none. */
int host_interrupted(void);

/* A Ctrl-C is over. False: there was another signal, that ends the session. */
int host_settle_interrupt(lua_State *L);

/* NULL: the process ends. A SIGINT that is ignored stays so. */
void host_set_sigint(void (*handler)(int));

/* trace.c. file NULL: no trace. */
void host_trace(struct ckvm_lua *lua, FILE *file);

/* script.c */
const char *host_scripts_directory(void);
void host_set_paths(lua_State *L);
int host_load_file(lua_State *L, const char *path); /* NULL: stdin */
int host_run_init(lua_State *L);
int host_run_actions(lua_State *L, const struct options *options);
int host_run_script(lua_State *L, const struct options *options);
int host_run_probe(lua_State *L, int json);

/* prompt.c */
void host_interact(lua_State *L);

#endif

/* SPDX-License-Identifier: MIT */
/* Finds, loads and runs scripts, and what else the command line says to run. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <lauxlib.h>
#include <lualib.h>

#include "host.h"

#define BINARY_REFUSED "attempt to load a binary chunk"

static int same_file(const char *one, const char *other)
{
	struct stat a, b;

	return stat(one, &a) == 0 && stat(other, &b) == 0 &&
	       a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* Run from its build tree, by itself or by libtool's wrapper. */
static int uninstalled(void)
{
	char path[PATH_MAX], *slash;
	ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);

	if (length < 0)
		return 0;
	path[length] = '\0';
	slash = strrchr(path, '/');
	if (!slash)
		return 0;
	*slash = '\0';
	return same_file(path, CKVM_BUILDDIR) ||
	       same_file(path, CKVM_BUILDDIR "/.libs");
}

const char *host_scripts_directory(void)
{
	return uninstalled() ? CKVM_SRCDIR "/scripts"
			     : CKVM_PKGDATADIR "/scripts";
}

/* Puts templates in front of package.path or package.cpath. */
static void prepend(lua_State *L, const char *field, const char *templates)
{
	lua_getglobal(L, LUA_LOADLIBNAME);
	lua_getfield(L, -1, field);
	lua_pushfstring(L, "%s;%s", templates, lua_tostring(L, -1));
	lua_setfield(L, -3, field);
	lua_pop(L, 2);
}

/* The program's own modules come first: others may be of another version. */
void host_set_paths(lua_State *L)
{
	if (uninstalled()) {
		prepend(L, "path",
			CKVM_SRCDIR "/lua/?.lua;" CKVM_SRCDIR
				    "/lua/?/init.lua");
		return;
	}
	prepend(L, "path", CKVM_LUADIR "/?.lua;" CKVM_LUADIR "/?/init.lua");
	prepend(L, "cpath", CKVM_LUACDIR "/?.so");
}

/* Pushes the script's path and returns it, or NULL with a message on top. */
static const char *find_script(lua_State *L, const char *name)
{
	const char *directory = host_scripts_directory();
	const char *path;

	if (!*name) {
		lua_pushliteral(L, "the script's name is empty");
		return NULL;
	}
	if (strchr(name, '/') || access(name, F_OK) == 0)
		return lua_pushstring(L, name);
	path = lua_pushfstring(L, "%s/%s", directory, name);
	if (access(path, F_OK) == 0)
		return path;
	lua_pushfstring(L,
			"cannot find %s, neither in the working directory "
			"nor in %s",
			name, directory);
	return NULL;
}

/* path NULL: standard input. Pushes the chunk or a message. */
int host_load_file(lua_State *L, const char *path)
{
	int status = luaL_loadfilex(L, path, "t");
	const char *text = status ? lua_tostring(L, -1) : "";

	if (strncmp(text, BINARY_REFUSED, strlen(BINARY_REFUSED)) == 0)
		lua_pushfstring(L,
				"%s: this is bytecode; " PROGRAM
				" runs Lua source only",
				path ? path : "stdin");
	return status;
}

static int load_string(lua_State *L, const char *text, const char *name)
{
	return luaL_loadbufferx(L, text, strlen(text), name, "t");
}

static int push_arguments(lua_State *L, const struct options *options)
{
	int count = options->argc - options->script - 1;

	luaL_checkstack(L, count, "too many arguments to script");
	for (int i = 0; i < count; i++)
		lua_pushstring(L, options->argv[options->script + 1 + i]);
	return count;
}

/* "-" is standard input, but for `ckvm-lua -- -`. */
int host_run_script(lua_State *L, const struct options *options)
{
	char **script = options->argv + options->script;
	int is_stdin =
		strcmp(script[0], "-") == 0 && strcmp(script[-1], "--") != 0;
	const char *path = is_stdin ? NULL : find_script(L, script[0]);
	int status = LUA_ERRFILE;

	if (path || is_stdin)
		status = host_load_file(L, path);
	return host_run(L, status, status ? 0 : push_arguments(L, options));
}

/* -l MODULE, -l GLOBAL=MODULE: the global has no "-version" suffix. */
static int run_require(lua_State *L, const char *argument)
{
	const char *equals = strchr(argument, '=');
	const char *module = equals ? equals + 1 : argument;
	size_t length =
		equals ? (size_t)(equals - argument) : strcspn(argument, "-");
	int status;

	lua_getglobal(L, "require");
	lua_pushstring(L, module);
	status = host_call(L, 1, 1);
	if (status == LUA_OK) {
		lua_pushglobaltable(L);
		lua_pushlstring(L, argument, length);
		lua_rotate(L, -3, -1);
		lua_rawset(L, -3);
	}
	return host_report(L, status);
}

int host_run_actions(lua_State *L, const struct options *options)
{
	int status = LUA_OK;

	for (int i = 0; i < options->count && status == LUA_OK; i++) {
		const char *text = options->actions[i].argument;

		switch (options->actions[i].option) {
		case 'e':
			status = load_string(L, text, "=(command line)");
			status = host_run(L, status, 0);
			break;
		case 'l':
			status = run_require(L, text);
			break;
		case 'W':
			lua_warning(L, "@on", 0);
			break;
		}
	}
	return status;
}

/* LUA_INIT_5_4, else LUA_INIT: Lua code, or "@" and a file with it. */
int host_run_init(lua_State *L)
{
	const char *name = "=LUA_INIT" LUA_VERSUFFIX;
	const char *init = getenv(name + 1);

	if (!init)
		init = getenv((name = "=LUA_INIT") + 1);
	if (!init)
		return LUA_OK;
	if (init[0] == '@')
		return host_run(L, host_load_file(L, init + 1), 0);
	return host_run(L, load_string(L, init, name), 0);
}

/* --probe: the module prints, or says why there is no KVM. */
int host_run_probe(lua_State *L, int json)
{
	int status;

	lua_getglobal(L, "require");
	lua_pushliteral(L, "ckvm.probe");
	status = host_call(L, 1, 1);
	if (status == LUA_OK) {
		lua_getfield(L, -1, "main");
		lua_pushboolean(L, json);
		status = host_call(L, 1, 1);
		lua_remove(L, -2);
	}
	if (status == LUA_OK && lua_isstring(L, -1))
		status = LUA_ERRRUN;
	if (status == LUA_OK)
		lua_pop(L, 1);
	return host_report(L, status);
}

/* SPDX-License-Identifier: MIT */
/* The module "ckvm": its functions, and the registration of its types. */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "luackvm.h"

static const struct luackvm_type *const types[] = {
	&luackvm_system,      &luackvm_vm,    &luackvm_vcpu,
	&luackvm_memory,      &luackvm_range, &luackvm_buffer,
	&luackvm_eventfd,     &luackvm_stats, &luackvm_device,
	&luackvm_guest_memfd, &luackvm_watch, &luackvm_terminal,
};

/***
 * The time, by the clock that timeouts go by.
 *
 * @function ckvm.now
 * @treturn number seconds, from some time on
 * @raise nothing
 * @usage
 * local from = ckvm.now()
 * print(ckvm.now() - from)
 */
static int now(lua_State *L)
{
	lua_pushnumber(L, (lua_Number)luackvm_now() / 1e9);
	return 1;
}

/* For want of one a module is not found, and nobody is told why. */
static void need_descriptor(lua_State *L)
{
	bool tried = false;
	int fd;

	do
		fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	while (fd < 0 && luackvm_retry(L, -errno, &tried));
	if (fd < 0)
		luackvm_fail_call(L, "open", -errno, "/dev/null");
	close(fd);
}

/***
 * What this KVM has, and what of it works when it is tried: `ckvm.probe.run`.
 *
 * @function ckvm.probe
 * @tparam[opt] table options as for `ckvm.probe.run`
 * @treturn table as from `ckvm.probe.run`
 * @raise as `ckvm.probe.run` does
 * @usage
 * print(ckvm.probe({ only = { "capabilities" } }).capabilities.nr_vcpus)
 */
static int probe(lua_State *L)
{
	int count = lua_gettop(L);

	need_descriptor(L);
	lua_getglobal(L, "require");
	lua_pushliteral(L, "ckvm.probe");
	lua_call(L, 1, 1);
	lua_getfield(L, -1, "run");
	lua_replace(L, -2);
	lua_insert(L, 1);
	lua_call(L, count, 1);
	return 1;
}
/***
 * The module: opens KVM. `ckvm.x86` and other Lua modules are beside it.
 *
 * What the kernel or the system refuses raises an `error`; wrong use raises a
 * string that blames the caller's line.
 *
 * @module ckvm
 * @tfield string version of the library, "MAJOR.MINOR.PATCH"
 * @usage
 * local ckvm = require "ckvm"
 * print(ckvm.version)
 */

static const luaL_Reg functions[] = {
	{ "open", luackvm_open },
	{ "from_fd", luackvm_from_fd },
	{ "buffer", luackvm_new_buffer },
	{ "eventfd", luackvm_new_eventfd },
	{ "now", now },
	{ "pty", luackvm_pty },
	{ "raw_terminal", luackvm_raw_terminal },
	{ "read_available", luackvm_read_available },
	{ "probe", probe },
	{ NULL, NULL },
};

static const char key;

int luaopen_ckvm(lua_State *L)
{
	struct ckvm_lua *lua;

	luaL_checkversion(L);
	/* A second time in this state: what is registered must stay. */
	if (lua_rawgetp(L, LUA_REGISTRYINDEX, &key) == LUA_TTABLE)
		return 1;
	lua = luackvm_state(L);
	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		luackvm_register_type(L, types[i]);
	luackvm_register_error(L);
	luackvm_track_coroutines(L, lua);
	luaL_newlib(L, functions);
	lua_pushstring(L, ckvm_version());
	lua_setfield(L, -2, "version");
	lua_pushvalue(L, -1);
	lua_rawsetp(L, LUA_REGISTRYINDEX, &key);
	return 1;
}

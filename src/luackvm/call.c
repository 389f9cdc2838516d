/* SPDX-License-Identifier: MIT */
/*
 * A handler of a run: what it is called with if that is not an access to its
 * range (call.h), and what it returns.
 */
#include "call.h"

/* Calls ------------------------------------------------------------------- */

static uint32_t access_number(const struct ckvm_access *access)
{
	return CKVM_EXIT_IO_IN + access->space * 2u + access->is_write;
}

/*
 * Pushes the handler of vm:on("io_in") and its kin, and its arguments; returns
 * how many.
 */
static int push_unclaimed_call(lua_State *L, const struct ckvm_access *access)
{
	if (lua_rawgeti(L, RUN_HANDLERS, ON_KEY(access_number(access))) !=
	    LUA_TFUNCTION)
		return 0; /* removed meanwhile, by another thread */
	lua_pushinteger(L, (lua_Integer)access->address);
	if (access->is_write)
		lua_pushinteger(L, (lua_Integer)access->value);
	lua_pushinteger(L, access->length);
	if (access->batched)
		lua_pushnil(L);
	else
		lua_pushvalue(L, RUN_VCPU);
	return 3 + access->is_write;
}

/* Pushes vm:on's handler for any other exit and its arguments, if there is. */
static bool push_exit_call(lua_State *L, uint32_t exit)
{
	if (exit >= CKVM_EXIT_IO_IN ||
	    lua_rawgeti(L, RUN_HANDLERS, ON_KEY(exit)) != LUA_TFUNCTION)
		return false;
	luackvm_push_exit(L, RUN_VCPU);
	lua_pushvalue(L, RUN_VCPU);
	return true;
}

static enum luackvm_call call_for_exit(uint32_t exit)
{
	switch (exit) {
	case KVM_EXIT_SHUTDOWN:
	case KVM_EXIT_FAIL_ENTRY:
	case KVM_EXIT_INTERNAL_ERROR:
		return CALL_FATAL;
	default:
		return CALL_EXIT;
	}
}

enum luackvm_call luackvm_push_rare_call(lua_State *L, struct ckvm_vcpu *vcpu,
					 int end, int *args)
{
	const struct ckvm_access *access;
	uint32_t exit;

	if (end == CKVM_ACCESS) {
		access = ckvm_vcpu_access(vcpu);
		*args = push_unclaimed_call(L, access);
		return !*args		  ? CALL_NONE
		       : access->is_write ? CALL_UNCLAIMED_WRITE
					  : CALL_UNCLAIMED_READ;
	}
	if (end != CKVM_EXIT)
		return CALL_NONE;
	exit = ckvm_vcpu_exit_number(vcpu);
	*args = 2;
	return push_exit_call(L, exit) ? call_for_exit(exit) : CALL_NONE;
}

/* Results ----------------------------------------------------------------- */

/* Pushes " (range 0x10-0x17)", or "" where there is none any more. */
static void push_range_name(lua_State *L, const struct ckvm_access *access)
{
	lua_Integer base = (lua_Integer)((uintptr_t)access->opaque / 2);
	const struct luackvm_box *box = NULL;
	uint64_t first, last;

	if (access->range) {
		lua_rawgeti(L, RUN_HANDLERS, base + SLOT_RANGE);
		box = luackvm_test(L, -1, &luackvm_range);
	}
	if (!box || box->object != access->range) {
		lua_pushliteral(L, "");
		return;
	}
	first = ckvm_range_first(access->range);
	last = first + (ckvm_range_count(access->range) - 1);
	lua_pushfstring(L, " (range %s-%s)", luackvm_hex(L, first),
			luackvm_hex(L, last));
}

/* Pushes "boot.lua:12", where the handler of a read was defined. */
static void push_handler_name(lua_State *L, const struct ckvm_access *access)
{
	lua_Integer key = access->range
				  ? (lua_Integer)((uintptr_t)access->opaque / 2)
				  : ON_KEY(access_number(access));
	lua_Debug info;

	if (lua_rawgeti(L, RUN_HANDLERS, key) != LUA_TFUNCTION) {
		lua_pushliteral(L, "handler");
		return;
	}
	lua_getinfo(L, ">S", &info);
	if (info.linedefined > 0)
		lua_pushfstring(L, "handler %s:%d", info.short_src,
				info.linedefined);
	else
		lua_pushliteral(L, "handler");
}

/* The result is on top. */
static void refuse_answer(lua_State *L, const struct ckvm_access *access)
{
	const char *got = lua_type(L, -1) == LUA_TNUMBER ? lua_tostring(L, -1)
							 : luaL_typename(L, -1);
	const char *handler, *range;

	push_handler_name(L, access);
	handler = lua_tostring(L, -1);
	push_range_name(L, access);
	range = lua_tostring(L, -1);
	luaL_error(L, "%s of %s at %s%s returned %s, not an integer", handler,
		   ckvm_exit_name(access_number(access)),
		   luackvm_hex(L, access->address), range, got);
}

void luackvm_answer(lua_State *L, struct ckvm_vcpu *vcpu)
{
	const struct ckvm_access *access = ckvm_vcpu_access(vcpu);
	lua_Integer value = 0;
	int ok = 0;

	if (!access)
		luaL_error(L, "run abandoned: the access is gone");
	/* A string that looks like a number is not one. */
	if (lua_type(L, -1) == LUA_TNUMBER)
		value = lua_tointegerx(L, -1, &ok);
	if (!ok)
		refuse_answer(L, access);
	ckvm_vcpu_answer(vcpu, (uint64_t)value);
}

bool luackvm_take_rare_result(lua_State *L, struct ckvm_vcpu *vcpu,
			      enum luackvm_call call)
{
	bool is_false = lua_isboolean(L, -1) && !lua_toboolean(L, -1);

	switch (call) {
	case CALL_UNCLAIMED_READ:
		if (!is_false)
			luackvm_answer(L, vcpu);
		return !is_false;
	case CALL_FATAL:
		return lua_toboolean(L, -1);
	default:
		return !is_false;
	}
}

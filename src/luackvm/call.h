/* SPDX-License-Identifier: MIT */
/*
 * The call of a range's handler, inline: it is all that most exits take. call.c
 * does the rest.
 */
#ifndef LUACKVM_CALL_H
#define LUACKVM_CALL_H

#include "luackvm.h"

/* The stack of a run: the vCPU's box, its VM's handlers, and a frame. */
enum { RUN_VCPU = 1, RUN_HANDLERS, RUN_FRAME };

/* What a handler was called for. */
enum luackvm_call {
	CALL_NONE,
	CALL_READ,
	CALL_WRITE,
	CALL_UNCLAIMED_READ,
	CALL_UNCLAIMED_WRITE,
	CALL_EXIT,
	CALL_FATAL, /* an exit that ends the run unless the handler says true */
};

/* Pushes the handler of a range and its arguments; returns how many. */
static inline int luackvm_push_range_call(lua_State *L,
					  const struct ckvm_access *access)
{
	uintptr_t opaque = (uintptr_t)access->opaque;
	lua_Integer base = (lua_Integer)(opaque / 2);
	int args = 3;

	if (unlikely(lua_rawgeti(L, RUN_HANDLERS, base + access->is_write) !=
		     LUA_TFUNCTION))
		luaL_error(L,
			   "%s is of a range that C has attached without "
			   "ops: nobody answers it",
			   luackvm_hex(L, access->address));
	if (opaque & 1) {
		lua_rawgeti(L, RUN_HANDLERS, base + SLOT_DEVICE);
		lua_pushinteger(L, (lua_Integer)access->offset);
	} else {
		lua_pushinteger(L, (lua_Integer)access->address);
	}
	if (access->is_write) {
		lua_pushinteger(L, (lua_Integer)access->value);
		args++;
	}
	lua_pushinteger(L, access->length);
	if (opaque & 1)
		return args;
	if (access->batched)
		lua_pushnil(L);
	else
		lua_pushvalue(L, RUN_VCPU);
	return args;
}

/*
 * The same for what no range has claimed. CALL_NONE: nobody handles it, and the
 * run is over.
 */
enum luackvm_call luackvm_push_rare_call(lua_State *L, struct ckvm_vcpu *vcpu,
					 int end, int *args);

/* Pushes the handler for what the loop returned, and its arguments. */
static inline enum luackvm_call
luackvm_push_call(lua_State *L, struct ckvm_vcpu *vcpu, int end, int *args)
{
	const struct ckvm_access *access;

	if (end == CKVM_ACCESS) {
		access = ckvm_vcpu_access(vcpu);
		if (access->range) {
			*args = luackvm_push_range_call(L, access);
			return access->is_write ? CALL_WRITE : CALL_READ;
		}
	}
	return luackvm_push_rare_call(L, vcpu, end, args);
}

/* Answers the access with what is on top; raises if that is no answer. */
void luackvm_answer(lua_State *L, struct ckvm_vcpu *vcpu);

bool luackvm_take_rare_result(lua_State *L, struct ckvm_vcpu *vcpu,
			      enum luackvm_call call);

/* A handler's result is on top: does the run go on? */
static inline bool luackvm_take_result(lua_State *L, struct ckvm_vcpu *vcpu,
				       enum luackvm_call call)
{
	if (call != CALL_READ)
		return luackvm_take_rare_result(L, vcpu, call);
	luackvm_answer(L, vcpu);
	return true;
}

#endif

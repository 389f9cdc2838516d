/* SPDX-License-Identifier: MIT */
/*
 * libckvm-lua: the Lua module "ckvm" for C hosts.
 *
 * The library does not link Lua: the host has it. Functions that raise Lua
 * errors say so; the others never do.
 */
#ifndef CKVM_LUA_H
#define CKVM_LUA_H

#include <lua.h>
#include <ckvm.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ckvm_lua; /* the binding's part of one Lua state */

/* The module itself, for package.preload or luaL_requiref. Raises. */
CKVM_API int luaopen_ckvm(lua_State *L);

/*
 * The binding of this Lua state, which must have loaded the module; NULL else.
 * Borrowed until lua_close.
 */
CKVM_API struct ckvm_lua *ckvm_lua_get(lua_State *L);

/*
 * Every ckvm.open() from now on has this hook (copied; NULL: none).
 */
CKVM_API void ckvm_lua_set_hook(struct ckvm_lua *lua,
				const struct ckvm_hook *hook);

/*
 * Stops the script with the error "interrupted!", in Lua code (in any
 * coroutine) or in a guest. For signal handlers, on the thread that is in Lua.
 * Once: a second call before the error is raised changes nothing.
 */
CKVM_API void ckvm_lua_interrupt(struct ckvm_lua *lua);

/*
 * Objects. push: a new reference is taken, nil for NULL; a VM pushed twice is
 * the same Lua object while that is alive. What scripts attach to a VM goes
 * with that object: keep it on a stack, or by luaL_ref, as long as handlers are
 * to answer. May raise for want of memory. to: borrowed while the Lua object is
 * not closed; NULL if the value at index is something else or closed.
 */
CKVM_API void ckvm_lua_push_vm(lua_State *L, struct ckvm_vm *vm);
CKVM_API struct ckvm_vm *ckvm_lua_to_vm(lua_State *L, int index);
CKVM_API struct ckvm_vcpu *ckvm_lua_to_vcpu(lua_State *L, int index);

/*
 * ckvm_vcpu_run for a vCPU whose bus has Lua handlers: returns what that does,
 * but never CKVM_ACCESS. Handlers run on L and cannot yield. If one raises:
 * -ECANCELED, with the error value (a string gets a traceback) pushed on L;
 * nothing is pushed otherwise. The vCPU's VM must have been pushed, and be
 * alive, on L's state, and all its ranges without ops be that state's. Does not
 * raise.
 */
CKVM_API int ckvm_lua_run(lua_State *L, struct ckvm_vcpu *vcpu,
			  const struct ckvm_limits *limits);

/*
 * One thread at a time is in a Lua state. The one that loaded the module holds
 * its lock from then on, and gives it up around KVM_RUN. A host with several
 * threads gives it up, too, when it leaves Lua for long, and any other thread
 * takes it before it touches a lua_State (one of its own, from lua_newthread)
 * or an object.
 */
CKVM_API void ckvm_lua_lock(struct ckvm_lua *lua);
CKVM_API void ckvm_lua_unlock(struct ckvm_lua *lua);

/*
 * Puts terminals back that scripts have made raw (ckvm.raw_terminal), as exit()
 * does, too: for handlers of signals that end the process.
 */
CKVM_API void ckvm_lua_restore_terminals(void);

#ifdef __cplusplus
}
#endif

#endif

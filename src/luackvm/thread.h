/* SPDX-License-Identifier: MIT */
/* The state, the threads that are in it, and the runs that they are in. */
#ifndef LUACKVM_THREAD_H
#define LUACKVM_THREAD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <lua.h>
#include <lauxlib.h>

#include "ckvm_lua.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* host.c ------------------------------------------------------------------ */

/*
 * A thread of the process that is, or was, in the state. Another of them may
 * look at what is atomic; the rest is for who holds the lock.
 */
struct luackvm_thread {
	struct luackvm_thread *_Atomic next; /* of the state's, for good */
	struct ckvm_lua *lua;
	atomic_int tid;
	atomic_bool inside;	      /* it holds the lock */
	_Atomic(lua_State *) running; /* the coroutine, if it does */
	struct luackvm_frame *frame;  /* of the runs that it is in */
	struct ckvm_vcpu *relieved;   /* whose run is to end, by vm:run */
	/* What ours has taken the place of, as Lua hook, in one coroutine. */
	struct {
		lua_State *L;
		lua_Hook hook;
		int mask, count;
	} displaced;
};

struct ckvm_lua {
	atomic_int lock; /* 0 free, 1 held, 2 waited for */
	int pid;	 /* of the process that loaded the module */
	atomic_bool interrupted;
	/* Ranges detached, whose access may be nobody's, and interrupts. */
	atomic_uint changes;
	struct luackvm_thread *thread; /* that holds the lock */
	struct luackvm_thread first;   /* of all: who loaded the module */
	struct luackvm_frame *parked;  /* of suspended runs, any thread's */
	atomic_int wake;	       /* ends waits (wake.c); -1: none yet */
	unsigned int leaving;	       /* waits that are to end for good */
	bool hooked;
	struct ckvm_hook hook;
};

/* The binding's state; creates it on first use. Raises for want of memory. */
struct ckvm_lua *luackvm_state(lua_State *L);

uint64_t luackvm_now(void); /* CLOCK_MONOTONIC, ns */

/* L runs now: where it is not known from a coroutine function of ours. */
void luackvm_enter(struct ckvm_lua *lua, lua_State *L);

/* thread.c ---------------------------------------------------------------- */

void luackvm_begin_threads(struct ckvm_lua *lua);
void luackvm_end_threads(struct ckvm_lua *lua);

/* For a thread that is yet to be made, and will claim it; NULL: no memory. */
struct luackvm_thread *luackvm_new_thread(struct ckvm_lua *lua);
void luackvm_claim_thread(struct luackvm_thread *thread);

/* The lock, when it is not free, and when somebody waits for it. */
void luackvm_wait_for_lock(struct ckvm_lua *lua);
void luackvm_pass_lock(struct ckvm_lua *lua);

/* For a thread that gives the lock up and takes it again. */
static inline void luackvm_lock(struct luackvm_thread *thread)
{
	struct ckvm_lua *lua = thread->lua;
	int free = 0;

	if (!atomic_compare_exchange_strong(&lua->lock, &free, 1))
		luackvm_wait_for_lock(lua);
	lua->thread = thread;
	atomic_store_explicit(&thread->inside, true, memory_order_relaxed);
	atomic_signal_fence(memory_order_seq_cst);
}

static inline void luackvm_unlock(struct luackvm_thread *thread)
{
	struct ckvm_lua *lua = thread->lua;
	int held = 1;

	atomic_store_explicit(&thread->inside, false, memory_order_relaxed);
	atomic_signal_fence(memory_order_seq_cst);
	if (!atomic_compare_exchange_strong(&lua->lock, &held, 0))
		luackvm_pass_lock(lua);
}

/* frame.c ----------------------------------------------------------------- */

/*
 * What is left of a run when it ends, whichever way. Those with a deadline are
 * linked in the order in which they surround one another, or parked while they
 * are suspended.
 */
struct luackvm_frame {
	struct luackvm_frame *outer;
	struct luackvm_thread *thread; /* in whose list it is, or was */
	lua_State *L;		       /* that called run; user value 1 */
	struct luackvm_box *vcpu;      /* user value 2 */
	uint32_t serial;	       /* of the run */
	uint64_t deadline, grace;      /* ns; 0: none, and not linked */
	uint64_t parked;	       /* when, ns */
	bool rested;  /* its clock was set on when it was resumed */
	bool stopped; /* its handler was, once, and went on */
	bool over;
};

/* The innermost frame whose run is not suspended; NULL for none. */
struct luackvm_frame *luackvm_live_frame(struct ckvm_lua *lua);

/* Pushes one for the vCPU's box at 1: a to-be-closed value. */
struct luackvm_frame *luackvm_push_frame(lua_State *L, struct ckvm_lua *lua);

/* The run's deadline is this now (0: none), and it is the innermost run. */
void luackvm_link_frame(struct luackvm_frame *frame, uint64_t deadline);

/*
 * co has yielded: the clocks of the runs in it stand still. It is about to run
 * again: they go on, within the run that resumes it.
 */
void luackvm_park(struct ckvm_lua *lua, lua_State *co);
void luackvm_unpark(struct ckvm_lua *lua, lua_State *co);

/*
 * What thread.c has called in signal handlers: a deadline of the thread's may
 * have passed, or its script is to be interrupted.
 */
void luackvm_late(void *thread);

/* Raises "interrupted!" if ckvm_lua_interrupt() was called. */
void luackvm_check_interrupt(lua_State *L, struct ckvm_lua *lua);

/* wake.c ------------------------------------------------------------------ */

/* Before a wait: there is something to wake it with; or -errno. */
int luackvm_need_wake(struct ckvm_lua *lua);

/* For signal handlers: some wait looks whether it is interrupted. */
void luackvm_interrupt_wait(struct ckvm_lua *lua);

/* So many waits are to end, each of which will say that it leaves. */
void luackvm_wake(struct ckvm_lua *lua, unsigned int waiters);
void luackvm_woken(struct ckvm_lua *lua, bool leaves);
void luackvm_end_wake(struct ckvm_lua *lua);

/* coroutine.c ------------------------------------------------------------- */

/* Puts resume, wrap and close that keep track into the coroutine library. */
void luackvm_track_coroutines(lua_State *L, struct ckvm_lua *lua);

#endif

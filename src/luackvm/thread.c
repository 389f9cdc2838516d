/* SPDX-License-Identifier: MIT */
/*
 * The threads that are in one Lua state: the lock, by which one of them at a
 * time has it, and what stops the script from outside.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "luackvm.h"

/* The lock ---------------------------------------------------------------- */

/* Three states, as in Drepper's "Futexes Are Tricky", mutex 2. */
void luackvm_wait_for_lock(struct ckvm_lua *lua)
{
	int free = 0;

	if (atomic_compare_exchange_strong(&lua->lock, &free, 1))
		return;
	while (atomic_exchange(&lua->lock, 2))
		syscall(SYS_futex, &lua->lock, FUTEX_WAIT_PRIVATE, 2, NULL,
			NULL, 0);
}

void luackvm_pass_lock(struct ckvm_lua *lua)
{
	if (atomic_exchange(&lua->lock, 0) == 2)
		syscall(SYS_futex, &lua->lock, FUTEX_WAKE_PRIVATE, 1, NULL,
			NULL, 0);
}

/* Threads ----------------------------------------------------------------- */

/* No threads' numbers; 0: the entry is free. */
#define RESERVED (-1)

static int own_tid(void)
{
	return (int)syscall(SYS_gettid);
}

/* It is told of kicks from now on. */
void luackvm_claim_thread(struct luackvm_thread *thread)
{
	thread->tid = own_tid();
	ckvm_thread_late(luackvm_late, thread, 0, 0);
}

void luackvm_begin_threads(struct ckvm_lua *lua)
{
	lua->thread = &lua->first;
	lua->pid = getpid();
	lua->first.lua = lua;
	lua->first.inside = true;
	luackvm_claim_thread(&lua->first);
}

void luackvm_end_threads(struct ckvm_lua *lua)
{
	struct luackvm_thread *thread;

	ckvm_thread_late(NULL, NULL, 0, 0);
	while ((thread = lua->first.next)) {
		lua->first.next = thread->next;
		free(thread);
	}
}

static bool has_ended(const struct luackvm_thread *thread)
{
	if (!thread->tid || thread->tid == RESERVED || thread->frame)
		return !thread->tid;
	return syscall(SYS_tgkill, getpid(), thread->tid, 0) < 0 &&
	       errno == ESRCH;
}

struct luackvm_thread *luackvm_new_thread(struct ckvm_lua *lua)
{
	struct luackvm_thread *thread = lua->first.next;

	while (thread && !has_ended(thread))
		thread = thread->next;
	if (!thread) {
		thread = calloc(1, sizeof(*thread));
		if (!thread)
			return NULL;
		thread->lua = lua;
		thread->next = lua->first.next;
		lua->first.next = thread;
	}
	thread->tid = RESERVED;
	thread->running = NULL;
	thread->relieved = NULL;
	return thread;
}

static struct luackvm_thread *find_thread(struct ckvm_lua *lua, int tid)
{
	struct luackvm_thread *thread;

	for (thread = &lua->first; thread; thread = thread->next)
		if (thread->tid == tid)
			return thread;
	thread = luackvm_new_thread(lua);
	if (!thread)
		return &lua->first; /* Ctrl-C may go to another thread then */
	luackvm_claim_thread(thread);
	return thread;
}

void ckvm_lua_lock(struct ckvm_lua *lua)
{
	luackvm_wait_for_lock(lua);
	lua->thread = find_thread(lua, own_tid());
	atomic_store(&lua->thread->inside, true);
}

void ckvm_lua_unlock(struct ckvm_lua *lua)
{
	luackvm_unlock(lua->thread);
}

/* Interrupts -------------------------------------------------------------- */

/*
 * Every thread looks: in a guest, when its KVM_RUN has been ended; in Lua code,
 * by a hook; in between, when it holds the lock again. The first one raises.
 */
void ckvm_lua_interrupt(struct ckvm_lua *lua)
{
	struct luackvm_thread *thread;
	int self = own_tid(), saved = errno;
	/* In a child of fork() one thread is left, with another number. */
	bool child = getpid() != lua->pid;

	atomic_store(&lua->interrupted, true);
	atomic_fetch_add(&lua->changes, 1);
	for (thread = &lua->first; thread; thread = thread->next) {
		if (thread->tid == self || child)
			luackvm_late(thread);
		if (!child)
			ckvm_thread_wake(thread->tid);
	}
	luackvm_interrupt_wait(lua);
	errno = saved;
}

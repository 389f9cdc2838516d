/* SPDX-License-Identifier: MIT */
/*
 * What vm:watch and vm:after wait for, and the thread that does so: watcher.c,
 * which knows nothing of Lua.
 */
#ifndef LUACKVM_WATCHER_H
#define LUACKVM_WATCHER_H

#include <poll.h>
#include <pthread.h>

#include "luackvm.h"

/* Armed: polled. Noted: to be called. Called: to be armed again after that. */
enum luackvm_watch_state { WATCH_ARMED, WATCH_NOTED, WATCH_CALLED };

struct luackvm_watch {
	unsigned int refs;
	struct luackvm_watcher *watcher; /* NULL: detached */
	struct luackvm_watch *next;
	int fd; /* a duplicate, which nobody else closes; -1: none */
	short events;
	uint64_t due; /* by luackvm_now(): its time, or polled from then on */
	enum luackvm_watch_state state;
};

/* What is polled, first of all `wake`: the thread's alone. */
struct polled {
	struct pollfd *fds;
	size_t count, room;
	uint64_t due; /* 0: never */
};

/* A VM's, in its box. The list is changed by who has Lua's lock, and its own.
 */
struct luackvm_watcher {
	struct ckvm_vm *vm;
	struct luackvm_watch *watches;
	struct polled polled;
	pthread_mutex_t lock;
	pthread_t thread;
	bool started, quit;
	int wake; /* eventfd: there is something else to poll; -1: none yet */
};

/* Of the VM, whose struct it keeps. */
void luackvm_begin_watcher(struct luackvm_watcher *watcher, struct ckvm_vm *vm);

/* Has the thread run, if it does not; -errno, of that step. */
int luackvm_start_watcher(struct luackvm_watcher *watcher, const char **step);

/* Detaches all, and ends the thread. It can be started again. */
void luackvm_stop_watcher(struct luackvm_watcher *watcher);

/* A watch with one reference; NULL for want of memory. */
struct luackvm_watch *luackvm_create_watch(void);
void luackvm_ref_watch(struct luackvm_watch *watch);
void luackvm_unref_watch(struct luackvm_watch *watch);

/* From now on it is polled, and the watcher has a reference. */
void luackvm_arm_watch(struct luackvm_watcher *watcher,
		       struct luackvm_watch *watch);
void luackvm_detach_watch(struct luackvm_watch *watch);

/*
 * The next one whose handler is to be called, or NULL: of several, the one that
 * has been due for the longest time, so that all have their turns. Those that
 * were called before, and those that are not ready any more, are polled again.
 */
struct luackvm_watch *luackvm_next_watch(struct luackvm_watcher *watcher);

#endif

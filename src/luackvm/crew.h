/* SPDX-License-Identifier: MIT */
/*
 * The threads of a VM's vCPUs, which sleep between the runs of vm:run: crew.c.
 */
#ifndef LUACKVM_CREW_H
#define LUACKVM_CREW_H

#include <pthread.h>

#include "luackvm.h"

struct crew;

/* A vCPU's thread. */
struct worker {
	struct worker *next;
	struct crew *crew;
	const struct luackvm_box *box;
	struct ckvm_vcpu *vcpu; /* which the box keeps */
	struct luackvm_thread *self;
	lua_State *L;
	pthread_t thread;
	/* Of its last run, under Lua's lock: */
	uint32_t serial;
	int status; /* lua_pcall's */
	bool kept; /* its results are on L, and vm:run has yet to return them */
	/* Under the crew's: */
	bool started, go, quit;
};

struct crew {
	struct ckvm_lua *lua;
	struct worker *workers;
	/* Under Lua's lock: */
	bool busy; /* vm:run is on */
	bool over; /* one of its runs has ended */
	struct worker *first, *failed;
	struct ckvm_limits limits;
	/* And of its own: */
	pthread_mutex_t lock;
	pthread_cond_t wake, done;
	unsigned int working;
};

/*
 * Pushes the crew of the VM whose box is at 1, a new one if need be. It goes
 * with luackvm_end_crew.
 */
struct crew *luackvm_push_crew(lua_State *L, struct ckvm_lua *lua);

/* Has a thread for each vCPU that is open, with the crew at 2; may raise. */
void luackvm_staff(lua_State *L, struct crew *crew);

/* Has each of them ready for a run, which luackvm_send_to_work begins. */
void luackvm_prepare(lua_State *L, struct crew *crew);

/* Sleeps until all `count` are done. Without Lua's lock. */
void luackvm_send_to_work(struct crew *crew, int count);

/* Ends the threads. */
void luackvm_dismiss_all(struct crew *crew);

#endif

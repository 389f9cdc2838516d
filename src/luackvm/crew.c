/* SPDX-License-Identifier: MIT */
/*
 * The threads of a VM's vCPUs, one for each, which sleep between the runs.
 *
 * They are sent to work, and the first that is done has the others relieved:
 * their guests are left, their last exits answered. Each has a lua_State of its
 * own, and is in a protected call wherever it touches that.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "crew.h"

static const char crew_key;

/* A run of a vCPU --------------------------------------------------------- */

/* Of the vCPU's box, and the crew: why it ended, the vCPU, and a value. */
static int run_one(lua_State *L)
{
	const struct crew *crew = lua_touserdata(L, 2);
	int end, results;

	lua_settop(L, 1);
	luackvm_check(L, 1, &luackvm_vcpu);
	end = luackvm_run_with(L, &crew->limits);
	if (luackvm_is_signal(end))
		return 0; /* relieved */
	results = luackvm_push_end(L, end);
	lua_pushvalue(L, 1);
	if (results == 2)
		lua_insert(L, -2);
	return results + 1;
}

/* Has the others leave their guests, with what they are at answered. */
static void relieve(struct crew *crew)
{
	struct worker *worker;

	crew->over = true;
	for (worker = crew->workers; worker; worker = worker->next) {
		worker->self->relieved = worker->vcpu;
		ckvm_vcpu_wake(worker->vcpu);
	}
}

/*
 * Ends that would be lost if vm:run did not return them, now or later: not
 * those of limits, and of who is relieved. Numbers are left as they are.
 */
static bool is_to_be_kept(const struct worker *worker)
{
	return !lua_isnil(worker->L, -3) &&
	       !luackvm_is(worker->L, -3, "timeout") &&
	       !luackvm_is(worker->L, -3, "exits");
}

static void work_once(struct worker *worker)
{
	struct crew *crew = worker->crew;
	lua_State *L = worker->L;

	luackvm_lock(worker->self);
	worker->self->running = L;
	worker->status = lua_pcall(L, 2, 3, 0);
	worker->serial = ckvm_vcpu_run_serial(worker->vcpu);
	worker->kept = worker->status == LUA_OK && is_to_be_kept(worker);
	if (worker->status != LUA_OK && !crew->failed)
		crew->failed = worker;
	if (!crew->over) {
		crew->first = worker;
		relieve(crew);
	}
	luackvm_unlock(worker->self);
}

/* Threads ----------------------------------------------------------------- */

/* For top -H, and debuggers. */
static void show_name(const struct worker *worker)
{
	char name[16];

	snprintf(name, sizeof(name), "vCPU %lu", ckvm_vcpu_id(worker->vcpu));
	prctl(PR_SET_NAME, name);
}

static void *work(void *opaque)
{
	struct worker *worker = opaque;
	struct crew *crew = worker->crew;

	luackvm_claim_thread(worker->self);
	show_name(worker);
	pthread_mutex_lock(&crew->lock);
	worker->started = true;
	pthread_cond_broadcast(&crew->done);
	while (!worker->quit) {
		if (!worker->go) {
			pthread_cond_wait(&crew->wake, &crew->lock);
			continue;
		}
		worker->go = false;
		pthread_mutex_unlock(&crew->lock);
		work_once(worker);
		pthread_mutex_lock(&crew->lock);
		crew->working--;
		pthread_cond_broadcast(&crew->done);
	}
	pthread_mutex_unlock(&crew->lock);
	return NULL;
}

/* Signals are the host's, but for kicks and what the thread itself does. */
static int start_thread(struct worker *worker)
{
	static const int own[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP };
	sigset_t blocked, before;
	int error;

	sigfillset(&blocked);
	for (size_t i = 0; i < ARRAY_SIZE(own); i++)
		sigdelset(&blocked, own[i]);
	sigdelset(&blocked, ckvm_kick_signal());
	pthread_sigmask(SIG_SETMASK, &blocked, &before);
	error = pthread_create(&worker->thread, NULL, work, worker);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -error;
}

static void await_start(struct worker *worker)
{
	struct crew *crew = worker->crew;

	pthread_mutex_lock(&crew->lock);
	while (!worker->started)
		pthread_cond_wait(&crew->done, &crew->lock);
	pthread_mutex_unlock(&crew->lock);
}

/* Sleeping, or never started. */
static void dismiss(struct worker *worker)
{
	struct crew *crew = worker->crew;

	if (worker->started) {
		pthread_mutex_lock(&crew->lock);
		worker->quit = true;
		pthread_cond_broadcast(&crew->wake);
		pthread_mutex_unlock(&crew->lock);
		pthread_join(worker->thread, NULL);
	}
	if (worker->self)
		worker->self->tid = 0; /* for another one */
	free(worker);
}

/*
 * The state is being closed by a handler, in one of the threads: the others are
 * to be out of it. Who has called vm:run sleeps until the process ends.
 */
static void clear_out(struct crew *crew)
{
	struct luackvm_thread *thread = crew->lua->thread;

	relieve(crew);
	luackvm_unlock(thread);
	pthread_mutex_lock(&crew->lock);
	while (crew->working > 1)
		pthread_cond_wait(&crew->done, &crew->lock);
	pthread_mutex_unlock(&crew->lock);
	luackvm_lock(thread);
}

/* But for the one that is closing the state. */
void luackvm_dismiss_all(struct crew *crew)
{
	struct worker *worker, *self = NULL;

	while ((worker = crew->workers)) {
		crew->workers = worker->next;
		if (crew->busy && worker->self == crew->lua->thread)
			self = worker;
		else
			dismiss(worker);
	}
	crew->workers = self;
}

static int end_crew(lua_State *L)
{
	struct crew *crew = lua_touserdata(L, 1);

	if (crew->busy)
		clear_out(crew);
	luackvm_dismiss_all(crew);
	return 0;
}

void luackvm_end_crew(lua_State *L, int vm)
{
	struct crew *crew;

	if (lua_getiuservalue(L, vm, VM_CREW) == LUA_TUSERDATA) {
		crew = lua_touserdata(L, -1);
		if (!crew->busy) /* or else vm:run sees to it */
			luackvm_dismiss_all(crew);
	}
	lua_pop(L, 1);
}

/* The crew ---------------------------------------------------------------- */

/* Pushes the VM's, a new one if need be. The VM's box is at 1. */
struct crew *luackvm_push_crew(lua_State *L, struct ckvm_lua *lua)
{
	struct crew *crew;

	if (lua_getiuservalue(L, 1, VM_CREW) == LUA_TUSERDATA)
		return lua_touserdata(L, -1);
	lua_pop(L, 1);
	crew = lua_newuserdatauv(L, sizeof(*crew), 1);
	memset(crew, 0, sizeof(*crew));
	crew->lua = lua;
	pthread_mutex_init(&crew->lock, NULL);
	pthread_cond_init(&crew->wake, NULL);
	pthread_cond_init(&crew->done, NULL);
	lua_newtable(L);
	lua_setiuservalue(L, -2, 1);
	luackvm_collect_with(L, &crew_key, end_crew);
	lua_pushvalue(L, -1);
	lua_setiuservalue(L, 1, VM_CREW);
	return crew;
}

static struct worker *find_worker(const struct crew *crew,
				  const struct luackvm_box *box)
{
	struct worker *worker = crew->workers;

	while (worker && worker->box != box)
		worker = worker->next;
	return worker;
}

/* Has the crew, at 2, keep the value on top for the worker; pops it. */
static void anchor(lua_State *L, const void *key)
{
	lua_getiuservalue(L, 2, 1);
	lua_insert(L, -2);
	lua_rawsetp(L, -2, key);
	lua_pop(L, 1);
}

/* Links a worker for the vCPU's box, which the crew keeps. */
static struct worker *new_worker(lua_State *L, struct crew *crew,
				 struct luackvm_box *box)
{
	struct worker *worker = calloc(1, sizeof(*worker));

	if (!worker)
		luackvm_fail_call(L, "malloc", -ENOMEM, NULL);
	worker->crew = crew;
	worker->box = box;
	worker->vcpu = box->object;
	worker->next = crew->workers;
	crew->workers = worker;
	return worker;
}

/*
 * The vCPU's box and a thread of Lua's for its worker are on top; pops the
 * latter. What raises in here leaves a worker that is dismissed next time.
 */
static void hire(lua_State *L, struct crew *crew, struct luackvm_box *box)
{
	struct worker *worker;
	int error;

	lua_pushvalue(L, -2);
	anchor(L, box);
	worker = new_worker(L, crew, box);
	worker->L = lua_tothread(L, -1);
	anchor(L, worker);
	worker->self = luackvm_new_thread(crew->lua);
	if (!worker->self)
		luackvm_fail_call(L, "malloc", -ENOMEM, NULL);
	error = start_thread(worker);
	if (error)
		luackvm_fail_call(L, "pthread_create", error, NULL);
	await_start(worker);
}

/*
 * Has one for the vCPU's box on top. Finalizers, which a new thread of Lua's
 * may have run, come first: one may close the VM, or run it, as well.
 */
static void need_worker(lua_State *L, struct crew *crew)
{
	struct luackvm_box *box = lua_touserdata(L, -1);

	if (find_worker(crew, box))
		return;
	lua_newthread(L);
	if (box->object && !find_worker(crew, box))
		hire(L, crew, box);
	else
		lua_pop(L, 1);
}

/* Threads of vCPUs that are closed, or gone with an error of hire(). */
static void dismiss_idle(lua_State *L, struct crew *crew)
{
	struct worker **at = &crew->workers, *worker;

	while ((worker = *at)) {
		if (worker->box->object && worker->started) {
			at = &worker->next;
			continue;
		}
		*at = worker->next;
		lua_pushnil(L);
		anchor(L, worker);
		lua_pushnil(L);
		anchor(L, worker->box);
		dismiss(worker);
	}
}

/* A thread for each vCPU that is open. */
void luackvm_staff(lua_State *L, struct crew *crew)
{
	dismiss_idle(L, crew);
	luackvm_list_vcpus(L, luackvm_box(L, 1, &luackvm_vm));
	for (int i = 1; lua_rawgeti(L, -1, i) != LUA_TNIL; i++) {
		need_worker(L, crew);
		lua_pop(L, 1);
	}
	lua_settop(L, 2);
}

/* Puts the call on each worker's stack, for lua_pcall. */
void luackvm_prepare(lua_State *L, struct crew *crew)
{
	struct worker *worker;

	lua_getiuservalue(L, 2, 1);
	for (worker = crew->workers; worker; worker = worker->next) {
		lua_settop(worker->L, 0);
		worker->kept = false;
		worker->self->relieved = NULL;
		lua_pushcfunction(worker->L, run_one);
		lua_rawgetp(L, -1, worker->box);
		luackvm_forget_stop(L);
		lua_xmove(L, worker->L, 1);
		lua_pushlightuserdata(worker->L, crew);
	}
	lua_pop(L, 1);
	crew->first = crew->failed = NULL;
	crew->over = false;
}

void luackvm_send_to_work(struct crew *crew, int count)
{
	struct worker *worker;

	pthread_mutex_lock(&crew->lock);
	crew->working = (unsigned int)count;
	for (worker = crew->workers; worker; worker = worker->next)
		worker->go = true;
	pthread_cond_broadcast(&crew->wake);
	while (crew->working)
		pthread_cond_wait(&crew->done, &crew->lock);
	pthread_mutex_unlock(&crew->lock);
}

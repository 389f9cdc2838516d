/* SPDX-License-Identifier: MIT */
/*
 * vm:run(): all vCPUs of a VM at once, each by a thread of its own, which
 * sleeps between the runs.
 *
 * Whoever calls it prepares everything that may raise, sends the threads to
 * work, and sleeps until all of them are done. The first that is done has the
 * others relieved: their guests are left, their last exits answered. Each has
 * a lua_State of its own, and is in a protected call wherever it touches that.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

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
	if (end == -EINTR)
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

/* Ends that would be lost if vm:run did not return them, now or later. */
static bool is_to_be_kept(const struct worker *worker)
{
	const char *why = lua_tostring(worker->L, -3);

	return why && strcmp(why, "timeout") && strcmp(why, "exits");
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
static void dismiss_all(struct crew *crew)
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
	dismiss_all(crew);
	return 0;
}

void luackvm_end_crew(lua_State *L, int vm)
{
	struct crew *crew;

	if (lua_getiuservalue(L, vm, VM_CREW) == LUA_TUSERDATA) {
		crew = lua_touserdata(L, -1);
		if (!crew->busy) /* or else vm:run sees to it */
			dismiss_all(crew);
	}
	lua_pop(L, 1);
}

/* The crew ---------------------------------------------------------------- */

/* Pushes the VM's, a new one if need be. The VM's box is at 1. */
static struct crew *push_crew(lua_State *L, struct ckvm_lua *lua)
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

/* Links a worker for the vCPU's box on top, which the crew keeps by then. */
static struct worker *new_worker(lua_State *L, struct crew *crew,
				 struct luackvm_box *box)
{
	struct worker *worker;

	lua_pushvalue(L, -1);
	anchor(L, box);
	worker = calloc(1, sizeof(*worker));
	if (!worker)
		luackvm_fail_call(L, "malloc", -ENOMEM, NULL);
	worker->crew = crew;
	worker->box = box;
	worker->vcpu = box->object;
	worker->next = crew->workers;
	crew->workers = worker;
	return worker;
}

/* What raises in here leaves one that is dismissed next time. */
static void hire(lua_State *L, struct crew *crew, struct luackvm_box *box)
{
	struct worker *worker = new_worker(L, crew, box);
	int error;

	worker->L = lua_newthread(L);
	anchor(L, worker);
	worker->self = luackvm_new_thread(crew->lua);
	if (!worker->self)
		luackvm_fail_call(L, "malloc", -ENOMEM, NULL);
	error = start_thread(worker);
	if (error)
		luackvm_fail_call(L, "pthread_create", error, NULL);
	await_start(worker);
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
static void staff(lua_State *L, struct crew *crew)
{
	dismiss_idle(L, crew);
	luackvm_list_vcpus(L, luackvm_box(L, 1, &luackvm_vm));
	for (int i = 1; lua_rawgeti(L, -1, i) != LUA_TNIL; i++) {
		struct luackvm_box *box = lua_touserdata(L, -1);

		if (!find_worker(crew, box))
			hire(L, crew, box);
		lua_pop(L, 1);
	}
	lua_settop(L, 2);
}

/* vm:run ------------------------------------------------------------------ */

/* Puts the call on each worker's stack, for lua_pcall. */
static void prepare(lua_State *L, struct crew *crew)
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

static void unclaim(struct crew *crew, const struct worker *last)
{
	struct worker *worker;

	for (worker = crew->workers; worker != last; worker = worker->next)
		ckvm_vcpu_unclaim(worker->vcpu);
}

/* The vCPUs are their threads' alone from now on: all of them, or none. */
static int claim(struct crew *crew, int *count)
{
	struct worker *worker;
	int error;

	*count = 0;
	for (worker = crew->workers; worker; worker = worker->next) {
		error = ckvm_vcpu_claim(worker->vcpu, worker->self->tid);
		if (error) {
			unclaim(crew, worker);
			return error;
		}
		++*count;
	}
	return 0;
}

static void send_to_work(struct crew *crew, int count)
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

/* Coroutines that its handlers have resumed leave it anchored: luackvm_enter.
 */
static void let_go(lua_State *L, const struct crew *crew)
{
	const struct worker *worker;

	for (worker = crew->workers; worker; worker = worker->next) {
		lua_pushnil(L);
		lua_rawsetp(L, LUA_REGISTRYINDEX, worker->self);
	}
}

/* The lock is given up as around KVM_RUN. */
static void work_together(lua_State *L, struct crew *crew, int count)
{
	struct luackvm_thread *thread = crew->lua->thread;

	crew->busy = true;
	luackvm_unlock(thread);
	send_to_work(crew, count);
	luackvm_lock(thread);
	thread->running = L;
	crew->busy = false;
	unclaim(crew, NULL);
	let_go(L, crew);
}

/* Returns what the worker's run has ended with. */
static int take_results(lua_State *L, struct worker *worker)
{
	worker->kept = false;
	lua_xmove(worker->L, L, 3);
	return lua_isnil(L, -1) ? lua_pop(L, 1), 2 : 3;
}

/* An end that was not the first, of a vCPU that has not run since. */
static struct worker *find_kept(const struct crew *crew)
{
	struct worker *worker = crew->workers;

	while (worker &&
	       !(worker->kept && worker->box->object &&
		 worker->serial == ckvm_vcpu_run_serial(worker->vcpu)))
		worker = worker->next;
	return worker;
}

/* Pushes a list of the errors that are not the first. */
static void push_others(lua_State *L, const struct crew *crew)
{
	struct worker *worker;
	lua_Integer count = 0;

	lua_newtable(L);
	for (worker = crew->workers; worker; worker = worker->next)
		if (worker->status != LUA_OK && worker != crew->failed) {
			lua_xmove(worker->L, L, 1);
			lua_rawseti(L, -2, ++count);
		}
}

/* Pushes the string at index with the texts of the list on top behind it. */
static void push_texts(lua_State *L, int string)
{
	int list = lua_gettop(L);

	lua_pushvalue(L, string);
	for (int i = 1; lua_rawgeti(L, list, i) != LUA_TNIL; i++) {
		lua_pushliteral(L, "\nand on another vCPU: ");
		luaL_tolstring(L, -2, NULL);
		lua_remove(L, -3);
		lua_concat(L, 3);
	}
	lua_pop(L, 1);
}

/* Pushes the first error, with the others in it. */
static void push_errors(lua_State *L, const struct crew *crew)
{
	int first = lua_gettop(L) + 1;

	lua_xmove(crew->failed->L, L, 1);
	push_others(L, crew);
	if (lua_type(L, first) == LUA_TSTRING) {
		push_texts(L, first);
		return;
	}
	if (lua_istable(L, first) && lua_rawlen(L, -1)) {
		lua_pushliteral(L, "others");
		lua_insert(L, -2);
		lua_rawset(L, first);
	}
	lua_settop(L, first);
}

static struct crew *free_crew(lua_State *L, struct ckvm_lua *lua)
{
	struct crew *crew = push_crew(L, lua);

	if (crew->busy)
		luaL_error(L, "run: the VM is running");
	return crew;
}

/* An absolute time, so that it is one for all. */
static void fix_deadline(struct ckvm_lua *lua, struct ckvm_limits *limits)
{
	uint64_t now = luackvm_now();

	luackvm_inherit_deadline(lua, limits);
	if (!(limits->flags & CKVM_LIMIT_TIMEOUT) ||
	    limits->timeout_ns > INT64_MAX - now)
		return;
	if (!(limits->flags & CKVM_LIMIT_DEADLINE) ||
	    now + limits->timeout_ns < limits->deadline_ns)
		limits->deadline_ns = now + limits->timeout_ns;
	limits->flags |= CKVM_LIMIT_DEADLINE;
}

/* What it comes to; the VM may have been closed by a handler. */
static int finish(lua_State *L, struct crew *crew, bool closed)
{
	bool failed = crew->failed;
	int results = 0;

	if (failed)
		push_errors(L, crew);
	else
		results = take_results(L, crew->first);
	if (closed)
		dismiss_all(crew);
	return failed ? lua_error(L) : results;
}

/***
 * Runs all vCPUs of the VM at once, each in a thread of its own, until the
 * first of them ends its run. The others are got out of the guest, with their
 * last exits answered.
 *
 * Handlers run one at a time, as Lua does; the guest runs meanwhile on the
 * other vCPUs. A handler may use the vCPU that it is called with; another one
 * refuses everything but `kick` and `stop` until `vm:run` has returned. It may
 * resume coroutines, but not yield out of the run.
 *
 * If several vCPUs have an exit that nobody handles, or were stopped or kicked,
 * the next `vm:run` returns the next of them at once.
 *
 * @function vm:run
 * @tparam[opt] table options
 * @tparam[opt] number options.timeout seconds from now on; 0 expires at once
 * @tparam[opt] integer options.exits how many exits to handle, of each vCPU
 * @treturn string why the first one ended, as from `vcpu:run`
 * @treturn vcpu that one
 * @treturn[opt] any after "stopped", the value given to `vcpu:stop`
 * @raise what a handler raises, as it is: the first one, with a list of those
 *  on other vCPUs in its field `others`, or their texts behind it if it is a
 *  string; `EBUSY` while another thread runs one of the vCPUs; `EAGAIN` if
 *  there can be no more threads; what `vcpu:run` raises
 * @api 4.10 KVM_RUN
 * @usage
 * local why, which, value = vm:run { timeout = 1 }
 */
int luackvm_run_vm(lua_State *L)
{
	struct ckvm_limits limits = { .size = sizeof(limits) };
	const struct luackvm_box *box = luackvm_box(L, 1, &luackvm_vm);
	struct worker *kept;
	struct crew *crew;
	int error, count;

	luackvm_check(L, 1, &luackvm_vm);
	if (!lua_isnoneornil(L, 2))
		luackvm_read_limits(L, &limits);
	lua_settop(L, 1);
	luackvm_enter(box->lua, L);
	crew = free_crew(L, box->lua);
	staff(L, crew);
	if (!crew->workers)
		return luaL_error(L, "run: the VM has no vCPU");
	kept = find_kept(crew);
	if (kept)
		return take_results(L, kept);
	fix_deadline(box->lua, &limits);
	prepare(L, crew);
	crew->limits = limits;
	error = claim(crew, &count);
	if (error)
		return luackvm_fail(L, error, NULL);
	work_together(L, crew, count);
	luackvm_check_interrupt(L, box->lua);
	return finish(L, crew, !box->object);
}

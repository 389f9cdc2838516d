/* SPDX-License-Identifier: MIT */
/*
 * vm:run(): all vCPUs of a VM at once, by the threads of crew.c.
 *
 * Whoever calls it prepares everything that may raise, sends the threads to
 * work, and sleeps until all of them are done.
 */
#include "crew.h"

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
	luackvm_send_to_work(crew, count);
	luackvm_lock(thread);
	thread->running = L;
	crew->busy = false;
	unclaim(crew, NULL);
	let_go(L, crew);
}

/* Returns what the worker's run has ended with, or raises it. */
static int take_results(lua_State *L, struct worker *worker)
{
	worker->kept = false;
	if (worker->status != LUA_OK) {
		lua_xmove(worker->L, L, 1);
		return lua_error(L);
	}
	lua_xmove(worker->L, L, 3);
	return lua_isnil(L, -1) ? lua_pop(L, 1), 2 : 3;
}

/* An end that has not been told, of a vCPU that has not run since. */
static struct worker *find_kept(const struct crew *crew)
{
	struct worker *worker = crew->workers;

	while (worker &&
	       !(worker->kept && worker->box->object &&
		 worker->serial == ckvm_vcpu_run_serial(worker->vcpu)))
		worker = worker->next;
	return worker;
}

/* The next error behind `worker`, but for the first that there was; or NULL. */
static struct worker *next_failed(const struct crew *crew,
				  const struct worker *worker)
{
	struct worker *next = worker ? worker->next : crew->workers;

	while (next && (next->status == LUA_OK || next == crew->failed))
		next = next->next;
	return next;
}

/* Pushes a list of the errors that are not the first. */
static void push_others(lua_State *L, const struct crew *crew)
{
	struct worker *worker = NULL;
	lua_Integer count = 0;

	lua_newtable(L);
	while ((worker = next_failed(crew, worker))) {
		lua_xmove(worker->L, L, 1);
		if (lua_isnil(L, -1)) { /* which a list cannot hold */
			lua_pop(L, 1);
			lua_pushliteral(L, "(error object is a nil value)");
		}
		lua_rawseti(L, -2, ++count);
	}
}

/* The next runs raise them. */
static void keep_others(const struct crew *crew)
{
	struct worker *worker = NULL;

	while ((worker = next_failed(crew, worker)))
		worker->kept = true;
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

/* Pushes the first error, with the others in it if it can hold them. */
static void push_errors(lua_State *L, const struct crew *crew)
{
	int first = lua_gettop(L) + 1;

	lua_xmove(crew->failed->L, L, 1);
	if (lua_type(L, first) == LUA_TSTRING) {
		push_others(L, crew);
		push_texts(L, first);
	} else if (!lua_istable(L, first)) {
		keep_others(crew);
	} else if (next_failed(crew, NULL)) {
		lua_pushliteral(L, "others");
		push_others(L, crew);
		lua_rawset(L, first);
	}
}

static struct crew *free_crew(lua_State *L, struct ckvm_lua *lua)
{
	struct crew *crew = luackvm_push_crew(L, lua);

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
		luackvm_dismiss_all(crew);
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
 * the next `vm:run` returns the next of them at once. So it raises the next
 * error if the first is neither a table nor a string, which could hold it.
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
 *  string, or else alone; `EBUSY` while another thread runs one of the vCPUs;
 * `EAGAIN` if there can be no more threads; what `vcpu:run` raises
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
	luackvm_staff(L, crew);
	if (!crew->workers)
		return luaL_error(L, "run: the VM has no vCPU");
	kept = find_kept(crew);
	if (kept)
		return take_results(L, kept);
	fix_deadline(box->lua, &limits);
	luackvm_prepare(L, crew);
	crew->limits = limits;
	error = claim(crew, &count);
	if (error)
		return luackvm_fail(L, error, NULL);
	work_together(L, crew, count);
	luackvm_check_interrupt(L, box->lua);
	return finish(L, crew, !box->object);
}

/* SPDX-License-Identifier: MIT */
/*
 * vcpu:run(): the loop of libckvm, and Lua handlers for what it hands back.
 *
 * The stack of a run: the vCPU's box, the VM's handlers, and a frame. A handler
 * may raise or yield out of here at any call, and may close the vCPU or begin
 * another run of it; nothing else is held, and all of that is looked at again
 * when the handler is back.
 */
#include <errno.h>
#include <string.h>

#include "call.h"

/* How long a handler may go on after the deadline, before it is stopped. */
#define LEAST_GRACE 50000000u /* ns */
#define MOST_GRACE 1000000000u

static const char *const ends[] = {
	[CKVM_STOPPED] = "stopped",
	[CKVM_KICKED] = "kicked",
	[CKVM_TIMEOUT] = "timeout",
	[CKVM_EXITS] = "exits",
};

static struct ckvm_vcpu *vcpu_of(lua_State *L)
{
	struct luackvm_box *box = lua_touserdata(L, RUN_VCPU);

	return box->object;
}

static struct ckvm_lua *lua_of(lua_State *L)
{
	struct luackvm_box *box = lua_touserdata(L, RUN_VCPU);

	return box->lua;
}

/*
 * Was the range of the access detached while this thread waited for the lock?
 * Then its slots are free, or another's.
 */
static bool is_orphan(lua_State *L, const struct ckvm_access *access)
{
	lua_Integer base = (lua_Integer)((uintptr_t)access->opaque / 2);
	const struct luackvm_box *box;
	bool same;

	if (!access->range)
		return false;
	lua_rawgeti(L, RUN_HANDLERS, base + SLOT_RANGE);
	box = luackvm_test(L, -1, &luackvm_range);
	same = box && box->object == access->range &&
	       access->address - ckvm_range_first(box->object) <
		       ckvm_range_count(box->object);
	lua_pop(L, 1);
	return !same;
}

/*
 * Something has changed while the lock was not held: there may be nobody left
 * to answer, or nothing to answer, or it may be time to stop.
 */
static __attribute__((noinline)) int
look_again(lua_State *L, struct ckvm_lua *lua, struct ckvm_vcpu *vcpu, int end)
{
	if (end >= 0 && !vcpu_of(L))
		end = ckvm_vcpu_continue(vcpu); /* says that it is closed */
	/* All ones for a read, as where nobody was attached. */
	while (end == CKVM_ACCESS && is_orphan(L, ckvm_vcpu_access(vcpu)))
		end = ckvm_vcpu_continue(vcpu);
	if (lua->interrupted)
		luackvm_late(lua->thread);
	return end;
}

/*
 * Into the guest, to begin a run or to go on with one: the one place where the
 * lock is given up, beside waits. Another thread may run Lua meanwhile.
 */
static inline int
enter(lua_State *L, struct ckvm_lua *lua, struct ckvm_vcpu *vcpu,
      const struct ckvm_limits *limits,
      int (*begin)(struct ckvm_vcpu *, const struct ckvm_limits *))
{
	struct luackvm_thread *thread = lua->thread;
	unsigned int changes =
		atomic_load_explicit(&lua->changes, memory_order_relaxed);
	int end;

	luackvm_unlock(thread);
	end = unlikely(begin) ? begin(vcpu, limits) : ckvm_vcpu_continue(vcpu);
	luackvm_lock(thread);
	atomic_store_explicit(&thread->running, L, memory_order_relaxed);
	if (unlikely(changes !=
		     atomic_load_explicit(&lua->changes, memory_order_relaxed)))
		end = look_again(L, lua, vcpu, end);
	return end;
}

/* The loop ---------------------------------------------------------------- */

static inline lua_KContext make_context(const struct ckvm_vcpu *vcpu,
					enum luackvm_call call)
{
	return (lua_KContext)ckvm_vcpu_run_serial(vcpu) << 8 | call;
}

static inline enum luackvm_call call_of(lua_KContext context)
{
	return (enum luackvm_call)(context & 0xff);
}

/* The vCPU, if the run that called the handler is still the vCPU's. */
static inline struct ckvm_vcpu *check_run(const struct luackvm_box *box,
					  lua_State *L, lua_KContext context)
{
	struct ckvm_vcpu *vcpu = box->object;

	if (!vcpu)
		luaL_error(L, "the vCPU was closed by a handler of its run");
	if (ckvm_vcpu_run_serial(vcpu) != (uint32_t)(context >> 8))
		luaL_error(L, "run abandoned: another run of the vCPU has "
			      "begun");
	return vcpu;
}

/* Nobody handles the exit; but a handler may have asked for a stop. */
static int unhandled(const struct ckvm_vcpu *vcpu)
{
	return ckvm_vcpu_is_stopping(vcpu) ? CKVM_STOPPED : CKVM_EXIT;
}

/* Calls handlers until the run is over; returns how it ended, or -errno. */
static int serve(lua_State *L, struct ckvm_lua *lua, struct ckvm_vcpu *vcpu,
		 int end, lua_KFunction returned)
{
	const struct luackvm_box *box = lua_touserdata(L, RUN_VCPU);
	lua_KContext context;
	enum luackvm_call call;
	int args;

	for (;;) {
		if (luackvm_is_signal(end)) {
			luackvm_check_interrupt(L, lua);
			if (luackvm_push_event(L, vcpu, &args)) {
				context = make_context(vcpu, CALL_WRITE);
				lua_callk(L, args, 0, context, returned);
				vcpu = check_run(box, L, context);
			} else if (!returned || lua->thread->relieved == vcpu) {
				/* A host's will, or vm:run is over. */
				return end;
			}
			end = enter(L, lua, vcpu, NULL, NULL);
			continue;
		}
		call = luackvm_push_call(L, vcpu, end, &args);
		if (call == CALL_NONE)
			break;
		context = make_context(vcpu, call);
		if (call == CALL_WRITE) {
			lua_callk(L, args, 0, context, returned);
			vcpu = check_run(box, L, context);
		} else {
			lua_callk(L, args, 1, context, returned);
			vcpu = check_run(box, L, context);
			if (!luackvm_take_result(L, vcpu, call))
				return unhandled(vcpu);
			lua_settop(L, RUN_FRAME);
		}
		end = enter(L, lua, vcpu, NULL, NULL);
	}
	return end == CKVM_ACCESS || end == CKVM_EXIT ? unhandled(vcpu) : end;
}

/*
 * Its coroutine was resumed where we did not see it, or has no deadline, and
 * another run may be around it now.
 */
static void resumed(struct ckvm_lua *lua, struct ckvm_vcpu *vcpu,
		    struct luackvm_frame *frame)
{
	const struct luackvm_frame *outer;
	bool linked = frame && frame->deadline; /* finish has none */

	if (linked)
		luackvm_link_frame(frame, 0);
	outer = luackvm_live_frame(lua);
	ckvm_vcpu_rest(vcpu, outer ? outer->deadline : 0);
	if (linked || (frame && ckvm_vcpu_deadline(vcpu)))
		luackvm_link_frame(frame, ckvm_vcpu_deadline(vcpu));
}

/* A handler has yielded, and its coroutine was resumed until it returned. */
static int go_on(lua_State *L, int status, lua_KContext context,
		 lua_KFunction returned)
{
	struct ckvm_vcpu *vcpu =
		check_run(lua_touserdata(L, RUN_VCPU), L, context);
	struct ckvm_lua *lua = lua_of(L);
	struct luackvm_frame *frame = lua_touserdata(L, RUN_FRAME);

	luackvm_enter(lua, L);
	if (status == LUA_YIELD && !(frame && frame->rested))
		resumed(lua, vcpu, frame);
	if (frame)
		frame->rested = false;
	if (call_of(context) != CALL_WRITE &&
	    !luackvm_take_result(L, vcpu, call_of(context)))
		return unhandled(vcpu);
	lua_settop(L, RUN_FRAME);
	return serve(L, lua, vcpu, enter(L, lua, vcpu, NULL, NULL), returned);
}

/* Starting ---------------------------------------------------------------- */

/* An inner run ends with the one around it. */
void luackvm_inherit_deadline(struct ckvm_lua *lua, struct ckvm_limits *limits)
{
	const struct luackvm_frame *outer = luackvm_live_frame(lua);

	if (!outer)
		return;
	if (!(limits->flags & CKVM_LIMIT_DEADLINE) ||
	    outer->deadline < limits->deadline_ns)
		limits->deadline_ns = outer->deadline;
	limits->flags |= CKVM_LIMIT_DEADLINE;
}

static uint64_t choose_grace(const struct ckvm_limits *limits)
{
	uint64_t grace = limits->flags & CKVM_LIMIT_TIMEOUT ? limits->timeout_ns
							    : LEAST_GRACE;

	return grace < LEAST_GRACE  ? LEAST_GRACE
	       : grace > MOST_GRACE ? MOST_GRACE
				    : grace;
}

void luackvm_forget_stop(lua_State *L)
{
	lua_pushnil(L);
	lua_setiuservalue(L, -2, VCPU_STOP);
}

static int run_returned(lua_State *L, int status, lua_KContext context);

/* Fills the stack of a run from the vCPU's box, which is alone on it. */
static void push_handlers(lua_State *L)
{
	luaL_checkstack(L, 16, NULL);
	lua_getiuservalue(L, RUN_VCPU, VCPU_VM);
	lua_getiuservalue(L, -1, VM_HANDLERS);
	lua_replace(L, RUN_HANDLERS);
}

/* The vCPU's box is alone on the stack. Returns how the run ended. */
static int start(lua_State *L, struct ckvm_lua *lua, struct ckvm_limits *limits,
		 lua_KFunction returned)
{
	struct ckvm_vcpu *vcpu = vcpu_of(L);
	struct luackvm_frame *frame;
	int end;

	luackvm_enter(lua, L);
	push_handlers(L);
	limits->flags |= CKVM_LIMIT_SIGNALS;
	luackvm_inherit_deadline(lua, limits);
	frame = luackvm_push_frame(L, lua);
	frame->grace = choose_grace(limits);
	if (limits->flags & (CKVM_LIMIT_TIMEOUT | CKVM_LIMIT_DEADLINE))
		luackvm_link_frame(frame, UINT64_MAX); /* not yet known */
	luackvm_look_for_events(L, vcpu);
	end = enter(L, lua, vcpu, limits, ckvm_vcpu_run);
	frame->serial = ckvm_vcpu_run_serial(vcpu);
	if (frame->deadline)
		luackvm_link_frame(frame, ckvm_vcpu_deadline(vcpu));
	return serve(L, lua, vcpu, end, returned);
}

void luackvm_read_limits(lua_State *L, struct ckvm_limits *limits)
{
	static const char *const keys[] = { "timeout", "exits", NULL };

	luackvm_check_keys(L, 2, "run", keys);
	if (luackvm_has(L, 2, "timeout")) {
		limits->flags |= CKVM_LIMIT_TIMEOUT;
		limits->timeout_ns = luackvm_seconds(L, 2, "timeout");
	}
	if (luackvm_has(L, 2, "exits")) {
		limits->flags |= CKVM_LIMIT_EXITS;
		limits->exits = (uint64_t)luackvm_integer(L, 2, "exits", 0,
							  LUA_MAXINTEGER);
	}
}

int luackvm_push_end(lua_State *L, int end)
{
	struct ckvm_vcpu *vcpu = vcpu_of(L);

	if (luackvm_is_signal(end))
		end = CKVM_KICKED; /* within a handler, by the end of vm:run */
	if (end < 0)
		return luackvm_fail(L, end, NULL);
	if (end == CKVM_EXIT)
		luackvm_push_exit_name(L, ckvm_vcpu_exit_number(vcpu));
	else
		lua_pushstring(L, ends[end]);
	if (end != CKVM_STOPPED)
		return 1;
	lua_getiuservalue(L, RUN_VCPU, VCPU_STOP);
	lua_pushnil(L);
	lua_setiuservalue(L, RUN_VCPU, VCPU_STOP);
	return 2;
}

static int run_returned(lua_State *L, int status, lua_KContext context)
{
	return luackvm_push_end(L, go_on(L, status, context, run_returned));
}

/***
 * Runs the guest until an exit that nobody handles, or one of the limits.
 * Limits and `vcpu:stop` take effect after the whole exit.
 *
 * @function vcpu:run
 * @tparam[opt] table options
 * @tparam[opt] number options.timeout seconds from now on; 0 expires at once
 * @tparam[opt] integer options.exits how many exits to handle
 * @treturn string the exit's name, "stopped", "kicked", "timeout" or "exits"
 * @treturn[opt] any after "stopped", the value given to `vcpu:stop`
 * @raise what a handler raises, as it is; `EBUSY` while another thread runs the
 *  vCPU; what the kernel says, also to registers that were written before
 * @api 4.10 KVM_RUN
 * @usage
 * local why, value = vcpu:run { timeout = 1 }
 */
int luackvm_run(lua_State *L)
{
	struct ckvm_limits limits = { .size = sizeof(limits) };

	luackvm_check(L, 1, &luackvm_vcpu);
	if (!lua_isnoneornil(L, 2))
		luackvm_read_limits(L, &limits);
	lua_settop(L, 1);
	luackvm_forget_stop(L);
	return luackvm_push_end(L, start(L, lua_of(L), &limits, run_returned));
}

int luackvm_run_with(lua_State *L, const struct ckvm_limits *limits)
{
	struct ckvm_limits copy = { .size = sizeof(copy) };

	if (limits)
		memcpy(&copy, limits,
		       limits->size < sizeof(copy) ? limits->size
						   : sizeof(copy));
	/* Nothing yields here, so the continuation may tell one thing more. */
	return start(L, lua_of(L), &copy,
		     copy.flags & CKVM_LIMIT_SIGNALS ? NULL : run_returned);
}

/* Beside run -------------------------------------------------------------- */

/* The options of run_once, with a deadline: a signal may have it begin anew. */
static void read_once_limits(lua_State *L, struct ckvm_lua *lua,
			     struct ckvm_limits *limits)
{
	static const char *const keys[] = { "timeout", NULL };
	uint64_t timeout;

	if (!lua_isnoneornil(L, 2)) {
		luackvm_check_keys(L, 2, "run_once", keys);
		if (luackvm_has(L, 2, "timeout")) {
			timeout = luackvm_seconds(L, 2, "timeout");
			limits->flags = CKVM_LIMIT_DEADLINE;
			limits->deadline_ns = luackvm_now() + timeout;
		}
	}
	luackvm_inherit_deadline(lua, limits);
}

/***
 * Exactly one KVM_RUN. Nothing is answered: `vcpu.exit` has the exit, and a
 * read is answered by writing its `data`.
 *
 * @function vcpu:run_once
 * @tparam[opt] table options
 * @tparam[opt] number options.timeout seconds from now on; 0 expires at once
 * @treturn string the exit's name, "kicked" (for `vcpu:stop` in another thread,
 *  too) or "timeout"
 * @raise `EBUSY` while another thread runs the vCPU; what the kernel says
 * @api 4.10 KVM_RUN
 * @usage
 * print(vcpu:run_once { timeout = 1 })
 */
int luackvm_run_once(lua_State *L)
{
	struct ckvm_vcpu *vcpu = luackvm_check(L, 1, &luackvm_vcpu);
	struct ckvm_limits limits = { .size = sizeof(limits) };
	struct ckvm_lua *lua = lua_of(L);
	int error;

	read_once_limits(L, lua, &limits);
	do {
		luackvm_check_interrupt(L, lua);
		error = enter(L, lua, vcpu, &limits, ckvm_vcpu_run_once);
	} while (error == -EINTR && strcmp(ckvm_errop(), "kick"));
	if (error == -EINTR)
		lua_pushliteral(L, "kicked");
	else if (error == -ETIME)
		lua_pushliteral(L, "timeout");
	else if (error)
		return luackvm_fail(L, error, NULL);
	else
		luackvm_push_exit_name(L, ckvm_vcpu_exit_number(vcpu));
	return 1;
}

/* Nothing when done; the name of an exit that nobody handles. */
static int push_finish(lua_State *L, int end)
{
	return end == CKVM_EXIT || end < 0 ? luackvm_push_end(L, end) : 0;
}

static int finish_returned(lua_State *L, int status, lua_KContext context)
{
	return push_finish(L, go_on(L, status, context, finish_returned));
}

static int finish(struct ckvm_vcpu *vcpu, const struct ckvm_limits *unused)
{
	(void)unused;
	return ckvm_vcpu_finish(vcpu);
}

/***
 * Finishes the instruction whose access is open, without running the guest any
 * further, so that registers and memory are those after it. Accesses that this
 * brings are served as in a run.
 *
 * @function vcpu:finish
 * @treturn[opt] string the name of an exit that this brings and nobody handles
 * @raise `EBUSY` in a handler whose read, or part of a string instruction, is
 *  not answered yet
 * @api 4.10 KVM_RUN
 * @usage
 * vcpu:finish()
 */
int luackvm_finish(lua_State *L)
{
	struct ckvm_vcpu *vcpu = luackvm_check(L, 1, &luackvm_vcpu);
	int end;

	lua_settop(L, 1);
	push_handlers(L);
	lua_pushnil(L); /* no frame: the run around it has one */
	end = enter(L, lua_of(L), vcpu, NULL, finish);
	return push_finish(L, serve(L, lua_of(L), vcpu, end, finish_returned));
}

/***
 * For handlers: after the whole exit, the run ends and returns "stopped" and
 * the value, also where nobody handles the exit.
 *
 * @function vcpu:stop
 * @tparam[opt] any value for who called `vcpu:run`
 * @raise only for misuse: the vCPU is not in a run
 * @usage
 * vm:attach_io { port = 0xf4, write = function(_, value, _, vcpu)
 *   vcpu:stop(value)
 * end }
 */
int luackvm_stop(lua_State *L)
{
	struct ckvm_vcpu *vcpu = luackvm_check(L, 1, &luackvm_vcpu);
	int error = ckvm_vcpu_stop(vcpu);

	if (error)
		return luaL_error(L, "stop: the vCPU is not in a run");
	lua_settop(L, 2);
	lua_setiuservalue(L, 1, VCPU_STOP);
	return 0;
}

/***
 * Ends the vCPU's run, or the next one if it is not in a run, with "kicked".
 * Any number of kicks count as one.
 *
 * @function vcpu:kick
 * @raise only for misuse
 * @usage
 * vcpu:kick()
 * assert(vcpu:run() == "kicked")
 */
int luackvm_kick(lua_State *L)
{
	ckvm_vcpu_kick(luackvm_check(L, 1, &luackvm_vcpu));
	return 0;
}

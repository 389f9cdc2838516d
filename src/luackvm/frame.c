/* SPDX-License-Identifier: MIT */
/*
 * The runs that Lua is in, each a frame, and what stops a script from outside:
 * an interrupt, or a deadline of theirs that has passed.
 */
#include "luackvm.h"

static const char frame_key;

static void stop_here(lua_State *L, lua_Debug *unused);

/* Takes our hook away, and gives the coroutine back the one it had. */
static void put_back_hook(struct luackvm_thread *thread, lua_State *L)
{
	if (lua_gethook(L) != stop_here)
		return;
	if (thread->displaced.L == L) {
		lua_sethook(L, thread->displaced.hook, thread->displaced.mask,
			    thread->displaced.count);
		thread->displaced.L = NULL;
	} else {
		lua_sethook(L, NULL, 0, 0);
	}
}

/* Frames ------------------------------------------------------------------ */

/* The timer is for the innermost frame: that of the handler that runs. */
static void watch(struct ckvm_lua *lua)
{
	struct luackvm_thread *thread = lua->thread;
	const struct luackvm_frame *frame = thread->frame;

	ckvm_thread_late(luackvm_late, thread, frame ? frame->deadline : 0,
			 frame ? frame->grace : 0);
}

/* The vCPU, if the frame's run is still its run. */
static struct ckvm_vcpu *vcpu_of(const struct luackvm_frame *frame)
{
	struct ckvm_vcpu *vcpu = frame->vcpu->object;

	return vcpu && ckvm_vcpu_run_serial(vcpu) == frame->serial ? vcpu
								   : NULL;
}

/*
 * Parks what is suspended: lua_status() of a coroutine is LUA_OK while it runs,
 * or resumes another. `yielded` has done so just now; of others that is not
 * known, and libckvm takes the hand-back for it.
 */
static bool sweep(struct ckvm_lua *lua, const lua_State *yielded)
{
	struct luackvm_frame **at = &lua->thread->frame, *frame;
	bool any = false;

	while ((frame = *at)) {
		if (lua_status(frame->L) == LUA_OK) {
			at = &frame->outer;
			continue;
		}
		*at = frame->outer;
		frame->outer = lua->parked;
		lua->parked = frame;
		frame->parked = luackvm_now();
		if (frame->L == yielded && vcpu_of(frame))
			ckvm_vcpu_pause(vcpu_of(frame));
		any = true;
	}
	return any;
}

struct luackvm_frame *luackvm_live_frame(struct ckvm_lua *lua)
{
	if (sweep(lua, NULL))
		watch(lua);
	return lua->thread->frame;
}

void luackvm_park(struct ckvm_lua *lua, lua_State *co)
{
	if (sweep(lua, co))
		watch(lua);
}

static uint64_t deadline_now(const struct luackvm_frame *frame, uint64_t bound)
{
	struct ckvm_vcpu *vcpu = vcpu_of(frame);
	uint64_t deadline;

	if (vcpu) {
		ckvm_vcpu_rest(vcpu, bound);
		return ckvm_vcpu_deadline(vcpu);
	}
	/* Another run has taken over: this is for its last handler. */
	deadline = frame->deadline + (luackvm_now() - frame->parked);
	return bound && bound < deadline ? bound : deadline;
}

/* One without a deadline is not known in here, when it is resumed again. */
static void unpark(struct ckvm_lua *lua, struct luackvm_frame *frame)
{
	struct luackvm_thread *thread = lua->thread;
	uint64_t bound = thread->frame ? thread->frame->deadline : 0;

	frame->deadline = deadline_now(frame, bound);
	frame->rested = frame->deadline;
	if (!frame->deadline)
		return;
	frame->thread = thread;
	frame->outer = thread->frame;
	thread->frame = frame;
}

/* Those of one coroutine are parked with the outermost first. */
void luackvm_unpark(struct ckvm_lua *lua, lua_State *co)
{
	struct luackvm_frame **at = &lua->parked, *frame;
	bool any = sweep(lua, NULL);

	while ((frame = *at)) {
		if (frame->L != co) {
			at = &frame->outer;
			continue;
		}
		*at = frame->outer;
		unpark(lua, frame);
		any = true;
	}
	if (any)
		watch(lua);
}

static bool unlink_from(struct luackvm_frame **at, struct luackvm_frame *frame)
{
	while (*at && *at != frame)
		at = &(*at)->outer;
	if (!*at)
		return false;
	*at = frame->outer;
	return true;
}

static bool unlink_frame(struct luackvm_frame *frame)
{
	return unlink_from(&frame->thread->frame, frame) ||
	       unlink_from(&frame->thread->lua->parked, frame);
}

void luackvm_link_frame(struct luackvm_frame *frame, uint64_t deadline)
{
	struct ckvm_lua *lua = frame->thread->lua;

	unlink_frame(frame);
	frame->thread = lua->thread;
	frame->deadline = deadline;
	if (deadline) {
		frame->outer = luackvm_live_frame(lua);
		lua->thread->frame = frame;
	}
	watch(lua);
}

/* __close and __gc: a run that an error has left, or that nobody resumes. */
static int end_run(lua_State *L)
{
	struct luackvm_frame *frame = lua_touserdata(L, 1);
	struct ckvm_vcpu *vcpu = frame->over ? NULL : vcpu_of(frame);

	frame->over = true;
	if (vcpu)
		ckvm_vcpu_abandon(vcpu);
	if (unlink_frame(frame))
		watch(frame->thread->lua);
	if (frame->stopped)
		put_back_hook(frame->thread, frame->L);
	return 0;
}

struct luackvm_frame *luackvm_push_frame(lua_State *L, struct ckvm_lua *lua)
{
	struct luackvm_frame *frame;

	frame = lua_newuserdatauv(L, sizeof(*frame), 2);
	*frame = (struct luackvm_frame){ .thread = lua->thread,
					 .L = L,
					 .vcpu = lua_touserdata(L, 1) };
	lua_pushthread(L);
	lua_setiuservalue(L, -2, 1);
	lua_pushvalue(L, 1);
	lua_setiuservalue(L, -2, 2);
	if (lua_rawgetp(L, LUA_REGISTRYINDEX, &frame_key) != LUA_TTABLE) {
		lua_pop(L, 1);
		lua_createtable(L, 0, 2);
		lua_pushcfunction(L, end_run);
		lua_setfield(L, -2, "__close");
		lua_pushcfunction(L, end_run);
		lua_setfield(L, -2, "__gc");
		lua_pushvalue(L, -1);
		lua_rawsetp(L, LUA_REGISTRYINDEX, &frame_key);
	}
	lua_setmetatable(L, -2);
	lua_toclose(L, -1);
	return frame;
}

/* Stopping ---------------------------------------------------------------- */

void luackvm_check_interrupt(lua_State *L, struct ckvm_lua *lua)
{
	if (!atomic_exchange(&lua->interrupted, false))
		return;
	put_back_hook(lua->thread, L);
	luaL_error(L, "interrupted!");
}

/*
 * The first time the error may be caught, and the handler have its way to an
 * end. If it goes on even so, every further instruction of it raises.
 */
static void stop_here(lua_State *L, lua_Debug *unused)
{
	struct ckvm_lua *lua = ckvm_lua_get(L);
	struct luackvm_frame *frame;

	(void)unused;
	luackvm_check_interrupt(L, lua);
	frame = luackvm_live_frame(lua);
	if (!frame || luackvm_now() - frame->grace < frame->deadline) {
		put_back_hook(lua->thread, L);
		return;
	}
	if (!frame->stopped)
		put_back_hook(lua->thread, L);
	frame->stopped = true;
	luaL_error(L, "handler still running %f s after the deadline",
		   (double)(luackvm_now() - frame->deadline) / 1e9);
}

/* It may have been resumed behind our back, and have ended or yielded so. */
static bool is_running(lua_State *L)
{
	lua_Debug frame;

	return lua_status(L) == LUA_OK && lua_getstack(L, 0, &frame);
}

/*
 * On the coroutine that runs, or else on the one that called the last run. On
 * the thread itself, which holds the lock.
 */
static void set_hook(struct luackvm_thread *thread)
{
	const struct luackvm_frame *frame = thread->frame;
	lua_State *L = thread->running;

	if ((!L || !is_running(L)) && frame)
		L = frame->L;
	if (!L)
		return; /* a host's C code, which is no script */
	if (lua_gethook(L) != stop_here) {
		thread->displaced.hook = lua_gethook(L);
		thread->displaced.mask = lua_gethookmask(L);
		thread->displaced.count = lua_gethookcount(L);
		thread->displaced.L = L;
	}
	/* Of C functions none is to be kept from being called: __close. */
	lua_sethook(L, stop_here, LUA_MASKCOUNT, 1);
}

void luackvm_late(void *opaque)
{
	struct luackvm_thread *thread = opaque;

	/* Who waits for the lock is called again, or finds out itself. */
	if (thread->inside && (thread->frame || thread->lua->interrupted))
		set_hook(thread);
}

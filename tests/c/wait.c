/* SPDX-License-Identifier: MIT */
/* Waiting for an eventfd in Lua, while other threads are in the state. */
#include "lua_state.h"

#define WAITERS 3

struct waiter {
	pthread_t thread;
	struct ckvm_lua *lua;
	lua_State *L;	       /* with the function to call on its stack */
	atomic_bool is_inside; /* has the lock, to give it up as it waits */
	int status;
};

static void *work(void *opaque)
{
	struct waiter *waiter = opaque;

	ckvm_lua_lock(waiter->lua);
	waiter->is_inside = true;
	waiter->status = lua_pcall(waiter->L, 0, 1, 0);
	ckvm_lua_unlock(waiter->lua);
	return NULL;
}

/* Returns, with the lock, when the waiter sleeps. */
static void start(lua_State *L, struct waiter *waiter, const char *code)
{
	waiter->lua = ckvm_lua_get(L);
	waiter->L = lua_newthread(L);
	waiter->is_inside = false;
	CHECK_EQ(luaL_loadstring(waiter->L, code), LUA_OK);
	pthread_create(&waiter->thread, NULL, work, waiter);
	ckvm_lua_unlock(waiter->lua);
	while (!waiter->is_inside)
		sched_yield();
	ckvm_lua_lock(waiter->lua);
}

static void finish(struct waiter *waiter)
{
	ckvm_lua_unlock(waiter->lua);
	pthread_join(waiter->thread, NULL);
	ckvm_lua_lock(waiter->lua);
}

static int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int count = 0;

	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

static void another_thread_signals(void)
{
	lua_State *L = open_state();
	struct waiter waiter;

	run(L, "event = ckvm.eventfd()");
	start(L, &waiter, "return event:wait()");
	run(L, "event:signal(7)");
	finish(&waiter);
	CHECK_EQ(waiter.status, LUA_OK);
	CHECK_EQ(lua_tointeger(waiter.L, -1), 7);
	lua_close(L);
}

static void one_of_several_gets_it(void)
{
	struct waiter waiter[WAITERS];
	lua_State *L = open_state();
	lua_Integer sum = 0;

	run(L, "event = ckvm.eventfd { semaphore = true }");
	for (int i = 0; i < WAITERS; i++)
		start(L, &waiter[i], "return event:wait()");
	for (int i = 0; i < WAITERS; i++)
		run(L, "event:signal()");
	for (int i = 0; i < WAITERS; i++) {
		finish(&waiter[i]);
		sum += lua_tointeger(waiter[i].L, -1);
	}
	CHECK_EQ(sum, WAITERS);
	lua_close(L);
}

/* All leave with an error, and the last one closes the descriptor. */
static void another_thread_closes(void)
{
	struct waiter waiter[WAITERS], other;
	lua_State *L = open_state();
	int fds;

	run(L, "ckvm.eventfd():wait { timeout = 0 } collectgarbage()");
	fds = count_fds();
	run(L, "event, other = ckvm.eventfd(), ckvm.eventfd()");
	start(L, &other, "return other:wait()");
	for (int i = 0; i < WAITERS; i++)
		start(L, &waiter[i], "return event:wait()");
	CHECK_EQ(count_fds(), fds + 2);
	run(L, "event:close()");
	CHECK_EQ(count_fds(), fds + 2);
	for (int i = 0; i < WAITERS; i++) {
		finish(&waiter[i]);
		CHECK_EQ(waiter[i].status, LUA_ERRRUN);
		CHECK(strstr(lua_tostring(waiter[i].L, -1),
			     "another thread has closed the eventfd"));
	}
	CHECK_EQ(count_fds(), fds + 1);
	run(L, "other:signal()");
	finish(&other);
	CHECK_EQ(other.status, LUA_OK);
	run(L, "other:close()");
	CHECK_EQ(count_fds(), fds);
	lua_close(L);
}

static void an_interrupt_ends_the_wait(void)
{
	lua_State *L = open_state();
	struct waiter waiter;

	run(L, "event = ckvm.eventfd()");
	start(L, &waiter, "return event:wait()");
	ckvm_lua_interrupt(waiter.lua);
	finish(&waiter);
	CHECK_EQ(waiter.status, LUA_ERRRUN);
	CHECK(strstr(lua_tostring(waiter.L, -1), "interrupted!"));
	lua_close(L);
}

/* What woke an earlier wait, or came when there was none. */
static void a_late_wake_up_does_no_harm(void)
{
	lua_State *L = open_state();
	struct waiter waiter;

	run(L, "event = ckvm.eventfd() event:wait { timeout = 0 }");
	ckvm_lua_interrupt(ckvm_lua_get(L));
	CHECK(luaL_dostring(L, "return 1"));
	start(L, &waiter, "return event:wait()");
	run(L, "event:signal(3)");
	finish(&waiter);
	CHECK_EQ(lua_tointeger(waiter.L, -1), 3);
	lua_close(L);
}

static void a_closed_state_leaves_no_descriptor(void)
{
	int fds = count_fds();
	lua_State *L = open_state();

	run(L, "event = ckvm.eventfd() event:wait { timeout = 0 }");
	CHECK_EQ(count_fds(), fds + 2);
	lua_close(L);
	CHECK_EQ(count_fds(), fds);
}

int main(int argc, char **argv)
{
	(void)argc;
	test_begin(argv);
	PROMISE(another_thread_signals);
	PROMISE(one_of_several_gets_it);
	PROMISE(another_thread_closes);
	PROMISE(an_interrupt_ends_the_wait);
	PROMISE(a_late_wake_up_does_no_harm);
	PROMISE(a_closed_state_leaves_no_descriptor);
	return test_end();
}

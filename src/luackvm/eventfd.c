/* SPDX-License-Identifier: MIT */
/*
 * ckvm.eventfd(): an eventfd(2) that a script signals, reads and waits for.
 *
 * wait gives the lock up. Another thread may then close the object: the
 * descriptor is closed by the last one that waits for it, so that no other file
 * takes its number meanwhile.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "luackvm.h"

struct luackvm_eventfd {
	unsigned int refs;
	unsigned int waiters;
	int fd;
	bool closed;
	struct ckvm_lua *lua;
};

/***
 * A counter of the kernel's, eventfd(2), that guests, scripts and other
 * programs signal: `ckvm.eventfd` makes one. See `vm:irqfd` and `vm:ioeventfd`.
 *
 * @type eventfd
 * @tfield integer fd number of the descriptor, which is the object's
 */

static void ref(void *object)
{
	struct luackvm_eventfd *event = object;

	event->refs++;
}

static void unref(void *object)
{
	struct luackvm_eventfd *event = object;

	if (!--event->refs)
		free(event);
}

static void end(void *object)
{
	struct luackvm_eventfd *event = object;

	event->closed = true;
	if (event->waiters)
		luackvm_wake(event->lua, event->waiters);
	else
		close(event->fd);
	unref(event);
}

/* Making ------------------------------------------------------------------ */

/* The value may be more than eventfd(2) takes. NULL, and errno. */
static struct luackvm_eventfd *create(struct ckvm_lua *lua, uint64_t value,
				      int flags)
{
	struct luackvm_eventfd *event = calloc(1, sizeof(*event));

	if (!event)
		return NULL;
	event->refs = 1;
	event->lua = lua;
	event->fd = eventfd(0, flags | EFD_CLOEXEC | EFD_NONBLOCK);
	if (event->fd < 0)
		goto err_free;
	if (write(event->fd, &value, sizeof(value)) < 0)
		goto err_close;
	return event;

err_close:
	close(event->fd);
err_free:
	free(event);
	return NULL;
}

/***
 * Makes an eventfd.
 *
 * @function ckvm.eventfd
 * @tparam[opt] table options
 * @tparam[opt=0] integer options.initval value that it begins with
 * @tparam[opt=false] boolean options.semaphore each read takes 1 from the value
 * @treturn eventfd the eventfd
 * @raise `EMFILE`, `ENOMEM`; `EINVAL` for a value that is too large
 * @usage
 * local event <close> = ckvm.eventfd { initval = 1 }
 */
int luackvm_new_eventfd(lua_State *L)
{
	static const char *const keys[] = { "initval", "semaphore", NULL };
	struct luackvm_eventfd *event;
	struct luackvm_box *box;
	uint64_t value = 0;
	bool tried = false;
	int flags = 0;

	if (!lua_isnoneornil(L, 1)) {
		luackvm_check_keys(L, 1, "eventfd", keys);
		if (luackvm_has(L, 1, "initval"))
			value = (uint64_t)luackvm_integer(L, 1, "initval", 0,
							  LUA_MAXINTEGER);
		if (luackvm_flag(L, 1, "semaphore"))
			flags = EFD_SEMAPHORE;
	}
	box = luackvm_new_box(L, &luackvm_eventfd);
	do
		event = create(box->lua, value, flags);
	while (!event && luackvm_retry(L, -errno, &tried));
	if (!event)
		return luackvm_fail_call(L, "eventfd", -errno, NULL);
	luackvm_fill(L, box, event, true);
	return 1;
}

int luackvm_event_fd(lua_State *L, int index, const char *name)
{
	const struct luackvm_box *box =
		luackvm_test(L, index, &luackvm_eventfd);
	const struct luackvm_eventfd *event;
	lua_Integer fd;

	if (!box) {
		if (lua_type(L, index) != LUA_TNUMBER)
			luaL_error(L, "%s: eventfd expected, got %s", name,
				   luaL_typename(L, index));
		fd = luackvm_to_integer(L, index, name);
		if (fd < 0 || fd > INT32_MAX)
			luaL_error(L, "%s: %I is no descriptor", name, fd);
		return (int)fd;
	}
	event = box->object;
	if (!event)
		luaL_error(L, "%s: eventfd is closed", name);
	return event->fd;
}

/* Signalling, reading ----------------------------------------------------- */

/***
 * Adds to the value, and wakes up who waits for it.
 *
 * @function eventfd:signal
 * @tparam[opt=1] integer n number to add, more than 0
 * @raise `EAGAIN` if the counter is full, `EINVAL` for a number too large
 * @usage
 * eventfd:signal()
 */
static int signal_event(lua_State *L)
{
	struct luackvm_eventfd *event = luackvm_check(L, 1, &luackvm_eventfd);
	lua_Integer n = luaL_opt(L, luackvm_arg_integer, 2, 1);

	luaL_argcheck(L, n > 0, 2, "not a count");
	if (write(event->fd, &n, sizeof(n)) < 0)
		return luackvm_fail_call(L, "write", -errno,
					 errno == EAGAIN ? "the counter is full"
							 : NULL);
	return 0;
}

/* Pushes the value, or nothing: false. */
static bool push_value(lua_State *L, const struct luackvm_eventfd *event)
{
	uint64_t value;

	if (read(event->fd, &value, sizeof(value)) < 0) {
		if (errno != EAGAIN)
			luackvm_fail_call(L, "read", -errno, NULL);
		return false;
	}
	lua_pushinteger(L, (lua_Integer)value);
	return true;
}

/***
 * The value, which is 0 then; nil if it is 0. For a semaphore, 1.
 *
 * @function eventfd:read
 * @treturn integer|nil the value
 * @raise `EBADF` if something else has closed the descriptor
 * @usage
 * eventfd:signal(3)
 * assert(eventfd:read() == 3 and eventfd:read() == nil)
 */
static int read_event(lua_State *L)
{
	if (!push_value(L, luackvm_check(L, 1, &luackvm_eventfd)))
		lua_pushnil(L);
	return 1;
}

/* Waiting ----------------------------------------------------------------- */

/* Until then, an event, or something to look into. */
static int sleep_until(struct pollfd *fds, uint64_t deadline)
{
	uint64_t now = luackvm_now(), left;
	struct timespec timeout;

	left = deadline > now ? deadline - now : 0;
	timeout.tv_sec = (time_t)(left / 1000000000u);
	timeout.tv_nsec = (long)(left % 1000000000u);
	if (ppoll(fds, 2, deadline ? &timeout : NULL, NULL) < 0 &&
	    errno != EINTR)
		return -errno;
	return 0;
}

/*
 * The lock is given up as around KVM_RUN. The object is closed afterwards, if
 * another thread did that: -EBADF.
 */
static int sleep_unlocked(lua_State *L, struct luackvm_eventfd *event,
			  uint64_t deadline)
{
	struct ckvm_lua *lua = event->lua;
	struct luackvm_thread *thread = lua->thread;
	struct pollfd fds[2] = { { .fd = event->fd, .events = POLLIN },
				 { .fd = lua->wake, .events = POLLIN } };
	int error;

	event->waiters++;
	luackvm_unlock(thread);
	error = sleep_until(fds, deadline);
	luackvm_lock(thread);
	event->waiters--;
	thread->running = L;
	luackvm_woken(lua, event->closed);
	if (event->closed && !event->waiters)
		close(event->fd);
	return event->closed ? -EBADF : error;
}

static uint64_t read_deadline(lua_State *L, struct ckvm_lua *lua)
{
	static const char *const keys[] = { "timeout", NULL };
	const struct luackvm_frame *frame = luackvm_live_frame(lua);
	uint64_t deadline = frame ? frame->deadline : 0, timeout;

	if (lua_isnoneornil(L, 2))
		return deadline;
	luackvm_check_keys(L, 2, "wait", keys);
	if (!luackvm_has(L, 2, "timeout"))
		return deadline;
	timeout = luackvm_now() + luackvm_seconds(L, 2, "timeout");
	return !deadline || timeout < deadline ? timeout : deadline;
}

/***
 * Waits until the value is not 0, and reads it. Other threads go on meanwhile.
 * In a handler it ends with the run around it, too.
 *
 * @function eventfd:wait
 * @tparam[opt] table options
 * @tparam[opt] number options.timeout seconds; if left out, for ever
 * @treturn integer|nil the value, as from `eventfd:read`; nil when the time is
 *  up
 * @raise a string if another thread closes the eventfd; `EMFILE`; `EBADF` as
 *  `eventfd:read`; `EINVAL` where the process may have less than two
 * descriptors
 * @usage
 * eventfd:signal()
 * assert(eventfd:wait { timeout = 1 } == 1)
 */
static int wait_event(lua_State *L)
{
	struct luackvm_eventfd *event = luackvm_check(L, 1, &luackvm_eventfd);
	struct ckvm_lua *lua = event->lua;
	uint64_t deadline = read_deadline(L, lua);
	int error = luackvm_need_wake(lua);
	bool tried = false;

	while (error && luackvm_retry(L, error, &tried))
		error = luackvm_need_wake(lua);
	if (error)
		return luackvm_fail_call(L, "eventfd", error, NULL);
	luackvm_check(L, 1, &luackvm_eventfd);
	luackvm_enter(lua, L);
	for (;;) {
		luackvm_check_interrupt(L, lua);
		if (push_value(L, event))
			return 1;
		if (deadline && luackvm_now() >= deadline) {
			lua_pushnil(L);
			return 1;
		}
		error = sleep_unlocked(L, event, deadline);
		if (error == -EBADF)
			return luaL_error(L, "wait: another thread has closed "
					     "the eventfd");
		if (error)
			return luackvm_fail_call(L, "ppoll", error, NULL);
	}
}

/* The object -------------------------------------------------------------- */

static void push_fd(lua_State *L, struct luackvm_box *box)
{
	const struct luackvm_eventfd *event = luackvm_open_object(L, box);

	lua_pushinteger(L, event->fd);
}

static int close_eventfd(lua_State *L)
{
	const struct luackvm_box *box = lua_touserdata(L, 1);

	if (box->object)
		luackvm_end_events(L, 1);
	return 0;
}

static const luaL_Reg methods[] = {
	{ "signal", signal_event },
	{ "read", read_event },
	{ "wait", wait_event },
	{ NULL, NULL },
};

static const struct luackvm_property properties[] = {
	{ "fd", push_fd },
	{ NULL, NULL },
};

const struct luackvm_type luackvm_eventfd = {
	.name = "eventfd",
	.methods = (const luaL_Reg *const[]){ methods, NULL },
	.properties = properties,
	.ref = ref,
	.unref = unref,
	.end = end,
	.close = close_eventfd,
	.values = 1,
};

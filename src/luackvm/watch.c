/* SPDX-License-Identifier: MIT */
/*
 * vm:watch() and vm:after(): handlers for what happens outside of the guest,
 * called between two exits of a run. watcher.c notices it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>

#include "call.h"
#include "watcher.h"

static const char watcher_key;

enum { WATCH_VM = 1 }; /* user value of a watch's box */

/* Objects ----------------------------------------------------------------- */

static void ref(void *object)
{
	luackvm_ref_watch(object);
}

static void unref(void *object)
{
	luackvm_unref_watch(object);
}

static void end(void *object)
{
	luackvm_detach_watch(object);
	luackvm_unref_watch(object);
}

/* The watcher ------------------------------------------------------------- */

static int collect_watcher(lua_State *L)
{
	struct luackvm_watcher *watcher = lua_touserdata(L, 1);

	luackvm_stop_watcher(watcher);
	ckvm_vm_unref(watcher->vm);
	return 0;
}

/* That of the VM's box at index, or NULL. */
static struct luackvm_watcher *find_watcher(lua_State *L, int vm)
{
	struct luackvm_watcher *watcher;

	lua_getiuservalue(L, vm, VM_WATCHER);
	watcher = lua_touserdata(L, -1);
	lua_pop(L, 1);
	return watcher;
}

void luackvm_end_watcher(lua_State *L, int vm)
{
	struct luackvm_watcher *watcher = find_watcher(L, vm);

	if (watcher)
		luackvm_stop_watcher(watcher);
}

/* A new one for the VM at 1. */
static struct luackvm_watcher *new_watcher(lua_State *L, struct ckvm_vm *vm)
{
	struct luackvm_watcher *watcher =
		lua_newuserdatauv(L, sizeof(*watcher), 0);

	luackvm_collect_with(L, &watcher_key, collect_watcher);
	luackvm_begin_watcher(watcher, vm);
	lua_setiuservalue(L, 1, VM_WATCHER);
	return watcher;
}

/* The running one of the VM at 1. What raises in here is tried again. */
static void need_watcher(lua_State *L, struct ckvm_vm *vm)
{
	struct luackvm_watcher *watcher = find_watcher(L, 1);
	const char *step = NULL;
	int error;

	if (!watcher)
		watcher = new_watcher(L, vm);
	error = luackvm_start_watcher(watcher, &step);
	if (error)
		luackvm_fail_call(L, step, error, NULL);
}

/* Methods ----------------------------------------------------------------- */

/*
 * Pushes the object of a new watch of the VM at 1, whose handler is at `fn`. It
 * is not polled yet.
 */
static struct luackvm_watch *new_watch(lua_State *L, struct ckvm_vm *vm, int fn)
{
	struct luackvm_box *box;
	struct luackvm_watch *watch;

	need_watcher(L, vm);
	box = luackvm_new_box(L, &luackvm_watch);
	watch = luackvm_create_watch();
	if (!watch)
		luackvm_fail_call(L, "malloc", -ENOMEM, NULL);
	luackvm_fill(L, box, watch, true);
	lua_pushvalue(L, 1);
	lua_setiuservalue(L, -2, WATCH_VM);
	lua_getiuservalue(L, 1, VM_HANDLERS);
	lua_pushvalue(L, fn);
	lua_rawsetp(L, -2, watch);
	lua_pop(L, 1);
	return watch;
}

/* From now on it is polled, and its object, on top, is the VM's. */
static int arm(lua_State *L, struct luackvm_watch *watch)
{
	struct luackvm_watcher *watcher;

	luackvm_adopt(L, 1);
	luackvm_check(L, 1, &luackvm_vm); /* finalizers may have closed it */
	watcher = find_watcher(L, 1);
	luackvm_arm_watch(watcher, watch);
	return 1;
}

static int fail_descriptor(lua_State *L, int error, int fd)
{
	return luackvm_fail_call(
		L, "fcntl", error,
		lua_pushfstring(L, "watch: descriptor %d", fd));
}

/***
 * Has a function called between two exits of a run, when a descriptor is
 * readable or writable: also while the guest sleeps in HLT or computes. It gets
 * `fd` as it was given, and the vCPU whose run has been left for that, and is
 * called again as long as there is something to read, or room to write; at the
 * end of a file, or an error, too. Between two calls for the same descriptor
 * there are 0.1 ms at least, for the guest and other handlers. It may raise and
 * yield as they do.
 *
 * The descriptor is duplicated. While none of the VM's vCPUs runs, nobody is
 * called.
 *
 * @function vm:watch
 * @tparam userdata|eventfd|integer fd file of `io`, eventfd, or the number of a
 *  descriptor
 * @tparam string what "read" or "write"
 * @tparam function handler `handler(fd, vcpu)`
 * @treturn watch to be detached when there is nothing more to come
 * @raise `EBADF` if it is no descriptor; `EMFILE`, `ENOMEM`
 * @usage
 * local event = ckvm.eventfd()
 * local watch = vm:watch(event, "read", function(_, vcpu)
 *   vcpu:stop(event:read())
 * end)
 * event:signal(7)
 * print(vcpu:run { timeout = 1 })
 * watch:detach()
 */
int luackvm_vm_watch(lua_State *L)
{
	static const char *const names[] = { "read", "write", NULL };
	static const short events[] = { POLLIN, POLLOUT };
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	int what = luaL_checkoption(L, 3, NULL, names);
	struct luackvm_watch *watch;
	int fd, copy;

	luaL_checktype(L, 4, LUA_TFUNCTION);
	lua_settop(L, 4);
	watch = new_watch(L, vm, 4);
	lua_getiuservalue(L, 1, VM_HANDLERS);
	lua_pushvalue(L, 2);
	lua_rawsetp(L, -2, &watch->fd);
	lua_pop(L, 1);
	fd = luackvm_file_fd(L, 2, "watch");
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (copy < 0)
		return fail_descriptor(L, -errno, fd);
	watch->fd = copy;
	watch->events = events[what];
	return arm(L, watch);
}

/***
 * Has a function called once, so many seconds from now, between two exits of a
 * run: also while the guest sleeps in HLT or computes. Where none of the VM's
 * vCPUs runs then, the next run calls it first; several in the order of their
 * times.
 *
 * @function vm:after
 * @tparam number seconds how many seconds from now on
 * @tparam function handler `handler(vcpu)`, with the vCPU whose run has been
 *  left for that; it may raise and yield as other handlers do
 * @treturn watch which is detached when it was called, or before
 * @raise `EMFILE`, `ENOMEM`
 * @usage
 * vm:after(0.01, function(vcpu) vcpu:stop("late") end)
 * print(vcpu:run { timeout = 1 })
 */
int luackvm_vm_after(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct luackvm_watch *watch;
	lua_Number seconds;

	luaL_checktype(L, 2, LUA_TNUMBER); /* Lua would take "10", too */
	seconds = lua_tonumber(L, 2);
	luaL_argcheck(
		L, seconds >= 0, 2, /* nor NaN */
		lua_pushfstring(L, "%f is not a time from now on", seconds));
	luaL_checktype(L, 3, LUA_TFUNCTION);
	lua_settop(L, 3);
	watch = new_watch(L, vm, 3);
	watch->due = luackvm_now() +
		     (seconds < 9e9 ? (uint64_t)(seconds * 1e9) : INT64_MAX);
	return arm(L, watch);
}

/* Calls ------------------------------------------------------------------- */

/* The one whose time has come: its object is closed, and its VM forgets it. */
static void close_known(lua_State *L, struct luackvm_watch *watch)
{
	if (!luackvm_push_known(L, watch))
		return;
	luackvm_release(lua_touserdata(L, -1));
	if (lua_getiuservalue(L, -1, WATCH_VM) == LUA_TUSERDATA)
		luackvm_disown(L, -1, -2);
	lua_pop(L, 2);
}

/* Pushes the handler and what it is called with; how many. */
static int push_call(lua_State *L, struct luackvm_watch *watch)
{
	lua_rawgetp(L, RUN_HANDLERS, watch);
	if (watch->fd < 0) {
		lua_pushnil(L);
		lua_rawsetp(L, RUN_HANDLERS, watch);
		close_known(L, watch);
		lua_pushvalue(L, RUN_VCPU);
		return 1;
	}
	lua_rawgetp(L, RUN_HANDLERS, &watch->fd);
	lua_pushvalue(L, RUN_VCPU);
	return 2;
}

/* Of the vCPU's VM, whose box's values are on the stack of the run. */
static struct luackvm_watcher *watcher_of_run(lua_State *L)
{
	struct luackvm_watcher *watcher;

	lua_getiuservalue(L, RUN_VCPU, VCPU_VM);
	watcher = find_watcher(L, -1);
	lua_pop(L, 1);
	return watcher;
}

bool luackvm_push_event(lua_State *L, struct ckvm_vcpu *vcpu, int *args)
{
	struct luackvm_watcher *watcher = watcher_of_run(L);
	struct luackvm_watch *watch;

	if (!watcher)
		return false;
	watch = luackvm_next_watch(watcher);
	if (!watch)
		return false;
	*args = push_call(L, watch);
	/* It comes back here, whatever becomes of the handler. */
	ckvm_vcpu_wake(vcpu);
	return true;
}

void luackvm_look_for_events(lua_State *L, struct ckvm_vcpu *vcpu)
{
	if (watcher_of_run(L))
		ckvm_vcpu_wake(vcpu);
}

/* The object -------------------------------------------------------------- */

/***
 * What `vm:watch` and `vm:after` return. It stays when Lua lets go of it, and
 * ends with the VM.
 *
 * @type watch
 */

/* The VM whose box is on top forgets its handler, and what it is called with.
 */
static void forget_handler(lua_State *L, struct luackvm_watch *watch)
{
	lua_getiuservalue(L, -1, VM_HANDLERS);
	lua_pushnil(L);
	lua_rawsetp(L, -2, watch);
	lua_pushnil(L);
	lua_rawsetp(L, -2, &watch->fd);
	lua_pop(L, 1);
}

static int close_watch(lua_State *L)
{
	struct luackvm_box *box = lua_touserdata(L, 1);
	struct luackvm_watch *watch = box->object;

	luackvm_release(box);
	if (!watch || lua_getiuservalue(L, 1, WATCH_VM) != LUA_TUSERDATA)
		return 0;
	forget_handler(L, watch);
	luackvm_disown(L, -1, 1);
	return 0;
}

/***
 * Has the handler called no more. The same as `close`.
 *
 * @function watch:detach
 * @raise only for misuse
 * @usage
 * local watch = vm:after(1, print)
 * watch:detach()
 */
static int detach_watch(lua_State *L)
{
	luackvm_box(L, 1, &luackvm_watch);
	return close_watch(L);
}

static const luaL_Reg methods[] = {
	{ "detach", detach_watch },
	{ NULL, NULL },
};

const struct luackvm_type luackvm_watch = {
	.name = "watch",
	.methods = (const luaL_Reg *const[]){ methods, NULL },
	.ref = ref,
	.unref = unref,
	.end = end,
	.close = close_watch,
	.apart = true,
	.values = 1,
};

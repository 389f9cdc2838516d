/* SPDX-License-Identifier: MIT */
/*
 * A host for tests/faults.lua: any ioctl, system call or allocation of a call
 * can be made to fail once. The linker puts what is here in the place of the
 * C library's functions (--wrap); Lua's own memory comes from here, too.
 *
 *   ok, result, events, failed = faults.call(kind, n, f, ...)
 *
 * calls f in protected mode. The n-th event of that kind fails, and has the
 * name `failed`; without an n-th (or with 0), none. Kind "system": system calls
 * and the libraries' memory; "lua": Lua's, which fails from then on.
 *
 *   blocks, maps = faults.live()   what the libraries have
 *
 * Of what the libraries call (nm -u), these never fail here: what is called
 * once, before the first walk (sigaction, pthread_key_create, pthread_atfork,
 * atexit); what is undone or told to no avail (close, fclose, timer_delete,
 * prctl, setvbuf, tgkill, futex); and what Linux does not fail (mutexes,
 * conditions, masks of signals, clocks).
 */
#include <stdarg.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <time.h>

#include <lauxlib.h>
#include <lualib.h>

#include "ckvm_lua.h"
#include "test.h"

#define FAILURE ENOSPC /* which nothing here fails with by itself */

enum kind { NONE, SYSTEM, LUA };

static struct {
	enum kind kind;
	long at, events; /* at: which one fails; 0: none */
	const char *failed;
	long blocks, maps;
} fault;

static _Thread_local bool calling; /* the one that calls faults.call */

static bool fails(enum kind kind, const char *name)
{
	if (fault.kind != kind)
		return false;
	fault.events++;
	if (kind == LUA && fault.failed)
		return true;
	if (!fault.at || fault.events != fault.at)
		return false;
	fault.failed = name;
	return true;
}

/* The C library's functions ----------------------------------------------- */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *block, size_t size);
void __real_free(void *block);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *block, size_t size);
void __wrap_free(void *block);

static void *no_memory(void)
{
	errno = ENOMEM;
	return NULL;
}

static void *count_block(void *block)
{
	fault.blocks += block != NULL;
	return block;
}

void *__wrap_malloc(size_t size)
{
	return fails(SYSTEM, "malloc") ? NULL
				       : count_block(__real_malloc(size));
}

void *__wrap_calloc(size_t count, size_t size)
{
	return fails(SYSTEM, "malloc")
		       ? no_memory()
		       : count_block(__real_calloc(count, size));
}

void *__wrap_realloc(void *block, size_t size)
{
	void *other;

	if (fails(SYSTEM, "malloc"))
		return no_memory();
	other = __real_realloc(block, size);
	if (!block)
		count_block(other);
	return other;
}

void __wrap_free(void *block)
{
	fault.blocks -= block != NULL;
	__real_free(block);
}

void *__real_mmap(void *at, size_t size, int prot, int flags, int fd,
		  off_t offset);
int __real_munmap(void *at, size_t size);
void *__wrap_mmap(void *at, size_t size, int prot, int flags, int fd,
		  off_t offset);
int __wrap_munmap(void *at, size_t size);

void *__wrap_mmap(void *at, size_t size, int prot, int flags, int fd,
		  off_t offset)
{
	void *data;

	/* In the place of another it does not fail: see vcpu.c. */
	if (!(flags & MAP_FIXED) && fails(SYSTEM, "mmap")) {
		errno = FAILURE;
		return MAP_FAILED;
	}
	data = __real_mmap(at, size, prot, flags, fd, offset);
	fault.maps += data != MAP_FAILED && !(flags & MAP_FIXED);
	return data;
}

int __wrap_munmap(void *at, size_t size)
{
	fault.maps--;
	return __real_munmap(at, size);
}

/* A function of these parameters; variadic ones have an int, or none. */
#define WRAP_IF(condition, type, name, parameters, arguments) \
	type __real_##name parameters;                        \
	type __wrap_##name parameters;                        \
	type __wrap_##name parameters                         \
	{                                                     \
		if ((condition) && fails(SYSTEM, #name)) {    \
			errno = FAILURE;                      \
			return -1;                            \
		}                                             \
		return __real_##name arguments;               \
	}

#define WRAP(type, name, parameters, arguments) \
	WRAP_IF(true, type, name, parameters, arguments)

/* The same, but not for threads that call it when they like. */
#define WRAP_HERE(type, name, parameters, arguments) \
	WRAP_IF(calling, type, name, parameters, arguments)

WRAP(int, open, (const char *path, int flags, int mode), (path, flags, mode))
WRAP(int, fcntl, (int fd, int command, long argument), (fd, command, argument))
WRAP(int, eventfd, (unsigned int value, int flags), (value, flags))
WRAP(int, memfd_create, (const char *name, unsigned int flags), (name, flags))
WRAP(int, ftruncate, (int fd, off_t size), (fd, size))
WRAP(int, mprotect, (void *at, size_t size, int prot), (at, size, prot))
WRAP(int, timer_create, (clockid_t clock, void *event, void *timer),
     (clock, event, timer))
WRAP(int, timer_settime, (void *timer, int flags, const void *value, void *old),
     (timer, flags, value, old))
WRAP(ssize_t, readlink, (const char *path, char *text, size_t size),
     (path, text, size))
WRAP(ssize_t, pread, (int fd, void *data, size_t size, off_t offset),
     (fd, data, size, offset))

WRAP(int, tcgetattr, (int fd, void *settings), (fd, settings))
WRAP(int, tcsetattr, (int fd, int when, const void *settings),
     (fd, when, settings))
WRAP(int, madvise, (void *at, size_t size, int advice), (at, size, advice))
WRAP(int, fstat, (int fd, void *status), (fd, status))
WRAP(int, fstatfs, (int fd, void *status), (fd, status))
WRAP(int, grantpt, (int fd), (fd))
WRAP(int, unlockpt, (int fd), (fd))
WRAP(int, ptsname_r, (int fd, char *path, size_t size), (fd, path, size))
WRAP(ssize_t, process_vm_readv,
     (pid_t pid, const struct iovec *local, unsigned long locals,
      const struct iovec *remote, unsigned long remotes, unsigned long flags),
     (pid, local, locals, remote, remotes, flags))
WRAP(ssize_t, process_vm_writev,
     (pid_t pid, const struct iovec *local, unsigned long locals,
      const struct iovec *remote, unsigned long remotes, unsigned long flags),
     (pid, local, locals, remote, remotes, flags))
WRAP_HERE(int, poll, (void *fds, unsigned long count, int timeout),
	  (fds, count, timeout))
WRAP_HERE(int, ppoll,
	  (void *fds, unsigned long count, const struct timespec *timeout,
	   const void *mask),
	  (fds, count, timeout, mask))
WRAP_HERE(ssize_t, read, (int fd, void *data, size_t size), (fd, data, size))
WRAP_HERE(ssize_t, write, (int fd, const void *data, size_t size),
	  (fd, data, size))

FILE *__real_fdopen(int fd, const char *mode);
FILE *__wrap_fdopen(int fd, const char *mode);

FILE *__wrap_fdopen(int fd, const char *mode)
{
	if (fails(SYSTEM, "fdopen")) {
		errno = FAILURE;
		return NULL;
	}
	return __real_fdopen(fd, mode);
}

/* KVM's pass by the hook. */
int __real_ioctl(int fd, unsigned long request, void *argument);
int __wrap_ioctl(int fd, unsigned long request, void *argument);

int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
	if (_IOC_TYPE(request) != KVMIO && fails(SYSTEM, "ioctl")) {
		errno = FAILURE;
		return -1;
	}
	return __real_ioctl(fd, request, argument);
}

/* This one returns its error. */
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
			  void *(*start)(void *), void *opaque);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
			  void *(*start)(void *), void *opaque);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
			  void *(*start)(void *), void *opaque)
{
	if (fails(SYSTEM, "pthread_create"))
		return FAILURE;
	return __real_pthread_create(thread, attributes, start, opaque);
}

static int before(void *opaque, int fd, unsigned long request, void *arg)
{
	const char *name = ckvm_ioctl_name(request);

	(void)opaque, (void)fd, (void)arg;
	return fails(SYSTEM, name ? name : "ioctl") ? -FAILURE : CKVM_HOOK_CALL;
}

/* Lua --------------------------------------------------------------------- */

static void *allocate(void *opaque, void *block, size_t old, size_t size)
{
	(void)opaque;
	if (!size) {
		__real_free(block);
		return NULL;
	}
	/* Lua counts on it that less is always to be had. */
	if ((!block || size > old) && fails(LUA, "memory"))
		return NULL;
	return __real_realloc(block, size);
}

static int call(lua_State *L)
{
	static const char *const kinds[] = { "none", "system", "lua", NULL };
	enum kind kind = (enum kind)luaL_checkoption(L, 1, NULL, kinds);
	int status;

	fault.at = (long)luaL_checkinteger(L, 2);
	fault.events = 0;
	fault.failed = NULL;
	fault.kind = kind;
	calling = true;
	status = lua_pcall(L, lua_gettop(L) - 3, 1, 0);
	fault.kind = NONE;
	lua_pushboolean(L, status == LUA_OK);
	lua_insert(L, -2);
	lua_pushinteger(L, fault.events);
	lua_pushstring(L, fault.failed);
	return 4;
}

static int live(lua_State *L)
{
	lua_pushinteger(L, fault.blocks);
	lua_pushinteger(L, fault.maps);
	return 2;
}

static int open_faults(lua_State *L)
{
	static const luaL_Reg functions[] = { { "call", call },
					      { "live", live },
					      { NULL, NULL } };

	luaL_newlib(L, functions);
	return 1;
}

static int open_ckvm(lua_State *L)
{
	static const struct ckvm_hook hook = { .before = before };

	luaopen_ckvm(L);
	ckvm_lua_set_hook(ckvm_lua_get(L), &hook);
	return 1;
}

static void add_module(lua_State *L, const char *name, lua_CFunction open)
{
	luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
	lua_pushcfunction(L, open);
	lua_setfield(L, -2, name);
	lua_pop(L, 1);
}

int main(void)
{
	const char *source = getenv("CKVM_SRCDIR");
	char path[4096];
	lua_State *L;
	int failed;

	test_needs_kvm();
	snprintf(path, sizeof(path), "%s/tests/faults.lua",
		 source ? source : ".");
	L = lua_newstate(allocate, NULL);
	luaL_openlibs(L);
	add_module(L, "ckvm", open_ckvm);
	add_module(L, "faults", open_faults);
	failed = luaL_dofile(L, path);
	if (failed)
		fprintf(stderr, "%s\n", luaL_tolstring(L, -1, NULL));
	lua_close(L);
	return failed ? 1 : 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * What ends a wait before its time: an eventfd of the state's own, which every
 * wait polls, too. A signal between the last look and poll(2) would be lost.
 */
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "luackvm.h"

int luackvm_need_wake(struct ckvm_lua *lua)
{
	int fd;

	if (lua->wake >= 0)
		return 0;
	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0)
		return -errno;
	lua->wake = fd;
	return 0;
}

/* In a signal handler, too. It cannot fail but when it is readable anyway. */
static void add(int fd)
{
	uint64_t one = 1;
	int saved = errno;

	if (fd >= 0 && write(fd, &one, sizeof(one)) < 0)
		errno = saved;
}

void luackvm_interrupt_wait(struct ckvm_lua *lua)
{
	add(lua->wake);
}

void luackvm_wake(struct ckvm_lua *lua, unsigned int waiters)
{
	lua->leaving += waiters;
	add(lua->wake);
}

/* It stays readable until all that are to leave have seen it. */
void luackvm_woken(struct ckvm_lua *lua, bool leaves)
{
	uint64_t count;

	if (leaves)
		lua->leaving--;
	if (!lua->leaving && read(lua->wake, &count, sizeof(count)) < 0)
		return; /* nobody has called */
}

void luackvm_end_wake(struct ckvm_lua *lua)
{
	int fd = atomic_exchange(&lua->wake, -1);

	if (fd >= 0)
		close(fd);
}

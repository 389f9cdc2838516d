/* SPDX-License-Identifier: MIT */
/*
 * Buffers for calls whose size the kernel knows and does not tell: the byte
 * behind the last one cannot be touched, so that too small a size is EFAULT and
 * not a broken heap.
 */
#include <errno.h>
#include <sys/mman.h>

#include "luackvm.h"

#define PAGE 4096

static size_t whole_pages(size_t size)
{
	return (size + PAGE - 1) / PAGE * PAGE;
}

void luackvm_guard(lua_State *L, struct luackvm_guard *guard, size_t size)
{
	size_t pages = whole_pages(size);
	uint8_t *base;
	int error = 0;

	base = mmap(NULL, pages + PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (base == MAP_FAILED)
		luackvm_fail_call(L, "mmap", -errno, "a buffer");
	if (mprotect(base + pages, PAGE, PROT_NONE)) {
		error = -errno;
		munmap(base, pages + PAGE);
		luackvm_fail_call(L, "mprotect", error, "a buffer");
	}
	guard->data = base + pages - size;
	guard->size = size;
}

void luackvm_unguard(struct luackvm_guard *guard)
{
	size_t pages = whole_pages(guard->size);

	munmap(guard->data + guard->size - pages, pages + PAGE);
}

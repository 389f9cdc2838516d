/* SPDX-License-Identifier: MIT */
/*
 * Guest memory that the guest has to map anew: the kernel is made to drop what
 * it has mapped of it, as by swapping, and what is in the memory stays.
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "internal.h"

static int protect(uint8_t *data, uint64_t bytes, int prot)
{
	return mprotect(data, bytes, prot) ? ckvm__fail("mprotect", -errno) : 0;
}

/*
 * Private pages would be lost if they were unmapped; a change of protection has
 * the kernel drop them, too. What may be written can be read on every CPU that
 * has KVM, so that no access of the host's fails meanwhile; but the kernel does
 * not read it for others, as it does for copy.c, and for a vCPU.
 */
static int zap_private(struct ckvm__mapping *mapping, uint8_t *data,
		       uint64_t bytes)
{
	int error;

	pthread_rwlock_wrlock(&mapping->lock); /* other VMs may have it, too */
	error = protect(data, bytes, PROT_WRITE);
	if (!error)
		error = protect(data, bytes, PROT_READ | PROT_WRITE);
	pthread_rwlock_unlock(&mapping->lock);
	return error;
}

static int zap(const struct ckvm_memory *memory, uint64_t offset,
	       uint64_t bytes)
{
	uint8_t *data = memory->data + offset;

	if (memory->guest_memfd >= 0)
		return ckvm__fail("guest_memfd", -EINVAL);
	if (!memory->mapping->owned)
		return ckvm__fail("memory", -EINVAL);
	/* Of a part of a huge page the kernel would say that it is done. */
	if (((uintptr_t)data | bytes) & (memory->mapping->page_size - 1))
		return ckvm__fail("hugepages", -EINVAL);
	if (memory->mapping->shared)
		return madvise(data, bytes, MADV_DONTNEED)
			       ? ckvm__fail("madvise", -errno)
			       : 0;
	return zap_private(memory->mapping, data, bytes);
}

/* With the VM held, and its lock. */
static int zap_all(struct ckvm_vm *vm, uint64_t gpa, uint64_t bytes)
{
	struct ckvm_memory *memory = ckvm__find_memory(vm, gpa, gpa);
	uint64_t found = ckvm__extent(vm, gpa, bytes);
	int error = ckvm__check_place(gpa, bytes);

	if (error)
		return error;
	if (found < bytes)
		return ckvm__fail_at("memory", gpa + found);
	for (; !error && bytes; memory = memory->next) {
		uint64_t offset = gpa - memory->gpa;
		uint64_t rest = memory->bytes - offset;
		uint64_t part = bytes < rest ? bytes : rest;

		error = zap(memory, offset, part);
		gpa += part;
		bytes -= part;
	}
	return error;
}

int ckvm_vm_zap_memory(struct ckvm_vm *vm, uint64_t gpa, uint64_t bytes)
{
	int error = ckvm__vm_hold(vm);

	if (error)
		return error;
	pthread_mutex_lock(&vm->lock);
	error = zap_all(vm, gpa, bytes);
	pthread_mutex_unlock(&vm->lock);
	ckvm__vm_drop(vm);
	return error;
}

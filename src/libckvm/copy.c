/* SPDX-License-Identifier: MIT */
/* The host's access to guest memory: read, write and fill, across slots. */
#define _GNU_SOURCE
#include <sys/uio.h>
#include <unistd.h>

#include "internal.h"

/* One stretch of guest memory, copied or filled. */
struct copy {
	enum { READ, WRITE, FILL } what;
	uint8_t *data; /* the caller's */
	uint8_t byte;
};

/*
 * A file that has shrunk raises SIGBUS on access, but gives EFAULT to a system
 * call; so the kernel copies for files.
 */
static int copy_by_kernel(const struct copy *copy, uint8_t *guest,
			  size_t length)
{
	uint8_t block[PAGE_SIZE];
	struct iovec local = { .iov_base = copy->data, .iov_len = length };
	struct iovec remote = { .iov_base = guest, .iov_len = length };
	ssize_t done;

	if (copy->what == READ) {
		done = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
		return done == (ssize_t)length ? 0 : -EFAULT;
	}
	if (copy->what == WRITE) {
		done = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
		return done == (ssize_t)length ? 0 : -EFAULT;
	}
	memset(block, copy->byte, sizeof(block));
	for (size_t part; length; length -= part, guest += part) {
		part = length < sizeof(block) ? length : sizeof(block);
		local = (struct iovec){ .iov_base = block, .iov_len = part };
		remote = (struct iovec){ .iov_base = guest, .iov_len = part };
		if (process_vm_writev(getpid(), &local, 1, &remote, 1, 0) !=
		    (ssize_t)part)
			return -EFAULT;
	}
	return 0;
}

static int copy_part(const struct copy *copy, const struct ckvm_memory *memory,
		     uint8_t *guest, size_t length)
{
	if (memory->may_shrink)
		return copy_by_kernel(copy, guest, length);
	switch (copy->what) {
	case READ:
		memcpy(copy->data, guest, length);
		break;
	case WRITE:
		memcpy(guest, copy->data, length);
		break;
	case FILL:
		memset(guest, copy->byte, length);
		break;
	}
	return 0;
}

uint64_t ckvm__extent(struct ckvm_vm *vm, uint64_t gpa, uint64_t wanted)
{
	const struct ckvm_memory *memory = ckvm__find_memory(vm, gpa, gpa);
	uint64_t found = 0;

	while (memory && found < wanted && memory->gpa <= gpa + found) {
		found = ckvm__last_byte(memory) - gpa;
		if (found == UINT64_MAX) /* all of 2^64 */
			return found;
		found++;
		if (gpa + found == 0) /* up to the last address there is */
			break;
		memory = memory->next;
	}
	return found < wanted ? found : wanted;
}

static int access_memory(struct ckvm_vm *vm, uint64_t gpa, struct copy copy,
			 size_t length)
{
	struct ckvm_memory *memory;
	int error = ckvm__vm_hold(vm);

	if (error)
		return error;
	pthread_mutex_lock(&vm->lock);
	if (ckvm__extent(vm, gpa, length) < length)
		error = -EFAULT;
	for (memory = ckvm__find_memory(vm, gpa, gpa); !error && length;
	     memory = memory->next) {
		uint64_t offset = gpa - memory->gpa;
		uint64_t rest = memory->bytes - offset;
		size_t part = length < rest ? length : rest;

		error = copy_part(&copy, memory, memory->data + offset, part);
		gpa += part;
		length -= part;
		if (copy.what != FILL)
			copy.data += part;
	}
	pthread_mutex_unlock(&vm->lock);
	ckvm__vm_drop(vm);
	return error ? ckvm__fail("memory", error) : 0;
}

int ckvm_vm_read(struct ckvm_vm *vm, uint64_t gpa, void *data, size_t length)
{
	return access_memory(vm, gpa, (struct copy){ READ, data, 0 }, length);
}

int ckvm_vm_write(struct ckvm_vm *vm, uint64_t gpa, const void *data,
		  size_t length)
{
	struct copy copy = { WRITE, (uint8_t *)(uintptr_t)data, 0 };

	return access_memory(vm, gpa, copy, length);
}

int ckvm_vm_fill(struct ckvm_vm *vm, uint64_t gpa, uint8_t byte, size_t length)
{
	return access_memory(vm, gpa, (struct copy){ FILL, NULL, byte },
			     length);
}

uint64_t ckvm_vm_extent(struct ckvm_vm *vm, uint64_t gpa)
{
	uint64_t found;

	if (ckvm__check_process(vm->kvm))
		return 0;
	pthread_mutex_lock(&vm->lock);
	found = ckvm__extent(vm, gpa, UINT64_MAX);
	pthread_mutex_unlock(&vm->lock);
	return found;
}

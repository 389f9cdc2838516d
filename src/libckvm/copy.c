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

/* At most that many bytes; how many it was, or -1. */
static ssize_t move(const struct copy *copy, uint8_t *data, uint8_t *guest,
		    size_t length)
{
	struct iovec local = { .iov_base = data, .iov_len = length };
	struct iovec remote = { .iov_base = guest, .iov_len = length };

	if (copy->what == READ)
		return process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
	return process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
}

/*
 * A file that has shrunk raises SIGBUS on access, but gives EFAULT to a system
 * call; so the kernel copies for files. It copies the pages that there are, and
 * 2 GiB at most, so that what fails is the first byte of what is left.
 */
static int copy_by_kernel(const struct copy *copy, uint8_t *guest,
			  size_t length, size_t *done)
{
	uint8_t block[PAGE_SIZE];
	ssize_t moved;

	if (copy->what == FILL)
		memset(block, copy->byte, sizeof(block));
	for (*done = 0; *done < length; *done += (size_t)moved) {
		size_t part = length - *done;
		uint8_t *data = block;

		if (copy->what != FILL)
			data = copy->data + *done;
		else if (part > sizeof(block))
			part = sizeof(block);
		moved = move(copy, data, guest + *done, part);
		if (moved < 0 && errno != EFAULT)
			return ckvm__fail("process_vm_readv", -errno);
		if (moved <= 0)
			return -EFAULT;
	}
	return 0;
}

/* Why the kernel could not copy. */
static const char *obstacle(const struct ckvm__mapping *mapping,
			    const struct copy *copy)
{
	if (mapping->guests)
		return "guest_memfd";
	return mapping->readonly && copy->what != READ ? "readonly" : "file";
}

static int copy_part(const struct copy *copy, const struct ckvm_memory *memory,
		     uint64_t offset, size_t length)
{
	uint8_t *guest = memory->data + offset;
	size_t done;
	int error;

	if (memory->may_shrink) {
		pthread_rwlock_rdlock(&memory->mapping->lock);
		error = copy_by_kernel(copy, guest, length, &done);
		pthread_rwlock_unlock(&memory->mapping->lock);
		if (error != -EFAULT)
			return error;
		return ckvm__fail_at(obstacle(memory->mapping, copy),
				     memory->gpa + offset + done);
	}
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
	uint64_t found;
	int error = ckvm__vm_hold(vm);

	if (error)
		return error;
	pthread_mutex_lock(&vm->lock);
	found = ckvm__extent(vm, gpa, length);
	if (found < length)
		error = ckvm__fail_at("memory", gpa + found);
	for (memory = ckvm__find_memory(vm, gpa, gpa); !error && length;
	     memory = memory->next) {
		uint64_t offset = gpa - memory->gpa;
		uint64_t rest = memory->bytes - offset;
		size_t part = length < rest ? length : rest;

		error = copy_part(&copy, memory, offset, part);
		gpa += part;
		length -= part;
		if (copy.what != FILL)
			copy.data += part;
	}
	pthread_mutex_unlock(&vm->lock);
	ckvm__vm_drop(vm);
	return error;
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

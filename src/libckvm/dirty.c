/* SPDX-License-Identifier: MIT */
/* The dirty log. */
#include "internal.h"

/*
 * KVM_GET_DIRTY_LOG forgets what it reports, so this is the only caller, and
 * what it brings is added to what the reader has not been told yet.
 */
static int harvest(struct ckvm_memory *memory, uint64_t *bitmap, size_t words)
{
	struct kvm_dirty_log log = {
		.slot = memory->slot,
		.dirty_bitmap = bitmap,
	};
	int error;

	/* valgrind and MemorySanitizer do not know that the ioctl fills it. */
	memset(bitmap, 0, words * 8);
	error = ckvm__ioctl(memory->vm->kvm, memory->vm->fd, KVM_GET_DIRTY_LOG,
			    &log);
	if (error)
		return error;
	for (size_t i = 0; i < words; i++)
		memory->dirty[i] |= bitmap[i];
	return 0;
}

/* With the VM held, and its lock. */
static int64_t take_dirty(struct ckvm_memory *memory, uint64_t *bitmap,
			  size_t words)
{
	size_t needed = (memory->bytes / PAGE_SIZE + 63) / 64;
	int64_t count = 0;
	int error;

	if (memory->closed)
		return ckvm__fail("closed", -EBADF);
	if (!(memory->flags & CKVM_MEMORY_LOG_DIRTY))
		return ckvm__fail("log_dirty", -ENOENT);
	if (words < needed)
		return ckvm__fail("bitmap", -EINVAL);

	error = harvest(memory, bitmap, needed);
	for (size_t i = 0; !error && i < needed; i++) {
		bitmap[i] = memory->dirty[i];
		memory->dirty[i] = 0;
		count += __builtin_popcountll(bitmap[i]);
	}
	return error ? error : count;
}

int64_t ckvm_memory_dirty(struct ckvm_memory *memory, uint64_t *bitmap,
			  size_t words)
{
	struct ckvm_vm *vm = memory->vm;
	int64_t count;

	count = ckvm__vm_hold(vm);
	if (count)
		return count;
	pthread_mutex_lock(&vm->lock);
	count = take_dirty(memory, bitmap, words);
	pthread_mutex_unlock(&vm->lock);
	ckvm__vm_drop(vm);
	return count;
}

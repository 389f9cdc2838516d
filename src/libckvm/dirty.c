/* SPDX-License-Identifier: MIT */
/*
 * The dirty log.
 *
 * What KVM_GET_DIRTY_LOG reports it forgets, as does a ring that is reset. So
 * this is the only caller, and each of the two readers has a bitmap into which
 * all that comes is or-ed. With KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 the kernel
 * forgets by KVM_CLEAR_DIRTY_LOG alone.
 */
#include <stdlib.h>

#include "internal.h"

static size_t words_of(const struct ckvm_memory *memory)
{
	return (memory->bytes / PAGE_SIZE + 63) / 64;
}

int ckvm__create_dirty(struct ckvm_memory *memory)
{
	size_t words = words_of(memory);

	if (memory->dirty)
		return 0;
	memory->dirty = calloc(words, 2 * sizeof(uint64_t));
	if (!memory->dirty)
		return ckvm__fail("malloc", -ENOMEM);
	memory->logged = memory->dirty + words;
	return 0;
}

void ckvm__dirty_enabled(struct ckvm_vm *vm, const struct kvm_enable_cap *cap)
{
	switch (cap->cap) {
	case KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
		vm->manual_log = cap->args[0];
		break;
	case KVM_CAP_DIRTY_LOG_RING:
	case KVM_CAP_DIRTY_LOG_RING_ACQ_REL:
		vm->dirty_entries =
			(uint32_t)(cap->args[0] / sizeof(struct kvm_dirty_gfn));
		break;
	}
}

/* Does the kernel forget by KVM_CLEAR_DIRTY_LOG alone? With rings it has no
 * log.
 */
static bool is_manual(const struct ckvm_memory *memory)
{
	return memory->vm->manual_log && !memory->vm->dirty_entries;
}

/* The kernel -------------------------------------------------------------- */

/* The readers have been told, or will be, of what is set in `bitmap`. */
static int clear(struct ckvm_memory *memory, uint64_t first, uint64_t count,
		 const uint64_t *bitmap)
{
	struct kvm_clear_dirty_log log = {
		.slot = memory->slot,
		.num_pages = (uint32_t)count,
		.first_page = first,
		.dirty_bitmap = (void *)(uintptr_t)bitmap,
	};

	return ckvm__ioctl(memory->vm->kvm, memory->vm->fd, KVM_CLEAR_DIRTY_LOG,
			   &log);
}

static int get(struct ckvm_memory *memory, uint64_t *bitmap)
{
	struct kvm_dirty_log log = {
		.slot = memory->slot,
		.dirty_bitmap = bitmap,
	};

	return ckvm__ioctl(memory->vm->kvm, memory->vm->fd, KVM_GET_DIRTY_LOG,
			   &log);
}

/*
 * Adds what is new to both bitmaps. Into `bitmap` comes what the kernel does
 * not forget by itself, and is in neither.
 */
static int collect(struct ckvm_memory *memory, uint64_t *bitmap)
{
	size_t words = words_of(memory);
	int error;

	/* valgrind and MemorySanitizer do not know that the ioctl fills it. */
	memset(bitmap, 0, words * 8);
	if (memory->vm->dirty_entries)
		return ckvm__harvest_rings(memory->vm);
	error = get(memory, bitmap);
	if (error || is_manual(memory))
		return error;
	for (size_t i = 0; i < words; i++) {
		memory->dirty[i] |= bitmap[i];
		memory->logged[i] |= bitmap[i];
		bitmap[i] = 0;
	}
	return 0;
}

/* Readers ----------------------------------------------------------------- */

static int64_t count_bits(const uint64_t *bitmap, size_t words)
{
	int64_t count = 0;

	for (size_t i = 0; i < words; i++)
		count += __builtin_popcountll(bitmap[i]);
	return count;
}

/* Everything since the last time, and all is forgotten. */
static int64_t take_dirty(struct ckvm_memory *memory, uint64_t *bitmap)
{
	size_t words = words_of(memory);
	int error = collect(memory, bitmap);

	if (!error && is_manual(memory))
		error = clear(memory, 0, memory->bytes / PAGE_SIZE, bitmap);
	if (error)
		return error;
	for (size_t i = 0; i < words; i++) {
		memory->logged[i] |= bitmap[i];
		bitmap[i] |= memory->dirty[i];
		memory->dirty[i] = 0;
	}
	return count_bits(bitmap, words);
}

/* As the kernel does it: all is forgotten, or nothing is. */
static int64_t take_logged(struct ckvm_memory *memory, uint64_t *bitmap)
{
	size_t words = words_of(memory);
	int error = collect(memory, bitmap);

	if (error)
		return error;
	for (size_t i = 0; i < words; i++) {
		bitmap[i] |= memory->logged[i];
		if (!is_manual(memory))
			memory->logged[i] = 0;
	}
	return count_bits(bitmap, words);
}

/* With the VM held, and its lock. */
static int check(const struct ckvm_memory *memory)
{
	if (memory->closed)
		return ckvm__fail("closed", -EBADF);
	if (!(memory->flags & CKVM_MEMORY_LOG_DIRTY))
		return ckvm__fail("log_dirty", -ENOENT);
	return 0;
}

static int64_t take(struct ckvm_memory *memory, uint64_t *bitmap, size_t words,
		    int64_t (*reader)(struct ckvm_memory *memory,
				      uint64_t *bitmap))
{
	struct ckvm_vm *vm = memory->vm;
	int64_t count = ckvm__vm_hold(vm);

	if (count)
		return count;
	pthread_mutex_lock(&vm->lock);
	count = check(memory);
	if (!count && words < words_of(memory))
		count = ckvm__fail("bitmap", -EINVAL);
	if (!count)
		count = reader(memory, bitmap);
	pthread_mutex_unlock(&vm->lock);
	ckvm__vm_drop(vm);
	return count;
}

int64_t ckvm_memory_dirty(struct ckvm_memory *memory, uint64_t *bitmap,
			  size_t words)
{
	return take(memory, bitmap, words, take_dirty);
}

int64_t ckvm_memory_get_dirty_log(struct ckvm_memory *memory, uint64_t *bitmap,
				  size_t words)
{
	return take(memory, bitmap, words, take_logged);
}

/* Clearing ---------------------------------------------------------------- */

/* As the kernel has it: whole words, but for the last. */
static int check_pages(const struct ckvm_memory *memory, uint64_t first,
		       uint64_t count)
{
	uint64_t pages = memory->bytes / PAGE_SIZE;

	if (first % 64 || first > pages || count > pages - first ||
	    (count % 64 && count < pages - first))
		return ckvm__fail("pages", -EINVAL);
	return 0;
}

static int clear_logged(struct ckvm_memory *memory, uint64_t first,
			uint64_t count, const uint64_t *bitmap, uint64_t *found)
{
	uint64_t at = first / 64, words = (count + 63) / 64;
	int error = collect(memory, found);

	if (!error && is_manual(memory))
		error = clear(memory, first, count, bitmap);
	if (error)
		return error;
	for (uint64_t i = 0; i < words; i++) {
		memory->dirty[at + i] |= found[at + i] & bitmap[i];
		memory->logged[at + i] &= ~bitmap[i];
	}
	return 0;
}

int ckvm_memory_clear_dirty_log(struct ckvm_memory *memory, uint64_t first,
				uint64_t count, const uint64_t *bitmap)
{
	struct ckvm_vm *vm = memory->vm;
	uint64_t *found;
	int error = ckvm__vm_hold(vm);

	if (error)
		return error;
	found = malloc(words_of(memory) * 8);
	pthread_mutex_lock(&vm->lock);
	error = found ? check(memory) : ckvm__fail("malloc", -ENOMEM);
	if (!error)
		error = check_pages(memory, first, count);
	if (!error)
		error = clear_logged(memory, first, count, bitmap, found);
	pthread_mutex_unlock(&vm->lock);
	free(found);
	ckvm__vm_drop(vm);
	return error;
}

/* SPDX-License-Identifier: MIT */
/*
 * Guest memory: slots, and who owns the mappings in them.
 *
 * The list and the mappings in it are guarded by the VM's lock, so that memory
 * can be removed by one thread while another copies from it (copy.c).
 */
#include <stdlib.h>
#include <sys/mman.h>

#include "internal.h"

#define PAGE_MASK (PAGE_SIZE - 1)

/* Slots ------------------------------------------------------------------- */

struct ckvm_memory *ckvm__find_memory(struct ckvm_vm *vm, uint64_t first,
				      uint64_t last)
{
	struct ckvm_memory *memory;

	for (memory = vm->memory; memory; memory = memory->next)
		if (memory->gpa <= last && ckvm__last_byte(memory) >= first)
			return memory;
	return NULL;
}

static bool slot_taken(const struct ckvm_vm *vm, uint32_t slot)
{
	const struct ckvm_memory *memory;

	for (memory = vm->memory; memory; memory = memory->next)
		if (memory->slot == slot)
			return true;
	return false;
}

static void link_memory(struct ckvm_vm *vm, struct ckvm_memory *memory)
{
	struct ckvm_memory **at = &vm->memory;

	while (*at && (*at)->gpa < memory->gpa)
		at = &(*at)->next;
	memory->next = *at;
	*at = memory;
}

static void unlink_memory(struct ckvm_vm *vm, struct ckvm_memory *memory)
{
	struct ckvm_memory **at = &vm->memory;

	while (*at != memory)
		at = &(*at)->next;
	*at = memory->next;
}

static int set_region(struct ckvm_memory *memory, uint64_t gpa, uint64_t bytes)
{
	struct kvm_userspace_memory_region region = {
		.slot = memory->slot,
		.guest_phys_addr = gpa,
		.memory_size = bytes,
		.userspace_addr = (uintptr_t)memory->data,
	};

	if (memory->flags & CKVM_MEMORY_READONLY)
		region.flags |= KVM_MEM_READONLY;
	if (memory->flags & CKVM_MEMORY_LOG_DIRTY)
		region.flags |= KVM_MEM_LOG_DIRTY_PAGES;
	return ckvm__ioctl(memory->vm->kvm, memory->vm->fd,
			   KVM_SET_USER_MEMORY_REGION, &region);
}

int ckvm__log_anew(struct ckvm_memory *memory)
{
	int error;

	memory->flags &= ~CKVM_MEMORY_LOG_DIRTY;
	error = set_region(memory, memory->gpa, memory->bytes);
	memory->flags |= CKVM_MEMORY_LOG_DIRTY;
	return error ? error : set_region(memory, memory->gpa, memory->bytes);
}

/* Whole pages, not none, and not past 2^64. */
static int check_place(uint64_t gpa, uint64_t bytes)
{
	if (!bytes || (gpa | bytes) & PAGE_MASK || bytes - 1 > UINT64_MAX - gpa)
		return ckvm__fail("memory", -EINVAL);
	return 0;
}

static int insert(struct ckvm_vm *vm, struct ckvm_memory *memory,
		  const struct ckvm_memory_config *config)
{
	uint32_t slot = config->slot;
	int error;

	if (ckvm__find_memory(vm, config->gpa,
			      config->gpa + (config->bytes - 1)))
		return ckvm__fail("memory", -EEXIST);
	if (!(config->flags & CKVM_MEMORY_SLOT) && vm->foreign)
		return ckvm__fail("slot", -EINVAL);
	if (!(config->flags & CKVM_MEMORY_SLOT))
		for (slot = 0; slot_taken(vm, slot);)
			slot++;
	else if (slot_taken(vm, slot))
		return ckvm__fail("slot", -EEXIST);
	memory->slot = slot;
	error = set_region(memory, config->gpa, config->bytes);
	if (error)
		return error;
	link_memory(vm, memory);
	return 0;
}

static int create(struct ckvm_vm *vm, const struct ckvm_memory_config *config,
		  struct ckvm_memory **out)
{
	struct ckvm_memory *memory;
	int error;

	memory = calloc(1, sizeof(*memory));
	if (!memory)
		return ckvm__fail("malloc", -ENOMEM);
	memory->refs = 1;
	memory->vm = ckvm_vm_ref(vm);
	memory->gpa = config->gpa;
	memory->bytes = config->bytes;
	memory->flags = config->flags;
	memory->may_shrink = config->flags & CKVM_MEMORY_FILE;
	error = ckvm__map(config, &memory->data);
	if (error)
		goto err_free;
	if (config->flags & CKVM_MEMORY_LOG_DIRTY) {
		error = ckvm__create_dirty(memory);
		if (error)
			goto err_unmap;
	}
	*out = memory;
	return 0;

err_unmap:
	munmap(memory->data, memory->bytes);
err_free:
	ckvm_memory_unref(memory);
	return error;
}

/* Not in a child, where something else may have the address by now. */
static void unmap(struct ckvm_vm *vm, struct ckvm_memory *memory)
{
	if (!ckvm__check_process(vm->kvm))
		munmap(memory->data, memory->bytes);
	memory->data = NULL;
	free(memory->dirty);
	memory->dirty = NULL;
}

#define ALL_FLAGS                                                            \
	(CKVM_MEMORY_READONLY | CKVM_MEMORY_LOG_DIRTY | CKVM_MEMORY_SHARED | \
	 CKVM_MEMORY_FILE | CKVM_MEMORY_SLOT | CKVM_MEMORY_HUGEPAGES)

/* With the VM held. */
static int add_config(struct ckvm_vm *vm,
		      const struct ckvm_memory_config *config,
		      struct ckvm_memory **out)
{
	struct ckvm_memory *memory;
	int error = check_place(config->gpa, config->bytes);

	if (config->flags & ~ALL_FLAGS)
		return ckvm__fail("flags", -EINVAL);
	if (config->flags & CKVM_MEMORY_FILE &&
	    config->flags & CKVM_MEMORY_HUGEPAGES)
		return ckvm__fail("hugepages", -EINVAL);
	if (!error && config->flags & CKVM_MEMORY_HUGEPAGES)
		error = ckvm__check_hugepages(config);
	if (!error)
		error = create(vm, config, &memory);
	if (error)
		return error;

	pthread_mutex_lock(&vm->lock);
	error = insert(vm, memory, config);
	pthread_mutex_unlock(&vm->lock);
	if (error) {
		unmap(vm, memory);
		ckvm_memory_unref(memory);
		return error;
	}
	*out = memory;
	return 0;
}

int ckvm_vm_add_memory(struct ckvm_vm *vm,
		       const struct ckvm_memory_config *config,
		       struct ckvm_memory **out)
{
	struct ckvm_memory_config conf = { 0 };
	int error = ckvm__vm_hold(vm);

	if (error)
		return error;
	memcpy(&conf, config,
	       config->size < sizeof(conf) ? config->size : sizeof(conf));
	error = add_config(vm, &conf, out);
	ckvm__vm_drop(vm);
	return error;
}

struct ckvm_memory *ckvm_memory_ref(struct ckvm_memory *memory)
{
	atomic_fetch_add(&memory->refs, 1);
	return memory;
}

void ckvm_memory_unref(struct ckvm_memory *memory)
{
	if (!memory || atomic_fetch_sub(&memory->refs, 1) != 1)
		return;
	ckvm_vm_unref(memory->vm);
	free(memory);
}

/* The caller has the lock. What the kernel keeps stays, to the VM's end. */
static bool remove_memory(struct ckvm_vm *vm, struct ckvm_memory *memory)
{
	if (memory->closed)
		return false;
	memory->closed = true;
	if (ckvm__check_process(vm->kvm) || set_region(memory, memory->gpa, 0))
		return false;
	unlink_memory(vm, memory);
	/* Or else it would be told of the next memory in this slot. */
	if (vm->dirty_entries)
		ckvm__harvest_rings(vm);
	unmap(vm, memory);
	return true;
}

void ckvm_memory_close(struct ckvm_memory *memory)
{
	struct ckvm_vm *vm;
	bool removed;

	if (!memory || ckvm__check_process(memory->vm->kvm))
		return;
	vm = ckvm_vm_ref(memory->vm); /* the memory may go with this */
	pthread_mutex_lock(&vm->lock);
	removed = remove_memory(vm, memory);
	pthread_mutex_unlock(&vm->lock);
	if (removed)
		ckvm_memory_unref(memory);
	ckvm_vm_unref(vm);
}

/* What the kernel cannot give up is never unmapped. */
void ckvm__memory_withdraw(struct ckvm_vm *vm)
{
	struct ckvm_memory **at = &vm->memory;

	while (*at)
		if (set_region(*at, (*at)->gpa, 0))
			*at = (*at)->next;
		else
			at = &(*at)->next;
}

void ckvm__memory_end(struct ckvm_vm *vm)
{
	struct ckvm_memory *memory;

	while ((memory = vm->memory)) {
		vm->memory = memory->next;
		memory->closed = true;
		unmap(vm, memory);
		ckvm_memory_unref(memory);
	}
}

/* With the VM held, and its lock. */
static int move(struct ckvm_vm *vm, struct ckvm_memory *memory, uint64_t gpa)
{
	int error = check_place(gpa, memory->bytes);

	if (error)
		return error;
	if (memory->closed)
		return ckvm__fail("closed", -EBADF);
	unlink_memory(vm, memory);
	if (ckvm__find_memory(vm, gpa, gpa + (memory->bytes - 1)))
		error = ckvm__fail("memory", -EEXIST);
	else if (gpa != memory->gpa)
		error = set_region(memory, gpa, memory->bytes);
	if (!error)
		memory->gpa = gpa;
	link_memory(vm, memory);
	return error;
}

int ckvm_memory_move(struct ckvm_memory *memory, uint64_t gpa)
{
	struct ckvm_vm *vm = memory->vm;
	int error;

	error = ckvm__vm_hold(vm);
	if (error)
		return error;
	pthread_mutex_lock(&vm->lock);
	error = move(vm, memory, gpa);
	pthread_mutex_unlock(&vm->lock);
	ckvm__vm_drop(vm);
	return error;
}

uint64_t ckvm_memory_gpa(const struct ckvm_memory *memory)
{
	return memory->gpa;
}

uint64_t ckvm_memory_size(const struct ckvm_memory *memory)
{
	return memory->bytes;
}

uint32_t ckvm_memory_slot(const struct ckvm_memory *memory)
{
	return memory->slot;
}

uint32_t ckvm_memory_flags(const struct ckvm_memory *memory)
{
	return memory->flags;
}

void *ckvm_memory_data(struct ckvm_memory *memory)
{
	return memory->data;
}

struct ckvm_memory *ckvm_vm_find_memory(struct ckvm_vm *vm, uint64_t gpa,
					uint64_t length)
{
	struct ckvm_memory *memory;

	if (!length)
		return NULL;
	if (length - 1 > UINT64_MAX - gpa)
		length = UINT64_MAX - gpa + 1;
	pthread_mutex_lock(&vm->lock);
	memory = ckvm__find_memory(vm, gpa, gpa + (length - 1));
	if (memory)
		ckvm_memory_ref(memory);
	pthread_mutex_unlock(&vm->lock);
	return memory;
}

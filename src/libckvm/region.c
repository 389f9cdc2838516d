/* SPDX-License-Identifier: MIT */
/*
 * Slots as the kernel has them: KVM_SET_USER_MEMORY_REGION and its successor.
 * The kernel decides; what it has agreed to, the books of memory.c say, too.
 */
#include <stdlib.h>

#include "internal.h"

/* What a call is about to do, and all that could fail beforehand. */
struct change {
	struct kvm_userspace_memory_region2 region;
	unsigned long request;
	struct ckvm__mapping *mapping; /* a reference, to be passed on; NULL */
	struct ckvm_memory *memory;    /* one that is new; NULL */
};

static uint32_t flags_of(const struct change *change)
{
	uint32_t flags = CKVM_MEMORY_SLOT;

	if (change->region.flags & KVM_MEM_READONLY)
		flags |= CKVM_MEMORY_READONLY;
	if (change->region.flags & KVM_MEM_LOG_DIRTY_PAGES)
		flags |= CKVM_MEMORY_LOG_DIRTY;
	return flags;
}

/* The host's side of a slot that is not there yet. */
static int prepare(struct ckvm_vm *vm, struct change *change)
{
	const struct kvm_userspace_memory_region2 *region = &change->region;
	struct ckvm_memory *memory;

	memory = ckvm__new_memory(vm, region->guest_phys_addr,
				  region->memory_size, flags_of(change));
	if (!memory)
		return ckvm__fail("malloc", -ENOMEM);
	change->memory = memory;
	memory->slot = region->slot;
	memory->data = (uint8_t *)(uintptr_t)region->userspace_addr;
	memory->mapping = change->mapping;
	change->mapping = NULL;
	if (!memory->mapping)
		memory->mapping =
			ckvm__new_mapping(memory->data, memory->bytes);
	if (!memory->mapping)
		return ckvm__fail("malloc", -ENOMEM);
	memory->may_shrink = memory->mapping->may_shrink;
	if (region->flags & KVM_MEM_GUEST_MEMFD)
		return ckvm__bind_guest_memfd(memory, (int)region->guest_memfd,
					      region->guest_memfd_offset);
	return 0;
}

static int call(struct ckvm_vm *vm, struct change *change)
{
	return ckvm__ioctl(vm->kvm, vm->fd, change->request, &change->region);
}

static int add(struct ckvm_vm *vm, struct change *change)
{
	int error = ckvm__check_place(change->region.guest_phys_addr,
				      change->region.memory_size);

	if (!error)
		error = prepare(vm, change);
	if (!error && change->region.flags & KVM_MEM_LOG_DIRTY_PAGES)
		error = ckvm__create_dirty(change->memory);
	if (!error)
		error = call(vm, change);
	if (error)
		return error;
	ckvm__link_memory(vm, change->memory);
	change->memory = NULL;
	return 0;
}

/* Another place, or other flags; a size or mapping the kernel lets nobody. */
static int alter(struct ckvm_vm *vm, struct ckvm_memory *memory,
		 struct change *change)
{
	int error = ckvm__check_place(change->region.guest_phys_addr,
				      memory->bytes);

	if (!error && change->region.flags & KVM_MEM_LOG_DIRTY_PAGES)
		error = ckvm__create_dirty(memory);
	if (!error)
		error = call(vm, change);
	if (error)
		return error;
	ckvm__unlink_memory(vm, memory);
	memory->gpa = change->region.guest_phys_addr;
	memory->flags &= ~(CKVM_MEMORY_READONLY | CKVM_MEMORY_LOG_DIRTY);
	memory->flags |= flags_of(change);
	ckvm__link_memory(vm, memory);
	return 0;
}

static int delete (struct ckvm_vm *vm, struct ckvm_memory *memory,
		   struct change *change)
{
	int error = call(vm, change);

	if (error)
		return error;
	memory->closed = true;
	ckvm__unlink_memory(vm, memory);
	if (vm->dirty_entries) /* as for memory that is closed */
		ckvm__harvest_rings(vm);
	change->memory = memory; /* for finish to drop */
	return 0;
}

static int apply(struct ckvm_vm *vm, struct change *change)
{
	struct ckvm_memory *memory = ckvm__find_slot(vm, change->region.slot);

	if (!change->region.memory_size)
		return memory ? delete (vm, memory, change) : call(vm, change);
	return memory ? alter(vm, memory, change) : add(vm, change);
}

/* With the VM held: what was not passed on goes. */
static int set_region(struct ckvm_vm *vm, struct change *change)
{
	int error;

	pthread_mutex_lock(&vm->lock);
	error = apply(vm, change);
	if (change->memory)
		ckvm__forget_memory(vm, change->memory);
	pthread_mutex_unlock(&vm->lock);
	if (change->mapping)
		ckvm__unmap(change->mapping, true);
	ckvm_memory_unref(change->memory);
	return error;
}

static int set_user_region(struct ckvm_vm *vm, struct change *change,
			   struct ckvm_memory *of)
{
	uint8_t *data;
	int error = ckvm__vm_hold(vm);

	if (error)
		return error;
	if (of) {
		error = ckvm__share_mapping(of, change->region.userspace_addr,
					    change->region.memory_size,
					    &change->mapping, &data);
		if (!error)
			change->region.userspace_addr = (uintptr_t)data;
	}
	if (!error)
		error = set_region(vm, change);
	ckvm__vm_drop(vm);
	return error;
}

int ckvm_vm_set_user_memory_region(
	struct ckvm_vm *vm, const struct kvm_userspace_memory_region *region,
	struct ckvm_memory *of)
{
	struct change change = { .request = KVM_SET_USER_MEMORY_REGION };

	/* The first struct is the second one's beginning. */
	memcpy(&change.region, region, sizeof(*region));
	return set_user_region(vm, &change, of);
}

int ckvm_vm_set_user_memory_region2(
	struct ckvm_vm *vm, const struct kvm_userspace_memory_region2 *region,
	struct ckvm_memory *of)
{
	struct change change = { .region = *region,
				 .request = KVM_SET_USER_MEMORY_REGION2 };

	return set_user_region(vm, &change, of);
}

/* The kernel's shadow page tables ----------------------------------------- */

int ckvm_vm_set_nr_mmu_pages(struct ckvm_vm *vm, unsigned long count)
{
	return ckvm__vm_ioctl(vm, KVM_SET_NR_MMU_PAGES, (void *)count);
}

int ckvm_vm_get_nr_mmu_pages(struct ckvm_vm *vm)
{
	return ckvm__vm_ioctl(vm, KVM_GET_NR_MMU_PAGES, NULL);
}

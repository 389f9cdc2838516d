/* SPDX-License-Identifier: MIT */
/*
 * Guest memory: slots, and who owns the mappings in them.
 *
 * The list and the mappings in it are guarded by the VM's lock, so that memory
 * can be removed by one thread while another copies from it (copy.c).
 */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

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

struct ckvm_memory *ckvm__find_slot(struct ckvm_vm *vm, uint32_t slot)
{
	struct ckvm_memory *memory = vm->memory;

	while (memory && memory->slot != slot)
		memory = memory->next;
	return memory;
}

void ckvm__link_memory(struct ckvm_vm *vm, struct ckvm_memory *memory)
{
	struct ckvm_memory **at = &vm->memory;

	while (*at && (*at)->gpa < memory->gpa)
		at = &(*at)->next;
	memory->next = *at;
	*at = memory;
}

void ckvm__unlink_memory(struct ckvm_vm *vm, struct ckvm_memory *memory)
{
	struct ckvm_memory **at = &vm->memory;

	while (*at != memory)
		at = &(*at)->next;
	*at = memory->next;
}

/* The first region's struct is the second one's beginning. */
static int set_region(struct ckvm_memory *memory, uint64_t gpa, uint64_t bytes)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = memory->slot,
		.guest_phys_addr = gpa,
		.memory_size = bytes,
		.userspace_addr = (uintptr_t)memory->data,
		.guest_memfd_offset = memory->guest_memfd_offset,
	};
	unsigned long request = KVM_SET_USER_MEMORY_REGION;

	if (memory->flags & CKVM_MEMORY_READONLY)
		region.flags |= KVM_MEM_READONLY;
	if (memory->flags & CKVM_MEMORY_LOG_DIRTY)
		region.flags |= KVM_MEM_LOG_DIRTY_PAGES;
	if (memory->guest_memfd >= 0) {
		request = KVM_SET_USER_MEMORY_REGION2;
		region.flags |= KVM_MEM_GUEST_MEMFD;
		region.guest_memfd = (uint32_t)memory->guest_memfd;
	}
	return ckvm__ioctl(memory->vm->kvm, memory->vm->fd, request, &region);
}

int ckvm__log_anew(struct ckvm_memory *memory)
{
	int error;

	memory->flags &= ~CKVM_MEMORY_LOG_DIRTY;
	error = set_region(memory, memory->gpa, memory->bytes);
	memory->flags |= CKVM_MEMORY_LOG_DIRTY;
	return error ? error : set_region(memory, memory->gpa, memory->bytes);
}

int ckvm__check_place(uint64_t gpa, uint64_t bytes)
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
		for (slot = 0; ckvm__find_slot(vm, slot);)
			slot++;
	else if (ckvm__find_slot(vm, slot))
		return ckvm__fail("slot", -EEXIST);
	memory->slot = slot;
	error = set_region(memory, config->gpa, config->bytes);
	if (error)
		return error;
	ckvm__link_memory(vm, memory);
	return 0;
}

struct ckvm_memory *ckvm__new_memory(struct ckvm_vm *vm, uint64_t gpa,
				     uint64_t bytes, uint32_t flags)
{
	struct ckvm_memory *memory = calloc(1, sizeof(*memory));

	if (!memory)
		return NULL;
	memory->refs = 1;
	memory->vm = ckvm_vm_ref(vm);
	memory->gpa = gpa;
	memory->bytes = bytes;
	memory->flags = flags;
	memory->guest_memfd = -1;
	return memory;
}

int ckvm__bind_guest_memfd(struct ckvm_memory *memory, int fd, uint64_t offset)
{
	memory->guest_memfd_offset = offset;
	memory->guest_memfd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	return memory->guest_memfd < 0 ? ckvm__fail("fcntl", -errno) : 0;
}

static int bind_config(struct ckvm_memory *memory,
		       const struct ckvm_memory_config *config)
{
	struct ckvm__part *part = &config->guest_memfd->part;
	int error = ckvm__part_hold(part);

	if (error)
		return error;
	error = ckvm__bind_guest_memfd(memory, part->fd,
				       config->guest_memfd_offset);
	ckvm__part_drop(part);
	return error;
}

void ckvm__forget_memory(struct ckvm_vm *vm, struct ckvm_memory *memory)
{
	if (memory->mapping)
		ckvm__unmap(memory->mapping, !ckvm__check_process(vm->kvm));
	memory->mapping = NULL;
	memory->data = NULL;
	if (memory->guest_memfd >= 0)
		close(memory->guest_memfd);
	memory->guest_memfd = -1;
	free(memory->dirty);
	memory->dirty = memory->logged = NULL;
}

static int create(struct ckvm_vm *vm, const struct ckvm_memory_config *config,
		  struct ckvm_memory **out)
{
	struct ckvm_memory *memory;
	int error;

	memory =
		ckvm__new_memory(vm, config->gpa, config->bytes, config->flags);
	if (!memory)
		return ckvm__fail("malloc", -ENOMEM);
	error = ckvm__map(config, &memory->mapping, &memory->data);
	if (!error && config->flags & CKVM_MEMORY_LOG_DIRTY)
		error = ckvm__create_dirty(memory);
	if (!error && config->guest_memfd)
		error = bind_config(memory, config);
	if (error) {
		ckvm__forget_memory(vm, memory);
		ckvm_memory_unref(memory);
		return error;
	}
	memory->may_shrink = memory->mapping->may_shrink;
	*out = memory;
	return 0;
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
	int error = ckvm__check_place(config->gpa, config->bytes);

	if (config->flags & ~ALL_FLAGS)
		return ckvm__fail("flags", -EINVAL);
	if (config->reserved)
		return ckvm__fail("reserved", -EINVAL);
	if (!error)
		error = create(vm, config, &memory);
	if (error)
		return error;

	pthread_mutex_lock(&vm->lock);
	error = insert(vm, memory, config);
	pthread_mutex_unlock(&vm->lock);
	if (error) {
		ckvm__forget_memory(vm, memory);
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
	ckvm__unlink_memory(vm, memory);
	/* Or else it would be told of the next memory in this slot. */
	if (vm->dirty_entries)
		ckvm__harvest_rings(vm);
	ckvm__forget_memory(vm, memory);
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
	struct ckvm_memory *memory;

	for (memory = vm->memory; memory; memory = memory->next)
		if (set_region(memory, memory->gpa, 0))
			memory->mapping->owned = false;
}

void ckvm__memory_end(struct ckvm_vm *vm)
{
	struct ckvm_memory *memory;

	while ((memory = vm->memory)) {
		vm->memory = memory->next;
		memory->closed = true;
		ckvm__forget_memory(vm, memory);
		ckvm_memory_unref(memory);
	}
}

/* With the VM held, and its lock. */
static int move(struct ckvm_vm *vm, struct ckvm_memory *memory, uint64_t gpa)
{
	int error = ckvm__check_place(gpa, memory->bytes);

	if (error)
		return error;
	if (memory->closed)
		return ckvm__fail("closed", -EBADF);
	ckvm__unlink_memory(vm, memory);
	if (ckvm__find_memory(vm, gpa, gpa + (memory->bytes - 1)))
		error = ckvm__fail("memory", -EEXIST);
	else if (gpa != memory->gpa)
		error = set_region(memory, gpa, memory->bytes);
	if (!error)
		memory->gpa = gpa;
	ckvm__link_memory(vm, memory);
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

	if (!length || ckvm__check_process(vm->kvm))
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

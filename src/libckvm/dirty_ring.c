/* SPDX-License-Identifier: MIT */
/*
 * Dirty rings (8.29): each vCPU tells of the pages it dirties in a ring of its
 * own, mapped behind its page. They are guarded by the VM's lock.
 */
#include <sys/mman.h>

#include "internal.h"

static size_t ring_size(const struct ckvm_vm *vm)
{
	return vm->dirty_entries * sizeof(struct kvm_dirty_gfn);
}

/* The lock is held while the rings are enabled: no vCPU goes without. */
int ckvm__map_dirty_ring(struct ckvm_vcpu *vcpu)
{
	struct ckvm_vm *vm = vcpu->vm;
	size_t size;
	void *ring;

	pthread_mutex_lock(&vm->lock);
	size = ring_size(vm);
	pthread_mutex_unlock(&vm->lock);
	if (!size)
		return 0;
	ring = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd,
		    KVM_DIRTY_LOG_PAGE_OFFSET * (off_t)PAGE_SIZE);
	if (ring == MAP_FAILED)
		return ckvm__fail("mmap", -errno);
	madvise(ring, size, MADV_DONTFORK);
	vcpu->dirty_ring = ring;
	return 0;
}

/* What is told of memory that has gone meanwhile is nobody's. */
static void note(struct ckvm_memory *memory, uint64_t page)
{
	if (!memory || !memory->dirty || page >= memory->bytes / PAGE_SIZE)
		return;
	memory->dirty[page / 64] |= UINT64_C(1) << page % 64;
	memory->logged[page / 64] |= UINT64_C(1) << page % 64;
}

/* An entry is the reader's from DIRTY on until it says RESET. */
static bool is_dirty(const struct kvm_dirty_gfn *entry)
{
	return __atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) &
	       KVM_DIRTY_GFN_F_DIRTY;
}

static struct kvm_dirty_gfn *entry_at(const struct ckvm_vcpu *vcpu, uint32_t i)
{
	return &vcpu->dirty_ring[(vcpu->dirty_next + i) &
				 (vcpu->vm->dirty_entries - 1)];
}

static void release_entry(struct ckvm_vcpu *vcpu)
{
	__atomic_store_n(&entry_at(vcpu, 0)->flags, KVM_DIRTY_GFN_F_RESET,
			 __ATOMIC_RELEASE);
	vcpu->dirty_next++;
}

/* Overrunning ------------------------------------------------------------- */

/*
 * A KVM in software may go on with the guest for longer than the 64 entries
 * that it keeps for that, and then overwrites what was not read yet: the whole
 * ring is dirty, which it never is otherwise. What was overwritten nobody
 * knows: all of the memory is dirty, and is to be watched anew.
 */
static int recover(struct ckvm_vcpu *vcpu)
{
	struct ckvm_memory *memory;
	int error = 0;

	vcpu->dirty_overrun = true;
	for (memory = vcpu->vm->memory; memory && !error;
	     memory = memory->next) {
		if (!memory->dirty)
			continue;
		error = ckvm__log_anew(memory);
		for (uint64_t i = 0; i < memory->bytes / PAGE_SIZE; i++)
			note(memory, i);
	}
	return error;
}

/*
 * After that the kernel is ahead of where it expects to be read, by the entries
 * that it has overwritten: some are empty before the next that is dirty, and
 * are given back here. There may be whole turns of the ring beside: see below.
 */
static void catch_up(struct ckvm_vcpu *vcpu)
{
	uint32_t gap = 0;

	while (gap < vcpu->vm->dirty_entries && !is_dirty(entry_at(vcpu, gap)))
		gap++;
	if (gap == vcpu->vm->dirty_entries)
		return;
	for (; gap; gap--)
		release_entry(vcpu);
}

/*
 * Full, with nothing in it: twice, and nobody else has emptied it meanwhile. It
 * is full when all but some 64 are used (and 512 of the CPU's own, if it has
 * such a log): of 256 entries or more a quarter is.
 */
static void give_back(struct ckvm_vcpu *vcpu, uint32_t harvests)
{
	if (vcpu->dirty_overrun && vcpu->dirty_serial == harvests)
		for (uint32_t i = 0; i < vcpu->vm->dirty_entries / 4; i++)
			release_entry(vcpu);
	vcpu->dirty_serial = vcpu->vm->harvests;
}

/* Harvesting -------------------------------------------------------------- */

/* Returns how many entries there were. */
static uint32_t harvest(struct ckvm_vcpu *vcpu)
{
	struct ckvm_memory *memory = NULL;
	struct kvm_dirty_gfn *entry;
	uint32_t count = 0;

	if (vcpu->dirty_overrun)
		catch_up(vcpu);
	for (; count < vcpu->vm->dirty_entries; count++) {
		entry = entry_at(vcpu, 0);
		if (!is_dirty(entry))
			break;
		if (!memory || memory->slot != entry->slot)
			memory = ckvm__find_slot(vcpu->vm, entry->slot);
		note(memory, entry->offset);
		release_entry(vcpu);
	}
	return count;
}

static int harvest_all(struct ckvm_vm *vm, const struct ckvm_vcpu *mine,
		       uint32_t *found)
{
	struct ckvm_vcpu *vcpu;
	int error = 0;

	vm->harvests++;
	for (vcpu = vm->vcpus; vcpu && !error; vcpu = vcpu->next) {
		uint32_t count = vcpu->dirty_ring ? harvest(vcpu) : 0;

		if (vcpu == mine)
			*found = count;
		if (vm->dirty_entries == count)
			error = recover(vcpu);
	}
	return error;
}

/*
 * What the guest writes between the two steps is not told of again, so that the
 * pages are to be looked at after both.
 */
static int reset(struct ckvm_vm *vm)
{
	int result = ckvm__ioctl(vm->kvm, vm->fd, KVM_RESET_DIRTY_RINGS, NULL);

	return result < 0 ? result : 0;
}

int ckvm__harvest_rings(struct ckvm_vm *vm)
{
	int error = harvest_all(vm, NULL, NULL);

	return error ? error : reset(vm);
}

/*
 * A vCPU that is gone will tell no more; the kernel still has its ring, and may
 * reset it.
 */
void ckvm__unmap_dirty_ring(struct ckvm_vcpu *vcpu)
{
	struct ckvm_vm *vm = vcpu->vm;

	if (!vcpu->dirty_ring || ckvm__check_process(vm->kvm))
		return;
	pthread_mutex_lock(&vm->lock);
	if (harvest(vcpu) == vm->dirty_entries && !vm->closed)
		recover(vcpu);
	munmap(vcpu->dirty_ring, ring_size(vm));
	vcpu->dirty_ring = NULL;
	pthread_mutex_unlock(&vm->lock);
}

int ckvm__dirty_ring_full(struct ckvm_vcpu *vcpu)
{
	struct ckvm_vm *vm = vcpu->vm;
	uint32_t found = 0, harvests;
	int error;

	if (!vcpu->dirty_ring)
		return CKVM_EXIT;
	pthread_mutex_lock(&vm->lock);
	harvests = vm->harvests;
	error = harvest_all(vm, vcpu, &found);
	if (!found)
		give_back(vcpu, harvests);
	if (!error)
		error = reset(vm);
	pthread_mutex_unlock(&vm->lock);
	return error ? error : GO_ON;
}

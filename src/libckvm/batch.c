/* SPDX-License-Identifier: MIT */
/*
 * Batched writes: the kernel queues them in a ring shared by the VM's vCPUs
 * (4.116), and they are delivered before anything later is.
 */
#include "internal.h"

#define RING_MAX                                                \
	((PAGE_SIZE - sizeof(struct kvm_coalesced_mmio_ring)) / \
	 sizeof(struct kvm_coalesced_mmio))

/* Takes the oldest write off the ring. Whatever the indices, that ends. */
static bool next_write(struct ckvm_vcpu *vcpu, struct kvm_coalesced_mmio *out)
{
	struct kvm_coalesced_mmio_ring *ring = vcpu->ring;
	uint32_t last = __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE);
	uint32_t first = __atomic_load_n(&ring->first, __ATOMIC_RELAXED);

	first %= RING_MAX;
	if (first == last % RING_MAX)
		return false;
	*out = ring->coalesced_mmio[first];
	__atomic_store_n(&ring->first, (first + 1) % RING_MAX,
			 __ATOMIC_RELEASE);
	return true;
}

static struct ckvm_range *find(struct ckvm_vm *vm,
			       const struct kvm_coalesced_mmio *write)
{
	return write->pio ? ckvm__find_port(vm, (uint16_t)write->phys_addr)
			  : ckvm__find_mmio(vm, write->phys_addr);
}

/* GO_ON when the ring is empty. */
int ckvm__drain(struct ckvm_vcpu *vcpu)
{
	struct ckvm_vm *vm = vcpu->vm;
	struct kvm_coalesced_mmio write;
	struct ckvm_access access;
	bool more;
	int end;

	for (;;) {
		pthread_mutex_lock(&vm->ring_lock);
		more = next_write(vcpu, &write);
		pthread_mutex_unlock(&vm->ring_lock);
		if (!more)
			return GO_ON;

		if (!write.len || write.len > sizeof(write.data))
			continue; /* a hook's, not KVM's */
		vcpu->stats.batched++;
		access = (struct ckvm_access){
			.address = write.phys_addr,
			.length = write.len,
			.is_write = 1,
			.space = write.pio ? CKVM_IO : CKVM_MMIO,
			.batched = 1,
		};
		end = ckvm__access(vcpu, find(vm, &write), &access, write.data);
		if (end == CKVM_EXIT) {
			/* Nobody's, and no exit that could be shown: lost. */
			vcpu->phase = PHASE_ENTER;
			continue;
		}
		if (end == CKVM_ACCESS)
			vcpu->phase = PHASE_BATCH;
		if (end != GO_ON)
			return end;
	}
}

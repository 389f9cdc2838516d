/* SPDX-License-Identifier: MIT */
/*
 * Zones whose writes the kernel queues (4.116), whoever answers there. A range
 * with `batch` has a zone of its own: as the kernel takes back every zone that
 * holds the bytes it is told, the two kinds are kept apart.
 */
#include <stdlib.h>

#include "internal.h"

struct ckvm__zone {
	struct ckvm__zone *next;
	uint64_t first, last;
	enum ckvm_space space;
};

bool ckvm__in_zone(const struct ckvm_vm *vm, enum ckvm_space space,
		   uint64_t first, uint64_t last)
{
	const struct ckvm__zone *zone;

	for (zone = vm->bus.zones; zone; zone = zone->next)
		if (zone->space == space && zone->first <= last &&
		    zone->last >= first)
			return true;
	return false;
}

void ckvm__end_zones(struct ckvm_vm *vm)
{
	struct ckvm__zone *zone;

	while ((zone = vm->bus.zones)) {
		vm->bus.zones = zone->next;
		free(zone);
	}
}

static int check(const struct ckvm_vm *vm,
		 const struct kvm_coalesced_mmio_zone *zone)
{
	uint64_t most = zone->pio ? UINT16_MAX : UINT64_MAX;

	if (!zone->size || zone->addr > most ||
	    zone->size - 1 > most - zone->addr)
		return ckvm__fail("zone", -EINVAL);
	if (!(vm->kvm->batching & 1u << (zone->pio ? CKVM_IO : CKVM_MMIO)))
		return ckvm__fail("batch", -ENOTSUP);
	return 0;
}

static int change(struct ckvm_vm *vm, unsigned long request,
		  const struct kvm_coalesced_mmio_zone *zone)
{
	int result =
		ckvm__ioctl(vm->kvm, vm->fd, request, (void *)(uintptr_t)zone);

	return result < 0 ? result : 0;
}

static int add(struct ckvm_vm *vm, const struct kvm_coalesced_mmio_zone *config,
	       const struct ckvm__zone *place)
{
	struct ckvm__zone *zone = malloc(sizeof(*zone));
	int error;

	if (!zone)
		return ckvm__fail("malloc", -ENOMEM);
	*zone = *place;
	ckvm__bus_batches(vm);
	error = change(vm, KVM_REGISTER_COALESCED_MMIO, config);
	if (error) {
		free(zone);
		return error;
	}
	zone->next = vm->bus.zones;
	vm->bus.zones = zone;
	return 0;
}

/* All that hold it, as the kernel does it. */
static int drop(struct ckvm_vm *vm,
		const struct kvm_coalesced_mmio_zone *config,
		const struct ckvm__zone *place)
{
	struct ckvm__zone **at = &vm->bus.zones, *zone;
	int error = change(vm, KVM_UNREGISTER_COALESCED_MMIO, config);

	while (!error && (zone = *at)) {
		if (zone->space != place->space || zone->first > place->first ||
		    zone->last < place->last) {
			at = &zone->next;
			continue;
		}
		*at = zone->next;
		free(zone);
	}
	return error;
}

static int with_zone(struct ckvm_vm *vm,
		     const struct kvm_coalesced_mmio_zone *config,
		     int (*act)(struct ckvm_vm *vm,
				const struct kvm_coalesced_mmio_zone *config,
				const struct ckvm__zone *place))
{
	int error = ckvm__vm_hold(vm);
	struct ckvm__zone place;

	if (error)
		return error;
	error = check(vm, config);
	if (!error) {
		place.space = config->pio ? CKVM_IO : CKVM_MMIO;
		place.first = config->addr;
		place.last = config->addr + (config->size - 1);
		pthread_mutex_lock(&vm->lock);
		error = ckvm__bus_is_batched(vm, place.space, place.first,
					     place.last)
				? ckvm__fail("zone", -EEXIST)
				: act(vm, config, &place);
		pthread_mutex_unlock(&vm->lock);
	}
	ckvm__vm_drop(vm);
	return error;
}

int ckvm_vm_register_coalesced_mmio(struct ckvm_vm *vm,
				    const struct kvm_coalesced_mmio_zone *zone)
{
	return with_zone(vm, zone, add);
}

int ckvm_vm_unregister_coalesced_mmio(
	struct ckvm_vm *vm, const struct kvm_coalesced_mmio_zone *zone)
{
	return with_zone(vm, zone, drop);
}

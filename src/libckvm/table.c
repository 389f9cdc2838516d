/* SPDX-License-Identifier: MIT */
/*
 * The tables in which vCPUs look ports and addresses up.
 *
 * They do so without a lock, while any thread may attach and detach. What is
 * detached is unlinked at once, but freed only when no vCPU is between a lookup
 * and the end of what it found: each sets `dispatching` for that time.
 */
#include <stdlib.h>

#include "internal.h"

/* Lookup ------------------------------------------------------------------ */

struct ckvm_range *ckvm__find_mmio(struct ckvm_vm *vm, uint64_t gpa)
{
	const struct ckvm__mmio_table *table =
		atomic_load_explicit(&vm->bus.mmio, memory_order_acquire);
	size_t low = 0, high;

	if (!table)
		return NULL;
	for (high = table->count; low < high;) {
		size_t middle = (low + high) / 2;
		struct ckvm_range *range = table->range[middle];

		if (gpa < range->first)
			high = middle;
		else if (gpa > range->last)
			low = middle + 1;
		else
			return range;
	}
	return NULL;
}

/* Reclaiming -------------------------------------------------------------- */

static void free_ranges(struct ckvm_range **list)
{
	struct ckvm_range *range;

	while ((range = *list)) {
		*list = range->next;
		ckvm_range_unref(range);
	}
}

static void free_retired(struct ckvm__bus *bus)
{
	struct ckvm__mmio_table *table;

	free_ranges(&bus->retired_ranges);
	while ((table = bus->retired_tables)) {
		bus->retired_tables = table->retired;
		free(table);
	}
}

void ckvm__table_reclaim(struct ckvm_vm *vm)
{
	struct ckvm_vcpu *vcpu;

	if (!vm->bus.retired_ranges && !vm->bus.retired_tables)
		return;
	/* What was unlinked before this, who dispatches after it cannot see. */
	atomic_thread_fence(memory_order_seq_cst);
	for (vcpu = vm->vcpus; vcpu; vcpu = vcpu->next) {
		if (!atomic_load(&vcpu->dispatching))
			continue;
		/* It will try again when it is done. */
		atomic_fetch_or(&vcpu->attend, ATTEND_RETIRED);
		return;
	}
	free_retired(&vm->bus);
}

/* Ports ------------------------------------------------------------------- */

int ckvm__table_add_leaves(struct ckvm__bus *bus, uint64_t first, uint64_t last)
{
	for (uint64_t i = first >> 8; i <= last >> 8; i++) {
		void *leaf;

		if (bus->port[i])
			continue;
		leaf = calloc(PORT_LEAF_SIZE, sizeof(struct ckvm_range *));
		if (!leaf)
			return ckvm__fail("malloc", -ENOMEM);
		atomic_store(&bus->port[i], leaf);
	}
	return 0;
}

void ckvm__table_set_ports(struct ckvm__bus *bus, const struct ckvm_range *at,
			   struct ckvm_range *range)
{
	for (uint64_t port = at->first; port <= at->last; port++)
		atomic_store_explicit(&bus->port[port >> 8][port & 255], range,
				      memory_order_release);
}

/* Addresses --------------------------------------------------------------- */

static struct ckvm__mmio_table *new_table(size_t count)
{
	struct ckvm__mmio_table *table;

	table = malloc(sizeof(*table) + count * sizeof(table->range[0]));
	if (table)
		table->count = count;
	return table;
}

static void publish(struct ckvm__bus *bus, struct ckvm__mmio_table *table)
{
	struct ckvm__mmio_table *old = atomic_exchange(&bus->mmio, table);

	if (!old)
		return;
	old->retired = bus->retired_tables;
	bus->retired_tables = old;
}

int ckvm__table_add(struct ckvm__bus *bus, struct ckvm_range *range)
{
	const struct ckvm__mmio_table *old = bus->mmio;
	size_t count = old ? old->count : 0, i;
	struct ckvm__mmio_table *table = new_table(count + 1);
	size_t to = 0;

	if (!table)
		return ckvm__fail("malloc", -ENOMEM);
	for (i = 0; i < count && old->range[i]->first < range->first; i++)
		if (!old->range[i]->closed)
			table->range[to++] = old->range[i];
	table->range[to++] = range;
	for (; i < count; i++)
		if (!old->range[i]->closed)
			table->range[to++] = old->range[i];
	table->count = to;
	publish(bus, table);
	return 0;
}

/*
 * Detaching cannot fail. For want of memory the range stays in the table until
 * that is next made anew, claims nothing, and is freed with the VM: false.
 */
static bool remove_from_table(struct ckvm__bus *bus, struct ckvm_range *range)
{
	const struct ckvm__mmio_table *old = bus->mmio;
	struct ckvm__mmio_table *table = new_table(old->count);
	size_t to = 0;

	if (!table)
		return false;
	for (size_t i = 0; i < old->count; i++)
		if (old->range[i] != range && !old->range[i]->closed)
			table->range[to++] = old->range[i];
	table->count = to;
	publish(bus, table);
	return true;
}

void ckvm__table_retire(struct ckvm__bus *bus, struct ckvm_range *range)
{
	bool removed = range->space == CKVM_IO || remove_from_table(bus, range);
	struct ckvm_range **list = removed ? &bus->retired_ranges : &bus->stuck;

	range->closed = true;
	range->answer[0] = range->answer[1] = CKVM_ANSWER_NONE;
	if (!removed) { /* what the straight path looks at first */
		__atomic_store_n(&range->ops.read, NULL, __ATOMIC_RELAXED);
		__atomic_store_n(&range->ops.write, NULL, __ATOMIC_RELAXED);
	}
	range->next = *list;
	*list = range;
}

void ckvm__bus_end(struct ckvm_vm *vm)
{
	ckvm__end_zones(vm);
	free_retired(&vm->bus);
	free_ranges(&vm->bus.stuck);
	free(vm->bus.mmio);
	for (size_t i = 0; i < PORT_LEAVES; i++)
		free(vm->bus.port[i]);
}

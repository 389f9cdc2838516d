/* SPDX-License-Identifier: MIT */
/* Who answers which port and which address: ranges come and go. */
#include <stdlib.h>

#include "internal.h"

/* Batching ---------------------------------------------------------------- */

/* 4.116 */
static int set_batch(struct ckvm_range *range, unsigned long request)
{
	struct kvm_coalesced_mmio_zone zone = {
		.addr = range->first,
		.size = (uint32_t)(range->last - range->first + 1),
		.pio = range->space == CKVM_IO,
	};
	int result = ckvm__ioctl(range->vm->kvm, range->vm->fd, request, &zone);

	return result < 0 ? result : 0;
}

/* Has every vCPU come off the straight path once. The caller has the lock. */
static void attend(struct ckvm_vm *vm, unsigned int bit)
{
	for (struct ckvm_vcpu *vcpu = vm->vcpus; vcpu; vcpu = vcpu->next)
		atomic_fetch_or(&vcpu->attend, bit);
}

void ckvm__bus_batches(struct ckvm_vm *vm)
{
	vm->bus.batches = true;
	attend(vm, ATTEND_BATCH);
}

/* Attaching --------------------------------------------------------------- */

static struct ckvm_range *overlapping(struct ckvm_vm *vm, enum ckvm_space space,
				      uint64_t first, uint64_t last)
{
	struct ckvm_range *range;

	for (range = vm->bus.ranges; range; range = range->next)
		if (range->space == space && range->first <= last &&
		    range->last >= first)
			return range;
	return NULL;
}

bool ckvm__bus_is_batched(struct ckvm_vm *vm, enum ckvm_space space,
			  uint64_t first, uint64_t last)
{
	struct ckvm_range *range;

	for (range = vm->bus.ranges; range; range = range->next)
		if (range->batch && range->space == space &&
		    range->first <= last && range->last >= first)
			return true;
	return false;
}

static int check_config(const struct ckvm_vm *vm,
			const struct ckvm_range_config *config)
{
	uint64_t most = config->space == CKVM_IO ? UINT16_MAX : UINT64_MAX;

	if (config->space != CKVM_IO && config->space != CKVM_MMIO)
		return ckvm__fail("space", -EINVAL);
	if (!config->count || config->first > most ||
	    config->count - 1 > most - config->first)
		return ckvm__fail("range", -EINVAL);
	if (config->read > CKVM_ANSWER_VALUE || config->write > CKVM_ANSWER_LOG)
		return ckvm__fail("answer", -EINVAL);
	if ((config->read == CKVM_ANSWER_OPS && !config->ops) ||
	    (config->write == CKVM_ANSWER_OPS && !config->ops) ||
	    (config->write == CKVM_ANSWER_LOG && !config->log))
		return ckvm__fail("answer", -EINVAL);
	if (config->batch &&
	    (config->read != CKVM_ANSWER_NONE || config->count > UINT32_MAX))
		return ckvm__fail("batch", -EINVAL);
	if (config->batch && !(vm->kvm->batching & 1u << config->space))
		return ckvm__fail("batch", -ENOTSUP);
	return 0;
}

static struct ckvm_range *new_range(struct ckvm_vm *vm,
				    const struct ckvm_range_config *config)
{
	struct ckvm_range *range = calloc(1, sizeof(*range));

	if (!range)
		return NULL;
	range->refs = 1;
	range->vm = ckvm_vm_ref(vm);
	range->space = (uint8_t)config->space;
	range->batch = config->batch;
	range->answer[0] = (uint8_t)config->read;
	range->answer[1] = (uint8_t)config->write;
	range->first = config->first;
	range->last = config->first + (config->count - 1);
	if (config->ops)
		memcpy(&range->ops, config->ops,
		       config->ops->size < sizeof(range->ops)
			       ? config->ops->size
			       : sizeof(range->ops));
	if (config->read != CKVM_ANSWER_OPS)
		range->ops.read = NULL;
	else if (!range->ops.read)
		range->answer[0] = CKVM_ANSWER_NONE;
	if (config->write != CKVM_ANSWER_OPS)
		range->ops.write = NULL;
	else if (!range->ops.write)
		range->answer[1] = CKVM_ANSWER_NONE;
	/* Whether a write was queued or not, the callback sees no vCPU. */
	if (range->batch) {
		range->batched = range->ops.write;
		range->ops.write = NULL;
	}
	range->opaque = config->opaque;
	range->value = config->value;
	if (config->write == CKVM_ANSWER_LOG)
		range->log = ckvm_buffer_ref(config->log);
	return range;
}

/* The caller has the lock. */
static int insert(struct ckvm_vm *vm, struct ckvm_range *range)
{
	int error;

	if (vm->closed) /* meanwhile, and all ranges were detached */
		return ckvm__fail("closed", -EBADF);
	if (overlapping(vm, range->space, range->first, range->last))
		return ckvm__fail("range", -EEXIST);
	if (range->batch &&
	    ckvm__in_zone(vm, range->space, range->first, range->last))
		return ckvm__fail("zone", -EEXIST);
	error = range->space == CKVM_IO
			? ckvm__table_add_leaves(&vm->bus, range->first,
						 range->last)
			: ckvm__table_add(&vm->bus, range);
	if (error)
		return error;
	if (range->batch) {
		ckvm__bus_batches(vm);
		error = set_batch(range, KVM_REGISTER_COALESCED_MMIO);
	}
	if (error) {
		ckvm_range_ref(range);
		ckvm__table_retire(&vm->bus, range);
		return error;
	}
	if (range->space == CKVM_IO)
		ckvm__table_set_ports(&vm->bus, range, range);
	range->next = vm->bus.ranges;
	vm->bus.ranges = range;
	return 0;
}

/* With the VM held. */
static int attach_config(struct ckvm_vm *vm,
			 const struct ckvm_range_config *config,
			 struct ckvm_range **out)
{
	struct ckvm_range *range;
	int error = check_config(vm, config);

	if (error)
		return error;
	range = new_range(vm, config);
	if (!range)
		return ckvm__fail("malloc", -ENOMEM);

	pthread_mutex_lock(&vm->lock);
	error = insert(vm, range);
	ckvm__table_reclaim(vm);
	pthread_mutex_unlock(&vm->lock);
	if (error)
		ckvm_range_unref(range);
	else if (out)
		*out = range;
	return error;
}

int ckvm_vm_attach(struct ckvm_vm *vm, const struct ckvm_range_config *config,
		   struct ckvm_range **out)
{
	struct ckvm_range_config conf = { 0 };
	int error = ckvm__vm_hold(vm);

	if (error)
		return error;
	memcpy(&conf, config,
	       config->size < sizeof(conf) ? config->size : sizeof(conf));
	error = attach_config(vm, &conf, out);
	ckvm__vm_drop(vm);
	return error;
}

static int attach(struct ckvm_vm *vm, enum ckvm_space space, uint64_t first,
		  uint64_t count, const struct ckvm_ops *ops, void *opaque,
		  struct ckvm_range **out)
{
	enum ckvm_answer answer = ops ? CKVM_ANSWER_OPS : CKVM_ANSWER_CALLER;
	struct ckvm_range_config config = {
		.size = sizeof(config),
		.space = space,
		.first = first,
		.count = count,
		.read = answer,
		.write = answer,
		.ops = ops,
		.opaque = opaque,
	};

	return ckvm_vm_attach(vm, &config, out);
}

int ckvm_vm_attach_io(struct ckvm_vm *vm, uint16_t first, uint32_t count,
		      const struct ckvm_ops *ops, void *opaque,
		      struct ckvm_range **out)
{
	return attach(vm, CKVM_IO, first, count, ops, opaque, out);
}

int ckvm_vm_attach_mmio(struct ckvm_vm *vm, uint64_t gpa, uint64_t count,
			const struct ckvm_ops *ops, void *opaque,
			struct ckvm_range **out)
{
	return attach(vm, CKVM_MMIO, gpa, count, ops, opaque, out);
}

/* The caller has the lock. */
static void detach(struct ckvm_vm *vm, struct ckvm_range *range)
{
	struct ckvm_range **at = &vm->bus.ranges;

	while (*at != range)
		at = &(*at)->next;
	*at = range->next;

	if (range->batch && !vm->closed)
		set_batch(range, KVM_UNREGISTER_COALESCED_MMIO);
	if (range->space == CKVM_IO)
		ckvm__table_set_ports(&vm->bus, range, NULL);
	ckvm__table_retire(&vm->bus, range);
}

void ckvm_range_detach(struct ckvm_range *range)
{
	struct ckvm_vm *vm;

	if (!range || ckvm__check_process(range->vm->kvm))
		return;
	vm = ckvm_vm_ref(range->vm); /* the range may go with this */
	pthread_mutex_lock(&vm->lock);
	if (!range->closed) {
		detach(vm, range);
		ckvm__table_reclaim(vm);
	}
	pthread_mutex_unlock(&vm->lock);
	ckvm_vm_unref(vm);
}

void ckvm__bus_reclaim(struct ckvm_vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	ckvm__table_reclaim(vm);
	pthread_mutex_unlock(&vm->lock);
}

void ckvm__bus_close(struct ckvm_vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	while (vm->bus.ranges)
		detach(vm, vm->bus.ranges);
	pthread_mutex_unlock(&vm->lock);
}

/* Ranges ------------------------------------------------------------------ */

struct ckvm_range *ckvm_range_ref(struct ckvm_range *range)
{
	atomic_fetch_add(&range->refs, 1);
	return range;
}

void ckvm_range_unref(struct ckvm_range *range)
{
	if (!range || atomic_fetch_sub(&range->refs, 1) != 1)
		return;
	ckvm_buffer_unref(range->log);
	ckvm_vm_unref(range->vm);
	free(range);
}

enum ckvm_space ckvm_range_space(const struct ckvm_range *range)
{
	return (enum ckvm_space)range->space;
}

uint64_t ckvm_range_first(const struct ckvm_range *range)
{
	return range->first;
}

uint64_t ckvm_range_count(const struct ckvm_range *range)
{
	return range->last - range->first + 1;
}

void *ckvm_range_opaque(const struct ckvm_range *range)
{
	return range->opaque;
}

struct ckvm_range *ckvm_vm_find_range(struct ckvm_vm *vm, enum ckvm_space space,
				      uint64_t first, uint64_t count)
{
	struct ckvm_range *range;
	uint64_t last = count - 1 <= UINT64_MAX - first ? first + (count - 1)
							: UINT64_MAX;

	if (!count || ckvm__check_process(vm->kvm))
		return NULL;
	pthread_mutex_lock(&vm->lock);
	range = overlapping(vm, space, first, last);
	if (range)
		ckvm_range_ref(range);
	pthread_mutex_unlock(&vm->lock);
	return range;
}

void ckvm_vm_catch(struct ckvm_vm *vm, enum ckvm_access_exit which, int on)
{
	unsigned int bit = (unsigned int)which - CKVM_EXIT_IO_IN;

	if (bit > CKVM_EXIT_MMIO_WRITE - CKVM_EXIT_IO_IN)
		return;
	bit = 1u << bit;
	if (on)
		atomic_fetch_or(&vm->bus.catches, bit);
	else
		atomic_fetch_and(&vm->bus.catches, ~bit);
}

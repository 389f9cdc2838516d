/* SPDX-License-Identifier: MIT */
/*
 * The loop's straight path, inline: one element of port I/O or one MMIO access,
 * for a range with a callback or for the caller. dispatch.c does the rest.
 */
#ifndef CKVM_HOT_H
#define CKVM_HOT_H

#include "internal.h"

/*
 * Little-endian, as every guest that KVM has on this architecture. Eight bytes
 * can be read at either kind of data, wherever it is in the page.
 */
static inline uint64_t ckvm__load(const void *data, uint32_t length)
{
	uint64_t value;

	memcpy(&value, data, 8);
	return length < 8 ? value & ((UINT64_C(1) << 8 * length) - 1) : value;
}

/* To the caller; `range` is NULL where none claims it. */
static inline int ckvm__hand_back(struct ckvm_vcpu *vcpu,
				  struct ckvm_range *range, uint64_t address,
				  void *data, uint32_t length, bool is_write,
				  enum ckvm_space space, bool batched)
{
	struct ckvm_access *access = &vcpu->access;

	access->range = range;
	access->opaque = range ? range->opaque : NULL;
	access->address = address;
	access->offset = range ? address - range->first : 0;
	access->length = length;
	access->is_write = is_write;
	access->space = (uint8_t)space;
	access->batched = batched;
	if (is_write) {
		access->value = ckvm__load(data, length);
	} else {
		access->value = 0;
		vcpu->access_data = data;
	}
	return CKVM_ACCESS;
}

/* Read once: the range may be detached meanwhile, and lose it (table.c). */
#define CKVM__CALLBACK(range, name) \
	__atomic_load_n(&(range)->ops.name, __ATOMIC_RELAXED)

/* Beside what ckvm__dispatch returns: ask that. */
#define NOT_STRAIGHT (-INT32_MAX)

/* The compiler's limits for a file as a whole would keep one of two calls. */
static inline __attribute__((always_inline)) int
ckvm__serve(struct ckvm_vcpu *vcpu, struct ckvm_range *range, uint64_t address,
	    void *data, uint32_t length, bool is_write, enum ckvm_space space)
{
	__typeof__(range->ops.write) write;
	__typeof__(range->ops.read) read;
	int result;

	if (unlikely(!range))
		return NOT_STRAIGHT;
	if (is_write) {
		vcpu->open = OPEN_WRITE;
		write = CKVM__CALLBACK(range, write);
		if (write) {
			vcpu->accesses[space * 2 + 1]++;
			result = write(range->opaque, vcpu, address, data,
				       length);
			return likely(!result) ? GO_ON
					       : ckvm__called(vcpu, result);
		}
	} else {
		vcpu->open = OPEN_READ;
		memset(data, 0xff, 8);
		read = CKVM__CALLBACK(range, read);
		if (read) {
			vcpu->accesses[space * 2]++;
			result = read(range->opaque, vcpu, address, data,
				      length);
			return likely(!result) ? GO_ON
					       : ckvm__called(vcpu, result);
		}
	}
	if (range->answer[is_write] != CKVM_ANSWER_CALLER)
		return NOT_STRAIGHT;
	vcpu->accesses[space * 2 + is_write]++;
	vcpu->phase = PHASE_LAST;
	return ckvm__hand_back(vcpu, range, address, data, length, is_write,
			       space, range->batch);
}

static inline int ckvm__straight(struct ckvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	uint32_t reason = run->exit_reason;
	int end = NOT_STRAIGHT;

	if (likely(reason == KVM_EXIT_IO)) {
		uint32_t port = run->io.port;

		if (likely(run->io.count == 1))
			end = ckvm__serve(
				vcpu, ckvm__find_port(vcpu->vm, port), port,
				(uint8_t *)run + run->io.data_offset,
				run->io.size,
				run->io.direction == KVM_EXIT_IO_OUT, CKVM_IO);
	} else if (likely(reason == KVM_EXIT_MMIO)) {
		uint64_t gpa = run->mmio.phys_addr;

		end = ckvm__serve(vcpu, ckvm__find_mmio(vcpu->vm, gpa), gpa,
				  run->mmio.data, run->mmio.len,
				  run->mmio.is_write, CKVM_MMIO);
	}
	return likely(end != NOT_STRAIGHT) ? end : ckvm__dispatch(vcpu);
}

#endif

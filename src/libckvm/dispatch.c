/* SPDX-License-Identifier: MIT */
/* From an exit to whoever answers it: the range's answer, or a hand-back. */
#include "hot.h"

int ckvm__called(struct ckvm_vcpu *vcpu, int result)
{
	if (result < 0)
		return ckvm__fail("range", result);
	if (result > 0)
		ckvm_vcpu_stop(vcpu);
	return GO_ON;
}

static int hand_back(struct ckvm_vcpu *vcpu, struct ckvm_range *range,
		     const struct ckvm_access *access, void *data)
{
	vcpu->phase = PHASE_ACCESS;
	return ckvm__hand_back(vcpu, range, access->address, data,
			       access->length, access->is_write, access->space,
			       access->batched || (range && range->batch));
}

/* No range claims it: for the caller, or the end of the run. */
static int unclaimed(struct ckvm_vcpu *vcpu, const struct ckvm_access *access,
		     void *data)
{
	unsigned int kind = access->space * 2u + access->is_write;

	hand_back(vcpu, NULL, access, data);
	return vcpu->vm->bus.catches & 1u << kind ? CKVM_ACCESS : CKVM_EXIT;
}

/* Its range may have been detached just now, and have lost it. */
static int call_read(struct ckvm_vcpu *vcpu, struct ckvm_range *range,
		     const struct ckvm_access *access, void *data)
{
	__typeof__(range->ops.read) read = CKVM__CALLBACK(range, read);

	if (!read)
		return unclaimed(vcpu, access, data);
	return ckvm__called(vcpu, read(range->opaque, vcpu, access->address,
				       data, access->length));
}

static int call_write(struct ckvm_vcpu *vcpu, struct ckvm_range *range,
		      const struct ckvm_access *access, void *data)
{
	__typeof__(range->ops.write) write =
		range->batch ? range->batched : CKVM__CALLBACK(range, write);
	struct ckvm_vcpu *whose = access->batched || range->batch ? NULL : vcpu;

	if (!write)
		return unclaimed(vcpu, access, data);
	return ckvm__called(vcpu, write(range->opaque, whose, access->address,
					data, access->length));
}

int ckvm__access(struct ckvm_vcpu *vcpu, struct ckvm_range *range,
		 const struct ckvm_access *access, void *data)
{
	if (unlikely(!range))
		return unclaimed(vcpu, access, data);
	switch ((enum ckvm_answer)range->answer[access->is_write]) {
	case CKVM_ANSWER_OPS:
		return access->is_write ? call_write(vcpu, range, access, data)
					: call_read(vcpu, range, access, data);
	case CKVM_ANSWER_CALLER:
		return hand_back(vcpu, range, access, data);
	case CKVM_ANSWER_VALUE:
		if (!access->is_write)
			memcpy(data, &range->value, access->length);
		return GO_ON;
	case CKVM_ANSWER_LOG:
		if (ckvm__buffer_append(range->log, data, access->length))
			return GO_ON;
		break;
	case CKVM_ANSWER_NONE:
		break;
	}
	return unclaimed(vcpu, access, data);
}

/* A string instruction has several elements, all at the same port. */
static int dispatch_io(struct ckvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	struct ckvm_access access = {
		.address = run->io.port,
		.length = run->io.size,
		.is_write = run->io.direction == KVM_EXIT_IO_OUT,
		.space = CKVM_IO,
	};
	int end;

	for (; vcpu->element < run->io.count; vcpu->element++) {
		end = ckvm__access(
			vcpu, ckvm__find_port(vcpu->vm, run->io.port), &access,
			data + vcpu->element * run->io.size);
		if (end != GO_ON)
			return end;
	}
	return GO_ON;
}

static int dispatch_mmio(struct ckvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct ckvm_access access = {
		.address = run->mmio.phys_addr,
		.length = run->mmio.len,
		.is_write = run->mmio.is_write,
		.space = CKVM_MMIO,
	};

	if (vcpu->element)
		return GO_ON;
	return ckvm__access(vcpu,
			    ckvm__find_mmio(vcpu->vm, run->mmio.phys_addr),
			    &access, run->mmio.data);
}

int ckvm__dispatch_rest(struct ckvm_vcpu *vcpu)
{
	switch (vcpu->run->exit_reason) {
	case KVM_EXIT_IO:
		return dispatch_io(vcpu);
	case KVM_EXIT_MMIO:
		return dispatch_mmio(vcpu);
	case KVM_EXIT_DIRTY_RING_FULL:
		return ckvm__dirty_ring_full(vcpu);
	default:
		return CKVM_EXIT;
	}
}

void ckvm__count_exit(struct ckvm_vcpu *vcpu)
{
	const struct kvm_run *run = vcpu->run;
	uint32_t reason = run->exit_reason;

	if (reason == KVM_EXIT_IO)
		vcpu->accesses[run->io.direction == KVM_EXIT_IO_OUT]++;
	else if (reason == KVM_EXIT_MMIO)
		vcpu->accesses[2 + run->mmio.is_write]++;
	else if (reason < CKVM_STATS_EXITS)
		vcpu->stats.exits[reason]++;
}

int ckvm__dispatch(struct ckvm_vcpu *vcpu)
{
	ckvm__begin_exit(vcpu);
	ckvm__count_exit(vcpu);
	return ckvm__dispatch_rest(vcpu);
}

enum ckvm__open ckvm__opens(const struct kvm_run *run)
{
	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		return run->io.direction == KVM_EXIT_IO_IN ? OPEN_READ
							   : OPEN_WRITE;
	case KVM_EXIT_MMIO:
		return run->mmio.is_write ? OPEN_WRITE : OPEN_READ;
	case KVM_EXIT_X86_WRMSR:
		return OPEN_WRITE;
	case KVM_EXIT_X86_RDMSR:
	case KVM_EXIT_HYPERCALL:
	case KVM_EXIT_XEN:
	case KVM_EXIT_HYPERV:
	case KVM_EXIT_TDX:
		return OPEN_READ; /* they return a value in a register */
	default:
		return OPEN_NONE;
	}
}

/* Reads start as all ones, the answer of a bus with nobody on it. */
void ckvm__begin_exit(struct ckvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	vcpu->element = 0;
	vcpu->open = (uint8_t)ckvm__opens(run);
	/* A KVM_RUN that fails leaves the reason of the one before. */
	if (run->exit_reason == KVM_EXIT_MEMORY_FAULT)
		atomic_fetch_or(&vcpu->attend, ATTEND_FAULT);
	if (vcpu->open != OPEN_READ)
		return;
	if (run->exit_reason == KVM_EXIT_IO)
		memset((uint8_t *)run + run->io.data_offset, 0xff,
		       (size_t)run->io.size * run->io.count);
	else if (run->exit_reason == KVM_EXIT_MMIO)
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
}

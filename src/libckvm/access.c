/* SPDX-License-Identifier: MIT */
/* What a run has handed back, for whoever runs the loop: look, answer, stop. */
#include "internal.h"

uint32_t ckvm_vcpu_run_serial(const struct ckvm_vcpu *vcpu)
{
	return vcpu->run_serial;
}

/* Not in a child of fork(), and not once closed. */
static bool has_page(const struct ckvm_vcpu *vcpu)
{
	return !ckvm__check_process(vcpu->kvm) && !vcpu->closed;
}

const struct ckvm_access *ckvm_vcpu_access(struct ckvm_vcpu *vcpu)
{
	switch (vcpu->phase) {
	case PHASE_ACCESS:
	case PHASE_LAST:
	case PHASE_BATCH:
		return &vcpu->access;
	default:
		return NULL;
	}
}

void ckvm_vcpu_answer(struct ckvm_vcpu *vcpu, uint64_t value)
{
	const struct ckvm_access *access = ckvm_vcpu_access(vcpu);

	if (!access || access->is_write || !has_page(vcpu))
		return;
	switch (access->length) {
	case 1:
		*(uint8_t *)vcpu->access_data = (uint8_t)value;
		break;
	case 2:
		memcpy(vcpu->access_data, &value, 2);
		break;
	case 4:
		memcpy(vcpu->access_data, &value, 4);
		break;
	default:
		memcpy(vcpu->access_data, &value, 8);
	}
}

/* What another thread runs changes under whoever looks at it. */
struct kvm_run *ckvm_vcpu_exit(struct ckvm_vcpu *vcpu)
{
	return !ckvm__vcpu_check(vcpu) && vcpu->has_exit ? vcpu->run : NULL;
}

uint32_t ckvm_vcpu_exit_serial(const struct ckvm_vcpu *vcpu)
{
	return vcpu->serial;
}

uint32_t ckvm_vcpu_exit_number(const struct ckvm_vcpu *vcpu)
{
	const struct kvm_run *run = vcpu->run;

	if (!has_page(vcpu))
		return KVM_EXIT_UNKNOWN;
	if (run->exit_reason == KVM_EXIT_IO)
		return run->io.direction == KVM_EXIT_IO_IN ? CKVM_EXIT_IO_IN
							   : CKVM_EXIT_IO_OUT;
	if (run->exit_reason == KVM_EXIT_MMIO)
		return run->mmio.is_write ? CKVM_EXIT_MMIO_WRITE
					  : CKVM_EXIT_MMIO_READ;
	return run->exit_reason;
}

/* The thread that has it sees it when it is woken. */
static int stop_soon(struct ckvm_vcpu *vcpu)
{
	atomic_store(&vcpu->stop_asked, true);
	ckvm_vcpu_wake(vcpu);
	return 0;
}

int ckvm_vcpu_stop(struct ckvm_vcpu *vcpu)
{
	int error = ckvm__vcpu_check(vcpu);

	if (error == -EBUSY)
		return stop_soon(vcpu);
	if (error)
		return error;
	if (vcpu->phase == PHASE_IDLE)
		return ckvm__fail("run", -ESRCH);
	/* Handed back without an exit whose end could be waited for. */
	if (vcpu->phase == PHASE_ENTER && !ckvm__vcpu_in_loop(vcpu))
		return stop_soon(vcpu);
	vcpu->stop = true;
	vcpu->left = 1; /* which is all that the loop looks at */
	return 0;
}

int ckvm_vcpu_is_stopping(const struct ckvm_vcpu *vcpu)
{
	return vcpu->phase != PHASE_IDLE && vcpu->stop;
}

/* SPDX-License-Identifier: MIT */
/* A vCPU's place in its life, debugging it, and the signals it minds. */
#include "internal.h"

/* The kernel takes pending INIT and SIPI into account before it answers. */
int ckvm_vcpu_get_mp_state(struct ckvm_vcpu *vcpu, struct kvm_mp_state *state)
{
	return ckvm__vcpu_change(vcpu, KVM_GET_MP_STATE, state);
}

int ckvm_vcpu_set_mp_state(struct ckvm_vcpu *vcpu,
			   const struct kvm_mp_state *state)
{
	return ckvm__vcpu_change(vcpu, KVM_SET_MP_STATE,
				 (void *)(uintptr_t)state);
}

/* Changes rflags, and may inject an exception. */
int ckvm_vcpu_set_guest_debug(struct ckvm_vcpu *vcpu,
			      const struct kvm_guest_debug *debug)
{
	return ckvm__vcpu_change(vcpu, KVM_SET_GUEST_DEBUG,
				 (void *)(uintptr_t)debug);
}

int ckvm_vcpu_set_signal_mask(struct ckvm_vcpu *vcpu, const uint64_t *mask)
{
	union {
		struct kvm_signal_mask mask;
		uint8_t bytes[sizeof(struct kvm_signal_mask) + sizeof(*mask)];
	} set = { .mask.len = sizeof(*mask) };
	uint64_t blocked;

	if (!mask)
		return ckvm__vcpu_ioctl(vcpu, KVM_SET_SIGNAL_MASK, NULL);
	blocked = *mask & ~(UINT64_C(1) << (ckvm_kick_signal() - 1));
	memcpy(set.mask.sigset, &blocked, sizeof(blocked));
	return ckvm__vcpu_ioctl(vcpu, KVM_SET_SIGNAL_MASK, &set);
}

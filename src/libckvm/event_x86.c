/* SPDX-License-Identifier: MIT */
/* What the host injects into an x86 vCPU, and the accesses it is told of. */
#include "internal.h"

int ckvm_vcpu_nmi(struct ckvm_vcpu *vcpu)
{
	return ckvm__vcpu_change(vcpu, KVM_NMI, NULL);
}

int ckvm_vcpu_smi(struct ckvm_vcpu *vcpu)
{
	return ckvm__vcpu_change(vcpu, KVM_SMI, NULL);
}

int ckvm_x86_get_mce_cap_supported(struct ckvm *kvm, uint64_t *cap)
{
	return ckvm__kvm_ioctl(kvm, KVM_X86_GET_MCE_CAP_SUPPORTED, cap);
}

int ckvm_vcpu_x86_setup_mce(struct ckvm_vcpu *vcpu, uint64_t mcg_cap)
{
	return ckvm__vcpu_ioctl(vcpu, KVM_X86_SETUP_MCE, &mcg_cap);
}

/* It injects #MC, or shuts the guest down. */
int ckvm_vcpu_x86_set_mce(struct ckvm_vcpu *vcpu, const struct kvm_x86_mce *mce)
{
	return ckvm__vcpu_change(vcpu, KVM_X86_SET_MCE, (void *)(uintptr_t)mce);
}

int ckvm_vcpu_tpr_access_reporting(struct ckvm_vcpu *vcpu,
				   struct kvm_tpr_access_ctl *control)
{
	return ckvm__vcpu_ioctl(vcpu, KVM_TPR_ACCESS_REPORTING, control);
}

int ckvm_vcpu_set_vapic_addr(struct ckvm_vcpu *vcpu, uint64_t gpa)
{
	struct kvm_vapic_addr address = { .vapic_addr = gpa };

	return ckvm__vcpu_ioctl(vcpu, KVM_SET_VAPIC_ADDR, &address);
}

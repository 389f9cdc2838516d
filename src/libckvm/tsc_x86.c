/* SPDX-License-Identifier: MIT */
/* The time stamp counter's frequency, and a paused guest's kvmclock. */
#include "internal.h"

int ckvm_vcpu_get_tsc_khz(struct ckvm_vcpu *vcpu)
{
	return ckvm__vcpu_ioctl(vcpu, KVM_GET_TSC_KHZ, NULL);
}

int ckvm_vcpu_set_tsc_khz(struct ckvm_vcpu *vcpu, uint32_t khz)
{
	return ckvm__vcpu_ioctl(vcpu, KVM_SET_TSC_KHZ, (void *)(uintptr_t)khz);
}

int ckvm_vm_get_tsc_khz(struct ckvm_vm *vm)
{
	return ckvm__vm_ioctl(vm, KVM_GET_TSC_KHZ, NULL);
}

int ckvm_vm_set_tsc_khz(struct ckvm_vm *vm, uint32_t khz)
{
	return ckvm__vm_ioctl(vm, KVM_SET_TSC_KHZ, (void *)(uintptr_t)khz);
}

int ckvm_vcpu_kvmclock_ctrl(struct ckvm_vcpu *vcpu)
{
	return ckvm__vcpu_ioctl(vcpu, KVM_KVMCLOCK_CTRL, NULL);
}

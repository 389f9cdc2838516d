/* SPDX-License-Identifier: MIT */
/* The PC's interrupt controllers and timer, in the kernel, and its clock. */
#include "internal.h"

int ckvm_vm_get_irqchip(struct ckvm_vm *vm, struct kvm_irqchip *chip)
{
	return ckvm__vm_ioctl(vm, KVM_GET_IRQCHIP, chip);
}

int ckvm_vm_set_irqchip(struct ckvm_vm *vm, const struct kvm_irqchip *chip)
{
	return ckvm__vm_ioctl(vm, KVM_SET_IRQCHIP, (void *)(uintptr_t)chip);
}

/* The PIT ----------------------------------------------------------------- */

int ckvm_vm_create_pit(struct ckvm_vm *vm)
{
	return ckvm__vm_ioctl(vm, KVM_CREATE_PIT, NULL);
}

int ckvm_vm_get_pit(struct ckvm_vm *vm, struct kvm_pit_state *pit)
{
	return ckvm__vm_ioctl(vm, KVM_GET_PIT, pit);
}

int ckvm_vm_set_pit(struct ckvm_vm *vm, const struct kvm_pit_state *pit)
{
	return ckvm__vm_ioctl(vm, KVM_SET_PIT, (void *)(uintptr_t)pit);
}

int ckvm_vm_create_pit2(struct ckvm_vm *vm, const struct kvm_pit_config *config)
{
	return ckvm__vm_ioctl(vm, KVM_CREATE_PIT2, (void *)(uintptr_t)config);
}

int ckvm_vm_get_pit2(struct ckvm_vm *vm, struct kvm_pit_state2 *pit)
{
	return ckvm__vm_ioctl(vm, KVM_GET_PIT2, pit);
}

int ckvm_vm_set_pit2(struct ckvm_vm *vm, const struct kvm_pit_state2 *pit)
{
	return ckvm__vm_ioctl(vm, KVM_SET_PIT2, (void *)(uintptr_t)pit);
}

int ckvm_vm_reinject_control(struct ckvm_vm *vm,
			     const struct kvm_reinject_control *control)
{
	return ckvm__vm_ioctl(vm, KVM_REINJECT_CONTROL,
			      (void *)(uintptr_t)control);
}

/* The clock --------------------------------------------------------------- */

int ckvm_vm_get_clock(struct ckvm_vm *vm, struct kvm_clock_data *clock)
{
	return ckvm__vm_ioctl(vm, KVM_GET_CLOCK, clock);
}

int ckvm_vm_set_clock(struct ckvm_vm *vm, const struct kvm_clock_data *clock)
{
	return ckvm__vm_ioctl(vm, KVM_SET_CLOCK, (void *)(uintptr_t)clock);
}

/* Before the first vCPU --------------------------------------------------- */

/* Kernels take the low 32 bits of what does not fit. */
int ckvm_vm_set_tss_addr(struct ckvm_vm *vm, uint64_t gpa)
{
	if (gpa > UINT32_MAX)
		return ckvm__fail("KVM_SET_TSS_ADDR", -EINVAL);
	return ckvm__vm_ioctl(vm, KVM_SET_TSS_ADDR, (void *)(uintptr_t)gpa);
}

int ckvm_vm_set_identity_map_addr(struct ckvm_vm *vm, uint64_t gpa)
{
	return ckvm__vm_ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &gpa);
}

int ckvm_vm_set_boot_cpu_id(struct ckvm_vm *vm, uint32_t id)
{
	return ckvm__vm_ioctl(vm, KVM_SET_BOOT_CPU_ID, (void *)(uintptr_t)id);
}

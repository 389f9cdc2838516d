/* SPDX-License-Identifier: MIT */
/* Interrupts: lines, messages, routes, and what eventfds stand for. */
#include "internal.h"

int ckvm_vm_create_irqchip(struct ckvm_vm *vm)
{
	return ckvm__vm_ioctl(vm, KVM_CREATE_IRQCHIP, NULL);
}

int ckvm_vm_irq_line(struct ckvm_vm *vm, const struct kvm_irq_level *level)
{
	return ckvm__vm_ioctl(vm, KVM_IRQ_LINE, (void *)(uintptr_t)level);
}

int ckvm_vm_irq_line_status(struct ckvm_vm *vm, struct kvm_irq_level *level)
{
	return ckvm__vm_ioctl(vm, KVM_IRQ_LINE_STATUS, level);
}

int ckvm_vm_signal_msi(struct ckvm_vm *vm, const struct kvm_msi *msi)
{
	return ckvm__vm_ioctl(vm, KVM_SIGNAL_MSI, (void *)(uintptr_t)msi);
}

int ckvm_vm_set_gsi_routing(struct ckvm_vm *vm,
			    const struct kvm_irq_routing *routing)
{
	return ckvm__vm_ioctl(vm, KVM_SET_GSI_ROUTING,
			      (void *)(uintptr_t)routing);
}

int ckvm_vm_irqfd(struct ckvm_vm *vm, const struct kvm_irqfd *irqfd)
{
	return ckvm__vm_ioctl(vm, KVM_IRQFD, (void *)(uintptr_t)irqfd);
}

int ckvm_vm_ioeventfd(struct ckvm_vm *vm, const struct kvm_ioeventfd *ioevent)
{
	return ckvm__vm_ioctl(vm, KVM_IOEVENTFD, (void *)(uintptr_t)ioevent);
}

/* The events view shows what is queued. */
int ckvm_vcpu_interrupt(struct ckvm_vcpu *vcpu, uint32_t irq)
{
	struct kvm_interrupt interrupt = { .irq = irq };

	return ckvm__vcpu_change(vcpu, KVM_INTERRUPT, &interrupt);
}

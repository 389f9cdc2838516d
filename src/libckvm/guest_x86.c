/* SPDX-License-Identifier: MIT */
/*
 * What a VM can be on x86 beside a PC: encrypted, a guest of Xen's or Hyper-V's
 * interfaces, one whose performance counters are filtered.
 */
#include "internal.h"

/* One call a request; the struct is the kernel's, and passes as it is. */
#define VM_CALL(name, type, request)                             \
	int ckvm_vm_##name(struct ckvm_vm *vm, type *arg)        \
	{                                                        \
		return ckvm__vm_ioctl(vm, request, (void *)arg); \
	}
#define VCPU_CALL(name, type, request)                               \
	int ckvm_vcpu_##name(struct ckvm_vcpu *vcpu, type *arg)      \
	{                                                            \
		return ckvm__vcpu_ioctl(vcpu, request, (void *)arg); \
	}

VM_CALL(memory_encrypt_op, void, KVM_MEMORY_ENCRYPT_OP)
VM_CALL(memory_encrypt_reg_region, const struct kvm_enc_region,
	KVM_MEMORY_ENCRYPT_REG_REGION)
VM_CALL(memory_encrypt_unreg_region, const struct kvm_enc_region,
	KVM_MEMORY_ENCRYPT_UNREG_REGION)

VM_CALL(xen_hvm_config, const struct kvm_xen_hvm_config, KVM_XEN_HVM_CONFIG)
VM_CALL(xen_hvm_get_attr, struct kvm_xen_hvm_attr, KVM_XEN_HVM_GET_ATTR)
VM_CALL(xen_hvm_set_attr, const struct kvm_xen_hvm_attr, KVM_XEN_HVM_SET_ATTR)
VM_CALL(xen_hvm_evtchn_send, const struct kvm_irq_routing_xen_evtchn,
	KVM_XEN_HVM_EVTCHN_SEND)
VCPU_CALL(xen_vcpu_get_attr, struct kvm_xen_vcpu_attr, KVM_XEN_VCPU_GET_ATTR)
VCPU_CALL(xen_vcpu_set_attr, const struct kvm_xen_vcpu_attr,
	  KVM_XEN_VCPU_SET_ATTR)

VM_CALL(hyperv_eventfd, const struct kvm_hyperv_eventfd, KVM_HYPERV_EVENTFD)
VM_CALL(set_pmu_event_filter, const struct kvm_pmu_event_filter,
	KVM_SET_PMU_EVENT_FILTER)

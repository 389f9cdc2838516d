/* SPDX-License-Identifier: MIT */
/* The way into the kernel: the hook, and the requests' names. */
#include "internal.h"

int ckvm__ioctl_failed(unsigned long request, int error)
{
	const char *name;

	if (request == KVM_RUN) /* EINTR is no failure, and may be frequent */
		return ckvm__fail("KVM_RUN", error);
	name = ckvm_ioctl_name(request);
	return ckvm__fail(name ? name : "ioctl", error);
}

int ckvm__ioctl_slow(struct ckvm *kvm, int fd, unsigned long request, void *arg)
{
	const struct ckvm_hook *hook = &kvm->hook;
	int result = CKVM_HOOK_CALL;

	if (hook->before)
		result = hook->before(hook->opaque, fd, request, arg);
	if (result == CKVM_HOOK_CALL) {
		result = ioctl(fd, request, arg);
		if (result < 0)
			result = -errno;
	}
	if (hook->after)
		hook->after(hook->opaque, fd, request, arg, result);
	return result < 0 ? ckvm__ioctl_failed(request, result) : result;
}

/* clang-format off */
#define R(name) { name, #name }
static const struct {
	unsigned long request;
	const char *name;
} requests[] = {
	R(KVM_GET_API_VERSION),
	R(KVM_CREATE_VM),
	R(KVM_GET_MSR_INDEX_LIST),
	R(KVM_CHECK_EXTENSION),
	R(KVM_GET_VCPU_MMAP_SIZE),
	R(KVM_GET_SUPPORTED_CPUID),
	R(KVM_GET_EMULATED_CPUID),
	R(KVM_GET_MSR_FEATURE_INDEX_LIST),
	R(KVM_CREATE_VCPU),
	R(KVM_GET_DIRTY_LOG),
	R(KVM_SET_NR_MMU_PAGES),
	R(KVM_GET_NR_MMU_PAGES),
	R(KVM_SET_USER_MEMORY_REGION),
	R(KVM_SET_USER_MEMORY_REGION2),
	R(KVM_SET_TSS_ADDR),
	R(KVM_SET_IDENTITY_MAP_ADDR),
	R(KVM_CREATE_IRQCHIP),
	R(KVM_IRQ_LINE),
	R(KVM_GET_IRQCHIP),
	R(KVM_SET_IRQCHIP),
	R(KVM_CREATE_PIT),
	R(KVM_GET_PIT),
	R(KVM_SET_PIT),
	R(KVM_IRQ_LINE_STATUS),
	R(KVM_REGISTER_COALESCED_MMIO),
	R(KVM_UNREGISTER_COALESCED_MMIO),
	R(KVM_SET_GSI_ROUTING),
	R(KVM_REINJECT_CONTROL),
	R(KVM_IRQFD),
	R(KVM_CREATE_PIT2),
	R(KVM_SET_BOOT_CPU_ID),
	R(KVM_IOEVENTFD),
	R(KVM_XEN_HVM_CONFIG),
	R(KVM_SET_CLOCK),
	R(KVM_GET_CLOCK),
	R(KVM_GET_PIT2),
	R(KVM_SET_PIT2),
	R(KVM_SET_TSC_KHZ),
	R(KVM_GET_TSC_KHZ),
	R(KVM_SIGNAL_MSI),
	R(KVM_SET_PMU_EVENT_FILTER),
	R(KVM_CREATE_DEVICE),
	R(KVM_SET_DEVICE_ATTR),
	R(KVM_GET_DEVICE_ATTR),
	R(KVM_HAS_DEVICE_ATTR),
	R(KVM_RUN),
	R(KVM_GET_REGS),
	R(KVM_SET_REGS),
	R(KVM_GET_SREGS),
	R(KVM_SET_SREGS),
	R(KVM_TRANSLATE),
	R(KVM_INTERRUPT),
	R(KVM_GET_MSRS),
	R(KVM_SET_MSRS),
	R(KVM_SET_CPUID),
	R(KVM_SET_SIGNAL_MASK),
	R(KVM_GET_FPU),
	R(KVM_SET_FPU),
	R(KVM_GET_LAPIC),
	R(KVM_SET_LAPIC),
	R(KVM_SET_CPUID2),
	R(KVM_GET_CPUID2),
	R(KVM_TPR_ACCESS_REPORTING),
	R(KVM_SET_VAPIC_ADDR),
	R(KVM_GET_MP_STATE),
	R(KVM_SET_MP_STATE),
	R(KVM_NMI),
	R(KVM_SET_GUEST_DEBUG),
	R(KVM_X86_SETUP_MCE),
	R(KVM_X86_GET_MCE_CAP_SUPPORTED),
	R(KVM_X86_SET_MCE),
	R(KVM_GET_VCPU_EVENTS),
	R(KVM_SET_VCPU_EVENTS),
	R(KVM_GET_DEBUGREGS),
	R(KVM_SET_DEBUGREGS),
	R(KVM_ENABLE_CAP),
	R(KVM_GET_XSAVE),
	R(KVM_SET_XSAVE),
	R(KVM_GET_XCRS),
	R(KVM_SET_XCRS),
	R(KVM_GET_ONE_REG),
	R(KVM_SET_ONE_REG),
	R(KVM_KVMCLOCK_CTRL),
	R(KVM_GET_REG_LIST),
	R(KVM_SMI),
	R(KVM_MEMORY_ENCRYPT_OP),
	R(KVM_MEMORY_ENCRYPT_REG_REGION),
	R(KVM_MEMORY_ENCRYPT_UNREG_REGION),
	R(KVM_HYPERV_EVENTFD),
	R(KVM_GET_NESTED_STATE),
	R(KVM_SET_NESTED_STATE),
	R(KVM_CLEAR_DIRTY_LOG),
	R(KVM_GET_SUPPORTED_HV_CPUID),
	R(KVM_X86_SET_MSR_FILTER),
	R(KVM_RESET_DIRTY_RINGS),
	R(KVM_XEN_HVM_GET_ATTR),
	R(KVM_XEN_HVM_SET_ATTR),
	R(KVM_XEN_VCPU_GET_ATTR),
	R(KVM_XEN_VCPU_SET_ATTR),
	R(KVM_XEN_HVM_EVTCHN_SEND),
	R(KVM_GET_SREGS2),
	R(KVM_SET_SREGS2),
	R(KVM_GET_STATS_FD),
	R(KVM_GET_XSAVE2),
	R(KVM_SET_MEMORY_ATTRIBUTES),
	R(KVM_CREATE_GUEST_MEMFD),
	R(KVM_PRE_FAULT_MEMORY),
};
#undef R
/* clang-format on */

const char *ckvm_ioctl_name(unsigned long request)
{
	for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
		if (requests[i].request == request)
			return requests[i].name;
	return NULL;
}

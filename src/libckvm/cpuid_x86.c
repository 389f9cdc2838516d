/* SPDX-License-Identifier: MIT */
/* CPUID: what the KVM supports, and what a vCPU shows its guest. */
#include <stdlib.h>

#include "internal.h"

#define FIRST_TRY 256 /* entries; no kernel so far takes or has more */
#define MOST 65536

static int ask(struct ckvm *kvm, struct ckvm_vcpu *vcpu, unsigned long request,
	       void *arg)
{
	return vcpu ? ckvm__vcpu_ioctl(vcpu, request, arg)
		    : ckvm__kvm_ioctl(kvm, request, arg);
}

/*
 * KVM_GET_CPUID2 of Linux 6.1 does not tell how many entries there are, just
 * when there is no room for them: the least room that is enough is the number.
 */
static int count_entries(struct ckvm_vcpu *vcpu, struct kvm_cpuid2 *list)
{
	uint32_t low = 0, high = list->nent;
	int error;

	while (low < high) {
		list->nent = low + (high - low) / 2;
		error = ckvm__vcpu_ioctl(vcpu, KVM_GET_CPUID2, list);
		if (error && error != -E2BIG)
			return error;
		if (error)
			low = list->nent + 1;
		else
			high = list->nent;
	}
	list->nent = high;
	return 0;
}

/* The kernel says that a list is too short, but not how long it must be. */
static int get_list(struct ckvm *kvm, struct ckvm_vcpu *vcpu,
		    unsigned long request, struct kvm_cpuid2 **out)
{
	struct kvm_cpuid2 *list;
	int error;

	for (uint32_t n = FIRST_TRY;; n *= 2) {
		list = calloc(1, sizeof(*list) + n * sizeof(*list->entries));
		if (!list)
			return ckvm__fail("malloc", -ENOMEM);
		list->nent = n;
		error = ask(kvm, vcpu, request, list);
		if (!error && request == KVM_GET_CPUID2 && list->nent == n)
			error = count_entries(vcpu, list);
		if (error >= 0 && list->nent <= n) {
			*out = list;
			return (int)list->nent;
		}
		free(list);
		if (error != -E2BIG || n == MOST)
			return error;
	}
}

int ckvm_get_supported_cpuid(struct ckvm *kvm, struct kvm_cpuid2 **out)
{
	return get_list(kvm, NULL, KVM_GET_SUPPORTED_CPUID, out);
}

int ckvm_get_emulated_cpuid(struct ckvm *kvm, struct kvm_cpuid2 **out)
{
	return get_list(kvm, NULL, KVM_GET_EMULATED_CPUID, out);
}

int ckvm_get_supported_hv_cpuid(struct ckvm *kvm, struct kvm_cpuid2 **out)
{
	return get_list(kvm, NULL, KVM_GET_SUPPORTED_HV_CPUID, out);
}

int ckvm_vcpu_get_supported_hv_cpuid(struct ckvm_vcpu *vcpu,
				     struct kvm_cpuid2 **out)
{
	return get_list(NULL, vcpu, KVM_GET_SUPPORTED_HV_CPUID, out);
}

int ckvm_vcpu_get_cpuid2(struct ckvm_vcpu *vcpu, struct kvm_cpuid2 **out)
{
	return get_list(NULL, vcpu, KVM_GET_CPUID2, out);
}

int ckvm_vcpu_set_cpuid2(struct ckvm_vcpu *vcpu, const struct kvm_cpuid2 *cpuid)
{
	return ckvm__vcpu_ioctl(vcpu, KVM_SET_CPUID2, (void *)(uintptr_t)cpuid);
}

int ckvm_vcpu_set_cpuid(struct ckvm_vcpu *vcpu, const struct kvm_cpuid *cpuid)
{
	return ckvm__vcpu_ioctl(vcpu, KVM_SET_CPUID, (void *)(uintptr_t)cpuid);
}

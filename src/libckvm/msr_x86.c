/* SPDX-License-Identifier: MIT */
/* Model-specific registers: which there are, their values, and the filter. */
#include <stdlib.h>

#include "internal.h"

/* Index lists ------------------------------------------------------------- */

#define FIRST_TRY 512 /* indices */

/* The kernel says how many it has. */
static int get_list(struct ckvm *kvm, unsigned long request,
		    struct kvm_msr_list **out)
{
	struct kvm_msr_list *list;
	uint32_t n = FIRST_TRY, wanted;
	int error;

	for (;; n = wanted) {
		list = calloc(1, sizeof(*list) +
					 (size_t)n * sizeof(*list->indices));
		if (!list)
			return ckvm__fail("malloc", -ENOMEM);
		list->nmsrs = n;
		error = ckvm__kvm_ioctl(kvm, request, list);
		wanted = list->nmsrs;
		if (error >= 0 && wanted <= n) {
			*out = list;
			return (int)wanted;
		}
		free(list);
		if (error != -E2BIG || wanted <= n)
			return error;
	}
}

int ckvm_get_msr_index_list(struct ckvm *kvm, struct kvm_msr_list **out)
{
	return get_list(kvm, KVM_GET_MSR_INDEX_LIST, out);
}

int ckvm_get_msr_feature_index_list(struct ckvm *kvm, struct kvm_msr_list **out)
{
	return get_list(kvm, KVM_GET_MSR_FEATURE_INDEX_LIST, out);
}

/* Values ------------------------------------------------------------------ */

#define AT_ONCE 128 /* the kernel takes less than 256 in one call */

/* Who is asked: one or the other. */
struct target {
	struct ckvm *kvm;
	struct ckvm_vcpu *vcpu;
	unsigned long request;
};

static int ask(const struct target *target, void *arg)
{
	if (!target->vcpu)
		return ckvm__kvm_ioctl(target->kvm, target->request, arg);
	if (target->request == KVM_SET_MSRS) /* EFER, FS_BASE, APIC_BASE ... */
		return ckvm__vcpu_change(target->vcpu, target->request, arg);
	return ckvm__vcpu_ioctl(target->vcpu, target->request, arg);
}

/* At most AT_ONCE of them: how many were done. */
static int transfer_some(const struct target *target,
			 struct kvm_msr_entry *entries, uint32_t count)
{
	uint64_t block[sizeof(struct kvm_msrs) / 8 +
		       AT_ONCE * sizeof(*entries) / 8] = { 0 };
	struct kvm_msrs *msrs = (struct kvm_msrs *)block;
	int done;

	msrs->nmsrs = count;
	memcpy(msrs->entries, entries, count * sizeof(*entries));
	done = ask(target, msrs);
	if (done > (int)count) /* a hook's, not KVM's */
		done = (int)count;
	if (done > 0 && target->request == KVM_GET_MSRS)
		memcpy(entries, msrs->entries, count * sizeof(*entries));
	for (int i = 0; target->request == KVM_SET_MSRS && i < done; i++)
		ckvm__msr_was_set(target->vcpu, entries[i].index,
				  entries[i].data);
	return done;
}

/* The kernel stops at the first one that it refuses, and only counts. */
static int transfer(const struct target *target, struct kvm_msr_entry *entries,
		    size_t count, size_t *done)
{
	size_t sum = 0;
	int some = 0;

	while (sum < count && some >= 0) {
		uint32_t wanted = count - sum < AT_ONCE
					  ? (uint32_t)(count - sum)
					  : AT_ONCE;

		some = transfer_some(target, entries + sum, wanted);
		if (some >= 0) {
			sum += (uint32_t)some;
			if ((uint32_t)some < wanted)
				some = ckvm__ioctl_failed(target->request,
							  -EINVAL);
		}
	}
	if (done)
		*done = sum;
	return some < 0 ? some : 0;
}

int ckvm_get_msrs(struct ckvm *kvm, struct kvm_msr_entry *entries, size_t count,
		  size_t *done)
{
	struct target target = { .kvm = kvm, .request = KVM_GET_MSRS };

	return transfer(&target, entries, count, done);
}

int ckvm_vcpu_get_msrs(struct ckvm_vcpu *vcpu, struct kvm_msr_entry *entries,
		       size_t count, size_t *done)
{
	struct target target = { .vcpu = vcpu, .request = KVM_GET_MSRS };

	return transfer(&target, entries, count, done);
}

int ckvm_vcpu_set_msrs(struct ckvm_vcpu *vcpu,
		       const struct kvm_msr_entry *entries, size_t count,
		       size_t *done)
{
	struct target target = { .vcpu = vcpu, .request = KVM_SET_MSRS };

	return transfer(&target, (struct kvm_msr_entry *)(uintptr_t)entries,
			count, done);
}

/* The filter -------------------------------------------------------------- */

int ckvm_vm_x86_set_msr_filter(struct ckvm_vm *vm,
			       const struct kvm_msr_filter *filter)
{
	return ckvm__vm_ioctl(vm, KVM_X86_SET_MSR_FILTER,
			      (void *)(uintptr_t)filter);
}

/* SPDX-License-Identifier: MIT */
/* State of an x86 vCPU that is got and set whole, beside its views. */
#include <stdlib.h>

#include "internal.h"

/* One access is open, or registers wait for an instruction's end. */
static bool is_open(const struct ckvm_vcpu *vcpu)
{
	return vcpu->open != OPEN_NONE || vcpu->finishing;
}

static int get(struct ckvm_vcpu *vcpu, unsigned long request, void *out)
{
	return ckvm__vcpu_ioctl(vcpu, request, out);
}

static int set(struct ckvm_vcpu *vcpu, unsigned long request, const void *value)
{
	return ckvm__vcpu_ioctl(vcpu, request, (void *)(uintptr_t)value);
}

int ckvm_vcpu_get_fpu(struct ckvm_vcpu *vcpu, struct kvm_fpu *fpu)
{
	return get(vcpu, KVM_GET_FPU, fpu);
}

int ckvm_vcpu_set_fpu(struct ckvm_vcpu *vcpu, const struct kvm_fpu *fpu)
{
	return set(vcpu, KVM_SET_FPU, fpu);
}

int ckvm_vcpu_get_xcrs(struct ckvm_vcpu *vcpu, struct kvm_xcrs *xcrs)
{
	return get(vcpu, KVM_GET_XCRS, xcrs);
}

int ckvm_vcpu_set_xcrs(struct ckvm_vcpu *vcpu, const struct kvm_xcrs *xcrs)
{
	return set(vcpu, KVM_SET_XCRS, xcrs);
}

int ckvm_vcpu_get_debugregs(struct ckvm_vcpu *vcpu, struct kvm_debugregs *regs)
{
	return get(vcpu, KVM_GET_DEBUGREGS, regs);
}

int ckvm_vcpu_set_debugregs(struct ckvm_vcpu *vcpu,
			    const struct kvm_debugregs *regs)
{
	return set(vcpu, KVM_SET_DEBUGREGS, regs);
}

int ckvm_vcpu_get_lapic(struct ckvm_vcpu *vcpu, struct kvm_lapic_state *lapic)
{
	return get(vcpu, KVM_GET_LAPIC, lapic);
}

/* Its task priority is also cr8. */
int ckvm_vcpu_set_lapic(struct ckvm_vcpu *vcpu,
			const struct kvm_lapic_state *lapic)
{
	return ckvm__vcpu_change(vcpu, KVM_SET_LAPIC, (void *)(uintptr_t)lapic);
}

/* Extended state ---------------------------------------------------------- */

int ckvm_vcpu_xsave_size(struct ckvm_vcpu *vcpu)
{
	int size = ckvm_vm_check_extension(vcpu->vm, KVM_CAP_XSAVE2);

	if (size < 0 || size > (int)sizeof(struct kvm_xsave))
		return size;
	return sizeof(struct kvm_xsave);
}

/* The kernel takes no size: it reads and writes as much as it wants to. */
static int check_size(struct ckvm_vcpu *vcpu, size_t size)
{
	int wanted = ckvm_vcpu_xsave_size(vcpu);

	if (wanted < 0)
		return wanted;
	return size < (size_t)wanted ? ckvm__fail("size", -EINVAL) : 0;
}

int ckvm_vcpu_get_xsave(struct ckvm_vcpu *vcpu, struct kvm_xsave *xsave)
{
	return get(vcpu, KVM_GET_XSAVE, xsave);
}

int ckvm_vcpu_get_xsave2(struct ckvm_vcpu *vcpu, void *data, size_t size)
{
	int error = check_size(vcpu, size);

	return error ? error : get(vcpu, KVM_GET_XSAVE2, data);
}

int ckvm_vcpu_set_xsave(struct ckvm_vcpu *vcpu, const void *data, size_t size)
{
	int error = check_size(vcpu, size);

	return error ? error : set(vcpu, KVM_SET_XSAVE, data);
}

/* sregs2 ------------------------------------------------------------------ */

/* What kvm_sregs and kvm_sregs2 have in common, at the same offsets. */
#define COMMON offsetof(struct kvm_sregs2, flags)
_Static_assert(COMMON == offsetof(struct kvm_sregs, interrupt_bitmap),
	       "kvm_sregs2 begins as kvm_sregs does");

int ckvm_vcpu_get_sregs2(struct ckvm_vcpu *vcpu, struct kvm_sregs2 *sregs)
{
	int error = get(vcpu, KVM_GET_SREGS2, sregs);
	const void *view;

	/* What could not be sent yet is in the view alone. */
	if (error || !(vcpu->written_views & CKVM_VIEW_SREGS))
		return error;
	error = ckvm_vcpu_view(vcpu, CKVM_VIEW_SREGS, &view);
	if (!error)
		memcpy(sregs, view, COMMON);
	return error;
}

/* By way of the view, which changes what differs when the access is done. */
static int set_open_sregs2(struct ckvm_vcpu *vcpu,
			   const struct kvm_sregs2 *sregs)
{
	struct kvm_sregs2 old;
	struct kvm_sregs changed;
	int error = ckvm_vcpu_get_sregs2(vcpu, &old);

	if (error)
		return error;
	if (sregs->flags != old.flags ||
	    (old.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID &&
	     memcmp(sregs->pdptrs, old.pdptrs, sizeof(old.pdptrs))))
		return ckvm__fail("open", -EBUSY);
	error = ckvm_vcpu_get_sregs(vcpu, &changed);
	if (error)
		return error;
	memcpy(&changed, sregs, COMMON);
	return ckvm_vcpu_set_sregs(vcpu, &changed);
}

int ckvm_vcpu_set_sregs2(struct ckvm_vcpu *vcpu, const struct kvm_sregs2 *sregs)
{
	int error;

	if (is_open(vcpu))
		return set_open_sregs2(vcpu, sregs);
	error = ckvm__vcpu_change(vcpu, KVM_SET_SREGS2,
				  (void *)(uintptr_t)sregs);
	if (!error) /* as in state_x86.c */
		vcpu->run->cr8 = sregs->cr8;
	return error;
}

/* Nested virtualization --------------------------------------------------- */

/* The kernel tells the size that it wants. */
int ckvm_vcpu_get_nested_state(struct ckvm_vcpu *vcpu,
			       struct kvm_nested_state **out)
{
	struct kvm_nested_state *state;
	uint32_t size = sizeof(*state), wanted;
	int error;

	for (;; size = wanted) {
		state = calloc(1, size);
		if (!state)
			return ckvm__fail("malloc", -ENOMEM);
		state->size = size;
		error = get(vcpu, KVM_GET_NESTED_STATE, state);
		wanted = state->size;
		if (!error && wanted <= size) {
			*out = state;
			return 0;
		}
		free(state);
		if (error != -E2BIG || wanted <= size)
			return error;
	}
}

/* It may enter or leave the nested guest, and the open access is of one. */
int ckvm_vcpu_set_nested_state(struct ckvm_vcpu *vcpu,
			       const struct kvm_nested_state *state)
{
	if (is_open(vcpu))
		return ckvm__fail("open", -EBUSY);
	return ckvm__vcpu_change(vcpu, KVM_SET_NESTED_STATE,
				 (void *)(uintptr_t)state);
}

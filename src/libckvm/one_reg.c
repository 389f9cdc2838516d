/* SPDX-License-Identifier: MIT */
/* Registers one by one, by the kernel's ids. */
#include <stdlib.h>

#include "internal.h"

#define FIRST_TRY 256

size_t ckvm_reg_size(uint64_t id)
{
	return (size_t)1 << ((id & KVM_REG_SIZE_MASK) >> KVM_REG_SIZE_SHIFT);
}

static int access_reg(struct ckvm_vcpu *vcpu, unsigned long request,
		      uint64_t id, const void *data, size_t size)
{
	struct kvm_one_reg reg = { .id = id, .addr = (uintptr_t)data };

	if (size < ckvm_reg_size(id))
		return ckvm__fail("size", -EINVAL);
	return request == KVM_SET_ONE_REG
		       ? ckvm__vcpu_change(vcpu, request, &reg)
		       : ckvm__vcpu_ioctl(vcpu, request, &reg);
}

int ckvm_vcpu_get_one_reg(struct ckvm_vcpu *vcpu, uint64_t id, void *data,
			  size_t size)
{
	return access_reg(vcpu, KVM_GET_ONE_REG, id, data, size);
}

int ckvm_vcpu_set_one_reg(struct ckvm_vcpu *vcpu, uint64_t id, const void *data,
			  size_t size)
{
	return access_reg(vcpu, KVM_SET_ONE_REG, id, data, size);
}

int ckvm_vcpu_get_reg_list(struct ckvm_vcpu *vcpu, struct kvm_reg_list **out)
{
	struct kvm_reg_list *list;
	uint64_t n = FIRST_TRY, wanted;
	int error;

	for (;; n = wanted) {
		list = calloc(n + 1, sizeof(*list->reg));
		if (!list)
			return ckvm__fail("malloc", -ENOMEM);
		list->n = n;
		error = ckvm__vcpu_ioctl(vcpu, KVM_GET_REG_LIST, list);
		wanted = list->n;
		if (error >= 0 && wanted <= n) {
			*out = list;
			return (int)wanted;
		}
		free(list);
		if (error != -E2BIG || wanted <= n || wanted > INT32_MAX)
			return error;
	}
}

/* SPDX-License-Identifier: MIT */
/* Guest memory by virtual address: through the vCPU's own page tables. */
#include "internal.h"

int ckvm_vcpu_translate(struct ckvm_vcpu *vcpu,
			struct kvm_translation *translation)
{
	return ckvm__vcpu_ioctl(vcpu, KVM_TRANSLATE, translation);
}

/* What is left of gva's page, at most `wanted`. */
static size_t rest_of_page(uint64_t gva, size_t wanted)
{
	size_t rest = PAGE_SIZE - gva % PAGE_SIZE;

	return rest < wanted ? rest : wanted;
}

static int find_page(struct ckvm_vcpu *vcpu, uint64_t gva, uint64_t *gpa)
{
	struct kvm_translation page = { .linear_address = gva };
	int error = ckvm_vcpu_translate(vcpu, &page);

	if (error)
		return error;
	*gpa = page.physical_address;
	return page.valid ? 0 : ckvm__fail("translate", -EFAULT);
}

/* What becomes of a stretch within one page. */

static int read_part(struct ckvm_vm *vm, uint64_t gpa, uint8_t *data,
		     size_t length)
{
	return ckvm_vm_read(vm, gpa, data, length);
}

static int write_part(struct ckvm_vm *vm, uint64_t gpa, uint8_t *data,
		      size_t length)
{
	return ckvm_vm_write(vm, gpa, data, length);
}

/* Is there memory? Pages and slots begin and end together. */
static int probe_part(struct ckvm_vm *vm, uint64_t gpa, uint8_t *data,
		      size_t length)
{
	(void)data;
	return ckvm_vm_extent(vm, gpa) < length ? ckvm__fail("memory", -EFAULT)
						: 0;
}

/* Page by page, up to the end of the address space. */
static int each_page(struct ckvm_vcpu *vcpu, uint64_t gva, uint8_t *data,
		     size_t length, uint64_t *fault,
		     int (*do_part)(struct ckvm_vm *vm, uint64_t gpa,
				    uint8_t *data, size_t length))
{
	int error = ckvm__vcpu_check(vcpu);
	uint64_t gpa;

	while (!error && length) {
		size_t part = rest_of_page(gva, length);

		error = find_page(vcpu, gva, &gpa);
		if (!error)
			error = do_part(vcpu->vm, gpa, data, part);
		if (error == -EFAULT && fault)
			*fault = gva;
		length -= part;
		data += part;
		gva += part;
		if (!gva)
			break;
	}
	if (!error && length) { /* and there is nothing behind it */
		error = ckvm__fail("translate", -EFAULT);
		if (fault)
			*fault = UINT64_MAX;
	}
	return error;
}

int ckvm_vcpu_read(struct ckvm_vcpu *vcpu, uint64_t gva, void *data,
		   size_t length, uint64_t *fault)
{
	return each_page(vcpu, gva, data, length, fault, read_part);
}

/* All of it or nothing: looked at before. */
int ckvm_vcpu_write(struct ckvm_vcpu *vcpu, uint64_t gva, const void *data,
		    size_t length, uint64_t *fault)
{
	uint8_t *from = (uint8_t *)(uintptr_t)data;
	int error = each_page(vcpu, gva, from, length, fault, probe_part);

	return error ? error
		     : each_page(vcpu, gva, from, length, fault, write_part);
}

int64_t ckvm_vcpu_read_cstring(struct ckvm_vcpu *vcpu, uint64_t gva, char *data,
			       size_t size, uint64_t *fault)
{
	size_t length = 0;

	while (length < size) {
		size_t part = rest_of_page(gva + length, size - length);
		const char *end;
		int error;

		if (length > UINT64_MAX - gva) {
			if (fault)
				*fault = UINT64_MAX;
			return ckvm__fail("translate", -EFAULT);
		}
		error = ckvm_vcpu_read(vcpu, gva + length, data + length, part,
				       fault);
		if (error)
			return error;
		end = memchr(data + length, 0, part);
		if (end)
			return end - data;
		length += part;
	}
	return ckvm__fail("string", -E2BIG);
}

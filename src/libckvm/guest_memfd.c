/* SPDX-License-Identifier: MIT */
/* guest_memfd, and the calls about pages that came with it. */
#include <fcntl.h>
#include <stdlib.h>

#include "internal.h"

/* With the VM held; what is created goes on holding it. */
static int create(struct ckvm_vm *vm, struct kvm_create_guest_memfd args,
		  struct ckvm_guest_memfd **out)
{
	struct ckvm_guest_memfd *memfd = calloc(1, sizeof(*memfd));
	int fd, error;

	if (!memfd)
		return ckvm__fail("malloc", -ENOMEM);
	memfd->bytes = args.size;
	memfd->flags = args.flags;
	fd = ckvm__ioctl(vm->kvm, vm->fd, KVM_CREATE_GUEST_MEMFD, &args);
	if (fd >= 0) /* the kernel does not do this */
		fcntl(fd, F_SETFD, FD_CLOEXEC);
	error = ckvm__part_begin(vm, &memfd->part, fd);
	if (!error)
		*out = memfd;
	return error;
}

int ckvm_vm_create_guest_memfd(struct ckvm_vm *vm,
			       const struct kvm_create_guest_memfd *args,
			       struct ckvm_guest_memfd **out)
{
	int error = ckvm__vm_hold(vm);

	if (error)
		return error;
	error = create(vm, *args, out);
	if (error)
		ckvm__vm_drop(vm);
	return error;
}

void ckvm_guest_memfd_close(struct ckvm_guest_memfd *memfd)
{
	if (memfd)
		ckvm__part_close(&memfd->part);
}

struct ckvm_guest_memfd *ckvm_guest_memfd_ref(struct ckvm_guest_memfd *memfd)
{
	atomic_fetch_add(&memfd->part.refs, 1);
	return memfd;
}

void ckvm_guest_memfd_unref(struct ckvm_guest_memfd *memfd)
{
	if (memfd)
		ckvm__part_unref(&memfd->part);
}

int ckvm_guest_memfd_fd(const struct ckvm_guest_memfd *memfd)
{
	return ckvm__part_fd(&memfd->part);
}

uint64_t ckvm_guest_memfd_size(const struct ckvm_guest_memfd *memfd)
{
	return memfd->bytes;
}

uint64_t ckvm_guest_memfd_flags(const struct ckvm_guest_memfd *memfd)
{
	return memfd->flags;
}

int ckvm_vm_set_memory_attributes(
	struct ckvm_vm *vm, const struct kvm_memory_attributes *attributes)
{
	return ckvm__vm_ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES,
			      (void *)attributes);
}

/* The kernel stops where something else wants the CPU, and says how far. */
static bool goes_on(int error, const struct kvm_pre_fault_memory *range,
		    uint64_t before)
{
	return error == -EINTR || (!error && range->size < before);
}

int ckvm_vcpu_pre_fault_memory(struct ckvm_vcpu *vcpu,
			       struct kvm_pre_fault_memory *range)
{
	uint64_t before;
	int error;

	do {
		before = range->size;
		error = ckvm__vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, range);
	} while (range->size && goes_on(error, range, before));
	if (!error && range->size)
		return ckvm__fail("KVM_PRE_FAULT_MEMORY", -EIO);
	return error;
}

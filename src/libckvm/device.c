/* SPDX-License-Identifier: MIT */
/* Devices that the kernel emulates, and the attributes of every object. */
#include <stdlib.h>

#include "internal.h"

struct ckvm_device {
	struct ckvm__part part; /* first: it is what is freed */
	uint32_t type;
};

/*
 * With KVM_CREATE_DEVICE_TEST the kernel leaves `fd` alone: whatever is in it
 * then is nobody's, and stdin's if it is 0.
 */
static int create_fd(struct ckvm_vm *vm, uint32_t type, uint32_t flags)
{
	struct kvm_create_device create = {
		.type = type,
		.fd = UINT32_MAX,
		.flags = flags,
	};
	int error;

	error = ckvm__ioctl(vm->kvm, vm->fd, KVM_CREATE_DEVICE, &create);
	if (error)
		return error;
	if (flags & KVM_CREATE_DEVICE_TEST)
		return 0;
	if ((int)create.fd < 0)
		return ckvm__fail("KVM_CREATE_DEVICE", -EBADF);
	return (int)create.fd;
}

/* With the VM held; what is created goes on holding it. */
static int create(struct ckvm_vm *vm, uint32_t type, uint32_t flags,
		  struct ckvm_device **out)
{
	struct ckvm_device *device = calloc(1, sizeof(*device));
	int error;

	if (!device)
		return ckvm__fail("malloc", -ENOMEM);
	device->type = type;
	error = ckvm__part_begin(vm, &device->part, create_fd(vm, type, flags));
	if (!error)
		*out = device;
	return error;
}

int ckvm_vm_create_device(struct ckvm_vm *vm, uint32_t type, uint32_t flags,
			  struct ckvm_device **out)
{
	int error = ckvm__vm_hold(vm);

	if (error)
		return error;
	if (flags & KVM_CREATE_DEVICE_TEST) {
		error = create_fd(vm, type, flags);
		ckvm__vm_drop(vm);
		return error;
	}
	error = create(vm, type, flags, out);
	if (error)
		ckvm__vm_drop(vm);
	return error;
}

void ckvm_device_close(struct ckvm_device *device)
{
	if (device)
		ckvm__part_close(&device->part);
}

struct ckvm_device *ckvm_device_ref(struct ckvm_device *device)
{
	atomic_fetch_add(&device->part.refs, 1);
	return device;
}

void ckvm_device_unref(struct ckvm_device *device)
{
	if (device)
		ckvm__part_unref(&device->part);
}

int ckvm_device_fd(const struct ckvm_device *device)
{
	return ckvm__part_fd(&device->part);
}

uint32_t ckvm_device_type(const struct ckvm_device *device)
{
	return device->type;
}

/* Attributes -------------------------------------------------------------- */

static int device_ioctl(struct ckvm_device *device, unsigned long request,
			void *arg)
{
	return ckvm__part_ioctl(&device->part, request, arg);
}

/* The kernel reads the struct alone; what it writes goes where addr says. */
#define ATTRIBUTES(prefix, object, call)                              \
	int prefix##has_device_attr(struct object *object_,           \
				    const struct kvm_device_attr *a)  \
	{                                                             \
		return call(object_, KVM_HAS_DEVICE_ATTR, (void *)a); \
	}                                                             \
	int prefix##get_device_attr(struct object *object_,           \
				    const struct kvm_device_attr *a)  \
	{                                                             \
		return call(object_, KVM_GET_DEVICE_ATTR, (void *)a); \
	}                                                             \
	int prefix##set_device_attr(struct object *object_,           \
				    const struct kvm_device_attr *a)  \
	{                                                             \
		return call(object_, KVM_SET_DEVICE_ATTR, (void *)a); \
	}

ATTRIBUTES(ckvm_, ckvm, ckvm__kvm_ioctl)
ATTRIBUTES(ckvm_vm_, ckvm_vm, ckvm__vm_ioctl)
ATTRIBUTES(ckvm_vcpu_, ckvm_vcpu, ckvm__vcpu_ioctl)
ATTRIBUTES(ckvm_device_, ckvm_device, device_ioctl)

/* SPDX-License-Identifier: MIT */
/* Devices: no descriptor but the kernel's, and one that lives as its VM does.
 */
#include <sys/ioctl.h>

#include "test.h"

/* A kernel with devices of types 4 and 5: the second comes without an fd. */
static struct kvm_device_attr seen;
static unsigned long seen_request;

static int device_kernel(void *opaque, int fd, unsigned long request, void *arg)
{
	struct kvm_create_device *create = arg;

	switch (request) {
	case KVM_CREATE_DEVICE:
		if (create->flags & KVM_CREATE_DEVICE_TEST)
			return 0;
		if (create->type == 4)
			create->fd = (uint32_t)open("/dev/null", O_CLOEXEC);
		return create->type == 4 || create->type == 5 ? 0 : -ENODEV;
	case KVM_HAS_DEVICE_ATTR:
	case KVM_GET_DEVICE_ATTR:
	case KVM_SET_DEVICE_ATTR:
		seen_request = request;
		memcpy(&seen, arg, sizeof(seen));
		return 0;
	default:
		return fake_ioctl(opaque, fd, request, arg);
	}
}

static struct ckvm_vm *device_vm(struct ckvm **kvm)
{
	static const struct ckvm_hook hook = { .before = device_kernel };
	struct ckvm_options options = { .size = sizeof(options),
					.path = "/dev/null",
					.hook = &hook };
	struct ckvm_vm *vm;

	NEED(ckvm_open(&options, kvm));
	NEED(ckvm_create_vm(*kvm, 0, &vm));
	return vm;
}

static void nothing_wraps_a_descriptor_that_the_kernel_did_not_give(void)
{
	struct ckvm_device *device = (void *)1;
	int before = test_count_fds(), stdin_flags = fcntl(0, F_GETFD);
	struct ckvm_vm *vm;
	struct ckvm *kvm;

	vm = device_vm(&kvm);
	CHECK_EQ(ckvm_vm_create_device(vm, 4, KVM_CREATE_DEVICE_TEST, &device),
		 0);
	CHECK_EQ(ckvm_vm_create_device(vm, 4, KVM_CREATE_DEVICE_TEST, NULL), 0);
	CHECK_FAILS(ckvm_vm_create_device(vm, 5, 0, &device), EBADF,
		    "KVM_CREATE_DEVICE");
	CHECK_FAILS(ckvm_vm_create_device(vm, 6, 0, &device), ENODEV,
		    "KVM_CREATE_DEVICE");
	CHECK(device == (void *)1);
	ckvm_vm_close(vm);
	ckvm_close(kvm);
	CHECK_EQ(test_count_fds(), before);
	CHECK_EQ(fcntl(0, F_GETFD), stdin_flags);
}

static void devices_end_with_their_vm(void)
{
	struct kvm_device_attr attr = { .attr = 1 };
	int before = test_count_fds();
	struct ckvm_device *one, *two;
	struct ckvm_vm *vm;
	struct ckvm *kvm;

	vm = device_vm(&kvm);
	NEED(ckvm_vm_create_device(vm, 4, 0, &one));
	NEED(ckvm_vm_create_device(vm, 4, 0, &two));
	CHECK_EQ(ckvm_device_type(one), 4);
	CHECK(fcntl(ckvm_device_fd(one), F_GETFD) == FD_CLOEXEC);
	ckvm_device_ref(one);
	ckvm_device_ref(two);
	ckvm_device_close(one);
	CHECK_FAILS(ckvm_device_has_device_attr(one, &attr), EBADF, "closed");
	CHECK_FAILS(ckvm_device_fd(one), EBADF, "closed");
	CHECK_EQ(ckvm_device_has_device_attr(two, &attr), 0);
	ckvm_device_close(one);
	ckvm_device_unref(one);
	ckvm_vm_close(vm);
	ckvm_close(kvm);
	CHECK_EQ(test_count_fds(), before);
	CHECK_FAILS(ckvm_device_get_device_attr(two, &attr), EBADF, "closed");
	ckvm_device_close(two);
	ckvm_device_unref(two);
	ckvm_device_close(NULL);
	ckvm_device_unref(NULL);
}

static void an_attribute_reaches_the_kernel_as_it_is(void)
{
	uint64_t value;
	struct kvm_device_attr attr = { .flags = 1,
					.group = 2,
					.attr = UINT64_MAX,
					.addr = (uintptr_t)&value };
	struct ckvm_device *device;
	struct ckvm_vcpu *vcpu;
	struct ckvm_vm *vm;
	struct ckvm *kvm;

	vm = device_vm(&kvm);
	NEED(ckvm_vm_create_device(vm, 4, 0, &device));
	NEED(ckvm_vm_create_vcpu(vm, 0, &vcpu));
#define REACHES(call, request)                              \
	do {                                                \
		memset(&seen, 0, sizeof(seen));             \
		CHECK_EQ(call, 0);                          \
		CHECK_EQ(seen_request, request);            \
		CHECK(!memcmp(&seen, &attr, sizeof(seen))); \
	} while (0)
#define ALL(prefix, object)                                                   \
	REACHES(prefix##has_device_attr(object, &attr), KVM_HAS_DEVICE_ATTR); \
	REACHES(prefix##get_device_attr(object, &attr), KVM_GET_DEVICE_ATTR); \
	REACHES(prefix##set_device_attr(object, &attr), KVM_SET_DEVICE_ATTR)
	ALL(ckvm_, kvm);
	ALL(ckvm_vm_, vm);
	ALL(ckvm_vcpu_, vcpu);
	ALL(ckvm_device_, device);
#undef ALL
#undef REACHES
	ckvm_vm_close(vm);
	ckvm_close(kvm);
}

/* The kernel's own, where it has the one that all x86 KVMs have. */
static void the_kernel_answers_for_its_devices(void)
{
	struct kvm_device_attr attr = { .group = KVM_DEV_VFIO_GROUP,
					.attr = KVM_DEV_VFIO_GROUP_ADD };
	struct ckvm_device *device;
	struct guest guest;

	test_needs_kvm();
	guest = GUEST("\xf4");
	CHECK_FAILS(ckvm_vm_create_device(guest.vm, KVM_DEV_TYPE_ARM_VGIC_V3,
					  KVM_CREATE_DEVICE_TEST, NULL),
		    ENODEV, "KVM_CREATE_DEVICE");
	if (!ckvm_vm_create_device(guest.vm, KVM_DEV_TYPE_VFIO, 0, &device)) {
		CHECK_EQ(ckvm_device_has_device_attr(device, &attr), 0);
		CHECK_FAILS(ckvm_device_set_device_attr(device, &attr), EFAULT,
			    "KVM_SET_DEVICE_ATTR");
		CHECK_FAILS(ckvm_device_get_device_attr(device, &attr), EPERM,
			    "KVM_GET_DEVICE_ATTR");
		attr.group = 99;
		CHECK_FAILS(ckvm_device_set_device_attr(device, &attr), ENXIO,
			    "KVM_SET_DEVICE_ATTR");
	}
	guest_close(&guest);
}

int main(int argc, char **argv)
{
	(void)argc;
	test_begin(argv);
	PROMISE(nothing_wraps_a_descriptor_that_the_kernel_did_not_give);
	PROMISE(devices_end_with_their_vm);
	PROMISE(an_attribute_reaches_the_kernel_as_it_is);
	PROMISE(the_kernel_answers_for_its_devices);
	return test_end();
}

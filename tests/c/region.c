/* SPDX-License-Identifier: MIT */
/*
 * Slots of the caller's own memory, and calls about pages that the kernel does
 * in parts.
 */
#include <sys/ioctl.h>

#include "compat.h"
#include "test.h"

static struct kvm_userspace_memory_region region_of(void *data, uint32_t slot,
						    uint64_t gpa)
{
	return (struct kvm_userspace_memory_region){
		.slot = slot,
		.guest_phys_addr = gpa,
		.memory_size = 0x1000,
		.userspace_addr = (uintptr_t)data,
	};
}

static void *map_page(void)
{
	void *page = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	NEED(page == MAP_FAILED);
	return page;
}

static void a_slot_of_the_callers_memory_is_never_unmapped(void)
{
	struct guest guest;
	struct kvm_userspace_memory_region region;
	struct ckvm_memory *memory;
	uint8_t *page, byte;

	test_needs_kvm();
	guest = GUEST("\xf4");
	page = map_page();
	region = region_of(page, 7, 0x10000);
	NEED(ckvm_vm_set_user_memory_region(guest.vm, &region, NULL));
	NEED(ckvm_vm_write(guest.vm, 0x10010, "\x42", 1));
	CHECK_EQ(page[0x10], 0x42);
	memory = ckvm_vm_find_memory(guest.vm, 0x10000, 1);
	CHECK_EQ(ckvm_memory_slot(memory), 7);
	CHECK(ckvm_memory_data(memory) == page);

	region.guest_phys_addr = 0x20000;
	NEED(ckvm_vm_set_user_memory_region(guest.vm, &region, NULL));
	CHECK_EQ(ckvm_memory_gpa(memory), 0x20000);
	CHECK_FAILS(ckvm_vm_read(guest.vm, 0x10000, &byte, 1), EFAULT,
		    "memory");
	region.userspace_addr += 0x1000; /* which the kernel lets nobody */
	CHECK_FAILS(ckvm_vm_set_user_memory_region(guest.vm, &region, NULL),
		    EINVAL, "KVM_SET_USER_MEMORY_REGION");

	CHECK_FAILS(ckvm_vm_zap_memory(guest.vm, 0x20000, 0x1000), EINVAL,
		    "memory");

	ckvm_memory_close(memory);
	CHECK(ckvm_memory_data(memory) == NULL);
	ckvm_memory_unref(memory);
	CHECK_EQ(page[0x10], 0x42);
	region = region_of(page, 7, 0x10000);
	NEED(ckvm_vm_set_user_memory_region(guest.vm, &region, NULL));
	guest_close(&guest);
	CHECK_EQ(page[0x10], 0x42);
	munmap(page, 0x1000);
}

static void a_slot_of_other_memory_keeps_its_mapping(void)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = 9,
		.guest_phys_addr = 0x10000,
		.memory_size = 0x1000,
		.userspace_addr = 0x3000,
	};
	struct guest guest;
	uint8_t byte;

	test_needs_kvm();
	guest = GUEST("\xf4");
	if (ckvm_check_extension(guest.kvm, KVM_CAP_USER_MEMORY2) > 0) {
		NEED(ckvm_vm_set_user_memory_region2(guest.vm, &region,
						     guest.memory));
		NEED(ckvm_vm_write(guest.vm, GUEST_BASE + 0x3000, "\x17", 1));
		ckvm_memory_ref(guest.memory);
		ckvm_memory_close(guest.memory);
		NEED(ckvm_vm_read(guest.vm, 0x10000, &byte, 1));
		CHECK_EQ(byte, 0x17);
		region.slot = 10;
		CHECK_FAILS(ckvm_vm_set_user_memory_region2(guest.vm, &region,
							    guest.memory),
			    EBADF, "closed");
		ckvm_memory_unref(guest.memory);
	}
	guest_close(&guest);
}

static void sources_of_memory_do_not_mix(void)
{
	struct ckvm_memory_config config = { .size = sizeof(config),
					     .gpa = 0x10000,
					     .bytes = 0x1000,
					     .flags = CKVM_MEMORY_SHARED };
	struct ckvm_memory *memory;
	struct guest guest;

	test_needs_kvm();
	guest = GUEST("\xf4");
	config.memory = guest.memory;
	CHECK_FAILS(ckvm_vm_add_memory(guest.vm, &config, &memory), EBUSY,
		    "memory");
	config.flags = 0;
	config.offset = UINT64_MAX - 0xfff;
	CHECK_FAILS(ckvm_vm_add_memory(guest.vm, &config, &memory), ERANGE,
		    "memory");
	config.offset = 0;
	config.bytes = GUEST_SIZE + 0x1000;
	CHECK_FAILS(ckvm_vm_add_memory(guest.vm, &config, &memory), ERANGE,
		    "memory");
	config.bytes = GUEST_SIZE;
	CHECK_EQ(ckvm_vm_add_memory(guest.vm, &config, &memory), 0);
	guest_close(&guest);
}

/* A kernel that does a page at a time, or is told what to say ------------- */

static int answers[8], answered;

static int slow_kernel(void *opaque, int fd, unsigned long request, void *arg)
{
	struct kvm_pre_fault_memory *range = arg;
	int answer;

	if (request != KVM_PRE_FAULT_MEMORY)
		return fake_ioctl(opaque, fd, request, arg);
	answer = answers[answered++];
	if (answer > 0) {
		range->gpa += (uint64_t)answer;
		range->size -= (uint64_t)answer;
	}
	return answer < 0 ? answer : 0;
}

static int pre_fault(struct kvm_pre_fault_memory *range, int first, int second,
		     int third)
{
	static const struct ckvm_hook hook = { .before = slow_kernel };
	struct ckvm_options options = { .size = sizeof(options),
					.path = "/dev/null",
					.hook = &hook };
	struct ckvm_vcpu *vcpu;
	struct ckvm_vm *vm;
	struct ckvm *kvm;
	int error;

	*range = (struct kvm_pre_fault_memory){ .gpa = 0x1000, .size = 0x3000 };
	memcpy(answers, (int[]){ first, second, third, -EIO }, 16);
	answered = 0;
	NEED(ckvm_open(&options, &kvm));
	NEED(ckvm_create_vm(kvm, 0, &vm));
	NEED(ckvm_vm_create_vcpu(vm, 0, &vcpu));
	error = ckvm_vcpu_pre_fault_memory(vcpu, range);
	ckvm_vm_close(vm);
	ckvm_close(kvm);
	return error;
}

static void pre_faulting_goes_on_until_all_is_there(void)
{
	struct kvm_pre_fault_memory range;

	CHECK_EQ(pre_fault(&range, 0x1000, 0x1000, 0x1000), 0);
	CHECK_EQ(range.size, 0);
	CHECK_EQ(pre_fault(&range, -EINTR, 0x2000, 0x1000), 0);
	CHECK_EQ(answered, 3);
	CHECK_EQ(pre_fault(&range, 0x2000, -ENOENT, 0), -ENOENT);
	CHECK_EQ(range.gpa, 0x3000);
	CHECK_EQ(range.size, 0x1000);
	CHECK_FAILS(pre_fault(&range, 0x1000, 0, 0), EIO,
		    "KVM_PRE_FAULT_MEMORY");
	CHECK_EQ(answered, 2);
}

int main(int argc, char **argv)
{
	(void)argc;
	test_begin(argv);
	PROMISE(pre_faulting_goes_on_until_all_is_there);
	PROMISE(a_slot_of_the_callers_memory_is_never_unmapped);
	PROMISE(a_slot_of_other_memory_keeps_its_mapping);
	PROMISE(sources_of_memory_do_not_mix);
	return test_end();
}

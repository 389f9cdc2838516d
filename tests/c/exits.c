/* SPDX-License-Identifier: MIT */
/* What an exit brings, where it is, and what no kernel could have brought. */
#include <stddef.h>

#include "test.h"

#define RUN_SIZE (3u * 4096)

/* The exit that the next KVM_RUN makes up, in the page of a vCPU of a fake VM.
 */
static struct kvm_run *page;
static struct kvm_run made_up;

#define RING_PAGE 2
static struct kvm_coalesced_mmio_ring ring;

static int make_up(void *opaque, int fd, unsigned long request, void *arg)
{
	if (request == KVM_CHECK_EXTENSION)
		return (uintptr_t)arg == KVM_CAP_COALESCED_MMIO ? RING_PAGE : 0;
	if (request == KVM_RUN)
		memcpy((uint8_t *)page + RING_PAGE * 4096, &ring, sizeof(ring));
	if (request != KVM_RUN)
		return fake_ioctl(opaque, fd, request, arg);
	memcpy(page, &made_up, offsetof(struct kvm_run, kvm_valid_regs));
	return 0;
}

static struct ckvm_vcpu *fake_vcpu(struct ckvm_vm **vm)
{
	static const struct ckvm_hook hook = { .before = make_up };
	struct ckvm_options options = { .size = sizeof(options),
					.path = "/dev/null",
					.hook = &hook };
	struct ckvm_vcpu *vcpu;
	struct ckvm *kvm;

	NEED(ckvm_open(&options, &kvm));
	NEED(ckvm_create_vm(kvm, 0, vm));
	NEED(ckvm_vm_create_vcpu(*vm, 0, &vcpu));
	ckvm_close(kvm);
	page = mmap(NULL, RUN_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
		    ckvm_vcpu_fd(vcpu), 0);
	NEED(page == MAP_FAILED);
	return vcpu;
}

static void fake_close(struct ckvm_vm *vm)
{
	munmap(page, RUN_SIZE);
	ckvm_vm_close(vm);
}

static void data_is_where_the_kernel_looks_for_it(void)
{
	/* in $0x10, %ax; mov %ax, (0x8000); hlt */
	struct guest guest = GUEST("\xe5\x10\xa3\x00\x80\xf4");
	uint32_t size = 77, count = 78;
	uint16_t *data;

	CHECK(!ckvm_vcpu_exit_data(guest.vcpu, &size, &count));
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, NULL), CKVM_EXIT);
	data = ckvm_vcpu_exit_data(guest.vcpu, &size, &count);
	CHECK(data && size == 2 && count == 1);
	CHECK_EQ(*data, 0xffff);
	*data = 0x1234;
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, NULL), CKVM_EXIT);
	data = ckvm_vcpu_exit_data(guest.vcpu, &size, &count);
	CHECK(data && size == 2 && count == 1);
	CHECK_EQ(*data, 0x1234);
	size = count = 77;
	CHECK(guest_halts(&guest));
	CHECK(!ckvm_vcpu_exit_data(guest.vcpu, &size, &count));
	CHECK(size == 77 && count == 77);
	guest_close(&guest);
}

static void string_instruction_brings_several_elements(void)
{
	struct ckvm_vm *vm;
	struct ckvm_vcpu *vcpu = fake_vcpu(&vm);
	uint32_t size = 0, count = 0;

	made_up =
		(struct kvm_run){ .exit_reason = KVM_EXIT_IO,
				  .io = { KVM_EXIT_IO_IN, 4, 0x60, 3, 8000 } };
	CHECK_EQ(ckvm_vcpu_run(vcpu, NULL), CKVM_EXIT);
	CHECK_EQ((uint8_t *)ckvm_vcpu_exit_data(vcpu, &size, &count) -
			 (uint8_t *)ckvm_vcpu_exit(vcpu),
		 8000);
	CHECK(size == 4 && count == 3);
	fake_close(vm);
}

static void page_with_data_outside_of_it_is_refused(void)
{
	static const struct {
		uint8_t direction, size;
		uint32_t count;
		uint64_t offset;
	} cases[] = {
		{ 2, 1, 1, 4096 },
		{ 0, 0, 1, 4096 },
		{ 0, 3, 1, 4096 },
		{ 0, 8, 1, 4096 },
		{ 0, 1, 1, RUN_SIZE - 7 },
		{ 0, 1, 1, UINT64_MAX },
		{ 0, 4, UINT32_MAX, 4096 },
		{ 1, 4, 2047, 4096 },
		{ 0, 1, 1, 0 },
		{ 0, 1, 1, sizeof(made_up) - 1 },
	};
	struct ckvm_vm *vm;
	struct ckvm_vcpu *vcpu = fake_vcpu(&vm);

	for (size_t i = 0; i < COUNT(cases); i++) {
		made_up = (struct kvm_run){ .exit_reason = KVM_EXIT_IO };
		made_up.io.direction = cases[i].direction;
		made_up.io.size = cases[i].size;
		made_up.io.port = 0x60;
		made_up.io.count = cases[i].count;
		made_up.io.data_offset = cases[i].offset;
		CHECK_FAILS(ckvm_vcpu_run(vcpu, NULL), EPROTO, "exit");
		CHECK_FAILS(ckvm_vcpu_run_once(vcpu, NULL), EPROTO, "exit");
		CHECK(!ckvm_vcpu_exit(vcpu));
		CHECK_FAILS(ckvm_vcpu_continue(vcpu), ESRCH, "run");
	}
	made_up = (struct kvm_run){ .exit_reason = KVM_EXIT_MMIO };
	made_up.mmio.len = 9;
	CHECK_FAILS(ckvm_vcpu_run(vcpu, NULL), EPROTO, "exit");
	made_up.exit_reason = CKVM_EXIT_IO_IN;
	CHECK_FAILS(ckvm_vcpu_run(vcpu, NULL), EPROTO, "exit");
	fake_close(vm);
}

static void numbers_that_nobody_knows_are_exits_like_any_other(void)
{
	struct ckvm_vm *vm;
	struct ckvm_vcpu *vcpu = fake_vcpu(&vm);

	for (uint32_t number = 44; number < CKVM_EXIT_IO_IN; number *= 2) {
		made_up = (struct kvm_run){ .exit_reason = number };
		CHECK_EQ(ckvm_vcpu_run(vcpu, NULL), CKVM_EXIT);
		CHECK_EQ(ckvm_vcpu_exit_number(vcpu), number);
		CHECK(!ckvm_exit_name(number));
	}
	fake_close(vm);
}

static int queued;

static int on_write(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
		    const void *data, size_t length)
{
	queued++;
	return 0;
}

/* The zeros of such a ring are no writes: they have no length. */
static void ring_with_indices_out_of_range_comes_to_an_end(void)
{
	static const struct ckvm_ops ops = { .size = sizeof(ops),
					     .write = on_write };
	static const uint32_t indices[] = {
		0, 1, 169, 170, 171, 0x10000, 0x7fffffff, UINT32_MAX
	};
	struct ckvm_range_config config = { .size = sizeof(config),
					    .space = CKVM_MMIO,
					    .batch = 1,
					    .count = 8,
					    .write = CKVM_ANSWER_OPS,
					    .ops = &ops };
	struct ckvm_vm *vm;
	struct ckvm_vcpu *vcpu = fake_vcpu(&vm);

	NEED(ckvm_vm_attach(vm, &config, NULL));
	made_up = (struct kvm_run){ .exit_reason = KVM_EXIT_HLT };
	for (size_t i = 0; i < COUNT(indices) * COUNT(indices); i++) {
		ring.first = indices[i % COUNT(indices)];
		ring.last = indices[i / COUNT(indices)];
		CHECK_EQ(ckvm_vcpu_run(vcpu, NULL), CKVM_EXIT);
		CHECK_EQ(ckvm_vcpu_exit_number(vcpu), KVM_EXIT_HLT);
	}
	CHECK_EQ(queued, 0);
	ring.first = ring.last = 0;
	fake_close(vm);
}

static void page_is_hidden_while_another_thread_has_the_vcpu(void)
{
	uint32_t size = 77, count = 77;
	struct ckvm_vm *vm;
	struct ckvm_vcpu *vcpu = fake_vcpu(&vm);

	made_up = (struct kvm_run){ .exit_reason = KVM_EXIT_MMIO };
	made_up.mmio.len = 4;
	CHECK_EQ(ckvm_vcpu_run(vcpu, NULL), CKVM_EXIT);
	NEED(ckvm_vcpu_claim(vcpu, gettid() + 1));
	CHECK(!ckvm_vcpu_exit(vcpu));
	CHECK(!ckvm_vcpu_exit_data(vcpu, &size, &count));
	ckvm_vcpu_unclaim(vcpu);
	NEED(ckvm_vcpu_claim(vcpu, gettid()));
	CHECK(ckvm_vcpu_exit(vcpu));
	CHECK(ckvm_vcpu_exit_data(vcpu, &size, &count));
	CHECK(size == 4 && count == 1);
	ckvm_vcpu_unclaim(vcpu);
	fake_close(vm);
}

int main(int argc, char **argv)
{
	test_begin(argv);
	PROMISE(string_instruction_brings_several_elements);
	PROMISE(page_with_data_outside_of_it_is_refused);
	PROMISE(numbers_that_nobody_knows_are_exits_like_any_other);
	PROMISE(ring_with_indices_out_of_range_comes_to_an_end);
	PROMISE(page_is_hidden_while_another_thread_has_the_vcpu);
	test_needs_kvm();
	PROMISE(data_is_where_the_kernel_looks_for_it);
	return test_end();
}

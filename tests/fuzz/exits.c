/* SPDX-License-Identifier: MIT */
/*
 * Exits and queued writes made up byte by byte: whatever a page says, nobody is
 * given data outside of it, and the run ends.
 */
#include "internal.h"
#include "fuzz.h"

#define RUN_SIZE (3u * 4096)
#define RING_PAGE 2
#define STEPS 64

static struct input input;
static struct ckvm_vcpu *vcpu;
static uint8_t *page; /* as the kernel would see it */
static bool sync_regs;

/* The kernel -------------------------------------------------------------- */

static void make_up_io(struct kvm_run *run)
{
	run->io.direction = (uint8_t)take(&input, 1);
	run->io.size = (uint8_t)take(&input, 1);
	run->io.port = (uint16_t)take(&input, 1);
	run->io.count = (uint32_t)take(&input, 1);
	run->io.data_offset = 4096 + take(&input, 2);
}

static void make_up_mmio(struct kvm_run *run)
{
	run->mmio.phys_addr = 0xd0000000 + take(&input, 1);
	run->mmio.len = (uint32_t)take(&input, 1);
	run->mmio.is_write = (uint8_t)take(&input, 1);
}

static void make_up_writes(void)
{
	struct kvm_coalesced_mmio_ring *ring =
		(void *)(page + RING_PAGE * 4096);
	struct kvm_coalesced_mmio *write;

	ring->first = (uint32_t)take(&input, 1);
	ring->last = ring->first + (uint32_t)take(&input, 1) % 4;
	for (uint32_t i = ring->first; i != ring->last; i++) {
		write = &ring->coalesced_mmio[i];
		write->phys_addr = take(&input, 1);
		write->pio = (uint32_t)take(&input, 1) & 1;
		write->len = (uint32_t)take(&input, 1);
		if (!write->pio)
			write->phys_addr += 0xd0000000;
	}
	if (take(&input, 1) == 1) /* never comes to `last` by itself */
		ring->first = (uint32_t)take(&input, 4);
}

static int make_up_exit(void)
{
	static const int results[] = { 0,	-EINTR,	 -EFAULT,
				       -EINVAL, -EAGAIN, -EHWPOISON };
	struct kvm_run *run = (struct kvm_run *)page;
	uint8_t what = (uint8_t)take(&input, 1);

	if (!input.left) {
		run->exit_reason = KVM_EXIT_HLT;
		return 0;
	}
	if (what & 64)
		make_up_writes();
	if (what & 128) {
		run->exit_reason = (uint32_t)take(&input, 4);
		for (size_t i = 0; i < 32; i++)
			run->padding[i] = (char)take(&input, 1);
	} else if (what % 3 == 0) {
		run->exit_reason = KVM_EXIT_IO;
		make_up_io(run);
	} else if (what % 3 == 1) {
		run->exit_reason = KVM_EXIT_MMIO;
		make_up_mmio(run);
	} else {
		run->exit_reason = (uint32_t)take(&input, 1);
	}
	return results[what % 64 > 40 ? what % COUNT(results) : 0];
}

static int answer(void *opaque, int fd, unsigned long request, void *arg)
{
	switch (request) {
	case KVM_RUN:
		return make_up_exit();
	case KVM_CHECK_EXTENSION:
		if ((uintptr_t)arg == KVM_CAP_COALESCED_MMIO)
			return RING_PAGE;
		if ((uintptr_t)arg == KVM_CAP_SYNC_REGS)
			return sync_regs ? 7 : 0;
		return 1;
	default:
		return fake_ioctl(opaque, fd, request, arg);
	}
}

/* Whoever answers --------------------------------------------------------- */

/* In the page; a queued write is a copy, and ASan's to watch. */
static void check_data(const void *data, size_t length, bool is_copy)
{
	const uint8_t *run = (const uint8_t *)vcpu->run, *at = data;

	MUST(length >= 1 && length <= 8);
	MUST(is_copy || (at >= run && at + 8 <= run + RUN_SIZE));
}

static int on_read(void *opaque, struct ckvm_vcpu *from, uint64_t address,
		   void *data, size_t length)
{
	MUST(from == vcpu);
	check_data(data, length, false);
	for (size_t i = 0; i < length; i++)
		MUST(((uint8_t *)data)[i] == 0xff);
	memset(data, 0x5a, length);
	return (int)take(&input, 1) % 8 == 1;
}

static int on_write(void *opaque, struct ckvm_vcpu *from, uint64_t address,
		    const void *data, size_t length)
{
	const uint8_t *run = (const uint8_t *)vcpu->run, *at = data;
	uint8_t copy[8];

	check_data(data, length, at < run || at >= run + RUN_SIZE);
	memcpy(copy, data, length);
	return take(&input, 1) % 8 == 1 ? -EIO : 0;
}

static void attach(struct ckvm_vm *vm, enum ckvm_space space, uint64_t base)
{
	static const struct ckvm_ops ops = { sizeof(ops), on_read, on_write };
	struct ckvm_range_config config = { .size = sizeof(config),
					    .space = space,
					    .first = base,
					    .count = 0x20,
					    .read = CKVM_ANSWER_OPS,
					    .write = CKVM_ANSWER_OPS,
					    .ops = &ops };

	NEED(ckvm_vm_attach(vm, &config, NULL));
	config.first += 0x20;
	config.read = config.write = CKVM_ANSWER_CALLER;
	NEED(ckvm_vm_attach(vm, &config, NULL));
	config.first += 0x20;
	config.read = CKVM_ANSWER_VALUE;
	config.write = CKVM_ANSWER_LOG;
	config.value = 0x1122334455667788;
	NEED(ckvm_buffer_create(40, &config.log));
	NEED(ckvm_vm_attach(vm, &config, NULL));
	ckvm_buffer_unref(config.log);
	config.first += 0x20;
	config.read = CKVM_ANSWER_NONE;
	config.write = CKVM_ANSWER_OPS;
	config.batch = 1;
	NEED(ckvm_vm_attach(vm, &config, NULL));
}

static void check_exit(void)
{
	uint32_t number = ckvm_vcpu_exit_number(vcpu), size = 0, count = 0;
	uint8_t *data = ckvm_vcpu_exit_data(vcpu, &size, &count);

	MUST(ckvm_vcpu_exit(vcpu) == vcpu->run);
	MUST(number <= CKVM_EXIT_MMIO_WRITE);
	if (!data)
		return;
	MUST(size >= 1 && size <= 8);
	MUST(data >= (uint8_t *)vcpu->run);
	MUST((uint64_t)size * count <=
	     (uint64_t)((uint8_t *)vcpu->run + RUN_SIZE - data));
	memset(data, 0xa5, (size_t)size * count);
}

static void check_access(void)
{
	const struct ckvm_access *access = ckvm_vcpu_access(vcpu);

	MUST(access && (access->length <= 8));
	MUST(access->batched || access->length);
	MUST(!access->range ||
	     access->offset < ckvm_range_count(access->range));
	ckvm_vcpu_answer(vcpu, take(&input, 8));
}

/* Registers that wait, an abandoned run, one KVM_RUN: whatever comes. */
static int go_on(int end)
{
	struct kvm_regs regs = { .rax = 1 };

	switch (take(&input, 1) % 8) {
	case 0:
		ckvm_vcpu_set_regs(vcpu, &regs);
		break;
	case 1:
		return ckvm_vcpu_run(vcpu, NULL);
	case 2:
		return ckvm_vcpu_finish(vcpu);
	case 3:
		end = ckvm_vcpu_run_once(vcpu, NULL);
		if (!end)
			check_exit();
		return CKVM_STOPPED;
	}
	return end == CKVM_ACCESS || end == CKVM_EXIT
		       ? ckvm_vcpu_continue(vcpu)
		       : ckvm_vcpu_run(vcpu, NULL);
}

static void open_guest(struct ckvm_vm **vm)
{
	static const struct ckvm_hook hook = { .before = answer };
	struct ckvm_options options = { .size = sizeof(options),
					.path = "/dev/null",
					.hook = &hook };
	struct ckvm *kvm;

	NEED(ckvm_open(&options, &kvm));
	NEED(ckvm_create_vm(kvm, 0, vm));
	ckvm_close(kvm);
	attach(*vm, CKVM_IO, 0);
	attach(*vm, CKVM_MMIO, 0xd0000000);
	ckvm_vm_catch(*vm, CKVM_EXIT_IO_OUT, take(&input, 1) & 1);
	NEED(ckvm_vm_create_vcpu(*vm, 0, &vcpu));
	page = mmap(NULL, RUN_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
		    ckvm_vcpu_fd(vcpu), 0);
	MUST(page != MAP_FAILED);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ckvm_vm *vm;
	int end;

	input = (struct input){ data, size };
	sync_regs = take(&input, 1) & 1;
	open_guest(&vm);
	end = ckvm_vcpu_run(vcpu, NULL);
	for (int step = 0; step < STEPS && input.left; step++) {
		if (end == CKVM_ACCESS)
			check_access();
		else if (end == CKVM_EXIT)
			check_exit();
		end = go_on(end);
	}
	munmap(page, RUN_SIZE);
	ckvm_vm_close(vm);
	return 0;
}

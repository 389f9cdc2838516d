/* SPDX-License-Identifier: MIT */
/*
 * The hook makes each ioctl fail in turn: the call that needed it says so, and
 * nothing is left behind.
 */
#include "test.h"

#define OUT_10 "\xe6\x10" /* out %al, $0x10 */
#define IN_10 "\xe4\x10"  /* in $0x10, %al */
#define HLT "\xf4"

/* Fails the call number `fail_at` (from 1) of those that match `only`. */
static unsigned long only, failed_request;
static int fail_at, fail_with, calls, afters;

static int before(void *opaque, int fd, unsigned long request, void *arg)
{
	if (only && request != only)
		return CKVM_HOOK_CALL;
	if (++calls != fail_at)
		return CKVM_HOOK_CALL;
	/* A real one comes after the open access is done with: see kick.c. */
	if (!only && request == KVM_RUN && fail_with == -EINTR)
		return CKVM_HOOK_CALL;
	failed_request = request;
	return fail_with;
}

static void after(void *opaque, int fd, unsigned long request, void *arg,
		  int result)
{
	afters++;
}

static const struct ckvm_hook hook = { before, after, NULL };
static struct ckvm_options options = { .size = sizeof(options), .hook = &hook };

static void fail(unsigned long request, int at, int result)
{
	only = request;
	fail_at = at;
	fail_with = result;
	calls = afters = 0;
	failed_request = 0;
}

/* Everything once: each step's error, or 0 at the end -----------------------
 */

static int writes;

static int device_read(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
		       void *data, size_t length)
{
	uint64_t rbx = 0x77;
	const void *view;
	int error = ckvm_vcpu_view(vcpu, CKVM_VIEW_REGS, &view);

	if (!error)
		error = ckvm_vcpu_write_view(vcpu, CKVM_VIEW_REGS,
					     offsetof(struct kvm_regs, rbx),
					     &rbx, 8);
	memset(data, 0x42, length);
	return error;
}

static int device_write(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
			const void *data, size_t length)
{
	writes++;
	return 0;
}

static int make_guest(struct guest *guest)
{
	static const struct ckvm_ops ops = { sizeof(ops), device_read,
					     device_write };
	static const char code[] = OUT_10 IN_10 "\xe6\x20" HLT;
	struct ckvm_memory_config config = { .size = sizeof(config),
					     .gpa = GUEST_BASE,
					     .bytes = GUEST_SIZE,
					     .flags = CKVM_MEMORY_LOG_DIRTY };
	struct ckvm_range_config batch = { .size = sizeof(batch),
					   .space = CKVM_IO,
					   .batch = 1,
					   .first = 0x20,
					   .count = 1,
					   .write = CKVM_ANSWER_OPS,
					   .ops = &ops };
	int error = ckvm_open(&options, &guest->kvm);

	if (!error)
		error = ckvm_create_vm(guest->kvm, 0, &guest->vm);
	if (!error)
		error = ckvm_vm_add_memory(guest->vm, &config, &guest->memory);
	if (!error)
		error = ckvm_vm_write(guest->vm, GUEST_BASE, code,
				      sizeof(code));
	if (!error)
		error = ckvm_vm_attach_io(guest->vm, 0x10, 1, &ops, NULL, NULL);
	if (!error && ckvm_check_extension(guest->kvm, KVM_CAP_COALESCED_PIO))
		error = ckvm_vm_attach(guest->vm, &batch, NULL);
	if (error == -ENOTSUP)
		error = 0;
	if (!error)
		error = ckvm_vm_create_vcpu(guest->vm, 0, &guest->vcpu);
	return error;
}

static int start_guest(struct guest *guest)
{
	struct kvm_regs regs = { .rip = GUEST_BASE, .rflags = 2 };
	struct kvm_vcpu_events events;
	struct kvm_sregs sregs;
	int error = ckvm_vcpu_get_sregs(guest->vcpu, &sregs);

	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	if (!error)
		error = ckvm_vcpu_set_sregs(guest->vcpu, &sregs);
	if (!error)
		error = ckvm_vcpu_get_vcpu_events(guest->vcpu, &events);
	if (!error)
		error = ckvm_vcpu_set_vcpu_events(guest->vcpu, &events);
	return error ? error : ckvm_vcpu_set_regs(guest->vcpu, &regs);
}

/* The run may find nobody at a port whose range could not be attached. */
static int run_guest(struct guest *guest)
{
	struct kvm_regs regs = { .rbx = 0 };
	uint64_t bitmap[1];
	int64_t dirty;
	int end = ckvm_vcpu_run(guest->vcpu, NULL);

	if (end == CKVM_EXIT &&
	    ckvm_vcpu_exit_number(guest->vcpu) == CKVM_EXIT_IO_OUT)
		end = ckvm_vcpu_continue(guest->vcpu);
	if (end < 0)
		return end;
	CHECK_EQ(end, CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_exit_number(guest->vcpu), KVM_EXIT_HLT);
	end = ckvm_vcpu_get_regs(guest->vcpu, &regs);
	if (end)
		return end;
	CHECK_EQ(regs.rax, 0x42);
	CHECK_EQ(regs.rbx, 0x77);
	dirty = ckvm_memory_dirty(guest->memory, bitmap, 1);
	if (dirty < 0)
		return (int)dirty;
	end = ckvm_memory_move(guest->memory, 0x100000);
	return end;
}

static int do_everything(void)
{
	struct guest guest = { NULL, NULL, NULL, NULL };
	int error;

	writes = 0;
	error = make_guest(&guest);
	if (!error)
		error = start_guest(&guest);
	if (!error)
		error = run_guest(&guest);
	ckvm_memory_close(guest.memory);
	ckvm_vcpu_close(guest.vcpu);
	ckvm_vm_close(guest.vm);
	ckvm_close(guest.kvm);
	return error;
}

static int count_calls(void)
{
	fail(0, 0, 0);
	CHECK_EQ(do_everything(), 0);
	CHECK_EQ(afters, calls);
	return calls;
}

/*
 * A callback may have passed it on; and if registers are in the run page,
 * EINVAL is about them.
 */
static void check_blame(const char *name)
{
	const char *blamed = ckvm_errop();

	if (failed_request == KVM_GET_REGS && !strcmp(blamed, "range"))
		return;
	if (failed_request == KVM_RUN && fail_with == -EINVAL &&
	    !strcmp(blamed, "KVM_SET_REGS"))
		return;
	CHECK_STRING(blamed, name);
}

/* Some failures are borne: a missing feature, or KVM_RUN that is woken. */
static void fail_each_call_with(int error)
{
	int total = count_calls(), fds = test_count_fds();

	for (int at = 1; at <= total; at++) {
		int got, before_this = test_failures;
		const char *name;

		fail(0, at, -error);
		got = do_everything();
		name = ckvm_ioctl_name(failed_request);
		if (got) {
			CHECK_EQ(got, -error);
			check_blame(name ? name : "?");
		} else {
			CHECK(writes >= 1);
		}
		CHECK_EQ(afters, calls);
		CHECK_EQ(test_count_fds(), fds);
		if (test_failures != before_this)
			fprintf(stderr, "(call %d, %s, failed with %s)\n", at,
				name, ckvm_errno_name(error));
	}
}

static void each_call_may_fail_with_enomem(void)
{
	fail_each_call_with(ENOMEM);
}

static void each_call_may_fail_with_eintr(void)
{
	fail_each_call_with(EINTR);
}

static void each_call_may_fail_with_einval(void)
{
	fail_each_call_with(EINVAL);
}

static void each_call_may_fail_without_sync_regs(void)
{
	options.flags = CKVM_NO_SYNC_REGS;
	fail_each_call_with(ENOMEM);
	fail_each_call_with(EINTR);
	options.flags = 0;
}

/* In particular -------------------------------------------------------------
 */

static void create_vm_is_tried_again_after_eintr(void)
{
	struct ckvm_vm *vm;
	struct ckvm *kvm;

	fail(KVM_CREATE_VM, 1, -EINTR);
	NEED(ckvm_open(&options, &kvm));
	CHECK_EQ(ckvm_create_vm(kvm, 0, &vm), 0);
	CHECK_EQ(calls, 2);
	ckvm_vm_close(vm);
	ckvm_close(kvm);
}

static void run_that_is_woken_for_nothing_goes_on(void)
{
	struct guest guest;

	fail(KVM_RUN, 1, -EINTR);
	guest = guest_open(&options, HLT, 1);
	CHECK(guest_halts(&guest));
	CHECK_EQ(calls, 2);
	guest_close(&guest);
}

static void run_that_fails_can_be_run_again(void)
{
	struct guest guest;

	fail(KVM_RUN, 1, -ENOMEM);
	guest = guest_open(&options, HLT, 1);
	CHECK_FAILS(ckvm_vcpu_run(guest.vcpu, NULL), ENOMEM, "KVM_RUN");
	CHECK(!ckvm_vcpu_exit(guest.vcpu));
	CHECK_FAILS(ckvm_vcpu_continue(guest.vcpu), ESRCH, "run");
	CHECK(guest_halts(&guest));
	guest_close(&guest);
}

/* The kernel may go on using it, and does, if it was not told. */
static void memory_that_the_kernel_keeps_stays_mapped(void)
{
	struct ckvm_memory_config config = { .size = sizeof(config),
					     .gpa = 0x10000,
					     .bytes = 0x1000 };
	struct ckvm_memory *memory;
	struct guest guest;
	void *data;

	fail(0, 0, 0);
	guest = guest_open(&options, HLT, 1);
	NEED(ckvm_vm_add_memory(guest.vm, &config, &memory));
	data = ckvm_memory_data(memory);
	fail(KVM_SET_USER_MEMORY_REGION, 1, -ENOMEM);
	ckvm_memory_close(memory);
	CHECK_EQ(calls, 1);
	CHECK_EQ(msync(data, 0x1000, MS_ASYNC), 0);
	/* Another one takes another slot. */
	config.gpa = 0x20000;
	CHECK_EQ(ckvm_vm_add_memory(guest.vm, &config, &memory), 0);
	CHECK(guest_halts(&guest));
	guest_close(&guest);
	CHECK(msync(data, 0x1000, MS_ASYNC) < 0);
}

static void move_that_fails_leaves_the_memory_where_it_was(void)
{
	struct guest guest;

	fail(0, 0, 0);
	guest = guest_open(&options, HLT, 1);
	fail(KVM_SET_USER_MEMORY_REGION, 1, -ENOMEM);
	CHECK_FAILS(ckvm_memory_move(guest.memory, 0x100000), ENOMEM,
		    "KVM_SET_USER_MEMORY_REGION");
	CHECK_EQ(ckvm_memory_gpa(guest.memory), GUEST_BASE);
	CHECK(guest_halts(&guest));
	guest_close(&guest);
}

/* 4.10: EFAULT with this reason is an exit; with an old reason it is not. */
static struct kvm_run *page;
static int faults;

static int fault(void *opaque, int fd, unsigned long request, void *arg)
{
	if (request != KVM_RUN || faults > 1)
		return CKVM_HOOK_CALL;
	if (!faults++)
		page->exit_reason = 39 /* KVM_EXIT_MEMORY_FAULT */;
	return -EFAULT;
}

static void memory_fault_is_an_exit_and_not_a_failure(void)
{
	struct ckvm_hook faulty = { .before = fault };
	struct ckvm_options with_faults = options;
	struct guest guest;

	faults = 0;
	with_faults.hook = &faulty;
	guest = guest_open(&with_faults, HLT, 1);
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED,
		    ckvm_vcpu_fd(guest.vcpu), 0);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, NULL), CKVM_EXIT);
	CHECK_STRING(ckvm_exit_name(ckvm_vcpu_exit_number(guest.vcpu)),
		     "memory_fault");
	CHECK_FAILS(ckvm_vcpu_run(guest.vcpu, NULL), EFAULT, "KVM_RUN");
	CHECK(guest_halts(&guest));
	munmap(page, 4096);
	guest_close(&guest);
}

/* Answers the kernel's question about one capability with no. */
static int deny(void *opaque, int fd, unsigned long request, void *arg)
{
	bool asked = request == KVM_CHECK_EXTENSION &&
		     (uintptr_t)arg == *(const uintptr_t *)opaque;

	return asked ? 0 : CKVM_HOOK_CALL;
}

static void runs_on_a_kvm_without(uintptr_t cap)
{
	struct ckvm_hook denying = { .before = deny, .opaque = &cap };
	struct ckvm_options without = options;
	struct ckvm_range_config config = { .size = sizeof(config),
					    .space = CKVM_MMIO,
					    .batch = 1,
					    .first = 0x8000,
					    .count = 1,
					    .write = CKVM_ANSWER_CALLER };
	struct guest guest;
	uint64_t rbx = 7;

	without.hook = &denying;
	guest = guest_open(&without, HLT, 1);
	if (cap == KVM_CAP_COALESCED_MMIO)
		CHECK_FAILS(ckvm_vm_attach(guest.vm, &config, NULL), ENOTSUP,
			    "batch");
	config.space = CKVM_IO;
	config.first = 0x10;
	if (cap != KVM_CAP_SYNC_REGS)
		CHECK_FAILS(ckvm_vm_attach(guest.vm, &config, NULL), ENOTSUP,
			    "batch");
	CHECK_EQ(ckvm_vcpu_write_view(guest.vcpu, CKVM_VIEW_REGS,
				      offsetof(struct kvm_regs, rbx), &rbx, 8),
		 0);
	CHECK(guest_halts(&guest));
	CHECK_EQ(guest_rax(&guest), 0);
	guest_close(&guest);
}

static void kvm_may_lack_sync_regs(void)
{
	runs_on_a_kvm_without(KVM_CAP_SYNC_REGS);
}

static void kvm_may_lack_the_queue(void)
{
	runs_on_a_kvm_without(KVM_CAP_COALESCED_MMIO);
	runs_on_a_kvm_without(162 /* KVM_CAP_COALESCED_PIO */);
}

int main(int argc, char **argv)
{
	test_begin(argv);
	test_needs_kvm();
	PROMISE(each_call_may_fail_with_enomem);
	PROMISE(each_call_may_fail_with_eintr);
	PROMISE(each_call_may_fail_with_einval);
	PROMISE(each_call_may_fail_without_sync_regs);
	PROMISE(create_vm_is_tried_again_after_eintr);
	PROMISE(run_that_is_woken_for_nothing_goes_on);
	PROMISE(run_that_fails_can_be_run_again);
	PROMISE(memory_that_the_kernel_keeps_stays_mapped);
	PROMISE(move_that_fails_leaves_the_memory_where_it_was);
	PROMISE(memory_fault_is_an_exit_and_not_a_failure);
	PROMISE(kvm_may_lack_sync_regs);
	PROMISE(kvm_may_lack_the_queue);
	return test_end();
}

/* SPDX-License-Identifier: MIT */
/* Closing, in every order, from everywhere; held references; fork. */
#include <sys/ioctl.h>
#include <sys/wait.h>

#include "test.h"

#define OUT_10 "\xe6\x10" /* out %al, $0x10 */
#define HLT "\xf4"
#define LOOP "\xeb\xfc" /* to the OUT before it */

static struct guest guest;
static struct ckvm_range *range;
static void (*in_callback)(void);
static atomic_int writes;

static int device_write(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
			const void *data, size_t length)
{
	atomic_fetch_add(&writes, 1);
	if (in_callback)
		in_callback();
	return 0;
}

static const struct ckvm_ops ops = { .size = sizeof(ops),
				     .write = device_write };

static void open_guest(const char *code, size_t size)
{
	in_callback = NULL;
	writes = 0;
	guest = guest_open(NULL, code, size);
	NEED(ckvm_vm_attach_io(guest.vm, 0x10, 1, &ops, NULL, &range));
}

#define WITH_PORT(code) open_guest(code, sizeof(code) - 1)

static int run(void)
{
	return ckvm_vcpu_run(guest.vcpu, NULL);
}

/* Orders ------------------------------------------------------------------ */

/* The objects by number; their children end with the VM. */
enum object { KVM, VM, VCPU, MEMORY, RANGE, OBJECTS };

static void close_object(enum object object, const bool *closed, bool held)
{
	/* Without a reference the pointer is dead when the VM is closed. */
	if (object > VM && closed[VM] && !held)
		return;
	switch (object) {
	case KVM:
		ckvm_close(guest.kvm);
		break;
	case VM:
		ckvm_vm_close(guest.vm);
		break;
	case VCPU:
		ckvm_vcpu_close(guest.vcpu);
		break;
	case MEMORY:
		ckvm_memory_close(guest.memory);
		break;
	default:
		ckvm_range_detach(range);
	}
}

/* With references every call fails, and so it does when the VM is gone. */
static void check_bad(void)
{
	struct ckvm_memory_config config = { .size = sizeof(config),
					     .gpa = 0x100000,
					     .bytes = 0x1000 };
	struct ckvm_memory *memory;
	struct ckvm_vcpu *vcpu;
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	const void *view;
	uint8_t byte = 0;

	CHECK_FAILS(ckvm_vm_check_extension(guest.vm, 0), EBADF, "closed");
	CHECK_FAILS(ckvm_vm_fd(guest.vm), EBADF, "closed");
	CHECK_FAILS(ckvm_vcpu_fd(guest.vcpu), EBADF, "closed");
	CHECK_FAILS(ckvm_vm_create_vcpu(guest.vm, 1, &vcpu), EBADF, "closed");
	CHECK_FAILS(ckvm_vm_add_memory(guest.vm, &config, &memory), EBADF,
		    "closed");
	CHECK_FAILS(ckvm_vm_read(guest.vm, GUEST_BASE, &byte, 1), EBADF,
		    "closed");
	CHECK_FAILS(ckvm_vm_attach_io(guest.vm, 0x20, 1, &ops, NULL, NULL),
		    EBADF, "closed");
	CHECK_FAILS(ckvm_memory_move(guest.memory, 0x100000), EBADF, "closed");
	CHECK_FAILS(ckvm_memory_dirty(guest.memory, NULL, 0), EBADF, "closed");
	CHECK_FAILS(ckvm_vcpu_run(guest.vcpu, NULL), EBADF, "closed");
	CHECK_FAILS(ckvm_vcpu_run_once(guest.vcpu, NULL), EBADF, "closed");
	CHECK_FAILS(ckvm_vcpu_continue(guest.vcpu), EBADF, "closed");
	CHECK_FAILS(ckvm_vcpu_finish(guest.vcpu), EBADF, "closed");
	CHECK_FAILS(ckvm_vcpu_stop(guest.vcpu), EBADF, "closed");
	CHECK_FAILS(ckvm_vcpu_get_regs(guest.vcpu, &regs), EBADF, "closed");
	CHECK_FAILS(ckvm_vcpu_set_regs(guest.vcpu, &regs), EBADF, "closed");
	CHECK_FAILS(ckvm_vcpu_get_sregs(guest.vcpu, &sregs), EBADF, "closed");
	CHECK_FAILS(ckvm_vcpu_view(guest.vcpu, CKVM_VIEW_REGS, &view), EBADF,
		    "closed");
	CHECK_FAILS(
		ckvm_vcpu_write_view(guest.vcpu, CKVM_VIEW_REGS, 0, &byte, 1),
		EBADF, "closed");
	ckvm_vcpu_kick(guest.vcpu);
	CHECK(!ckvm_vm_find_vcpu(guest.vm, 0));
	CHECK(!ckvm_vm_find_range(guest.vm, CKVM_IO, 0x10, 1));
	CHECK_EQ(ckvm_vcpu_id(guest.vcpu), 0);
	CHECK_EQ(ckvm_range_first(range), 0x10);
	CHECK_EQ(ckvm_memory_gpa(guest.memory), GUEST_BASE);
}

static void unref_object(enum object object)
{
	switch (object) {
	case VM:
		ckvm_vm_unref(guest.vm);
		break;
	case VCPU:
		ckvm_vcpu_unref(guest.vcpu);
		break;
	case MEMORY:
		ckvm_memory_unref(guest.memory);
		break;
	case RANGE:
		ckvm_range_unref(range);
		break;
	default:
		break;
	}
}

static void close_in_order(const enum object *order, bool held)
{
	bool closed[OBJECTS] = { false };

	WITH_PORT(OUT_10 HLT);
	CHECK(guest_halts(&guest));
	if (held) {
		ckvm_vm_ref(guest.vm);
		ckvm_vcpu_ref(guest.vcpu);
		ckvm_memory_ref(guest.memory);
		ckvm_range_ref(range);
	}
	for (int i = 0; i < OBJECTS; i++) {
		close_object(order[i], closed, held);
		closed[order[i]] = true;
		if (held && order[i] != KVM)
			close_object(order[i], closed, held); /* twice */
	}
	if (!held)
		return;
	check_bad();
	for (int i = 0; i < OBJECTS; i++)
		unref_object(order[i]);
}

/* All 120 orders, by swapping. */
static void permute(enum object *order, int from, bool held)
{
	if (from == OBJECTS)
		close_in_order(order, held);
	for (int i = from; i < OBJECTS; i++) {
		enum object first = order[from];

		order[from] = order[i];
		order[i] = first;
		permute(order, from + 1, held);
		order[i] = order[from];
		order[from] = first;
	}
}

static void objects_close_in_any_order(void)
{
	enum object order[] = { KVM, VM, VCPU, MEMORY, RANGE };
	int fds = test_count_fds();

	permute(order, 0, false);
	CHECK_EQ(test_count_fds(), fds);
}

static void held_references_fail_and_can_be_given_up_in_any_order(void)
{
	enum object order[] = { KVM, VM, VCPU, MEMORY, RANGE };
	int fds = test_count_fds();

	permute(order, 0, true);
	CHECK_EQ(test_count_fds(), fds);
}

static void closing_nothing_does_nothing(void)
{
	ckvm_close(NULL);
	ckvm_vm_close(NULL);
	ckvm_vm_unref(NULL);
	ckvm_vcpu_close(NULL);
	ckvm_vcpu_unref(NULL);
	ckvm_memory_close(NULL);
	ckvm_memory_unref(NULL);
	ckvm_range_detach(NULL);
	ckvm_range_unref(NULL);
	ckvm_buffer_unref(NULL);
}

static void objects_tell_their_descriptors_and_parents(void)
{
	struct kvm_regs regs;

	WITH_PORT(HLT);
	CHECK_EQ(ioctl(ckvm_fd(guest.kvm), KVM_GET_API_VERSION, 0), 12);
	CHECK_EQ(ioctl(ckvm_vcpu_fd(guest.vcpu), KVM_GET_REGS, &regs), 0);
	CHECK_EQ(regs.rip, GUEST_BASE);
	CHECK_EQ(ioctl(ckvm_vm_fd(guest.vm), KVM_CHECK_EXTENSION,
		       KVM_CAP_USER_MEMORY),
		 ckvm_vm_check_extension(guest.vm, KVM_CAP_USER_MEMORY));
	CHECK(ckvm_vcpu_vm(guest.vcpu) == guest.vm);
	CHECK(ckvm_vm_kvm(guest.vm) == guest.kvm);
	guest_close(&guest);
}

static void a_second_reference_keeps_the_system_open(void)
{
	struct ckvm *kvm;

	NEED(ckvm_open(NULL, &kvm));
	CHECK(ckvm_ref(kvm) == kvm);
	ckvm_close(kvm);
	CHECK_EQ(ckvm_get_api_version(kvm), 12);
	ckvm_close(kvm);
}

static void vcpu_id_cannot_be_created_again(void)
{
	struct ckvm_vcpu *vcpu;

	WITH_PORT(HLT);
	CHECK_FAILS(ckvm_vm_create_vcpu(guest.vm, 0, &vcpu), EEXIST,
		    "KVM_CREATE_VCPU");
	ckvm_vcpu_close(guest.vcpu);
	CHECK_FAILS(ckvm_vm_create_vcpu(guest.vm, 0, &vcpu), EEXIST,
		    "KVM_CREATE_VCPU");
	CHECK(!ckvm_vm_find_vcpu(guest.vm, 0));
	CHECK_EQ(ckvm_vm_create_vcpu(guest.vm, 3, &vcpu), 0);
	guest.vcpu = ckvm_vm_find_vcpu(guest.vm, 1);
	CHECK(guest.vcpu == vcpu);
	ckvm_vcpu_unref(guest.vcpu);
	guest_close(&guest);
}

static void vms_come_and_go_without_a_trace(void)
{
	int times = test_times(100000), fds = 0, maps = 0;
	size_t bytes = 0;

	for (int i = -10; i < times; i++) {
		if (!i) { /* what is made once has been made */
			fds = test_count_fds();
			maps = test_count_maps();
			bytes = test_count_bytes();
		}
		WITH_PORT(OUT_10 HLT);
		CHECK_EQ(ckvm_vcpu_run(guest.vcpu, NULL), CKVM_EXIT);
		guest_close(&guest);
	}
	CHECK_EQ(test_count_fds(), fds);
	CHECK_EQ(test_count_maps(), maps);
	CHECK_EQ(test_count_bytes(), bytes);
}

/* From a callback -----------------------------------------------------------
 */

static void close_vcpu(void)
{
	ckvm_vcpu_close(guest.vcpu);
}

static void close_vm(void)
{
	ckvm_vm_close(guest.vm);
}

static void close_all(void)
{
	ckvm_range_detach(range);
	ckvm_memory_close(guest.memory);
	ckvm_vcpu_close(guest.vcpu);
	ckvm_vm_close(guest.vm);
	ckvm_close(guest.kvm);
}

static void vcpu_can_be_closed_by_its_own_callback(void)
{
	WITH_PORT(OUT_10 LOOP);
	in_callback = close_vcpu;
	CHECK_FAILS(run(), EBADF, "closed");
	CHECK_EQ(writes, 1);
	guest_close(&guest);
}

static void vm_can_be_closed_by_a_callback(void)
{
	WITH_PORT(OUT_10 LOOP);
	in_callback = close_vm;
	CHECK_FAILS(run(), EBADF, "closed");
	ckvm_close(guest.kvm);
}

static void everything_can_be_closed_by_a_callback(void)
{
	int fds = test_count_fds();

	WITH_PORT(OUT_10 LOOP);
	in_callback = close_all;
	CHECK_FAILS(run(), EBADF, "closed");
	CHECK_EQ(test_count_fds(), fds);
}

static void detach_it(void)
{
	ckvm_range_detach(range);
}

static void range_can_be_detached_by_its_own_callback(void)
{
	WITH_PORT(OUT_10 LOOP);
	in_callback = detach_it;
	CHECK_EQ(run(), CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), CKVM_EXIT_IO_OUT);
	CHECK_EQ(writes, 1);
	guest_close(&guest);
}

static void replace_it(void)
{
	detach_it();
	CHECK_EQ(ckvm_vm_attach_io(guest.vm, 0x10, 1, &ops, NULL, &range), 0);
	if (writes == 100)
		ckvm_vcpu_stop(guest.vcpu);
}

static void range_can_be_replaced_by_its_own_callback(void)
{
	WITH_PORT(OUT_10 LOOP);
	in_callback = replace_it;
	CHECK_EQ(run(), CKVM_STOPPED);
	CHECK_EQ(writes, 100);
	guest_close(&guest);
}

static void run_that_is_handed_back_can_be_closed(void)
{
	guest = GUEST(OUT_10 HLT);
	NEED(ckvm_vm_attach_io(guest.vm, 0x10, 1, NULL, NULL, NULL));
	CHECK_EQ(run(), CKVM_ACCESS);
	ckvm_vcpu_ref(guest.vcpu);
	ckvm_vm_close(guest.vm);
	ckvm_vcpu_answer(guest.vcpu, 0);
	CHECK_FAILS(ckvm_vcpu_continue(guest.vcpu), EBADF, "closed");
	ckvm_vcpu_unref(guest.vcpu);
	ckvm_close(guest.kvm);
}

/* From another thread -------------------------------------------------------
 */

static void *run_until_closed(void *vcpu)
{
	CHECK_FAILS(ckvm_vcpu_run(vcpu, NULL), EBADF, "closed");
	ckvm_vcpu_unref(vcpu);
	return NULL;
}

static void start_and(void (*close_it)(void))
{
	pthread_t thread;

	WITH_PORT(OUT_10 LOOP);
	ckvm_vcpu_ref(guest.vcpu);
	NEED(pthread_create(&thread, NULL, run_until_closed, guest.vcpu));
	while (atomic_load(&writes) < 3)
		sched_yield();
	close_it();
	pthread_join(thread, NULL);
}

static void vcpu_can_be_closed_while_another_thread_runs_it(void)
{
	for (int i = 0; i < 20; i++) {
		start_and(close_vcpu);
		guest_close(&guest);
	}
}

static void close_vm_and_kvm(void)
{
	ckvm_vm_close(guest.vm);
	ckvm_close(guest.kvm);
}

static void vm_can_be_closed_while_another_thread_runs_it(void)
{
	int fds = test_count_fds();

	for (int i = 0; i < 100; i++)
		start_and(close_vm_and_kvm);
	CHECK_EQ(test_count_fds(), fds);
}

/* Ranges that come and go while the guest writes to them --------------------
 */

static atomic_bool enough;

static void *attach_and_detach(void *unused)
{
	for (int i = 0; i < 2000; i++) {
		struct ckvm_range *io, *mmio, *other;

		CHECK_EQ(ckvm_vm_attach_io(guest.vm, 0x11, 1, &ops, NULL, &io),
			 0);
		CHECK_EQ(ckvm_vm_attach_mmio(guest.vm, 0x8000, 0x10, &ops, NULL,
					     &mmio),
			 0);
		CHECK_EQ(ckvm_vm_attach_mmio(guest.vm, 0x7000, 0x10, &ops, NULL,
					     &other),
			 0);
		ckvm_range_detach(io);
		ckvm_range_detach(mmio);
		ckvm_range_detach(other);
	}
	enough = true;
	return NULL;
}

static void ranges_come_and_go_while_the_guest_writes_to_them(void)
{
	pthread_t thread;
	int end;

	WITH_PORT("\xe6\x10"	 /* out %al, $0x10 */
		  "\xe6\x11"	 /* out %al, $0x11 */
		  "\xa2\x00\x80" /* mov %al, (0x8000) */
		  "\xeb\xf7");	 /* and again */
	enough = false;
	NEED(pthread_create(&thread, NULL, attach_and_detach, NULL));
	end = run();
	while (end == CKVM_EXIT && !enough)
		end = ckvm_vcpu_continue(guest.vcpu);
	CHECK_EQ(end, CKVM_EXIT);
	pthread_join(thread, NULL);
	/* None is left, not even one that nobody can see any more. */
	writes = 0;
	for (int i = 0; i < 4; i++)
		CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_EXIT);
	CHECK_EQ(writes, 2);
	guest_close(&guest);
}

/* fork ------------------------------------------------------------------- */

/* What the child finds, as its exit status. */
static int in_child(int (*body)(void))
{
	int status = -1;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (!pid) {
		alarm(20);
		_exit(body());
	}
	CHECK(pid > 0);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status))
		fprintf(stderr, "the child died of signal %d\n",
			WTERMSIG(status));
	return status;
}

static int call_everything(void)
{
	struct ckvm_memory_config config = { .size = sizeof(config),
					     .gpa = 0x100000,
					     .bytes = 0x1000 };
	struct ckvm_memory *memory;
	struct ckvm_vcpu *vcpu;
	struct ckvm_vm *vm;
	struct kvm_regs regs = { .rax = 0 };
	uint64_t bitmap[1];
	const void *view;
	uint8_t byte = 0;

	test_failures = 0;
	CHECK_FAILS(ckvm_get_api_version(guest.kvm), EIO, "fork");
	CHECK_FAILS(ckvm_get_vcpu_mmap_size(guest.kvm), EIO, "fork");
	CHECK_FAILS(ckvm_check_extension(guest.kvm, 0), EIO, "fork");
	CHECK_FAILS(ckvm_create_vm(guest.kvm, 0, &vm), EIO, "fork");
	CHECK_FAILS(ckvm_vm_check_extension(guest.vm, 0), EIO, "fork");
	CHECK_FAILS(ckvm_vm_create_vcpu(guest.vm, 1, &vcpu), EIO, "fork");
	CHECK_FAILS(ckvm_vm_add_memory(guest.vm, &config, &memory), EIO,
		    "fork");
	CHECK_FAILS(ckvm_vm_read(guest.vm, GUEST_BASE, &byte, 1), EIO, "fork");
	CHECK_FAILS(ckvm_vm_write(guest.vm, GUEST_BASE, &byte, 1), EIO, "fork");
	CHECK_FAILS(ckvm_vm_fill(guest.vm, GUEST_BASE, 0, 1), EIO, "fork");
	CHECK_EQ(ckvm_vm_extent(guest.vm, GUEST_BASE), 0);
	CHECK(!ckvm_vm_find_memory(guest.vm, 0, UINT64_MAX));
	CHECK(!ckvm_vm_find_range(guest.vm, CKVM_IO, 0, UINT64_MAX));
	CHECK(!ckvm_vm_find_vcpu(guest.vm, 0));
	CHECK_FAILS(ckvm_vm_attach_io(guest.vm, 0x20, 1, &ops, NULL, NULL), EIO,
		    "fork");
	CHECK_FAILS(ckvm_memory_move(guest.memory, 0x100000), EIO, "fork");
	CHECK_FAILS(ckvm_memory_dirty(guest.memory, bitmap, 1), EIO, "fork");
	CHECK_FAILS(ckvm_vcpu_run(guest.vcpu, NULL), EIO, "fork");
	CHECK_FAILS(ckvm_vcpu_run_once(guest.vcpu, NULL), EIO, "fork");
	CHECK_FAILS(ckvm_vcpu_continue(guest.vcpu), EIO, "fork");
	CHECK_FAILS(ckvm_vcpu_finish(guest.vcpu), EIO, "fork");
	CHECK_FAILS(ckvm_vcpu_stop(guest.vcpu), EIO, "fork");
	CHECK_FAILS(ckvm_vcpu_get_regs(guest.vcpu, &regs), EIO, "fork");
	CHECK_FAILS(ckvm_vcpu_set_regs(guest.vcpu, &regs), EIO, "fork");
	CHECK_FAILS(ckvm_vcpu_view(guest.vcpu, CKVM_VIEW_REGS, &view), EIO,
		    "fork");
	ckvm_vcpu_answer(guest.vcpu, 1);
	ckvm_vcpu_kick(guest.vcpu);
	ckvm_vcpu_wake(guest.vcpu);
	return test_failures ? 1 : 0;
}

static int close_everything(void)
{
	test_failures = 0;
	close_all();
	return test_failures ? 1 : 0;
}

static int start_afresh(void)
{
	test_failures = 0;
	open_guest(OUT_10 HLT, 3);
	CHECK(guest_halts(&guest));
	guest_close(&guest);
	return test_failures ? 1 : 0;
}

static void calls_in_a_child_fail(void)
{
	WITH_PORT(OUT_10 HLT);
	CHECK_EQ(in_child(call_everything), 0);
	CHECK(guest_halts(&guest));
	CHECK_EQ(writes, 1);
	guest_close(&guest);
}

static void closing_in_a_child_closes_nothing_of_the_parents(void)
{
	WITH_PORT(OUT_10 HLT);
	CHECK_EQ(in_child(close_everything), 0);
	CHECK_EQ(ckvm_vm_fill(guest.vm, 0x2000, 1, 0x1000), 0);
	CHECK(guest_halts(&guest));
	guest_close(&guest);
}

static void child_can_open_its_own(void)
{
	WITH_PORT(OUT_10 HLT);
	CHECK_EQ(in_child(start_afresh), 0);
	CHECK(guest_halts(&guest));
	guest_close(&guest);
}

static void fork_and_call(void)
{
	CHECK_EQ(in_child(call_everything), 0);
	CHECK_EQ(in_child(close_everything), 0);
}

static void fork_in_a_callback_is_no_different(void)
{
	WITH_PORT(OUT_10 HLT);
	in_callback = fork_and_call;
	CHECK(guest_halts(&guest));
	CHECK_EQ(writes, 1);
	guest_close(&guest);
}

static void fork_while_an_access_is_handed_back_is_no_different(void)
{
	guest = GUEST("\xe4\x10" /* in $0x10, %al */
		      HLT);
	NEED(ckvm_vm_attach_io(guest.vm, 0x10, 1, NULL, NULL, &range));
	CHECK_EQ(run(), CKVM_ACCESS);
	fork_and_call();
	ckvm_vcpu_answer(guest.vcpu, 0x42);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_EXIT);
	CHECK_EQ(guest_rax(&guest), 0x42);
	guest_close(&guest);
}

int main(int argc, char **argv)
{
	test_begin(argv);
	PROMISE(closing_nothing_does_nothing);
	test_needs_kvm();
	PROMISE(objects_close_in_any_order);
	PROMISE(held_references_fail_and_can_be_given_up_in_any_order);
	PROMISE(objects_tell_their_descriptors_and_parents);
	PROMISE(a_second_reference_keeps_the_system_open);
	PROMISE(vcpu_id_cannot_be_created_again);
	PROMISE(vms_come_and_go_without_a_trace);
	PROMISE(vcpu_can_be_closed_by_its_own_callback);
	PROMISE(vm_can_be_closed_by_a_callback);
	PROMISE(everything_can_be_closed_by_a_callback);
	PROMISE(range_can_be_detached_by_its_own_callback);
	PROMISE(range_can_be_replaced_by_its_own_callback);
	PROMISE(run_that_is_handed_back_can_be_closed);
	PROMISE(vcpu_can_be_closed_while_another_thread_runs_it);
	PROMISE(vm_can_be_closed_while_another_thread_runs_it);
	PROMISE(ranges_come_and_go_while_the_guest_writes_to_them);
	PROMISE(calls_in_a_child_fail);
	PROMISE(closing_in_a_child_closes_nothing_of_the_parents);
	PROMISE(child_can_open_its_own);
	PROMISE(fork_in_a_callback_is_no_different);
	PROMISE(fork_while_an_access_is_handed_back_is_no_different);
	return test_end();
}

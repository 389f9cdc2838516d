/* SPDX-License-Identifier: MIT */
/* The run loop: what ends it, what a callback may do, what it hands back. */
#include <time.h>

#include "test.h"

#define OUT_10 "\xe6\x10" /* out %al, $0x10 */
#define IN_10 "\xe4\x10"  /* in $0x10, %al */
#define HLT "\xf4"
#define SPIN "\xeb\xfe"

#define SECOND 1000000000u
#define FIRST_EXIT (SECOND / 5) /* by then the slowest machine has had it */

static struct ckvm_limits limit_exits(uint64_t exits)
{
	return (struct ckvm_limits){ .size = sizeof(struct ckvm_limits),
				     .flags = CKVM_LIMIT_EXITS,
				     .exits = exits };
}

static struct ckvm_limits limit_time(uint64_t ns)
{
	return (struct ckvm_limits){ .size = sizeof(struct ckvm_limits),
				     .flags = CKVM_LIMIT_TIMEOUT,
				     .timeout_ns = ns };
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

/* A device that notes what it sees, and answers as it is told. */
struct device {
	int result;		   /* of each callback */
	void (*in_callback)(void); /* before it returns */
	uint64_t answer;
	int reads, writes;
	struct ckvm_vcpu *vcpu;
	uint64_t address, value;
	size_t length;
};

static struct device device;

static int device_read(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
		       void *data, size_t length)
{
	static const uint8_t ones[8] = {
		255, 255, 255, 255, 255, 255, 255, 255
	};

	CHECK(opaque == &device);
	CHECK(!memcmp(data, ones, length));
	device.reads++;
	device.vcpu = vcpu;
	device.address = address;
	device.length = length;
	memcpy(data, &device.answer, length);
	if (device.in_callback)
		device.in_callback();
	return device.result;
}

static int device_write(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
			const void *data, size_t length)
{
	CHECK(opaque == &device);
	device.writes++;
	device.vcpu = vcpu;
	device.address = address;
	device.length = length;
	device.value = 0;
	memcpy(&device.value, data, length);
	if (device.in_callback)
		device.in_callback();
	return device.result;
}

static const struct ckvm_ops ops = { sizeof(ops), device_read, device_write };

static struct guest guest;

/* A guest with the device at port 0x10 and at the first MMIO address. */
static void open_guest(const char *code, size_t size, const struct ckvm_ops *by)
{
	memset(&device, 0, sizeof(device));
	guest = guest_open(NULL, code, size);
	NEED(ckvm_vm_attach_io(guest.vm, 0x10, 4, by, &device, NULL));
	NEED(ckvm_vm_attach_mmio(guest.vm, GUEST_MMIO, 0x10000, by, &device,
				 NULL));
}

#define WITH_DEVICE(code) open_guest(code, sizeof(code) - 1, &ops)
#define WITHOUT_CALLBACKS(code) open_guest(code, sizeof(code) - 1, NULL)

static int run(void)
{
	return ckvm_vcpu_run(guest.vcpu, NULL);
}

static void halts(void)
{
	CHECK(guest_halts(&guest));
	guest_close(&guest);
}

/* Callbacks --------------------------------------------------------------- */

static void callback_of_a_port_is_told_about_the_access(void)
{
	WITH_DEVICE("\xb8\x34\x12" /* mov $0x1234, %ax */
		    "\xe7\x11"	   /* out %ax, $0x11 */
		    "\xe5\x12"	   /* in $0x12, %ax */
		    HLT);
	device.answer = 0x5678;
	CHECK(guest_halts(&guest));
	CHECK_EQ(device.writes, 1);
	CHECK_EQ(device.value, 0x1234);
	CHECK_EQ(device.reads, 1);
	CHECK_EQ(device.address, 0x12);
	CHECK_EQ(device.length, 2);
	CHECK(device.vcpu == guest.vcpu);
	CHECK_EQ(guest_rax(&guest), 0x5678);
	guest_close(&guest);
}

static void callback_of_an_address_is_told_about_the_access(void)
{
	WITH_DEVICE("\x66\xb8\x78\x56\x34\x12" /* mov $0x12345678, %eax */
		    "\x66\xa3\x10\x80"	       /* mov %eax, (0x8010) */
		    "\xa0\x21\x80"	       /* mov (0x8021), %al */
		    HLT);
	device.answer = 0xffffff42;
	CHECK(guest_halts(&guest));
	CHECK_EQ(device.value, 0x12345678);
	CHECK_EQ(device.address, 0x8021);
	CHECK_EQ(device.length, 1);
	CHECK_EQ(guest_rax(&guest), 0x12345642);
	guest_close(&guest);
}

static void callback_that_returns_1_ends_the_run_after_the_exit(void)
{
	WITH_DEVICE(IN_10 OUT_10 HLT);
	device.result = 1;
	device.answer = 7;
	CHECK_EQ(run(), CKVM_STOPPED);
	CHECK_EQ(device.reads, 1);
	CHECK_EQ(run(), CKVM_STOPPED);
	CHECK_EQ(device.value, 7); /* the read got its answer */
	halts();
}

static void callback_that_fails_ends_the_run_with_its_error(void)
{
	WITH_DEVICE(OUT_10 OUT_10 HLT);
	device.result = -EPROTO;
	CHECK_FAILS(run(), EPROTO, "range");
	device.result = 0;
	CHECK_EQ(device.writes, 1);
	CHECK(guest_halts(&guest));
	CHECK_EQ(device.writes, 2);
	guest_close(&guest);
}

static void callback_that_fails_as_signals_do_ends_the_run_as_well(void)
{
	struct ckvm_limits limits = { .size = sizeof(limits),
				      .flags = CKVM_LIMIT_SIGNALS };

	WITH_DEVICE(OUT_10 HLT);
	device.result = -EINTR;
	CHECK_FAILS(ckvm_vcpu_run(guest.vcpu, &limits), EINTR, "range");
	CHECK_FAILS(ckvm_vcpu_continue(guest.vcpu), ESRCH, "run");
	CHECK(guest_halts(&guest));
	CHECK_EQ(device.writes, 1);
	guest_close(&guest);
}

static void callback_that_fails_a_read_has_answered_it_all_the_same(void)
{
	WITH_DEVICE(IN_10 HLT);
	device.result = -EIO;
	device.answer = 0x42;
	CHECK_FAILS(run(), EIO, "range");
	CHECK(guest_halts(&guest));
	CHECK_EQ(guest_rax(&guest), 0x42);
	CHECK_EQ(device.reads, 1);
	guest_close(&guest);
}

static void missing_callback_leaves_the_direction_unclaimed(void)
{
	struct ckvm_ops reads = { .size = sizeof(reads), .read = device_read };

	open_guest(OUT_10 HLT, 3, &reads);
	CHECK_EQ(run(), CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), CKVM_EXIT_IO_OUT);
	halts();
}

static void stop_here(void)
{
	CHECK_EQ(ckvm_vcpu_stop(guest.vcpu), 0);
}

static void stop_acts_after_a_whole_string_instruction(void)
{
	WITH_DEVICE("\xba\x10\x00" /* mov $0x10, %dx */
		    "\xbf\x00\x30" /* mov $0x3000, %di */
		    "\xb9\x05\x00" /* mov $5, %cx */
		    "\xf3\x6c"	   /* rep insb */
		    HLT);
	device.in_callback = stop_here;
	CHECK_EQ(run(), CKVM_STOPPED);
	CHECK_EQ(device.reads, 5);
	halts();
}

static void *use_from_another_thread(void *unused)
{
	struct kvm_regs regs;

	CHECK_FAILS(run(), EBUSY, "running");
	CHECK_FAILS(ckvm_vcpu_run_once(guest.vcpu, NULL), EBUSY, "running");
	CHECK_FAILS(ckvm_vcpu_get_regs(guest.vcpu, &regs), EBUSY, "running");
	return NULL;
}

static void run_it_again(void)
{
	pthread_t thread;

	CHECK_FAILS(run(), EBUSY, "running");
	CHECK_FAILS(ckvm_vcpu_run_once(guest.vcpu, NULL), EBUSY, "running");
	CHECK_FAILS(ckvm_vcpu_finish(guest.vcpu), EBUSY, "access");
	NEED(pthread_create(&thread, NULL, use_from_another_thread, NULL));
	pthread_join(thread, NULL);
}

static void vcpu_that_runs_cannot_be_run_a_second_time(void)
{
	WITH_DEVICE(OUT_10 HLT);
	device.in_callback = run_it_again;
	CHECK(guest_halts(&guest));
	CHECK_EQ(device.writes, 1);
	guest_close(&guest);
}

/* Hand-backs -------------------------------------------------------------- */

static void access_of_a_range_without_callbacks_is_handed_back(void)
{
	const struct ckvm_access *access;

	WITHOUT_CALLBACKS("\xb0\x07" /* mov $7, %al */
			  "\xe6\x12" /* out %al, $0x12 */
			  IN_10 HLT);
	CHECK(!ckvm_vcpu_access(guest.vcpu));
	CHECK_EQ(run(), CKVM_ACCESS);
	access = ckvm_vcpu_access(guest.vcpu);
	CHECK(access->opaque == &device);
	CHECK_EQ(ckvm_range_first(access->range), 0x10);
	CHECK_EQ(access->address, 0x12);
	CHECK_EQ(access->offset, 2);
	CHECK_EQ(access->value, 7);
	CHECK_EQ(access->length, 1);
	CHECK(access->is_write && access->space == CKVM_IO && !access->batched);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_ACCESS);
	CHECK(!ckvm_vcpu_access(guest.vcpu)->is_write);
	ckvm_vcpu_answer(guest.vcpu, 0xaabb42);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_EXIT);
	CHECK(!ckvm_vcpu_access(guest.vcpu));
	CHECK_EQ(guest_rax(&guest), 0x42);
	guest_close(&guest);
}

static void read_without_an_answer_is_all_ones(void)
{
	WITHOUT_CALLBACKS("\x66\xe5\x10"     /* in $0x10, %eax */
			  "\x66\x89\xc3"     /* mov %eax, %ebx */
			  "\x66\xa1\x00\x80" /* mov (0x8000), %eax */
			  HLT);
	CHECK_EQ(run(), CKVM_ACCESS);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_ACCESS);
	CHECK_EQ(ckvm_vcpu_access(guest.vcpu)->space, CKVM_MMIO);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_EXIT);
	CHECK_EQ(guest_rax(&guest), 0xffffffff);
	guest_close(&guest);
}

static void elements_of_a_string_come_one_by_one(void)
{
	uint8_t data[4] = { 0 };

	WITHOUT_CALLBACKS("\xba\x10\x00" /* mov $0x10, %dx */
			  "\xbf\x00\x30" /* mov $0x3000, %di */
			  "\xb9\x03\x00" /* mov $3, %cx */
			  "\xf3\x6c"	 /* rep insb */
			  HLT);
	for (uint64_t i = 1; i <= 3; i++) {
		CHECK_EQ(i == 1 ? run() : ckvm_vcpu_continue(guest.vcpu),
			 CKVM_ACCESS);
		ckvm_vcpu_answer(guest.vcpu, i);
	}
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_EXIT);
	CHECK_EQ(ckvm_vm_read(guest.vm, 0x3000, data, 4), 0);
	CHECK(!memcmp(data, "\1\2\3\0", 4));
	guest_close(&guest);
}

static void abandoned_access_is_answered_with_all_ones(void)
{
	uint8_t data[4] = { 0 };

	WITHOUT_CALLBACKS("\xba\x10\x00" /* mov $0x10, %dx */
			  "\xbf\x00\x30" /* mov $0x3000, %di */
			  "\xb9\x03\x00" /* mov $3, %cx */
			  "\xf3\x6c"	 /* rep insb */
			  IN_10 HLT);
	CHECK_EQ(run(), CKVM_ACCESS);
	ckvm_vcpu_answer(guest.vcpu, 1);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_ACCESS);
	CHECK_EQ(run(), CKVM_ACCESS); /* of the second instruction */
	CHECK_EQ(ckvm_vm_read(guest.vm, 0x3000, data, 4), 0);
	CHECK(!memcmp(data, "\1\xff\xff\0", 4));
	CHECK(guest_halts(&guest));
	CHECK_EQ(guest_rax(&guest), 0xff);
	guest_close(&guest);
}

static void each_run_has_a_serial_of_its_own(void)
{
	uint32_t serial;

	WITHOUT_CALLBACKS(OUT_10 OUT_10 HLT);
	CHECK_EQ(run(), CKVM_ACCESS);
	serial = ckvm_vcpu_run_serial(guest.vcpu);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_ACCESS);
	CHECK_EQ(ckvm_vcpu_run_serial(guest.vcpu), serial);
	CHECK(guest_halts(&guest));
	CHECK_EQ(ckvm_vcpu_run_serial(guest.vcpu), serial + 1);
	guest_close(&guest);
}

static void continue_without_a_run_has_nothing_to_go_on_with(void)
{
	struct ckvm_limits none = limit_exits(0);

	WITHOUT_CALLBACKS(OUT_10 HLT);
	CHECK_FAILS(ckvm_vcpu_continue(guest.vcpu), ESRCH, "run");
	CHECK_FAILS(ckvm_vcpu_stop(guest.vcpu), ESRCH, "run");
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &none), CKVM_EXITS);
	CHECK_FAILS(ckvm_vcpu_continue(guest.vcpu), ESRCH, "run");
	CHECK_EQ(ckvm_vcpu_run_once(guest.vcpu, NULL), 0);
	CHECK_FAILS(ckvm_vcpu_continue(guest.vcpu), ESRCH, "run");
	halts();
}

static void exit_can_be_handled_and_gone_on_from(void)
{
	struct ckvm_limits two = limit_exits(2);

	WITHOUT_CALLBACKS(HLT HLT HLT);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &two), CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_EXITS);
	halts();
}

static void unclaimed_access_is_an_exit_unless_caught(void)
{
	static const char code[] = "\xe6\x80" /* out %al, $0x80 */
				   "\xe4\x80" /* in $0x80, %al */
		HLT;

	guest = GUEST(code);
	CHECK_EQ(run(), CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), CKVM_EXIT_IO_OUT);
	CHECK_EQ(ckvm_vcpu_finish(guest.vcpu), CKVM_STOPPED);
	guest_start(guest.vcpu, GUEST_BASE);
	ckvm_vm_catch(guest.vm, CKVM_EXIT_IO_OUT, 1);
	CHECK_EQ(run(), CKVM_ACCESS);
	CHECK(!ckvm_vcpu_access(guest.vcpu)->range);
	CHECK_EQ(ckvm_vcpu_access(guest.vcpu)->address, 0x80);
	ckvm_vm_catch(guest.vm, CKVM_EXIT_IO_OUT, 0);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), CKVM_EXIT_IO_IN);
	halts();
}

static void range_with_a_value_or_a_log_never_leaves_the_loop(void)
{
	struct ckvm_range_config config = { .size = sizeof(config),
					    .space = CKVM_IO,
					    .first = 0x40,
					    .count = 1,
					    .read = CKVM_ANSWER_VALUE,
					    .write = CKVM_ANSWER_LOG,
					    .value = 0x1242 };
	uint8_t data[4] = { 0 };

	guest = GUEST("\xe4\x40"
		      "\xe6\x40"
		      "\xe6\x40"
		      "\xe6\x40" HLT);
	NEED(ckvm_buffer_create(2, &config.log));
	NEED(ckvm_vm_attach(guest.vm, &config, NULL));
	CHECK_EQ(run(), CKVM_EXIT); /* full, and so as if nobody were there */
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), CKVM_EXIT_IO_OUT);
	CHECK_EQ(ckvm_buffer_take(config.log, data, 4), 2);
	CHECK(!memcmp(data, "\x42\x42", 2));
	ckvm_buffer_unref(config.log);
	halts();
}

/* Limits ------------------------------------------------------------------ */

static void budget_counts_whole_exits(void)
{
	struct ckvm_limits two = limit_exits(2), none = limit_exits(0);

	WITH_DEVICE(OUT_10 OUT_10 OUT_10 HLT);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &none), CKVM_EXITS);
	CHECK_EQ(device.writes, 0);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &two), CKVM_EXITS);
	CHECK_EQ(device.writes, 2);
	CHECK(guest_halts(&guest));
	CHECK_EQ(device.writes, 3);
	guest_close(&guest);
}

static void budget_goes_on_counting_after_a_hand_back(void)
{
	struct ckvm_limits two = limit_exits(2);

	WITHOUT_CALLBACKS(OUT_10 OUT_10 OUT_10 HLT);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &two), CKVM_ACCESS);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_ACCESS);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_EXITS);
	guest_close(&guest);
}

static void timeout_ends_a_guest_that_never_exits(void)
{
	struct ckvm_limits limits = limit_time(1000000);

	WITH_DEVICE(SPIN);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_TIMEOUT);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_TIMEOUT);
	guest_close(&guest);
}

static void timeout_ends_a_guest_that_exits_all_the_time(void)
{
	struct ckvm_limits limits = limit_time(1000000);

	WITH_DEVICE(OUT_10 "\xeb\xfc"); /* and again */
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_TIMEOUT);
	guest_close(&guest);
}

static void timeout_of_nothing_expires_at_once(void)
{
	struct ckvm_limits limits = limit_time(0);

	WITH_DEVICE(OUT_10 HLT);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_TIMEOUT);
	CHECK_EQ(device.writes, 0);
	halts();
}

static void endless_timeouts_do_not_overflow(void)
{
	struct ckvm_limits limits = limit_time(UINT64_MAX);

	WITH_DEVICE(OUT_10 HLT);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_EXIT);
	limits.flags = CKVM_LIMIT_DEADLINE;
	limits.deadline_ns = UINT64_MAX;
	guest_start(guest.vcpu, GUEST_BASE);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_EXIT);
	guest_close(&guest);
}

static void deadline_that_has_passed_ends_the_run_before_it_begins(void)
{
	struct ckvm_limits limits = { .size = sizeof(limits),
				      .flags = CKVM_LIMIT_DEADLINE };

	WITH_DEVICE(OUT_10 HLT);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_TIMEOUT);
	limits.deadline_ns = now() - 1;
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_TIMEOUT);
	CHECK_EQ(device.writes, 0);
	limits.deadline_ns = now() + 100 * (uint64_t)SECOND;
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_EXIT);
	guest_close(&guest);
}

static void the_earlier_of_timeout_and_deadline_counts(void)
{
	struct ckvm_limits limits = limit_time(3600 * (uint64_t)SECOND);

	WITH_DEVICE(SPIN);
	limits.flags |= CKVM_LIMIT_DEADLINE;
	limits.deadline_ns = now() + 1000000;
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_TIMEOUT);
	limits.timeout_ns = 1000000;
	limits.deadline_ns = now() + 3600 * (uint64_t)SECOND;
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_TIMEOUT);
	guest_close(&guest);
}

static void deadline_passes_while_the_run_is_handed_back(void)
{
	struct ckvm_limits limits = limit_time(FIRST_EXIT);

	WITHOUT_CALLBACKS(OUT_10 SPIN);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_ACCESS);
	while (now() < ckvm_vcpu_deadline(guest.vcpu))
		;
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_TIMEOUT);
	guest_close(&guest);
}

static void clock_stands_still_while_the_caller_rests(void)
{
	struct ckvm_limits limits = limit_time(100 * (uint64_t)SECOND);
	uint64_t deadline;

	WITHOUT_CALLBACKS(OUT_10 HLT);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_ACCESS);
	deadline = ckvm_vcpu_deadline(guest.vcpu);
	CHECK(deadline > now());
	ckvm_vcpu_rest(guest.vcpu, 0);
	CHECK(ckvm_vcpu_deadline(guest.vcpu) > deadline);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_EXIT);
	guest_close(&guest);
}

static void clock_counts_what_comes_before_a_pause(void)
{
	struct ckvm_limits limits = limit_time(100 * (uint64_t)SECOND);
	uint64_t deadline, paused;

	WITHOUT_CALLBACKS(OUT_10 HLT);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_ACCESS);
	deadline = ckvm_vcpu_deadline(guest.vcpu);
	paused = now();
	ckvm_vcpu_pause(guest.vcpu);
	ckvm_vcpu_rest(guest.vcpu, 0);
	CHECK(ckvm_vcpu_deadline(guest.vcpu) > deadline);
	ckvm_vcpu_pause(guest.vcpu);
	ckvm_vcpu_rest(guest.vcpu, 0);
	CHECK(ckvm_vcpu_deadline(guest.vcpu) - deadline <= now() - paused);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_EXIT);
	ckvm_vcpu_pause(guest.vcpu); /* of no run: nothing */
	guest_close(&guest);
}

static void limits_beyond_size_do_not_count(void)
{
	struct ckvm_limits limits = limit_exits(1);

	limits.size = offsetof(struct ckvm_limits, flags);
	WITH_DEVICE(OUT_10 HLT);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_EXIT);
	guest_close(&guest);
}

/* Runs within runs -------------------------------------------------------- */

static struct guest inner;
static int inner_end;

static void run_inner(void)
{
	inner_end = ckvm_vcpu_run(inner.vcpu, NULL);
}

static void run_inner_briefly(void)
{
	struct ckvm_limits limits = limit_time(1000000);

	inner_end = ckvm_vcpu_run(inner.vcpu, &limits);
}

static void inner_run_ends_at_the_deadline_of_the_outer(void)
{
	struct ckvm_limits limits = limit_time(FIRST_EXIT);

	inner = GUEST(SPIN);
	WITH_DEVICE(OUT_10 SPIN);
	device.in_callback = run_inner;
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_TIMEOUT);
	CHECK_EQ(inner_end, CKVM_TIMEOUT);
	CHECK_EQ(device.writes, 1);
	guest_close(&guest);
	guest_close(&inner);
}

static void inner_run_leaves_the_outer_its_deadline(void)
{
	struct ckvm_limits limits = limit_time(FIRST_EXIT);

	inner = GUEST(SPIN);
	WITH_DEVICE(OUT_10 SPIN);
	device.in_callback = run_inner_briefly;
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_TIMEOUT);
	CHECK_EQ(inner_end, CKVM_TIMEOUT);
	guest_close(&guest);
	guest_close(&inner);
}

static void inner_run_without_limits_halts_by_itself(void)
{
	inner = GUEST(HLT);
	WITH_DEVICE(OUT_10 HLT);
	device.in_callback = run_inner;
	CHECK(guest_halts(&guest));
	CHECK_EQ(inner_end, CKVM_EXIT);
	guest_close(&guest);
	guest_close(&inner);
}

static void kick_inner_and_run_it(void)
{
	ckvm_vcpu_kick(inner.vcpu);
	run_inner();
}

static void kick_of_the_inner_run_does_not_end_the_outer(void)
{
	inner = GUEST(SPIN);
	WITH_DEVICE(OUT_10 HLT);
	device.in_callback = kick_inner_and_run_it;
	CHECK(guest_halts(&guest));
	CHECK_EQ(inner_end, CKVM_KICKED);
	guest_close(&guest);
	guest_close(&inner);
}

static void kick_outer_and_run_inner(void)
{
	ckvm_vcpu_kick(guest.vcpu);
	run_inner();
}

static void kick_of_the_outer_run_waits_for_the_inner(void)
{
	inner = GUEST(HLT);
	WITH_DEVICE(OUT_10 SPIN);
	device.in_callback = kick_outer_and_run_inner;
	CHECK_EQ(run(), CKVM_KICKED);
	CHECK_EQ(inner_end, CKVM_EXIT);
	guest_close(&guest);
	guest_close(&inner);
}

/* Lateness ---------------------------------------------------------------- */

static volatile sig_atomic_t late_calls;

static void count_late(void *opaque)
{
	late_calls = late_calls + (opaque == &device);
}

static void lateness_is_told_while_the_run_is_handed_back(void)
{
	struct ckvm_limits limits = limit_time(FIRST_EXIT);

	late_calls = 0;
	ckvm_thread_late(count_late, &device, now() + 1000 * (uint64_t)SECOND,
			 1000000);
	WITHOUT_CALLBACKS(OUT_10 SPIN);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_ACCESS);
	while (late_calls < 3) /* again and again */
		(void)now();
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_TIMEOUT);
	ckvm_thread_late(NULL, NULL, 0, 0);
	guest_close(&guest);
}

static void lateness_has_a_deadline_without_a_run(void)
{
	late_calls = 0;
	WITHOUT_CALLBACKS(HLT);
	ckvm_thread_late(count_late, &device, now() + 1000000, 1000000);
	while (late_calls < 3)
		(void)now();
	ckvm_thread_late(NULL, NULL, 0, 0);
	guest_close(&guest);
}

static void no_more_lateness(void)
{
	ckvm_thread_late(NULL, NULL, 0, 0);
}

static void lateness_can_be_changed_in_a_callback(void)
{
	struct ckvm_limits limits = limit_time(FIRST_EXIT);

	WITH_DEVICE(OUT_10 SPIN);
	device.in_callback = no_more_lateness;
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_TIMEOUT);
	guest_close(&guest);
}

/* Finishing --------------------------------------------------------------- */

#define MOV_ACROSS_PAGES "\x66\xa3\xfe\x8f" /* mov %eax, (0x8ffe) */

static void finish_ends_the_instruction_and_no_more(void)
{
	struct kvm_regs regs;

	WITHOUT_CALLBACKS(OUT_10 SPIN);
	CHECK_EQ(ckvm_vcpu_finish(guest.vcpu), CKVM_STOPPED);
	CHECK_EQ(run(), CKVM_ACCESS);
	CHECK_EQ(ckvm_vcpu_finish(guest.vcpu), CKVM_STOPPED);
	CHECK_EQ(ckvm_vcpu_finish(guest.vcpu), CKVM_STOPPED);
	CHECK_EQ(ckvm_vcpu_get_regs(guest.vcpu, &regs), 0);
	CHECK_EQ(regs.rip, GUEST_BASE + 2);
	guest_close(&guest);
}

/* The run of nothing notes that it is over; that is not the finish's. */
static void finish_after_a_run_of_nothing_serves_the_second_half(void)
{
	struct ckvm_limits nothing = { .size = sizeof(nothing),
				       .flags = CKVM_LIMIT_EXITS };
	struct ckvm_range_config batch = { .size = sizeof(batch),
					   .space = CKVM_IO,
					   .batch = 1,
					   .first = 0x80,
					   .count = 1,
					   .write = CKVM_ANSWER_VALUE };

	guest = GUEST(MOV_ACROSS_PAGES HLT);

	CHECK_EQ(ckvm_vm_attach_mmio(guest.vm, GUEST_MMIO, 0x2000, NULL, NULL,
				     NULL),
		 0);
	if (ckvm_vm_attach(guest.vm, &batch, NULL) == 0) {
		CHECK_EQ(ckvm_vcpu_run(guest.vcpu, NULL), CKVM_ACCESS);
		CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &nothing), CKVM_EXITS);
		CHECK_EQ(ckvm_vcpu_finish(guest.vcpu), CKVM_ACCESS);
		CHECK_EQ(ckvm_vcpu_access(guest.vcpu)->address, 0x9000);
		CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_STOPPED);
	}
	guest_close(&guest);
}

static void finish_waits_for_the_answer(void)
{
	WITHOUT_CALLBACKS(IN_10 "\xba\x10\x00" /* mov $0x10, %dx */
				"\xbe\x00\x30" /* mov $0x3000, %si */
				"\xb9\x02\x00" /* mov $2, %cx */
			  HLT);
	CHECK_EQ(run(), CKVM_ACCESS);
	CHECK_FAILS(ckvm_vcpu_finish(guest.vcpu), EBUSY, "access");
	ckvm_vcpu_answer(guest.vcpu, 0x42);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_EXIT);
	guest_close(&guest);
}

static void finish_serves_the_second_page_of_an_access(void)
{
	WITH_DEVICE(MOV_ACROSS_PAGES HLT);
	device.result = 1;
	CHECK_EQ(run(), CKVM_STOPPED);
	CHECK_EQ(device.address, 0x8ffe);
	device.result = 0;
	CHECK_EQ(ckvm_vcpu_finish(guest.vcpu), CKVM_STOPPED);
	CHECK_EQ(device.address, 0x9000);
	CHECK_EQ(device.writes, 2);
	halts();
}

static void finish_keeps_the_limits_of_the_run(void)
{
	struct ckvm_limits one = limit_exits(1);

	WITHOUT_CALLBACKS(MOV_ACROSS_PAGES OUT_10 HLT);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &one), CKVM_ACCESS);
	CHECK_EQ(ckvm_vcpu_finish(guest.vcpu), CKVM_ACCESS);
	CHECK_EQ(ckvm_vcpu_access(guest.vcpu)->address, 0x9000);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_STOPPED);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_EXITS);
	guest_close(&guest);
}

static void finish_keeps_a_stop(void)
{
	WITHOUT_CALLBACKS(MOV_ACROSS_PAGES OUT_10 HLT);
	CHECK_EQ(run(), CKVM_ACCESS);
	CHECK_EQ(ckvm_vcpu_stop(guest.vcpu), 0);
	CHECK_EQ(ckvm_vcpu_finish(guest.vcpu), CKVM_ACCESS);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_STOPPED);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_STOPPED);
	guest_close(&guest);
}

static void finish_keeps_a_kick(void)
{
	WITHOUT_CALLBACKS(OUT_10 SPIN);
	CHECK_EQ(run(), CKVM_ACCESS);
	ckvm_vcpu_kick(guest.vcpu);
	CHECK_EQ(ckvm_vcpu_finish(guest.vcpu), CKVM_STOPPED);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_KICKED);
	guest_close(&guest);
}

static void finish_keeps_a_deadline(void)
{
	struct ckvm_limits limits = limit_time(FIRST_EXIT);

	WITHOUT_CALLBACKS(OUT_10 SPIN);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_ACCESS);
	CHECK_EQ(ckvm_vcpu_finish(guest.vcpu), CKVM_STOPPED);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_TIMEOUT);
	guest_close(&guest);
}

static void limits_that_there_are_not_are_refused(void)
{
	struct ckvm_limits limits = { .size = sizeof(limits), .flags = 1 << 4 };

	WITH_DEVICE(OUT_10 HLT);
	CHECK_FAILS(ckvm_vcpu_run(guest.vcpu, &limits), EINVAL, "limits");
	CHECK_FAILS(ckvm_vcpu_run_once(guest.vcpu, &limits), EINVAL, "limits");
	limits.flags = 0;
	limits.reserved = 1;
	CHECK_FAILS(ckvm_vcpu_run(guest.vcpu, &limits), EINVAL, "reserved");
	CHECK_FAILS(ckvm_vcpu_run_once(guest.vcpu, &limits), EINVAL,
		    "reserved");
	CHECK_EQ(device.writes, 0);
	halts();
}

/* One at a time ----------------------------------------------------------- */

static void run_once_dispatches_nothing(void)
{
	WITH_DEVICE(OUT_10 IN_10 HLT);
	CHECK_EQ(ckvm_vcpu_run_once(guest.vcpu, NULL), 0);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), CKVM_EXIT_IO_OUT);
	CHECK_EQ(ckvm_vcpu_run_once(guest.vcpu, NULL), 0);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), CKVM_EXIT_IO_IN);
	CHECK_EQ(ckvm_vcpu_exit(guest.vcpu)->io.port, 0x10);
	CHECK_EQ(ckvm_vcpu_run_once(guest.vcpu, NULL), 0);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), KVM_EXIT_HLT);
	CHECK_EQ(device.reads + device.writes, 0);
	CHECK_EQ(guest_rax(&guest), 0xff);
	guest_close(&guest);
}

static void run_once_takes_the_answer_from_the_page(void)
{
	struct kvm_run *page;

	WITH_DEVICE(IN_10 HLT);
	CHECK_EQ(ckvm_vcpu_run_once(guest.vcpu, NULL), 0);
	page = ckvm_vcpu_exit(guest.vcpu);
	*((uint8_t *)page + page->io.data_offset) = 0x42;
	CHECK_EQ(ckvm_vcpu_run_once(guest.vcpu, NULL), 0);
	CHECK_EQ(guest_rax(&guest), 0x42);
	guest_close(&guest);
}

static void run_once_ends_by_a_kick(void)
{
	WITH_DEVICE(SPIN);
	ckvm_vcpu_kick(guest.vcpu);
	CHECK_FAILS(ckvm_vcpu_run_once(guest.vcpu, NULL), EINTR, "kick");
	guest_close(&guest);
}

static void *stop(void *vcpu)
{
	CHECK_EQ(ckvm_vcpu_stop(vcpu), 0);
	return NULL;
}

static void run_once_ends_by_a_stop_of_another_thread(void)
{
	pthread_t thread;

	WITH_DEVICE(SPIN);
	NEED(ckvm_vcpu_claim(guest.vcpu, gettid()));
	NEED(pthread_create(&thread, NULL, stop, guest.vcpu));
	NEED(pthread_join(thread, NULL));
	CHECK_FAILS(ckvm_vcpu_run_once(guest.vcpu, NULL), EINTR, "kick");
	ckvm_vcpu_unclaim(guest.vcpu);
	guest_close(&guest);
}

/* The first one sees the signal that the stop has made. */
static void run_once_is_not_stopped_with_the_run_before(void)
{
	struct ckvm_limits limits = { .size = sizeof(limits),
				      .flags = CKVM_LIMIT_SIGNALS };
	struct ckvm_limits time = limit_time(FIRST_EXIT);

	WITH_DEVICE(SPIN);
	ckvm_vcpu_wake(guest.vcpu);
	CHECK_FAILS(ckvm_vcpu_run(guest.vcpu, &limits), EINTR, "signal");
	CHECK_EQ(ckvm_vcpu_stop(guest.vcpu), 0);
	CHECK_FAILS(ckvm_vcpu_run_once(guest.vcpu, &time), EINTR, "signal");
	CHECK_FAILS(ckvm_vcpu_run_once(guest.vcpu, &time), ETIME, "timeout");
	guest_close(&guest);
}

static void exits_are_counted_by_kind(void)
{
	struct ckvm_stats stats = { .size = sizeof(stats) };

	WITH_DEVICE(OUT_10 IN_10 OUT_10 MOV_ACROSS_PAGES HLT);
	CHECK(guest_halts(&guest));
	ckvm_vcpu_stats(guest.vcpu, &stats);
	CHECK_EQ(stats.total, 6);
	CHECK_EQ(stats.exits[KVM_EXIT_IO], 3);
	CHECK_EQ(stats.io_out, 2);
	CHECK_EQ(stats.exits[KVM_EXIT_MMIO], 2);
	CHECK_EQ(stats.mmio_write, 2);
	CHECK_EQ(stats.exits[KVM_EXIT_HLT], 1);
	guest_close(&guest);
}

int main(int argc, char **argv)
{
	test_begin(argv);
	test_needs_kvm();
	PROMISE(callback_of_a_port_is_told_about_the_access);
	PROMISE(callback_of_an_address_is_told_about_the_access);
	PROMISE(callback_that_returns_1_ends_the_run_after_the_exit);
	PROMISE(callback_that_fails_ends_the_run_with_its_error);
	PROMISE(callback_that_fails_as_signals_do_ends_the_run_as_well);
	PROMISE(callback_that_fails_a_read_has_answered_it_all_the_same);
	PROMISE(missing_callback_leaves_the_direction_unclaimed);
	PROMISE(stop_acts_after_a_whole_string_instruction);
	PROMISE(vcpu_that_runs_cannot_be_run_a_second_time);
	PROMISE(access_of_a_range_without_callbacks_is_handed_back);
	PROMISE(read_without_an_answer_is_all_ones);
	PROMISE(elements_of_a_string_come_one_by_one);
	PROMISE(abandoned_access_is_answered_with_all_ones);
	PROMISE(each_run_has_a_serial_of_its_own);
	PROMISE(continue_without_a_run_has_nothing_to_go_on_with);
	PROMISE(exit_can_be_handled_and_gone_on_from);
	PROMISE(unclaimed_access_is_an_exit_unless_caught);
	PROMISE(range_with_a_value_or_a_log_never_leaves_the_loop);
	PROMISE(budget_counts_whole_exits);
	PROMISE(budget_goes_on_counting_after_a_hand_back);
	PROMISE(timeout_ends_a_guest_that_never_exits);
	PROMISE(timeout_ends_a_guest_that_exits_all_the_time);
	PROMISE(timeout_of_nothing_expires_at_once);
	PROMISE(endless_timeouts_do_not_overflow);
	PROMISE(deadline_that_has_passed_ends_the_run_before_it_begins);
	PROMISE(the_earlier_of_timeout_and_deadline_counts);
	PROMISE(deadline_passes_while_the_run_is_handed_back);
	PROMISE(clock_stands_still_while_the_caller_rests);
	PROMISE(clock_counts_what_comes_before_a_pause);
	PROMISE(limits_beyond_size_do_not_count);
	PROMISE(limits_that_there_are_not_are_refused);
	PROMISE(inner_run_ends_at_the_deadline_of_the_outer);
	PROMISE(inner_run_leaves_the_outer_its_deadline);
	PROMISE(inner_run_without_limits_halts_by_itself);
	PROMISE(kick_of_the_inner_run_does_not_end_the_outer);
	PROMISE(kick_of_the_outer_run_waits_for_the_inner);
	PROMISE(lateness_is_told_while_the_run_is_handed_back);
	PROMISE(lateness_has_a_deadline_without_a_run);
	PROMISE(lateness_can_be_changed_in_a_callback);
	PROMISE(finish_ends_the_instruction_and_no_more);
	PROMISE(finish_after_a_run_of_nothing_serves_the_second_half);
	PROMISE(finish_waits_for_the_answer);
	PROMISE(finish_serves_the_second_page_of_an_access);
	PROMISE(finish_keeps_the_limits_of_the_run);
	PROMISE(finish_keeps_a_stop);
	PROMISE(finish_keeps_a_kick);
	PROMISE(finish_keeps_a_deadline);
	PROMISE(run_once_dispatches_nothing);
	PROMISE(run_once_takes_the_answer_from_the_page);
	PROMISE(run_once_ends_by_a_kick);
	PROMISE(run_once_ends_by_a_stop_of_another_thread);
	PROMISE(run_once_is_not_stopped_with_the_run_before);
	PROMISE(exits_are_counted_by_kind);
	return test_end();
}

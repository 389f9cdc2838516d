/* SPDX-License-Identifier: MIT */
/* Batched ranges: queued by the kernel, delivered in order, before the rest. */
#include "test.h"

#define HLT "\xf4"
#define SPIN "\xeb\xfe"

static struct guest guest;

static int run(void)
{
	return ckvm_vcpu_run(guest.vcpu, NULL);
}

/* What arrived, in order: the low byte of address and value of each. */
static char heard[512];
static size_t count;
static int result;
static bool with_vcpu;

static void hear(struct ckvm_vcpu *vcpu, uint64_t address, const void *data,
		 char kind)
{
	if (count + 3 >= sizeof(heard))
		return;
	heard[count++] = kind;
	heard[count++] = (char)('0' + (address & 7));
	heard[count++] = *(const char *)data;
	heard[count] = 0;
	with_vcpu |= vcpu != NULL;
}

static int batched(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
		   const void *data, size_t length)
{
	hear(vcpu, address, data, *(const char *)opaque);
	return result;
}

static int plain_write(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
		       const void *data, size_t length)
{
	CHECK(vcpu == guest.vcpu);
	hear(NULL, address, data, 'w');
	return 0;
}

static int plain_read(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
		      void *data, size_t length)
{
	hear(NULL, address, "?", 'r');
	*(uint8_t *)data = 0x42;
	return 0;
}

static int attach(enum ckvm_space space, uint64_t first, uint64_t bytes,
		  enum ckvm_answer answer, const char *kind,
		  struct ckvm_range **out)
{
	static const struct ckvm_ops ops = { .size = sizeof(ops),
					     .write = batched };
	struct ckvm_range_config config = {
		.size = sizeof(config),
		.space = space,
		.batch = 1,
		.first = first,
		.count = bytes,
		.write = answer,
		.ops = answer == CKVM_ANSWER_OPS ? &ops : NULL,
		.opaque = (void *)(uintptr_t)kind,
	};

	return ckvm_vm_attach(guest.vm, &config, out);
}

/* Batched ports from 0x10 on and addresses from 0x8000 on; plain 0x20 on. */
static void open_guest(const char *code, size_t size, enum ckvm_answer answer)
{
	static const struct ckvm_ops ops = { sizeof(ops), plain_read,
					     plain_write };

	count = 0;
	heard[0] = 0;
	result = 0;
	with_vcpu = false;
	guest = guest_open(NULL, code, size);
	NEED(attach(CKVM_IO, 0x10, 8, answer, "p", NULL));
	NEED(attach(CKVM_MMIO, 0x8000, 8, answer, "m", NULL));
	NEED(ckvm_vm_attach_io(guest.vm, 0x20, 8, &ops, NULL, NULL));
}

#define WITH_CALLBACKS(code) open_guest(code, sizeof(code) - 1, CKVM_ANSWER_OPS)
#define WITHOUT_CALLBACKS(code) \
	open_guest(code, sizeof(code) - 1, CKVM_ANSWER_CALLER)

#define MOV(byte) "\xb0" byte	     /* mov $byte, %al */
#define OUT(port) "\xe6" port	     /* out %al, $port */
#define IN(port) "\xe4" port	     /* in $port, %al */
#define STORE(low) "\xa2" low "\x80" /* mov %al, (0x80low) */

/* Two ports, an address, a plain port, and again. */
static void writes_to_both_spaces_come_in_order_before_the_exit(void)
{
	WITH_CALLBACKS(MOV("a") OUT("\x10") MOV("b") STORE("\x03") MOV("c")
			       OUT("\x11") MOV("d") OUT("\x20") MOV("e")
				       STORE("\x04") MOV("f") OUT("\x12")
					       IN("\x21") HLT);
	CHECK(guest_halts(&guest));
	CHECK_STRING(heard, "p0am3bp1cw0dm4ep2fr1?");
	CHECK(!with_vcpu);
	CHECK_EQ(guest_rax(&guest), 0x42);
	guest_close(&guest);
}

static void writes_cost_no_exit(void)
{
	struct ckvm_limits one = { .size = sizeof(one),
				   .flags = CKVM_LIMIT_EXITS,
				   .exits = 1 };
	struct ckvm_stats stats = { .size = sizeof(stats) };

	WITH_CALLBACKS(MOV("a") OUT("\x10") OUT("\x11") OUT("\x20") HLT);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &one), CKVM_EXITS);
	CHECK_STRING(heard, "p0ap1aw0a");
	ckvm_vcpu_stats(guest.vcpu, &stats);
	CHECK_EQ(stats.batched, 2);
	CHECK_EQ(stats.total, 1);
	guest_close(&guest);
}

static void queue_that_is_full_becomes_an_exit_in_order(void)
{
	struct ckvm_stats stats = { .size = sizeof(stats) };
	uint64_t exits;

	WITH_CALLBACKS("\xb9\xf4\x01"	      /* mov $500, %cx */
		       OUT("\x10") "\x40"     /* inc %ax */
				   "\xe2\xfb" /* loop */
		       HLT);
	CHECK(guest_halts(&guest));
	ckvm_vcpu_stats(guest.vcpu, &stats);
	exits = stats.exits[KVM_EXIT_IO];
	CHECK_EQ(stats.batched + exits, 500);
	CHECK(exits > 0 && exits < 100);
	for (size_t i = 0; i * 3 + 2 < count; i++)
		CHECK_EQ((uint8_t)heard[i * 3 + 2], (uint8_t)i);
	guest_close(&guest);
}

static void kick_it(int unused)
{
	ckvm_vcpu_kick(guest.vcpu);
}

static void writes_come_before_a_kick_or_a_timeout_is_reported(void)
{
	struct ckvm_limits limits = { .size = sizeof(limits),
				      .flags = CKVM_LIMIT_TIMEOUT,
				      .timeout_ns = 200000000 };

	WITH_CALLBACKS(MOV("a") OUT("\x10") STORE("\x01") SPIN);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_TIMEOUT);
	CHECK_STRING(heard, "p0am1a");
	kick_it(0);
	CHECK_EQ(run(), CKVM_KICKED);
	CHECK_STRING(heard, "p0am1a");
	guest_close(&guest);
}

static void callback_that_returns_1_ends_the_run_after_the_exit(void)
{
	WITH_CALLBACKS(MOV("a") OUT("\x10") OUT("\x20") OUT("\x21") HLT);
	result = 1;
	CHECK_EQ(run(), CKVM_STOPPED);
	CHECK_STRING(heard, "p0aw0a");
	CHECK(guest_halts(&guest));
	CHECK_STRING(heard, "p0aw0aw1a");
	guest_close(&guest);
}

static void callback_that_fails_leaves_the_exit_for_the_next_run(void)
{
	WITH_CALLBACKS(MOV("a") OUT("\x10") IN("\x20") HLT);
	result = -EIO;
	CHECK_FAILS(run(), EIO, "range");
	CHECK(guest_halts(&guest));
	CHECK_STRING(heard, "p0ar0?");
	CHECK_EQ(guest_rax(&guest), 0x42);
	guest_close(&guest);
}

static void writes_are_handed_back_without_a_vcpu(void)
{
	const struct ckvm_access *access;

	WITHOUT_CALLBACKS(MOV("a") OUT("\x13") STORE("\x05") OUT("\x20") HLT);
	CHECK_EQ(run(), CKVM_ACCESS);
	access = ckvm_vcpu_access(guest.vcpu);
	CHECK(access->batched && access->is_write && access->space == CKVM_IO);
	CHECK_EQ(access->address, 0x13);
	CHECK_EQ(access->offset, 3);
	CHECK_EQ(access->value, 'a');
	CHECK_EQ(access->length, 1);
	CHECK_STRING(heard, "");
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_ACCESS);
	access = ckvm_vcpu_access(guest.vcpu);
	CHECK(access->batched && access->space == CKVM_MMIO);
	CHECK_EQ(access->address, 0x8005);
	CHECK_STRING(heard, "");
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_EXIT);
	CHECK_STRING(heard, "w0a");
	guest_close(&guest);
}

/* The exit behind the write that was handed back has not been looked at. */
static void abandoned_run_leaves_the_read_behind_for_the_next(void)
{
	WITHOUT_CALLBACKS(MOV("a") OUT("\x10") IN("\x20") HLT);
	CHECK_EQ(run(), CKVM_ACCESS);
	CHECK(ckvm_vcpu_access(guest.vcpu)->batched);
	CHECK_EQ(run(), CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), KVM_EXIT_HLT);
	CHECK_EQ(guest_rax(&guest), 0x42);
	guest_close(&guest);
}

static void registers_written_meanwhile_win_over_the_read_behind(void)
{
	struct kvm_regs regs;

	WITHOUT_CALLBACKS(MOV("a") OUT("\x10") IN("\x20") HLT);
	CHECK_EQ(run(), CKVM_ACCESS);
	CHECK_EQ(ckvm_vcpu_get_regs(guest.vcpu, &regs), 0);
	regs.rbx = 0x77;
	CHECK_EQ(ckvm_vcpu_set_regs(guest.vcpu, &regs), 0);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), KVM_EXIT_HLT);
	CHECK_EQ(ckvm_vcpu_get_regs(guest.vcpu, &regs), 0);
	CHECK_EQ(regs.rbx, 0x77);
	CHECK_EQ(regs.rax, 0x42);
	guest_close(&guest);
}

static void log_never_leaves_the_loop(void)
{
	struct ckvm_range_config config = { .size = sizeof(config),
					    .space = CKVM_IO,
					    .batch = 1,
					    .first = 0x40,
					    .count = 1,
					    .write = CKVM_ANSWER_LOG };
	uint8_t data[4];

	WITH_CALLBACKS(MOV("a") OUT("\x40") MOV("b") OUT("\x40") HLT);
	NEED(ckvm_buffer_create(4, &config.log));
	NEED(ckvm_vm_attach(guest.vm, &config, NULL));
	CHECK(guest_halts(&guest));
	CHECK_EQ(ckvm_buffer_take(config.log, data, 4), 2);
	CHECK(!memcmp(data, "ab", 2));
	ckvm_buffer_unref(config.log);
	guest_close(&guest);
}

static void detached_range_is_no_longer_queued(void)
{
	struct ckvm_range *range;

	WITH_CALLBACKS(OUT("\x18") OUT("\x18") HLT);
	NEED(attach(CKVM_IO, 0x18, 1, CKVM_ANSWER_OPS, "x", &range));
	ckvm_range_detach(range);
	CHECK_EQ(run(), CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), CKVM_EXIT_IO_OUT);
	guest_close(&guest);
}

static void refuses_what_the_kernel_cannot_queue(void)
{
	WITH_CALLBACKS(MOV("a") "\xa2\x10\x90" /* mov %al, (0x9010) */
		       HLT);
	CHECK(attach(CKVM_MMIO, 0x9000, UINT64_C(1) << 42, CKVM_ANSWER_OPS, "x",
		     NULL) < 0);
	CHECK(attach(CKVM_MMIO, 0x9000, UINT64_MAX - 0x9000, CKVM_ANSWER_OPS,
		     "x", NULL) < 0);
	/* And nothing is left of it. */
	CHECK_EQ(run(), CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), CKVM_EXIT_MMIO_WRITE);
	guest_close(&guest);
}

/* Two vCPUs share the queue: each write arrives once. */
static void *run_second(void *vcpu)
{
	CHECK_EQ(ckvm_vcpu_run(vcpu, NULL), CKVM_EXIT);
	return NULL;
}

static atomic_int sum;

static int add(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
	       const void *data, size_t length)
{
	atomic_fetch_add(&sum, 1);
	return 0;
}

static void queue_is_shared_by_the_vcpus(void)
{
	static const struct ckvm_ops ops = { .size = sizeof(ops),
					     .write = add };
	struct ckvm_range_config config = { .size = sizeof(config),
					    .space = CKVM_IO,
					    .batch = 1,
					    .first = 0x40,
					    .count = 1,
					    .write = CKVM_ANSWER_OPS,
					    .ops = &ops };
	struct ckvm_vcpu *second;
	pthread_t thread;

	WITH_CALLBACKS("\xb9\xe8\x03"	      /* mov $1000, %cx */
		       OUT("\x40") "\xe2\xfc" /* loop */
		       HLT);
	sum = 0;
	NEED(ckvm_vm_attach(guest.vm, &config, NULL));
	NEED(ckvm_vm_create_vcpu(guest.vm, 1, &second));
	guest_start(second, GUEST_BASE);
	NEED(pthread_create(&thread, NULL, run_second, second));
	CHECK(guest_halts(&guest));
	pthread_join(thread, NULL);
	CHECK_EQ(sum, 2000);
	guest_close(&guest);
}

static bool can_batch(void)
{
	struct ckvm *kvm;
	bool can;

	NEED(ckvm_open(NULL, &kvm));
	can = ckvm_check_extension(kvm, KVM_CAP_COALESCED_MMIO) > 0 &&
	      ckvm_check_extension(kvm, KVM_CAP_COALESCED_PIO) > 0;
	ckvm_close(kvm);
	return can;
}

int main(int argc, char **argv)
{
	test_begin(argv);
	test_needs_kvm();
	if (!can_batch()) {
		printf("this KVM does not queue writes\n");
		return 77;
	}
	PROMISE(writes_to_both_spaces_come_in_order_before_the_exit);
	PROMISE(writes_cost_no_exit);
	PROMISE(queue_that_is_full_becomes_an_exit_in_order);
	PROMISE(writes_come_before_a_kick_or_a_timeout_is_reported);
	PROMISE(callback_that_returns_1_ends_the_run_after_the_exit);
	PROMISE(callback_that_fails_leaves_the_exit_for_the_next_run);
	PROMISE(writes_are_handed_back_without_a_vcpu);
	PROMISE(abandoned_run_leaves_the_read_behind_for_the_next);
	PROMISE(registers_written_meanwhile_win_over_the_read_behind);
	PROMISE(log_never_leaves_the_loop);
	PROMISE(detached_range_is_no_longer_queued);
	PROMISE(refuses_what_the_kernel_cannot_queue);
	PROMISE(queue_is_shared_by_the_vcpus);
	return test_end();
}

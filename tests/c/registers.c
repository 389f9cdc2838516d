/* SPDX-License-Identifier: MIT */
/* The register views, through the run page and by ioctl; open accesses. */
#include "test.h"

#define OUT_10 "\xe6\x10" /* out %al, $0x10 */
#define IN_10 "\xe4\x10"  /* in $0x10, %al */
#define HLT "\xf4"

/* Every promise is made twice. */
static struct ckvm_options options = { .size = sizeof(options) };
static struct guest guest;
static void (*in_read)(struct ckvm_vcpu *);
static void (*in_write)(struct ckvm_vcpu *);
static int reads, writes;

static int device_read(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
		       void *data, size_t length)
{
	memset(data, 0x42, length);
	reads++;
	if (in_read)
		in_read(vcpu);
	return 0;
}

static int device_write(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
			const void *data, size_t length)
{
	writes++;
	if (in_write)
		in_write(vcpu);
	return 0;
}

static void open_guest(const char *code, size_t size,
		       void (*read)(struct ckvm_vcpu *),
		       void (*write)(struct ckvm_vcpu *))
{
	static const struct ckvm_ops ops = { sizeof(ops), device_read,
					     device_write };

	in_read = read;
	in_write = write;
	reads = writes = 0;
	guest = guest_open(&options, code, size);
	NEED(ckvm_vm_attach_io(guest.vm, 0x10, 4, &ops, NULL, NULL));
	NEED(ckvm_vm_attach_mmio(guest.vm, GUEST_MMIO, 0x2000, &ops, NULL,
				 NULL));
}

#define GUEST_WITH(code, read, write) \
	open_guest(code, sizeof(code) - 1, read, write)

static struct kvm_regs regs(void)
{
	struct kvm_regs all = { 0 };

	CHECK_EQ(ckvm_vcpu_get_regs(guest.vcpu, &all), 0);
	return all;
}

static const struct kvm_regs *view(struct ckvm_vcpu *vcpu)
{
	const void *data = NULL;

	NEED(ckvm_vcpu_view(vcpu, CKVM_VIEW_REGS, &data));
	return data;
}

#define WRITE_REG(vcpu, name, number)                                          \
	do {                                                                   \
		uint64_t value_ = (number);                                    \
		CHECK_EQ(ckvm_vcpu_write_view(vcpu, CKVM_VIEW_REGS,            \
					      offsetof(struct kvm_regs, name), \
					      &value_, 8),                     \
			 0);                                                   \
	} while (0)

/* Views ------------------------------------------------------------------- */

static void view_shows_the_registers_of_each_exit(void)
{
	GUEST_WITH("\x40" HLT "\x40" HLT, NULL, NULL); /* inc %ax */
	CHECK_EQ(view(guest.vcpu)->rip, GUEST_BASE);
	CHECK(guest_halts(&guest));
	CHECK_EQ(view(guest.vcpu)->rax, 1);
	CHECK_EQ(view(guest.vcpu)->rip, GUEST_BASE + 2);
	CHECK(guest_halts(&guest));
	CHECK_EQ(view(guest.vcpu)->rax, 2);
	guest_close(&guest);
}

static void view_that_is_written_reaches_the_guest(void)
{
	GUEST_WITH("\x40" HLT, NULL, NULL);
	WRITE_REG(guest.vcpu, rax, 41);
	CHECK_EQ(view(guest.vcpu)->rax, 41);
	CHECK_EQ(regs().rax, 41);
	CHECK(guest_halts(&guest));
	CHECK_EQ(view(guest.vcpu)->rax, 42);
	guest_close(&guest);
}

static void set_shows_in_the_view(void)
{
	struct kvm_regs all;

	GUEST_WITH(HLT, NULL, NULL);
	all = *view(guest.vcpu);
	all.rbx = 5;
	CHECK_EQ(ckvm_vcpu_set_regs(guest.vcpu, &all), 0);
	CHECK_EQ(view(guest.vcpu)->rbx, 5);
	WRITE_REG(guest.vcpu, rcx, 6);
	CHECK_EQ(ckvm_vcpu_set_regs(guest.vcpu, &all), 0); /* the last wins */
	CHECK_EQ(view(guest.vcpu)->rcx, all.rcx);
	guest_close(&guest);
}

static void all_three_sets_can_be_viewed_and_got(void)
{
	struct kvm_sregs sregs;
	struct kvm_vcpu_events events;
	const void *data;

	GUEST_WITH(HLT, NULL, NULL);
	CHECK_EQ(ckvm_vcpu_view(guest.vcpu, CKVM_VIEW_SREGS, &data), 0);
	CHECK_EQ(ckvm_vcpu_get_sregs(guest.vcpu, &sregs), 0);
	CHECK(!memcmp(data, &sregs, sizeof(sregs)));
	CHECK_EQ(sregs.cs.base, 0);
	CHECK_EQ(ckvm_vcpu_view(guest.vcpu, CKVM_VIEW_EVENTS, &data), 0);
	CHECK_EQ(ckvm_vcpu_get_vcpu_events(guest.vcpu, &events), 0);
	CHECK(!memcmp(data, &events, sizeof(events)));
	CHECK_EQ(ckvm_vcpu_set_vcpu_events(guest.vcpu, &events), 0);
	guest_close(&guest);
}

static void write_outside_of_a_view_is_refused(void)
{
	uint64_t value = 0;

	GUEST_WITH(HLT, NULL, NULL);
	CHECK_FAILS(ckvm_vcpu_write_view(guest.vcpu, CKVM_VIEW_REGS,
					 sizeof(struct kvm_regs), &value, 1),
		    EINVAL, "view");
	CHECK_FAILS(ckvm_vcpu_write_view(guest.vcpu, CKVM_VIEW_REGS, 8, &value,
					 SIZE_MAX),
		    EINVAL, "view");
	CHECK_FAILS(ckvm_vcpu_write_view(guest.vcpu, CKVM_VIEW_REGS, SIZE_MAX,
					 &value, 8),
		    EINVAL, "view");
	guest_close(&guest);
}

/* While an access is open -------------------------------------------------- */

static void write_rbx(struct ckvm_vcpu *vcpu)
{
	WRITE_REG(vcpu, rbx, 0x77);
	CHECK_EQ(view(vcpu)->rbx, 0x77);
}

static void write_during_a_write_takes_effect_after_it(void)
{
	GUEST_WITH("\xb3\x01" OUT_10 "\x43" HLT, NULL, write_rbx);
	CHECK(guest_halts(&guest));
	CHECK_EQ(regs().rbx, 0x78); /* inc %bx came later */
	guest_close(&guest);
}

static void write_during_a_read_keeps_the_answer(void)
{
	GUEST_WITH("\xb3\x01" IN_10 "\x43" HLT, write_rbx, NULL);
	CHECK(guest_halts(&guest));
	CHECK_EQ(regs().rbx, 0x78);
	CHECK_EQ(regs().rax, 0x42);
	CHECK_EQ(reads, 1);
	guest_close(&guest);
}

static void write_during_an_mmio_read_keeps_the_answer(void)
{
	GUEST_WITH("\xa0\x00\x80"
		   "\x43" HLT,
		   write_rbx, NULL);
	CHECK(guest_halts(&guest));
	CHECK_EQ(regs().rbx, 0x78);
	CHECK_EQ(regs().rax, 0x42);
	guest_close(&guest);
}

static void write_rax(struct ckvm_vcpu *vcpu)
{
	WRITE_REG(vcpu, rax, 0x99);
}

static void write_during_a_read_wins_over_the_answer(void)
{
	GUEST_WITH(IN_10 HLT, write_rax, NULL);
	CHECK(guest_halts(&guest));
	CHECK_EQ(regs().rax, 0x99);
	guest_close(&guest);
}

static void jump(struct ckvm_vcpu *vcpu)
{
	WRITE_REG(vcpu, rip, GUEST_BASE + 0x10);
}

/* hlt after the instruction; at 0x1010, mov $7, %bl and hlt. */
#define PAD_TO_10 "\x90\x90\x90\x90\x90\x90\x90\x90\x90\x90\x90\x90\x90"
#define JUMPED PAD_TO_10 "\xb3\x07" HLT

static void rip_can_be_written_during_a_write(void)
{
	GUEST_WITH(OUT_10 HLT JUMPED, NULL, jump);
	CHECK(guest_halts(&guest));
	CHECK_EQ(regs().rip, GUEST_BASE + 0x13);
	CHECK_EQ(regs().rbx, 7);
	CHECK_EQ(writes, 1);
	guest_close(&guest);
}

static void rip_can_be_written_during_a_read(void)
{
	GUEST_WITH(IN_10 HLT JUMPED, jump, NULL);
	CHECK(guest_halts(&guest));
	CHECK_EQ(regs().rip, GUEST_BASE + 0x13);
	CHECK_EQ(regs().rax, 0x42);
	CHECK_EQ(reads, 1);
	guest_close(&guest);
}

static void get_modify_set(struct ckvm_vcpu *vcpu)
{
	struct kvm_regs all;

	CHECK_EQ(ckvm_vcpu_get_regs(vcpu, &all), 0);
	all.rbx = 0x77;
	CHECK_EQ(ckvm_vcpu_set_regs(vcpu, &all), 0);
	CHECK_EQ(ckvm_vcpu_get_regs(vcpu, &all), 0);
	CHECK_EQ(all.rbx, 0x77);
}

static void get_modify_set_is_safe_in_a_callback(void)
{
	GUEST_WITH(IN_10 OUT_10 "\xa0\x00\x80"
				"\x43" HLT,
		   get_modify_set, get_modify_set);
	CHECK(guest_halts(&guest));
	CHECK_EQ(regs().rbx, 0x78);
	CHECK_EQ(regs().rax, 0x42);
	CHECK_EQ(regs().rip, GUEST_BASE + 9);
	CHECK_EQ(reads, 2);
	CHECK_EQ(writes, 1);
	guest_close(&guest);
}

static void set_ds_base(struct ckvm_vcpu *vcpu)
{
	struct kvm_sregs sregs;

	CHECK_EQ(ckvm_vcpu_get_sregs(vcpu, &sregs), 0);
	sregs.ds.base = 0x1000;
	CHECK_EQ(ckvm_vcpu_set_sregs(vcpu, &sregs), 0);
}

static void segments_can_be_set_in_a_callback(void)
{
	GUEST_WITH(IN_10 OUT_10 "\xa0\x00\x00" /* mov (0), %al */
		   HLT,
		   set_ds_base, NULL);
	CHECK(guest_halts(&guest));
	CHECK_EQ(regs().rax, 0xe4); /* the code's first byte */
	guest_close(&guest);
	GUEST_WITH(OUT_10 "\xa0\x00\x00" HLT, NULL, set_ds_base);
	CHECK(guest_halts(&guest));
	CHECK_EQ(regs().rax, 0xe6);
	guest_close(&guest);
}

static void access_across_two_pages_keeps_both_answers(void)
{
	GUEST_WITH("\x66\xa1\xfe\x8f" /* mov (0x8ffe), %eax */
		   "\x43" HLT,
		   write_rbx, NULL);
	CHECK(guest_halts(&guest));
	CHECK_EQ(reads, 2);
	CHECK_EQ(regs().rax, 0x42424242);
	CHECK_EQ(regs().rbx, 0x78);
	guest_close(&guest);
}

static void write_across_two_pages_keeps_what_was_set(void)
{
	GUEST_WITH("\x66\xa3\xfe\x8f" /* mov %eax, (0x8ffe) */
		   HLT JUMPED,
		   NULL, jump);
	CHECK(guest_halts(&guest));
	CHECK_EQ(writes, 2);
	CHECK(regs().rip > GUEST_BASE + 0x10);
	guest_close(&guest);
}

static void string_instruction_goes_on_after_a_write(void)
{
	uint8_t data[4] = { 0 };

	GUEST_WITH("\xba\x10\x00" /* mov $0x10, %dx */
		   "\xbf\x00\x30" /* mov $0x3000, %di */
		   "\xb9\x03\x00" /* mov $3, %cx */
		   "\xf3\x6c"	  /* rep insb */
		   HLT,
		   write_rbx, NULL);
	CHECK(guest_halts(&guest));
	CHECK_EQ(reads, 3);
	CHECK_EQ(regs().rbx, 0x77);
	CHECK_EQ(regs().rcx, 0);
	CHECK_EQ(regs().rdi, 0x3003);
	CHECK_EQ(ckvm_vm_read(guest.vm, 0x3000, data, 4), 0);
	CHECK(!memcmp(data, "\x42\x42\x42\0", 4));
	guest_close(&guest);
}

static void write_between_two_run_once_keeps_the_answer(void)
{
	GUEST_WITH("\xa0\x00\x80"
		   "\x43" HLT,
		   NULL, NULL);
	CHECK_EQ(ckvm_vcpu_run_once(guest.vcpu, NULL), 0);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), CKVM_EXIT_MMIO_READ);
	ckvm_vcpu_exit(guest.vcpu)->mmio.data[0] = 0x42;
	WRITE_REG(guest.vcpu, rbx, 0x77);
	CHECK_EQ(ckvm_vcpu_run_once(guest.vcpu, NULL), 0);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), KVM_EXIT_HLT);
	CHECK_EQ(regs().rax, 0x42);
	CHECK_EQ(regs().rbx, 0x78);
	guest_close(&guest);
}

static void finish_lays_the_write_over_the_new_state(void)
{
	struct ckvm_limits one = { .size = sizeof(one),
				   .flags = CKVM_LIMIT_EXITS,
				   .exits = 1 };

	GUEST_WITH(IN_10 "\x43" HLT, write_rbx, NULL);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &one), CKVM_EXITS);
	CHECK_EQ(ckvm_vcpu_finish(guest.vcpu), CKVM_STOPPED);
	CHECK_EQ(regs().rbx, 0x77);
	CHECK_EQ(regs().rax, 0x42);
	CHECK_EQ(regs().rip, GUEST_BASE + 2);
	CHECK(guest_halts(&guest));
	CHECK_EQ(regs().rbx, 0x78);
	guest_close(&guest);
}

/* Refusals ---------------------------------------------------------------- */

/* Long mode without paging: KVM does not take it. */
static void spoil_sregs(struct kvm_sregs *sregs)
{
	sregs->cr0 |= 0x80000000u;
	sregs->cr4 = 0;
	sregs->efer |= 0x500;
}

static void refused_set_changes_nothing(void)
{
	struct kvm_sregs before, bad, after;

	GUEST_WITH("\x40" HLT, NULL, NULL);
	CHECK_EQ(ckvm_vcpu_get_sregs(guest.vcpu, &before), 0);
	bad = before;
	spoil_sregs(&bad);
	CHECK_FAILS(ckvm_vcpu_set_sregs(guest.vcpu, &bad), EINVAL,
		    "KVM_SET_SREGS");
	CHECK_EQ(ckvm_vcpu_get_sregs(guest.vcpu, &after), 0);
	CHECK_EQ(after.cr0, before.cr0);
	CHECK_EQ(after.efer, before.efer);
	CHECK(guest_halts(&guest));
	guest_close(&guest);
}

static void spoil_view(struct ckvm_vcpu *vcpu)
{
	const void *data = NULL;
	struct kvm_sregs sregs;

	CHECK_EQ(ckvm_vcpu_view(vcpu, CKVM_VIEW_SREGS, &data), 0);
	memcpy(&sregs, data, sizeof(sregs));
	spoil_sregs(&sregs);
	CHECK_EQ(ckvm_vcpu_write_view(vcpu, CKVM_VIEW_SREGS, 0, &sregs,
				      sizeof(sregs)),
		 0);
	CHECK_EQ(ckvm_vcpu_view(vcpu, CKVM_VIEW_SREGS, &data), 0);
	CHECK_EQ(((const struct kvm_sregs *)data)->efer, sregs.efer);
}

static void check_kernels_state(uint64_t rip)
{
	const void *data = NULL;
	const struct kvm_sregs *sregs;

	CHECK_EQ(ckvm_vcpu_view(guest.vcpu, CKVM_VIEW_SREGS, &data), 0);
	sregs = data;
	CHECK_EQ(sregs->efer & 0x500, 0);
	CHECK_EQ(sregs->cr0 & 0x80000000u, 0);
	CHECK_EQ(view(guest.vcpu)->rip, rip);
	CHECK(guest_halts(&guest));
	CHECK_EQ(regs().rbx, 1);
	guest_close(&guest);
}

static void refused_view_fails_the_next_run(void)
{
	GUEST_WITH("\x43" HLT, NULL, NULL);
	spoil_view(guest.vcpu);
	CHECK_FAILS(ckvm_vcpu_run(guest.vcpu, NULL), EINVAL, "KVM_SET_SREGS");
	check_kernels_state(GUEST_BASE);
}

static void refused_view_of_a_callback_fails_its_run(void)
{
	GUEST_WITH(OUT_10 "\x43" HLT, NULL, spoil_view);
	CHECK_FAILS(ckvm_vcpu_run(guest.vcpu, NULL), EINVAL, "KVM_SET_SREGS");
	check_kernels_state(GUEST_BASE + 2);
}

static void refused_view_of_a_read_fails_its_run(void)
{
	GUEST_WITH(IN_10 "\x43" HLT, spoil_view, NULL);
	CHECK_FAILS(ckvm_vcpu_run(guest.vcpu, NULL), EINVAL, "KVM_SET_SREGS");
	CHECK_EQ(regs().rax, 0x42);
	check_kernels_state(GUEST_BASE + 2);
}

static void refused_view_fails_run_once(void)
{
	GUEST_WITH("\x43" HLT, NULL, NULL);
	spoil_view(guest.vcpu);
	CHECK_FAILS(ckvm_vcpu_run_once(guest.vcpu, NULL), EINVAL,
		    "KVM_SET_SREGS");
	check_kernels_state(GUEST_BASE);
}

static void all(void)
{
	PROMISE(view_shows_the_registers_of_each_exit);
	PROMISE(view_that_is_written_reaches_the_guest);
	PROMISE(set_shows_in_the_view);
	PROMISE(all_three_sets_can_be_viewed_and_got);
	PROMISE(write_outside_of_a_view_is_refused);
	PROMISE(write_during_a_write_takes_effect_after_it);
	PROMISE(write_during_a_read_keeps_the_answer);
	PROMISE(write_during_an_mmio_read_keeps_the_answer);
	PROMISE(write_during_a_read_wins_over_the_answer);
	PROMISE(rip_can_be_written_during_a_write);
	PROMISE(rip_can_be_written_during_a_read);
	PROMISE(get_modify_set_is_safe_in_a_callback);
	PROMISE(segments_can_be_set_in_a_callback);
	PROMISE(access_across_two_pages_keeps_both_answers);
	PROMISE(write_across_two_pages_keeps_what_was_set);
	PROMISE(string_instruction_goes_on_after_a_write);
	PROMISE(write_between_two_run_once_keeps_the_answer);
	PROMISE(finish_lays_the_write_over_the_new_state);
	PROMISE(refused_set_changes_nothing);
	PROMISE(refused_view_fails_the_next_run);
	PROMISE(refused_view_of_a_callback_fails_its_run);
	PROMISE(refused_view_of_a_read_fails_its_run);
	PROMISE(refused_view_fails_run_once);
}

int main(int argc, char **argv)
{
	test_begin(argv);
	test_needs_kvm();
	all();
	options.flags = CKVM_NO_SYNC_REGS;
	all();
	return test_end();
}

/* SPDX-License-Identifier: MIT */
/*
 * State of the processor in C: lists and blocks that are longer than expected,
 * by a stand-in for the kernel; and the signal mask.
 */
#include <sys/time.h>
#include <time.h>

#include "test.h"

/* A kernel with long lists ------------------------------------------------ */

static struct {
	uint32_t entries; /* of every list */
	uint32_t refused; /* the place of an MSR that is, from 0 on */
	uint32_t msrs;	  /* that have come */
	uint32_t most;	  /* in one call */
	int beyond;	  /* more than there were, it says of a call's MSRs */
	int xsave;	  /* KVM_CAP_XSAVE2 */
	bool silent;	  /* KVM_GET_CPUID2 does not tell how many there are */
	uint64_t mask;	  /* of signals, in the last call */
	int calls;
} fake;

static int fake_cpuid(struct kvm_cpuid2 *list)
{
	if (list->nent < fake.entries)
		return -E2BIG;
	if (!fake.silent)
		list->nent = fake.entries;
	for (uint32_t i = 0; i < fake.entries; i++)
		list->entries[i].function = i;
	return 0;
}

static int fake_msr_list(struct kvm_msr_list *list)
{
	uint32_t room = list->nmsrs;

	list->nmsrs = fake.entries;
	if (room < fake.entries)
		return -E2BIG;
	for (uint32_t i = 0; i < fake.entries; i++)
		list->indices[i] = i;
	return 0;
}

static int fake_reg_list(struct kvm_reg_list *list)
{
	uint64_t room = list->n;

	list->n = fake.entries;
	if (room < fake.entries)
		return -E2BIG;
	for (uint32_t i = 0; i < fake.entries; i++)
		list->reg[i] = i;
	return 0;
}

static int fake_nested(struct kvm_nested_state *state)
{
	uint32_t room = state->size;

	state->size = fake.entries;
	if (room < fake.entries)
		return -E2BIG;
	memset((uint8_t *)state + 8, 0x5a, fake.entries - 8);
	return 0;
}

static int fake_msrs(struct kvm_msrs *msrs, bool get)
{
	if (msrs->nmsrs > fake.most)
		fake.most = msrs->nmsrs;
	for (uint32_t i = 0; i < msrs->nmsrs; i++) {
		if (fake.msrs == fake.refused)
			return (int)i;
		CHECK_EQ(msrs->entries[i].index, fake.msrs);
		if (get)
			msrs->entries[i].data = fake.msrs;
		else
			CHECK_EQ(msrs->entries[i].data, fake.msrs);
		fake.msrs++;
	}
	return (int)msrs->nmsrs + fake.beyond;
}

static int kernel(void *opaque, int fd, unsigned long request, void *arg)
{
	struct kvm_signal_mask *mask = arg;

	switch (request) {
	case KVM_GET_SUPPORTED_CPUID:
	case KVM_GET_CPUID2:
		fake.calls++;
		return fake_cpuid(arg);
	case KVM_GET_MSR_INDEX_LIST:
		return fake_msr_list(arg);
	case KVM_GET_REG_LIST:
		return fake_reg_list(arg);
	case KVM_GET_NESTED_STATE:
		return fake_nested(arg);
	case KVM_GET_MSRS:
	case KVM_SET_MSRS:
		return fake_msrs(arg, request == KVM_GET_MSRS);
	case KVM_CHECK_EXTENSION:
		return arg == (void *)208 ? fake.xsave : 0;
	case KVM_SET_SIGNAL_MASK:
		CHECK(!mask || mask->len == 8);
		if (mask)
			memcpy(&fake.mask, mask->sigset, 8);
		return 0;
	default:
		return fake_ioctl(opaque, fd, request, arg);
	}
}

static struct ckvm_vcpu *fake_vcpu(void)
{
	static const struct ckvm_hook hook = { .before = kernel };
	struct ckvm_options options = { .size = sizeof(options),
					.path = "/dev/null",
					.hook = &hook };
	struct ckvm_vcpu *vcpu;
	struct ckvm_vm *vm;
	struct ckvm *kvm;

	memset(&fake, 0, sizeof(fake));
	fake.refused = UINT32_MAX;
	NEED(ckvm_open(&options, &kvm));
	NEED(ckvm_create_vm(kvm, 0, &vm));
	NEED(ckvm_vm_create_vcpu(vm, 0, &vcpu));
	ckvm_close(kvm);
	return vcpu;
}

static struct ckvm *kvm_of(struct ckvm_vcpu *vcpu)
{
	return ckvm_vm_kvm(ckvm_vcpu_vm(vcpu));
}

/* Promises ---------------------------------------------------------------- */

static void cpuid_lists_grow(void)
{
	static const uint32_t sizes[] = { 0, 1, 255, 256, 257, 5000 };
	struct ckvm_vcpu *vcpu = fake_vcpu();
	struct kvm_cpuid2 *list;

	for (size_t i = 0; i < COUNT(sizes); i++) {
		fake.entries = sizes[i];
		CHECK_EQ(ckvm_get_supported_cpuid(kvm_of(vcpu), &list),
			 sizes[i]);
		CHECK_EQ(list->nent, sizes[i]);
		for (uint32_t j = 0; j < sizes[i]; j++)
			CHECK_EQ(list->entries[j].function, j);
		free(list);
		CHECK_EQ(ckvm_vcpu_get_cpuid2(vcpu, &list), sizes[i]);
		free(list);
	}
	ckvm_vm_close(ckvm_vcpu_vm(vcpu));
}

/* Linux 6.1 */
static void cpuid2_is_counted_where_the_kernel_does_not(void)
{
	static const uint32_t sizes[] = { 0, 1, 2, 100, 255, 256, 257, 300 };
	struct ckvm_vcpu *vcpu = fake_vcpu();
	struct kvm_cpuid2 *list;

	fake.silent = true;
	for (size_t i = 0; i < COUNT(sizes); i++) {
		fake.entries = sizes[i];
		CHECK_EQ(ckvm_vcpu_get_cpuid2(vcpu, &list), sizes[i]);
		CHECK_EQ(list->nent, sizes[i]);
		for (uint32_t j = 0; j < sizes[i]; j++)
			CHECK_EQ(list->entries[j].function, j);
		free(list);
	}
	ckvm_vm_close(ckvm_vcpu_vm(vcpu));
}

static void a_cpuid_list_without_end_is_refused(void)
{
	struct ckvm_vcpu *vcpu = fake_vcpu();
	struct kvm_cpuid2 *list;

	fake.entries = UINT32_MAX;
	CHECK_FAILS(ckvm_vcpu_get_cpuid2(vcpu, &list), E2BIG, "KVM_GET_CPUID2");
	CHECK(fake.calls < 20);
	ckvm_vm_close(ckvm_vcpu_vm(vcpu));
}

static void index_lists_grow(void)
{
	static const uint32_t sizes[] = { 0, 1, 511, 512, 513, 9000 };
	struct ckvm_vcpu *vcpu = fake_vcpu();
	struct kvm_msr_list *msrs;
	struct kvm_reg_list *regs;

	for (size_t i = 0; i < COUNT(sizes); i++) {
		fake.entries = sizes[i];
		CHECK_EQ(ckvm_get_msr_index_list(kvm_of(vcpu), &msrs),
			 sizes[i]);
		CHECK_EQ(ckvm_vcpu_get_reg_list(vcpu, &regs), sizes[i]);
		for (uint32_t j = 0; j < sizes[i]; j++) {
			CHECK_EQ(msrs->indices[j], j);
			CHECK_EQ(regs->reg[j], j);
		}
		free(msrs);
		free(regs);
	}
	ckvm_vm_close(ckvm_vcpu_vm(vcpu));
}

static void nested_state_may_be_its_header_alone(void)
{
	static const uint32_t sizes[] = { 128, 129, 4224, 8320, 1 << 20 };
	struct ckvm_vcpu *vcpu = fake_vcpu();
	struct kvm_nested_state *state;

	for (size_t i = 0; i < COUNT(sizes); i++) {
		fake.entries = sizes[i];
		CHECK_EQ(ckvm_vcpu_get_nested_state(vcpu, &state), 0);
		CHECK_EQ(state->size, sizes[i]);
		CHECK_EQ(((uint8_t *)state)[sizes[i] - 1], 0x5a);
		free(state);
	}
	ckvm_vm_close(ckvm_vcpu_vm(vcpu));
}

static struct kvm_msr_entry entries[1000];

static void fill_entries(bool with_data)
{
	memset(entries, 0, sizeof(entries));
	for (uint32_t i = 0; i < COUNT(entries); i++) {
		entries[i].index = i;
		entries[i].data = with_data ? i : UINT64_MAX;
	}
}

/* As many as one likes, in order, and the kernel's 255 at most in a call. */
static void msrs_come_in_parts(void)
{
	static const size_t counts[] = { 0, 1, 127, 128, 129, 255, 256, 1000 };
	struct ckvm_vcpu *vcpu = fake_vcpu();
	size_t done;

	for (size_t i = 0; i < COUNT(counts); i++) {
		fake.msrs = 0;
		fill_entries(false);
		CHECK_EQ(ckvm_vcpu_get_msrs(vcpu, entries, counts[i], &done),
			 0);
		CHECK_EQ(done, counts[i]);
		for (size_t j = 0; j < counts[i]; j++)
			CHECK_EQ(entries[j].data, j);
		fake.msrs = 0;
		fill_entries(true);
		CHECK_EQ(ckvm_vcpu_set_msrs(vcpu, entries, counts[i], NULL), 0);
		CHECK_EQ(fake.msrs, counts[i]);
	}
	CHECK(fake.most > 0 && fake.most < 256);
	ckvm_vm_close(ckvm_vcpu_vm(vcpu));
}

static void a_refused_msr_is_told_by_its_place(void)
{
	static const uint32_t places[] = { 0, 1, 127, 128, 500, 999 };
	struct ckvm_vcpu *vcpu = fake_vcpu();
	size_t done;

	for (size_t i = 0; i < COUNT(places); i++) {
		fake.refused = places[i];
		fake.msrs = 0;
		fill_entries(false);
		CHECK_FAILS(ckvm_vcpu_get_msrs(vcpu, entries, COUNT(entries),
					       &done),
			    EINVAL, "KVM_GET_MSRS");
		CHECK_EQ(done, places[i]);
		for (size_t j = 0; j < done; j++)
			CHECK_EQ(entries[j].data, j);
		fake.msrs = 0;
		fill_entries(true);
		CHECK_FAILS(ckvm_vcpu_set_msrs(vcpu, entries, COUNT(entries),
					       &done),
			    EINVAL, "KVM_SET_MSRS");
		CHECK_EQ(done, places[i]);
		fake.msrs = 0;
		CHECK_FAILS(ckvm_get_msrs(kvm_of(vcpu), entries, COUNT(entries),
					  &done),
			    EINVAL, "KVM_GET_MSRS");
		CHECK_EQ(done, places[i]);
	}
	ckvm_vm_close(ckvm_vcpu_vm(vcpu));
}

static void more_msrs_than_were_asked_for_are_not_believed(void)
{
	struct ckvm_vcpu *vcpu = fake_vcpu();
	size_t done;

	fake.refused = COUNT(entries);
	fake.beyond = 500;
	fake.msrs = 0;
	fill_entries(true);
	CHECK_EQ(ckvm_vcpu_set_msrs(vcpu, entries, COUNT(entries), &done), 0);
	CHECK_EQ(done, COUNT(entries));
	CHECK_EQ(fake.msrs, COUNT(entries));
	fake.beyond = 0;
	ckvm_vm_close(ckvm_vcpu_vm(vcpu));
}

/* The kernel reads and writes without asking how much there is room for. */
static void a_buffer_too_small_for_xsave_is_refused(void)
{
	struct ckvm_vcpu *vcpu = fake_vcpu();
	uint8_t data[11008];

	CHECK_EQ(ckvm_vcpu_xsave_size(vcpu), 4096);
	CHECK_FAILS(ckvm_vcpu_set_xsave(vcpu, data, 4095), EINVAL, "size");
	CHECK_EQ(ckvm_vcpu_set_xsave(vcpu, data, 4096), 0);
	fake.xsave = 11008;
	CHECK_EQ(ckvm_vcpu_xsave_size(vcpu), 11008);
	CHECK_FAILS(ckvm_vcpu_set_xsave(vcpu, data, 4096), EINVAL, "size");
	CHECK_FAILS(ckvm_vcpu_get_xsave2(vcpu, data, 11007), EINVAL, "size");
	CHECK_EQ(ckvm_vcpu_get_xsave2(vcpu, data, sizeof(data)), 0);
	CHECK_EQ(ckvm_vcpu_set_xsave(vcpu, data, sizeof(data)), 0);
	ckvm_vm_close(ckvm_vcpu_vm(vcpu));
}

static void a_register_has_the_size_that_its_id_tells(void)
{
	struct ckvm_vcpu *vcpu = fake_vcpu();
	uint8_t data[16];

	CHECK_EQ(ckvm_reg_size(0), 1);
	CHECK_EQ(ckvm_reg_size(KVM_REG_X86 | KVM_REG_SIZE_U64), 8);
	CHECK_EQ(ckvm_reg_size(UINT64_MAX), 32768);
	CHECK_EQ(ckvm_vcpu_get_one_reg(vcpu, KVM_REG_SIZE_U128, data, 16), 0);
	CHECK_FAILS(ckvm_vcpu_get_one_reg(vcpu, KVM_REG_SIZE_U128, data, 15),
		    EINVAL, "size");
	CHECK_FAILS(ckvm_vcpu_set_one_reg(vcpu, KVM_REG_SIZE_U64, data, 7),
		    EINVAL, "size");
	ckvm_vm_close(ckvm_vcpu_vm(vcpu));
}

static void the_kick_signal_is_in_no_mask(void)
{
	struct ckvm_vcpu *vcpu = fake_vcpu();
	uint64_t all = UINT64_MAX;

	CHECK_EQ(ckvm_vcpu_set_signal_mask(vcpu, &all), 0);
	CHECK_EQ(fake.mask, ~(UINT64_C(1) << (ckvm_kick_signal() - 1)));
	all = 1 << (SIGUSR1 - 1);
	CHECK_EQ(ckvm_vcpu_set_signal_mask(vcpu, &all), 0);
	CHECK_EQ(fake.mask, all);
	CHECK_EQ(ckvm_vcpu_set_signal_mask(vcpu, NULL), 0);
	ckvm_vm_close(ckvm_vcpu_vm(vcpu));
}

static void ignore(int signal)
{
	(void)signal;
}

/* SIGUSR1 comes in 20 ms; a run of 200 ms. */
static int run_with_signal(struct guest *guest)
{
	struct ckvm_limits limits = {
		.size = sizeof(limits),
		.flags = CKVM_LIMIT_TIMEOUT | CKVM_LIMIT_SIGNALS,
		.timeout_ns = 200000000,
	};
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL,
				  .sigev_signo = SIGUSR1 };
	struct itimerspec when = { .it_value.tv_nsec = 20000000 };
	timer_t timer;
	int end;

	CHECK_EQ(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
	CHECK_EQ(timer_settime(timer, 0, &when, NULL), 0);
	end = ckvm_vcpu_run(guest->vcpu, &limits);
	timer_delete(timer);
	return end;
}

static void a_blocked_signal_ends_no_run(void)
{
	struct guest guest = GUEST("\xeb\xfe"); /* jmp . */
	uint64_t mask = 1 << (SIGUSR1 - 1);

	signal(SIGUSR1, ignore);
	CHECK_EQ(run_with_signal(&guest), -EINTR);
	CHECK_EQ(ckvm_vcpu_set_signal_mask(guest.vcpu, &mask), 0);
	CHECK_EQ(run_with_signal(&guest), CKVM_TIMEOUT);
	CHECK_EQ(ckvm_vcpu_set_signal_mask(guest.vcpu, NULL), 0);
	CHECK_EQ(run_with_signal(&guest), -EINTR);
	guest_close(&guest);
}

/* Real mode: all of it is mapped to itself, as far as KVM has addresses. */
static void virtual_memory_tells_where_it_ends(void)
{
	struct guest guest = GUEST("\xf4");
	uint64_t fault = 0;
	char text[8192];

	CHECK_EQ(ckvm_vcpu_write(guest.vcpu, 0x1ffe, "abcd", 5, &fault), 0);
	CHECK_EQ(ckvm_vcpu_read_cstring(guest.vcpu, 0x1ffe, text, sizeof(text),
					NULL),
		 4);
	CHECK_STRING(text, "abcd");
	CHECK_FAILS(ckvm_vcpu_read(guest.vcpu, 0x4ffe, text, 8, &fault), EFAULT,
		    "memory");
	CHECK_EQ(fault, 0x5000);
	CHECK_FAILS(ckvm_vcpu_write(guest.vcpu, 0x4fff, "ab", 2, NULL), EFAULT,
		    "memory");
	CHECK_EQ(ckvm_vcpu_read(guest.vcpu, 0x4fff, text, 1, NULL), 0);
	CHECK_EQ(text[0], 0);
	CHECK_EQ(ckvm_vcpu_read(guest.vcpu, UINT64_MAX, text, 2, &fault),
		 -EFAULT);
	CHECK_EQ(fault, UINT64_MAX);
	CHECK_FAILS(ckvm_vcpu_read_cstring(guest.vcpu, 0x1ffe, text, 4, NULL),
		    E2BIG, "string");
	CHECK_EQ(ckvm_vcpu_read_cstring(guest.vcpu, 0x4fff, text, 1, NULL), 0);
	guest_close(&guest);
}

int main(int argc, char **argv)
{
	(void)argc;
	test_begin(argv);
	test_needs_kvm();
	PROMISE(cpuid_lists_grow);
	PROMISE(cpuid2_is_counted_where_the_kernel_does_not);
	PROMISE(a_cpuid_list_without_end_is_refused);
	PROMISE(index_lists_grow);
	PROMISE(nested_state_may_be_its_header_alone);
	PROMISE(msrs_come_in_parts);
	PROMISE(a_refused_msr_is_told_by_its_place);
	PROMISE(more_msrs_than_were_asked_for_are_not_believed);
	PROMISE(a_buffer_too_small_for_xsave_is_refused);
	PROMISE(a_register_has_the_size_that_its_id_tells);
	PROMISE(the_kick_signal_is_in_no_mask);
	PROMISE(a_blocked_signal_ends_no_run);
	PROMISE(virtual_memory_tells_where_it_ends);
	return test_end();
}

/* SPDX-License-Identifier: MIT */
/* Names and numbers: there and back, and none that the kernel has is missing.
 */
#include <ctype.h>

#include "test.h"

static void round_trip_for_capabilities(void)
{
	int known = 0;

	for (unsigned int number = 0; number < 1000; number++) {
		const char *name = ckvm_cap_name(number);

		if (name)
			CHECK_EQ(ckvm_cap_number(name), number);
		known += name != NULL;
	}
	CHECK(known > 200);
	CHECK_EQ(ckvm_cap_number("nr_vcpus"), KVM_CAP_NR_VCPUS);
	CHECK_STRING(ckvm_cap_name(KVM_CAP_SYNC_REGS), "sync_regs");
}

static void round_trip_for_exits(void)
{
	for (uint32_t number = 0; number < 1000; number++) {
		const char *name = ckvm_exit_name(number);

		/* These two have four names, which follow. */
		if (name && number != KVM_EXIT_IO && number != KVM_EXIT_MMIO)
			CHECK_EQ(ckvm_exit_number(name), number);
	}
	CHECK_EQ(ckvm_exit_number("hlt"), KVM_EXIT_HLT);
	CHECK_EQ(ckvm_exit_number("io_in"), CKVM_EXIT_IO_IN);
	CHECK_EQ(ckvm_exit_number("io_out"), CKVM_EXIT_IO_OUT);
	CHECK_EQ(ckvm_exit_number("mmio_read"), CKVM_EXIT_MMIO_READ);
	CHECK_EQ(ckvm_exit_number("mmio_write"), CKVM_EXIT_MMIO_WRITE);
	CHECK_STRING(ckvm_exit_name(CKVM_EXIT_MMIO_WRITE), "mmio_write");
}

static void do_not_exist_for_nonsense(void)
{
	static const char *const names[] = { "", "nr_vcpu", "NR_VCPUS", "hlt ",
					     "KVM_EXIT_HLT" };

	for (size_t i = 0; i < COUNT(names); i++) {
		CHECK_EQ(ckvm_cap_number(names[i]), -ENOENT);
		CHECK_EQ(ckvm_exit_number(names[i]), -ENOENT);
	}
	CHECK_EQ(ckvm_exit_number("io"), -ENOENT);
	CHECK_EQ(ckvm_exit_number("mmio"), -ENOENT);
	CHECK(!ckvm_cap_name(UINT32_MAX));
	CHECK(!ckvm_exit_name(UINT32_MAX));
	CHECK(!ckvm_exit_name(CKVM_EXIT_MMIO_WRITE + 1));
	CHECK(!ckvm_exit_name(CKVM_EXIT_IO_IN - 1));
	CHECK(!ckvm_ioctl_name(0));
}

static void exist_for_error_numbers_of_either_sign(void)
{
	CHECK_STRING(ckvm_errno_name(EINVAL), "EINVAL");
	CHECK_STRING(ckvm_errno_name(-EINVAL), "EINVAL");
	CHECK_STRING(ckvm_errno_name(-ENOTSUP), "ENOTSUP");
	CHECK_STRING(ckvm_errno_name(-EBADMSG), "EBADMSG");
	CHECK(!ckvm_errno_name(0));
	CHECK(!ckvm_errno_name(INT32_MAX));
	CHECK(!ckvm_errno_name(INT32_MIN));
}

static void exist_for_requests(void)
{
	CHECK_STRING(ckvm_ioctl_name(KVM_RUN), "KVM_RUN");
	CHECK_STRING(ckvm_ioctl_name(KVM_SET_SREGS), "KVM_SET_SREGS");
	CHECK_STRING(ckvm_ioctl_name(KVM_CREATE_VM), "KVM_CREATE_VM");
	/* By number: headers of Linux 6.1 have no constants for these. */
	CHECK_STRING(ckvm_ioctl_name(0x40a0ae49),
		     "KVM_SET_USER_MEMORY_REGION2");
	CHECK_STRING(ckvm_ioctl_name(0x4020aed2), "KVM_SET_MEMORY_ATTRIBUTES");
	CHECK_STRING(ckvm_ioctl_name(0xc040aed4), "KVM_CREATE_GUEST_MEMFD");
	CHECK_STRING(ckvm_ioctl_name(0xc040aed5), "KVM_PRE_FAULT_MEMORY");
}

static void tell_the_version(void)
{
	char text[32];

	snprintf(text, sizeof(text), "%d.%d.%d", CKVM_VERSION_MAJOR,
		 CKVM_VERSION_MINOR, CKVM_VERSION_PATCH);
	CHECK_STRING(ckvm_version(), text);
}

/*
 * Whatever kernel this is built for: its own header is asked, and compat.h for
 * what has come since.
 */
static bool caps[1024], exits[1024];

static void lower(char *to, const char *from)
{
	while (*from)
		*to++ = (char)tolower((unsigned char)*from++);
	*to = 0;
}

static void check_definition(const char *name, unsigned int number)
{
	int before = test_failures;
	char lowered[80];

	if (!strncmp(name, "CAP_", 4)) {
		lower(lowered, name + 4);
		CHECK_EQ(ckvm_cap_number(lowered), number);
		caps[number % COUNT(caps)] = true;
	} else {
		lower(lowered, name + 5);
		if (number != KVM_EXIT_IO && number != KVM_EXIT_MMIO)
			CHECK_EQ(ckvm_exit_number(lowered), number);
		exits[number % COUNT(exits)] = true;
	}
	if (test_failures != before)
		fprintf(stderr, "(that was KVM_%s)\n", name);
}

static int check_header(const char *path)
{
	FILE *header = fopen(path, "r");
	char line[256], name[80];
	unsigned int number;
	int seen = 0;

	while (header && fgets(line, sizeof(line), header)) {
		if (sscanf(line, "#define KVM_%79s %u", name, &number) != 2)
			continue;
		/* Not KVM_EXIT_IO_IN and its kin: those are directions. */
		if (strncmp(name, "CAP_", 4) &&
		    (strncmp(name, "EXIT_", 5) ||
		     !strncmp(name, "EXIT_IO_", 8) ||
		     strstr(name, "EXIT_XEN_") || strstr(name, "EXIT_HYPERV_")))
			continue;
		check_definition(name, number);
		seen++;
	}
	if (header)
		fclose(header);
	return seen;
}

static void are_the_kernel_headers(void)
{
	const char *top = getenv("CKVM_SRCDIR");
	char path[4096];
	bool older;

	snprintf(path, sizeof(path), "%s/src/libckvm/compat.h",
		 top ? top : ".");
	if (!check_header("/usr/include/linux/kvm.h"))
		return;
	CHECK(caps[KVM_CAP_NR_VCPUS] && exits[KVM_EXIT_HLT]);
	older = !caps[223]; /* than 6.1: what compat.h has all names since */
	CHECK(check_header(path) > 30);
	if (older)
		return;
	for (unsigned int number = 0; number < COUNT(caps); number++) {
		CHECK_EQ(ckvm_cap_name(number) != NULL, caps[number]);
		CHECK_EQ(ckvm_exit_name(number) != NULL, exits[number]);
	}
}

int main(int argc, char **argv)
{
	test_begin(argv);
	PROMISE(round_trip_for_capabilities);
	PROMISE(round_trip_for_exits);
	PROMISE(do_not_exist_for_nonsense);
	PROMISE(exist_for_error_numbers_of_either_sign);
	PROMISE(exist_for_requests);
	PROMISE(tell_the_version);
	PROMISE(are_the_kernel_headers);
	return test_end();
}

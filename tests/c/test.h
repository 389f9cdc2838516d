/* SPDX-License-Identifier: MIT */
/*
 * What the programs in here have in common: checks that name the promise they
 * belong to, a guest in a line, and a stand-in for the kernel.
 *
 * A program with arguments runs only the promises whose names contain one.
 */
#ifndef TEST_H
#define TEST_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ckvm.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define UNUSED __attribute__((unused))

/* Checks ------------------------------------------------------------------ */

static const char *test_promise = "";
static int test_failures;
static char **test_filter;

UNUSED static void test_fail(const char *file, int line, const char *what)
{
	fprintf(stderr, "%s:%d: %s: %s\n", file, line, test_promise, what);
	__atomic_fetch_add(&test_failures, 1, __ATOMIC_RELAXED);
}

UNUSED static void test_equal(const char *file, int line, const char *what,
			      long long got, long long expected)
{
	char text[512];

	if (got == expected)
		return;
	snprintf(text, sizeof(text),
		 "%s is %lld (0x%llx), not %lld (0x%llx); errop \"%s\"", what,
		 got, got, expected, expected, ckvm_errop());
	test_fail(file, line, text);
}

UNUSED static void test_string(const char *file, int line, const char *what,
			       const char *got, const char *expected)
{
	char text[1024];

	if (got && !strcmp(got, expected))
		return;
	snprintf(text, sizeof(text), "%.200s is \"%.400s\", not \"%.400s\"",
		 what, got ? got : "(null)", expected);
	test_fail(file, line, text);
}

#define CHECK(condition) \
	((condition) ? (void)0 : test_fail(__FILE__, __LINE__, #condition))
#define CHECK_EQ(got, expected)                                \
	test_equal(__FILE__, __LINE__, #got, (long long)(got), \
		   (long long)(expected))
#define CHECK_STRING(got, expected) \
	test_string(__FILE__, __LINE__, #got, (got), (expected))

/* The error and the step that is to blame for it. */
#define CHECK_FAILS(call, error, step)                                       \
	(test_equal(__FILE__, __LINE__, #call, (long long)(call), -(error)), \
	 test_string(__FILE__, __LINE__, "ckvm_errop() after " #call,        \
		     ckvm_errop(), (step)))

/* For what the rest cannot do without. */
#define NEED(call)                                               \
	do {                                                     \
		long long need_ = (long long)(call);             \
		test_equal(__FILE__, __LINE__, #call, need_, 0); \
		if (need_)                                       \
			exit(1);                                 \
	} while (0)

/* Promises ---------------------------------------------------------------- */

static void test_stuck(int signal)
{
	static const char text[] = ": does not come to an end\n";

	(void)signal;
	if (write(2, test_promise, strlen(test_promise)) < 0 ||
	    write(2, text, sizeof(text) - 1) < 0)
		_exit(2);
	_exit(1);
}

static bool test_is_wanted(const char *name)
{
	if (!*test_filter)
		return true;
	for (char **word = test_filter; *word; word++)
		if (strstr(name, *word))
			return true;
	return false;
}

UNUSED static void test_run(const char *name, void (*test)(void))
{
	test_promise = name;
	if (!test_is_wanted(name))
		return;
	alarm(60);
	test();
	alarm(0);
}

#define PROMISE(function) test_run(#function, function)

UNUSED static void test_begin(char **argv)
{
	test_filter = argv + 1;
	signal(SIGALRM, test_stuck);
}

UNUSED static int test_end(void)
{
	if (test_failures)
		fprintf(stderr, "%d checks failed\n", test_failures);
	return test_failures ? 1 : 0;
}

/* The reason has to be the last line. */
UNUSED static void test_needs_kvm(void)
{
	struct ckvm *kvm;
	int error = ckvm_open(NULL, &kvm);

	if (error) {
		printf("no KVM: %s: %s\n", ckvm_errop(), strerror(-error));
		exit(test_failures ? 1 : 77);
	}
	ckvm_close(kvm);
}

UNUSED static int test_count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int count = 0;

	while (dir && readdir(dir))
		count++;
	if (dir)
		closedir(dir);
	return count;
}

/*
 * How often to do what `make soak` does `full` times: CKVM_SHARE is the percent
 * of it, 1 unless told. The promise has that much more time.
 */
UNUSED static int test_times(int full)
{
	const char *text = getenv("CKVM_SHARE");
	double share = text ? atof(text) : 1;

	alarm(60 * (1 + (unsigned int)share));
	return (int)(full / 100.0 * share);
}

/* Bytes that malloc has given out; 0 where a sanitizer has replaced it. */
UNUSED static size_t test_count_bytes(void)
{
	return mallinfo2().uordblks;
}

/* Mappings of this process, guest memory and run pages among them. */
UNUSED static int test_count_maps(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	int count = 0, c;

	while (maps && (c = getc(maps)) != EOF)
		count += c == '\n';
	if (maps)
		fclose(maps);
	return count;
}

/* Always the same numbers. */
UNUSED static uint32_t test_random(void)
{
	static uint64_t state = 20261122;

	state = state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(state >> 33);
}

/* A guest ----------------------------------------------------------------- */

#define GUEST_BASE 0x1000u /* four pages of memory, the code first */
#define GUEST_SIZE 0x4000u
#define GUEST_MMIO 0x8000u /* no memory from here on */

struct guest {
	struct ckvm *kvm;
	struct ckvm_vm *vm;
	struct ckvm_memory *memory;
	struct ckvm_vcpu *vcpu;
};

/* In real mode, with flat segments. */
UNUSED static void guest_start(struct ckvm_vcpu *vcpu, uint64_t rip)
{
	struct kvm_regs regs = { .rip = rip, .rflags = 2, .rsp = 0x4000 };
	struct kvm_sregs sregs;

	NEED(ckvm_vcpu_get_sregs(vcpu, &sregs));
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	NEED(ckvm_vcpu_set_sregs(vcpu, &sregs));
	NEED(ckvm_vcpu_set_regs(vcpu, &regs));
}

UNUSED static struct guest guest_open(const struct ckvm_options *options,
				      const void *code, size_t size)
{
	struct ckvm_memory_config config = { .size = sizeof(config),
					     .gpa = GUEST_BASE,
					     .bytes = GUEST_SIZE };
	struct guest guest;

	NEED(ckvm_open(options, &guest.kvm));
	NEED(ckvm_create_vm(guest.kvm, 0, &guest.vm));
	NEED(ckvm_vm_add_memory(guest.vm, &config, &guest.memory));
	NEED(ckvm_vm_write(guest.vm, GUEST_BASE, code, size));
	NEED(ckvm_vm_create_vcpu(guest.vm, 0, &guest.vcpu));
	guest_start(guest.vcpu, GUEST_BASE);
	return guest;
}

/* GUEST("\xf4"): its code as a string. */
#define GUEST(code) guest_open(NULL, code, sizeof(code) - 1)

UNUSED static void guest_close(struct guest *guest)
{
	ckvm_vm_close(guest->vm);
	ckvm_close(guest->kvm);
}

UNUSED static uint64_t guest_rax(struct guest *guest)
{
	struct kvm_regs regs = { .rax = UINT64_MAX };

	CHECK_EQ(ckvm_vcpu_get_regs(guest->vcpu, &regs), 0);
	return regs.rax;
}

/* Runs until the guest halts. */
UNUSED static bool guest_halts(struct guest *guest)
{
	return ckvm_vcpu_run(guest->vcpu, NULL) == CKVM_EXIT &&
	       ckvm_vcpu_exit_number(guest->vcpu) == KVM_EXIT_HLT;
}

/* A kernel that says yes ----------------------------------------------------
 */

/* For what needs no guest: a VM for which every ioctl succeeds. */
UNUSED static int fake_ioctl(void *opaque, int fd, unsigned long request,
			     void *arg)
{
	(void)opaque, (void)fd, (void)arg;
	switch (request) {
	case KVM_GET_API_VERSION:
		return 12;
	case KVM_GET_VCPU_MMAP_SIZE:
		return 3 * 4096;
	case KVM_CREATE_VM:
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	case KVM_CREATE_VCPU:
		fd = memfd_create("vcpu", MFD_CLOEXEC);
		return ftruncate(fd, 3 * 4096) ? -EIO : fd;
	default:
		return 0;
	}
}

UNUSED static struct ckvm_vm *fake_vm(void)
{
	static const struct ckvm_hook hook = { .before = fake_ioctl };
	struct ckvm_options options = { .size = sizeof(options),
					.path = "/dev/null",
					.hook = &hook };
	struct ckvm_vm *vm;
	struct ckvm *kvm;

	NEED(ckvm_open(&options, &kvm));
	NEED(ckvm_create_vm(kvm, 0, &vm));
	ckvm_close(kvm);
	return vm;
}

#endif

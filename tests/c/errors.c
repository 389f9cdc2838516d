/* SPDX-License-Identifier: MIT */
/* ckvm_errop(): each failure names its step, on its own thread. */
#include <sys/resource.h>

#include "test.h"

static void nothing_has_failed_at_first(void)
{
	CHECK_STRING(ckvm_errop(), "");
}

static void names_are_looked_up_with_an_error(void)
{
	CHECK_FAILS(ckvm_cap_number("no_such_thing"), ENOENT, "capability");
	CHECK_FAILS(ckvm_exit_number("no_such_thing"), ENOENT, "exit");
}

static void open_says_what_the_system_says(void)
{
	struct ckvm_options options = { .size = sizeof(options),
					.path = "/no/such/file" };
	struct ckvm *untouched = (void *)&options, *kvm = untouched;

	CHECK_FAILS(ckvm_open(&options, &kvm), ENOENT, "open");
	options.path = "/";
	CHECK_FAILS(ckvm_open(&options, &kvm), EISDIR, "open");
	options.path = "/dev/null";
	CHECK_FAILS(ckvm_open(&options, &kvm), ENOTTY, "KVM_GET_API_VERSION");
	CHECK(kvm == untouched);
}

static int other_version(void *opaque, int fd, unsigned long request, void *arg)
{
	return request == KVM_GET_API_VERSION
		       ? 13
		       : fake_ioctl(opaque, fd, request, arg);
}

static int small_page(void *opaque, int fd, unsigned long request, void *arg)
{
	return request == KVM_GET_VCPU_MMAP_SIZE
		       ? 16
		       : fake_ioctl(opaque, fd, request, arg);
}

static void open_refuses_a_kvm_of_another_kind(void)
{
	struct ckvm_hook hook = { .before = other_version };
	struct ckvm_options options = { .size = sizeof(options),
					.path = "/dev/null",
					.hook = &hook };
	int fds = test_count_fds();
	struct ckvm *kvm;

	CHECK_FAILS(ckvm_open(&options, &kvm), ENOTSUP, "KVM_GET_API_VERSION");
	hook.before = small_page;
	CHECK_FAILS(ckvm_open(&options, &kvm), ENOTSUP,
		    "KVM_GET_VCPU_MMAP_SIZE");
	CHECK_EQ(test_count_fds(), fds);
}

static void *fail_elsewhere(void *unused)
{
	struct ckvm_buffer *buffer;

	CHECK_STRING(ckvm_errop(), "");
	CHECK_FAILS(ckvm_buffer_create(0, &buffer), EINVAL, "buffer");
	return NULL;
}

static void each_thread_has_its_own(void)
{
	pthread_t thread;

	CHECK_FAILS(ckvm_set_kick_signal(-1), EINVAL, "kick signal");
	NEED(pthread_create(&thread, NULL, fail_elsewhere, NULL));
	pthread_join(thread, NULL);
	CHECK_STRING(ckvm_errop(), "kick signal");
}

static void a_success_changes_nothing(void)
{
	CHECK_FAILS(ckvm_set_kick_signal(-1), EINVAL, "kick signal");
	ckvm_vm_close(fake_vm());
	CHECK_STRING(ckvm_errop(), "kick signal");
}

/* Without a descriptor to spare, each constructor fails, and leaves nothing. */
static void constructors_say_that_descriptors_are_short(void)
{
	struct rlimit limit, old;
	struct ckvm_vcpu *vcpu;
	struct ckvm *kvm;
	struct ckvm_vm *vm, *other;
	int fds = test_count_fds();

	NEED(ckvm_open(NULL, &kvm));
	NEED(ckvm_create_vm(kvm, 0, &vm));
	NEED(getrlimit(RLIMIT_NOFILE, &old));
	limit = old;
	limit.rlim_cur = 0;
	NEED(setrlimit(RLIMIT_NOFILE, &limit));
	CHECK_FAILS(ckvm_open(NULL, &kvm), EMFILE, "open");
	CHECK_FAILS(ckvm_create_vm(kvm, 0, &other), EMFILE, "KVM_CREATE_VM");
	CHECK_FAILS(ckvm_vm_create_vcpu(vm, 0, &vcpu), EMFILE,
		    "KVM_CREATE_VCPU");
	NEED(setrlimit(RLIMIT_NOFILE, &old));
	ckvm_vm_close(vm);
	ckvm_close(kvm);
	CHECK_EQ(test_count_fds(), fds);
}

static void kernel_refusals_are_named_after_the_request(void)
{
	struct guest guest = GUEST("\xf4");
	struct ckvm_vcpu *vcpu;
	struct ckvm_vm *vm;

	CHECK(ckvm_create_vm(guest.kvm, 0x7fff0000, &vm) < 0);
	CHECK_STRING(ckvm_errop(), "KVM_CREATE_VM");
	CHECK_FAILS(ckvm_vm_create_vcpu(guest.vm, 0, &vcpu), EEXIST,
		    "KVM_CREATE_VCPU");
	CHECK_FAILS(ckvm_vm_create_vcpu(guest.vm, UINT32_MAX, &vcpu), EINVAL,
		    "KVM_CREATE_VCPU");
	CHECK(guest_halts(&guest));
	guest_close(&guest);
}

int main(int argc, char **argv)
{
	test_begin(argv);
	PROMISE(nothing_has_failed_at_first);
	PROMISE(names_are_looked_up_with_an_error);
	PROMISE(open_says_what_the_system_says);
	PROMISE(open_refuses_a_kvm_of_another_kind);
	PROMISE(each_thread_has_its_own);
	PROMISE(a_success_changes_nothing);
	test_needs_kvm();
	PROMISE(constructors_say_that_descriptors_are_short);
	PROMISE(kernel_refusals_are_named_after_the_request);
	return test_end();
}

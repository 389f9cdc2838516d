/* SPDX-License-Identifier: MIT */
/* /dev/kvm itself: opening it, and what it says about the kernel's KVM. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define API_VERSION 12 /* since Linux 2.6.22, and for good (4.1) */

/*
 * A child of fork() has copies of the descriptors, but KVM answers to the
 * process that created the VM alone, and guest memory is not copied. Counting
 * forks costs nothing between them, getpid() would cost a system call each.
 */
uint32_t ckvm__fork_generation;

static void count_fork(void)
{
	ckvm__fork_generation++;
	/* Another thread id, and timers are not inherited. */
	memset(&ckvm__thread, 0, sizeof(ckvm__thread));
}

static void watch_forks(void)
{
	pthread_atfork(NULL, NULL, count_fork);
}

uint64_t ckvm__now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int ckvm__kvm_ioctl(struct ckvm *kvm, unsigned long request, void *arg)
{
	int error = ckvm__check_process(kvm);

	return error ? error : ckvm__ioctl(kvm, kvm->fd, request, arg);
}

int ckvm_check_extension(struct ckvm *kvm, unsigned int cap)
{
	return ckvm__kvm_ioctl(kvm, KVM_CHECK_EXTENSION,
			       (void *)(uintptr_t)cap);
}

/* What the capability says; where it says nothing, the number that is given. */
static int count_of(struct ckvm *kvm, unsigned int cap, int otherwise)
{
	int count = ckvm_check_extension(kvm, cap);

	return count ? count : otherwise;
}

int ckvm_get_nr_vcpus(struct ckvm *kvm)
{
	return count_of(kvm, KVM_CAP_NR_VCPUS, 4);
}

int ckvm_get_max_vcpus(struct ckvm *kvm)
{
	int count = count_of(kvm, KVM_CAP_MAX_VCPUS, 0);

	return count ? count : ckvm_get_nr_vcpus(kvm);
}

int ckvm_get_max_vcpu_id(struct ckvm *kvm)
{
	int count = count_of(kvm, KVM_CAP_MAX_VCPU_ID, 0);

	return count ? count : ckvm_get_max_vcpus(kvm);
}

int ckvm_get_nr_memslots(struct ckvm *kvm)
{
	return count_of(kvm, KVM_CAP_NR_MEMSLOTS, 32);
}

int ckvm_get_api_version(struct ckvm *kvm)
{
	return ckvm__kvm_ioctl(kvm, KVM_GET_API_VERSION, NULL);
}

int ckvm_get_vcpu_mmap_size(struct ckvm *kvm)
{
	return ckvm__kvm_ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL);
}

/* What every VM will need to know, asked once. */
static int ask(struct ckvm *kvm)
{
	int cap;

	cap = ckvm_get_api_version(kvm);
	if (cap < 0)
		return cap;
	if (cap != API_VERSION)
		return ckvm__fail("KVM_GET_API_VERSION", -ENOTSUP);

	kvm->run_size = ckvm_get_vcpu_mmap_size(kvm);
	if (kvm->run_size < 0)
		return kvm->run_size;
	if ((size_t)kvm->run_size < sizeof(struct kvm_run))
		return ckvm__fail("KVM_GET_VCPU_MMAP_SIZE", -ENOTSUP);

	cap = ckvm_check_extension(kvm, KVM_CAP_SYNC_REGS);
	if (cap > 0 && !(kvm->flags & CKVM_NO_SYNC_REGS))
		kvm->sync = (uint32_t)cap & KVM_SYNC_X86_VALID_FIELDS;

	/* The value is the queue's page; batched ports use the same one. */
	cap = ckvm_check_extension(kvm, KVM_CAP_COALESCED_MMIO);
	if (cap <= 0 || (cap + 1) * (int)PAGE_SIZE > kvm->run_size)
		return 0;
	kvm->ring_page = (uint32_t)cap;
	kvm->batching = 1u << CKVM_MMIO;
	if (ckvm_check_extension(kvm, KVM_CAP_COALESCED_PIO) > 0)
		kvm->batching |= 1u << CKVM_IO;
	return 0;
}

static int copy_options(const struct ckvm_options *options,
			struct ckvm_options *opt)
{
	memset(opt, 0, sizeof(*opt));
	if (options)
		memcpy(opt, options,
		       options->size < sizeof(*opt) ? options->size
						    : sizeof(*opt));
	if (opt->flags & ~(CKVM_NO_SYNC_REGS | CKVM_NO_CLOEXEC))
		return ckvm__fail("flags", -EINVAL);
	return 0;
}

static struct ckvm *new_kvm(const struct ckvm_options *opt)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct ckvm *kvm = calloc(1, sizeof(*kvm));

	pthread_once(&once, watch_forks);
	if (!kvm)
		return NULL;
	kvm->refs = 1;
	kvm->users = 1;
	kvm->flags = opt->flags;
	kvm->fork_generation = ckvm__fork_generation;
	kvm->opened_ns = ckvm__now();
	kvm->opened_ticks = ckvm__ticks();
	if (opt->hook) {
		kvm->hook = *opt->hook;
		kvm->hooked = true;
	}
	return kvm;
}

/* Opens the path, or duplicates what was received. */
static int get_fd(const struct ckvm_options *opt, int from)
{
	bool cloexec = !(opt->flags & CKVM_NO_CLOEXEC);
	int fd;

	if (from >= 0) {
		fd = fcntl(from, cloexec ? F_DUPFD_CLOEXEC : F_DUPFD, 0);
		return fd < 0 ? ckvm__fail("fcntl", -errno) : fd;
	}
	fd = open(opt->path ? opt->path : "/dev/kvm",
		  O_RDWR | (cloexec ? O_CLOEXEC : 0));
	return fd < 0 ? ckvm__fail("open", -errno) : fd;
}

static int open_kvm(const struct ckvm_options *options, int from,
		    struct ckvm **out)
{
	struct ckvm_options opt;
	struct ckvm *kvm;
	int error = copy_options(options, &opt);

	if (error)
		return error;
	kvm = new_kvm(&opt);
	if (!kvm)
		return ckvm__fail("malloc", -ENOMEM);
	kvm->fd = get_fd(&opt, from);
	if (kvm->fd < 0) {
		error = kvm->fd;
		goto err_free;
	}
	error = ask(kvm);
	if (error)
		goto err_close;
	*out = kvm;
	return 0;

err_close:
	close(kvm->fd);
err_free:
	free(kvm);
	return error;
}

int ckvm_open(const struct ckvm_options *options, struct ckvm **out)
{
	return open_kvm(options, -1, out);
}

int ckvm_from_fd(int fd, const struct ckvm_options *options, struct ckvm **out)
{
	if (fd < 0)
		return ckvm__fail("fcntl", -EBADF);
	return open_kvm(options, fd, out);
}

struct ckvm *ckvm_ref(struct ckvm *kvm)
{
	atomic_fetch_add(&kvm->users, 1);
	return kvm;
}

void ckvm__unref(struct ckvm *kvm)
{
	if (atomic_fetch_sub(&kvm->refs, 1) == 1)
		free(kvm);
}

void ckvm_close(struct ckvm *kvm)
{
	if (!kvm || atomic_fetch_sub(&kvm->users, 1) != 1)
		return;
	close(kvm->fd);
	ckvm__unref(kvm);
}

int ckvm_fd(const struct ckvm *kvm)
{
	return !atomic_load(&kvm->users) ? ckvm__fail("closed", -EBADF)
					 : kvm->fd;
}

int ckvm__duplicate(int fd, const char *kind, char *rest, size_t size)
{
	char path[32], name[64];
	ssize_t length;
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	if (copy < 0)
		return ckvm__fail("fcntl", -errno);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", copy);
	length = readlink(path, name, sizeof(name) - 1);
	if (length < 0) {
		int error = ckvm__fail("readlink", -errno);

		close(copy);
		return error;
	}
	name[length] = 0;
	if (strncmp(name, kind, strlen(kind)) ||
	    strlen(name) - strlen(kind) >= size) {
		close(copy);
		return ckvm__fail("from_fd", -ENOTTY);
	}
	strcpy(rest, name + strlen(kind));
	return copy;
}

/* SPDX-License-Identifier: MIT */
/*
 * Objects of descriptors from elsewhere: made with plain system calls here, or
 * received from another process.
 */
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "test.h"

/* A VM with a page of memory and a vCPU, as a program without ckvm has it. */
struct plain {
	int kvm, vm, vcpu;
	uint8_t *memory;
	struct kvm_run *run;
	size_t run_size;
};

static struct plain plain_open(const void *code, size_t size, unsigned long id)
{
	struct plain plain;
	struct kvm_userspace_memory_region region = {
		.guest_phys_addr = GUEST_BASE,
		.memory_size = 0x1000,
	};

	plain.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	plain.vm = ioctl(plain.kvm, KVM_CREATE_VM, 0);
	plain.vcpu = ioctl(plain.vm, KVM_CREATE_VCPU, id);
	plain.run_size = (size_t)ioctl(plain.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	plain.run = mmap(NULL, plain.run_size, PROT_READ | PROT_WRITE,
			 MAP_SHARED, plain.vcpu, 0);
	plain.memory = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(plain.memory, code, size);
	region.userspace_addr = (uintptr_t)plain.memory;
	NEED(ioctl(plain.vm, KVM_SET_USER_MEMORY_REGION, &region));
	return plain;
}

#define PLAIN(code) plain_open(code, sizeof(code) - 1, 0)

static void plain_close(struct plain *plain)
{
	munmap(plain->run, plain->run_size);
	close(plain->vcpu);
	close(plain->vm);
	close(plain->kvm);
	munmap(plain->memory, 0x1000);
}

struct adopted {
	struct ckvm *kvm;
	struct ckvm_vm *vm;
	struct ckvm_vcpu *vcpu;
};

static struct adopted adopt(const struct plain *plain)
{
	struct adopted adopted;

	NEED(ckvm_from_fd(plain->kvm, NULL, &adopted.kvm));
	NEED(ckvm_vm_from_fd(adopted.kvm, plain->vm, &adopted.vm));
	NEED(ckvm_vm_vcpu_from_fd(adopted.vm, plain->vcpu, &adopted.vcpu));
	return adopted;
}

static void adopted_close(struct adopted *adopted)
{
	ckvm_vm_close(adopted->vm);
	ckvm_close(adopted->kvm);
}

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

static void an_adopted_guest_runs(void)
{
	int before = test_count_fds();
	struct plain plain = plain_open("\xb0\x2a\xe6\x10\xf4", 5, 3);
	int own = test_count_fds();
	struct adopted guest = adopt(&plain);

	CHECK_EQ(ckvm_vcpu_id(guest.vcpu), 3);
	CHECK(ckvm_fd(guest.kvm) != plain.kvm);
	CHECK(ckvm_vm_fd(guest.vm) != plain.vm);
	CHECK(ckvm_vcpu_fd(guest.vcpu) != plain.vcpu);
	CHECK_EQ(fcntl(ckvm_vm_fd(guest.vm), F_GETFD), FD_CLOEXEC);
	CHECK_EQ(fcntl(ckvm_vcpu_fd(guest.vcpu), F_GETFD), FD_CLOEXEC);
	guest_start(guest.vcpu, GUEST_BASE);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, NULL), CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), CKVM_EXIT_IO_OUT);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, NULL), CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), KVM_EXIT_HLT);
	adopted_close(&guest);
	CHECK(is_open(plain.kvm) && is_open(plain.vm) && is_open(plain.vcpu));
	CHECK_EQ(test_count_fds(), own);
	CHECK_EQ(plain.memory[0], 0xb0);
	plain_close(&plain);
	CHECK_EQ(test_count_fds(), before);
}

/* in $0x10, %al; the answer is there, and KVM_RUN has not taken it yet. */
static void an_access_left_open_is_finished_before_registers_change(void)
{
	struct plain plain = PLAIN("\xe4\x10\xf4");
	struct kvm_regs regs = { .rip = GUEST_BASE, .rflags = 2 };
	struct kvm_sregs sregs;
	struct adopted guest;

	NEED(ioctl(plain.vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	NEED(ioctl(plain.vcpu, KVM_SET_SREGS, &sregs));
	NEED(ioctl(plain.vcpu, KVM_SET_REGS, &regs));
	NEED(ioctl(plain.vcpu, KVM_RUN, 0));
	CHECK_EQ(plain.run->exit_reason, KVM_EXIT_IO);
	*((uint8_t *)plain.run + plain.run->io.data_offset) = 0x42;

	guest = adopt(&plain);
	NEED(ckvm_vcpu_get_regs(guest.vcpu, &regs));
	regs.rbx = 7;
	NEED(ckvm_vcpu_set_regs(guest.vcpu, &regs));
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, NULL), CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), KVM_EXIT_HLT);
	NEED(ckvm_vcpu_get_regs(guest.vcpu, &regs));
	CHECK_EQ(regs.rax & 0xff, 0x42);
	CHECK_EQ(regs.rbx, 7);
	adopted_close(&guest);
	plain_close(&plain);
}

static void a_vcpu_has_one_object_at_a_time(void)
{
	struct plain plain = PLAIN("\xf4");
	struct adopted guest = adopt(&plain);
	struct ckvm_vcpu *vcpu;
	struct ckvm_vm *other;

	NEED(ckvm_vm_from_fd(guest.kvm, plain.vm, &other));
	CHECK_FAILS(ckvm_vm_vcpu_from_fd(guest.vm, plain.vcpu, &vcpu), EBUSY,
		    "from_fd");
	CHECK_FAILS(ckvm_vm_vcpu_from_fd(other, plain.vcpu, &vcpu), EBUSY,
		    "from_fd");
	ckvm_vcpu_close(guest.vcpu);
	CHECK_EQ(ckvm_vm_vcpu_from_fd(other, plain.vcpu, &vcpu), 0);
	ckvm_vcpu_close(vcpu);
	CHECK_EQ(ckvm_vm_vcpu_from_fd(guest.vm, plain.vcpu, &vcpu), 0);
	ckvm_vm_close(other);
	adopted_close(&guest);
	plain_close(&plain);
}

static void two_vcpus_of_one_id_are_not_in_one_vm(void)
{
	struct plain one = PLAIN("\xf4"), two = PLAIN("\xf4");
	struct adopted guest = adopt(&one);
	struct ckvm_vcpu *vcpu;

	CHECK_FAILS(ckvm_vm_vcpu_from_fd(guest.vm, two.vcpu, &vcpu), EEXIST,
		    "from_fd");
	adopted_close(&guest);
	plain_close(&two);
	plain_close(&one);
}

/* And the vCPU is left as whoever had it before can go on with it. */
static void memory_is_taken_back_before_it_is_unmapped(void)
{
	struct plain plain = PLAIN("\xa0\x00\x80\xf4"); /* mov 0x8000, %al */
	struct ckvm_memory_config config = { .size = sizeof(config),
					     .gpa = GUEST_MMIO,
					     .bytes = 0x1000 };
	struct kvm_regs regs = { .rip = GUEST_BASE, .rflags = 2 };
	struct adopted guest = adopt(&plain);
	struct ckvm_memory *memory;

	CHECK_FAILS(ckvm_vm_add_memory(guest.vm, &config, &memory), EINVAL,
		    "slot");
	config.flags = CKVM_MEMORY_SLOT;
	config.slot = 9;
	NEED(ckvm_vm_add_memory(guest.vm, &config, &memory));
	NEED(ckvm_vm_write(guest.vm, GUEST_MMIO, "\x55", 1));
	guest_start(guest.vcpu, GUEST_BASE);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, NULL), CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), KVM_EXIT_HLT);
	adopted_close(&guest);
	NEED(ioctl(plain.vcpu, KVM_SET_REGS, &regs));
	NEED(ioctl(plain.vcpu, KVM_RUN, 0));
	CHECK_EQ(plain.run->exit_reason, KVM_EXIT_MMIO);
	CHECK_EQ(plain.run->mmio.phys_addr, GUEST_MMIO);
	plain_close(&plain);
}

static void what_is_no_kvm_is_refused(void)
{
	struct plain plain = PLAIN("\xf4");
	int file = open("/dev/null", O_RDWR), before = test_count_fds();
	struct ckvm_vcpu *vcpu;
	struct ckvm_vm *vm, *own;
	struct ckvm *kvm, *none;

	NEED(ckvm_open(NULL, &kvm));
	NEED(ckvm_create_vm(kvm, 0, &own));
	CHECK_FAILS(ckvm_from_fd(-1, NULL, &none), EBADF, "fcntl");
	CHECK_FAILS(ckvm_from_fd(1 << 20, NULL, &none), EBADF, "fcntl");
	CHECK_FAILS(ckvm_from_fd(file, NULL, &none), ENOTTY,
		    "KVM_GET_API_VERSION");
	CHECK_FAILS(ckvm_from_fd(plain.vm, NULL, &none), ENOTTY,
		    "KVM_GET_API_VERSION");
	for (int *fd = (int[]){ plain.kvm, plain.vcpu, file, 0 }; *fd; fd++)
		CHECK_FAILS(ckvm_vm_from_fd(kvm, *fd, &vm), ENOTTY, "from_fd");
	for (int *fd = (int[]){ plain.kvm, plain.vm, file, 0 }; *fd; fd++)
		CHECK_FAILS(ckvm_vm_vcpu_from_fd(own, *fd, &vcpu), ENOTTY,
			    "from_fd");
	CHECK_FAILS(ckvm_vm_from_fd(kvm, -1, &vm), EBADF, "fcntl");
	CHECK_FAILS(ckvm_vm_vcpu_from_fd(own, -1, &vcpu), EBADF, "fcntl");
	ckvm_vm_ref(own);
	ckvm_vm_close(own);
	CHECK_FAILS(ckvm_vm_vcpu_from_fd(own, -1, &vcpu), EBADF, "closed");
	ckvm_vm_unref(own);
	ckvm_close(kvm);
	CHECK_EQ(test_count_fds(), before);
	close(file);
	plain_close(&plain);
}

static void send_fd(int socket, int fd)
{
	char space[CMSG_SPACE(sizeof(int))] = { 0 }, byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr message = { .msg_iov = &iov,
				  .msg_iovlen = 1,
				  .msg_control = space,
				  .msg_controllen = sizeof(space) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(int));
	if (sendmsg(socket, &message, 0) < 0)
		_exit(1);
}

static int receive_fd(int socket)
{
	char space[CMSG_SPACE(sizeof(int))], byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr message = { .msg_iov = &iov,
				  .msg_iovlen = 1,
				  .msg_control = space,
				  .msg_controllen = sizeof(space) };
	int fd = -1;

	if (recvmsg(socket, &message, 0) > 0 && CMSG_FIRSTHDR(&message))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	return fd;
}

/* KVM serves a VM to the process that has created it, and to no other. */
static void another_process_may_send_a_system_but_no_vm(void)
{
	int sockets[2], fds[3];
	struct ckvm_vcpu *vcpu;
	struct ckvm_vm *vm, *own;
	struct ckvm *kvm;
	char byte;
	pid_t child;

	NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	child = fork();
	if (!child) {
		struct plain plain = PLAIN("\xf4");

		send_fd(sockets[1], plain.kvm);
		send_fd(sockets[1], plain.vm);
		send_fd(sockets[1], plain.vcpu);
		if (read(sockets[1], &byte, 1) != 1)
			_exit(1);
		_exit(0);
	}
	for (int i = 0; i < 3; i++)
		fds[i] = receive_fd(sockets[0]);
	NEED(ckvm_from_fd(fds[0], NULL, &kvm));
	NEED(ckvm_create_vm(kvm, 0, &own));
	CHECK_FAILS(ckvm_vm_from_fd(kvm, fds[1], &vm), EIO,
		    "KVM_CHECK_EXTENSION");
	CHECK_FAILS(ckvm_vm_vcpu_from_fd(own, fds[2], &vcpu), EIO,
		    "KVM_GET_MP_STATE");
	CHECK_EQ(write(sockets[0], "", 1), 1);
	ckvm_vm_close(own);
	ckvm_close(kvm);
	for (int i = 0; i < 3; i++)
		close(fds[i]);
	close(sockets[0]);
	close(sockets[1]);
	waitpid(child, NULL, 0);
}

static void a_descriptor_outlives_exec_when_it_is_told_to(void)
{
	struct ckvm_options options = { .size = sizeof(options),
					.flags = CKVM_NO_CLOEXEC };
	struct ckvm *kvm, *other;

	NEED(ckvm_open(&options, &kvm));
	CHECK_EQ(fcntl(ckvm_fd(kvm), F_GETFD), 0);
	NEED(ckvm_from_fd(ckvm_fd(kvm), &options, &other));
	CHECK_EQ(fcntl(ckvm_fd(other), F_GETFD), 0);
	ckvm_close(other);
	NEED(ckvm_from_fd(ckvm_fd(kvm), NULL, &other));
	CHECK_EQ(fcntl(ckvm_fd(other), F_GETFD), FD_CLOEXEC);
	ckvm_close(other);
	ckvm_close(kvm);
	options.flags = 1u << 31;
	CHECK_FAILS(ckvm_open(&options, &kvm), EINVAL, "flags");
}

int main(int argc, char **argv)
{
	(void)argc;
	test_begin(argv);
	test_needs_kvm();
	PROMISE(an_adopted_guest_runs);
	PROMISE(an_access_left_open_is_finished_before_registers_change);
	PROMISE(a_vcpu_has_one_object_at_a_time);
	PROMISE(two_vcpus_of_one_id_are_not_in_one_vm);
	PROMISE(memory_is_taken_back_before_it_is_unmapped);
	PROMISE(what_is_no_kvm_is_refused);
	PROMISE(another_process_may_send_a_system_but_no_vm);
	PROMISE(a_descriptor_outlives_exec_when_it_is_told_to);
	return test_end();
}

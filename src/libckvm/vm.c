/* SPDX-License-Identifier: MIT */
/* One virtual machine: its life, and the lives of what it owns. */
#include <stdlib.h>
#include <unistd.h>

#include "internal.h"

int ckvm__vm_hold(struct ckvm_vm *vm)
{
	unsigned int users = atomic_load(&vm->users);
	int error = ckvm__check_process(vm->kvm);

	if (unlikely(error))
		return error;
	if (unlikely(atomic_load_explicit(&vm->closed, memory_order_acquire)))
		return ckvm__fail("closed", -EBADF);
	do
		if (!users)
			return ckvm__fail("closed", -EBADF);
	while (!atomic_compare_exchange_weak(&vm->users, &users, users + 1));
	return 0;
}

/* What came from elsewhere may be a descriptor of a VM that is here already. */
static atomic_bool adopting;

void ckvm__vm_adopting(void)
{
	atomic_store(&adopting, true);
}

/*
 * The last vCPU is gone: with the VM's own descriptor closed the kernel has let
 * go of the memory, and not before. One that lives on has to be told.
 */
static void release(struct ckvm_vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	if (vm->foreign || atomic_load(&adopting))
		ckvm__memory_withdraw(vm);
	close(vm->fd);
	ckvm__memory_end(vm);
	ckvm__bus_end(vm);
	pthread_mutex_unlock(&vm->lock);
	ckvm_close(vm->kvm);
	ckvm_vm_unref(vm);
}

void ckvm__vm_drop(struct ckvm_vm *vm)
{
	if (atomic_fetch_sub(&vm->users, 1) == 1)
		release(vm);
}

/* KVM_CREATE_VM waits for mm locks and gives up on any signal. */
static int create_fd(struct ckvm *kvm, unsigned long type)
{
	int fd;

	do
		fd = ckvm__ioctl(kvm, kvm->fd, KVM_CREATE_VM, (void *)type);
	while (fd == -EINTR);
	return fd;
}

/* What both ways to a VM need first. */
static int prepare(struct ckvm *kvm, struct ckvm_vm **out)
{
	int error = ckvm__check_process(kvm);

	if (!error)
		error = ckvm__install_kick_signal();
	if (error)
		return error;
	*out = calloc(1, sizeof(**out));
	return *out ? 0 : ckvm__fail("malloc", -ENOMEM);
}

/* Takes the descriptor over; what is no descriptor is the error. */
static int begin(struct ckvm *kvm, struct ckvm_vm *vm, int fd,
		 struct ckvm_vm **out)
{
	if (fd < 0) {
		free(vm);
		return fd;
	}
	vm->fd = fd;
	vm->refs = 1;
	vm->users = 1;
	vm->kvm = ckvm_ref(kvm);
	atomic_fetch_add(&kvm->refs, 1);
	pthread_mutex_init(&vm->lock, NULL);
	pthread_mutex_init(&vm->ring_lock, NULL);
	*out = vm;
	return 0;
}

int ckvm_create_vm(struct ckvm *kvm, unsigned long type, struct ckvm_vm **out)
{
	struct ckvm_vm *vm;
	int error = prepare(kvm, &vm);

	return error ? error : begin(kvm, vm, create_fd(kvm, type), out);
}

/* The kernel refuses what another process has created, with EIO. */
static int adopt_fd(struct ckvm *kvm, int from)
{
	char rest[1];
	int error, fd = ckvm__duplicate(from, "anon_inode:kvm-vm", rest, 1);

	if (fd < 0)
		return fd;
	error = ckvm__ioctl(kvm, fd, KVM_CHECK_EXTENSION,
			    (void *)KVM_CAP_USER_MEMORY);
	if (error >= 0)
		return fd;
	close(fd);
	return error;
}

int ckvm_vm_from_fd(struct ckvm *kvm, int fd, struct ckvm_vm **out)
{
	struct ckvm_vm *vm;
	int error = prepare(kvm, &vm);

	if (error)
		return error;
	vm->foreign = true;
	ckvm__vm_adopting();
	return begin(kvm, vm, adopt_fd(kvm, fd), out);
}

struct ckvm_vm *ckvm_vm_ref(struct ckvm_vm *vm)
{
	atomic_fetch_add(&vm->refs, 1);
	return vm;
}

void ckvm_vm_unref(struct ckvm_vm *vm)
{
	if (!vm || atomic_fetch_sub(&vm->refs, 1) != 1)
		return;
	pthread_mutex_destroy(&vm->ring_lock);
	pthread_mutex_destroy(&vm->lock);
	ckvm__unref(vm->kvm);
	free(vm);
}

/* One that is not closed yet, with a reference. */
static struct ckvm_vcpu *next_vcpu(struct ckvm_vm *vm)
{
	struct ckvm_vcpu *vcpu;

	pthread_mutex_lock(&vm->lock);
	vcpu = vm->vcpus;
	while (vcpu && vcpu->closed)
		vcpu = vcpu->next;
	if (vcpu)
		ckvm_vcpu_ref(vcpu);
	pthread_mutex_unlock(&vm->lock);
	return vcpu;
}

static struct ckvm__part *next_part(struct ckvm_vm *vm)
{
	struct ckvm__part *part;

	pthread_mutex_lock(&vm->lock);
	part = vm->parts;
	while (part && part->closed)
		part = part->next;
	if (part)
		atomic_fetch_add(&part->refs, 1);
	pthread_mutex_unlock(&vm->lock);
	return part;
}

void ckvm_vm_close(struct ckvm_vm *vm)
{
	struct ckvm_vcpu *vcpu;
	struct ckvm__part *part;

	/* In a child of fork() the locks may be held for ever. */
	if (!vm || ckvm__check_process(vm->kvm) ||
	    atomic_exchange(&vm->closed, true))
		return;
	while ((vcpu = next_vcpu(vm))) {
		ckvm_vcpu_close(vcpu);
		ckvm_vcpu_unref(vcpu);
	}
	while ((part = next_part(vm))) {
		ckvm__part_close(part);
		ckvm__part_unref(part);
	}
	ckvm__bus_close(vm);
	ckvm__vm_drop(vm);
}

int ckvm_vm_fd(const struct ckvm_vm *vm)
{
	return atomic_load(&vm->closed) ? ckvm__fail("closed", -EBADF) : vm->fd;
}

struct ckvm *ckvm_vm_kvm(struct ckvm_vm *vm)
{
	return vm->kvm;
}

int ckvm__vm_ioctl(struct ckvm_vm *vm, unsigned long request, void *arg)
{
	int result = ckvm__vm_hold(vm);

	if (result)
		return result;
	result = ckvm__ioctl(vm->kvm, vm->fd, request, arg);
	ckvm__vm_drop(vm);
	return result;
}

int ckvm_vm_check_extension(struct ckvm_vm *vm, unsigned int cap)
{
	return ckvm__vm_ioctl(vm, KVM_CHECK_EXTENSION, (void *)(uintptr_t)cap);
}

int ckvm_vm_enable_cap(struct ckvm_vm *vm, const struct kvm_enable_cap *cap)
{
	int result = ckvm__vm_hold(vm);

	if (result)
		return result;
	pthread_mutex_lock(&vm->lock);
	result = ckvm__ioctl(vm->kvm, vm->fd, KVM_ENABLE_CAP,
			     (void *)(uintptr_t)cap);
	if (result >= 0)
		ckvm__dirty_enabled(vm, cap);
	pthread_mutex_unlock(&vm->lock);
	ckvm__vm_drop(vm);
	return result;
}

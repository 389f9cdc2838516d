/* SPDX-License-Identifier: MIT */
/* What devices and guest_memfds have in common: a descriptor that a VM owns. */
#include <stdlib.h>
#include <unistd.h>

#include "internal.h"

/* False: the VM was closed meanwhile. */
static bool link_part(struct ckvm_vm *vm, struct ckvm__part *part)
{
	bool open;

	pthread_mutex_lock(&vm->lock);
	open = !vm->closed;
	if (open) {
		part->next = vm->parts;
		vm->parts = part;
	}
	pthread_mutex_unlock(&vm->lock);
	return open;
}

static void unlink_part(struct ckvm_vm *vm, struct ckvm__part *part)
{
	struct ckvm__part **at = &vm->parts;

	pthread_mutex_lock(&vm->lock);
	while (*at != part)
		at = &(*at)->next;
	*at = part->next;
	pthread_mutex_unlock(&vm->lock);
}

int ckvm__part_begin(struct ckvm_vm *vm, struct ckvm__part *part, int fd)
{
	if (fd < 0) {
		free(part);
		return fd;
	}
	part->refs = 1;
	part->users = 1;
	part->fd = fd;
	part->vm = vm;
	if (!link_part(vm, part)) {
		close(fd);
		free(part);
		return ckvm__fail("closed", -EBADF);
	}
	ckvm_vm_ref(vm);
	return 0;
}

int ckvm__part_hold(struct ckvm__part *part)
{
	unsigned int users = atomic_load(&part->users);
	int error = ckvm__check_process(part->vm->kvm);

	if (error)
		return error;
	do
		if (!users || atomic_load(&part->closed))
			return ckvm__fail("closed", -EBADF);
	while (!atomic_compare_exchange_weak(&part->users, &users, users + 1));
	return 0;
}

/* The kernel's VM lives as long as the descriptor: so does ckvm's. */
void ckvm__part_drop(struct ckvm__part *part)
{
	struct ckvm_vm *vm = part->vm;

	if (atomic_fetch_sub(&part->users, 1) != 1)
		return;
	unlink_part(vm, part);
	close(part->fd);
	ckvm__vm_drop(vm);
	ckvm__part_unref(part);
}

int ckvm__part_fd(const struct ckvm__part *part)
{
	return atomic_load(&part->closed) ? ckvm__fail("closed", -EBADF)
					  : part->fd;
}

int ckvm__part_ioctl(struct ckvm__part *part, unsigned long request, void *arg)
{
	int result = ckvm__part_hold(part);

	if (result)
		return result;
	result = ckvm__ioctl(part->vm->kvm, part->fd, request, arg);
	ckvm__part_drop(part);
	return result;
}

/* In a child of fork() the VM's lock may be held for ever. */
void ckvm__part_close(struct ckvm__part *part)
{
	if (!ckvm__check_process(part->vm->kvm) &&
	    !atomic_exchange(&part->closed, true))
		ckvm__part_drop(part);
}

void ckvm__part_unref(struct ckvm__part *part)
{
	struct ckvm_vm *vm = part->vm;

	if (atomic_fetch_sub(&part->refs, 1) != 1)
		return;
	free(part);
	ckvm_vm_unref(vm);
}

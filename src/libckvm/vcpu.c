/* SPDX-License-Identifier: MIT */
/* One virtual processor: its descriptor, its shared page and its life. */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

int ckvm__vcpu_check(struct ckvm_vcpu *vcpu)
{
	int error = ckvm__check_process(vcpu->kvm);

	if (unlikely(error))
		return error;
	if (unlikely(atomic_load_explicit(&vcpu->closed, memory_order_acquire)))
		return ckvm__fail("closed", -EBADF);
	if (unlikely(ckvm__vcpu_is_others(
		    atomic_load_explicit(&vcpu->runner, memory_order_acquire))))
		return ckvm__fail("running", -EBUSY);
	return 0;
}

int ckvm_vcpu_claim(struct ckvm_vcpu *vcpu, int tid)
{
	pid_t none = 0;
	int error = ckvm__vcpu_check(vcpu);

	if (error)
		return error;
	if (!atomic_compare_exchange_strong(&vcpu->runner, &none, -tid))
		return ckvm__fail("running", -EBUSY);
	atomic_store(&vcpu->stop_asked, false);
	return 0;
}

void ckvm_vcpu_unclaim(struct ckvm_vcpu *vcpu)
{
	atomic_store(&vcpu->runner, 0);
}

int ckvm__vcpu_ioctl(struct ckvm_vcpu *vcpu, unsigned long request, void *arg)
{
	int error = ckvm__vcpu_check(vcpu);

	if (!error)
		error = ckvm__flush_registers(vcpu);
	return error ? error : ckvm__ioctl(vcpu->kvm, vcpu->fd, request, arg);
}

int ckvm__vcpu_change(struct ckvm_vcpu *vcpu, unsigned long request, void *arg)
{
	int result = ckvm__vcpu_ioctl(vcpu, request, arg);

	if (!ckvm__vcpu_check(vcpu))
		ckvm__empty_registers(vcpu);
	return result;
}

int ckvm_vcpu_enable_cap(struct ckvm_vcpu *vcpu,
			 const struct kvm_enable_cap *cap)
{
	return ckvm__vcpu_ioctl(vcpu, KVM_ENABLE_CAP, (void *)(uintptr_t)cap);
}

/*
 * In bytes of the run page that are nobody's: two objects that run one vCPU
 * would each trust a page that the other lets the kernel change.
 */
static const char mark[] = { 'c', 'k', 'v', 'm' };

static bool is_marked(const struct kvm_run *run)
{
	return !memcmp(run->padding1, mark, sizeof(mark));
}

static void take_page(struct kvm_run *run)
{
	memcpy(run->padding1, mark, sizeof(mark));
}

/* Somebody else may go on with the vCPU. */
static void leave_page(struct kvm_run *run)
{
	memset(run->padding1, 0, sizeof(mark));
	run->immediate_exit = 0;
	run->kvm_valid_regs = 0;
	run->kvm_dirty_regs = 0;
}

static int map_run(struct ckvm_vcpu *vcpu)
{
	struct ckvm *kvm = vcpu->kvm;
	uint8_t *page;

	page = mmap(NULL, (size_t)kvm->run_size, PROT_READ | PROT_WRITE,
		    MAP_SHARED, vcpu->fd, 0);
	if (page == MAP_FAILED)
		return ckvm__fail("mmap", -errno);
	madvise(page, (size_t)kvm->run_size, MADV_DONTFORK);
	vcpu->run = (struct kvm_run *)page;
	if (kvm->batching)
		vcpu->ring = (void *)(page + kvm->ring_page * PAGE_SIZE);
	return 0;
}

/* -EBADF: the VM was closed meanwhile, and all its vCPUs. */
static int link_vcpu(struct ckvm_vm *vm, struct ckvm_vcpu *vcpu)
{
	const struct ckvm_vcpu *other;
	int error = 0;

	pthread_mutex_lock(&vm->lock);
	for (other = vm->vcpus; other; other = other->next)
		if (other->id == vcpu->id && !other->closed)
			error = ckvm__fail("from_fd", -EEXIST);
	if (vm->closed)
		error = ckvm__fail("closed", -EBADF);
	if (vm->bus.batches)
		vcpu->attend |= ATTEND_BATCH;
	if (!error) {
		vcpu->next = vm->vcpus;
		vm->vcpus = vcpu;
	}
	pthread_mutex_unlock(&vm->lock);
	return error;
}

static void unlink_vcpu(struct ckvm_vm *vm, struct ckvm_vcpu *vcpu)
{
	struct ckvm_vcpu **at = &vm->vcpus;

	pthread_mutex_lock(&vm->lock);
	while (*at != vcpu)
		at = &(*at)->next;
	*at = vcpu->next;
	pthread_mutex_unlock(&vm->lock);
}

static struct ckvm_vcpu *new_vcpu(struct ckvm_vm *vm, unsigned long id)
{
	struct ckvm_vcpu *vcpu = calloc(1, sizeof(*vcpu));

	if (!vcpu)
		return NULL;
	vcpu->refs = 1;
	vcpu->users = 1;
	vcpu->id = id;
	vcpu->vm = vm;
	vcpu->kvm = vm->kvm;
	if (vcpu->kvm->hooked)
		vcpu->attend = ATTEND_HOOK;
	vcpu->stale = CKVM_VIEW_REGS | CKVM_VIEW_SREGS | CKVM_VIEW_EVENTS;
	return vcpu;
}

/*
 * With the VM held, which what is made of the descriptor goes on holding. Takes
 * the descriptor over; what is no descriptor is the error.
 */
static int begin(struct ckvm_vm *vm, struct ckvm_vcpu *vcpu, int fd,
		 struct ckvm_vcpu **out)
{
	int error = fd;

	if (fd < 0)
		goto err_free;
	vcpu->fd = fd;
	error = map_run(vcpu);
	if (error)
		goto err_close;
	error = is_marked(vcpu->run) ? ckvm__fail("from_fd", -EBUSY)
				     : ckvm__map_dirty_ring(vcpu);
	if (error)
		goto err_unmap;
	error = link_vcpu(vm, vcpu);
	if (error)
		goto err_unmap_ring;
	take_page(vcpu->run);
	/* One from elsewhere may have been left in the middle of an access. */
	vcpu->open = (uint8_t)ckvm__opens(vcpu->run);
	ckvm_vm_ref(vm);
	*out = vcpu;
	return 0;

err_unmap_ring:
	ckvm__unmap_dirty_ring(vcpu);
err_unmap:
	munmap(vcpu->run, (size_t)vcpu->kvm->run_size);
err_close:
	close(fd);
err_free:
	free(vcpu);
	return error;
}

static int create(struct ckvm_vm *vm, unsigned long id, struct ckvm_vcpu **out)
{
	struct ckvm_vcpu *vcpu = new_vcpu(vm, id);

	if (!vcpu)
		return ckvm__fail("malloc", -ENOMEM);
	return begin(vm, vcpu,
		     ckvm__ioctl(vm->kvm, vm->fd, KVM_CREATE_VCPU, (void *)id),
		     out);
}

int ckvm_vm_create_vcpu(struct ckvm_vm *vm, unsigned long id,
			struct ckvm_vcpu **out)
{
	int error;

	/* Kernels before 6.11 would take the low 32 bits alone. */
	if (id > UINT32_MAX)
		return ckvm__fail("KVM_CREATE_VCPU", -EINVAL);
	error = ckvm__vm_hold(vm);
	if (error)
		return error;
	error = create(vm, id, out);
	if (error)
		ckvm__vm_drop(vm);
	return error;
}

/* The kernel refuses what another process has created, with EIO. */
static int adopt_fd(struct ckvm_vm *vm, int from, unsigned long *id)
{
	struct kvm_mp_state state;
	char rest[12], *end;
	int error, fd;

	fd = ckvm__duplicate(from, "anon_inode:kvm-vcpu:", rest, sizeof(rest));
	if (fd < 0)
		return fd;
	*id = strtoul(rest, &end, 10);
	error = *end || !*rest
			? ckvm__fail("from_fd", -ENOTTY)
			: ckvm__ioctl(vm->kvm, fd, KVM_GET_MP_STATE, &state);
	if (!error)
		return fd;
	close(fd);
	return error;
}

static int adopt(struct ckvm_vm *vm, int from, struct ckvm_vcpu **out)
{
	unsigned long id = 0;
	int fd = adopt_fd(vm, from, &id);
	struct ckvm_vcpu *vcpu;

	if (fd < 0)
		return fd;
	vcpu = new_vcpu(vm, id);
	if (vcpu)
		return begin(vm, vcpu, fd, out);
	close(fd);
	return ckvm__fail("malloc", -ENOMEM);
}

int ckvm_vm_vcpu_from_fd(struct ckvm_vm *vm, int fd, struct ckvm_vcpu **out)
{
	int error = ckvm__vm_hold(vm);

	if (error)
		return error;
	ckvm__vm_adopting();
	error = adopt(vm, fd, out);
	if (error)
		ckvm__vm_drop(vm);
	return error;
}

struct ckvm_vcpu *ckvm_vm_find_vcpu(struct ckvm_vm *vm, unsigned long id)
{
	struct ckvm_vcpu *vcpu, *found = NULL;

	if (ckvm__check_process(vm->kvm))
		return NULL;
	pthread_mutex_lock(&vm->lock);
	for (vcpu = vm->vcpus; vcpu; vcpu = vcpu->next)
		if (!vcpu->closed && vcpu->id >= id &&
		    (!found || vcpu->id < found->id))
			found = vcpu;
	if (found)
		ckvm_vcpu_ref(found);
	pthread_mutex_unlock(&vm->lock);
	return found;
}

struct ckvm_vcpu *ckvm_vcpu_ref(struct ckvm_vcpu *vcpu)
{
	atomic_fetch_add(&vcpu->refs, 1);
	return vcpu;
}

void ckvm_vcpu_unref(struct ckvm_vcpu *vcpu)
{
	struct ckvm_vm *vm;

	if (!vcpu || atomic_fetch_sub(&vcpu->refs, 1) != 1)
		return;
	vm = vcpu->vm;
	if (!ckvm__check_process(vcpu->kvm))
		munmap(vcpu->run, (size_t)vcpu->kvm->run_size);
	free(vcpu);
	ckvm_vm_unref(vm);
}

/*
 * Closed, and not in a run. Who holds a reference may be in a call on another
 * thread: an empty page takes the place of the kernel's.
 */
void ckvm__vcpu_release(struct ckvm_vcpu *vcpu)
{
	struct ckvm_vm *vm = vcpu->vm;

	ckvm__unmap_dirty_ring(vcpu);
	unlink_vcpu(vm, vcpu);
	if (!ckvm__check_process(vcpu->kvm)) {
		leave_page(vcpu->run);
		mmap(vcpu->run, (size_t)vcpu->kvm->run_size,
		     PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	}
	close(vcpu->fd);
	ckvm__vm_drop(vm);
	ckvm_vcpu_unref(vcpu);
}

void ckvm_vcpu_close(struct ckvm_vcpu *vcpu)
{
	if (!vcpu || atomic_exchange(&vcpu->closed, true))
		return;
	ckvm_vcpu_wake(vcpu);
	ckvm__vcpu_drop(vcpu);
}

int ckvm_vcpu_fd(const struct ckvm_vcpu *vcpu)
{
	return atomic_load(&vcpu->closed) ? ckvm__fail("closed", -EBADF)
					  : vcpu->fd;
}

unsigned long ckvm_vcpu_id(const struct ckvm_vcpu *vcpu)
{
	return vcpu->id;
}

struct ckvm_vm *ckvm_vcpu_vm(struct ckvm_vcpu *vcpu)
{
	return vcpu->vm;
}

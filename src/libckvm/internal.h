/* SPDX-License-Identifier: MIT */
/*
 * What the files of libckvm share with one another, and with nobody else. What
 * objects are made of is in objects.h, what the run loop has to itself in
 * run.h.
 */
#ifndef CKVM_INTERNAL_H
#define CKVM_INTERNAL_H

#include "objects.h"

/* error.c ----------------------------------------------------------------- */

extern _Thread_local const char *ckvm__errop;

/* Remembers the step; returns the error as it is. */
static inline int ckvm__fail(const char *step, int error)
{
	ckvm__errop = step;
	return error;
}

/* The same for -EFAULT, which it returns, and for where that is. */
int ckvm__fail_at(const char *step, uint64_t gpa);

/* ioctl.c ----------------------------------------------------------------- */

int ckvm__ioctl_slow(struct ckvm *kvm, int fd, unsigned long request,
		     void *arg);
int ckvm__ioctl_failed(unsigned long request, int error);

/*
 * The system call alone: a result or -errno. glibc's ioctl() is variadic and
 * sets errno, which is a fifth of the instructions that an exit may take here.
 */
static inline int ckvm__kernel(int fd, unsigned long request, void *arg)
{
#if defined(__x86_64__)
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(16L /* ioctl */), "D"((long)fd), "S"(request),
			   "d"(arg)
			 : "rcx", "r11", "memory");
	return (int)result;
#else
	int result = ioctl(fd, request, arg);

	return result < 0 ? -errno : result;
#endif
}

/* The one way into the kernel: a result, or -errno with the request noted. */
static inline int ckvm__ioctl(struct ckvm *kvm, int fd, unsigned long request,
			      void *arg)
{
	int result;

	if (unlikely(kvm->hooked))
		return ckvm__ioctl_slow(kvm, fd, request, arg);
	result = ckvm__kernel(fd, request, arg);
	if (unlikely(result < 0))
		return ckvm__ioctl_failed(request, result);
	return result;
}

/* system.c ---------------------------------------------------------------- */

extern uint32_t ckvm__fork_generation;

/* -EIO in a process that is not the one which opened KVM. */
static inline int ckvm__check_process(const struct ckvm *kvm)
{
	if (unlikely(kvm->fork_generation != ckvm__fork_generation))
		return ckvm__fail("fork", -EIO);
	return 0;
}

void ckvm__unref(struct ckvm *kvm);

/* An ioctl on /dev/kvm: a result or -errno. */
int ckvm__kvm_ioctl(struct ckvm *kvm, unsigned long request, void *arg);
/*
 * Duplicates a descriptor that came from elsewhere, if /proc calls it `kind`
 * and fewer than `size` other characters, which go to `rest`. -ENOTTY if it is
 * something else.
 */
int ckvm__duplicate(int fd, const char *kind, char *rest, size_t size);

uint64_t ckvm__now(void); /* CLOCK_MONOTONIC, ns */

/* vm.c -------------------------------------------------------------------- */

/*
 * For the length of a call: the VM is open, in this process, and keeps its
 * descriptor and memory until it is let go of. -EBADF, -EIO.
 */
int ckvm__vm_hold(struct ckvm_vm *vm);
void ckvm__vm_drop(struct ckvm_vm *vm);

/* To be called before a descriptor from elsewhere is duplicated. */
void ckvm__vm_adopting(void);

/* An ioctl on the VM's descriptor: a result or -errno. */
int ckvm__vm_ioctl(struct ckvm_vm *vm, unsigned long request, void *arg);

/* part.c ------------------------------------------------------------------ */

/*
 * Makes an allocated part the owner of a descriptor, in the VM, whose hold
 * passes to it. What is no descriptor is the error; both are gone then, as with
 * -EBADF: the VM is closed by now.
 */
int ckvm__part_begin(struct ckvm_vm *vm, struct ckvm__part *part, int fd);

/* For the length of a call it keeps its descriptor. -EBADF, -EIO. */
int ckvm__part_hold(struct ckvm__part *part);
void ckvm__part_drop(struct ckvm__part *part);
int ckvm__part_fd(const struct ckvm__part *part);
int ckvm__part_ioctl(struct ckvm__part *part, unsigned long request, void *arg);
void ckvm__part_close(struct ckvm__part *part);
void ckvm__part_unref(struct ckvm__part *part);

/* memory.c ---------------------------------------------------------------- */

/* Takes all of it from a VM of which somebody else may have a descriptor. */
void ckvm__memory_withdraw(struct ckvm_vm *vm);
void ckvm__memory_end(struct ckvm_vm *vm); /* with no fd of the VM left */

/* The rest is for who has the VM's lock. */

/* Every page counts as not written from now on. */
int ckvm__log_anew(struct ckvm_memory *memory);

struct ckvm_memory *ckvm__find_slot(struct ckvm_vm *vm, uint32_t slot);
void ckvm__link_memory(struct ckvm_vm *vm, struct ckvm_memory *memory);
void ckvm__unlink_memory(struct ckvm_vm *vm, struct ckvm_memory *memory);

/* A struct with one reference; NULL for want of memory. */
struct ckvm_memory *ckvm__new_memory(struct ckvm_vm *vm, uint64_t gpa,
				     uint64_t bytes, uint32_t flags);

/* Duplicates it, for as long as the memory is there. */
int ckvm__bind_guest_memfd(struct ckvm_memory *memory, int fd, uint64_t offset);

/* With the kernel having let go of it: what the host has for it. */
void ckvm__forget_memory(struct ckvm_vm *vm, struct ckvm_memory *memory);

/* Whole pages, not none, and not past 2^64. */
int ckvm__check_place(uint64_t gpa, uint64_t bytes);

/* The first one with a byte of [first, last]. */
struct ckvm_memory *ckvm__find_memory(struct ckvm_vm *vm, uint64_t first,
				      uint64_t last);

/* Bytes of memory from gpa on, at most `wanted`. The caller has the lock. */
uint64_t ckvm__extent(struct ckvm_vm *vm, uint64_t gpa, uint64_t wanted);

static inline uint64_t ckvm__last_byte(const struct ckvm_memory *memory)
{
	return memory->gpa + (memory->bytes - 1);
}

/* map.c ------------------------------------------------------------------- */

/*
 * Maps what the guest is to have, as the config says, or takes another
 * reference to what is mapped; and where in it the config's bytes are.
 */
int ckvm__map(const struct ckvm_memory_config *config,
	      struct ckvm__mapping **out, uint8_t **data);
int ckvm__share_mapping(struct ckvm_memory *memory, uint64_t offset,
			uint64_t bytes, struct ckvm__mapping **out,
			uint8_t **data);

/* One that is the caller's own; NULL for want of memory. */
struct ckvm__mapping *ckvm__new_mapping(void *data, uint64_t bytes);

/* In a child of fork() something else may have the addresses by now. */
void ckvm__unmap(struct ckvm__mapping *mapping, bool same_process);

/* dirty.c, dirty_ring.c --------------------------------------------------- */

/* Room for the log's bits, if there is none yet. */
int ckvm__create_dirty(struct ckvm_memory *memory);

/* The VM has that capability now. The caller has the lock, as for what follows.
 */
void ckvm__dirty_enabled(struct ckvm_vm *vm, const struct kvm_enable_cap *cap);
int ckvm__harvest_rings(struct ckvm_vm *vm);

/* Without the lock: with a new vCPU, with one that ends, and at its exit. */
int ckvm__map_dirty_ring(struct ckvm_vcpu *vcpu);
void ckvm__unmap_dirty_ring(struct ckvm_vcpu *vcpu);
int ckvm__dirty_ring_full(struct ckvm_vcpu *vcpu);

/* bus.c ------------------------------------------------------------------- */

void ckvm__bus_close(struct ckvm_vm *vm);   /* detaches all */
void ckvm__bus_reclaim(struct ckvm_vm *vm); /* frees what nobody can see */

/* table.c ----------------------------------------------------------------- */

static inline struct ckvm_range *ckvm__find_port(struct ckvm_vm *vm,
						 uint32_t port)
{
	_Atomic(struct ckvm_range *) *leaf = atomic_load_explicit(
		&vm->bus.port[port >> 8], memory_order_acquire);

	if (!leaf)
		return NULL;
	return atomic_load_explicit(&leaf[port & 255], memory_order_acquire);
}

struct ckvm_range *ckvm__find_mmio(struct ckvm_vm *vm, uint64_t gpa);

void ckvm__bus_end(struct ckvm_vm *vm); /* frees what is left */

/* The rest is for who has the VM's lock. */

/* Makes room for these ports: fails for want of memory alone. */
int ckvm__table_add_leaves(struct ckvm__bus *bus, uint64_t first,
			   uint64_t last);

/* Who answers the ports of `at` from now on; NULL: nobody. */
void ckvm__table_set_ports(struct ckvm__bus *bus, const struct ckvm_range *at,
			   struct ckvm_range *range);

/* Has the range answer its addresses. */
int ckvm__table_add(struct ckvm__bus *bus, struct ckvm_range *range);

/* Out of the lookups' sight, and to be freed when nobody looks at it. */
void ckvm__table_retire(struct ckvm__bus *bus, struct ckvm_range *range);

void ckvm__table_reclaim(struct ckvm_vm *vm); /* frees what nobody can see */

/* Something is to be batched now. The caller has the lock. */
void ckvm__bus_batches(struct ckvm_vm *vm);

/* Is there a range with `batch` in [first, last]? Likewise. */
bool ckvm__bus_is_batched(struct ckvm_vm *vm, enum ckvm_space space,
			  uint64_t first, uint64_t last);

/* coalesced.c ------------------------------------------------------------- */

bool ckvm__in_zone(const struct ckvm_vm *vm, enum ckvm_space space,
		   uint64_t first, uint64_t last);
void ckvm__end_zones(struct ckvm_vm *vm);

/* buffer.c ---------------------------------------------------------------- */

/* All of it, or false and nothing. */
bool ckvm__buffer_append(struct ckvm_buffer *buffer, const void *data,
			 size_t length);

#include "run.h"

#endif

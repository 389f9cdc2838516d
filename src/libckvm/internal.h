/* SPDX-License-Identifier: MIT */
/* What the files of libckvm share with one another, and with nobody else. */
#ifndef CKVM_INTERNAL_H
#define CKVM_INTERNAL_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/types.h>

#include "ckvm.h"
#include "compat.h"

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define PAGE_SIZE 4096u

/* Objects ----------------------------------------------------------------- */

struct ckvm {
	atomic_uint refs;  /* of the struct: VMs', and one for `users` */
	atomic_uint users; /* of the descriptor: open, and VMs that are */
	int fd;
	uint32_t fork_generation;
	uint32_t flags; /* CKVM_NO_* */
	bool hooked;
	struct ckvm_hook hook;
	int run_size;	    /* KVM_GET_VCPU_MMAP_SIZE */
	uint32_t sync;	    /* the enum ckvm_view that the run page carries */
	uint32_t batching;  /* bit CKVM_IO, bit CKVM_MMIO: the KVM can queue */
	uint32_t ring_page; /* where in the vCPU's mapping the queue is */
	uint64_t opened_ns, opened_ticks; /* for the length of a tick */
};

/* What the host has mapped for one slot or more. */
struct ckvm__mapping {
	atomic_uint refs;
	bool owned;	 /* or the caller's, who unmaps it */
	bool shared;	 /* what is in it stays when its pages are unmapped */
	bool readonly;	 /* a shared file's, which the host cannot write */
	bool guests;	 /* a guest_memfd's */
	bool may_shrink; /* an access to it may raise SIGBUS */
	uint8_t *data;
	uint64_t bytes;
	uint64_t page_size;
	pthread_rwlock_t lock; /* who changes its protection has it alone */
};

struct ckvm_memory {
	atomic_uint refs;
	atomic_bool closed; /* set under the VM's lock */
	struct ckvm_vm *vm; /* whose struct it keeps */
	struct ckvm_memory *next;
	uint64_t gpa, bytes;
	uint32_t slot, flags;
	struct ckvm__mapping *mapping;
	uint8_t *data;	 /* in the mapping; NULL: not there any more */
	bool may_shrink; /* as the mapping says */
	int guest_memfd; /* a duplicate, without which the guest loses it; -1 */
	uint64_t guest_memfd_offset;
	uint64_t *dirty;  /* harvested, and not yet reported; NULL: no log */
	uint64_t *logged; /* the same, of ckvm_memory_get_dirty_log */
};

struct ckvm_range {
	atomic_uint refs;
	atomic_bool closed; /* set under the VM's lock */
	bool batch;
	uint8_t space;
	atomic_uchar answer[2]; /* enum ckvm_answer of reads, of writes */
	struct ckvm_vm *vm;	/* whose struct it keeps */
	struct ckvm_range *next;
	uint64_t first, last;
	/* Either may be NULL: what is not a plain callback goes by `answer`. */
	struct ckvm_ops ops;
	int (*batched)(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
		       const void *data, size_t length);
	void *opaque;
	uint64_t value;
	struct ckvm_buffer *log;
};

/* A descriptor that a VM owns: a device's, a guest_memfd's. */
struct ckvm__part {
	atomic_uint refs;  /* of the struct: others', and one for `users` */
	atomic_uint users; /* of the descriptor: open, and calls */
	atomic_bool closed;
	int fd;
	struct ckvm_vm *vm; /* which it holds while it has users */
	struct ckvm__part *next;
};

struct ckvm_guest_memfd {
	struct ckvm__part part; /* first: it is what is freed */
	uint64_t bytes, flags;
};

/* MMIO ranges by address. Never changed once published. */
struct ckvm__mmio_table {
	size_t count;
	struct ckvm__mmio_table *retired; /* the next one to free */
	struct ckvm_range *range[];
};

#define PORT_LEAVES 256
#define PORT_LEAF_SIZE 256

struct ckvm__bus {
	/* Port >> 8, then port & 255. Leaves stay until the VM ends. */
	_Atomic(struct ckvm_range *) *_Atomic port[PORT_LEAVES];
	_Atomic(struct ckvm__mmio_table *) mmio;
	atomic_uint catches; /* bit CKVM_EXIT_x - CKVM_EXIT_IO_IN */
	struct ckvm_range *ranges;
	/* Unlinked, but a vCPU may still be looking at them. */
	struct ckvm_range *retired_ranges;
	struct ckvm_range *stuck; /* to be freed with the VM */
	struct ckvm__mmio_table *retired_tables;
	bool batches;		  /* some range or zone is, or was, batched */
	struct ckvm__zone *zones; /* of ckvm_vm_register_coalesced_mmio */
};

struct ckvm_vm {
	atomic_uint refs;  /* of the struct: others', and one for `users` */
	atomic_uint users; /* of the kernel's VM: open, vCPUs, calls */
	atomic_bool closed;
	bool foreign; /* somebody else has a descriptor of it, too */
	int fd;
	struct ckvm *kvm;
	pthread_mutex_t lock;	    /* lists, slots and the bus's writers */
	struct ckvm_memory *memory; /* by gpa */
	struct ckvm_vcpu *vcpus;
	struct ckvm__part *parts;
	struct ckvm__bus bus;
	uint64_t manual_log;	   /* KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE ... */
	uint32_t dirty_entries;	   /* of each dirty ring; 0: there are none */
	uint32_t harvests;	   /* counts them */
	pthread_mutex_t ring_lock; /* one vCPU drains the queue at a time */
};

/* Where a run stands, between two calls of the loop. */
enum ckvm__phase {
	PHASE_IDLE,   /* no run */
	PHASE_ENTER,  /* KVM_RUN is next */
	PHASE_ACCESS, /* an access of the exit is handed back */
	PHASE_LAST,   /* the same, and the exit has no other */
	PHASE_BATCH,  /* a queued write is handed back */
	PHASE_EXIT,   /* the exit was given to the caller, who may handle it */
	PHASE_ONCE,   /* ckvm_vcpu_run_once, which leaves nothing open */
	PHASE_FINISHED, /* by a ckvm_vcpu_finish within the one that goes on */
};

/* What KVM_RUN has yet to do for the last exit. */
enum ckvm__open { OPEN_NONE, OPEN_WRITE, OPEN_READ };

#define SYNC_SIZE sizeof(struct kvm_sync_regs)

/* What keeps a vCPU off the loop's straight path. Bits for any thread to set.
 */
#define ATTEND_WRITES (1u << 0)	 /* registers were written */
#define ATTEND_VIEWS (1u << 1)	 /* some view is not what KVM_RUN keeps it */
#define ATTEND_FINISH (1u << 2)	 /* ckvm_vcpu_finish */
#define ATTEND_RETIRED (1u << 3) /* the bus has something to free */
#define ATTEND_BATCH (1u << 4)	 /* for good: there is, or was, a queue */
#define ATTEND_FAULT (1u << 5)	 /* the last exit was a memory fault */
#define ATTEND_HOOK (1u << 6)	 /* for good: KVM_RUN has a hook to call */
#define ATTEND_WAKE (1u << 7)	 /* the next KVM_RUN is to return at once */

struct ckvm_vcpu {
	/* The hot loop's. */
	struct kvm_run *run;
	struct ckvm *kvm;
	struct ckvm_vm *vm;
	int fd;
	atomic_uint attend;	 /* ATTEND_* */
	atomic_bool dispatching; /* may be looking at the bus */
	uint8_t open;		 /* enum ckvm__open */
	uint8_t phase;		 /* enum ckvm__phase */
	bool has_exit;		 /* the last KVM_RUN brought one */
	bool waiting;		 /* and it has yet to be dispatched */
	uint32_t serial;	 /* KVM_RUNs made */
	uint64_t left;		 /* exits to go; UINT64_MAX: no limit */
	uint64_t accesses[4];	 /* exits by CKVM_EXIT_IO_IN ... MMIO_WRITE */

	bool stop;
	bool over;	       /* the run was over before it began */
	bool reblock;	       /* the kick signal, when the run is over */
	bool finishing;	       /* registers wait for the instruction's end */
	bool finish_within;    /* ckvm_vcpu_finish, with a run open around it */
	uint8_t finish_depth;  /* and how many others of it */
	uint8_t written_views; /* enum ckvm_view with bits in `written` */
	uint8_t stale;	       /* enum ckvm_view to be loaded before use */
	uint64_t element;      /* of a string access */
	struct kvm_coalesced_mmio_ring *ring;
	struct kvm_dirty_gfn *dirty_ring; /* NULL: none */
	uint32_t dirty_next;		  /* its first entry not harvested */
	bool dirty_overrun;    /* the kernel has overwritten some, once */
	uint32_t dirty_serial; /* vm->harvests when it was full of nothing */
	struct ckvm_access access;
	void *access_data; /* where a read's answer goes; NULL: nowhere */

	atomic_uint refs;  /* of the struct: others', and one for `users` */
	atomic_uint users; /* of the kernel's vCPU: open, and a run */
	atomic_bool closed;
	atomic_bool kicked;
	pid_t ran_on; /* the thread that has the kick signal unblocked for it */
	/* The thread inside the loop, or minus the one that may enter; 0: any.
	 */
	_Atomic pid_t runner;
	atomic_bool stop_asked; /* by another thread */
	unsigned long id;
	struct ckvm_vcpu *next;
	uint32_t run_serial;
	uint32_t limit_flags;
	uint64_t timeout;  /* when it is due, CLOCK_MONOTONIC ns; 0: none */
	uint64_t bound;	   /* the deadline that was given; 0: none */
	uint64_t deadline; /* the earliest of these, and of the run around */
	uint64_t held_ns; /* when it was handed back or paused: the timeout's */

	/*
	 * The views live in the run page (run->s.regs), also where the kernel
	 * does not share it. `written` has a bit for each byte of them that
	 * somebody set since the last KVM_RUN; `held` keeps those bytes while
	 * an instruction is finished.
	 */
	uint64_t written[(SYNC_SIZE + 63) / 64];
	struct kvm_sync_regs held;

	struct ckvm_stats stats;
	uint64_t loop_ticks;   /* inside the loop; less when it began, in it */
	uint64_t left_at;      /* when it was left */
	uint64_t caller_ticks; /* while a run was handed back */
};

/*
 * By the thread that is in the run alone, and its signal handler: the page goes
 * when the vCPU is closed. The kernel only reads it.
 */
static inline void ckvm__set_immediate_exit(struct ckvm_vcpu *vcpu, bool on)
{
	__atomic_store_n(&vcpu->run->immediate_exit, on, __ATOMIC_RELAXED);
}

struct ckvm_buffer {
	atomic_uint refs;
	pthread_mutex_t lock;
	size_t capacity, first, length;
	uint8_t data[];
};

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

/* dispatch.c -------------------------------------------------------------- */

/* Results of the loop's steps beside enum ckvm_end and -errno. */
#define GO_ON INT32_MAX

/* What the kernel will do with the exit when KVM_RUN is called again. */
enum ckvm__open ckvm__opens(const struct kvm_run *run);

/* A new exit: GO_ON when all of it is handled. */
int ckvm__dispatch(struct ckvm_vcpu *vcpu);

/* The rest of it, from vcpu->element on. */
int ckvm__dispatch_rest(struct ckvm_vcpu *vcpu);

/* Notes what an exit leaves open, and answers its reads with all ones. */
void ckvm__begin_exit(struct ckvm_vcpu *vcpu);
void ckvm__count_exit(struct ckvm_vcpu *vcpu);

/*
 * One access: GO_ON if it is answered, CKVM_ACCESS if the caller must,
 * CKVM_EXIT if nobody does, or -errno. Reads find `data` all ones.
 */
int ckvm__access(struct ckvm_vcpu *vcpu, struct ckvm_range *range,
		 const struct ckvm_access *access, void *data);

/* A callback's result: 0, 1 or -errno. */
int ckvm__called(struct ckvm_vcpu *vcpu, int result);

/* exit.c ------------------------------------------------------------------ */

/*
 * Are the sizes and offsets of the exit such that its data is in the page? The
 * kernel's are; a hook may have made them up.
 */
bool ckvm__exit_fits(const struct ckvm_vcpu *vcpu);

/* batch.c ----------------------------------------------------------------- */

int ckvm__drain(struct ckvm_vcpu *vcpu);

static inline bool ckvm__has_batch(const struct ckvm_vcpu *vcpu)
{
	struct kvm_coalesced_mmio_ring *ring = vcpu->ring;

	return ring && __atomic_load_n(&ring->first, __ATOMIC_RELAXED) !=
			       __atomic_load_n(&ring->last, __ATOMIC_RELAXED);
}

/* vcpu.c ------------------------------------------------------------------ */

/* Open, in this process, and not another thread's? */
int ckvm__vcpu_check(struct ckvm_vcpu *vcpu);

static inline bool ckvm__vcpu_in_loop(struct ckvm_vcpu *vcpu)
{
	return atomic_load(&vcpu->runner) > 0;
}

/*
 * An ioctl on the vCPU's descriptor, after the registers that were written, so
 * that it sees them. _change is for one that may change registers: the views
 * are loaded anew after it.
 */
int ckvm__vcpu_ioctl(struct ckvm_vcpu *vcpu, unsigned long request, void *arg);
int ckvm__vcpu_change(struct ckvm_vcpu *vcpu, unsigned long request, void *arg);
void ckvm__vcpu_release(struct ckvm_vcpu *vcpu);

/* For the length of a run, by the one thread that may. False: it is gone. */
static inline bool ckvm__vcpu_hold(struct ckvm_vcpu *vcpu)
{
	if (likely(atomic_fetch_add(&vcpu->users, 1)))
		return true;
	atomic_fetch_sub(&vcpu->users, 1);
	return false;
}

/* True: it is gone, and perhaps the struct, too. */
static inline bool ckvm__vcpu_drop(struct ckvm_vcpu *vcpu)
{
	if (likely(atomic_fetch_sub(&vcpu->users, 1) != 1))
		return false;
	ckvm__vcpu_release(vcpu);
	return true;
}

/* kick.c ------------------------------------------------------------------ */

struct ckvm__thread {
	struct ckvm_vcpu *_Atomic current; /* whose loop runs on this thread */
	atomic_bool missed; /* a signal came while there was none */
	pid_t tid;
	bool has_timer;
	uint64_t armed; /* when the timer goes off; 0: never */
	void *timer;
	void (*late)(void *opaque);
	void *late_opaque;
	uint64_t late_deadline, late_period;
};
extern _Thread_local struct ckvm__thread ckvm__thread;

int ckvm__install_kick_signal(void);
pid_t ckvm__find_tid(void);
int ckvm__arm(uint64_t deadline); /* 0 disarms */
bool ckvm__unblock_kick(void);	  /* was it blocked? */
void ckvm__block_kick(void);

static inline struct ckvm__thread *ckvm__this_thread(void)
{
	struct ckvm__thread *thread = &ckvm__thread;

#ifdef __SANITIZE_ADDRESS__
	/*
	 * UBSan of GCC 12 checks it for null by the flags of the ADD that makes
	 * the address, of which the linker makes a LEA, which sets none.
	 */
	__asm__("" : "+r"(thread));
#endif
	return thread;
}

static inline pid_t ckvm__tid(void)
{
	return likely(ckvm__thread.tid) ? ckvm__thread.tid : ckvm__find_tid();
}

/* Is the vCPU with this `runner` not the calling thread's to use? */
static inline bool ckvm__vcpu_is_others(pid_t runner)
{
	return runner && runner != ckvm__tid() && runner != -ckvm__tid();
}

/* clock.c ----------------------------------------------------------------- */

/* When the run is due, by its limits. */
void ckvm__set_deadline(struct ckvm_vcpu *vcpu,
			const struct ckvm_limits *limits);

/* Notes when it was handed back. */
void ckvm__stop_clock(struct ckvm_vcpu *vcpu);

/* The timer is the run's, and between two runs that of who is told of lateness.
 */
int ckvm__begin_deadline(struct ckvm_vcpu *vcpu);
void ckvm__arm_for_late(const struct ckvm__thread *thread, uint64_t deadline);

static inline uint64_t ckvm__earlier(uint64_t a, uint64_t b)
{
	return !a || (b && b < a) ? b : a;
}

/* state_x86.c ------------------------------------------------------------- */

/*
 * Before a KVM_RUN, with ATTEND_WRITES or ATTEND_VIEWS: hands the writes over,
 * or sets `finishing` if they must wait until that KVM_RUN has finished an
 * instruction.
 */
int ckvm__send_registers(struct ckvm_vcpu *vcpu);

/* After a KVM_RUN with `finishing`: lays the writes over the new state. */
int ckvm__merge_registers(struct ckvm_vcpu *vcpu);

/* After a KVM_RUN that failed: was it the registers? Then says which. */
int ckvm__refused(struct ckvm_vcpu *vcpu, int error);

/* Sends what is written, unless it must wait for an instruction's end. */
int ckvm__flush_registers(struct ckvm_vcpu *vcpu);

/* Something else has changed registers: every view is loaded before its use. */
void ckvm__empty_registers(struct ckvm_vcpu *vcpu);

/*
 * An MSR that is part of a view was set while a write of that waits: it is the
 * later one.
 */
void ckvm__msr_was_set(struct ckvm_vcpu *vcpu, uint32_t index, uint64_t value);

/* stats.c ----------------------------------------------------------------- */

static inline uint64_t ckvm__ticks(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#else
	return ckvm__now();
#endif
}

#endif

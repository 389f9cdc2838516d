/* SPDX-License-Identifier: MIT */
/* What the objects of libckvm are made of. */
#ifndef CKVM_OBJECTS_H
#define CKVM_OBJECTS_H

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

#endif

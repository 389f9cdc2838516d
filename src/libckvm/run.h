/* SPDX-License-Identifier: MIT */
/* What the files of the run loop share: the end of internal.h. */
#ifndef CKVM_RUN_H
#define CKVM_RUN_H

#include "internal.h"

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

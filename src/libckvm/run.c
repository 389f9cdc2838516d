/* SPDX-License-Identifier: MIT */
/*
 * The run loop: KVM_RUN, queued writes, the exit, limits, and again. All of its
 * state is in struct ckvm_vcpu, so that it can be left for an answer and gone
 * on with from anywhere.
 */
#include "hot.h"

/* KVM_RUN ----------------------------------------------------------------- */

/* KVM_RUN's result, where that is not simply an exit. */
static int not_an_exit(struct ckvm_vcpu *vcpu, int result)
{
	struct kvm_run *run = vcpu->run;
	int error = ckvm__check_process(vcpu->kvm);

	if (error) /* a callback forked, and this is the child */
		return error;
	if ((result == -EFAULT || result == -EHWPOISON) &&
	    run->exit_reason == KVM_EXIT_MEMORY_FAULT)
		return 0;
	vcpu->has_exit = false;
	if (result == -EINTR || result == -EAGAIN) {
		vcpu->open = OPEN_NONE;
		return -EINTR;
	}
	/* The registers in the page are refused with this, and nothing else. */
	if (result == -EINVAL && run->kvm_dirty_regs)
		return ckvm__refused(vcpu, result);
	return ckvm__ioctl_failed(KVM_RUN, result);
}

/* One KVM_RUN: 0 for an exit, -EINTR, or what it failed with. */
static inline int enter(struct ckvm_vcpu *vcpu, bool hooked)
{
	int result;

	atomic_store_explicit(&vcpu->dispatching, false, memory_order_release);
	result = hooked ? ckvm__ioctl(vcpu->kvm, vcpu->fd, KVM_RUN, NULL)
			: ckvm__kernel(vcpu->fd, KVM_RUN, NULL);
	/* A full barrier: what is detached from here on is not yet freed. */
	atomic_exchange(&vcpu->dispatching, true);
	vcpu->serial++;
	vcpu->has_exit = true;
	return likely(!result) ? 0 : not_an_exit(vcpu, result);
}

/* The same with something to do before. */
static int enter_attended(struct ckvm_vcpu *vcpu)
{
	unsigned int attend = vcpu->attend;
	int result = ckvm__check_process(vcpu->kvm);

	if (result) /* a callback forked, and this is the child */
		return result;

	if (attend & ATTEND_RETIRED) {
		atomic_fetch_and(&vcpu->attend, ~ATTEND_RETIRED);
		atomic_store(&vcpu->dispatching, false);
		ckvm__bus_reclaim(vcpu->vm);
	}
	if (attend & ATTEND_FAULT) {
		atomic_fetch_and(&vcpu->attend, ~ATTEND_FAULT);
		vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
	}
	if (attend & (ATTEND_WRITES | ATTEND_VIEWS))
		result = ckvm__send_registers(vcpu);
	if (result)
		return result;
	if (vcpu->finishing || attend & (ATTEND_FINISH | ATTEND_WAKE))
		ckvm__set_immediate_exit(vcpu, true);
	result = enter(vcpu, true);
	if (!result && attend & ATTEND_HOOK && !ckvm__exit_fits(vcpu)) {
		vcpu->has_exit = false;
		vcpu->open = OPEN_NONE;
		return ckvm__fail("exit", -EPROTO);
	}
	if (!result && vcpu->finishing)
		result = ckvm__merge_registers(vcpu);
	return result;
}

/* The loop ---------------------------------------------------------------- */

/* Beside enum ckvm_end: -EINTR of the run, which is no callback's. */
#define SIGNAL (CKVM_EXITS + 1)

/* KVM_RUN came back without an exit: why? GO_ON if for nothing. */
static int woken(struct ckvm_vcpu *vcpu)
{
	bool finished = vcpu->finishing, waked;
	int error = 0;

	ckvm__set_immediate_exit(vcpu, false);
	/* Whoever wakes it from here on has set its reason before. */
	waked = atomic_fetch_and(&vcpu->attend, ~ATTEND_WAKE) & ATTEND_WAKE;
	if (finished) {
		error = ckvm__merge_registers(vcpu);
		vcpu->finishing = false;
	}
	if (error)
		return error;
	if (atomic_load(&vcpu->closed))
		return ckvm__fail("closed", -EBADF);
	if (vcpu->attend & ATTEND_FINISH) {
		/* For the run around it, if there is one. */
		if (atomic_load(&vcpu->kicked))
			ckvm__set_immediate_exit(vcpu, true);
		if (waked)
			atomic_fetch_or(&vcpu->attend, ATTEND_WAKE);
		return CKVM_STOPPED;
	}
	if (atomic_exchange(&vcpu->stop_asked, false))
		return CKVM_STOPPED;
	if (atomic_exchange(&vcpu->kicked, false))
		return CKVM_KICKED;
	if (vcpu->deadline && ckvm__now() >= vcpu->deadline)
		return CKVM_TIMEOUT;
	if (!vcpu->left)
		return CKVM_EXITS;
	/* To finish an instruction is no signal; a wake meanwhile is one. */
	if (vcpu->limit_flags & CKVM_LIMIT_SIGNALS && (!finished || waked))
		return SIGNAL;
	return GO_ON;
}

/* Queued writes come before whatever KVM_RUN returned. */
static int drain(struct ckvm_vcpu *vcpu)
{
	int end = ckvm__has_batch(vcpu) ? ckvm__drain(vcpu) : GO_ON;

	if (end != GO_ON || (vcpu->has_exit && !vcpu->over))
		return end;
	vcpu->phase = PHASE_ENTER;
	return woken(vcpu);
}

/* The exit is handled: is that enough? */
static int limited(struct ckvm_vcpu *vcpu)
{
	if (vcpu->attend & ATTEND_FINISH) {
		vcpu->left = 1; /* for the run around it to find */
		return GO_ON;
	}
	return vcpu->stop ? CKVM_STOPPED : CKVM_EXITS;
}

/* Until something of enum ckvm_end, or an error. vcpu->phase says where from.
 */
static inline __attribute__((always_inline)) int loop(struct ckvm_vcpu *vcpu)
{
	int end;

	if (likely(vcpu->phase == PHASE_LAST))
		goto handled;
	switch (vcpu->phase) {
	case PHASE_ACCESS:
		atomic_exchange(&vcpu->dispatching, true);
		end = ckvm__dispatch_rest(vcpu);
		goto dispatched;
	case PHASE_EXIT:
		goto handled;
	case PHASE_FINISHED:
		return CKVM_STOPPED;
	case PHASE_BATCH:
		atomic_exchange(&vcpu->dispatching, true);
		goto batch;
	}
	for (;;) {
		end = likely(!vcpu->attend) ? enter(vcpu, false)
					    : enter_attended(vcpu);
		if (unlikely(end) && end != -EINTR)
			return end;
		if (unlikely(end) || unlikely(vcpu->attend & ATTEND_BATCH)) {
			if (!end)
				ckvm__begin_exit(vcpu);
			vcpu->waiting = !end;
batch:
			end = drain(vcpu);
			if (end != GO_ON)
				return end;
			if (!vcpu->has_exit)
				continue;
			vcpu->waiting = false;
		}
		end = ckvm__straight(vcpu);
dispatched:
		if (unlikely(end != GO_ON)) {
			if (end == CKVM_EXIT)
				vcpu->phase = PHASE_EXIT;
			/* The VM may have been closed, and its ranges gone. */
			if (unlikely(vcpu->closed))
				return ckvm__fail("closed", -EBADF);
			return end;
		}
handled:
		if (unlikely(!--vcpu->left)) {
			end = limited(vcpu);
			if (end != GO_ON)
				return end;
		}
	}
}

/* Runs -------------------------------------------------------------------- */

static bool is_open(int end)
{
	return end == CKVM_ACCESS || end == CKVM_EXIT || end == SIGNAL;
}

/* Nobody will go on with the run that is open. */
static void abandon(struct ckvm_vcpu *vcpu)
{
	if (vcpu->phase == PHASE_IDLE)
		return;
	vcpu->phase = PHASE_IDLE;
	atomic_fetch_and(&vcpu->attend, ~ATTEND_FINISH);
	if (vcpu->reblock && vcpu->ran_on == ckvm__tid())
		ckvm__block_kick();
	vcpu->reblock = false;
	vcpu->ran_on = 0;
}

static void begin(struct ckvm_vcpu *vcpu)
{
	vcpu->phase = PHASE_ENTER;
}

/* One ckvm_vcpu_finish is done, and with it those around it. */
static void finished(struct ckvm_vcpu *vcpu)
{
	if (vcpu->finish_depth) {
		vcpu->finish_depth--;
		vcpu->phase = PHASE_FINISHED;
		return;
	}
	atomic_fetch_and(&vcpu->attend, ~ATTEND_FINISH);
	if (vcpu->finish_within)
		vcpu->phase = PHASE_EXIT;
	else
		abandon(vcpu);
}

static void leave(struct ckvm_vcpu *vcpu, int end)
{
	if (unlikely(vcpu->phase == PHASE_ONCE))
		abandon(vcpu);
	else if (likely(is_open(end))) {
		if (unlikely(vcpu->timeout))
			ckvm__stop_clock(vcpu);
	} else if (vcpu->attend & ATTEND_FINISH && end == CKVM_STOPPED)
		finished(vcpu);
	else
		abandon(vcpu);
}

/* A run from within a callback ends with the one around it. */
static inline int begin_on_thread(struct ckvm__thread *thread,
				  struct ckvm_vcpu *vcpu,
				  struct ckvm_vcpu *outer)
{
	vcpu->deadline = ckvm__earlier(vcpu->timeout, vcpu->bound);
	if (unlikely(outer))
		vcpu->deadline = ckvm__earlier(vcpu->deadline, outer->deadline);
	/* In this order: a signal is either seen here or finds the vCPU. */
	atomic_store_explicit(&thread->current, vcpu, memory_order_relaxed);
	atomic_signal_fence(memory_order_seq_cst);
	if (unlikely(atomic_load_explicit(&thread->missed,
					  memory_order_relaxed))) {
		atomic_store_explicit(&thread->missed, false,
				      memory_order_relaxed);
		ckvm__set_immediate_exit(vcpu, true);
	}
	return likely(!vcpu->deadline && !thread->armed)
		       ? 0
		       : ckvm__begin_deadline(vcpu);
}

static inline void end_on_thread(struct ckvm__thread *thread,
				 struct ckvm_vcpu *vcpu,
				 struct ckvm_vcpu *outer, int end)
{
	atomic_store_explicit(&thread->current, outer, memory_order_relaxed);
	if (unlikely(outer))
		ckvm__begin_deadline(outer);
	else if (unlikely(thread->armed) || unlikely(thread->late_deadline))
		ckvm__arm_for_late(thread, is_open(end) ? vcpu->deadline : 0);
}

/* The vCPU's loop, by one thread at a time, with the vCPU kept alive. */
static inline __attribute__((always_inline)) int
run(struct ckvm_vcpu *vcpu, int (*body)(struct ckvm_vcpu *), uint64_t now)
{
	struct ckvm__thread *thread = ckvm__this_thread();
	struct ckvm_vcpu *outer = thread->current;
	pid_t before =
		atomic_load_explicit(&vcpu->runner, memory_order_relaxed);
	int end;

	if (unlikely(before && before != -ckvm__tid()) ||
	    !atomic_compare_exchange_strong(&vcpu->runner, &before,
					    ckvm__tid()))
		return ckvm__fail("running", -EBUSY);
	if (unlikely(!ckvm__vcpu_hold(vcpu))) {
		atomic_store(&vcpu->runner, before);
		return ckvm__fail("closed", -EBADF);
	}
	/* A run begins, or goes on, on a thread that may have it blocked. */
	if (unlikely(vcpu->ran_on != ckvm__tid())) {
		vcpu->ran_on = ckvm__tid();
		vcpu->reblock = ckvm__unblock_kick();
	}
	vcpu->loop_ticks -= now;
	end = begin_on_thread(thread, vcpu, outer);
	if (likely(!end))
		end = body(vcpu);
	atomic_store_explicit(&vcpu->dispatching, false, memory_order_release);
	now = ckvm__ticks();
	vcpu->loop_ticks += now;
	vcpu->left_at = now;
	leave(vcpu, end);
	end_on_thread(thread, vcpu, outer, end);
	atomic_store_explicit(&vcpu->runner, before, memory_order_release);
	/* Closed at the last moment, there is nothing to go on with. */
	if (unlikely(ckvm__vcpu_drop(vcpu)) && end >= 0)
		return ckvm__fail("closed", -EBADF);
	return unlikely(end == SIGNAL) ? ckvm__fail("signal", -EINTR) : end;
}

static __attribute__((noinline)) int run_loop(struct ckvm_vcpu *vcpu,
					      uint64_t now)
{
	return run(vcpu, loop, now);
}

#define ALL_LIMITS                                                     \
	(CKVM_LIMIT_TIMEOUT | CKVM_LIMIT_DEADLINE | CKVM_LIMIT_EXITS | \
	 CKVM_LIMIT_SIGNALS)

/* Fills `out` if a run may begin with these limits. */
static int take_limits(struct ckvm_vcpu *vcpu, const struct ckvm_limits *limits,
		       struct ckvm_limits *out)
{
	int error = ckvm__vcpu_check(vcpu);

	memset(out, 0, sizeof(*out));
	if (limits)
		memcpy(out, limits,
		       limits->size < sizeof(*out) ? limits->size
						   : sizeof(*out));
	if (error)
		return error;
	if (out->flags & ~ALL_LIMITS)
		return ckvm__fail("limits", -EINVAL);
	if (out->reserved)
		return ckvm__fail("reserved", -EINVAL);
	return ckvm__vcpu_in_loop(vcpu) ? ckvm__fail("running", -EBUSY) : 0;
}

/* A new run is not stopped yet; but for one that is claimed it may be. */
static void forget_stop(struct ckvm_vcpu *vcpu)
{
	vcpu->stop = false;
	if (!atomic_load(&vcpu->runner))
		atomic_store(&vcpu->stop_asked, false);
}

int ckvm_vcpu_run(struct ckvm_vcpu *vcpu, const struct ckvm_limits *limits)
{
	struct ckvm_limits lim;
	int error = take_limits(vcpu, limits, &lim);

	if (error)
		return error;
	abandon(vcpu);
	vcpu->run_serial++;
	forget_stop(vcpu);
	vcpu->limit_flags = lim.flags;
	vcpu->left = lim.flags & CKVM_LIMIT_EXITS ? lim.exits : UINT64_MAX;
	ckvm__set_deadline(vcpu, &lim);

	begin(vcpu);
	/* Over before KVM_RUN, but not before what is queued. */
	vcpu->over = !vcpu->left || atomic_load(&vcpu->kicked) ||
		     (vcpu->deadline && ckvm__now() >= vcpu->deadline);
	if (vcpu->over || vcpu->waiting)
		vcpu->phase = PHASE_BATCH;
	return run_loop(vcpu, ckvm__ticks());
}

int ckvm_vcpu_continue(struct ckvm_vcpu *vcpu)
{
	int error = ckvm__check_process(vcpu->kvm);
	uint64_t now = ckvm__ticks();

	/* If it is closed, or another thread's, the loop will find out. */
	if (unlikely(error))
		return error;
	if (unlikely(vcpu->phase == PHASE_IDLE)) {
		error = ckvm__vcpu_check(vcpu);
		return error ? error : ckvm__fail("run", -ESRCH);
	}
	if (unlikely(vcpu->phase == PHASE_ACCESS))
		vcpu->element++;
	vcpu->caller_ticks += now - vcpu->left_at;
	return run_loop(vcpu, now);
}

/* Handed back, and more to it than a last write? */
static bool being_answered(const struct ckvm_vcpu *vcpu)
{
	const struct kvm_run *run = vcpu->run;

	if (vcpu->phase == PHASE_BATCH)
		return true;
	if (vcpu->phase != PHASE_ACCESS && vcpu->phase != PHASE_LAST)
		return false;
	return vcpu->open == OPEN_READ || (vcpu->phase == PHASE_ACCESS &&
					   run->exit_reason == KVM_EXIT_IO &&
					   vcpu->element + 1 < run->io.count);
}

int ckvm_vcpu_finish(struct ckvm_vcpu *vcpu)
{
	int error = ckvm__vcpu_check(vcpu);

	if (error)
		return error;
	if (ckvm__vcpu_in_loop(vcpu) || being_answered(vcpu))
		return ckvm__fail("access", -EBUSY);
	if (vcpu->open == OPEN_NONE && !vcpu->finishing)
		return CKVM_STOPPED;
	if (vcpu->attend & ATTEND_FINISH) {
		if (vcpu->finish_depth == UINT8_MAX)
			return ckvm__fail("access", -EBUSY);
		vcpu->finish_depth++;
	} else {
		vcpu->finish_within = vcpu->phase != PHASE_IDLE;
		vcpu->finish_depth = 0;
	}
	if (vcpu->phase == PHASE_IDLE) {
		vcpu->run_serial++;
		vcpu->over = vcpu->stop = false;
		vcpu->left = UINT64_MAX;
		vcpu->limit_flags = 0;
		vcpu->timeout = vcpu->bound = 0;
		begin(vcpu);
	}
	atomic_fetch_or(&vcpu->attend, ATTEND_FINISH);
	vcpu->phase = vcpu->waiting ? PHASE_BATCH : PHASE_ENTER;
	return run_loop(vcpu, ckvm__ticks());
}

static int once(struct ckvm_vcpu *vcpu)
{
	int end = 0;

	if (!vcpu->waiting) {
		do {
			end = enter_attended(vcpu);
			if (end == -EINTR)
				end = woken(vcpu);
		} while (end == GO_ON);
	}
	vcpu->waiting = false;
	if (!end) {
		ckvm__begin_exit(vcpu);
		ckvm__count_exit(vcpu);
		if (vcpu->run->exit_reason == KVM_EXIT_DIRTY_RING_FULL)
			end = ckvm__dirty_ring_full(vcpu);
	}
	if (end == GO_ON)
		end = 0;
	if (end == CKVM_KICKED || end == CKVM_STOPPED) /* by another thread */
		return ckvm__fail("kick", -EINTR);
	return end == CKVM_TIMEOUT ? ckvm__fail("timeout", -ETIME) : end;
}

int ckvm_vcpu_run_once(struct ckvm_vcpu *vcpu, const struct ckvm_limits *limits)
{
	struct ckvm_limits lim;
	int error = take_limits(vcpu, limits, &lim);

	if (error)
		return error;
	abandon(vcpu);
	vcpu->run_serial++;
	forget_stop(vcpu);
	vcpu->over = false;
	vcpu->left = UINT64_MAX;
	ckvm__set_deadline(vcpu, &lim);
	vcpu->limit_flags = CKVM_LIMIT_SIGNALS;
	if (vcpu->deadline && ckvm__now() >= vcpu->deadline)
		return ckvm__fail("timeout", -ETIME);
	begin(vcpu);
	vcpu->phase = PHASE_ONCE;
	return run(vcpu, once, ckvm__ticks());
}

void ckvm_vcpu_abandon(struct ckvm_vcpu *vcpu)
{
	pid_t runner = atomic_load(&vcpu->runner);

	if (runner <= 0 && !ckvm__vcpu_is_others(runner) &&
	    !(vcpu->attend & ATTEND_FINISH))
		abandon(vcpu);
}

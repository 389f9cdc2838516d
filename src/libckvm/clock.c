/* SPDX-License-Identifier: MIT */
/*
 * The clock of a run: when it is due, also while it is handed back, and who the
 * thread's timer is for.
 */
#include "internal.h"

void ckvm__set_deadline(struct ckvm_vcpu *vcpu,
			const struct ckvm_limits *limits)
{
	uint64_t now;

	vcpu->timeout = vcpu->bound = 0;
	if (limits->flags & CKVM_LIMIT_TIMEOUT) {
		now = ckvm__now();
		vcpu->timeout = limits->timeout_ns < INT64_MAX - now
					? now + limits->timeout_ns
					: INT64_MAX; /* 292 years */
	}
	if (limits->flags & CKVM_LIMIT_DEADLINE)
		vcpu->bound = limits->deadline_ns | 1;
	vcpu->deadline = ckvm__earlier(vcpu->timeout, vcpu->bound);
}

void ckvm__stop_clock(struct ckvm_vcpu *vcpu)
{
	vcpu->held_ns = ckvm__now();
}

void ckvm_vcpu_pause(struct ckvm_vcpu *vcpu)
{
	uint64_t ticks = ckvm__ticks();

	if (vcpu->phase == PHASE_IDLE)
		return;
	vcpu->caller_ticks += ticks - vcpu->left_at;
	vcpu->left_at = ticks;
	if (vcpu->timeout)
		ckvm__stop_clock(vcpu);
}

void ckvm_vcpu_rest(struct ckvm_vcpu *vcpu, uint64_t bound_ns)
{
	uint64_t held = vcpu->held_ns;

	vcpu->left_at = ckvm__ticks();
	if (vcpu->timeout) {
		ckvm__stop_clock(vcpu);
		vcpu->timeout += vcpu->held_ns - held;
	}
	vcpu->bound = bound_ns;
	vcpu->deadline = ckvm__earlier(vcpu->timeout, vcpu->bound);
}

uint64_t ckvm_vcpu_deadline(const struct ckvm_vcpu *vcpu)
{
	return vcpu->deadline;
}

/* The timer may have gone off already, for another vCPU or for none. */
int ckvm__begin_deadline(struct ckvm_vcpu *vcpu)
{
	if (vcpu->deadline && ckvm__now() >= vcpu->deadline)
		ckvm__set_immediate_exit(vcpu, true);
	return ckvm__arm(vcpu->deadline);
}

/*
 * Between two runs, the timer is for who is to be told of lateness: again in a
 * while, if it is late already, or no run would ever come to do anything.
 */
void ckvm__arm_for_late(const struct ckvm__thread *thread, uint64_t deadline)
{
	uint64_t due = 0, now;

	if (thread->late_deadline)
		due = ckvm__earlier(deadline, thread->late_deadline);
	if (due && due != thread->armed) {
		now = ckvm__now();
		if (due < now)
			due = now + thread->late_period;
	}
	ckvm__arm(due);
}

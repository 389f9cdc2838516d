/* SPDX-License-Identifier: MIT */
/*
 * Getting a vCPU out of the guest: the kick signal, and the timer that sends it
 * when a deadline passes.
 *
 * Whoever kicks has the loop come off its straight path, and signals the thread
 * that is in it. A signal that arrives between the last check and KVM_RUN would
 * be lost. So the handler sets immediate_exit in the page of the vCPU that its
 * thread is in (or about to be in), and where there is none, notes that it
 * came. Nobody else touches that page: it may be gone.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>

#include "internal.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

_Thread_local struct ckvm__thread ckvm__thread;

static atomic_int kick_signal;
static atomic_bool installed;
static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_key_t timer_key;

static void handle_kick(int signal)
{
	struct ckvm__thread *thread = ckvm__this_thread();
	struct ckvm_vcpu *vcpu =
		atomic_load_explicit(&thread->current, memory_order_relaxed);
	int saved = errno;

	(void)signal;
	if (vcpu) {
		ckvm__set_immediate_exit(vcpu, true);
	} else {
		atomic_store_explicit(&thread->missed, true,
				      memory_order_relaxed);
		if (thread->late)
			thread->late(thread->late_opaque);
	}
	errno = saved;
}

/* The signal -------------------------------------------------------------- */

static bool is_default(int signal)
{
	struct sigaction action;

	return sigaction(signal, NULL, &action) == 0 &&
	       !(action.sa_flags & SA_SIGINFO) && action.sa_handler == SIG_DFL;
}

static int choose_signal(void)
{
	for (int signal = SIGRTMAX; signal >= SIGRTMIN; signal--)
		if (is_default(signal))
			return signal;
	return 0;
}

static void delete_timer(void *thread)
{
	const struct ckvm__thread *owner = thread;

	if (owner->has_timer)
		timer_delete(owner->timer);
}

/* Once for the process, and for good: a late signal must find its handler. */
int ckvm__install_kick_signal(void)
{
	/* Restarts what it can: only KVM_RUN is meant to notice. */
	struct sigaction action = { .sa_handler = handle_kick,
				    .sa_flags = SA_RESTART };
	int error = 0, signal;

	if (likely(atomic_load(&installed)))
		return 0;
	pthread_mutex_lock(&install_lock);
	signal = kick_signal ? kick_signal : choose_signal();
	sigemptyset(&action.sa_mask);
	if (atomic_load(&installed))
		;
	else if (!signal)
		error = ckvm__fail("kick signal", -EBUSY);
	else if (sigaction(signal, &action, NULL) < 0)
		error = ckvm__fail("sigaction", -errno);
	else if (pthread_key_create(&timer_key, delete_timer))
		error = ckvm__fail("pthread_key_create", -EAGAIN);
	if (!error) {
		kick_signal = signal;
		atomic_store(&installed, true);
	}
	pthread_mutex_unlock(&install_lock);
	return error;
}

int ckvm_set_kick_signal(int signal)
{
	int error = 0;

	if (signal < 1 || signal > SIGRTMAX || signal == SIGKILL ||
	    signal == SIGSTOP)
		return ckvm__fail("kick signal", -EINVAL);
	pthread_mutex_lock(&install_lock);
	if (installed)
		error = ckvm__fail("kick signal", -EBUSY);
	else
		kick_signal = signal;
	pthread_mutex_unlock(&install_lock);
	return error;
}

int ckvm_kick_signal(void)
{
	return kick_signal;
}

pid_t ckvm__find_tid(void)
{
	ckvm__thread.tid = (pid_t)syscall(SYS_gettid);
	return ckvm__thread.tid;
}

void ckvm_thread_wake(int tid)
{
	int saved = errno;

	if (atomic_load(&installed))
		syscall(SYS_tgkill, getpid(), tid, kick_signal);
	errno = saved;
}

void ckvm_vcpu_wake(struct ckvm_vcpu *vcpu)
{
	pid_t runner;

	/* In a child of fork() the runner is no thread of this process. */
	if (ckvm__check_process(vcpu->kvm))
		return;
	atomic_fetch_or(&vcpu->attend, ATTEND_WAKE);
	runner = atomic_load(&vcpu->runner);
	if (runner > 0)
		ckvm_thread_wake(runner);
}

void ckvm_vcpu_kick(struct ckvm_vcpu *vcpu)
{
	atomic_store(&vcpu->kicked, true);
	ckvm_vcpu_wake(vcpu);
}

/* A blocked kick would wait for the guest's good will. */
bool ckvm__unblock_kick(void)
{
	sigset_t kick, old;

	sigemptyset(&kick);
	sigaddset(&kick, kick_signal);
	pthread_sigmask(SIG_UNBLOCK, &kick, &old);
	return sigismember(&old, kick_signal) == 1;
}

void ckvm__block_kick(void)
{
	sigset_t kick;

	sigemptyset(&kick);
	sigaddset(&kick, kick_signal);
	pthread_sigmask(SIG_BLOCK, &kick, NULL);
}

/* The timer --------------------------------------------------------------- */

/* One for each thread that ever had a deadline, deleted when it ends. */
static int create_timer(struct ckvm__thread *thread)
{
	struct sigevent event = {
		.sigev_notify = SIGEV_THREAD_ID,
		.sigev_signo = kick_signal,
	};
	timer_t timer;

	event.sigev_notify_thread_id = ckvm__tid();
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) < 0)
		return ckvm__fail("timer_create", -errno);
	thread->timer = timer;
	thread->has_timer = true;
	pthread_setspecific(timer_key, thread);
	return 0;
}

static struct timespec to_timespec(uint64_t ns)
{
	return (struct timespec){ .tv_sec = (time_t)(ns / 1000000000u),
				  .tv_nsec = (long)(ns % 1000000000u) };
}

int ckvm__arm(uint64_t deadline)
{
	struct ckvm__thread *thread = ckvm__this_thread();
	struct itimerspec when = { 0 };
	int error;

	if (deadline == thread->armed)
		return 0;
	error = thread->has_timer ? 0 : create_timer(thread);
	if (error)
		return error;
	thread->armed = deadline;
	when.it_value = to_timespec(deadline);
	if (deadline && thread->late_deadline)
		when.it_interval = to_timespec(thread->late_period);
	if (!timer_settime(thread->timer, TIMER_ABSTIME, &when, NULL))
		return 0;
	thread->armed = 0;
	return ckvm__fail("timer_settime", -errno);
}

void ckvm_thread_late(void (*late)(void *opaque), void *opaque,
		      uint64_t deadline_ns, uint64_t period_ns)
{
	struct ckvm__thread *thread = ckvm__this_thread();

	thread->late = NULL;
	atomic_signal_fence(memory_order_seq_cst);
	thread->late_opaque = opaque;
	thread->late_deadline = deadline_ns;
	thread->late_period = period_ns;
	atomic_signal_fence(memory_order_seq_cst);
	thread->late = late;
	/* Within a callback the timer is for the run around it. */
	if (!thread->current)
		ckvm__arm(late ? deadline_ns : 0);
}

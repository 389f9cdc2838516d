/* SPDX-License-Identifier: MIT */
/* Kicks and other signals: from anywhere, at any time, and none is lost. */
#include <sys/resource.h>
#include <sys/time.h>

#include "test.h"

#define OUT_10 "\xe6\x10" /* out %al, $0x10 */
#define HLT "\xf4"
#define SPIN "\xeb\xfe"
#define LOOP "\xeb\xfc" /* to the OUT before it */

static struct guest guest;

static int run(void)
{
	return ckvm_vcpu_run(guest.vcpu, NULL);
}

/* A port that tells another thread that the guest is running ----------------
 */

static atomic_int writes;
#if defined(__SANITIZE_THREAD__)
#define WITH_TSAN 1
#else
#define WITH_TSAN 0
#endif

static void (*in_callback)(void);

static int count_write(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
		       const void *data, size_t length)
{
	atomic_fetch_add(&writes, 1);
	if (in_callback)
		in_callback();
	return 0;
}

static void open_guest(const char *code, size_t size)
{
	static const struct ckvm_ops ops = { .size = sizeof(ops),
					     .write = count_write };

	writes = 0;
	in_callback = NULL;
	guest = guest_open(NULL, code, size);
	NEED(ckvm_vm_attach_io(guest.vm, 0x10, 1, &ops, NULL, NULL));
}

#define WITH_PORT(code) open_guest(code, sizeof(code) - 1)

static void wait_for_write(int count)
{
	while (atomic_load(&writes) < count)
		sched_yield();
}

static pthread_t start(void *(*body)(void *))
{
	pthread_t thread;

	NEED(pthread_create(&thread, NULL, body, NULL));
	return thread;
}

/* The signal: what comes before the first VM --------------------------------
 */

static int custom_signal;

static void signal_is_the_callers_until_the_first_vm(void)
{
	struct ckvm_vm *vm;

	CHECK_EQ(ckvm_kick_signal(), 0);
	CHECK_FAILS(ckvm_set_kick_signal(0), EINVAL, "kick signal");
	CHECK_FAILS(ckvm_set_kick_signal(-1), EINVAL, "kick signal");
	CHECK_FAILS(ckvm_set_kick_signal(SIGKILL), EINVAL, "kick signal");
	CHECK_FAILS(ckvm_set_kick_signal(SIGSTOP), EINVAL, "kick signal");
	CHECK_FAILS(ckvm_set_kick_signal(SIGRTMAX + 1), EINVAL, "kick signal");
	custom_signal = SIGRTMIN + 3;
	CHECK_EQ(ckvm_set_kick_signal(SIGRTMIN + 2), 0);
	CHECK_EQ(ckvm_set_kick_signal(custom_signal), 0);
	vm = fake_vm();
	CHECK_EQ(ckvm_kick_signal(), custom_signal);
	CHECK_FAILS(ckvm_set_kick_signal(SIGRTMIN + 2), EBUSY, "kick signal");
	ckvm_vm_close(vm);
	CHECK_FAILS(ckvm_set_kick_signal(SIGRTMIN + 2), EBUSY, "kick signal");
	CHECK_EQ(ckvm_kick_signal(), custom_signal);
}

static void signal_has_a_handler_that_stays(void)
{
	struct sigaction action;

	CHECK_EQ(sigaction(ckvm_kick_signal(), NULL, &action), 0);
	CHECK(action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN);
	raise(ckvm_kick_signal()); /* one that comes late does no harm */
}

/* Kicks ------------------------------------------------------------------- */

static void kick_before_the_run_is_remembered_as_one(void)
{
	WITH_PORT(OUT_10 HLT);
	for (int i = 0; i < 10; i++)
		ckvm_vcpu_kick(guest.vcpu);
	CHECK_EQ(run(), CKVM_KICKED);
	CHECK_EQ(writes, 0);
	CHECK(guest_halts(&guest));
	guest_close(&guest);
}

static void *kick_once_it_runs(void *unused)
{
	wait_for_write(1);
	ckvm_vcpu_kick(guest.vcpu);
	return NULL;
}

static void kick_from_a_thread_ends_a_guest_that_spins(void)
{
	pthread_t thread;

	WITH_PORT(OUT_10 SPIN);
	thread = start(kick_once_it_runs);
	CHECK_EQ(run(), CKVM_KICKED);
	pthread_join(thread, NULL);
	guest_close(&guest);
}

static void kick_from_a_thread_ends_a_guest_that_exits(void)
{
	pthread_t thread;

	WITH_PORT(OUT_10 LOOP);
	thread = start(kick_once_it_runs);
	CHECK_EQ(run(), CKVM_KICKED);
	pthread_join(thread, NULL);
	guest_close(&guest);
}

static atomic_int kicks;

static void *kick_and_count(void *unused)
{
	wait_for_write(1);
	ckvm_vcpu_kick(guest.vcpu);
	atomic_fetch_add(&kicks, 1);
	return NULL;
}

static void wait_for_kick(void)
{
	while (!atomic_load(&kicks))
		sched_yield();
}

static void kick_from_a_thread_while_in_a_callback_comes_after_it(void)
{
	pthread_t thread;

	WITH_PORT(OUT_10 SPIN);
	kicks = 0;
	in_callback = wait_for_kick;
	thread = start(kick_and_count);
	CHECK_EQ(run(), CKVM_KICKED);
	CHECK_EQ(writes, 1);
	pthread_join(thread, NULL);
	guest_close(&guest);
}

static void kick_it(void)
{
	ckvm_vcpu_kick(guest.vcpu);
}

static void kick_from_the_callback_itself_comes_after_it(void)
{
	WITH_PORT(OUT_10 SPIN);
	in_callback = kick_it;
	CHECK_EQ(run(), CKVM_KICKED);
	CHECK_EQ(writes, 1);
	guest_close(&guest);
}

static void kick_of_a_run_that_ends_otherwise_ends_the_next(void)
{
	struct ckvm_limits one = { .size = sizeof(one),
				   .flags = CKVM_LIMIT_EXITS,
				   .exits = 1 };

	WITH_PORT(OUT_10 HLT);
	in_callback = kick_it;
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &one), CKVM_EXITS);
	CHECK_EQ(run(), CKVM_KICKED);
	CHECK(guest_halts(&guest));
	guest_close(&guest);
}

static void kick_of_a_run_that_is_handed_back_ends_it(void)
{
	guest = GUEST(OUT_10 SPIN);
	NEED(ckvm_vm_attach_io(guest.vm, 0x10, 1, NULL, NULL, NULL));
	CHECK_EQ(run(), CKVM_ACCESS);
	ckvm_vcpu_kick(guest.vcpu);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_KICKED);
	guest_close(&guest);
}

static void kick_of_a_closed_vcpu_does_nothing(void)
{
	guest = GUEST(HLT);
	ckvm_vcpu_ref(guest.vcpu);
	ckvm_vcpu_close(guest.vcpu);
	ckvm_vcpu_kick(guest.vcpu);
	ckvm_vcpu_wake(guest.vcpu);
	CHECK_FAILS(run(), EBADF, "closed");
	ckvm_vcpu_unref(guest.vcpu);
	guest_close(&guest);
}

static atomic_bool enough;

static void *kick_until_enough(void *vcpu)
{
	while (!atomic_load(&enough)) {
		ckvm_vcpu_kick(vcpu);
		atomic_fetch_add(&writes, 1);
	}
	return NULL;
}

/* The run page goes away meanwhile. */
static void kick_may_come_while_the_vcpu_is_closed(void)
{
	pthread_t thread;

	for (int i = 0; i < 20; i++) {
		WITH_PORT(HLT);
		enough = false;
		ckvm_vcpu_ref(guest.vcpu);
		NEED(pthread_create(&thread, NULL, kick_until_enough,
				    guest.vcpu));
		wait_for_write(1);
		ckvm_vcpu_close(guest.vcpu);
		wait_for_write(writes + 100);
		enough = true;
		pthread_join(thread, NULL);
		ckvm_vcpu_unref(guest.vcpu);
		guest_close(&guest);
	}
}

/* The two threads take turns: a kick for each run, at any point of it. */
static int kicks_to_do;
static atomic_int runs;

/*
 * Most often it has begun at once, and the kick is early. On a busy machine who
 * sleeps is woken before those that compute get their turn, and who yields is
 * not.
 */
static void wait_for_run(int number)
{
	for (int i = 0; atomic_load(&runs) <= number; i++)
		if (i > 10000)
			usleep(20);
}

static void *kick_each_run(void *unused)
{
	for (int i = 0; i < kicks_to_do; i++) {
		wait_for_run(i);
		/* Sometimes early, sometimes well inside. */
		for (volatile int spin = i % 1000 * 4; spin > 0; spin--)
			;
		ckvm_vcpu_kick(guest.vcpu);
	}
	return NULL;
}

static void kick_many_times(int times)
{
	pthread_t thread;
	int kicked = 0;

	kicks_to_do = times;
	runs = 0;
	thread = start(kick_each_run);
	for (int i = 0; i < times; i++) {
		atomic_fetch_add(&runs, 1);
		kicked += run() == CKVM_KICKED;
	}
	CHECK_EQ(kicked, times);
	pthread_join(thread, NULL);
	guest_close(&guest);
}

static void no_kick_is_ever_lost(void)
{
	WITH_PORT(OUT_10 LOOP);
	kick_many_times(test_times(900000));
}

/* The same for a guest that would never come back by itself. */
static void no_kick_is_ever_lost_on_a_guest_that_spins(void)
{
	WITH_PORT(SPIN);
	kick_many_times(test_times(100000));
}

/* Signal handlers -----------------------------------------------------------
 */

static volatile sig_atomic_t alarms;

static void kick_in_handler(int signal)
{
	int saved = errno;

	alarms = alarms + 1;
	errno = 0x5a5a;
	ckvm_vcpu_kick(guest.vcpu);
	if (errno != 0x5a5a)
		abort();
	errno = saved;
}

static void interrupt_in_handler(int signal)
{
	alarms = alarms + 1;
	ckvm_vcpu_wake(guest.vcpu);
}

static void only_count(int signal)
{
	alarms = alarms + 1;
}

/* SIGVTALRM: the watchdog has the other. */
static void tick(void (*handler)(int), long us)
{
	struct itimerval when = { .it_interval.tv_usec = us,
				  .it_value.tv_usec = us };
	struct sigaction action = { .sa_handler = handler };

	alarms = 0;
	sigaction(SIGVTALRM, &action, NULL);
	setitimer(ITIMER_VIRTUAL, &when, NULL);
}

static void stop_ticking(void)
{
	struct itimerval never = { .it_value.tv_usec = 0 };

	setitimer(ITIMER_VIRTUAL, &never, NULL);
	signal(SIGVTALRM, SIG_IGN);
}

static void *send_signal(void *main_thread)
{
	wait_for_write(1);
	pthread_kill(*(pthread_t *)main_thread, SIGUSR1);
	return NULL;
}

static pthread_t signal_once_it_runs(void (*handler)(int))
{
	static pthread_t self;
	struct sigaction action = { .sa_handler = handler };
	pthread_t thread;

	self = pthread_self();
	alarms = 0;
	sigaction(SIGUSR1, &action, NULL);
	NEED(pthread_create(&thread, NULL, send_signal, &self));
	return thread;
}

static void kick_from_a_signal_handler_ends_a_guest_that_spins(void)
{
	pthread_t thread;

	WITH_PORT(OUT_10 SPIN);
	thread = signal_once_it_runs(kick_in_handler);
	CHECK_EQ(run(), CKVM_KICKED);
	pthread_join(thread, NULL);
	CHECK_EQ(alarms, 1);
	guest_close(&guest);
}

static void raise_it(void)
{
	raise(SIGUSR1);
}

static void kick_from_a_signal_handler_in_a_callback_comes_after_it(void)
{
	struct sigaction action = { .sa_handler = kick_in_handler };

	WITH_PORT(OUT_10 SPIN);
	sigaction(SIGUSR1, &action, NULL);
	in_callback = raise_it;
	CHECK_EQ(run(), CKVM_KICKED);
	CHECK_EQ(writes, 1);
	guest_close(&guest);
}

static void kicks_from_a_signal_handler_at_any_point_all_arrive(void)
{
	WITH_PORT(OUT_10 LOOP);
	tick(kick_in_handler, 1000);
	for (int i = 0; i < 50; i++)
		CHECK_EQ(run(), CKVM_KICKED);
	stop_ticking();
	CHECK(alarms >= 50);
	guest_close(&guest);
}

static void other_signals_never_end_a_run(void)
{
	pthread_t thread;

	/* A thousand OUTs, then the end. */
	WITH_PORT("\xb9\xe8\x03"    /* mov $1000, %cx */
		  OUT_10 "\xe2\xfc" /* loop */
		  HLT);
	thread = signal_once_it_runs(only_count);
	tick(only_count, 1000);
	CHECK_EQ(run(), CKVM_EXIT);
	stop_ticking();
	pthread_join(thread, NULL);
	CHECK_EQ(writes, 1000);
	guest_close(&guest);
}

static void limit_signals_ends_a_run_by_any_of_them(void)
{
	struct ckvm_limits limits = { .size = sizeof(limits),
				      .flags = CKVM_LIMIT_SIGNALS };
	pthread_t thread;

	WITH_PORT(OUT_10 SPIN);
	thread = signal_once_it_runs(interrupt_in_handler);
	CHECK_FAILS(ckvm_vcpu_run(guest.vcpu, &limits), EINTR, "signal");
	pthread_join(thread, NULL);
	CHECK_EQ(alarms, 1);
	/* It is the same run, and goes on. */
	ckvm_vcpu_kick(guest.vcpu);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_KICKED);
	guest_close(&guest);
}

static void interrupt_it(void)
{
	ckvm_vcpu_wake(guest.vcpu);
}

static void interrupt_ends_a_run_with_limit_signals_only(void)
{
	struct ckvm_limits limits = { .size = sizeof(limits),
				      .flags = CKVM_LIMIT_SIGNALS };

	WITH_PORT(OUT_10 OUT_10 HLT);
	in_callback = interrupt_it;
	CHECK_FAILS(ckvm_vcpu_run(guest.vcpu, &limits), EINTR, "signal");
	CHECK_EQ(writes, 1);
	CHECK_FAILS(ckvm_vcpu_continue(guest.vcpu), EINTR, "signal");
	CHECK_EQ(writes, 2);
	CHECK_EQ(ckvm_vcpu_continue(guest.vcpu), CKVM_EXIT);
	guest_start(guest.vcpu, GUEST_BASE);
	CHECK(guest_halts(&guest));
	CHECK_EQ(writes, 4);
	guest_close(&guest);
}

static void kick_wins_over_limit_signals(void)
{
	struct ckvm_limits limits = { .size = sizeof(limits),
				      .flags = CKVM_LIMIT_SIGNALS };

	WITH_PORT(OUT_10 SPIN);
	in_callback = kick_it;
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_KICKED);
	guest_close(&guest);
}

/* A thread that blocks the signal: run unblocks it for its own length. */
static sigset_t blocked(void)
{
	sigset_t set;

	pthread_sigmask(SIG_SETMASK, NULL, &set);
	return set;
}

static void run_unblocks_the_signal_for_its_own_length(void)
{
	struct ckvm_limits limits = { .size = sizeof(limits),
				      .flags = CKVM_LIMIT_TIMEOUT,
				      .timeout_ns = 1000000 };
	sigset_t set, before = blocked();
	pthread_t thread;

	WITH_PORT(OUT_10 SPIN);
	sigfillset(&set);
	sigdelset(&set, SIGALRM);
	thread = start(kick_once_it_runs);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	CHECK_EQ(run(), CKVM_KICKED);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_TIMEOUT);
	set = blocked();
	CHECK(sigismember(&set, ckvm_kick_signal()));
	CHECK(sigismember(&set, SIGUSR1));
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_join(thread, NULL);
	guest_close(&guest);
}

static void *go_on_with_what_is_closed(void *unused)
{
	sigset_t set;

	sigfillset(&set);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	CHECK_FAILS(ckvm_vcpu_continue(guest.vcpu), EBADF, "closed");
	set = blocked();
	CHECK(sigismember(&set, ckvm_kick_signal()));
	return NULL;
}

static void a_run_that_cannot_go_on_leaves_the_signal_blocked(void)
{
	pthread_t thread;

	WITH_PORT(HLT);
	CHECK_EQ(run(), CKVM_EXIT);
	ckvm_vcpu_ref(guest.vcpu);
	ckvm_vcpu_close(guest.vcpu);
	thread = start(go_on_with_what_is_closed);
	pthread_join(thread, NULL);
	ckvm_vcpu_unref(guest.vcpu);
	guest_close(&guest);
}

/* One vCPU after another on one thread, and one on several. */
static void *run_until_kicked(void *unused)
{
	CHECK_EQ(run(), CKVM_KICKED);
	return NULL;
}

static void kick_finds_the_thread_that_runs_it_now(void)
{
	WITH_PORT(OUT_10 LOOP);
	for (int i = 0; i < 20; i++) {
		pthread_t runner;

		writes = 0;
		runner = start(run_until_kicked);
		wait_for_write(2);
		ckvm_vcpu_kick(guest.vcpu);
		pthread_join(runner, NULL);
	}
	guest_close(&guest);
}

/* A timer takes one of the signals that a user may have pending. */
static void *run_until_late(void *unused)
{
	struct ckvm_limits limits = { .size = sizeof(limits),
				      .flags = CKVM_LIMIT_TIMEOUT };

	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &limits), CKVM_TIMEOUT);
	return NULL;
}

static void a_thread_that_ends_leaves_no_timer_behind(void)
{
	struct rlimit old, few = { .rlim_cur = 200 };

	WITH_PORT(SPIN);
	NEED(getrlimit(RLIMIT_SIGPENDING, &old));
	few.rlim_max = old.rlim_max;
	NEED(setrlimit(RLIMIT_SIGPENDING, &few));
	for (int i = 0; i < 500; i++)
		pthread_join(start(run_until_late), NULL);
	NEED(setrlimit(RLIMIT_SIGPENDING, &old));
	guest_close(&guest);
}

int main(int argc, char **argv)
{
	test_begin(argv);
	PROMISE(signal_is_the_callers_until_the_first_vm);
	PROMISE(signal_has_a_handler_that_stays);
	test_needs_kvm();
	PROMISE(kick_before_the_run_is_remembered_as_one);
	PROMISE(kick_from_a_thread_ends_a_guest_that_spins);
	PROMISE(kick_from_a_thread_ends_a_guest_that_exits);
	PROMISE(kick_from_a_thread_while_in_a_callback_comes_after_it);
	PROMISE(kick_from_the_callback_itself_comes_after_it);
	PROMISE(kick_of_a_run_that_ends_otherwise_ends_the_next);
	PROMISE(kick_of_a_run_that_is_handed_back_ends_it);
	PROMISE(kick_of_a_closed_vcpu_does_nothing);
	PROMISE(kick_may_come_while_the_vcpu_is_closed);
	PROMISE(no_kick_is_ever_lost);
	/* TSan holds a signal back to where it finds the time for it. */
	if (!WITH_TSAN)
		PROMISE(no_kick_is_ever_lost_on_a_guest_that_spins);
	PROMISE(kick_from_a_signal_handler_ends_a_guest_that_spins);
	PROMISE(kick_from_a_signal_handler_in_a_callback_comes_after_it);
	PROMISE(kicks_from_a_signal_handler_at_any_point_all_arrive);
	PROMISE(other_signals_never_end_a_run);
	PROMISE(limit_signals_ends_a_run_by_any_of_them);
	PROMISE(interrupt_ends_a_run_with_limit_signals_only);
	PROMISE(kick_wins_over_limit_signals);
	PROMISE(run_unblocks_the_signal_for_its_own_length);
	PROMISE(a_run_that_cannot_go_on_leaves_the_signal_blocked);
	PROMISE(kick_finds_the_thread_that_runs_it_now);
	PROMISE(a_thread_that_ends_leaves_no_timer_behind);
	return test_end();
}

/* SPDX-License-Identifier: MIT */
/*
 * A thread that polls descriptors for a VM, and waits for times. What it
 * notices it notes, and wakes the VM's vCPUs: whichever run then comes out of
 * the guest without an exit calls the handler. What is noted is not polled
 * again until its handler was called, so while no run is on nothing happens
 * more than once.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "watcher.h"

/* The thread -------------------------------------------------------------- */

static void notify(const struct luackvm_watcher *watcher)
{
	uint64_t one = 1;

	if (write(watcher->wake, &one, sizeof(one)) < 0)
		return; /* it is readable, then */
}

static void wake_vcpus(const struct luackvm_watcher *watcher)
{
	struct ckvm_vcpu *vcpu;
	unsigned long id = 0;

	while ((vcpu = ckvm_vm_find_vcpu(watcher->vm, id))) {
		id = ckvm_vcpu_id(vcpu) + 1;
		ckvm_vcpu_wake(vcpu);
		ckvm_vcpu_unref(vcpu);
	}
}

static bool make_room(struct polled *polled, size_t count)
{
	struct pollfd *fds;

	if (count <= polled->room)
		return true;
	fds = realloc(polled->fds, count * 2 * sizeof(*fds));
	if (!fds)
		return false;
	polled->fds = fds;
	polled->room = count * 2;
	return true;
}

/* ns: when there is no memory, or poll(2) fails, tried again */
#define LATER 100000000
#define GUESTS_SHARE 100000u /* ns, between two calls for a descriptor */

/* With the lock: what is armed. */
static void collect(const struct luackvm_watcher *watcher,
		    struct polled *polled)
{
	const struct luackvm_watch *watch;
	uint64_t now = luackvm_now();

	polled->count = 1;
	polled->due = 0;
	for (watch = watcher->watches; watch; watch = watch->next) {
		uint64_t due = watch->due;

		if (watch->state != WATCH_ARMED)
			continue;
		if (watch->fd >= 0 && due <= now) {
			if (make_room(polled, polled->count + 1)) {
				polled->fds[polled->count++] = (struct pollfd){
					.fd = watch->fd, .events = watch->events
				};
				continue;
			}
			due = now + LATER;
		}
		if (!polled->due || due < polled->due)
			polled->due = due;
	}
}

static bool has_fd(const struct polled *polled, int fd)
{
	for (size_t i = 1; i < polled->count; i++)
		if (polled->fds[i].fd == fd && polled->fds[i].revents)
			return true;
	return false;
}

/* With the lock: notes what has happened; is there anything new? */
static bool note(const struct luackvm_watcher *watcher,
		 const struct polled *polled)
{
	uint64_t now = luackvm_now();
	struct luackvm_watch *watch;
	bool any = false;

	for (watch = watcher->watches; watch; watch = watch->next) {
		if (watch->state != WATCH_ARMED)
			continue;
		if (watch->fd >= 0 ? !has_fd(polled, watch->fd)
				   : watch->due > now)
			continue;
		watch->state = WATCH_NOTED;
		any = true;
	}
	return any;
}

static void sleep_until_something(const struct luackvm_watcher *watcher,
				  struct polled *polled)
{
	static const struct timespec later = { .tv_nsec = LATER };
	uint64_t now = luackvm_now(), count,
		 left = polled->due > now ? polled->due - now : 0;
	struct timespec timeout = { .tv_sec = (time_t)(left / 1000000000u),
				    .tv_nsec = (long)(left % 1000000000u) };

	if (ppoll(polled->fds, polled->count, polled->due ? &timeout : NULL,
		  NULL) < 0)
		nanosleep(&later, NULL);
	if (read(watcher->wake, &count, sizeof(count)) < 0)
		return; /* nobody has called */
}

static void *look_out(void *opaque)
{
	struct luackvm_watcher *watcher = opaque;
	struct polled *polled = &watcher->polled;
	bool any;

	prctl(PR_SET_NAME, "ckvm events");
	pthread_mutex_lock(&watcher->lock);
	while (!watcher->quit) {
		collect(watcher, polled);
		pthread_mutex_unlock(&watcher->lock);
		sleep_until_something(watcher, polled);
		pthread_mutex_lock(&watcher->lock);
		any = note(watcher, polled);
		if (!any || watcher->quit)
			continue;
		pthread_mutex_unlock(&watcher->lock);
		wake_vcpus(watcher);
		pthread_mutex_lock(&watcher->lock);
	}
	pthread_mutex_unlock(&watcher->lock);
	return NULL;
}

/* Watches ----------------------------------------------------------------- */

struct luackvm_watch *luackvm_create_watch(void)
{
	struct luackvm_watch *watch = calloc(1, sizeof(*watch));

	if (watch) {
		watch->refs = 1;
		watch->fd = -1;
	}
	return watch;
}

void luackvm_ref_watch(struct luackvm_watch *watch)
{
	watch->refs++;
}

void luackvm_unref_watch(struct luackvm_watch *watch)
{
	if (!--watch->refs)
		free(watch);
}

static void link_watch(struct luackvm_watcher *watcher,
		       struct luackvm_watch *watch)
{
	struct luackvm_watch **at = &watcher->watches;

	pthread_mutex_lock(&watcher->lock);
	while (*at)
		at = &(*at)->next;
	*at = watch;
	pthread_mutex_unlock(&watcher->lock);
}

static void unlink_watch(struct luackvm_watcher *watcher,
			 struct luackvm_watch *watch)
{
	struct luackvm_watch **at = &watcher->watches;

	pthread_mutex_lock(&watcher->lock);
	while (*at != watch)
		at = &(*at)->next;
	*at = watch->next;
	watch->next = NULL;
	pthread_mutex_unlock(&watcher->lock);
}

void luackvm_arm_watch(struct luackvm_watcher *watcher,
		       struct luackvm_watch *watch)
{
	luackvm_ref_watch(watch);
	watch->watcher = watcher;
	link_watch(watcher, watch);
	notify(watcher);
}

/* First of all the thread forgets it. */
void luackvm_detach_watch(struct luackvm_watch *watch)
{
	bool held = watch->watcher;

	if (held)
		unlink_watch(watch->watcher, watch);
	watch->watcher = NULL;
	if (watch->fd >= 0)
		close(watch->fd);
	watch->fd = -1;
	if (held)
		luackvm_unref_watch(watch);
}

/* There is nothing more to read, if somebody else has read it meanwhile. */
static bool is_ready(const struct luackvm_watch *watch)
{
	struct pollfd poll_fd = { .fd = watch->fd, .events = watch->events };

	return watch->fd < 0 || poll(&poll_fd, 1, 0) != 0;
}

/*
 * With the lock. A descriptor that is always ready would have the vCPU called
 * before it has come into the guest, where both threads share a CPU: the guest
 * would stand still.
 */
static void arm_again(struct luackvm_watch *watch)
{
	if (watch->state == WATCH_CALLED && watch->fd >= 0)
		watch->due = luackvm_now() + GUESTS_SHARE;
	watch->state = WATCH_ARMED;
}

struct luackvm_watch *luackvm_next_watch(struct luackvm_watcher *watcher)
{
	struct luackvm_watch *watch, *found = NULL;
	bool again = false;

	pthread_mutex_lock(&watcher->lock);
	for (watch = watcher->watches; watch; watch = watch->next) {
		if (watch->state == WATCH_ARMED)
			continue;
		if (watch->state == WATCH_NOTED && is_ready(watch)) {
			if (!found || watch->due < found->due)
				found = watch;
			continue;
		}
		arm_again(watch);
		again = true;
	}
	if (found)
		found->state = WATCH_CALLED;
	pthread_mutex_unlock(&watcher->lock);
	if (again)
		notify(watcher);
	return found;
}

/* The watcher ------------------------------------------------------------- */

void luackvm_begin_watcher(struct luackvm_watcher *watcher, struct ckvm_vm *vm)
{
	memset(watcher, 0, sizeof(*watcher));
	watcher->wake = -1;
	pthread_mutex_init(&watcher->lock, NULL);
	ckvm_vm_ref(vm);
	watcher->vm = vm;
}

static int start_thread(struct luackvm_watcher *watcher)
{
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&watcher->thread, NULL, look_out, watcher);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	watcher->started = !error;
	return -error;
}

int luackvm_start_watcher(struct luackvm_watcher *watcher, const char **step)
{
	if (watcher->started)
		return 0;
	*step = "eventfd";
	if (watcher->wake < 0)
		watcher->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (watcher->wake < 0)
		return -errno;
	*step = "malloc";
	if (!make_room(&watcher->polled, 1))
		return -ENOMEM;
	watcher->polled.fds[0] =
		(struct pollfd){ .fd = watcher->wake, .events = POLLIN };
	*step = "pthread_create";
	return start_thread(watcher);
}

void luackvm_stop_watcher(struct luackvm_watcher *watcher)
{
	if (watcher->started) {
		pthread_mutex_lock(&watcher->lock);
		watcher->quit = true;
		pthread_mutex_unlock(&watcher->lock);
		notify(watcher);
		pthread_join(watcher->thread, NULL);
		watcher->started = watcher->quit = false;
	}
	while (watcher->watches)
		luackvm_detach_watch(watcher->watches);
	if (watcher->wake >= 0)
		close(watcher->wake);
	watcher->wake = -1;
	free(watcher->polled.fds);
	watcher->polled = (struct polled){ .fds = NULL };
}

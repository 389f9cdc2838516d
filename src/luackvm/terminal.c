/* SPDX-License-Identifier: MIT */
/*
 * ckvm.raw_terminal(): a terminal whose keys are a guest's, until the object is
 * closed. It is put back in any case: by close, by the collector, by exit(),
 * and by hosts that call ckvm_lua_restore_terminals() when a signal ends them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "luackvm.h"

struct luackvm_terminal {
	struct luackvm_terminal *next; /* that is raw, too */
	int fd;
	int pid; /* who made it raw: no child puts it back */
	unsigned int device;
	struct termios saved;
};

/* Those that are raw, the last one first. */
static struct luackvm_terminal *terminals;
static atomic_flag busy = ATOMIC_FLAG_INIT;

/*
 * For signal handlers, too: who holds the list takes no signal, so that they
 * never wait for their own thread. Nor does SIGTTOU stop a process of the
 * background that puts its terminal back.
 */
static void lock_list(sigset_t *mask)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, mask);
	while (atomic_flag_test_and_set(&busy))
		;
}

static void unlock_list(const sigset_t *mask)
{
	atomic_flag_clear(&busy);
	pthread_sigmask(SIG_SETMASK, mask, NULL);
}

/* It may be gone, and there is nobody to tell. TCSANOW does not wait. */
static void put_back(const struct luackvm_terminal *terminal)
{
	if (terminal->pid == getpid())
		tcsetattr(terminal->fd, TCSANOW, &terminal->saved);
}

void ckvm_lua_restore_terminals(void)
{
	const struct luackvm_terminal *terminal;
	int saved = errno;
	sigset_t mask;

	lock_list(&mask);
	for (terminal = terminals; terminal; terminal = terminal->next)
		put_back(terminal);
	unlock_list(&mask);
	errno = saved;
}

/* The list ---------------------------------------------------------------- */

static struct luackvm_terminal *find_device(unsigned int device)
{
	struct luackvm_terminal *terminal = terminals;

	while (terminal && terminal->device != device)
		terminal = terminal->next;
	return terminal;
}

/* One that is raw already is put back, in the end, to what it was at first. */
static void link_terminal(struct luackvm_terminal *terminal)
{
	const struct luackvm_terminal *same;
	sigset_t mask;

	lock_list(&mask);
	same = find_device(terminal->device);
	if (same)
		terminal->saved = same->saved;
	terminal->next = terminals;
	terminals = terminal;
	unlock_list(&mask);
}

static void unlink_terminal(struct luackvm_terminal *terminal)
{
	struct luackvm_terminal **at = &terminals;
	sigset_t mask;

	lock_list(&mask);
	while (*at != terminal)
		at = &(*at)->next;
	*at = terminal->next;
	if (!find_device(terminal->device))
		put_back(terminal);
	unlock_list(&mask);
}

/* Making ------------------------------------------------------------------ */

static sigset_t mask_at_fork;

static void before_fork(void)
{
	sigset_t mask;

	lock_list(&mask);
	mask_at_fork = mask;
}

static void after_fork(void)
{
	sigset_t mask = mask_at_fork;

	unlock_list(&mask);
}

/* A child does not wait for the list, which a thread had that it has not. */
static void register_exit(void)
{
	atexit(ckvm_lua_restore_terminals);
	pthread_atfork(before_fork, after_fork, after_fork);
}

/* Output stays as it is: the host prints lines. */
static int make_raw(int fd, const struct termios *saved)
{
	struct termios raw = *saved;
	int result;

	raw.c_iflag &= ~(tcflag_t)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR |
				   IGNCR | ICRNL | IXON);
	raw.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
	raw.c_cflag &= ~(tcflag_t)(CSIZE | PARENB);
	raw.c_cflag |= CS8;
	raw.c_cc[VMIN] = 1;
	raw.c_cc[VTIME] = 0;
	do
		result = tcsetattr(fd, TCSANOW, &raw);
	while (result && errno == EINTR);
	return result ? -errno : 0;
}

/*
 * What the terminal is, of which it has a descriptor. A pseudo-terminal has one
 * device here by either side; the file's own number is the same for all first
 * sides, and /dev/tty has another one than what it stands for.
 */
static int inspect(struct luackvm_terminal *terminal)
{
	if (tcgetattr(terminal->fd, &terminal->saved) ||
	    ioctl(terminal->fd, TIOCGDEV, &terminal->device))
		return -errno;
	terminal->pid = getpid();
	return 0;
}

static void end(void *object)
{
	struct luackvm_terminal *terminal = object;

	unlink_terminal(terminal);
	close(terminal->fd);
	free(terminal);
}

/* Makes the terminal raw; `step` names what fails. */
static int create(int fd, struct luackvm_terminal **out, const char **step)
{
	struct luackvm_terminal *terminal;
	int error;

	*step = "malloc";
	terminal = calloc(1, sizeof(*terminal));
	if (!terminal)
		return -ENOMEM;
	*step = "fcntl";
	terminal->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (terminal->fd < 0) {
		error = -errno;
		goto err_free;
	}
	*step = "tcgetattr";
	error = inspect(terminal);
	if (error)
		goto err_close;
	link_terminal(terminal);
	*step = "tcsetattr";
	error = make_raw(terminal->fd, &terminal->saved);
	if (error) {
		end(terminal);
		return error;
	}
	*out = terminal;
	return 0;

err_close:
	close(terminal->fd);
err_free:
	free(terminal);
	return error;
}

/***
 * A terminal in raw mode, that `ckvm.raw_terminal` makes: `close` puts it back
 * to what it was.
 *
 * @type terminal
 */

/***
 * Has a terminal hand on every key as it is typed: no echo, no lines, and
 * Ctrl-C is a byte. What is printed to it looks as before. It is put back when
 * the object is closed or collected, when the program ends, and in `ckvm-lua`
 * also when a signal ends it.
 *
 * @function ckvm.raw_terminal
 * @tparam userdata|integer file file of `io`, or the number of a descriptor
 * @treturn terminal the terminal
 * @raise `ENOTTY` if it is none; `EMFILE`, `ENOMEM`
 * @usage
 * local _, _, file = ckvm.pty()
 * local terminal <close> = ckvm.raw_terminal(file)
 */
int luackvm_raw_terminal(lua_State *L)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	int fd = luackvm_file_fd(L, 1, "raw_terminal");
	struct luackvm_terminal *terminal = NULL;
	struct luackvm_box *box;
	const char *step = NULL;
	bool tried = false;
	int error;

	pthread_once(&once, register_exit);
	box = luackvm_new_box(L, &luackvm_terminal);
	do
		error = create(fd, &terminal, &step);
	while (error && luackvm_retry(L, error, &tried));
	if (error)
		return luackvm_fail_call(L, step, error, NULL);
	luackvm_fill(L, box, terminal, true);
	return 1;
}

const struct luackvm_type luackvm_terminal = {
	.name = "terminal",
	.end = end,
};

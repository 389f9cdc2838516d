/* SPDX-License-Identifier: MIT */
/* Terminals that scripts have made raw, in a host that forks. */
#include "lua_state.h"

#include <sys/prctl.h>
#include <sys/wait.h>

#define FORKS 30

static atomic_bool is_done;

/* Has the list of terminals nearly all the time. */
static void *restore(void *opaque)
{
	(void)opaque;
	while (!is_done)
		ckvm_lua_restore_terminals();
	return NULL;
}

/* As exit() does. One that waits for ever ends with this program. */
static void end_child(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	ckvm_lua_restore_terminals();
	_exit(0);
}

static void a_child_ends_though_a_thread_had_the_list(void)
{
	lua_State *L = open_state();
	pthread_t thread;
	int status = 0;

	run(L, "master, _, slave = ckvm.pty()"
	       "terminal = ckvm.raw_terminal(slave)");
	NEED(-pthread_create(&thread, NULL, restore, NULL));
	for (int i = 0; i < FORKS && !status; i++) {
		pid_t child = fork();

		if (child == 0)
			end_child();
		CHECK(child > 0);
		CHECK_EQ(waitpid(child, &status, 0), child);
		CHECK_EQ(status, 0);
	}
	is_done = true;
	pthread_join(thread, NULL);
	lua_close(L);
}

int main(int argc, char **argv)
{
	(void)argc;
	test_begin(argv);
	PROMISE(a_child_ends_though_a_thread_had_the_list);
	return test_end();
}

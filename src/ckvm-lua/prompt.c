/* SPDX-License-Identifier: MIT */
/* The prompt: reads statements, runs them and prints their values. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <lauxlib.h>

#include "host.h"

#define INCOMPLETE "<eof>" /* how Lua's complaint about a missing rest ends */

enum input { LINE, DROPPED, END };

/* Raw access: a script may have made unknown globals an error. */
static int raw_global(lua_State *L, const char *name)
{
	int type;

	lua_pushglobaltable(L);
	lua_pushstring(L, name);
	type = lua_rawget(L, -2);
	lua_remove(L, -2);
	return type;
}

static void show_prompt(lua_State *L, const char *variable, const char *prompt)
{
	if (raw_global(L, variable) == LUA_TSTRING)
		prompt = lua_tostring(L, -1);
	fputs(prompt, stdout);
	fflush(stdout);
	lua_pop(L, 1);
}

/*
 * Waits for a line of a terminal, with the signals of `mask` blocked; a SIGINT
 * that came since it was blocked ends this, too. A file needs no wait, and of a
 * pipe stdio may hold the next lines already.
 */
static int wait_for_line(const sigset_t *mask)
{
	struct pollfd input = { .fd = STDIN_FILENO, .events = POLLIN };

	if (!isatty(STDIN_FILENO))
		return 0;
	return ppoll(&input, 1, NULL, mask);
}

/* At the prompt no script runs: getline() has to return, no more. */
static void drop_line(int signal)
{
	(void)signal;
}

/* getline(), but a Ctrl-C from the moment on the prompt is seen is EINTR. */
static ssize_t prompt_line(lua_State *L, const char *variable,
			   const char *prompt, char **line, size_t *size)
{
	ssize_t length = -1;
	sigset_t sigint, mask;

	sigemptyset(&sigint);
	sigaddset(&sigint, SIGINT);
	sigprocmask(SIG_BLOCK, &sigint, &mask);
	host_set_sigint(drop_line);
	show_prompt(L, variable, prompt);
	errno = 0;
	if (wait_for_line(&mask) >= 0) {
		sigprocmask(SIG_SETMASK, &mask, NULL);
		clearerr(stdin); /* a script's io.read() has met Ctrl-C or -D */
		length = getline(line, size, stdin);
	}
	sigprocmask(SIG_SETMASK, &mask, NULL);
	host_set_sigint(NULL);
	return length;
}

/* LINE: pushes it, without its newline. DROPPED: by Ctrl-C. */
static enum input read_line(lua_State *L, const char *variable,
			    const char *prompt)
{
	static char *line; /* static: an error in lua_pushlstring loses none */
	static size_t size;
	ssize_t length = prompt_line(L, variable, prompt, &line, &size);

	if (length < 0) {
		int dropped = errno == EINTR;

		clearerr(stdin);
		putchar('\n');
		return dropped ? DROPPED : END;
	}
	if (length > 0 && line[length - 1] == '\n')
		length--;
	lua_pushlstring(L, line, (size_t)length);
	return LINE;
}

/* Pushes the chunk or a message for the string at index. */
static int load_line(lua_State *L, int index)
{
	size_t length;
	const char *text = lua_tolstring(L, index, &length);

	return luaL_loadbufferx(L, text, length, "=stdin", "t");
}

/* The line at 1 as an expression: true with its chunk, or no change. */
static int load_expression(lua_State *L)
{
	const char *text = lua_tostring(L, 1);

	if (text[0] == '=') {
		lua_pushstring(L, text + 1);
		lua_replace(L, 1);
	}
	lua_pushliteral(L, "return ");
	lua_pushvalue(L, 1);
	lua_concat(L, 2);
	if (load_line(L, 2) == LUA_OK)
		return 1;
	lua_settop(L, 1);
	return 0;
}

static int is_incomplete(lua_State *L, int status)
{
	size_t length, mark = strlen(INCOMPLETE);
	const char *text;

	if (status != LUA_ERRSYNTAX)
		return 0;
	text = lua_tolstring(L, -1, &length);
	return length >= mark && strcmp(text + length - mark, INCOMPLETE) == 0;
}

/* The line at 1, and as many more as it takes to make it complete. */
static int load_statement(lua_State *L, enum input *input)
{
	int status = load_line(L, 1);

	while (is_incomplete(L, status)) {
		*input = read_line(L, "_PROMPT2", ">> ");
		if (*input != LINE)
			break;
		lua_remove(L, 2); /* the message */
		lua_pushliteral(L, "\n");
		lua_insert(L, 2);
		lua_concat(L, 3);
		status = load_line(L, 1);
	}
	return status;
}

static void print_results(lua_State *L)
{
	int count = lua_gettop(L);

	if (count == 0)
		return;
	luaL_checkstack(L, LUA_MINSTACK, "too many results to print");
	raw_global(L, "print");
	lua_insert(L, 1);
	host_report(L, host_call(L, count, 0));
}

/* Reads, runs and prints one statement, on an empty stack. */
static enum input interact(lua_State *L)
{
	enum input input;
	int status = LUA_OK;

	input = read_line(L, "_PROMPT", "> ");
	if (input != LINE)
		return input;
	if (!load_expression(L))
		status = load_statement(L, &input);
	if (input == DROPPED)
		return input;
	lua_replace(L, 1);
	lua_settop(L, 1);
	if (status == LUA_OK)
		status = host_call(L, 0, LUA_MULTRET);
	if (host_report(L, status) == LUA_OK)
		print_results(L);
	return host_settle_interrupt(L) ? LINE : END;
}

void host_interact(lua_State *L)
{
	do
		lua_settop(L, 0);
	while (interact(L) != END);
}

/* SPDX-License-Identifier: MIT */
/*
 * ckvm-lua, the host: opens a Lua state with ckvm in it, runs what the command
 * line names, and turns Ctrl-C into an error in the script.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include <ckvm.h>
#include <ckvm_lua.h>

#define PROGRAM "ckvm-lua"
#define BINARY_REFUSED "attempt to load a binary chunk"
#define INCOMPLETE "<eof>" /* how Lua's complaint about a missing rest ends */

enum { STATUS_OK = 0, STATUS_ERROR = 1, STATUS_USAGE = 2, STATUS_SIGINT = 130 };

struct action { /* -e, -l and -W: done in the order they were given */
	int option;
	const char *argument;
};

struct options {
	int argc;
	char **argv;
	int script; /* its index in argv; argc for none */
	int version, interactive, no_environment;
	FILE *trace;
	int statements; /* how many of the actions are -e */
	int count;
	struct action *actions;
};

/* What the signal handler needs. */
static struct ckvm_lua *volatile binding;
static volatile sig_atomic_t interrupted;

/* Ctrl-C ------------------------------------------------------------------ */

/* No SA_RESTART: a script that waits in io.read() is to be woken up. */
static void set_sigint(void (*handler)(int))
{
	struct sigaction action = { .sa_handler = handler };

	sigemptyset(&action.sa_mask);
	sigaction(SIGINT, &action, NULL);
}

/* The first one stops the script; the next one ends the process. */
static void stop_script(int signal)
{
	(void)signal;
	set_sigint(SIG_DFL);
	interrupted = 1;
	if (binding)
		ckvm_lua_interrupt(binding);
}

/* At the prompt, where no script runs: getline() has to return, no more. */
static void drop_line(int signal)
{
	(void)signal;
}

static int forget_binding(lua_State *L)
{
	(void)L;
	binding = NULL;
	return 0;
}

/*
 * os.exit(n, true) closes the state while Ctrl-C is armed. Finalizers run in
 * the reverse order of creation, so this one comes before the module's own.
 */
static void forget_binding_at_close(lua_State *L)
{
	lua_newuserdatauv(L, 0, 0);
	lua_createtable(L, 0, 1);
	lua_pushcfunction(L, forget_binding);
	lua_setfield(L, -2, "__gc");
	lua_setmetatable(L, -2);
	luaL_ref(L, LUA_REGISTRYINDEX);
}

/* Errors ------------------------------------------------------------------ */

/* Turns any error value into a string with a traceback. */
static int message_handler(lua_State *L)
{
	const char *text = lua_tostring(L, 1);

	if (!text && luaL_getmetafield(L, 1, "__tostring") != LUA_TNIL)
		text = luaL_tolstring(L, 1, NULL);
	if (!text)
		text = lua_pushfstring(L, "(error object is a %s value)",
				       luaL_typename(L, 1));
	luaL_traceback(L, L, text, 1);
	return 1;
}

/* Prints the message on top of the stack, if status says there is one. */
static int report(lua_State *L, int status)
{
	if (status == LUA_OK)
		return status;
	fflush(stdout); /* what led to the error comes before it */
	fprintf(stderr, PROGRAM ": %s\n", lua_tostring(L, -1));
	lua_pop(L, 1);
	return status;
}

/* lua_pcall with a traceback, and Ctrl-C while it lasts. */
static int call(lua_State *L, int arguments, int results)
{
	int base = lua_gettop(L) - arguments;
	int status;

	lua_pushcfunction(L, message_handler);
	lua_insert(L, base);
	set_sigint(stop_script);
	status = lua_pcall(L, arguments, results, base);
	set_sigint(SIG_DFL);
	lua_remove(L, base);
	return status;
}

/* Calls the chunk that was loaded with `status`; reports either failure. */
static int run(lua_State *L, int status, int arguments)
{
	if (status == LUA_OK)
		status = call(L, arguments, 0);
	return report(L, status);
}

/*
 * Output that never reached its file is an error, also after os.exit(), whose
 * only way back to here is atexit(). Called in exit(): the status is changed by
 * _exit() alone.
 */
static void check_stdout(void)
{
	errno = 0;
	if (fflush(stdout) == 0 && !ferror(stdout))
		return;
	fprintf(stderr, PROGRAM ": standard output: %s\n",
		errno ? strerror(errno) : "write error");
	_exit(STATUS_ERROR);
}

/* --trace-ioctl ----------------------------------------------------------- */

/*
 * One line an ioctl, in one call: lines of several threads stay whole.
 * Arguments of requests that move no data are numbers; others are pointers,
 * which say nothing to a reader.
 */
static void trace_ioctl(void *opaque, int fd, unsigned long request,
			void *argument, int result)
{
	const char *name = ckvm_ioctl_name(request);
	const char *failure = result < 0 ? ckvm_errno_name(result) : NULL;
	char number[24], value[24] = "...", answer[16];

	snprintf(number, sizeof(number), "%#lx", request);
	if (_IOC_DIR(request) == _IOC_NONE)
		snprintf(value, sizeof(value), "%#lx", (unsigned long)argument);
	snprintf(answer, sizeof(answer), "%d", result);
	fprintf(opaque, "%s(%d, %s) = %s\n", name ? name : number, fd, value,
		failure ? failure : answer);
}

static void set_trace(FILE *file)
{
	struct ckvm_hook hook = { .after = trace_ioctl, .opaque = file };

	if (file)
		ckvm_lua_set_hook(binding, &hook);
}

/* Where things are -------------------------------------------------------- */

static int same_file(const char *one, const char *other)
{
	struct stat a, b;

	return stat(one, &a) == 0 && stat(other, &b) == 0 &&
	       a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* Run from its build tree, by itself or by libtool's wrapper. */
static int uninstalled(void)
{
	char path[PATH_MAX], *slash;
	ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);

	if (length < 0)
		return 0;
	path[length] = '\0';
	slash = strrchr(path, '/');
	if (!slash)
		return 0;
	*slash = '\0';
	return same_file(path, CKVM_BUILDDIR) ||
	       same_file(path, CKVM_BUILDDIR "/.libs");
}

static const char *scripts_directory(void)
{
	return uninstalled() ? CKVM_SRCDIR "/scripts"
			     : CKVM_PKGDATADIR "/scripts";
}

/* Puts templates in front of package.path or package.cpath. */
static void prepend(lua_State *L, const char *field, const char *templates)
{
	lua_getglobal(L, LUA_LOADLIBNAME);
	lua_getfield(L, -1, field);
	lua_pushfstring(L, "%s;%s", templates, lua_tostring(L, -1));
	lua_setfield(L, -3, field);
	lua_pop(L, 2);
}

/* The program's own modules come first: others may be of another version. */
static void set_paths(lua_State *L)
{
	if (uninstalled()) {
		prepend(L, "path",
			CKVM_SRCDIR "/lua/?.lua;" CKVM_SRCDIR
				    "/lua/?/init.lua");
		return;
	}
	prepend(L, "path", CKVM_LUADIR "/?.lua;" CKVM_LUADIR "/?/init.lua");
	prepend(L, "cpath", CKVM_LUACDIR "/?.so");
}

/* Scripts ----------------------------------------------------------------- */

/* Pushes the script's path and returns it, or NULL with a message on top. */
static const char *find_script(lua_State *L, const char *name)
{
	const char *directory = scripts_directory();
	const char *path;

	if (strchr(name, '/') || access(name, F_OK) == 0)
		return lua_pushstring(L, name);
	path = lua_pushfstring(L, "%s/%s", directory, name);
	if (access(path, F_OK) == 0)
		return path;
	lua_pushfstring(L,
			"cannot find %s, neither in the working directory "
			"nor in %s",
			name, directory);
	return NULL;
}

/* path NULL: standard input. Pushes the chunk or a message. */
static int load_file(lua_State *L, const char *path)
{
	int status = luaL_loadfilex(L, path, "t");
	const char *text = status ? lua_tostring(L, -1) : "";

	if (strncmp(text, BINARY_REFUSED, strlen(BINARY_REFUSED)) == 0)
		lua_pushfstring(L,
				"%s: this is bytecode; " PROGRAM
				" runs Lua source only",
				path ? path : "stdin");
	return status;
}

static int load_string(lua_State *L, const char *text, const char *name)
{
	return luaL_loadbufferx(L, text, strlen(text), name, "t");
}

static int push_arguments(lua_State *L, const struct options *options)
{
	int count = options->argc - options->script - 1;

	luaL_checkstack(L, count, "too many arguments to script");
	for (int i = 0; i < count; i++)
		lua_pushstring(L, options->argv[options->script + 1 + i]);
	return count;
}

/* "-" is standard input, but for `ckvm-lua -- -`. */
static int run_script(lua_State *L, const struct options *options)
{
	char **script = options->argv + options->script;
	int is_stdin =
		strcmp(script[0], "-") == 0 && strcmp(script[-1], "--") != 0;
	const char *path = is_stdin ? NULL : find_script(L, script[0]);
	int status = LUA_ERRFILE;

	if (path || is_stdin)
		status = load_file(L, path);
	return run(L, status, status ? 0 : push_arguments(L, options));
}

/* -l MODULE, -l GLOBAL=MODULE: the global has no "-version" suffix. */
static int run_require(lua_State *L, const char *argument)
{
	const char *equals = strchr(argument, '=');
	const char *module = equals ? equals + 1 : argument;
	size_t length =
		equals ? (size_t)(equals - argument) : strcspn(argument, "-");
	int status;

	lua_getglobal(L, "require");
	lua_pushstring(L, module);
	status = call(L, 1, 1);
	if (status == LUA_OK) {
		lua_pushglobaltable(L);
		lua_pushlstring(L, argument, length);
		lua_rotate(L, -3, -1);
		lua_rawset(L, -3);
	}
	return report(L, status);
}

static int run_actions(lua_State *L, const struct options *options)
{
	int status = LUA_OK;

	for (int i = 0; i < options->count && status == LUA_OK; i++) {
		const char *text = options->actions[i].argument;

		switch (options->actions[i].option) {
		case 'e':
			status = load_string(L, text, "=(command line)");
			status = run(L, status, 0);
			break;
		case 'l':
			status = run_require(L, text);
			break;
		case 'W':
			lua_warning(L, "@on", 0);
			break;
		}
	}
	return status;
}

/* LUA_INIT_5_4, else LUA_INIT: Lua code, or "@" and a file with it. */
static int run_init(lua_State *L)
{
	const char *name = "=LUA_INIT" LUA_VERSUFFIX;
	const char *init = getenv(name + 1);

	if (!init)
		init = getenv((name = "=LUA_INIT") + 1);
	if (!init)
		return LUA_OK;
	if (init[0] == '@')
		return run(L, load_file(L, init + 1), 0);
	return run(L, load_string(L, init, name), 0);
}

/* The prompt -------------------------------------------------------------- */

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

/* getline(), but a Ctrl-C from the moment on the prompt is seen is EINTR. */
static ssize_t prompt_line(lua_State *L, const char *variable,
			   const char *prompt, char **line, size_t *size)
{
	ssize_t length = -1;
	sigset_t sigint, mask;

	sigemptyset(&sigint);
	sigaddset(&sigint, SIGINT);
	sigprocmask(SIG_BLOCK, &sigint, &mask);
	set_sigint(drop_line);
	show_prompt(L, variable, prompt);
	errno = 0;
	if (wait_for_line(&mask) >= 0) {
		sigprocmask(SIG_SETMASK, &mask, NULL);
		length = getline(line, size, stdin);
	}
	sigprocmask(SIG_SETMASK, &mask, NULL);
	set_sigint(SIG_DFL);
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
	report(L, call(L, count, 0));
}

/*
 * A Ctrl-C that came when the chunk was as good as done must not stop the next
 * one: it is spent here.
 */
static void settle_interrupt(lua_State *L)
{
	if (interrupted && luaL_dostring(L, "for _ = 1, 10 do end"))
		lua_pop(L, 1);
	interrupted = 0;
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
		status = call(L, 0, LUA_MULTRET);
	if (report(L, status) == LUA_OK)
		print_results(L);
	settle_interrupt(L);
	return LINE;
}

static void interact_until_end(lua_State *L)
{
	do
		lua_settop(L, 0);
	while (interact(L) != END);
}

/* The program ------------------------------------------------------------- */

static void print_version(void)
{
	printf(PROGRAM " %s, " LUA_RELEASE "\n", ckvm_version());
}

static void print_help(void)
{
	fputs("Usage: " PROGRAM " [options] [script [args]]\n"
	      "Runs a Lua script with ckvm, for Linux KVM, loaded.\n"
	      "\n"
	      "  -e STAT        run the Lua statement STAT\n"
	      "  -l MOD         require MOD into the global MOD\n"
	      "  -l G=MOD       require MOD into the global G\n"
	      "  -i             a prompt after the script\n"
	      "  -v, --version  print the version\n"
	      "  -h, --help     print this\n"
	      "  -E             ignore LUA_INIT, LUA_PATH and LUA_CPATH\n"
	      "  -W             turn warnings on\n"
	      "  --trace-ioctl[=FILE]\n"
	      "                 print each ioctl on standard error, or to FILE\n"
	      "  --             end of the options\n"
	      "  -              run standard input\n"
	      "\n"
	      "A script that is not in the working directory is looked for in\n",
	      stdout);
	printf("%s.\n", scripts_directory());
}

/* The global `arg`: the script at 0, its arguments after it, the rest before.
 */
static void set_arg(lua_State *L, const struct options *options)
{
	int script = options->script < options->argc ? options->script : 0;

	lua_createtable(L, options->argc - script, script + 1);
	for (int i = 0; i < options->argc; i++) {
		lua_pushstring(L, options->argv[i]);
		lua_rawseti(L, -2, i - script);
	}
	lua_setglobal(L, "arg");
}

static void open_libraries(lua_State *L, const struct options *options)
{
	if (options->no_environment) {
		lua_pushboolean(L, 1);
		lua_setfield(L, LUA_REGISTRYINDEX, "LUA_NOENV");
	}
	luaL_openlibs(L);
	set_paths(L);
	luaL_requiref(L, "ckvm", luaopen_ckvm, 0);
	binding = ckvm_lua_get(L);
	forget_binding_at_close(L);
	set_trace(options->trace);
	set_arg(L, options);
	lua_settop(L, 0);
}

/* What is left to do when neither script nor statement was given. */
static int run_input(lua_State *L, const struct options *options)
{
	if (options->statements || options->version)
		return LUA_OK;
	if (!isatty(STDIN_FILENO))
		return run(L, load_file(L, NULL), 0);
	print_version();
	interact_until_end(L);
	return LUA_OK;
}

static int run_all(lua_State *L, const struct options *options)
{
	int has_script = options->script < options->argc;
	int status = options->no_environment ? LUA_OK : run_init(L);

	if (status == LUA_OK)
		status = run_actions(L, options);
	if (status == LUA_OK && has_script)
		status = run_script(L, options);
	if (status != LUA_OK)
		return status;
	if (options->interactive) {
		interact_until_end(L);
		return LUA_OK;
	}
	return has_script ? LUA_OK : run_input(L, options);
}

static int protected_main(lua_State *L)
{
	const struct options *options = lua_touserdata(L, 1);

	lua_settop(L, 0);
	open_libraries(L, options);
	lua_pushboolean(L, run_all(L, options) == LUA_OK);
	return 1;
}

static int run_host(struct options *options)
{
	lua_State *L = luaL_newstate();
	int status = STATUS_ERROR;

	if (!L) {
		fputs(PROGRAM ": not enough memory for Lua\n", stderr);
		return status;
	}
	lua_pushcfunction(L, protected_main);
	lua_pushlightuserdata(L, options);
	if (report(L, lua_pcall(L, 1, 1, 0)) == LUA_OK && lua_toboolean(L, -1))
		status = STATUS_OK;
	else if (interrupted)
		status = STATUS_SIGINT;
	lua_close(L);
	return status;
}

static int wrong_use(void)
{
	fputs("Try '" PROGRAM " --help'.\n", stderr);
	return STATUS_USAGE;
}

static int open_trace(struct options *options, const char *path)
{
	options->trace = path ? fopen(path, "we") : stderr;
	if (options->trace && path)
		setvbuf(options->trace, NULL, _IOLBF, BUFSIZ);
	if (options->trace)
		return 0;
	fprintf(stderr, PROGRAM ": %s: %s\n", path, strerror(errno));
	return -1;
}

/* Takes in one option; returns a status to exit with, or -1 to go on. */
static int take_option(struct options *options, int option)
{
	switch (option) {
	case 'e':
		options->statements++;
		/* fall through */
	case 'l':
	case 'W':
		options->actions[options->count++] =
			(struct action){ option, optarg };
		return -1;
	case 'i':
		options->interactive = 1;
		/* fall through */
	case 'v':
		options->version = 1;
		return -1;
	case 'E':
		options->no_environment = 1;
		return -1;
	case 't':
		return open_trace(options, optarg) ? STATUS_ERROR : -1;
	case 'h':
		print_help();
		return STATUS_OK;
	}
	return wrong_use();
}

static int take_options(struct options *options)
{
	static const struct option longs[] = {
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'v' },
		{ "trace-ioctl", optional_argument, NULL, 't' },
		{ NULL, 0, NULL, 0 },
	};
	int option, status = -1;

	/* "+": what follows the script is the script's. */
	while (status < 0 &&
	       (option = getopt_long(options->argc, options->argv, "+e:l:ivhEW",
				     longs, NULL)) != -1)
		status = take_option(options, option);
	options->script = optind;
	return status;
}

int main(int argc, char **argv)
{
	struct options options = { .argc = argc, .argv = argv };
	int status;

	atexit(check_stdout);
	options.actions = calloc((size_t)argc + 1, sizeof(struct action));
	if (!options.actions) {
		perror(PROGRAM);
		return STATUS_ERROR;
	}
	status = take_options(&options);
	if (status < 0) {
		if (options.version)
			print_version();
		status = run_host(&options);
	}
	free(options.actions);
	return status;
}

/* SPDX-License-Identifier: MIT */
/*
 * ckvm-lua, the host: opens a Lua state with ckvm in it and runs what the
 * command line names.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <lauxlib.h>
#include <lualib.h>

#include "host.h"

enum { STATUS_OK = 0, STATUS_ERROR = 1, STATUS_USAGE = 2, STATUS_SIGNAL = 128 };

static struct output {
	FILE *file;
	const char *name;
} trace; /* that of the options */

/*
 * A standard descriptor that is closed would be the number of the next file,
 * which got what is printed. What stands in for it cannot be read or written,
 * either.
 */
static void fill_standard_descriptors(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0)
			open("/dev/null",
			     fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
}

/* Says why something that was printed never reached its file. */
static int has_lost(struct output output)
{
	int error;

	errno = 0;
	if (fflush(output.file) == 0 && !ferror(output.file))
		return 0;
	error = errno;
	/* print() has seen why, and told nobody: it may be had again. */
	if (!error && write(fileno(output.file), "", 0) < 0)
		error = errno;
	fprintf(stderr, PROGRAM ": %s: %s\n", output.name,
		error ? strerror(error) : "write error");
	return 1;
}

/*
 * Output that is lost is an error, also after os.exit(), whose only way back to
 * here is atexit(). Called in exit(): the status is changed by _exit() alone.
 */
static void check_output(void)
{
	int lost = has_lost((struct output){ stdout, "standard output" });

	if (trace.file && has_lost(trace))
		lost = 1;
	if (lost)
		_exit(STATUS_ERROR);
}

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
	      "                 print each ioctl on standard error, or to FILE;\n"
	      "                 the last of several counts\n"
	      "  --probe        try what the KVM of this host can do\n"
	      "  --json         with --probe: print that as JSON\n"
	      "  --             end of the options\n"
	      "  -              run standard input\n"
	      "\n"
	      "A script that is not in the working directory is looked for in\n",
	      stdout);
	printf("%s.\n", host_scripts_directory());
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
	host_set_paths(L);
	luaL_requiref(L, "ckvm", luaopen_ckvm, 0);
	host_trace(host_bind(L), trace.file);
	set_arg(L, options);
	lua_settop(L, 0);
}

static int interact(lua_State *L)
{
	host_interact(L);
	return host_interrupted() ? LUA_ERRRUN : LUA_OK;
}

/* What is left to do when neither script nor statement was given. */
static int run_input(lua_State *L, const struct options *options)
{
	if (options->statements || options->version)
		return LUA_OK;
	if (!isatty(STDIN_FILENO))
		return host_run(L, host_load_file(L, NULL), 0);
	print_version();
	return interact(L);
}

static int run_all(lua_State *L, const struct options *options)
{
	int has_script = options->script < options->argc;
	int status = options->no_environment ? LUA_OK : host_run_init(L);

	if (status == LUA_OK)
		status = host_run_actions(L, options);
	if (status == LUA_OK && has_script)
		status = host_run_script(L, options);
	if (status != LUA_OK)
		return status;
	if (options->probe)
		status = host_run_probe(L, options->json);
	if (status == LUA_OK && options->interactive)
		return interact(L);
	return has_script || options->probe ? status : run_input(L, options);
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
	if (host_report(L, lua_pcall(L, 1, 1, 0)) == LUA_OK &&
	    lua_toboolean(L, -1))
		status = STATUS_OK;
	else if (host_interrupted())
		status = STATUS_SIGNAL + host_interrupted();
	lua_close(L);
	return status;
}

static int wrong_use(void)
{
	fputs("Try '" PROGRAM " --help'.\n", stderr);
	return STATUS_USAGE;
}

/* Once the options are right: what is in the file is lost. */
static int open_trace(const struct options *options)
{
	const char *path = options->trace_path;

	if (!options->trace)
		return 0;
	trace.file = path ? fopen(path, "we") : stderr;
	trace.name = path ? path : "standard error";
	if (trace.file && path)
		setvbuf(trace.file, NULL, _IOLBF, BUFSIZ);
	if (trace.file)
		return 0;
	fprintf(stderr, PROGRAM ": --trace-ioctl=%s: %s\n", path,
		strerror(errno));
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
	case 'p':
		options->probe = 1;
		return -1;
	case 'j':
		options->json = 1;
		return -1;
	case 't':
		options->trace = 1;
		options->trace_path = optarg;
		return -1;
	case 'h':
		print_help();
		return STATUS_OK;
	}
	return wrong_use();
}

/* Returns as take_option does. */
static int check_options(const struct options *options)
{
	if (options->json && !options->probe)
		fputs(PROGRAM ": --json goes with --probe\n", stderr);
	else if (options->probe && options->script < options->argc)
		fputs(PROGRAM ": --probe takes no script\n", stderr);
	else if (options->trace_path && !*options->trace_path)
		fputs(PROGRAM ": --trace-ioctl= names no file\n", stderr);
	else
		return -1;
	return wrong_use();
}

static int take_options(struct options *options)
{
	static const struct option longs[] = {
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'v' },
		{ "trace-ioctl", optional_argument, NULL, 't' },
		{ "probe", no_argument, NULL, 'p' },
		{ "json", no_argument, NULL, 'j' },
		{ NULL, 0, NULL, 0 },
	};
	char *name = options->argv[0], prefix[] = PROGRAM;
	int option, status = -1;

	options->argv[0] = prefix; /* what getopt's messages begin with */
	/* "+": what follows the script is the script's. */
	while (status < 0 &&
	       (option = getopt_long(options->argc, options->argv, "+e:l:ivhEW",
				     longs, NULL)) != -1)
		status = take_option(options, option);
	options->argv[0] = name;
	options->script = optind;
	return status < 0 ? check_options(options) : status;
}

int main(int argc, char **argv)
{
	struct options options = { .argc = argc, .argv = argv };
	int status;

	fill_standard_descriptors();
	atexit(check_output);
	options.actions = calloc((size_t)argc + 1, sizeof(struct action));
	if (!options.actions) {
		perror(PROGRAM);
		return STATUS_ERROR;
	}
	status = take_options(&options);
	if (status < 0 && open_trace(&options))
		status = STATUS_ERROR;
	if (status < 0) {
		if (options.version)
			print_version();
		status = run_host(&options);
	}
	free(options.actions);
	return status;
}

/* SPDX-License-Identifier: MIT */
/*
 * What Lua's io library lacks for a console: what is there to read, with no
 * wait for more, and pseudo-terminals.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#include "luackvm.h"

int luackvm_file_fd(lua_State *L, int index, const char *name)
{
	const luaL_Stream *file = luaL_testudata(L, index, LUA_FILEHANDLE);

	if (file && !file->closef)
		luaL_argerror(L, index, "file is closed");
	if (file)
		return fileno(file->f);
	if (lua_type(L, index) != LUA_TNUMBER &&
	    !luackvm_test(L, index, &luackvm_eventfd))
		luaL_error(L, "%s: file expected, got %s", name,
			   luaL_typename(L, index));
	return luackvm_event_fd(L, index, name);
}

/* Reading ----------------------------------------------------------------- */

#define MOST_BYTES 4096

/* Of a descriptor that has nothing to read: whether it ever could have. */
static int nothing_now(int fd, const char **step)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0) {
		*step = "fcntl";
		return -errno;
	}
	return (flags & O_ACCMODE) == O_WRONLY ? -EBADF : -EAGAIN;
}

/*
 * At most `most` bytes; -EAGAIN if there is nothing, 0 at the end. `step` names
 * what fails.
 */
static ssize_t read_now(int fd, char *bytes, size_t most, const char **step)
{
	struct pollfd pollfd = { .fd = fd, .events = POLLIN };
	ssize_t count;

	*step = "read";
	do
		count = poll(&pollfd, 1, 0);
	while (count < 0 && errno == EINTR);
	if (count <= 0)
		return count < 0 ? -errno : nothing_now(fd, step);
	do
		count = read(fd, bytes, most);
	while (count < 0 && errno == EINTR);
	return count < 0 ? -errno : count;
}

/***
 * Reads the bytes that are there, and does not wait for more. What a file of
 * `io` has read ahead is not among them. A pseudo-terminal ends when nobody has
 * its other side open.
 *
 * @function ckvm.read_available
 * @tparam userdata|eventfd|integer file file of `io`, or the number of a
 *  descriptor
 * @tparam[opt=4096] integer most how many bytes at most, 1 to 4096
 * @treturn string|nil the bytes, "" if there are none now; nil at the end
 * @raise `EBADF` if it is no descriptor, or not to be read; `EISDIR`, `EIO`;
 *  `EINVAL` for less than 8 bytes of an eventfd
 * @usage
 * local pipe <close> = io.popen "printf hello"
 * local text = ""
 * repeat
 *   local bytes = ckvm.read_available(pipe)
 *   text = text .. (bytes or "")
 * until not bytes
 * assert(text == "hello")
 */
int luackvm_read_available(lua_State *L)
{
	char bytes[MOST_BYTES];
	int fd = luackvm_file_fd(L, 1, "read_available");
	lua_Integer most = luaL_optinteger(L, 2, MOST_BYTES);
	const char *step;
	ssize_t count;

	luaL_argcheck(L, most >= 1 && most <= MOST_BYTES, 2,
		      "not between 1 and 4096");
	count = read_now(fd, bytes, (size_t)most, &step);
	if (count == -EAGAIN)
		lua_pushliteral(L, "");
	else if (count > 0)
		lua_pushlstring(L, bytes, (size_t)count);
	else if (count == 0 || (count == -EIO && isatty(fd)))
		lua_pushnil(L);
	else
		return luackvm_fail_call(L, step, (int)count, NULL);
	return 1;
}

/* Pseudo-terminals -------------------------------------------------------- */

static int close_file(lua_State *L)
{
	luaL_Stream *file = luaL_checkudata(L, 1, LUA_FILEHANDLE);

	return luaL_fileresult(L, fclose(file->f) == 0, NULL);
}

/* Pushes one of io's that is closed, for a descriptor that is yet to be. */
static luaL_Stream *push_file(lua_State *L)
{
	luaL_Stream *file = lua_newuserdatauv(L, sizeof(*file), 0);

	file->closef = NULL;
	if (luaL_getmetatable(L, LUA_FILEHANDLE) != LUA_TTABLE)
		luaL_error(L, "pty: there is no io library");
	lua_setmetatable(L, -2);
	return file;
}

/* The file has the descriptor from now on, and no buffer. */
static int give(luaL_Stream *file, int fd)
{
	file->f = fdopen(fd, "r+");
	if (!file->f)
		return -errno;
	setvbuf(file->f, NULL, _IONBF, 0);
	file->closef = close_file;
	return 0;
}

/* Bytes go through as they are. */
static int make_plain(int fd)
{
	struct termios settings;

	if (tcgetattr(fd, &settings))
		return -errno;
	cfmakeraw(&settings);
	return tcsetattr(fd, TCSANOW, &settings) ? -errno : 0;
}

static int open_slave(luaL_Stream *slave, const char *path)
{
	int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	int error;

	if (fd < 0)
		return -errno;
	error = make_plain(fd);
	if (!error)
		error = give(slave, fd);
	if (error)
		close(fd);
	return error;
}

/* The path has room for `size` bytes. The files are closed if it fails. */
static int open_pty(luaL_Stream *master, luaL_Stream *slave, char *path,
		    size_t size)
{
	int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	int error;

	if (fd < 0)
		return -errno;
	if (grantpt(fd) || unlockpt(fd) || ptsname_r(fd, path, size)) {
		error = -errno;
		goto err_close;
	}
	error = open_slave(slave, path);
	if (error)
		goto err_close;
	error = give(master, fd);
	if (error)
		goto err_close_slave;
	return 0;

err_close_slave:
	fclose(slave->f);
	slave->closef = NULL;
err_close:
	close(fd);
	return error;
}

/***
 * Makes a pseudo-terminal. Another program opens the path that this returns,
 * and each side reads what the other one writes, unchanged: there is no echo,
 * and there are no lines. Writing to the first file does not wait: what nobody
 * reads is lost, when the kernel has kept some of it.
 *
 * @function ckvm.pty
 * @treturn userdata file of `io`: the side that is kept
 * @treturn string path of the other side
 * @treturn userdata file of `io`: the other side; while it is open, the first
 *  one does not end when another program has come and gone
 * @raise `EMFILE`, `ENOMEM`; `ENOENT` where there are no pseudo-terminals
 * @usage
 * local file, path, other = ckvm.pty()
 * file:write("hello")
 * assert(other:read(5) == "hello")
 * print("connect to " .. path)
 */
int luackvm_pty(lua_State *L)
{
	luaL_Stream *master, *slave;
	bool tried = false;
	char path[64];
	int error;

	lua_settop(L, 0);
	master = push_file(L);
	slave = push_file(L);
	do
		error = open_pty(master, slave, path, sizeof(path));
	while (error && luackvm_retry(L, error, &tried));
	if (error)
		return luackvm_fail_call(L, "pty", error, NULL);
	lua_pushstring(L, path);
	lua_insert(L, 2);
	return 3;
}

/* SPDX-License-Identifier: MIT */
/* ckvm.buffer(size): where a range with `log` keeps what the guest wrote. */
#include "luackvm.h"

/***
 * Bytes that ranges with `log` have written, without a call of Lua:
 * `ckvm.buffer` makes one, and any number of ranges may write to it.
 *
 * @type buffer
 * @tfield integer length bytes in it now
 * @tfield integer size bytes that it can hold
 */

/***
 * Makes a log. When it is full, a write goes where one goes that no range
 * claims.
 *
 * @function ckvm.buffer
 * @tparam integer size bytes
 * @treturn buffer the log
 * @raise `ENOMEM`
 * @c ckvm_buffer_create
 * @usage
 * local log <close> = ckvm.buffer(4096)
 * vm:attach_io { port = 0xe9, log = log }
 */
int luackvm_new_buffer(lua_State *L)
{
	lua_Integer size = luackvm_arg_integer(L, 1);
	struct ckvm_buffer *buffer;
	struct luackvm_box *box;
	bool tried = false;
	int error;

	luaL_argcheck(L, size > 0, 1,
		      lua_pushfstring(L, "a buffer of %I bytes", size));
	box = luackvm_new_box(L, &luackvm_buffer);
	do
		error = ckvm_buffer_create((size_t)size, &buffer);
	while (error && luackvm_retry(L, error, &tried));
	if (error)
		return luackvm_fail(L, error, "a buffer of %I bytes", size);
	luackvm_fill(L, box, buffer, true);
	return 1;
}

static void ref(void *object)
{
	ckvm_buffer_ref(object);
}

static void unref(void *object)
{
	ckvm_buffer_unref(object);
}

static void end(void *object)
{
	ckvm_buffer_unref(object);
}

/***
 * The oldest bytes, which are gone from it then.
 *
 * @function buffer:take
 * @tparam[opt] integer length bytes at most; if left out, all
 * @treturn string the bytes
 * @raise only for misuse
 * @usage
 * io.write(buffer:take())
 */
static int take(lua_State *L)
{
	struct ckvm_buffer *buffer = luackvm_check(L, 1, &luackvm_buffer);
	size_t length = ckvm_buffer_length(buffer);
	luaL_Buffer text;
	char *data;

	if (!lua_isnoneornil(L, 2)) {
		size_t most = luackvm_arg_length(L, 2);

		length = most < length ? most : length;
	}
	data = luaL_buffinitsize(L, &text, length);
	luaL_pushresultsize(&text, ckvm_buffer_take(buffer, data, length));
	return 1;
}

static void push_length(lua_State *L, struct luackvm_box *box)
{
	struct ckvm_buffer *buffer = luackvm_open_object(L, box);

	lua_pushinteger(L, (lua_Integer)ckvm_buffer_length(buffer));
}

static void push_size(lua_State *L, struct luackvm_box *box)
{
	struct ckvm_buffer *buffer = luackvm_open_object(L, box);

	lua_pushinteger(L, (lua_Integer)ckvm_buffer_capacity(buffer));
}

static const luaL_Reg methods[] = { { "take", take }, { NULL, NULL } };

static const struct luackvm_property properties[] = {
	{ "length", push_length },
	{ "size", push_size },
	{ NULL, NULL },
};

const struct luackvm_type luackvm_buffer = {
	.name = "buffer",
	.methods = (const luaL_Reg *const[]){ methods, NULL },
	.properties = properties,
	.ref = ref,
	.unref = unref,
	.end = end,
};

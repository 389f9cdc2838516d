/* SPDX-License-Identifier: MIT */
/* attach_io and attach_mmio: ranges, and the slots of their handlers. */
#include <errno.h>

#include "luackvm.h"

/* Slots ------------------------------------------------------------------- */

/*
 * A range has RANGE_SLOTS consecutive integers in its VM's handler table. Freed
 * ones are chained through their first slot; [0] is the chain's head, and
 * "top" the first that was never used.
 */
static lua_Integer get_integer(lua_State *L, int table, const char *key)
{
	lua_Integer value;

	luackvm_get(L, table, key);
	value = lua_tointeger(L, -1);
	lua_pop(L, 1);
	return value;
}

static lua_Integer take_slots(lua_State *L, int handlers)
{
	lua_Integer base;

	lua_rawgeti(L, handlers, 0);
	base = lua_tointeger(L, -1);
	lua_pop(L, 1);
	if (base) {
		lua_rawgeti(L, handlers, base);
		lua_rawseti(L, handlers, 0);
		return base;
	}
	base = get_integer(L, handlers, "top");
	if (!base)
		base = 1;
	lua_pushinteger(L, base + RANGE_SLOTS);
	lua_setfield(L, handlers, "top");
	return base;
}

static void free_slots(lua_State *L, int handlers, lua_Integer base)
{
	for (int i = 0; i < RANGE_SLOTS; i++) {
		lua_pushboolean(L, 0);
		lua_rawseti(L, handlers, base + i);
	}
	lua_rawgeti(L, handlers, 0);
	lua_rawseti(L, handlers, base);
	lua_pushinteger(L, base);
	lua_rawseti(L, handlers, 0);
}

/* Options ----------------------------------------------------------------- */

/*
 * The function in a field of the table at index; pushed. False: nil pushed. A
 * device may inherit it.
 */
static bool push_function(lua_State *L, int table, const char *key)
{
	int type = lua_getfield(L, table, key);

	if (type == LUA_TNIL || type == LUA_TFUNCTION)
		return type == LUA_TFUNCTION;
	return luaL_error(L, "%s: function expected, got %s", key,
			  lua_typename(L, type));
}

static void refuse_both(lua_State *L, const char *one, const char *other)
{
	if (luackvm_has(L, 2, one) && luackvm_has(L, 2, other))
		luaL_error(L, "'%s' and '%s' exclude one another", one, other);
}

/* Pushes the read and the write handler and the device, or nil for each. */
static void push_handlers(lua_State *L, struct ckvm_range_config *config)
{
	int source = 2;

	if (luackvm_has(L, 2, "device")) {
		refuse_both(L, "device", "read");
		refuse_both(L, "device", "write");
		luackvm_get(L, 2, "device");
		source = lua_gettop(L);
		if (!lua_istable(L, source) && !lua_isuserdata(L, source))
			luaL_error(L, "device: table expected, got %s",
				   luaL_typename(L, source));
	} else {
		lua_pushnil(L);
	}
	if (push_function(L, source, "read"))
		config->read = CKVM_ANSWER_CALLER;
	if (push_function(L, source, "write"))
		config->write = CKVM_ANSWER_CALLER;
	lua_rotate(L, -3, -1); /* read, write, device */
}

static void read_config(lua_State *L, struct ckvm_range_config *config)
{
	struct luackvm_box *log;

	config->batch = luackvm_flag(L, 2, "batch");
	if (luackvm_has(L, 2, "value")) {
		refuse_both(L, "value", "read");
		refuse_both(L, "value", "device");
		config->value = luackvm_address(L, 2, "value");
		config->read = CKVM_ANSWER_VALUE;
		if (!luackvm_has(L, 2, "write") && !luackvm_has(L, 2, "log"))
			config->write = CKVM_ANSWER_VALUE;
	}
	if (luackvm_has(L, 2, "log")) {
		refuse_both(L, "log", "write");
		refuse_both(L, "log", "device");
		luackvm_get(L, 2, "log");
		log = luackvm_test(L, -1, &luackvm_buffer);
		if (!log || !log->object)
			luaL_error(L, "log: open buffer expected, got %s",
				   log ? "a closed one" : luaL_typename(L, -1));
		config->log = log->object;
		config->write = CKVM_ANSWER_LOG;
		lua_pop(L, 1);
	}
	if (config->batch && config->read != CKVM_ANSWER_NONE)
		luaL_error(L, "batch: a range with '%s' cannot be batched",
			   luackvm_has(L, 2, "value") ? "value" : "read");
	if (config->read == CKVM_ANSWER_NONE &&
	    config->write == CKVM_ANSWER_NONE)
		luaL_error(L, "a range needs 'read', 'write', 'device', "
			      "'value' or 'log'");
}

/* Attaching --------------------------------------------------------------- */

static const char *describe(lua_State *L, uint64_t first, uint64_t count)
{
	return lua_pushfstring(L, "%s-%s", luackvm_hex(L, first),
			       luackvm_hex(L, first + (count - 1)));
}

static int refuse(lua_State *L, struct ckvm_vm *vm,
		  const struct ckvm_range_config *config, int error)
{
	struct ckvm_range *other = NULL;
	uint64_t first, count;

	if (error == -EEXIST)
		other = ckvm_vm_find_range(vm, config->space, config->first,
					   config->count);
	if (error == -EINVAL && config->batch)
		return luackvm_fail(L, error,
				    "%s bytes: a batched range is less than "
				    "4 GiB",
				    luackvm_hex(L, config->count));
	if (!other)
		return luackvm_fail(L, error, NULL);
	first = ckvm_range_first(other);
	count = ckvm_range_count(other);
	ckvm_range_unref(other);
	return luackvm_fail(L, error, "%s overlaps %s, which is attached",
			    describe(L, config->first, config->count),
			    describe(L, first, count));
}

/* Stack: VM, options, ..., read, write, device. Leaves the range's box. */
static int attach(lua_State *L, struct ckvm_vm *vm,
		  struct ckvm_range_config *config)
{
	int handlers, first = lua_gettop(L) - 2, error;
	struct ckvm_range *range;
	struct luackvm_box *box;
	lua_Integer base;

	lua_getiuservalue(L, 1, VM_HANDLERS);
	handlers = lua_gettop(L);
	box = luackvm_new_box(L, &luackvm_range);
	base = take_slots(L, handlers);
	config->opaque =
		(void *)(uintptr_t)(base * 2 + !lua_isnil(L, first + 2));
	error = ckvm_vm_attach(vm, config, &range);
	if (error) {
		free_slots(L, handlers, base);
		return refuse(L, vm, config, error);
	}
	luackvm_fill(L, box, range, true);
	for (int i = 0; i < 3; i++) {
		lua_pushvalue(L, first + i);
		lua_rawseti(L, handlers, base + SLOT_READ + i);
	}
	lua_pushvalue(L, -1);
	lua_rawseti(L, handlers, base + SLOT_RANGE);
	lua_pushvalue(L, 1);
	lua_setiuservalue(L, -2, 1);
	luackvm_adopt(L, 1);
	return 1;
}

/***
 * Claims ports: what the guest reads and writes there is answered by handlers,
 * by a device, by a value or by a log.
 *
 * A read's answer is an integer whose low `size` bytes count.
 * `device:read(offset, size)` and `device:write(offset, value, size)` get the
 * offset from the range's first port. Handlers may raise, yield, attach,
 * detach and close anything.
 *
 * @function vm:attach_io
 * @tparam table options
 * @tparam integer options.port number of the first, to 0xffff
 * @tparam[opt=1] integer options.count how many ports
 * @tparam[opt] fun(port:integer,size:integer,vcpu:vcpu):integer options.read
 *  answers a read; size in bytes
 * @tparam[opt] fun(port:integer,value:integer,size:integer,vcpu:vcpu)
 *  options.write takes a write; size in bytes
 * @tparam[opt] table options.device with methods `read` and `write`
 * @tparam[opt] integer options.value number that every read gives; without
 *  `write` and `log`, writes are dropped
 * @tparam[opt] buffer options.log takes the bytes that are written
 * @tparam[opt=false] boolean options.batch the kernel queues writes; they come
 *  with the next exit, without a vCPU
 * @treturn range the range
 * @raise `EEXIST` if it overlaps a range, `ENOTSUP` where KVM cannot batch
 * @api 4.116 KVM_REGISTER_COALESCED_MMIO
 * @usage
 * vm:attach_io { port = 0x80, write = function(port, value) print(value) end }
 */
int luackvm_attach_io(lua_State *L)
{
	static const char *const keys[] = { "port",  "count",  "read",
					    "write", "device", "batch",
					    "value", "log",    NULL };
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct ckvm_range_config config = { .size = sizeof(config),
					    .space = CKVM_IO,
					    .count = 1 };

	luackvm_check_keys(L, 2, "attach_io", keys);
	lua_settop(L, 2);
	config.first = (uint64_t)luackvm_integer(L, 2, "port", 0, 0xffff);
	if (luackvm_has(L, 2, "count"))
		config.count = (uint64_t)luackvm_integer(
			L, 2, "count", 1, 0x10000 - (lua_Integer)config.first);
	push_handlers(L, &config);
	read_config(L, &config);
	return attach(L, vm, &config);
}

/***
 * Claims addresses that have no memory; the same as `vm:attach_io` for ports.
 * An access that crosses a page comes as two.
 *
 * @function vm:attach_mmio
 * @tparam table options
 * @tparam integer options.gpa guest physical address
 * @tparam integer options.size bytes
 * @tparam[opt] fun(gpa:integer,size:integer,vcpu:vcpu):integer options.read
 *  answers a read; size in bytes
 * @tparam[opt] fun(gpa:integer,value:integer,size:integer,vcpu:vcpu)
 *  options.write takes a write; size in bytes
 * @tparam[opt] table options.device with methods `read` and `write`
 * @tparam[opt] integer options.value number that every read gives; without
 *  `write` and `log`, writes are dropped
 * @tparam[opt] buffer options.log takes the bytes that are written
 * @tparam[opt=false] boolean options.batch the kernel queues writes; they come
 *  with the next exit, without a vCPU
 * @treturn range the range
 * @raise `EEXIST` if it overlaps a range, `ENOTSUP` where KVM cannot batch,
 *  `EINVAL` for 4 GiB or more of that
 * @api 4.116 KVM_REGISTER_COALESCED_MMIO
 * @usage
 * vm:attach_mmio { gpa = 0xd0000000, size = 0x1000, value = 0xffffffff }
 */
int luackvm_attach_mmio(lua_State *L)
{
	static const char *const keys[] = { "gpa",   "size",   "read",
					    "write", "device", "batch",
					    "value", "log",    NULL };
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct ckvm_range_config config = { .size = sizeof(config),
					    .space = CKVM_MMIO };

	luackvm_check_keys(L, 2, "attach_mmio", keys);
	lua_settop(L, 2);
	config.first = luackvm_address(L, 2, "gpa");
	config.count =
		(uint64_t)luackvm_integer(L, 2, "size", 1, LUA_MAXINTEGER);
	if (config.count - 1 > UINT64_MAX - config.first)
		return luaL_error(L, "size: %s bytes at %s go past 2^64",
				  luackvm_hex(L, config.count),
				  luackvm_hex(L, config.first));
	push_handlers(L, &config);
	read_config(L, &config);
	return attach(L, vm, &config);
}

/* The object -------------------------------------------------------------- */

/***
 * Ports or addresses that somebody answers: `vm:attach_io` and `vm:attach_mmio`
 * make one. It stays when Lua lets go of it.
 *
 * @type range
 */

static void ref(void *object)
{
	ckvm_range_ref(object);
}

static void unref(void *object)
{
	ckvm_range_unref(object);
}

static void end(void *object)
{
	ckvm_range_detach(object);
}

/* May run inside the range's own handler. */
static int close_range(lua_State *L)
{
	struct luackvm_box *box = lua_touserdata(L, 1);
	lua_Integer base;

	if (!box->object)
		return 0;
	base = (lua_Integer)((uintptr_t)ckvm_range_opaque(box->object) / 2);
	luackvm_release(box);
	atomic_fetch_add(&box->lua->changes, 1);
	if (lua_getiuservalue(L, 1, 1) != LUA_TUSERDATA)
		return 0;
	luackvm_disown(L, 2, 1);
	if (lua_getiuservalue(L, 2, VM_HANDLERS) == LUA_TTABLE)
		free_slots(L, 3, base);
	return 0;
}

/***
 * Gives the ports or addresses up; the same as `close`. Also from inside the
 * range's own handlers.
 *
 * @function range:detach
 * @raise only for misuse
 * @api 4.116 KVM_UNREGISTER_COALESCED_MMIO
 * @usage
 * local range = vm:attach_io { port = 0x60, value = 0 }
 * range:detach()
 */
static int detach(lua_State *L)
{
	luackvm_box(L, 1, &luackvm_range);
	lua_settop(L, 1);
	return close_range(L);
}

static const luaL_Reg methods[] = { { "detach", detach }, { NULL, NULL } };

const struct luackvm_type luackvm_range = {
	.name = "range",
	.methods = (const luaL_Reg *const[]){ methods, NULL },
	.ref = ref,
	.unref = unref,
	.end = end,
	.close = close_range,
	.values = 1,
};

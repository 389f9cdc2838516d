/* SPDX-License-Identifier: MIT */
/* get_stats_fd, of a VM and a vCPU: the kernel's statistics as tables. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "luackvm.h"

#define FIRST_SIZE 8192u      /* some 50 statistics */
#define MOST_SIZE (16u << 20) /* of what a kernel may ever have */

struct stats {
	unsigned int refs;
	int fd; /* -1: closed */
};

/***
 * What the kernel counts for a VM or a vCPU: `vm:get_stats_fd` and
 * `vcpu:get_stats_fd` return one.
 *
 * @type stats
 * @tfield string id the kernel's name for it: "kvm-" and numbers
 * @tfield integer fd number of the descriptor, which is the object's
 */

static void ref(void *object)
{
	struct stats *stats = object;

	stats->refs++;
}

static void unref(void *object)
{
	struct stats *stats = object;

	if (!--stats->refs)
		free(stats);
}

static void end(void *object)
{
	struct stats *stats = object;

	if (stats->fd >= 0)
		close(stats->fd);
	stats->fd = -1;
	unref(stats);
}

static int close_stats(lua_State *L)
{
	luackvm_release(lua_touserdata(L, 1));
	if (lua_getiuservalue(L, 1, 1) == LUA_TUSERDATA)
		luackvm_disown(L, 2, 1);
	return 0;
}

/* Making ------------------------------------------------------------------ */

static int open_vm(void *vm)
{
	return ckvm_vm_get_stats_fd(vm);
}

static int open_vcpu(void *vcpu)
{
	return ckvm_vcpu_get_stats_fd(vcpu);
}

/* The object's box is at 1; its VM's is on top. */
static int get_stats_fd(lua_State *L, const struct luackvm_type *type,
			int (*open)(void *object))
{
	int vm = lua_gettop(L);
	struct luackvm_box *box = luackvm_new_box(L, &luackvm_stats);
	struct stats *stats = malloc(sizeof(*stats));
	bool tried = false;

	if (!stats)
		return luackvm_fail_call(L, "malloc", -ENOMEM, NULL);
	*stats = (struct stats){ .refs = 1, .fd = -1 };
	luackvm_fill(L, box, stats, true);
	do
		stats->fd = open(luackvm_check(L, 1, type));
	while (stats->fd < 0 && luackvm_retry(L, stats->fd, &tried));
	if (stats->fd < 0)
		return luackvm_fail(L, stats->fd, NULL);
	lua_pushvalue(L, vm);
	lua_setiuservalue(L, -2, 1);
	luackvm_adopt(L, vm);
	return 1;
}

/***
 * The kernel's statistics of the VM, or of one vCPU.
 *
 * @function vm:get_stats_fd, vcpu:get_stats_fd
 * @treturn stats to be read as often as one likes
 * @raise `ENOTTY` before Linux 5.14
 * @api 4.133 KVM_GET_STATS_FD
 * @usage
 * local stats <close> = vm:get_stats_fd()
 * print(stats.id)
 */
static int get_vm_stats_fd(lua_State *L)
{
	luackvm_check(L, 1, &luackvm_vm);
	lua_settop(L, 1);
	return get_stats_fd(L, &luackvm_vm, open_vm);
}

static int get_vcpu_stats_fd(lua_State *L)
{
	luackvm_check(L, 1, &luackvm_vcpu);
	lua_settop(L, 1);
	lua_getiuservalue(L, 1, VCPU_VM);
	return get_stats_fd(L, &luackvm_vcpu, open_vcpu);
}

/* Reading ----------------------------------------------------------------- */

/* Pushes all that there is to read; returns its length. */
static size_t push_data(lua_State *L, const struct stats *stats)
{
	ssize_t length;

	for (size_t size = FIRST_SIZE; size <= MOST_SIZE; size *= 2) {
		void *data = lua_newuserdatauv(L, size, 0);

		length = pread(stats->fd, data, size, 0);
		if (length < 0)
			luackvm_fail_call(L, "pread", -errno, NULL);
		if ((size_t)length < size)
			return (size_t)length;
		lua_pop(L, 1);
	}
	return (size_t)luaL_error(L, "no end to the statistics");
}

/* Pushes a table by name of what `push` makes of each statistic. */
static int push_all(lua_State *L,
		    void (*push)(lua_State *L,
				 const struct ckvm_binary_stat *stat))
{
	const struct stats *stats = luackvm_check(L, 1, &luackvm_stats);
	size_t size = push_data(L, stats);
	const void *data = lua_touserdata(L, -1);
	struct ckvm_binary_stat stat;
	int count = ckvm_binary_stats_count(data, size), error;

	if (count < 0)
		return luackvm_fail(L, count, NULL);
	lua_createtable(L, 0, count);
	for (int i = 0; i < count; i++) {
		error = ckvm_binary_stats_get(data, size, (uint32_t)i, &stat);
		if (error)
			return luackvm_fail(L, error, NULL);
		lua_pushstring(L, stat.name);
		push(L, &stat);
		lua_rawset(L, -3);
	}
	return 1;
}

static bool is_histogram(const struct ckvm_binary_stat *stat)
{
	uint32_t type = stat->flags & KVM_STATS_TYPE_MASK;

	return type == KVM_STATS_TYPE_LINEAR_HIST ||
	       type == KVM_STATS_TYPE_LOG_HIST;
}

static void push_value(lua_State *L, const struct ckvm_binary_stat *stat)
{
	if (stat->count == 1 && !is_histogram(stat)) {
		lua_pushinteger(L,
				(lua_Integer)ckvm_binary_stat_value(stat, 0));
		return;
	}
	lua_createtable(L, (int)stat->count, 0);
	for (uint32_t i = 0; i < stat->count; i++) {
		lua_pushinteger(L,
				(lua_Integer)ckvm_binary_stat_value(stat, i));
		lua_rawseti(L, -2, (lua_Integer)i + 1);
	}
}

/***
 * All of them, as they are now.
 *
 * @function stats:read
 * @treturn table by name, an integer, or a list of them for a histogram
 * @raise what pread(2) says
 * @usage
 * for name, value in pairs(stats:read()) do print(name, value) end
 */
static int read_stats(lua_State *L)
{
	return push_all(L, push_value);
}

/* The name of a part of the flags; its number if it has none. */
static void set_name(lua_State *L, const char *key, uint32_t number,
		     const char *const *names, size_t count)
{
	if (number < count)
		lua_pushstring(L, names[number]);
	else
		lua_pushinteger(L, number);
	lua_setfield(L, -2, key);
}

static void set_integer(lua_State *L, const char *key, lua_Integer value)
{
	lua_pushinteger(L, value);
	lua_setfield(L, -2, key);
}

#define SET_NAME(key, PART, names)                          \
	set_name(L, key,                                    \
		 (stat->flags & KVM_STATS_##PART##_MASK) >> \
			 KVM_STATS_##PART##_SHIFT,          \
		 names, ARRAY_SIZE(names))

static void push_description(lua_State *L, const struct ckvm_binary_stat *stat)
{
	static const char *const types[] = { "cumulative", "instant", "peak",
					     "linear_hist", "log_hist" };
	static const char *const units[] = { "none", "bytes", "seconds",
					     "cycles", "boolean" };
	static const char *const bases[] = { "pow10", "pow2" };

	lua_createtable(L, 0, 6);
	SET_NAME("type", TYPE, types);
	SET_NAME("unit", UNIT, units);
	SET_NAME("base", BASE, bases);
	set_integer(L, "exponent", stat->exponent);
	set_integer(L, "size", stat->count);
	set_integer(L, "bucket_size", stat->bucket_size);
}

/***
 * What they mean: a table for each by its name, with `type` ("cumulative",
 * "instant", "peak", "linear_hist", "log_hist"), `unit` ("none", "bytes",
 * "seconds", "cycles", "boolean"), `base` ("pow10", "pow2") and `exponent`,
 * which scale the unit, `size`, how many values, and `bucket_size` of a
 * histogram.
 *
 * @function stats:describe
 * @treturn table by name
 * @raise what pread(2) says
 * @usage
 * for name, what in pairs(stats:describe()) do print(name, what.unit) end
 */
static int describe_stats(lua_State *L)
{
	return push_all(L, push_description);
}

/* The object -------------------------------------------------------------- */

static void push_fd(lua_State *L, struct luackvm_box *box)
{
	const struct stats *stats = luackvm_open_object(L, box);

	lua_pushinteger(L, stats->fd);
}

static void push_id(lua_State *L, struct luackvm_box *box)
{
	const struct stats *stats = luackvm_open_object(L, box);
	size_t size = push_data(L, stats);

	lua_pushstring(L, ckvm_binary_stats_id(lua_touserdata(L, -1), size));
}

static const luaL_Reg methods[] = {
	{ "read", read_stats },
	{ "describe", describe_stats },
	{ NULL, NULL },
};

static const struct luackvm_property properties[] = {
	{ "fd", push_fd },
	{ "id", push_id },
	{ NULL, NULL },
};

const struct luackvm_type luackvm_stats = {
	.name = "stats",
	.methods = (const luaL_Reg *const[]){ methods, NULL },
	.properties = properties,
	.ref = ref,
	.unref = unref,
	.end = end,
	.close = close_stats,
	.apart = true,
	.values = 1,
};

const luaL_Reg luackvm_stats_vm_methods[] = {
	{ "get_stats_fd", get_vm_stats_fd },
	{ NULL, NULL },
};

const luaL_Reg luackvm_stats_vcpu_methods[] = {
	{ "get_stats_fd", get_vcpu_stats_fd },
	{ NULL, NULL },
};

/* SPDX-License-Identifier: MIT */
/* Virtual processors: creating, listing, registers and properties. */
#include <errno.h>

#include "luackvm.h"

void luackvm_fill_vcpu(lua_State *L, int vm, struct luackvm_box *box,
		       struct ckvm_vcpu *vcpu, bool owned)
{
	luackvm_fill(L, box, vcpu, owned);
	lua_pushvalue(L, vm);
	lua_setiuservalue(L, -2, VCPU_VM);
	lua_createtable(L, 0, 4);
	lua_setiuservalue(L, -2, VCPU_CACHE);
	luackvm_adopt(L, vm);
}

void luackvm_push_vcpu(lua_State *L, int vm, struct ckvm_vcpu *vcpu)
{
	struct luackvm_box *box;

	vm = lua_absindex(L, vm);
	if (luackvm_push_known(L, vcpu))
		return;
	box = luackvm_new_box(L, &luackvm_vcpu);
	luackvm_fill_vcpu(L, vm, box, vcpu, false);
}

static void ref(void *object)
{
	ckvm_vcpu_ref(object);
}

static void unref(void *object)
{
	ckvm_vcpu_unref(object);
}

static void end(void *object)
{
	ckvm_vcpu_close(object);
}

static int close_vcpu(lua_State *L)
{
	luackvm_release(lua_touserdata(L, 1));
	if (lua_getiuservalue(L, 1, VCPU_VM) == LUA_TUSERDATA)
		luackvm_disown(L, 2, 1);
	return 0;
}

int luackvm_create_vcpu(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	lua_Integer id = luaL_optinteger(L, 2, 0);
	struct luackvm_box *box;
	struct ckvm_vcpu *vcpu;
	bool tried = false;
	int error;

	luaL_argcheck(L, id >= 0, 2,
		      lua_pushfstring(L, "vCPU id %I is negative", id));
	box = luackvm_new_box(L, &luackvm_vcpu);
	do
		error = ckvm_vm_create_vcpu(vm, (unsigned long)id, &vcpu);
	while (error && luackvm_retry(L, error, &tried));
	if (error == -EEXIST)
		return luackvm_fail(L, error, "vCPU %I exists already", id);
	if (error == -EINVAL)
		return luackvm_fail(
			L, error,
			"vCPU id %I: beyond this KVM's max_vcpu_id, or one "
			"vCPU too many",
			id);
	if (error)
		return luackvm_fail(L, error, NULL);
	luackvm_fill_vcpu(L, 1, box, vcpu, true);
	return 1;
}

int luackvm_vcpu_from_fd(lua_State *L)
{
	int fd = luackvm_arg_fd(L, 2), error;
	struct luackvm_box *box;
	struct ckvm_vcpu *vcpu;
	bool tried = false;

	luackvm_check(L, 1, &luackvm_vm);
	box = luackvm_new_box(L, &luackvm_vcpu);
	do
		error = ckvm_vm_vcpu_from_fd(luackvm_check(L, 1, &luackvm_vm),
					     fd, &vcpu);
	while (error && luackvm_retry(L, error, &tried));
	if (error)
		return luackvm_fail_fd(L, error, fd, "vCPU");
	luackvm_fill_vcpu(L, 1, box, vcpu, true);
	return 1;
}

/* vm.vcpus: a fresh list, by id. The VM's box is at 1. */
void luackvm_list_vcpus(lua_State *L, struct luackvm_box *box)
{
	struct ckvm_vm *vm = luackvm_open_object(L, box);
	struct ckvm_vcpu *vcpu;
	unsigned long id = 0;

	lua_newtable(L);
	for (int i = 1; (vcpu = ckvm_vm_find_vcpu(vm, id)); i++) {
		id = ckvm_vcpu_id(vcpu) + 1;
		luackvm_push_vcpu(L, 1, vcpu);
		ckvm_vcpu_unref(vcpu);
		lua_rawseti(L, -2, i);
	}
}

/* Registers --------------------------------------------------------------- */

LUACKVM_GET_SET(vcpu, regs)
LUACKVM_GET_SET(vcpu, sregs)
LUACKVM_GET_SET(vcpu, vcpu_events)

static const struct luackvm_state registers[] = {
	{ "regs", &luackvm_kvm_regs, get_regs, set_regs },
	{ "sregs", &luackvm_kvm_sregs, get_sregs, set_sregs },
	{ "vcpu_events", &luackvm_kvm_vcpu_events, get_vcpu_events,
	  set_vcpu_events },
	{ .name = NULL },
};

/* Properties -------------------------------------------------------------- */

static void push_vm(lua_State *L, struct luackvm_box *box)
{
	(void)box;
	lua_getiuservalue(L, 1, VCPU_VM);
}

static void push_id(lua_State *L, struct luackvm_box *box)
{
	lua_pushinteger(L,
			(lua_Integer)ckvm_vcpu_id(luackvm_open_object(L, box)));
}

static void push_fd(lua_State *L, struct luackvm_box *box)
{
	lua_pushinteger(L, ckvm_vcpu_fd(luackvm_open_object(L, box)));
}

static void set_count(lua_State *L, uint32_t exit, uint64_t count)
{
	if (!count)
		return;
	luackvm_push_exit_name(L, exit);
	lua_pushinteger(L, (lua_Integer)count);
	lua_rawset(L, -3);
}

static void push_exit_counts(lua_State *L, const struct ckvm_stats *stats)
{
	lua_newtable(L);
	for (uint32_t i = 0; i < CKVM_STATS_EXITS; i++)
		if (i != KVM_EXIT_IO && i != KVM_EXIT_MMIO)
			set_count(L, i, stats->exits[i]);
	set_count(L, CKVM_EXIT_IO_OUT, stats->io_out);
	set_count(L, CKVM_EXIT_IO_IN,
		  stats->exits[KVM_EXIT_IO] - stats->io_out);
	set_count(L, CKVM_EXIT_MMIO_WRITE, stats->mmio_write);
	set_count(L, CKVM_EXIT_MMIO_READ,
		  stats->exits[KVM_EXIT_MMIO] - stats->mmio_write);
}

/* vcpu.stats: total, exits by name, batched, guest_time, handler_time. */
static void push_stats(lua_State *L, struct luackvm_box *box)
{
	struct ckvm_stats stats = { .size = sizeof(stats) };

	ckvm_vcpu_stats(luackvm_open_object(L, box), &stats);
	lua_createtable(L, 0, 5);
	lua_pushinteger(L, (lua_Integer)stats.total);
	lua_setfield(L, -2, "total");
	push_exit_counts(L, &stats);
	lua_setfield(L, -2, "exits");
	lua_pushinteger(L, (lua_Integer)stats.batched);
	lua_setfield(L, -2, "batched");
	lua_pushnumber(L, (lua_Number)stats.guest_ns / 1e9);
	lua_setfield(L, -2, "guest_time");
	lua_pushnumber(L, (lua_Number)stats.handler_ns / 1e9);
	lua_setfield(L, -2, "handler_time");
}

static const luaL_Reg vcpu_methods[] = {
	{ "run", luackvm_run },	      { "run_once", luackvm_run_once },
	{ "finish", luackvm_finish }, { "stop", luackvm_stop },
	{ "kick", luackvm_kick },     { NULL, NULL },
};

static const struct luackvm_property properties[] = {
	{ "regs", luackvm_regs_view },
	{ "sregs", luackvm_sregs_view },
	{ "events", luackvm_events_view },
	{ "exit", luackvm_exit_view },
	{ "vm", push_vm },
	{ "id", push_id },
	{ "fd", push_fd },
	{ "stats", push_stats },
	{ NULL, NULL },
};

static const luaL_Reg *const methods[] = {
	vcpu_methods,
	luackvm_cap_vcpu_methods,
	luackvm_irq_vcpu_methods,
	luackvm_stats_vcpu_methods,
	luackvm_cpuid_vcpu_methods,
	luackvm_msr_vcpu_methods,
	luackvm_device_vcpu_methods,
	NULL,
};
static const struct luackvm_state *const states[] = { registers, NULL };

const struct luackvm_type luackvm_vcpu = {
	.name = "vCPU",
	.methods = methods,
	.states = states,
	.properties = properties,
	.ref = ref,
	.unref = unref,
	.end = end,
	.close = close_vcpu,
	.values = VCPU_EVENTS,
};

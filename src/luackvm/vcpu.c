/* SPDX-License-Identifier: MIT */
/* Virtual processors: creating, listing, registers and properties. */
#include <errno.h>

#include "luackvm.h"

/***
 * A virtual processor: `vm:create_vcpu` makes one.
 *
 * `regs`, `sregs` and `events` are live views: reading and writing a field of
 * them costs no ioctl while an exit is handled, where KVM has sync_regs. What
 * is written reaches the guest with the next run. An array in them is a fresh
 * table at each read: assign it, with those elements that are to change.
 * `print(vcpu.regs)` shows all of a view, or of a part, in the kernel's order.
 *
 * @type vcpu
 * @tfield kvm_regs regs general registers, live
 * @tfield kvm_sregs sregs segments and control registers, live
 * @tfield kvm_vcpu_events events pending events, live
 * @tfield exit|nil exit the current one, until the vCPU runs again; nil in
 *  other threads than the one that runs it
 * @tfield vm vm that it belongs to
 * @tfield integer id its number in the VM
 * @tfield integer fd number of the descriptor, which is the object's
 * @tfield vcpu_stats stats counted since it was created; a fresh table
 * @usage
 * vcpu.regs.rax = vcpu.regs.rax + 1
 * print(("0x%x"):format(vcpu.sregs.cs.base))
 */

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

static int limit(struct ckvm_vm *vm, unsigned int cap)
{
	return ckvm_vm_check_extension(vm, cap);
}

/***
 * Creates a virtual processor, in the state after a reset.
 *
 * It stays when Lua lets go of it: `vm.vcpus` has it. An id is used up, also
 * when the vCPU is closed.
 *
 * @function vm:create_vcpu
 * @tparam[opt=0] integer id its number, below what max_vcpu_id says
 * @treturn vcpu the vCPU
 * @raise `EEXIST` if there was one of this id, `EINVAL` beyond the largest id
 *  or for one vCPU too many
 * @api 4.7 KVM_CREATE_VCPU
 * @usage
 * local second = vm:create_vcpu(1)
 */
int luackvm_create_vcpu(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	lua_Integer id = luaL_opt(L, luackvm_arg_integer, 2, 0);
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
			"vCPU id %I: ids are below %d here (max_vcpu_id), and "
			"there are %d vCPUs at most (max_vcpus)",
			id, limit(vm, KVM_CAP_MAX_VCPU_ID),
			limit(vm, KVM_CAP_MAX_VCPUS));
	if (error)
		return luackvm_fail(L, error, NULL);
	luackvm_fill_vcpu(L, 1, box, vcpu, true);
	return 1;
}

/***
 * A vCPU of this VM that something else in this process has made. The other
 * side has to keep off it while it runs here.
 *
 * @function vm:vcpu_from_fd
 * @tparam integer fd number of the descriptor, which is duplicated
 * @treturn vcpu the vCPU
 * @raise `ENOTTY` if it is not a vCPU's, `EIO` if it is another process's,
 *  `EBUSY` or `EEXIST` if there is an object for it
 * @usage
 * local ok, err = pcall(vm.vcpu_from_fd, vm, vcpu.fd)
 * assert(not ok and err.code == "EBUSY")
 */
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
	struct luackvm_box *holder = luackvm_new_box(L, &luackvm_vcpu);
	struct ckvm_vcpu *vcpu;
	unsigned long id = 0;

	lua_newtable(L);
	for (int i = 1; (vcpu = ckvm_vm_find_vcpu(vm, id)); i++) {
		id = ckvm_vcpu_id(vcpu) + 1;
		holder->held = vcpu; /* what comes now may raise */
		luackvm_push_vcpu(L, 1, vcpu);
		lua_rawseti(L, -2, i);
		holder->held = NULL;
		ckvm_vcpu_unref(vcpu);
	}
}

/* Registers --------------------------------------------------------------- */

/***
 * The general registers, in one table. Fields that `set_regs` is not given keep
 * their value.
 *
 * @state vcpu:regs kvm_regs
 * @api 4.11 KVM_GET_REGS
 * @api 4.12 KVM_SET_REGS
 * @raise `EBUSY` while another thread runs the vCPU
 * @usage
 * vcpu:set_regs { rip = 0x1000, rflags = 2 }
 * assert(vcpu:get_regs().rip == 0x1000)
 */
LUACKVM_GET_SET(vcpu, regs)

/***
 * Segments, descriptor tables and control registers, in one table. Fields that
 * `set_sregs` is not given keep their value.
 *
 * @state vcpu:sregs kvm_sregs
 * @api 4.13 KVM_GET_SREGS
 * @api 4.14 KVM_SET_SREGS
 * @raise `EINVAL` for a state that no CPU has; `EBUSY` while another thread
 *  runs the vCPU
 * @usage
 * vcpu:set_sregs { cs = { base = 0, selector = 0 } }
 * assert(vcpu:get_sregs().cs.base == 0)
 */
LUACKVM_GET_SET(vcpu, sregs)

/***
 * Exceptions, interrupts and NMIs that are pending or being delivered. Naming a
 * field that one of the validity flags guards sets that flag.
 *
 * @state vcpu:vcpu_events kvm_vcpu_events
 * @api 4.31 KVM_GET_VCPU_EVENTS
 * @api 4.32 KVM_SET_VCPU_EVENTS
 * @raise `EINVAL` for events that exclude one another; `EBUSY` while another
 *  thread runs the vCPU
 * @usage
 * local events = vcpu:get_vcpu_events()
 * vcpu:set_vcpu_events { nmi = { masked = events.nmi.masked } }
 */
LUACKVM_GET_SET(vcpu, vcpu_events)

static const struct luackvm_state registers[] = {
	{ "regs", &luackvm_kvm_regs, get_regs, set_regs },
	{ "sregs", &luackvm_kvm_sregs, get_sregs, set_sregs,
	  luackvm_explain_sregs },
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

/***
 * What `vcpu.stats` counts.
 *
 * @struct vcpu_stats
 * @tfield integer total how many exits
 * @tfield table exits how many of each, by the exit's name
 * @tfield integer batched how many writes came without an exit
 * @tfield number guest_time seconds in the loop: KVM_RUN, and callbacks in C
 * @tfield number handler_time seconds in handlers
 */

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
	luackvm_region_vcpu_methods,
	luackvm_guest_vcpu_methods,
	luackvm_control_vcpu_methods,
	luackvm_event_vcpu_methods,
	luackvm_reg_vcpu_methods,
	luackvm_translate_vcpu_methods,
	luackvm_x86_vcpu_methods,
	NULL,
};
static const struct luackvm_state *const states[] = {
	registers,
	luackvm_x86_vcpu_states,
	NULL,
};

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

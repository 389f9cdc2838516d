/* SPDX-License-Identifier: MIT */
/* Virtual machines: their methods, and the objects that belong to them. */
#include <errno.h>

#include "luackvm.h"

/***
 * A virtual machine: `kvm:create_vm` makes one. It owns its vCPUs, memory and
 * ranges, which end with it.
 *
 * @type vm
 * @tfield vcpu[] vcpus those that are open, by id; a fresh list
 * @tfield integer fd number of the descriptor, which is the object's
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:add_memory { gpa = 0, size = 0x10000 }
 */

/*
 * A VM's box has four user values: the table of handlers, which run keeps on
 * its stack, the set of what is closed with it, and, if there are any, the
 * threads of vm:run, and the one of vm:watch and vm:after. None is in the
 * registry, so that a handler that mentions its VM does not keep it alive.
 */
void luackvm_fill_vm(lua_State *L, struct luackvm_box *box, struct ckvm_vm *vm,
		     bool owned)
{
	luackvm_fill(L, box, vm, owned);
	lua_newtable(L);
	lua_setiuservalue(L, -2, VM_HANDLERS);
	lua_newtable(L);
	lua_setiuservalue(L, -2, VM_CHILDREN);
}

void luackvm_adopt(lua_State *L, int vm)
{
	lua_getiuservalue(L, vm, VM_CHILDREN);
	lua_pushvalue(L, -2);
	lua_pushboolean(L, 1);
	lua_rawset(L, -3);
	lua_pop(L, 1);
}

void luackvm_disown(lua_State *L, int vm, int child)
{
	child = lua_absindex(L, child);
	if (lua_getiuservalue(L, vm, VM_CHILDREN) == LUA_TTABLE) {
		lua_pushvalue(L, child);
		lua_pushnil(L);
		lua_rawset(L, -3);
	}
	lua_pop(L, 1);
}

static void ref(void *object)
{
	ckvm_vm_ref(object);
}

static void unref(void *object)
{
	ckvm_vm_unref(object);
}

static void end(void *object)
{
	ckvm_vm_close(object);
}

/* A VM of C's stays: what scripts have added to it goes. */
static void end_children(lua_State *L, const struct luackvm_box *box)
{
	for (lua_pushnil(L); lua_next(L, 2); lua_pop(L, 1))
		luackvm_release(lua_touserdata(L, -2));
	for (int i = CKVM_EXIT_IO_IN; i <= CKVM_EXIT_MMIO_WRITE; i++)
		ckvm_vm_catch(box->object, (enum ckvm_access_exit)i, 0);
	if (lua_getiuservalue(L, 1, VM_HANDLERS) == LUA_TTABLE)
		luackvm_forget_events(L, 1);
	lua_pop(L, 1);
}

/* They end with the VM, all in one but for those that libckvm knows not of. */
static void forget_children(lua_State *L)
{
	for (lua_pushnil(L); lua_next(L, 2); lua_pop(L, 1)) {
		struct luackvm_box *child = lua_touserdata(L, -2);

		if (child->type->apart)
			luackvm_release(child);
		else
			child->object = NULL;
	}
}

static int close_vm(lua_State *L)
{
	struct luackvm_box *box = lua_touserdata(L, 1);

	if (!box->object || lua_getiuservalue(L, 1, VM_CHILDREN) != LUA_TTABLE)
		return 0;
	if (box->owned)
		forget_children(L);
	else
		end_children(L, box);
	luackvm_release(box);
	luackvm_end_crew(L, 1);
	luackvm_end_watcher(L, 1);
	/* Handlers are let go of; a run that goes on will find it closed. */
	lua_newtable(L);
	lua_setiuservalue(L, 1, VM_CHILDREN);
	lua_newtable(L);
	lua_setiuservalue(L, 1, VM_HANDLERS);
	return 0;
}

/***
 * What KVM says of a capability for this VM, which may differ from what it says
 * for all.
 *
 * @function vm:check_extension
 * @tparam string|integer capability the kernel's name in lower case without
 *  KVM_CAP_, or its number
 * @treturn integer 0, 1 or a number whose meaning is the capability's
 * @raise what the kernel says; a name that ckvm does not know is misuse
 * @api 4.4 KVM_CHECK_EXTENSION
 * @usage
 * print(vm:check_extension "nr_memslots")
 */
static int check_extension(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	int result = ckvm_vm_check_extension(vm, luackvm_arg_cap(L, 2));

	if (result < 0)
		return luackvm_fail(L, result, NULL);
	lua_pushinteger(L, result);
	return 1;
}

#define FOUR_NAMES                                                            \
	"I/O and MMIO exits go by four names: io_in, io_out, mmio_read, and " \
	"mmio_write"

/***
 * Has an exit answered by a function, in the place of the one before.
 *
 * The function gets the `exit` and the vCPU; for `io_in`, `io_out`, `mmio_read`
 * and `mmio_write` it answers what no range claims, with the arguments of a
 * range's handlers. The run goes on after it unless it returns false; after
 * `shutdown`, `fail_entry` and `internal_error` it ends unless it returns true.
 * It may raise, yield, and close what it runs on.
 *
 * @function vm:on
 * @tparam string|integer exit its name, or its number in the kernel's header
 * @tparam[opt] function handler nil: none from now on
 * @raise only for misuse: an unknown exit
 * @usage
 * vm:on("hlt", function(exit, vcpu) return false end)
 * vm:on("io_out", function(port, value, size, vcpu) print(port, value) end)
 */
static int on(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	lua_Integer number;

	if (lua_type(L, 2) == LUA_TNUMBER) {
		number = luaL_checkinteger(L, 2);
		luaL_argcheck(L, number >= 0 && number < CKVM_EXIT_IO_IN, 2,
			      "not an exit's number");
		luaL_argcheck(L,
			      number != KVM_EXIT_IO && number != KVM_EXIT_MMIO,
			      2, FOUR_NAMES);
	} else {
		number = ckvm_exit_number(luackvm_text(L, 2, "exit"));
		luaL_argcheck(
			L, !luackvm_is(L, 2, "io") && !luackvm_is(L, 2, "mmio"),
			2, FOUR_NAMES);
		if (number < 0)
			luackvm_unknown(L, 2, "exit", "KVM_EXIT_",
					ckvm_exit_number);
	}
	if (!lua_isnoneornil(L, 3))
		luaL_checktype(L, 3, LUA_TFUNCTION);
	lua_settop(L, 3);
	lua_getiuservalue(L, 1, VM_HANDLERS);
	lua_pushvalue(L, 3);
	lua_rawseti(L, -2, ON_KEY(number));
	if (number >= CKVM_EXIT_IO_IN)
		ckvm_vm_catch(vm, (enum ckvm_access_exit)number,
			      !lua_isnil(L, 3));
	return 0;
}

static const luaL_Reg vm_methods[] = {
	{ "check_extension", check_extension },
	{ "create_vcpu", luackvm_create_vcpu },
	{ "vcpu_from_fd", luackvm_vcpu_from_fd },
	{ "add_memory", luackvm_add_memory },
	{ "move_memory", luackvm_move_memory },
	{ "read", luackvm_read },
	{ "write", luackvm_write },
	{ "fill", luackvm_fill_memory },
	{ "zap_memory", luackvm_zap_memory },
	{ "attach_io", luackvm_attach_io },
	{ "attach_mmio", luackvm_attach_mmio },
	{ "on", on },
	{ "run", luackvm_run_vm },
	{ "watch", luackvm_vm_watch },
	{ "after", luackvm_vm_after },
	{ "read_u8", luackvm_read_u8 },
	{ "read_u16", luackvm_read_u16 },
	{ "read_u32", luackvm_read_u32 },
	{ "read_u64", luackvm_read_u64 },
	{ "write_u8", luackvm_write_u8 },
	{ "write_u16", luackvm_write_u16 },
	{ "write_u32", luackvm_write_u32 },
	{ "write_u64", luackvm_write_u64 },
	{ NULL, NULL },
};

static void push_fd(lua_State *L, struct luackvm_box *box)
{
	lua_pushinteger(L, ckvm_vm_fd(luackvm_open_object(L, box)));
}

static const struct luackvm_property properties[] = {
	{ "vcpus", luackvm_list_vcpus },
	{ "fd", push_fd },
	{ NULL, NULL },
};

static const luaL_Reg *const methods[] = {
	vm_methods,
	luackvm_cap_vm_methods,
	luackvm_irq_vm_methods,
	luackvm_irqchip_vm_methods,
	luackvm_msr_vm_methods,
	luackvm_irqfd_vm_methods,
	luackvm_stats_vm_methods,
	luackvm_dirty_vm_methods,
	luackvm_coalesced_vm_methods,
	luackvm_device_vm_methods,
	luackvm_region_vm_methods,
	luackvm_guest_vm_methods,
	luackvm_encrypt_vm_methods,
	luackvm_event_vm_methods,
	NULL,
};
static const struct luackvm_state *const states[] = {
	luackvm_irqchip_vm_states,
	luackvm_region_vm_states,
	NULL,
};

const struct luackvm_type luackvm_vm = {
	.name = "VM",
	.methods = methods,
	.states = states,
	.properties = properties,
	.ref = ref,
	.unref = unref,
	.end = end,
	.close = close_vm,
	.values = 4,
};

/* C hosts ----------------------------------------------------------------- */

void ckvm_lua_push_vm(lua_State *L, struct ckvm_vm *vm)
{
	if (!vm)
		lua_pushnil(L);
	else if (!luackvm_push_known(L, vm))
		luackvm_fill_vm(L, luackvm_new_box(L, &luackvm_vm), vm, false);
}

static void *object_at(lua_State *L, int index, const struct luackvm_type *type)
{
	const struct luackvm_box *box = luackvm_test(L, index, type);

	return box ? box->object : NULL;
}

struct ckvm_vm *ckvm_lua_to_vm(lua_State *L, int index)
{
	return object_at(L, index, &luackvm_vm);
}

struct ckvm_vcpu *ckvm_lua_to_vcpu(lua_State *L, int index)
{
	return object_at(L, index, &luackvm_vcpu);
}

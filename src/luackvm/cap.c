/* SPDX-License-Identifier: MIT */
/* enable_cap, on VMs and vCPUs. */
#include <linux/kvm.h>

#include "luackvm.h"

/* An argument of a capability: an integer, or a VM, whose descriptor it is. */
static uint64_t to_arg(lua_State *L, int index)
{
	if (luackvm_test(L, index, &luackvm_vm))
		return (uint64_t)ckvm_vm_fd(
			luackvm_check(L, index, &luackvm_vm));
	if (lua_isboolean(L, index))
		return (uint64_t)lua_toboolean(L, index);
	return (uint64_t)luackvm_to_integer(L, index, "args");
}

/* The list on top. */
static int read_args(lua_State *L, struct kvm_enable_cap *cap)
{
	int list = lua_gettop(L), n = 0;

	luaL_argcheck(L, lua_istable(L, list), 2, "args: list expected");
	for (lua_pushnil(L); lua_next(L, list); lua_pop(L, 1), n++) {
		lua_Integer i =
			luackvm_list_key(L, "args", ARRAY_SIZE(cap->args));

		cap->args[i - 1] = to_arg(L, -1);
	}
	return n;
}

/* { cap =, flags =, args = }; the capability takes the table's place. */
static int read_table(lua_State *L, struct kvm_enable_cap *cap)
{
	static const char *const keys[] = { "cap", "flags", "args", NULL };
	int n = 0;

	luackvm_check_keys(L, 2, "enable_cap", keys);
	if (luackvm_has(L, 2, "flags"))
		cap->flags =
			(uint32_t)luackvm_integer(L, 2, "flags", 0, UINT32_MAX);
	if (luackvm_get(L, 2, "args") != LUA_TNIL)
		n = read_args(L, cap);
	luackvm_get(L, 2, "cap");
	lua_replace(L, 2);
	return n;
}

/* Returns how many arguments were given. */
static int read_cap(lua_State *L, struct kvm_enable_cap *cap)
{
	int n;

	luaL_argcheck(L, lua_gettop(L) <= 2 + (int)ARRAY_SIZE(cap->args), 7,
		      "a capability takes four arguments at most");
	if (lua_istable(L, 2)) {
		luaL_argcheck(L, lua_gettop(L) == 2, 3,
			      "arguments go into the table");
		n = read_table(L, cap);
	} else {
		n = lua_gettop(L) - 2;
		for (int i = 0; i < n; i++)
			cap->args[i] = to_arg(L, i + 3);
	}
	cap->cap = luackvm_arg_cap(L, 2);
	return n;
}

static int fail(lua_State *L, const struct kvm_enable_cap *cap, int error)
{
	const char *name = ckvm_cap_name(cap->cap), *hint = luackvm_hint(error);

	return name ? luackvm_fail(L, error, "capability %s: %s", name, hint)
		    : luackvm_fail(L, error, "capability %d: %s", (int)cap->cap,
				   hint);
}

/***
 * Switches a capability on that is off until somebody asks for it.
 *
 * `vcpu:enable_cap` is for those of a single vCPU; of these,
 * `hyperv_enlightened_vmcs` returns the version that the kernel has.
 *
 * @function vm:enable_cap, vcpu:enable_cap
 * @tparam string|integer|table cap its name in lower case without KVM_CAP_, or
 *  its number; or all that follows in a table
 * @tparam string|integer cap.cap its name or number
 * @tparam[opt=0] integer cap.flags bits
 * @tparam[opt] any[] cap.args at most four arguments
 * @tparam[opt] integer|boolean|vm ... values, at most four; what they are,
 *  the capability says; a VM stands for its descriptor
 * @treturn[opt] integer number of the version, for `hyperv_enlightened_vmcs`
 * @raise `EINVAL` if this KVM has not got it, or not with these arguments
 * @api 4.37 KVM_ENABLE_CAP
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:enable_cap("split_irqchip", 24)
 */
static int enable_vm(lua_State *L)
{
	struct kvm_enable_cap cap = { 0 };
	int error;

	luackvm_check(L, 1, &luackvm_vm);
	read_cap(L, &cap);
	error = ckvm_vm_enable_cap(luackvm_check(L, 1, &luackvm_vm), &cap);
	return error < 0 ? fail(L, &cap, error) : 0;
}

/* The one capability that takes an address: where its version is to be put. */
static int enable_vmcs(lua_State *L, struct kvm_enable_cap *cap, int n)
{
	uint16_t version = 0;
	int error;

	luaL_argcheck(L, n == 0, 2,
		      "hyperv_enlightened_vmcs takes no arguments");
	cap->args[0] = (uintptr_t)&version;
	error = ckvm_vcpu_enable_cap(luackvm_check(L, 1, &luackvm_vcpu), cap);
	if (error < 0)
		return fail(L, cap, error);
	lua_pushinteger(L, version);
	return 1;
}

static int enable_vcpu(lua_State *L)
{
	struct kvm_enable_cap cap = { 0 };
	int error, n;

	luackvm_check(L, 1, &luackvm_vcpu);
	n = read_cap(L, &cap);
	if (cap.cap == KVM_CAP_HYPERV_ENLIGHTENED_VMCS)
		return enable_vmcs(L, &cap, n);
	error = ckvm_vcpu_enable_cap(luackvm_check(L, 1, &luackvm_vcpu), &cap);
	return error < 0 ? fail(L, &cap, error) : 0;
}

const luaL_Reg luackvm_cap_vm_methods[] = {
	{ "enable_cap", enable_vm },
	{ NULL, NULL },
};

const luaL_Reg luackvm_cap_vcpu_methods[] = {
	{ "enable_cap", enable_vcpu },
	{ NULL, NULL },
};

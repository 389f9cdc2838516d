/* SPDX-License-Identifier: MIT */
/* A vCPU's place in its life, debugging it, and the signals it minds. */
#include <stddef.h>

#include <linux/kvm.h>

#include "compat.h"
#include "luackvm.h"

/* mp_state: the struct's one field, by name ------------------------------- */

static const struct luackvm_constant mp_states[] = {
	{ "runnable", KVM_MP_STATE_RUNNABLE },
	{ "uninitialized", KVM_MP_STATE_UNINITIALIZED },
	{ "init_received", KVM_MP_STATE_INIT_RECEIVED },
	{ "halted", KVM_MP_STATE_HALTED },
	{ "sipi_received", KVM_MP_STATE_SIPI_RECEIVED },
	{ "stopped", KVM_MP_STATE_STOPPED },
	{ "check_stop", KVM_MP_STATE_CHECK_STOP },
	{ "operating", KVM_MP_STATE_OPERATING },
	{ "load", KVM_MP_STATE_LOAD },
	{ "ap_reset_hold", KVM_MP_STATE_AP_RESET_HOLD },
	{ "suspended", KVM_MP_STATE_SUSPENDED },
	{ NULL, 0 },
};

/***
 * What the vCPU waits for, if for anything.
 *
 * @function vcpu:get_mp_state
 * @treturn string|integer "runnable", "halted", "uninitialized",
 *  "init_received", "sipi_received", "stopped" and so on, or its number
 * @raise what the kernel says
 * @api 4.38 KVM_GET_MP_STATE
 * @usage
 * assert(vcpu:get_mp_state() == "runnable")
 */
static int get_mp_state(lua_State *L)
{
	struct kvm_mp_state state;
	int error = ckvm_vcpu_get_mp_state(luackvm_check(L, 1, &luackvm_vcpu),
					   &state);

	if (error)
		return luackvm_fail(L, error, NULL);
	luackvm_push_constant(L, state.mp_state, mp_states);
	return 1;
}

/***
 * Sets what the vCPU waits for.
 *
 * @function vcpu:set_mp_state
 * @tparam string|integer state as `vcpu:get_mp_state` returns it, or its number
 * @raise `EINVAL` for one that this KVM does not take
 * @api 4.39 KVM_SET_MP_STATE
 * @usage
 * vcpu:set_mp_state "runnable"
 */
static int set_mp_state(lua_State *L)
{
	struct ckvm_vcpu *vcpu = luackvm_check(L, 1, &luackvm_vcpu);
	struct kvm_mp_state state = { .mp_state = luackvm_constant(
					      L, 2, "mp_state", mp_states) };
	int error = ckvm_vcpu_set_mp_state(vcpu, &state);

	return error ? luackvm_fail(L, error, NULL) : 0;
}

/* Debugging --------------------------------------------------------------- */

static const struct luackvm_constant debug_flags[] = {
	{ "enable", KVM_GUESTDBG_ENABLE },
	{ "singlestep", KVM_GUESTDBG_SINGLESTEP },
	{ "use_sw_bp", KVM_GUESTDBG_USE_SW_BP },
	{ "use_hw_bp", KVM_GUESTDBG_USE_HW_BP },
	{ "inject_db", KVM_GUESTDBG_INJECT_DB },
	{ "inject_bp", KVM_GUESTDBG_INJECT_BP },
	{ "blockirq", KVM_GUESTDBG_BLOCKIRQ },
	{ NULL, 0 },
};

/***
 * How a vCPU is debugged.
 *
 * @struct kvm_guest_debug
 * @tfield integer|string|string[] control bits, a name or a list of names:
 *  "enable", "singlestep", "use_sw_bp", "use_hw_bp", "inject_db", "inject_bp",
 *  "blockirq"
 * @tfield kvm_guest_debug_arch arch breakpoints of the CPU
 */

/***
 * The debug registers in `kvm_guest_debug`.
 *
 * @struct kvm_guest_debug_arch
 * @tfield integer[] debugreg values of DR0 to DR7, from 1 on
 */
static const struct luackvm_field arch_fields[] = {
	LUACKVM_ARRAY(struct kvm_guest_debug_arch, debugreg),
	LUACKVM_END,
};
static const struct luackvm_struct arch_struct = {
	"kvm_guest_debug.arch", sizeof(struct kvm_guest_debug_arch),
	arch_fields, 0
};

/***
 * Single steps and breakpoints, which end a run with the exit `debug`. All
 * that is not given is off.
 *
 * @function vcpu:set_guest_debug
 * @tparam kvm_guest_debug debug what to stop at
 * @raise `EBUSY` if an exception is to be injected and one waits already
 * @api 4.87 KVM_SET_GUEST_DEBUG
 * @usage
 * vcpu:set_guest_debug { control = { "enable", "singlestep" } }
 * vcpu:set_guest_debug {}
 */
static int set_guest_debug(lua_State *L)
{
	static const char *const keys[] = { "control", "arch", NULL };
	struct kvm_guest_debug debug = { 0 };
	int error;

	luackvm_check(L, 1, &luackvm_vcpu);
	luackvm_check_keys(L, 2, "kvm_guest_debug", keys);
	if (luackvm_get(L, 2, "control") != LUA_TNIL)
		debug.control = luackvm_flags(L, -1, "control", debug_flags);
	if (luackvm_get(L, 2, "arch") != LUA_TNIL)
		luackvm_read_struct(L, -1, &arch_struct, &debug.arch);
	error = ckvm_vcpu_set_guest_debug(luackvm_check(L, 1, &luackvm_vcpu),
					  &debug);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/* Signals ----------------------------------------------------------------- */

#define SIGNALS 64

/* The list at 2. */
static uint64_t read_signals(lua_State *L)
{
	uint64_t mask = 0;

	for (lua_pushnil(L); lua_next(L, 2); lua_pop(L, 1)) {
		lua_Integer signal = luackvm_to_integer(L, -1, "signal");

		luackvm_list_key(L, "signals", lua_rawlen(L, 2));
		if (signal < 1 || signal > SIGNALS)
			luaL_error(L, "signal: %I is not between 1 and %d",
				   signal, SIGNALS);
		mask |= UINT64_C(1) << (signal - 1);
	}
	return mask;
}

/***
 * Which signals are blocked while the guest runs. The signal that kicks is
 * never among them.
 *
 * @function vcpu:set_signal_mask
 * @tparam[opt] integer[] signals their numbers, 1 to 64; if left out, those of
 *  the thread that runs the vCPU
 * @raise what the kernel says
 * @api 4.21 KVM_SET_SIGNAL_MASK
 * @usage
 * vcpu:set_signal_mask { 10, 12 }
 * vcpu:set_signal_mask()
 */
static int set_signal_mask(lua_State *L)
{
	struct ckvm_vcpu *vcpu = luackvm_check(L, 1, &luackvm_vcpu);
	bool none = lua_isnoneornil(L, 2);
	uint64_t mask = 0;
	int error;

	lua_settop(L, 2);
	if (!none) {
		luaL_checktype(L, 2, LUA_TTABLE);
		mask = read_signals(L);
	}
	error = ckvm_vcpu_set_signal_mask(vcpu, none ? NULL : &mask);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

const luaL_Reg luackvm_control_vcpu_methods[] = {
	{ "get_mp_state", get_mp_state },
	{ "set_mp_state", set_mp_state },
	{ "set_guest_debug", set_guest_debug },
	{ "set_signal_mask", set_signal_mask },
	{ NULL, NULL },
};

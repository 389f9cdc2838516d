/* SPDX-License-Identifier: MIT */
/* What the host injects into an x86 vCPU, its TSC, and machine checks. */
#include <stddef.h>

#include <linux/kvm.h>

#include "luackvm.h"

static struct ckvm_vcpu *self(lua_State *L)
{
	return luackvm_check(L, 1, &luackvm_vcpu);
}

static int done(lua_State *L, int error)
{
	return error < 0 ? luackvm_fail(L, error, NULL) : 0;
}

static int push_result(lua_State *L, int result)
{
	if (result < 0)
		return luackvm_fail(L, result, NULL);
	lua_pushinteger(L, result);
	return 1;
}

static int nmi(lua_State *L)
{
	return done(L, ckvm_vcpu_nmi(self(L)));
}

static int smi(lua_State *L)
{
	return done(L, ckvm_vcpu_smi(self(L)));
}

static int kvmclock_ctrl(lua_State *L)
{
	return done(L, ckvm_vcpu_kvmclock_ctrl(self(L)));
}

/* The task priority ------------------------------------------------------- */

#define F(member) LUACKVM_SCALAR(struct kvm_tpr_access_ctl, member)
static const struct luackvm_field tpr_fields[] = { F(enabled), F(flags),
						   LUACKVM_END };
#undef F
static const struct luackvm_struct tpr_struct = {
	"kvm_tpr_access_ctl", sizeof(struct kvm_tpr_access_ctl), tpr_fields, 0
};

static int tpr_access_reporting(lua_State *L)
{
	struct kvm_tpr_access_ctl control = { 0 };

	self(L);
	luackvm_read_struct(L, 2, &tpr_struct, &control);
	return done(L, ckvm_vcpu_tpr_access_reporting(self(L), &control));
}

static int set_vapic_addr(lua_State *L)
{
	struct ckvm_vcpu *vcpu = self(L);

	return done(L,
		    ckvm_vcpu_set_vapic_addr(vcpu, luackvm_arg_address(L, 2)));
}

/* Machine checks ---------------------------------------------------------- */

static int x86_get_mce_cap_supported(lua_State *L)
{
	uint64_t cap = 0;
	int error = ckvm_x86_get_mce_cap_supported(
		luackvm_check(L, 1, &luackvm_system), &cap);

	if (error < 0)
		return luackvm_fail(L, error, NULL);
	lua_pushinteger(L, (lua_Integer)cap);
	return 1;
}

static int x86_setup_mce(lua_State *L)
{
	struct ckvm_vcpu *vcpu = self(L);
	uint64_t cap = (uint64_t)luackvm_to_integer(L, 2, "mcg_cap");

	return done(L, ckvm_vcpu_x86_setup_mce(vcpu, cap));
}

#define F(member) LUACKVM_SCALAR(struct kvm_x86_mce, member)
static const struct luackvm_field mce_fields[] = {
	F(status), F(addr), F(misc), F(mcg_status), F(bank), LUACKVM_END,
};
#undef F
static const struct luackvm_struct mce_struct = { "kvm_x86_mce",
						  sizeof(struct kvm_x86_mce),
						  mce_fields, 0 };

static int x86_set_mce(lua_State *L)
{
	struct kvm_x86_mce mce = { 0 };

	self(L);
	luackvm_read_struct(L, 2, &mce_struct, &mce);
	return done(L, ckvm_vcpu_x86_set_mce(self(L), &mce));
}

/* The time stamp counter -------------------------------------------------- */

static uint32_t arg_khz(lua_State *L)
{
	lua_Integer khz = luackvm_to_integer(L, 2, "kHz");

	if (khz < 0 || khz > UINT32_MAX)
		luaL_error(L, "kHz: %I does not fit in 32 bits", khz);
	return (uint32_t)khz;
}

static int get_tsc_khz(lua_State *L)
{
	return push_result(L, ckvm_vcpu_get_tsc_khz(self(L)));
}

static int set_tsc_khz(lua_State *L)
{
	struct ckvm_vcpu *vcpu = self(L);

	return done(L, ckvm_vcpu_set_tsc_khz(vcpu, arg_khz(L)));
}

static int vm_get_tsc_khz(lua_State *L)
{
	return push_result(
		L, ckvm_vm_get_tsc_khz(luackvm_check(L, 1, &luackvm_vm)));
}

static int vm_set_tsc_khz(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);

	return done(L, ckvm_vm_set_tsc_khz(vm, arg_khz(L)));
}

const luaL_Reg luackvm_event_kvm_methods[] = {
	{ "x86_get_mce_cap_supported", x86_get_mce_cap_supported },
	{ NULL, NULL },
};

const luaL_Reg luackvm_event_vm_methods[] = {
	{ "get_tsc_khz", vm_get_tsc_khz },
	{ "set_tsc_khz", vm_set_tsc_khz },
	{ NULL, NULL },
};

const luaL_Reg luackvm_event_vcpu_methods[] = {
	{ "nmi", nmi },
	{ "smi", smi },
	{ "kvmclock_ctrl", kvmclock_ctrl },
	{ "tpr_access_reporting", tpr_access_reporting },
	{ "set_vapic_addr", set_vapic_addr },
	{ "x86_setup_mce", x86_setup_mce },
	{ "x86_set_mce", x86_set_mce },
	{ "get_tsc_khz", get_tsc_khz },
	{ "set_tsc_khz", set_tsc_khz },
	{ NULL, NULL },
};

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

/***
 * Queues an NMI.
 *
 * @function vcpu:nmi
 * @raise what the kernel says
 * @api 4.64 KVM_NMI
 * @usage
 * vcpu:nmi()
 */
static int nmi(lua_State *L)
{
	return done(L, ckvm_vcpu_nmi(self(L)));
}

/***
 * Queues an interrupt into system management mode.
 *
 * @function vcpu:smi
 * @raise `ENOTTY` where KVM has no SMM
 * @api 4.96 KVM_SMI
 * @usage
 * vcpu:smi()
 */
static int smi(lua_State *L)
{
	return done(L, ckvm_vcpu_smi(self(L)));
}

/***
 * Tells the guest that it was paused, so that its watchdog does not bark.
 *
 * @function vcpu:kvmclock_ctrl
 * @raise `EINVAL` if the guest has no kvmclock
 * @api 4.70 KVM_KVMCLOCK_CTRL
 * @usage
 * print(pcall(vcpu.kvmclock_ctrl, vcpu))
 */
static int kvmclock_ctrl(lua_State *L)
{
	return done(L, ckvm_vcpu_kvmclock_ctrl(self(L)));
}

/* The task priority ------------------------------------------------------- */

/***
 * Whether accesses to the task priority are exits.
 *
 * @struct kvm_tpr_access_ctl
 * @tfield integer enabled 0 or 1
 * @tfield integer flags bits
 */
#define F(member) LUACKVM_SCALAR(struct kvm_tpr_access_ctl, member)
static const struct luackvm_field tpr_fields[] = { F(enabled), F(flags),
						   LUACKVM_END };
#undef F
static const struct luackvm_struct tpr_struct = {
	"kvm_tpr_access_ctl", sizeof(struct kvm_tpr_access_ctl), tpr_fields, 0
};

/***
 * Has accesses to the task priority reported, as the exit `tpr_access`.
 *
 * @function vcpu:tpr_access_reporting
 * @tparam kvm_tpr_access_ctl control fields not named are 0
 * @raise `ENOTTY` without the capability `vapic`; `EINVAL` without a local
 *  APIC in the kernel
 * @api - KVM_TPR_ACCESS_REPORTING
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 * vm:create_vcpu(0):tpr_access_reporting { enabled = 1 }
 */
static int tpr_access_reporting(lua_State *L)
{
	struct kvm_tpr_access_ctl control = { 0 };

	self(L);
	luackvm_read_struct(L, 2, &tpr_struct, &control);
	return done(L, ckvm_vcpu_tpr_access_reporting(self(L), &control));
}

/***
 * Where the guest keeps the task priority of its own, for the same.
 *
 * @function vcpu:set_vapic_addr
 * @tparam integer gpa guest physical address, with memory
 * @raise `EINVAL` without a local APIC in the kernel, or without memory there
 * @api - KVM_SET_VAPIC_ADDR
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 * vm:add_memory { gpa = 0, size = 0x1000 }
 * vm:create_vcpu(0):set_vapic_addr(0x100)
 */
static int set_vapic_addr(lua_State *L)
{
	struct ckvm_vcpu *vcpu = self(L);

	return done(L,
		    ckvm_vcpu_set_vapic_addr(vcpu, luackvm_arg_address(L, 2)));
}

/* Machine checks ---------------------------------------------------------- */

/***
 * What of machine checks KVM can do.
 *
 * @function kvm:x86_get_mce_cap_supported
 * @treturn integer value for MCG_CAP: how many banks, and bits
 * @raise what the kernel says
 * @api 4.104 KVM_X86_GET_MCE_CAP_SUPPORTED
 * @usage
 * print(kvm:x86_get_mce_cap_supported() & 0xff)
 */
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

/***
 * Gives the vCPU machine checks.
 *
 * @function vcpu:x86_setup_mce
 * @tparam integer cap value of MCG_CAP
 * @raise `EINVAL` for what `kvm:x86_get_mce_cap_supported` does not have
 * @api 4.105 KVM_X86_SETUP_MCE
 * @usage
 * vcpu:x86_setup_mce(1)
 */
static int x86_setup_mce(lua_State *L)
{
	struct ckvm_vcpu *vcpu = self(L);
	uint64_t cap = (uint64_t)luackvm_to_integer(L, 2, "mcg_cap");

	return done(L, ckvm_vcpu_x86_setup_mce(vcpu, cap));
}

/***
 * A machine check.
 *
 * @struct kvm_x86_mce
 * @tfield integer status bits of the bank's MCi_STATUS
 * @tfield integer addr guest physical address that it is about
 * @tfield integer misc value of MCi_MISC
 * @tfield integer mcg_status bits of MCG_STATUS
 * @tfield integer bank number of the bank
 */
#define F(member) LUACKVM_SCALAR(struct kvm_x86_mce, member)
static const struct luackvm_field mce_fields[] = {
	F(status), F(addr), F(misc), F(mcg_status), F(bank), LUACKVM_END,
};
#undef F
static const struct luackvm_struct mce_struct = { "kvm_x86_mce",
						  sizeof(struct kvm_x86_mce),
						  mce_fields, 0 };

/***
 * Raises a machine check in the guest.
 *
 * @function vcpu:x86_set_mce
 * @tparam kvm_x86_mce check fields not named are 0
 * @raise `EINVAL` for a bank that is not there, or a status that is not valid
 * @api 4.106 KVM_X86_SET_MCE
 * @usage
 * vcpu:x86_setup_mce(1)
 * vcpu:x86_set_mce { bank = 0, status = 1 << 63 }
 */
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

/***
 * The frequency of the guest's TSC: of the vCPU, or of those that the VM will
 * create.
 *
 * @function vcpu:get_tsc_khz, vm:get_tsc_khz
 * @treturn integer kHz
 * @raise `EIO` where it is not known
 * @api 4.56 KVM_GET_TSC_KHZ
 * @usage
 * print(vcpu:get_tsc_khz())
 */
static int get_tsc_khz(lua_State *L)
{
	return push_result(L, ckvm_vcpu_get_tsc_khz(self(L)));
}

/***
 * Sets it. Frequencies other than the host's need the capability
 * `tsc_control`; for a VM, `vm_tsc_control`.
 *
 * @function vcpu:set_tsc_khz, vm:set_tsc_khz
 * @tparam integer khz kHz; 0 is the host's
 * @raise `EINVAL` where the CPU cannot; `ENOTTY`
 * @api 4.55 KVM_SET_TSC_KHZ
 * @usage
 * vcpu:set_tsc_khz(0)
 */
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

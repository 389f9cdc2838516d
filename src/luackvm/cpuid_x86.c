/* SPDX-License-Identifier: MIT */
/* CPUID: lists of tables with the kernel's fields. */
#include <stddef.h>

#include <linux/kvm.h>

#include "luackvm.h"

/***
 * What CPUID answers to one question.
 *
 * @struct kvm_cpuid_entry2
 * @tfield integer function value of EAX that asks for it
 * @tfield integer index value of ECX that asks for it; naming it sets the flag
 * @tfield integer flags bits; 1: index counts
 * @tfield integer eax,ebx,ecx,edx bits of the answer
 */
#define F(member) LUACKVM_SCALAR(struct kvm_cpuid_entry2, member)
static const struct luackvm_field entry2_fields[] = {
	F(function),
	{ .name = "index",
	  .offset = offsetof(struct kvm_cpuid_entry2, index),
	  .size = 4,
	  .flag = KVM_CPUID_FLAG_SIGNIFCANT_INDEX },
	F(flags),
	F(eax),
	F(ebx),
	F(ecx),
	F(edx),
	LUACKVM_END,
};
#undef F
static const struct luackvm_struct entry2 = {
	"kvm_cpuid_entry2", sizeof(struct kvm_cpuid_entry2), entry2_fields,
	offsetof(struct kvm_cpuid_entry2, flags)
};

/***
 * The same of old, without an index.
 *
 * @struct kvm_cpuid_entry
 * @tfield integer function value of EAX that asks for it
 * @tfield integer eax,ebx,ecx,edx bits of the answer
 */
#define F(member) LUACKVM_SCALAR(struct kvm_cpuid_entry, member)
static const struct luackvm_field entry_fields[] = {
	F(function), F(eax), F(ebx), F(ecx), F(edx), LUACKVM_END,
};
#undef F
static const struct luackvm_struct entry = { "kvm_cpuid_entry",
					     sizeof(struct kvm_cpuid_entry),
					     entry_fields, 0 };

/* The object is checked behind the push, which may run a finalizer. */
#define GETTER(method, type, get)                                         \
	static int method(lua_State *L)                                   \
	{                                                                 \
		struct kvm_cpuid2 *list = NULL;                           \
		void **slot;                                              \
		int result;                                               \
                                                                          \
		lua_settop(L, 1);                                         \
		slot = luackvm_push_pointer(L);                           \
		result = get(luackvm_check(L, 1, &(type)), &list);        \
		*slot = list;                                             \
		if (result < 0)                                           \
			return luackvm_fail(L, result, NULL);             \
		luackvm_push_list(L, &entry2, list->entries, list->nent); \
		return 1;                                                 \
	}

/***
 * What CPU and KVM support together, for `vcpu:set_cpuid2`.
 *
 * @function kvm:get_supported_cpuid
 * @treturn kvm_cpuid_entry2[] of any length
 * @raise what the kernel says
 * @api 4.46 KVM_GET_SUPPORTED_CPUID
 * @usage
 * vcpu:set_cpuid2(kvm:get_supported_cpuid())
 */
GETTER(get_supported, luackvm_system, ckvm_get_supported_cpuid)

/***
 * What KVM can emulate where the CPU has not got it.
 *
 * @function kvm:get_emulated_cpuid
 * @treturn kvm_cpuid_entry2[] of any length
 * @raise what the kernel says
 * @api 4.88 KVM_GET_EMULATED_CPUID
 * @usage
 * print(#kvm:get_emulated_cpuid())
 */
GETTER(get_emulated, luackvm_system, ckvm_get_emulated_cpuid)

/***
 * What KVM has for guests that expect Hyper-V.
 *
 * @function kvm:get_supported_hv_cpuid, vcpu:get_supported_hv_cpuid
 * @treturn kvm_cpuid_entry2[] of any length
 * @raise `EINVAL` or `ENOTTY` where KVM was built without
 * @api 4.118 KVM_GET_SUPPORTED_HV_CPUID
 * @usage
 * local ok, list = pcall(vcpu.get_supported_hv_cpuid, vcpu)
 */
GETTER(get_supported_hv, luackvm_system, ckvm_get_supported_hv_cpuid)
GETTER(vcpu_get_supported_hv, luackvm_vcpu, ckvm_vcpu_get_supported_hv_cpuid)

/***
 * What the guest's CPUID answers. Some KVMs show bits of the host's.
 *
 * @function vcpu:get_cpuid2
 * @treturn kvm_cpuid_entry2[] of any length
 * @raise what the kernel says
 * @api 4.20 KVM_GET_CPUID2
 * @usage
 * assert(#vcpu:get_cpuid2() == 0)
 */
GETTER(get_cpuid2, luackvm_vcpu, ckvm_vcpu_get_cpuid2)

/***
 * Sets what the guest's CPUID answers: the whole list. A new vCPU has none.
 *
 * @function vcpu:set_cpuid2
 * @tparam kvm_cpuid_entry2[] entries at most 256
 * @raise `E2BIG` for more, `EINVAL` for what KVM cannot do, and for any change
 *  once the vCPU has run
 * @api 4.20 KVM_SET_CPUID2
 * @usage
 * vcpu:set_cpuid2 { { ["function"] = 0, eax = 1 }, { ["function"] = 1, edx =
 *  0x11 } }
 */
static int set_cpuid2(lua_State *L)
{
	struct kvm_cpuid2 *cpuid;
	size_t count;
	int error;

	luackvm_check(L, 1, &luackvm_vcpu);
	cpuid = luackvm_read_list(L, 2, &entry2, sizeof(*cpuid), &count);
	cpuid->nent = (uint32_t)count;
	error = ckvm_vcpu_set_cpuid2(luackvm_check(L, 1, &luackvm_vcpu), cpuid);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/***
 * The same of old.
 *
 * @function vcpu:set_cpuid
 * @tparam kvm_cpuid_entry[] entries at most 256
 * @raise as for `vcpu:set_cpuid2`
 * @api 4.20 KVM_SET_CPUID
 * @usage
 * vcpu:set_cpuid { { ["function"] = 0, eax = 1 } }
 */
static int set_cpuid(lua_State *L)
{
	struct kvm_cpuid *cpuid;
	size_t count;
	int error;

	luackvm_check(L, 1, &luackvm_vcpu);
	cpuid = luackvm_read_list(L, 2, &entry, sizeof(*cpuid), &count);
	cpuid->nent = (uint32_t)count;
	error = ckvm_vcpu_set_cpuid(luackvm_check(L, 1, &luackvm_vcpu), cpuid);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

const luaL_Reg luackvm_cpuid_kvm_methods[] = {
	{ "get_supported_cpuid", get_supported },
	{ "get_emulated_cpuid", get_emulated },
	{ "get_supported_hv_cpuid", get_supported_hv },
	{ NULL, NULL },
};

const luaL_Reg luackvm_cpuid_vcpu_methods[] = {
	{ "get_supported_hv_cpuid", vcpu_get_supported_hv },
	{ "get_cpuid2", get_cpuid2 },
	{ "set_cpuid2", set_cpuid2 },
	{ "set_cpuid", set_cpuid },
	{ NULL, NULL },
};

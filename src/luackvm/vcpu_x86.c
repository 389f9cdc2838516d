/* SPDX-License-Identifier: MIT */
/* State of an x86 vCPU that is got and set whole, beside its views. */
#include <stddef.h>
#include <string.h>

#include "compat.h"
#include "luackvm.h"

/***
 * The registers of x87 and SSE. Fields that `set_fpu` is not given keep their
 * value.
 *
 * @state vcpu:fpu kvm_fpu
 * @api 4.22 KVM_GET_FPU
 * @api 4.23 KVM_SET_FPU
 * @raise `EBUSY` while another thread runs the vCPU
 * @usage
 * vcpu:set_fpu { fcw = 0x37f }
 */
LUACKVM_GET_SET(vcpu, fpu)

/***
 * The guest's own debug registers. Fields that `set_debugregs` is not given
 * keep their value.
 *
 * @state vcpu:debugregs kvm_debugregs
 * @api 4.33 KVM_GET_DEBUGREGS
 * @api 4.34 KVM_SET_DEBUGREGS
 * @raise `EINVAL` for bits that have to be 0
 * @usage
 * vcpu:set_debugregs { db = { 0x1000 } }
 */
LUACKVM_GET_SET(vcpu, debugregs)

/***
 * The same as `vcpu:get_sregs` and `vcpu:set_sregs`, with the page directory
 * pointers of PAE in the place of `interrupt_bitmap`.
 *
 * @state vcpu:sregs2 kvm_sregs2
 * @api 4.131 KVM_GET_SREGS2
 * @api 4.132 KVM_SET_SREGS2
 * @raise `EINVAL` for a state that no CPU has; `EBUSY` for other pdptrs while
 *  an access is open
 * @usage
 * print(vcpu:get_sregs2().flags)
 */
LUACKVM_GET_SET(vcpu, sregs2)

const struct luackvm_state luackvm_x86_vcpu_states[] = {
	{ "fpu", &luackvm_kvm_fpu, get_fpu, set_fpu },
	{ "debugregs", &luackvm_kvm_debugregs, get_debugregs, set_debugregs },
	{ "sregs2", &luackvm_kvm_sregs2, get_sregs2, set_sregs2,
	  luackvm_explain_sregs2 },
	{ .name = NULL },
};

/* xcrs: { flags =, xcrs = { { xcr =, value = }, ... } } ------------------- */

/***
 * Extended control registers.
 *
 * @struct kvm_xcrs
 * @tfield integer flags bits
 * @tfield kvm_xcr[] xcrs at most 16
 */

/***
 * One of them.
 *
 * @struct kvm_xcr
 * @tfield integer xcr number of the register; there is 0
 * @tfield integer value bits
 */
#define F(member) LUACKVM_SCALAR(struct kvm_xcr, member)
static const struct luackvm_field xcr_fields[] = { F(xcr), F(value),
						   LUACKVM_END };
#undef F
static const struct luackvm_struct xcr = { "kvm_xcr", sizeof(struct kvm_xcr),
					   xcr_fields, 0 };

/***
 * The extended control registers: XCR0, which says what XSAVE saves.
 *
 * @function vcpu:get_xcrs
 * @treturn kvm_xcrs a fresh table
 * @raise `EBUSY` while another thread runs the vCPU
 * @api 4.44 KVM_GET_XCRS
 * @usage
 * print(vcpu:get_xcrs().xcrs[1].value)
 */
static int get_xcrs(lua_State *L)
{
	struct kvm_xcrs xcrs = { 0 };
	int error =
		ckvm_vcpu_get_xcrs(luackvm_check(L, 1, &luackvm_vcpu), &xcrs);
	size_t count =
		xcrs.nr_xcrs < KVM_MAX_XCRS ? xcrs.nr_xcrs : KVM_MAX_XCRS;

	if (error)
		return luackvm_fail(L, error, NULL);
	lua_createtable(L, 0, 2);
	lua_pushinteger(L, xcrs.flags);
	lua_setfield(L, -2, "flags");
	luackvm_push_list(L, &xcr, xcrs.xcrs, count);
	lua_setfield(L, -2, "xcrs");
	return 1;
}

/* The list on top. */
static void read_xcrs(lua_State *L, struct kvm_xcrs *xcrs)
{
	const void *list;
	size_t count;

	if (!lua_istable(L, -1))
		luaL_error(L, "xcrs: list expected, got %s",
			   luaL_typename(L, -1));
	if (luackvm_has(L, -1, "xcr"))
		luaL_error(L, "xcrs: a list of { xcr =, value = } expected, "
			      "got one of them");
	list = luackvm_read_list(L, -1, &xcr, 0, &count);
	if (count > KVM_MAX_XCRS)
		luaL_error(L, "xcrs: %I of them, KVM takes %d",
			   (lua_Integer)count, KVM_MAX_XCRS);
	memcpy(xcrs->xcrs, list, count * sizeof(*xcrs->xcrs));
	xcrs->nr_xcrs = (uint32_t)count;
}

/***
 * Sets them: the list replaces all.
 *
 * @function vcpu:set_xcrs
 * @tparam kvm_xcrs values fields to set
 * @raise `EINVAL` for what the guest's CPUID has not got
 * @api 4.45 KVM_SET_XCRS
 * @usage
 * vcpu:set_xcrs { xcrs = { { xcr = 0, value = 1 } } }
 */
static int set_xcrs(lua_State *L)
{
	static const char *const keys[] = { "flags", "xcrs", NULL };
	struct kvm_xcrs xcrs = { 0 };
	int error;

	error = ckvm_vcpu_get_xcrs(luackvm_check(L, 1, &luackvm_vcpu), &xcrs);
	if (error)
		return luackvm_fail(L, error, NULL);
	luackvm_check_keys(
		L, 2, "set_xcrs { xcrs = { { xcr = 0, value = 1 } } }", keys);
	if (luackvm_has(L, 2, "flags"))
		xcrs.flags =
			(uint32_t)luackvm_integer(L, 2, "flags", 0, UINT32_MAX);
	if (luackvm_get(L, 2, "xcrs") != LUA_TNIL)
		read_xcrs(L, &xcrs);
	error = ckvm_vcpu_set_xcrs(luackvm_check(L, 1, &luackvm_vcpu), &xcrs);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/* Opaque blocks, as strings ----------------------------------------------- */

static const char *check_block(lua_State *L, const char *name, size_t *length)
{
	if (lua_type(L, 2) != LUA_TSTRING)
		luaL_error(L, "%s: string expected, got %s", name,
			   luaL_typename(L, 2));
	return lua_tolstring(L, 2, length);
}

static int refuse_length(lua_State *L, const char *name, size_t expected,
			 size_t length)
{
	return luaL_error(L, "%s: string of %I bytes expected, got %I", name,
			  (lua_Integer)expected, (lua_Integer)length);
}

/***
 * The registers of the local APIC, as a page of them.
 *
 * @function vcpu:get_lapic
 * @treturn string 1024 bytes, a register every 16
 * @raise `EINVAL` without controllers in the kernel
 * @api 4.57 KVM_GET_LAPIC
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 * local vcpu = vm:create_vcpu(0)
 * print(("<I4"):unpack(vcpu:get_lapic(), 0x30 + 1)) -- the version
 */
static int get_lapic(lua_State *L)
{
	struct kvm_lapic_state lapic;
	int error =
		ckvm_vcpu_get_lapic(luackvm_check(L, 1, &luackvm_vcpu), &lapic);

	if (error)
		return luackvm_fail(L, error, NULL);
	lua_pushlstring(L, lapic.regs, sizeof(lapic.regs));
	return 1;
}

/***
 * Sets them.
 *
 * @function vcpu:set_lapic
 * @tparam string registers as `vcpu:get_lapic` returns them
 * @raise `EINVAL` without controllers in the kernel
 * @api 4.58 KVM_SET_LAPIC
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 * local vcpu = vm:create_vcpu(0)
 * vcpu:set_lapic(vcpu:get_lapic())
 */
static int set_lapic(lua_State *L)
{
	struct ckvm_vcpu *vcpu = luackvm_check(L, 1, &luackvm_vcpu);
	struct kvm_lapic_state lapic;
	size_t length;
	const char *regs = check_block(L, "lapic", &length);
	int error;

	if (length != sizeof(lapic.regs))
		return refuse_length(L, "lapic", sizeof(lapic.regs), length);
	memcpy(lapic.regs, regs, length);
	error = ckvm_vcpu_set_lapic(vcpu, &lapic);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/***
 * The state of x87, SSE, AVX and so on, laid out as XSAVE does.
 *
 * @function vcpu:get_xsave
 * @treturn string 4096 bytes
 * @raise `EINVAL` if that is too little: then `vcpu:get_xsave2`
 * @api 4.42 KVM_GET_XSAVE
 * @usage
 * local state = vcpu:get_xsave()
 */
static int get_xsave(lua_State *L)
{
	struct kvm_xsave xsave;
	int error =
		ckvm_vcpu_get_xsave(luackvm_check(L, 1, &luackvm_vcpu), &xsave);

	if (error)
		return luackvm_fail(L, error, NULL);
	lua_pushlstring(L, (const char *)xsave.region, sizeof(xsave.region));
	return 1;
}

/* How many bytes the kernel takes and gives; raises. */
static size_t xsave_size(lua_State *L)
{
	int size = ckvm_vcpu_xsave_size(luackvm_check(L, 1, &luackvm_vcpu));

	if (size < 0)
		luackvm_fail(L, size, NULL);
	return (size_t)size;
}

/***
 * The same, of any size.
 *
 * @function vcpu:get_xsave2
 * @treturn string 4096 bytes or more
 * @raise `ENOTTY` before Linux 5.17
 * @api 4.134 KVM_GET_XSAVE2
 * @usage
 * local state = vcpu:get_xsave2()
 */
static int get_xsave2(lua_State *L)
{
	size_t size = xsave_size(L);
	luaL_Buffer buffer;
	char *data = luaL_buffinitsize(L, &buffer, size);
	int error = ckvm_vcpu_get_xsave2(luackvm_check(L, 1, &luackvm_vcpu),
					 data, size);

	if (error)
		return luackvm_fail(L, error, NULL);
	luaL_pushresultsize(&buffer, size);
	return 1;
}

/***
 * Sets it.
 *
 * @function vcpu:set_xsave
 * @tparam string state as `vcpu:get_xsave` or `vcpu:get_xsave2` returns it
 * @raise `EINVAL` for a state that the CPU does not take
 * @api 4.43 KVM_SET_XSAVE
 * @usage
 * vcpu:set_xsave(vcpu:get_xsave())
 */
static int set_xsave(lua_State *L)
{
	size_t size = xsave_size(L), length;
	const char *block = check_block(L, "xsave", &length);
	char *data;
	int error;

	if (length != size && length != sizeof(struct kvm_xsave))
		return refuse_length(L, "xsave", size, length);
	data = lua_newuserdatauv(L, size, 0);
	memset(data, 0, size);
	memcpy(data, block, length);
	error = ckvm_vcpu_set_xsave(luackvm_check(L, 1, &luackvm_vcpu), data,
				    size);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/***
 * What the guest's own VMs are about, where it may have some: opaque.
 *
 * @function vcpu:get_nested_state
 * @treturn string a header, and what follows it
 * @raise `EINVAL` or `ENOTTY` where KVM has no nested virtualization
 * @api 4.114 KVM_GET_NESTED_STATE
 * @usage
 * print(pcall(vcpu.get_nested_state, vcpu))
 */
static int get_nested_state(lua_State *L)
{
	struct kvm_nested_state *state = NULL;
	void **slot;
	int error;

	lua_settop(L, 1);
	slot = luackvm_push_pointer(L);
	error = ckvm_vcpu_get_nested_state(luackvm_check(L, 1, &luackvm_vcpu),
					   &state);
	*slot = state;
	if (error)
		return luackvm_fail(L, error, NULL);
	lua_pushlstring(L, (const char *)state, state->size);
	return 1;
}

/***
 * Sets it.
 *
 * @function vcpu:set_nested_state
 * @tparam string state as `vcpu:get_nested_state` returns it
 * @raise `EINVAL` for a state that does not fit the guest's CPUID, `EBUSY`
 *  while an access is open
 * @api 4.115 KVM_SET_NESTED_STATE
 * @usage
 * local ok, state = pcall(vcpu.get_nested_state, vcpu)
 * if ok then vcpu:set_nested_state(state) end
 */
static int set_nested_state(lua_State *L)
{
	struct ckvm_vcpu *vcpu = luackvm_check(L, 1, &luackvm_vcpu);
	struct kvm_nested_state header;
	size_t length;
	const char *state = check_block(L, "nested_state", &length);
	int error;

	if (length < sizeof(header))
		return refuse_length(L, "nested_state", sizeof(header), length);
	memcpy(&header, state, sizeof(header));
	if (header.size != length)
		return refuse_length(L, "nested_state", header.size, length);
	error = ckvm_vcpu_set_nested_state(vcpu, (const void *)state);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

const luaL_Reg luackvm_x86_vcpu_methods[] = {
	{ "get_xcrs", get_xcrs },
	{ "set_xcrs", set_xcrs },
	{ "get_lapic", get_lapic },
	{ "set_lapic", set_lapic },
	{ "get_xsave", get_xsave },
	{ "get_xsave2", get_xsave2 },
	{ "set_xsave", set_xsave },
	{ "get_nested_state", get_nested_state },
	{ "set_nested_state", set_nested_state },
	{ NULL, NULL },
};

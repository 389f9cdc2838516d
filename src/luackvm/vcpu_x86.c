/* SPDX-License-Identifier: MIT */
/* State of an x86 vCPU that is got and set whole, beside its views. */
#include <stddef.h>
#include <string.h>

#include "compat.h"
#include "luackvm.h"

LUACKVM_GET_SET(vcpu, fpu)
LUACKVM_GET_SET(vcpu, debugregs)
LUACKVM_GET_SET(vcpu, sregs2)

const struct luackvm_state luackvm_x86_vcpu_states[] = {
	{ "fpu", &luackvm_kvm_fpu, get_fpu, set_fpu },
	{ "debugregs", &luackvm_kvm_debugregs, get_debugregs, set_debugregs },
	{ "sregs2", &luackvm_kvm_sregs2, get_sregs2, set_sregs2 },
	{ .name = NULL },
};

/* xcrs: { flags =, xcrs = { { xcr =, value = }, ... } } ------------------- */

#define F(member) LUACKVM_SCALAR(struct kvm_xcr, member)
static const struct luackvm_field xcr_fields[] = { F(xcr), F(value),
						   LUACKVM_END };
#undef F
static const struct luackvm_struct xcr = { "kvm_xcr", sizeof(struct kvm_xcr),
					   xcr_fields, 0 };

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
	list = luackvm_read_list(L, -1, &xcr, 0, &count);
	if (count > KVM_MAX_XCRS)
		luaL_error(L, "xcrs: %I of them, KVM takes %d",
			   (lua_Integer)count, KVM_MAX_XCRS);
	memcpy(xcrs->xcrs, list, count * sizeof(*xcrs->xcrs));
	xcrs->nr_xcrs = (uint32_t)count;
}

static int set_xcrs(lua_State *L)
{
	static const char *const keys[] = { "flags", "xcrs", NULL };
	struct kvm_xcrs xcrs = { 0 };
	int error;

	error = ckvm_vcpu_get_xcrs(luackvm_check(L, 1, &luackvm_vcpu), &xcrs);
	if (error)
		return luackvm_fail(L, error, NULL);
	luackvm_check_keys(L, 2, "kvm_xcrs", keys);
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

/* What get_xsave or get_xsave2 gave: the rest of a short one is zero. */
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

/* The kernel reads as much as the state says that it has. */
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

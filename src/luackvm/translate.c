/* SPDX-License-Identifier: MIT */
/* Guest memory by virtual address: translate, read, write, read_cstring. */
#include <errno.h>
#include <string.h>

#include <linux/kvm.h>

#include "luackvm.h"

#define PAGE 4096

/***
 * Where an address leads by the vCPU's page tables. Segments are not added.
 *
 * @function vcpu:translate
 * @tparam integer gva linear address
 * @treturn integer|nil guest physical address; nil if it is not mapped
 * @raise `EBUSY` while another thread runs the vCPU
 * @api 4.15 KVM_TRANSLATE
 * @usage
 * assert(vcpu:translate(0x1000) == 0x1000) -- no paging
 */
static int translate(lua_State *L)
{
	struct ckvm_vcpu *vcpu = luackvm_check(L, 1, &luackvm_vcpu);
	struct kvm_translation page = { .linear_address =
						luackvm_arg_address(L, 2) };
	int error = ckvm_vcpu_translate(vcpu, &page);

	if (error)
		return luackvm_fail(L, error, NULL);
	if (page.valid)
		lua_pushinteger(L, (lua_Integer)page.physical_address);
	else
		lua_pushnil(L);
	return 1;
}

/* Which address it was, and what is wrong with it: the step tells. */
static int refuse(lua_State *L, const char *what, uint64_t gva, uint64_t fault,
		  int error)
{
	const char *step = ckvm_errop(), *hint = luackvm_hint(error);
	bool mapped = strcmp(step, "translate");

	if (error != -EFAULT)
		return luackvm_fail(L, error, NULL);
	if (mapped && strcmp(step, "memory"))
		return luackvm_fail(L, error, "%s at %s: %s: %s", what,
				    luackvm_hex(L, gva), luackvm_hex(L, fault),
				    hint);
	return luaL_error(L,
			  mapped ? "%s at %s: %s is mapped to no memory"
				 : "%s at %s: %s is not mapped",
			  what, luackvm_hex(L, gva), luackvm_hex(L, fault));
}

/* Arguments: gva, and a length that does not go beyond the last address. */
static size_t arg_length(lua_State *L, uint64_t gva)
{
	size_t length = luackvm_arg_length(L, 3);

	luaL_argcheck(L, !length || length - 1 <= UINT64_MAX - gva, 3,
		      "beyond the last address");
	return length;
}

/* The bytes from gva to the end of its page, at most `wanted`. */
static size_t rest_of_page(uint64_t gva, size_t wanted)
{
	size_t rest = PAGE - gva % PAGE;

	return rest < wanted ? rest : wanted;
}

/***
 * Reads guest memory as the vCPU sees it, across pages, whatever their
 * protection.
 *
 * @function vcpu:read
 * @tparam integer gva linear address
 * @tparam integer length bytes
 * @treturn string the bytes
 * @raise a string that names the first address which is not mapped, or is
 *  mapped to no memory; `EFAULT` with the address of the page where a file has
 *  become too short
 * @usage
 * local code = vcpu:read(0x1000, 1)
 */
static int read_memory(lua_State *L)
{
	uint64_t gva, fault = 0;
	size_t length, done = 0, part;
	luaL_Buffer buffer;
	int error;

	luackvm_check(L, 1, &luackvm_vcpu);
	gva = luackvm_arg_address(L, 2);
	length = arg_length(L, gva);
	luaL_buffinit(L, &buffer);
	for (; done < length; done += part) {
		char *data = luaL_prepbuffsize(&buffer, PAGE);

		part = rest_of_page(gva + done, length - done);
		error = ckvm_vcpu_read(luackvm_check(L, 1, &luackvm_vcpu),
				       gva + done, data, part, &fault);
		if (error)
			return refuse(L, "read", gva, fault, error);
		luaL_addsize(&buffer, part);
	}
	luaL_pushresult(&buffer);
	return 1;
}

/***
 * Reads up to a zero byte, which is not returned.
 *
 * @function vcpu:read_cstring
 * @tparam integer gva linear address
 * @tparam integer length bytes to look at, at most
 * @treturn string the bytes before it
 * @raise a string if there is none in that many bytes, or as for `vcpu:read`
 * @usage
 * vcpu:write(0x2000, "hello\0")
 * assert(vcpu:read_cstring(0x2000, 100) == "hello")
 */
static int read_cstring(lua_State *L)
{
	uint64_t gva, fault = 0;
	size_t length, done = 0, part;
	luaL_Buffer buffer;
	int64_t found;

	luackvm_check(L, 1, &luackvm_vcpu);
	gva = luackvm_arg_address(L, 2);
	length = arg_length(L, gva);
	luaL_buffinit(L, &buffer);
	for (; done < length; done += part) {
		char *data = luaL_prepbuffsize(&buffer, PAGE);

		part = rest_of_page(gva + done, length - done);
		found = ckvm_vcpu_read_cstring(
			luackvm_check(L, 1, &luackvm_vcpu), gva + done, data,
			part, &fault);
		if (found < 0 && found != -E2BIG)
			return refuse(L, "read_cstring", gva, fault,
				      (int)found);
		luaL_addsize(&buffer, found < 0 ? part : (size_t)found);
		if (found >= 0) {
			luaL_pushresult(&buffer);
			return 1;
		}
	}
	return luaL_error(L, "read_cstring at %s: no zero byte in %I bytes",
			  luackvm_hex(L, gva), (lua_Integer)length);
}

/***
 * Writes guest memory as the vCPU sees it, whatever the protection: all of it,
 * or none, but for files as with `vm:write`.
 *
 * @function vcpu:write
 * @tparam integer gva linear address
 * @tparam string bytes to write
 * @raise as `vcpu:read`; `EFAULT`, too, for a file that is shared and readonly
 * @usage
 * vcpu:write(0x2000, "\x90")
 */
static int write_memory(lua_State *L)
{
	struct ckvm_vcpu *vcpu = luackvm_check(L, 1, &luackvm_vcpu);
	uint64_t gva = luackvm_arg_address(L, 2), fault = 0;
	const char *data;
	size_t length;
	int error;

	luaL_checktype(L, 3, LUA_TSTRING); /* a number is no byte */
	data = lua_tolstring(L, 3, &length);
	error = ckvm_vcpu_write(vcpu, gva, data, length, &fault);
	return error ? refuse(L, "write", gva, fault, error) : 0;
}

const luaL_Reg luackvm_translate_vcpu_methods[] = {
	{ "translate", translate },
	{ "read", read_memory },
	{ "read_cstring", read_cstring },
	{ "write", write_memory },
	{ NULL, NULL },
};

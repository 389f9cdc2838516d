/* SPDX-License-Identifier: MIT */
/* The host's access to guest memory: bytes, numbers, and taking it away. */
#include <errno.h>
#include <string.h>

#include "luackvm.h"

static int no_memory(lua_State *L, const char *what, uint64_t gpa,
		     size_t length, uint64_t fault)
{
	return luaL_error(L, "%s of %I bytes at %s: no memory at %s", what,
			  (lua_Integer)length, luackvm_hex(L, gpa),
			  luackvm_hex(L, fault));
}

static int refuse(lua_State *L, const char *what, uint64_t gpa, size_t length,
		  int error)
{
	uint64_t fault = ckvm_fault_gpa();
	const char *hint = luackvm_hint(error);

	if (error != -EFAULT)
		return luackvm_fail(L, error, NULL);
	if (!strcmp(ckvm_errop(), "memory"))
		return no_memory(L, what, gpa, length, fault);
	return luackvm_fail(L, error, "%s of %I bytes at %s: %s: %s", what,
			    (lua_Integer)length, luackvm_hex(L, gpa),
			    luackvm_hex(L, fault), hint);
}

/***
 * Reads guest memory by physical address, across slots that follow one another.
 *
 * @function vm:read
 * @tparam integer gpa guest physical address
 * @tparam integer length bytes
 * @treturn string the bytes
 * @raise a string that names the first address without memory; `EFAULT` with
 *  the address from which on a file has become too short
 * @usage
 * local code = vm:read(0x1000, 3)
 */
int luackvm_read(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	uint64_t gpa = luackvm_arg_address(L, 2);
	size_t length = luackvm_arg_length(L, 3);
	uint64_t found = ckvm_vm_extent(vm, gpa);
	luaL_Buffer buffer;
	char *data;
	int error;

	/* Before room is made for it: a length may be anything. */
	if (found < length) {
		error = ckvm_vm_read(vm, gpa, NULL, 0);
		return error ? luackvm_fail(L, error, NULL)
			     : no_memory(L, "read", gpa, length, gpa + found);
	}
	data = luaL_buffinitsize(L, &buffer, length);
	error = ckvm_vm_read(vm, gpa, data, length);
	if (error)
		return refuse(L, "read", gpa, length, error);
	luaL_pushresultsize(&buffer, length);
	return 1;
}

/***
 * Writes guest memory by physical address: all of it, or none, but for a file
 * that has become too short, which gets what is before its end.
 *
 * @function vm:write
 * @tparam integer gpa guest physical address
 * @tparam string bytes to write
 * @raise a string that names the first address without memory; `EFAULT` with
 *  the address from which on a file has become too short, or for a file that is
 *  shared and readonly
 * @usage
 * vm:write(0x1000, "\xf4") -- hlt
 */
int luackvm_write(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	uint64_t gpa = luackvm_arg_address(L, 2);
	const char *data;
	size_t length;
	int error;

	luaL_checktype(L, 3, LUA_TSTRING); /* a number is no byte */
	data = lua_tolstring(L, 3, &length);
	error = ckvm_vm_write(vm, gpa, data, length);

	return error ? refuse(L, "write", gpa, length, error) : 0;
}

/***
 * Fills guest memory with one byte.
 *
 * @function vm:fill
 * @tparam integer gpa guest physical address
 * @tparam integer length bytes
 * @tparam[opt=0] integer byte value from 0 to 255
 * @raise as `vm:write`
 * @usage
 * vm:fill(0x2000, 0x1000)
 */
int luackvm_fill_memory(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	uint64_t gpa = luackvm_arg_address(L, 2);
	size_t length = luackvm_arg_length(L, 3);
	lua_Integer byte = luaL_opt(L, luackvm_arg_integer, 4, 0);
	int error;

	luaL_argcheck(L, byte >= 0 && byte <= 255, 4, "not a byte");
	error = ckvm_vm_fill(vm, gpa, (uint8_t)byte, length);
	return error ? refuse(L, "fill", gpa, length, error) : 0;
}

/***
 * Takes the guest's mappings of pages away, as the host does when it swaps or
 * migrates them: the next access maps them again, and finds what was there. A
 * vCPU that reads memory which is not `shared` at that very moment, of this VM
 * or of another that has the memory, may fail with `EFAULT`, or exit with
 * `memory_fault`. It has done nothing then: run it again.
 *
 * @function vm:zap_memory
 * @tparam integer gpa guest physical address, page-aligned
 * @tparam integer size bytes, whole pages
 * @raise `EINVAL` for a part of a huge page, and for a guest_memfd's pages; a
 *  string that names the first address without memory
 * @c ckvm_vm_zap_memory
 * @usage
 * vm:zap_memory(0x1000, 0x1000)
 */
int luackvm_zap_memory(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	uint64_t gpa = luackvm_arg_address(L, 2);
	size_t size = luackvm_arg_length(L, 3);
	int error;

	luackvm_check_pages(L, "gpa", gpa);
	luackvm_check_pages(L, "size", size);
	luaL_argcheck(L, size, 3, "no pages");
	error = ckvm_vm_zap_memory(vm, gpa, size);
	return error ? refuse(L, "zap", gpa, size, error) : 0;
}

static int read_number(lua_State *L, size_t size)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	uint64_t gpa = luackvm_arg_address(L, 2), value = 0;
	int error = ckvm_vm_read(vm, gpa, &value, size);

	if (error)
		return refuse(L, "read", gpa, size, error);
	lua_pushinteger(L, (lua_Integer)value);
	return 1;
}

/* Signed and unsigned values of that size, and nothing larger. */
static int write_number(lua_State *L, size_t size)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	uint64_t gpa = luackvm_arg_address(L, 2);
	lua_Integer value = luackvm_arg_integer(L, 3);
	int bits = (int)size * 8, error;

	if (bits < 64)
		luaL_argcheck(L,
			      value >= -((lua_Integer)1 << (bits - 1)) &&
				      value < (lua_Integer)1 << bits,
			      3,
			      lua_pushfstring(L, "%I does not fit in %d bits",
					      value, bits));
	error = ckvm_vm_write(vm, gpa, &value, size);
	return error ? refuse(L, "write", gpa, size, error) : 0;
}

/***
 * Reads an unsigned little-endian integer of 8, 16, 32 or 64 bits.
 *
 * @function vm:read_u8, vm:read_u16, vm:read_u32, vm:read_u64
 * @tparam integer gpa guest physical address
 * @treturn integer the value; 64 bits print unsigned with %x
 * @raise a string that names the first address without memory
 * @c ckvm_vm_read
 * @usage
 * print(("0x%x"):format(vm:read_u32(0x1000)))
 */

/***
 * Writes a little-endian integer of 8, 16, 32 or 64 bits.
 *
 * @function vm:write_u8, vm:write_u16, vm:write_u32, vm:write_u64
 * @tparam integer gpa guest physical address
 * @tparam integer value signed or unsigned, of that many bits
 * @raise a string that names the first address without memory, or says that the
 *  value does not fit
 * @c ckvm_vm_write
 * @usage
 * vm:write_u16(0x1000, 0xaa55)
 */
#define ACCESSORS(bits)                             \
	int luackvm_read_u##bits(lua_State *L)      \
	{                                           \
		return read_number(L, (bits) / 8);  \
	}                                           \
	int luackvm_write_u##bits(lua_State *L)     \
	{                                           \
		return write_number(L, (bits) / 8); \
	}

ACCESSORS(8)
ACCESSORS(16)
ACCESSORS(32)
ACCESSORS(64)

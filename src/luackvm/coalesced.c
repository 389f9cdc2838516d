/* SPDX-License-Identifier: MIT */
/* register_coalesced_mmio: zones whose writes the kernel queues. */
#include "luackvm.h"

static void read_zone(lua_State *L, struct kvm_coalesced_mmio_zone *zone)
{
	if (luackvm_has(L, 2, "port") == luackvm_has(L, 2, "gpa"))
		luaL_error(L, "one of 'port' and 'gpa' is needed");
	zone->pio = luackvm_has(L, 2, "port");
	zone->addr =
		zone->pio ? (uint64_t)luackvm_integer(L, 2, "port", 0, 0xffff)
			  : luackvm_address(L, 2, "gpa");
	zone->size = (uint32_t)luackvm_integer(L, 2, "size", 1, UINT32_MAX);
}

/***
 * Has the kernel queue the guest's writes to some ports or addresses: they come
 * with the next exit, without a vCPU, to whoever answers them there. A range
 * with `batch` has this by itself.
 *
 * @function vm:register_coalesced_mmio
 * @tparam table options
 * @tparam[opt] integer options.port number of the first port; this, or
 * @tparam[opt] integer options.gpa guest physical address
 * @tparam integer options.size how many ports, or bytes
 * @raise `EEXIST` where a range has `batch`, `ENOTSUP` where KVM cannot queue
 * @api 4.116 KVM_REGISTER_COALESCED_MMIO
 * @c ckvm_vm_register_coalesced_mmio
 * @usage
 * vm:register_coalesced_mmio { gpa = 0xd0000000, size = 0x1000 }
 */
static int register_coalesced_mmio(lua_State *L)
{
	static const char *const keys[] = { "port", "gpa", "size", NULL };
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_coalesced_mmio_zone zone = { 0 };
	int error;

	luackvm_check_keys(L, 2, "register_coalesced_mmio", keys);
	read_zone(L, &zone);
	error = ckvm_vm_register_coalesced_mmio(vm, &zone);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/***
 * Ends that, for every registration that holds these. What is queued still
 * comes.
 *
 * @function vm:unregister_coalesced_mmio
 * @tparam table options
 * @tparam[opt] integer options.port number of the first port; this, or
 * @tparam[opt] integer options.gpa guest physical address
 * @tparam integer options.size how many ports, or bytes
 * @raise `EEXIST` where a range has `batch`, `ENOTSUP` where KVM cannot queue
 * @api 4.116 KVM_UNREGISTER_COALESCED_MMIO
 * @c ckvm_vm_unregister_coalesced_mmio
 * @usage
 * vm:unregister_coalesced_mmio { gpa = 0xd0000000, size = 0x1000 }
 */
static int unregister_coalesced_mmio(lua_State *L)
{
	static const char *const keys[] = { "port", "gpa", "size", NULL };
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_coalesced_mmio_zone zone = { 0 };
	int error;

	luackvm_check_keys(L, 2, "unregister_coalesced_mmio", keys);
	read_zone(L, &zone);
	error = ckvm_vm_unregister_coalesced_mmio(vm, &zone);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

const luaL_Reg luackvm_coalesced_vm_methods[] = {
	{ "register_coalesced_mmio", register_coalesced_mmio },
	{ "unregister_coalesced_mmio", unregister_coalesced_mmio },
	{ NULL, NULL },
};

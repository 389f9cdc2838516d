/* SPDX-License-Identifier: MIT */
/*
 * Memory as the kernel has it: slots, guest_memfds, whose pages they are. Where
 * the kernel takes an address of the host, a script has memory and an offset.
 */
#include <errno.h>
#include <string.h>

#include "compat.h"
#include "luackvm.h"

/* Slots ------------------------------------------------------------------- */

static const struct luackvm_constant region_flags[] = {
	{ "log_dirty_pages", KVM_MEM_LOG_DIRTY_PAGES },
	{ "readonly", KVM_MEM_READONLY },
	{ "guest_memfd", KVM_MEM_GUEST_MEMFD },
	{ NULL, 0 },
};

static uint64_t read_field(lua_State *L, const char *key)
{
	return luackvm_has(L, 2, key) ? luackvm_address(L, 2, key) : 0;
}

static void read_region(lua_State *L,
			struct kvm_userspace_memory_region2 *region)
{
	region->slot = (uint32_t)luackvm_integer(L, 2, "slot", 0, UINT32_MAX);
	if (luackvm_get(L, 2, "flags") != LUA_TNIL)
		region->flags = luackvm_flags(L, -1, "flags", region_flags);
	lua_pop(L, 1);
	region->guest_phys_addr = read_field(L, "guest_phys_addr");
	region->memory_size = luackvm_address(L, 2, "memory_size");
	region->userspace_addr = read_field(L, "offset");
	region->guest_memfd_offset = read_field(L, "guest_memfd_offset");
}

/* The object that the option is; NULL if it is not there. */
static void *read_object(lua_State *L, const char *key,
			 const struct luackvm_type *type)
{
	struct luackvm_box *box;

	if (luackvm_get(L, 2, key) == LUA_TNIL) {
		lua_pop(L, 1);
		return NULL;
	}
	box = luackvm_test(L, -1, type);
	if (!box)
		luaL_error(L, "%s: %s expected, got %s", key, type->name,
			   luaL_typename(L, -1));
	lua_pop(L, 1);
	return luackvm_open_object(L, box);
}

struct ckvm_memory *luackvm_memory_option(lua_State *L, const char *key)
{
	return read_object(L, key, &luackvm_memory);
}

struct ckvm_guest_memfd *luackvm_guest_memfd_option(lua_State *L,
						    const char *key)
{
	return read_object(L, key, &luackvm_guest_memfd);
}

static int fail_region(lua_State *L, int error,
		       const struct kvm_userspace_memory_region2 *region)
{
	if (error == -ERANGE)
		return luackvm_fail(L, error,
				    "the memory is shorter than %s bytes from "
				    "%s on",
				    luackvm_hex(L, region->memory_size),
				    luackvm_hex(L, region->userspace_addr));
	return luackvm_fail(L, error, NULL);
}

/* What is to stand behind the guest's addresses must be somebody's. */
static struct ckvm_memory *
read_memory(lua_State *L, const struct kvm_userspace_memory_region2 *region)
{
	struct ckvm_memory *memory = luackvm_memory_option(L, "memory");

	if (region->memory_size && !memory)
		luaL_error(L, "memory: needed, unless memory_size is 0");
	if (!region->memory_size)
		return NULL;
	return memory;
}

/* The slot is gone from the VM at 1: what add_memory made of it is closed. */
static void close_slot(lua_State *L, uint32_t slot)
{
	lua_getiuservalue(L, 1, VM_CHILDREN);
	if (!lua_istable(L, -1))
		return;
	for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
		struct luackvm_box *box = luackvm_test(L, -2, &luackvm_memory);

		if (!box || !box->object ||
		    ckvm_memory_slot(box->object) != slot)
			continue;
		luackvm_release(box);
		luackvm_disown(L, 1, -2);
	}
}

/***
 * A slot as the kernel has it: new, moved, with other flags, or deleted. What
 * stands behind the guest's addresses is memory that is there already, for as
 * long as the slot is.
 *
 * @function vm:set_user_memory_region
 * @tparam table options
 * @tparam integer options.slot number
 * @tparam[opt] string[]|integer options.flags bits, or names:
 * "log_dirty_pages", "readonly"
 * @tparam[opt=0] integer options.guest_phys_addr guest physical address,
 *  page-aligned
 * @tparam integer options.memory_size bytes, whole pages; 0 deletes the slot,
 *  and closes the memory that `vm:add_memory` has put there
 * @tparam[opt] memory options.memory whose bytes the slot shows; not when it is
 *  deleted
 * @tparam[opt=0] integer options.offset bytes into that memory, whole pages
 * @raise `EEXIST` if it overlaps a slot, `EINVAL` for what the kernel does not
 *  take, `ERANGE` if the memory is too short
 * @api 4.35 KVM_SET_USER_MEMORY_REGION
 * @usage
 * local ram = vm:add_memory { gpa = 0x100000, size = 0x2000 }
 * vm:set_user_memory_region { slot = 9, guest_phys_addr = 0x200000,
 *   memory_size = 0x1000, memory = ram, offset = 0x1000 }
 * vm:write(0x101000, "the same page")
 * assert(vm:read(0x200000, 13) == "the same page")
 */
static int set_user_memory_region(lua_State *L)
{
	static const char *const keys[] = {
		"slot",	  "flags", "guest_phys_addr", "memory_size", "memory",
		"offset", NULL
	};
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_userspace_memory_region2 region = { 0 };
	struct kvm_userspace_memory_region first;
	struct ckvm_memory *memory;
	int error;

	luackvm_check_keys(L, 2, "set_user_memory_region", keys);
	read_region(L, &region);
	memory = read_memory(L, &region);
	memcpy(&first, &region, sizeof(first));
	error = ckvm_vm_set_user_memory_region(vm, &first, memory);
	if (error)
		return fail_region(L, error, &region);
	if (!region.memory_size)
		close_slot(L, region.slot);
	return 0;
}

/***
 * The same, with pages that the guest has to itself.
 *
 * @function vm:set_user_memory_region2
 * @tparam table options
 * @tparam integer options.slot number
 * @tparam[opt] string[]|integer options.flags bits, or names:
 * "log_dirty_pages", "readonly", "guest_memfd"
 * @tparam[opt=0] integer options.guest_phys_addr guest physical address,
 *  page-aligned
 * @tparam integer options.memory_size bytes, whole pages; 0 deletes the slot
 * @tparam[opt] memory options.memory whose bytes the slot shows; not when it is
 *  deleted
 * @tparam[opt=0] integer options.offset bytes into that memory, whole pages
 * @tparam[opt] guest_memfd options.guest_memfd of this VM; sets its flag
 * @tparam[opt=0] integer options.guest_memfd_offset bytes into it, whole pages
 * @raise as `vm:set_user_memory_region`; `ENOTTY` before Linux 6.8
 * @api 4.140 KVM_SET_USER_MEMORY_REGION2
 * @usage
 * local ram = vm:add_memory { gpa = 0x100000, size = 0x1000 }
 * vm:set_user_memory_region2 { slot = 9, guest_phys_addr = 0x200000,
 *   memory_size = 0x1000, memory = ram }
 */
static int set_user_memory_region2(lua_State *L)
{
	static const char *const keys[] = {
		"slot",	  "flags",  "guest_phys_addr", "memory_size",
		"memory", "offset", "guest_memfd",     "guest_memfd_offset",
		NULL
	};
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_userspace_memory_region2 region = { 0 };
	struct ckvm_guest_memfd *memfd;
	struct ckvm_memory *memory;
	int error;

	luackvm_check_keys(L, 2, "set_user_memory_region2", keys);
	read_region(L, &region);
	memory = read_memory(L, &region);
	memfd = luackvm_guest_memfd_option(L, "guest_memfd");
	if (memfd) {
		region.flags |= KVM_MEM_GUEST_MEMFD;
		region.guest_memfd = (uint32_t)ckvm_guest_memfd_fd(memfd);
	} else if (region.flags & KVM_MEM_GUEST_MEMFD) {
		return luaL_error(L, "guest_memfd: needed with that flag");
	}
	error = ckvm_vm_set_user_memory_region2(vm, &region, memory);
	if (error)
		return fail_region(L, error, &region);
	if (!region.memory_size)
		close_slot(L, region.slot);
	return 0;
}

/* guest_memfd ------------------------------------------------------------- */

static const struct luackvm_constant memfd_flags[] = {
	{ "mmap", GUEST_MEMFD_FLAG_MMAP },
	{ "init_shared", GUEST_MEMFD_FLAG_INIT_SHARED },
	{ NULL, 0 },
};

/***
 * Makes pages for the memory of this VM, of which the guest may have some to
 * itself (capability `guest_memfd`).
 *
 * @function vm:create_guest_memfd
 * @tparam table options
 * @tparam integer options.size bytes, whole pages
 * @tparam[opt] string[]|integer options.flags bits, or names: "mmap",
 *  "init_shared"
 * @treturn guest_memfd an object for `vm:add_memory`
 * @raise `ENOTTY` before Linux 6.8; `EINVAL` for a size that is not whole
 * pages, or flags that this KVM does not know
 * @api 4.142 KVM_CREATE_GUEST_MEMFD
 * @usage
 * local pages = vm:create_guest_memfd { size = 0x10000 }
 * print(pages.size)
 */
static int create_guest_memfd(lua_State *L)
{
	static const char *const keys[] = { "size", "flags", NULL };
	struct kvm_create_guest_memfd args = { 0 };
	struct ckvm_guest_memfd *memfd;
	struct luackvm_box *box;
	bool tried = false;
	int error;

	luackvm_check(L, 1, &luackvm_vm);
	luackvm_check_keys(L, 2, "create_guest_memfd", keys);
	lua_settop(L, 2);
	args.size = luackvm_address(L, 2, "size");
	if (luackvm_get(L, 2, "flags") != LUA_TNIL)
		args.flags = luackvm_flags(L, -1, "flags", memfd_flags);
	box = luackvm_new_box(L, &luackvm_guest_memfd);
	do
		error = ckvm_vm_create_guest_memfd(
			luackvm_check(L, 1, &luackvm_vm), &args, &memfd);
	while (error && luackvm_retry(L, error, &tried));
	if (error)
		return luackvm_fail(L, error, NULL);
	luackvm_fill(L, box, memfd, true);
	lua_pushvalue(L, 1);
	lua_setiuservalue(L, -2, 1);
	luackvm_adopt(L, 1);
	return 1;
}

/***
 * Pages for memory of a VM: `vm:create_guest_memfd` makes them. Memory that is
 * made of them keeps them, though the object is closed.
 *
 * @type guest_memfd
 * @tfield integer fd number of the descriptor, which is the object's
 * @tfield integer size bytes
 * @tfield integer flags bits that it was made with
 * @tfield vm vm that it belongs to
 */

static void ref(void *object)
{
	ckvm_guest_memfd_ref(object);
}

static void unref(void *object)
{
	ckvm_guest_memfd_unref(object);
}

static void end(void *object)
{
	ckvm_guest_memfd_close(object);
}

static int close_memfd(lua_State *L)
{
	luackvm_release(lua_touserdata(L, 1));
	if (lua_getiuservalue(L, 1, 1) == LUA_TUSERDATA)
		luackvm_disown(L, 2, 1);
	return 0;
}

static void push_fd(lua_State *L, struct luackvm_box *box)
{
	lua_pushinteger(L, ckvm_guest_memfd_fd(luackvm_open_object(L, box)));
}

static void push_size(lua_State *L, struct luackvm_box *box)
{
	uint64_t size = ckvm_guest_memfd_size(luackvm_open_object(L, box));

	lua_pushinteger(L, (lua_Integer)size);
}

static void push_flags(lua_State *L, struct luackvm_box *box)
{
	uint64_t flags = ckvm_guest_memfd_flags(luackvm_open_object(L, box));

	lua_pushinteger(L, (lua_Integer)flags);
}

static void push_vm(lua_State *L, struct luackvm_box *box)
{
	(void)box;
	lua_getiuservalue(L, 1, 1);
}

static const struct luackvm_property properties[] = {
	{ "fd", push_fd }, { "size", push_size }, { "flags", push_flags },
	{ "vm", push_vm }, { NULL, NULL },
};

const struct luackvm_type luackvm_guest_memfd = {
	.name = "guest_memfd",
	.properties = properties,
	.ref = ref,
	.unref = unref,
	.end = end,
	.close = close_memfd,
	.values = 1,
};

/* Pages ------------------------------------------------------------------- */

/***
 * Says of pages what the guest has to itself (capability `memory_attributes`).
 *
 * @state vm:memory_attributes kvm_memory_attributes
 * @raise `ENOTTY` where the KVM has none, `EINVAL` for those it does not know
 * @api 4.141 KVM_SET_MEMORY_ATTRIBUTES
 * @usage
 * pcall(vm.set_memory_attributes, vm,
 *   { address = 0, size = 0x1000, attributes = "private" })
 */
/***
 * Of what pages, and what.
 *
 * @struct kvm_memory_attributes
 * @tfield integer address guest physical address, page-aligned
 * @tfield integer size bytes, whole pages
 * @tfield string[]|integer attributes bits, or names: "private"
 * @tfield integer flags bits, 0
 */
LUACKVM_SET(vm, memory_attributes)

static const struct luackvm_constant attribute_names[] = {
	{ "private", KVM_MEMORY_ATTRIBUTE_PRIVATE },
	{ NULL, 0 },
};

#define F(member) LUACKVM_SCALAR(struct kvm_memory_attributes, member)
static const struct luackvm_field attribute_fields[] = {
	F(address),
	F(size),
	{ .name = "attributes",
	  .offset = offsetof(struct kvm_memory_attributes, attributes),
	  .size = LUACKVM_SIZE(struct kvm_memory_attributes, attributes),
	  .names = attribute_names },
	F(flags),
	LUACKVM_END,
};
#undef F
static const struct luackvm_struct attributes = {
	"kvm_memory_attributes", sizeof(struct kvm_memory_attributes),
	attribute_fields, 0
};

const struct luackvm_state luackvm_region_vm_states[] = {
	{ "memory_attributes", &attributes, NULL, set_memory_attributes },
	{ .name = NULL },
};

/***
 * Has the pages at hand before the guest touches them (capability
 * `pre_fault_memory`).
 *
 * @function vcpu:pre_fault_memory
 * @tparam table options
 * @tparam integer options.gpa guest physical address, page-aligned
 * @tparam integer options.size bytes, whole pages
 * @tparam[opt=0] integer options.flags bits, 0
 * @raise `EOPNOTSUPP`, before Linux 6.11 `EINVAL`, where the KVM cannot;
 * `ENOENT` where there is no memory
 * @api 4.143 KVM_PRE_FAULT_MEMORY
 * @usage
 * pcall(vcpu.pre_fault_memory, vcpu, { gpa = 0, size = 0x1000 })
 */
static int pre_fault_memory(lua_State *L)
{
	static const char *const keys[] = { "gpa", "size", "flags", NULL };
	struct ckvm_vcpu *vcpu = luackvm_check(L, 1, &luackvm_vcpu);
	struct kvm_pre_fault_memory range = { 0 };
	int error;

	luackvm_check_keys(L, 2, "pre_fault_memory", keys);
	range.gpa = luackvm_address(L, 2, "gpa");
	range.size = luackvm_address(L, 2, "size");
	range.flags = read_field(L, "flags");
	error = ckvm_vcpu_pre_fault_memory(vcpu, &range);
	if (!error)
		return 0;
	return luackvm_fail(L, error, "%s bytes at %s: %s",
			    luackvm_hex(L, range.size),
			    luackvm_hex(L, range.gpa), luackvm_hint(error));
}

/***
 * Sets how many pages the KVM may take for its shadow page tables.
 *
 * @function vm:set_nr_mmu_pages
 * @tparam integer count how many
 * @raise `EINVAL` for fewer than the kernel's least
 * @api - KVM_SET_NR_MMU_PAGES
 * @usage
 * vm:set_nr_mmu_pages(1000)
 */
static int set_nr_mmu_pages(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	lua_Integer count = luackvm_arg_integer(L, 2);
	int error;

	luaL_argcheck(L, count >= 0, 2, "a negative count");
	error = ckvm_vm_set_nr_mmu_pages(vm, (unsigned long)count);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/***
 * Its get, which new kernels have no more.
 *
 * @function vm:get_nr_mmu_pages
 * @treturn integer how many
 * @raise `ENOTTY` from Linux 6.8 on
 * @api - KVM_GET_NR_MMU_PAGES
 * @usage
 * print(pcall(vm.get_nr_mmu_pages, vm))
 */
static int get_nr_mmu_pages(lua_State *L)
{
	int count = ckvm_vm_get_nr_mmu_pages(luackvm_check(L, 1, &luackvm_vm));

	if (count < 0)
		return luackvm_fail(L, count, NULL);
	lua_pushinteger(L, count);
	return 1;
}

const luaL_Reg luackvm_region_vm_methods[] = {
	{ "set_user_memory_region", set_user_memory_region },
	{ "set_user_memory_region2", set_user_memory_region2 },
	{ "create_guest_memfd", create_guest_memfd },
	{ "set_nr_mmu_pages", set_nr_mmu_pages },
	{ "get_nr_mmu_pages", get_nr_mmu_pages },
	{ NULL, NULL },
};

const luaL_Reg luackvm_region_vcpu_methods[] = {
	{ "pre_fault_memory", pre_fault_memory },
	{ NULL, NULL },
};

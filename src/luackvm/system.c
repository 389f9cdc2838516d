/* SPDX-License-Identifier: MIT */
/* ckvm.open() and the methods of what it returns: /dev/kvm. */
#include <errno.h>

#include "luackvm.h"

/* What ckvm.open and ckvm.from_fd have in common, of the table at 1. */
static void read_options(lua_State *L, const char *who, const char *first,
			 struct ckvm_options *options)
{
	const char *const keys[] = { first, "sync_regs", "cloexec", NULL };

	luackvm_check_keys(L, 1, who, keys);
	if (luackvm_has(L, 1, "sync_regs") && !luackvm_flag(L, 1, "sync_regs"))
		options->flags |= CKVM_NO_SYNC_REGS;
	if (luackvm_has(L, 1, "cloexec") && !luackvm_flag(L, 1, "cloexec"))
		options->flags |= CKVM_NO_CLOEXEC;
	luackvm_get(L, 1, first);
	lua_replace(L, 1);
}

/* Of the path, or else of the descriptor; pushes the object. */
static int open_kvm(lua_State *L, struct ckvm_options *options, int fd,
		    const char *what)
{
	struct ckvm_lua *lua = ckvm_lua_get(L);
	struct luackvm_box *box = luackvm_new_box(L, &luackvm_system);
	struct ckvm *kvm;
	bool tried = false;
	int error;

	if (lua->hooked)
		options->hook = &lua->hook;
	do
		error = options->path ? ckvm_open(options, &kvm)
				      : ckvm_from_fd(fd, options, &kvm);
	while (error && luackvm_retry(L, error, &tried));
	if (error)
		return luackvm_fail(L, error, "%s: %s", what,
				    luackvm_hint(error));
	luackvm_fill(L, box, kvm, true);
	return 1;
}

/***
 * Opens KVM. In the place of the table, a string is the path.
 *
 * @function ckvm.open
 * @tparam[opt] table|string options
 * @tparam[opt="/dev/kvm"] string options.path of the device
 * @tparam[opt=true] boolean options.sync_regs false: registers by ioctl, where
 *  they could be had from the page shared with the kernel
 * @tparam[opt=true] boolean options.cloexec false: the descriptor outlives exec
 * @treturn kvm the system
 * @raise `ENOENT`, `EACCES`, `ENXIO` and `ENODEV` with a hint at what to do;
 *  `ENOTTY` if the file is no KVM, `ENOTSUP` if its API version is not 12
 * @usage
 * local kvm <close> = ckvm.open()
 */
int luackvm_open(lua_State *L)
{
	struct ckvm_options options = { .size = sizeof(options) };

	if (lua_istable(L, 1))
		read_options(L, "open", "path", &options);
	lua_settop(L, 1);
	options.path =
		lua_isnil(L, 1) ? "/dev/kvm" : luackvm_text(L, 1, "path");
	if (!*options.path)
		return luaL_error(L, "path: an empty string names no device");
	return open_kvm(L, &options, -1, options.path);
}

int luackvm_arg_fd(lua_State *L, int arg)
{
	lua_Integer fd = luackvm_to_integer(L, arg, "fd");

	if (fd < 0 || fd > INT32_MAX)
		luaL_error(L, "fd: %I is no descriptor", fd);
	return (int)fd;
}

/***
 * The same of a descriptor from elsewhere: inherited, or received from another
 * process. It is duplicated. In the place of the table, a number is the
 * descriptor.
 *
 * @function ckvm.from_fd
 * @tparam table|integer options
 * @tparam integer options.fd number of the descriptor
 * @tparam[opt=true] boolean options.sync_regs as for `ckvm.open`
 * @tparam[opt=true] boolean options.cloexec as for `ckvm.open`
 * @treturn kvm the system
 * @raise `EBADF`; `ENOTTY` or `EINVAL` if it is not a KVM's
 * @usage
 * local same <close> = ckvm.from_fd(kvm.fd)
 */
int luackvm_from_fd(lua_State *L)
{
	struct ckvm_options options = { .size = sizeof(options) };
	int fd;

	if (lua_istable(L, 1))
		read_options(L, "from_fd", "fd", &options);
	lua_settop(L, 1);
	fd = luackvm_arg_fd(L, 1);
	return open_kvm(L, &options, fd,
			lua_pushfstring(L, "descriptor %d", fd));
}

/***
 * The system, /dev/kvm: `ckvm.open` returns it.
 *
 * @type kvm
 * @tfield integer fd number of the descriptor, which is the object's
 */

static void end(void *object)
{
	ckvm_close(object);
}

static int push_count(lua_State *L, int result)
{
	if (result < 0)
		return luackvm_fail(L, result, NULL);
	lua_pushinteger(L, result);
	return 1;
}

/***
 * The version of KVM's API, which is 12.
 *
 * @function kvm:get_api_version
 * @treturn integer the version's number
 * @raise what the kernel says
 * @api 4.1 KVM_GET_API_VERSION
 * @usage
 * assert(kvm:get_api_version() == 12)
 */
static int get_api_version(lua_State *L)
{
	return push_count(
		L, ckvm_get_api_version(luackvm_check(L, 1, &luackvm_system)));
}

/***
 * The size of what each vCPU shares with the kernel; ckvm maps it by itself.
 *
 * @function kvm:get_vcpu_mmap_size
 * @treturn integer bytes
 * @raise what the kernel says
 * @api 4.5 KVM_GET_VCPU_MMAP_SIZE
 * @usage
 * print(kvm:get_vcpu_mmap_size())
 */
static int get_vcpu_mmap_size(lua_State *L)
{
	return push_count(L, ckvm_get_vcpu_mmap_size(
				     luackvm_check(L, 1, &luackvm_system)));
}

/***
 * What this KVM says of a capability: 0 if it has not got it, 1 or a number of
 * the capability's own if it has.
 *
 * @function kvm:check_extension
 * @tparam string|integer capability the kernel's name in lower case without
 *  KVM_CAP_, or its number
 * @treturn integer 0, 1 or a number whose meaning is the capability's
 * @raise what the kernel says; a name that ckvm does not know is misuse
 * @api 4.4 KVM_CHECK_EXTENSION
 * @usage
 * if kvm:check_extension "readonly_mem" > 0 then print "ROM" end
 */
static int check_extension(lua_State *L)
{
	struct ckvm *kvm = luackvm_check(L, 1, &luackvm_system);

	return push_count(L, ckvm_check_extension(kvm, luackvm_arg_cap(L, 2)));
}

unsigned int luackvm_arg_cap(lua_State *L, int arg)
{
	lua_Integer number;
	const char *name;

	if (lua_type(L, arg) == LUA_TNUMBER) {
		number = luaL_checkinteger(L, arg);
		luaL_argcheck(L, number >= 0 && number <= INT32_MAX, arg,
			      "not a capability's number");
		return (unsigned int)number;
	}
	name = luackvm_text(L, arg, "capability");
	number = ckvm_cap_number(name);
	if (number < 0)
		luackvm_unknown(L, arg, "capability", "KVM_CAP_",
				ckvm_cap_number);
	return (unsigned int)number;
}

/***
 * All capabilities that this KVM has.
 *
 * @function kvm:capabilities
 * @treturn table what `kvm:check_extension` says, by name; none that is 0
 * @raise what the kernel says
 * @api 4.4 KVM_CHECK_EXTENSION
 * @c ckvm_check_extension
 * @usage
 * for name, value in pairs(kvm:capabilities()) do print(name, value) end
 */
static int capabilities(lua_State *L)
{
	const char *name;
	int value;

	luackvm_check(L, 1, &luackvm_system);
	lua_newtable(L);
	for (unsigned int cap = 0; cap < CKVM_CAPS; cap++) {
		name = ckvm_cap_name(cap);
		if (!name)
			continue;
		/* Tables and strings are made in between: it may be closed. */
		value = ckvm_check_extension(
			luackvm_check(L, 1, &luackvm_system), cap);
		if (value < 0)
			return luackvm_fail(L, value, NULL);
		lua_pushinteger(L, value);
		if (value)
			lua_setfield(L, -2, name);
		else
			lua_pop(L, 1);
	}
	return 1;
}

/***
 * Creates a virtual machine, with no memory and no vCPU.
 *
 * @function kvm:create_vm
 * @tparam[opt] table options
 * @tparam[opt=0] integer options.type number of the VM type, 0 but for
 *  protected guests
 * @treturn vm the VM
 * @raise `EINVAL` for a type that this KVM has not got, `EMFILE`, `ENOMEM`
 * @api 4.2 KVM_CREATE_VM
 * @usage
 * local vm <close> = kvm:create_vm()
 */
static int create_vm(lua_State *L)
{
	static const char *const keys[] = { "type", NULL };
	unsigned long type = 0;
	struct luackvm_box *box;
	struct ckvm_vm *vm;
	bool tried = false;
	int error;

	luackvm_check(L, 1, &luackvm_system);
	if (!lua_isnoneornil(L, 2)) {
		luackvm_check_keys(L, 2, "create_vm", keys);
		if (luackvm_has(L, 2, "type"))
			type = (unsigned long)luackvm_integer(L, 2, "type", 0,
							      LUA_MAXINTEGER);
	}
	box = luackvm_new_box(L, &luackvm_vm);
	do
		error = ckvm_create_vm(luackvm_check(L, 1, &luackvm_system),
				       type, &vm);
	while (error && luackvm_retry(L, error, &tried));
	if (error == -EINVAL)
		return luackvm_fail(L, error, "no VM type %I on this KVM",
				    (lua_Integer)type);
	if (error)
		return luackvm_fail(L, error, NULL);
	luackvm_fill_vm(L, box, vm, true);
	return 1;
}

/***
 * A VM that something else in this process has made. Its memory, vCPUs and
 * devices stay the other's, and memory that is added needs `slot`.
 *
 * @function kvm:vm_from_fd
 * @tparam integer fd number of the descriptor, which is duplicated
 * @treturn vm the VM
 * @raise `ENOTTY` if it is not a VM's, `EIO` if it is another process's
 * @c ckvm_vm_from_fd
 * @usage
 * local same <close> = kvm:vm_from_fd(vm.fd)
 */
static int vm_from_fd(lua_State *L)
{
	int fd = luackvm_arg_fd(L, 2), error;
	struct luackvm_box *box;
	struct ckvm_vm *vm;
	bool tried = false;

	luackvm_check(L, 1, &luackvm_system);
	box = luackvm_new_box(L, &luackvm_vm);
	do
		error = ckvm_vm_from_fd(luackvm_check(L, 1, &luackvm_system),
					fd, &vm);
	while (error && luackvm_retry(L, error, &tried));
	if (error)
		return luackvm_fail_fd(L, error, fd, "VM");
	luackvm_fill_vm(L, box, vm, true);
	return 1;
}

int luackvm_fail_fd(lua_State *L, int error, int fd, const char *kind)
{
	if (error == -ENOTTY)
		return luackvm_fail(L, error, "descriptor %d is no %s's", fd,
				    kind);
	if (error == -EIO)
		return luackvm_fail(L, error,
				    "descriptor %d: the %s is another "
				    "process's, which KVM serves alone",
				    fd, kind);
	return luackvm_fail(L, error, "descriptor %d: %s", fd,
			    luackvm_hint(error));
}

/***
 * How many vCPUs the kernel recommends; 4 if it does not tell.
 *
 * @function kvm:get_nr_vcpus
 * @treturn integer how many
 * @raise what the kernel says
 * @api 4.4 KVM_CHECK_EXTENSION
 * @usage
 * print(kvm:get_nr_vcpus())
 */
static int get_nr_vcpus(lua_State *L)
{
	return push_count(
		L, ckvm_get_nr_vcpus(luackvm_check(L, 1, &luackvm_system)));
}

/***
 * How many vCPUs a VM takes at most.
 *
 * @function kvm:get_max_vcpus
 * @treturn integer how many
 * @raise what the kernel says
 * @api 4.4 KVM_CHECK_EXTENSION
 * @usage
 * print(kvm:get_max_vcpus())
 */
static int get_max_vcpus(lua_State *L)
{
	return push_count(
		L, ckvm_get_max_vcpus(luackvm_check(L, 1, &luackvm_system)));
}

/***
 * The first number that is too large for the id of a vCPU.
 *
 * @function kvm:get_max_vcpu_id
 * @treturn integer the number
 * @raise what the kernel says
 * @api 4.4 KVM_CHECK_EXTENSION
 * @usage
 * print(kvm:get_max_vcpu_id())
 */
static int get_max_vcpu_id(lua_State *L)
{
	return push_count(
		L, ckvm_get_max_vcpu_id(luackvm_check(L, 1, &luackvm_system)));
}

/***
 * How many slots of memory a VM takes; 32 if the kernel does not tell.
 *
 * @function kvm:get_nr_memslots
 * @treturn integer how many
 * @raise what the kernel says
 * @api 4.4 KVM_CHECK_EXTENSION
 * @usage
 * print(kvm:get_nr_memslots())
 */
static int get_nr_memslots(lua_State *L)
{
	return push_count(
		L, ckvm_get_nr_memslots(luackvm_check(L, 1, &luackvm_system)));
}

static const luaL_Reg system_methods[] = {
	{ "get_api_version", get_api_version },
	{ "get_vcpu_mmap_size", get_vcpu_mmap_size },
	{ "check_extension", check_extension },
	{ "capabilities", capabilities },
	{ "get_nr_vcpus", get_nr_vcpus },
	{ "get_max_vcpus", get_max_vcpus },
	{ "get_max_vcpu_id", get_max_vcpu_id },
	{ "get_nr_memslots", get_nr_memslots },
	{ "create_vm", create_vm },
	{ "vm_from_fd", vm_from_fd },
	{ NULL, NULL },
};

static void push_fd(lua_State *L, struct luackvm_box *box)
{
	lua_pushinteger(L, ckvm_fd(luackvm_open_object(L, box)));
}

static const struct luackvm_property properties[] = {
	{ "fd", push_fd },
	{ NULL, NULL },
};

static const luaL_Reg *const methods[] = {
	system_methods,
	luackvm_cpuid_kvm_methods,
	luackvm_msr_kvm_methods,
	luackvm_device_kvm_methods,
	luackvm_event_kvm_methods,
	NULL,
};

const struct luackvm_type luackvm_system = {
	.name = "kvm",
	.methods = methods,
	.properties = properties,
	.end = end,
};

/* SPDX-License-Identifier: MIT */
/* Failures as objects: call, code, errno, where, and a sentence that helps. */
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "luackvm.h"

/***
 * What is raised for a call that the kernel or the system refuses. `tostring`
 * gives all of it: where, call, code and message.
 *
 * @type error
 * @tfield string call the step that failed: "KVM_CREATE_VCPU", "open"
 * @tfield string code "EEXIST"
 * @tfield integer errno the number of the code, not negative
 * @tfield string where file and line, "boot.lua:12"
 * @tfield string message what is wrong, with a hint where experience has one
 * @usage
 * local ok, err = pcall(ckvm.open, "/dev/null")
 * assert(not ok and err.code == "ENOTTY" and err.call == "KVM_GET_API_VERSION")
 */

static const char key;

#define NO_IRQCHIP \
	"there is no in-kernel irqchip: vm:create_irqchip() comes before the first vCPU"
#define NO_PIT "there is no PIT: see vm:create_pit2()"
/* What a vCPU says of every request that it does not know. */
#define NO_XEN_ATTR \
	"this KVM is built without Xen, or does not take the attribute"
#define NO_NESTED "this KVM has no nested virtualization"

/* What experience says, beyond the C library's text. */
static const struct {
	const char *call;
	int error;
	const char *hint;
} hints[] = {
	{ "open", ENOENT,
	  "there is no such device: is the kvm module loaded (modprobe "
	  "kvm_intel or kvm_amd), and virtualization enabled in the firmware "
	  "or, in a virtual machine, nested virtualization?" },
	{ "open", EACCES,
	  "no permission to read and write it: see 'ls -l'. Where its group "
	  "may, add the user to that, as in 'usermod -aG kvm USER', and log in "
	  "again" },
	{ "open", ENXIO,
	  "the device is there, but no KVM module is behind it" },
	{ "open", ENODEV,
	  "the device is there, but no KVM module is behind it" },
	{ "KVM_GET_API_VERSION", ENOTTY, "this is not a KVM device" },
	{ "KVM_GET_API_VERSION", EINVAL, "this is not a KVM device" },
	{ "KVM_GET_API_VERSION", ENOTSUP, "not API version 12" },
	{ "fork", EIO,
	  "the object belongs to the process that created it, and this is a "
	  "child of that" },
	{ "from_fd", EBUSY, "another object has this vCPU" },
	{ "from_fd", EEXIST, "the VM has a vCPU of this id" },
	{ "readlink", ENOENT, "this takes /proc" },
	{ "closed", EBADF, "the object is closed" },
	{ "running", EBUSY, "the vCPU is running" },
	{ "run", ESRCH, "there is no run to go on with" },
	{ "access", EBUSY,
	  "an access is being answered: a read, or an element of a string "
	  "instruction" },
	{ "batch", ENOTSUP, "this KVM cannot batch writes of this kind" },
	{ "file", ERANGE, "the file is shorter than the memory" },
	{ "KVM_ENABLE_CAP", EINVAL,
	  "this KVM does not have it for this object, or takes other arguments, "
	  "or it comes too late" },
	{ "KVM_SET_CPUID2", EINVAL,
	  "it is fixed once the vCPU has run, or this KVM cannot do it" },
	{ "KVM_SET_CPUID2", E2BIG, "too many entries: kernels take 256" },
	{ "KVM_SET_CPUID", E2BIG, "too many entries: kernels take 256" },
	{ "KVM_GET_SUPPORTED_HV_CPUID", EINVAL, "this KVM has no Hyper-V" },
	{ "KVM_CREATE_DEVICE", ENODEV, "this KVM has no device of that type" },
	{ "KVM_CREATE_DEVICE", EBUSY, "the VM has one already" },
	{ "KVM_CREATE_DEVICE", EEXIST, "the VM has one already" },
	{ "KVM_HAS_DEVICE_ATTR", ENOTTY, "the object has no attributes" },
	{ "KVM_GET_DEVICE_ATTR", ENOTTY, "the object has no attributes" },
	{ "KVM_SET_DEVICE_ATTR", ENOTTY, "the object has no attributes" },
	{ "KVM_GET_DEVICE_ATTR", ENXIO, "there is no such attribute" },
	{ "KVM_SET_DEVICE_ATTR", ENXIO, "there is no such attribute" },
	{ "KVM_GET_DEVICE_ATTR", EPERM, "the attribute cannot be read" },
	{ "KVM_SET_DEVICE_ATTR", EPERM, "the attribute cannot be set" },
	{ "KVM_GET_DEVICE_ATTR", EFAULT, "the attribute is larger than size" },
	{ "KVM_SET_DEVICE_ATTR", EFAULT,
	  "the attribute wants a value, or a larger one" },
	{ "open", EBUSY,
	  "an access is open: vcpu:finish() ends its instruction" },
	/* For what vcpu.sregs was given: set_sregs tells more (sregs_x86.c). */
	{ "KVM_SET_SREGS", EINVAL,
	  "no such state: cr0.PG needs PE; with efer.LME it needs cr4.PAE and "
	  "efer.LMA; LMA and cs.l need both; or a bit is set that this vCPU "
	  "does not have" },
	{ "KVM_GET_LAPIC", EINVAL, NO_IRQCHIP },
	{ "KVM_SET_LAPIC", EINVAL, NO_IRQCHIP },
	{ "KVM_SET_MP_STATE", EINVAL,
	  "this KVM does not take this state, or has no in-kernel irqchip: "
	  "without one a vCPU is always runnable" },
	{ "KVM_GET_NESTED_STATE", EINVAL, NO_NESTED },
	{ "KVM_SET_NESTED_STATE", EINVAL,
	  "this KVM has no nested virtualization, or the state does not fit" },
	{ "KVM_KVMCLOCK_CTRL", EINVAL, "the guest does not use kvmclock" },
	{ "KVM_SET_GUEST_DEBUG", EBUSY,
	  "an exception waits already for the guest to take it" },
	{ "KVM_SET_VAPIC_ADDR", EINVAL,
	  "no in-kernel irqchip, or no memory at the address" },
	{ "KVM_SET_MEMORY_ATTRIBUTES", ENOTTY,
	  "this KVM has no memory attributes" },
	{ "KVM_PRE_FAULT_MEMORY", EOPNOTSUPP, "this KVM cannot" },
	{ "KVM_PRE_FAULT_MEMORY", EINVAL,
	  "this KVM cannot, or they are not whole pages" },
	{ "KVM_PRE_FAULT_MEMORY", ENOENT, "there is no memory" },
	{ "KVM_CREATE_GUEST_MEMFD", ENOTTY, "this KVM has no guest_memfd" },
	{ "KVM_CREATE_GUEST_MEMFD", EINVAL,
	  "a size that is not whole pages, or flags that this KVM does not "
	  "know" },
	{ "KVM_MEMORY_ENCRYPT_OP", ENOTTY, "this VM is not encrypted" },
	{ "KVM_MEMORY_ENCRYPT_REG_REGION", ENOTTY, "this VM is not encrypted" },
	{ "KVM_MEMORY_ENCRYPT_UNREG_REGION", ENOTTY,
	  "this VM is not encrypted" },
	{ "KVM_XEN_HVM_CONFIG", ENOTTY, "this KVM is built without Xen" },
	{ "KVM_XEN_HVM_GET_ATTR", ENOTTY, "this KVM is built without Xen" },
	{ "KVM_XEN_HVM_SET_ATTR", ENOTTY, "this KVM is built without Xen" },
	{ "KVM_XEN_HVM_EVTCHN_SEND", ENOTTY, "this KVM is built without Xen" },
	{ "KVM_XEN_VCPU_GET_ATTR", EINVAL, NO_XEN_ATTR },
	{ "KVM_XEN_VCPU_SET_ATTR", EINVAL, NO_XEN_ATTR },
	{ "KVM_HYPERV_EVENTFD", ENOTTY, "this KVM is built without Hyper-V" },
	{ "file", EFAULT,
	  "the file behind it has become too short, or cannot be read" },
	{ "readonly", EFAULT, "the file behind it is mapped read-only" },
	{ "guest_memfd", EFAULT, "the page is the guest's alone" },
	{ "KVM_RUN", EFAULT,
	  "the guest touched memory that the host cannot give it: has the "
	  "mapped file shrunk?" },
	{ "KVM_RUN", ENOSPC,
	  "the VM has had no memory yet, see vm:add_memory; or its page tables "
	  "may have too few pages, see vm:set_nr_mmu_pages" },
	{ "KVM_CREATE_IRQCHIP", EEXIST, "the VM has its irqchip already" },
	{ "KVM_CREATE_IRQCHIP", EINVAL,
	  "the irqchip comes before the first vCPU" },
	{ "KVM_GET_IRQCHIP", ENXIO, NO_IRQCHIP },
	{ "KVM_IRQ_LINE", ENXIO, NO_IRQCHIP },
	{ "KVM_IRQ_LINE_STATUS", ENXIO, NO_IRQCHIP },
	{ "KVM_SIGNAL_MSI", EINVAL, "the message is wrong, or " NO_IRQCHIP },
	{ "KVM_SIGNAL_MSI", EPERM, "no vCPU has that destination" },
	{ "KVM_SET_GSI_ROUTING", EINVAL,
	  "a route is wrong, or there are more than 4096, or " NO_IRQCHIP },
	{ "KVM_IRQFD", EINVAL, "'fd' is no eventfd, or " NO_IRQCHIP },
	{ "KVM_IRQFD", EBUSY, "the eventfd raises an interrupt already" },
	{ "KVM_IOEVENTFD", EINVAL,
	  "'len' is 0, 1, 2, 4 or 8, and 'fd' an eventfd" },
	{ "KVM_IOEVENTFD", EEXIST, "an ioeventfd takes these writes already" },
	{ "KVM_IOEVENTFD", ENOENT, "there is no such ioeventfd to take back" },
	{ "KVM_GET_STATS_FD", ENOTTY,
	  "this KVM has no binary_stats_fd, which came with Linux 5.14" },
	{ "zone", EEXIST,
	  "a range with batch = true has these to itself, and such a zone "
	  "too" },
	{ "zone", EINVAL, "not so many ports or addresses from there on" },
	{ "pages", EINVAL,
	  "first_page and num_pages are multiples of 64, but for the last" },
	{ "statistics", EBADMSG, "these are no statistics of KVM's" },
	{ "KVM_INTERRUPT", ENXIO,
	  "the irqchip is in the kernel: see vm:irq_line" },
	{ "KVM_INTERRUPT", EEXIST, "an interrupt is queued already" },
	{ "KVM_CREATE_PIT", ENOENT, NO_IRQCHIP },
	{ "KVM_CREATE_PIT", EEXIST, "the VM has its PIT already" },
	{ "KVM_CREATE_PIT2", ENOENT, NO_IRQCHIP },
	{ "KVM_CREATE_PIT2", EEXIST, "the VM has its PIT already" },
	{ "KVM_GET_PIT", ENXIO, NO_PIT },
	{ "KVM_GET_PIT2", ENXIO, NO_PIT },
	{ "KVM_REINJECT_CONTROL", ENXIO, NO_PIT },
	{ "KVM_SET_IDENTITY_MAP_ADDR", EINVAL,
	  "the address is set before the first vCPU" },
	{ "KVM_SET_BOOT_CPU_ID", EBUSY,
	  "the boot CPU is chosen before the first vCPU" },
};

static const char *find_hint(const char *call, int error)
{
	for (size_t i = 0; i < ARRAY_SIZE(hints); i++)
		if (hints[i].error == error && !strcmp(hints[i].call, call))
			return hints[i].hint;
	if (error == ENOTTY && !strncmp(call, "KVM_", 4))
		return "this KVM does not have this call";
	return strerror(error);
}

static const char *field(lua_State *L, const char *name)
{
	const char *text;

	lua_getfield(L, 1, name);
	text = lua_tostring(L, -1);
	return text ? text : "?";
}

static int to_string(lua_State *L)
{
	const char *where;

	luaL_checktype(L, 1, LUA_TTABLE);
	where = field(L, "where");
	lua_pushfstring(L, "%s%s%s: %s: %s", where, *where ? ": " : "",
			field(L, "call"), field(L, "code"),
			field(L, "message"));
	return 1;
}

void luackvm_register_error(lua_State *L)
{
	lua_createtable(L, 0, 2);
	lua_pushcfunction(L, to_string);
	lua_setfield(L, -2, "__tostring");
	lua_pushliteral(L, "ckvm error");
	lua_setfield(L, -2, "__name");
	lua_rawsetp(L, LUA_REGISTRYINDEX, &key);
}

static void set_string(lua_State *L, const char *name, const char *value)
{
	lua_pushstring(L, value);
	lua_setfield(L, -2, name);
}

/* "file:line", of the function that called the running C function. */
static void set_where(lua_State *L)
{
	size_t length;
	const char *where;

	luaL_where(L, 1);
	where = lua_tolstring(L, -1, &length);
	if (length >= 2) /* ": " */
		length -= 2;
	lua_pushlstring(L, where, length);
	lua_setfield(L, -3, "where");
	lua_pop(L, 1);
}

/* The message is on top. */
static int raise(lua_State *L, const char *call, int error)
{
	const char *code = ckvm_errno_name(error);

	lua_createtable(L, 0, 5);
	lua_insert(L, -2);
	lua_setfield(L, -2, "message");
	set_string(L, "call", call);
	if (code)
		set_string(L, "code", code);
	else {
		lua_pushfstring(L, "errno %d", -error);
		lua_setfield(L, -2, "code");
	}
	lua_pushinteger(L, -error);
	lua_setfield(L, -2, "errno");
	set_where(L);
	lua_rawgetp(L, LUA_REGISTRYINDEX, &key);
	lua_setmetatable(L, -2);
	return lua_error(L);
}

const char *luackvm_hint(int error)
{
	return find_hint(ckvm_errop(), -error);
}

int luackvm_fail(lua_State *L, int error, const char *format, ...)
{
	/* First: strings may collect, and finalizers fail in steps of theirs.
	 */
	const char *call = ckvm_errop();
	va_list args;

	if (format) {
		va_start(args, format);
		lua_pushvfstring(L, format, args);
		va_end(args);
	} else {
		lua_pushstring(L, find_hint(call, -error));
	}
	return raise(L, call, error);
}

int luackvm_fail_call(lua_State *L, const char *call, int error,
		      const char *path)
{
	lua_pushfstring(L, "%s%s%s", path ? path : "", path ? ": " : "",
			strerror(-error));
	return raise(L, call, error);
}

bool luackvm_retry(lua_State *L, int error, bool *tried)
{
	if (*tried || (error != -EMFILE && error != -ENFILE &&
		       error != -ENOMEM && error != -EAGAIN))
		return false;
	*tried = true;
	lua_gc(L, LUA_GCCOLLECT);
	return true;
}

/* SPDX-License-Identifier: MIT */
/* Devices that the kernel emulates, and the attributes of every object. */
#include <errno.h>
#include <string.h>

#include "compat.h"
#include "luackvm.h"

/* What an attribute is at most: a list of interrupts has megabytes. */
#define MAX_ATTRIBUTE (16 << 20)

/* Types ------------------------------------------------------------------- */

static const struct luackvm_constant types[] = {
	{ "fsl_mpic_20", 1 },
	{ "fsl_mpic_42", 2 },
	{ "xics", 3 },
	{ "vfio", KVM_DEV_TYPE_VFIO },
	{ "arm_vgic_v2", 5 },
	{ "flic", 6 },
	{ "arm_vgic_v3", 7 },
	{ "arm_vgic_its", 8 },
	{ "xive", 9 },
	{ "arm_pv_time", 10 },
	{ "riscv_aia", 11 },
	{ "loongarch_ipi", 12 },
	{ "loongarch_eiointc", 13 },
	{ "loongarch_pchpic", 14 },
	{ NULL, 0 },
};

/* type = "vfio", or its number. */
static uint32_t read_type(lua_State *L)
{
	uint32_t type;

	luackvm_get(L, 2, "type");
	type = luackvm_constant(L, -1, "type", types);
	lua_pop(L, 1);
	return type;
}

/* Creating ---------------------------------------------------------------- */

/***
 * Creates a device that the kernel emulates; or, with `test`, says whether
 * there is one of the type.
 *
 * @function vm:create_device
 * @tparam table options
 * @tparam string|integer options.type "vfio", or the number; on other
 *  architectures "arm_vgic_v3" and so on
 * @tparam[opt=false] boolean options.test creates nothing
 * @treturn device|boolean the device; with `test`, whether this KVM has got it
 * @raise `ENODEV` if this KVM has not got it, `EEXIST` for a second one of
 *  some types
 * @api 4.79 KVM_CREATE_DEVICE
 * @usage
 * if vm:create_device { type = "vfio", test = true } then
 *   local device <close> = vm:create_device { type = "vfio" }
 * end
 */
static int test_device(lua_State *L, uint32_t type)
{
	int error = ckvm_vm_create_device(luackvm_check(L, 1, &luackvm_vm),
					  type, KVM_CREATE_DEVICE_TEST, NULL);

	if (error && error != -ENODEV)
		return luackvm_fail(L, error, NULL);
	lua_pushboolean(L, !error);
	return 1;
}

static int create_device(lua_State *L)
{
	static const char *const keys[] = { "type", "test", NULL };
	struct ckvm_device *device;
	struct luackvm_box *box;
	bool tried = false;
	uint32_t type;
	int error;

	luackvm_check(L, 1, &luackvm_vm);
	luackvm_check_keys(L, 2, "create_device", keys);
	lua_settop(L, 2);
	type = read_type(L);
	if (luackvm_flag(L, 2, "test"))
		return test_device(L, type);
	box = luackvm_new_box(L, &luackvm_device);
	do
		error = ckvm_vm_create_device(luackvm_check(L, 1, &luackvm_vm),
					      type, 0, &device);
	while (error && luackvm_retry(L, error, &tried));
	if (error)
		return luackvm_fail(L, error, NULL);
	luackvm_fill(L, box, device, true);
	lua_pushvalue(L, 1);
	lua_setiuservalue(L, -2, 1);
	luackvm_adopt(L, 1);
	return 1;
}

/* Attributes -------------------------------------------------------------- */

/* What is known of an attribute. `device`: the type, for a device's. */
struct attribute {
	const struct luackvm_type *object;
	uint32_t device, group;
	uint64_t attr;
	const char *group_name, *name;
	size_t size;
};

static const struct attribute attributes[] = {
	{ &luackvm_device, KVM_DEV_TYPE_VFIO, KVM_DEV_VFIO_GROUP,
	  KVM_DEV_VFIO_GROUP_ADD, "vfio_file", "vfio_file_add", 4 },
	{ &luackvm_device, KVM_DEV_TYPE_VFIO, KVM_DEV_VFIO_GROUP,
	  KVM_DEV_VFIO_GROUP_DEL, "vfio_file", "vfio_file_del", 4 },
#if defined(__x86_64__)
	{ &luackvm_system, 0, 0, KVM_X86_XCOMP_GUEST_SUPP, "x86",
	  "x86_xcomp_guest_supp", 8 },
	{ &luackvm_system, 0, KVM_X86_GRP_SEV, KVM_X86_SEV_VMSA_FEATURES,
	  "x86_grp_sev", "x86_sev_vmsa_features", 8 },
	{ &luackvm_vcpu, 0, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET,
	  "vcpu_tsc_ctrl", "vcpu_tsc_offset", 8 },
#endif
};

/* An object that has attributes, by what libckvm has for it. */
struct object {
	const struct luackvm_type *type;
	int (*has)(void *object, const struct kvm_device_attr *attr);
	int (*get)(void *object, const struct kvm_device_attr *attr);
	int (*set)(void *object, const struct kvm_device_attr *attr);
};

static bool belongs(lua_State *L, const struct object *object,
		    const struct attribute *known)
{
	return known->object == object->type &&
	       (known->object != &luackvm_device ||
		known->device ==
			ckvm_device_type(luackvm_check(L, 1, object->type)));
}

/* group = "vcpu_tsc_ctrl", or its number; 0 if it is not there. */
static uint32_t read_group(lua_State *L, const struct object *object)
{
	int type = luackvm_get(L, 2, "group");

	lua_pop(L, 1);
	if (type == LUA_TNIL)
		return 0;
	if (type == LUA_TNUMBER)
		return (uint32_t)luackvm_integer(L, 2, "group", 0, UINT32_MAX);
	luackvm_get(L, 2, "group");
	for (size_t i = 0; i < ARRAY_SIZE(attributes); i++)
		if (belongs(L, object, &attributes[i]) &&
		    luackvm_is(L, -1, attributes[i].group_name)) {
			lua_pop(L, 1);
			return attributes[i].group;
		}
	return (uint32_t)luaL_error(L, "group: %s has no group '%s'",
				    object->type->name,
				    luackvm_text(L, -1, "group"));
}

/* attr = "vcpu_tsc_offset", which also tells the group. */
static const struct attribute *read_name(lua_State *L,
					 const struct object *object,
					 struct kvm_device_attr *attr)
{
	bool any = !luackvm_has(L, 2, "group");

	luackvm_get(L, 2, "attr");
	for (size_t i = 0; i < ARRAY_SIZE(attributes); i++) {
		const struct attribute *known = &attributes[i];

		if (!belongs(L, object, known) ||
		    !luackvm_is(L, -1, known->name) ||
		    (!any && attr->group != known->group))
			continue;
		lua_pop(L, 1);
		attr->group = known->group;
		attr->attr = known->attr;
		return known;
	}
	luaL_error(L, "attr: %s has no attribute '%s'%s", object->type->name,
		   luackvm_text(L, -1, "attr"), any ? "" : " in this group");
	return NULL;
}

/* Fills in what names the attribute; returns what is known of it, or NULL. */
static const struct attribute *read_attribute(lua_State *L,
					      const struct object *object,
					      struct kvm_device_attr *attr)
{
	int type = luackvm_get(L, 2, "attr");

	lua_pop(L, 1);
	if (luackvm_has(L, 2, "flags"))
		attr->flags =
			(uint32_t)luackvm_integer(L, 2, "flags", 0, UINT32_MAX);
	attr->group = read_group(L, object);
	if (type == LUA_TSTRING)
		return read_name(L, object, attr);
	attr->attr = luackvm_address(L, 2, "attr");
	for (size_t i = 0; i < ARRAY_SIZE(attributes); i++)
		if (attributes[i].group == attr->group &&
		    attributes[i].attr == attr->attr &&
		    belongs(L, object, &attributes[i]))
			return &attributes[i];
	return NULL;
}

static bool is_integer_size(size_t size)
{
	return size == 1 || size == 2 || size == 4 || size == 8;
}

/* The size that is known, or that `size` says; 0 for neither. */
static size_t read_size(lua_State *L, const struct attribute *known)
{
	size_t size;

	if (!luackvm_has(L, 2, "size"))
		return known ? known->size : 0;
	size = (size_t)luackvm_integer(L, 2, "size", 1, MAX_ATTRIBUTE);
	if (known && size != known->size)
		luaL_error(L, "size: %s has %d bytes, not %d", known->name,
			   (int)known->size, (int)size);
	return size;
}

/***
 * Whether an object has an attribute. The kernel's documents of devices, and of
 * vCPUs, name them.
 *
 * @function kvm:has_device_attr, vm:has_device_attr, vcpu:has_device_attr,
 *  device:has_device_attr
 * @tparam table options
 * @tparam[opt] string|integer options.group its name, or number; if left out,
 *  that of the attribute's name, or 0
 * @tparam string|integer options.attr its name ("vcpu_tsc_offset"), or number
 * @tparam[opt=0] integer options.flags bits
 * @treturn boolean whether it has
 * @raise what the kernel says, but for `ENXIO`
 * @api 4.81 KVM_HAS_DEVICE_ATTR
 * @usage
 * print(vcpu:has_device_attr { attr = "vcpu_tsc_offset" })
 */
static int has_attr(lua_State *L, const struct object *object)
{
	static const char *const keys[] = { "group", "attr", "flags", NULL };
	struct kvm_device_attr attr = { 0 };
	int error;

	luackvm_check(L, 1, object->type);
	luackvm_check_keys(L, 2, "has_device_attr", keys);
	read_attribute(L, object, &attr);
	error = object->has(luackvm_check(L, 1, object->type), &attr);
	if (error && error != -ENXIO)
		return luackvm_fail(L, error, NULL);
	lua_pushboolean(L, !error);
	return 1;
}

/***
 * The value of an attribute: an integer, or a string where the size is not an
 * integer's.
 *
 * @function kvm:get_device_attr, vm:get_device_attr, vcpu:get_device_attr,
 *  device:get_device_attr
 * @tparam table options
 * @tparam[opt] string|integer options.group its name, or number; if left out,
 *  that of the attribute's name, or 0
 * @tparam string|integer options.attr its name ("vcpu_tsc_offset"), or number
 * @tparam[opt=0] integer options.flags bits
 * @tparam[opt] integer options.size bytes, at most 16 MiB; needed where ckvm
 *  does not know the attribute
 * @treturn integer|string the value
 * @raise `ENXIO` if there is no such attribute, `EPERM` if it can only be set
 * @api 4.80 KVM_GET_DEVICE_ATTR
 * @usage
 * print(vcpu:get_device_attr { attr = "vcpu_tsc_offset" })
 */
static int get_attr(lua_State *L, const struct object *object)
{
	static const char *const keys[] = { "group", "attr", "flags", "size",
					    NULL };
	struct kvm_device_attr attr = { 0 };
	struct luackvm_guard guard;
	uint64_t number = 0;
	luaL_Buffer buffer;
	size_t size;
	void *self;
	char *data;
	int error;

	luackvm_check(L, 1, object->type);
	luackvm_check_keys(L, 2, "get_device_attr", keys);
	size = read_size(L, read_attribute(L, object, &attr));
	if (!size)
		return luaL_error(L, "size: needed, since ckvm does not know "
				     "this attribute");
	data = luaL_buffinitsize(L, &buffer, size);
	self = luackvm_check(L, 1, object->type);
	luackvm_guard(L, &guard, size);
	attr.addr = (uintptr_t)guard.data;
	error = object->get(self, &attr);
	memcpy(data, guard.data, size);
	luackvm_unguard(&guard);
	if (error)
		return luackvm_fail(L, error, NULL);
	if (!is_integer_size(size)) {
		luaL_pushresultsize(&buffer, size);
		return 1;
	}
	number = luackvm_load(data, size);
	lua_pushinteger(L, (lua_Integer)number);
	return 1;
}

/*
 * Pushes the bytes that set_device_attr was given, as `data` or as `value`;
 * NULL for neither.
 */
static const char *push_bytes(lua_State *L, const struct attribute *known,
			      size_t *length)
{
	size_t size = read_size(L, known);
	char bytes[8];

	if (luackvm_has(L, 2, "value") && luackvm_has(L, 2, "data"))
		luaL_error(L, "value: there is data, too");
	if (luackvm_has(L, 2, "value")) {
		if (!is_integer_size(size))
			luaL_error(L, "size: 1, 2, 4 or 8 expected, for value");
		luackvm_get(L, 2, "value");
		luackvm_store(bytes, size,
			      luackvm_field_value(L, -1, "value", size));
		*length = size;
		return lua_pushlstring(L, bytes, size);
	}
	if (luackvm_get(L, 2, "data") == LUA_TNIL)
		return NULL;
	if (lua_type(L, -1) != LUA_TSTRING)
		luaL_error(L, "data: string expected, got %s",
			   luaL_typename(L, -1));
	lua_tolstring(L, -1, length);
	if (*length < 1 || *length > MAX_ATTRIBUTE || (size && *length != size))
		luaL_error(L, "data: string of %d bytes expected, got %I bytes",
			   (int)size, (lua_Integer)*length);
	return lua_tostring(L, -1);
}

/***
 * Sets an attribute, to an integer or a string. Some take neither.
 *
 * @function kvm:set_device_attr, vm:set_device_attr, vcpu:set_device_attr,
 *  device:set_device_attr
 * @tparam table options
 * @tparam[opt] string|integer options.group its name, or number; if left out,
 *  that of the attribute's name, or 0
 * @tparam string|integer options.attr its name ("vcpu_tsc_offset"), or number
 * @tparam[opt=0] integer options.flags bits
 * @tparam[opt] integer options.size bytes; needed with `value` where ckvm does
 *  not know the attribute
 * @tparam[opt] integer options.value number to set it to
 * @tparam[opt] string options.data bytes to set it to
 * @raise `ENXIO` if there is no such attribute, `EPERM` if it can only be read
 * @api 4.80 KVM_SET_DEVICE_ATTR
 * @usage
 * local offset = vcpu:get_device_attr { attr = "vcpu_tsc_offset" }
 * vcpu:set_device_attr { attr = "vcpu_tsc_offset", value = offset }
 */
static int set_attr(lua_State *L, const struct object *object)
{
	static const char *const keys[] = { "group", "attr", "flags", "size",
					    "value", "data", NULL };
	struct kvm_device_attr attr = { 0 };
	struct luackvm_guard guard;
	const char *bytes;
	size_t length;
	void *self;
	int error;

	luackvm_check(L, 1, object->type);
	luackvm_check_keys(L, 2, "set_device_attr", keys);
	bytes = push_bytes(L, read_attribute(L, object, &attr), &length);
	self = luackvm_check(L, 1, object->type);
	if (bytes) {
		luackvm_guard(L, &guard, length);
		memcpy(guard.data, bytes, length);
		attr.addr = (uintptr_t)guard.data;
	}
	error = object->set(self, &attr);
	if (bytes)
		luackvm_unguard(&guard);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/* The methods of one kind of object. */
#define CALL(prefix, what)                                              \
	static int prefix##what(void *object,                           \
				const struct kvm_device_attr *attr)     \
	{                                                               \
		return ckvm_##prefix##what##_device_attr(object, attr); \
	}
#define METHOD(prefix, what)                                \
	static int prefix##what##_attr(lua_State *L)        \
	{                                                   \
		return what##_attr(L, &prefix##attributes); \
	}
#define ATTRIBUTES(prefix, type)                                       \
	CALL(prefix, has)                                              \
	CALL(prefix, get)                                              \
	CALL(prefix, set)                                              \
	static const struct object prefix##attributes = {              \
		&luackvm_##type, prefix##has, prefix##get, prefix##set \
	};                                                             \
	METHOD(prefix, has)                                            \
	METHOD(prefix, get)                                            \
	METHOD(prefix, set)
#define NAMES(prefix)                                    \
	{ "has_device_attr", prefix##has_attr },         \
		{ "get_device_attr", prefix##get_attr }, \
	{                                                \
		"set_device_attr", prefix##set_attr      \
	}

/* The system's have no prefix in libckvm. */
#define ckvm_system_has_device_attr ckvm_has_device_attr
#define ckvm_system_get_device_attr ckvm_get_device_attr
#define ckvm_system_set_device_attr ckvm_set_device_attr
ATTRIBUTES(system_, system)
ATTRIBUTES(vm_, vm)
ATTRIBUTES(vcpu_, vcpu)
ATTRIBUTES(device_, device)

const luaL_Reg luackvm_device_kvm_methods[] = { NAMES(system_),
						{ NULL, NULL } };
const luaL_Reg luackvm_device_vm_methods[] = {
	{ "create_device", create_device },
	NAMES(vm_),
	{ NULL, NULL },
};
const luaL_Reg luackvm_device_vcpu_methods[] = { NAMES(vcpu_), { NULL, NULL } };

/* The object -------------------------------------------------------------- */

/***
 * A device that the kernel emulates: `vm:create_device` makes one.
 *
 * @type device
 * @tfield string|integer type its name, or the number of one without a name
 *  here
 * @tfield integer fd number of the descriptor, which is the object's
 * @tfield vm vm that it belongs to
 */

static void ref(void *object)
{
	ckvm_device_ref(object);
}

static void unref(void *object)
{
	ckvm_device_unref(object);
}

static void end(void *object)
{
	ckvm_device_close(object);
}

static int close_device(lua_State *L)
{
	luackvm_release(lua_touserdata(L, 1));
	if (lua_getiuservalue(L, 1, 1) == LUA_TUSERDATA)
		luackvm_disown(L, 2, 1);
	return 0;
}

/* The name, or the number of a type that has none here. */
static void push_type(lua_State *L, struct luackvm_box *box)
{
	luackvm_push_constant(L, ckvm_device_type(luackvm_open_object(L, box)),
			      types);
}

static void push_fd(lua_State *L, struct luackvm_box *box)
{
	lua_pushinteger(L, ckvm_device_fd(luackvm_open_object(L, box)));
}

static void push_vm(lua_State *L, struct luackvm_box *box)
{
	(void)box;
	lua_getiuservalue(L, 1, 1);
}

static const luaL_Reg device_methods[] = { NAMES(device_), { NULL, NULL } };

static const struct luackvm_property properties[] = {
	{ "type", push_type },
	{ "fd", push_fd },
	{ "vm", push_vm },
	{ NULL, NULL },
};

const struct luackvm_type luackvm_device = {
	.name = "device",
	.methods = (const luaL_Reg *const[]){ device_methods, NULL },
	.properties = properties,
	.ref = ref,
	.unref = unref,
	.end = end,
	.close = close_device,
	.values = 1,
};

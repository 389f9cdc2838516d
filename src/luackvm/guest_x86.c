/* SPDX-License-Identifier: MIT */
/* What a VM can be beside a PC: Xen's and Hyper-V's interfaces, and its PMU. */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "compat.h"
#include "luackvm.h"

/* Xen: one table for the VM's attributes, one for the vCPU's --------------- */

/*
 * Laid out here, since kernel headers have had more of them from release to
 * release: a type, and 64 bytes at offset 8 that depend on it.
 */
struct xen_attr {
	uint16_t type, pad[3];
	uint8_t value[64];
};

#define AT(name_, offset_, size_)                               \
	{                                                       \
		.name = name_, .offset = offset_, .size = size_ \
	}
#define FIELDS(name_, ...)                                                  \
	static const struct luackvm_field name_##_fields[] = { __VA_ARGS__, \
							       LUACKVM_END }
#define STRUCT(name_, size_, ...)                                   \
	FIELDS(name_, __VA_ARGS__);                                 \
	static const struct luackvm_struct name_ = { #name_, size_, \
						     name_##_fields, 0 }
#define ATTR(name_, field)                                                    \
	FIELDS(name_, field);                                                 \
	static const struct luackvm_struct name_ = { "xen attr",              \
						     sizeof(struct xen_attr), \
						     name_##_fields, 0 }
#define PART(name_, offset_, def)                                           \
	{                                                                   \
		.name = name_, .offset = offset_, .size = sizeof(uint64_t), \
		.sub = &(def)                                               \
	}

/* By the name of the kernel's member, which is at offset 8. */
STRUCT(gfn, 8, AT("gfn", 0, 8));
STRUCT(evtchn_port, 12, AT("port", 0, 4), AT("vcpu", 4, 4),
       AT("priority", 8, 4));
STRUCT(evtchn_eventfd, 8, AT("port", 0, 4), AT("fd", 4, 4));
STRUCT(deliver, 16, PART("port", 0, evtchn_port),
       PART("eventfd", 0, evtchn_eventfd));
STRUCT(evtchn, 28, AT("send_port", 0, 4), AT("type", 4, 4), AT("flags", 8, 4),
       PART("deliver", 12, deliver));
STRUCT(runstate, 48, AT("state", 0, 8), AT("state_entry_time", 8, 8),
       AT("time_running", 16, 8), AT("time_runnable", 24, 8),
       AT("time_blocked", 32, 8), AT("time_offline", 40, 8));
STRUCT(timer, 16, AT("port", 0, 4), AT("priority", 4, 4),
       AT("expires_ns", 8, 8));

ATTR(attr_long_mode, AT("long_mode", 8, 1));
ATTR(attr_shared_info, PART("shared_info", 8, gfn));
ATTR(attr_vector, AT("vector", 8, 1));
ATTR(attr_evtchn, PART("evtchn", 8, evtchn));
ATTR(attr_version, AT("xen_version", 8, 4));
ATTR(attr_update, AT("runstate_update_flag", 8, 1));
ATTR(attr_gpa, AT("gpa", 8, 8));
ATTR(attr_runstate, PART("runstate", 8, runstate));
ATTR(attr_vcpu_id, AT("vcpu_id", 8, 4));
ATTR(attr_timer, PART("timer", 8, timer));

/* Those that take an address of the host's are not among them. */
struct xen_kind {
	const struct luackvm_type *object;
	const struct luackvm_constant *types;
	const struct luackvm_struct *const *defs; /* by type */
	size_t count;
	int (*get)(void *object, void *attr);
	int (*set)(void *object, const void *attr);
};

static const struct luackvm_constant vm_types[] = {
	{ "long_mode", 0 }, { "shared_info", 1 }, { "upcall_vector", 2 },
	{ "evtchn", 3 },    { "xen_version", 4 }, { "runstate_update_flag", 5 },
	{ NULL, 0 },
};
static const struct luackvm_struct *const vm_defs[] = {
	&attr_long_mode, &attr_shared_info, &attr_vector,
	&attr_evtchn,	 &attr_version,	    &attr_update,
};

static const struct luackvm_constant vcpu_types[] = {
	{ "vcpu_info", 0 },	{ "vcpu_time_info", 1 },
	{ "runstate_addr", 2 }, { "runstate_current", 3 },
	{ "runstate_data", 4 }, { "runstate_adjust", 5 },
	{ "vcpu_id", 6 },	{ "timer", 7 },
	{ "upcall_vector", 8 }, { NULL, 0 },
};
static const struct luackvm_struct *const vcpu_defs[] = {
	&attr_gpa,	&attr_gpa,	&attr_gpa,
	&attr_runstate, &attr_runstate, &attr_runstate,
	&attr_vcpu_id,	&attr_timer,	&attr_vector,
};

static int vm_get(void *vm, void *attr)
{
	return ckvm_vm_xen_hvm_get_attr(vm, attr);
}

static int vm_set(void *vm, const void *attr)
{
	return ckvm_vm_xen_hvm_set_attr(vm, attr);
}

static int vcpu_get(void *vcpu, void *attr)
{
	return ckvm_vcpu_xen_vcpu_get_attr(vcpu, attr);
}

static int vcpu_set(void *vcpu, const void *attr)
{
	return ckvm_vcpu_xen_vcpu_set_attr(vcpu, attr);
}

static const struct xen_kind vm_kind = {
	&luackvm_vm, vm_types, vm_defs, ARRAY_SIZE(vm_defs), vm_get, vm_set,
};
static const struct xen_kind vcpu_kind = {
	&luackvm_vcpu,	       vcpu_types, vcpu_defs,
	ARRAY_SIZE(vcpu_defs), vcpu_get,   vcpu_set,
};

/* The type at index, and the layout that goes with it. */
static const struct luackvm_struct *
read_type(lua_State *L, int index, const struct xen_kind *kind, uint16_t *type)
{
	uint32_t number = luackvm_constant(L, index, "type", kind->types);

	if (number >= kind->count)
		luaL_error(L,
			   "type: %I is none without an address of the "
			   "host's",
			   (lua_Integer)number);
	*type = (uint16_t)number;
	return kind->defs[number];
}

static int get_xen(lua_State *L, const struct xen_kind *kind)
{
	struct xen_attr attr = { 0 };
	const struct luackvm_struct *def;
	int error;

	luackvm_check(L, 1, kind->object);
	def = read_type(L, 2, kind, &attr.type);
	error = kind->get(luackvm_check(L, 1, kind->object), &attr);
	if (error)
		return luackvm_fail(L, error, NULL);
	luackvm_push_struct(L, def, &attr);
	luackvm_push_constant(L, attr.type, kind->types);
	lua_setfield(L, -2, "type");
	return 1;
}

static int set_xen(lua_State *L, const struct xen_kind *kind)
{
	static const char *const keys[] = { "type", NULL };
	struct xen_attr attr = { 0 };
	const struct luackvm_struct *def;
	int error;

	luackvm_check(L, 1, kind->object);
	luaL_checktype(L, 2, LUA_TTABLE);
	luackvm_get(L, 2, "type");
	def = read_type(L, -1, kind, &attr.type);
	luackvm_push_rest(L, 2, keys);
	luackvm_read_struct(L, lua_gettop(L), def, &attr);
	error = kind->set(luackvm_check(L, 1, kind->object), &attr);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/***
 * What Xen's interface has for the VM, by type: "long_mode", "shared_info",
 * "upcall_vector", "evtchn", "xen_version", "runstate_update_flag". Those that
 * take an address of the host's are left out.
 *
 * @function vm:xen_hvm_get_attr
 * @tparam string|integer type its name or number
 * @treturn table with `type`, and the kernel's field for it
 * @raise `ENOTTY` where KVM is built without Xen (capability xen_hvm is 0)
 * @api - KVM_XEN_HVM_GET_ATTR
 * @usage
 * print(vm:xen_hvm_get_attr("long_mode").long_mode)
 */
static int xen_hvm_get_attr(lua_State *L)
{
	return get_xen(L, &vm_kind);
}

/***
 * Sets that.
 *
 * @function vm:xen_hvm_set_attr
 * @tparam table attr `type`, and the kernel's field for it
 * @raise `ENOTTY` where KVM is built without Xen (capability xen_hvm is 0)
 * @api - KVM_XEN_HVM_SET_ATTR
 * @usage
 * vm:xen_hvm_set_attr { type = "shared_info", shared_info = { gfn = 5 } }
 */
static int xen_hvm_set_attr(lua_State *L)
{
	return set_xen(L, &vm_kind);
}

/***
 * The same of a vCPU: "vcpu_info", "vcpu_time_info", "runstate_addr",
 * "runstate_current", "runstate_data", "runstate_adjust", "vcpu_id", "timer",
 * "upcall_vector".
 *
 * @function vcpu:xen_vcpu_get_attr
 * @tparam string|integer type its name or number
 * @treturn table with `type`, and the kernel's field for it
 * @raise `EINVAL` where KVM is built without Xen (capability xen_hvm is 0)
 * @api - KVM_XEN_VCPU_GET_ATTR
 * @usage
 * if vm:check_extension("xen_hvm") ~= 0 then
 *   print(vcpu:xen_vcpu_get_attr("vcpu_info").gpa)
 * end
 */
static int xen_vcpu_get_attr(lua_State *L)
{
	return get_xen(L, &vcpu_kind);
}

/***
 * Sets that.
 *
 * @function vcpu:xen_vcpu_set_attr
 * @tparam table attr `type`, and the kernel's field for it
 * @raise `EINVAL` where KVM is built without Xen (capability xen_hvm is 0)
 * @api - KVM_XEN_VCPU_SET_ATTR
 * @usage
 * if vm:check_extension("xen_hvm") ~= 0 then
 *   vcpu:xen_vcpu_set_attr { type = "vcpu_info", gpa = 0x1000 }
 * end
 */
static int xen_vcpu_set_attr(lua_State *L)
{
	return set_xen(L, &vcpu_kind);
}

static const struct luackvm_constant config_flags[] = {
	{ "hypercall_msr", 1 << 0 },
	{ "intercept_hcall", 1 << 1 },
	{ "shared_info", 1 << 2 },
	{ "runstate", 1 << 3 },
	{ "evtchn_2level", 1 << 4 },
	{ "evtchn_send", 1 << 5 },
	{ NULL, 0 },
};

/***
 * Has the VM take Xen's hypercalls. The hypercall pages that the kernel would
 * copy from the host's memory are left out: with "intercept_hcall" it makes one
 * of its own.
 *
 * @function vm:xen_hvm_config
 * @tparam table options
 * @tparam[opt=0] integer|string|table options.flags "intercept_hcall",
 *  "evtchn_send" and so on, a list of them, or the number
 * @tparam[opt=0] integer options.msr number of the one that the guest writes to
 *  get the page
 * @raise `ENOTTY` where KVM is built without Xen (capability xen_hvm is 0)
 * @api - KVM_XEN_HVM_CONFIG
 * @usage
 * vm:xen_hvm_config { flags = "intercept_hcall", msr = 0x40000000 }
 */
static int xen_hvm_config(lua_State *L)
{
	static const char *const keys[] = { "flags", "msr", NULL };
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_xen_hvm_config config = { 0 };
	int error;

	luackvm_check_keys(L, 2, "xen_hvm_config", keys);
	if (luackvm_get(L, 2, "flags") != LUA_TNIL)
		config.flags = luackvm_flags(L, -1, "flags", config_flags);
	if (luackvm_has(L, 2, "msr"))
		config.msr =
			(uint32_t)luackvm_integer(L, 2, "msr", 0, UINT32_MAX);
	error = ckvm_vm_xen_hvm_config(vm, &config);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

static uint32_t read_u32(lua_State *L, const char *key)
{
	return luackvm_has(L, 2, key)
		       ? (uint32_t)luackvm_integer(L, 2, key, 0, UINT32_MAX)
		       : 0;
}

/***
 * Sends a guest of Xen's interface an event.
 *
 * @function vm:xen_hvm_evtchn_send
 * @tparam table options
 * @tparam integer options.port number of the event channel
 * @tparam[opt=0] integer options.vcpu number of the vCPU
 * @tparam[opt=0] integer options.priority bits; the kernel has one way only
 * @raise `ENOTTY` where KVM is built without Xen (capability xen_hvm is 0)
 * @api - KVM_XEN_HVM_EVTCHN_SEND
 * @usage
 * vm:xen_hvm_evtchn_send { port = 1, priority = 0xffffffff }
 */
static int xen_hvm_evtchn_send(lua_State *L)
{
	static const char *const keys[] = { "port", "vcpu", "priority", NULL };
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_irq_routing_xen_evtchn event = { 0 };
	int error;

	luackvm_check_keys(L, 2, "xen_hvm_evtchn_send", keys);
	event.port = (uint32_t)luackvm_integer(L, 2, "port", 0, UINT32_MAX);
	event.vcpu = read_u32(L, "vcpu");
	event.priority = read_u32(L, "priority");
	error = ckvm_vm_xen_hvm_evtchn_send(vm, &event);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/* Hyper-V ----------------------------------------------------------------- */

/***
 * Has what a guest of Hyper-V's interface signals to a connection signal an
 * eventfd.
 *
 * @function vm:hyperv_eventfd
 * @tparam table options
 * @tparam integer options.conn_id number of the connection
 * @tparam integer options.fd number of an eventfd's descriptor; the kernel
 *  keeps the eventfd
 * @tparam[opt=0] integer options.flags bits: 1 takes it away
 * @raise `ENOTTY` where KVM is built without Hyper-V (capability hyperv_eventfd
 *  is 0)
 * @api 4.118 KVM_HYPERV_EVENTFD
 * @usage
 * local event <close> = ckvm.eventfd()
 * vm:hyperv_eventfd { conn_id = 1, fd = event.fd }
 */
static int hyperv_eventfd(lua_State *L)
{
	static const char *const keys[] = { "conn_id", "fd", "flags", NULL };
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_hyperv_eventfd event = { 0 };
	int error;

	luackvm_check_keys(L, 2, "hyperv_eventfd", keys);
	event.conn_id =
		(uint32_t)luackvm_integer(L, 2, "conn_id", 0, UINT32_MAX);
	event.fd = (int32_t)luackvm_integer(L, 2, "fd", 0, INT32_MAX);
	event.flags = read_u32(L, "flags");
	error = ckvm_vm_hyperv_eventfd(vm, &event);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/* The PMU ----------------------------------------------------------------- */

static const struct luackvm_constant actions[] = {
	{ "allow", KVM_PMU_EVENT_ALLOW },
	{ "deny", KVM_PMU_EVENT_DENY },
	{ NULL, 0 },
};

static const struct luackvm_constant filter_flags[] = {
	{ "masked_events", KVM_PMU_EVENT_FLAG_MASKED_EVENTS },
	{ NULL, 0 },
};

/* A zeroed filter with the list of events that is on top; pushes it. */
static struct kvm_pmu_event_filter *push_filter(lua_State *L)
{
	struct kvm_pmu_event_filter *filter;
	lua_Integer count = 0;
	size_t size;

	if (!lua_isnil(L, -1)) {
		if (!lua_istable(L, -1))
			luaL_error(L, "events: list expected, got %s",
				   luaL_typename(L, -1));
		count = luackvm_list_length(L, lua_gettop(L), "events");
	}
	size = sizeof(*filter) + (size_t)count * sizeof(uint64_t);
	filter = lua_newuserdatauv(L, size, 0);
	memset(filter, 0, size);
	filter->nevents = (uint32_t)count;
	for (lua_Integer i = 1; i <= count; i++) {
		lua_Integer event;

		lua_rawgeti(L, -2, i);
		event = luackvm_to_integer(L, -1, "events");
		filter->events[i - 1] = (uint64_t)event;
		lua_pop(L, 1);
	}
	return filter;
}

/***
 * Says which events the guest's performance counters may count.
 *
 * @function vm:set_pmu_event_filter
 * @tparam table options
 * @tparam string|integer options.action "allow" for these events only, "deny"
 *  for all others
 * @tparam[opt] integer[] options.events numbers of events and unit masks
 * @tparam[opt=0] integer|string|table options.flags "masked_events": the events
 *  have masks; or the number
 * @tparam[opt=0] integer options.fixed_counter_bitmap bits: the fixed counters
 *  that are meant
 * @raise `E2BIG` for more than 300 events; `EINVAL` for unknown flags, and bits
 *  that no event has; `ENOTTY` where the capability pmu_event_filter is 0
 * @api 4.120 KVM_SET_PMU_EVENT_FILTER
 * @usage
 * vm:set_pmu_event_filter { action = "allow", events = { 0x00c0 } }
 */
static int set_pmu_event_filter(lua_State *L)
{
	static const char *const keys[] = { "action", "events", "flags",
					    "fixed_counter_bitmap", NULL };
	struct kvm_pmu_event_filter *filter;
	uint32_t action, flags = 0;
	int error;

	luackvm_check(L, 1, &luackvm_vm);
	luackvm_check_keys(L, 2, "set_pmu_event_filter", keys);
	luackvm_get(L, 2, "action");
	action = luackvm_constant(L, -1, "action", actions);
	if (luackvm_get(L, 2, "flags") != LUA_TNIL)
		flags = luackvm_flags(L, -1, "flags", filter_flags);
	luackvm_get(L, 2, "events");
	filter = push_filter(L);
	filter->action = action;
	filter->flags = flags;
	filter->fixed_counter_bitmap = read_u32(L, "fixed_counter_bitmap");
	error = ckvm_vm_set_pmu_event_filter(luackvm_check(L, 1, &luackvm_vm),
					     filter);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

const luaL_Reg luackvm_guest_vm_methods[] = {
	{ "xen_hvm_config", xen_hvm_config },
	{ "xen_hvm_get_attr", xen_hvm_get_attr },
	{ "xen_hvm_set_attr", xen_hvm_set_attr },
	{ "xen_hvm_evtchn_send", xen_hvm_evtchn_send },
	{ "hyperv_eventfd", hyperv_eventfd },
	{ "set_pmu_event_filter", set_pmu_event_filter },
	{ NULL, NULL },
};

const luaL_Reg luackvm_guest_vcpu_methods[] = {
	{ "xen_vcpu_get_attr", xen_vcpu_get_attr },
	{ "xen_vcpu_set_attr", xen_vcpu_set_attr },
	{ NULL, NULL },
};

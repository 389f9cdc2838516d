/* SPDX-License-Identifier: MIT */
/* Interrupt lines, messages and routes, as methods of the VM and the vCPU. */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "compat.h"
#include "luackvm.h"

/***
 * Creates the interrupt controllers in the kernel: two PICs, an IOAPIC, and a
 * local APIC for each vCPU to come.
 *
 * @function vm:create_irqchip
 * @raise `EEXIST` the second time, `EINVAL` after the first vCPU
 * @api 4.24 KVM_CREATE_IRQCHIP
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 */
static int create_irqchip(lua_State *L)
{
	int error = ckvm_vm_create_irqchip(luackvm_check(L, 1, &luackvm_vm));

	return error ? luackvm_fail(L, error, NULL) : 0;
}

/* Lines ------------------------------------------------------------------- */

static void read_level(lua_State *L, struct kvm_irq_level *level,
		       const char *who)
{
	static const char *const keys[] = { "irq", "level", NULL };

	luackvm_check_keys(L, 2, who, keys);
	level->irq = (uint32_t)luackvm_integer(L, 2, "irq", 0, UINT32_MAX);
	if (luackvm_get(L, 2, "level") == LUA_TBOOLEAN)
		level->level = (uint32_t)lua_toboolean(L, -1);
	else
		level->level = (uint32_t)luackvm_integer(L, 2, "level", 0, 1);
}

/***
 * The level of an interrupt line.
 *
 * @struct kvm_irq_level
 * @tfield integer irq number of the line (GSI)
 * @tfield integer|boolean level 0 or 1, or false or true
 */

/***
 * Sets the level of an interrupt line.
 *
 * @function vm:irq_line
 * @tparam kvm_irq_level line and its level
 * @raise `ENXIO` without controllers in the kernel
 * @api 4.25 KVM_IRQ_LINE
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 * vm:irq_line { irq = 4, level = true }
 */
static int irq_line(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_irq_level level;
	int error;

	read_level(L, &level, "irq_line");
	error = ckvm_vm_irq_line(vm, &level);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/***
 * The same, and what came of it.
 *
 * @function vm:irq_line_status
 * @tparam kvm_irq_level line and its level
 * @treturn integer number: more than 0 if a controller took it, 0 if it was
 *  pending already, -1 if it is masked or no controller has the line
 * @raise `ENXIO` without controllers in the kernel
 * @api 4.25 KVM_IRQ_LINE_STATUS
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 * print(vm:irq_line_status { irq = 4, level = 1 })
 */
static int irq_line_status(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_irq_level level;
	int error;

	read_level(L, &level, "irq_line_status");
	error = ckvm_vm_irq_line_status(vm, &level);
	if (error)
		return luackvm_fail(L, error, NULL);
	lua_pushinteger(L, level.status);
	return 1;
}

/***
 * Queues an interrupt, to be taken with the next instruction, for guests whose
 * controllers are the host's business. The exit `irq_window_open` tells when
 * the guest takes one.
 *
 * @function vcpu:interrupt
 * @tparam integer irq number of the vector, 0 to 255
 * @raise `ENXIO` with controllers in the kernel, `EEXIST` if one is queued and
 *  only the PICs are not in the kernel
 * @api 4.16 KVM_INTERRUPT
 * @c ckvm_vcpu_interrupt
 * @usage
 * vcpu:interrupt(0x20)
 */
static int interrupt(lua_State *L)
{
	struct ckvm_vcpu *vcpu = luackvm_check(L, 1, &luackvm_vcpu);
	lua_Integer irq = luackvm_arg_integer(L, 2);
	int error;

	luaL_argcheck(L, irq >= 0 && irq <= 255, 2, "not a vector's number");
	error = ckvm_vcpu_interrupt(vcpu, (uint32_t)irq);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/* Messages ---------------------------------------------------------------- */

/***
 * A message that signals an interrupt.
 *
 * @struct kvm_msi
 * @tfield integer address_lo,address_hi halves of the address
 * @tfield integer data value that is written there: the vector, and how it is
 *  delivered
 * @tfield integer flags bits; 1: devid counts
 * @tfield integer devid number of the device; naming it sets the flag
 */
#define F(member) LUACKVM_SCALAR(struct kvm_msi, member)
static const struct luackvm_field message_fields[] = {
	F(address_lo),
	F(address_hi),
	F(data),
	F(flags),
	{ .name = "devid",
	  .offset = offsetof(struct kvm_msi, devid),
	  .size = LUACKVM_SIZE(struct kvm_msi, devid),
	  .flag = KVM_MSI_VALID_DEVID },
	LUACKVM_END,
};
#undef F
static const struct luackvm_struct kvm_msi = {
	"kvm_msi", sizeof(struct kvm_msi), message_fields,
	offsetof(struct kvm_msi, flags)
};

/***
 * Sends a message to the local APICs, as a device would.
 *
 * @function vm:signal_msi
 * @tparam kvm_msi message fields not named are 0
 * @treturn integer how many vCPUs got it; 0 if the guest blocks it
 * @raise `EINVAL` without controllers in the kernel, `EPERM` if no vCPU has
 *  that destination
 * @api 4.71 KVM_SIGNAL_MSI
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 * local vcpu = vm:create_vcpu(0)
 * print(pcall(vm.signal_msi, vm, { address_lo = 0xfee00000, data = 0x40 }))
 */
static int signal_msi(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_msi msi = { 0 };
	int result;

	luackvm_read_struct(L, 2, &kvm_msi, &msi);
	result = ckvm_vm_signal_msi(vm, &msi);
	if (result < 0)
		return luackvm_fail(L, result, NULL);
	lua_pushinteger(L, result);
	return 1;
}

/* Routes ------------------------------------------------------------------ */

#define FIELDS(name, ...)                                                \
	static const struct luackvm_field name##_route_fields[] = {      \
		__VA_ARGS__, LUACKVM_END                                 \
	};                                                               \
	static const struct luackvm_struct name = { #name, sizeof(TYPE), \
						    name##_route_fields, 0 }
#define F(member) LUACKVM_SCALAR(TYPE, member)
#define TYPE struct kvm_irq_routing_irqchip
FIELDS(irqchip, F(irqchip), F(pin));
#undef TYPE
#define TYPE struct kvm_irq_routing_msi
FIELDS(msi, F(address_lo), F(address_hi), F(data), F(devid));
#undef TYPE
#define TYPE struct kvm_irq_routing_s390_adapter
FIELDS(s390_adapter, F(ind_addr), F(summary_addr), F(ind_offset),
       F(summary_offset), F(adapter_id));
#undef TYPE
#define TYPE struct kvm_irq_routing_hv_sint
FIELDS(hv_sint, F(vcpu), F(sint));
#undef TYPE
#define TYPE struct kvm_irq_routing_xen_evtchn
FIELDS(xen_evtchn, F(port), F(vcpu), F(priority));
#undef TYPE
#undef F

/***
 * Where an interrupt line leads. The fields beside gsi, type and flags are
 * those of the type: a pin of a controller, or a message.
 *
 * @struct kvm_irq_routing_entry
 * @tfield integer gsi number of the line
 * @tfield string|integer type "irqchip", "msi", "hv_sint", "xen_evtchn" or
 *  "s390_adapter"; the first two are found out by their fields
 * @tfield integer flags bits
 * @tfield string|integer irqchip "pic_master", "pic_slave", "ioapic", or the
 *  number
 * @tfield integer pin number of the controller's
 * @tfield integer address_lo,address_hi halves of the address of an msi
 * @tfield integer data value that an msi writes
 * @tfield integer devid number of the device of an msi
 * @tfield integer vcpu,sint,port,priority number that hv_sint and xen_evtchn
 *  take
 * @tfield integer ind_addr,summary_addr guest physical address, of an
 *  s390_adapter
 * @tfield integer ind_offset,summary_offset offset in bits, of an s390_adapter
 * @tfield integer adapter_id number of the s390_adapter
 */
static const struct luackvm_struct *const routes[] = {
	[KVM_IRQ_ROUTING_IRQCHIP] = &irqchip,
	[KVM_IRQ_ROUTING_MSI] = &msi,
	[KVM_IRQ_ROUTING_S390_ADAPTER] = &s390_adapter,
	[KVM_IRQ_ROUTING_HV_SINT] = &hv_sint,
	[KVM_IRQ_ROUTING_XEN_EVTCHN] = &xen_evtchn,
};

/* The two that everybody uses need not be named. */
static uint32_t guess_type(lua_State *L, int entry)
{
	if (luackvm_has(L, entry, "irqchip") || luackvm_has(L, entry, "pin"))
		return KVM_IRQ_ROUTING_IRQCHIP;
	if (luackvm_has(L, entry, "address_lo") ||
	    luackvm_has(L, entry, "data"))
		return KVM_IRQ_ROUTING_MSI;
	return 0;
}

/* Raises for a type that is none; what was given is on top. */
static int fail_type(lua_State *L, lua_Integer number)
{
	luaL_Buffer names;

	if (lua_isnil(L, -1))
		return luaL_error(L,
				  "set_gsi_routing: route %I: 'irqchip' and "
				  "'pin', or 'address_lo' and 'data', or "
				  "another type's name, are needed",
				  number);
	luaL_tolstring(L, -1, NULL);
	luaL_buffinit(L, &names);
	for (uint32_t i = 1; i < ARRAY_SIZE(routes); i++) {
		luaL_addstring(&names, i > 1 ? ", " : "");
		luaL_addstring(&names, routes[i]->name);
	}
	luaL_pushresult(&names);
	return luaL_error(L,
			  "set_gsi_routing: route %I: no type '%s'; known: %s",
			  number, lua_tostring(L, -2), lua_tostring(L, -1));
}

/* By name or number; the entry's table is at index. */
static uint32_t read_type(lua_State *L, int entry, lua_Integer number)
{
	lua_Integer type = 0;

	if (luackvm_get(L, entry, "type") == LUA_TNIL) {
		type = guess_type(L, entry);
	} else if (lua_type(L, -1) == LUA_TNUMBER) {
		type = luackvm_integer(L, entry, "type", 1,
				       ARRAY_SIZE(routes) - 1);
	} else {
		for (uint32_t i = 1; i < ARRAY_SIZE(routes); i++)
			if (luackvm_is(L, -1, routes[i]->name))
				type = i;
	}
	if (!type)
		fail_type(L, number);
	lua_pop(L, 1);
	return (uint32_t)type;
}

/* The fields of the route's own type. */
static void read_route(lua_State *L, int entry, lua_Integer number,
		       struct kvm_irq_routing_entry *out)
{
	static const char *const common[] = { "gsi", "type", "flags", NULL };
	struct luackvm_struct def = *routes[out->type];

	def.name = lua_pushfstring(L, "route %I", number);
	luackvm_push_rest(L, entry, common);
	if (luackvm_get(L, -1, "irqchip") == LUA_TSTRING &&
	    out->type == KVM_IRQ_ROUTING_IRQCHIP) {
		lua_pushinteger(L, luackvm_irqchip_id(L, -1, "irqchip"));
		lua_setfield(L, -3, "irqchip");
	}
	lua_pop(L, 1);
	luackvm_read_struct(L, lua_gettop(L), &def, &out->u);
	lua_pop(L, 2);
}

/* The entry is on top, and is popped. */
static void read_entry(lua_State *L, lua_Integer number,
		       struct kvm_irq_routing_entry *out)
{
	int entry = lua_gettop(L);

	if (!lua_istable(L, entry))
		luaL_error(L,
			   "set_gsi_routing: route %I: table expected, "
			   "got %s",
			   number, luaL_typename(L, entry));
	out->type = read_type(L, entry, number);
	out->gsi = (uint32_t)luackvm_integer(L, entry, "gsi", 0, UINT32_MAX);
	read_route(L, entry, number, out);
	if (luackvm_has(L, entry, "flags"))
		out->flags = (uint32_t)luackvm_integer(L, entry, "flags", 0,
						       UINT32_MAX);
	else if (out->type == KVM_IRQ_ROUTING_MSI &&
		 luackvm_has(L, entry, "devid"))
		out->flags = KVM_MSI_VALID_DEVID;
	lua_pop(L, 1);
}

/***
 * Replaces all routes. A new VM has those of a PC.
 *
 * @function vm:set_gsi_routing
 * @tparam kvm_irq_routing_entry[] routes at most 4096
 * @raise `EINVAL` without controllers in the kernel
 * @api 4.52 KVM_SET_GSI_ROUTING
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 * vm:set_gsi_routing {
 *   { gsi = 4, irqchip = "ioapic", pin = 4 },
 *   { gsi = 24, address_lo = 0xfee00000, data = 0x40 },
 * }
 */
static int set_gsi_routing(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_irq_routing *routing;
	lua_Integer count;
	size_t size;
	int error;

	luaL_checktype(L, 2, LUA_TTABLE);
	lua_settop(L, 2);
	count = luackvm_list_length(L, 2, "set_gsi_routing");
	size = sizeof(*routing) + (size_t)count * sizeof(routing->entries[0]);
	routing = lua_newuserdatauv(L, size, 0);
	memset(routing, 0, size);
	routing->nr = (uint32_t)count;
	for (lua_Integer i = 1; i <= count; i++) {
		lua_rawgeti(L, 2, i);
		read_entry(L, i, &routing->entries[i - 1]);
	}
	error = ckvm_vm_set_gsi_routing(vm, routing);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

const luaL_Reg luackvm_irq_vm_methods[] = {
	{ "create_irqchip", create_irqchip },	{ "irq_line", irq_line },
	{ "irq_line_status", irq_line_status }, { "signal_msi", signal_msi },
	{ "set_gsi_routing", set_gsi_routing }, { NULL, NULL },
};

const luaL_Reg luackvm_irq_vcpu_methods[] = {
	{ "interrupt", interrupt },
	{ NULL, NULL },
};

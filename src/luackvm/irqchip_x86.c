/* SPDX-License-Identifier: MIT */
/* The PC's interrupt controllers, PIT and clock, as methods of the VM. */
#include <errno.h>

#include "luackvm.h"

/* Interrupt controllers --------------------------------------------------- */

static const char *const chips[] = {
	[KVM_IRQCHIP_PIC_MASTER] = "pic_master",
	[KVM_IRQCHIP_PIC_SLAVE] = "pic_slave",
	[KVM_IRQCHIP_IOAPIC] = "ioapic",
};

uint32_t luackvm_irqchip_id(lua_State *L, int index, const char *name)
{
	lua_Integer id;

	if (lua_type(L, index) != LUA_TSTRING) {
		id = luackvm_to_integer(L, index, name);
		if (id < 0 || (size_t)id >= ARRAY_SIZE(chips))
			luaL_error(L, "%s: %I is not the number of an irqchip",
				   name, id);
		return (uint32_t)id;
	}
	for (uint32_t i = 0; i < ARRAY_SIZE(chips); i++)
		if (luackvm_is(L, index, chips[i]))
			return i;
	luaL_error(L, "%s: unknown irqchip '%s'", name, lua_tostring(L, index));
	return 0;
}

static const struct luackvm_struct *struct_of(const struct kvm_irqchip *chip)
{
	return chip->chip_id == KVM_IRQCHIP_IOAPIC ? &luackvm_kvm_ioapic_state
						   : &luackvm_kvm_pic_state;
}

/* vm:get_irqchip("pic_master", "pic_slave" or "ioapic", or the number) */
static int get_irqchip(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_irqchip chip = { 0 };
	int error;

	chip.chip_id = luackvm_irqchip_id(L, 2, "chip_id");
	error = ckvm_vm_get_irqchip(vm, &chip);
	if (error)
		return luackvm_fail(L, error, NULL);
	luackvm_push_struct(L, struct_of(&chip), &chip.chip);
	lua_pushstring(L, chips[chip.chip_id]);
	lua_setfield(L, -2, "chip_id");
	return 1;
}

/* vm:set_irqchip { chip_id =, fields of that chip = } */
static int set_irqchip(lua_State *L)
{
	static const char *const own[] = { "chip_id", NULL };
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_irqchip chip = { 0 };
	int error;

	luaL_checktype(L, 2, LUA_TTABLE);
	luackvm_get(L, 2, "chip_id");
	chip.chip_id = luackvm_irqchip_id(L, -1, "chip_id");
	luackvm_push_rest(L, 2, own);
	error = ckvm_vm_get_irqchip(vm, &chip);
	if (error)
		return luackvm_fail(L, error, NULL);
	luackvm_read_struct(L, lua_gettop(L), struct_of(&chip), &chip.chip);
	error = ckvm_vm_set_irqchip(vm, &chip);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/* The PIT ----------------------------------------------------------------- */

static int create_pit(lua_State *L)
{
	int error = ckvm_vm_create_pit(luackvm_check(L, 1, &luackvm_vm));

	return error ? luackvm_fail(L, error, NULL) : 0;
}

/* vm:create_pit2([{ flags = }]) */
static int create_pit2(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_pit_config config = { 0 };
	int error;

	if (!lua_isnoneornil(L, 2))
		luackvm_read_struct(L, 2, &luackvm_kvm_pit_config, &config);
	error = ckvm_vm_create_pit2(vm, &config);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/* vm:reinject_control { pit_reinject = } */
static int reinject_control(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_reinject_control control = { 0 };
	int error;

	luackvm_read_struct(L, 2, &luackvm_kvm_reinject_control, &control);
	error = ckvm_vm_reinject_control(vm, &control);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

LUACKVM_GET_SET(vm, pit)
LUACKVM_GET_SET(vm, pit2)
LUACKVM_GET(vm, clock)

/* The clock --------------------------------------------------------------- */

/*
 * What get_clock says in `flags` is not kept: with KVM_CLOCK_REALTIME in it the
 * kernel would add the time since the get, and old kernels take no flags.
 */
static int set_clock(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_clock_data clock = { 0 };
	int error;

	luaL_checktype(L, 2, LUA_TTABLE);
	error = ckvm_vm_get_clock(vm, &clock);
	if (error)
		return luackvm_fail(L, error, NULL);
	clock.flags = 0;
	luackvm_read_struct(L, 2, &luackvm_kvm_clock_data, &clock);
	error = ckvm_vm_set_clock(vm, &clock);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/* Before the first vCPU --------------------------------------------------- */

static int set_tss_addr(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	int error = ckvm_vm_set_tss_addr(vm, luackvm_arg_address(L, 2));

	return error ? luackvm_fail(L, error, NULL) : 0;
}

static int set_identity_map_addr(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	uint64_t gpa = luackvm_arg_address(L, 2);
	int error = ckvm_vm_set_identity_map_addr(vm, gpa);

	return error ? luackvm_fail(L, error, NULL) : 0;
}

static int set_boot_cpu_id(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	lua_Integer id = luaL_checkinteger(L, 2);
	int error;

	luaL_argcheck(L, id >= 0 && id <= UINT32_MAX, 2, "not a vCPU's id");
	error = ckvm_vm_set_boot_cpu_id(vm, (uint32_t)id);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

const luaL_Reg luackvm_irqchip_vm_methods[] = {
	{ "get_irqchip", get_irqchip },
	{ "set_irqchip", set_irqchip },
	{ "create_pit", create_pit },
	{ "create_pit2", create_pit2 },
	{ "reinject_control", reinject_control },
	{ "set_clock", set_clock },
	{ "set_tss_addr", set_tss_addr },
	{ "set_identity_map_addr", set_identity_map_addr },
	{ "set_boot_cpu_id", set_boot_cpu_id },
	{ NULL, NULL },
};

const struct luackvm_state luackvm_irqchip_vm_states[] = {
	{ "pit", &luackvm_kvm_pit_state, get_pit, set_pit },
	{ "pit2", &luackvm_kvm_pit_state2, get_pit2, set_pit2 },
	{ "clock", &luackvm_kvm_clock_data, get_clock, NULL },
	{ .name = NULL },
};

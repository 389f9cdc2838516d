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

/***
 * The state of one of the interrupt controllers in the kernel.
 *
 * @function vm:get_irqchip
 * @tparam string|integer chip_id "pic_master", "pic_slave", "ioapic", or the
 *  number
 * @treturn kvm_pic_state|kvm_ioapic_state a fresh table, with chip_id besides
 * @raise `ENXIO` without controllers in the kernel
 * @api 4.26 KVM_GET_IRQCHIP
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 * print(vm:get_irqchip("pic_master").imr)
 */
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

/***
 * Sets the state of one of them. Fields that are not given keep their value.
 *
 * @function vm:set_irqchip
 * @tparam kvm_pic_state|kvm_ioapic_state chip as `vm:get_irqchip` returns it;
 *  chip_id has to be there
 * @raise `ENXIO` without controllers in the kernel
 * @api 4.27 KVM_SET_IRQCHIP
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 * vm:set_irqchip { chip_id = "pic_master", imr = 0xff }
 */
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

/***
 * Creates a PIT, the old way.
 *
 * @function vm:create_pit
 * @raise `ENOENT` without controllers in the kernel, `EEXIST` the second time
 * @api 4.71 KVM_CREATE_PIT
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 * vm:create_pit()
 */
static int create_pit(lua_State *L)
{
	int error = ckvm_vm_create_pit(luackvm_check(L, 1, &luackvm_vm));

	return error ? luackvm_fail(L, error, NULL) : 0;
}

/***
 * Creates the PC's timer, a PIT, in the kernel.
 *
 * @function vm:create_pit2
 * @tparam[opt] kvm_pit_config config of it
 * @raise `ENOENT` without controllers in the kernel, `EEXIST` the second time
 * @api 4.71 KVM_CREATE_PIT2
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 * vm:create_pit2()
 */
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

/***
 * Says whether the PIT's interrupts that the guest missed are made up for.
 *
 * @function vm:reinject_control
 * @tparam kvm_reinject_control control whether they are
 * @raise `ENXIO` without a PIT in the kernel
 * @api 4.99 KVM_REINJECT_CONTROL
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 * vm:create_pit2()
 * vm:reinject_control { pit_reinject = 0 }
 */
static int reinject_control(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_reinject_control control = { 0 };
	int error;

	luackvm_read_struct(L, 2, &luackvm_kvm_reinject_control, &control);
	error = ckvm_vm_reinject_control(vm, &control);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/***
 * The state of the PIT, the old way. Fields that `set_pit` is not given keep
 * their value.
 *
 * @state vm:pit kvm_pit_state
 * @api 4.72 KVM_GET_PIT
 * @api 4.73 KVM_SET_PIT
 * @raise `ENXIO` without a PIT in the kernel
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 * vm:create_pit2()
 * vm:set_pit(vm:get_pit())
 */
LUACKVM_GET_SET(vm, pit)

/***
 * The state of the PIT. Fields that `set_pit2` is not given keep their value.
 *
 * @state vm:pit2 kvm_pit_state2
 * @api 4.72 KVM_GET_PIT2
 * @api 4.73 KVM_SET_PIT2
 * @raise `ENXIO` without a PIT in the kernel
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 * vm:create_pit2()
 * vm:set_pit2(vm:get_pit2())
 */
LUACKVM_GET_SET(vm, pit2)

/***
 * The guest's clock (kvmclock), and what the host had at that time.
 *
 * @state vm:clock kvm_clock_data
 * @api 4.29 KVM_GET_CLOCK
 * @raise what the kernel says
 * @usage
 * print(vm:get_clock().clock / 1e9)
 */
LUACKVM_GET(vm, clock)

/* The clock --------------------------------------------------------------- */

/***
 * Sets the guest's clock. Naming `realtime` has the kernel add the time that
 * has passed since then.
 *
 * @function vm:set_clock
 * @tparam kvm_clock_data clock fields not named keep their value, but for flags
 * @raise `EINVAL` for flags that this KVM does not take
 * @api 4.30 KVM_SET_CLOCK
 * @usage
 * vm:set_clock { clock = 0 }
 */
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

/***
 * Where VT-x keeps three pages of its own, for real mode.
 *
 * @function vm:set_tss_addr
 * @tparam integer gpa guest physical address below 4 GiB, where no memory is
 * @raise `EINVAL` beyond that
 * @api 4.36 KVM_SET_TSS_ADDR
 * @usage
 * vm:set_tss_addr(0xfffbd000)
 */
static int set_tss_addr(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	int error = ckvm_vm_set_tss_addr(vm, luackvm_arg_address(L, 2));

	return error ? luackvm_fail(L, error, NULL) : 0;
}

/***
 * Where VT-x keeps another page, for the same. Before the first vCPU.
 *
 * @function vm:set_identity_map_addr
 * @tparam integer gpa guest physical address below 4 GiB, where no memory is
 * @raise `EINVAL` after the first vCPU
 * @api 4.40 KVM_SET_IDENTITY_MAP_ADDR
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:set_identity_map_addr(0xfffbc000)
 */
static int set_identity_map_addr(lua_State *L)
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	uint64_t gpa = luackvm_arg_address(L, 2);
	int error = ckvm_vm_set_identity_map_addr(vm, gpa);

	return error ? luackvm_fail(L, error, NULL) : 0;
}

/***
 * Which vCPU starts, while the others wait for it. Before the first vCPU.
 *
 * @function vm:set_boot_cpu_id
 * @tparam integer id number of the vCPU; 0 if this is not called
 * @raise `EBUSY` after the first vCPU
 * @api 4.41 KVM_SET_BOOT_CPU_ID
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:set_boot_cpu_id(1)
 */
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

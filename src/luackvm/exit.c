/* SPDX-License-Identifier: MIT */
/* vcpu.exit: the current exit, with the kernel's fields (api.rst, 5). */
#include <string.h>

#include <linux/kvm.h>

#include "payload.h"

/***
 * A view of the exit that a vCPU has taken, valid until it runs again:
 * `vcpu.exit` and what handlers of `vm:on` get. Which fields there are depends
 * on the exit; another field is an error. `pairs` gives all there are. What
 * the guest waits for (`data` of a read, `ret`, `error` and so on) can be set.
 * An array is a fresh table at each read: assign it, with those elements that
 * are to change.
 *
 * @type exit
 * @tfield string|integer reason the exit's name; a number that is newer than
 *  ckvm
 * @tfield integer request_interrupt_window 0 or 1; with 1, `irq_window_open`
 *  comes when the guest can take an interrupt
 * @tfield integer ready_for_interrupt_injection,if_flag 0 or 1
 * @tfield integer run_flags bits of kvm_run.flags
 * @tfield integer cr8 value of the task priority, 0 to 15
 * @tfield integer apic_base address of the local APIC, and bits
 * @tfield[opt] integer port number (io_in, io_out)
 * @tfield[opt] integer size bytes of one element (io_in, io_out), or of the
 *  place
 * @tfield[opt] integer count how many elements (io_in, io_out)
 * @tfield[opt] integer|string|integer[] data value of an access, a string if
 *  there are several elements; of an MSR; numbers of internal_error and
 *  system_event
 * @tfield[opt] integer phys_addr guest physical address (mmio_read, mmio_write)
 * @tfield[opt] integer len bytes (mmio_read, mmio_write)
 * @tfield[opt] integer is_write 0 or 1
 * @tfield[opt] integer suberror number of the error (internal_error)
 * @tfield[opt] integer ndata how many elements of data count
 * @tfield[opt] integer insn_size bytes of the instruction (internal_error)
 * @tfield[opt] string insn_bytes the instruction (internal_error)
 * @tfield[opt] integer hardware_entry_failure_reason number that the CPU gives
 * @tfield[opt] integer hardware_exit_reason number that the CPU gives (unknown)
 * @tfield[opt] integer cpu number of the host's CPU (fail_entry)
 * @tfield[opt] integer exception number of the vector (debug, exception)
 * @tfield[opt] integer error_code bits that the CPU pushes (exception)
 * @tfield[opt] integer pc address of the instruction (debug)
 * @tfield[opt] integer dr6,dr7 bits of DR6 and DR7 (debug)
 * @tfield[opt] integer nr number of the hypercall
 * @tfield[opt] integer[] args values of its arguments
 * @tfield[opt] integer ret value that it returns
 * @tfield[opt] integer longmode 0 or 1 (hypercall, xen)
 * @tfield[opt] integer flags bits (hypercall, memory_fault, notify and others)
 * @tfield[opt] integer index number of the MSR
 * @tfield[opt] integer msr_reason bits: why the MSR is the host's
 * @tfield[opt] integer error 0 or 1; with 1 the guest gets #GP
 * @tfield[opt] integer type number of the event (system_event, hyperv, xen)
 * @tfield[opt] integer rip address of the instruction (tpr_access)
 * @tfield[opt] integer vector number of the interrupt (ioapic_eoi, tdx)
 * @tfield[opt] integer gpa guest physical address (memory_fault and others)
 * @tfield[opt] integer gva linear address (arm_sea)
 * @tfield[opt] integer npages how many pages (snp_req_certs)
 * @tfield[opt] integer msr number of the MSR (hyperv)
 * @tfield[opt] integer control,status,input,result value (hyperv, xen)
 * @tfield[opt] integer evt_page,msg_page,send_page,recv_page,pending_page guest
 *  physical address (hyperv)
 * @tfield[opt] integer[] params values (hyperv, xen)
 * @tfield[opt] integer cpl number of the ring (xen)
 * @tfield[opt] integer leaf number of the call (tdx)
 * @tfield[opt] integer r11,r12,r13,r14 value of the register (tdx)
 * @tfield[opt] integer esr,esr_iss bits of the syndrome (arm_sea, arm_nisv)
 * @tfield[opt] integer fault_ipa guest physical address (arm_nisv)
 * @tfield[opt] integer extension_id,function_id number of the call (riscv_sbi)
 * @tfield[opt] integer csr_num number of the register (riscv_csr)
 * @tfield[opt] integer new_value,ret_value value of it (riscv_csr)
 * @tfield[opt] integer write_mask bits that are written (riscv_csr)
 * @tfield[opt] integer dcrn number of the register (dcr)
 * @tfield[opt] integer[] gprs values of the registers (osi)
 * @tfield[opt] integer epr number of the vector (epr)
 * @tfield[opt] integer icptcode,trans_exc_code,pgm_code number of the cause
 *  (s390)
 * @tfield[opt] integer ipa,ipb bits of the instruction (s390)
 * @tfield[opt] integer s390_reset_flags bits (s390)
 * @tfield[opt] integer subchannel_id,subchannel_nr number of the subchannel
 *  (s390)
 * @tfield[opt] integer io_int_parm,io_int_word value (s390)
 * @tfield[opt] integer dequeued 0 or 1 (s390)
 * @tfield[opt] integer addr address (s390)
 * @tfield[opt] integer ar,fc,sel1,sel2 number that the instruction has (s390)
 * @usage
 * if vcpu.exit then print(vcpu.exit.reason) end
 */

#define EXIT_CACHE 0 /* beside the views, in the vCPU's cache */

struct exit_view {
	struct luackvm_box *vcpu; /* the vCPU's box, which is user value 1 */
	uint32_t serial;	  /* of the exit it was last fetched for */
};

static const char key;

void luackvm_push_exit_name(lua_State *L, uint32_t number)
{
	const char *name = ckvm_exit_name(number);

	if (name)
		lua_pushstring(L, name);
	else
		lua_pushinteger(L, number);
}

/* Data -------------------------------------------------------------------- */

/* What an access carries: an integer, or a string of several elements. */
static int push_data(lua_State *L, const uint8_t *data, size_t size,
		     size_t count)
{
	if (count == 1)
		lua_pushinteger(L, (lua_Integer)luackvm_load(data, size));
	else
		lua_pushlstring(L, (const char *)data, size * count);
	return 1;
}

static int set_data(lua_State *L, uint8_t *data, size_t size, size_t count)
{
	size_t length;
	const char *text;

	if (count == 1 && lua_type(L, 3) == LUA_TNUMBER) {
		luackvm_store(data, size, (uint64_t)luaL_checkinteger(L, 3));
		return 0;
	}
	if (lua_type(L, 3) != LUA_TSTRING)
		return luaL_error(L, "data: %s expected, got %s",
				  count == 1 ? "integer" : "string",
				  luaL_typename(L, 3));
	text = lua_tolstring(L, 3, &length);
	if (length != size * count)
		return luaL_error(L, "data: %I bytes, not %I, expected",
				  (lua_Integer)(size * count),
				  (lua_Integer)length);
	memcpy(data, text, length);
	return 0;
}

/* The view ---------------------------------------------------------------- */

/* The page, if this is still the exit that the view was fetched for. */
static struct kvm_run *check_exit(lua_State *L)
{
	struct exit_view *view = lua_touserdata(L, 1);
	struct ckvm_vcpu *vcpu;
	struct kvm_run *run;

	if (!view || !lua_getmetatable(L, 1) ||
	    !lua_rawequal(L, -1, lua_upvalueindex(1)))
		luaL_typeerror(L, 1, "exit");
	lua_pop(L, 1);
	vcpu = view->vcpu->object;
	if (!vcpu)
		luaL_error(L, "vCPU is closed");
	run = ckvm_vcpu_exit(vcpu);
	if (!run || ckvm_vcpu_exit_serial(vcpu) != view->serial)
		luaL_error(
			L,
			"this exit is over: the vCPU runs, or has run since");
	return run;
}

static struct ckvm_vcpu *view_vcpu(lua_State *L)
{
	const struct exit_view *view = lua_touserdata(L, 1);

	return view->vcpu->held;
}

static int no_field(lua_State *L, const char *name, const char *what)
{
	luackvm_push_exit_name(L, ckvm_vcpu_exit_number(view_vcpu(L)));
	return luaL_error(L, "exit %s has no field '%s'%s",
			  luaL_tolstring(L, -1, NULL), name, what);
}

static int index_exit(lua_State *L)
{
	struct kvm_run *run = check_exit(L);
	const char *name = luackvm_text(L, 2, "exit");
	const struct luackvm_field *field;
	uint32_t size, count;
	uint8_t *data;

	if (!strcmp(name, "reason")) {
		luackvm_push_exit_name(L, ckvm_vcpu_exit_number(view_vcpu(L)));
		return 1;
	}
	if (!strcmp(name, "data")) {
		data = ckvm_vcpu_exit_data(view_vcpu(L), &size, &count);
		if (data)
			return push_data(L, data, size, count);
	}
	field = luackvm_find_payload(run, name);
	if (!field)
		return no_field(L, name, "");
	luackvm_push_payload(L, run, field);
	return 1;
}

static int next_field(lua_State *L)
{
	luaL_checktype(L, 1, LUA_TTABLE);
	lua_settop(L, 2);
	return lua_next(L, 1) ? 2 : 0;
}

/* pairs(exit): all of it, as it is now. */
static int pairs_exit(lua_State *L)
{
	struct kvm_run *run = check_exit(L);
	const struct luackvm_field *field;
	uint32_t size, count;
	uint8_t *data;
	size_t list = 0;

	lua_pushcfunction(L, next_field);
	lua_createtable(L, 0, 16);
	luackvm_push_exit_name(L, ckvm_vcpu_exit_number(view_vcpu(L)));
	lua_setfield(L, -2, "reason");
	while ((field = luackvm_payload(run, &list)))
		for (; field->name; field++) {
			luackvm_push_payload(L, run, field);
			lua_setfield(L, -2, field->name);
		}
	data = ckvm_vcpu_exit_data(view_vcpu(L), &size, &count);
	if (data) {
		push_data(L, data, size, count);
		lua_setfield(L, -2, "data");
	}
	return 2;
}

static bool is_read(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_IO
		       ? run->io.direction == KVM_EXIT_IO_IN
		       : !run->mmio.is_write;
}

/* The elements that the table at 3 names. */
static int assign_array(lua_State *L, struct kvm_run *run,
			const struct luackvm_field *field)
{
	struct luackvm_field fields[] = { *field, { .name = NULL } };
	struct luackvm_struct def = { "exit", 0, fields, 0 };
	size_t size = (size_t)field->size * field->count;
	uint8_t data[LUACKVM_MAX_ARRAY];

	luaL_argcheck(L, lua_istable(L, 3), 3, "table expected");
	fields[0].offset = 0;
	memcpy(data, (uint8_t *)run + field->offset, size);
	lua_createtable(L, 0, 1);
	lua_pushvalue(L, 3);
	lua_setfield(L, -2, field->name);
	luackvm_read_struct(L, lua_gettop(L), &def, data);
	/* What was collected meanwhile may have run the vCPU, or closed it. */
	memcpy((uint8_t *)check_exit(L) + field->offset, data, size);
	return 0;
}

static int assign_exit(lua_State *L)
{
	struct kvm_run *run = check_exit(L);
	const char *name = luackvm_text(L, 2, "exit");
	const struct luackvm_field *field;
	uint32_t size, count;
	uint8_t *data;

	if (!strcmp(name, "data")) {
		data = ckvm_vcpu_exit_data(view_vcpu(L), &size, &count);
		if (data && is_read(run))
			return set_data(L, data, size, count);
	}
	field = luackvm_find_payload(run, name);
	if (!field || !(field->flag & PAYLOAD_ANSWER))
		return no_field(L, name, " that can be set");
	if (field->count)
		return assign_array(L, run, field);
	luackvm_store((uint8_t *)run + field->offset, field->size,
		      luackvm_scalar(L, 3, name, field));
	return 0;
}

static void push_metatable(lua_State *L)
{
	static const luaL_Reg methods[] = {
		{ "__index", index_exit },
		{ "__newindex", assign_exit },
		{ "__pairs", pairs_exit },
		{ NULL, NULL },
	};

	if (lua_rawgetp(L, LUA_REGISTRYINDEX, &key) == LUA_TTABLE)
		return;
	lua_pop(L, 1);
	lua_createtable(L, 0, 5);
	lua_pushvalue(L, -1);
	luaL_setfuncs(L, methods, 1);
	lua_pushliteral(L, "ckvm exit");
	lua_pushvalue(L, -1);
	lua_setfield(L, -3, "__name");
	lua_setfield(L, -2, "__metatable");
	lua_pushvalue(L, -1);
	lua_rawsetp(L, LUA_REGISTRYINDEX, &key);
}

void luackvm_push_exit(lua_State *L, int vcpu)
{
	struct luackvm_box *box = lua_touserdata(L, vcpu);
	struct exit_view *view;

	lua_getiuservalue(L, vcpu, VCPU_CACHE);
	if (lua_rawgeti(L, -1, EXIT_CACHE) == LUA_TNIL) {
		lua_pop(L, 1);
		view = lua_newuserdatauv(L, sizeof(*view), 1);
		view->vcpu = box;
		lua_pushvalue(L, vcpu);
		lua_setiuservalue(L, -2, 1);
		push_metatable(L);
		lua_setmetatable(L, -2);
		lua_pushvalue(L, -1);
		lua_rawseti(L, -3, EXIT_CACHE);
	}
	lua_remove(L, -2);
	view = lua_touserdata(L, -1);
	view->serial = ckvm_vcpu_exit_serial(box->held);
}

/* vcpu.exit: the one view of this vCPU, set to the current exit; or nil. */
void luackvm_exit_view(lua_State *L, struct luackvm_box *box)
{
	if (ckvm_vcpu_exit(luackvm_open_object(L, box)))
		luackvm_push_exit(L, 1);
	else
		lua_pushnil(L);
}

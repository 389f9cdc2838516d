/* SPDX-License-Identifier: MIT */
/* vcpu.exit: the current exit, with the kernel's fields (api.rst, 5). */
#include <stddef.h>
#include <string.h>

#include <linux/kvm.h>

#include "luackvm.h"

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

/* Payloads ---------------------------------------------------------------- */

#define RUN struct kvm_run
#define FIELD(part, member)                                            \
	{                                                              \
		.name = #member, .offset = offsetof(RUN, part.member), \
		.size = LUACKVM_SIZE(RUN, part.member)                 \
	}

/* One that the kernel reads back, so that it can be set. */
#define WRITABLE 1
#define ANSWER(part, member)                                             \
	{                                                                \
		.name = #member, .offset = offsetof(RUN, part.member),   \
		.size = LUACKVM_SIZE(RUN, part.member), .flag = WRITABLE \
	}
#define ARRAY(part, member, n)                                          \
	{                                                               \
		.name = #member, .offset = offsetof(RUN, part.member),  \
		.size = LUACKVM_SIZE(RUN, part.member[0]), .count = (n) \
	}
#define END                  \
	{                    \
		.name = NULL \
	}

static const struct luackvm_field io[] = {
	FIELD(io, port),
	FIELD(io, size),
	FIELD(io, count),
	END,
};
static const struct luackvm_field mmio[] = {
	FIELD(mmio, phys_addr),
	FIELD(mmio, len),
	FIELD(mmio, is_write),
	END,
};
static const struct luackvm_field unknown[] = {
	FIELD(hw, hardware_exit_reason),
	END,
};
static const struct luackvm_field fail_entry[] = {
	FIELD(fail_entry, hardware_entry_failure_reason),
	FIELD(fail_entry, cpu),
	END,
};
static const struct luackvm_field exception[] = {
	FIELD(ex, exception),
	FIELD(ex, error_code),
	END,
};
/* longmode is the low half of flags, which came with Linux 6.4. */
static const struct luackvm_field hypercall[] = {
	FIELD(hypercall, nr),
	ARRAY(hypercall, args, 6),
	ANSWER(hypercall, ret),
	FIELD(hypercall, longmode),
	{ .name = "flags",
	  .offset = offsetof(RUN, hypercall.longmode),
	  .size = 8 },
	END,
};
static const struct luackvm_field debug[] = {
	FIELD(debug.arch, exception),
	FIELD(debug.arch, pc),
	FIELD(debug.arch, dr6),
	FIELD(debug.arch, dr7),
	END,
};
static const struct luackvm_field tpr_access[] = {
	FIELD(tpr_access, rip),
	FIELD(tpr_access, is_write),
	END,
};
static const struct luackvm_field internal_error[] = {
	FIELD(internal, suberror),
	FIELD(internal, ndata),
	ARRAY(internal, data, 16),
	END,
};
static const struct luackvm_field system_event[] = {
	FIELD(system_event, type),
	FIELD(system_event, ndata),
	ARRAY(system_event, data, 16),
	END,
};
static const struct luackvm_field eoi[] = { FIELD(eoi, vector), END };
static const struct luackvm_field rdmsr[] = {
	ANSWER(msr, error),
	FIELD(msr, reason),
	FIELD(msr, index),
	ANSWER(msr, data),
	END,
};
static const struct luackvm_field wrmsr[] = {
	ANSWER(msr, error),
	FIELD(msr, reason),
	FIELD(msr, index),
	FIELD(msr, data),
	END,
};
static const struct luackvm_field notify[] = { FIELD(notify, flags), END };

/* Not in the headers of Linux 6.1; all payloads begin at the same place. */
#define FAULT(member, at)                                                      \
	{                                                                      \
		.name = #member, .offset = offsetof(RUN, hw) + (at), .size = 8 \
	}
static const struct luackvm_field memory_fault[] = {
	FAULT(flags, 0),
	FAULT(gpa, 8),
	FAULT(size, 16),
	END,
};

static const struct {
	uint32_t reason;
	const struct luackvm_field *fields;
} payloads[] = {
	{ KVM_EXIT_IO, io },
	{ KVM_EXIT_MMIO, mmio },
	{ KVM_EXIT_UNKNOWN, unknown },
	{ KVM_EXIT_EXCEPTION, exception },
	{ KVM_EXIT_HYPERCALL, hypercall },
	{ KVM_EXIT_DEBUG, debug },
	{ KVM_EXIT_FAIL_ENTRY, fail_entry },
	{ KVM_EXIT_TPR_ACCESS, tpr_access },
	{ KVM_EXIT_INTERNAL_ERROR, internal_error },
	{ KVM_EXIT_SYSTEM_EVENT, system_event },
	{ KVM_EXIT_IOAPIC_EOI, eoi },
	{ KVM_EXIT_X86_RDMSR, rdmsr },
	{ KVM_EXIT_X86_WRMSR, wrmsr },
	{ KVM_EXIT_NOTIFY, notify },
	{ 39 /* KVM_EXIT_MEMORY_FAULT */, memory_fault },
};

/* The field of that name in the exit's payload, or NULL. */
static const struct luackvm_field *find_field(const struct kvm_run *run,
					      const char *name)
{
	const struct luackvm_field *field;

	for (size_t i = 0; i < ARRAY_SIZE(payloads); i++) {
		if (payloads[i].reason != run->exit_reason)
			continue;
		for (field = payloads[i].fields; field->name; field++)
			if (!strcmp(field->name, name))
				return field;
	}
	return NULL;
}

/* Data -------------------------------------------------------------------- */

/* What an access carries: an integer, or a string of several elements. */
static bool find_data(struct kvm_run *run, uint8_t **data, size_t *size,
		      size_t *count)
{
	if (run->exit_reason == KVM_EXIT_IO) {
		*data = (uint8_t *)run + run->io.data_offset;
		*size = run->io.size;
		*count = run->io.count;
	} else if (run->exit_reason == KVM_EXIT_MMIO) {
		*data = run->mmio.data;
		*size = run->mmio.len;
		*count = 1;
	} else {
		return false;
	}
	return true;
}

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
		luaL_error(L, "this exit is over: the vCPU has run since");
	return run;
}

static struct ckvm_vcpu *view_vcpu(lua_State *L)
{
	const struct exit_view *view = lua_touserdata(L, 1);

	return view->vcpu->held;
}

static int index_exit(lua_State *L)
{
	struct kvm_run *run = check_exit(L);
	const char *name = luackvm_text(L, 2, "exit");
	const struct luackvm_field *field;
	size_t size, count;
	uint8_t *data;

	if (!strcmp(name, "reason")) {
		luackvm_push_exit_name(L, ckvm_vcpu_exit_number(view_vcpu(L)));
		return 1;
	}
	if (!strcmp(name, "data") && find_data(run, &data, &size, &count))
		return push_data(L, data, size, count);
	field = find_field(run, name);
	if (field) {
		luackvm_push_field(L, field, (uint8_t *)run + field->offset);
		return 1;
	}
	luackvm_push_exit_name(L, ckvm_vcpu_exit_number(view_vcpu(L)));
	return luaL_error(L, "exit %s has no field '%s'", lua_tostring(L, -1),
			  name);
}

static bool is_read(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_IO
		       ? run->io.direction == KVM_EXIT_IO_IN
		       : run->exit_reason == KVM_EXIT_MMIO &&
				 !run->mmio.is_write;
}

static int assign_exit(lua_State *L)
{
	struct kvm_run *run = check_exit(L);
	const char *name = luackvm_text(L, 2, "exit");
	const struct luackvm_field *field;
	size_t size, count;
	uint8_t *data;

	if (!strcmp(name, "data") && is_read(run) &&
	    find_data(run, &data, &size, &count))
		return set_data(L, data, size, count);
	field = find_field(run, name);
	if (!field || !(field->flag & WRITABLE)) {
		luackvm_push_exit_name(L, ckvm_vcpu_exit_number(view_vcpu(L)));
		return luaL_error(L,
				  "exit %s has no field '%s' that can be "
				  "set",
				  lua_tostring(L, -1), name);
	}
	luackvm_store((uint8_t *)run + field->offset, field->size,
		      luackvm_field_value(L, 3, name, field->size));
	return 0;
}

static void push_metatable(lua_State *L)
{
	static const luaL_Reg methods[] = {
		{ "__index", index_exit },
		{ "__newindex", assign_exit },
		{ NULL, NULL },
	};

	if (lua_rawgetp(L, LUA_REGISTRYINDEX, &key) == LUA_TTABLE)
		return;
	lua_pop(L, 1);
	lua_createtable(L, 0, 4);
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

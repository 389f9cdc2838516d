/* SPDX-License-Identifier: MIT */
/*
 * Live views of a vCPU's registers: vcpu.regs, vcpu.sregs.cs, vcpu.events.nmi.
 * Reading and writing a field goes to libckvm's cache; nothing is copied.
 */
#include <string.h>

#include "luackvm.h"

/* The tag tells a view from other userdata at less cost than its metatable. */
static const char tag;

struct view {
	const char *tag;
	struct luackvm_box *vcpu; /* the vCPU's box, which is user value 1 */
	const struct luackvm_names *fields; /* the metatable's */
	enum ckvm_view which;
	uint16_t base;	/* of this part, in the whole */
	uint16_t flags; /* offset of the whole's validity flags; 0: none */
};

static struct view *to_view(lua_State *L)
{
	struct view *view = lua_touserdata(L, 1);

	if (!view || lua_rawlen(L, 1) != sizeof(*view) || view->tag != &tag)
		luaL_typeerror(L, 1, "registers");
	return view;
}

static struct view *check_view(lua_State *L)
{
	struct view *view = to_view(L);

	if (!view->vcpu->object)
		luaL_error(L, "vCPU is closed");
	return view;
}

static const struct luackvm_struct *view_struct(const struct view *view)
{
	return view->fields->owner;
}

static const struct luackvm_field *find_field(lua_State *L,
					      const struct view *view)
{
	const struct luackvm_field *field;

	lua_pushvalue(L, 2);
	lua_rawget(L, lua_upvalueindex(1));
	field = lua_touserdata(L, -1);
	if (!field)
		luaL_error(L, "%s has no field '%s'", view_struct(view)->name,
			   luaL_tolstring(L, 2, NULL));
	return field;
}

static inline const struct luackvm_field *check_field(lua_State *L,
						      const struct view *view)
{
	const struct luackvm_field *field =
		luackvm_find_name(L, 2, view->fields);

	return likely(field) ? field : find_field(L, view);
}

static const uint8_t *view_data(lua_State *L, const struct view *view)
{
	const void *data;
	int error = ckvm_vcpu_view(view->vcpu->held, view->which, &data);

	if (error)
		luackvm_fail(L, error, NULL);
	return (const uint8_t *)data + view->base;
}

static void push_view(lua_State *L, const struct view *view,
		      const struct luackvm_struct *def, int vcpu);

/* A part that is a struct: made once, and kept in user value 2. */
static int push_part(lua_State *L, const struct view *view,
		     const struct luackvm_field *field)
{
	struct view part = {
		.tag = &tag,
		.vcpu = view->vcpu,
		.which = view->which,
		.base = (uint16_t)(view->base + field->offset),
		.flags = view->flags,
	};

	if (lua_getiuservalue(L, 1, 2) != LUA_TTABLE) {
		lua_pop(L, 1);
		lua_newtable(L);
		lua_pushvalue(L, -1);
		lua_setiuservalue(L, 1, 2);
	}
	lua_pushvalue(L, 2);
	if (lua_rawget(L, -2) != LUA_TNIL)
		return 1;
	lua_pop(L, 1);
	lua_getiuservalue(L, 1, 1);
	push_view(L, &part, field->sub, lua_gettop(L));
	lua_pushvalue(L, 2);
	lua_pushvalue(L, -2);
	lua_rawset(L, -5);
	return 1;
}

static int index_view(lua_State *L)
{
	const struct view *view = check_view(L);
	const struct luackvm_field *field = check_field(L, view);

	if (field->sub)
		return push_part(L, view, field);
	luackvm_push_field(L, field, view_data(L, view) + field->offset);
	return 1;
}

static void write_bytes(lua_State *L, const struct view *view, size_t offset,
			const void *value, size_t size)
{
	int error = ckvm_vcpu_write_view(view->vcpu->held, view->which, offset,
					 value, size);

	if (error)
		luackvm_fail(L, error, NULL);
}

static void set_flag(lua_State *L, const struct view *view, uint32_t flag)
{
	uint32_t flags = (uint32_t)luackvm_load(
		view_data(L, view) - view->base + view->flags, sizeof(flags));

	if (flags & flag)
		return;
	flags |= flag;
	write_bytes(L, view, view->flags, &flags, sizeof(flags));
}

/* A table for a part or an array: the fields it names. */
static void assign_table(lua_State *L, const struct view *view,
			 const struct luackvm_field *field)
{
	struct luackvm_field fields[] = { *field, { .name = NULL } };
	struct luackvm_struct def = { view_struct(view)->name, 0, fields, 0 };
	uint8_t data[LUACKVM_MAX_ARRAY];

	luaL_argcheck(L,
		      (size_t)field->size * (field->count + !field->count) <=
			      sizeof(data),
		      2, "too large");
	fields[0].offset = 0;
	memcpy(data, view_data(L, view) + field->offset,
	       (size_t)field->size * (field->count + !field->count));
	lua_createtable(L, 0, 1);
	lua_pushvalue(L, 2);
	lua_pushvalue(L, 3);
	lua_rawset(L, -3);
	luackvm_read_struct(L, lua_gettop(L), &def, data);
	write_bytes(L, view, view->base + field->offset, data,
		    (size_t)field->size * (field->count + !field->count));
}

static int assign_view(lua_State *L)
{
	const struct view *view = check_view(L);
	const struct luackvm_field *field = check_field(L, view);
	uint64_t value;

	if (field->sub || field->count) {
		assign_table(L, view, field);
	} else {
		value = luackvm_scalar(L, 3, field->name, field);
		write_bytes(L, view, view->base + field->offset, &value,
			    field->size);
	}
	if (field->flag)
		set_flag(L, view, field->flag);
	return 0;
}

/* pairs(view): name and value, in the kernel's order. */
static int next_field(lua_State *L)
{
	const struct view *view = check_view(L);
	const struct luackvm_field *field = view_struct(view)->fields;

	if (!lua_isnoneornil(L, 2))
		field = check_field(L, view) + 1;
	if (!field->name)
		return 0;
	lua_settop(L, 1);
	lua_pushstring(L, field->name);
	lua_pushvalue(L, -1);
	lua_gettable(L, 1);
	return 2;
}

static int pairs_view(lua_State *L)
{
	check_view(L);
	lua_pushvalue(L, lua_upvalueindex(1));
	lua_pushcclosure(L, next_field, 1);
	lua_pushvalue(L, 1);
	lua_pushnil(L);
	return 3;
}

/* tostring(view) does not raise: it is for prompts and messages. */
static int describe_view(lua_State *L)
{
	const struct view *view = to_view(L);
	const struct luackvm_struct *def = view_struct(view);
	const void *data;
	int error;

	if (!view->vcpu->object) {
		lua_pushfstring(L, "%s (closed)", def->name);
		return 1;
	}
	error = ckvm_vcpu_view(view->vcpu->held, view->which, &data);
	if (error)
		lua_pushfstring(L, "%s (%s)", def->name, luackvm_hint(error));
	else
		luackvm_describe(L, def, (const uint8_t *)data + view->base);
	return 1;
}

static void set_method(lua_State *L, const char *name, lua_CFunction function,
		       int meta, int fields)
{
	lua_pushvalue(L, fields);
	lua_pushcclosure(L, function, 1);
	lua_setfield(L, meta, name);
}

/* A metatable for each struct, made on first use, with its fields by name. */
static void push_metatable(lua_State *L, const struct luackvm_struct *def)
{
	const struct luackvm_field *field;
	int meta, fields;

	if (lua_rawgetp(L, LUA_REGISTRYINDEX, def) == LUA_TTABLE)
		return;
	lua_pop(L, 1);
	lua_createtable(L, 0, 7);
	meta = lua_gettop(L);
	lua_newtable(L);
	fields = lua_gettop(L);
	for (field = def->fields; field->name; field++) {
		lua_pushlightuserdata(L, (void *)(uintptr_t)field);
		lua_setfield(L, fields, field->name);
	}
	luackvm_push_names(L, fields, def);
	lua_setfield(L, meta, "fields");
	set_method(L, "__index", index_view, meta, fields);
	set_method(L, "__newindex", assign_view, meta, fields);
	set_method(L, "__pairs", pairs_view, meta, fields);
	set_method(L, "__tostring", describe_view, meta, fields);
	lua_pushstring(L, def->name);
	lua_pushvalue(L, -1);
	lua_setfield(L, meta, "__name");
	lua_setfield(L, meta, "__metatable");
	lua_settop(L, meta);
	lua_pushvalue(L, meta);
	lua_rawsetp(L, LUA_REGISTRYINDEX, def);
}

static void push_view(lua_State *L, const struct view *view,
		      const struct luackvm_struct *def, int vcpu)
{
	struct view *copy = lua_newuserdatauv(L, sizeof(*copy), 2);

	*copy = *view;
	lua_pushvalue(L, vcpu);
	lua_setiuservalue(L, -2, 1);
	push_metatable(L, def);
	lua_getfield(L, -1, "fields");
	copy->fields = lua_touserdata(L, -1);
	lua_pop(L, 1);
	lua_setmetatable(L, -2);
}

/* The vCPU's box is at 1. One view each, in a user value of the vCPU. */
static void cached(lua_State *L, struct luackvm_box *vcpu, enum ckvm_view which,
		   const struct luackvm_struct *def, int value)
{
	struct view view = {
		.tag = &tag, .vcpu = vcpu, .which = which, .flags = def->flags
	};

	luackvm_open_object(L, vcpu);
	if (lua_getiuservalue(L, 1, value) != LUA_TNIL)
		return;
	push_view(L, &view, def, 1);
	lua_pushvalue(L, -1);
	lua_setiuservalue(L, 1, value);
}

void luackvm_regs_view(lua_State *L, struct luackvm_box *box)
{
	cached(L, box, CKVM_VIEW_REGS, &luackvm_kvm_regs, VCPU_REGS);
}

void luackvm_sregs_view(lua_State *L, struct luackvm_box *box)
{
	cached(L, box, CKVM_VIEW_SREGS, &luackvm_kvm_sregs, VCPU_SREGS);
}

void luackvm_events_view(lua_State *L, struct luackvm_box *box)
{
	cached(L, box, CKVM_VIEW_EVENTS, &luackvm_kvm_vcpu_events, VCPU_EVENTS);
}

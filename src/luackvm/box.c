/* SPDX-License-Identifier: MIT */
/* Objects as userdata: making, checking, finding and closing them. */
#include <string.h>

#include "luackvm.h"

static const char objects; /* registry: object -> its box, weakly */

struct luackvm_box *luackvm_test(lua_State *L, int index,
				 const struct luackvm_type *type)
{
	struct luackvm_box *box = lua_touserdata(L, index);
	int same;

	if (!box || !lua_getmetatable(L, index))
		return NULL;
	lua_rawgetp(L, LUA_REGISTRYINDEX, type);
	same = lua_rawequal(L, -1, -2);
	lua_pop(L, 2);
	return same ? box : NULL;
}

struct luackvm_box *luackvm_box(lua_State *L, int index,
				const struct luackvm_type *type)
{
	struct luackvm_box *box = luackvm_test(L, index, type);

	if (!box)
		luaL_typeerror(L, index, type->name);
	return box;
}

void *luackvm_check(lua_State *L, int index, const struct luackvm_type *type)
{
	struct luackvm_box *box = luackvm_box(L, index, type);

	if (!box->object)
		luaL_argerror(L, index,
			      lua_pushfstring(L, "%s is closed", type->name));
	return box->object;
}

void *luackvm_open_object(lua_State *L, const struct luackvm_box *box)
{
	if (!box->object)
		luaL_error(L, "%s is closed", box->type->name);
	return box->object;
}

struct luackvm_box *luackvm_new_box(lua_State *L,
				    const struct luackvm_type *type)
{
	struct luackvm_box *box;

	box = lua_newuserdatauv(L, sizeof(*box), type->values);
	*box = (struct luackvm_box){ .type = type, .lua = ckvm_lua_get(L) };
	lua_rawgetp(L, LUA_REGISTRYINDEX, type);
	lua_setmetatable(L, -2);
	return box;
}

static void push_objects(lua_State *L)
{
	if (lua_rawgetp(L, LUA_REGISTRYINDEX, &objects) == LUA_TTABLE)
		return;
	lua_pop(L, 1);
	lua_createtable(L, 0, 8);
	lua_createtable(L, 0, 1);
	lua_pushliteral(L, "v");
	lua_setfield(L, -2, "__mode");
	lua_setmetatable(L, -2);
	lua_pushvalue(L, -1);
	lua_rawsetp(L, LUA_REGISTRYINDEX, &objects);
}

void luackvm_fill(lua_State *L, struct luackvm_box *box, void *object,
		  bool owned)
{
	box->object = object;
	box->owned = owned;
	if (box->type->ref) {
		box->type->ref(object);
		box->held = object;
	}
	push_objects(L);
	lua_pushvalue(L, -2);
	lua_rawsetp(L, -2, object);
	lua_pop(L, 1);
}

bool luackvm_push_known(lua_State *L, const void *object)
{
	struct luackvm_box *box;

	push_objects(L);
	lua_rawgetp(L, -1, object);
	lua_remove(L, -2);
	box = lua_touserdata(L, -1);
	if (box && box->object == object)
		return true;
	lua_pop(L, 1);
	return false;
}

void luackvm_release(struct luackvm_box *box)
{
	void *object = box->object;

	box->object = NULL;
	atomic_fetch_add(&box->lua->changes, 1);
	if (object && box->owned)
		box->type->end(object);
}

/***
 * What the objects of this module have in common. `local vm <close> = ...`
 * closes one at the end of its block. Using a closed one is a string error.
 *
 * @type object
 */

/***
 * Gives the kernel back what the object has, at once; a VM with all that it
 * owns. In any order, and any number of times.
 *
 * @function object:close
 * @raise only for misuse
 * @usage
 * vm:close()
 * vm:close()
 */

/* close and __close of every type. May run twice. */
static int close_object(lua_State *L)
{
	const struct luackvm_type *type =
		lua_touserdata(L, lua_upvalueindex(1));
	struct luackvm_box *box = luackvm_box(L, 1, type);

	lua_settop(L, 1);
	if (type->close)
		type->close(L);
	luackvm_release(box);
	return 0;
}

static void let_go(struct luackvm_box *box)
{
	void *held = box->held;

	box->held = NULL;
	if (held)
		box->type->unref(held);
}

static int collect_object(lua_State *L)
{
	close_object(L);
	let_go(lua_touserdata(L, 1));
	return 0;
}

void luackvm_close_all(lua_State *L)
{
	push_objects(L);
	for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
		struct luackvm_box *box = lua_touserdata(L, -1);

		luackvm_release(box);
		let_go(box);
	}
	lua_pop(L, 1);
}

struct luackvm_names *luackvm_push_names(lua_State *L, int table,
					 const void *owner)
{
	struct luackvm_names *names;

	table = lua_absindex(L, table);
	names = lua_newuserdatauv(L, sizeof(*names), 1);
	*names = (struct luackvm_names){ .owner = owner };
	lua_pushvalue(L, table);
	lua_setiuservalue(L, -2, 1);
	for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) {
		const char *name = lua_tostring(L, -2);
		unsigned int i = luackvm_name_slot(name);

		if (!lua_islightuserdata(L, -1))
			continue;
		names->slot[i].name = name;
		names->slot[i].value = lua_touserdata(L, -1);
	}
	return names;
}

/* Upvalues of __index: the properties' names, and all members. */
enum { UP_NAMES = 1, UP_MEMBERS };

/* A typo does not pass as nil. Pushes a method, or returns a property. */
static const struct luackvm_property *
find_member(lua_State *L, const struct luackvm_type *type)
{
	int found;

	lua_pushvalue(L, 2);
	found = lua_rawget(L, lua_upvalueindex(UP_MEMBERS));
	if (found == LUA_TLIGHTUSERDATA)
		return lua_touserdata(L, -1);
	if (found != LUA_TFUNCTION)
		luaL_error(L, "%s has no method or field '%s'", type->name,
			   luaL_tolstring(L, 2, NULL));
	return NULL;
}

static int index_object(lua_State *L)
{
	const struct luackvm_names *names =
		lua_touserdata(L, lua_upvalueindex(UP_NAMES));
	const struct luackvm_type *type = names->owner;
	const struct luackvm_property *property =
		luackvm_find_name(L, 2, names);
	struct luackvm_box *box;

	if (!property)
		property = find_member(L, type);
	if (!property)
		return 1;
	/* The type in a box is quicker to look at than its metatable. */
	box = lua_touserdata(L, 1);
	if (!box || lua_rawlen(L, 1) != sizeof(*box) || box->type != type)
		return luaL_typeerror(L, 1, type->name);
	property->push(L, box);
	return 1;
}

static int refuse_field(lua_State *L)
{
	const struct luackvm_type *type =
		lua_touserdata(L, lua_upvalueindex(1));

	return luaL_error(L, "%s has no field '%s' that can be set", type->name,
			  luaL_tolstring(L, 2, NULL));
}

static int describe(lua_State *L)
{
	const struct luackvm_type *type =
		lua_touserdata(L, lua_upvalueindex(1));
	const struct luackvm_box *box = luackvm_box(L, 1, type);

	lua_pushfstring(L, "%s (%s)", type->name,
			box->object ? lua_pushfstring(L, "%p", box->object)
				    : "closed");
	return 1;
}

static void push_members(lua_State *L, const struct luackvm_type *type)
{
	const struct luackvm_property *property;

	lua_newtable(L);
	for (int i = 0; type->methods && type->methods[i]; i++)
		luaL_setfuncs(L, type->methods[i], 0);
	for (int i = 0; type->states && type->states[i]; i++)
		luackvm_add_states(L, type, type->states[i]);
	for (property = type->properties; property && property->name;
	     property++) {
		lua_pushlightuserdata(L, (void *)(uintptr_t)property);
		lua_setfield(L, -2, property->name);
	}
}

static void set_closure(lua_State *L, const char *name, lua_CFunction function,
			const struct luackvm_type *type)
{
	lua_pushlightuserdata(L, (void *)(uintptr_t)type);
	lua_pushcclosure(L, function, 1);
	lua_setfield(L, -2, name);
}

void luackvm_register_type(lua_State *L, const struct luackvm_type *type)
{
	lua_createtable(L, 0, 8); /* the metatable */

	push_members(L, type);
	set_closure(L, "close", close_object, type);
	luackvm_push_names(L, -1, type);
	lua_insert(L, -2);
	lua_pushcclosure(L, index_object, 2);
	lua_setfield(L, -2, "__index");

	set_closure(L, "__newindex", refuse_field, type);
	set_closure(L, "__tostring", describe, type);
	set_closure(L, "__close", close_object, type);
	set_closure(L, "__gc", collect_object, type);
	lua_pushfstring(L, "ckvm %s", type->name);
	lua_pushvalue(L, -1);
	lua_setfield(L, -3, "__name");
	lua_setfield(L, -2, "__metatable");
	lua_rawsetp(L, LUA_REGISTRYINDEX, type);
}

/* SPDX-License-Identifier: MIT */
/* Objects: the userdata that hold them, and what each kind of them has. */
#ifndef LUACKVM_BOX_H
#define LUACKVM_BOX_H

#include "thread.h"

/* box.c ------------------------------------------------------------------- */

/*
 * What the userdata of an object hold; `object` is NULL once closed.
 * Metamethods of tables, and finalizers at any allocation, may close it in the
 * middle of a method; so a reference is kept until the box is collected, and
 * libckvm says -EBADF to what is left of the method.
 */
struct luackvm_box {
	void *object;
	void *held;
	const struct luackvm_type *type;
	struct ckvm_lua *lua;
	bool owned; /* close() ends the object, not just Lua's hold on it */
};

/* A field of an object: pushes one value. The object may be closed. */
struct luackvm_property {
	const char *name;
	void (*push)(lua_State *L, struct luackvm_box *box);
};

/*
 * From a key to a pointer at less cost than a table's. Lua keeps a short string
 * once, so that its address tells it: if it is that of a key which the table
 * holds, it is that key. If it is not, the table knows better.
 */
#define LUACKVM_NAMES 64
struct luackvm_names {
	const void *owner;
	struct {
		const char *name;
		const void *value;
	} slot[LUACKVM_NAMES];
};

/* Pushes one for the keys of light userdata in the table at index. */
struct luackvm_names *luackvm_push_names(lua_State *L, int table,
					 const void *owner);

static inline unsigned int luackvm_name_slot(const char *name)
{
	return (unsigned int)((uintptr_t)name / 16 % LUACKVM_NAMES);
}

/* The pointer for the key at index; NULL: not known here. */
static inline const void *luackvm_find_name(lua_State *L, int index,
					    const struct luackvm_names *names)
{
	const char *name = lua_tostring(L, index);
	unsigned int i = luackvm_name_slot(name);

	return likely(name && names->slot[i].name == name)
		       ? names->slot[i].value
		       : NULL;
}

/* A struct that the kernel gets and sets whole: methods get_x and set_x. */
struct luackvm_state {
	const char *name; /* "regs" */
	const struct luackvm_struct *def;
	int (*get)(void *object, void *data);	    /* NULL: there is none */
	int (*set)(void *object, const void *data); /* likewise */
	/* Why EINVAL; NULL: luackvm_fail knows. */
	void (*explain)(const void *data, char *text, size_t size);
};

/* The functions of one for ckvm_OBJECT_get_NAME and ckvm_OBJECT_set_NAME. */
#define LUACKVM_GET(object_, name_)                                \
	static int get_##name_(void *object, void *data)           \
	{                                                          \
		return ckvm_##object_##_get_##name_(object, data); \
	}
#define LUACKVM_SET(object_, name_)                                \
	static int set_##name_(void *object, const void *data)     \
	{                                                          \
		return ckvm_##object_##_set_##name_(object, data); \
	}
#define LUACKVM_GET_SET(object_, name_) \
	LUACKVM_GET(object_, name_) LUACKVM_SET(object_, name_)

/* A kind of object. Its address is its metatable's key in the registry. */
struct luackvm_type {
	const char *name;		/* "vCPU": in messages */
	const luaL_Reg *const *methods; /* lists, by topic, up to NULL */
	const struct luackvm_state *const *states; /* lists; NULL: none */
	const struct luackvm_property *properties; /* NULL: none */
	void (*ref)(void *object); /* NULL, like unref: none is kept */
	void (*unref)(void *object);
	void (*end)(void *object); /* what close does to one that is owned */
	lua_CFunction close;	   /* and more that it does; NULL: nothing */
	bool apart; /* a VM that ends does not end it with itself */
	int values; /* user values */
};

extern const struct luackvm_type luackvm_system, luackvm_vm, luackvm_vcpu,
	luackvm_memory, luackvm_range, luackvm_buffer, luackvm_eventfd,
	luackvm_stats, luackvm_device, luackvm_guest_memfd, luackvm_watch,
	luackvm_terminal;

void luackvm_register_type(lua_State *L, const struct luackvm_type *type);

/* Pushes an empty box, to be filled with luackvm_fill. */
struct luackvm_box *luackvm_new_box(lua_State *L,
				    const struct luackvm_type *type);

/*
 * Fills the box on top of the stack, so that luackvm_push_known finds it. No
 * Lua between the call that made the object and this one: it takes a reference.
 */
void luackvm_fill(lua_State *L, struct luackvm_box *box, void *object,
		  bool owned);

/* Pushes the box that has this object, or nothing: false. */
bool luackvm_push_known(lua_State *L, const void *object);

/* The box at index, of that type; raises for another type, NULL never. */
struct luackvm_box *luackvm_box(lua_State *L, int index,
				const struct luackvm_type *type);

/* The object in it; raises if it is closed. */
void *luackvm_check(lua_State *L, int index, const struct luackvm_type *type);

/* The object in a box; raises if it is closed. */
void *luackvm_open_object(lua_State *L, const struct luackvm_box *box);

/* The same without raising: NULL. */
struct luackvm_box *luackvm_test(lua_State *L, int index,
				 const struct luackvm_type *type);

/* Closes it, if it is not yet; runs no Lua. */
void luackvm_release(struct luackvm_box *box);

/*
 * What finalizers have made while the state was being closed: Lua gives these
 * objects no finalizer of their own.
 */
void luackvm_close_all(lua_State *L);

/* pointer.c --------------------------------------------------------------- */

/*
 * Has `collect` called for the userdata on top when it is collected; `unique`
 * is one address for each function.
 */
void luackvm_collect_with(lua_State *L, const void *unique,
			  lua_CFunction collect);

/*
 * Pushes a place for a pointer that free() takes, to be made before the memory
 * is: whatever raises after that, the collector frees it.
 */
void **luackvm_push_pointer(lua_State *L);

#endif

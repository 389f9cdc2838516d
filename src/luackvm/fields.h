/* SPDX-License-Identifier: MIT */
/* Values of the kernel's as Lua has them: names for numbers, tables for
 * structs. */
#ifndef LUACKVM_FIELDS_H
#define LUACKVM_FIELDS_H

#include "box.h"

/* constant.c -------------------------------------------------------------- */

/* One of an enumeration, or a flag: the kernel's name in lower case. */
struct luackvm_constant {
	const char *name;
	uint32_t value;
};

/* The name or number at index; raises with `what`. The list ends with NULL. */
uint32_t luackvm_constant(lua_State *L, int index, const char *what,
			  const struct luackvm_constant *names);
/* The name, or the number where there is none. */
void luackvm_push_constant(lua_State *L, uint32_t value,
			   const struct luackvm_constant *names);
/* Flags at index: a number, a name, or a list of them. */
uint32_t luackvm_flags(lua_State *L, int index, const char *what,
		       const struct luackvm_constant *names);

/* fields.c ---------------------------------------------------------------- */

struct luackvm_struct;

/* One line a field. Scalars are unsigned, and Lua integers. */
struct luackvm_field {
	const char *name;
	uint16_t offset;
	uint16_t size;	/* bytes of one element */
	uint16_t count; /* 0: not an array */
	bool bytes;	/* elements are strings; of one byte: the array is */
	uint8_t bits;	/* of a number that may not fill its size; 0: may */
	const struct luackvm_struct *sub; /* NULL: a scalar */
	uint32_t flag;			  /* validity bit that naming it sets */
	const struct luackvm_constant *names; /* of flags; NULL: numbers only */
};

struct luackvm_struct {
	const char *name; /* the kernel's */
	size_t size;
	const struct luackvm_field *fields; /* up to a NULL name */
	uint16_t flags; /* offset of the 32-bit validity flags; 0: none */
};

#define LUACKVM_SIZE(type, member) sizeof(((type *)0)->member)
#define LUACKVM_SCALAR(type, member)                               \
	{                                                          \
		.name = #member, .offset = offsetof(type, member), \
		.size = LUACKVM_SIZE(type, member)                 \
	}
#define LUACKVM_BITS(type, member, n)                              \
	{                                                          \
		.name = #member, .offset = offsetof(type, member), \
		.size = LUACKVM_SIZE(type, member), .bits = (n)    \
	}
#define LUACKVM_ARRAY(type, member)                                \
	{                                                          \
		.name = #member, .offset = offsetof(type, member), \
		.size = LUACKVM_SIZE(type, member[0]),             \
		.count = LUACKVM_SIZE(type, member) /              \
			 LUACKVM_SIZE(type, member[0])             \
	}
#define LUACKVM_BYTES(type, member)                                           \
	{                                                                     \
		.name = #member, .offset = offsetof(type, member), .size = 1, \
		.count = LUACKVM_SIZE(type, member), .bytes = true            \
	}
#define LUACKVM_STRINGS(type, member)                              \
	{                                                          \
		.name = #member, .offset = offsetof(type, member), \
		.size = LUACKVM_SIZE(type, member[0]),             \
		.count = LUACKVM_SIZE(type, member) /              \
			 LUACKVM_SIZE(type, member[0]),            \
		.bytes = true                                      \
	}
#define LUACKVM_PART(type, member, def)                            \
	{                                                          \
		.name = #member, .offset = offsetof(type, member), \
		.size = LUACKVM_SIZE(type, member), .sub = &(def)  \
	}
#define LUACKVM_PARTS(type, member, def)                           \
	{                                                          \
		.name = #member, .offset = offsetof(type, member), \
		.size = LUACKVM_SIZE(type, member[0]),             \
		.count = LUACKVM_SIZE(type, member) /              \
			 LUACKVM_SIZE(type, member[0]),            \
		.sub = &(def)                                      \
	}
#define LUACKVM_END          \
	{                    \
		.name = NULL \
	}

/* structs_x86.c */
extern const struct luackvm_struct luackvm_kvm_regs, luackvm_kvm_sregs,
	luackvm_kvm_sregs2, luackvm_kvm_vcpu_events, luackvm_kvm_fpu,
	luackvm_kvm_debugregs;

/* structs_irq_x86.c */
extern const struct luackvm_struct luackvm_kvm_pic_state,
	luackvm_kvm_ioapic_state, luackvm_kvm_pit_state, luackvm_kvm_pit_state2,
	luackvm_kvm_pit_config, luackvm_kvm_reinject_control,
	luackvm_kvm_clock_data;

/*
 * describe.c: pushes "kvm_dtable { base = 0x0, limit = 0xffff }", in lines, of
 * a struct that has numbers, parts, and arrays of numbers.
 */
void luackvm_describe(lua_State *L, const struct luackvm_struct *def,
		      const void *data);

/* sregs_x86.c: what the kernel refuses of a struct kvm_sregs or kvm_sregs2. */
void luackvm_explain_sregs(const void *data, char *text, size_t size);
void luackvm_explain_sregs2(const void *data, char *text, size_t size);

#define LUACKVM_MAX_ARRAY 256	/* bytes of the largest array of scalars */
#define LUACKVM_MAX_STRUCT 1024 /* of a struct that a luackvm_state has */

/* Adds the methods of a list of states, up to a NULL name, to the table on top.
 */
void luackvm_add_states(lua_State *L, const struct luackvm_type *type,
			const struct luackvm_state *states);

/* All bytes of a field. */
static inline size_t luackvm_field_size(const struct luackvm_field *field)
{
	return (size_t)field->size * (field->count ? field->count : 1);
}

/* Pushes whatever is in the field. */
void luackvm_push_field(lua_State *L, const struct luackvm_field *field,
			const void *at);

void luackvm_push_struct(lua_State *L, const struct luackvm_struct *def,
			 const void *data);

/* Lays the table at index over data; raises for unknown fields and ranges. */
void luackvm_read_struct(lua_State *L, int index,
			 const struct luackvm_struct *def, void *data);

/* A list of structs, from an array. */
void luackvm_push_list(lua_State *L, const struct luackvm_struct *def,
		       const void *elements, size_t count);

/*
 * The list at index as an array, behind `header` zero bytes, in a userdata that
 * is pushed. Raises for holes, other keys, and what luackvm_read_struct does.
 */
void *luackvm_read_list(lua_State *L, int index,
			const struct luackvm_struct *def, size_t header,
			size_t *count);

/* The key at -2 as one of a list of `count`, from 1 on; raises with the name.
 */
lua_Integer luackvm_list_key(lua_State *L, const char *name, size_t count);

/* Does the table have as many keys as the struct has fields, all the way? */
bool luackvm_is_full(lua_State *L, int index, const struct luackvm_struct *def);

uint64_t luackvm_load(const void *data, size_t size);
void luackvm_store(void *data, size_t size, uint64_t value);

/* The value at index for a field of `size` bytes; raises with the name. */
uint64_t luackvm_field_value(lua_State *L, int index, const char *name,
			     size_t size);

/* The same for this field, which may have fewer bits. */
uint64_t luackvm_scalar(lua_State *L, int index, const char *name,
			const struct luackvm_field *field);

#endif

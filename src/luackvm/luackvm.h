/* SPDX-License-Identifier: MIT */
/* What the files of the binding share with one another. */
#ifndef LUACKVM_H
#define LUACKVM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <lua.h>
#include <lauxlib.h>

#include "ckvm_lua.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* host.c ------------------------------------------------------------------ */

/*
 * A thread of the process that is, or was, in the state. Another of them may
 * look at what is atomic; the rest is for who holds the lock.
 */
struct luackvm_thread {
	struct luackvm_thread *_Atomic next; /* of the state's, for good */
	struct ckvm_lua *lua;
	atomic_int tid;
	atomic_bool inside;	      /* it holds the lock */
	_Atomic(lua_State *) running; /* the coroutine, if it does */
	struct luackvm_frame *frame;  /* of the runs that it is in */
	struct ckvm_vcpu *relieved;   /* whose run is to end, by vm:run */
	/* What ours has taken the place of, as Lua hook, in one coroutine. */
	struct {
		lua_State *L;
		lua_Hook hook;
		int mask, count;
	} displaced;
};

struct ckvm_lua {
	atomic_int lock; /* 0 free, 1 held, 2 waited for */
	int pid;	 /* of the process that loaded the module */
	atomic_bool interrupted;
	/* Ranges detached, whose access may be nobody's, and interrupts. */
	atomic_uint changes;
	struct luackvm_thread *thread; /* that holds the lock */
	struct luackvm_thread first;   /* of all: who loaded the module */
	struct luackvm_frame *parked;  /* of suspended runs, any thread's */
	atomic_int wake;	       /* ends waits (wake.c); -1: none yet */
	unsigned int leaving;	       /* waits that are to end for good */
	bool hooked;
	struct ckvm_hook hook;
};

/* The binding's state; creates it on first use. Raises for want of memory. */
struct ckvm_lua *luackvm_state(lua_State *L);

uint64_t luackvm_now(void); /* CLOCK_MONOTONIC, ns */

/* L runs now: where it is not known from a coroutine function of ours. */
void luackvm_enter(struct ckvm_lua *lua, lua_State *L);

/* thread.c ---------------------------------------------------------------- */

void luackvm_begin_threads(struct ckvm_lua *lua);
void luackvm_end_threads(struct ckvm_lua *lua);

/* For a thread that is yet to be made, and will claim it; NULL: no memory. */
struct luackvm_thread *luackvm_new_thread(struct ckvm_lua *lua);
void luackvm_claim_thread(struct luackvm_thread *thread);

/* The lock, when it is not free, and when somebody waits for it. */
void luackvm_wait_for_lock(struct ckvm_lua *lua);
void luackvm_pass_lock(struct ckvm_lua *lua);

/* For a thread that gives the lock up and takes it again. */
static inline void luackvm_lock(struct luackvm_thread *thread)
{
	struct ckvm_lua *lua = thread->lua;
	int free = 0;

	if (!atomic_compare_exchange_strong(&lua->lock, &free, 1))
		luackvm_wait_for_lock(lua);
	lua->thread = thread;
	atomic_store_explicit(&thread->inside, true, memory_order_relaxed);
	atomic_signal_fence(memory_order_seq_cst);
}

static inline void luackvm_unlock(struct luackvm_thread *thread)
{
	struct ckvm_lua *lua = thread->lua;
	int held = 1;

	atomic_store_explicit(&thread->inside, false, memory_order_relaxed);
	atomic_signal_fence(memory_order_seq_cst);
	if (!atomic_compare_exchange_strong(&lua->lock, &held, 0))
		luackvm_pass_lock(lua);
}

/* frame.c ----------------------------------------------------------------- */

/*
 * What is left of a run when it ends, whichever way. Those with a deadline are
 * linked in the order in which they surround one another, or parked while they
 * are suspended.
 */
struct luackvm_frame {
	struct luackvm_frame *outer;
	struct luackvm_thread *thread; /* in whose list it is, or was */
	lua_State *L;		       /* that called run; user value 1 */
	struct luackvm_box *vcpu;      /* user value 2 */
	uint32_t serial;	       /* of the run */
	uint64_t deadline, grace;      /* ns; 0: none, and not linked */
	uint64_t parked;	       /* when, ns */
	bool rested;  /* its clock was set on when it was resumed */
	bool stopped; /* its handler was, once, and went on */
	bool over;
};

/* The innermost frame whose run is not suspended; NULL for none. */
struct luackvm_frame *luackvm_live_frame(struct ckvm_lua *lua);

/* Pushes one for the vCPU's box at 1: a to-be-closed value. */
struct luackvm_frame *luackvm_push_frame(lua_State *L, struct ckvm_lua *lua);

/* The run's deadline is this now (0: none), and it is the innermost run. */
void luackvm_link_frame(struct luackvm_frame *frame, uint64_t deadline);

/*
 * co has yielded: the clocks of the runs in it stand still. It is about to run
 * again: they go on, within the run that resumes it.
 */
void luackvm_park(struct ckvm_lua *lua, lua_State *co);
void luackvm_unpark(struct ckvm_lua *lua, lua_State *co);

/*
 * What thread.c has called in signal handlers: a deadline of the thread's may
 * have passed, or its script is to be interrupted.
 */
void luackvm_late(void *thread);

/* Raises "interrupted!" if ckvm_lua_interrupt() was called. */
void luackvm_check_interrupt(lua_State *L, struct ckvm_lua *lua);

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

/* error.c ----------------------------------------------------------------- */

/*
 * Raises what a ckvm function returned, for the caller's line, with a hint
 * formatted as by lua_pushfstring (NULL: one from experience, or the C
 * library's text).
 */
int luackvm_fail(lua_State *L, int error, const char *format, ...);
void luackvm_register_error(lua_State *L);

/* For want of descriptors or memory: collects, and true the first time. */
bool luackvm_retry(lua_State *L, int error, bool *tried);

/* The C library's text, or the hint that experience has for this step. */
const char *luackvm_hint(int error);

/* luackvm_fail for a system call of the binding's own: its name, and errno, and
 * of what it was (NULL: nothing). */
int luackvm_fail_call(lua_State *L, const char *call, int error,
		      const char *path);

/* options.c --------------------------------------------------------------- */

/* An option table at index 2 of the method `who`. Raise for what is wrong. */
void luackvm_check_keys(lua_State *L, int table, const char *who,
			const char *const *keys);

/* Pushes a table of what the one at index has beside these keys. */
void luackvm_push_rest(lua_State *L, int table, const char *const *keys);

/* The length of the list at index, which has no other keys than 1 to that. */
lua_Integer luackvm_list_length(lua_State *L, int table, const char *who);

/* Raw: an option table's metamethods are not called. Pushes; the type. */
int luackvm_get(lua_State *L, int table, const char *key);
bool luackvm_has(lua_State *L, int table, const char *key);
bool luackvm_flag(lua_State *L, int table, const char *key);
lua_Integer luackvm_integer(lua_State *L, int table, const char *key,
			    lua_Integer low, lua_Integer high);

/* Any 64 bits, as an address. */
uint64_t luackvm_address(lua_State *L, int table, const char *key);

/* Seconds as nanoseconds, not negative. */
uint64_t luackvm_seconds(lua_State *L, int table, const char *key);

/*
 * The integer at index, or a float that is one; strings are not numbers here.
 * Raises with the name.
 */
lua_Integer luackvm_to_integer(lua_State *L, int index, const char *name);

/* "0x1000": pushed, and returned. lua_pushfstring has no such format. */
const char *luackvm_hex(lua_State *L, uint64_t value);

/* The string at index, which must not hide anything behind a zero byte. */
const char *luackvm_text(lua_State *L, int index, const char *what);

/* Is the value at index this very string? */
bool luackvm_is(lua_State *L, int index, const char *text);

/* Arguments: an integer, an address, and a length that is not negative. */
lua_Integer luackvm_arg_integer(lua_State *L, int arg);
uint64_t luackvm_arg_address(lua_State *L, int arg);
size_t luackvm_arg_length(lua_State *L, int arg);

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

/* guard.c ----------------------------------------------------------------- */

/* `size` bytes, not 0 of them, of which the kernel cannot pass the end. */
struct luackvm_guard {
	uint8_t *data;
	size_t size;
};
void luackvm_guard(lua_State *L, struct luackvm_guard *guard, size_t size);
void luackvm_unguard(struct luackvm_guard *guard);

/* device.c ---------------------------------------------------------------- */

extern const luaL_Reg luackvm_device_kvm_methods[], luackvm_device_vm_methods[],
	luackvm_device_vcpu_methods[];

/* guest_x86.c, encrypt_x86.c ---------------------------------------------- */

extern const luaL_Reg luackvm_guest_vm_methods[], luackvm_guest_vcpu_methods[],
	luackvm_encrypt_vm_methods[];

/* region.c ---------------------------------------------------------------- */

extern const luaL_Reg luackvm_region_vm_methods[],
	luackvm_region_vcpu_methods[];
extern const struct luackvm_state luackvm_region_vm_states[];

/* Objects that an option table at 2 has: borrowed, and NULL if it has not. */
struct ckvm_memory *luackvm_memory_option(lua_State *L, const char *key);
struct ckvm_guest_memfd *luackvm_guest_memfd_option(lua_State *L,
						    const char *key);

/* view.c, exit.c ---------------------------------------------------------- */

void luackvm_regs_view(lua_State *L, struct luackvm_box *box);
void luackvm_sregs_view(lua_State *L, struct luackvm_box *box);
void luackvm_events_view(lua_State *L, struct luackvm_box *box);
void luackvm_exit_view(lua_State *L, struct luackvm_box *box);

/* The same for the vCPU's box at index, which has an exit. */
void luackvm_push_exit(lua_State *L, int vcpu);

/* Pushes the exit's name, or its number if it has none. */
void luackvm_push_exit_name(lua_State *L, uint32_t number);

/* vm.c, vcpu.c ------------------------------------------------------------ */

/* User values of a VM's box, and of a vCPU's. */
enum { VM_HANDLERS = 1, VM_CHILDREN, VM_CREW, VM_WATCHER };
enum { VCPU_VM = 1, VCPU_CACHE, VCPU_STOP, VCPU_REGS, VCPU_SREGS, VCPU_EVENTS };

/* Keys in a VM's table of handlers: RANGE_SLOTS for each range, from 1 on. */
enum { SLOT_READ, SLOT_WRITE, SLOT_DEVICE, SLOT_RANGE, RANGE_SLOTS };

/* And this for vm:on; CKVM_EXIT_* and the kernel's numbers. */
#define ON_KEY(number) (-1 - (lua_Integer)(number))

/* Fills the box on top, of a VM. */
void luackvm_fill_vm(lua_State *L, struct luackvm_box *box, struct ckvm_vm *vm,
		     bool owned);

/* Fills the box on top, of a vCPU whose VM's box is at index `vm`. */
void luackvm_fill_vcpu(lua_State *L, int vm, struct luackvm_box *box,
		       struct ckvm_vcpu *vcpu, bool owned);

/* Pushes the vCPU's box, a new one if need be. */
void luackvm_push_vcpu(lua_State *L, int vm, struct ckvm_vcpu *vcpu);

/* The box on top belongs to the VM at index: it is closed with it. */
void luackvm_adopt(lua_State *L, int vm);

/* Whoever closes a child lets its VM forget it. */
void luackvm_disown(lua_State *L, int vm, int child);

int luackvm_create_vcpu(lua_State *L); /* vcpu.c */
int luackvm_vcpu_from_fd(lua_State *L);
void luackvm_list_vcpus(lua_State *L, struct luackvm_box *box);
int luackvm_add_memory(lua_State *L); /* memory.c */
int luackvm_move_memory(lua_State *L);
int luackvm_read(lua_State *L);
int luackvm_write(lua_State *L);
int luackvm_fill_memory(lua_State *L);
int luackvm_zap_memory(lua_State *L);
int luackvm_read_u8(lua_State *L);
int luackvm_read_u16(lua_State *L);
int luackvm_read_u32(lua_State *L);
int luackvm_read_u64(lua_State *L);
int luackvm_write_u8(lua_State *L);
int luackvm_write_u16(lua_State *L);
int luackvm_write_u32(lua_State *L);
int luackvm_write_u64(lua_State *L);
int luackvm_attach_io(lua_State *L); /* bus.c */
int luackvm_attach_mmio(lua_State *L);
int luackvm_new_buffer(lua_State *L); /* buffer.c */
int luackvm_open(lua_State *L);	      /* system.c */
int luackvm_from_fd(lua_State *L);

/* A descriptor's number; and the error of one from elsewhere. */
int luackvm_arg_fd(lua_State *L, int arg);
int luackvm_fail_fd(lua_State *L, int error, int fd, const char *kind);

/* A capability, by name or number. */
unsigned int luackvm_arg_cap(lua_State *L, int arg);

/* Methods, by topic ------------------------------------------------------- */

extern const luaL_Reg luackvm_cap_vm_methods[], luackvm_cap_vcpu_methods[],
	luackvm_control_vcpu_methods[], luackvm_cpuid_kvm_methods[],
	luackvm_cpuid_vcpu_methods[], luackvm_event_kvm_methods[],
	luackvm_event_vm_methods[], luackvm_event_vcpu_methods[],
	luackvm_msr_kvm_methods[], luackvm_msr_vm_methods[],
	luackvm_msr_vcpu_methods[], luackvm_reg_vcpu_methods[],
	luackvm_translate_vcpu_methods[], luackvm_x86_vcpu_methods[];
extern const struct luackvm_state luackvm_x86_vcpu_states[];

/* run.c ------------------------------------------------------------------- */

int luackvm_run(lua_State *L);
int luackvm_run_once(lua_State *L);
int luackvm_finish(lua_State *L);
int luackvm_stop(lua_State *L);
int luackvm_kick(lua_State *L);

/*
 * With the vCPU's box the only value on the stack: the end of its run, which
 * may be -EINTR for a thread that is relieved and for limits with
 * CKVM_LIMIT_SIGNALS. Raises.
 */
int luackvm_run_with(lua_State *L, const struct ckvm_limits *limits);

/* Before a run of the vCPU whose box is on top: no value was given to stop. */
void luackvm_forget_stop(lua_State *L);

/* What vcpu:run returns for that: why, and the value given to stop. */
int luackvm_push_end(lua_State *L, int end);

/* From the options at index 2. A run ends with the one around it. */
void luackvm_read_limits(lua_State *L, struct ckvm_limits *limits);
void luackvm_inherit_deadline(struct ckvm_lua *lua, struct ckvm_limits *limits);

/* vm_run.c ---------------------------------------------------------------- */

int luackvm_run_vm(lua_State *L);

/* crew.c ------------------------------------------------------------------ */

/* Ends the threads of the VM's box at index. */
void luackvm_end_crew(lua_State *L, int vm);

/* watch.c ----------------------------------------------------------------- */

int luackvm_vm_watch(lua_State *L);
int luackvm_vm_after(lua_State *L);

/*
 * A run has come out of the guest without an exit: pushes the next handler that
 * is to be called, with its arguments, or nothing: false.
 */
bool luackvm_push_event(lua_State *L, struct ckvm_vcpu *vcpu, int *args);

/* A run begins: it looks for what has happened while none was on. */
void luackvm_look_for_events(lua_State *L, struct ckvm_vcpu *vcpu);

/* Ends the thread, and the watches, of the VM's box at index. */
void luackvm_end_watcher(lua_State *L, int vm);

/* irq.c, irqchip_x86.c ---------------------------------------------------- */

extern const luaL_Reg luackvm_irq_vm_methods[], luackvm_irq_vcpu_methods[],
	luackvm_irqchip_vm_methods[];
extern const struct luackvm_state luackvm_irqchip_vm_states[];

/* "pic_master" and so on, or the number, at index; raises with the name. */
uint32_t luackvm_irqchip_id(lua_State *L, int index, const char *name);

/* coalesced.c ------------------------------------------------------------- */

extern const luaL_Reg luackvm_coalesced_vm_methods[];

/* dirty.c ----------------------------------------------------------------- */

extern const luaL_Reg luackvm_dirty_vm_methods[];

/* The memory at index, which must be of the VM at 1; raises (memory.c). */
struct ckvm_memory *luackvm_own_memory(lua_State *L, int index);

/* binary_stats.c ---------------------------------------------------------- */

extern const luaL_Reg luackvm_stats_vm_methods[], luackvm_stats_vcpu_methods[];

/* wake.c ------------------------------------------------------------------ */

/* Before a wait: there is something to wake it with; or -errno. */
int luackvm_need_wake(struct ckvm_lua *lua);

/* For signal handlers: some wait looks whether it is interrupted. */
void luackvm_interrupt_wait(struct ckvm_lua *lua);

/* So many waits are to end, each of which will say that it leaves. */
void luackvm_wake(struct ckvm_lua *lua, unsigned int waiters);
void luackvm_woken(struct ckvm_lua *lua, bool leaves);
void luackvm_end_wake(struct ckvm_lua *lua);

/* eventfd.c, irqfd.c ------------------------------------------------------ */

int luackvm_new_eventfd(lua_State *L);

/* The descriptor of an eventfd at index, or the number there; raises. */
int luackvm_event_fd(lua_State *L, int index, const char *name);

extern const luaL_Reg luackvm_irqfd_vm_methods[];

/* Takes back what the eventfd at index was given for, of all VMs. */
void luackvm_end_events(lua_State *L, int event);

/* What was given to the VM at index; its table of handlers is on top. */
void luackvm_forget_events(lua_State *L, int vm);

/* file.c, terminal.c ------------------------------------------------------ */

/* The descriptor of a file of io at index, of an eventfd, or the number there;
 * raises. */
int luackvm_file_fd(lua_State *L, int index, const char *name);

int luackvm_read_available(lua_State *L);
int luackvm_pty(lua_State *L);
int luackvm_raw_terminal(lua_State *L);

/* coroutine.c ------------------------------------------------------------- */

/* Puts resume, wrap and close that keep track into the coroutine library. */
void luackvm_track_coroutines(lua_State *L, struct ckvm_lua *lua);

#endif

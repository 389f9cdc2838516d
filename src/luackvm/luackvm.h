/* SPDX-License-Identifier: MIT */
/*
 * What the files of the binding share with one another. It is in four parts:
 * threads and runs, objects, values of the kernel's, and here the rest.
 */
#ifndef LUACKVM_H
#define LUACKVM_H

#include <errno.h>
#include <string.h>

#include "box.h"
#include "fields.h"
#include "thread.h"

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
int luackvm_read(lua_State *L); /* copy.c */
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

/* Raises unless it is whole pages: memory.c. */
void luackvm_check_pages(lua_State *L, const char *name, uint64_t value);

/* A descriptor's number; and the error of one from elsewhere. */
int luackvm_arg_fd(lua_State *L, int arg);
int luackvm_fail_fd(lua_State *L, int error, int fd, const char *kind);

/*
 * Raises for the argument, a kernel's name that `find` does not know, and tells
 * how it is written; `prefix` is what names here are without.
 */
int luackvm_unknown(lua_State *L, int arg, const char *kind, const char *prefix,
		    int (*find)(const char *name));

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

/* Such an end, which is no error: not the same number of a C callback. */
static inline bool luackvm_is_signal(int end)
{
	return unlikely(end == -EINTR) && !strcmp(ckvm_errop(), "signal");
}

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

#endif

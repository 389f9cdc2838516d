/* SPDX-License-Identifier: MIT */
/*
 * Encrypted guests: the commands of SEV and SEV-ES, whose structs are laid out
 * here. Where such a struct has an address of the host's, a script has a
 * string, which is copied into a buffer of its size and back, or memory and an
 * offset.
 */
#include <errno.h>
#include <string.h>

#include "compat.h"
#include "luackvm.h"

#define MAX_STRUCT 72
#define MAX_BYTES (16 << 20) /* of all strings of a command */

/* Where a struct has an address, and the 32-bit length of what is there. */
struct pointer {
	const char *name; /* NULL: no more */
	uint16_t address, length;
};

struct command {
	const char *name;
	uint32_t id;
	uint16_t size; /* of the struct; 0: there is none */
	struct luackvm_field fields[4];
	struct pointer pointers[5];
};

#define U32(name_, offset_)                                 \
	{                                                   \
		.name = name_, .offset = offset_, .size = 4 \
	}

/* Header, guest's page and transport key: of several commands. */
#define PACKET                                \
	{ "hdr", 0, 8 }, { "guest", 16, 24 }, \
	{                                     \
		"trans", 32, 40               \
	}

static const struct command commands[] = {
	{ "init", 0, 0, { LUACKVM_END }, { { NULL, 0, 0 } } },
	{ "es_init", 1, 0, { LUACKVM_END }, { { NULL, 0, 0 } } },
	{ "launch_start",
	  2,
	  40,
	  { U32("handle", 0), U32("policy", 4), LUACKVM_END },
	  { { "dh", 8, 16 }, { "session", 24, 32 } } },
	{ "launch_update_data", 3, 16, { LUACKVM_END }, { { "data", 0, 8 } } },
	{ "launch_update_vmsa", 4, 0, { LUACKVM_END }, { { NULL, 0, 0 } } },
	{ "launch_secret", 5, 48, { LUACKVM_END }, { PACKET } },
	{ "launch_measure", 6, 16, { LUACKVM_END }, { { "data", 0, 8 } } },
	{ "launch_finish", 7, 0, { LUACKVM_END }, { { NULL, 0, 0 } } },
	{ "send_start",
	  8,
	  72,
	  { U32("policy", 0), LUACKVM_END },
	  { { "pdh_cert", 8, 16 },
	    { "plat_certs", 24, 32 },
	    { "amd_certs", 40, 48 },
	    { "session", 56, 64 } } },
	{ "send_update_data", 9, 48, { LUACKVM_END }, { PACKET } },
	{ "send_update_vmsa", 10, 48, { LUACKVM_END }, { PACKET } },
	{ "send_finish", 11, 0, { LUACKVM_END }, { { NULL, 0, 0 } } },
	{ "receive_start",
	  12,
	  40,
	  { U32("handle", 0), U32("policy", 4), LUACKVM_END },
	  { { "pdh", 8, 16 }, { "session", 24, 32 } } },
	{ "receive_update_data", 13, 48, { LUACKVM_END }, { PACKET } },
	{ "receive_update_vmsa", 14, 48, { LUACKVM_END }, { PACKET } },
	{ "receive_finish", 15, 0, { LUACKVM_END }, { { NULL, 0, 0 } } },
	{ "guest_status",
	  16,
	  12,
	  { U32("handle", 0), U32("policy", 4), U32("state", 8), LUACKVM_END },
	  { { NULL, 0, 0 } } },
	{ "dbg_decrypt",
	  17,
	  24,
	  { LUACKVM_END },
	  { { "src", 0, 16 }, { "dst", 8, 16 } } },
	{ "dbg_encrypt",
	  18,
	  24,
	  { LUACKVM_END },
	  { { "src", 0, 16 }, { "dst", 8, 16 } } },
	{ "get_attestation_report",
	  20,
	  32,
	  { { .name = "mnonce", .size = 1, .count = 16, .bytes = true },
	    LUACKVM_END },
	  { { "data", 16, 24 } } },
	{ "send_cancel", 21, 0, { LUACKVM_END }, { { NULL, 0, 0 } } },
	{ "init2",
	  22,
	  48,
	  { { .name = "vmsa_features", .size = 8 },
	    U32("flags", 8),
	    { .name = "ghcb_version", .offset = 12, .size = 2 },
	    LUACKVM_END },
	  { { NULL, 0, 0 } } },
};

/* id = "launch_start", or its number. */
static const struct command *read_command(lua_State *L)
{
	lua_Integer id = -1;

	if (luackvm_get(L, 2, "id") == LUA_TNUMBER)
		id = luackvm_to_integer(L, -1, "id");
	else
		luackvm_text(L, -1, "id");
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		if (id == commands[i].id ||
		    luackvm_is(L, -1, commands[i].name)) {
			lua_pop(L, 1);
			return &commands[i];
		}
	luaL_error(L, "id: no command '%s' is known here",
		   luaL_tolstring(L, -1, NULL));
	return NULL;
}

static const struct pointer *find_pointer(lua_State *L, int key,
					  const struct command *command)
{
	const struct pointer *pointer = command->pointers;

	for (; pointer->name; pointer++)
		if (luackvm_is(L, key, pointer->name))
			return pointer;
	return NULL;
}

/* Pushes the options that are fields of the struct. */
static void push_fields(lua_State *L, const struct command *command)
{
	lua_newtable(L);
	for (lua_pushnil(L); lua_next(L, 2); lua_pop(L, 1)) {
		if (luackvm_is(L, -2, "id") || luackvm_is(L, -2, "sev_fd") ||
		    find_pointer(L, -2, command))
			continue;
		lua_pushvalue(L, -2);
		lua_pushvalue(L, -2);
		lua_rawset(L, -5);
	}
}

static struct luackvm_struct layout(const struct command *command)
{
	return (struct luackvm_struct){ command->name, command->size,
					command->fields, 0 };
}

/* What an address of the host's is made of: a string, or memory. */
struct place {
	const char *bytes; /* NULL: memory, or nothing at all */
	struct ckvm_memory *memory;
	uint64_t offset;
	uint32_t size;
};

/* { memory =, offset =, size = } at the top, which stays there. */
static void read_memory(lua_State *L, const char *name, struct place *place)
{
	static const char *const keys[] = { "memory", "offset", "size", NULL };
	int table = lua_gettop(L);
	struct luackvm_box *box;
	uint64_t bytes;

	luackvm_check_keys(L, table, name, keys);
	luackvm_get(L, table, "memory");
	box = luackvm_test(L, -1, &luackvm_memory);
	if (!box)
		luaL_error(L, "memory: memory expected, got %s",
			   luaL_typename(L, -1));
	place->memory = luackvm_open_object(L, box);
	if (luackvm_has(L, table, "offset"))
		place->offset = luackvm_address(L, table, "offset");
	bytes = luackvm_address(L, table, "size");
	if (place->offset > ckvm_memory_size(place->memory) ||
	    bytes > ckvm_memory_size(place->memory) - place->offset ||
	    bytes > UINT32_MAX)
		luaL_error(L, "%s: the memory has no %s bytes at %s", name,
			   luackvm_hex(L, bytes),
			   luackvm_hex(L, place->offset));
	place->size = (uint32_t)bytes;
}

/* To be asked last: a finalizer may have closed it, and there is nothing. */
static uint64_t address_of(const struct place *place)
{
	uint8_t *data = place->memory ? ckvm_memory_data(place->memory) : NULL;

	return data ? (uintptr_t)data + place->offset : 0;
}

/* What the pointers are to be; stays on the stack. How many bytes of strings.
 */
static size_t read_places(lua_State *L, const struct command *command,
			  struct place *place)
{
	const struct pointer *pointer = command->pointers;
	size_t total = 0;

	luaL_checkstack(L, 40, NULL);
	for (; pointer->name; pointer++, place++) {
		int type = luackvm_get(L, 2, pointer->name);
		size_t size;

		if (type == LUA_TSTRING) {
			place->bytes = lua_tolstring(L, -1, &size);
			if (size > MAX_BYTES - total)
				luaL_error(L, "%s: too long", pointer->name);
			place->size = (uint32_t)size;
			total += size;
		} else if (type == LUA_TTABLE) {
			read_memory(L, pointer->name, place);
		} else if (type != LUA_TNIL) {
			luaL_error(L, "%s: string or table expected, got %s",
				   pointer->name, luaL_typename(L, -1));
		}
		/* One length for both. */
		if (pointer > command->pointers &&
		    pointer->length == pointer[-1].length &&
		    place->size != place[-1].size)
			luaL_error(L, "%s and %s have different sizes",
				   pointer[-1].name, pointer->name);
	}
	return total;
}

/* Into the struct, with the strings copied to `at`. No Lua in here. */
static void fill_pointers(const struct command *command,
			  const struct place *place, uint8_t *data, uint8_t *at)
{
	const struct pointer *pointer = command->pointers;

	for (; pointer->name; pointer++, place++) {
		uint64_t address = address_of(place);

		if (place->bytes) {
			memcpy(at, place->bytes, place->size);
			address = (uintptr_t)at;
			at += place->size;
		}
		luackvm_store(data + pointer->address, 8, address);
		luackvm_store(data + pointer->length, 4, place->size);
	}
}

/* The table of the struct is on top: adds what the strings are now. */
static void push_strings(lua_State *L, const struct command *command,
			 const struct place *place, const char *at)
{
	const struct pointer *pointer = command->pointers;

	for (; pointer->name; pointer++, place++) {
		if (!place->bytes)
			continue;
		lua_pushlstring(L, at, place->size);
		lua_setfield(L, -2, pointer->name);
		at += place->size;
	}
}

/***
 * Gives a command for the encryption of the VM: those of SEV and SEV-ES. Where
 * the kernel's struct has an address and a length (`dh_uaddr`, `dh_len`), there
 * is a string here (`dh`), which is copied in and out, or a table of `memory`,
 * `offset` and `size`; where it has just one, it is `data`.
 *
 * @function vm:memory_encrypt_op
 * @tparam table options `id`, the name ("launch_start") or number of the
 *  command; `sev_fd`, the number of a descriptor of /dev/sev; and the fields of
 *  its struct
 * @treturn table the fields and strings of the struct after the command, and
 *  `error`, what the firmware says
 * @raise `ENOTTY` where the VM is not encrypted; what the kernel says, with the
 *  firmware's error
 * @api 4.110 KVM_MEMORY_ENCRYPT_OP
 * @usage
 * vm:memory_encrypt_op { id = "launch_start", policy = 1, sev_fd = 0 }
 */
static int memory_encrypt_op(lua_State *L)
{
	const struct command *command;
	struct luackvm_guard guard;
	struct luackvm_struct def;
	uint64_t data[MAX_STRUCT / 8] = { 0 };
	struct place places[4] = { { .bytes = NULL } };
	struct kvm_sev_cmd cmd = { 0 };
	struct ckvm_vm *vm;
	size_t total;
	char *copy;
	int error;

	luackvm_check(L, 1, &luackvm_vm);
	luaL_checktype(L, 2, LUA_TTABLE);
	lua_settop(L, 2);
	command = read_command(L);
	def = layout(command);
	cmd.id = command->id;
	if (luackvm_has(L, 2, "sev_fd"))
		cmd.sev_fd =
			(uint32_t)luackvm_integer(L, 2, "sev_fd", 0, INT32_MAX);
	push_fields(L, command);
	luackvm_read_struct(L, 3, &def, data);
	total = read_places(L, command, places);
	copy = lua_newuserdatauv(L, total + 1, 0);
	vm = luackvm_check(L, 1, &luackvm_vm);
	luackvm_guard(L, &guard, total + 1);
	fill_pointers(command, places, (uint8_t *)data, guard.data + 1);
	cmd.data = command->size ? (uintptr_t)data : 0;
	error = ckvm_vm_memory_encrypt_op(vm, &cmd);
	memcpy(copy, guard.data + 1, total);
	luackvm_unguard(&guard);
	if (error && cmd.error)
		return luackvm_fail(L, error, "the firmware's error %I",
				    (lua_Integer)cmd.error);
	if (error)
		return luackvm_fail(L, error, NULL);
	luackvm_push_struct(L, &def, data);
	push_strings(L, command, places, copy);
	lua_pushinteger(L, cmd.error);
	lua_setfield(L, -2, "error");
	return 1;
}

static int call_region(lua_State *L, const char *who,
		       int (*call)(struct ckvm_vm *vm,
				   const struct kvm_enc_region *region))
{
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct place place = { .bytes = NULL };
	struct kvm_enc_region region;
	int error;

	luaL_checktype(L, 2, LUA_TTABLE);
	lua_settop(L, 2);
	read_memory(L, who, &place);
	region.addr = address_of(&place);
	region.size = place.size;
	error = call(vm, &region);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/***
 * Says that memory is encrypted: KVM pins it.
 *
 * @function vm:memory_encrypt_reg_region
 * @tparam table options
 * @tparam memory options.memory whose bytes they are
 * @tparam[opt=0] integer options.offset bytes into it
 * @tparam integer options.size bytes
 * @raise `ENOTTY` where the VM is not encrypted
 * @api 4.111 KVM_MEMORY_ENCRYPT_REG_REGION
 * @usage
 * vm:memory_encrypt_reg_region { memory = ram, size = 0x1000 }
 */
static int memory_encrypt_reg_region(lua_State *L)
{
	return call_region(L, "memory_encrypt_reg_region",
			   ckvm_vm_memory_encrypt_reg_region);
}

/***
 * Takes that back.
 *
 * @function vm:memory_encrypt_unreg_region
 * @tparam table options
 * @tparam memory options.memory whose bytes they are
 * @tparam[opt=0] integer options.offset bytes into it
 * @tparam integer options.size bytes
 * @raise `ENOTTY` where the VM is not encrypted; `EINVAL` if it was not said
 * @api 4.112 KVM_MEMORY_ENCRYPT_UNREG_REGION
 * @usage
 * vm:memory_encrypt_unreg_region { memory = ram, size = 0x1000 }
 */
static int memory_encrypt_unreg_region(lua_State *L)
{
	return call_region(L, "memory_encrypt_unreg_region",
			   ckvm_vm_memory_encrypt_unreg_region);
}

const luaL_Reg luackvm_encrypt_vm_methods[] = {
	{ "memory_encrypt_op", memory_encrypt_op },
	{ "memory_encrypt_reg_region", memory_encrypt_reg_region },
	{ "memory_encrypt_unreg_region", memory_encrypt_unreg_region },
	{ NULL, NULL },
};

/* SPDX-License-Identifier: MIT */
/*
 * irqfd and ioeventfd: eventfds that a VM raises interrupts for, or signals.
 *
 * A VM keeps those that it was given, in its table of handlers, as nobody but
 * the guest may know them. An eventfd knows what it was given for, and takes it
 * all back when it is closed: the kernel would go on taking the guest's writes
 * for it, and nobody could tell it to stop. Its user value is a table of sets,
 * by VM (weakly), of the kernel's structs as strings.
 */
#include <errno.h>
#include <string.h>

#include "luackvm.h"

/* Taking back ------------------------------------------------------------- */

static void take_back(struct ckvm_vm *vm, const char *key, size_t size)
{
	struct kvm_ioeventfd ioevent;
	struct kvm_irqfd irqfd;

	if (size == sizeof(irqfd)) {
		memcpy(&irqfd, key, size);
		irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
		ckvm_vm_irqfd(vm, &irqfd);
	} else {
		memcpy(&ioevent, key, size);
		ioevent.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
		ckvm_vm_ioeventfd(vm, &ioevent);
	}
}

/* What the set on top has, of the VM's box at index. */
static void take_back_all(lua_State *L, int vm)
{
	const struct luackvm_box *box = lua_touserdata(L, vm);
	size_t size;

	if (!box->object)
		return;
	for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
		const char *key = lua_tolstring(L, -2, &size);

		take_back(box->object, key, size);
	}
}

/* The VM at index keeps the eventfd at index, or not. */
static void keep(lua_State *L, int vm, int event, bool on)
{
	if (lua_getiuservalue(L, vm, VM_HANDLERS) == LUA_TTABLE) {
		lua_pushvalue(L, event);
		if (on)
			lua_pushboolean(L, 1);
		else
			lua_pushnil(L);
		lua_rawset(L, -3);
	}
	lua_pop(L, 1);
}

void luackvm_end_events(lua_State *L, int event)
{
	if (lua_getiuservalue(L, event, 1) == LUA_TTABLE)
		for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
			take_back_all(L, lua_absindex(L, -2));
			keep(L, lua_absindex(L, -2), event, false);
		}
	lua_pop(L, 1);
	lua_pushnil(L);
	lua_setiuservalue(L, event, 1);
}

/* Of the VM at index, with its table of handlers on top. */
void luackvm_forget_events(lua_State *L, int vm)
{
	for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
		if (!luackvm_test(L, -2, &luackvm_eventfd))
			continue;
		lua_getiuservalue(L, -2, 1);
		lua_pushvalue(L, vm);
		if (lua_istable(L, -2) && lua_rawget(L, -2) == LUA_TTABLE)
			take_back_all(L, vm);
		lua_pop(L, 2);
	}
}

/* Giving ------------------------------------------------------------------ */

/* Pushes the sets of the eventfd at index. */
static void push_sets(lua_State *L, int event)
{
	if (lua_getiuservalue(L, event, 1) == LUA_TTABLE)
		return;
	lua_pop(L, 1);
	lua_newtable(L);
	lua_createtable(L, 0, 1);
	lua_pushliteral(L, "k");
	lua_setfield(L, -2, "__mode");
	lua_setmetatable(L, -2);
	lua_pushvalue(L, -1);
	lua_setiuservalue(L, event, 1);
}

/* Pushes the one of the VM at 1. */
static void push_set(lua_State *L, int event)
{
	push_sets(L, event);
	lua_pushvalue(L, 1);
	if (lua_rawget(L, -2) != LUA_TTABLE) {
		lua_pop(L, 1);
		lua_newtable(L);
		lua_pushvalue(L, 1);
		lua_pushvalue(L, -2);
		lua_rawset(L, -4);
	}
	lua_remove(L, -2);
}

/* Puts the key on top into the set below it, or out of it. Was it there? */
static bool note(lua_State *L, bool on)
{
	bool had;

	lua_pushvalue(L, -1);
	had = lua_rawget(L, -3) != LUA_TNIL;
	lua_pop(L, 1);
	lua_pushvalue(L, -1);
	if (on)
		lua_pushboolean(L, 1);
	else
		lua_pushnil(L);
	lua_rawset(L, -4);
	return had;
}

/* Out of it, which was perhaps the last. No memory, so that nothing collects.
 */
static void forget(lua_State *L, int event)
{
	note(L, false);
	lua_pushnil(L);
	if (lua_next(L, -3))
		lua_pop(L, 2);
	else
		keep(L, 1, event, false);
}

struct request {
	const void *data; /* the kernel's struct, as it is given */
	const void *key;  /* as it is noted */
	size_t size;
	bool deassign;
	int (*call)(struct ckvm_vm *vm, const void *data);
};

/*
 * Noted first, so that want of memory leaves nothing that nobody knows of. The
 * VM's box is at 1, the eventfd or a number at index.
 */
static int make_request(lua_State *L, struct ckvm_vm *vm, int event,
			const struct request *request)
{
	bool is_object = luackvm_test(L, event, &luackvm_eventfd), had = true;
	int error;

	if (is_object) {
		push_set(L, event);
		lua_pushlstring(L, request->key, request->size);
		if (!request->deassign) {
			keep(L, 1, event, true);
			had = note(L, true);
		}
	}
	error = request->call(vm, request->data);
	if (is_object && (error ? !had : request->deassign))
		forget(L, event);
	return error ? luackvm_fail(L, error, NULL) : 0;
}

/* The option of that name, with the bit that `deassign` stands for. */
static uint32_t read_flags(lua_State *L, uint32_t deassign)
{
	uint32_t flags = 0;

	if (luackvm_has(L, 2, "flags"))
		flags = (uint32_t)luackvm_integer(L, 2, "flags", 0, UINT32_MAX);
	return luackvm_flag(L, 2, "deassign") ? flags | deassign : flags;
}

/* irqfd ------------------------------------------------------------------- */

static int call_irqfd(struct ckvm_vm *vm, const void *data)
{
	return ckvm_vm_irqfd(vm, data);
}

/***
 * Whatever signals the eventfd raises an interrupt, with no thread of the
 * host's in between. Closing the eventfd takes it back.
 *
 * @function vm:irqfd
 * @tparam table options
 * @tparam eventfd|integer options.fd the eventfd, or a number of a descriptor
 * @tparam integer options.gsi number of the line
 * @tparam[opt] eventfd|integer options.resamplefd signalled when the guest has
 *  handled the interrupt; or a number of a descriptor
 * @tparam[opt=0] integer options.flags bits
 * @tparam[opt=false] boolean options.deassign takes it back
 * @raise `EINVAL` without controllers in the kernel, `EBUSY` if the eventfd
 *  raises one already
 * @api 4.75 KVM_IRQFD
 * @usage
 * local vm <close> = kvm:create_vm()
 * vm:create_irqchip()
 * local event <close> = ckvm.eventfd()
 * vm:irqfd { fd = event, gsi = 5 }
 * event:signal()
 */
static int irqfd(lua_State *L)
{
	static const char *const keys[] = { "fd",    "gsi",	 "resamplefd",
					    "flags", "deassign", NULL };
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_irqfd data = { 0 }, key;
	struct request request = { &data, &key, sizeof(key), false,
				   call_irqfd };

	luackvm_check_keys(L, 2, "irqfd", keys);
	lua_settop(L, 2);
	data.flags = read_flags(L, KVM_IRQFD_FLAG_DEASSIGN);
	data.gsi = (uint32_t)luackvm_integer(L, 2, "gsi", 0, UINT32_MAX);
	if (luackvm_get(L, 2, "resamplefd") != LUA_TNIL) {
		data.resamplefd =
			(uint32_t)luackvm_event_fd(L, -1, "resamplefd");
		data.flags |= KVM_IRQFD_FLAG_RESAMPLE;
	}
	luackvm_get(L, 2, "fd");
	data.fd = (uint32_t)luackvm_event_fd(L, -1, "fd");
	request.deassign = data.flags & KVM_IRQFD_FLAG_DEASSIGN;
	key = (struct kvm_irqfd){ .fd = data.fd, .gsi = data.gsi };
	return make_request(L, vm, lua_gettop(L), &request);
}

/* ioeventfd --------------------------------------------------------------- */

static int call_ioeventfd(struct ckvm_vm *vm, const void *data)
{
	return ckvm_vm_ioeventfd(vm, data);
}

static void read_place(lua_State *L, struct kvm_ioeventfd *data)
{
	if (luackvm_has(L, 2, "port") == luackvm_has(L, 2, "gpa"))
		luaL_error(L, "ioeventfd: one of 'port' and 'gpa' is needed");
	if (luackvm_has(L, 2, "port")) {
		data->addr = (uint64_t)luackvm_integer(L, 2, "port", 0, 0xffff);
		data->flags |= KVM_IOEVENTFD_FLAG_PIO;
	} else {
		data->addr = luackvm_address(L, 2, "gpa");
	}
	if (luackvm_has(L, 2, "len"))
		data->len = (uint32_t)luackvm_integer(L, 2, "len", 0, 8);
	if (data->len > UINT64_MAX - data->addr) /* nor the last bytes of all */
		luaL_error(L, "gpa: no %d bytes from %s on", (int)data->len,
			   luackvm_hex(L, data->addr));
}

/* The kernel compares all 64 bits with what was written. */
static void read_match(lua_State *L, struct kvm_ioeventfd *data)
{
	lua_Integer value;
	int bits = (int)data->len * 8;

	if (!luackvm_has(L, 2, "datamatch"))
		return;
	if (!bits)
		luaL_error(L, "datamatch: of how many bytes? 'len' is not "
			      "given");
	value = (lua_Integer)luackvm_address(L, 2, "datamatch");
	if (bits < 64 && (value < -((lua_Integer)1 << (bits - 1)) ||
			  value >= (lua_Integer)1 << bits))
		luaL_error(L, "datamatch: %I does not fit in %d bits", value,
			   bits);
	data->datamatch = (uint64_t)value << (64 - bits) >> (64 - bits);
	data->flags |= KVM_IOEVENTFD_FLAG_DATAMATCH;
}

/***
 * A guest's write to a place signals the eventfd, and makes no exit: no range
 * sees it. Closing the eventfd takes it back.
 *
 * @function vm:ioeventfd
 * @tparam table options
 * @tparam[opt] integer options.port number of the port; or `gpa`
 * @tparam[opt] integer options.gpa guest physical address; or `port`
 * @tparam eventfd|integer options.fd the eventfd, or a number of a descriptor
 * @tparam[opt] integer options.len bytes of the write: 1, 2, 4 or 8; if left
 *  out, any number
 * @tparam[opt] integer options.datamatch value that must be written; if left
 *  out, any
 * @tparam[opt=0] integer options.flags bits
 * @tparam[opt=false] boolean options.deassign takes it back; all the rest as
 *  given
 * @raise `EEXIST` if the place is taken, `ENOENT` if there is nothing to take
 *  back
 * @api 4.59 KVM_IOEVENTFD
 * @usage
 * local event <close> = ckvm.eventfd()
 * vm:ioeventfd { port = 0x510, fd = event, len = 1 }
 */
static int ioeventfd(lua_State *L)
{
	static const char *const keys[] = { "port",	"gpa",	 "fd",
					    "len",	"flags", "datamatch",
					    "deassign", NULL };
	struct ckvm_vm *vm = luackvm_check(L, 1, &luackvm_vm);
	struct kvm_ioeventfd data = { 0 }, key;
	struct request request = { &data, &key, sizeof(key), false,
				   call_ioeventfd };

	luackvm_check_keys(L, 2, "ioeventfd", keys);
	lua_settop(L, 2);
	data.flags = read_flags(L, KVM_IOEVENTFD_FLAG_DEASSIGN);
	read_place(L, &data);
	read_match(L, &data);
	luackvm_get(L, 2, "fd");
	data.fd = luackvm_event_fd(L, -1, "fd");
	request.deassign = data.flags & KVM_IOEVENTFD_FLAG_DEASSIGN;
	key = data;
	key.flags &= ~KVM_IOEVENTFD_FLAG_DEASSIGN;
	return make_request(L, vm, lua_gettop(L), &request);
}

const luaL_Reg luackvm_irqfd_vm_methods[] = {
	{ "irqfd", irqfd },
	{ "ioeventfd", ioeventfd },
	{ NULL, NULL },
};

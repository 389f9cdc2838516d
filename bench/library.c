/* SPDX-License-Identifier: MIT */
/* The loops of plain.c with libckvm: callbacks, hand-backs, and creation. */
#include <stdint.h>

#include <ckvm.h>

#include "bench.h"

struct machine {
	struct ckvm *kvm;
	struct ckvm_vm *vm;
	struct ckvm_vcpu *vcpu;
	uint64_t sum; /* of what the guest wrote */
};

static int check(lua_State *L, int result)
{
	if (result < 0)
		luaL_error(L, "library: %s: %s", ckvm_errop(),
			   ckvm_errno_name(result));
	return result;
}

static int end_machine(lua_State *L)
{
	struct machine *m = lua_touserdata(L, 1);

	ckvm_vm_close(m->vm);
	ckvm_close(m->kvm);
	return 0;
}

/* A machine that has nothing yet but KVM; it ends with the Lua state. */
static struct machine *push_machine(lua_State *L)
{
	struct machine *m = lua_newuserdatauv(L, sizeof(*m), 0);

	*m = (struct machine){ 0 };
	lua_createtable(L, 0, 1);
	lua_pushcfunction(L, end_machine);
	lua_setfield(L, -2, "__gc");
	lua_setmetatable(L, -2);
	check(L, ckvm_open(NULL, &m->kvm));
	return m;
}

static int set_registers(struct ckvm_vcpu *vcpu)
{
	struct kvm_regs regs = { .rip = BENCH_MEMORY,
				 .rdx = BENCH_PORT,
				 .rflags = 2 };
	struct kvm_sregs sregs;
	int error = ckvm_vcpu_get_sregs(vcpu, &sregs);

	if (error)
		return error;
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	error = ckvm_vcpu_set_sregs(vcpu, &sregs);
	return error ? error : ckvm_vcpu_set_regs(vcpu, &regs);
}

static int make_machine(struct machine *m, const char *code, size_t length)
{
	const struct ckvm_memory_config config = {
		.size = sizeof(config),
		.gpa = BENCH_MEMORY,
		.bytes = BENCH_SIZE,
	};
	struct ckvm_memory *memory;
	int error = ckvm_create_vm(m->kvm, 0, &m->vm);

	if (!error)
		error = ckvm_vm_add_memory(m->vm, &config, &memory);
	if (!error)
		error = ckvm_vm_write(m->vm, BENCH_MEMORY, code, length);
	if (!error)
		error = ckvm_vm_create_vcpu(m->vm, 0, &m->vcpu);
	return error ? error : set_registers(m->vcpu);
}

static struct machine *push_made(lua_State *L)
{
	size_t length;
	const char *code = luaL_checklstring(L, 1, &length);
	struct machine *m = push_machine(L);

	check(L, make_machine(m, code, length));
	return m;
}

/* Callbacks --------------------------------------------------------------- */

static int write_byte(void *opaque, struct ckvm_vcpu *vcpu, uint64_t port,
		      const void *data, size_t length)
{
	struct machine *m = opaque;

	(void)vcpu;
	(void)port;
	(void)length;
	m->sum += *(const uint8_t *)data;
	return 0;
}

static int run(lua_State *L)
{
	struct machine *m = lua_touserdata(L, lua_upvalueindex(1));
	struct ckvm_limits limits = {
		.size = sizeof(limits),
		.flags = CKVM_LIMIT_EXITS,
		.exits = (uint64_t)luaL_checkinteger(L, 1),
	};

	if (check(L, ckvm_vcpu_run(m->vcpu, &limits)) != CKVM_EXITS)
		return luaL_error(L, "library: unexpected end");
	return 0;
}

int bench_callback(lua_State *L)
{
	static const struct ckvm_ops ops = { .size = sizeof(ops),
					     .write = write_byte };
	struct machine *m = push_made(L);
	struct ckvm_range *range;

	check(L, ckvm_vm_attach_io(m->vm, BENCH_PORT, 1, &ops, m, &range));
	lua_pushcclosure(L, run, 1);
	return 1;
}

/* Hand-backs -------------------------------------------------------------- */

static int run_and_answer(lua_State *L)
{
	struct machine *m = lua_touserdata(L, lua_upvalueindex(1));
	struct ckvm_limits limits = {
		.size = sizeof(limits),
		.flags = CKVM_LIMIT_EXITS,
		.exits = (uint64_t)luaL_checkinteger(L, 1),
	};
	int end = ckvm_vcpu_run(m->vcpu, &limits);

	while (end == CKVM_ACCESS) {
		m->sum += ckvm_vcpu_access(m->vcpu)->value;
		end = ckvm_vcpu_continue(m->vcpu);
	}
	if (check(L, end) != CKVM_EXITS)
		return luaL_error(L, "library: unexpected end");
	return 0;
}

int bench_hand_back(lua_State *L)
{
	struct machine *m = push_made(L);
	struct ckvm_range *range;

	check(L, ckvm_vm_attach_io(m->vm, BENCH_PORT, 1, NULL, m, &range));
	lua_pushcclosure(L, run_and_answer, 1);
	return 1;
}

/* Creation ---------------------------------------------------------------- */

static int create_all(lua_State *L)
{
	struct machine *m = lua_touserdata(L, lua_upvalueindex(1));
	lua_Integer count = luaL_checkinteger(L, 1);
	size_t length;
	const char *code = lua_tolstring(L, lua_upvalueindex(2), &length);

	while (count--) {
		check(L, make_machine(m, code, length));
		if (check(L, ckvm_vcpu_run(m->vcpu, NULL)) != CKVM_EXIT)
			return luaL_error(L, "library: unexpected end");
		ckvm_vm_close(m->vm);
		m->vm = NULL;
	}
	return 0;
}

int bench_create(lua_State *L)
{
	push_machine(L);
	lua_pushvalue(L, 1);
	lua_pushcclosure(L, create_all, 2);
	return 1;
}

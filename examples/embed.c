/* SPDX-License-Identifier: MIT */
/*
 * A C program with a guest: it answers one port itself, and leaves the others
 * to a policy in Lua.
 *
 *   cc embed.c $(pkg-config --cflags --libs libckvm-lua lua5.4) -o embed
 *   ./embed policy.lua
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <lua.h>
#include <lualib.h>
#include <lauxlib.h>
#include <ckvm_lua.h>

#define COUNTER_PORT 0x40
#define MEMORY_SIZE 0x4000

/* Real mode, at address 0. */
/* clang-format off */
static const uint8_t code[] = {
	0xe5, 0x40,		/*	in	$0x40, %ax	the counter */
	0xe5, 0x40,		/*	in	$0x40, %ax	...is 2 */
	0x04, 0x30,		/*	add	$'0', %al */
	0xba, 0xf8, 0x03,	/*	mov	$0x3f8, %dx */
	0xee,			/*	out	%al, (%dx) */
	0xa0, 0x00, 0x80,	/*	mov	(0x8000), %al	42, '*' */
	0xee,			/*	out	%al, (%dx) */
	0xb0, 0x0a,		/*	mov	$'\n', %al */
	0xee,			/*	out	%al, (%dx) */
	0xf4,			/*	hlt */
	0xa2, 0x10, 0x80,	/*	mov	%al, (0x8010) */
	0xf4,			/*	hlt */
};
/* clang-format on */

/* Our own device: each read of it is one higher. */
static int read_counter(void *opaque, struct ckvm_vcpu *vcpu, uint64_t port,
			void *data, size_t length)
{
	uint64_t *counter = (uint64_t *)opaque;

	(void)vcpu;
	(void)port;
	++*counter;
	memcpy(data, counter, length);
	return 0;
}

static void need(int error, const char *what)
{
	if (!error)
		return;
	fprintf(stderr, "embed: %s: %s: %s\n", what, ckvm_errop(),
		strerror(-error));
	exit(1);
}

static struct ckvm_vcpu *create_guest(struct ckvm_vm *vm)
{
	struct ckvm_memory_config config;
	struct ckvm_memory *memory;
	struct ckvm_vcpu *vcpu;
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	memset(&config, 0, sizeof(config));
	config.size = sizeof(config);
	config.bytes = MEMORY_SIZE;
	need(ckvm_vm_add_memory(vm, &config, &memory), "memory");
	need(ckvm_vm_write(vm, 0, code, sizeof(code)), "code");
	need(ckvm_vm_create_vcpu(vm, 0, &vcpu), "vCPU");

	need(ckvm_vcpu_get_sregs(vcpu, &sregs), "sregs");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	need(ckvm_vcpu_set_sregs(vcpu, &sregs), "sregs");
	memset(&regs, 0, sizeof(regs));
	regs.rflags = 2;
	need(ckvm_vcpu_set_regs(vcpu, &regs), "regs");
	return vcpu;
}

static void attach_counter(struct ckvm_vm *vm, uint64_t *counter)
{
	struct ckvm_ops ops;

	memset(&ops, 0, sizeof(ops));
	ops.size = sizeof(ops);
	ops.read = read_counter;
	need(ckvm_vm_attach_io(vm, COUNTER_PORT, 1, &ops, counter, NULL),
	     "counter");
}

/* The error on top, with its traceback; and the program's status. */
static int report(lua_State *L)
{
	fprintf(stderr, "embed: %s\n", luaL_tolstring(L, -1, NULL));
	lua_pop(L, 2);
	return 1;
}

static int add_traceback(lua_State *L)
{
	luaL_traceback(L, L, luaL_tolstring(L, 1, NULL), 1);
	return 1;
}

/*
 * Runs the script with the VM as its argument. The VM stays on the stack: its
 * Lua object holds the handlers.
 */
static int load_policy(lua_State *L, const char *path, struct ckvm_vm *vm)
{
	ckvm_lua_push_vm(L, vm);
	lua_pushcfunction(L, add_traceback);
	if (luaL_loadfile(L, path) != LUA_OK)
		return report(L);
	lua_pushvalue(L, 1);
	return lua_pcall(L, 1, 0, 2) == LUA_OK ? 0 : report(L);
}

/* Until the guest has halted twice, or something else happens. */
static int run_guest(lua_State *L, struct ckvm_vcpu *vcpu)
{
	struct ckvm_limits limits;
	int halts = 0, end;

	memset(&limits, 0, sizeof(limits));
	limits.size = sizeof(limits);
	limits.flags = CKVM_LIMIT_TIMEOUT;
	limits.timeout_ns = UINT64_C(10000000000);
	while (halts < 2) {
		end = ckvm_lua_run(L, vcpu, &limits);
		if (end == -ECANCELED)
			return report(L);
		need(end < 0 ? end : 0, "run");
		if (end != CKVM_EXIT ||
		    ckvm_vcpu_exit_number(vcpu) != KVM_EXIT_HLT) {
			fprintf(stderr, "embed: the guest does not halt\n");
			return 1;
		}
		printf("halt %d\n", ++halts);
	}
	return 0;
}

int main(int argc, char **argv)
{
	uint64_t counter = 0;
	struct ckvm_vcpu *vcpu;
	struct ckvm_vm *vm;
	struct ckvm *kvm;
	lua_State *L;
	int status;

	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	need(ckvm_open(NULL, &kvm), "no KVM");
	need(ckvm_create_vm(kvm, 0, &vm), "VM");
	vcpu = create_guest(vm);
	attach_counter(vm, &counter);

	L = luaL_newstate();
	luaL_openlibs(L);
	luaL_requiref(L, "ckvm", luaopen_ckvm, 0);
	lua_settop(L, 0);
	status = load_policy(L, argc > 1 ? argv[1] : "policy.lua", vm);
	if (!status)
		status = run_guest(L, vcpu);
	printf("the counter was read %" PRIu64 " times\n", counter);

	lua_close(L);
	ckvm_vm_close(vm);
	ckvm_close(kvm);
	return status;
}

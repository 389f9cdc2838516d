/* SPDX-License-Identifier: MIT */
/*
 * A guest on a thread of its own: its Lua handlers are run by the worker, in a
 * coroutine that belongs to it, while the main thread stays out of Lua. The
 * first guest halts; the second never does, and is kicked from here.
 *
 *   cc -pthread worker.c $(pkg-config --cflags --libs libckvm-lua lua5.4) \
 *      -o worker
 */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <lua.h>
#include <lualib.h>
#include <lauxlib.h>
#include <ckvm_lua.h>

#define BEAT_PORT 0x40
#define BEATS 10

/* Real mode, at address 0: out to 0x10 and 0x40, with 'o' and 'k'. */
static const char halting[] = "\xb0o\xe6\x10\xb0k\xe6\x10\xe6\x40\xf4";
static const char endless[] = "\xb0.\xe6\x10\xe6\x40\xeb\xf8";

/* Every write of the guest to port 0x10 is a character of its text. */
static const char policy[] =
	"local vm = ...\n"
	"local text = {}\n"
	"vm:attach_io { port = 0x10, write = function(_, value)\n"
	"  if #text < 10 then table.insert(text, string.char(value)) end\n"
	"end }\n"
	"return function() return table.concat(text) end\n";

struct worker {
	pthread_t thread;
	struct ckvm_lua *lua;
	lua_State *L; /* the worker's own */
	struct ckvm_vcpu *vcpu;
	sem_t beats; /* what the guest writes to port 0x40 */
	int end;
};

static void die(const char *what)
{
	fprintf(stderr, "worker: %s\n", what);
	exit(1);
}

static void need(int error, const char *what)
{
	if (!error)
		return;
	fprintf(stderr, "worker: %s: %s: %s\n", what, ckvm_errop(),
		strerror(-error));
	exit(1);
}

/* C, and so without the lock. */
static int count_beat(void *opaque, struct ckvm_vcpu *vcpu, uint64_t port,
		      const void *data, size_t length)
{
	struct worker *worker = (struct worker *)opaque;

	(void)vcpu, (void)port, (void)data, (void)length;
	sem_post(&worker->beats);
	return 0;
}

/* Takes the lock to enter Lua; ckvm_lua_run gives it up around the guest. */
static void *work(void *opaque)
{
	struct worker *worker = (struct worker *)opaque;

	ckvm_lua_lock(worker->lua);
	worker->end = ckvm_lua_run(worker->L, worker->vcpu, NULL);
	if (worker->end == -ECANCELED)
		fprintf(stderr, "worker: %s\n", lua_tostring(worker->L, -1));
	ckvm_lua_unlock(worker->lua);
	return NULL;
}

static void create_guest(struct worker *worker, struct ckvm_vm *vm,
			 const void *code, size_t size)
{
	struct ckvm_memory_config config;
	struct ckvm_memory *memory;
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	struct ckvm_ops ops;

	memset(&config, 0, sizeof(config));
	config.size = sizeof(config);
	config.bytes = 0x1000;
	need(ckvm_vm_add_memory(vm, &config, &memory), "memory");
	need(ckvm_vm_write(vm, 0, code, size), "code");
	need(ckvm_vm_create_vcpu(vm, 0, &worker->vcpu), "vCPU");
	need(ckvm_vcpu_get_sregs(worker->vcpu, &sregs), "sregs");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	need(ckvm_vcpu_set_sregs(worker->vcpu, &sregs), "sregs");
	memset(&regs, 0, sizeof(regs));
	regs.rflags = 2;
	need(ckvm_vcpu_set_regs(worker->vcpu, &regs), "regs");

	memset(&ops, 0, sizeof(ops));
	ops.size = sizeof(ops);
	ops.write = count_beat;
	need(ckvm_vm_attach_io(vm, BEAT_PORT, 1, &ops, worker, NULL), "port");
}

/* Until the guest has beaten often enough, or for ten seconds. */
static void wait_for_beats(struct worker *worker)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 10;
	for (int i = 0; i < BEATS; i++)
		if (sem_timedwait(&worker->beats, &until))
			break;
}

static const char *name_of(int end, struct ckvm_vcpu *vcpu)
{
	if (end == CKVM_EXIT)
		return ckvm_exit_name(ckvm_vcpu_exit_number(vcpu));
	return end == CKVM_KICKED ? "kicked" : "something else";
}

/* The main thread holds the lock whenever it is in Lua, and only then. */
static void run_guest(lua_State *L, struct ckvm *kvm, const void *code,
		      size_t size, int kick)
{
	struct worker worker;
	struct ckvm_vm *vm;

	memset(&worker, 0, sizeof(worker));
	sem_init(&worker.beats, 0, 0);
	need(ckvm_create_vm(kvm, 0, &vm), "VM");
	create_guest(&worker, vm, code, size);

	ckvm_lua_push_vm(L, vm); /* stays, and with it the handlers */
	if (luaL_loadstring(L, policy) != LUA_OK)
		die(lua_tostring(L, -1));
	lua_pushvalue(L, -2);
	if (lua_pcall(L, 1, 1, 0) != LUA_OK)
		die(lua_tostring(L, -1));
	worker.lua = ckvm_lua_get(L);
	worker.L = lua_newthread(L); /* stays on L's stack, and so alive */

	ckvm_lua_unlock(worker.lua);
	if (pthread_create(&worker.thread, NULL, work, &worker))
		die("no thread");
	if (kick) {
		wait_for_beats(&worker);
		ckvm_vcpu_kick(worker.vcpu);
	}
	pthread_join(worker.thread, NULL);
	ckvm_lua_lock(worker.lua);

	lua_pushvalue(L, 2); /* what the policy returned */
	lua_call(L, 0, 1);
	printf("the guest wrote \"%s\" and ended by %s\n", lua_tostring(L, -1),
	       name_of(worker.end, worker.vcpu));
	lua_settop(L, 0);
	ckvm_vm_close(vm);
	sem_destroy(&worker.beats);
}

int main(void)
{
	struct ckvm *kvm;
	lua_State *L;

	need(ckvm_open(NULL, &kvm), "no KVM");
	L = luaL_newstate();
	luaL_openlibs(L);
	luaL_requiref(L, "ckvm", luaopen_ckvm, 0);
	lua_settop(L, 0);
	run_guest(L, kvm, halting, sizeof(halting) - 1, 0);
	run_guest(L, kvm, endless, sizeof(endless) - 1, 1);
	lua_close(L);
	ckvm_close(kvm);
	return 0;
}

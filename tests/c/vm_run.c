/* SPDX-License-Identifier: MIT */
/* vm:run beside a thread of the host's in the same state, for TSan to watch. */
#include "lua_state.h"

static const char guest[] =
	"vm = ckvm.open():create_vm()\n"
	"vm:add_memory { gpa = 0, size = 0x10000 }\n"
	"for i = 0, 2 do\n"
	"  vm:write(0x1000 + 0x1000 * i, '\\xe6\\x10\\xe4\\x10\\xeb\\xfa')\n"
	"  local vcpu = vm:create_vcpu(i)\n"
	"  vcpu:set_sregs { cs = { base = 0, selector = 0 } }\n"
	"  vcpu:set_regs { rip = 0x1000 + 0x1000 * i, rflags = 2 }\n"
	"end\n"
	"count, runs = 0, 0\n"
	"vm:attach_io { port = 0x10,\n"
	"  read = function(_, _, vcpu) vcpu.regs.rbx = count return 0 end,\n"
	"  write = function(_, _, _, vcpu)\n"
	"    count = count + 1\n"
	"    if count % 7 == 0 then vcpu:stop(count) end\n"
	"  end }\n";

static lua_State *open_guest(void)
{
	lua_State *L = open_state();

	run(L, guest);
	return L;
}

/* Kicks, attaches and detaches, and sets timers, with the lock for each. */
static void *meddle(void *opaque)
{
	lua_State *L = opaque;
	struct ckvm_lua *lua;
	bool more = true;

	lua = ckvm_lua_get(L);
	while (more) {
		ckvm_lua_lock(lua);
		run(L, "local vcpu = vm.vcpus[count % 3 + 1]\n"
		       "if count % 2 == 0 then vcpu:kick() end\n"
		       "vm:attach_io { port = 0x20, value = 0 }:detach()\n"
		       "vm:after(0, function() fired = (fired or 0) + 1 end)\n"
		       "vm:after(0, print):detach()\n"
		       "vm:add_memory { gpa = 1 << 20, size = 4096 }:close()\n"
		       "return done");
		more = !lua_toboolean(L, -1);
		lua_settop(L, 0);
		ckvm_lua_unlock(lua);
		sched_yield();
	}
	return NULL;
}

static void several_threads_are_in_a_state(void)
{
	lua_State *L = open_guest(), *other = lua_newthread(L);
	struct ckvm_lua *lua = ckvm_lua_get(L);
	pthread_t thread;

	pthread_create(&thread, NULL, meddle, other);
	for (int i = 0; i < test_times(10000); i++)
		run(L, "local why = vm:run { timeout = 10 }\n"
		       "assert(why == 'stopped' or why == 'kicked', why)");
	run(L, "done = true");
	ckvm_lua_unlock(lua);
	pthread_join(thread, NULL);
	ckvm_lua_lock(lua);
	run(L, "assert(fired > 0)");
	lua_close(L);
}

/* From a thread that is none of the state's. */
static void *interrupt(void *opaque)
{
	ckvm_lua_interrupt(opaque);
	return NULL;
}

static void an_interrupt_ends_it(void)
{
	lua_State *L = open_guest();
	pthread_t thread;

	for (int i = 0; i < test_times(1000); i++) {
		pthread_create(&thread, NULL, interrupt, ckvm_lua_get(L));
		CHECK(luaL_dostring(L, "repeat vm:run() until false"));
		CHECK(strstr(lua_tostring(L, -1), "interrupted!"));
		lua_settop(L, 0);
		pthread_join(thread, NULL);
	}
	lua_close(L);
}

static int fail_as_signals_do(void *opaque, struct ckvm_vcpu *vcpu,
			      uint64_t address, const void *data, size_t length)
{
	(void)opaque, (void)vcpu, (void)address, (void)data, (void)length;
	return -EINTR;
}

static void an_error_of_the_host_s_range_is_no_signal(void)
{
	static const struct ckvm_ops ops = { .size = sizeof(ops),
					     .write = fail_as_signals_do };
	lua_State *L = open_state();

	run(L, "vm = ckvm.open():create_vm()\n"
	       "vm:add_memory { gpa = 0, size = 0x2000 }\n"
	       "vm:write(0x1000, '\\xe6\\x10\\xeb\\xfc')\n"
	       "local vcpu = vm:create_vcpu(0)\n"
	       "vcpu:set_sregs { cs = { base = 0, selector = 0 } }\n"
	       "vcpu:set_regs { rip = 0x1000, rflags = 2 }\n"
	       "return vm");
	NEED(ckvm_vm_attach_io(ckvm_lua_to_vm(L, -1), 0x10, 1, &ops, NULL,
			       NULL));
	run(L, "for _, what in ipairs { vm.vcpus[1], vm } do\n"
	       "  local ok, err = pcall(what.run, what, { timeout = 20 })\n"
	       "  assert(not ok and err.code == 'EINTR', tostring(err))\n"
	       "  assert(err.call == 'range', err.call)\n"
	       "end");
	lua_close(L);
}

int main(int argc, char **argv)
{
	(void)argc;
	test_begin(argv);
	test_needs_kvm();
	PROMISE(several_threads_are_in_a_state);
	PROMISE(an_interrupt_ends_it);
	PROMISE(an_error_of_the_host_s_range_is_no_signal);
	return test_end();
}

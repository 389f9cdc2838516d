/* SPDX-License-Identifier: MIT */
/* The yardstick: KVM_RUN loops as one writes them without a library. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <linux/kvm.h>

#include "bench.h"

struct machine {
	int kvm, vm, vcpu;
	size_t run_size;
	uint8_t *memory;
	struct kvm_run *run;
	struct kvm_coalesced_mmio_ring *ring;
	uint64_t sum; /* of what the guest wrote: a use for it */
};

typedef int loop(struct machine *m, lua_Integer count);

/* The machine ------------------------------------------------------------- */

static void end_machine(struct machine *m)
{
	munmap(m->run, m->run_size);
	close(m->vcpu);
	close(m->vm);
	munmap(m->memory, BENCH_SIZE);
}

static int set_registers(struct machine *m)
{
	struct kvm_regs regs = { .rip = BENCH_MEMORY,
				 .rdx = BENCH_PORT,
				 .rflags = 2 };
	struct kvm_sregs sregs;

	if (ioctl(m->vcpu, KVM_GET_SREGS, &sregs) < 0)
		return -1;
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	if (ioctl(m->vcpu, KVM_SET_SREGS, &sregs) < 0)
		return -1;
	return ioctl(m->vcpu, KVM_SET_REGS, &regs);
}

/* Only errors of the kernel are looked for: whoever runs this has a KVM. */
static int make_machine(struct machine *m, const char *code, size_t length)
{
	struct kvm_userspace_memory_region slot = {
		.guest_phys_addr = BENCH_MEMORY,
		.memory_size = BENCH_SIZE,
	};

	m->vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
	m->memory = mmap(NULL, BENCH_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (m->vm < 0 || m->memory == MAP_FAILED)
		return -1;
	slot.userspace_addr = (uintptr_t)m->memory;
	if (ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
		return -1;
	memcpy(m->memory, code, length);
	m->vcpu = ioctl(m->vm, KVM_CREATE_VCPU, 0);
	if (m->vcpu < 0)
		return -1;
	m->run = mmap(NULL, m->run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
		      m->vcpu, 0);
	return m->run == MAP_FAILED ? -1 : set_registers(m);
}

static int open_kvm(struct machine *m)
{
	int size;

	m->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (m->kvm < 0)
		return -1;
	size = ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	m->run_size = (size_t)size;
	return size < 0 ? -1 : 0;
}

/* Loops ------------------------------------------------------------------- */

/* Eight bytes can be read at either kind of data, wherever it is. */
static uint64_t load(const void *data, uint32_t length)
{
	uint64_t value;

	memcpy(&value, data, sizeof(value));
	return value & UINT64_MAX >> (64 - 8 * length);
}

static inline int answer(struct machine *m)
{
	struct kvm_run *run = m->run;
	uint8_t *data;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		if (run->io.port != BENCH_PORT)
			return 0;
		data = (uint8_t *)run + run->io.data_offset;
		if (run->io.direction == KVM_EXIT_IO_OUT)
			m->sum += load(data, run->io.size);
		else
			memset(data, 0, run->io.size);
		return 0;
	case KVM_EXIT_MMIO:
		if (run->mmio.is_write)
			m->sum += load(run->mmio.data, run->mmio.len);
		else
			memset(run->mmio.data, 0, sizeof(run->mmio.data));
		return 0;
	default:
		errno = ENOTSUP;
		return -1;
	}
}

static int answer_all(struct machine *m, lua_Integer count)
{
	while (count--)
		if (ioctl(m->vcpu, KVM_RUN, 0) < 0 || answer(m) < 0)
			return -1;
	return 0;
}

/* Reads two registers and writes one, in the page shared with the kernel. */
static inline void use_registers(struct machine *m)
{
	struct kvm_regs *regs = &m->run->s.regs.regs;

	regs->rsi = regs->rax + regs->rcx;
	m->run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
}

static int use_on_write(struct machine *m, lua_Integer count)
{
	m->run->kvm_valid_regs = KVM_SYNC_X86_REGS;
	while (count--) {
		if (ioctl(m->vcpu, KVM_RUN, 0) < 0 || answer(m) < 0)
			return -1;
		use_registers(m);
	}
	return 0;
}

/* Registers set while a read is open lose its answer: finish it before. */
static int use_on_read(struct machine *m, lua_Integer count)
{
	struct kvm_run *run = m->run;

	run->kvm_valid_regs = KVM_SYNC_X86_REGS;
	while (count--) {
		if (ioctl(m->vcpu, KVM_RUN, 0) < 0 || answer(m) < 0)
			return -1;
		run->immediate_exit = 1;
		if (ioctl(m->vcpu, KVM_RUN, 0) == 0 || errno != EINTR)
			return -1;
		run->immediate_exit = 0;
		use_registers(m);
	}
	return 0;
}

static void drain(struct machine *m, uint32_t size)
{
	struct kvm_coalesced_mmio_ring *ring = m->ring;
	const struct kvm_coalesced_mmio *write;

	while (ring->first != __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE)) {
		write = &ring->coalesced_mmio[ring->first];
		m->sum += load(write->data, write->len);
		ring->first = (ring->first + 1) % size;
	}
}

/* count is of writes. */
static int drain_all(struct machine *m, lua_Integer count)
{
	size_t bytes = (size_t)sysconf(_SC_PAGESIZE) - sizeof(*m->ring);
	uint32_t size = (uint32_t)(bytes / sizeof(struct kvm_coalesced_mmio));

	for (; count > 0; count -= BENCH_ROUND) {
		if (ioctl(m->vcpu, KVM_RUN, 0) < 0)
			return -1;
		drain(m, size);
		if (answer(m) < 0)
			return -1;
	}
	return 0;
}

static int start_queue(struct machine *m)
{
	struct kvm_coalesced_mmio_zone zone = {
		.addr = BENCH_PORT,
		.size = 1,
		.pio = 1,
	};
	int page = ioctl(m->kvm, KVM_CHECK_EXTENSION, KVM_CAP_COALESCED_PIO);

	if (page > 0)
		page = ioctl(m->kvm, KVM_CHECK_EXTENSION,
			     KVM_CAP_COALESCED_MMIO);
	if (page <= 0) {
		errno = ENOTSUP;
		return -1;
	}
	m->ring = (void *)((uint8_t *)m->run + page * sysconf(_SC_PAGESIZE));
	return ioctl(m->vm, KVM_REGISTER_COALESCED_MMIO, &zone);
}

/* For Lua ----------------------------------------------------------------- */

enum { UP_MACHINE = 1, UP_LOOP };

static int run_loop(lua_State *L)
{
	struct machine *m = lua_touserdata(L, lua_upvalueindex(UP_MACHINE));
	loop **body = lua_touserdata(L, lua_upvalueindex(UP_LOOP));

	if ((*body)(m, luaL_checkinteger(L, 1)) < 0)
		return luaL_error(L, "plain loop: %s", strerror(errno));
	return 0;
}

/* The machine stays until the process ends. */
static struct machine *push_loop(lua_State *L, loop *body)
{
	size_t length;
	const char *code = luaL_checklstring(L, 1, &length);
	struct machine *m = lua_newuserdatauv(L, sizeof(*m), 0);
	loop **up = lua_newuserdatauv(L, sizeof(*up), 0);

	*m = (struct machine){ 0 };
	*up = body;
	luaL_argcheck(L, length <= BENCH_SIZE, 1, "code too long");
	if (open_kvm(m) < 0 || make_machine(m, code, length) < 0)
		luaL_error(L, "plain machine: %s", strerror(errno));
	lua_pushcclosure(L, run_loop, 2);
	return m;
}

int bench_plain(lua_State *L)
{
	push_loop(L, answer_all);
	return 1;
}

static void check_sync(lua_State *L, struct machine *m)
{
	int sets = ioctl(m->kvm, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_REGS);

	if (sets < 0 || !(sets & KVM_SYNC_X86_REGS))
		luaL_error(L, "no KVM_CAP_SYNC_REGS");
}

int bench_plain_write(lua_State *L)
{
	check_sync(L, push_loop(L, use_on_write));
	return 1;
}

int bench_plain_read(lua_State *L)
{
	check_sync(L, push_loop(L, use_on_read));
	return 1;
}

int bench_plain_batched(lua_State *L)
{
	if (start_queue(push_loop(L, drain_all)) < 0)
		luaL_error(L, "plain queue: %s", strerror(errno));
	return 1;
}

static int create_all(lua_State *L)
{
	struct machine *m = lua_touserdata(L, lua_upvalueindex(1));
	lua_Integer count = luaL_checkinteger(L, 1);
	size_t length;
	const char *code = lua_tolstring(L, lua_upvalueindex(2), &length);

	while (count--) {
		if (make_machine(m, code, length) < 0 || answer_all(m, 1) < 0)
			return luaL_error(L, "plain machine: %s",
					  strerror(errno));
		end_machine(m);
	}
	return 0;
}

int bench_plain_create(lua_State *L)
{
	struct machine *m = lua_newuserdatauv(L, sizeof(*m), 0);

	*m = (struct machine){ 0 };
	if (open_kvm(m) < 0)
		return luaL_error(L, "/dev/kvm: %s", strerror(errno));
	lua_pushvalue(L, 1);
	lua_pushcclosure(L, create_all, 2);
	return 1;
}

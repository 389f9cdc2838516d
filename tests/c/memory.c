/* SPDX-License-Identifier: MIT */
/* Guest memory: where it may be, and what reaches it. */
#include "test.h"

static struct ckvm_memory_config at(uint64_t gpa, uint64_t bytes)
{
	return (struct ckvm_memory_config){
		.size = sizeof(struct ckvm_memory_config),
		.gpa = gpa,
		.bytes = bytes,
	};
}

static struct ckvm_memory *add(struct ckvm_vm *vm, uint64_t gpa, uint64_t bytes)
{
	struct ckvm_memory_config config = at(gpa, bytes);
	struct ckvm_memory *memory = NULL;

	CHECK_EQ(ckvm_vm_add_memory(vm, &config, &memory), 0);
	return memory;
}

static void refuses(struct ckvm_vm *vm, struct ckvm_memory_config config,
		    int error, const char *step)
{
	struct ckvm_memory *untouched = (void *)&config, *memory = untouched;

	CHECK_FAILS(ckvm_vm_add_memory(vm, &config, &memory), error, step);
	CHECK(memory == untouched);
}

/* Places ------------------------------------------------------------------ */

static void is_made_of_whole_pages(void)
{
	struct ckvm_vm *vm = fake_vm();

	refuses(vm, at(0x1000, 0), EINVAL, "memory");
	refuses(vm, at(0x1000, 0xfff), EINVAL, "memory");
	refuses(vm, at(0x1000, 0x1001), EINVAL, "memory");
	refuses(vm, at(0x1001, 0x1000), EINVAL, "memory");
	ckvm_vm_close(vm);
}

static void ends_at_2_to_the_64(void)
{
	struct ckvm_vm *vm = fake_vm();
	struct ckvm_memory *last = add(vm, UINT64_MAX - 0xfff, 0x1000);
	uint8_t data[2];

	refuses(vm, at(UINT64_MAX - 0xfff, 0x2000), EINVAL, "memory");
	refuses(vm, at(0x2000, UINT64_MAX - 0xfff), EINVAL, "memory");
	refuses(vm, at(0, UINT64_C(1) << 63), ENOMEM, "mmap");
	CHECK_EQ(ckvm_vm_fill(vm, UINT64_MAX - 0xfff, 0x5a, 0x1000), 0);
	CHECK_EQ(ckvm_vm_read(vm, UINT64_MAX, data, 1), 0);
	CHECK_EQ(data[0], 0x5a);
	CHECK_FAILS(ckvm_vm_read(vm, UINT64_MAX, data, 2), EFAULT, "memory");
	CHECK_EQ(ckvm_vm_extent(vm, UINT64_MAX), 1);
	CHECK_EQ(ckvm_vm_extent(vm, UINT64_MAX - 0xfff), 0x1000);
	CHECK(ckvm_vm_find_memory(vm, UINT64_MAX, UINT64_MAX) == last);
	ckvm_memory_unref(last);
	ckvm_vm_close(vm);
}

static void does_not_wrap_around_to_address_0(void)
{
	struct ckvm_vm *vm = fake_vm();
	uint8_t data[0x20];

	add(vm, UINT64_MAX - 0xfff, 0x1000);
	add(vm, 0, 0x1000);
	CHECK_FAILS(ckvm_vm_read(vm, UINT64_MAX - 0xf, data, 0x20), EFAULT,
		    "memory");
	CHECK_FAILS(ckvm_vm_read(vm, 0, data, SIZE_MAX), EFAULT, "memory");
	CHECK_EQ(ckvm_vm_extent(vm, UINT64_MAX - 0xf), 0x10);
	ckvm_vm_close(vm);
}

static void refuses_overlaps(void)
{
	struct ckvm_vm *vm = fake_vm();

	add(vm, 0x3000, 0x2000);
	refuses(vm, at(0x2000, 0x2000), EEXIST, "memory");
	refuses(vm, at(0x3000, 0x1000), EEXIST, "memory");
	refuses(vm, at(0x4000, 0x2000), EEXIST, "memory");
	refuses(vm, at(0x1000, 0x8000), EEXIST, "memory");
	add(vm, 0x2000, 0x1000);
	add(vm, 0x5000, 0x1000);
	ckvm_vm_close(vm);
}

static void refuses_what_is_reserved(void)
{
	struct ckvm_vm *vm = fake_vm();
	struct ckvm_memory_config config = at(0x1000, 0x1000);

	config.reserved = 1;
	refuses(vm, config, EINVAL, "reserved");
	config.reserved = 0;
	config.flags = 1u << 31;
	refuses(vm, config, EINVAL, "flags");
	ckvm_vm_close(vm);
}

static void uses_the_first_free_slot(void)
{
	struct ckvm_vm *vm = fake_vm();
	struct ckvm_memory_config fixed = at(0x8000, 0x1000);
	struct ckvm_memory *first = add(vm, 0x1000, 0x1000), *memory;

	fixed.flags = CKVM_MEMORY_SLOT;
	fixed.slot = 1;
	NEED(ckvm_vm_add_memory(vm, &fixed, &memory));
	CHECK_EQ(ckvm_memory_slot(memory), 1);
	fixed.gpa = 0x9000;
	refuses(vm, fixed, EEXIST, "slot");
	CHECK_EQ(ckvm_memory_slot(first), 0);
	CHECK_EQ(ckvm_memory_slot(add(vm, 0x2000, 0x1000)), 2);
	ckvm_memory_close(first);
	CHECK_EQ(ckvm_memory_slot(add(vm, 0x3000, 0x1000)), 0);
	ckvm_vm_close(vm);
}

static void refuses_what_the_kernel_refuses(void)
{
	struct guest guest = GUEST("\xf4");
	struct ckvm_memory_config config = at(0x10000, 0x1000);

	config.flags = CKVM_MEMORY_SLOT;
	config.slot = UINT32_MAX;
	refuses(guest.vm, config, EINVAL, "KVM_SET_USER_MEMORY_REGION");
	refuses(guest.vm, at(UINT64_MAX - 0xfff, 0x1000), EINVAL,
		"KVM_SET_USER_MEMORY_REGION");
	CHECK(guest_halts(&guest));
	guest_close(&guest);
}

/* Accesses ---------------------------------------------------------------- */

/* Three slots side by side, added out of order; page i is full of i. */
static struct ckvm_vm *three_slots(void)
{
	struct ckvm_vm *vm = fake_vm();

	add(vm, 0x2000, 0x1000);
	add(vm, 0x3000, 0x2000);
	add(vm, 0x1000, 0x1000);
	for (uint8_t page = 1; page < 5; page++)
		CHECK_EQ(ckvm_vm_fill(vm, page * 0x1000u, page, 0x1000), 0);
	return vm;
}

static void is_read_across_adjacent_slots(void)
{
	struct ckvm_vm *vm = three_slots();
	static uint8_t data[0x4000];
	int wrong = 0;

	CHECK_EQ(ckvm_vm_read(vm, 0x1000, data, 0x4000), 0);
	for (unsigned int i = 0; i < sizeof(data); i++)
		wrong += data[i] != 1 + i / 0x1000;
	CHECK_EQ(wrong, 0);
	CHECK_EQ(ckvm_vm_read(vm, 0x1fff, data, 2), 0);
	CHECK_EQ(data[0] << 8 | data[1], 0x102);
	CHECK_EQ(ckvm_vm_extent(vm, 0x1234), 0x5000 - 0x1234);
	ckvm_vm_close(vm);
}

static void is_written_across_adjacent_slots(void)
{
	struct ckvm_vm *vm = three_slots();
	uint8_t data[4];

	CHECK_EQ(ckvm_vm_write(vm, 0x1ffd, "abcdef", 6), 0);
	CHECK_EQ(ckvm_vm_read(vm, 0x1ffe, data, 4), 0);
	CHECK(!memcmp(data, "bcde", 4));
	CHECK_EQ(ckvm_vm_fill(vm, 0x2ffe, 0xee, 4), 0);
	CHECK_EQ(ckvm_vm_read(vm, 0x2ffe, data, 4), 0);
	CHECK(!memcmp(data, "\xee\xee\xee\xee", 4));
	ckvm_vm_close(vm);
}

static void is_accessed_as_a_whole_or_not_at_all(void)
{
	struct ckvm_vm *vm = three_slots();
	static uint8_t data[0x5000], before[8];

	memset(data, 0x77, sizeof(data));
	CHECK_FAILS(ckvm_vm_read(vm, 0x4ffc, data, 8), EFAULT, "memory");
	CHECK_FAILS(ckvm_vm_read(vm, 0xffc, data, 8), EFAULT, "memory");
	CHECK_EQ(data[0], 0x77);
	CHECK_EQ(ckvm_vm_read(vm, 0x4ff8, before, 8), 0);
	CHECK_FAILS(ckvm_vm_write(vm, 0x4ffc, data, 8), EFAULT, "memory");
	CHECK_FAILS(ckvm_vm_write(vm, 0x1000, data, 0x4001), EFAULT, "memory");
	CHECK_FAILS(ckvm_vm_fill(vm, 0x4ffc, 0x77, 8), EFAULT, "memory");
	CHECK_FAILS(ckvm_vm_fill(vm, 0x4ffc, 0x77, SIZE_MAX), EFAULT, "memory");
	CHECK_EQ(ckvm_vm_read(vm, 0x4ff8, data, 8), 0);
	CHECK(!memcmp(data, before, 8));
	ckvm_vm_close(vm);
}

static void stays_what_it_is_when_the_guest_maps_it_anew(void)
{
	struct ckvm_vm *vm = three_slots();
	static uint8_t data[0x4000];
	int wrong = 0;

	CHECK_EQ(ckvm_vm_zap_memory(vm, 0x1000, 0x4000), 0);
	CHECK_FAILS(ckvm_vm_zap_memory(vm, 0x1000, 0x5000), EFAULT, "memory");
	CHECK_FAILS(ckvm_vm_zap_memory(vm, 0x0, 0x1000), EFAULT, "memory");
	CHECK_FAILS(ckvm_vm_zap_memory(vm, 0x1000, 0), EINVAL, "memory");
	CHECK_FAILS(ckvm_vm_zap_memory(vm, 0x1000, 0x800), EINVAL, "memory");
	CHECK_FAILS(ckvm_vm_zap_memory(vm, 0x1800, 0x1000), EINVAL, "memory");
	CHECK_FAILS(ckvm_vm_zap_memory(vm, 0x2000, UINT64_MAX - 0xfff), EINVAL,
		    "memory");
	CHECK_EQ(ckvm_vm_read(vm, 0x1000, data, 0x4000), 0);
	for (unsigned int i = 0; i < sizeof(data); i++)
		wrong += data[i] != 1 + i / 0x1000;
	CHECK_EQ(wrong, 0);
	CHECK_EQ(ckvm_vm_fill(vm, 0x1000, 0, 0x4000), 0);
	ckvm_vm_close(vm);
}

static void has_nothing_to_do_for_no_bytes(void)
{
	struct ckvm_vm *vm = three_slots();

	CHECK_EQ(ckvm_vm_read(vm, 0x1000, NULL, 0), 0);
	CHECK_EQ(ckvm_vm_write(vm, 0x900000, NULL, 0), 0);
	CHECK_EQ(ckvm_vm_fill(vm, UINT64_MAX, 1, 0), 0);
	CHECK(!ckvm_vm_find_memory(vm, 0x1000, 0));
	CHECK_EQ(ckvm_vm_extent(vm, 0xfff), 0);
	CHECK_EQ(ckvm_vm_extent(vm, 0x5000), 0);
	ckvm_vm_close(vm);
}

static void starts_as_zeroes(void)
{
	struct ckvm_vm *vm = fake_vm();
	uint8_t data[16], none[16] = { 0 };

	add(vm, 0, 0x10000);
	memset(data, 1, sizeof(data));
	CHECK_EQ(ckvm_vm_read(vm, 0xfff0, data, 16), 0);
	CHECK(!memcmp(data, none, 16));
	ckvm_vm_close(vm);
}

static void is_the_mapping_itself(void)
{
	struct ckvm_vm *vm = fake_vm();
	struct ckvm_memory *memory = add(vm, 0x1000, 0x1000);
	uint8_t *bytes = ckvm_memory_data(memory), byte = 0;

	bytes[0x10] = 7;
	CHECK_EQ(ckvm_vm_read(vm, 0x1010, &byte, 1), 0);
	CHECK_EQ(byte, 7);
	CHECK_EQ(ckvm_memory_gpa(memory), 0x1000);
	CHECK_EQ(ckvm_memory_size(memory), 0x1000);
	ckvm_vm_close(vm);
}

/* Moving and closing ------------------------------------------------------ */

static void is_moved_with_its_contents(void)
{
	struct guest guest = GUEST("\xa0\x00\xa0" /* mov (0xa000), %al */
				   "\xf4");
	struct ckvm_memory *memory = add(guest.vm, 0x6000, 0x1000);
	uint8_t byte = 0x42;

	CHECK_EQ(ckvm_vm_write(guest.vm, 0x6000, &byte, 1), 0);
	CHECK_FAILS(ckvm_memory_move(memory, 0x2000), EEXIST, "memory");
	CHECK_FAILS(ckvm_memory_move(memory, 0x6001), EINVAL, "memory");
	CHECK_EQ(ckvm_memory_gpa(memory), 0x6000);
	CHECK_EQ(ckvm_memory_move(memory, 0x6000), 0);
	CHECK_EQ(ckvm_memory_move(memory, 0xa000), 0);
	CHECK_EQ(ckvm_memory_gpa(memory), 0xa000);
	CHECK_FAILS(ckvm_vm_read(guest.vm, 0x6000, &byte, 1), EFAULT, "memory");
	CHECK(guest_halts(&guest));
	CHECK_EQ(guest_rax(&guest), 0x42);
	guest_close(&guest);
}

static void moves_by_less_than_its_size(void)
{
	struct guest guest = GUEST("\xf4");
	struct ckvm_memory *memory = add(guest.vm, 0x10000, 0x4000);

	CHECK_EQ(ckvm_memory_move(memory, 0x11000), 0);
	CHECK_EQ(ckvm_memory_move(memory, 0x10000), 0);
	CHECK_EQ(ckvm_vm_extent(guest.vm, 0x10000), 0x4000);
	guest_close(&guest);
}

static void leaves_the_guest_when_closed(void)
{
	struct guest guest = GUEST("\xa0\x00\x60" /* mov (0x6000), %al */
				   "\xf4");
	struct ckvm_memory *memory = add(guest.vm, 0x6000, 0x1000);

	ckvm_memory_ref(memory);
	ckvm_memory_close(memory);
	ckvm_memory_close(memory);
	CHECK_EQ(ckvm_vm_extent(guest.vm, 0x6000), 0);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, NULL), CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), CKVM_EXIT_MMIO_READ);
	CHECK_FAILS(ckvm_memory_move(memory, 0x7000), EBADF, "closed");
	CHECK_FAILS(ckvm_memory_dirty(memory, NULL, 0), EBADF, "closed");
	ckvm_memory_unref(memory);
	guest_close(&guest);
}

static void fails_with_a_closed_vm(void)
{
	struct ckvm_vm *vm = ckvm_vm_ref(fake_vm());
	struct ckvm_memory *memory = ckvm_memory_ref(add(vm, 0x1000, 0x1000));
	uint8_t byte;

	ckvm_vm_close(vm);
	refuses(vm, at(0x2000, 0x1000), EBADF, "closed");
	CHECK_FAILS(ckvm_vm_read(vm, 0x1000, &byte, 1), EBADF, "closed");
	CHECK_FAILS(ckvm_vm_write(vm, 0x1000, "x", 1), EBADF, "closed");
	CHECK_FAILS(ckvm_vm_fill(vm, 0x1000, 0, 1), EBADF, "closed");
	CHECK_FAILS(ckvm_vm_zap_memory(vm, 0x1000, 0x1000), EBADF, "closed");
	CHECK_FAILS(ckvm_memory_move(memory, 0x2000), EBADF, "closed");
	CHECK_FAILS(ckvm_memory_dirty(memory, NULL, 0), EBADF, "closed");
	ckvm_vm_unref(vm);
	CHECK_FAILS(ckvm_memory_move(memory, 0x2000), EBADF, "closed");
	CHECK_EQ(ckvm_memory_gpa(memory), 0x1000);
	ckvm_memory_close(memory);
	ckvm_memory_unref(memory);
	ckvm_memory_unref(NULL);
	ckvm_memory_close(NULL);
}

/* Kinds ------------------------------------------------------------------- */

static void can_be_read_only_for_the_guest(void)
{
	struct guest guest = GUEST("\xa2\x00\x60" /* mov %al, (0x6000) */
				   "\xf4");
	struct ckvm_memory_config config = at(0x6000, 0x1000);
	struct ckvm_memory *memory;

	config.flags = CKVM_MEMORY_READONLY;
	NEED(ckvm_vm_add_memory(guest.vm, &config, &memory));
	CHECK_EQ(ckvm_vm_write(guest.vm, 0x6000, "x", 1), 0);
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, NULL), CKVM_EXIT);
	CHECK_EQ(ckvm_vcpu_exit_number(guest.vcpu), CKVM_EXIT_MMIO_WRITE);
	CHECK_EQ(ckvm_vcpu_exit(guest.vcpu)->mmio.phys_addr, 0x6000);
	guest_close(&guest);
}

static void can_be_a_file(void)
{
	struct ckvm_vm *vm = fake_vm();
	struct ckvm_memory_config config = at(0x1000, 0x2000);
	struct ckvm_memory *memory;
	uint8_t byte = 0;

	config.flags = CKVM_MEMORY_FILE | CKVM_MEMORY_SHARED;
	config.fd = memfd_create("file", MFD_CLOEXEC);
	NEED(ftruncate(config.fd, 0x3000));
	config.offset = 0x800;
	refuses(vm, config, EINVAL, "offset");
	config.offset = 0x2000;
	refuses(vm, config, ERANGE, "file");
	config.offset = 0x1000;
	NEED(ckvm_vm_add_memory(vm, &config, &memory));
	CHECK_EQ(ckvm_vm_write(vm, 0x1003, "x", 1), 0);
	CHECK_EQ(pread(config.fd, &byte, 1, 0x1003), 1);
	CHECK_EQ(byte, 'x');

	/* It shrinks, and nobody gets a SIGBUS. */
	NEED(ftruncate(config.fd, 0x1000));
	CHECK_FAILS(ckvm_vm_read(vm, 0x1003, &byte, 1), EFAULT, "file");
	CHECK_EQ(ckvm_fault_gpa(), 0x1003);
	CHECK_FAILS(ckvm_vm_write(vm, 0x1004, "x", 1), EFAULT, "file");
	CHECK_EQ(ckvm_fault_gpa(), 0x1004);
	NEED(ftruncate(config.fd, 0x2000));
	CHECK_FAILS(ckvm_vm_fill(vm, 0x1005, 'y', 0x1000), EFAULT, "file");
	CHECK_EQ(ckvm_fault_gpa(), 0x2000);
	CHECK_EQ(pread(config.fd, &byte, 1, 0x1fff), 1);
	CHECK_EQ(byte, 'y');
	CHECK_FAILS(ckvm_vm_read(vm, 0x2fff, &byte, 2), EFAULT, "memory");
	CHECK_EQ(ckvm_fault_gpa(), 0x3000);
	CHECK_FAILS(ckvm_vm_zap_memory(vm, 0x1000, 0x3000), EFAULT, "memory");
	CHECK_EQ(ckvm_fault_gpa(), 0x3000);

	config.gpa = 0x8000;
	config.bytes = 0x1000;
	config.flags |= CKVM_MEMORY_READONLY;
	NEED(ckvm_vm_add_memory(vm, &config, &memory));
	CHECK_FAILS(ckvm_vm_write(vm, 0x8001, "x", 1), EFAULT, "readonly");
	CHECK_EQ(ckvm_fault_gpa(), 0x8001);
	CHECK_EQ(ckvm_vm_read(vm, 0x8001, &byte, 1), 0);
	close(config.fd);
	config.gpa = 0x10000;
	refuses(vm, config, EBADF, "fstat");
	ckvm_vm_close(vm);
}

static void logs_the_pages_the_guest_writes(void)
{
	struct guest guest = GUEST("\xa2\x00\x70" /* mov %al, (0x7000) */
				   "\xf4\xf4");
	struct ckvm_memory_config config = at(0x6000, 65 * 0x1000);
	struct ckvm_memory *memory;
	uint64_t bitmap[2] = { 0 };

	CHECK_FAILS(ckvm_memory_dirty(guest.memory, bitmap, 2), ENOENT,
		    "log_dirty");
	config.flags = CKVM_MEMORY_LOG_DIRTY;
	NEED(ckvm_vm_add_memory(guest.vm, &config, &memory));
	CHECK_FAILS(ckvm_memory_dirty(memory, bitmap, 1), EINVAL, "bitmap");
	CHECK_EQ(ckvm_memory_dirty(memory, bitmap, 2), 0);
	CHECK(guest_halts(&guest));
	CHECK_EQ(ckvm_memory_dirty(memory, bitmap, 2), 1);
	CHECK_EQ(bitmap[0], 2);
	CHECK_EQ(bitmap[1], 0);
	CHECK_EQ(ckvm_memory_dirty(memory, bitmap, 2), 0);
	guest_close(&guest);
}

/* Threads ----------------------------------------------------------------- */

/* Adds, fills, moves and removes while somebody else reads and runs. */
static void *churn(void *opaque)
{
	struct ckvm_vm *vm = opaque;

	for (int i = 0; i < 300; i++) {
		struct ckvm_memory *memory = add(vm, 0x10000, 0x2000);

		CHECK_EQ(ckvm_vm_fill(vm, 0x10000, 0xab, 0x2000), 0);
		CHECK_EQ(ckvm_memory_move(memory, 0x11000), 0);
		ckvm_memory_close(memory);
	}
	return NULL;
}

static void comes_and_goes_while_another_thread_copies(void)
{
	struct ckvm_vm *vm = three_slots();
	uint8_t data[0x100] = { 0 };
	pthread_t thread;
	int wrong = 0;

	NEED(pthread_create(&thread, NULL, churn, vm));
	for (int i = 0; i < 3000; i++) {
		int error = ckvm_vm_read(vm, 0x11000, data, sizeof(data));

		wrong += error != 0 && error != -EFAULT;
		wrong += ckvm_vm_read(vm, 0x1f80, data, sizeof(data)) != 0;
		wrong += data[0] != 1 || data[0xff] != 2;
	}
	CHECK_EQ(wrong, 0);
	pthread_join(thread, NULL);
	ckvm_vm_close(vm);
}

static void *churn_and_kick(void *opaque)
{
	struct guest *guest = opaque;

	churn(guest->vm);
	ckvm_vcpu_kick(guest->vcpu);
	return NULL;
}

/* Whatever the guest reads there: the memory, or the bus. */
static void comes_and_goes_while_the_guest_reads_it(void)
{
	struct guest guest = GUEST("\x8c\xc8"	  /* mov %cs, %ax */
				   "\xb8\x00\x10" /* mov $0x1000, %ax */
				   "\x8e\xd8"	  /* mov %ax, %ds */
				   "\xa1\x00\x10" /* mov (0x1000), %ax */
				   "\xeb\xfb");	  /* jmp to that */
	struct ckvm_range_config bus = { .size = sizeof(bus),
					 .space = CKVM_MMIO,
					 .first = 0x10000,
					 .count = 0x10000,
					 .read = CKVM_ANSWER_VALUE,
					 .value = 0xabab };
	pthread_t thread;

	NEED(ckvm_vm_attach(guest.vm, &bus, NULL));
	NEED(pthread_create(&thread, NULL, churn_and_kick, &guest));
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, NULL), CKVM_KICKED);
	pthread_join(thread, NULL);
	guest_close(&guest);
}

static void *zap_and_kick(void *opaque)
{
	struct guest *guest = opaque;

	for (int i = 0; i < 300; i++)
		CHECK_EQ(ckvm_vm_zap_memory(guest->vm, 0x10000, 0x2000), 0);
	ckvm_vcpu_kick(guest->vcpu);
	return NULL;
}

static void loses_nothing_while_the_guest_maps_it_anew(void)
{
	struct guest guest = GUEST("\xb8\x00\x10"     /* mov $0x1000, %ax */
				   "\x8e\xd8"	      /* mov %ax, %ds */
				   "\x43"	      /* inc %bx */
				   "\x89\x1e\x00\x00" /* mov %bx, (0) */
				   "\x3b\x1e\x00\x00" /* cmp (0), %bx */
				   "\x74\xf5"	      /* je to the inc */
				   "\xf4");
	struct ckvm_memory_config config = at(0x10000, 0x2000);
	struct ckvm_memory *memory;
	pthread_t thread;

	config.flags = CKVM_MEMORY_SHARED;
	NEED(ckvm_vm_add_memory(guest.vm, &config, &memory));
	NEED(pthread_create(&thread, NULL, zap_and_kick, &guest));
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, NULL), CKVM_KICKED);
	pthread_join(thread, NULL);
	guest_close(&guest);
}

struct zapping {
	struct ckvm_vm *vm;
	atomic_bool done;
};

static void *zap_often(void *opaque)
{
	struct zapping *zapping = opaque;

	for (int i = 0; i < 3000; i++)
		CHECK_EQ(ckvm_vm_zap_memory(zapping->vm, 0, 0x2000), 0);
	zapping->done = true;
	return NULL;
}

/* Two VMs have a file's memory, the changes of which are theirs alone. */
static void is_there_for_one_vm_while_another_zaps_it(void)
{
	struct zapping zapping = { .vm = fake_vm() };
	struct ckvm_memory_config config = at(0, 0x2000);
	struct ckvm_vm *vm = fake_vm();
	struct ckvm_memory *memory;
	int wrong = 0;
	pthread_t thread;
	uint8_t byte;

	config.flags = CKVM_MEMORY_FILE;
	config.fd = memfd_create("file", MFD_CLOEXEC);
	NEED(ftruncate(config.fd, 0x2000));
	NEED(ckvm_vm_add_memory(zapping.vm, &config, &memory));
	close(config.fd);
	config.flags = 0;
	config.memory = memory;
	NEED(ckvm_vm_add_memory(vm, &config, &memory));
	NEED(pthread_create(&thread, NULL, zap_often, &zapping));
	for (uint8_t i = 0; !zapping.done; i++) {
		wrong += ckvm_vm_write(vm, 0xfff, &i, 1) != 0;
		wrong += ckvm_vm_read(vm, 0xfff, &byte, 1) != 0 || byte != i;
	}
	CHECK_EQ(wrong, 0);
	pthread_join(thread, NULL);
	ckvm_vm_close(vm);
	ckvm_vm_close(zapping.vm);
}

static void *zap_until_closed(void *opaque)
{
	struct ckvm_vm *vm = opaque;
	int error;

	do
		error = ckvm_vm_zap_memory(vm, 0x1000, 0x4000);
	while (!error);
	CHECK(error == -EBADF || error == -EFAULT);
	ckvm_vm_unref(vm);
	return NULL;
}

static void may_go_while_another_thread_zaps_it(void)
{
	for (int i = 0; i < 50; i++) {
		struct ckvm_vm *vm = three_slots();
		pthread_t thread;

		ckvm_vm_ref(vm);
		NEED(pthread_create(&thread, NULL, zap_until_closed, vm));
		sched_yield();
		ckvm_vm_close(vm);
		pthread_join(thread, NULL);
	}
}

int main(int argc, char **argv)
{
	test_begin(argv);
	PROMISE(is_made_of_whole_pages);
	PROMISE(ends_at_2_to_the_64);
	PROMISE(does_not_wrap_around_to_address_0);
	PROMISE(refuses_overlaps);
	PROMISE(refuses_what_is_reserved);
	PROMISE(uses_the_first_free_slot);
	PROMISE(is_read_across_adjacent_slots);
	PROMISE(is_written_across_adjacent_slots);
	PROMISE(is_accessed_as_a_whole_or_not_at_all);
	PROMISE(stays_what_it_is_when_the_guest_maps_it_anew);
	PROMISE(has_nothing_to_do_for_no_bytes);
	PROMISE(starts_as_zeroes);
	PROMISE(is_the_mapping_itself);
	PROMISE(fails_with_a_closed_vm);
	PROMISE(can_be_a_file);
	PROMISE(comes_and_goes_while_another_thread_copies);
	PROMISE(is_there_for_one_vm_while_another_zaps_it);
	PROMISE(may_go_while_another_thread_zaps_it);
	test_needs_kvm();
	PROMISE(refuses_what_the_kernel_refuses);
	PROMISE(is_moved_with_its_contents);
	PROMISE(moves_by_less_than_its_size);
	PROMISE(leaves_the_guest_when_closed);
	PROMISE(can_be_read_only_for_the_guest);
	PROMISE(logs_the_pages_the_guest_writes);
	PROMISE(comes_and_goes_while_the_guest_reads_it);
	PROMISE(loses_nothing_while_the_guest_maps_it_anew);
	return test_end();
}

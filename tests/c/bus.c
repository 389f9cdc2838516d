/* SPDX-License-Identifier: MIT */
/* Who owns which port and which address: look-ups against a model. */
#include "internal.h"
#include "test.h"

static struct ckvm_vm *vm;

static struct ckvm_range *attach_io(uint16_t first, uint32_t count)
{
	struct ckvm_range *range = NULL;

	CHECK_EQ(ckvm_vm_attach_io(vm, first, count, NULL, NULL, &range), 0);
	return range;
}

static struct ckvm_range *attach_mmio(uint64_t first, uint64_t count)
{
	struct ckvm_range *range = NULL;

	CHECK_EQ(ckvm_vm_attach_mmio(vm, first, count, NULL, NULL, &range), 0);
	return range;
}

static void claims_just_the_ports_of_the_range(void)
{
	struct ckvm_range *range = attach_io(0x3f8, 8);
	int wrong = 0;

	for (unsigned int port = 0; port < 0x10000; port++)
		wrong += ckvm__find_port(vm, (uint16_t)port) !=
			 (port >= 0x3f8 && port < 0x400 ? range : NULL);
	CHECK_EQ(wrong, 0);
	ckvm_range_detach(range);
	CHECK(!ckvm__find_port(vm, 0x3f8));
}

static void finds_nobody_within_nothing(void)
{
	struct ckvm_range *range = attach_io(0x3f8, 8), *found;

	CHECK(!ckvm_vm_find_range(vm, CKVM_IO, 0x3f8, 0));
	CHECK(!ckvm_vm_find_range(vm, CKVM_IO, 0, 0));
	CHECK(!ckvm_vm_find_range(vm, CKVM_IO, 0x3f7, 1));
	found = ckvm_vm_find_range(vm, CKVM_IO, 0x3f7, 2);
	CHECK(found == range);
	ckvm_range_unref(found);
	ckvm_range_detach(range);
}

static void claims_all_ports_at_once(void)
{
	struct ckvm_range *range = attach_io(0, 0x10000);
	int wrong = 0;

	for (unsigned int port = 0; port < 0x10000; port++)
		wrong += ckvm__find_port(vm, (uint16_t)port) != range;
	CHECK_EQ(wrong, 0);
	CHECK_EQ(ckvm_range_count(range), 0x10000);
	ckvm_range_detach(range);
	for (unsigned int port = 0; port < 0x10000; port++)
		wrong += ckvm__find_port(vm, (uint16_t)port) != NULL;
	CHECK_EQ(wrong, 0);
}

static void has_a_range_for_each_port(void)
{
	static struct ckvm_range *ranges[0x10000];
	int wrong = 0;

	for (unsigned int port = 0; port < 0x10000; port += 16)
		ranges[port] = attach_io((uint16_t)port, 16);
	for (unsigned int port = 0; port < 0x10000; port++)
		wrong += ckvm__find_port(vm, (uint16_t)port) !=
			 ranges[port & ~15u];
	CHECK_EQ(wrong, 0);
	for (unsigned int port = 0; port < 0x10000; port += 16)
		ckvm_range_detach(ranges[port]);
}

/* Neighbours in one leaf of the table must not disturb one another. */
static void follows_ports_attached_and_detached_at_random(void)
{
	enum { PORTS = 600, STEPS = 4000 };
	static struct ckvm_range *owner[PORTS];
	int wrong = 0;

	for (int step = 0; step < STEPS; step++) {
		unsigned int first = test_random() % PORTS;
		unsigned int count = 1 + test_random() % 40, free = 0;
		struct ckvm_range *range;

		if ((range = owner[first])) {
			for (unsigned int i = 0; i < PORTS; i++)
				if (owner[i] == range)
					owner[i] = NULL;
			ckvm_range_detach(range);
			continue;
		}
		if (count > PORTS - first)
			count = PORTS - first;
		while (free < count && !owner[first + free])
			free++;
		if (free < count)
			CHECK_FAILS(ckvm_vm_attach_io(vm, (uint16_t)first,
						      count, NULL, NULL,
						      &range),
				    EEXIST, "range");
		range = attach_io((uint16_t)first, free);
		for (unsigned int i = 0; i < free; i++)
			owner[first + i] = range;
		for (unsigned int i = 0; i < PORTS; i++)
			wrong += ckvm__find_port(vm, (uint16_t)i) != owner[i];
	}
	CHECK_EQ(wrong, 0);
	for (unsigned int i = 0; i < PORTS; i++)
		if ((i == 0 || owner[i] != owner[i - 1]) && owner[i])
			ckvm_range_detach(owner[i]);
}

/* Places that do not touch: their bytes and both neighbours are looked at. */
static uint64_t place_of(int i)
{
	return 0xd0000000u + (uint64_t)i * 0x1000;
}

static void check_addresses(struct ckvm_range *const *model, int count,
			    uint64_t size)
{
	int wrong = 0;

	for (int i = 0; i < count; i++) {
		uint64_t first = place_of(i);

		wrong += ckvm__find_mmio(vm, first) != model[i];
		wrong += ckvm__find_mmio(vm, first + size / 2) != model[i];
		wrong += ckvm__find_mmio(vm, first + size - 1) != model[i];
		wrong += ckvm__find_mmio(vm, first - 1) != NULL;
		wrong += ckvm__find_mmio(vm, first + size) != NULL;
	}
	CHECK_EQ(wrong, 0);
}

static void follows_addresses_attached_and_detached_at_random(void)
{
	enum { RANGES = 300, STEPS = 3000, SIZE = 0x10 };
	static struct ckvm_range *model[RANGES];

	for (int step = 0; step < STEPS; step++) {
		int i = (int)(test_random() % RANGES);

		if (model[i]) {
			ckvm_range_detach(model[i]);
			model[i] = NULL;
		} else {
			model[i] = attach_mmio(place_of(i), SIZE);
		}
		if (step % 16 == 0)
			check_addresses(model, RANGES, SIZE);
	}
	check_addresses(model, RANGES, SIZE);
	for (int i = 0; i < RANGES; i++)
		ckvm_range_detach(model[i]);
	CHECK(!ckvm__find_mmio(vm, place_of(0)));
}

static void has_adjacent_ranges_of_one_byte(void)
{
	struct ckvm_range *ranges[64];
	int wrong = 0;

	for (unsigned int i = 0; i < 64; i++)
		ranges[i * 37 % 64] = attach_mmio(0x1000 + i * 37 % 64, 1);
	for (unsigned int i = 0; i < 64; i++)
		wrong += ckvm__find_mmio(vm, 0x1000 + i) != ranges[i];
	CHECK_EQ(wrong, 0);
	for (unsigned int i = 0; i < 64; i++)
		ckvm_range_detach(ranges[i]);
}

static void reaches_both_ends_of_the_address_space(void)
{
	struct ckvm_range *low = attach_mmio(0, 1);
	struct ckvm_range *high = attach_mmio(UINT64_MAX, 1);
	struct ckvm_range *most = attach_mmio(1, UINT64_MAX - 1);

	CHECK(ckvm__find_mmio(vm, 0) == low);
	CHECK(ckvm__find_mmio(vm, 1) == most);
	CHECK(ckvm__find_mmio(vm, UINT64_MAX - 1) == most);
	CHECK(ckvm__find_mmio(vm, UINT64_MAX) == high);
	CHECK_EQ(ckvm_range_count(most), UINT64_MAX - 1);
	ckvm_range_detach(low);
	ckvm_range_detach(high);
	ckvm_range_detach(most);
}

static void refuses_what_passes_the_end_of_the_space(void)
{
	struct ckvm_range *range;

	CHECK_FAILS(ckvm_vm_attach_io(vm, 0xffff, 2, NULL, NULL, &range),
		    EINVAL, "range");
	CHECK_FAILS(ckvm_vm_attach_io(vm, 1, UINT32_MAX, NULL, NULL, &range),
		    EINVAL, "range");
	CHECK_FAILS(ckvm_vm_attach_io(vm, 0, 0, NULL, NULL, &range), EINVAL,
		    "range");
	CHECK_FAILS(ckvm_vm_attach_mmio(vm, UINT64_MAX, 2, NULL, NULL, &range),
		    EINVAL, "range");
	CHECK_FAILS(ckvm_vm_attach_mmio(vm, 2, UINT64_MAX, NULL, NULL, &range),
		    EINVAL, "range");
	CHECK_FAILS(ckvm_vm_attach_mmio(vm, 0, 0, NULL, NULL, &range), EINVAL,
		    "range");
}

static void refuses_overlaps_within_a_space_only(void)
{
	struct ckvm_range *io = attach_io(0x100, 0x10);
	struct ckvm_range *mmio = attach_mmio(0x100, 0x10), *range;
	static const uint16_t overlapping[] = { 0xf8, 0x100, 0x108, 0x10f };

	for (size_t i = 0; i < COUNT(overlapping); i++) {
		CHECK_FAILS(ckvm_vm_attach_io(vm, overlapping[i], 0x10, NULL,
					      NULL, &range),
			    EEXIST, "range");
		CHECK_FAILS(ckvm_vm_attach_mmio(vm, overlapping[i], 0x10, NULL,
						NULL, &range),
			    EEXIST, "range");
	}
	CHECK_FAILS(ckvm_vm_attach_io(vm, 0, 0x10000, NULL, NULL, &range),
		    EEXIST, "range");
	CHECK_FAILS(ckvm_vm_attach_mmio(vm, 0, UINT64_MAX, NULL, NULL, &range),
		    EEXIST, "range");
	CHECK(ckvm__find_port(vm, 0x100) == io);
	CHECK(ckvm__find_mmio(vm, 0x100) == mmio);
	ckvm_range_detach(io);
	ckvm_range_detach(mmio);
}

static void finds_a_range_by_any_of_its_addresses(void)
{
	struct ckvm_range *range = attach_io(0x100, 0x10), *found;

	CHECK(!ckvm_vm_find_range(vm, CKVM_IO, 0, 0x100));
	CHECK(!ckvm_vm_find_range(vm, CKVM_IO, 0x110, 0x100));
	CHECK(!ckvm_vm_find_range(vm, CKVM_MMIO, 0x100, 0x10));
	found = ckvm_vm_find_range(vm, CKVM_IO, 0, 0x101);
	CHECK(found == range);
	ckvm_range_unref(found);
	found = ckvm_vm_find_range(vm, CKVM_IO, 0x10f, UINT64_MAX);
	CHECK(found == range);
	ckvm_range_detach(range);
	/* With the reference the range can be asked, and is no longer found. */
	CHECK_EQ(ckvm_range_first(found), 0x100);
	CHECK_EQ(ckvm_range_space(found), CKVM_IO);
	CHECK(!ckvm_vm_find_range(vm, CKVM_IO, 0x100, 1));
	ckvm_range_detach(found);
	ckvm_range_unref(found);
}

static void refuses_a_config_that_makes_no_sense(void)
{
	static const struct ckvm_ops ops = { .size = sizeof(ops) };
	const struct ckvm_range_config good = { .size = sizeof(good),
						.space = CKVM_IO,
						.first = 0x10,
						.count = 1,
						.read = CKVM_ANSWER_VALUE,
						.ops = &ops };
	struct ckvm_range_config bad = good;

	bad.space = (enum ckvm_space)2;
	CHECK_FAILS(ckvm_vm_attach(vm, &bad, NULL), EINVAL, "space");
	bad = good, bad.read = CKVM_ANSWER_LOG;
	CHECK_FAILS(ckvm_vm_attach(vm, &bad, NULL), EINVAL, "answer");
	bad = good, bad.write = CKVM_ANSWER_LOG;
	CHECK_FAILS(ckvm_vm_attach(vm, &bad, NULL), EINVAL, "answer");
	bad = good, bad.write = CKVM_ANSWER_OPS, bad.ops = NULL;
	CHECK_FAILS(ckvm_vm_attach(vm, &bad, NULL), EINVAL, "answer");
	bad = good, bad.batch = 1;
	CHECK_FAILS(ckvm_vm_attach(vm, &bad, NULL), EINVAL, "batch");
	bad.read = CKVM_ANSWER_NONE; /* the stand-in has no queue */
	CHECK_FAILS(ckvm_vm_attach(vm, &bad, NULL), ENOTSUP, "batch");
	CHECK(!ckvm__find_port(vm, 0x10));
}

static void takes_the_fields_beyond_size_as_zero(void)
{
	struct ckvm_range_config config = {
		.size = offsetof(struct ckvm_range_config, write),
		.space = CKVM_MMIO,
		.first = 0x10,
		.count = 1,
		.read = CKVM_ANSWER_CALLER,
		.write = (enum ckvm_answer)99,
		.opaque = &config,
	};
	struct ckvm_range *range;

	CHECK_EQ(ckvm_vm_attach(vm, &config, &range), 0);
	CHECK(!ckvm_range_opaque(range));
	ckvm_range_detach(range);
}

static void refuses_a_closed_vm(void)
{
	struct ckvm_vm *closed = ckvm_vm_ref(fake_vm());
	struct ckvm_range *range, *held;

	NEED(ckvm_vm_attach_io(closed, 0x10, 1, NULL, NULL, &held));
	ckvm_range_ref(held);
	ckvm_vm_close(closed);
	CHECK_FAILS(ckvm_vm_attach_io(closed, 0x20, 1, NULL, NULL, &range),
		    EBADF, "closed");
	CHECK(!ckvm_vm_find_range(closed, CKVM_IO, 0x10, 1));
	ckvm_vm_unref(closed);
	ckvm_range_detach(held);
	ckvm_range_unref(held);
	ckvm_range_detach(NULL);
	ckvm_range_unref(NULL);
}

/* In the place of malloc (--wrap), so that there may be none. */
static bool no_memory;
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);

void *__wrap_malloc(size_t size)
{
	return no_memory ? NULL : __real_malloc(size);
}

static int count(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
		 const void *data, size_t length)
{
	(void)vcpu, (void)address, (void)data, (void)length;
	++*(int *)opaque;
	return 0;
}

static void calls_nobody_detached_for_want_of_memory(void)
{
	static const struct ckvm_ops ops = { .size = sizeof(ops),
					     .write = count };
	/* loop: mov %al, (0x8000); jmp loop */
	struct guest guest = GUEST("\xa2\x00\x80\xeb\xfb");
	struct ckvm_limits once = { .size = sizeof(once),
				    .flags = CKVM_LIMIT_EXITS,
				    .exits = 1 };
	struct ckvm_range *range, *other;
	int calls = 0;

	NEED(ckvm_vm_attach_mmio(guest.vm, GUEST_MMIO, 1, &ops, &calls,
				 &range));
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &once), CKVM_EXITS);
	CHECK_EQ(calls, 1);
	no_memory = true;
	ckvm_range_detach(range);
	no_memory = false;
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &once), CKVM_EXIT);
	CHECK_EQ(calls, 1);
	NEED(ckvm_vm_attach_mmio(guest.vm, GUEST_MMIO, 1, &ops, &calls,
				 &other));
	CHECK_EQ(ckvm_vcpu_run(guest.vcpu, &once), CKVM_EXITS);
	CHECK_EQ(calls, 2);
	guest_close(&guest);
}

int main(int argc, char **argv)
{
	test_begin(argv);
	vm = fake_vm();
	PROMISE(claims_just_the_ports_of_the_range);
	PROMISE(finds_nobody_within_nothing);
	PROMISE(claims_all_ports_at_once);
	PROMISE(has_a_range_for_each_port);
	PROMISE(follows_ports_attached_and_detached_at_random);
	PROMISE(follows_addresses_attached_and_detached_at_random);
	PROMISE(has_adjacent_ranges_of_one_byte);
	PROMISE(reaches_both_ends_of_the_address_space);
	PROMISE(refuses_what_passes_the_end_of_the_space);
	PROMISE(refuses_overlaps_within_a_space_only);
	PROMISE(finds_a_range_by_any_of_its_addresses);
	PROMISE(refuses_a_config_that_makes_no_sense);
	PROMISE(takes_the_fields_beyond_size_as_zero);
	PROMISE(refuses_a_closed_vm);
	ckvm_vm_close(vm);
	test_needs_kvm();
	PROMISE(calls_nobody_detached_for_want_of_memory);
	return test_end();
}

/* SPDX-License-Identifier: MIT */
/* Guest memory added, moved and removed, read and written, beside a copy. */
#include "internal.h"
#include "fuzz.h"

#define REGIONS 8
#define MAX_BYTES (8 * 4096)
#define MAX_LENGTH (4 * 4096)

struct region {
	struct ckvm_memory *memory; /* NULL: not in use */
	uint64_t gpa, bytes;
	uint8_t data[MAX_BYTES];
};

static struct region regions[REGIONS];
static uint8_t buffer[MAX_LENGTH];
static struct ckvm_vm *vm;

static uint8_t *byte_at(uint64_t gpa)
{
	for (int i = 0; i < REGIONS; i++)
		if (regions[i].memory &&
		    gpa - regions[i].gpa < regions[i].bytes)
			return &regions[i].data[gpa - regions[i].gpa];
	return NULL;
}

/* Page by page, as memory comes in these. */
static uint64_t extent(uint64_t gpa)
{
	uint64_t found = 0;

	while (byte_at(gpa + found)) {
		found += 4096 - ((gpa + found) & 4095);
		if (gpa + found < gpa) /* behind the last address */
			break;
	}
	return found;
}

static bool is_place(uint64_t gpa, uint64_t bytes)
{
	return bytes && !((gpa | bytes) & 4095) &&
	       bytes - 1 <= UINT64_MAX - gpa;
}

/* Some other region, if it overlaps. */
static bool is_taken(const struct region *but, uint64_t gpa, uint64_t bytes)
{
	for (int i = 0; i < REGIONS; i++)
		if (regions[i].memory && &regions[i] != but &&
		    regions[i].gpa <= gpa + (bytes - 1) &&
		    gpa <= regions[i].gpa + (regions[i].bytes - 1))
			return true;
	return false;
}

static int expected(const struct region *but, uint64_t gpa, uint64_t bytes)
{
	if (!is_place(gpa, bytes))
		return -EINVAL;
	return is_taken(but, gpa, bytes) ? -EEXIST : 0;
}

/* Nearly always whole pages. */
static uint64_t take_place(struct input *input)
{
	uint64_t gpa = take_address(input);

	return take(input, 1) % 16 ? gpa & ~UINT64_C(4095) : gpa;
}

static void add(struct input *input, struct region *region)
{
	struct ckvm_memory_config config = { .size = sizeof(config) };
	int error;

	config.gpa = take_place(input);
	config.bytes = take(input, 1) % 9 * 4096;
	if (region->memory)
		return;
	error = expected(NULL, config.gpa, config.bytes);
	MUST(ckvm_vm_add_memory(vm, &config, &region->memory) == error);
	if (error)
		return;
	region->gpa = config.gpa;
	region->bytes = config.bytes;
	memset(region->data, 0, sizeof(region->data));
}

static void move(struct input *input, struct region *region)
{
	uint64_t gpa = take_place(input);
	int error;

	if (!region->memory)
		return;
	error = expected(region, gpa, region->bytes);
	MUST(ckvm_memory_move(region->memory, gpa) == error);
	if (!error)
		region->gpa = gpa;
	MUST(ckvm_memory_gpa(region->memory) == region->gpa);
}

static void close_it(struct region *region)
{
	ckvm_memory_close(region->memory);
	region->memory = NULL;
}

static void read_back(uint64_t gpa, size_t length)
{
	int error = extent(gpa) < length ? -EFAULT : 0;

	MUST(ckvm_vm_read(vm, gpa, buffer, length) == error);
	for (size_t i = 0; !error && i < length; i++)
		MUST(buffer[i] == *byte_at(gpa + i));
}

static void change(struct input *input, uint64_t gpa, size_t length, bool fill)
{
	int error = extent(gpa) < length ? -EFAULT : 0;
	uint8_t byte = (uint8_t)take(input, 1);

	for (size_t i = 0; i < length; i++)
		buffer[i] = (uint8_t)(byte + (fill ? 0 : i));
	MUST((fill ? ckvm_vm_fill(vm, gpa, byte, length)
		   : ckvm_vm_write(vm, gpa, buffer, length)) == error);
	for (size_t i = 0; !error && i < length; i++)
		*byte_at(gpa + i) = buffer[i];
}

static void check_refusals(uint64_t gpa)
{
	uint64_t found = extent(gpa);

	MUST(ckvm_vm_extent(vm, gpa) == found);
	/* More than there is: refused before anything is touched. */
	MUST(ckvm_vm_fill(vm, gpa, 0xee, found + 1) == -EFAULT);
	MUST(ckvm_vm_fill(vm, gpa, 0xee, SIZE_MAX) == -EFAULT);
}

static void step(struct input *input)
{
	uint8_t what = (uint8_t)take(input, 1);
	struct region *region = &regions[what / 8 % REGIONS];
	uint64_t gpa;

	if (what % 8 == 0)
		add(input, region);
	else if (what % 8 == 1)
		move(input, region);
	else if (what % 8 == 2)
		close_it(region);
	if (what % 8 < 3)
		return;
	gpa = take_address(input);
	if (what % 8 == 3)
		check_refusals(gpa);
	else if (what % 8 == 4)
		read_back(gpa, take(input, 2) % MAX_LENGTH);
	else
		change(input, gpa, take(input, 2) % MAX_LENGTH, what & 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, size };

	for (int i = 0; i < REGIONS; i++)
		regions[i].memory = NULL;
	vm = fake_vm();
	while (input.left)
		step(&input);
	for (int i = 0; i < REGIONS; i++)
		if (regions[i].memory)
			read_back(regions[i].gpa, regions[i].bytes < MAX_LENGTH
							  ? regions[i].bytes
							  : MAX_LENGTH);
	ckvm_vm_close(vm);
	return 0;
}

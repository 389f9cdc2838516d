/* SPDX-License-Identifier: MIT */
/* Attaching, detaching and looking up, beside a list that is gone through. */
#include "internal.h"
#include "fuzz.h"

#define RANGES 24

struct claim {
	struct ckvm_range *range; /* NULL: not in use */
	enum ckvm_space space;
	uint64_t first, last;
};

static struct claim claims[RANGES];
static struct ckvm_vm *vm;

static struct claim *overlapping(enum ckvm_space space, uint64_t first,
				 uint64_t last)
{
	for (int i = 0; i < RANGES; i++)
		if (claims[i].range && claims[i].space == space &&
		    claims[i].first <= last && first <= claims[i].last)
			return &claims[i];
	return NULL;
}

static struct claim *unused(void)
{
	for (int i = 0; i < RANGES; i++)
		if (!claims[i].range)
			return &claims[i];
	return NULL;
}

static int expected(enum ckvm_space space, uint64_t first, uint64_t count)
{
	uint64_t end = space == CKVM_IO ? 0xffff : UINT64_MAX;

	if (!count || first > end || count - 1 > end - first)
		return -EINVAL;
	return overlapping(space, first, first + (count - 1)) ? -EEXIST : 0;
}

static void attach(struct input *input, enum ckvm_space space)
{
	struct ckvm_range_config config = {
		.size = sizeof(config),
		.space = space,
		.read = CKVM_ANSWER_CALLER,
		.write = CKVM_ANSWER_CALLER,
	};
	struct claim *claim = unused();
	int error;

	if (space == CKVM_IO) {
		config.first = take(input, 2);
		config.count = take(input, 3);
	} else {
		config.first = take_address(input);
		config.count =
			take(input, 1) % 4 ? take(input, 2) : take(input, 8);
	}
	if (!claim)
		return;
	error = expected(space, config.first, config.count);
	MUST(ckvm_vm_attach(vm, &config, &claim->range) == error);
	if (error)
		return;
	claim->space = space;
	claim->first = config.first;
	claim->last = config.first + (config.count - 1);
	MUST(ckvm_range_first(claim->range) == config.first);
	MUST(ckvm_range_count(claim->range) == config.count);
}

static void detach(struct claim *claim)
{
	ckvm_range_detach(claim->range);
	claim->range = NULL;
}

static void look_up(enum ckvm_space space, uint64_t address)
{
	const struct claim *claim = overlapping(space, address, address);
	struct ckvm_range *range =
		space == CKVM_IO ? ckvm__find_port(vm, (uint16_t)address)
				 : ckvm__find_mmio(vm, address);

	MUST(range == (claim ? claim->range : NULL));
}

/* Somebody is found within, if there is anybody. */
static void search(struct input *input, enum ckvm_space space)
{
	uint64_t first = take_address(input), count = take(input, 2);
	struct ckvm_range *found = ckvm_vm_find_range(vm, space, first, count);
	uint64_t last = first + (count - 1);
	struct claim *claim = NULL;

	if (last < first) /* to the end of the space */
		last = UINT64_MAX;
	if (count)
		claim = overlapping(space, first, last);
	MUST(!found == !claim);
	if (!found)
		return;
	MUST(ckvm_range_first(found) <= last);
	MUST(ckvm_range_first(found) + (ckvm_range_count(found) - 1) >= first);
	ckvm_range_unref(found);
}

/* Everybody's edges, on both sides. */
static void check_edges(void)
{
	for (int i = 0; i < RANGES; i++) {
		const struct claim *claim = &claims[i];
		uint64_t end = claim->space == CKVM_IO ? 0xffff : UINT64_MAX;

		if (!claim->range)
			continue;
		look_up(claim->space, claim->first);
		look_up(claim->space, claim->last);
		if (claim->first)
			look_up(claim->space, claim->first - 1);
		if (claim->last < end)
			look_up(claim->space, claim->last + 1);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, size };

	memset(claims, 0, sizeof(claims));
	vm = fake_vm();
	while (input.left) {
		uint8_t what = (uint8_t)take(&input, 1);
		enum ckvm_space space = what & 128 ? CKVM_MMIO : CKVM_IO;

		if (what % 4 == 0)
			attach(&input, space);
		else if (what % 4 == 1)
			detach(&claims[take(&input, 1) % RANGES]);
		else if (what % 4 == 2)
			search(&input, space);
		else
			look_up(space, space == CKVM_IO ? take(&input, 2)
							: take_address(&input));
		check_edges();
	}
	ckvm_vm_close(vm);
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * What the fuzz targets have in common: an input that is taken apart number by
 * number, and checks that end the process. `make fuzz` runs them.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include "test.h"

#define MUST(condition)                                                        \
	do {                                                                   \
		if (!(condition)) {                                            \
			fprintf(stderr, "%s:%d: %s; errop \"%s\"\n", __FILE__, \
				__LINE__, #condition, ckvm_errop());           \
			abort();                                               \
		}                                                              \
	} while (0)

struct input {
	const uint8_t *at;
	size_t left;
};

/* The next `size` bytes, as a number; zeros from the end on. */
UNUSED static uint64_t take(struct input *input, size_t size)
{
	uint64_t value = 0;

	if (size > input->left)
		size = input->left;
	memcpy(&value, input->at, size);
	input->at += size;
	input->left -= size;
	return value;
}

/*
 * Addresses that are near one another, so that ranges meet: from one of four
 * places on, the last of them the end of the address space. Or any at all.
 */
UNUSED static uint64_t take_address(struct input *input)
{
	static const uint64_t places[] = { 0, 0xfffff000, 0x8000000000000000,
					   0xffffffffffff0000 };
	uint64_t kind = take(input, 1) % 5;

	return kind == 4 ? take(input, 8) : places[kind] + take(input, 2);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif

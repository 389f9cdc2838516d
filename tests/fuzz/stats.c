/* SPDX-License-Identifier: MIT */
/*
 * The kernel's statistics, of any bytes at all: whatever is found lies within
 * them, and what is found once is found again.
 */
#include "fuzz.h"

static void check_within(const void *at, size_t length, const void *data,
			 size_t size)
{
	const uint8_t *first = data, *part = at;

	MUST(part >= first && length <= size &&
	     (size_t)(part - first) <= size - length);
}

static void check_stat(const struct ckvm_binary_stat *stat, const void *data,
		       size_t size)
{
	uint64_t value;

	check_within(stat->name, strlen(stat->name) + 1, data, size);
	check_within(stat->values, stat->count * 8ul, data, size);
	for (uint32_t i = 0; i < stat->count; i++) {
		memcpy(&value, (const uint8_t *)stat->values + i * 8ul, 8);
		MUST(ckvm_binary_stat_value(stat, i) == value);
	}
	MUST(ckvm_binary_stat_value(stat, stat->count) == 0);
	MUST(ckvm_binary_stat_value(stat, UINT32_MAX) == 0);
}

static void parse(const void *data, size_t size)
{
	int count = ckvm_binary_stats_count(data, size), error;
	const char *id = ckvm_binary_stats_id(data, size);
	struct ckvm_binary_stat stat;

	if (id)
		check_within(id, strlen(id) + 1, data, size);
	MUST(count >= 0 || (count == -EBADMSG && !id));
	for (int i = 0; i < count; i++) {
		error = ckvm_binary_stats_get(data, size, (uint32_t)i, &stat);
		MUST(!error || error == -EBADMSG);
		if (!error)
			check_stat(&stat, data, size);
	}
	error = ckvm_binary_stats_get(data, size, (uint32_t)count, &stat);
	MUST(error == (count < 0 ? -EBADMSG : -ENOENT));
}

/* The fuzzer's copy has nothing behind it that ASan lets pass. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	parse(data, size);
	return 0;
}

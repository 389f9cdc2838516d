/* SPDX-License-Identifier: MIT */
/* The parser of the kernel's statistics, on what is right and what is not. */
#include "test.h"

#define NAME_SIZE 8
#define DESC_SIZE (sizeof(struct kvm_stats_desc) + NAME_SIZE)

/* An id, two statistics of one value and of two, and their values. */
struct sample {
	struct kvm_stats_header header;
	char id[NAME_SIZE];
	uint8_t desc[2][DESC_SIZE];
	uint64_t values[3];
};

static void set_desc(struct sample *sample, int i, const char *name,
		     uint16_t size, uint32_t offset)
{
	struct kvm_stats_desc desc = {
		.flags = 1, .exponent = -9, .size = size, .offset = offset
	};

	memset(sample->desc[i], 0, DESC_SIZE);
	memcpy(sample->desc[i], &desc, sizeof(desc));
	memcpy(sample->desc[i] + sizeof(desc), name, strlen(name));
}

static struct sample make(void)
{
	struct sample sample = {
		.header = { .name_size = NAME_SIZE,
			    .num_desc = 2,
			    .id_offset = offsetof(struct sample, id),
			    .desc_offset = offsetof(struct sample, desc),
			    .data_offset = offsetof(struct sample, values) },
		.id = "kvm-1",
		.values = { 7, 8, 9 },
	};

	set_desc(&sample, 0, "one", 1, 0);
	set_desc(&sample, 1, "two", 2, 8);
	return sample;
}

static void what_is_right_is_found(void)
{
	struct sample sample = make();
	struct ckvm_binary_stat stat;

	CHECK_EQ(ckvm_binary_stats_count(&sample, sizeof(sample)), 2);
	CHECK_STRING(ckvm_binary_stats_id(&sample, sizeof(sample)), "kvm-1");
	CHECK_EQ(ckvm_binary_stats_get(&sample, sizeof(sample), 0, &stat), 0);
	CHECK_STRING(stat.name, "one");
	CHECK_EQ(stat.flags, 1);
	CHECK_EQ(stat.exponent, -9);
	CHECK_EQ(stat.count, 1);
	CHECK_EQ(ckvm_binary_stat_value(&stat, 0), 7);
	CHECK_EQ(ckvm_binary_stat_value(&stat, 1), 0);
	CHECK_EQ(ckvm_binary_stats_get(&sample, sizeof(sample), 1, &stat), 0);
	CHECK_STRING(stat.name, "two");
	CHECK_EQ(ckvm_binary_stat_value(&stat, 0), 8);
	CHECK_EQ(ckvm_binary_stat_value(&stat, 1), 9);
	CHECK_FAILS(ckvm_binary_stats_get(&sample, sizeof(sample), 2, &stat),
		    ENOENT, "statistics");
}

/* In memory of just that size, so that ASan sees a byte too many. */
static int parse(const struct sample *sample, size_t size, uint64_t *sum)
{
	void *copy = malloc(size + !size);
	struct ckvm_binary_stat stat;
	int count, error = 0;
	const char *id;

	memcpy(copy, sample, size);
	count = ckvm_binary_stats_count(copy, size);
	id = ckvm_binary_stats_id(copy, size);
	*sum += id ? strlen(id) : 0;
	for (int i = 0; i < count && !error; i++) {
		error = ckvm_binary_stats_get(copy, size, (uint32_t)i, &stat);
		if (error)
			break;
		*sum += strlen(stat.name);
		for (uint32_t j = 0; j < stat.count; j++)
			*sum += ckvm_binary_stat_value(&stat, j);
	}
	free(copy);
	return count < 0 ? count : error;
}

static void what_is_cut_off_is_refused(void)
{
	struct sample sample = make();
	uint64_t sum = 0;

	for (size_t size = 0; size < sizeof(sample); size++)
		CHECK_EQ(parse(&sample, size, &sum), -EBADMSG);
	CHECK_EQ(parse(&sample, sizeof(sample), &sum), 0);
}

static void hostile_numbers_are_refused(void)
{
	static const uint32_t hostile[] = { 0x7fffffff, 0x80000000, 0xfffffff8,
					    0xffffffff };
	uint64_t sum = 0;

	for (size_t i = 0; i < COUNT(hostile); i++) {
		struct sample sample = make();

		sample.header.num_desc = hostile[i];
		CHECK_EQ(parse(&sample, sizeof(sample), &sum), -EBADMSG);
		sample = make();
		sample.header.name_size = hostile[i];
		CHECK_EQ(parse(&sample, sizeof(sample), &sum), -EBADMSG);
		sample = make();
		sample.header.desc_offset = hostile[i];
		CHECK_EQ(parse(&sample, sizeof(sample), &sum), -EBADMSG);
		sample = make();
		sample.header.data_offset = hostile[i];
		CHECK_EQ(parse(&sample, sizeof(sample), &sum), -EBADMSG);
		sample = make();
		set_desc(&sample, 1, "two", 2, hostile[i]);
		CHECK_EQ(parse(&sample, sizeof(sample), &sum), -EBADMSG);
		sample = make();
		sample.header.id_offset = hostile[i];
		CHECK(!ckvm_binary_stats_id(&sample, sizeof(sample)));
	}
}

static void names_have_an_end(void)
{
	struct sample sample = make();
	uint64_t sum = 0;

	set_desc(&sample, 1, "eight888", 2, 8);
	CHECK_EQ(parse(&sample, sizeof(sample), &sum), -EBADMSG);
	sample = make();
	memset(sample.id, 'x', NAME_SIZE);
	CHECK(!ckvm_binary_stats_id(&sample, sizeof(sample)));
	sample = make();
	sample.header.name_size = 0;
	CHECK_EQ(parse(&sample, sizeof(sample), &sum), -EBADMSG);
}

static void as_many_values_as_are_there(void)
{
	struct sample sample = make();
	uint64_t sum = 0;

	set_desc(&sample, 1, "two", 3, 8);
	CHECK_EQ(parse(&sample, sizeof(sample), &sum), -EBADMSG);
	set_desc(&sample, 1, "two", 65535, 0);
	CHECK_EQ(parse(&sample, sizeof(sample), &sum), -EBADMSG);
	set_desc(&sample, 1, "none", 0, sizeof(sample.values));
	CHECK_EQ(parse(&sample, sizeof(sample), &sum), 0);
}

/* Any byte may be anything: ASan and UBSan are to be silent. */
static void no_byte_does_harm(void)
{
	struct sample sample;
	uint64_t sum = 0;

	for (size_t at = 0; at < sizeof(sample); at++)
		for (int byte = 0; byte < 256; byte++) {
			sample = make();
			((uint8_t *)&sample)[at] = (uint8_t)byte;
			parse(&sample, sizeof(sample), &sum);
		}
	CHECK(sum);
}

int main(int argc, char **argv)
{
	(void)argc;
	test_begin(argv);
	PROMISE(what_is_right_is_found);
	PROMISE(what_is_cut_off_is_refused);
	PROMISE(hostile_numbers_are_refused);
	PROMISE(names_have_an_end);
	PROMISE(as_many_values_as_are_there);
	PROMISE(no_byte_does_harm);
	return test_end();
}

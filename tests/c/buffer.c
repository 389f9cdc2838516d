/* SPDX-License-Identifier: MIT */
/* The log of bytes: a ring, held against a model, and shared by threads. */
#include "internal.h"
#include "test.h"

static struct ckvm_buffer *create(size_t capacity)
{
	struct ckvm_buffer *buffer;

	NEED(ckvm_buffer_create(capacity, &buffer));
	return buffer;
}

static void refuses_sizes_that_cannot_be(void)
{
	struct ckvm_buffer *untouched = (void *)&untouched, *buffer = untouched;

	CHECK_FAILS(ckvm_buffer_create(0, &buffer), EINVAL, "buffer");
	CHECK_FAILS(ckvm_buffer_create(SIZE_MAX, &buffer), EINVAL, "buffer");
	CHECK_FAILS(ckvm_buffer_create(SIZE_MAX / 2, &buffer), ENOMEM,
		    "malloc");
	CHECK(buffer == untouched);
}

static void takes_all_of_an_append_or_nothing(void)
{
	struct ckvm_buffer *buffer = create(4);
	uint8_t data[4] = { 0 };

	CHECK(ckvm__buffer_append(buffer, "abc", 3));
	CHECK(!ckvm__buffer_append(buffer, "de", 2));
	CHECK_EQ(ckvm_buffer_length(buffer), 3);
	CHECK(ckvm__buffer_append(buffer, "f", 1));
	CHECK(!ckvm__buffer_append(buffer, "g", 1));
	CHECK_EQ(ckvm_buffer_take(buffer, data, 4), 4);
	CHECK(!memcmp(data, "abcf", 4));
	CHECK_EQ(ckvm_buffer_capacity(buffer), 4);
	ckvm_buffer_unref(buffer);
}

static void takes_no_more_than_there_is(void)
{
	struct ckvm_buffer *buffer = create(8);
	uint8_t data[8] = { 0 };

	CHECK_EQ(ckvm_buffer_take(buffer, data, 8), 0);
	CHECK(ckvm__buffer_append(buffer, "ab", 2));
	CHECK_EQ(ckvm_buffer_take(buffer, data, 0), 0);
	CHECK_EQ(ckvm_buffer_take(buffer, data, SIZE_MAX), 2);
	CHECK(!memcmp(data, "ab\0", 3));
	ckvm_buffer_unref(buffer);
}

/* The model: everything ever appended, and where the two ends are. */
static void keeps_the_order_of_bytes(void)
{
	enum { CAPACITY = 13, STEPS = 20000 };
	struct ckvm_buffer *buffer = create(CAPACITY);
	static uint8_t model[STEPS * 8];
	size_t head = 0, tail = 0;

	for (int step = 0; step < STEPS; step++) {
		uint8_t data[16];
		size_t length = test_random() % 9, got;

		if (test_random() & 1) {
			for (size_t i = 0; i < length; i++)
				model[tail + i] = (uint8_t)test_random();
			if (ckvm__buffer_append(buffer, model + tail, length))
				tail += length;
			else
				CHECK(tail - head + length > CAPACITY);
		} else {
			got = ckvm_buffer_take(buffer, data, length);
			CHECK_EQ(got,
				 length < tail - head ? length : tail - head);
			CHECK(!memcmp(data, model + head, got));
			head += got;
		}
		CHECK_EQ(ckvm_buffer_length(buffer), tail - head);
	}
	ckvm_buffer_unref(buffer);
}

/* Each writer numbers its pairs of bytes: its name, and a count. */
enum { WRITERS = 3, PAIRS = 20000 };

struct writer {
	pthread_t thread;
	struct ckvm_buffer *buffer;
	uint8_t name;
};

static void *write_pairs(void *opaque)
{
	struct writer *writer = opaque;

	for (int i = 0; i < PAIRS;) {
		uint8_t pair[2] = { writer->name, (uint8_t)i };

		if (ckvm__buffer_append(writer->buffer, pair, 2))
			i++;
		else
			sched_yield();
	}
	ckvm_buffer_unref(writer->buffer);
	return NULL;
}

static void serves_several_threads(void)
{
	struct ckvm_buffer *buffer = create(64);
	struct writer writers[WRITERS];
	uint8_t next[WRITERS] = { 0 };
	int wrong = 0;

	for (uint8_t i = 0; i < WRITERS; i++) {
		writers[i].buffer = ckvm_buffer_ref(buffer);
		writers[i].name = i;
		NEED(pthread_create(&writers[i].thread, NULL, write_pairs,
				    &writers[i]));
	}
	for (int left = WRITERS * PAIRS; left;) {
		uint8_t pair[2];

		if (ckvm_buffer_length(buffer) < 2) {
			sched_yield();
			continue;
		}
		CHECK_EQ(ckvm_buffer_take(buffer, pair, 2), 2);
		wrong += pair[0] >= WRITERS || next[pair[0]]++ != pair[1];
		left--;
	}
	CHECK_EQ(wrong, 0);
	for (int i = 0; i < WRITERS; i++)
		pthread_join(writers[i].thread, NULL);
	CHECK_EQ(ckvm_buffer_length(buffer), 0);
	ckvm_buffer_unref(buffer);
}

static void outlives_the_range_that_logs_to_it(void)
{
	struct ckvm_vm *vm = fake_vm();
	struct ckvm_range_config config = { .size = sizeof(config),
					    .space = CKVM_IO,
					    .first = 0x10,
					    .count = 1,
					    .write = CKVM_ANSWER_LOG };
	struct ckvm_buffer *buffer = create(4);

	config.log = buffer;
	CHECK_EQ(ckvm_vm_attach(vm, &config, NULL), 0);
	CHECK(ckvm__buffer_append(buffer, "x", 1));
	ckvm_vm_close(vm);
	CHECK_EQ(ckvm_buffer_length(buffer), 1);
	ckvm_buffer_unref(buffer);
	ckvm_buffer_unref(NULL);
}

int main(int argc, char **argv)
{
	test_begin(argv);
	PROMISE(refuses_sizes_that_cannot_be);
	PROMISE(takes_all_of_an_append_or_nothing);
	PROMISE(takes_no_more_than_there_is);
	PROMISE(keeps_the_order_of_bytes);
	PROMISE(serves_several_threads);
	PROMISE(outlives_the_range_that_logs_to_it);
	return test_end();
}

/* SPDX-License-Identifier: MIT */
/* A bounded log of bytes: ranges append, the host takes. A ring. */
#include <stdlib.h>

#include "internal.h"

int ckvm_buffer_create(size_t capacity, struct ckvm_buffer **out)
{
	struct ckvm_buffer *buffer;

	if (!capacity || capacity > SIZE_MAX / 2)
		return ckvm__fail("buffer", -EINVAL);
	buffer = malloc(sizeof(*buffer) + capacity);
	if (!buffer)
		return ckvm__fail("malloc", -ENOMEM);
	atomic_init(&buffer->refs, 1);
	pthread_mutex_init(&buffer->lock, NULL);
	buffer->capacity = capacity;
	buffer->first = buffer->length = 0;
	*out = buffer;
	return 0;
}

struct ckvm_buffer *ckvm_buffer_ref(struct ckvm_buffer *buffer)
{
	atomic_fetch_add(&buffer->refs, 1);
	return buffer;
}

void ckvm_buffer_unref(struct ckvm_buffer *buffer)
{
	if (!buffer || atomic_fetch_sub(&buffer->refs, 1) != 1)
		return;
	pthread_mutex_destroy(&buffer->lock);
	free(buffer);
}

size_t ckvm_buffer_length(struct ckvm_buffer *buffer)
{
	size_t length;

	pthread_mutex_lock(&buffer->lock);
	length = buffer->length;
	pthread_mutex_unlock(&buffer->lock);
	return length;
}

size_t ckvm_buffer_capacity(const struct ckvm_buffer *buffer)
{
	return buffer->capacity;
}

bool ckvm__buffer_append(struct ckvm_buffer *buffer, const void *data,
			 size_t length)
{
	const uint8_t *byte = data;
	bool fits;

	pthread_mutex_lock(&buffer->lock);
	fits = length <= buffer->capacity - buffer->length;
	for (size_t i = 0; fits && i < length; i++) {
		size_t at = buffer->first + buffer->length++;

		buffer->data[at < buffer->capacity ? at
						   : at - buffer->capacity] =
			byte[i];
	}
	pthread_mutex_unlock(&buffer->lock);
	return fits;
}

size_t ckvm_buffer_take(struct ckvm_buffer *buffer, void *data, size_t length)
{
	size_t part;

	pthread_mutex_lock(&buffer->lock);
	if (length > buffer->length)
		length = buffer->length;
	part = buffer->capacity - buffer->first;
	if (part > length)
		part = length;
	memcpy(data, buffer->data + buffer->first, part);
	memcpy((uint8_t *)data + part, buffer->data, length - part);
	buffer->first = (buffer->first + length) % buffer->capacity;
	buffer->length -= length;
	pthread_mutex_unlock(&buffer->lock);
	return length;
}

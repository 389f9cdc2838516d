/* SPDX-License-Identifier: MIT */
/*
 * Statistics that the kernel keeps: their descriptors, and what is read from
 * them. Nothing that is read is trusted, whatever it was read from.
 */
#include "internal.h"

int ckvm_vm_get_stats_fd(struct ckvm_vm *vm)
{
	return ckvm__vm_ioctl(vm, KVM_GET_STATS_FD, NULL);
}

int ckvm_vcpu_get_stats_fd(struct ckvm_vcpu *vcpu)
{
	return ckvm__vcpu_ioctl(vcpu, KVM_GET_STATS_FD, NULL);
}

/* Parsing ----------------------------------------------------------------- */

#define DESC_SIZE ((size_t)16) /* without the name, which came later to it */

static int bad(void)
{
	return ckvm__fail("statistics", -EBADMSG);
}

/* The zero-terminated name of that size at most at offset, or NULL. */
static const char *find_name(const uint8_t *data, size_t size, size_t offset,
			     size_t name_size)
{
	if (offset > size || name_size > size - offset ||
	    !memchr(data + offset, 0, name_size))
		return NULL;
	return (const char *)data + offset;
}

static int read_header(const void *data, size_t size,
		       struct kvm_stats_header *header)
{
	if (size < sizeof(*header))
		return bad();
	memcpy(header, data, sizeof(*header));
	if (header->desc_offset > size || header->name_size > size ||
	    header->num_desc > INT32_MAX ||
	    header->num_desc > (size - header->desc_offset) /
				       (DESC_SIZE + header->name_size))
		return bad();
	return 0;
}

int ckvm_binary_stats_count(const void *data, size_t size)
{
	struct kvm_stats_header header;
	int error = read_header(data, size, &header);

	return error ? error : (int)header.num_desc;
}

const char *ckvm_binary_stats_id(const void *data, size_t size)
{
	struct kvm_stats_header header;

	if (read_header(data, size, &header))
		return NULL;
	return find_name(data, size, header.id_offset, header.name_size);
}

/* The values, all of which must be there. */
static int find_values(const uint8_t *data, size_t size, uint32_t data_offset,
		       const struct kvm_stats_desc *desc,
		       struct ckvm_binary_stat *stat)
{
	uint64_t offset = (uint64_t)data_offset + desc->offset;

	if (offset > size || (size - offset) / 8 < desc->size)
		return bad();
	stat->values = data + offset;
	return 0;
}

int ckvm_binary_stats_get(const void *data, size_t size, uint32_t index,
			  struct ckvm_binary_stat *stat)
{
	struct kvm_stats_header header;
	struct kvm_stats_desc desc;
	int error = read_header(data, size, &header);
	size_t at;

	if (error)
		return error;
	if (index >= header.num_desc)
		return ckvm__fail("statistics", -ENOENT);
	at = header.desc_offset + index * (DESC_SIZE + header.name_size);
	memcpy(&desc, (const uint8_t *)data + at, DESC_SIZE);
	stat->name = find_name(data, size, at + DESC_SIZE, header.name_size);
	if (!stat->name)
		return bad();
	stat->flags = desc.flags;
	stat->exponent = desc.exponent;
	stat->count = desc.size;
	stat->bucket_size = desc.bucket_size;
	return find_values(data, size, header.data_offset, &desc, stat);
}

uint64_t ckvm_binary_stat_value(const struct ckvm_binary_stat *stat,
				uint32_t index)
{
	uint64_t value = 0;

	if (index < stat->count)
		memcpy(&value, (const uint8_t *)stat->values + index * 8ul, 8);
	return value;
}

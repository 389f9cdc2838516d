/* SPDX-License-Identifier: MIT */
/*
 * Where guest memory comes from: the host's own, a memfd, huge pages, a file, a
 * guest_memfd, other memory; and how long it stays mapped.
 */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <stdlib.h>
#include <unistd.h>
#include <fcntl.h>

#include "internal.h"

/* A memfd that cannot shrink, so that no access to it can fault. */
static int sealed_memfd(const struct ckvm_memory_config *config)
{
	unsigned int flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	int fd;

	if (config->flags & CKVM_MEMORY_HUGEPAGES) {
		flags |= MFD_HUGETLB;
		if (config->hugepage_size)
			flags |=
				(unsigned)__builtin_ctzll(config->hugepage_size)
				<< MAP_HUGE_SHIFT;
	}
	fd = memfd_create("ckvm", flags);
	if (fd < 0)
		return ckvm__fail("memfd_create", -errno);
	if (ftruncate(fd, (off_t)config->bytes) < 0) {
		int error = ckvm__fail("ftruncate", -errno);

		close(fd);
		return error;
	}
	fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_SEAL);
	return fd;
}

/* The size of the huge pages that one gets if one asks for none. */
static int find_huge_size(uint64_t *out)
{
	int fd = memfd_create("ckvm", MFD_CLOEXEC | MFD_HUGETLB), error = 0;
	struct statfs fs;

	if (fd < 0)
		return ckvm__fail("memfd_create", -errno);
	if (fstatfs(fd, &fs) < 0)
		error = ckvm__fail("fstatfs", -errno);
	else
		*out = (uint64_t)fs.f_bsize;
	close(fd);
	return error;
}

/* The size of the pages, PAGE_SIZE if they are not huge. */
static int find_page_size(const struct ckvm_memory_config *config,
			  uint64_t *out)
{
	uint64_t size = config->hugepage_size;
	int error = 0;

	*out = PAGE_SIZE;
	if (!(config->flags & CKVM_MEMORY_HUGEPAGES))
		return 0;

	if (!size)
		error = find_huge_size(&size);
	if (error)
		return error;
	if (!size || size & (size - 1) || config->bytes % size)
		return ckvm__fail("hugepages", -EINVAL);
	*out = size;
	return 0;
}

static int check_file(const struct ckvm_memory_config *config)
{
	struct stat st;

	if (config->offset & (PAGE_SIZE - 1))
		return ckvm__fail("offset", -EINVAL);
	if (fstat(config->fd, &st) < 0)
		return ckvm__fail("fstat", -errno);
	if (S_ISREG(st.st_mode) && ((uint64_t)st.st_size < config->offset ||
				    (uint64_t)st.st_size - config->offset <=
					    config->bytes - PAGE_SIZE))
		return ckvm__fail("file", -ERANGE);
	return 0;
}

/* The guest's stores are kept from the file, and so are the host's. */
static bool is_unwritable(const struct ckvm_memory_config *config)
{
	const uint32_t all =
		CKVM_MEMORY_FILE | CKVM_MEMORY_SHARED | CKVM_MEMORY_READONLY;

	return (config->flags & all) == all;
}

static int map_own(const struct ckvm_memory_config *config, uint8_t **out)
{
	int prot = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE, fd = -1, error;
	bool own = false;
	uint8_t *data;

	if (config->flags & CKVM_MEMORY_FILE) {
		error = check_file(config);
		if (error)
			return error;
		fd = config->fd;
		if (config->flags & CKVM_MEMORY_SHARED)
			flags = MAP_SHARED;
		if (is_unwritable(config))
			prot = PROT_READ;
	} else if (config->flags & CKVM_MEMORY_SHARED) {
		fd = sealed_memfd(config);
		if (fd < 0)
			return fd;
		own = true;
		flags = MAP_SHARED;
	} else {
		flags |= MAP_ANONYMOUS;
		if (config->flags & CKVM_MEMORY_HUGEPAGES) {
			flags |= MAP_HUGETLB;
			if (config->hugepage_size)
				flags |= (int)((unsigned)__builtin_ctzll(
						       config->hugepage_size)
					       << MAP_HUGE_SHIFT);
		}
	}

	data = mmap(NULL, config->bytes, prot, flags, fd,
		    (off_t)(own ? 0 : config->offset));
	error = data == MAP_FAILED ? ckvm__fail("mmap", -errno) : 0;
	if (own)
		close(fd);
	if (error)
		return error;
	/* A child that copied this would keep pages that the VM has freed. */
	madvise(data, config->bytes, MADV_DONTFORK);
	*out = data;
	return 0;
}

/* Its pages are the guest's: nothing else stands behind its addresses. */
static bool is_guests(const struct ckvm_memory_config *config)
{
	return config->guest_memfd &&
	       config->guest_memfd->flags & GUEST_MEMFD_FLAG_MMAP;
}

static int map_guests(const struct ckvm_memory_config *config, uint8_t **out)
{
	struct ckvm__part *part = &config->guest_memfd->part;
	int error = ckvm__part_hold(part);
	uint8_t *data;

	if (error)
		return error;
	data = mmap(NULL, config->bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
		    part->fd, (off_t)config->guest_memfd_offset);
	error = data == MAP_FAILED ? ckvm__fail("mmap", -errno) : 0;
	ckvm__part_drop(part);
	if (error)
		return error;
	madvise(data, config->bytes, MADV_DONTFORK);
	*out = data;
	return 0;
}

struct ckvm__mapping *ckvm__new_mapping(void *data, uint64_t bytes)
{
	struct ckvm__mapping *mapping = calloc(1, sizeof(*mapping));

	if (!mapping)
		return NULL;
	mapping->refs = 1;
	mapping->data = data;
	mapping->bytes = bytes;
	mapping->page_size = PAGE_SIZE;
	pthread_rwlock_init(&mapping->lock, NULL);
	return mapping;
}

static void free_mapping(struct ckvm__mapping *mapping)
{
	pthread_rwlock_destroy(&mapping->lock);
	free(mapping);
}

static int create(const struct ckvm_memory_config *config,
		  struct ckvm__mapping **out)
{
	struct ckvm__mapping *mapping = ckvm__new_mapping(NULL, config->bytes);
	int error;

	if (!mapping)
		return ckvm__fail("malloc", -ENOMEM);
	error = find_page_size(config, &mapping->page_size);
	if (!error)
		error = is_guests(config) ? map_guests(config, &mapping->data)
					  : map_own(config, &mapping->data);
	if (error) {
		free_mapping(mapping);
		return error;
	}
	mapping->owned = true;
	mapping->shared = config->flags & CKVM_MEMORY_SHARED;
	mapping->guests = is_guests(config);
	mapping->readonly = is_unwritable(config);
	/* Pages that the guest has to itself raise SIGBUS, too. */
	mapping->may_shrink =
		config->flags & CKVM_MEMORY_FILE || mapping->guests;
	*out = mapping;
	return 0;
}

int ckvm__share_mapping(struct ckvm_memory *memory, uint64_t offset,
			uint64_t bytes, struct ckvm__mapping **out,
			uint8_t **data)
{
	struct ckvm_vm *vm = memory->vm;
	int error = ckvm__check_process(vm->kvm);

	if (error)
		return error;
	pthread_mutex_lock(&vm->lock);
	if (memory->closed)
		error = ckvm__fail("closed", -EBADF);
	else if (offset > memory->bytes || bytes > memory->bytes - offset)
		error = ckvm__fail("memory", -ERANGE);
	else {
		*out = memory->mapping;
		*data = memory->data + offset;
		atomic_fetch_add(&memory->mapping->refs, 1);
	}
	pthread_mutex_unlock(&vm->lock);
	return error;
}

/* What says where the memory comes from, twice. */
static int check_sources(const struct ckvm_memory_config *config)
{
	const uint32_t others =
		CKVM_MEMORY_FILE | CKVM_MEMORY_SHARED | CKVM_MEMORY_HUGEPAGES;

	if (config->flags & CKVM_MEMORY_FILE &&
	    config->flags & CKVM_MEMORY_HUGEPAGES)
		return ckvm__fail("hugepages", -EINVAL);
	if (is_guests(config) && (config->memory || config->flags & others))
		return ckvm__fail("guest_memfd", -EINVAL);
	if (config->memory && config->flags & others)
		return ckvm__fail("memory", -EBUSY);
	return 0;
}

int ckvm__map(const struct ckvm_memory_config *config,
	      struct ckvm__mapping **out, uint8_t **data)
{
	int error = check_sources(config);

	if (!error && config->memory)
		return ckvm__share_mapping(config->memory, config->offset,
					   config->bytes, out, data);
	if (!error)
		error = create(config, out);
	if (!error)
		*data = (*out)->data;
	return error;
}

void ckvm__unmap(struct ckvm__mapping *mapping, bool same_process)
{
	if (atomic_fetch_sub(&mapping->refs, 1) != 1)
		return;
	if (mapping->owned && same_process)
		munmap(mapping->data, mapping->bytes);
	free_mapping(mapping);
}

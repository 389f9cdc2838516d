/* SPDX-License-Identifier: MIT */
/* Where guest memory comes from: the host's own, a memfd, huge pages, a file.
 */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
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

int ckvm__check_hugepages(const struct ckvm_memory_config *config)
{
	uint64_t size = config->hugepage_size;
	struct statfs fs;
	int fd;

	if (!size) {
		fd = memfd_create("ckvm", MFD_CLOEXEC | MFD_HUGETLB);
		if (fd < 0)
			return ckvm__fail("memfd_create", -errno);
		size = fstatfs(fd, &fs) ? 0 : (uint64_t)fs.f_bsize;
		close(fd);
	}
	if (size & (size - 1) || (size && config->bytes % size))
		return ckvm__fail("hugepages", -EINVAL);
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

int ckvm__map(const struct ckvm_memory_config *config, uint8_t **out)
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
		if (flags == MAP_SHARED && config->flags & CKVM_MEMORY_READONLY)
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

/* SPDX-License-Identifier: MIT */
/*
 * libckvm: safe access to Linux KVM for C and C++ programs.
 *
 * Conventions, for every function below unless it says otherwise:
 *
 *  - An int result is 0 or a count on success and -errno on failure;
 *    ckvm_errop() then names the step that failed on this thread.
 *  - Constructors fill *out last, and only on success.
 *  - A VM owns its vCPUs, memory, ranges and devices. They end when they are
 *    closed or when the VM is; their pointers are then dead, unless the caller
 *    holds a reference (_ref, _unref), with which every call fails with -EBADF.
 *  - _close and _unref take NULL. Objects may be closed in any order.
 *  - Structs that the caller fills begin with `size`, to be set to their
 *    sizeof; fields beyond it are taken as zero.
 *  - Addresses and sizes are in bytes. A gpa is a guest physical address.
 *  - Any thread may attach, detach, add and remove memory, and kick. Everything
 *    else on a vCPU belongs to the thread that runs it. Who closes a VM makes
 *    sure that no other thread is about to get an object from it: what a
 *    constructor returns is the VM's until the caller has taken a reference.
 *  - In a forked child every call on an inherited object fails with -EIO.
 *
 * Section numbers refer to the kernel's Documentation/virt/kvm/api.rst.
 */
#ifndef CKVM_H
#define CKVM_H

#include <stddef.h>
#include <stdint.h>
#include <linux/kvm.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CKVM_VERSION_MAJOR 0
#define CKVM_VERSION_MINOR 1
#define CKVM_VERSION_PATCH 0

#if defined(__GNUC__)
#define CKVM_API __attribute__((visibility("default")))
#else
#define CKVM_API
#endif

struct ckvm;		 /* /dev/kvm */
struct ckvm_vm;		 /* one virtual machine */
struct ckvm_vcpu;	 /* one of its processors */
struct ckvm_device;	 /* a device that the kernel emulates for it */
struct ckvm_memory;	 /* one slot of its memory */
struct ckvm_guest_memfd; /* pages that memory may be made of */
struct ckvm_range;	 /* ports or addresses that somebody answers */
struct ckvm_buffer;	 /* bytes that a range has logged */

/* Errors ------------------------------------------------------------------ */

/*
 * The step that failed last on this thread: an ioctl's name ("KVM_RUN"), a
 * system call's ("mmap") or a check of ckvm's own ("memory", "closed").
 * Static storage; "" before the first failure.
 */
CKVM_API const char *ckvm_errop(void);

/*
 * The first guest physical address that could not be reached, by the last
 * ckvm_vm_read, write, fill or zap_memory of this thread that failed with
 * -EFAULT; 0 before the first.
 */
CKVM_API uint64_t ckvm_fault_gpa(void);

/* "EINVAL" for EINVAL or -EINVAL; NULL for a number without a name. */
CKVM_API const char *ckvm_errno_name(int error);

/* The library's version, "MAJOR.MINOR.PATCH". */
CKVM_API const char *ckvm_version(void);

/* Names ------------------------------------------------------------------- */

/* "KVM_GET_REGS" for its request number; NULL if it has no name here. */
CKVM_API const char *ckvm_ioctl_name(unsigned long request);

/*
 * Capabilities by the kernel's name in lower case without KVM_CAP_
 * ("nr_vcpus"): their number, or -ENOENT. And back: the name, or NULL, as for
 * all from CKVM_CAPS on.
 */
#define CKVM_CAPS 512
CKVM_API int ckvm_cap_number(const char *name);
CKVM_API const char *ckvm_cap_name(unsigned int number);

/*
 * Exits likewise ("hlt", "x86_rdmsr"). KVM_EXIT_IO and KVM_EXIT_MMIO have four
 * names between them: io_in, io_out, mmio_read, mmio_write; ckvm_exit_number
 * maps these to CKVM_EXIT_* below.
 */
CKVM_API int ckvm_exit_number(const char *name);
CKVM_API const char *ckvm_exit_name(uint32_t number);

/* Beyond any number of the kernel's. */
enum ckvm_access_exit {
	CKVM_EXIT_IO_IN = 0x10000,
	CKVM_EXIT_IO_OUT,
	CKVM_EXIT_MMIO_READ,
	CKVM_EXIT_MMIO_WRITE,
};

/* System ------------------------------------------------------------------ */

/*
 * Sees every ioctl of the objects under one struct ckvm. `before` may answer in
 * the kernel's place: a result other than CKVM_HOOK_CALL is what the caller
 * gets, and the call is not made. Either may be NULL. Both run on the thread
 * that makes the call, and must call nothing of ckvm but the functions that
 * name things. An exit that a hook makes up, and whose data would not be in the
 * page, ends the run with -EPROTO.
 */
#define CKVM_HOOK_CALL INT32_MIN
struct ckvm_hook {
	int (*before)(void *opaque, int fd, unsigned long request, void *arg);
	void (*after)(void *opaque, int fd, unsigned long request, void *arg,
		      int result);
	void *opaque;
};

#define CKVM_NO_SYNC_REGS (1u << 0) /* read and write registers by ioctl */
#define CKVM_NO_CLOEXEC (1u << 1)   /* the descriptor outlives an exec */

struct ckvm_options {
	size_t size;
	const char *path; /* NULL: "/dev/kvm" */
	uint32_t flags;
	const struct ckvm_hook *hook; /* copied; NULL: none */
};

/*
 * Opens KVM (options may be NULL). -ENOENT, -EACCES or what else open(2) says;
 * -ENOTTY if the file is not a KVM; -ENOTSUP if it is of another API version
 * than 12.
 */
CKVM_API int ckvm_open(const struct ckvm_options *options, struct ckvm **out);

/*
 * The same of a descriptor from elsewhere: inherited, or received from another
 * process. It is duplicated, and stays the caller's (path is not looked at).
 * -EBADF; -ENOTTY or -EINVAL if it is not a KVM's.
 */
CKVM_API int ckvm_from_fd(int fd, const struct ckvm_options *options,
			  struct ckvm **out);

/* Gives up the caller's reference; VMs made from it stay whole. */
CKVM_API void ckvm_close(struct ckvm *kvm);
CKVM_API struct ckvm *ckvm_ref(struct ckvm *kvm);

/*
 * The file descriptor, borrowed until the object is closed, as are those of the
 * other objects; -EBADF when it is. A duplicate of a VM's or a vCPU's keeps the
 * kernel's VM alive, whose memory ends nevertheless when ckvm's object does:
 * use _from_fd for it.
 */
CKVM_API int ckvm_fd(const struct ckvm *kvm);

CKVM_API int ckvm_get_api_version(struct ckvm *kvm);	/* 4.1 */
CKVM_API int ckvm_get_vcpu_mmap_size(struct ckvm *kvm); /* 4.5, bytes */

/*
 * 4.4: how many vCPUs the kernel recommends and takes at most, the first id
 * beyond theirs, and how many slots it takes; with what api.rst says of kernels
 * that do not tell. -errno on failure.
 */
CKVM_API int ckvm_get_nr_vcpus(struct ckvm *kvm);
CKVM_API int ckvm_get_max_vcpus(struct ckvm *kvm);
CKVM_API int ckvm_get_max_vcpu_id(struct ckvm *kvm);
CKVM_API int ckvm_get_nr_memslots(struct ckvm *kvm);

/* 4.4: 0 for an unknown capability, else what it says; -errno on failure. */
CKVM_API int ckvm_check_extension(struct ckvm *kvm, unsigned int cap);

/* Virtual machines -------------------------------------------------------- */

/* 4.2: `type` is 0 on x86 but for protected guests. Retries on EINTR. */
CKVM_API int ckvm_create_vm(struct ckvm *kvm, unsigned long type,
			    struct ckvm_vm **out);

/*
 * A VM that something else in this process has made. The descriptor is
 * duplicated, and stays the caller's; so do the VM's vCPUs, memory and devices,
 * of which ckvm knows nothing. New memory needs CKVM_MEMORY_SLOT, and closing
 * takes it from the VM. -ENOTTY: the descriptor is not a VM's; -EIO
 * (KVM_CHECK_EXTENSION): it is another process's, which KVM serves alone.
 */
CKVM_API int ckvm_vm_from_fd(struct ckvm *kvm, int fd, struct ckvm_vm **out);

/*
 * Ends the VM, its vCPUs, memory and ranges: a vCPU that runs is kicked, and
 * its run returns -EBADF. What the kernel may touch is unmapped last.
 */
CKVM_API void ckvm_vm_close(struct ckvm_vm *vm);
CKVM_API struct ckvm_vm *ckvm_vm_ref(struct ckvm_vm *vm);
CKVM_API void ckvm_vm_unref(struct ckvm_vm *vm);
CKVM_API int ckvm_vm_fd(const struct ckvm_vm *vm);
CKVM_API struct ckvm *ckvm_vm_kvm(struct ckvm_vm *vm); /* borrowed */

/* 4.4 on the VM's descriptor (KVM_CAP_CHECK_EXTENSION_VM). */
CKVM_API int ckvm_vm_check_extension(struct ckvm_vm *vm, unsigned int cap);

/*
 * 4.37: -EINVAL if this KVM does not have it, or not these arguments. The dirty
 * log goes by KVM_CAP_DIRTY_LOG_RING (8.29; bytes of each vCPU's ring) from
 * then on: a run empties rings that are full by itself.
 */
CKVM_API int ckvm_vm_enable_cap(struct ckvm_vm *vm,
				const struct kvm_enable_cap *cap);

/* Memory ------------------------------------------------------------------ */

#define CKVM_MEMORY_READONLY (1u << 0)	/* guest writes exit as MMIO */
#define CKVM_MEMORY_LOG_DIRTY (1u << 1) /* log the pages the guest writes */
#define CKVM_MEMORY_SHARED (1u << 2)	/* file: MAP_SHARED; else a memfd */
#define CKVM_MEMORY_FILE (1u << 3)	/* map `fd` from `offset` */
#define CKVM_MEMORY_SLOT (1u << 4)	/* use `slot`, not the first free */
#define CKVM_MEMORY_HUGEPAGES (1u << 5) /* hugetlb pages of `hugepage_size` */

struct ckvm_memory_config {
	size_t size;
	uint64_t gpa;	/* page-aligned */
	uint64_t bytes; /* page-aligned, not 0 */
	uint32_t flags; /* CKVM_MEMORY_* */
	uint32_t slot;
	int fd;			/* borrowed during the call */
	uint32_t reserved;	/* 0 */
	uint64_t offset;	/* page-aligned */
	uint64_t hugepage_size; /* 0: the system's default */

	/* The bytes of this from `offset` on, shared with it; NULL: not. */
	struct ckvm_memory *memory;

	/*
	 * What the guest gets where it has pages to itself, from an offset on;
	 * NULL: none. With GUEST_MEMFD_FLAG_MMAP it is all of the memory.
	 */
	struct ckvm_guest_memfd *guest_memfd;
	uint64_t guest_memfd_offset;
};

/*
 * 4.35: maps memory and gives it to the guest. -EEXIST if it overlaps a slot,
 * -EINVAL for sizes and addresses that are not whole pages, -ENOMEM. A file
 * may shrink later: the host's own accesses then fail with -EFAULT. `memory`
 * may be another VM's, and be closed before this is; -ERANGE if it is too
 * short, -EBUSY with a file, huge pages or CKVM_MEMORY_SHARED. A guest_memfd
 * may be closed before this is, too.
 */
CKVM_API int ckvm_vm_add_memory(struct ckvm_vm *vm,
				const struct ckvm_memory_config *config,
				struct ckvm_memory **out);

/* Takes the memory from the guest and unmaps it. */
CKVM_API void ckvm_memory_close(struct ckvm_memory *memory);
CKVM_API struct ckvm_memory *ckvm_memory_ref(struct ckvm_memory *memory);
CKVM_API void ckvm_memory_unref(struct ckvm_memory *memory);

/* Moves it to another gpa, contents and all. -EEXIST if taken. */
CKVM_API int ckvm_memory_move(struct ckvm_memory *memory, uint64_t gpa);

CKVM_API uint64_t ckvm_memory_gpa(const struct ckvm_memory *memory);
CKVM_API uint64_t ckvm_memory_size(const struct ckvm_memory *memory);
CKVM_API uint32_t ckvm_memory_slot(const struct ckvm_memory *memory);
CKVM_API uint32_t ckvm_memory_flags(const struct ckvm_memory *memory);

/*
 * The mapping itself, borrowed until the memory is closed. The guest writes to
 * it at the same time, and a file that shrinks under it raises SIGBUS.
 */
CKVM_API void *ckvm_memory_data(struct ckvm_memory *memory);

/*
 * 4.8: one bit for each page that the guest wrote since the last call, bit 0 of
 * word 0 the first page; `words` must be enough for the slot (-EINVAL). Returns
 * how many bits are set; -ENOENT if the memory is not logged.
 */
CKVM_API int64_t ckvm_memory_dirty(struct ckvm_memory *memory, uint64_t *bitmap,
				   size_t words);

/*
 * 4.8, for another reader: what one has taken the other still finds. With
 * KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 enabled nothing is taken, but by the next.
 */
CKVM_API int64_t ckvm_memory_get_dirty_log(struct ckvm_memory *memory,
					   uint64_t *bitmap, size_t words);

/*
 * 4.117: of `count` pages from page `first` on, those in the bitmap are clean
 * from now on, for that reader. Both are multiples of 64, but for a count up to
 * the last page (-EINVAL).
 */
CKVM_API int ckvm_memory_clear_dirty_log(struct ckvm_memory *memory,
					 uint64_t first, uint64_t count,
					 const uint64_t *bitmap);

/*
 * 4.35, 4.140: a slot as the kernel has it: new, moved, with other flags, or,
 * with memory_size 0, deleted. The kernel's rules are the ones that count, and
 * ckvm_vm_read and the others follow. With `of`, userspace_addr is an offset
 * into that memory, whose mapping then stays as long as the slot does; without,
 * it is the caller's own memory, which has to stay until the slot is deleted or
 * the VM has ended. -ERANGE if `of` is too short. A guest_memfd is duplicated.
 */
CKVM_API int
ckvm_vm_set_user_memory_region(struct ckvm_vm *vm,
			       const struct kvm_userspace_memory_region *region,
			       struct ckvm_memory *of);
struct kvm_userspace_memory_region2;
CKVM_API int ckvm_vm_set_user_memory_region2(
	struct ckvm_vm *vm, const struct kvm_userspace_memory_region2 *region,
	struct ckvm_memory *of);

/*
 * 4.142: pages for memory of this VM (KVM_CAP_GUEST_MEMFD), of which the guest
 * may have some to itself. The descriptor is closed on exec. -EINVAL for a size
 * that is not whole pages, and flags that this KVM does not know
 * (KVM_CAP_GUEST_MEMFD_FLAGS).
 */
struct kvm_create_guest_memfd;
CKVM_API int
ckvm_vm_create_guest_memfd(struct ckvm_vm *vm,
			   const struct kvm_create_guest_memfd *args,
			   struct ckvm_guest_memfd **out);
CKVM_API void ckvm_guest_memfd_close(struct ckvm_guest_memfd *memfd);
CKVM_API struct ckvm_guest_memfd *
ckvm_guest_memfd_ref(struct ckvm_guest_memfd *memfd);
CKVM_API void ckvm_guest_memfd_unref(struct ckvm_guest_memfd *memfd);
CKVM_API int ckvm_guest_memfd_fd(const struct ckvm_guest_memfd *memfd);
CKVM_API uint64_t ckvm_guest_memfd_size(const struct ckvm_guest_memfd *memfd);
CKVM_API uint64_t ckvm_guest_memfd_flags(const struct ckvm_guest_memfd *memfd);

/*
 * 4.141: whose pages these are (KVM_MEMORY_ATTRIBUTE_PRIVATE: the guest's
 * alone). -ENOTTY where KVM_CAP_MEMORY_ATTRIBUTES is 0.
 */
struct kvm_memory_attributes;
CKVM_API int
ckvm_vm_set_memory_attributes(struct ckvm_vm *vm,
			      const struct kvm_memory_attributes *attributes);

/*
 * 4.143: has the pages at hand before the guest touches them. Goes on until all
 * of the range is done; gpa and size then say what is left, after a failure,
 * too. -EOPNOTSUPP where KVM_CAP_PRE_FAULT_MEMORY is 0.
 */
struct kvm_pre_fault_memory;
CKVM_API int ckvm_vcpu_pre_fault_memory(struct ckvm_vcpu *vcpu,
					struct kvm_pre_fault_memory *range);

/*
 * How many pages the kernel may use for shadow page tables
 * (KVM_SET_NR_MMU_PAGES and its get, which api.rst lacks). -EINVAL below 64.
 * The second is gone from Linux: -ENOTTY.
 */
CKVM_API int ckvm_vm_set_nr_mmu_pages(struct ckvm_vm *vm, unsigned long count);
CKVM_API int ckvm_vm_get_nr_mmu_pages(struct ckvm_vm *vm);

/*
 * Guest memory by physical address, across adjacent slots: all of it or, with
 * -EFAULT (ckvm_errop() "memory"), none of it. Read-only memory is read-only
 * for the guest alone, but for a shared file, which is then read-only for all:
 * -EFAULT ("readonly"). -EFAULT, too, where a file has become too short, or
 * cannot be read ("file"), and for a guest_memfd's pages that are the guest's
 * alone ("guest_memfd"): what is before them is read or written.
 * ckvm_fault_gpa() tells where it was.
 */
CKVM_API int ckvm_vm_read(struct ckvm_vm *vm, uint64_t gpa, void *data,
			  size_t length);
CKVM_API int ckvm_vm_write(struct ckvm_vm *vm, uint64_t gpa, const void *data,
			   size_t length);
CKVM_API int ckvm_vm_fill(struct ckvm_vm *vm, uint64_t gpa, uint8_t byte,
			  size_t length);

/*
 * Takes the guest's mappings of whole pages away, as swapping and migration of
 * pages do: the next access maps them again, and finds what was there. A vCPU
 * that reads private memory at that very moment, of this VM or of another that
 * has the memory, may fail with -EFAULT, or exit with KVM_EXIT_MEMORY_FAULT. It
 * has done nothing then, and is run again; with CKVM_MEMORY_SHARED there is no
 * such moment. -EFAULT if part of it is no memory, -EINVAL for no whole pages,
 * parts of huge pages, a guest_memfd's, and the caller's own.
 */
CKVM_API int ckvm_vm_zap_memory(struct ckvm_vm *vm, uint64_t gpa,
				uint64_t bytes);

/*
 * How many bytes of memory follow one another from gpa on; 0 for none, and in a
 * forked child.
 */
CKVM_API uint64_t ckvm_vm_extent(struct ckvm_vm *vm, uint64_t gpa);

/*
 * The first memory that has a byte of [gpa, gpa + length): a new reference, or
 * NULL.
 */
CKVM_API struct ckvm_memory *ckvm_vm_find_memory(struct ckvm_vm *vm,
						 uint64_t gpa, uint64_t length);

/* The bus ----------------------------------------------------------------- */

/*
 * Called for an access, from the thread that runs the vCPU, without any lock.
 * `address` is the port or gpa, `data` holds `length` bytes in guest order
 * (little endian), of which reads find all ones. vcpu is NULL for a batched
 * write. 0: answered. 1: answered, and end the run after this exit. -errno: end
 * the run with that error. A direction whose function is NULL is not claimed.
 */
struct ckvm_ops {
	size_t size;
	int (*read)(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
		    void *data, size_t length);
	int (*write)(void *opaque, struct ckvm_vcpu *vcpu, uint64_t address,
		     const void *data, size_t length);
};

enum ckvm_space { CKVM_IO, CKVM_MMIO };

/* What a range does with an access, for each direction. */
enum ckvm_answer {
	CKVM_ANSWER_NONE,   /* not claimed: as if no range were here */
	CKVM_ANSWER_OPS,    /* calls ops */
	CKVM_ANSWER_CALLER, /* handed back by ckvm_vcpu_run: CKVM_ACCESS */
	CKVM_ANSWER_VALUE,  /* reads: the low bytes of value; writes: dropped */
	CKVM_ANSWER_LOG,    /* writes: into `log`; when full, as NONE */
	/* A batched write that is nobody's is dropped: there is no exit. */
};

struct ckvm_range_config {
	size_t size;
	enum ckvm_space space;
	uint32_t batch; /* 1: the kernel queues writes (4.116); no reads, and
			   less than 4 GiB */
	uint64_t first;
	uint64_t count; /* ports or bytes, not 0 */
	enum ckvm_answer read, write;
	const struct ckvm_ops *ops; /* copied */
	void *opaque;
	uint64_t value;
	struct ckvm_buffer *log; /* referenced while attached */
};

/*
 * Claims ports or addresses. An access belongs to the range that holds its
 * first byte. -EEXIST if one of the same space overlaps, -EINVAL past the end
 * of the space; batch: -ENOTSUP where the KVM cannot.
 */
CKVM_API int ckvm_vm_attach(struct ckvm_vm *vm,
			    const struct ckvm_range_config *config,
			    struct ckvm_range **out);

/* The same in short; with ops NULL the range belongs to who runs the loop. */
CKVM_API int ckvm_vm_attach_io(struct ckvm_vm *vm, uint16_t first,
			       uint32_t count, const struct ckvm_ops *ops,
			       void *opaque, struct ckvm_range **out);
CKVM_API int ckvm_vm_attach_mmio(struct ckvm_vm *vm, uint64_t gpa,
				 uint64_t count, const struct ckvm_ops *ops,
				 void *opaque, struct ckvm_range **out);

/*
 * Gives the addresses up; a callback that runs meanwhile on another thread is
 * let finish, and not waited for: what it uses must live until that vCPU has
 * left its run, or the VM is closed.
 */
CKVM_API void ckvm_range_detach(struct ckvm_range *range);
CKVM_API struct ckvm_range *ckvm_range_ref(struct ckvm_range *range);
CKVM_API void ckvm_range_unref(struct ckvm_range *range);
CKVM_API enum ckvm_space ckvm_range_space(const struct ckvm_range *range);
CKVM_API uint64_t ckvm_range_first(const struct ckvm_range *range);
CKVM_API uint64_t ckvm_range_count(const struct ckvm_range *range);
CKVM_API void *ckvm_range_opaque(const struct ckvm_range *range);

/* A range of that space within [first, first + count): a new reference. */
CKVM_API struct ckvm_range *ckvm_vm_find_range(struct ckvm_vm *vm,
					       enum ckvm_space space,
					       uint64_t first, uint64_t count);

/*
 * Has accesses that no range claims handed back too (as CKVM_ACCESS with range
 * NULL), for the CKVM_EXIT_IO_IN ... MMIO_WRITE given; others end the run.
 */
CKVM_API void ckvm_vm_catch(struct ckvm_vm *vm, enum ckvm_access_exit which,
			    int on);

/*
 * 4.116: has the kernel queue writes to a zone, whoever answers there; they
 * come as from a range with `batch`, without a vCPU. Unregistering ends every
 * registration that holds the zone; it is no error if none does. -EEXIST where
 * a range with `batch` is, which has its own, and as little can one be attached
 * in a zone.
 */
CKVM_API int
ckvm_vm_register_coalesced_mmio(struct ckvm_vm *vm,
				const struct kvm_coalesced_mmio_zone *zone);
CKVM_API int
ckvm_vm_unregister_coalesced_mmio(struct ckvm_vm *vm,
				  const struct kvm_coalesced_mmio_zone *zone);

/* A log of at most `capacity` bytes, for any number of ranges and threads. */
CKVM_API int ckvm_buffer_create(size_t capacity, struct ckvm_buffer **out);
CKVM_API struct ckvm_buffer *ckvm_buffer_ref(struct ckvm_buffer *buffer);
CKVM_API void ckvm_buffer_unref(struct ckvm_buffer *buffer);
CKVM_API size_t ckvm_buffer_length(struct ckvm_buffer *buffer);
CKVM_API size_t ckvm_buffer_capacity(const struct ckvm_buffer *buffer);

/* Moves the oldest bytes, at most `length`, to data; returns how many. */
CKVM_API size_t ckvm_buffer_take(struct ckvm_buffer *buffer, void *data,
				 size_t length);

/* Interrupts -------------------------------------------------------------- */

/*
 * 4.24: the interrupt controllers, in the kernel. To be created before the
 * first vCPU (-EINVAL after it), and once: -EEXIST.
 */
CKVM_API int ckvm_vm_create_irqchip(struct ckvm_vm *vm);

/* 4.25: sets a line of theirs, by GSI. -ENXIO without them. */
CKVM_API int ckvm_vm_irq_line(struct ckvm_vm *vm,
			      const struct kvm_irq_level *level);

/*
 * The same (KVM_CAP_IRQ_INJECT_STATUS), with what came of it in level->status:
 * more than 0 if a controller took it, 0 if it was pending already, -1 if no
 * controller has that line, or it is masked.
 */
CKVM_API int ckvm_vm_irq_line_status(struct ckvm_vm *vm,
				     struct kvm_irq_level *level);

/*
 * 4.71: how many vCPUs got the message; 0 if the guest blocks it. -EPERM if no
 * vCPU has that destination, -EINVAL without interrupt controllers.
 */
CKVM_API int ckvm_vm_signal_msi(struct ckvm_vm *vm, const struct kvm_msi *msi);

/* 4.52: replaces all routes, at most 4096. -EINVAL without controllers. */
CKVM_API int ckvm_vm_set_gsi_routing(struct ckvm_vm *vm,
				     const struct kvm_irq_routing *routing);

/*
 * 4.75: whatever signals the eventfd raises the GSI, until it is taken back
 * (KVM_IRQFD_FLAG_DEASSIGN) or its last descriptor is closed. -EBUSY if the
 * eventfd raises one already, -EINVAL without interrupt controllers. Taking
 * back what was not given is no error.
 */
CKVM_API int ckvm_vm_irqfd(struct ckvm_vm *vm, const struct kvm_irqfd *irqfd);

/*
 * 4.59: a guest's write there signals the eventfd, and makes no exit; no range
 * sees it. -EEXIST if the place is taken, -ENOENT if there is nothing to take
 * back. The kernel has its own reference: with the last descriptor closed the
 * writes go nowhere, until the VM ends.
 */
CKVM_API int ckvm_vm_ioeventfd(struct ckvm_vm *vm,
			       const struct kvm_ioeventfd *ioevent);

/*
 * 4.16: queues an interrupt vector, to be taken with the next instruction
 * (whether the guest has interrupts enabled is the caller's business). -ENXIO
 * if the controllers are in the kernel, -EINVAL above 255, -EEXIST if one is
 * queued and only they are not.
 */
CKVM_API int ckvm_vcpu_interrupt(struct ckvm_vcpu *vcpu, uint32_t irq);

#if defined(__x86_64__)
/* 4.26, 4.27: chip_id is one of KVM_IRQCHIP_*. -ENXIO if there is none. */
CKVM_API int ckvm_vm_get_irqchip(struct ckvm_vm *vm, struct kvm_irqchip *chip);
CKVM_API int ckvm_vm_set_irqchip(struct ckvm_vm *vm,
				 const struct kvm_irqchip *chip);

/*
 * 4.71 to 4.73: the PIT, which needs the interrupt controllers: -ENOENT without
 * them, -EEXIST if there is one, -ENXIO for the others if there is none. The
 * first three are those of old.
 */
CKVM_API int ckvm_vm_create_pit(struct ckvm_vm *vm);
CKVM_API int ckvm_vm_get_pit(struct ckvm_vm *vm, struct kvm_pit_state *pit);
CKVM_API int ckvm_vm_set_pit(struct ckvm_vm *vm,
			     const struct kvm_pit_state *pit);
CKVM_API int ckvm_vm_create_pit2(struct ckvm_vm *vm,
				 const struct kvm_pit_config *config);
CKVM_API int ckvm_vm_get_pit2(struct ckvm_vm *vm, struct kvm_pit_state2 *pit);
CKVM_API int ckvm_vm_set_pit2(struct ckvm_vm *vm,
			      const struct kvm_pit_state2 *pit);

/* Are the PIT's interrupts that the guest missed made up for? */
CKVM_API int
ckvm_vm_reinject_control(struct ckvm_vm *vm,
			 const struct kvm_reinject_control *control);

/* 4.29, 4.30: kvmclock, in ns; `flags` tells which other fields count. */
CKVM_API int ckvm_vm_get_clock(struct ckvm_vm *vm,
			       struct kvm_clock_data *clock);
CKVM_API int ckvm_vm_set_clock(struct ckvm_vm *vm,
			       const struct kvm_clock_data *clock);

/*
 * 4.36, 4.40: where below 4 GiB VT-x keeps three pages, and one, of its own. No
 * memory may be there. The latter before the first vCPU: -EINVAL after it.
 */
CKVM_API int ckvm_vm_set_tss_addr(struct ckvm_vm *vm, uint64_t gpa);
CKVM_API int ckvm_vm_set_identity_map_addr(struct ckvm_vm *vm, uint64_t gpa);

/* 4.41: which vCPU starts first (0). -EBUSY after the first vCPU. */
CKVM_API int ckvm_vm_set_boot_cpu_id(struct ckvm_vm *vm, uint32_t id);
#endif

/* Virtual processors ------------------------------------------------------ */

/* 4.7: -EEXIST if the VM had a vCPU of this id, also a closed one. */
CKVM_API int ckvm_vm_create_vcpu(struct ckvm_vm *vm, unsigned long id,
				 struct ckvm_vcpu **out);

/*
 * A vCPU that something else in this process has made; its descriptor is
 * duplicated, and stays the caller's. The kernel does not tell whose vCPU it
 * is: that it is this VM's is the caller's word. The page shared with the
 * kernel belongs to who runs the vCPU: the other side has to keep off it
 * meanwhile. -ENOTTY: not a vCPU's; -EBUSY: an object of ckvm's has it;
 * -EEXIST: the VM has an object of that id; -EIO (KVM_GET_MP_STATE): another
 * process's.
 */
CKVM_API int ckvm_vm_vcpu_from_fd(struct ckvm_vm *vm, int fd,
				  struct ckvm_vcpu **out);

/* The open vCPU with the lowest id from `id` on: a new reference, or NULL. */
CKVM_API struct ckvm_vcpu *ckvm_vm_find_vcpu(struct ckvm_vm *vm,
					     unsigned long id);

CKVM_API void ckvm_vcpu_close(struct ckvm_vcpu *vcpu);
CKVM_API struct ckvm_vcpu *ckvm_vcpu_ref(struct ckvm_vcpu *vcpu);
CKVM_API void ckvm_vcpu_unref(struct ckvm_vcpu *vcpu);
CKVM_API int ckvm_vcpu_fd(const struct ckvm_vcpu *vcpu);
CKVM_API unsigned long ckvm_vcpu_id(const struct ckvm_vcpu *vcpu);
CKVM_API struct ckvm_vm *ckvm_vcpu_vm(struct ckvm_vcpu *vcpu); /* borrowed */

/* 4.37 for one vCPU. */
CKVM_API int ckvm_vcpu_enable_cap(struct ckvm_vcpu *vcpu,
				  const struct kvm_enable_cap *cap);

/*
 * Registers. Three sets of them are cached, in the page shared with the kernel
 * where KVM_CAP_SYNC_REGS has it, so that reading and writing them between two
 * exits costs no ioctl. ckvm_vcpu_view lends the cache (until the next call on
 * the vCPU), ckvm_vcpu_write_view changes a field of it; the kernel gets the
 * change with the next run, and what it then refuses, that run returns with
 * ckvm_errop() "KVM_SET_SREGS" or the like.
 *
 * While an access is open, changes wait until its instruction is finished, and
 * then win over what it wrote. ckvm_vcpu_set_* in that state change just the
 * fields that differ, so that get, modify, set is safe everywhere.
 */
enum ckvm_view {
	CKVM_VIEW_REGS = 1,   /* struct kvm_regs, 4.11 */
	CKVM_VIEW_SREGS = 2,  /* struct kvm_sregs, 4.13 */
	CKVM_VIEW_EVENTS = 4, /* struct kvm_vcpu_events, 4.31 */
};
CKVM_API int ckvm_vcpu_view(struct ckvm_vcpu *vcpu, enum ckvm_view view,
			    const void **data);
CKVM_API int ckvm_vcpu_write_view(struct ckvm_vcpu *vcpu, enum ckvm_view view,
				  size_t offset, const void *value,
				  size_t length);

CKVM_API int ckvm_vcpu_get_regs(struct ckvm_vcpu *vcpu, struct kvm_regs *regs);
CKVM_API int ckvm_vcpu_set_regs(struct ckvm_vcpu *vcpu,
				const struct kvm_regs *regs);
CKVM_API int ckvm_vcpu_get_sregs(struct ckvm_vcpu *vcpu,
				 struct kvm_sregs *sregs);
CKVM_API int ckvm_vcpu_set_sregs(struct ckvm_vcpu *vcpu,
				 const struct kvm_sregs *sregs);
CKVM_API int ckvm_vcpu_get_vcpu_events(struct ckvm_vcpu *vcpu,
				       struct kvm_vcpu_events *events);
CKVM_API int ckvm_vcpu_set_vcpu_events(struct ckvm_vcpu *vcpu,
				       const struct kvm_vcpu_events *events);

/*
 * 4.38: what the vCPU waits for, if for anything (KVM_MP_STATE_*), with an
 * in-kernel irqchip. -EINVAL for one that this KVM does not take.
 */
CKVM_API int ckvm_vcpu_get_mp_state(struct ckvm_vcpu *vcpu,
				    struct kvm_mp_state *state);
CKVM_API int ckvm_vcpu_set_mp_state(struct ckvm_vcpu *vcpu,
				    const struct kvm_mp_state *state);

/*
 * 4.87: single steps and breakpoints (KVM_GUESTDBG_*), which end a run with
 * KVM_EXIT_DEBUG. -EBUSY: one is to be injected, and an exception waits
 * already.
 */
CKVM_API int ckvm_vcpu_set_guest_debug(struct ckvm_vcpu *vcpu,
				       const struct kvm_guest_debug *debug);

/*
 * 4.21: the signals that are blocked while the guest runs, instead of those of
 * the thread: bit n - 1 for signal n; NULL: the thread's again. The kick signal
 * is never among them.
 */
CKVM_API int ckvm_vcpu_set_signal_mask(struct ckvm_vcpu *vcpu,
				       const uint64_t *mask);

/*
 * 4.68, 4.69, 4.84: single registers, by id (KVM_REG_*); on x86 since Linux
 * 6.18. `size` is that of `data`, and -EINVAL if the register has more bytes,
 * which ckvm_reg_size tells. The list is the caller's, to be given to free();
 * returns its n.
 */
CKVM_API size_t ckvm_reg_size(uint64_t id);
CKVM_API int ckvm_vcpu_get_one_reg(struct ckvm_vcpu *vcpu, uint64_t id,
				   void *data, size_t size);
CKVM_API int ckvm_vcpu_set_one_reg(struct ckvm_vcpu *vcpu, uint64_t id,
				   const void *data, size_t size);
CKVM_API int ckvm_vcpu_get_reg_list(struct ckvm_vcpu *vcpu,
				    struct kvm_reg_list **out);

/* Memory by virtual address ----------------------------------------------- */

/*
 * 4.15: linear_address in; physical_address out, if valid is not 0. Addresses
 * here are linear ones: segments are not added.
 */
CKVM_API int ckvm_vcpu_translate(struct ckvm_vcpu *vcpu,
				 struct kvm_translation *translation);

/*
 * Guest memory as the vCPU's page tables have it, whatever their protection.
 * -EFAULT where a page is not mapped, or no memory is behind it: *fault (NULL:
 * not asked for) is then the first such address. A write is all or nothing, as
 * long as nobody takes memory away meanwhile.
 */
CKVM_API int ckvm_vcpu_read(struct ckvm_vcpu *vcpu, uint64_t gva, void *data,
			    size_t length, uint64_t *fault);
CKVM_API int ckvm_vcpu_write(struct ckvm_vcpu *vcpu, uint64_t gva,
			     const void *data, size_t length, uint64_t *fault);

/*
 * Up to the first zero byte, which is also written to data: returns how many
 * bytes are before it. -E2BIG if there is none in `size` bytes. Bytes of the
 * zero byte's page that follow it may be written, too.
 */
CKVM_API int64_t ckvm_vcpu_read_cstring(struct ckvm_vcpu *vcpu, uint64_t gva,
					char *data, size_t size,
					uint64_t *fault);

#if defined(__x86_64__)

/* State of x86 vCPUs ------------------------------------------------------ */

/*
 * 4.22, 4.23: x87 and SSE registers; 4.44, 4.45: XCR0; 4.33, 4.34: debug
 * registers; 4.57, 4.58: the local APIC, -EINVAL if it is not in the kernel.
 * KVM_SET_FPU does not change which components XSAVE takes for initial: xmm
 * registers that the guest never used need ckvm_vcpu_set_xsave.
 */
CKVM_API int ckvm_vcpu_get_fpu(struct ckvm_vcpu *vcpu, struct kvm_fpu *fpu);
CKVM_API int ckvm_vcpu_set_fpu(struct ckvm_vcpu *vcpu,
			       const struct kvm_fpu *fpu);
CKVM_API int ckvm_vcpu_get_xcrs(struct ckvm_vcpu *vcpu, struct kvm_xcrs *xcrs);
CKVM_API int ckvm_vcpu_set_xcrs(struct ckvm_vcpu *vcpu,
				const struct kvm_xcrs *xcrs);
CKVM_API int ckvm_vcpu_get_debugregs(struct ckvm_vcpu *vcpu,
				     struct kvm_debugregs *regs);
CKVM_API int ckvm_vcpu_set_debugregs(struct ckvm_vcpu *vcpu,
				     const struct kvm_debugregs *regs);
CKVM_API int ckvm_vcpu_get_lapic(struct ckvm_vcpu *vcpu,
				 struct kvm_lapic_state *lapic);
CKVM_API int ckvm_vcpu_set_lapic(struct ckvm_vcpu *vcpu,
				 const struct kvm_lapic_state *lapic);

/*
 * Extended state, laid out as XSAVE does: 4.42 (4096 bytes; -EINVAL if that is
 * too little), 4.134, 4.43. ckvm_vcpu_xsave_size tells how many bytes the
 * kernel reads and writes, 4096 or more; -EINVAL for less than that.
 */
CKVM_API int ckvm_vcpu_xsave_size(struct ckvm_vcpu *vcpu);
CKVM_API int ckvm_vcpu_get_xsave(struct ckvm_vcpu *vcpu,
				 struct kvm_xsave *xsave);
CKVM_API int ckvm_vcpu_get_xsave2(struct ckvm_vcpu *vcpu, void *data,
				  size_t size);
CKVM_API int ckvm_vcpu_set_xsave(struct ckvm_vcpu *vcpu, const void *data,
				 size_t size);

/*
 * 4.131, 4.132: sregs, with pdptrs in the place of interrupt_bitmap. While an
 * access is open, they are set as by ckvm_vcpu_set_sregs; -EBUSY if pdptrs or
 * flags differ then.
 */
CKVM_API int ckvm_vcpu_get_sregs2(struct ckvm_vcpu *vcpu,
				  struct kvm_sregs2 *sregs);
CKVM_API int ckvm_vcpu_set_sregs2(struct ckvm_vcpu *vcpu,
				  const struct kvm_sregs2 *sregs);

/*
 * 4.114, 4.115: state of nested virtualization, state->size bytes, which the
 * caller gives to free(). Its header may be all there is. Set: -EBUSY while an
 * access is open.
 */
CKVM_API int ckvm_vcpu_get_nested_state(struct ckvm_vcpu *vcpu,
					struct kvm_nested_state **out);
CKVM_API int ckvm_vcpu_set_nested_state(struct ckvm_vcpu *vcpu,
					const struct kvm_nested_state *state);

/* Events for x86 vCPUs ---------------------------------------------------- */

CKVM_API int ckvm_vcpu_nmi(struct ckvm_vcpu *vcpu); /* 4.64 */
CKVM_API int ckvm_vcpu_smi(struct ckvm_vcpu *vcpu); /* 4.96; -ENOTTY */

/* Machine checks: 4.104 (the MCG_CAP that KVM can do), 4.105, 4.106. */
CKVM_API int ckvm_x86_get_mce_cap_supported(struct ckvm *kvm, uint64_t *cap);
CKVM_API int ckvm_vcpu_x86_setup_mce(struct ckvm_vcpu *vcpu, uint64_t mcg_cap);
CKVM_API int ckvm_vcpu_x86_set_mce(struct ckvm_vcpu *vcpu,
				   const struct kvm_x86_mce *mce);

/* KVM_CAP_VAPIC: exits on accesses to the task priority, and where it lies. */
CKVM_API int ckvm_vcpu_tpr_access_reporting(struct ckvm_vcpu *vcpu,
					    struct kvm_tpr_access_ctl *control);
CKVM_API int ckvm_vcpu_set_vapic_addr(struct ckvm_vcpu *vcpu, uint64_t gpa);

/* Time of x86 guests ------------------------------------------------------ */

/*
 * 4.55, 4.56: the TSC's frequency in kHz, of a vCPU, or of those that the VM
 * will create (KVM_CAP_VM_TSC_CONTROL). 0 kHz is the host's.
 */
CKVM_API int ckvm_vcpu_get_tsc_khz(struct ckvm_vcpu *vcpu);
CKVM_API int ckvm_vcpu_set_tsc_khz(struct ckvm_vcpu *vcpu, uint32_t khz);
CKVM_API int ckvm_vm_get_tsc_khz(struct ckvm_vm *vm);
CKVM_API int ckvm_vm_set_tsc_khz(struct ckvm_vm *vm, uint32_t khz);

/* 4.70: tells the guest that it was paused; -EINVAL if it has no kvmclock. */
CKVM_API int ckvm_vcpu_kvmclock_ctrl(struct ckvm_vcpu *vcpu);

/* CPUID ------------------------------------------------------------------- */

/*
 * Lists of any length: *out is the caller's, to be given to free(); its nent is
 * what is returned. What KVM and CPU support together (4.46), what KVM can
 * emulate without the CPU (4.88), what it has for Hyper-V guests (4.118, on
 * /dev/kvm with KVM_CAP_SYS_HYPERV_CPUID).
 */
CKVM_API int ckvm_get_supported_cpuid(struct ckvm *kvm,
				      struct kvm_cpuid2 **out);
CKVM_API int ckvm_get_emulated_cpuid(struct ckvm *kvm, struct kvm_cpuid2 **out);
CKVM_API int ckvm_get_supported_hv_cpuid(struct ckvm *kvm,
					 struct kvm_cpuid2 **out);
CKVM_API int ckvm_vcpu_get_supported_hv_cpuid(struct ckvm_vcpu *vcpu,
					      struct kvm_cpuid2 **out);

/*
 * What the guest sees, and the old list without indices, 4.20. A new vCPU has
 * none. -E2BIG for more than 256 entries; -EINVAL for contents
 * that KVM cannot do, and for any change once the vCPU has run.
 */
CKVM_API int ckvm_vcpu_get_cpuid2(struct ckvm_vcpu *vcpu,
				  struct kvm_cpuid2 **out);
CKVM_API int ckvm_vcpu_set_cpuid2(struct ckvm_vcpu *vcpu,
				  const struct kvm_cpuid2 *cpuid);
CKVM_API int ckvm_vcpu_set_cpuid(struct ckvm_vcpu *vcpu,
				 const struct kvm_cpuid *cpuid);

/* Model-specific registers ------------------------------------------------ */

/*
 * 4.3: the MSRs that a vCPU has, and the ones that tell what KVM can do, which
 * ckvm_get_msrs reads. Lists of any length, to be given to free(); returns
 * their nmsrs.
 */
CKVM_API int ckvm_get_msr_index_list(struct ckvm *kvm,
				     struct kvm_msr_list **out);
CKVM_API int ckvm_get_msr_feature_index_list(struct ckvm *kvm,
					     struct kvm_msr_list **out);

/*
 * 4.18, 4.19: any number of them, in order. -EINVAL if one is refused: *done
 * (NULL: not asked for) is then its place in `entries`, and those before it
 * are done.
 */
CKVM_API int ckvm_get_msrs(struct ckvm *kvm, struct kvm_msr_entry *entries,
			   size_t count, size_t *done);
CKVM_API int ckvm_vcpu_get_msrs(struct ckvm_vcpu *vcpu,
				struct kvm_msr_entry *entries, size_t count,
				size_t *done);
CKVM_API int ckvm_vcpu_set_msrs(struct ckvm_vcpu *vcpu,
				const struct kvm_msr_entry *entries,
				size_t count, size_t *done);

/*
 * 4.97: which MSRs the guest may access. The kernel reads each bitmap in whole
 * 64-bit words. A refused access is #GP or, with KVM_CAP_X86_USER_SPACE_MSR, an
 * exit. -EINVAL: more than 16 ranges, no access in a range's flags, denying
 * all.
 */
CKVM_API int ckvm_vm_x86_set_msr_filter(struct ckvm_vm *vm,
					const struct kvm_msr_filter *filter);

#endif /* __x86_64__ */

/* Running ----------------------------------------------------------------- */

#define CKVM_LIMIT_TIMEOUT (1u << 0)  /* timeout_ns counts */
#define CKVM_LIMIT_DEADLINE (1u << 1) /* deadline_ns counts */
#define CKVM_LIMIT_EXITS (1u << 2)    /* exits counts */
#define CKVM_LIMIT_SIGNALS (1u << 3)  /* other signals end it with -EINTR */

struct ckvm_limits {
	size_t size;
	uint32_t flags;
	uint32_t reserved;    /* 0 */
	uint64_t timeout_ns;  /* from now on; 0 expires at once */
	uint64_t deadline_ns; /* a time of CLOCK_MONOTONIC */
	uint64_t exits;	      /* how many exits to handle */
};

/* Why a run ended. */
enum ckvm_end {
	CKVM_EXIT,    /* an exit that nobody handles: ckvm_vcpu_exit() */
	CKVM_ACCESS,  /* an access for the caller: ckvm_vcpu_access() */
	CKVM_STOPPED, /* ckvm_vcpu_stop(), or a callback that returned 1 */
	CKVM_KICKED,  /* ckvm_vcpu_kick() */
	CKVM_TIMEOUT, /* the timeout or deadline has passed */
	CKVM_EXITS,   /* that many exits are done */
};

/*
 * 4.10: runs the guest until something of enum ckvm_end happens, serving ranges
 * with callbacks on the way. limits may be NULL; limits and stop take effect
 * after the whole exit. A run on the vCPU that is still open (handed back, and
 * not continued) is abandoned: its access is answered with all ones. An exit
 * that came with queued writes, one of which it was at, is looked at now.
 *
 * -EBADF if the vCPU is closed meanwhile, -EBUSY if another thread runs it,
 * -EINTR with CKVM_LIMIT_SIGNALS (ckvm_errop() "signal"), -EINVAL for flags
 * that there are not, or what KVM_RUN or a callback says.
 */
CKVM_API int ckvm_vcpu_run(struct ckvm_vcpu *vcpu,
			   const struct ckvm_limits *limits);

/*
 * Goes on with that run, its limits and clock: after CKVM_ACCESS, once the
 * access is answered (or not: all ones); after CKVM_EXIT, if the caller has
 * handled it; after "signal". -ESRCH if there is nothing to go on with.
 */
CKVM_API int ckvm_vcpu_continue(struct ckvm_vcpu *vcpu);

/*
 * Ends the run that is open, if any, without going on with it: its access stays
 * answered with all ones. Nothing while the loop runs.
 */
CKVM_API void ckvm_vcpu_abandon(struct ckvm_vcpu *vcpu);

/*
 * The time since the last hand-back, or since a ckvm_vcpu_pause after it, was
 * not the run's: its timeout moves on by that much. bound_ns replaces its
 * deadline_ns (0: none). To be called before ckvm_vcpu_continue, when the
 * caller was suspended: any number of times.
 */
CKVM_API void ckvm_vcpu_pause(struct ckvm_vcpu *vcpu);
CKVM_API void ckvm_vcpu_rest(struct ckvm_vcpu *vcpu, uint64_t bound_ns);

/* Counts the runs of this vCPU: tells whether a run is still the same one. */
CKVM_API uint32_t ckvm_vcpu_run_serial(const struct ckvm_vcpu *vcpu);

/* When the run will be ended, in CLOCK_MONOTONIC ns; 0: never. */
CKVM_API uint64_t ckvm_vcpu_deadline(const struct ckvm_vcpu *vcpu);

/*
 * Exactly one KVM_RUN, nothing dispatched: 0 with ckvm_vcpu_exit(), -EINTR when
 * kicked, or stopped by another thread (ckvm_errop() "kick" for both), or
 * interrupted by a signal, -ETIME when the timeout or deadline of limits passes
 * (NULL: none; exits do not count), and -EINVAL for flags that there are not.
 * If registers were written while an access was open, that access is finished
 * first, and an exit that this brings is the one returned. So is, without a
 * KVM_RUN, an exit that a run has left behind: one that came with queued
 * writes, of which a callback has failed.
 */
CKVM_API int ckvm_vcpu_run_once(struct ckvm_vcpu *vcpu,
				const struct ckvm_limits *limits);

/*
 * Finishes the instruction whose access is open, without running the guest any
 * further, and serves the accesses this brings; returns as ckvm_vcpu_run does,
 * CKVM_STOPPED when done. -EBUSY while a read is being answered or elements of
 * a string access are left.
 */
CKVM_API int ckvm_vcpu_finish(struct ckvm_vcpu *vcpu);

/* An access handed back. Borrowed until the run goes on. */
struct ckvm_access {
	struct ckvm_range *range; /* NULL: none claims it; dead once detached */
	void *opaque;		  /* the range's */
	uint64_t address;	  /* port or gpa */
	uint64_t offset;	  /* from the range's first */
	uint64_t value;		  /* writes: what was written */
	uint32_t length;	  /* bytes, 1 to 8: MMIO may be cut at a page */
	uint8_t is_write;
	uint8_t space;	 /* enum ckvm_space */
	uint8_t batched; /* no vCPU is behind it */
	uint8_t reserved;
};

/* The access to answer; NULL if there is none. */
CKVM_API const struct ckvm_access *ckvm_vcpu_access(struct ckvm_vcpu *vcpu);

/* Answers a read with the low bytes of value. Ignored for a write. */
CKVM_API void ckvm_vcpu_answer(struct ckvm_vcpu *vcpu, uint64_t value);

/*
 * The page shared with the kernel, borrowed while the vCPU is open: the current
 * exit and its payload (section 5), writable where the kernel reads it back.
 * NULL if the last KVM_RUN brought none, or there was none, or the vCPU is
 * closed, or another thread runs it, or has it claimed. The serial changes with
 * each KVM_RUN.
 */
CKVM_API struct kvm_run *ckvm_vcpu_exit(struct ckvm_vcpu *vcpu);
CKVM_API uint32_t ckvm_vcpu_exit_serial(const struct ckvm_vcpu *vcpu);

/*
 * Where in that page the data of a port, MMIO or IOCSR access is: `count`
 * elements of `size` bytes, which a read takes from there. NULL if the exit is
 * none of these; size and count are then left alone.
 */
CKVM_API void *ckvm_vcpu_exit_data(struct ckvm_vcpu *vcpu, uint32_t *size,
				   uint32_t *count);

/* The exit's number, CKVM_EXIT_IO_IN and so on for the four accesses. */
CKVM_API uint32_t ckvm_vcpu_exit_number(const struct ckvm_vcpu *vcpu);

/*
 * Ends the run after the exit that is being handled. -ESRCH: no run is open.
 * From another thread than the run's, as soon as its guest can be got out of.
 */
CKVM_API int ckvm_vcpu_stop(struct ckvm_vcpu *vcpu);

/*
 * Was that asked for in the run that is open? An exit that nobody handles comes
 * first: CKVM_EXIT, and the stop only if the run is gone on with.
 */
CKVM_API int ckvm_vcpu_is_stopping(const struct ckvm_vcpu *vcpu);

/*
 * From now on the vCPU is for the thread of this number (gettid(2)) alone: for
 * any other, calls that need it out of the kernel fail with -EBUSY, whether or
 * not it is in there just then; ckvm_vcpu_stop, kick and wake do not, and a
 * stop that comes before the run is its end, too. -EBUSY if it is claimed, or
 * in a run's loop. Claims do not nest; the end of one is the claimer's to call.
 */
CKVM_API int ckvm_vcpu_claim(struct ckvm_vcpu *vcpu, int tid);
CKVM_API void ckvm_vcpu_unclaim(struct ckvm_vcpu *vcpu);

/*
 * Ends the run with CKVM_KICKED; async-signal-safe, from any thread. One sticky
 * bit: a run that starts with it returns at once, and the run it ends clears
 * it.
 */
CKVM_API void ckvm_vcpu_kick(struct ckvm_vcpu *vcpu);

/*
 * Makes a KVM_RUN in progress, or about to be, return, as any signal would: the
 * run goes on, or ends with -EINTR if it has CKVM_LIMIT_SIGNALS. Also
 * async-signal-safe.
 */
CKVM_API void ckvm_vcpu_wake(struct ckvm_vcpu *vcpu);

/*
 * The signal for kicks and timeouts, for the whole process: by default the
 * first real-time signal with the default action, from SIGRTMAX down. To be set
 * before the first VM is created (-EBUSY after). 0 from ckvm_kick_signal():
 * none yet.
 */
CKVM_API int ckvm_set_kick_signal(int signal);
CKVM_API int ckvm_kick_signal(void);

/*
 * Has `late` called, inside the signal handler, when `deadline_ns` (0: never)
 * passes on this thread while no run is in its loop, and every `period_ns` from
 * then on: for who must stop an answer that takes too long. A run that is
 * handed back leaves its own deadline in force for this, too. Every other kick
 * signal that finds no run calls it as well. NULL: no more. With a deadline,
 * after the first VM is created.
 */
CKVM_API void ckvm_thread_late(void (*late)(void *opaque), void *opaque,
			       uint64_t deadline_ns, uint64_t period_ns);

/*
 * Sends the kick signal to a thread of the process, by its number: a run with
 * CKVM_LIMIT_SIGNALS in its loop there returns -EINTR. If no run is, the next
 * one does, and `late` is called. From any thread and from signal handlers;
 * before the first VM, nothing.
 */
CKVM_API void ckvm_thread_wake(int tid);

/* Devices ----------------------------------------------------------------- */

/*
 * 4.79: a device that the kernel emulates; `type` is KVM_DEV_TYPE_*. -ENODEV if
 * the KVM has none of that type, -EBUSY or -EEXIST for a second one. With
 * KVM_CREATE_DEVICE_TEST in flags the kernel only says whether it has it: there
 * is no device and no descriptor, and *out is left as it is.
 */
CKVM_API int ckvm_vm_create_device(struct ckvm_vm *vm, uint32_t type,
				   uint32_t flags, struct ckvm_device **out);
CKVM_API void ckvm_device_close(struct ckvm_device *device);
CKVM_API struct ckvm_device *ckvm_device_ref(struct ckvm_device *device);
CKVM_API void ckvm_device_unref(struct ckvm_device *device);
CKVM_API int ckvm_device_fd(const struct ckvm_device *device);
CKVM_API uint32_t ckvm_device_type(const struct ckvm_device *device);

/*
 * 4.80, 4.81: attributes, of devices and of the other objects. The kernel reads
 * or writes as many bytes at `addr` as the attribute has, which it does not
 * tell (Documentation/virt/kvm/devices does). -ENXIO: there is no such
 * attribute; -EPERM: it cannot be read, or not be set; -ENOTTY: the object has
 * none at all. Any thread may call this for a device.
 */
CKVM_API int ckvm_has_device_attr(struct ckvm *kvm,
				  const struct kvm_device_attr *attr);
CKVM_API int ckvm_get_device_attr(struct ckvm *kvm,
				  const struct kvm_device_attr *attr);
CKVM_API int ckvm_set_device_attr(struct ckvm *kvm,
				  const struct kvm_device_attr *attr);
CKVM_API int ckvm_vm_has_device_attr(struct ckvm_vm *vm,
				     const struct kvm_device_attr *attr);
CKVM_API int ckvm_vm_get_device_attr(struct ckvm_vm *vm,
				     const struct kvm_device_attr *attr);
CKVM_API int ckvm_vm_set_device_attr(struct ckvm_vm *vm,
				     const struct kvm_device_attr *attr);
CKVM_API int ckvm_vcpu_has_device_attr(struct ckvm_vcpu *vcpu,
				       const struct kvm_device_attr *attr);
CKVM_API int ckvm_vcpu_get_device_attr(struct ckvm_vcpu *vcpu,
				       const struct kvm_device_attr *attr);
CKVM_API int ckvm_vcpu_set_device_attr(struct ckvm_vcpu *vcpu,
				       const struct kvm_device_attr *attr);
CKVM_API int ckvm_device_has_device_attr(struct ckvm_device *device,
					 const struct kvm_device_attr *attr);
CKVM_API int ckvm_device_get_device_attr(struct ckvm_device *device,
					 const struct kvm_device_attr *attr);
CKVM_API int ckvm_device_set_device_attr(struct ckvm_device *device,
					 const struct kvm_device_attr *attr);

#if defined(__x86_64__)

/* Encrypted guests -------------------------------------------------------- */

/*
 * 4.110: a command for the encryption of the VM; arg is NULL or the struct that
 * the VM's type asks for (struct kvm_sev_cmd), with the caller's addresses in
 * it. -ENOTTY where there is no encryption. 4.111, 4.112: memory that is
 * encrypted, at an address of the host's, which KVM pins.
 */
CKVM_API int ckvm_vm_memory_encrypt_op(struct ckvm_vm *vm, void *arg);
CKVM_API int
ckvm_vm_memory_encrypt_reg_region(struct ckvm_vm *vm,
				  const struct kvm_enc_region *region);
CKVM_API int
ckvm_vm_memory_encrypt_unreg_region(struct ckvm_vm *vm,
				    const struct kvm_enc_region *region);

/* Xen and Hyper-V --------------------------------------------------------- */

/*
 * 5 (KVM_XEN_*), 4.118: -ENOTTY where KVM is built without. The blobs of a
 * struct kvm_xen_hvm_config are the caller's, and have to stay as long as the
 * VM: the kernel reads them when the guest asks.
 */
struct kvm_irq_routing_xen_evtchn;
CKVM_API int ckvm_vm_xen_hvm_config(struct ckvm_vm *vm,
				    const struct kvm_xen_hvm_config *config);
CKVM_API int ckvm_vm_xen_hvm_get_attr(struct ckvm_vm *vm,
				      struct kvm_xen_hvm_attr *attr);
CKVM_API int ckvm_vm_xen_hvm_set_attr(struct ckvm_vm *vm,
				      const struct kvm_xen_hvm_attr *attr);
CKVM_API int
ckvm_vm_xen_hvm_evtchn_send(struct ckvm_vm *vm,
			    const struct kvm_irq_routing_xen_evtchn *event);
CKVM_API int ckvm_vcpu_xen_vcpu_get_attr(struct ckvm_vcpu *vcpu,
					 struct kvm_xen_vcpu_attr *attr);
CKVM_API int ckvm_vcpu_xen_vcpu_set_attr(struct ckvm_vcpu *vcpu,
					 const struct kvm_xen_vcpu_attr *attr);
CKVM_API int ckvm_vm_hyperv_eventfd(struct ckvm_vm *vm,
				    const struct kvm_hyperv_eventfd *event);

/*
 * 4.120: which events the guest's performance counters may count. -E2BIG for
 * more than 300 of them.
 */
CKVM_API int
ckvm_vm_set_pmu_event_filter(struct ckvm_vm *vm,
			     const struct kvm_pmu_event_filter *filter);

#endif

/* Counted since the vCPU was created. */
#define CKVM_STATS_EXITS 64
struct ckvm_stats {
	size_t size;
	uint64_t total;			  /* exits */
	uint64_t exits[CKVM_STATS_EXITS]; /* by the kernel's number */
	uint64_t io_out, mmio_write;	  /* of these, how many were writes */
	uint64_t batched;		  /* writes that came without an exit */
	uint64_t guest_ns;   /* in the loop: KVM_RUN, and the callbacks */
	uint64_t handler_ns; /* with the caller, between two hand-backs */
};
CKVM_API void ckvm_vcpu_stats(const struct ckvm_vcpu *vcpu,
			      struct ckvm_stats *stats);

/* The kernel's statistics ------------------------------------------------- */

/*
 * 4.133: a descriptor to read the kernel's statistics from, with pread(2) from
 * 0 to the end. The caller's: the kernel keeps the VM until it is closed.
 * -ENOTTY before Linux 5.14.
 */
CKVM_API int ckvm_vm_get_stats_fd(struct ckvm_vm *vm);
CKVM_API int ckvm_vcpu_get_stats_fd(struct ckvm_vcpu *vcpu);

/*
 * What was read, `size` bytes of it, whole or not: how many statistics it has,
 * and whose they are ("kvm-1234/vcpu-0"; NULL if that is missing). -EBADMSG if
 * it is something else.
 */
CKVM_API int ckvm_binary_stats_count(const void *data, size_t size);
CKVM_API const char *ckvm_binary_stats_id(const void *data, size_t size);

struct ckvm_binary_stat {
	const char *name;     /* in the data, as are the values */
	uint32_t flags;	      /* KVM_STATS_TYPE_*, _UNIT_* and _BASE_* */
	uint32_t count;	      /* of values */
	uint32_t bucket_size; /* of a linear histogram */
	int32_t exponent;     /* the unit is scaled by base^exponent */
	const void *values;
};

/* One of them: -ENOENT if there are no more, -EBADMSG if it is not whole. */
CKVM_API int ckvm_binary_stats_get(const void *data, size_t size,
				   uint32_t index,
				   struct ckvm_binary_stat *stat);
CKVM_API uint64_t ckvm_binary_stat_value(const struct ckvm_binary_stat *stat,
					 uint32_t index);

#ifdef __cplusplus
}
#endif

#endif

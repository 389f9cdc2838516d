/* SPDX-License-Identifier: MIT */
/*
 * scripts/hello.lua as a plain C program, to time a whole process with:
 *
 *   bench/hello [MEMORY_SIZE]     with a size: prints the peak resident KiB
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <linux/kvm.h>

#define LOAD_ADDRESS 0x1000

static const uint8_t code[] = {
	0xba, 0xf8, 0x03,	      /* mov $0x3f8, %dx */
	0x00, 0xd8,		      /* add %bl, %al */
	0x04, 0x30,		      /* add $'0', %al */
	0xee,			      /* out %al, (%dx) */
	0xec,			      /* in (%dx), %al */
	0xc6, 0x06, 0x00, 0x80, 0x00, /* movb $0, (0x8000) */
	0x8a, 0x16, 0x00, 0x80,	      /* movb (0x8000), %dl */
	0xf4,			      /* hlt */
};

static int check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(EXIT_FAILURE);
	}
	return result;
}

static void *map(size_t size, int flags, int fd)
{
	void *data = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	check(data == MAP_FAILED ? -1 : 0, "mmap");
	return data;
}

static void set_registers(int vcpu)
{
	struct kvm_regs regs = {
		.rip = LOAD_ADDRESS, .rax = 2, .rbx = 3, .rflags = 2
	};
	struct kvm_sregs sregs;

	check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

/* Whether the run goes on. */
static int handle_exit(struct kvm_run *run)
{
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	uint64_t address = run->mmio.phys_addr;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		if (run->io.direction == KVM_EXIT_IO_OUT) {
			printf("io_out      port 0x%x: \"%c\"\n", run->io.port,
			       *data);
		} else {
			printf("io_in       port 0x%x\n", run->io.port);
			*data = 0;
		}
		return 1;
	case KVM_EXIT_MMIO:
		if (run->mmio.is_write)
			printf("mmio_write  0x%llx: %u\n",
			       (unsigned long long)address, *run->mmio.data);
		else
			printf("mmio_read   0x%llx\n",
			       (unsigned long long)address);
		memset(run->mmio.data, 0, sizeof(run->mmio.data));
		return 1;
	case KVM_EXIT_HLT:
		puts("hlt");
		return 0;
	default:
		printf("exit %u\n", run->exit_reason);
		exit(EXIT_FAILURE);
	}
}

static void count_dirty_pages(int vm, size_t size)
{
	size_t words = (size / 4096 + 63) / 64, count = 0;
	uint64_t *bitmap = calloc(words, sizeof(*bitmap));
	struct kvm_dirty_log log = { .dirty_bitmap = bitmap };

	if (!bitmap)
		exit(EXIT_FAILURE);
	check(ioctl(vm, KVM_GET_DIRTY_LOG, &log), "KVM_GET_DIRTY_LOG");
	for (size_t i = 0; i < words; i++)
		count += (size_t)__builtin_popcountll(bitmap[i]);
	printf("%zu dirty pages\n", count);
	free(bitmap);
}

/* As the kernel tells it: the line "VmHWM:     1234 kB". */
static void print_peak(void)
{
	char line[256];
	FILE *file = fopen("/proc/self/status", "r");

	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, "VmHWM:", 6))
			fputs(line, stdout);
	if (file)
		fclose(file);
}

int main(int argc, char **argv)
{
	struct kvm_userspace_memory_region slot = {
		.flags = KVM_MEM_LOG_DIRTY_PAGES,
		.guest_phys_addr = LOAD_ADDRESS,
		.memory_size = argc > 1 ? strtoull(argv[1], NULL, 0) : 0x4000,
	};
	int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	int vcpu, size;
	void *memory = map(slot.memory_size, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct kvm_run *run;

	slot.userspace_addr = (uintptr_t)memory;
	check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot), "memory");
	memcpy(memory, code, sizeof(code));
	vcpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "run page");
	run = map((size_t)size, MAP_SHARED, vcpu);
	set_registers(vcpu);
	do
		check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
	while (handle_exit(run));
	count_dirty_pages(vm, slot.memory_size);
	if (argc > 1)
		print_peak();
	return EXIT_SUCCESS;
}

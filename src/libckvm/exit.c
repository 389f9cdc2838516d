/* SPDX-License-Identifier: MIT */
/*
 * Exits by name: the kernel's, in lower case without KVM_EXIT_. And where in
 * the run page the data of an access is.
 */
#include "internal.h"

static const char *const names[] = {
	[0] = "unknown",
	[1] = "exception",
	[2] = "io",
	[3] = "hypercall",
	[4] = "debug",
	[5] = "hlt",
	[6] = "mmio",
	[7] = "irq_window_open",
	[8] = "shutdown",
	[9] = "fail_entry",
	[10] = "intr",
	[11] = "set_tpr",
	[12] = "tpr_access",
	[13] = "s390_sieic",
	[14] = "s390_reset",
	[15] = "dcr",
	[16] = "nmi",
	[17] = "internal_error",
	[18] = "osi",
	[19] = "papr_hcall",
	[20] = "s390_ucontrol",
	[21] = "watchdog",
	[22] = "s390_tsch",
	[23] = "epr",
	[24] = "system_event",
	[25] = "s390_stsi",
	[26] = "ioapic_eoi",
	[27] = "hyperv",
	[28] = "arm_nisv",
	[29] = "x86_rdmsr",
	[30] = "x86_wrmsr",
	[31] = "dirty_ring_full",
	[32] = "ap_reset_hold",
	[33] = "x86_bus_lock",
	[34] = "xen",
	[35] = "riscv_sbi",
	[36] = "riscv_csr",
	[37] = "notify",
	[38] = "loongarch_iocsr",
	[39] = "memory_fault",
	[40] = "tdx",
	[41] = "arm_sea",
	[42] = "arm_ldst64b",
	[43] = "snp_req_certs",
};

static const char *const accesses[] = { "io_in", "io_out", "mmio_read",
					"mmio_write" };

const char *ckvm_exit_name(uint32_t number)
{
	if (number >= CKVM_EXIT_IO_IN &&
	    number - CKVM_EXIT_IO_IN < ARRAY_SIZE(accesses))
		return accesses[number - CKVM_EXIT_IO_IN];
	return number < ARRAY_SIZE(names) ? names[number] : NULL;
}

/* io and mmio are not among the names that one may ask for: see the header. */
int ckvm_exit_number(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(accesses); i++)
		if (!strcmp(accesses[i], name))
			return CKVM_EXIT_IO_IN + (int)i;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (i != KVM_EXIT_IO && i != KVM_EXIT_MMIO &&
		    !strcmp(names[i], name))
			return (int)i;
	return ckvm__fail("exit", -ENOENT);
}

/* The same layout, with another name. */
_Static_assert(offsetof(struct ckvm_exit_iocsr, is_write) ==
		       offsetof(struct kvm_run, mmio.is_write) -
			       CKVM_EXIT_PAYLOAD,
	       "iocsr_io is laid out as mmio is");

/*
 * Behind the structure, which is what tells of it. Whatever the size, the loop
 * touches eight bytes at once, also of the last.
 */
static bool io_fits(const struct kvm_run *run, uint64_t page_size)
{
	uint64_t offset = run->io.data_offset, size = run->io.size;

	return (size == 1 || size == 2 || size == 4) &&
	       run->io.direction <= KVM_EXIT_IO_OUT && offset >= sizeof(*run) &&
	       offset <= page_size - 8 &&
	       size * run->io.count <= page_size - 8 - offset;
}

static bool mmio_fits(const struct kvm_run *run)
{
	return run->mmio.len >= 1 && run->mmio.len <= 8 &&
	       run->mmio.is_write <= 1;
}

bool ckvm__exit_fits(const struct ckvm_vcpu *vcpu)
{
	const struct kvm_run *run = vcpu->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		return io_fits(run, (uint64_t)vcpu->kvm->run_size);
	case KVM_EXIT_MMIO:
	case KVM_EXIT_LOONGARCH_IOCSR:
		return mmio_fits(run);
	default: /* numbers of ours are no kernel's */
		return run->exit_reason < CKVM_EXIT_IO_IN;
	}
}

void *ckvm_vcpu_exit_data(struct ckvm_vcpu *vcpu, uint32_t *size,
			  uint32_t *count)
{
	struct kvm_run *run = ckvm_vcpu_exit(vcpu);

	if (!run || !ckvm__exit_fits(vcpu))
		return NULL;
	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		*size = run->io.size;
		*count = run->io.count;
		return (uint8_t *)run + run->io.data_offset;
	case KVM_EXIT_MMIO:
	case KVM_EXIT_LOONGARCH_IOCSR:
		*size = run->mmio.len;
		*count = 1;
		return run->mmio.data;
	default:
		return NULL;
	}
}

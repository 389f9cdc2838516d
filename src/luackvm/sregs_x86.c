/* SPDX-License-Identifier: MIT */
/* Why KVM_SET_SREGS and KVM_SET_SREGS2 refuse what they are given. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "compat.h"
#include "luackvm.h"

enum {
	CR0_PE = 1 << 0,
	CR0_NW = 1 << 29,
	CR0_CD = 1 << 30,
	CR4_PAE = 1 << 5,
	EFER_LME = 1 << 8,
	EFER_LMA = 1 << 10,
};
#define CR0_PG (UINT64_C(1) << 31)

/*
 * The kernel's rules (kvm_is_valid_sregs), in an order that names the mistake
 * that others follow from. What the CPU or the vCPU's CPUID has not got is
 * refused, too: which bits these are, the kernel does not tell.
 */
static const char *find_fault(const struct kvm_sregs *sregs)
{
	bool paging = sregs->cr0 & CR0_PG, lma = sregs->efer & EFER_LMA;
	bool is_long = paging && sregs->efer & EFER_LME;

	if (paging && !(sregs->cr0 & CR0_PE))
		return "cr0.PG (bit 31) needs cr0.PE (bit 0)";
	if (sregs->cr0 & CR0_NW && !(sregs->cr0 & CR0_CD))
		return "cr0.NW (bit 29) needs cr0.CD (bit 30)";
	if (sregs->cr0 >> 32)
		return "cr0 has 32 bits";
	if (is_long && !(sregs->cr4 & CR4_PAE))
		return "cr0.PG with efer.LME needs cr4.PAE (bit 5)";
	if (is_long && !lma)
		return "cr0.PG with efer.LME (bit 8) needs efer.LMA (bit 10)";
	if (lma && !is_long)
		return "efer.LMA (bit 10) needs efer.LME (bit 8) and cr0.PG "
		       "(bit 31)";
	if (sregs->cs.l && !is_long)
		return "cs.l needs long mode: efer.LME (bit 8), efer.LMA (bit "
		       "10) and cr0.PG (bit 31)";
	return "a bit is set that this vCPU does not have";
}

static void write_fault(const struct kvm_sregs *sregs, const char *fault,
			char *text, size_t size)
{
	snprintf(text, size,
		 "%s: cr0 0x%" PRIx64 ", cr3 0x%" PRIx64 ", cr4 0x%" PRIx64
		 ", efer 0x%" PRIx64 ", apic_base 0x%" PRIx64,
		 fault, (uint64_t)sregs->cr0, (uint64_t)sregs->cr3,
		 (uint64_t)sregs->cr4, (uint64_t)sregs->efer,
		 (uint64_t)sregs->apic_base);
}

void luackvm_explain_sregs(const void *data, char *text, size_t size)
{
	write_fault(data, find_fault(data), text, size);
}

void luackvm_explain_sregs2(const void *data, char *text, size_t size)
{
	const struct kvm_sregs2 *sregs2 = data;
	bool pae = sregs2->cr0 & CR0_PG && sregs2->cr4 & CR4_PAE &&
		   !(sregs2->efer & EFER_LMA);
	struct kvm_sregs sregs = { 0 };
	const char *fault;

	/* The members up to there are the same. */
	memcpy(&sregs, data, offsetof(struct kvm_sregs, interrupt_bitmap));
	if (sregs2->flags & ~(uint64_t)KVM_SREGS2_FLAGS_PDPTRS_VALID)
		fault = "flags has the bit for pdptrs alone (bit 0)";
	else if (sregs2->flags && !pae)
		fault = "pdptrs need PAE paging: cr0.PG (bit 31), cr4.PAE (bit "
			"5), and no efer.LMA (bit 10)";
	else
		fault = find_fault(&sregs);
	write_fault(&sregs, fault, text, size);
}

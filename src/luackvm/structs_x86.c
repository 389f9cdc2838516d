/* SPDX-License-Identifier: MIT */
/* The kernel's structs on x86, one line a field (asm/kvm.h). */
#include <stddef.h>

#include "compat.h"
#include "luackvm.h"

/***
 * The general registers.
 *
 * @struct kvm_regs
 * @tfield integer rax,rbx,rcx,rdx,rsi,rdi,rsp,rbp,r8,r9,r10,r11,r12,r13,r14,r15
 *  64-bit value
 * @tfield integer rip address of the next instruction
 * @tfield integer rflags bits of RFLAGS; bit 1 is always set
 */
#define F(member) LUACKVM_SCALAR(struct kvm_regs, member)
static const struct luackvm_field regs_fields[] = {
	F(rax), F(rbx), F(rcx), F(rdx),	   F(rsi),	F(rdi), F(rsp),
	F(rbp), F(r8),	F(r9),	F(r10),	   F(r11),	F(r12), F(r13),
	F(r14), F(r15), F(rip), F(rflags), LUACKVM_END,
};
#undef F
const struct luackvm_struct luackvm_kvm_regs = { "kvm_regs",
						 sizeof(struct kvm_regs),
						 regs_fields, 0 };

/***
 * A segment register, with what the CPU has loaded from the descriptor.
 *
 * @struct kvm_segment
 * @tfield integer base address of its first byte
 * @tfield integer limit offset of its last byte
 * @tfield integer selector value of the register
 * @tfield integer type number of the descriptor's type, 0 to 15
 * @tfield integer present,db,s,l,g,avl,unusable 0 or 1
 * @tfield integer dpl number of the ring, 0 to 3
 */
#define F(member) LUACKVM_SCALAR(struct kvm_segment, member)
static const struct luackvm_field segment_fields[] = {
	F(base), F(limit),    F(selector), F(type), F(present),
	F(dpl),	 F(db),	      F(s),	   F(l),    F(g),
	F(avl),	 F(unusable), LUACKVM_END,
};
#undef F
static const struct luackvm_struct segment = { "kvm_segment",
					       sizeof(struct kvm_segment),
					       segment_fields, 0 };

/***
 * Where a descriptor table is.
 *
 * @struct kvm_dtable
 * @tfield integer base address
 * @tfield integer limit offset of its last byte
 */
#define F(member) LUACKVM_SCALAR(struct kvm_dtable, member)
static const struct luackvm_field dtable_fields[] = { F(base), F(limit),
						      LUACKVM_END };
#undef F
static const struct luackvm_struct dtable = { "kvm_dtable",
					      sizeof(struct kvm_dtable),
					      dtable_fields, 0 };

/***
 * Segments, descriptor tables and control registers.
 *
 * @struct kvm_sregs
 * @tfield kvm_segment cs,ds,es,fs,gs,ss,tr,ldt segment registers
 * @tfield kvm_dtable gdt,idt descriptor tables
 * @tfield integer cr0,cr4,efer bits: see `ckvm.x86`
 * @tfield integer cr2 address of the last page fault
 * @tfield integer cr3 address of the page tables, and bits
 * @tfield integer cr8 value of the task priority, 0 to 15
 * @tfield integer apic_base address of the local APIC, and bits
 * @tfield integer[] interrupt_bitmap bits: one for the interrupt that waits; of
 *  a live view a fresh table at each read, to be assigned
 */
#define F(member) LUACKVM_SCALAR(struct kvm_sregs, member)
#define B(member, n) LUACKVM_BITS(struct kvm_sregs, member, n)
#define S(member, def) LUACKVM_PART(struct kvm_sregs, member, def)
static const struct luackvm_field sregs_fields[] = {
	S(cs, segment), S(ds, segment),
	S(es, segment), S(fs, segment),
	S(gs, segment), S(ss, segment),
	S(tr, segment), S(ldt, segment),
	S(gdt, dtable), S(idt, dtable),
	F(cr0),		F(cr2),
	F(cr3),		F(cr4),
	B(cr8, 4),	F(efer),
	F(apic_base),	LUACKVM_ARRAY(struct kvm_sregs, interrupt_bitmap),
	LUACKVM_END,
};
#undef F
#undef B
#undef S
const struct luackvm_struct luackvm_kvm_sregs = { "kvm_sregs",
						  sizeof(struct kvm_sregs),
						  sregs_fields, 0 };

/***
 * The same, with the page directory pointers of PAE.
 *
 * @struct kvm_sregs2
 * @tfield kvm_segment cs,ds,es,fs,gs,ss,tr,ldt segment registers
 * @tfield kvm_dtable gdt,idt descriptor tables
 * @tfield integer cr0,cr4,efer bits: see `ckvm.x86`
 * @tfield integer cr2 address of the last page fault
 * @tfield integer cr3 address of the page tables, and bits
 * @tfield integer cr8 value of the task priority, 0 to 15
 * @tfield integer apic_base address of the local APIC, and bits
 * @tfield integer flags bits; 1: pdptrs count
 * @tfield integer[] pdptrs values of the four pointers; naming them sets the
 *  flag
 */
#define F(member) LUACKVM_SCALAR(struct kvm_sregs2, member)
#define B(member, n) LUACKVM_BITS(struct kvm_sregs2, member, n)
#define V(member)                                                   \
	{                                                           \
		.name = #member,                                    \
		.offset = offsetof(struct kvm_sregs2, member),      \
		.size = LUACKVM_SIZE(struct kvm_sregs2, member[0]), \
		.count = 4, .flag = KVM_SREGS2_FLAGS_PDPTRS_VALID   \
	}
#define S(member, def) LUACKVM_PART(struct kvm_sregs2, member, def)
static const struct luackvm_field sregs2_fields[] = {
	S(cs, segment), S(ds, segment), S(es, segment), S(fs, segment),
	S(gs, segment), S(ss, segment), S(tr, segment), S(ldt, segment),
	S(gdt, dtable), S(idt, dtable), F(cr0),		F(cr2),
	F(cr3),		F(cr4),		B(cr8, 4),	F(efer),
	F(apic_base),	F(flags),	V(pdptrs),	LUACKVM_END,
};
#undef F
#undef B
#undef V
#undef S
const struct luackvm_struct luackvm_kvm_sregs2 = {
	"kvm_sregs2", sizeof(struct kvm_sregs2), sregs2_fields,
	offsetof(struct kvm_sregs2, flags)
};

/***
 * The registers of x87 and SSE.
 *
 * @struct kvm_fpu
 * @tfield string[] fpr the eight registers, 16 bytes each
 * @tfield integer fcw,fsw bits of the control word, and of the status word
 * @tfield integer ftwx bits: which registers are in use
 * @tfield integer last_opcode value of the last instruction's opcode
 * @tfield integer last_ip,last_dp address of the last instruction, and of its
 *  operand
 * @tfield string[] xmm the sixteen registers, 16 bytes each
 * @tfield integer mxcsr bits of MXCSR
 */
#define F(member) LUACKVM_SCALAR(struct kvm_fpu, member)
static const struct luackvm_field fpu_fields[] = {
	LUACKVM_STRINGS(struct kvm_fpu, fpr),
	F(fcw),
	F(fsw),
	F(ftwx),
	F(last_opcode),
	F(last_ip),
	F(last_dp),
	LUACKVM_STRINGS(struct kvm_fpu, xmm),
	F(mxcsr),
	LUACKVM_END,
};
#undef F
const struct luackvm_struct luackvm_kvm_fpu = { "kvm_fpu",
						sizeof(struct kvm_fpu),
						fpu_fields, 0 };

/***
 * The guest's own debug registers.
 *
 * @struct kvm_debugregs
 * @tfield integer[] db address in each of DR0 to DR3, from 1 on
 * @tfield integer dr6,dr7 bits of DR6 and DR7
 * @tfield integer flags bits
 */
#define F(member) LUACKVM_SCALAR(struct kvm_debugregs, member)
static const struct luackvm_field debugregs_fields[] = {
	LUACKVM_ARRAY(struct kvm_debugregs, db),
	F(dr6),
	F(dr7),
	F(flags),
	LUACKVM_END,
};
#undef F
const struct luackvm_struct luackvm_kvm_debugregs = {
	"kvm_debugregs", sizeof(struct kvm_debugregs), debugregs_fields, 0
};

/* struct kvm_vcpu_events has anonymous parts: offsets from its start. */
#define EVENTS struct kvm_vcpu_events
#define PART(name, fields)                                    \
	static const struct luackvm_struct name = {           \
		#name, sizeof(((EVENTS *)0)->name), fields, 0 \
	}
#define F(part, member)                                                        \
	{                                                                      \
		.name = #member, .size = LUACKVM_SIZE(EVENTS, part.member),    \
		.offset =                                                      \
			offsetof(EVENTS, part.member) - offsetof(EVENTS, part) \
	}
#define V(part, member, bit)                                                \
	{                                                                   \
		.name = #member, .size = LUACKVM_SIZE(EVENTS, part.member), \
		.offset = offsetof(EVENTS, part.member) -                   \
			  offsetof(EVENTS, part),                           \
		.flag = (bit)                                               \
	}

/***
 * The exception in `kvm_vcpu_events`.
 *
 * @struct kvm_vcpu_events_exception
 * @tfield integer injected,has_error_code,pending 0 or 1
 * @tfield integer nr number of the vector
 * @tfield integer error_code bits that the CPU pushes
 */
static const struct luackvm_field exception_fields[] = {
	F(exception, injected),
	F(exception, nr),
	F(exception, has_error_code),
	V(exception, pending, KVM_VCPUEVENT_VALID_PAYLOAD),
	F(exception, error_code),
	LUACKVM_END,
};

/***
 * The interrupt in `kvm_vcpu_events`.
 *
 * @struct kvm_vcpu_events_interrupt
 * @tfield integer injected,soft 0 or 1
 * @tfield integer nr number of the vector
 * @tfield integer shadow bits: 1 after MOV SS, 2 after STI
 */
static const struct luackvm_field interrupt_fields[] = {
	F(interrupt, injected),
	F(interrupt, nr),
	F(interrupt, soft),
	V(interrupt, shadow, KVM_VCPUEVENT_VALID_SHADOW),
	LUACKVM_END,
};

/***
 * The NMI in `kvm_vcpu_events`.
 *
 * @struct kvm_vcpu_events_nmi
 * @tfield integer injected,pending,masked 0 or 1
 */
static const struct luackvm_field nmi_fields[] = {
	F(nmi, injected),
	V(nmi, pending, KVM_VCPUEVENT_VALID_NMI_PENDING),
	F(nmi, masked),
	LUACKVM_END,
};

/***
 * System management mode in `kvm_vcpu_events`.
 *
 * @struct kvm_vcpu_events_smi
 * @tfield integer smm,pending,smm_inside_nmi,latched_init 0 or 1
 */
static const struct luackvm_field smi_fields[] = {
	V(smi, smm, KVM_VCPUEVENT_VALID_SMM),
	V(smi, pending, KVM_VCPUEVENT_VALID_SMM),
	V(smi, smm_inside_nmi, KVM_VCPUEVENT_VALID_SMM),
	V(smi, latched_init, KVM_VCPUEVENT_VALID_SMM),
	LUACKVM_END,
};

/***
 * The triple fault in `kvm_vcpu_events`.
 *
 * @struct kvm_vcpu_events_triple_fault
 * @tfield integer pending 0 or 1
 */
static const struct luackvm_field triple_fault_fields[] = {
	{ .name = "pending",
	  .offset = 0,
	  .size = 1,
	  .flag = KVM_VCPUEVENT_VALID_TRIPLE_FAULT },
	LUACKVM_END,
};
PART(exception, exception_fields);
PART(interrupt, interrupt_fields);
PART(nmi, nmi_fields);
PART(smi, smi_fields);
static const struct luackvm_struct triple_fault = { "triple_fault", 1,
						    triple_fault_fields, 0 };
#undef F
#undef V
#define S(part)                                                    \
	{                                                          \
		.name = #part, .offset = offsetof(EVENTS, part),   \
		.size = LUACKVM_SIZE(EVENTS, part), .sub = &(part) \
	}
#define V(member, bit)                                               \
	{                                                            \
		.name = #member, .offset = offsetof(EVENTS, member), \
		.size = LUACKVM_SIZE(EVENTS, member), .flag = (bit)  \
	}

/***
 * Events that are pending or being delivered.
 *
 * @struct kvm_vcpu_events
 * @tfield kvm_vcpu_events_exception exception an exception
 * @tfield kvm_vcpu_events_interrupt interrupt an interrupt
 * @tfield kvm_vcpu_events_nmi nmi an NMI
 * @tfield kvm_vcpu_events_smi smi system management mode
 * @tfield kvm_vcpu_events_triple_fault triple_fault a triple fault
 * @tfield integer sipi_vector number of the vector to start at
 * @tfield integer flags bits: which of the guarded fields count
 * @tfield integer exception_has_payload 0 or 1
 * @tfield integer exception_payload bits of DR6 or the address for CR2
 */
static const struct luackvm_field events_fields[] = {
	S(exception),
	S(interrupt),
	S(nmi),
	V(sipi_vector, KVM_VCPUEVENT_VALID_SIPI_VECTOR),
	V(flags, 0),
	S(smi),
	{ .name = "triple_fault",
	  .offset = CKVM_EVENTS_TRIPLE_FAULT,
	  .size = 1,
	  .sub = &triple_fault },
	V(exception_has_payload, KVM_VCPUEVENT_VALID_PAYLOAD),
	V(exception_payload, KVM_VCPUEVENT_VALID_PAYLOAD),
	LUACKVM_END,
};
#undef S
#undef V
const struct luackvm_struct luackvm_kvm_vcpu_events = {
	"kvm_vcpu_events", sizeof(EVENTS), events_fields,
	offsetof(EVENTS, flags)
};

/* SPDX-License-Identifier: MIT */
/*
 * What each exit carries: the fields of its payload in struct kvm_run, by the
 * kernel's names (api.rst, 5). Where the payload is a union, each part of it
 * has a list of its own, and the number that selects it.
 */
#include <stddef.h>
#include <string.h>

#include "compat.h"
#include "payload.h"

#define RUN struct kvm_run
#define AT(label, type, skip, path, element, n, bits)                   \
	{                                                               \
		.name = label, .offset = (skip) + offsetof(type, path), \
		.size = LUACKVM_SIZE(type, element), .count = (n),      \
		.flag = (bits)                                          \
	}

/* A field of a part of struct kvm_run; one that the kernel reads back. */
#define FIELD(part, member) AT(#member, RUN, 0, part.member, part.member, 0, 0)
#define ANSWER(part, member) \
	AT(#member, RUN, 0, part.member, part.member, 0, PAYLOAD_ANSWER)
#define BITS_ANSWER(label, member, n) /* fewer than its size has */ \
	{                                                           \
		.name = label, .offset = offsetof(RUN, member),     \
		.size = LUACKVM_SIZE(RUN, member), .bits = (n),     \
		.flag = PAYLOAD_ANSWER                              \
	}
#define ARRAY(part, member, n) \
	AT(#member, RUN, 0, part.member, part.member[0], n, 0)
#define ANSWERS(part, member, n) \
	AT(#member, RUN, 0, part.member, part.member[0], n, PAYLOAD_ANSWER)

/* The same of struct ckvm_exit_PART, in compat.h. */
#define LATER(part, member)                                             \
	AT(#member, struct ckvm_exit_##part, CKVM_EXIT_PAYLOAD, member, \
	   member, 0, 0)
#define LATER_ANSWER(part, member)                                      \
	AT(#member, struct ckvm_exit_##part, CKVM_EXIT_PAYLOAD, member, \
	   member, 0, PAYLOAD_ANSWER)
#define LATER_ARRAY(part, member, n, bits)                              \
	AT(#member, struct ckvm_exit_##part, CKVM_EXIT_PAYLOAD, member, \
	   member[0], n, bits)
#define TDX(part, member)                                                 \
	AT(#member, struct ckvm_exit_tdx, CKVM_EXIT_PAYLOAD, part.member, \
	   part.member, 0, 0)
#define TDX_ANSWER(part, member)                                          \
	AT(#member, struct ckvm_exit_tdx, CKVM_EXIT_PAYLOAD, part.member, \
	   part.member, 0, PAYLOAD_ANSWER)
#define END                  \
	{                    \
		.name = NULL \
	}

/* Every exit's. Payloads have flags, too: hence the other name. */
static const struct luackvm_field page[] = {
	AT("request_interrupt_window", RUN, 0, request_interrupt_window,
	   request_interrupt_window, 0, PAYLOAD_ANSWER),
	AT("ready_for_interrupt_injection", RUN, 0,
	   ready_for_interrupt_injection, ready_for_interrupt_injection, 0, 0),
	AT("if_flag", RUN, 0, if_flag, if_flag, 0, 0),
	AT("run_flags", RUN, 0, flags, flags, 0, 0),
	BITS_ANSWER("cr8", cr8, 4),
	AT("apic_base", RUN, 0, apic_base, apic_base, 0, 0),
	END,
};

static const struct luackvm_field unknown[] = {
	FIELD(hw, hardware_exit_reason),
	END,
};
static const struct luackvm_field exception[] = {
	FIELD(ex, exception),
	FIELD(ex, error_code),
	END,
};
static const struct luackvm_field io[] = {
	FIELD(io, port),
	FIELD(io, size),
	FIELD(io, count),
	END,
};
/* longmode is the low half of flags, which came with Linux 6.4. */
static const struct luackvm_field hypercall[] = {
	FIELD(hypercall, nr),
	ARRAY(hypercall, args, 6),
	ANSWER(hypercall, ret),
	FIELD(hypercall, longmode),
	{ .name = "flags",
	  .offset = offsetof(RUN, hypercall.longmode),
	  .size = 8 },
	END,
};
static const struct luackvm_field debug[] = {
	FIELD(debug.arch, exception),
	FIELD(debug.arch, pc),
	FIELD(debug.arch, dr6),
	FIELD(debug.arch, dr7),
	END,
};
static const struct luackvm_field mmio[] = {
	FIELD(mmio, phys_addr),
	FIELD(mmio, len),
	FIELD(mmio, is_write),
	END,
};
static const struct luackvm_field fail_entry[] = {
	FIELD(fail_entry, hardware_entry_failure_reason),
	FIELD(fail_entry, cpu),
	END,
};
static const struct luackvm_field tpr_access[] = {
	FIELD(tpr_access, rip),
	FIELD(tpr_access, is_write),
	END,
};
static const struct luackvm_field s390_sieic[] = {
	FIELD(s390_sieic, icptcode),
	FIELD(s390_sieic, ipa),
	FIELD(s390_sieic, ipb),
	END,
};
static const struct luackvm_field s390_reset[] = {
	AT("s390_reset_flags", RUN, 0, s390_reset_flags, s390_reset_flags, 0,
	   0),
	END,
};
static const struct luackvm_field dcr[] = {
	FIELD(dcr, dcrn),
	ANSWER(dcr, data),
	FIELD(dcr, is_write),
	END,
};
static const struct luackvm_field internal_error[] = {
	FIELD(internal, suberror),
	FIELD(internal, ndata),
	AT("data", RUN, 0, internal.data, internal.data[0], 16, PAYLOAD_NDATA),
	END,
};
static const struct luackvm_field emulation_failure[] = {
	AT("flags", RUN, 0, emulation_failure.flags, emulation_failure.flags, 0,
	   PAYLOAD_IF_NDATA),
	AT("insn_size", RUN, 0, emulation_failure.insn_size,
	   emulation_failure.insn_size, 0, PAYLOAD_INSN_SIZE),
	AT("insn_bytes", RUN, 0, emulation_failure.insn_bytes,
	   emulation_failure.insn_bytes, 0, PAYLOAD_INSN),
	END,
};
static const struct luackvm_field osi[] = { ANSWERS(osi, gprs, 32), END };
static const struct luackvm_field papr_hcall[] = {
	FIELD(papr_hcall, nr),
	ANSWER(papr_hcall, ret),
	ANSWERS(papr_hcall, args, 9),
	END,
};
static const struct luackvm_field s390_ucontrol[] = {
	FIELD(s390_ucontrol, trans_exc_code),
	FIELD(s390_ucontrol, pgm_code),
	END,
};
static const struct luackvm_field s390_tsch[] = {
	FIELD(s390_tsch, subchannel_id),
	FIELD(s390_tsch, subchannel_nr),
	FIELD(s390_tsch, io_int_parm),
	FIELD(s390_tsch, io_int_word),
	FIELD(s390_tsch, ipb),
	FIELD(s390_tsch, dequeued),
	END,
};
static const struct luackvm_field epr[] = { ANSWER(epr, epr), END };
/* flags is what data[0] was called before Linux 5.19. */
static const struct luackvm_field system_event[] = {
	LATER(system_event, type),
	LATER(system_event, ndata),
	AT("data", struct ckvm_exit_system_event, CKVM_EXIT_PAYLOAD, data,
	   data[0], 16, PAYLOAD_NDATA),
	AT("flags", struct ckvm_exit_system_event, CKVM_EXIT_PAYLOAD, data,
	   data[0], 0, 0),
	END,
};
static const struct luackvm_field s390_stsi[] = {
	FIELD(s390_stsi, addr), FIELD(s390_stsi, ar),	FIELD(s390_stsi, fc),
	FIELD(s390_stsi, sel1), FIELD(s390_stsi, sel2), END,
};
static const struct luackvm_field eoi[] = { FIELD(eoi, vector), END };
static const struct luackvm_field hyperv[] = { FIELD(hyperv, type), END };
static const struct luackvm_field hyperv_synic[] = {
	FIELD(hyperv.u.synic, msr),
	FIELD(hyperv.u.synic, control),
	FIELD(hyperv.u.synic, evt_page),
	FIELD(hyperv.u.synic, msg_page),
	END,
};
static const struct luackvm_field hyperv_hcall[] = {
	FIELD(hyperv.u.hcall, input),
	ANSWER(hyperv.u.hcall, result),
	ARRAY(hyperv.u.hcall, params, 2),
	END,
};
static const struct luackvm_field hyperv_syndbg[] = {
	FIELD(hyperv.u.syndbg, msr),
	FIELD(hyperv.u.syndbg, control),
	ANSWER(hyperv.u.syndbg, status),
	FIELD(hyperv.u.syndbg, send_page),
	FIELD(hyperv.u.syndbg, recv_page),
	FIELD(hyperv.u.syndbg, pending_page),
	END,
};
static const struct luackvm_field arm_nisv[] = {
	FIELD(arm_nisv, esr_iss),
	FIELD(arm_nisv, fault_ipa),
	END,
};
/* `reason` is the exit's name already: hence msr_reason. */
#define MSR_REASON AT("msr_reason", RUN, 0, msr.reason, msr.reason, 0, 0)
static const struct luackvm_field rdmsr[] = {
	ANSWER(msr, error), MSR_REASON, FIELD(msr, index),
	ANSWER(msr, data),  END,
};
static const struct luackvm_field wrmsr[] = {
	ANSWER(msr, error), MSR_REASON, FIELD(msr, index),
	FIELD(msr, data),   END,
};
static const struct luackvm_field xen[] = { FIELD(xen, type), END };
static const struct luackvm_field xen_hcall[] = {
	FIELD(xen.u.hcall, longmode),  FIELD(xen.u.hcall, cpl),
	FIELD(xen.u.hcall, input),     ANSWER(xen.u.hcall, result),
	ARRAY(xen.u.hcall, params, 6), END,
};
static const struct luackvm_field riscv_sbi[] = {
	LATER(riscv_sbi, extension_id),
	LATER(riscv_sbi, function_id),
	LATER_ARRAY(riscv_sbi, args, 6, 0),
	LATER_ARRAY(riscv_sbi, ret, 2, PAYLOAD_ANSWER),
	END,
};
static const struct luackvm_field riscv_csr[] = {
	LATER(riscv_csr, csr_num),
	LATER(riscv_csr, new_value),
	LATER(riscv_csr, write_mask),
	LATER_ANSWER(riscv_csr, ret_value),
	END,
};
static const struct luackvm_field notify[] = { LATER(notify, flags), END };
static const struct luackvm_field iocsr[] = {
	LATER(iocsr, phys_addr),
	LATER(iocsr, len),
	LATER(iocsr, is_write),
	END,
};
static const struct luackvm_field memory_fault[] = {
	LATER(memory_fault, flags),
	LATER(memory_fault, gpa),
	LATER(memory_fault, size),
	END,
};
static const struct luackvm_field tdx[] = {
	LATER(tdx, flags),
	LATER(tdx, nr),
	TDX_ANSWER(unknown, ret),
	AT("data", struct ckvm_exit_tdx, CKVM_EXIT_PAYLOAD, unknown.data,
	   unknown.data[0], 5, PAYLOAD_ANSWER),
	END,
};
static const struct luackvm_field tdx_get_quote[] = {
	TDX(get_quote, gpa),
	TDX(get_quote, size),
	END,
};
static const struct luackvm_field tdx_get_tdvmcall_info[] = {
	TDX(get_tdvmcall_info, leaf),	    TDX_ANSWER(get_tdvmcall_info, r11),
	TDX_ANSWER(get_tdvmcall_info, r12), TDX_ANSWER(get_tdvmcall_info, r13),
	TDX_ANSWER(get_tdvmcall_info, r14), END,
};
static const struct luackvm_field tdx_setup_event_notify[] = {
	TDX(setup_event_notify, vector),
	END,
};
static const struct luackvm_field arm_sea[] = {
	LATER(arm_sea, flags),
	LATER(arm_sea, esr),
	LATER(arm_sea, gva),
	LATER(arm_sea, gpa),
	END,
};
static const struct luackvm_field snp_req_certs[] = {
	LATER(snp_req_certs, gpa),
	LATER_ANSWER(snp_req_certs, npages),
	LATER_ANSWER(snp_req_certs, ret),
	END,
};

/* Those with a number are there only if `select` has it. */
#define ALWAYS 0, 0, 0
#define WHEN(type, skip, member, number) \
	(skip) + offsetof(type, member), LUACKVM_SIZE(type, member), number
#define WHEN_RUN(path, number) WHEN(RUN, 0, path, number)
#define WHEN_TDX(number) \
	WHEN(struct ckvm_exit_tdx, CKVM_EXIT_PAYLOAD, nr, number)

static const struct {
	uint32_t reason;
	const struct luackvm_field *fields;
	size_t select, size; /* where, of how many bytes; 0: none */
	uint64_t number;
} payloads[] = {
	{ KVM_EXIT_UNKNOWN, unknown, ALWAYS },
	{ KVM_EXIT_EXCEPTION, exception, ALWAYS },
	{ KVM_EXIT_IO, io, ALWAYS },
	{ KVM_EXIT_HYPERCALL, hypercall, ALWAYS },
	{ KVM_EXIT_DEBUG, debug, ALWAYS },
	{ KVM_EXIT_MMIO, mmio, ALWAYS },
	{ KVM_EXIT_FAIL_ENTRY, fail_entry, ALWAYS },
	{ KVM_EXIT_TPR_ACCESS, tpr_access, ALWAYS },
	{ KVM_EXIT_S390_SIEIC, s390_sieic, ALWAYS },
	{ KVM_EXIT_S390_RESET, s390_reset, ALWAYS },
	{ KVM_EXIT_DCR, dcr, ALWAYS },
	{ KVM_EXIT_INTERNAL_ERROR, internal_error, ALWAYS },
	{ KVM_EXIT_INTERNAL_ERROR, emulation_failure,
	  WHEN_RUN(internal.suberror, KVM_INTERNAL_ERROR_EMULATION) },
	{ KVM_EXIT_OSI, osi, ALWAYS },
	{ KVM_EXIT_PAPR_HCALL, papr_hcall, ALWAYS },
	{ KVM_EXIT_S390_UCONTROL, s390_ucontrol, ALWAYS },
	{ KVM_EXIT_S390_TSCH, s390_tsch, ALWAYS },
	{ KVM_EXIT_EPR, epr, ALWAYS },
	{ KVM_EXIT_SYSTEM_EVENT, system_event, ALWAYS },
	{ KVM_EXIT_S390_STSI, s390_stsi, ALWAYS },
	{ KVM_EXIT_IOAPIC_EOI, eoi, ALWAYS },
	{ KVM_EXIT_HYPERV, hyperv, ALWAYS },
	{ KVM_EXIT_HYPERV, hyperv_synic,
	  WHEN_RUN(hyperv.type, KVM_EXIT_HYPERV_SYNIC) },
	{ KVM_EXIT_HYPERV, hyperv_hcall,
	  WHEN_RUN(hyperv.type, KVM_EXIT_HYPERV_HCALL) },
	{ KVM_EXIT_HYPERV, hyperv_syndbg,
	  WHEN_RUN(hyperv.type, KVM_EXIT_HYPERV_SYNDBG) },
	{ KVM_EXIT_ARM_NISV, arm_nisv, ALWAYS },
	{ KVM_EXIT_X86_RDMSR, rdmsr, ALWAYS },
	{ KVM_EXIT_X86_WRMSR, wrmsr, ALWAYS },
	{ KVM_EXIT_XEN, xen, ALWAYS },
	{ KVM_EXIT_XEN, xen_hcall, WHEN_RUN(xen.type, KVM_EXIT_XEN_HCALL) },
	{ KVM_EXIT_RISCV_SBI, riscv_sbi, ALWAYS },
	{ KVM_EXIT_RISCV_CSR, riscv_csr, ALWAYS },
	{ KVM_EXIT_NOTIFY, notify, ALWAYS },
	{ KVM_EXIT_LOONGARCH_IOCSR, iocsr, ALWAYS },
	{ KVM_EXIT_MEMORY_FAULT, memory_fault, ALWAYS },
	{ KVM_EXIT_TDX, tdx, ALWAYS },
	{ KVM_EXIT_TDX, tdx_get_quote, WHEN_TDX(CKVM_TDX_GET_QUOTE) },
	{ KVM_EXIT_TDX, tdx_get_tdvmcall_info,
	  WHEN_TDX(CKVM_TDX_GET_TD_VM_CALL_INFO) },
	{ KVM_EXIT_TDX, tdx_setup_event_notify,
	  WHEN_TDX(CKVM_TDX_SETUP_EVENT_NOTIFY) },
	{ KVM_EXIT_ARM_SEA, arm_sea, ALWAYS },
	{ KVM_EXIT_ARM_LDST64B, arm_nisv, ALWAYS },
	{ KVM_EXIT_SNP_REQ_CERTS, snp_req_certs, ALWAYS },
};

static bool is_there(const struct kvm_run *run, size_t i)
{
	const uint8_t *select = (const uint8_t *)run + payloads[i].select;

	return payloads[i].reason == run->exit_reason &&
	       (!payloads[i].size ||
		luackvm_load(select, payloads[i].size) == payloads[i].number);
}

const struct luackvm_field *luackvm_payload(const struct kvm_run *run,
					    size_t *next)
{
	while (*next < ARRAY_SIZE(payloads))
		if (is_there(run, (*next)++))
			return payloads[*next - 1].fields;
	return (*next)++ == ARRAY_SIZE(payloads) ? page : NULL;
}

const struct luackvm_field *luackvm_find_payload(const struct kvm_run *run,
						 const char *name)
{
	const struct luackvm_field *field;
	size_t next = 0;

	while ((field = luackvm_payload(run, &next)))
		for (; field->name; field++)
			if (!strcmp(field->name, name))
				return field;
	return NULL;
}

/* Values ------------------------------------------------------------------ */

/* Flags and 16 bytes, the first of them the size: three words of ndata. */
static size_t insn_size(const struct kvm_run *run)
{
	size_t size = run->emulation_failure.insn_size;

	if (run->emulation_failure.ndata < 3 ||
	    !(run->emulation_failure.flags &
	      KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES))
		return 0;
	return size <= 15 ? size : 15;
}

/* ndata is the second word of each payload that has one. */
static uint32_t ndata(const struct kvm_run *run)
{
	return run->internal.ndata <= 16 ? run->internal.ndata : 16;
}

void luackvm_push_payload(lua_State *L, const struct kvm_run *run,
			  const struct luackvm_field *field)
{
	const char *at = (const char *)run + field->offset;
	struct luackvm_field part = *field;

	if (field->flag & PAYLOAD_INSN) {
		lua_pushlstring(L, at, insn_size(run));
	} else if (field->flag & PAYLOAD_INSN_SIZE) {
		lua_pushinteger(L, (lua_Integer)insn_size(run));
	} else if (field->flag & PAYLOAD_IF_NDATA && !ndata(run)) {
		lua_pushinteger(L, 0);
	} else if (field->flag & PAYLOAD_NDATA && !ndata(run)) {
		lua_newtable(L);
	} else {
		if (field->flag & PAYLOAD_NDATA)
			part.count = (uint8_t)ndata(run);
		luackvm_push_field(L, &part, at);
	}
}

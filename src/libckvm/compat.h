/* SPDX-License-Identifier: MIT */
/*
 * What kernel headers older than the running kernel lack, so that a binary
 * built on an old distribution uses a new kernel. Each entry names the release
 * that brought it, as far as 6.19. The oldest headers that it was tried with
 * are those of 5.15, of Ubuntu 22.04.
 */
#ifndef CKVM_COMPAT_H
#define CKVM_COMPAT_H

#include <stddef.h>

#include <linux/kvm.h>

/* Capabilities ------------------------------------------------------------ */

#ifndef KVM_CAP_COALESCED_PIO /* 4.20 */
#define KVM_CAP_COALESCED_PIO 162
#endif
#ifndef KVM_CAP_DIRTY_LOG_RING_ACQ_REL /* 6.1 */
#define KVM_CAP_DIRTY_LOG_RING_ACQ_REL 223
#endif
#ifndef KVM_CAP_S390_PROTECTED_ASYNC_DISABLE /* 6.2 */
#define KVM_CAP_S390_PROTECTED_ASYNC_DISABLE 224
#endif
#ifndef KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP /* 6.2 */
#define KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP 225
#endif
#ifndef KVM_CAP_PMU_EVENT_MASKED_EVENTS /* 6.3 */
#define KVM_CAP_PMU_EVENT_MASKED_EVENTS 226
#endif
#ifndef KVM_CAP_COUNTER_OFFSET /* 6.4 */
#define KVM_CAP_COUNTER_OFFSET 227
#endif
#ifndef KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE /* 6.5 */
#define KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE 228
#endif
#ifndef KVM_CAP_ARM_SUPPORTED_BLOCK_SIZES /* 6.5 */
#define KVM_CAP_ARM_SUPPORTED_BLOCK_SIZES 229
#endif
#ifndef KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES /* 6.7 */
#define KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES 230
#endif
#ifndef KVM_CAP_USER_MEMORY2 /* 6.8 */
#define KVM_CAP_USER_MEMORY2 231
#endif
#ifndef KVM_CAP_MEMORY_FAULT_INFO /* 6.8 */
#define KVM_CAP_MEMORY_FAULT_INFO 232
#endif
#ifndef KVM_CAP_MEMORY_ATTRIBUTES /* 6.8 */
#define KVM_CAP_MEMORY_ATTRIBUTES 233
#endif
#ifndef KVM_CAP_GUEST_MEMFD /* 6.8 */
#define KVM_CAP_GUEST_MEMFD 234
#endif
#ifndef KVM_CAP_VM_TYPES /* 6.8 */
#define KVM_CAP_VM_TYPES 235
#endif
#ifndef KVM_CAP_PRE_FAULT_MEMORY /* 6.11 */
#define KVM_CAP_PRE_FAULT_MEMORY 236
#endif
#ifndef KVM_CAP_X86_APIC_BUS_CYCLES_NS /* 6.11 */
#define KVM_CAP_X86_APIC_BUS_CYCLES_NS 237
#endif
#ifndef KVM_CAP_X86_GUEST_MODE /* 6.11 */
#define KVM_CAP_X86_GUEST_MODE 238
#endif
#ifndef KVM_CAP_ARM_WRITABLE_IMP_ID_REGS /* 6.15 */
#define KVM_CAP_ARM_WRITABLE_IMP_ID_REGS 239
#endif
#ifndef KVM_CAP_ARM_EL2 /* 6.16 */
#define KVM_CAP_ARM_EL2 240
#endif
#ifndef KVM_CAP_ARM_EL2_E2H0 /* 6.16 */
#define KVM_CAP_ARM_EL2_E2H0 241
#endif
#ifndef KVM_CAP_RISCV_MP_STATE_RESET /* 6.16 */
#define KVM_CAP_RISCV_MP_STATE_RESET 242
#endif
#ifndef KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED /* 6.17 */
#define KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED 243
#endif
#ifndef KVM_CAP_GUEST_MEMFD_FLAGS /* 6.18 */
#define KVM_CAP_GUEST_MEMFD_FLAGS 244
#endif
#ifndef KVM_CAP_ARM_SEA_TO_USER /* 6.19 */
#define KVM_CAP_ARM_SEA_TO_USER 245
#endif
#ifndef KVM_CAP_S390_USER_OPEREXEC /* later */
#define KVM_CAP_S390_USER_OPEREXEC 246
#endif
#ifndef KVM_CAP_S390_KEYOP
#define KVM_CAP_S390_KEYOP 247
#endif
#ifndef KVM_CAP_S390_VSIE_ESAMODE
#define KVM_CAP_S390_VSIE_ESAMODE 248
#endif
#ifndef KVM_CAP_S390_HPAGE_2G
#define KVM_CAP_S390_HPAGE_2G 249
#endif
#ifndef KVM_CAP_PPC_COMPAT_CAPS
#define KVM_CAP_PPC_COMPAT_CAPS 250
#endif
#ifndef KVM_CAP_ARM_PMU_V3_STRICT
#define KVM_CAP_ARM_PMU_V3_STRICT 251
#endif

/* Exits -------------------------------------------------------------------- */

#ifndef KVM_CAP_XSAVE2 /* 5.17 */
#define KVM_CAP_XSAVE2 208
#endif

#ifndef KVM_GET_XSAVE2 /* 5.17 */
#define KVM_GET_XSAVE2 _IOR(KVMIO, 0xcf, struct kvm_xsave)
#endif

#ifndef KVM_EXIT_RISCV_SBI /* 5.16 */
#define KVM_EXIT_RISCV_SBI 35
#endif
#ifndef KVM_EXIT_RISCV_CSR /* 6.0 */
#define KVM_EXIT_RISCV_CSR 36
#endif
#ifndef KVM_EXIT_NOTIFY /* 6.0 */
#define KVM_EXIT_NOTIFY 37
#endif
#ifndef KVM_EXIT_LOONGARCH_IOCSR /* 6.7 */
#define KVM_EXIT_LOONGARCH_IOCSR 38
#endif
#ifndef KVM_EXIT_MEMORY_FAULT /* 6.8 */
#define KVM_EXIT_MEMORY_FAULT 39
#endif
#ifndef KVM_EXIT_TDX /* 6.16 */
#define KVM_EXIT_TDX 40
#endif
#ifndef KVM_EXIT_ARM_SEA /* 6.19 */
#define KVM_EXIT_ARM_SEA 41
#endif
#ifndef KVM_EXIT_ARM_LDST64B /* later */
#define KVM_EXIT_ARM_LDST64B 42
#endif
#ifndef KVM_EXIT_SNP_REQ_CERTS
#define KVM_EXIT_SNP_REQ_CERTS 43
#endif

#ifndef KVM_SYSTEM_EVENT_TDX_FATAL /* 6.16 */
#define KVM_SYSTEM_EVENT_TDX_FATAL 7
#endif
#ifndef KVM_MEMORY_EXIT_FLAG_PRIVATE /* 6.8 */
#define KVM_MEMORY_EXIT_FLAG_PRIVATE (1ULL << 3)
#endif
#ifndef KVM_EXIT_HYPERCALL_LONG_MODE /* 6.4 */
#define KVM_EXIT_HYPERCALL_LONG_MODE (1ULL << 0)
#endif
#ifndef KVM_RUN_X86_GUEST_MODE /* 6.11 */
#define KVM_RUN_X86_GUEST_MODE (1 << 2)
#endif

/* KVM_EXIT_TDX's nr: the subfunctions of TDG.VP.VMCALL that it is about. */
#define CKVM_TDX_GET_TD_VM_CALL_INFO 0x10000
#define CKVM_TDX_GET_QUOTE 0x10002
#define CKVM_TDX_SETUP_EVENT_NOTIFY 0x10004

/* Memory ------------------------------------------------------------------- */

#ifndef KVM_GET_NR_MMU_PAGES /* gone from headers, and from the kernel */
#define KVM_GET_NR_MMU_PAGES _IO(KVMIO, 0x45)
#endif

#ifndef KVM_MEM_GUEST_MEMFD /* 6.8, as the four that follow */
#define KVM_MEM_GUEST_MEMFD (1UL << 2)
#endif
#ifndef KVM_SET_USER_MEMORY_REGION2
struct kvm_userspace_memory_region2 {
	__u32 slot;
	__u32 flags;
	__u64 guest_phys_addr;
	__u64 memory_size;
	__u64 userspace_addr;
	__u64 guest_memfd_offset;
	__u32 guest_memfd;
	__u32 pad1;
	__u64 pad2[14];
};
#define KVM_SET_USER_MEMORY_REGION2 \
	_IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#endif
#ifndef KVM_SET_MEMORY_ATTRIBUTES
struct kvm_memory_attributes {
	__u64 address;
	__u64 size;
	__u64 attributes;
	__u64 flags;
};
#define KVM_SET_MEMORY_ATTRIBUTES \
	_IOW(KVMIO, 0xd2, struct kvm_memory_attributes)
#endif
#ifndef KVM_MEMORY_ATTRIBUTE_PRIVATE
#define KVM_MEMORY_ATTRIBUTE_PRIVATE (1ULL << 3)
#endif
#ifndef KVM_CREATE_GUEST_MEMFD
struct kvm_create_guest_memfd {
	__u64 size;
	__u64 flags;
	__u64 reserved[6];
};
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#endif
#ifndef GUEST_MEMFD_FLAG_MMAP /* 6.18 */
#define GUEST_MEMFD_FLAG_MMAP (1ULL << 0)
#define GUEST_MEMFD_FLAG_INIT_SHARED (1ULL << 1)
#endif
#ifndef KVM_PRE_FAULT_MEMORY /* 6.11 */
struct kvm_pre_fault_memory {
	__u64 gpa;
	__u64 size;
	__u64 flags;
	__u64 padding[5];
};
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#endif

/* Interrupts, vCPUs -------------------------------------------------------- */

#ifndef KVM_IRQ_ROUTING_XEN_EVTCHN /* 5.17 */
#define KVM_IRQ_ROUTING_XEN_EVTCHN 5
struct kvm_irq_routing_xen_evtchn {
	__u32 port;
	__u32 vcpu;
	__u32 priority;
};
#endif
#ifndef KVM_MP_STATE_SUSPENDED /* 6.0 */
#define KVM_MP_STATE_SUSPENDED 10
#endif

/* x86 ---------------------------------------------------------------------- */

#ifndef KVM_CLOCK_REALTIME /* 5.16 */
#define KVM_CLOCK_REALTIME (1 << 2)
#endif
#ifndef KVM_VCPU_TSC_CTRL /* 5.16 */
#define KVM_VCPU_TSC_CTRL 0
#define KVM_VCPU_TSC_OFFSET 0
#endif
#ifndef KVM_X86_XCOMP_GUEST_SUPP /* 5.17 */
#define KVM_X86_XCOMP_GUEST_SUPP 0
#endif
#ifndef KVM_VCPUEVENT_VALID_TRIPLE_FAULT /* 6.1 */
#define KVM_VCPUEVENT_VALID_TRIPLE_FAULT 0x20
#endif

/* Types for KVM_CREATE_VM. */
#ifndef KVM_X86_DEFAULT_VM /* 6.8 */
#define KVM_X86_DEFAULT_VM 0
#define KVM_X86_SW_PROTECTED_VM 1
#endif
#ifndef KVM_X86_SEV_VM /* 6.10 */
#define KVM_X86_SEV_VM 2
#define KVM_X86_SEV_ES_VM 3
#endif
#ifndef KVM_X86_SNP_VM /* 6.11 */
#define KVM_X86_SNP_VM 4
#endif
#ifndef KVM_X86_TDX_VM /* 6.16 */
#define KVM_X86_TDX_VM 5
#endif

/* For KVM_CAP_X86_DISABLE_EXITS. */
#ifndef KVM_X86_DISABLE_EXITS_APERFMPERF /* 6.17 */
#define KVM_X86_DISABLE_EXITS_APERFMPERF (1 << 4)
#endif

/* For KVM_SET_PMU_EVENT_FILTER. */
#ifndef KVM_PMU_EVENT_FLAG_MASKED_EVENTS /* 6.3 */
#define KVM_PMU_EVENT_FLAG_MASKED_EVENTS (1u << 0)
#endif

/* For KVM_GET_ONE_REG: kind << 32 | number, with KVM_REG_X86 and the size. */
#ifndef KVM_X86_REG_TYPE_MSR /* 6.18 */
#define KVM_X86_REG_TYPE_MSR 2
#define KVM_X86_REG_TYPE_KVM 3
#define KVM_REG_GUEST_SSP 0
#endif

/* Attributes of /dev/kvm, beside group 0. */
#ifndef KVM_X86_GRP_SEV /* 6.10 */
#define KVM_X86_GRP_SEV 1
#define KVM_X86_SEV_VMSA_FEATURES 0
#endif

#ifndef KVM_XEN_HVM_EVTCHN_SEND /* 5.18 */
#define KVM_XEN_HVM_EVTCHN_SEND \
	_IOW(KVMIO, 0xd0, struct kvm_irq_routing_xen_evtchn)
#endif

/* Layouts ------------------------------------------------------------------ */

/* What KVM_GET_VCPU_EVENTS has behind smi since 6.1. */
#define CKVM_EVENTS_TRIPLE_FAULT                 \
	(offsetof(struct kvm_vcpu_events, smi) + \
	 sizeof(((struct kvm_vcpu_events *)0)->smi))

struct ckvm_clock_data { /* realtime, host_tsc: 5.16 */
	__u64 clock;
	__u32 flags;
	__u32 pad0;
	__u64 realtime;
	__u64 host_tsc;
	__u32 pad[4];
};

/* Payloads of struct kvm_run, all of which begin where `hw` does. */
#define CKVM_EXIT_PAYLOAD offsetof(struct kvm_run, hw)

struct ckvm_exit_system_event { /* ndata and data: 5.19 */
	__u32 type;
	__u32 ndata;
	__u64 data[16];
};

struct ckvm_exit_riscv_sbi { /* 5.16 */
	unsigned long extension_id;
	unsigned long function_id;
	unsigned long args[6];
	unsigned long ret[2];
};

struct ckvm_exit_riscv_csr { /* 6.0 */
	unsigned long csr_num;
	unsigned long new_value;
	unsigned long write_mask;
	unsigned long ret_value;
};

struct ckvm_exit_notify { /* 6.0 */
	__u32 flags;
};

struct ckvm_exit_memory_fault { /* 6.8 */
	__u64 flags;
	__u64 gpa;
	__u64 size;
};

struct ckvm_exit_iocsr { /* 6.7 */
	__u64 phys_addr;
	__u8 data[8];
	__u32 len;
	__u8 is_write;
};

struct ckvm_exit_tdx { /* 6.16 */
	__u64 flags;
	__u64 nr;
	union {
		struct {
			__u64 ret;
			__u64 data[5];
		} unknown;
		struct {
			__u64 ret;
			__u64 gpa;
			__u64 size;
		} get_quote;
		struct {
			__u64 ret;
			__u64 leaf;
			__u64 r11, r12, r13, r14;
		} get_tdvmcall_info;
		struct {
			__u64 ret;
			__u64 vector;
		} setup_event_notify;
	};
};

struct ckvm_exit_arm_sea { /* 6.19 */
	__u64 flags;
	__u64 esr;
	__u64 gva;
	__u64 gpa;
};

struct ckvm_exit_snp_req_certs { /* later */
	__u64 gpa;
	__u64 npages;
	__u64 ret;
};

#endif

/* SPDX-License-Identifier: MIT */
/*
 * What kernel headers older than the running kernel lack, so that a binary
 * built on an old distribution uses a new kernel. Each entry names the release
 * that brought it.
 */
#ifndef CKVM_COMPAT_H
#define CKVM_COMPAT_H

#include <linux/kvm.h>

#ifndef KVM_CAP_COALESCED_PIO /* 4.20 */
#define KVM_CAP_COALESCED_PIO 162
#endif

#ifndef KVM_EXIT_LOONGARCH_IOCSR /* 6.10 */
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

/* struct kvm_run's memory_fault, for headers that have the union without it. */
struct ckvm_memory_fault {
	__u64 flags;
	__u64 gpa;
	__u64 size;
};

#endif

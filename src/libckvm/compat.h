/* SPDX-License-Identifier: MIT */
/*
 * What kernel headers older than the running kernel lack, so that a binary
 * built on an old distribution uses a new kernel. Each entry names the release
 * that brought it.
 */
#ifndef CKVM_COMPAT_H
#define CKVM_COMPAT_H

#include <stddef.h>

#include <linux/kvm.h>

#ifndef KVM_CAP_COALESCED_PIO /* 4.20 */
#define KVM_CAP_COALESCED_PIO 162
#endif

#ifndef KVM_VCPUEVENT_VALID_TRIPLE_FAULT /* 6.1 */
#define KVM_VCPUEVENT_VALID_TRIPLE_FAULT 0x00000020
#endif

#ifndef KVM_EXIT_NOTIFY /* 6.0 */
#define KVM_EXIT_NOTIFY 37
#endif

#ifndef KVM_EXIT_MEMORY_FAULT /* 6.8 */
#define KVM_EXIT_MEMORY_FAULT 39
#endif

#ifndef KVM_EXIT_TDX /* 6.16 */
#define KVM_EXIT_TDX 40
#endif

/* What KVM_GET_VCPU_EVENTS has behind smi since 6.1. */
#define CKVM_EVENTS_TRIPLE_FAULT                 \
	(offsetof(struct kvm_vcpu_events, smi) + \
	 sizeof(((struct kvm_vcpu_events *)0)->smi))

/* Payloads of struct kvm_run, all of which begin where `hw` does. */
#define CKVM_EXIT_PAYLOAD offsetof(struct kvm_run, hw)

struct ckvm_exit_system_event { /* ndata and data: 5.19 */
	__u32 type;
	__u32 ndata;
	__u64 data[16];
};

struct ckvm_exit_notify { /* 6.0 */
	__u32 flags;
};

struct ckvm_exit_memory_fault { /* 6.8 */
	__u64 flags;
	__u64 gpa;
	__u64 size;
};

#endif

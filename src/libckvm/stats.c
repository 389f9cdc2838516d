/* SPDX-License-Identifier: MIT */
/* What a vCPU has done so far. */
#include "internal.h"

/* The loop counts ticks; how long one is, the time since ckvm_open tells. */
static uint64_t to_ns(const struct ckvm *kvm, uint64_t ticks)
{
	uint64_t ns = ckvm__now() - kvm->opened_ns;
	uint64_t span = ckvm__ticks() - kvm->opened_ticks;

	return span ? (uint64_t)((double)ticks * (double)ns / (double)span) : 0;
}

void ckvm_vcpu_stats(const struct ckvm_vcpu *vcpu, struct ckvm_stats *stats)
{
	struct ckvm_stats all = vcpu->stats;
	size_t size = stats->size < sizeof(all) ? stats->size : sizeof(all);

	all.size = stats->size;
	all.exits[KVM_EXIT_IO] = vcpu->accesses[0] + vcpu->accesses[1];
	all.exits[KVM_EXIT_MMIO] = vcpu->accesses[2] + vcpu->accesses[3];
	all.io_out = vcpu->accesses[1];
	all.mmio_write = vcpu->accesses[3];
	for (size_t i = 0; i < CKVM_STATS_EXITS; i++)
		all.total += all.exits[i];
	all.guest_ns = to_ns(vcpu->kvm,
			     vcpu->loop_ticks +
				     (vcpu->runner > 0 ? ckvm__ticks() : 0));
	all.handler_ns = to_ns(vcpu->kvm, vcpu->caller_ticks);
	memcpy(stats, &all, size);
}

/* SPDX-License-Identifier: MIT */
/*
 * Registers of x86: the three views, the calls that get and set them, and what
 * becomes of a write while an access is open.
 *
 * KVM finishes the instruction behind an I/O or MMIO exit in the next KVM_RUN.
 * If registers are set before that, its emulator drops the answer to a read,
 * and the new rip. So a write during a read, or one of rip or of the mode,
 * waits: KVM_RUN with immediate_exit finishes the instruction, and the bytes
 * that were written are then laid over the new state.
 */
#include "internal.h"

static const struct view {
	enum ckvm_view bit;
	size_t offset, size;
	unsigned long get, set;
} views[] = {
	{ CKVM_VIEW_REGS, offsetof(struct kvm_sync_regs, regs),
	  sizeof(struct kvm_regs), KVM_GET_REGS, KVM_SET_REGS },
	{ CKVM_VIEW_SREGS, offsetof(struct kvm_sync_regs, sregs),
	  sizeof(struct kvm_sregs), KVM_GET_SREGS, KVM_SET_SREGS },
	{ CKVM_VIEW_EVENTS, offsetof(struct kvm_sync_regs, events),
	  sizeof(struct kvm_vcpu_events), KVM_GET_VCPU_EVENTS,
	  KVM_SET_VCPU_EVENTS },
};

static const struct view *find_view(enum ckvm_view bit)
{
	return &views[bit == CKVM_VIEW_REGS    ? 0
		      : bit == CKVM_VIEW_SREGS ? 1
					       : 2];
}

static uint8_t *view_data(struct ckvm_vcpu *vcpu, const struct view *view)
{
	return (uint8_t *)&vcpu->run->s.regs + view->offset;
}

/* The written bytes ------------------------------------------------------- */

static bool write_pending(const struct ckvm_vcpu *vcpu)
{
	return vcpu->attend & ATTEND_WRITES;
}

/* The bits of word i that stand for [offset, offset + length). */
static inline uint64_t span(size_t i, size_t offset, size_t length)
{
	size_t first = i * 64, end = offset + length - first;

	return UINT64_MAX << (offset > first ? offset - first : 0) &
	       UINT64_MAX >> (end < 64 ? 64 - end : 0);
}

static inline size_t first_word(size_t offset)
{
	return offset / 64;
}

static inline size_t last_word(size_t offset, size_t length)
{
	return (offset + length - 1) / 64;
}

/* The offset is from the view's start. */
static void mark(struct ckvm_vcpu *vcpu, const struct view *view, size_t offset,
		 size_t length)
{
	size_t start = view->offset + offset, last = last_word(start, length);

	for (size_t i = first_word(start); i <= last; i++)
		vcpu->written[i] |= span(i, start, length);
	vcpu->written_views |= view->bit;
	if (!write_pending(vcpu))
		atomic_fetch_or(&vcpu->attend, ATTEND_WRITES);
}

static bool any_written(const struct ckvm_vcpu *vcpu, size_t offset,
			size_t length)
{
	size_t last = last_word(offset, length);

	for (size_t i = first_word(offset); i <= last; i++)
		if (vcpu->written[i] & span(i, offset, length))
			return true;
	return false;
}

static bool view_written(const struct ckvm_vcpu *vcpu, const struct view *view)
{
	return vcpu->written_views & view->bit;
}

/* Where the bit for a byte is set: eight bytes at a time, where all are. */
static void copy_written(const struct ckvm_vcpu *vcpu, struct kvm_sync_regs *to,
			 const struct kvm_sync_regs *from)
{
	for (size_t i = 0; i < SYNC_SIZE; i += 8) {
		uint8_t bits = (uint8_t)(vcpu->written[i / 64] >> i % 64);
		uint8_t *out = (uint8_t *)to + i;
		const uint8_t *in = (const uint8_t *)from + i;

		if (bits == 0xff)
			memcpy(out, in, 8);
		else
			for (; bits; bits >>= 1, in++, out++)
				if (bits & 1)
					*out = *in;
	}
}

/* One view's writes are no longer pending. */
static void forget(struct ckvm_vcpu *vcpu, const struct view *view)
{
	size_t last = last_word(view->offset, view->size);

	if (!view_written(vcpu, view))
		return;
	vcpu->written_views &= ~view->bit;
	if (!vcpu->written_views) {
		memset(vcpu->written, 0, sizeof(vcpu->written));
		atomic_fetch_and(&vcpu->attend, ~ATTEND_WRITES);
		return;
	}
	for (size_t i = first_word(view->offset); i <= last; i++)
		vcpu->written[i] &= ~span(i, view->offset, view->size);
}

/* Loading and sending ----------------------------------------------------- */

/*
 * A view in the shared page is made current by each KVM_RUN, without anything
 * to do here. One that is not shared must be loaded anew after it; so must any
 * after an ioctl that changes registers, until the next KVM_RUN.
 */
static int load(struct ckvm_vcpu *vcpu, const struct view *view)
{
	uint32_t shared = vcpu->kvm->sync & view->bit;
	int error;

	if (likely(!(vcpu->stale & view->bit)))
		return 0;
	error = ckvm__ioctl(vcpu->kvm, vcpu->fd, view->get,
			    view_data(vcpu, view));
	if (error)
		return error;
	vcpu->stale &= ~view->bit;
	/* Who looks once will look again: have it in the page from now on. */
	vcpu->run->kvm_valid_regs |= shared;
	if (!shared)
		atomic_fetch_or(&vcpu->attend, ATTEND_VIEWS);
	return 0;
}

static void empty(struct ckvm_vcpu *vcpu, const struct view *view)
{
	vcpu->stale |= view->bit;
	atomic_fetch_or(&vcpu->attend, ATTEND_VIEWS);
}

static int send(struct ckvm_vcpu *vcpu, const struct view *view)
{
	int error;

	do
		error = ckvm__ioctl(vcpu->kvm, vcpu->fd, view->set,
				    view_data(vcpu, view));
	while (error == -EINTR);
	forget(vcpu, view);
	empty(vcpu, view);
	return error;
}

/* What each view will be once KVM_RUN returns. */
static void expect_views(struct ckvm_vcpu *vcpu)
{
	atomic_fetch_and(&vcpu->attend, ~ATTEND_VIEWS);
	vcpu->stale = (uint8_t)~vcpu->run->kvm_valid_regs;
}

static bool must_wait(const struct ckvm_vcpu *vcpu)
{
	if (vcpu->finishing)
		return true;
	if (vcpu->open != OPEN_WRITE)
		return vcpu->open == OPEN_READ;
	return any_written(vcpu, offsetof(struct kvm_sync_regs, regs.rip), 8) ||
	       view_written(vcpu, find_view(CKVM_VIEW_SREGS));
}

/*
 * Without an in-kernel APIC, KVM_RUN takes cr8 from the run page, whatever
 * KVM_SET_SREGS has made it.
 */
static void hand_over_cr8(struct ckvm_vcpu *vcpu)
{
	if (any_written(vcpu, offsetof(struct kvm_sync_regs, sregs.cr8), 8))
		vcpu->run->cr8 = vcpu->run->s.regs.sregs.cr8;
}

/* To the kernel: with the next KVM_RUN, where the page is shared. */
static int hand_over(struct ckvm_vcpu *vcpu)
{
	int error = 0;

	hand_over_cr8(vcpu);
	for (size_t i = 0; i < ARRAY_SIZE(views) && !error; i++) {
		const struct view *view = &views[i];

		if (!view_written(vcpu, view))
			continue;
		if (vcpu->kvm->sync & view->bit) {
			vcpu->run->kvm_dirty_regs |= view->bit;
			forget(vcpu, view);
		} else {
			error = send(vcpu, view);
		}
	}
	return error;
}

int ckvm__send_registers(struct ckvm_vcpu *vcpu)
{
	int error = 0;

	if (!write_pending(vcpu)) {
		expect_views(vcpu);
		return 0;
	}
	if (must_wait(vcpu)) {
		copy_written(vcpu, &vcpu->held, &vcpu->run->s.regs);
		vcpu->finishing = true;
	} else {
		error = hand_over(vcpu);
	}
	expect_views(vcpu);
	return error;
}

int ckvm__merge_registers(struct ckvm_vcpu *vcpu)
{
	int error = 0;

	for (size_t i = 0; i < ARRAY_SIZE(views) && !error; i++)
		if (view_written(vcpu, &views[i]))
			error = load(vcpu, &views[i]);
	if (!error)
		copy_written(vcpu, &vcpu->run->s.regs, &vcpu->held);
	return error;
}

/* The kernel takes them in this order, and clears each bit that it took. */
int ckvm__refused(struct ckvm_vcpu *vcpu, int error)
{
	uint64_t dirty = vcpu->run->kvm_dirty_regs;

	vcpu->run->kvm_dirty_regs = 0;
	for (size_t i = 0; i < ARRAY_SIZE(views); i++)
		empty(vcpu, &views[i]);
	for (size_t i = 0; i < ARRAY_SIZE(views); i++)
		if (dirty & views[i].bit)
			return ckvm__ioctl_failed(views[i].set, error);
	return error;
}

int ckvm__flush_registers(struct ckvm_vcpu *vcpu)
{
	int error = 0;

	if (likely(!write_pending(vcpu)) || must_wait(vcpu))
		return 0;
	hand_over_cr8(vcpu);
	for (size_t i = 0; i < ARRAY_SIZE(views) && !error; i++)
		if (view_written(vcpu, &views[i]))
			error = send(vcpu, &views[i]);
	return error;
}

/* What is written and could not be sent stays: it is laid over the rest. */
void ckvm__empty_registers(struct ckvm_vcpu *vcpu)
{
	for (size_t i = 0; i < ARRAY_SIZE(views); i++)
		if (!view_written(vcpu, &views[i]))
			empty(vcpu, &views[i]);
}

static const struct {
	uint32_t index;
	size_t offset;
} sregs_msrs[] = {
	{ 0x1b, offsetof(struct kvm_sync_regs, sregs.apic_base) },
	{ 0xc0000080, offsetof(struct kvm_sync_regs, sregs.efer) },
	{ 0xc0000100, offsetof(struct kvm_sync_regs, sregs.fs.base) },
	{ 0xc0000101, offsetof(struct kvm_sync_regs, sregs.gs.base) },
};

void ckvm__msr_was_set(struct ckvm_vcpu *vcpu, uint32_t index, uint64_t value)
{
	for (size_t i = 0; i < ARRAY_SIZE(sregs_msrs); i++) {
		size_t at = sregs_msrs[i].offset;

		if (sregs_msrs[i].index != index || !any_written(vcpu, at, 8))
			continue;
		memcpy((uint8_t *)&vcpu->run->s.regs + at, &value, 8);
		memcpy((uint8_t *)&vcpu->held + at, &value, 8);
	}
}

/* The views --------------------------------------------------------------- */

int ckvm_vcpu_view(struct ckvm_vcpu *vcpu, enum ckvm_view bit,
		   const void **data)
{
	const struct view *view = find_view(bit);
	int error = ckvm__vcpu_check(vcpu);

	if (!error)
		error = load(vcpu, view);
	if (!error)
		*data = view_data(vcpu, view);
	return error;
}

int ckvm_vcpu_write_view(struct ckvm_vcpu *vcpu, enum ckvm_view bit,
			 size_t offset, const void *value, size_t length)
{
	const struct view *view = find_view(bit);
	int error = ckvm__vcpu_check(vcpu);

	if (offset > view->size || length > view->size - offset)
		return ckvm__fail("view", -EINVAL);
	if (!error)
		error = load(vcpu, view);
	if (error || !length)
		return error;
	memcpy(view_data(vcpu, view) + offset, value, length);
	mark(vcpu, view, offset, length);
	return 0;
}

/* Get and set ------------------------------------------------------------- */

static int get(struct ckvm_vcpu *vcpu, enum ckvm_view bit, void *out)
{
	const struct view *view = find_view(bit);
	int error = ckvm__vcpu_check(vcpu);

	/* What is written goes first, so that the kernel's word is returned. */
	if (!error && view_written(vcpu, view) && !must_wait(vcpu)) {
		hand_over_cr8(vcpu);
		error = send(vcpu, view);
	}
	if (!error)
		error = load(vcpu, view);
	if (!error)
		memcpy(out, view_data(vcpu, view), view->size);
	return error;
}

/* Only what differs, in words: a register, or part of a segment. */
static void write_differences(struct ckvm_vcpu *vcpu, const struct view *view,
			      const uint8_t *value)
{
	uint8_t *data = view_data(vcpu, view);

	for (size_t i = 0; i < view->size; i += 8) {
		if (!memcmp(data + i, value + i, 8))
			continue;
		memcpy(data + i, value + i, 8);
		mark(vcpu, view, i, 8);
	}
}

static int set(struct ckvm_vcpu *vcpu, enum ckvm_view bit, const void *value)
{
	const struct view *view = find_view(bit);
	int error = ckvm__vcpu_check(vcpu);

	if (error)
		return error;
	if (vcpu->open != OPEN_NONE || vcpu->finishing) {
		error = load(vcpu, view);
		if (!error)
			write_differences(vcpu, view, value);
		return error;
	}
	forget(vcpu, view);
	empty(vcpu, view);
	error = ckvm__ioctl(vcpu->kvm, vcpu->fd, view->set,
			    (void *)(uintptr_t)value);
	if (!error && bit == CKVM_VIEW_SREGS)
		vcpu->run->cr8 = ((const struct kvm_sregs *)value)->cr8;
	return error;
}

int ckvm_vcpu_get_regs(struct ckvm_vcpu *vcpu, struct kvm_regs *regs)
{
	return get(vcpu, CKVM_VIEW_REGS, regs);
}

int ckvm_vcpu_set_regs(struct ckvm_vcpu *vcpu, const struct kvm_regs *regs)
{
	return set(vcpu, CKVM_VIEW_REGS, regs);
}

int ckvm_vcpu_get_sregs(struct ckvm_vcpu *vcpu, struct kvm_sregs *sregs)
{
	return get(vcpu, CKVM_VIEW_SREGS, sregs);
}

int ckvm_vcpu_set_sregs(struct ckvm_vcpu *vcpu, const struct kvm_sregs *sregs)
{
	return set(vcpu, CKVM_VIEW_SREGS, sregs);
}

int ckvm_vcpu_get_vcpu_events(struct ckvm_vcpu *vcpu,
			      struct kvm_vcpu_events *events)
{
	return get(vcpu, CKVM_VIEW_EVENTS, events);
}

int ckvm_vcpu_set_vcpu_events(struct ckvm_vcpu *vcpu,
			      const struct kvm_vcpu_events *events)
{
	return set(vcpu, CKVM_VIEW_EVENTS, events);
}

/* SPDX-License-Identifier: MIT */
/* Field tables of the interrupt controllers, the PIT and the clock. */
#include <stddef.h>

#include <linux/kvm.h>

#include "compat.h"
#include "luackvm.h"

#define DEFINE(name_, type, fields, flags)                                \
	const struct luackvm_struct name_ = { #type, sizeof(struct type), \
					      fields, flags }

#define F(member) LUACKVM_SCALAR(struct kvm_pic_state, member)
static const struct luackvm_field pic[] = {
	F(last_irr),
	F(irr),
	F(imr),
	F(isr),
	F(priority_add),
	F(irq_base),
	F(read_reg_select),
	F(poll),
	F(special_mask),
	F(init_state),
	F(auto_eoi),
	F(rotate_on_auto_eoi),
	F(special_fully_nested_mode),
	F(init4),
	F(elcr),
	F(elcr_mask),
	LUACKVM_END,
};
#undef F
DEFINE(luackvm_kvm_pic_state, kvm_pic_state, pic, 0);

/* An entry of redirtbl is an integer: its `bits`. */
#define F(member) LUACKVM_SCALAR(struct kvm_ioapic_state, member)
static const struct luackvm_field ioapic[] = {
	F(base_address),
	F(ioregsel),
	F(id),
	F(irr),
	LUACKVM_ARRAY(struct kvm_ioapic_state, redirtbl),
	LUACKVM_END,
};
#undef F
DEFINE(luackvm_kvm_ioapic_state, kvm_ioapic_state, ioapic, 0);

#define F(member) LUACKVM_SCALAR(struct kvm_pit_channel_state, member)
static const struct luackvm_field channel[] = {
	F(count),
	F(latched_count),
	F(count_latched),
	F(status_latched),
	F(status),
	F(read_state),
	F(write_state),
	F(write_latch),
	F(rw_mode),
	F(mode),
	F(bcd),
	F(gate),
	F(count_load_time),
	LUACKVM_END,
};
#undef F
static DEFINE(channel_state, kvm_pit_channel_state, channel, 0);

static const struct luackvm_field pit[] = {
	LUACKVM_PARTS(struct kvm_pit_state, channels, channel_state),
	LUACKVM_END,
};
DEFINE(luackvm_kvm_pit_state, kvm_pit_state, pit, 0);

static const struct luackvm_field pit2[] = {
	LUACKVM_PARTS(struct kvm_pit_state2, channels, channel_state),
	LUACKVM_SCALAR(struct kvm_pit_state2, flags),
	LUACKVM_END,
};
DEFINE(luackvm_kvm_pit_state2, kvm_pit_state2, pit2, 0);

static const struct luackvm_field pit_config[] = {
	LUACKVM_SCALAR(struct kvm_pit_config, flags),
	LUACKVM_END,
};
DEFINE(luackvm_kvm_pit_config, kvm_pit_config, pit_config, 0);

static const struct luackvm_field reinject[] = {
	LUACKVM_SCALAR(struct kvm_reinject_control, pit_reinject),
	LUACKVM_END,
};
DEFINE(luackvm_kvm_reinject_control, kvm_reinject_control, reinject, 0);

/* Only realtime is looked at when the clock is set. */
#define F(member) LUACKVM_SCALAR(struct ckvm_clock_data, member)
static const struct luackvm_field clock_data[] = {
	F(clock),
	F(flags),
	{ .name = "realtime",
	  .offset = offsetof(struct ckvm_clock_data, realtime),
	  .size = LUACKVM_SIZE(struct ckvm_clock_data, realtime),
	  .flag = KVM_CLOCK_REALTIME },
	F(host_tsc),
	LUACKVM_END,
};
#undef F
DEFINE(luackvm_kvm_clock_data, kvm_clock_data, clock_data,
       offsetof(struct kvm_clock_data, flags));

/* SPDX-License-Identifier: MIT */
/* Field tables of the interrupt controllers, the PIT and the clock. */
#include <stddef.h>

#include <linux/kvm.h>

#include "compat.h"
#include "luackvm.h"

#define DEFINE(name_, type, fields, flags)                                \
	const struct luackvm_struct name_ = { #type, sizeof(struct type), \
					      fields, flags }

/***
 * The state of a PIC.
 *
 * @struct kvm_pic_state
 * @tfield string chip_id "pic_master" or "pic_slave"
 * @tfield integer last_irr,irr,imr,isr,elcr,elcr_mask bits, one for each line
 * @tfield integer priority_add,irq_base,read_reg_select,init_state value of a
 *  register inside
 * @tfield integer poll,special_mask,auto_eoi,rotate_on_auto_eoi 0 or 1
 * @tfield integer special_fully_nested_mode,init4 0 or 1
 */
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

/***
 * The state of the IOAPIC.
 *
 * @struct kvm_ioapic_state
 * @tfield string chip_id "ioapic"
 * @tfield integer base_address guest physical address
 * @tfield integer ioregsel,id number of the register selected, and its own
 * @tfield integer irr bits, one for each line
 * @tfield integer[] redirtbl bits of each entry, of 64 bits
 */

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

/***
 * One of the PIT's three counters.
 *
 * @struct kvm_pit_channel_state
 * @tfield integer count,latched_count value of the counter
 * @tfield integer count_latched,status_latched,bcd,gate 0 or 1
 * @tfield integer status,read_state,write_state,write_latch,rw_mode,mode value
 *  of a register inside
 * @tfield integer count_load_time number of nanoseconds of the host's clock
 */
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

/***
 * The state of the PIT, as of old.
 *
 * @struct kvm_pit_state
 * @tfield kvm_pit_channel_state[] channels three of them
 */
static const struct luackvm_field pit[] = {
	LUACKVM_PARTS(struct kvm_pit_state, channels, channel_state),
	LUACKVM_END,
};
DEFINE(luackvm_kvm_pit_state, kvm_pit_state, pit, 0);

/***
 * The state of the PIT.
 *
 * @struct kvm_pit_state2
 * @tfield kvm_pit_channel_state[] channels three of them
 * @tfield integer flags bits: 1, in HPET's legacy mode; 2, the speaker's data
 *  is on
 */
static const struct luackvm_field pit2[] = {
	LUACKVM_PARTS(struct kvm_pit_state2, channels, channel_state),
	LUACKVM_SCALAR(struct kvm_pit_state2, flags),
	LUACKVM_END,
};
DEFINE(luackvm_kvm_pit_state2, kvm_pit_state2, pit2, 0);

/***
 * What sort of PIT is created.
 *
 * @struct kvm_pit_config
 * @tfield integer flags bits: 1, with a port of the speaker's
 */
static const struct luackvm_field pit_config[] = {
	LUACKVM_SCALAR(struct kvm_pit_config, flags),
	LUACKVM_END,
};
DEFINE(luackvm_kvm_pit_config, kvm_pit_config, pit_config, 0);

/***
 * Whether interrupts that were missed are made up for.
 *
 * @struct kvm_reinject_control
 * @tfield integer pit_reinject 0 or 1
 */
static const struct luackvm_field reinject[] = {
	LUACKVM_SCALAR(struct kvm_reinject_control, pit_reinject),
	LUACKVM_END,
};
DEFINE(luackvm_kvm_reinject_control, kvm_reinject_control, reinject, 0);

/***
 * The guest's clock.
 *
 * @struct kvm_clock_data
 * @tfield integer clock number of nanoseconds
 * @tfield integer flags bits: which of the others count (2 realtime, 4
 *  host_tsc)
 * @tfield integer realtime number of nanoseconds since 1970, by the host's
 *  clock
 * @tfield integer host_tsc value of the host's TSC
 */

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

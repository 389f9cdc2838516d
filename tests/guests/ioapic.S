# An edge of an interrupt line, which the test device sets, through the IOAPIC and the local APIC.

	.include "start.S"

	.set	LINE, 5
	.set	VECTOR, 0x31
	.set	MASKED, 1 << 16
	.set	SELECT, 0xfec00000		# of the IOAPIC: a register's number
	.set	WINDOW, 0xfec00010		# and the register
	.set	SPURIOUS, 0xfee000f0		# of the local APIC
	.set	EOI, 0xfee000b0

	.macro	set_line level
	mov	$0x2000 + LINE, %edx
	mov	$\level, %al
	out	%al, (%dx)
	.endm

	.macro	redirect entry
	movl	$0x10 + 2 * LINE, SELECT
	movl	$\entry, WINDOW
	.endm

main:	mov	$0xff, %al			# or else both controllers deliver the line
	out	%al, $0x21
	out	%al, $0xa1
	movl	$0x1ff, SPURIOUS		# enabled
	movl	$0x11 + 2 * LINE, SELECT
	movl	$0, WINDOW			# to APIC 0
	redirect VECTOR
	provokes VECTOR, 0, "an edge", "set_line 1; sti; hlt"
	movl	$0, EOI
	provokes NOTHING, 0, "a line that stays high", "set_line 1; sti; nop; nop; cli"
	provokes NOTHING, 0, "a line that gets low", "set_line 0; sti; nop; nop; cli"
	provokes VECTOR, 0, "another edge", "set_line 1; sti; hlt"
	movl	$0, EOI
	set_line 0
	redirect VECTOR + MASKED
	provokes NOTHING, 0, "an edge that is masked", "set_line 1; sti; nop; nop; cli"
	ret

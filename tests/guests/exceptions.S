# Each exception, in ring 0 of protected mode, with its vector and error code. Where NATIVE is
# defined the CPU runs the code itself: KVM's emulator does not know the instructions of the rest, and
# software KVMs have no paging but that of long mode.

	.include "start.S"

	.set	NOT_PRESENT, 0x38
	.set	SHORT_TSS, 0x50
	.set	NOWHERE, 0xff8			# a selector beyond the GDT
	.set	UNMAPPED, 0x800000

main:	provokes 0, 0, "#DE", "xor %ecx, %ecx; div %ecx"
	provokes 1, 0, "#DB", "pushf; orl $0x100, (%esp); popf; nop"
	provokes 6, 0, "#UD", "ud2"
	provokes 7, 0, "#NM", "mov %cr0, %eax; or $8, %eax; mov %eax, %cr0; fninit"
	clts
	provokes 11, NOT_PRESENT, "#NP", "mov $NOT_PRESENT, %eax; mov %eax, %es"
	provokes 12, NOT_PRESENT, "#SS", "mov $NOT_PRESENT, %eax; mov %eax, %ss"
	provokes 13, NOWHERE, "#GP", "mov $NOWHERE, %eax; mov %eax, %es"
	andb	$0x7f, idt + 11 * 8 + 5		# #NP's gate is not present
	provokes 8, 0, "#DF", "mov $NOT_PRESENT, %eax; mov %eax, %es"
	orb	$0x80, idt + 11 * 8 + 5
	.ifdef	NATIVE
	call	native
	call	page_faults
	.endif
	provokes 2, 0, "NMI", "movl $0x44400, 0xfee00300; hlt"
	ret

# With 4 MiB pages: the first 8 MiB are mapped, of which the second half is read-only.
page_faults:
	movl	$0x83, directory
	movl	$0x400083, directory + 4
	mov	$directory, %eax
	mov	%eax, %cr3
	mov	%cr4, %eax
	or	$0x10, %eax
	mov	%eax, %cr4
	mov	%cr0, %eax
	or	$0x80010000, %eax
	mov	%eax, %cr0
	provokes 14, 0, "#PF at a read", "mov UNMAPPED, %eax"
	mov	%cr2, %eax
	mov	$wrong_cr2, %esi
	cmp	$UNMAPPED, %eax
	jne	fail
	provokes 14, 2, "#PF at a write", "mov %eax, UNMAPPED"
	andb	$~2, directory
	mov	$directory, %eax
	mov	%eax, %cr3
	provokes 14, 3, "#PF at a write to a page", "mov %eax, 0x1000"
	mov	%cr0, %eax
	and	$0x7fffffff, %eax
	mov	%eax, %cr0
	ret

	.ifdef	NATIVE
native:	provokes 3, 0, "#BP", "int3"
	provokes 48, 0, "INT", "int $48"
	provokes 4, 0, "#OF", "mov $0x7f, %al; inc %al; into"
	provokes 5, 0, "#BR", "mov $5, %eax; bound %eax, bounds"
	provokes 10, SHORT_TSS, "#TS", "ljmp $SHORT_TSS, $0"
	mov	%cr0, %eax
	or	$0x22, %eax			# NE and MP
	mov	%eax, %cr0
	provokes 16, 0, "#MF", "fninit; fldcw unmasked; fld1; fldz; fdivrp; fwait"
	fninit
	ret
	.endif

	.section .rodata
	.balign	4
bounds:	.long	0, 4
unmasked: .word	0x37b
wrong_cr2: .asciz "#PF: CR2 is not the address"

	.bss
	.balign	0x1000
directory: .skip 0x1000

# Two CPUs: the first one starts the second by INIT and SIPI, they interrupt each other, and the second
# one ends the guest. Only one at a time has set where it goes on after an interrupt.

	.include "start.S"

	.set	TRAMPOLINE, 0x8000
	.set	SPURIOUS, 0xfee000f0		# of the local APIC
	.set	EOI, 0xfee000b0
	.set	COMMAND, 0xfee00300		# and at 0x10 more, whom it is for
	.set	INIT, 0x4500
	.set	STARTUP, 0x4600
	.set	TO_FIRST, 0x32			# vectors
	.set	TO_SECOND, 0x33

# Waits until the other CPU has got there. There is no end to it but the host's deadline.
	.macro	await value
await\@: pause
	cmpl	$\value, stage
	jb	await\@
	.endm

	.macro	send command
	movl	$\command, COMMAND
	.endm

main:	mov	$second, %esi
	mov	$TRAMPOLINE, %edi
	mov	$second_end - second, %ecx
	rep	movsb
	xor	%edi, %edi
	call	check_id
	movl	$0x1ff, SPURIOUS		# enabled
	movl	$1 << 24, COMMAND + 0x10
	send	INIT
	send	STARTUP + TRAMPOLINE / 0x1000
	await	1
	send	TO_SECOND
	await	2
	provokes TO_FIRST, 0, "IPI to the first CPU", "movl $3, stage; sti; hlt"
	movl	$0, EOI
	movl	$4, stage
	jmp	halt

# Fails unless the CPU knows itself by the number %edi.
check_id:
	mov	$1, %eax
	cpuid
	shr	$24, %ebx
	mov	$wrong_id, %esi
	cmp	%edi, %ebx
	jne	fail
	xor	%eax, %eax
	cpuid
	cmp	$0xb, %eax
	jb	known
	mov	$0xb, %eax
	xor	%ecx, %ecx
	cpuid
	cmp	%edi, %edx
	jne	fail
known:	ret

# Where the second CPU begins, in real mode.
	.code16
second:	cli
	xor	%ax, %ax
	mov	%ax, %ds
	lgdtl	TRAMPOLINE + (descriptors - second)
	mov	%cr0, %eax
	or	$1, %al
	mov	%eax, %cr0
	ljmpl	$8, $protected
	.balign	4
descriptors:
	.word	gdt_end - gdt - 1
	.long	gdt
second_end:

	.code32
protected:
	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$second_stack, %esp
	lidt	idt_pointer
	mov	$1, %edi
	call	check_id
	movl	$0x1ff, SPURIOUS
	provokes TO_SECOND, 0, "IPI to the second CPU", "movl $1, stage; sti; hlt"
	movl	$0, EOI
	movl	$0, COMMAND + 0x10
	movl	$2, stage
	await	3
	send	TO_FIRST
	await	4
	jmp	pass
halt:	hlt
	jmp	halt

	.section .rodata
wrong_id: .asciz "the CPU has another number"

	.bss
	.balign	16
stage:	.skip	4
	.skip	0x1000
second_stack:

# Resets that the guest prepares, as for a BIOS: CMOS memory says that it goes on at the address that
# is at 0x467, in real mode. By the keyboard controller, port 0xcf9 and port 0x92.

	.include "start.S"

	.set	VECTOR, 0x467

main:	movl	$again, VECTOR			# segment 0
	mov	$0x0f, %al
	out	%al, $0x70
	mov	$0x0a, %al
	out	%al, $0x71
	mov	$0xfe, %al
	out	%al, $0x64
wait:	hlt
	jmp	wait

	.code16
again:	mov	%cr0, %eax
	test	$1, %al
	jnz	wait16
	xor	%ax, %ax
	mov	%ax, %ds
	incw	resets
	cmpw	$2, resets
	jb	by_cf9
	je	by_92
	xor	%eax, %eax
	out	%eax, $EXIT
by_cf9:	mov	$0xcf9, %dx
	mov	$6, %al
	out	%al, (%dx)
	jmp	wait16
by_92:	mov	$1, %al
	out	%al, $0x92
wait16:	hlt
	jmp	wait16

	.bss
resets:	.skip	2

# What the guests here begin with, by the contract of KVM's own test guests: an image of Multiboot
# that starts in 32-bit protected mode, prints to the UART at 0x3f8, and ends by port 0xf4. `main` is
# each guest's own; it passes when it returns. All exceptions and interrupts come to one place, which
# notes them and goes on where `provokes` has said: no IRET, which not every KVM has. One that nobody
# waits for ends the guest with 127.

	.globl	_start

	.set	SERIAL, 0x3f8
	.set	EXIT, 0xf4
	.set	UNHANDLED, 63			# (63 << 1) | 1 is 127
	.set	VECTORS, 128
	.set	NOTHING, -1			# the vector of what did not come

# The code has to bring that vector, with that error code, or NOTHING.
	.macro	provokes vector, error, name, code
	movl	$resume\@, resume_ip
	mov	%esp, resume_sp
	movl	$NOTHING, caught
	movl	$0, caught + 4
	\code
resume\@:
	mov	$\vector, %eax
	mov	$\error, %edx
	mov	$name\@, %ebx
	call	check_caught
	.section .rodata
name\@:	.asciz	"\name"
	.text
	.endm

	.text
	.code32
	.balign	4
	.long	0x1badb002, 0, -0x1badb002	# the header of Multiboot

_start:	mov	%ebx, boot_info
	mov	$stack_top, %esp
	cmp	$0x2badb002, %eax
	mov	$wrong_eax, %esi
	jne	fail
	call	fill_idt
	lgdt	gdt_pointer
	lidt	idt_pointer
	call	main

# What follows, up to the exceptions, is the same for a CPU in 64-bit mode.

pass:	mov	$passed, %esi
	call	print
	xor	%eax, %eax
leave:	out	%eax, $EXIT
	hlt
	jmp	leave

# Prints the text at %esi, up to a zero.
print:	push	%edx
	push	%eax
next:	lodsb
	test	%al, %al
	jz	printed
	mov	%al, %ah
	mov	$SERIAL + 5, %edx
busy:	in	(%dx), %al
	test	$0x20, %al
	jz	busy
	mov	%ah, %al
	mov	$SERIAL, %edx
	out	%al, (%dx)
	jmp	next
printed:
	pop	%eax
	pop	%edx
	ret

# Prints %eax in hexadecimal.
print_hex:
	push	%ecx
	push	%edi
	mov	$digits_end, %edi
digit:	mov	%eax, %ecx
	and	$15, %ecx
	mov	hexadecimal(%ecx), %cl
	sub	$1, %edi
	mov	%cl, (%edi)
	shr	$4, %eax
	jnz	digit
	mov	%edi, %esi
	pop	%edi
	pop	%ecx
	jmp	print

# Prints the text at %esi and ends the guest with 3.
fail:	push	%esi
	mov	$failed, %esi
	call	print
	pop	%esi
	call	print
end_failure:
	mov	$newline, %esi
	call	print
	mov	$1, %eax
	jmp	leave

# Fails unless what was caught is vector %eax with error code %edx; %ebx is the name of the case.
check_caught:
	mov	$resume_ip, %ecx
	movl	$0, (%ecx)
	mov	$caught, %ecx
	cmp	%eax, (%ecx)
	jne	other
	cmp	%edx, 4(%ecx)
	jne	other
	ret
other:	mov	$failed, %esi
	call	print
	mov	%ebx, %esi
	call	print
	mov	$came, %esi
	call	print
	mov	(%ecx), %eax
	call	print_hex
	mov	$error, %esi
	call	print
	mov	4(%ecx), %eax
	call	print_hex
	jmp	end_failure

# Exceptions and interrupts --------------------------------------------------

# All vectors lead to stubs of 16 bytes each.
fill_idt:
	mov	$idt, %edi
	mov	$stubs, %eax
	mov	$VECTORS, %ecx
gate:	mov	%ax, (%edi)
	movl	$0x8e000008, 2(%edi)		# selector 8; 32-bit interrupt gate of ring 0
	mov	%eax, %edx
	shr	$16, %edx
	mov	%dx, 6(%edi)
	add	$8, %edi
	add	$16, %eax
	loop	gate
	ret

# The vectors for which the CPU pushes an error code.
	.set	WITH_ERROR, 1 << 8 | 0x1f << 10 | 1 << 17 | 1 << 21

	.balign	16
stubs:
	.set	vector, 0
	.rept	VECTORS
	.balign	16
	.if	vector > 31 || !(WITH_ERROR >> (vector & 31) & 1)
	push	$0
	.endif
	push	$vector
	jmp	handle
	.set	vector, vector + 1
	.endr

handle:	cmpl	$0, resume_ip
	je	unhandled
	pop	caught
	pop	caught + 4
	mov	resume_sp, %esp
	push	resume_ip
	movl	$0, resume_ip
	ret

unhandled:
	mov	$unexpected, %esi
	call	print
	mov	(%esp), %eax
	call	print_hex
	mov	$at, %esi
	call	print
	mov	8(%esp), %eax
	call	print_hex
	mov	$newline, %esi
	call	print
	mov	$UNHANDLED, %eax
	jmp	leave

	.section .rodata
passed:	.asciz	"PASS\n"
failed:	.asciz	"FAIL: "
came:	.asciz	": came vector "
error:	.asciz	", error "
at:	.asciz	" at "
newline: .asciz	"\n"
unexpected: .asciz "unhandled exception "
wrong_eax: .asciz "EAX is not Multiboot's"
hexadecimal: .ascii "0123456789abcdef"

	.data
	.balign	8
gdt:	.quad	0
	.quad	0x00cf9b000000ffff		# 0x08: code of 32 bits
	.quad	0x00cf93000000ffff		# 0x10: data
	.quad	0x00009b000000ffff		# 0x18: code of 16 bits
	.quad	0x000093000000ffff		# 0x20: data of 16 bits
	.quad	0x00cffb000000ffff		# 0x28: code of ring 3
	.quad	0x00cff3000000ffff		# 0x30: data of ring 3
	.quad	0x00cf13000000ffff		# 0x38: data that is not present
	.quad	0x00af9b000000ffff		# 0x40: code of 64 bits
	.quad	0x00affb000000ffff		# 0x48: code of 64 bits of ring 3
	.quad	0x0000890000000000		# 0x50: a TSS that is too short
	.quad	0, 0, 0				# 0x58: room for more
gdt_end:
gdt_pointer:
	.word	gdt_end - gdt - 1
	.long	gdt
idt_pointer:
	.word	VECTORS * 8 - 1
	.long	idt
digits:	.fill	8
digits_end: .byte 0

	.bss
	.balign	16
idt:	.skip	VECTORS * 8
boot_info: .skip 4
resume_ip: .skip 4
resume_sp: .skip 4
caught:	.skip	8				# the vector, and the error code
	.balign	16
	.skip	0x1000
stack_top:

	.text

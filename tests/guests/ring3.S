# Exceptions of ring 3 in long mode, which is entered from protected mode: this is what every KVM has
# the CPU run itself. ALIGNMENT and SSE are builds of their own, as there are CPUs without: these end
# with 77, a skip.

	.include "start.S"

	.set	CODE64, 0x40
	.set	USER_DATA, 0x33
	.set	USER_CODE, 0x4b
	.set	TSS, 0x58
	.set	UNMAPPED, 0x1000000
	.set	SKIPPED, 38			# (38 << 1) | 1 is 77

main:	mov	$directory, %edi		# 16 MiB in pages of 2 MiB, which are ring 3's
	mov	$0x87, %eax
page:	mov	%eax, (%edi)
	add	$8, %edi
	add	$0x200000, %eax
	cmp	$UNMAPPED, %eax
	jb	page
	movl	$directory + 7, pointers
	movl	$pointers + 7, level4
	mov	$level4, %eax
	mov	%eax, %cr3
	mov	%cr4, %eax
	or	$0x620, %eax			# PAE, OSFXSR, OSXMMEXCPT
	mov	%eax, %cr4
	mov	$0xc0000080, %ecx		# EFER: LME
	rdmsr
	or	$0x100, %eax
	wrmsr
	mov	%cr0, %eax
	and	$~4, %eax			# no EM
	or	$0x80040022, %eax		# PG, AM, NE, MP
	mov	%eax, %cr0
	ljmp	$CODE64, $long

	.code64

# The code has to bring that vector, with that error code. If nothing comes, UD2 does.
	.macro	user_provokes vector, error, name, code
	movl	$resume\@, resume_ip
	mov	%esp, resume_sp
	push	$USER_DATA
	push	$user_stack
	push	$0x40002			# RFLAGS: AC
	push	$USER_CODE
	push	$user\@
	iretq
user\@:	\code
	ud2
resume\@:
	mov	$\vector, %eax
	mov	$\error, %edx
	mov	$name\@, %ebx
	call	check
	.section .rodata
name\@:	.asciz	"\name, ring 3"
	.text
	.endm

long:	call	fill_idt64
	lidt	idt64_pointer
	mov	$tss, %eax
	movw	$tss_end - tss - 1, gdt + TSS
	mov	%ax, gdt + TSS + 2
	shr	$16, %eax
	mov	%al, gdt + TSS + 4
	movb	$0x89, gdt + TSS + 5
	mov	%ah, gdt + TSS + 7
	mov	$TSS, %eax
	ltr	%ax
	movq	$stack_top, tss + 4
	mov	$stack_top - 0x800, %esp	# below what comes from ring 3

	.if	ALIGNMENT
	user_provokes 17, 0, "#AC", "mov user_stack + 1, %eax"
	.elseif	SSE
	user_provokes 19, 0, "#XM", "ldmxcsr unmasked_sse; movss one, %xmm0; divss zero, %xmm0"
	.else
	user_provokes 0, 0, "#DE", "xor %ecx, %ecx; div %ecx"
	user_provokes 3, 0, "#BP", "int3"
	user_provokes 6, 0, "#UD", "ud2"
	user_provokes 13, 0, "#GP at an address", "mov $1, %eax; ror $2, %rax; mov (%rax), %eax"
	user_provokes 13, 0, "#GP at HLT", "hlt"
	user_provokes 14, 4, "#PF at a read", "mov UNMAPPED, %eax"
	mov	%cr2, %rax
	mov	$wrong_cr2, %esi
	cmp	$UNMAPPED, %eax
	jne	fail
	user_provokes 14, 6, "#PF at a write", "mov %eax, UNMAPPED"
	user_provokes 16, 0, "#MF", "fninit; fldcw unmasked; fld1; fldz; fdivrp; fwait"
	fninit
	.endif
	jmp	pass

# UD2 in the place of these two means that there is no such exception.
check:	.if	ALIGNMENT + SSE
	cmpl	$6, caught
	jne	check_caught
	mov	$no_such, %esi
	call	print
	mov	$SKIPPED, %eax
	jmp	leave
	.else
	jmp	check_caught
	.endif

# Vectors 0 to 31, with gates that ring 3 may use.
fill_idt64:
	mov	$idt64, %edi
	mov	$stubs64, %eax
	mov	$32, %ecx
gate64:	mov	%ax, (%rdi)
	movl	$0xee000000 + CODE64, 2(%rdi)
	mov	%eax, %edx
	shr	$16, %edx
	mov	%edx, 6(%rdi)
	add	$16, %rdi
	add	$16, %eax
	loop	gate64
	ret

	.balign	16
stubs64:
	.set	vector, 0
	.rept	32
	.balign	16
	.if	!(WITH_ERROR >> vector & 1)
	push	$0
	.endif
	push	$vector
	jmp	handle64
	.set	vector, vector + 1
	.endr

handle64:
	pop	%rax
	mov	%eax, caught
	pop	%rax
	mov	%eax, caught + 4
	mov	resume_sp, %esp
	mov	resume_ip, %eax
	jmp	*%rax

	.section .rodata
	.balign	4
one:	.float	1
zero:	.float	0
unmasked_sse: .long 0x1d80			# but for division by zero
unmasked: .word	0x37b
wrong_cr2: .asciz "#PF: CR2 is not the address"
no_such: .asciz	"SKIP: no such exception\n"

	.data
	.balign	8
idt64_pointer:
	.word	32 * 16 - 1
	.quad	idt64

	.bss
	.balign	0x1000
level4:	.skip	0x1000
pointers: .skip	0x1000
directory: .skip 0x1000
idt64:	.skip	32 * 16
tss:	.skip	0x68
tss_end:
	.skip	0x100
user_stack: .skip 16

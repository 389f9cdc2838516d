# What a test guest finds: the state that it starts in, what Multiboot tells it, and its environment,
# all of it printed; and interrupt controllers as a BIOS leaves them.

	.include "start.S"

	.set	LINES, 0x2000

	.macro	tell name, value
	.section .rodata
tell\@:	.asciz	"\name "
	.text
	mov	$tell\@, %esi
	call	print
	mov	\value, %eax
	call	print_hex
	mov	$newline, %esi
	call	print
	.endm

	.macro	raise line
	mov	$LINES + \line, %edx
	mov	$1, %al
	out	%al, (%dx)
	.endm

	.macro	lower line
	mov	$LINES + \line, %edx
	xor	%eax, %eax
	out	%al, (%dx)
	mov	$0x20, %al			# end of interrupt
	out	%al, $0xa0
	out	%al, $0x20
	.endm

main:	pushf
	pop	%ebx
	and	$0x200, %ebx
	tell	"CR0", %cr0
	tell	"CS", %cs
	tell	"DS", %ds
	tell	"SS", %ss
	tell	"IF", %ebx
	mov	boot_info, %ebp
	tell	"KiB", "8(%ebp)"
	mov	16(%ebp), %esi
	call	print
	mov	$newline, %esi
	call	print
	tell	"modules", "20(%ebp)"
	mov	24(%ebp), %ebp
	mov	(%ebp), %esi
	mov	4(%ebp), %edi
	movb	$0, (%edi)			# behind the text
	call	print
	provokes 9, 0, "line 1 by the first controller", "raise 1; sti; hlt"
	lower	1
	provokes 0x73, 0, "line 11 by the second controller", "raise 11; sti; hlt"
	lower	11
	ret

# Real mode: REP OUTS and REP INS of bytes, words and doublewords against the latch of the test
# device, upwards and downwards. The image is linked to addresses that real mode reaches.

	.include "start.S"

	.set	LATCH, 0xe0
	.set	CODE16, 0x18
	.set	DATA16, 0x20

main:	ljmp	$CODE16, $leave_protected

# Writes all of the text but its last element twice, and reads the latch twice.
	.macro	try name, size, direction, first, expected
	mov	$text + \first, %si
	mov	$LATCH, %dx
	mov	$3, %cx
	\direction
	rep	outs\size
	mov	$copy + \first, %di
	mov	$2, %cx
	rep	ins\size
	cld
	mov	$name\@, %ebx
	mov	$expect\@, %si
	call	compare
	.section .rodata
name\@:	.asciz	"\name"
expect\@: .ascii "\expected"
	.fill	12 - (. - expect\@)
	.text
	.endm

	.code16
leave_protected:
	mov	$DATA16, %ax
	mov	%ax, %ds
	mov	%ax, %es
	mov	%ax, %ss
	mov	%cr0, %eax
	and	$~1, %al
	mov	%eax, %cr0
	ljmp	$0, $real
real:	xor	%ax, %ax
	mov	%ax, %ds
	mov	%ax, %es
	mov	%ax, %ss
	try	"bytes", b, cld, 0, "cc"
	try	"words", w, cld, 0, "efef"
	try	"doublewords", l, cld, 0, "ijklijkl"
	try	"bytes, downwards", b, std, 2, "\0aa"
	try	"words, downwards", w, std, 4, "\0\0abab"
	try	"doublewords, downwards", l, std, 8, "\0\0\0\0abcdabcd"
	xor	%ebx, %ebx
	jmp	enter_protected

# Fails with the name %ebx unless the copy is what is at %si; clears the copy.
compare:
	mov	$copy, %di
	mov	$12, %cx
	repe	cmpsb
	jne	enter_protected
	mov	$copy, %di
	mov	$12, %cx
	xor	%al, %al
	rep	stosb
	ret

enter_protected:
	mov	%cr0, %eax
	or	$1, %al
	mov	%eax, %cr0
	ljmpl	$8, $back

	.code32
back:	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$stack_top, %esp
	mov	%ebx, %esi
	test	%ebx, %ebx
	jnz	fail
	jmp	pass

	.section .rodata
text:	.ascii	"abcdefghijkl"

	.bss
copy:	.skip	12

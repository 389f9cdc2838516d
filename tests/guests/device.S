# Every part of the test device, and of what is beside it.

	.include "start.S"

	.set	LATCH, 0xe0
	.set	ZAP, 0xe4
	.set	BYTES, 0xe8
	.set	LINES, 0x2000
	.set	MEMORY, 0xff000000
	.set	LAST, MEMORY + 0xfffc

# Fails unless the register has the value.
	.macro	is name, register, value
	mov	$name\@, %esi
	cmp	$\value, \register
	jne	fail
	.section .rodata
name\@:	.asciz	"\name"
	.text
	.endm

main:	call	latch
	call	page
	call	memory
	call	absent
	mov	$0x5a, %al
	out	%al, $0x70			# CMOS memory: index, and a byte
	mov	$0x33, %al
	out	%al, $0x71
	xor	%eax, %eax
	in	$0x71, %al
	is	"CMOS memory", %eax, 0x33
	mov	$0xaa, %al			# the keyboard controller tests itself
	out	%al, $0x64
	xor	%eax, %eax
	in	$0x60, %al
	is	"keyboard controller", %eax, 0x55
	in	$0x92, %al
	is	"A20", %eax, 2
	mov	$LINES + 9, %edx
	in	(%dx), %al
	is	"a line that is low", %eax, 0
	mov	$1, %al
	out	%al, (%dx)
	xor	%eax, %eax
	in	(%dx), %al
	is	"a line that is high", %eax, 1
	ret

latch:	mov	$0x12345678, %eax
	out	%eax, $LATCH
	xor	%eax, %eax
	in	$LATCH, %eax
	is	"latch, 4 bytes", %eax, 0x12345678
	mov	$0xbeef, %ax
	out	%ax, $LATCH
	xor	%eax, %eax
	in	$LATCH, %ax
	is	"latch, 2 bytes", %eax, 0xbeef
	mov	$0x42, %al
	out	%al, $LATCH + 3
	in	$LATCH, %eax
	is	"latch, 1 byte", %eax, 0x4234beef
	mov	$0x99, %al
	out	%al, $BYTES + 2
	xor	%eax, %eax
	in	$BYTES + 2, %al
	is	"latch of bytes", %eax, 0x99
	mov	$text, %esi			# REP OUTS and REP INS, of doublewords
	mov	$copy, %edi
	mov	$LATCH, %edx
	mov	$3, %ecx
	rep	outsl
	mov	$2, %ecx
	rep	insl
	mov	copy, %eax
	is	"REP INS, first", %eax, 0x6c6b6a69
	mov	copy + 4, %eax
	is	"REP INS, second", %eax, 0x6c6b6a69
	mov	copy + 8, %eax
	is	"REP INS, behind", %eax, 0
	ret

# What is in a page stays; where no memory is, nothing happens.
page:	movl	$0x11223344, zapped
	mov	$zapped, %eax
	out	%eax, $ZAP
	mov	zapped, %eax
	is	"page that was taken away", %eax, 0x11223344
	incl	zapped
	mov	$zapped + 0x123, %eax
	out	%eax, $ZAP
	mov	zapped, %eax
	is	"page that was taken away again", %eax, 0x11223345
	mov	$0xd0000000, %eax
	out	%eax, $ZAP
	mov	$-1, %eax
	out	%eax, $ZAP
	ret

memory:	movl	$0x01020304, MEMORY
	movb	$0xff, MEMORY + 1
	movw	$0x5566, LAST + 2
	mov	MEMORY, %eax
	is	"MMIO memory, its beginning", %eax, 0x0102ff04
	mov	LAST, %eax
	is	"MMIO memory, its end", %eax, 0x55660000
	mov	$text, %esi
	mov	$MEMORY + 0x1001, %edi
	mov	$12, %ecx
	rep	movsb
	lock	xaddl %eax, MEMORY + 0x1008
	is	"MMIO memory, exchanged", %eax, 0x6b6a6968
	mov	MEMORY + 0x1008, %eax
	is	"MMIO memory, added", %eax, 0xc0d06968
	ret

# All ones, where nobody is and in the configuration space of PCI.
absent:	in	$0x10, %eax
	is	"port without a device", %eax, -1
	mov	$0xcf8, %edx
	mov	$0x80000000, %eax
	out	%eax, (%dx)
	mov	$0xcfc, %edx
	in	(%dx), %eax
	is	"PCI", %eax, -1
	mov	0xd0000000, %eax
	is	"address without memory", %eax, -1
	ret

	.section .rodata
text:	.ascii	"abcdefghijkl"

	.bss
copy:	.skip	12
	.balign	0x1000
zapped:	.skip	0x1000

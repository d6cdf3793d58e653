/* SPDX-License-Identifier: Apache-2.0
 *
 * A guest that goes from real over protected to long mode, and tests the CPU under it on the way. Loaded at
 * 0x8000, entered in real mode with cs 0; needs 16 MiB.
 *
 * It reports by port 0xe9: a letter for each part that passed, `!` and a letter for a check that failed. Bytes 1
 * to 4 there ask the VMM to act, and 10 comes before the triple fault at the end:
 *
 *	1  inject interrupt 0x40 now          3  inject it at the next HLT
 *	2  inject it at the next window       4  pause the loop that follows, and set r10
 */
.set DBG, 0xe9

.macro OK value
	mov al, \value
	out DBG, al
.endm

.macro FAILNE name
	je .Lok\@
	mov al, '!'
	out DBG, al
	mov al, \name
	out DBG, al
.Lok\@:
.endm

.macro GATE vector, handler, rights
	mov rax, offset \handler
	mov rdi, 0x110000+\vector*16
	mov [rdi], ax
	mov word ptr [rdi+2], 0x08
	mov word ptr [rdi+4], \rights
	shr rax, 16
	mov [rdi+6], ax
	shr rax, 16
	mov [rdi+8], eax
.endm


.code16
start:
	cli
	xor ax, ax
	mov ds, ax
	mov es, ax
	mov ss, ax
	mov sp, 0x7000
	OK 'R'
	// port IN widths
	in al, 0x71
	cmp al, 0x5A
	FAILNE '1'
	mov dx, 0x72
	in ax, dx
	cmp ax, 0xBEEF
	FAILNE '2'
	mov dx, 0x74
	in eax, dx
	cmp eax, 0xDEADBEEF
	FAILNE '3'
	OK 'I'
	// string io
	mov si, offset msg
	mov cx, 5
	mov dx, 0xEA
	cld
	rep outsb
	mov di, offset buf
	mov cx, 5
	mov dx, 0xEB
	rep insb
	mov si, offset buf
	mov cx, 5
	mov dx, 0xEA
	rep outsb
	mov di, offset buf
	mov cx, 3
	mov dx, 0xEC
	rep insw
	cmp word ptr [buf+4], 0x1234
	FAILNE '4'
	mov di, offset buf
	mov cx, 2
	mov dx, 0xEE
	rep insd
	cmp dword ptr [buf+4], 0xCAFEBABE
	FAILNE '5'
	OK 'S'
	// real mode IVT
	mov word ptr [0x21*4], offset rm_isr
	mov word ptr [0x21*4+2], 0
	mov word ptr [0*4], offset rm_de
	mov word ptr [0*4+2], 0
	xor bx, bx
	int 0x21
	cmp bx, 0x77
	FAILNE '6'
	xor cx, cx
	mov ax, 1
	div cl
after_de:
	cmp bx, 0x99
	FAILNE '7'
	OK 'V'
	// protected mode
	lgdt [gdtr]
	mov eax, cr0
	or al, 1
	mov cr0, eax
	.att_syntax
	ljmp $0x18, $pm
	.intel_syntax noprefix
rm_isr:
	mov bx, 0x77
	iret
rm_de:
	mov bx, 0x99
	push bp
	mov bp, sp
	mov word ptr [bp+2], offset after_de
	pop bp
	iret
.code32
pm:
	mov ax, 0x20
	mov ds, ax
	mov es, ax
	mov ss, ax
	mov esp, 0x90000
	OK 'P'
	// protected mode 32 bit IDT test (#UD)
	mov edi, 0x110000
	mov ecx, 512
	xor eax, eax
	rep stosd
	mov eax, offset pm_ud
	mov word ptr [0x110000+6*8], ax
	mov word ptr [0x110000+6*8+2], 0x18
	mov word ptr [0x110000+6*8+4], 0x8E00
	shr eax, 16
	mov word ptr [0x110000+6*8+6], ax
	lidt [idtr]
	xor ebx, ebx
	ud2
	cmp ebx, 0x66
	FAILNE 'u'
	OK 'p'
	// page tables
	mov edi, 0x100000
	mov ecx, 0x6000/4
	xor eax, eax
	rep stosd
	mov dword ptr [0x100000], 0x101007
	mov dword ptr [0x101000], 0x102007
	mov dword ptr [0x101008], 0x103007
	mov dword ptr [0x101018], 0x105007
	mov edi, 0x102000
	mov eax, 0x87
	mov ecx, 512
.Ll1:
	mov [edi], eax
	add eax, 0x200000
	add edi, 8
	loop .Ll1
	mov edi, 0x105000
	mov eax, 0xC0000087
	mov ecx, 512
.Ll2:
	mov [edi], eax
	add eax, 0x200000
	add edi, 8
	loop .Ll2
	mov dword ptr [0x103000], 0x104007
	mov dword ptr [0x104000], 0x200007	// VA 0x40000000 -> PA 0x200000
	mov eax, cr4
	or eax, 0x620	// PAE | OSFXSR | OSXMMEXCPT
	mov cr4, eax
	mov eax, 0x100000
	mov cr3, eax
	mov ecx, 0xC0000080
	rdmsr
	or eax, 0x101
	wrmsr
	mov eax, cr0
	and eax, ~0x6
	or eax, 0x80010022
	mov cr0, eax
	.att_syntax
	ljmp $0x08, $lm
	.intel_syntax noprefix
pm_ud:
	mov ebx, 0x66
	add dword ptr [esp], 2
	iretd
.code64
lm:
	mov ax, 0x10
	mov ds, ax
	mov es, ax
	mov ss, ax
	mov fs, ax
	mov gs, ax
	mov rsp, 0x90000
	OK 'L'
	mov r15, 0x1122334455667788
	mov rax, r15
	rol rax, 32
	mov rbx, 0x5566778811223344
	cmp rax, rbx
	FAILNE '8'
	// IDT 64
	mov rdi, 0x110000
	mov rcx, 512
	xor rax, rax
	rep stosq
	GATE 0, h_de, 0x8E00
	GATE 3, h_bp, 0xEE00
	GATE 6, h_ud, 0x8E00
	GATE 13, h_gp, 0x8E00
	GATE 14, h_pf, 0x8E00
	GATE 0x40, h_irq, 0x8E00
	GATE 0x80, h_int80, 0xEE00
	lidt [idtr]
	// TSS
	mov rdi, 0x111000
	mov rcx, 16
	xor rax, rax
	rep stosq
	mov qword ptr [0x111004], 0x98000
	mov ax, 0x40
	ltr ax
	// exceptions
	xor ebx, ebx
	ud2
	cmp ebx, 0x66
	FAILNE 'a'
	mov eax, 1
	xor edx, edx
	xor ecx, ecx
	div ecx
	cmp ebx, 0x67
	FAILNE 'b'
	mov rax, 0x80001234
	mov cl, [rax]	// #PF: read
	cmp ebx, 0x68
	FAILNE 'c'
	mov rax, 0x80001234
	cmp r8, rax
	FAILNE 'd'
	cmp r9, 0
	FAILNE 'e'
	mov [rax], cl	// #PF: write
	cmp r9, 2
	FAILNE 'f'
	mov rax, 0x8000000000000000
	mov cl, [rax]	// #GP
	cmp ebx, 0x69
	FAILNE 'g'
	int3
	cmp ebx, 0x6a
	FAILNE 'h'
	int 0x80
	cmp ebx, 0x6b
	FAILNE 'i'
	mov ecx, 0x12345	// no such MSR: #GP
	xor ebx, ebx
	rdmsr
	cmp ebx, 0x69
	FAILNE 'j'
	OK 'E'
	// string io 64
	mov rsi, offset msg
	mov rcx, 5
	mov dx, 0xEA
	rep outsb
	mov rdi, offset buf
	mov rcx, 5
	mov dx, 0xEB
	rep insb
	mov rsi, offset buf
	mov rcx, 5
	mov dx, 0xEA
	rep outsb
	OK 's'
	// MMIO
	mov rbx, 0xF0000000
	mov al, [rbx]
	cmp al, 0x00
	FAILNE 'A'
	mov ax, [rbx+0x12]
	cmp ax, 0x1312
	FAILNE 'B'
	mov eax, [rbx+0x20]
	cmp eax, 0x23222120
	FAILNE 'C'
	mov rax, [rbx+0x30]
	mov rcx, 0x3736353433323130
	cmp rax, rcx
	FAILNE 'D'
	mov byte ptr [rbx+0x40], 0xA1
	mov word ptr [rbx+0x42], 0xA2A1
	mov dword ptr [rbx+0x44], 0xA4A3A2A1
	mov rcx, 0xA8A7A6A5A4A3A2A1
	mov [rbx+0x48], rcx
	add dword ptr [rbx+0x20], 5	// RMW
	movzx eax, byte ptr [rbx+0x7]
	cmp eax, 7
	FAILNE 'F'
	mov rsi, rbx
	mov rdi, offset buf
	mov ecx, 8
	rep movsb
	mov rcx, 0x0706050403020100
	cmp [buf], rcx
	FAILNE 'G'
	movdqu xmm0, [rbx+0x50]
	movq rax, xmm0
	mov rcx, 0x5756555453525150
	cmp rax, rcx
	FAILNE 'H'
	OK 'M'
	// CPUID
	mov eax, 0x40000000
	cpuid
	cmp ebx, 0x65736d76
	FAILNE 'K'
	OK 'C'
	// SSE + x87
	movdqu xmm1, [vec1]
	movdqu xmm2, [vec2]
	paddd xmm1, xmm2
	movdqu [buf], xmm1
	cmp dword ptr [buf+12], 44
	FAILNE 'N'
	mov eax, 3
	cvtsi2sd xmm3, eax
	sqrtsd xmm3, xmm3
	mulsd xmm3, xmm3
	movq rax, xmm3
	mov rcx, 0x4007FFFFFFFFFFFF
	cmp rax, rcx
	FAILNE 'O'
	fninit
	fldpi
	fstp qword ptr [buf]
	mov rax, 0x400921FB54442D18
	cmp rax, [buf]
	FAILNE 'Q'
	OK 'F'
	// syscall/sysret
	mov ecx, 0xC0000081
	xor eax, eax
	mov edx, 0x00280008	// STAR: sysret base 0x28 (->ss 0x30, cs 0x38), syscall cs 8
	wrmsr
	mov ecx, 0xC0000082
	mov rax, offset sysentry
	mov rdx, rax
	shr rdx, 32
	wrmsr
	mov ecx, 0xC0000084
	mov eax, 0x200
	xor edx, edx
	wrmsr
	mov [saved_rsp], rsp
	mov rcx, offset user
	mov r11, 0x202
	mov rsp, 0xA0000
	sysretq
back:
	mov rsp, [saved_rsp]
	cmp r12, 0x3b	// cs seen in user | 3
	FAILNE 'T'
	OK 'Y'
	// external interrupts
	xor r14, r14
	sti
	OK 0x01	// inject 0x40 now
	mov ecx, 50000000
.Lw:
	test r14, r14
	jnz .Lgot
	loop .Lw
.Lgot:
	cmp r14, 1
	FAILNE 'U'
	cli
	xor r14, r14
	OK 0x02	// inject 0x40 at the next window
	mov ecx, 1000
.Lw2:
	loop .Lw2
	cmp r14, 0
	FAILNE 'V'
	mov rbx, offset .Lshadow_end
	sti
	nop	// interrupt must come after this nop (sti shadow)
.Lshadow_end:
	nop
	nop
	cmp r14, 1
	FAILNE 'W'
	cmp r13, rbx
	FAILNE 'w'
	OK 'X'
	// HLT with IF=1
	xor r14, r14
	sti
	OK 0x03	// inject at the next hlt
	hlt
	cmp r14, 1
	FAILNE 'Z'
	cli
	OK 'H'
	// self modifying code (same trace)
	mov rdi, offset smc1+1
	mov dword ptr [rdi], 0x11111111
smc1:
	mov eax, 0x22222222
	cmp eax, 0x11111111
	FAILNE 'k'
	mov ecx, 3
	xor edx, edx
smcl:
smc2:
	add edx, 1
	inc byte ptr [smc2+2]
	loop smcl
	cmp edx, 6
	FAILNE 'l'
	OK 'm'
	// page table change
	mov dword ptr [0x200000], 0x1111
	mov dword ptr [0x201000], 0x2222
	mov dword ptr [0x202000], 0x3333
	mov rbx, 0x40000000
	mov eax, [rbx]
	cmp eax, 0x1111
	FAILNE 'n'
	mov dword ptr [0x104000], 0x201007
	invlpg [rbx]
	mov eax, [rbx]
	cmp eax, 0x2222
	FAILNE 'o'
	mov dword ptr [0x104000], 0x202007
	mov rax, cr3
	mov cr3, rax
	mov eax, [rbx]
	cmp eax, 0x3333
	FAILNE 'q'
	// execute from remapped page
	mov dword ptr [0x200000], 0xC3C0FF	// inc eax; ret  (FF C0 C3)
	mov dword ptr [0x201000], 0xC3C8FF	// dec eax; ret
	mov dword ptr [0x104000], 0x200007
	invlpg [rbx]
	mov eax, 5
	call rbx
	cmp eax, 6
	FAILNE 'r'
	mov dword ptr [0x104000], 0x201007
	invlpg [rbx]
	mov eax, 5
	call rbx
	cmp eax, 4
	FAILNE 's'
	// read only page with WP -> #PF err 3
	mov dword ptr [0x104000], 0x201005
	invlpg [rbx]
	mov rax, rbx
	mov [rax], cl
	cmp r9, 3
	FAILNE 't'
	// accessed/dirty bits
	mov rbx, 0x40000000
	mov dword ptr [0x104000], 0x201003
	invlpg [rbx]
	mov byte ptr [rbx+8], 1
	mov eax, [0x104000]
	and eax, 0x60
	cmp eax, 0x60
	FAILNE 'v'
	OK 'G'
	xor r10, r10
	OK 0x04	// pause the loop and set r10
.Lpl:
	inc r11
	test r10, r10
	jz .Lpl
	OK 'Z'
	// triple fault
	OK 10
	lidt [idtr0]
	ud2
	OK '?'
	hlt
h_de:
	mov ebx, 0x67
	add qword ptr [rsp], 2
	iretq
h_ud:
	mov ebx, 0x66
	add qword ptr [rsp], 2
	iretq
h_bp:
	mov ebx, 0x6a
	iretq
h_int80:
	mov ebx, 0x6b
	iretq
h_gp:
	mov ebx, 0x69
	add rsp, 8
	add qword ptr [rsp], 2
	iretq
h_pf:
	mov ebx, 0x68
	mov r8, cr2
	pop r9
	add qword ptr [rsp], 2
	iretq
h_irq:
	inc r14
	mov r13, [rsp]
	iretq
sysentry:
	// from ring3
	mov rsp, 0x97000
	cmp rdi, 1
	jne .second
	sysretq
.second:
	jmp back
user:
	mov rdi, 1
	syscall
	mov ax, cs
	movzx r12, ax
	int 0x80	// via TSS rsp0
	mov rdi, 2
	syscall
	hlt
	.balign 16
gdt:
	.quad 0
	.quad 0x00AF9A000000FFFF	// 08 code64
	.quad 0x00CF92000000FFFF	// 10 data
	.quad 0x00CF9A000000FFFF	// 18 code32
	.quad 0x00CF92000000FFFF	// 20 data
	.quad 0x00CFFA000000FFFF	// 28 user code32
	.quad 0x00CFF2000000FFFF	// 30 user data
	.quad 0x00AFFA000000FFFF	// 38 user code64
	.quad 0x0000891110000067	// 40 TSS at 0x111000
	.quad 0
gdtr:
	.word gdtr-gdt-1
	.long gdt
idtr:
	.word 0xFFF
	.quad 0x110000
idtr0:
	.word 0
	.quad 0
saved_rsp: .quad 0
msg: .ascii "hello"
	.balign 16
vec1: .long 1, 2, 3, 4
vec2: .long 10, 20, 30, 40
buf: .fill 64

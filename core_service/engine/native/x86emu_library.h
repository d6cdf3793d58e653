/* SPDX-License-Identifier: Apache-2.0
 *
 * libx86emu: what is used of it, declared anew. Source: x86emu.h of libx86emu 3.5, https://github.com/wfeldt/libx86emu,
 * (c) SciTech Software, David Mosberger-Tang, Egbert Eich, SUSE; a licence of the MIT kind. Nothing of it is in here: the
 * shared object is loaded at start.
 *
 * The library exports no version, and says nothing of its structure's layout. So what it makes is looked at before
 * anything relies on it: see x86emu_library.c.
 */
#ifndef VMSESSION_X86EMU_LIBRARY_H
#define VMSESSION_X86EMU_LIBRARY_H

#include "engine.h"

#define X86EMU_VARIABLE "VMSESSION_X86EMU" /* the path of libx86emu.so.3 */
#define X86EMU_PACKAGE "libx86emu3"

struct x86emu_segment {
	uint32_t base, limit;
	uint16_t selector;
	uint16_t attributes; /* AMD's packed form, as in the vCPU page */
};

struct x86emu_table {
	uint32_t base, limit;
};

/* In the order of the encoding but for rsp to rip: A, B, C, D, SP, BP, SI, DI, IP. */
enum x86emu_general {
	X86EMU_EAX, X86EMU_EBX, X86EMU_ECX, X86EMU_EDX, X86EMU_ESP, X86EMU_EBP, X86EMU_ESI, X86EMU_EDI, X86EMU_EIP,
	X86EMU_GENERALS,
};

/* What an instruction can change: saved before it, and restored if it is abandoned. */
struct x86emu_registers {
	uint32_t general[X86EMU_GENERALS];
	uint32_t flags;
	uint8_t xmm[8][16];
	struct x86emu_segment segment[8]; /* enum vcpu_segment; 6 is the library's "none" */
	struct x86emu_segment ldt, tr;
	uint32_t control[8];
	uint32_t debug[8];
	struct x86emu_table gdt, idt;
};

/* `interrupt_type` of an exception that the library found: with the number, it says all that is needed. */
#define X86EMU_EXCEPTION 0x100u   /* rip and cs are those of the instruction */
#define X86EMU_HAS_ERROR 0x200u

#define X86EMU_CR0_PE 1u
#define X86EMU_CR0_ET 0x10u
#define X86EMU_CR0_PG 0x80000000u

/* Types of an access: its size, and what it does. */
enum x86emu_size { X86EMU_BYTE, X86EMU_WORD, X86EMU_LONG, X86EMU_BYTE_ANYHOW };
enum x86emu_action {
	X86EMU_READ = 0 << 8,
	X86EMU_WRITE = 1 << 8,
	X86EMU_FETCH = 2 << 8,
	X86EMU_IN = 3 << 8,
	X86EMU_OUT = 4 << 8,
};

struct x86emu;
typedef int x86emu_check(struct x86emu *);
typedef unsigned x86emu_access(struct x86emu *, uint32_t address, uint32_t *value, unsigned type);
typedef int x86emu_interrupt(struct x86emu *, uint8_t number, unsigned type);
typedef void x86emu_hook(struct x86emu *);

/* x86emu_t; its end, behind `rdmsr`, is the library's own. */
struct x86emu {
	struct x86emu_registers registers;
	uint64_t *msr;
	uint8_t *msr_permission;
	uint32_t mode;
	struct x86emu_segment *default_segment;
	uint32_t saved_ip;
	uint16_t saved_cs;
	char decode_segment[4];
	uint8_t instruction[32];
	uint32_t instruction_length;
	char disassembly[256];
	char *disassembly_end;
	uint8_t interrupt_number;
	uint32_t interrupt_type;
	uint32_t interrupt_error;
	uint32_t interrupt_count[256];
	uint32_t debug_start, debug_length;
	x86emu_check *check;
	x86emu_hook *cpuid;
	x86emu_access *access;
	x86emu_interrupt *interrupt;
	x86emu_hook *wrmsr;
	x86emu_hook *rdmsr;
};

struct x86emu_library {
	void *file; /* owned: of dlopen */
	struct x86emu *(*create)(unsigned memory_permission, unsigned port_permission);
	struct x86emu *(*destroy)(struct x86emu *);
	unsigned (*run)(struct x86emu *, unsigned flags);
	x86emu_check *(*set_check)(struct x86emu *, x86emu_check *);
	x86emu_access *(*set_access)(struct x86emu *, x86emu_access *);
	x86emu_interrupt *(*set_interrupt)(struct x86emu *, x86emu_interrupt *);
	x86emu_hook *(*set_cpuid)(struct x86emu *, x86emu_hook *);
	x86emu_hook *(*set_rdmsr)(struct x86emu *, x86emu_hook *);
	x86emu_hook *(*set_wrmsr)(struct x86emu *, x86emu_hook *);
};

/* Load the library that the environment names. What it exports and what it makes must be as declared above. */
enum channel_status x86emu_library_open(struct x86emu_library *, struct failure *);
void x86emu_library_close(struct x86emu_library *);

#endif

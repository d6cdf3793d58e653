/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine made of libx86emu: one CPU of the 386 kind, without paging, privilege levels, FPU and SSE.
 *
 *	x86emu.c              the backend: machine, vCPU, the loop
 *	x86emu_library.c      the shared object
 *	x86emu_execution.c    one instruction: before and after it, and abandoning it
 *	x86emu_decode.c       what the next instruction is, as far as somebody here must know
 *	x86emu_own.c          instructions executed here, since the library's lack something
 *	x86emu_string.c       string instructions, one iteration at a time
 *	x86emu_callbacks.c    what the library calls
 *	x86emu_memory.c       guest memory and devices' memory
 *	x86emu_exits.c        exits in the middle of an instruction
 *	x86emu_event.c        interrupts and exceptions
 *	x86emu_state.c        registers
 *	x86emu_cpuid.c        CPUID
 *
 * The library executes one instruction per call. It has no notion of a fault: having found one it goes on with the
 * instruction. Therefore the registers are saved before each instruction, and the first access after a fault, a
 * fetch from nowhere, or the end of the VM leaves the library by longjmp; it holds nothing across its callbacks.
 *
 * What the library gets wrong or does not know ends in EXIT_INTERNAL_ERROR, with the state before the instruction.
 */
#ifndef VMSESSION_X86EMU_H
#define VMSESSION_X86EMU_H

#include <setjmp.h>

#include "engine.h"
#include "x86emu_library.h"

#define X86EMU_TSC_KHZ 1000000u /* the TSC counts nanoseconds */
#define X86EMU_PHYSICAL_BITS 32u
#define X86EMU_INSTRUCTION 15u /* bytes of the longest */
#define X86EMU_NO_ERROR 0x10000u /* beyond all error codes */

#define FLAG_TRAP (1u << 8)
#define FLAG_INTERRUPT (1u << 9)
#define FLAG_DIRECTION (1u << 10)

/* Exceptions: SDM vol. 3, table 6-1. */
enum x86emu_vector {
	VECTOR_DE = 0,
	VECTOR_NMI = 2,
	VECTOR_UD = 6,
	VECTOR_DF = 8,
	VECTOR_TS = 10,
	VECTOR_NP = 11,
	VECTOR_SS = 12,
	VECTOR_GP = 13,
	VECTOR_PF = 14,
};

enum x86emu_prefix { PREFIX_REP = 1, PREFIX_REPNE = 2, PREFIX_LOCK = 4, PREFIX_DATA = 8, PREFIX_ADDRESS = 16 };

/* The next instruction. */
struct x86emu_code {
	uint32_t linear; /* its address */
	uint8_t byte[X86EMU_INSTRUCTION];
	uint32_t bytes;  /* that could be had */
	uint32_t opcode; /* of one byte, or 0x0f00 | the second */
	uint32_t length; /* to behind the opcode */
	unsigned prefixes;
	int segment; /* enum vcpu_segment of an override, or -1 */
	bool operand32, address32;
};

/* How an instruction ended, other than by itself. */
enum x86emu_end {
	END_DONE,
	END_FAULT,      /* an exception is to be delivered */
	END_NOWHERE,    /* fetch from where nothing is attached */
	END_REFUSED,    /* the engine cannot execute it */
	END_HALTED,
	END_SHUT_DOWN,
	END_SESSION,    /* the VM ends */
};

/* `detail` of EXIT_INTERNAL_ERROR. */
enum x86emu_refusal {
	X86EMU_UNKNOWN = 1, /* an opcode that the library does not know, or gets wrong */
	X86EMU_MODE,        /* paging, another privilege level, virtual-8086 mode, a task, single-stepping by the guest */
};

struct x86emu_vm {
	struct x86emu_library library;
	uint64_t start_ns; /* TSC 0 */
};

struct x86emu_cpu {
	struct vcpu *vcpu;
	struct x86emu_vm *vm;
	struct x86emu *emu; /* owned */
	_Atomic bool kicked;
	uint64_t tsc_offset;
	struct cpuid_leaf leaf[CHANNEL_CPUID_LEAVES];
	uint32_t leaves;

	uint32_t shadow; /* VCPU_SHADOW_*; STI and MOV_SS until one more instruction is done */
	bool nmi;        /* pending */
	uint32_t injection, injection_error; /* to be delivered before the next instruction */

	/* of the instruction under way */
	struct x86emu_registers before;
	struct x86emu_code code;
	bool started;      /* the library has begun with it */
	bool rehearsing;   /* only its fetches count */
	enum x86emu_end end;
	bool exchanged;    /* there was an exit in the middle */
	uint32_t watched;  /* breakpoints on data that it hit; none where it is abandoned */
	uint32_t nowhere;  /* END_NOWHERE: the address */
	uint8_t vector;    /* END_FAULT */
	uint32_t error;    /* its error code, or X86EMU_NO_ERROR */
	enum x86emu_refusal refusal;
	jmp_buf abandoned;
};

static inline bool x86emu_protected(const struct x86emu_cpu *cpu)
{
	return cpu->emu->registers.control[0] & X86EMU_CR0_PE;
}

/* Leave the instruction or the delivery under way. */
_Noreturn void x86emu_abandon(struct x86emu_cpu *, enum x86emu_end);
_Noreturn void x86emu_fault(struct x86emu_cpu *, uint8_t vector, uint32_t error);
_Noreturn void x86emu_refuse(struct x86emu_cpu *, enum x86emu_refusal);

/* x86emu_execution.c: one instruction with the exception that it may make, or the event that is due. After all ends
 * but END_DONE and END_HALTED the registers are as before. */
enum x86emu_end x86emu_execute(struct x86emu_cpu *);
enum x86emu_end x86emu_take_event(struct x86emu_cpu *);

/* x86emu_decode.c. May abandon. */
void x86emu_decode(struct x86emu_cpu *);
/* Whether the library's version of it is to be trusted. */
bool x86emu_trusted(const struct x86emu_code *);
/* Of the ModRM byte behind the opcode. */
unsigned x86emu_modrm_register(const struct x86emu_code *);

/* x86emu_own.c: whether it was executed. What the time-stamp counter says. */
bool x86emu_own(struct x86emu_cpu *);
uint64_t x86emu_tsc(const struct x86emu_cpu *);
void x86emu_set_tsc(struct x86emu_cpu *, uint64_t value);
/* The instruction's length is known and its end reached: rip goes behind it. */
void x86emu_advance(struct x86emu_cpu *);

/* x86emu_string.c: one iteration. */
bool x86emu_is_string(const struct x86emu_code *);
void x86emu_string(struct x86emu_cpu *);

/* x86emu_callbacks.c: have the library execute what was decoded. May abandon. */
void x86emu_attach(struct x86emu_cpu *);
void x86emu_run_library(struct x86emu_cpu *);

/* x86emu_memory.c: `size` is at most 4. May abandon, and exit to the VMM. */
uint32_t x86emu_read(struct x86emu_cpu *, uint32_t address, uint32_t size);
void x86emu_write(struct x86emu_cpu *, uint32_t address, uint32_t size, uint32_t value);
/* Code: never a device's. Bytes that could be had, and where the first one lacks. */
uint32_t x86emu_fetch(struct x86emu_cpu *, uint32_t address, uint32_t size, uint8_t *bytes);

/* x86emu_exits.c: `size` is one that the contract knows. */
uint64_t x86emu_exit_read(struct x86emu_cpu *, enum vcpu_exit_reason, uint32_t address, uint32_t size);
void x86emu_exit_write(struct x86emu_cpu *, enum vcpu_exit_reason, uint32_t address, uint32_t size, uint64_t value,
		       uint32_t flags);

/* x86emu_event.c */
uint32_t x86emu_event_flags(struct vcpu *);
bool x86emu_inject(struct vcpu *, uint32_t injection, uint32_t error);
/* Whether x86emu_deliver_due() has something to deliver. */
bool x86emu_event_due(const struct x86emu_cpu *);
/* These may abandon: the VM ends, a triple fault, a gate that is not served. */
void x86emu_deliver_due(struct x86emu_cpu *);
void x86emu_deliver_exception(struct x86emu_cpu *, uint8_t vector, uint32_t error);
void x86emu_deliver_int(struct x86emu_cpu *, uint8_t vector);

/* x86emu_state.c */
#define X86EMU_BIT(index) (1ull << (index))
#define X86EMU_SCALARS                                                                                       \
	((X86EMU_BIT(REG_RDI + 1) - 1) | X86EMU_BIT(REG_RIP) | X86EMU_BIT(REG_RFLAGS) | X86EMU_BIT(REG_CR0) | \
	 X86EMU_BIT(REG_CR2) | X86EMU_BIT(REG_CR3) | X86EMU_BIT(REG_TSC) | X86EMU_BIT(REG_ACTIVITY) |         \
	 X86EMU_BIT(REG_INTERRUPTIBILITY))
#define X86EMU_SEGMENTS (X86EMU_BIT(SEG_SEGMENTS) - 1)
void x86emu_reset_state(struct x86emu_cpu *);
void x86emu_read_state(struct vcpu *, const uint64_t wanted[2], struct vcpu_engine_half *);
bool x86emu_write_state(struct vcpu *, const struct vcpu_vmm_half *charged, const uint8_t *fpu);
/* Whether the CPU can go on in this state. */
bool x86emu_enterable(const struct x86emu_registers *);

/* x86emu_cpuid.c */
void x86emu_cpuid_defaults(struct x86emu_cpu *);
void x86emu_execute_cpuid(struct x86emu_cpu *);
uint32_t x86emu_get_cpuid(struct vcpu *, struct cpuid_leaf *);
enum channel_status x86emu_set_cpuid(struct vcpu *, const struct cpuid_leaf *, uint32_t leaves, struct failure *);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * One instruction, or the delivery of one event.
 */
#include "x86emu.h"

#define FLAG_ALWAYS 2u
#define FLAG_RF (1u << 16)
#define FLAG_VM (1u << 17)
#define FLAGS_KEPT (FLAG_VM | 3u << 19) /* by POPF and, in real mode, IRET: with VIF and VIP */
#define FLAGS_THERE 0x003f7fd5u

#define POP_SS 0x17u
#define MOV_TO_SEGMENT 0x8eu
#define POPF 0x9du
#define IRET 0xcfu
#define STI 0xfbu

void x86emu_abandon(struct x86emu_cpu *cpu, enum x86emu_end end)
{
	cpu->end = end;
	cpu->rehearsing = false;
	cpu->emu->interrupt_type = 0;
	longjmp(cpu->abandoned, 1);
}

void x86emu_fault(struct x86emu_cpu *cpu, uint8_t vector, uint32_t error)
{
	cpu->vector = vector;
	cpu->error = error;
	x86emu_abandon(cpu, END_FAULT);
}

void x86emu_refuse(struct x86emu_cpu *cpu, enum x86emu_refusal refusal)
{
	cpu->refusal = refusal;
	x86emu_abandon(cpu, END_REFUSED);
}

/* ---- what the library leaves to be done */

/* It takes the flags from the stack as they are there, with zeros above a word. */
static void mend_flags(struct x86emu_cpu *cpu)
{
	uint32_t *flags = &cpu->emu->registers.flags, opcode = cpu->code.opcode;
	if (opcode == POPF || opcode == IRET) {
		uint32_t kept = cpu->code.operand32 ? FLAGS_KEPT : 0xffff0000;
		if (opcode == IRET && cpu->code.operand32 && x86emu_protected(cpu))
			kept = 0;
		*flags = ((*flags & ~kept) | (cpu->before.flags & kept)) & ~FLAG_RF;
	}
	*flags = (*flags & FLAGS_THERE) | FLAG_ALWAYS;
}

/* Interrupts wait for one more instruction after STI, and after a load of SS. */
static void cast_shadow(struct x86emu_cpu *cpu)
{
	uint32_t opcode = cpu->code.opcode;
	cpu->shadow &= VCPU_SHADOW_NMI;
	if (opcode == STI && !(cpu->before.flags & FLAG_INTERRUPT))
		cpu->shadow |= VCPU_SHADOW_STI;
	if (opcode == POP_SS || (opcode == MOV_TO_SEGMENT && x86emu_modrm_register(&cpu->code) == SEG_SS))
		cpu->shadow |= VCPU_SHADOW_MOV_SS;
	if (opcode == IRET)
		cpu->shadow &= ~VCPU_SHADOW_NMI;
}

static void execute(struct x86emu_cpu *cpu)
{
	x86emu_decode(cpu);
	if (!x86emu_trusted(&cpu->code))
		x86emu_refuse(cpu, X86EMU_UNKNOWN);
	if (x86emu_is_string(&cpu->code))
		x86emu_string(cpu);
	else if (!x86emu_own(cpu))
		x86emu_run_library(cpu);
	mend_flags(cpu);
	cpu->emu->registers.control[0] |= X86EMU_CR0_ET;
	if (!x86emu_enterable(&cpu->emu->registers))
		x86emu_refuse(cpu, X86EMU_MODE);
	cast_shadow(cpu);
}

static void deliver_exception(struct x86emu_cpu *cpu)
{
	x86emu_deliver_exception(cpu, cpu->vector, cpu->error);
	cpu->shadow &= VCPU_SHADOW_NMI;
}

/* Do it whole or not at all. */
static enum x86emu_end attempt(struct x86emu_cpu *cpu, void (*what)(struct x86emu_cpu *))
{
	cpu->before = cpu->emu->registers;
	cpu->end = END_DONE;
	if (!setjmp(cpu->abandoned)) {
		what(cpu);
	} else {
		cpu->emu->registers = cpu->before;
		cpu->watched = 0;
	}
	return cpu->end;
}

enum x86emu_end x86emu_execute(struct x86emu_cpu *cpu)
{
	enum x86emu_end end = attempt(cpu, execute);
	return end == END_FAULT ? attempt(cpu, deliver_exception) : end;
}

enum x86emu_end x86emu_take_event(struct x86emu_cpu *cpu)
{
	cpu->code.bytes = 0; /* no instruction */
	return attempt(cpu, x86emu_deliver_due);
}

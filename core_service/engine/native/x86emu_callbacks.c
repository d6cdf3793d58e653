/* SPDX-License-Identifier: Apache-2.0
 *
 * What the library calls while it executes an instruction.
 */
#include <string.h>

#include "x86emu.h"

#define MODE_STACK_SEGMENT 1u /* in x86emu.mode: the operand's default segment is SS */
#define PORTS 0xffffu

static _Thread_local struct x86emu_cpu *current;

/* ---- exceptions that the library found */

/* Whether the access at `address`, which was found beyond its segment's limit, was one to the stack. */
static bool stack_access(const struct x86emu_cpu *cpu, uint32_t address)
{
	const struct x86emu *emu = cpu->emu;
	const struct x86emu_segment *ss = &emu->registers.segment[SEG_SS];
	uint32_t pointer = emu->registers.general[X86EMU_ESP];
	bool operand = emu->default_segment ? emu->default_segment == ss : emu->mode & MODE_STACK_SEGMENT;
	return operand || address == ss->base + pointer || address == ss->base + (uint16_t)pointer;
}

static bool undefined(uint32_t opcode)
{
	return opcode == 0x0f0b || opcode == 0x0fb9 || opcode == 0x0fff; /* UD2, UD1, UD0 */
}

static bool far_transfer(uint32_t opcode)
{
	return opcode == 0x9a || opcode == 0xea || opcode == 0xff;
}

_Noreturn static void library_fault(struct x86emu_cpu *cpu)
{
	const struct x86emu *emu = cpu->emu;
	uint32_t error = emu->interrupt_type & X86EMU_HAS_ERROR ? emu->interrupt_error : X86EMU_NO_ERROR;
	/* To the library everything is undefined that it does not know. */
	if (emu->interrupt_number == VECTOR_UD && !undefined(cpu->code.opcode))
		x86emu_refuse(cpu, X86EMU_UNKNOWN);
	/* It has no gates and tasks. */
	if (emu->interrupt_number == VECTOR_GP && far_transfer(cpu->code.opcode) && x86emu_protected(cpu))
		x86emu_refuse(cpu, X86EMU_MODE);
	x86emu_fault(cpu, emu->interrupt_number, error & ~3u); /* of a selector, the RPL is no part */
}

static int handle_interrupt(struct x86emu *emu, uint8_t number, unsigned type)
{
	struct x86emu_cpu *cpu = current;
	(void)emu;
	if (cpu->rehearsing)
		return 1;
	if (type & X86EMU_EXCEPTION)
		library_fault(cpu);
	x86emu_deliver_int(cpu, number);
	return 1; /* so that the library does not */
}

/* ---- accesses */

static void fetch(struct x86emu_cpu *cpu, uint32_t address, uint32_t size, uint32_t *value)
{
	const struct x86emu_code *code = &cpu->code;
	uint32_t offset = address - code->linear;
	if (offset + size > X86EMU_INSTRUCTION ||
	    cpu->before.general[X86EMU_EIP] + (offset + size - 1) > cpu->before.segment[SEG_CS].limit)
		x86emu_fault(cpu, VECTOR_GP, 0);
	if (offset + size > code->bytes) {
		cpu->nowhere = code->linear + code->bytes;
		x86emu_abandon(cpu, END_NOWHERE);
	}
	*value = 0;
	memcpy(value, code->byte + offset, size);
}

static unsigned handle_access(struct x86emu *emu, uint32_t address, uint32_t *value, unsigned type)
{
	struct x86emu_cpu *cpu = current;
	uint32_t size = 1u << (type & 3);
	if (cpu->rehearsing && (type & ~0xffu) != X86EMU_FETCH) {
		*value = 0;
		return 0;
	}
	/* The library goes on with what it found to be beyond the limit. */
	if (!cpu->rehearsing && emu->interrupt_type & X86EMU_EXCEPTION && emu->interrupt_number == VECTOR_GP)
		x86emu_fault(cpu, stack_access(cpu, address) ? VECTOR_SS : VECTOR_GP, 0);
	if (!cpu->rehearsing && emu->interrupt_type & X86EMU_EXCEPTION)
		library_fault(cpu);
	switch (type & ~0xffu) {
	case X86EMU_FETCH:
		fetch(cpu, address, size, value);
		break;
	case X86EMU_READ:
		*value = x86emu_read(cpu, address, size);
		break;
	case X86EMU_WRITE:
		x86emu_write(cpu, address, size, *value);
		break;
	case X86EMU_IN:
		*value = (uint32_t)x86emu_exit_read(cpu, EXIT_PORT, address & PORTS, size);
		break;
	case X86EMU_OUT:
		x86emu_exit_write(cpu, EXIT_PORT, address & PORTS, size, *value, 0);
		break;
	}
	return 0;
}

/* Without it the library shows the guest no ID flag. */
static void handle_cpuid(struct x86emu *emu)
{
	(void)emu;
	x86emu_execute_cpuid(current);
}

/* ---- one instruction */

/* Asked before each instruction: it stops the library before the second. */
static int handle_check(struct x86emu *emu)
{
	(void)emu;
	bool second = current->started;
	current->started = true;
	return second;
}

void x86emu_attach(struct x86emu_cpu *cpu)
{
	const struct x86emu_library *library = &cpu->vm->library;
	current = cpu;
	library->set_check(cpu->emu, handle_check);
	library->set_access(cpu->emu, handle_access);
	library->set_interrupt(cpu->emu, handle_interrupt);
	library->set_cpuid(cpu->emu, handle_cpuid);
}

static void run_one(struct x86emu_cpu *cpu)
{
	cpu->started = false;
	cpu->vm->library.run(cpu->emu, 0);
}

/* Fetch it all before a device is accessed, where the instruction may turn out to lack its end: the library fetches
 * immediate operands after it has read others. */
static void rehearse(struct x86emu_cpu *cpu)
{
	const struct x86emu_registers registers = cpu->emu->registers;
	cpu->rehearsing = true;
	run_one(cpu);
	cpu->rehearsing = false;
	cpu->emu->registers = registers;
}

void x86emu_run_library(struct x86emu_cpu *cpu)
{
	if (cpu->code.bytes < X86EMU_INSTRUCTION)
		rehearse(cpu);
	run_one(cpu);
}

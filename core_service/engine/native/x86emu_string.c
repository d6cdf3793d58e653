/* SPDX-License-Identifier: Apache-2.0
 *
 * String instructions, one iteration at a time: between two of them the vCPU can leave, as a CPU can take an interrupt
 * there. The library would do them all at once, with the counter cleared from the start. Its INS and OUTS go on by one
 * byte whatever the size, and OUTS reads by ES; they are executed here.
 */
#include "x86emu.h"

#define FLAG_ZERO (1u << 6)
#define SHORT 0xffffu

#define INS_BYTE 0x6cu
#define OUTS_BYTE 0x6eu
#define OUTS_WORD 0x6fu
#define MOVS_BYTE 0xa4u
#define CMPS_WORD 0xa7u
#define STOS_BYTE 0xaau
#define SCAS_BYTE 0xaeu
#define SCAS_WORD 0xafu

static bool is_port_string(uint32_t opcode)
{
	return opcode >= INS_BYTE && opcode <= OUTS_WORD;
}

bool x86emu_is_string(const struct x86emu_code *code)
{
	uint32_t opcode = code->opcode;
	return is_port_string(opcode) || (opcode >= MOVS_BYTE && opcode <= CMPS_WORD) ||
	       (opcode >= STOS_BYTE && opcode <= SCAS_WORD);
}

static uint32_t address_mask(const struct x86emu_cpu *cpu)
{
	return cpu->code.address32 ? UINT32_MAX : SHORT;
}

static void set_masked(uint32_t *place, uint32_t mask, uint32_t value)
{
	*place = (*place & ~mask) | (value & mask);
}

/* ---- ports */

static uint32_t linear(struct x86emu_cpu *cpu, enum vcpu_segment index, uint32_t offset, uint32_t size)
{
	const struct x86emu_segment *segment = &cpu->emu->registers.segment[index];
	if (offset > segment->limit || size - 1 > segment->limit - offset)
		x86emu_fault(cpu, index == SEG_SS ? VECTOR_SS : VECTOR_GP, 0);
	return segment->base + offset;
}

static void port_string(struct x86emu_cpu *cpu)
{
	const struct x86emu_code *code = &cpu->code;
	uint32_t *general = cpu->emu->registers.general, mask = address_mask(cpu);
	uint32_t size = code->opcode & 1 ? (code->operand32 ? 4 : 2) : 1;
	uint16_t port = (uint16_t)general[X86EMU_EDX];
	bool out = code->opcode >= OUTS_BYTE;
	uint32_t *index = &general[out ? X86EMU_ESI : X86EMU_EDI];
	int source = code->segment < 0 ? SEG_DS : code->segment;
	uint32_t address = linear(cpu, out ? (enum vcpu_segment)source : SEG_ES, *index & mask, size);
	uint32_t step = cpu->emu->registers.flags & FLAG_DIRECTION ? -size : size;

	if (out)
		x86emu_exit_write(cpu, EXIT_PORT, port, size, x86emu_read(cpu, address, size), 0);
	else
		x86emu_write(cpu, address, size, (uint32_t)x86emu_exit_read(cpu, EXIT_PORT, port, size));
	set_masked(index, mask, *index + step);
	x86emu_advance(cpu);
}

/* ---- repetition */

static bool compares(uint32_t opcode)
{
	return (opcode & ~1u) == (CMPS_WORD & ~1u) || (opcode & ~1u) == SCAS_BYTE;
}

static void iterate(struct x86emu_cpu *cpu)
{
	if (is_port_string(cpu->code.opcode))
		port_string(cpu);
	else
		x86emu_run_library(cpu);
}

static bool goes_on(const struct x86emu_cpu *cpu, uint32_t left)
{
	bool zero = cpu->emu->registers.flags & FLAG_ZERO;
	if (compares(cpu->code.opcode) && zero != !!(cpu->code.prefixes & PREFIX_REP))
		return false;
	return left;
}

void x86emu_string(struct x86emu_cpu *cpu)
{
	uint32_t *general = cpu->emu->registers.general, mask = address_mask(cpu);
	if (!(cpu->code.prefixes & (PREFIX_REP | PREFIX_REPNE))) {
		iterate(cpu);
		return;
	}
	uint32_t count = general[X86EMU_ECX] & mask;
	if (!count) {
		x86emu_advance(cpu);
		return;
	}
	set_masked(&general[X86EMU_ECX], mask, 1); /* of which the library leaves nothing */
	iterate(cpu);
	set_masked(&general[X86EMU_ECX], mask, count - 1);
	if (goes_on(cpu, count - 1))
		general[X86EMU_EIP] = cpu->before.general[X86EMU_EIP];
}

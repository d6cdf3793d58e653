/* SPDX-License-Identifier: Apache-2.0
 *
 * Instructions that are executed here. The library counts instructions where the time-stamp counter is asked for, has no
 * MSRs beyond the 2048th, and its HLT cannot be told from a stop. It checks no division for all that the host's CPU
 * raises an exception for, which would end the process.
 */
#include "x86emu.h"

#include "page_wait.h"

#define MSR_TSC 0x10u
#define MSR_BYTES 8u

#define WRMSR 0x0f30u
#define RDTSC 0x0f31u
#define RDMSR 0x0f32u
#define AAM 0xd4u
#define HLT 0xf4u
#define GROUP_3 0xf7u
#define IDIV 7u /* in its ModRM byte */

uint64_t x86emu_tsc(const struct x86emu_cpu *cpu)
{
	return page_now_ns() - cpu->vm->start_ns + cpu->tsc_offset;
}

void x86emu_set_tsc(struct x86emu_cpu *cpu, uint64_t value)
{
	cpu->tsc_offset += value - x86emu_tsc(cpu);
}

void x86emu_advance(struct x86emu_cpu *cpu)
{
	uint32_t *eip = &cpu->emu->registers.general[X86EMU_EIP];
	*eip = cpu->before.general[X86EMU_EIP] + cpu->code.length;
	if (*eip - 1 > cpu->before.segment[SEG_CS].limit)
		x86emu_fault(cpu, VECTOR_GP, 0);
}

static void set_pair(struct x86emu_cpu *cpu, uint64_t value)
{
	cpu->emu->registers.general[X86EMU_EAX] = (uint32_t)value;
	cpu->emu->registers.general[X86EMU_EDX] = (uint32_t)(value >> 32);
}

static uint64_t pair(const struct x86emu_cpu *cpu)
{
	const uint32_t *general = cpu->emu->registers.general;
	return (uint64_t)general[X86EMU_EDX] << 32 | general[X86EMU_EAX];
}

static void read_msr(struct x86emu_cpu *cpu)
{
	uint32_t msr = cpu->emu->registers.general[X86EMU_ECX];
	set_pair(cpu, msr == MSR_TSC ? x86emu_tsc(cpu) : x86emu_exit_read(cpu, EXIT_MSR, msr, MSR_BYTES));
}

static void write_msr(struct x86emu_cpu *cpu)
{
	uint32_t msr = cpu->emu->registers.general[X86EMU_ECX];
	if (msr == MSR_TSC)
		x86emu_set_tsc(cpu, pair(cpu));
	else
		x86emu_exit_write(cpu, EXIT_MSR, msr, MSR_BYTES, pair(cpu), 0);
}

/* Of AAM by 0, and of the lowest dividend, whose quotient is too large whatever the divisor. */
static void check_division(struct x86emu_cpu *cpu)
{
	const uint32_t *general = cpu->emu->registers.general;
	const struct x86emu_code *code = &cpu->code;
	bool zero = code->opcode == AAM && code->length < code->bytes && !code->byte[code->length];
	bool idiv = code->opcode == GROUP_3 && x86emu_modrm_register(code) == IDIV;
	bool lowest = code->operand32 ? general[X86EMU_EDX] == 0x80000000 && !general[X86EMU_EAX]
				      : (uint16_t)general[X86EMU_EDX] == 0x8000 && !(uint16_t)general[X86EMU_EAX];
	if (zero || (idiv && lowest))
		x86emu_fault(cpu, VECTOR_DE, X86EMU_NO_ERROR);
}

bool x86emu_own(struct x86emu_cpu *cpu)
{
	switch (cpu->code.opcode) {
	case RDTSC:
		set_pair(cpu, x86emu_tsc(cpu));
		break;
	case RDMSR:
		read_msr(cpu);
		break;
	case WRMSR:
		write_msr(cpu);
		break;
	case AAM:
	case GROUP_3:
		check_division(cpu);
		return false;
	case HLT:
		cpu->end = END_HALTED;
		break;
	default:
		return false;
	}
	x86emu_advance(cpu);
	return true;
}

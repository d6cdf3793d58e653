/* SPDX-License-Identifier: Apache-2.0
 *
 * Exits in the middle of an instruction, or of an event's delivery.
 */
#include "x86emu.h"

static struct vcpu_exit *exit_here(struct x86emu_cpu *cpu, enum vcpu_exit_reason reason, uint32_t address,
				   uint32_t size, uint32_t flags)
{
	const struct x86emu_registers *registers = &cpu->emu->registers;
	/* Behind the instruction, where its shadow is over. */
	if (registers->flags & FLAG_INTERRUPT)
		flags |= cpu->nmi ? EXIT_IF : EXIT_IF | EXIT_INTERRUPTIBLE;
	struct vcpu_exit *exit = vcpu_exit(cpu->vcpu, reason, flags | EXIT_MID_INSTRUCTION | EXIT_IP_VALID);
	exit->address = address;
	exit->size = size;
	exit->count = 1;
	exit->ip = cpu->before.general[X86EMU_EIP];
	return exit;
}

static const struct vcpu_reply *exchange(struct x86emu_cpu *cpu)
{
	cpu->exchanged = true;
	if (vcpu_exchange(cpu->vcpu) == RUN_ENDED)
		x86emu_abandon(cpu, END_SESSION);
	const struct vcpu_reply *reply = &cpu->vcpu->reply.reply;
	if (reply->flags & REPLY_FAULT)
		x86emu_fault(cpu, VECTOR_GP, 0);
	return reply;
}

uint64_t x86emu_exit_read(struct x86emu_cpu *cpu, enum vcpu_exit_reason reason, uint32_t address, uint32_t size)
{
	exit_here(cpu, reason, address, size, EXIT_READ);
	return exchange(cpu)->value & UINT64_MAX >> (64 - 8 * size);
}

void x86emu_exit_write(struct x86emu_cpu *cpu, enum vcpu_exit_reason reason, uint32_t address, uint32_t size,
		       uint64_t value, uint32_t flags)
{
	exit_here(cpu, reason, address, size, flags)->value = value & UINT64_MAX >> (64 - 8 * size);
	exchange(cpu);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Interrupts and exceptions, through the real-mode table or interrupt and trap gates of ring 0: SDM vol. 3, 6.12 and
 * 20.1.4. The library's own delivery knows no limits, no trap gates, and pushes error codes in real mode.
 */
#include "x86emu.h"

#define FLAG_NT (1u << 14)
#define FLAG_RF (1u << 16)
#define FLAG_AC (1u << 18)
#define ATTRIBUTE_BIG 0x400u
#define ATTRIBUTE_GRANULAR 0x800u
#define ATTRIBUTE_PRESENT 0x80u
#define ATTRIBUTE_DPL 0x60u
#define ATTRIBUTE_CODE 0x18u /* not a system segment, and executable */

#define GATE_TASK 5u
#define GATE_32 8u
#define GATE_TRAP 1u
#define GATE_INTERRUPT 6u /* without the two bits above */

#define ERROR_EXTERNAL 1u
#define ERROR_IDT 2u

struct event {
	uint8_t vector;
	uint32_t error;    /* or X86EMU_NO_ERROR */
	uint32_t external; /* ERROR_EXTERNAL, but for INT n */
	bool exception;
};

/* What keeps an event from being delivered: another exception. */
static bool fails(struct event *failure, uint8_t vector, uint32_t error)
{
	*failure = (struct event){.vector = vector, .error = error, .external = ERROR_EXTERNAL, .exception = true};
	return false;
}

/* ---- the stack */

static bool push_all(struct x86emu_cpu *cpu, const uint32_t *values, unsigned count, uint32_t size,
		     const struct event *event, struct event *failure)
{
	const struct x86emu_segment *ss = &cpu->emu->registers.segment[SEG_SS];
	uint32_t *esp = &cpu->emu->registers.general[X86EMU_ESP];
	uint32_t mask = ss->attributes & ATTRIBUTE_BIG ? UINT32_MAX : 0xffff;

	for (unsigned i = 1; i <= count; i++) {
		uint32_t offset = (*esp - i * size) & mask;
		if (offset > ss->limit || size - 1 > ss->limit - offset)
			return fails(failure, VECTOR_SS, event->external);
	}
	for (unsigned i = 0; i < count; i++) {
		*esp = (*esp & ~mask) | ((*esp - size) & mask);
		x86emu_write(cpu, ss->base + (*esp & mask), size, values[i]);
	}
	return true;
}

/* ---- the handler */

static bool find_descriptor(const struct x86emu_cpu *cpu, uint16_t selector, uint32_t *address)
{
	const struct x86emu_registers *registers = &cpu->emu->registers;
	bool local = selector & 4;
	uint32_t base = local ? registers->ldt.base : registers->gdt.base;
	uint32_t limit = local ? registers->ldt.limit : registers->gdt.limit;
	*address = base + (selector & ~7u);
	return selector & ~7u && (selector | 7u) <= limit;
}

static bool load_code(struct x86emu_cpu *cpu, uint16_t selector, const struct event *event, struct x86emu_segment *cs,
		      struct event *failure)
{
	uint32_t address, error = (selector & ~3u) | event->external;
	if (!(selector & ~7u))
		return fails(failure, VECTOR_GP, event->external);
	if (!find_descriptor(cpu, selector, &address))
		return fails(failure, VECTOR_GP, error);
	uint32_t low = x86emu_read(cpu, address, 4), high = x86emu_read(cpu, address + 4, 4);
	cs->selector = selector & ~3u;
	cs->attributes = (high >> 8 & 0xff) | (high >> 12 & 0xf00);
	cs->base = low >> 16 | (high & 0xff) << 16 | (high & 0xff000000);
	cs->limit = (low & 0xffff) | (high & 0xf0000);
	if (cs->attributes & ATTRIBUTE_GRANULAR)
		cs->limit = cs->limit << 12 | 0xfff;
	if ((cs->attributes & ATTRIBUTE_CODE) != ATTRIBUTE_CODE || cs->attributes & ATTRIBUTE_DPL)
		return fails(failure, VECTOR_GP, error);
	if (!(cs->attributes & ATTRIBUTE_PRESENT))
		return fails(failure, VECTOR_NP, error);
	return true;
}

static bool enter_protected(struct x86emu_cpu *cpu, const struct event *event, struct event *failure)
{
	struct x86emu_registers *registers = &cpu->emu->registers;
	uint32_t offset = event->vector * 8u, error = offset | ERROR_IDT | event->external;
	if (offset + 7 > registers->idt.limit)
		return fails(failure, VECTOR_GP, error);
	uint32_t low = x86emu_read(cpu, registers->idt.base + offset, 4);
	uint32_t high = x86emu_read(cpu, registers->idt.base + offset + 4, 4);
	uint32_t type = high >> 8 & 0x1f;
	if (type == GATE_TASK)
		x86emu_refuse(cpu, X86EMU_MODE);
	if ((type & ~(GATE_32 | GATE_TRAP)) != GATE_INTERRUPT)
		return fails(failure, VECTOR_GP, error);
	if (!(high >> 8 & ATTRIBUTE_PRESENT))
		return fails(failure, VECTOR_NP, error);
	struct x86emu_segment cs;
	uint32_t ip = (low & 0xffff) | (type & GATE_32 ? high & 0xffff0000 : 0);
	if (!load_code(cpu, low >> 16, event, &cs, failure))
		return false;
	if (ip > cs.limit)
		return fails(failure, VECTOR_GP, event->external);
	const uint32_t frame[] = {registers->flags, registers->segment[SEG_CS].selector, registers->general[X86EMU_EIP],
				  event->error};
	unsigned pushed = event->error == X86EMU_NO_ERROR ? 3 : 4;
	if (!push_all(cpu, frame, pushed, type & GATE_32 ? 4 : 2, event, failure))
		return false;
	registers->flags &= ~(FLAG_TRAP | FLAG_NT | FLAG_RF | (type & GATE_TRAP ? 0 : FLAG_INTERRUPT));
	registers->segment[SEG_CS] = cs;
	registers->general[X86EMU_EIP] = ip;
	return true;
}

static bool enter_real(struct x86emu_cpu *cpu, const struct event *event, struct event *failure)
{
	struct x86emu_registers *registers = &cpu->emu->registers;
	struct x86emu_segment *cs = &registers->segment[SEG_CS];
	uint32_t offset = event->vector * 4u;
	if (offset + 3 > registers->idt.limit)
		return fails(failure, VECTOR_GP, X86EMU_NO_ERROR);
	uint32_t entry = x86emu_read(cpu, registers->idt.base + offset, 4);
	const uint32_t frame[] = {registers->flags, cs->selector, registers->general[X86EMU_EIP]};
	if (!push_all(cpu, frame, 3, 2, event, failure))
		return false;
	registers->flags &= ~(FLAG_TRAP | FLAG_INTERRUPT | FLAG_RF | FLAG_AC);
	cs->selector = (uint16_t)(entry >> 16);
	cs->base = (entry >> 16) << 4;
	registers->general[X86EMU_EIP] = entry & 0xffff;
	return true;
}

static bool enter(struct x86emu_cpu *cpu, const struct event *event, struct event *failure)
{
	return x86emu_protected(cpu) ? enter_protected(cpu, event, failure) : enter_real(cpu, event, failure);
}

/* ---- double and triple faults: SDM vol. 3, table 6-5 */

static bool contributory(uint8_t vector)
{
	return vector == VECTOR_DE || (vector >= VECTOR_TS && vector <= VECTOR_PF);
}

static void deliver(struct x86emu_cpu *cpu, struct event event)
{
	struct event failure;
	while (!enter(cpu, &event, &failure)) {
		if (event.exception && event.vector == VECTOR_DF)
			x86emu_abandon(cpu, END_SHUT_DOWN);
		if (event.exception && contributory(event.vector))
			fails(&failure, VECTOR_DF, 0);
		event = failure;
	}
}

void x86emu_deliver_exception(struct x86emu_cpu *cpu, uint8_t vector, uint32_t error)
{
	deliver(cpu, (struct event){vector, error, ERROR_EXTERNAL, true});
}

/* What keeps it from being delivered is a fault of the instruction. */
void x86emu_deliver_int(struct x86emu_cpu *cpu, uint8_t vector)
{
	struct event failure;
	if (!enter(cpu, &(struct event){vector, X86EMU_NO_ERROR, 0, false}, &failure))
		x86emu_fault(cpu, failure.vector, failure.error);
}

/* ---- what the VMM injects */

static bool nmi_open(const struct x86emu_cpu *cpu)
{
	return !(cpu->shadow & (VCPU_SHADOW_NMI | VCPU_SHADOW_MOV_SS));
}

uint32_t x86emu_event_flags(struct vcpu *vcpu)
{
	const struct x86emu_cpu *cpu = vcpu->backend;
	bool interrupts = cpu->emu->registers.flags & FLAG_INTERRUPT;
	uint32_t flags = interrupts ? EXIT_IF : 0;
	if (cpu->injection || (cpu->nmi && nmi_open(cpu)))
		return flags;
	if (interrupts && !(cpu->shadow & (VCPU_SHADOW_STI | VCPU_SHADOW_MOV_SS)))
		flags |= EXIT_INTERRUPTIBLE;
	return !cpu->nmi && nmi_open(cpu) ? flags | EXIT_NMI_OPEN : flags;
}

bool x86emu_inject(struct vcpu *vcpu, uint32_t injection, uint32_t error)
{
	struct x86emu_cpu *cpu = vcpu->backend;
	if ((injection >> INJECT_TYPE_SHIFT & 7) == INJECT_NMI) {
		cpu->nmi = true;
		return true;
	}
	if (cpu->injection)
		return false;
	cpu->injection = injection;
	cpu->injection_error = error;
	return true;
}

bool x86emu_event_due(const struct x86emu_cpu *cpu)
{
	return cpu->injection || (cpu->nmi && nmi_open(cpu));
}

static void deliver_nmi(struct x86emu_cpu *cpu)
{
	cpu->nmi = false;
	deliver(cpu, (struct event){VECTOR_NMI, X86EMU_NO_ERROR, ERROR_EXTERNAL, false});
	cpu->shadow = VCPU_SHADOW_NMI;
}

static void deliver_injection(struct x86emu_cpu *cpu)
{
	uint32_t injection = cpu->injection;
	cpu->injection = 0;
	bool exception = (injection >> INJECT_TYPE_SHIFT & 7) == INJECT_EXCEPTION;
	uint32_t error = injection & INJECT_ERROR_CODE ? (uint16_t)cpu->injection_error : X86EMU_NO_ERROR;
	deliver(cpu, (struct event){(uint8_t)injection, error, ERROR_EXTERNAL, exception});
	cpu->shadow &= VCPU_SHADOW_NMI;
}

/* An event that cannot be delivered is gone, and changes nothing. */
void x86emu_deliver_due(struct x86emu_cpu *cpu)
{
	if (cpu->injection)
		deliver_injection(cpu);
	else
		deliver_nmi(cpu);
}

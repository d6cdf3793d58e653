/* SPDX-License-Identifier: Apache-2.0
 *
 * Registers. There are the eight general ones, of 32 bits; control registers that make sense without paging, FPU and
 * extensions; and segments. All others are not there, and EXIT_STARTUP's valid mask says so.
 */
#include "x86emu.h"

#define FLAGS_RESERVED 0xffc08028u /* SDM vol. 1, 3.4.3, and the bit that is always set */
#define FLAG_ALWAYS 2u
#define FLAG_VM (1u << 17)
#define CR0_KNOWN 0xe005003fu
#define CR0_RESET 0x60000010u
#define SHADOWS (VCPU_SHADOW_STI | VCPU_SHADOW_MOV_SS | VCPU_SHADOW_NMI)

#define ATTRIBUTE_DPL 0x60u
#define ATTRIBUTE_LONG 0x200u
#define ATTRIBUTES 0xfffu
#define TABLE_LIMIT 0xffffu
#define SIGNATURE 0x600u /* family 6, as leaf 1 of CPUID */

/* ---- where they are */

static const uint8_t general[] = {
	[REG_RAX] = X86EMU_EAX, [REG_RCX] = X86EMU_ECX, [REG_RDX] = X86EMU_EDX, [REG_RBX] = X86EMU_EBX,
	[REG_RSP] = X86EMU_ESP, [REG_RBP] = X86EMU_EBP, [REG_RSI] = X86EMU_ESI, [REG_RDI] = X86EMU_EDI,
};

static uint32_t *place(struct x86emu_registers *registers, enum vcpu_scalar index)
{
	switch (index) {
	case REG_RIP:
		return &registers->general[X86EMU_EIP];
	case REG_RFLAGS:
		return &registers->flags;
	case REG_CR0:
		return &registers->control[0];
	case REG_CR2:
		return &registers->control[2];
	case REG_CR3:
		return &registers->control[3];
	default:
		return index <= REG_RDI ? &registers->general[general[index]] : NULL;
	}
}

static struct x86emu_segment *segment_place(struct x86emu_registers *registers, enum vcpu_segment index)
{
	if (index == SEG_LDTR)
		return &registers->ldt;
	return index == SEG_TR ? &registers->tr : &registers->segment[index];
}

static struct x86emu_table *table_place(struct x86emu_registers *registers, enum vcpu_segment index)
{
	return index == SEG_GDTR ? &registers->gdt : &registers->idt;
}

static bool is_table(enum vcpu_segment index)
{
	return index == SEG_GDTR || index == SEG_IDTR;
}

/* ---- reading */

static uint64_t read_scalar(struct x86emu_cpu *cpu, enum vcpu_scalar index)
{
	if (index == REG_TSC)
		return x86emu_tsc(cpu);
	if (index == REG_INTERRUPTIBILITY)
		return cpu->shadow;
	const uint32_t *at = place(&cpu->emu->registers, index);
	return at ? *at : ACTIVITY_ACTIVE; /* common code knows better */
}

static struct vcpu_segment_value read_segment(struct x86emu_registers *registers, enum vcpu_segment index)
{
	if (is_table(index)) {
		const struct x86emu_table *table = table_place(registers, index);
		return (struct vcpu_segment_value){.limit = table->limit, .base = table->base};
	}
	const struct x86emu_segment *from = segment_place(registers, index);
	return (struct vcpu_segment_value){.selector = from->selector,
					   .attributes = from->attributes,
					   .limit = from->limit,
					   .base = from->base};
}

void x86emu_read_state(struct vcpu *vcpu, const uint64_t wanted[2], struct vcpu_engine_half *out)
{
	struct x86emu_cpu *cpu = vcpu->backend;
	for (unsigned i = 0; i < REG_SCALARS; i++)
		if (wanted[0] & X86EMU_SCALARS & X86EMU_BIT(i))
			out->scalar[i] = read_scalar(cpu, i);
	for (unsigned i = 0; i < SEG_SEGMENTS; i++)
		if (wanted[1] & X86EMU_BIT(i))
			out->segment[i] = read_segment(&cpu->emu->registers, i);
	out->valid[0] |= wanted[0] & X86EMU_SCALARS;
	out->valid[1] |= wanted[1] & X86EMU_SEGMENTS;
}

/* ---- writing, to a copy until it was checked */

bool x86emu_enterable(const struct x86emu_registers *registers)
{
	return !(registers->control[0] & ~CR0_KNOWN) && !(registers->control[0] & X86EMU_CR0_PG) &&
	       !registers->control[4] && !(registers->flags & (FLAGS_RESERVED | FLAG_TRAP | FLAG_VM)) &&
	       !(registers->segment[SEG_CS].attributes & (ATTRIBUTE_DPL | ATTRIBUTE_LONG));
}

static bool write_scalar(struct x86emu_registers *registers, enum vcpu_scalar index, uint64_t value)
{
	uint32_t *at = place(registers, index);
	if (!at)
		return index != REG_INTERRUPTIBILITY || !(value & ~(uint64_t)SHADOWS);
	*at = (uint32_t)value;
	return value <= UINT32_MAX;
}

static bool write_segment(struct x86emu_registers *registers, enum vcpu_segment index,
			  const struct vcpu_segment_value *value)
{
	if (value->base > UINT32_MAX)
		return false;
	if (is_table(index)) {
		*table_place(registers, index) = (struct x86emu_table){(uint32_t)value->base, value->limit};
		return value->limit <= TABLE_LIMIT;
	}
	*segment_place(registers, index) = (struct x86emu_segment){.base = (uint32_t)value->base,
								   .limit = value->limit,
								   .selector = value->selector,
								   .attributes = value->attributes};
	return !(value->attributes & ~ATTRIBUTES);
}

static bool merge(struct x86emu_registers *registers, const struct vcpu_vmm_half *charged)
{
	bool fits = true;
	for (unsigned i = 0; i < REG_SCALARS; i++)
		if (charged->charged[0] & X86EMU_BIT(i))
			fits &= write_scalar(registers, i, charged->scalar[i]);
	for (unsigned i = 0; i < SEG_SEGMENTS; i++)
		if (charged->charged[1] & X86EMU_BIT(i))
			fits &= write_segment(registers, i, &charged->segment[i]);
	registers->flags |= FLAG_ALWAYS;
	registers->control[0] |= X86EMU_CR0_ET;
	return fits && x86emu_enterable(registers);
}

bool x86emu_write_state(struct vcpu *vcpu, const struct vcpu_vmm_half *charged, const uint8_t *fpu)
{
	struct x86emu_cpu *cpu = vcpu->backend;
	struct x86emu_registers merged = cpu->emu->registers;
	(void)fpu; /* there is none, and none can be charged */
	if (!merge(&merged, charged))
		return false;
	cpu->emu->registers = merged;
	if (charged->charged[0] & X86EMU_BIT(REG_TSC))
		x86emu_set_tsc(cpu, charged->scalar[REG_TSC]);
	if (charged->charged[0] & X86EMU_BIT(REG_INTERRUPTIBILITY))
		cpu->shadow = (uint32_t)charged->scalar[REG_INTERRUPTIBILITY];
	return true;
}

/* SDM vol. 3, table 10-1; what the library leaves at zero. */
void x86emu_reset_state(struct x86emu_cpu *cpu)
{
	struct x86emu_registers *registers = &cpu->emu->registers;
	registers->general[X86EMU_EDX] = SIGNATURE;
	registers->control[0] = CR0_RESET;
	registers->segment[SEG_CS].base = 0xffff0000;
	registers->segment[SEG_CS].attributes = 0x93;
	registers->ldt = (struct x86emu_segment){.limit = 0xffff, .attributes = 0x82};
	registers->tr = (struct x86emu_segment){.limit = 0xffff, .attributes = 0x8b};
}

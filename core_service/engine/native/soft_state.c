/* SPDX-License-Identifier: Apache-2.0
 *
 * Registers. Most are fields of Bochs' CPU; after a change that it has drawn conclusions from (mode, TLB,
 * rights to use the FPU, masked events) it is made to draw them again.
 */
#include <string.h>

#include "soft.h"
#include "soft_state_check.h"

#define BIT(index) (1ull << (index))

/* Scalars that are plain fields. */
struct place {
	uint32_t field; /* enum bochs_field; 0: see read_special */
	uint32_t bytes;
};

static const struct place places[REG_SCALARS] = {
	[REG_RAX] = {BOCHS_GENERAL, 8},
	[REG_RCX] = {BOCHS_GENERAL + 8, 8},
	[REG_RDX] = {BOCHS_GENERAL + 16, 8},
	[REG_RBX] = {BOCHS_GENERAL + 24, 8},
	[REG_RSP] = {BOCHS_RSP, 8},
	[REG_RBP] = {BOCHS_GENERAL + 40, 8},
	[REG_RSI] = {BOCHS_GENERAL + 48, 8},
	[REG_RDI] = {BOCHS_GENERAL + 56, 8},
	[REG_R8] = {BOCHS_GENERAL + 64, 8},
	[REG_R9] = {BOCHS_GENERAL + 72, 8},
	[REG_R10] = {BOCHS_GENERAL + 80, 8},
	[REG_R11] = {BOCHS_GENERAL + 88, 8},
	[REG_R12] = {BOCHS_GENERAL + 96, 8},
	[REG_R13] = {BOCHS_GENERAL + 104, 8},
	[REG_R14] = {BOCHS_GENERAL + 112, 8},
	[REG_R15] = {BOCHS_GENERAL + 120, 8},
	[REG_RIP] = {BOCHS_RIP, 8},
	[REG_CR0] = {BOCHS_CR0, 4},
	[REG_CR2] = {BOCHS_CR2, 8},
	[REG_CR3] = {BOCHS_CR3, 8},
	[REG_CR4] = {BOCHS_CR4, 4},
	[REG_DR0] = {BOCHS_DR, 8},
	[REG_DR1] = {BOCHS_DR + 8, 8},
	[REG_DR2] = {BOCHS_DR + 16, 8},
	[REG_DR3] = {BOCHS_DR + 24, 8},
	[REG_DR6] = {BOCHS_DR6, 4},
	[REG_DR7] = {BOCHS_DR7, 4},
	[REG_EFER] = {BOCHS_EFER, 4},
	[REG_XCR0] = {BOCHS_XCR0, 4},
	[REG_XSS] = {BOCHS_XSS, 8},
	[REG_PDPTE0] = {BOCHS_PDPTES, 8},
	[REG_PDPTE1] = {BOCHS_PDPTES + 8, 8},
	[REG_PDPTE2] = {BOCHS_PDPTES + 16, 8},
	[REG_PDPTE3] = {BOCHS_PDPTES + 24, 8},
	[REG_SYSENTER_CS] = {BOCHS_SYSENTER_CS, 4},
	[REG_SYSENTER_SP] = {BOCHS_SYSENTER_SP, 8},
	[REG_SYSENTER_IP] = {BOCHS_SYSENTER_IP, 8},
	[REG_STAR] = {BOCHS_STAR, 8},
	[REG_LSTAR] = {BOCHS_LSTAR, 8},
	[REG_CSTAR] = {BOCHS_CSTAR, 8},
	[REG_FMASK] = {BOCHS_FMASK, 4},
	[REG_KERNEL_GS_BASE] = {BOCHS_KERNEL_GS_BASE, 8},
	[REG_TSC_OFFSET] = {BOCHS_TSC_ADJUST, 8},
	[REG_TSC_AUX] = {BOCHS_TSC_AUX, 4},
	[REG_APIC_BASE] = {BOCHS_APIC_BASE, 8},
	[REG_PAT] = {BOCHS_PAT, 8},
};

/* Those from which Bochs has concluded nothing. */
#define PLAIN_SCALARS \
	((BIT(REG_RFLAGS + 1) - 1) | BIT(REG_CR2) | BIT(REG_CR8) | BIT(REG_SYSENTER_CS) | BIT(REG_SYSENTER_SP) | \
	 BIT(REG_SYSENTER_IP) | BIT(REG_STAR) | BIT(REG_LSTAR) | BIT(REG_CSTAR) | BIT(REG_FMASK) | \
	 BIT(REG_KERNEL_GS_BASE) | BIT(REG_TSC) | BIT(REG_TSC_OFFSET) | BIT(REG_TSC_AUX) | BIT(REG_INTERRUPTIBILITY))
#define PDPTES (BIT(REG_PDPTE0) | BIT(REG_PDPTE1) | BIT(REG_PDPTE2) | BIT(REG_PDPTE3))
#define PDPTE_CAUSES (BIT(REG_CR0) | BIT(REG_CR3) | BIT(REG_CR4) | BIT(REG_EFER))

/* ---- segments: AMD's packed attributes are the descriptor's rights with bits 8-11 moved to 12-15 */

static struct bochs_segment *segment_place(const struct bochs *bochs, enum vcpu_segment index)
{
	if (index == SEG_LDTR)
		return bochs_segment(bochs, BOCHS_LDTR, 0);
	if (index == SEG_TR)
		return bochs_segment(bochs, BOCHS_TR, 0);
	return bochs_segment(bochs, BOCHS_SEGMENTS, index);
}

static struct bochs_table *table_place(const struct bochs *bochs, enum vcpu_segment index)
{
	return bochs_table(bochs, index == SEG_GDTR ? BOCHS_GDTR : BOCHS_IDTR);
}

static bool is_table(enum vcpu_segment index)
{
	return index == SEG_GDTR || index == SEG_IDTR;
}

static struct vcpu_segment_value read_segment(const struct bochs *bochs, enum vcpu_segment index)
{
	if (is_table(index)) {
		const struct bochs_table *table = table_place(bochs, index);
		return (struct vcpu_segment_value){.limit = table->limit, .base = table->base};
	}
	const struct bochs_segment *from = segment_place(bochs, index);
	bool present = from->valid && from->present;
	unsigned attributes = from->type | from->segment << 4 | from->dpl << 5 | present << 7 |
			      from->available << 8 | from->long_mode << 9 | from->default_big << 10 |
			      from->granularity << 11;
	return (struct vcpu_segment_value){
		.selector = from->selector, .attributes = (uint16_t)attributes, .limit = from->limit, .base = from->base};
}

static void write_segment(const struct bochs *bochs, enum vcpu_segment index, const struct vcpu_segment_value *value)
{
	if (is_table(index)) {
		*table_place(bochs, index) = (struct bochs_table){.base = value->base, .limit = (uint16_t)value->limit};
		return;
	}
	uint16_t rights = (uint16_t)((value->attributes & 0xff) | (value->attributes & 0xf00) << 4);
	bochs->set_segment(segment_place(bochs, index), value->attributes & SEGMENT_PRESENT, value->selector,
			   value->base, value->limit, rights);
}

/* ---- the interrupt shadow, and NMIs blocked until IRET */

static uint64_t read_interruptibility(const struct bochs *bochs)
{
	uint64_t bits = *bochs_u32(bochs, BOCHS_MASKED) & BOCHS_EVENT_NMI ? VCPU_SHADOW_NMI : 0;
	if (*bochs_u64(bochs, BOCHS_ICOUNT) > *bochs_u64(bochs, BOCHS_INHIBIT_ICOUNT))
		return bits;
	switch (*bochs_u32(bochs, BOCHS_INHIBIT_MASK)) {
	case BOCHS_INHIBIT_INTERRUPTS:
		return bits | VCPU_SHADOW_STI;
	case BOCHS_INHIBIT_MOV_SS:
		return bits | VCPU_SHADOW_MOV_SS;
	default:
		return bits;
	}
}

static void write_interruptibility(const struct bochs *bochs, uint64_t bits)
{
	uint32_t mask = 0;
	if (bits & VCPU_SHADOW_STI)
		mask = BOCHS_INHIBIT_INTERRUPTS;
	if (bits & VCPU_SHADOW_MOV_SS)
		mask = BOCHS_INHIBIT_MOV_SS;
	*bochs_u32(bochs, BOCHS_INHIBIT_MASK) = mask;
	*bochs_u64(bochs, BOCHS_INHIBIT_ICOUNT) = *bochs_u64(bochs, BOCHS_ICOUNT);
	if (bits & VCPU_SHADOW_NMI)
		*bochs_u32(bochs, BOCHS_MASKED) |= BOCHS_EVENT_NMI;
	else
		*bochs_u32(bochs, BOCHS_MASKED) &= ~(uint32_t)BOCHS_EVENT_NMI;
}

/* ---- scalars */

static uint64_t read_special(const struct bochs *bochs, enum vcpu_scalar index)
{
	switch (index) {
	case REG_RFLAGS:
		return bochs->force_flags();
	case REG_CR8:
		return bochs->task_priority(0);
	case REG_TSC:
		return soft_clock_ns() + *bochs_u64(bochs, BOCHS_TSC_ADJUST);
	case REG_INTERRUPTIBILITY:
		return read_interruptibility(bochs);
	default:
		return ACTIVITY_ACTIVE; /* common code knows better */
	}
}

static uint64_t read_scalar(const struct bochs *bochs, enum vcpu_scalar index)
{
	struct place place = places[index];
	if (place.bytes == 8)
		return *bochs_u64(bochs, place.field);
	return place.bytes == 4 ? *bochs_u32(bochs, place.field) : read_special(bochs, index);
}

static void write_special(const struct bochs *bochs, enum vcpu_scalar index, uint64_t value)
{
	switch (index) {
	case REG_CR8:
		bochs->set_task_priority(0, (uint32_t)value);
		break;
	case REG_TSC:
		*bochs_u64(bochs, BOCHS_TSC_ADJUST) = value - soft_clock_ns();
		break;
	case REG_INTERRUPTIBILITY:
		write_interruptibility(bochs, value);
		break;
	default:
		break;
	}
}

static void write_scalar(const struct bochs *bochs, enum vcpu_scalar index, uint64_t value)
{
	struct place place = places[index];
	if (place.bytes == 8)
		*bochs_u64(bochs, place.field) = value;
	else if (place.bytes == 4)
		*bochs_u32(bochs, place.field) = (uint32_t)value;
	else
		write_special(bochs, index, value);
}

/* After all else: in which mode the flags are set decides what Bochs makes of them. */
static void write_flags(const struct bochs *bochs, uint64_t flags)
{
	*bochs_u32(bochs, BOCHS_EFLAGS) &= ~FLAG_VM; /* it may not have been virtual-8086 mode in long mode before */
	bochs->set_flags((uint32_t)flags | FLAG_ALWAYS);
}

static bool load_pdptes(const struct bochs *bochs, const uint64_t charged[2])
{
	bool wanted = charged[0] & PDPTE_CAUSES && !(charged[0] & PDPTES);
	bool used = *bochs_u32(bochs, BOCHS_CR0) & CR0_PG && *bochs_u32(bochs, BOCHS_CR4) & CR4_PAE &&
		    !(*bochs_u32(bochs, BOCHS_EFER) & EFER_LMA);
	return !wanted || !used || bochs->load_pdptes(*bochs_u64(bochs, BOCHS_CR3));
}

/* With the turn, since it also cuts the links between decoded traces, which other vCPUs do to this one as well. */
static void conclude(struct soft_vcpu *soft)
{
	soft_turn_take(&soft->vm->turn, &soft->waiter, NULL);
	soft->bochs.handle_context_change();
	soft_turn_give(&soft->vm->turn);
}

/* ---- the backend's */

void soft_read_state(struct vcpu *vcpu, const uint64_t wanted[2], struct vcpu_engine_half *out)
{
	const struct soft_vcpu *soft = vcpu->backend;
	for (unsigned i = 0; wanted[0] >> i && i < REG_SCALARS; i++)
		if (wanted[0] >> i & 1)
			out->scalar[i] = read_scalar(&soft->bochs, i);
	for (unsigned i = 0; wanted[1] >> i && i < SEG_SEGMENTS; i++)
		if (wanted[1] >> i & 1)
			out->segment[i] = read_segment(&soft->bochs, i);
	if (wanted[1] >> VCPU_FPU_BIT & 1)
		soft_read_fpu(&soft->bochs, vcpu->fpu_valid);
	out->valid[0] |= wanted[0] & SOFT_SCALARS;
	out->valid[1] |= wanted[1] & SOFT_SEGMENTS;
}

/* The state that there would be, for the check. */
static void merge_state(struct soft_vcpu *soft, const struct vcpu_vmm_half *charged, struct soft_state *state)
{
	for (unsigned i = 0; i < REG_SCALARS; i++)
		state->scalar[i] = charged->charged[0] >> i & 1 ? charged->scalar[i] : read_scalar(&soft->bochs, i);
	for (unsigned i = 0; i < SEG_SEGMENTS; i++)
		state->segment[i] =
			charged->charged[1] >> i & 1 ? charged->segment[i] : read_segment(&soft->bochs, i);
}

static void write_charged(const struct bochs *bochs, const struct vcpu_vmm_half *charged)
{
	for (unsigned i = 0; charged->charged[0] >> i && i < REG_SCALARS; i++)
		if (charged->charged[0] >> i & 1 && i != REG_RFLAGS)
			write_scalar(bochs, i, charged->scalar[i]);
	for (unsigned i = 0; charged->charged[1] >> i && i < SEG_SEGMENTS; i++)
		if (charged->charged[1] >> i & 1)
			write_segment(bochs, i, &charged->segment[i]);
	if (charged->charged[0] & BIT(REG_RFLAGS))
		write_flags(bochs, charged->scalar[REG_RFLAGS]);
	*bochs_u64(bochs, BOCHS_PREV_RIP) = *bochs_u64(bochs, BOCHS_RIP);
}

bool soft_write_state(struct vcpu *vcpu, const struct vcpu_vmm_half *charged, const uint8_t *fpu)
{
	struct soft_vcpu *soft = vcpu->backend;
	const struct bochs *bochs = &soft->bochs;
	struct soft_state state;

	merge_state(soft, charged, &state);
	if (!soft_state_enterable(bochs, &state) || (fpu && !soft_fpu_enterable(bochs, fpu)))
		return false;
	write_charged(bochs, charged);
	if (fpu)
		soft_write_fpu(bochs, fpu);
	if (charged->charged[0] & ~PLAIN_SCALARS || charged->charged[1])
		conclude(soft);
	return load_pdptes(bochs, charged->charged);
}

void soft_reset_state(struct soft_vcpu *soft)
{
	struct bochs_leaf leaf = {0};
	soft->bochs.cpuid(*(void *const *)(soft->bochs.cpu + BOCHS_CPUID), 1, 0, &leaf);
	*bochs_u64(&soft->bochs, BOCHS_GENERAL + 16) = leaf.eax; /* EDX: family, model, stepping */
	*bochs_u64(&soft->bochs, BOCHS_TSC_ADJUST) = 0; /* Bochs began at 0 when it was created, later than others */
	if (soft->vcpu->index)
		*bochs_u64(&soft->bochs, BOCHS_APIC_BASE) &= ~APIC_BASE_BOOTSTRAP;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * CPUID: a table that the VMM can set.
 */
#include <string.h>

#include "x86emu.h"

#define EXTENDED 0x80000000u
#define RANGE 0xc0000000u /* its first leaf tells the highest */
#define FEATURE_TSC (1u << 4)  /* leaf 1, edx */
#define FEATURE_MSR (1u << 5)
#define FEATURE_CMOV (1u << 15)

static const struct cpuid_leaf defaults[] = {
	{.function = 0, .eax = 0x15, .ebx = 0x756e6547, .edx = 0x49656e69, .ecx = 0x6c65746e}, /* GenuineIntel */
	{.function = 1, .eax = 0x600, .edx = FEATURE_TSC | FEATURE_MSR | FEATURE_CMOV},
	{.function = 0x15, .eax = 1, .ebx = 1, .ecx = X86EMU_TSC_KHZ * 1000u}, /* TSC / crystal, crystal in Hz */
	{.function = EXTENDED, .eax = EXTENDED | 8},
	{.function = EXTENDED | 8, .eax = X86EMU_PHYSICAL_BITS | 32 << 8},
};

void x86emu_cpuid_defaults(struct x86emu_cpu *cpu)
{
	memcpy(cpu->leaf, defaults, sizeof(defaults));
	cpu->leaves = sizeof(defaults) / sizeof(defaults[0]);
}

static const struct cpuid_leaf *find(const struct x86emu_cpu *cpu, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < cpu->leaves; i++) {
		const struct cpuid_leaf *leaf = &cpu->leaf[i];
		if (leaf->function == function && (!(leaf->flags & CPUID_SUBLEAF) || leaf->index == index))
			return leaf;
	}
	return NULL;
}

/* The highest leaf that the range's first one names, or 0. */
static uint32_t highest(const struct x86emu_cpu *cpu, uint32_t range)
{
	const struct cpuid_leaf *first = find(cpu, range, 0);
	return first ? first->eax : 0;
}

/* NULL for one that is zero. Beyond its range's highest leaf the highest basic one answers: SDM vol. 2, CPUID. */
static const struct cpuid_leaf *answer(const struct x86emu_cpu *cpu, uint32_t function, uint32_t index)
{
	const struct cpuid_leaf *leaf = find(cpu, function, index);
	if (leaf || function <= highest(cpu, function & RANGE))
		return leaf;
	return find(cpu, highest(cpu, 0), index);
}

void x86emu_execute_cpuid(struct x86emu_cpu *cpu)
{
	uint32_t *general = cpu->emu->registers.general;
	static const struct cpuid_leaf zero;
	const struct cpuid_leaf *leaf = answer(cpu, general[X86EMU_EAX], general[X86EMU_ECX]);
	if (!leaf)
		leaf = &zero;
	general[X86EMU_EAX] = leaf->eax;
	general[X86EMU_EBX] = leaf->ebx;
	general[X86EMU_ECX] = leaf->ecx;
	general[X86EMU_EDX] = leaf->edx;
}

uint32_t x86emu_get_cpuid(struct vcpu *vcpu, struct cpuid_leaf *leaf)
{
	const struct x86emu_cpu *cpu = vcpu->backend;
	memcpy(leaf, cpu->leaf, cpu->leaves * sizeof(*leaf));
	return cpu->leaves;
}

enum channel_status x86emu_set_cpuid(struct vcpu *vcpu, const struct cpuid_leaf *leaf, uint32_t leaves,
				     struct failure *failure)
{
	struct x86emu_cpu *cpu = vcpu->backend;
	(void)failure;
	memcpy(cpu->leaf, leaf, leaves * sizeof(*leaf));
	cpu->leaves = leaves;
	return CHANNEL_OK;
}

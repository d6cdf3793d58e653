/* SPDX-License-Identifier: Apache-2.0
 *
 * CPUID: a table of each vCPU, at first what the CPU model has.
 *
 * The vendor stays Intel: Linux believes leaf 0x15 of no other. The hypervisor bit is set, with a vendor leaf
 * of our own and nothing paravirtual behind it, as guests then keep from probing what a VM never has.
 */
#include <string.h>

#include "soft.h"

#define FEATURE_APIC (1u << 9)        /* leaf 1, edx: no local APIC is served */
#define FEATURE_PDCM (1u << 15)       /* leaf 1, ecx: no performance counters are */
#define FEATURE_OSXSAVE (1u << 27)    /* leaf 1, ecx: CR4.OSXSAVE */
#define FEATURE_HYPERVISOR (1u << 31) /* leaf 1, ecx */
#define FEATURE_OSPKE (1u << 4)       /* leaf 7, ecx: CR4.PKE */
#define TOPOLOGY_COUNTS 0xfc000000u   /* leaf 4, eax: cores of the package, as APIC ids would number them */

#define LAST_BASIC 0x16u
#define VENDOR 0x40000000u
#define EXTENDED 0x80000000u
#define LAST_EXTENDED 0x80000008u
#define CLASS 0xc0000000u /* the leaves of a class begin with one that tells the highest */
#define CACHES 4u
#define XSAVE 0xdu
#define XSAVE_SUBLEAVES 64u /* one for each bit of XCR0 and XSS */

/* ---- the CPU model */

static struct bochs_leaf vendor_leaf(void)
{
	struct bochs_leaf leaf = {.eax = VENDOR};
	memcpy(&leaf.ebx, "vmsession\0\0\0", 12);
	return leaf;
}

static void hide(uint32_t number, struct bochs_leaf *leaf, uint32_t index)
{
	switch (number) {
	case 1:
		leaf->ebx = (leaf->ebx & 0x0000ffff) | 1u << 16 | index << 24; /* one logical CPU, its APIC id */
		leaf->ecx = (leaf->ecx & ~FEATURE_PDCM) | FEATURE_HYPERVISOR;
		leaf->edx &= ~FEATURE_APIC;
		break;
	case 4:
		leaf->eax &= ~TOPOLOGY_COUNTS;
		break;
	case 5:   /* MONITOR/MWAIT */
	case 6:   /* thermal and power management */
	case 0xa: /* performance counters: Linux' driver takes a #GP for what is said here */
	case 0xb: /* topology by x2APIC ids */
		*leaf = (struct bochs_leaf){0};
		break;
	case 0x15: /* TSC / crystal = ebx / eax, crystal in Hz */
		*leaf = (struct bochs_leaf){.eax = 1, .ebx = 1, .ecx = SOFT_TSC_KHZ * 1000u};
		break;
	case 0x16: /* base, highest and bus MHz */
		*leaf = (struct bochs_leaf){.eax = SOFT_TSC_KHZ / 1000, .ebx = SOFT_TSC_KHZ / 1000, .ecx = 100};
		break;
	case VENDOR:
		*leaf = vendor_leaf();
		break;
	}
}

static struct bochs_leaf model_leaf(const struct soft_vcpu *soft, uint32_t function, uint32_t index)
{
	struct bochs_leaf leaf;
	soft->bochs.cpuid(*(void *const *)(soft->bochs.cpu + BOCHS_CPUID), function, index, &leaf);
	return leaf;
}

/* ---- the table */

static void add(struct soft_vcpu *soft, uint32_t function, uint32_t index, uint32_t flags)
{
	struct bochs_leaf leaf = model_leaf(soft, function, index);
	hide(function, &leaf, soft->vcpu->index);
	if (!(leaf.eax | leaf.ebx | leaf.ecx | leaf.edx))
		return; /* as one that is not there */
	soft->cpuid[soft->cpuid_leaves++] = (struct cpuid_leaf){
		.function = function, .index = index, .flags = flags,
		.eax = leaf.eax, .ebx = leaf.ebx, .ecx = leaf.ecx, .edx = leaf.edx};
}

static uint32_t subleaves(uint32_t function)
{
	switch (function) {
	case CACHES:
		return 4;
	case XSAVE:
		return XSAVE_SUBLEAVES;
	default:
		return function == 7; /* the model has but one, and says so in EAX */
	}
}

static void add_function(struct soft_vcpu *soft, uint32_t function)
{
	uint32_t count = subleaves(function);
	if (!count)
		add(soft, function, 0, 0);
	for (uint32_t i = 0; i < count; i++)
		add(soft, function, i, CPUID_SUBLEAF);
}

void soft_cpuid_fill(struct soft_vcpu *soft)
{
	for (uint32_t function = 0; function <= LAST_BASIC; function++)
		add_function(soft, function);
	add_function(soft, VENDOR);
	for (uint32_t function = EXTENDED; function <= LAST_EXTENDED; function++)
		add_function(soft, function);
}

uint32_t soft_get_cpuid(struct vcpu *vcpu, struct cpuid_leaf *leaf)
{
	const struct soft_vcpu *soft = vcpu->backend;
	memcpy(leaf, soft->cpuid, soft->cpuid_leaves * sizeof(*leaf));
	return soft->cpuid_leaves;
}

enum channel_status soft_set_cpuid(struct vcpu *vcpu, const struct cpuid_leaf *leaf, uint32_t leaves,
				   struct failure *failure)
{
	struct soft_vcpu *soft = vcpu->backend;
	(void)failure;
	memcpy(soft->cpuid, leaf, leaves * sizeof(*leaf));
	soft->cpuid_leaves = leaves;
	return CHANNEL_OK;
}

/* ---- the instruction */

static const struct cpuid_leaf *find(const struct soft_vcpu *soft, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < soft->cpuid_leaves; i++) {
		const struct cpuid_leaf *leaf = &soft->cpuid[i];
		if (leaf->function == function && (!(leaf->flags & CPUID_SUBLEAF) || leaf->index == index))
			return leaf;
	}
	return NULL;
}

/* That the first leaf of a class names; 0 where there is none. */
static uint32_t highest(const struct soft_vcpu *soft, uint32_t class)
{
	const struct cpuid_leaf *first = find(soft, class, 0);
	return first ? first->eax : 0;
}

/* NULL for one that is zero. Beyond its class' highest leaf the highest basic one answers: SDM vol. 2, CPUID. */
static const struct cpuid_leaf *answer(const struct soft_vcpu *soft, uint32_t function, uint32_t index)
{
	const struct cpuid_leaf *leaf = find(soft, function, index);
	if (leaf || function <= highest(soft, function & CLASS))
		return leaf;
	return find(soft, highest(soft, 0), index);
}

/* What the CPU computes, whatever the table says. */
static void compute(const struct soft_vcpu *soft, const struct cpuid_leaf *from, struct bochs_leaf *leaf)
{
	struct bochs_leaf now = model_leaf(soft, from->function, from->index);
	if (from->function == 1)
		leaf->ecx = (leaf->ecx & ~FEATURE_OSXSAVE) | (now.ecx & FEATURE_OSXSAVE);
	if (from->function == 7 && from->index == 0)
		leaf->ecx = (leaf->ecx & ~FEATURE_OSPKE) | (now.ecx & FEATURE_OSPKE);
	if (from->function == XSAVE && from->index <= 1)
		leaf->ebx = now.ebx; /* bytes of the components enabled in XCR0 and XSS */
}

void soft_cpuid(const void *model, uint32_t function, uint32_t index, struct bochs_leaf *leaf)
	__asm__("_ZNK12corei3_cnl_t14get_cpuid_leafEjjP16cpuid_function_t");
void soft_cpuid(const void *model, uint32_t function, uint32_t index, struct bochs_leaf *leaf)
{
	const struct soft_vcpu *soft = soft_current;
	const struct cpuid_leaf *found = answer(soft, function, index);
	(void)model;
	*leaf = (struct bochs_leaf){0};
	if (!found)
		return;
	*leaf = (struct bochs_leaf){.eax = found->eax, .ebx = found->ebx, .ecx = found->ecx, .edx = found->edx};
	compute(soft, found, leaf);
}

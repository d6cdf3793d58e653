/* SPDX-License-Identifier: Apache-2.0
 *
 * CPUID and the time-stamp counter.
 *
 * The vendor stays Intel: Linux believes leaf 0x15 of no other. The hypervisor bit is set, with a vendor leaf
 * of our own and nothing paravirtual behind it, as guests then keep from probing what a VM never has.
 */
#include <string.h>

#include "page_wait.h"
#include "soft.h"

#define FEATURE_APIC (1u << 9)        /* leaf 1, edx: no local APIC is served */
#define FEATURE_PDCM (1u << 15)       /* leaf 1, ecx: no performance counters are */
#define FEATURE_HYPERVISOR (1u << 31) /* leaf 1, ecx */
#define TOPOLOGY_COUNTS 0xfc000000u   /* leaf 4, eax: cores of the package, as APIC ids would number them */

#define LAST_BASIC 0x16u
#define VENDOR 0x40000000u
#define EXTENDED 0x80000000u
#define LAST_EXTENDED 0x80000008u

/* Beyond what there is, the last basic leaf answers: SDM vol. 2, CPUID. */
static uint32_t answering(uint32_t number)
{
	bool known = number <= LAST_BASIC || number == VENDOR || (number >= EXTENDED && number <= LAST_EXTENDED);
	return known ? number : LAST_BASIC;
}

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

void soft_cpuid(const void *model, uint32_t number, uint32_t subleaf, struct bochs_leaf *leaf)
	__asm__("_ZNK12corei3_cnl_t14get_cpuid_leafEjjP16cpuid_function_t");
void soft_cpuid(const void *model, uint32_t number, uint32_t subleaf, struct bochs_leaf *leaf)
{
	struct soft_vcpu *soft = soft_current;
	number = answering(number);
	soft->bochs.cpuid(model, number, subleaf, leaf);
	hide(number, leaf, soft->vcpu->index);
}

/* ---- TSC: nanoseconds since the VM began, the same on all vCPUs but for what each wrote to it */

uint64_t soft_clock_ns(void)
{
	return page_now_ns() - soft_current->vm->start_ns;
}

uint64_t soft_read_tsc(void) __asm__("_ZN8BX_CPU_C7get_TSCEv");
uint64_t soft_read_tsc(void)
{
	return soft_clock_ns() + *bochs_u64(&soft_current->bochs, BOCHS_TSC_ADJUST);
}

void soft_write_tsc(uint64_t value) __asm__("_ZN8BX_CPU_C7set_TSCEm");
void soft_write_tsc(uint64_t value)
{
	*bochs_u64(&soft_current->bochs, BOCHS_TSC_ADJUST) = value - soft_clock_ns();
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "soft_state_check.h"

#include "soft.h"

#define FLAGS_DEFINED 0x3f7fd7u
#define CR0_DEFINED 0xe005003fu
#define CR3_NO_FLUSH (1ull << 63)
#define XCR0_X87 (1u << 0)
#define XCR0_SSE (1u << 1)
#define XCR0_AVX (1u << 2)
#define XCR0_AVX512 (7u << 5)
#define TSS_286_BUSY 0x3
#define TSS_386_BUSY 0xb
#define SHADOWS (VCPU_SHADOW_STI | VCPU_SHADOW_MOV_SS | VCPU_SHADOW_NMI)
#define PDPTE_RESERVED 0x1e6u
#define PHYSICAL_LIMIT (1ull << SOFT_PHYSICAL_BITS)

static bool canonical(uint64_t address)
{
	return (uint64_t)((int64_t)(address << 16) >> 16) == address;
}

static bool control_fits(const struct bochs *bochs, const uint64_t *scalar)
{
	uint64_t cr0 = scalar[REG_CR0], efer = scalar[REG_EFER];
	bool paging = cr0 & CR0_PG, long_mode = efer & EFER_LMA;
	if (cr0 & ~(uint64_t)CR0_DEFINED || (paging && !(cr0 & CR0_PE)) || (cr0 & CR0_NW && !(cr0 & CR0_CD)))
		return false;
	if (scalar[REG_CR4] & ~(uint64_t)*bochs_u32(bochs, BOCHS_CR4_ALLOWED) ||
	    efer & ~(uint64_t)(*bochs_u32(bochs, BOCHS_EFER_ALLOWED) | EFER_LMA))
		return false;
	if ((scalar[REG_CR3] & ~CR3_NO_FLUSH) >= PHYSICAL_LIMIT)
		return false;
	return long_mode == (paging && efer & EFER_LME) && (!long_mode || scalar[REG_CR4] & CR4_PAE);
}

static bool xcr0_fits(const struct bochs *bochs, uint64_t xcr0)
{
	uint64_t avx512 = xcr0 & XCR0_AVX512;
	if (!(xcr0 & XCR0_X87) || xcr0 & ~(uint64_t)*bochs_u32(bochs, BOCHS_XCR0_ALLOWED))
		return false;
	if (xcr0 & XCR0_AVX && !(xcr0 & XCR0_SSE))
		return false;
	return !avx512 || (avx512 == XCR0_AVX512 && xcr0 & XCR0_AVX);
}

static bool pat_fits(uint64_t pat)
{
	for (unsigned i = 0; i < 64; i += 8) {
		unsigned type = pat >> i & 0xff;
		if (type > 7 || type == 2 || type == 3)
			return false;
	}
	return true;
}

/* SDM vol. 3, 4.4.1: those that are present have reserved bits. */
static bool pdptes_fit(const uint64_t *pdpte)
{
	for (unsigned i = 0; i < 4; i++)
		if (pdpte[i] & 1 && pdpte[i] & (PDPTE_RESERVED | ~(PHYSICAL_LIMIT - 1)))
			return false;
	return true;
}

static bool system_registers_fit(const struct bochs *bochs, const uint64_t *scalar)
{
	return !(scalar[REG_DR6] >> 32) && !(scalar[REG_DR7] >> 32) && scalar[REG_CR8] <= 15 &&
	       !(scalar[REG_XSS] & ~(uint64_t)*bochs_u32(bochs, BOCHS_XSS_ALLOWED)) &&
	       !(scalar[REG_SYSENTER_CS] >> 32) && !(scalar[REG_FMASK] >> 32) && !(scalar[REG_TSC_AUX] >> 32) &&
	       !(scalar[REG_INTERRUPTIBILITY] & ~(uint64_t)SHADOWS) && scalar[REG_APIC_BASE] < PHYSICAL_LIMIT &&
	       canonical(scalar[REG_LSTAR]) && canonical(scalar[REG_CSTAR]) && canonical(scalar[REG_SYSENTER_SP]) &&
	       canonical(scalar[REG_SYSENTER_IP]) && canonical(scalar[REG_KERNEL_GS_BASE]) &&
	       pat_fits(scalar[REG_PAT]) && pdptes_fit(&scalar[REG_PDPTE0]) && xcr0_fits(bochs, scalar[REG_XCR0]);
}

static bool instruction_fits(const struct soft_state *state)
{
	uint64_t flags = state->scalar[REG_RFLAGS], rip = state->scalar[REG_RIP];
	bool long_mode = state->scalar[REG_EFER] & EFER_LMA, protected = state->scalar[REG_CR0] & CR0_PE;
	uint16_t code = state->segment[SEG_CS].attributes;
	if (flags & ~(uint64_t)FLAGS_DEFINED || (flags & FLAG_VM && (long_mode || !protected)))
		return false;
	if (long_mode && code & SEGMENT_LONG)
		return !(code & SEGMENT_BIG) && canonical(rip);
	return !(rip >> 32);
}

static bool segments_fit(const struct vcpu_segment_value *segment)
{
	unsigned task = segment[SEG_TR].attributes & 0x1f;
	if (segment[SEG_TR].attributes & SEGMENT_PRESENT && task != TSS_386_BUSY && task != TSS_286_BUSY)
		return false;
	for (unsigned i = 0; i < SEG_SEGMENTS; i++)
		if (!canonical(segment[i].base))
			return false;
	return segment[SEG_GDTR].limit <= 0xffff && segment[SEG_IDTR].limit <= 0xffff;
}

bool soft_state_enterable(const struct bochs *bochs, const struct soft_state *state)
{
	return control_fits(bochs, state->scalar) && system_registers_fit(bochs, state->scalar) &&
	       instruction_fits(state) && segments_fit(state->segment);
}

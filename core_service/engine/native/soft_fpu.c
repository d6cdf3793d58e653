/* SPDX-License-Identifier: Apache-2.0
 *
 * FPU, SSE, AVX and AVX-512 state as an XSAVE area in the standard format: SDM vol. 1, 13.4.
 */
#include <string.h>

#include "soft.h"

/* The legacy region, SDM vol. 1, table 13-1, in the 64-bit form of FXSAVE. */
struct legacy_area {
	uint16_t control, status;
	uint8_t tags, reserved;
	uint16_t opcode;
	uint64_t ip, dp;
	uint32_t mxcsr, mxcsr_mask;
	uint8_t st[8][16];
	uint8_t xmm[16][16];
};
_Static_assert(offsetof(struct legacy_area, xmm) == 160, "as FXSAVE has it");

/* Offsets of the header and the extended regions of this CPU model: CPUID leaf 0xd. */
enum {
	AREA_STATE_COMPONENTS = 512,  /* XSTATE_BV */
	AREA_COMPACTION = 520,        /* XCOMP_BV, 0 in the standard format; reserved up to 576 */
	AREA_YMM = 576,               /* bits 128-255 of YMM0-15 */
	AREA_OPMASK = 1088,
	AREA_ZMM = 1152,              /* bits 256-511 of ZMM0-15 */
	AREA_HIGH_ZMM = 1664,         /* ZMM16-31 */
};

enum { COMPONENT_X87 = 1 << 0, COMPONENT_SSE = 1 << 1, COMPONENT_AVX = 1 << 2, COMPONENT_OPMASK = 1 << 5,
       COMPONENT_ZMM = 1 << 6, COMPONENT_HIGH_ZMM = 1 << 7, COMPONENTS = 0xe7 };

#define TAG_VALID 0u
#define TAG_ZERO 1u
#define TAG_SPECIAL 2u
#define TAG_EMPTY 3u
#define STATUS_TOP_SHIFT 11
#define STATUS_SUMMARY 0x8080u /* B and ES: an unmasked exception is pending */
#define EXCEPTIONS 0x3fu
#define CONTROL_RESERVED 0xe0c0u
#define CONTROL_ALWAYS 0x0040u
#define CONTROL_INITIAL 0x037fu

static struct bochs_fpu *fpu_of(const struct bochs *bochs)
{
	return (struct bochs_fpu *)(bochs->cpu + BOCHS_FPU);
}

static uint8_t *vector(const struct bochs *bochs, unsigned index)
{
	return bochs->cpu + BOCHS_VECTORS + 64 * index;
}

/* ---- reading */

static void read_x87(const struct bochs *bochs, struct legacy_area *area)
{
	const struct bochs_fpu *fpu = fpu_of(bochs);
	area->control = fpu->control;
	area->status = (uint16_t)((fpu->status & ~(7u << STATUS_TOP_SHIFT)) | fpu->top << STATUS_TOP_SHIFT);
	for (unsigned i = 0; i < 8; i++)
		if ((fpu->tags >> 2 * i & 3u) != TAG_EMPTY)
			area->tags |= (uint8_t)(1u << i);
	area->opcode = fpu->opcode;
	area->ip = fpu->ip;
	area->dp = fpu->dp;
	for (unsigned i = 0; i < 8; i++) {
		unsigned physical = (fpu->top + i) & 7;
		memcpy(area->st[i], &fpu->st[physical].significand, 8);
		memcpy(area->st[i] + 8, &fpu->st[physical].sign_exponent, 2);
	}
}

void soft_read_fpu(const struct bochs *bochs, uint8_t *area)
{
	struct legacy_area legacy = {.mxcsr = *bochs_u32(bochs, BOCHS_MXCSR),
				     .mxcsr_mask = *bochs_u32(bochs, BOCHS_MXCSR_MASK)};
	const uint64_t components = COMPONENTS;

	memset(area, 0, VCPU_FPU_BYTES);
	read_x87(bochs, &legacy);
	for (unsigned i = 0; i < 16; i++) {
		memcpy(legacy.xmm[i], vector(bochs, i), 16);
		memcpy(area + AREA_YMM + 16 * i, vector(bochs, i) + 16, 16);
		memcpy(area + AREA_ZMM + 32 * i, vector(bochs, i) + 32, 32);
		memcpy(area + AREA_HIGH_ZMM + 64 * i, vector(bochs, 16 + i), 64);
	}
	memcpy(area + AREA_OPMASK, bochs->cpu + BOCHS_OPMASK, 64);
	memcpy(area, &legacy, sizeof(legacy));
	memcpy(area + AREA_STATE_COMPONENTS, &components, sizeof(components));
}

/* ---- writing */

bool soft_fpu_enterable(const struct bochs *bochs, const uint8_t *area)
{
	static const uint8_t zero[AREA_YMM - AREA_COMPACTION];
	uint64_t components;
	uint32_t mxcsr;
	memcpy(&components, area + AREA_STATE_COMPONENTS, sizeof(components));
	memcpy(&mxcsr, area + offsetof(struct legacy_area, mxcsr), sizeof(mxcsr));
	return !(components & ~(uint64_t)COMPONENTS) && !memcmp(area + AREA_COMPACTION, zero, sizeof(zero)) &&
	       !(mxcsr & ~*bochs_u32(bochs, BOCHS_MXCSR_MASK));
}

static unsigned tag_of(uint64_t significand, uint16_t sign_exponent)
{
	uint16_t exponent = sign_exponent & 0x7fff;
	if (!exponent && !significand)
		return TAG_ZERO;
	bool integer_bit = significand >> 63;
	return exponent && exponent != 0x7fff && integer_bit ? TAG_VALID : TAG_SPECIAL;
}

static void write_x87(struct bochs_fpu *fpu, const struct legacy_area *area)
{
	*fpu = (struct bochs_fpu){
		.control = (uint16_t)((area->control & ~CONTROL_RESERVED) | CONTROL_ALWAYS),
		.status = (uint16_t)(area->status & ~STATUS_SUMMARY),
		.opcode = area->opcode & 0x7ff,
		.ip = area->ip,
		.dp = area->dp,
		.top = area->status >> STATUS_TOP_SHIFT & 7,
	};
	if (fpu->status & ~fpu->control & EXCEPTIONS)
		fpu->status |= STATUS_SUMMARY;
	for (unsigned i = 0; i < 8; i++) {
		unsigned physical = (fpu->top + i) & 7;
		memcpy(&fpu->st[physical].significand, area->st[i], 8);
		memcpy(&fpu->st[physical].sign_exponent, area->st[i] + 8, 2);
	}
	for (unsigned i = 0; i < 8; i++) {
		bool used = area->tags >> i & 1;
		unsigned tag = used ? tag_of(fpu->st[i].significand, fpu->st[i].sign_exponent) : TAG_EMPTY;
		fpu->tags |= (uint16_t)(tag << 2 * i);
	}
}

static void write_vectors(const struct bochs *bochs, const uint8_t *area, uint64_t components)
{
	for (unsigned i = 0; i < 16; i++) {
		uint8_t *low = vector(bochs, i), *high = vector(bochs, 16 + i);
		memset(low, 0, 64);
		memset(high, 0, 64);
		if (components & COMPONENT_SSE)
			memcpy(low, area + offsetof(struct legacy_area, xmm) + 16 * i, 16);
		if (components & COMPONENT_AVX)
			memcpy(low + 16, area + AREA_YMM + 16 * i, 16);
		if (components & COMPONENT_ZMM)
			memcpy(low + 32, area + AREA_ZMM + 32 * i, 32);
		if (components & COMPONENT_HIGH_ZMM)
			memcpy(high, area + AREA_HIGH_ZMM + 64 * i, 64);
	}
	if (components & COMPONENT_OPMASK)
		memcpy(bochs->cpu + BOCHS_OPMASK, area + AREA_OPMASK, 64);
	else
		memset(bochs->cpu + BOCHS_OPMASK, 0, 64);
}

/* As XRSTOR with all components requested: those that XSTATE_BV lacks get their initial state. */
void soft_write_fpu(const struct bochs *bochs, const uint8_t *area)
{
	struct legacy_area legacy;
	uint64_t components;
	memcpy(&legacy, area, sizeof(legacy));
	memcpy(&components, area + AREA_STATE_COMPONENTS, sizeof(components));
	if (!(components & COMPONENT_X87))
		legacy = (struct legacy_area){.control = CONTROL_INITIAL, .mxcsr = legacy.mxcsr};
	write_x87(fpu_of(bochs), &legacy);
	write_vectors(bochs, area, components);
	*bochs_u32(bochs, BOCHS_MXCSR) = legacy.mxcsr;
}

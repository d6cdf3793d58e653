/* SPDX-License-Identifier: Apache-2.0
 *
 * Interrupts, NMIs and exceptions that the VMM injects.
 */
#include "soft.h"

#define FLAG_INTERRUPT (1u << 9)

uint32_t soft_event_flags(struct vcpu *vcpu)
{
	const struct soft_vcpu *soft = vcpu->backend;
	const struct bochs *bochs = &soft->bochs;
	if (!(*bochs_u32(bochs, BOCHS_EFLAGS) & FLAG_INTERRUPT))
		return 0;
	bool shadow = *bochs_u64(bochs, BOCHS_ICOUNT) <= *bochs_u64(bochs, BOCHS_INHIBIT_ICOUNT) &&
		      *bochs_u32(bochs, BOCHS_INHIBIT_MASK) & BOCHS_INHIBIT_INTERRUPTS;
	bool trap = *bochs_u32(bochs, BOCHS_DEBUG_TRAP) & BOCHS_DEBUG_TRAPS;
	bool nmi = *bochs_u32(bochs, BOCHS_PENDING) & ~*bochs_u32(bochs, BOCHS_MASKED) & BOCHS_EVENT_NMI;
	return shadow || trap || nmi || soft->injection ? EXIT_IF : EXIT_IF | EXIT_INTERRUPTIBLE;
}

bool soft_inject(struct vcpu *vcpu, uint32_t injection, uint32_t error)
{
	struct soft_vcpu *soft = vcpu->backend;
	if ((injection >> INJECT_TYPE_SHIFT & 7) == INJECT_NMI) {
		*bochs_u32(&soft->bochs, BOCHS_PENDING) |= BOCHS_EVENT_NMI;
		return true;
	}
	if (soft->injection)
		return false;
	soft->injection = injection;
	soft->injection_error = error;
	return true;
}

/* For the double fault that an exception during the delivery may make: SDM vol. 3, table 6-4. */
static uint32_t exception_class(uint8_t vector)
{
	switch (vector) {
	case 0: case 10: case 11: case 12: case 13:
		return BOCHS_ET_CONTRIBUTORY;
	case 14:
		return BOCHS_ET_PAGE_FAULT;
	case 8:
		return BOCHS_ET_DOUBLE_FAULT;
	default:
		return BOCHS_ET_BENIGN;
	}
}

/* As Bochs' own VMX injects events: VMenterInjectEvents in cpu/vmx.cc. */
void soft_deliver(struct soft_vcpu *soft)
{
	const struct bochs *bochs = &soft->bochs;
	uint32_t injection = soft->injection;
	uint8_t vector = injection & 0xff;
	unsigned type = injection >> INJECT_TYPE_SHIFT & 7;

	soft->injection = 0;
	*bochs_u8(bochs, BOCHS_EXT) = 1;
	if (type == INJECT_EXCEPTION)
		*bochs_u32(bochs, BOCHS_LAST_EXCEPTION) = exception_class(vector);
	bochs->interrupt(vector, type, injection & INJECT_ERROR_CODE, (uint16_t)soft->injection_error);
	*bochs_u32(bochs, BOCHS_LAST_EXCEPTION) = BOCHS_ET_BENIGN;
	*bochs_u64(bochs, BOCHS_PREV_RIP) = *bochs_u64(bochs, BOCHS_RIP);
}

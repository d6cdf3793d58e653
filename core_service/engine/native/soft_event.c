/* SPDX-License-Identifier: Apache-2.0
 *
 * Interrupts, NMIs and exceptions that the VMM injects, and when the guest becomes able to take them.
 *
 * An error of the FPU with CR0.NE clear is signalled on FERR#, which an interrupt controller would make IRQ 13 of:
 * nothing is connected to it here, and the guest goes on.
 */
#include "soft.h"

#define FLAG_INTERRUPT (1u << 9)

static bool nmi_masked(const struct bochs *bochs)
{
	return *bochs_u32(bochs, BOCHS_MASKED) & BOCHS_EVENT_NMI;
}

/* Whether something comes before any interrupt or NMI at this boundary. */
static bool occupied(const struct soft_vcpu *soft)
{
	const struct bochs *bochs = &soft->bochs;
	bool shadow = *bochs_u64(bochs, BOCHS_ICOUNT) <= *bochs_u64(bochs, BOCHS_INHIBIT_ICOUNT) &&
		      *bochs_u32(bochs, BOCHS_INHIBIT_MASK) & BOCHS_INHIBIT_INTERRUPTS;
	bool trap = *bochs_u32(bochs, BOCHS_DEBUG_TRAP) & BOCHS_DEBUG_TRAPS;
	bool nmi = *bochs_u32(bochs, BOCHS_PENDING) & BOCHS_EVENT_NMI && !nmi_masked(bochs);
	return shadow || trap || nmi || soft->injection;
}

uint32_t soft_event_flags(struct vcpu *vcpu)
{
	const struct soft_vcpu *soft = vcpu->backend;
	uint32_t flags = *bochs_u32(&soft->bochs, BOCHS_EFLAGS) & FLAG_INTERRUPT ? EXIT_IF : 0;
	if (occupied(soft))
		return flags;
	if (flags & EXIT_IF)
		flags |= EXIT_INTERRUPTIBLE;
	if (!nmi_masked(&soft->bochs))
		flags |= EXIT_NMI_OPEN;
	return flags;
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
	soft->vcpu->step_over = false;
	*bochs_u8(bochs, BOCHS_EXT) = 1;
	if (type == INJECT_EXCEPTION)
		*bochs_u32(bochs, BOCHS_LAST_EXCEPTION) = exception_class(vector);
	bochs->interrupt(vector, type, injection & INJECT_ERROR_CODE, (uint16_t)soft->injection_error);
	*bochs_u32(bochs, BOCHS_LAST_EXCEPTION) = BOCHS_ET_BENIGN;
	*bochs_u64(bochs, BOCHS_PREV_RIP) = *bochs_u64(bochs, BOCHS_RIP);
}

/* ---- windows */

/* With an interrupt window asked for, Bochs has an interrupt pending that it never gets to deliver: it looks at
 * every boundary once the interrupt flag is set, and the vCPU leaves first. NMIs are unmasked by IRET only. */
void soft_arm_windows(struct soft_vcpu *soft)
{
	uint32_t *pending = bochs_u32(&soft->bochs, BOCHS_PENDING);
	unsigned attention = vcpu_attention(soft->vcpu);
	soft->window = attention & ATTENTION_WINDOW;
	soft->nmi_window = attention & ATTENTION_NMI_WINDOW;
	if (soft->window)
		*pending |= BOCHS_EVENT_INTERRUPT;
	else
		*pending &= ~BOCHS_EVENT_INTERRUPT;
}

bool soft_windows_changed(const struct soft_vcpu *soft)
{
	unsigned attention = vcpu_attention(soft->vcpu);
	return (!soft->window && attention & ATTENTION_WINDOW) ||
	       (!soft->nmi_window && attention & ATTENTION_NMI_WINDOW);
}

bool soft_window_open(const struct soft_vcpu *soft)
{
	if (!soft->window && !soft->nmi_window)
		return false;
	uint32_t flags = soft_event_flags(soft->vcpu);
	return (soft->window && flags & EXIT_INTERRUPTIBLE) || (soft->nmi_window && flags & EXIT_NMI_OPEN);
}

bool soft_window_near(const struct soft_vcpu *soft)
{
	return soft->nmi_window && !nmi_masked(&soft->bochs);
}

void soft_handle_external_interrupt(void) __asm__("_ZN8BX_CPU_C18HandleExtInterruptEv");
void soft_handle_external_interrupt(void)
{
}

#define IRET(bits, symbol) \
	void soft_iret##bits(void *instruction) __asm__(symbol); \
	void soft_iret##bits(void *instruction) \
	{ \
		if (soft_current->nmi_window) \
			soft_look_at_boundary(soft_current); \
		soft_current->bochs.iret##bits(instruction); \
	}

IRET(16, "_ZN8BX_CPU_C6IRET16EP15bxInstruction_c")
IRET(32, "_ZN8BX_CPU_C6IRET32EP15bxInstruction_c")
IRET(64, "_ZN8BX_CPU_C6IRET64EP15bxInstruction_c")

/* The guest writes its task priority. */
void soft_write_cr8(void *instruction, uint64_t value) __asm__("_ZN8BX_CPU_C8WriteCR8EP15bxInstruction_cm");
void soft_write_cr8(void *instruction, uint64_t value)
{
	struct soft_vcpu *soft = soft_current;
	uint32_t before = soft->bochs.task_priority(0);
	soft->bochs.write_cr8(instruction, value);
	if (soft->bochs.task_priority(0) < before) {
		soft->stop = STOP_TPR;
		soft_look_at_boundary(soft);
	}
}

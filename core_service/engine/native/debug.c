/* SPDX-License-Identifier: Apache-2.0 */
#include "debug.h"

#include "boundary.h"

#define BREAKPOINTS 4u
#define BREAKPOINTS_HIT ((1u << BREAKPOINTS) - 1)
#define ENABLED(n) (3u << 2 * (n)) /* DR7: L and G, SDM vol. 3, 17.2.4 */
#define TYPE(n) (16 + 4 * (n)) /* R/W, and LEN above it */

enum breakpoint_type { BREAK_EXECUTE, BREAK_WRITE, BREAK_PORT, BREAK_ACCESS };

#define EFER_LMA 0x400u
#define ATTRIBUTE_LONG 0x200u

static bool breakpoint_fits(const struct vm *vm, const struct vcpu_debug *debug, unsigned n)
{
	static const uint32_t bytes[] = {1, 2, 8, 4}; /* by LEN */
	uint32_t control = debug->control >> TYPE(n) & 0xf;
	uint32_t length = bytes[control >> 2];
	switch ((enum breakpoint_type)(control & 3)) {
	case BREAK_EXECUTE:
		return length == 1;
	case BREAK_WRITE:
	case BREAK_ACCESS:
		return vm->capabilities & ENGINE_WATCH && !(debug->address[n] & (length - 1));
	default:
		return false;
	}
}

bool debug_fits(const struct vm *vm, const struct vcpu_debug *debug)
{
	uint32_t known = 0;
	for (unsigned n = 0; n < BREAKPOINTS; n++) {
		if (!(debug->control & ENABLED(n)))
			continue;
		if (!breakpoint_fits(vm, debug, n))
			return false;
		known |= ENABLED(n) | 0xfu << TYPE(n);
	}
	return !(debug->control & ~known);
}

void debug_owe(struct vcpu *vcpu)
{
	struct owed *owed = &vcpu->common->owed;
	const struct vcpu_reply *reply = &vcpu->reply.reply;
	if (reply->flags & REPLY_BREAKPOINTS) {
		owed->breakpoints = true;
		owed->debug = vcpu->reply.debug;
	}
	owed->step |= (reply->flags & REPLY_STEP) != 0;
	if (!vcpu->common->mid_instruction)
		return;
	vcpu->stepping |= owed->step;
	/* What is left of the instruction is the step: the boundary ends it, whatever the CPU makes of that. */
	owed->step_ends = vcpu->stepping;
}

void debug_apply(struct vcpu *vcpu)
{
	struct owed *owed = &vcpu->common->owed;
	if (owed->breakpoints)
		vcpu->debug = owed->debug;
	owed->breakpoints = false;
}

/* The linear address of the next instruction, and its offset in the code segment. */
static uint64_t next_instruction(struct vcpu *vcpu, uint64_t *rip)
{
	static const uint64_t wanted[2] = {1ull << REG_RIP | 1ull << REG_EFER, 1ull << SEG_CS};
	const struct vcpu_engine_half *half = vcpu->half;
	boundary_read(vcpu, wanted);
	*rip = half->scalar[REG_RIP];
	bool has_long = half->valid[0] >> REG_EFER & 1 && half->scalar[REG_EFER] & EFER_LMA;
	if (has_long && half->segment[SEG_CS].attributes & ATTRIBUTE_LONG)
		return *rip;
	return (uint32_t)(half->segment[SEG_CS].base + *rip);
}

bool debug_exit_due(struct vcpu *vcpu)
{
	uint32_t *debugged = &vcpu->common->debugged;
	if (vcpu->common->owed.step_ends && !*debugged)
		*debugged = VCPU_DEBUG_STEP;
	if (!*debugged)
		return false;
	struct vcpu_exit *exit = vcpu_exit(vcpu, EXIT_DEBUG, EXIT_IP_VALID);
	exit->address = next_instruction(vcpu, &exit->ip);
	exit->detail = *debugged;
	*debugged = 0;
	return true;
}

void debug_completed(struct vcpu *vcpu)
{
	vcpu->common->debugged &= BREAKPOINTS_HIT;
}

void debug_enter(struct vcpu *vcpu)
{
	vcpu->stepping = vcpu->common->owed.step;
}

void debug_leave(struct vcpu *vcpu)
{
	vcpu->stepping = false;
	vcpu->step_over = true;
	vcpu->common->owed.step = vcpu->common->owed.step_ends = false;
}

void vcpu_debugged(struct vcpu *vcpu, uint32_t status)
{
	vcpu->common->debugged |= status & (VCPU_DEBUG_STEP | BREAKPOINTS_HIT);
}

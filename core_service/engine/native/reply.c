/* SPDX-License-Identifier: Apache-2.0 */
#include "reply.h"

#include "debug.h"

#define ALWAYS_FLAGS (REPLY_COMPLETE | REPLY_FETCH | REPLY_FAULT | REPLY_WITHDRAW_WINDOW)
#define RUNNING_FLAGS (REPLY_COMPLETE | REPLY_FAULT | REPLY_STEP | REPLY_NMI_WINDOW | REPLY_BREAKPOINTS)
#define INJECT_KNOWN (INJECT_VALID | INJECT_ERROR_CODE | 7u << INJECT_TYPE_SHIFT | 0xffu)
#define EXCEPTIONS 32u /* vectors of exceptions: SDM vol. 3, 6.2 */

static bool charges(const struct vcpu_vmm_half *half)
{
	return half->charged[0] || half->charged[1];
}

static uint32_t known_flags(const struct vm *vm)
{
	uint32_t known = ALWAYS_FLAGS;
	if (vm->capabilities & ENGINE_DEBUG)
		known |= REPLY_STEP | REPLY_BREAKPOINTS;
	if (backend.exit_reasons >> EXIT_NMI_WINDOW & 1)
		known |= REPLY_NMI_WINDOW;
	return known;
}

static bool flags_fit(const struct vcpu *vcpu, const struct vcpu_exit *exit)
{
	const struct vcpu_reply *reply = &vcpu->reply.reply;
	if (reply->flags & ~known_flags(vcpu->vm))
		return false;
	if (reply->flags & REPLY_FAULT && exit->reason != EXIT_MSR)
		return false;
	bool runs = reply->flags & RUNNING_FLAGS || reply->injection || charges(&vcpu->reply);
	return !(reply->flags & REPLY_FETCH && runs);
}

static bool injection_fits(const struct vm *vm, uint32_t injection)
{
	if (!injection)
		return true;
	if (!(injection & INJECT_VALID) || injection & ~INJECT_KNOWN)
		return false;
	switch (injection >> INJECT_TYPE_SHIFT & 7) {
	case INJECT_INTERRUPT:
		return vm->capabilities & ENGINE_INTERRUPTS && !(injection & INJECT_ERROR_CODE);
	case INJECT_NMI:
		return vm->capabilities & ENGINE_NMI && !(injection & INJECT_ERROR_CODE);
	case INJECT_EXCEPTION:
		return vm->capabilities & ENGINE_EXCEPTIONS && (injection & 0xff) < EXCEPTIONS;
	default:
		return false;
	}
}

static bool ranges_fit(const struct vcpu_reply *reply)
{
	if (reply->written_count == VCPU_WRITTEN_ALL)
		return true;
	for (uint32_t i = 0; i < reply->written_count; i++) {
		const struct vcpu_range *range = &reply->written[i];
		if (!range->size || range->gpa + range->size < range->gpa)
			return false;
	}
	return true;
}

enum vcpu_refusal reply_check_registers(const struct vcpu *vcpu, const struct vcpu_vmm_half *half)
{
	if (half->charged[0] & ~vcpu->vm->registers[0] || half->charged[1] & ~vcpu->vm->registers[1])
		return REFUSED_REGISTERS;
	if (half->charged[0] >> REG_ACTIVITY & 1 && half->scalar[REG_ACTIVITY] > ACTIVITY_WAIT_FOR_SIPI)
		return REFUSED_ACTIVITY;
	return REFUSED_NONE;
}

enum vcpu_refusal reply_check(const struct vcpu *vcpu, const struct vcpu_exit *exit)
{
	const struct vcpu_reply *reply = &vcpu->reply.reply;
	if (!flags_fit(vcpu, exit))
		return REFUSED_FLAGS;
	if (!injection_fits(vcpu->vm, reply->injection))
		return REFUSED_INJECTION;
	if (reply->written_count > VCPU_WRITTEN_RANGES && reply->written_count != VCPU_WRITTEN_ALL)
		return REFUSED_WRITTEN_COUNT;
	if (!ranges_fit(reply))
		return REFUSED_WRITTEN_RANGE;
	if (reply->flags & REPLY_BREAKPOINTS && !debug_fits(vcpu->vm, &vcpu->reply.debug))
		return REFUSED_BREAKPOINTS;
	return reply_check_registers(vcpu, &vcpu->reply);
}

const char *reply_refusal_name(enum vcpu_refusal refusal)
{
	static const char *const names[] = {"nothing",   "flags",    "injection", "written_count", "written range",
					    "registers", "activity", "state",     "breakpoints"};
	return names[refusal];
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "reply.h"

#define KNOWN_FLAGS (REPLY_COMPLETE | REPLY_FETCH | REPLY_FAULT | REPLY_WITHDRAW_WINDOW)
#define INJECT_KNOWN (INJECT_VALID | INJECT_ERROR_CODE | 7u << INJECT_TYPE_SHIFT | 0xffu)
#define EXCEPTIONS 32u /* vectors of exceptions: SDM vol. 3, 6.2 */

static bool charges(const struct vcpu_vmm_half *half)
{
	return half->charged[0] || half->charged[1];
}

static bool flags_fit(const struct vcpu_vmm_half *half, const struct vcpu_exit *exit)
{
	const struct vcpu_reply *reply = &half->reply;
	if (reply->flags & ~KNOWN_FLAGS)
		return false;
	if (reply->flags & REPLY_FAULT && exit->reason != EXIT_MSR)
		return false;
	bool runs = reply->flags & (REPLY_COMPLETE | REPLY_FAULT) || reply->injection || charges(half);
	return !(reply->flags & REPLY_FETCH && runs);
}

static bool injection_fits(uint32_t injection)
{
	if (!injection)
		return true;
	if (!(injection & INJECT_VALID) || injection & ~INJECT_KNOWN)
		return false;
	switch (injection >> INJECT_TYPE_SHIFT & 7) {
	case INJECT_INTERRUPT:
	case INJECT_NMI:
		return !(injection & INJECT_ERROR_CODE);
	case INJECT_EXCEPTION:
		return (injection & 0xff) < EXCEPTIONS;
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

enum vcpu_refusal reply_check_registers(const struct vcpu_vmm_half *half, const uint64_t accepted[2])
{
	if (half->charged[0] & ~accepted[0] || half->charged[1] & ~accepted[1])
		return REFUSED_REGISTERS;
	if (half->charged[0] >> REG_ACTIVITY & 1 && half->scalar[REG_ACTIVITY] > ACTIVITY_SHUTDOWN)
		return REFUSED_ACTIVITY;
	return REFUSED_NONE;
}

enum vcpu_refusal reply_check(const struct vcpu *vcpu, const struct vcpu_exit *exit)
{
	const struct vcpu_reply *reply = &vcpu->reply.reply;
	if (!flags_fit(&vcpu->reply, exit))
		return REFUSED_FLAGS;
	if (!injection_fits(reply->injection))
		return REFUSED_INJECTION;
	if (reply->written_count > VCPU_WRITTEN_RANGES && reply->written_count != VCPU_WRITTEN_ALL)
		return REFUSED_WRITTEN_COUNT;
	if (!ranges_fit(reply))
		return REFUSED_WRITTEN_RANGE;
	uint64_t accepted[2] = {vcpu->vm->registers[0], vcpu->vm->registers[1]};
	if (!vcpu->page)
		accepted[1] &= ~(1ull << VCPU_FPU_BIT); /* the stream transport has no place for the area */
	return reply_check_registers(&vcpu->reply, accepted);
}

const char *reply_refusal_name(enum vcpu_refusal refusal)
{
	static const char *const names[] = {"nothing",       "flags",     "injection", "written_count",
					    "written range", "registers", "activity",  "state"};
	return names[refusal];
}

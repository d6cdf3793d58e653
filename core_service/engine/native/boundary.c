/* SPDX-License-Identifier: Apache-2.0 */
#include "boundary.h"

#include "debug.h"
#include "kick.h"

#define RIP (1ull << REG_RIP)
#define ACTIVITY (1ull << REG_ACTIVITY)
#define HLT_LENGTH 1u /* of a HLT that the VMM says the vCPU stands at: F4 */

static void charge_merge(struct vcpu_vmm_half *to, const struct vcpu_vmm_half *from)
{
	for (unsigned i = 0; from->charged[0] && i < REG_SCALARS; i++)
		if (from->charged[0] >> i & 1)
			to->scalar[i] = from->scalar[i];
	for (unsigned i = 0; from->charged[1] && i < SEG_SEGMENTS; i++)
		if (from->charged[1] >> i & 1)
			to->segment[i] = from->segment[i];
	to->charged[0] |= from->charged[0];
	to->charged[1] |= from->charged[1];
}

void boundary_owe(struct vcpu *vcpu)
{
	struct owed *owed = &vcpu->common->owed;
	const struct vcpu_reply *reply = &vcpu->reply.reply;
	owed->complete |= (reply->flags & REPLY_COMPLETE) != 0;
	if (reply->injection) {
		owed->injection = reply->injection;
		owed->injection_error = reply->injection_error;
	}
	charge_merge(&owed->registers, &vcpu->reply);
	debug_owe(vcpu);
}

static bool owes(const struct owed *owed)
{
	return owed->complete || owed->step_ends || owed->breakpoints || owed->injection ||
	       owed->registers.charged[0] || owed->registers.charged[1];
}

bool vcpu_owes_boundary(struct vcpu *vcpu)
{
	return owes(&vcpu->common->owed) || vcpu_attention(vcpu) & ~(unsigned)(ATTENTION_WINDOW | ATTENTION_NMI_WINDOW);
}

static uint64_t read_rip(struct vcpu *vcpu)
{
	static const uint64_t wanted[2] = {RIP, 0};
	boundary_read(vcpu, wanted);
	return vcpu->half->scalar[REG_RIP];
}

/* The CPU's rip stands behind a HLT while the vCPU is halted, and what the VMM sees and says stands at it. */
static void charge_halt(struct vcpu *vcpu, struct vcpu_vmm_half *charged)
{
	struct vcpu_common *common = vcpu->common;
	if (common->rest.activity == ACTIVITY_HALTED && !(charged->charged[0] & RIP))
		return;
	uint64_t ip = charged->charged[0] & RIP ? charged->scalar[REG_RIP] : read_rip(vcpu);
	vcpu_halt(vcpu, ip, HLT_LENGTH);
	charged->scalar[REG_RIP] = ip + HLT_LENGTH;
	charged->charged[0] |= RIP;
}

static void charge_activity(struct vcpu *vcpu, struct vcpu_vmm_half *charged)
{
	enum vcpu_activity activity = (enum vcpu_activity)charged->scalar[REG_ACTIVITY];
	charged->charged[0] &= ~ACTIVITY;
	if (activity == ACTIVITY_HALTED)
		charge_halt(vcpu, charged);
	else
		vcpu->common->rest.activity = activity;
}

bool boundary_charge(struct vcpu *vcpu, struct vcpu_vmm_half *charged, const uint8_t *fpu)
{
	const struct rest before = vcpu->common->rest;
	if (charged->charged[0] & ACTIVITY)
		charge_activity(vcpu, charged);
	else if (charged->charged[0] & RIP && before.activity != ACTIVITY_WAIT_FOR_SIPI)
		vcpu->common->rest.activity = ACTIVITY_ACTIVE; /* the VMM's explicit advance */
	if (!charged->charged[0] && !charged->charged[1])
		return true;
	if (backend.write_state(vcpu, charged, fpu))
		return true;
	vcpu->common->rest = before; /* what was refused wakes nobody */
	return false;
}

static void show_activity(struct vcpu *vcpu, uint64_t wanted)
{
	const struct vcpu_common *common = vcpu->common;
	if (common->rest.activity == ACTIVITY_HALTED)
		vcpu->half->scalar[REG_RIP] = common->rest.halt_ip;
	vcpu->half->scalar[REG_ACTIVITY] = common->rest.activity;
	vcpu->half->valid[0] |= wanted & ACTIVITY;
}

void boundary_read(struct vcpu *vcpu, const uint64_t wanted[2])
{
	uint64_t known[2] = {wanted[0] & vcpu->vm->registers[0], wanted[1] & vcpu->vm->registers[1]};
	vcpu->half->valid[0] = vcpu->half->valid[1] = 0;
	if (!known[0] && !known[1])
		return;
	backend.read_state(vcpu, known, vcpu->half);
	show_activity(vcpu, known[0]);
}

/* No event reaches a CPU that shut down or waits for SIPI. */
static bool deaf(const struct vcpu *vcpu)
{
	enum vcpu_activity activity = vcpu->common->rest.activity;
	return activity == ACTIVITY_SHUTDOWN || activity == ACTIVITY_WAIT_FOR_SIPI;
}

uint32_t boundary_flags(struct vcpu *vcpu)
{
	uint32_t flags = backend.event_flags(vcpu);
	return deaf(vcpu) ? flags & EXIT_IF : flags;
}

static bool inject(struct vcpu *vcpu, uint32_t injection, uint32_t error)
{
	bool interrupt = (injection >> INJECT_TYPE_SHIFT & 7) == INJECT_INTERRUPT;
	if (deaf(vcpu) || (interrupt && !(boundary_flags(vcpu) & EXIT_INTERRUPTIBLE)))
		return false;
	return backend.inject(vcpu, injection, error);
}

/* An NMI within the handler of another waits for its IRET, pending. */
static bool nmi_waits(struct vcpu *vcpu, uint32_t injection)
{
	static const uint64_t wanted[2] = {1ull << REG_INTERRUPTIBILITY, 0};
	if ((injection >> INJECT_TYPE_SHIFT & 7) != INJECT_NMI)
		return false;
	boundary_read(vcpu, wanted);
	return vcpu->half->valid[0] & wanted[0] && vcpu->half->scalar[REG_INTERRUPTIBILITY] & VCPU_SHADOW_NMI;
}

static void inject_owed(struct vcpu *vcpu)
{
	struct owed *owed = &vcpu->common->owed;
	if (!owed->injection)
		return;
	bool wakes = !nmi_waits(vcpu, owed->injection);
	bool taken = inject(vcpu, owed->injection, owed->injection_error);
	vcpu->common->injection_result = taken ? INJECTION_TAKEN : INJECTION_NOT_TAKEN;
	owed->injection = 0;
	if (taken && wakes)
		vcpu->common->rest.activity = ACTIVITY_ACTIVE; /* it wakes from HLT, whose end the CPU already stands at */
}

static bool charge_owed(struct vcpu *vcpu)
{
	struct owed *owed = &vcpu->common->owed;
	const uint8_t *fpu = owed->registers.charged[1] >> VCPU_FPU_BIT & 1 ? vcpu->fpu_charged : NULL;
	bool entered = boundary_charge(vcpu, &owed->registers, fpu);
	owed->registers.charged[0] = owed->registers.charged[1] = 0;
	return entered;
}

static bool take(bool *owed)
{
	bool was = *owed;
	*owed = false;
	return was;
}

static void state_refused(struct vcpu *vcpu)
{
	struct owed *owed = &vcpu->common->owed;
	if (owed->injection)
		vcpu->common->injection_result = INJECTION_NOT_TAKEN;
	owed->injection = 0;
	owed->complete = owed->breakpoints = false;
	vcpu_exit(vcpu, EXIT_INVALID_STATE, 0)->detail = REFUSED_STATE;
}

/* Registers first, as in a reply: the event enters the charged state. False after EXIT_INVALID_STATE was filled. */
static bool apply_owed(struct vcpu *vcpu)
{
	if (!charge_owed(vcpu)) {
		state_refused(vcpu);
		return false;
	}
	debug_apply(vcpu);
	inject_owed(vcpu);
	return true;
}

bool boundary_settle(struct vcpu *vcpu)
{
	struct owed *owed = &vcpu->common->owed;
	if (!owes(owed))
		return true;
	if (!apply_owed(vcpu))
		return false;
	owed->complete = false; /* this exit is a stop at the boundary */
	return true;
}

/* The NMI's first: that is the order in which the CPU takes them (SDM vol. 3, table 6-2). */
static bool window_due(struct vcpu *vcpu, unsigned attention)
{
	if (!(attention & (ATTENTION_WINDOW | ATTENTION_NMI_WINDOW)))
		return false;
	uint32_t flags = boundary_flags(vcpu);
	if (attention & ATTENTION_NMI_WINDOW && flags & EXIT_NMI_OPEN)
		vcpu_exit(vcpu, EXIT_NMI_WINDOW, 0);
	else if (attention & ATTENTION_WINDOW && flags & EXIT_INTERRUPTIBLE)
		vcpu_exit(vcpu, EXIT_WINDOW, 0);
	else
		return false;
	return true;
}

/* A vCPU that does not execute tells so again. One that waits for SIPI tells nothing. */
static bool activity_due(struct vcpu *vcpu)
{
	const struct vcpu_common *common = vcpu->common;
	if (common->rest.activity == ACTIVITY_ACTIVE || common->rest.activity == ACTIVITY_WAIT_FOR_SIPI)
		return false;
	if (common->rest.activity == ACTIVITY_SHUTDOWN) {
		vcpu_exit(vcpu, EXIT_SHUTDOWN, 0);
		return true;
	}
	struct vcpu_exit *exit = vcpu_exit(vcpu, EXIT_HLT, EXIT_IP_VALID);
	exit->ip = common->rest.halt_ip;
	exit->instruction_length = common->rest.halt_length;
	return true;
}

/* Fill the exit that is due at this boundary, if any. */
static bool exit_due(struct vcpu *vcpu, unsigned attention)
{
	if (!apply_owed(vcpu))
		return true;
	if (take(&vcpu->common->owed.complete)) {
		debug_completed(vcpu);
		vcpu_exit(vcpu, EXIT_COMPLETED, 0);
		return true;
	}
	if (debug_exit_due(vcpu))
		return true;
	if (attention & ATTENTION_PAUSE) {
		vcpu_exit(vcpu, EXIT_PAUSED, 0);
		return true;
	}
	return window_due(vcpu, attention) || activity_due(vcpu);
}

enum run_verdict vcpu_boundary(struct vcpu *vcpu)
{
	vcpu->common->mid_instruction = false;
	for (;;) {
		unsigned attention = vcpu_attention(vcpu);
		if (attention & ATTENTION_END)
			return RUN_ENDED;
		if (attention & ATTENTION_HOLD)
			vcpu_hold_point(vcpu);
		if (exit_due(vcpu, attention)) {
			if (vcpu_exchange(vcpu) == RUN_ENDED)
				return RUN_ENDED;
		} else if (vcpu->common->rest.activity == ACTIVITY_WAIT_FOR_SIPI) {
			kick_await(vcpu);
		} else {
			debug_enter(vcpu);
			return RUN_GO;
		}
	}
}

void vcpu_halt(struct vcpu *vcpu, uint64_t ip, uint32_t length)
{
	vcpu->common->rest.activity = ACTIVITY_HALTED;
	vcpu->common->rest.halt_ip = ip;
	vcpu->common->rest.halt_length = length;
}

void vcpu_shut_down(struct vcpu *vcpu)
{
	vcpu->common->rest.activity = ACTIVITY_SHUTDOWN;
}

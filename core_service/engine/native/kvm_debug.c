/* SPDX-License-Identifier: Apache-2.0
 *
 * The VMM's single step and breakpoints, by KVM_SET_GUEST_DEBUG. KVM does not look at RF: an execution breakpoint
 * would fire again and again at the instruction where the vCPU stands, so that one is executed by a single step with
 * those breakpoints off, of which the VMM sees nothing.
 */
#include "kvm.h"

#include <string.h>

#define BREAKPOINTS 4u
#define ENABLED(n) (3u << 2 * (n)) /* DR7, SDM vol. 3, 17.2.4: L and G */
#define TYPE(n) (3u << (16 + 4 * (n))) /* R/W: 0 is execution */
#define DR7_FIXED 0x400u

static uint32_t without_execution(uint32_t control)
{
	for (unsigned n = 0; n < BREAKPOINTS; n++)
		if (!(control & TYPE(n)))
			control &= ~ENABLED(n);
	return control;
}

/* DR6's bits of the breakpoints in force: the CPU may set those of others too (SDM vol. 3, 17.2.3). */
static uint32_t breakpoint_bits(uint64_t control)
{
	uint32_t bits = 0;
	for (unsigned n = 0; n < BREAKPOINTS; n++)
		if (control & ENABLED(n))
			bits |= 1u << n;
	return bits;
}

static struct kvm_guest_debug wanted_debug(struct vcpu *vcpu)
{
	struct kvm_guest_debug debug = {0};
	uint32_t control = vcpu->debug.control;
	bool step = vcpu->stepping;
	if (vcpu->step_over && without_execution(control) != control) {
		control = without_execution(control);
		step = true;
	}
	/* Stepped over, KVM's emulator loses a HLT and halts one instruction later. HLT stops by itself. */
	if (step && !kvm_halts_next(vcpu))
		debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
	if (breakpoint_bits(control)) {
		debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
		memcpy(debug.arch.debugreg, vcpu->debug.address, sizeof(vcpu->debug.address));
		debug.arch.debugreg[7] = control | DR7_FIXED;
	}
	return debug;
}

int kvm_debug_enter(struct vcpu *vcpu)
{
	struct kvm_vcpu *own = kvm_vcpu(vcpu);
	struct kvm_guest_debug debug = wanted_debug(vcpu);
	if (debug.control && kvm_vm(vcpu->vm)->software && kvm_runs_natively(vcpu))
		return -EOPNOTSUPP;
	bool steps = debug.control & KVM_GUESTDBG_SINGLESTEP;
	if (!steps && !memcmp(&debug, &own->debug, sizeof(debug)))
		return 0;
	/* KVM binds the trap flag to the rip that it has now, and drops it when it is given another: each step anew. */
	if (steps && own->run->kvm_dirty_regs)
		kvm_complete(own);
	if (ioctl(own->fd, KVM_SET_GUEST_DEBUG, &debug) < 0)
		return -errno;
	own->debug = debug;
	return 0;
}

bool kvm_debug_steps(const struct kvm_vcpu *own)
{
	return own->debug.control & KVM_GUESTDBG_SINGLESTEP;
}

void kvm_debug_exit(struct vcpu *vcpu)
{
	const struct kvm_vcpu *own = kvm_vcpu(vcpu);
	const struct kvm_debug_exit_arch *exit = &own->run->debug.arch;
	uint32_t status = exit->dr6 & breakpoint_bits(own->debug.arch.debugreg[7]);
	if (vcpu->stepping)
		status |= exit->dr6 & VCPU_DEBUG_STEP;
	if (status)
		vcpu_debugged(vcpu, status);
}

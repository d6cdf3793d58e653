/* SPDX-License-Identifier: Apache-2.0
 *
 * Interrupts, NMIs and exceptions into KVM's CPU. KVM_INTERRUPT is accepted and delivered even with the
 * interrupt flag clear, and a second one replaces the first: whoever injects has looked at event_flags.
 */
#include "kvm.h"

uint32_t kvm_event_flags(struct vcpu *vcpu)
{
	const struct kvm_vcpu *own = kvm_vcpu(vcpu);
	return (own->run->if_flag ? EXIT_IF : 0) | (own->interruptible ? EXIT_INTERRUPTIBLE : 0);
}

static bool inject_exception(const struct kvm_vcpu *own, uint32_t injection, uint32_t error)
{
	struct kvm_vcpu_events events;
	if (ioctl(own->fd, KVM_GET_VCPU_EVENTS, &events) < 0 || events.exception.injected || events.exception.pending)
		return false;
	events.exception.injected = 1;
	events.exception.nr = injection & 0xff;
	events.exception.has_error_code = (injection & INJECT_ERROR_CODE) != 0;
	events.exception.error_code = error;
	return ioctl(own->fd, KVM_SET_VCPU_EVENTS, &events) == 0;
}

static bool inject_interrupt(const struct kvm_vcpu *own, uint32_t injection)
{
	struct kvm_interrupt interrupt = {.irq = injection & 0xff};
	return ioctl(own->fd, KVM_INTERRUPT, &interrupt) == 0;
}

static bool inject(struct kvm_vcpu *own, uint32_t injection, uint32_t error)
{
	switch (injection >> INJECT_TYPE_SHIFT & 7) {
	case INJECT_INTERRUPT:
		return inject_interrupt(own, injection);
	case INJECT_NMI:
		own->nmi_due = true;
		return ioctl(own->fd, KVM_NMI, 0) == 0;
	default:
		return inject_exception(own, injection, error);
	}
}

bool kvm_inject(struct vcpu *vcpu, uint32_t injection, uint32_t error)
{
	struct kvm_vcpu *own = kvm_vcpu(vcpu);
	own->fresh &= ~KVM_SYNC_X86_EVENTS;
	own->interruptible = false; /* until KVM_RUN has delivered it */
	if (!inject(own, injection, error))
		return false;
	own->event_due = true;
	vcpu->step_over = false; /* the handler comes first */
	return true;
}

bool kvm_nmi_wakes(struct vcpu *vcpu)
{
	struct kvm_vcpu *own = kvm_vcpu(vcpu);
	struct kvm_vcpu_events events;
	if (!own->nmi_due || ioctl(own->fd, KVM_GET_VCPU_EVENTS, &events) < 0)
		return false;
	own->nmi_due = events.nmi.pending != 0;
	return events.nmi.pending && !events.nmi.masked;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * KVM's vCPU and its loop. The common exit costs one ioctl, KVM_RUN; what the VMM wants of the state
 * comes along with it (KVM_CAP_SYNC_REGS), since any other ioctl on a vCPU costs nearly as much as an exit.
 */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "failure.h"
#include "kvm.h"
#include "signals.h"

#define APIC_BASE_ENABLE 0x800ull /* IA32_APIC_BASE: SDM vol. 3, 11.4.4 */

/* There is no local APIC: KVM shows the guest one in CPUID for as long as its base register is enabled. */
static int disable_apic(const struct kvm_vcpu *own)
{
	struct kvm_sregs sregs;
	if (ioctl(own->fd, KVM_GET_SREGS, &sregs) < 0)
		return -1;
	sregs.apic_base &= ~APIC_BASE_ENABLE;
	return ioctl(own->fd, KVM_SET_SREGS, &sregs);
}

static enum channel_status open_vcpu(struct vcpu *vcpu, struct failure *failure)
{
	const struct kvm_vm *vm = kvm_vm(vcpu->vm);
	struct kvm_vcpu *own = kvm_vcpu(vcpu);
	own->fd = ioctl(vm->fd, KVM_CREATE_VCPU, vcpu->index);
	if (own->fd < 0)
		return failed_call(failure, "vCPU %u: KVM_CREATE_VCPU", vcpu->index);
	void *run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, own->fd, 0);
	if (run == MAP_FAILED)
		return failed_call(failure, "vCPU %u: mmap", vcpu->index);
	own->run = run;
	if (!kvm_cpuid_begin(vcpu))
		return failed_call(failure, "vCPU %u: KVM_SET_CPUID2", vcpu->index);
	if (disable_apic(own) < 0)
		return failed_call(failure, "vCPU %u: KVM_SET_SREGS", vcpu->index);
	vcpu->half->fpu_size = kvm_cpuid_xsave_bytes(vm->cpuid);
	return CHANNEL_OK;
}

enum channel_status kvm_vcpu_create(struct vcpu *vcpu, struct failure *failure)
{
	struct kvm_vcpu *own = calloc(1, sizeof(*own));
	if (!own)
		return failed_call(failure, "vCPU %u", vcpu->index);
	own->fd = -1;
	vcpu->backend = own;
	enum channel_status status = open_vcpu(vcpu, failure);
	if (status != CHANNEL_OK)
		kvm_vcpu_destroy(vcpu);
	return status;
}

void kvm_vcpu_destroy(struct vcpu *vcpu)
{
	struct kvm_vcpu *own = kvm_vcpu(vcpu);
	if (own->run)
		munmap(own->run, kvm_vm(vcpu->vm)->run_size);
	if (own->fd >= 0)
		close(own->fd);
	free(own->cpuid);
	free(own);
	vcpu->backend = NULL;
}

/* immediate_exit is written by the kicking threads and read by the kernel: an atomic byte, so that the
 * compiler keeps each store where it stands. */
static _Atomic uint8_t *immediate_exit(struct kvm_vcpu *own)
{
	return (_Atomic uint8_t *)&own->run->immediate_exit;
}

void kvm_kick(struct vcpu *vcpu)
{
	/* The flag first: a signal that comes just before KVM_RUN is lost, but KVM_RUN then sees the flag. */
	atomic_store(immediate_exit(kvm_vcpu(vcpu)), 1);
	signals_kick(vcpu->thread);
}

static int run(struct kvm_vcpu *own)
{
	int error = ioctl(own->fd, KVM_RUN, 0) < 0 ? -errno : 0;
	own->fresh = own->run->kvm_valid_regs;
	own->interruptible = own->run->ready_for_interrupt_injection && own->run->if_flag;
	return error;
}

int kvm_complete(struct kvm_vcpu *own)
{
	atomic_store(immediate_exit(own), 1);
	int error = run(own);
	own->unfinished = false;
	return error;
}

/* Finish the instruction of the last exit and no other: KVM's emulator goes on behind a write that it steps over.
 * It may give one more exit, and then stays unfinished. */
static enum run_verdict finish(struct vcpu *vcpu)
{
	struct kvm_vcpu *own = kvm_vcpu(vcpu);
	own->run->kvm_valid_regs = kvm_sync_fields(vcpu->reply.reply.wanted);
	int error = kvm_complete(own);
	/* KVM's emulator, which ends it, tells of no breakpoint; and of the step the boundary tells by itself. */
	bool ended = error == -EINTR || (!error && own->run->exit_reason == KVM_EXIT_DEBUG);
	return ended ? RUN_GO : kvm_exit(vcpu, error);
}

static enum run_verdict enter(struct vcpu *vcpu)
{
	struct kvm_vcpu *own = kvm_vcpu(vcpu);
	int error = own->unfinished ? 0 : kvm_debug_enter(vcpu);
	if (error)
		return kvm_exit(vcpu, error);
	/* Sequentially consistent, before the look at what is asked: a kick that comes after that look sets
	 * the flag again, and what a kick before it was for is seen. */
	atomic_store(immediate_exit(own), 0);
	unsigned attention = vcpu_attention(vcpu);
	bool window = attention & ATTENTION_WINDOW;
	if (attention & ~(unsigned)ATTENTION_WINDOW || (window && own->interruptible))
		return RUN_GO;
	own->run->request_interrupt_window = window;
	own->run->kvm_valid_regs = kvm_sync_fields(vcpu->reply.reply.wanted);
	own->unfinished = false;
	return kvm_exit(vcpu, run(own));
}

/* An emulated guest goes from exit to exit without a look at request_interrupt_window. */
static bool window_due(struct vcpu *vcpu)
{
	return kvm_vcpu(vcpu)->interruptible && vcpu_attention(vcpu) & ATTENTION_WINDOW;
}

/* Before anything else, the instruction that the last exit stands in. */
static bool must_finish(struct vcpu *vcpu)
{
	return kvm_debug_steps(kvm_vcpu(vcpu)) || vcpu_owes_boundary(vcpu) || window_due(vcpu);
}

void kvm_vcpu_loop(struct vcpu *vcpu)
{
	struct kvm_vcpu *own = kvm_vcpu(vcpu);
	enum run_verdict verdict = RUN_GO;
	while (verdict == RUN_GO) {
		if (own->unfinished && must_finish(vcpu))
			verdict = finish(vcpu);
		else if (!own->unfinished && vcpu_boundary(vcpu) == RUN_ENDED)
			verdict = RUN_ENDED;
		else
			verdict = enter(vcpu);
	}
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "hold.h"

#include "futex.h"
#include "kick.h"
#include "vm.h"

/* A kick is not lost, but a vCPU may be kicked just before it enters; ask again after this time. */
#define HOLD_RETRY_NS 1000000L

void hold_begin(struct vm *vm)
{
	pthread_mutex_lock(&vm->common->hold_lock);
	atomic_store(&vm->common->holding, 1);
	for (uint32_t i = 0; i < atomic_load(&vm->vcpus); i++) {
		struct vcpu *vcpu = vm->vcpu[i];
		while (atomic_load(&vcpu->common->phase) == PHASE_GUEST) {
			kick(vcpu);
			futex_sleep(&vcpu->common->phase, PHASE_GUEST, HOLD_RETRY_NS);
		}
	}
}

void hold_end(struct vm *vm)
{
	atomic_store(&vm->common->holding, 0);
	futex_wake(&vm->common->holding);
	pthread_mutex_unlock(&vm->common->hold_lock);
}

void hold_leave_guest(struct vcpu *vcpu, enum vcpu_phase phase)
{
	atomic_store(&vcpu->common->phase, phase);
	if (atomic_load(&vcpu->vm->common->holding))
		futex_wake(&vcpu->common->phase);
}

void hold_enter_guest(struct vcpu *vcpu)
{
	_Atomic uint32_t *holding = &vcpu->vm->common->holding;
	for (;;) {
		atomic_store(&vcpu->common->phase, PHASE_GUEST);
		if (!atomic_load(holding))
			return;
		hold_leave_guest(vcpu, PHASE_HELD);
		while (atomic_load(holding))
			futex_sleep(holding, 1, PAGE_WAIT_SLEEP_LIMIT_NS);
	}
}

void vcpu_hold_point(struct vcpu *vcpu)
{
	vcpu->common->mid_instruction = false;
	hold_leave_guest(vcpu, PHASE_HELD);
	hold_enter_guest(vcpu);
}

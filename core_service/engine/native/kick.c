/* SPDX-License-Identifier: Apache-2.0 */
#include "kick.h"

#include "futex.h"

/* The sleeper stores `asleep` and then looks at what is asked; who kicks has stored what it asks and then takes
 * `asleep`, all sequentially consistent: one of the two sees the other. */

void kick(struct vcpu *vcpu)
{
	_Atomic uint32_t *asleep = &vcpu->common->asleep;
	if (atomic_exchange(asleep, 0))
		futex_wake(asleep);
	else
		backend.kick(vcpu);
}

void kick_await(struct vcpu *vcpu)
{
	_Atomic uint32_t *asleep = &vcpu->common->asleep;
	while (!vcpu_owes_boundary(vcpu)) {
		atomic_store(asleep, 1);
		atomic_thread_fence(memory_order_seq_cst);
		if (!vcpu_owes_boundary(vcpu))
			futex_sleep(asleep, 1, PAGE_WAIT_SLEEP_LIMIT_NS);
	}
	atomic_store(asleep, 0);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "kicker.h"

#include <errno.h>

#include "failure.h"
#include "futex.h"
#include "kick.h"
#include "vcpu.h"
#include "vm.h"

static void kick_where_asked(struct vm *vm)
{
	for (uint32_t i = 0; i < atomic_load(&vm->vcpus); i++) {
		struct vcpu *vcpu = vm->vcpu[i];
		uint32_t seq = vcpu->page ? page_word(&vcpu->page->vmm.kick_seq) : vcpu->common->kick_seen;
		if (seq == vcpu->common->kick_seen)
			continue;
		vcpu->common->kick_seen = seq;
		/* One that does not execute guest code looks at its counters before it does. */
		if (atomic_load(&vcpu->common->phase) == PHASE_GUEST)
			kick(vcpu);
	}
}

static void *kicker_main(void *argument)
{
	struct vm *vm = argument;
	pthread_setname_np(pthread_self(), "kicker");
	for (;;) {
		struct futex_waitv words[CHANNEL_VCPUS + 1];
		unsigned count = 0;

		words[count++] = futex_private(&vm->common->kicker_seq, atomic_load(&vm->common->kicker_seq));
		if (atomic_load(&vm->common->ending))
			return NULL;
		kick_where_asked(vm);
		for (uint32_t i = 0; i < atomic_load(&vm->vcpus); i++)
			if (vm->vcpu[i]->page)
				words[count++] = futex_shared(SHARED_WORD(vm->vcpu[i]->page->vmm.kick_seq),
							      vm->vcpu[i]->common->kick_seen);
		futex_sleep_any(words, count, PAGE_WAIT_SLEEP_LIMIT_NS);
	}
}

enum channel_status kicker_start(struct vm *vm, struct failure *failure)
{
	errno = pthread_create(&vm->common->kicker, NULL, kicker_main, vm);
	return errno ? failed_call(failure, "kicker thread") : CHANNEL_OK;
}

void kicker_notice(struct vm *vm)
{
	atomic_fetch_add(&vm->common->kicker_seq, 1);
	futex_wake(&vm->common->kicker_seq);
}

void kicker_join(struct vm *vm)
{
	kicker_notice(vm);
	pthread_join(vm->common->kicker, NULL);
}

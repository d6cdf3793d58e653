/* SPDX-License-Identifier: Apache-2.0
 *
 * vCPUs from the outside: what the control thread does to them, and their threads' beginning and end.
 */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "failure.h"
#include "futex.h"
#include "kick.h"
#include "kicker.h"
#include "page.h"
#include "vcpu.h"
#include "vm.h"

#define SPIN_LIMIT_NS 50000u

static void introduce(struct vcpu *vcpu)
{
	struct vcpu_engine_half *half = vcpu->half;
	half->magic = VCPU_PAGE_MAGIC;
	half->abi = VCPU_PAGE_ABI;
	half->size = VCPU_PAGE_BYTES;
	half->index = vcpu->index;
	half->tsc_khz = vcpu->vm->tsc_khz;
	if (vcpu->page)
		page_introduce(vcpu);
}

static void enter_phase(struct vcpu *vcpu, enum vcpu_phase phase)
{
	atomic_store(&vcpu->common->phase, phase);
	futex_wake(&vcpu->common->phase);
}

/* Whoever saw the vCPU in GUEST may be about to kick it: it stays until all vCPUs have ended. */
static void park(struct vcpu *vcpu)
{
	_Atomic uint32_t *dismissed = &vcpu->common->dismissed;
	enter_phase(vcpu, PHASE_ENDED);
	while (!atomic_load(dismissed))
		futex_sleep(dismissed, 0, PAGE_WAIT_SLEEP_LIMIT_NS);
}

static void name_thread(const struct vcpu *vcpu)
{
	char name[16]; /* with the NUL, the kernel's limit */
	snprintf(name, sizeof(name), "vcpu %u", vcpu->index);
	pthread_setname_np(pthread_self(), name);
}

static void *vcpu_main(void *argument)
{
	struct vcpu *vcpu = argument;
	name_thread(vcpu);
	vcpu->common->created = backend.vcpu_create(vcpu, &vcpu->common->failure);
	if (vcpu->common->created == CHANNEL_OK) {
		introduce(vcpu);
		enter_phase(vcpu, PHASE_STOPPED);
		if (vcpu_start_up(vcpu) == RUN_GO)
			backend.vcpu_loop(vcpu);
		park(vcpu);
		backend.vcpu_destroy(vcpu);
	} else {
		enter_phase(vcpu, PHASE_ENDED);
	}
	return NULL;
}

static void vcpu_free(struct vcpu *vcpu)
{
	page_unmap(vcpu);
	free(vcpu->half);
	free(vcpu->common);
	free(vcpu);
}

static uint32_t spin_limit(void)
{
	cpu_set_t cores;
	bool spare = sched_getaffinity(0, sizeof(cores), &cores) == 0 && CPU_COUNT(&cores) > 1;
	return spare ? SPIN_LIMIT_NS : 0;
}

static struct vcpu *vcpu_new(struct vm *vm, uint32_t index, uint32_t transport)
{
	struct vcpu *vcpu = calloc(1, sizeof(*vcpu));
	if (!vcpu)
		return NULL;
	vcpu->vm = vm;
	vcpu->index = index;
	vcpu->transport = transport;
	vcpu->half = calloc(1, sizeof(*vcpu->half));
	vcpu->common = calloc(1, sizeof(*vcpu->common));
	if (!vcpu->half || !vcpu->common) {
		vcpu_free(vcpu);
		return NULL;
	}
	vcpu->common->spinner = page_spinner(spin_limit());
	return vcpu;
}

static enum channel_status start_thread(struct vcpu *vcpu, struct failure *failure)
{
	_Atomic uint32_t *phase = &vcpu->common->phase;
	errno = pthread_create(&vcpu->thread, NULL, vcpu_main, vcpu);
	if (errno)
		return failed_call(failure, "vCPU %u: thread", vcpu->index);
	while (atomic_load(phase) == PHASE_CREATING)
		futex_sleep(phase, PHASE_CREATING, PAGE_WAIT_SLEEP_LIMIT_NS);
	if (vcpu->common->created == CHANNEL_OK)
		return CHANNEL_OK;
	pthread_join(vcpu->thread, NULL);
	*failure = vcpu->common->failure;
	return vcpu->common->created;
}

enum channel_status vcpu_start(struct vm *vm, uint32_t index, uint32_t transport, int page_fd, struct failure *failure)
{
	uint32_t vcpus = atomic_load(&vm->vcpus);
	uint32_t limit = backend.max_vcpus < CHANNEL_VCPUS ? backend.max_vcpus : CHANNEL_VCPUS;
	if (vcpus == limit || index >= CHANNEL_VCPUS)
		return failed(failure, CHANNEL_LIMIT, "vCPU %u: this engine has %u, indices up to %u", index, limit,
			      CHANNEL_VCPUS - 1);
	if (vcpu_find(vm, index))
		return failed(failure, CHANNEL_EXISTS, "vCPU %u exists", index);
	struct vcpu *vcpu = vcpu_new(vm, index, transport);
	if (!vcpu)
		return failed_call(failure, "vCPU %u", index);

	enum channel_status status = CHANNEL_OK;
	if (transport == VCPU_TRANSPORT_PAGE)
		status = page_map(vcpu, page_fd, failure);
	if (status == CHANNEL_OK)
		status = start_thread(vcpu, failure);
	if (status != CHANNEL_OK) {
		vcpu_free(vcpu);
		return status;
	}
	/* The others see the pointer before the count: hold.c and kicker.c go by the count. */
	vm->vcpu[vcpus] = vcpu;
	atomic_store(&vm->vcpus, vcpus + 1);
	kicker_notice(vm);
	return CHANNEL_OK;
}

struct vcpu *vcpu_find(struct vm *vm, uint32_t index)
{
	for (uint32_t i = 0; i < atomic_load(&vm->vcpus); i++)
		if (vm->vcpu[i]->index == index)
			return vm->vcpu[i];
	return NULL;
}

static void alert(struct vcpu *vcpu)
{
	atomic_fetch_add(&vcpu->common->control_seq, 1);
	futex_wake(&vcpu->common->control_seq);
}

enum channel_status vcpu_command(struct vcpu *vcpu, struct command *command)
{
	struct vcpu_common *common = vcpu->common;
	uint32_t stopped = PHASE_STOPPED;
	if (!atomic_compare_exchange_strong(&common->phase, &stopped, PHASE_CLAIMED))
		return failed(command->failure, CHANNEL_NOT_STOPPED, "vCPU %u runs", vcpu->index);
	uint32_t served = atomic_load(&common->served_seq);
	atomic_store(&common->command, command);
	alert(vcpu);
	while (atomic_load(&common->served_seq) == served)
		futex_sleep(&common->served_seq, served, PAGE_WAIT_SLEEP_LIMIT_NS);
	return command->status;
}

void vcpu_request(struct vcpu *vcpu, struct request *request)
{
	/* Sequentially consistent with the phase: a vCPU that is not seen in GUEST sees the request first. */
	atomic_fetch_add(&request->channel_seq, 1);
	if (atomic_load(&vcpu->common->phase) == PHASE_GUEST)
		kick(vcpu);
}

static void await_end(struct vcpu *vcpu)
{
	_Atomic uint32_t *phase = &vcpu->common->phase;
	for (uint32_t now = atomic_load(phase); now != PHASE_ENDED; now = atomic_load(phase)) {
		if (now == PHASE_GUEST)
			kick(vcpu);
		futex_sleep(phase, now, PAGE_WAIT_SLEEP_LIMIT_NS);
	}
}

static void dismiss(struct vcpu *vcpu)
{
	atomic_store(&vcpu->common->dismissed, 1);
	futex_wake(&vcpu->common->dismissed);
	pthread_join(vcpu->thread, NULL);
	vcpu_free(vcpu);
}

void vcpu_end_all(struct vm *vm)
{
	uint32_t vcpus = atomic_load(&vm->vcpus);
	for (uint32_t i = 0; i < vcpus; i++)
		alert(vm->vcpu[i]);
	for (uint32_t i = 0; i < vcpus; i++)
		await_end(vm->vcpu[i]);
	atomic_store(&vm->vcpus, 0);
	for (uint32_t i = 0; i < vcpus; i++)
		dismiss(vm->vcpu[i]);
}

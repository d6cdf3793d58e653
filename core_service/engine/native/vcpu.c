/* SPDX-License-Identifier: Apache-2.0 */
#include "vcpu.h"

#include <string.h>

#include "boundary.h"
#include "channel_io.h"
#include "debug.h"
#include "failure.h"
#include "futex.h"
#include "hold.h"
#include "page.h"
#include "reply.h"
#include "request.h"
#include "vm.h"

#define FPU (1ull << VCPU_FPU_BIT)

struct vcpu_exit *vcpu_exit(struct vcpu *vcpu, enum vcpu_exit_reason reason, uint32_t flags)
{
	vcpu->half->exit = (struct vcpu_exit){.reason = reason, .flags = flags};
	return &vcpu->half->exit;
}

static void tell_injection(struct vcpu *vcpu)
{
	vcpu->half->exit.injection = vcpu->common->injection_result;
	vcpu->common->injection_result = INJECTION_NONE;
}

static void publish(struct vcpu *vcpu)
{
	struct vcpu_common *common = vcpu->common;
	struct vcpu_engine_half *half = vcpu->half;

	half->exit_seq = ++common->exit_seq;

	/* STOPPED before anybody can see the exit: whoever does may at once ask by the channel. */
	hold_leave_guest(vcpu, PHASE_STOPPED);
	if (vcpu->page)
		page_publish_exit(vcpu);
	else
		channel_send_exit(vcpu);
}

/* Registers belong to boundaries; in the middle of an instruction none is valid. */
static void read_wanted(struct vcpu *vcpu, const uint64_t wanted[2])
{
	static const uint64_t nothing[2];
	struct vcpu_exit *exit = &vcpu->half->exit;
	boundary_read(vcpu, vcpu->common->mid_instruction ? nothing : wanted);
	if (!vcpu->common->mid_instruction)
		exit->flags = (exit->flags & ~EVENT_FLAGS) | boundary_flags(vcpu);
}

/* How many bytes of reply.data the exit asks for. */
static uint32_t data_wanted(const struct vcpu_exit *exit)
{
	uint32_t bytes = exit->size * exit->count;
	return exit->flags & EXIT_READ && bytes > sizeof(exit->value) ? bytes : 0;
}

static void take_reply(struct vcpu *vcpu, const struct vcpu_vmm_half *from)
{
	atomic_store(&vcpu->common->phase, PHASE_REPLYING);
	page_copy_reply(&vcpu->reply, from, data_wanted(&vcpu->half->exit));
	vcpu->common->fpu_came = false;
}

static void take_run(struct vcpu *vcpu, const struct command *command)
{
	take_reply(vcpu, command->vmm);
	vcpu->common->fpu_came = command->fpu != NULL;
	if (command->fpu)
		memcpy(vcpu->common->fpu_run, command->fpu, VCPU_FPU_BYTES);
}

/* Not before the reply was checked: one that is refused leaves what waits for the boundary alone. */
static void take_fpu(struct vcpu *vcpu)
{
	if (vcpu->common->fpu_came)
		memcpy(vcpu->fpu_charged, vcpu->common->fpu_run, VCPU_FPU_BYTES);
	else if (vcpu->reply.charged[1] & FPU)
		page_copy_fpu(vcpu);
}

static enum channel_status set_state(struct vcpu *vcpu, const struct command *command)
{
	struct vcpu_vmm_half charged = *command->vmm;
	enum vcpu_refusal refusal = reply_check_registers(vcpu, &charged);
	if (!refusal && !boundary_charge(vcpu, &charged, command->fpu))
		refusal = REFUSED_STATE;
	if (refusal)
		return failed(command->failure, CHANNEL_BAD_MESSAGE, "vCPU %u: %s refused", vcpu->index,
			      reply_refusal_name(refusal));
	return CHANNEL_OK;
}

static void get_state(struct vcpu *vcpu, const struct command *command)
{
	read_wanted(vcpu, command->vmm->reply.wanted);
	*command->state = *vcpu->half;
	if (vcpu->half->valid[1] & FPU)
		memcpy(command->fpu_state, vcpu->fpu_valid, VCPU_FPU_BYTES);
}

static enum channel_status serve_cpuid(struct vcpu *vcpu, struct command *command)
{
	if (command->type == CHANNEL_GET_CPUID) {
		command->leaves = backend.get_cpuid(vcpu, command->leaf);
		return CHANNEL_OK;
	}
	if (vcpu->common->exit_seq)
		return failed(command->failure, CHANNEL_STARTED, "vCPU %u ran already", vcpu->index);
	return backend.set_cpuid(vcpu, command->leaf, command->leaves, command->failure);
}

static enum channel_status perform(struct vcpu *vcpu, struct command *command)
{
	if (command->exit_seq && command->exit_seq != vcpu->common->exit_seq)
		return failed(command->failure, CHANNEL_NOT_STOPPED, "vCPU %u is stopped at exit %u, not at %u",
			      vcpu->index, vcpu->common->exit_seq, command->exit_seq);
	if (command->type == CHANNEL_GET_CPUID || command->type == CHANNEL_SET_CPUID)
		return serve_cpuid(vcpu, command);
	if (command->type == CHANNEL_RESEND) {
		if (vcpu->common->exit_seq)
			channel_send_exit(vcpu);
		return CHANNEL_OK;
	}
	if (command->type == CHANNEL_RUN) {
		take_run(vcpu, command);
		return CHANNEL_OK;
	}
	if (vcpu->common->mid_instruction)
		return failed(command->failure, CHANNEL_MID_INSTRUCTION,
			      "vCPU %u stands in the middle of an instruction", vcpu->index);
	if (command->type == CHANNEL_SET_STATE)
		return set_state(vcpu, command);
	get_state(vcpu, command);
	return CHANNEL_OK;
}

/* True when the command was an accepted CHANNEL_RUN. */
static bool serve_command(struct vcpu *vcpu)
{
	struct vcpu_common *common = vcpu->common;
	struct command *command = atomic_exchange(&common->command, NULL);
	if (!command)
		return false;
	command->status = perform(vcpu, command);
	bool run = command->type == CHANNEL_RUN && command->status == CHANNEL_OK;
	if (!run)
		atomic_store(&common->phase, PHASE_STOPPED);
	/* `command` belongs to the control thread again once served_seq has moved. */
	atomic_fetch_add(&common->served_seq, 1);
	futex_wake(&common->served_seq);
	return run;
}

/* Wait until run_seq is no longer `run` or control_seq no longer `control`, or some time. */
static void wait_for_peers(struct vcpu *vcpu, uint32_t run, uint32_t control)
{
	struct vcpu_common *common = vcpu->common;
	if (!vcpu->page) {
		futex_sleep(&common->control_seq, control, PAGE_WAIT_SLEEP_LIMIT_NS);
		return;
	}
	_Atomic uint32_t *run_seq = SHARED_WORD(vcpu->page->vmm.run_seq);
	_Atomic uint32_t *waiting = SHARED_WORD(vcpu->page->engine.engine_waiting);
	if (page_spin(&common->spinner, run_seq, run, &common->control_seq, control))
		return;
	/* Announce, full fence, and let the kernel look at the counter again: rule 4 of the page. */
	atomic_store_explicit(waiting, 1, memory_order_relaxed);
	atomic_thread_fence(memory_order_seq_cst);
	struct futex_waitv words[] = {futex_shared(run_seq, run), futex_private(&common->control_seq, control)};
	futex_sleep_any(words, 2, PAGE_WAIT_SLEEP_LIMIT_NS);
	atomic_store_explicit(waiting, 0, memory_order_relaxed);
}

/* In phase STOPPED. Until the vCPU is run, with the reply in vcpu->reply, or the VM ends. */
static enum run_verdict await_run(struct vcpu *vcpu)
{
	struct vcpu_common *common = vcpu->common;
	for (;;) {
		uint32_t control = atomic_load(&common->control_seq);
		uint32_t run = vcpu->page ? page_word(&vcpu->page->vmm.run_seq) : 0;
		if (atomic_load(&vcpu->vm->common->ending))
			return RUN_ENDED;
		if (serve_command(vcpu))
			return RUN_GO;
		uint32_t stopped = PHASE_STOPPED;
		if (vcpu->page && run == common->exit_seq + 1 &&
		    atomic_compare_exchange_strong(&common->phase, &stopped, PHASE_REPLYING)) {
			take_reply(vcpu, &vcpu->page->vmm);
			return RUN_GO;
		}
		wait_for_peers(vcpu, run, control);
	}
}

static void forget_written(struct vcpu *vcpu)
{
	const struct vcpu_reply *reply = &vcpu->reply.reply;
	if (!reply->written_count || !backend.written)
		return;
	hold_begin(vcpu->vm);
	if (reply->written_count == VCPU_WRITTEN_ALL)
		backend.written(vcpu->vm, 0, UINT64_MAX);
	else
		for (uint32_t i = 0; i < reply->written_count; i++)
			backend.written(vcpu->vm, reply->written[i].gpa, reply->written[i].size);
	hold_end(vcpu->vm);
}

enum run_verdict vcpu_exchange(struct vcpu *vcpu)
{
	vcpu->common->mid_instruction = vcpu->half->exit.flags & EXIT_MID_INSTRUCTION;
	if (!vcpu->common->mid_instruction) {
		boundary_settle(vcpu);
		debug_leave(vcpu);
	}
	request_answer(vcpu);
	tell_injection(vcpu);
	struct vcpu_exit asked_exit = vcpu->half->exit;
	for (;;) {
		read_wanted(vcpu, vcpu->reply.reply.wanted);
		publish(vcpu);
		if (await_run(vcpu) == RUN_ENDED)
			return RUN_ENDED;

		vcpu->half->exit = asked_exit;
		enum vcpu_refusal refusal = reply_check(vcpu, &asked_exit);
		if (refusal) {
			vcpu->half->exit.reason = EXIT_INVALID_STATE;
			vcpu->half->exit.injection = INJECTION_NONE;
			vcpu->half->exit.detail = refusal;
			continue;
		}
		forget_written(vcpu);
		request_renew(vcpu);
		if (vcpu->reply.reply.flags & REPLY_FETCH)
			continue;
		take_fpu(vcpu);
		boundary_owe(vcpu);
		hold_enter_guest(vcpu);
		return RUN_GO;
	}
}

enum run_verdict vcpu_start_up(struct vcpu *vcpu)
{
	if (await_run(vcpu) == RUN_ENDED)
		return RUN_ENDED;
	vcpu->reply = (struct vcpu_vmm_half){0};
	vcpu->reply.reply.wanted[0] = vcpu->vm->registers[0];
	vcpu->reply.reply.wanted[1] = vcpu->vm->registers[1];
	vcpu_exit(vcpu, EXIT_STARTUP, 0);
	return vcpu_exchange(vcpu);
}

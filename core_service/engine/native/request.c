/* SPDX-License-Identifier: Apache-2.0 */
#include "request.h"

#include "vm.h"

static bool asked(const struct request *request, const uint32_t *page_seq)
{
	if (atomic_load_explicit(&request->channel_seq, memory_order_acquire) != request->channel_ack)
		return true;
	return page_seq && page_word(page_seq) != request->page_ack;
}

/* Returns the number to tell: the page's counter, or the channel's where there is no page. */
static uint32_t acknowledge(struct request *request, const uint32_t *page_seq)
{
	request->channel_ack = atomic_load_explicit(&request->channel_seq, memory_order_acquire);
	if (page_seq)
		request->page_ack = page_word(page_seq);
	return page_seq ? request->page_ack : request->channel_ack;
}

static const uint32_t *pause_word(const struct vcpu *vcpu)
{
	return vcpu->page ? &vcpu->page->vmm.pause_seq : NULL;
}

static const uint32_t *window_word(const struct vcpu *vcpu)
{
	return vcpu->page ? &vcpu->page->vmm.window_seq : NULL;
}

unsigned vcpu_attention(struct vcpu *vcpu)
{
	const struct vm_common *vm = vcpu->vm->common;
	struct vcpu_common *common = vcpu->common;
	unsigned attention = ATTENTION_NONE;
	if (atomic_load_explicit(&vm->ending, memory_order_acquire))
		attention |= ATTENTION_END;
	if (atomic_load_explicit(&vm->holding, memory_order_acquire))
		attention |= ATTENTION_HOLD;
	if (asked(&common->pause, pause_word(vcpu)))
		attention |= ATTENTION_PAUSE;
	if (asked(&common->window, window_word(vcpu)))
		attention |= ATTENTION_WINDOW;
	if (common->nmi_window)
		attention |= ATTENTION_NMI_WINDOW;
	return attention;
}

void request_renew(struct vcpu *vcpu)
{
	struct vcpu_common *common = vcpu->common;
	if (vcpu->reply.reply.flags & REPLY_WITHDRAW_WINDOW) {
		acknowledge(&common->window, window_word(vcpu));
		common->nmi_window = false;
	}
	common->nmi_window |= (vcpu->reply.reply.flags & REPLY_NMI_WINDOW) != 0;
}

void request_answer(struct vcpu *vcpu)
{
	struct vcpu_common *common = vcpu->common;
	struct vcpu_engine_half *half = vcpu->half;
	if (half->exit.reason == EXIT_PAUSED)
		half->pause_ack = acknowledge(&common->pause, pause_word(vcpu));
	if (half->exit.reason == EXIT_WINDOW)
		half->window_ack = acknowledge(&common->window, window_word(vcpu));
	if (half->exit.reason == EXIT_NMI_WINDOW)
		common->nmi_window = false;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Should Bochs crash all the same, the process ends, and with it this VM alone; core is told why.
 */
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "failure.h"
#include "soft.h"
#include "soft_signals.h"

#define STACK_BYTES (32u * 1024)

/* Prepared, since nothing may be formatted in a signal handler but by hand. */
static struct channel_response last_words = {
	.header = {.type = CHANNEL_FAILED},
	.status = CHANNEL_UNSUPPORTED,
	.text = "software CPU: signal 00 at guest rip 0x0000000000000000",
};
#define SIGNAL_DIGITS (sizeof("software CPU: signal ") - 1)
#define RIP_DIGITS (sizeof("software CPU: signal 00 at guest rip 0x") - 1)

static void write_rip(uint64_t rip)
{
	for (int digit = 15; digit >= 0; digit--, rip >>= 4)
		last_words.text[RIP_DIGITS + (size_t)digit] = "0123456789abcdef"[rip & 15];
}

static void crashed(int signal)
{
	const struct soft_vcpu *soft = soft_current;
	last_words.text[SIGNAL_DIGITS] = (char)('0' + signal / 10);
	last_words.text[SIGNAL_DIGITS + 1] = (char)('0' + signal % 10);
	if (soft && soft->bochs.cpu)
		write_rip(*bochs_u64(&soft->bochs, BOCHS_PREV_RIP));
	send(CHANNEL_FD, &last_words, sizeof(last_words), MSG_DONTWAIT | MSG_NOSIGNAL);
	_exit(1);
}

void soft_crash_watch(void)
{
	soft_signals_watch(crashed);
}

enum channel_status soft_crash_stack(struct soft_vcpu *soft, struct failure *failure)
{
	void *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (stack == MAP_FAILED)
		return failed_call(failure, "vCPU %u: signal stack: mmap", soft->vcpu->index);
	soft_signals_stack(stack, STACK_BYTES);
	soft->signal_stack = stack;
	return CHANNEL_OK;
}

void soft_crash_stack_free(struct soft_vcpu *soft)
{
	if (!soft->signal_stack)
		return;
	soft_signals_stack(NULL, 0);
	munmap(soft->signal_stack, STACK_BYTES);
	soft->signal_stack = NULL;
}

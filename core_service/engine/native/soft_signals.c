/* SPDX-License-Identifier: Apache-2.0 */
#include "soft_signals.h"

#include <signal.h>

void soft_signals_watch(void (*crashed)(int signal))
{
	static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
	struct sigaction action = {.sa_handler = crashed, .sa_flags = SA_ONSTACK | (int)SA_RESETHAND};
	sigemptyset(&action.sa_mask);
	for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		sigaction(signals[i], &action, NULL);
}

void soft_signals_stack(void *stack, size_t bytes)
{
	stack_t value = {.ss_sp = stack, .ss_size = bytes, .ss_flags = stack ? 0 : SS_DISABLE};
	sigaltstack(&value, NULL);
}

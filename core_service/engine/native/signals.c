/* SPDX-License-Identifier: Apache-2.0 */
#include "signals.h"

#include <signal.h>
#include <stddef.h>

/* Not a real-time signal: those are queued, and fail where the user has too many (RLIMIT_SIGPENDING). */
#define KICK_SIGNAL SIGUSR1

static void interrupt(int number)
{
	(void)number;
}

void signals_prepare(void)
{
	/* without SA_RESTART: KVM_RUN is to return */
	struct sigaction action = {.sa_handler = interrupt};
	sigemptyset(&action.sa_mask);
	sigaction(KICK_SIGNAL, &action, NULL);

	/* core may have started us with signals blocked: the kick, or the alarm that ends an end that hangs */
	sigset_t none;
	sigemptyset(&none);
	pthread_sigmask(SIG_SETMASK, &none, NULL);
}

void signals_kick(pthread_t thread)
{
	pthread_kill(thread, KICK_SIGNAL);
}

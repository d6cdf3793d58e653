/* SPDX-License-Identifier: Apache-2.0
 *
 * Signals of a crash, apart from everything else: <signal.h> and vcpu_page.h do not go together, see signals.h.
 */
#ifndef VMSESSION_SOFT_SIGNALS_H
#define VMSESSION_SOFT_SIGNALS_H

#include <stddef.h>

/* Have `crashed` called, once, with the number of a signal that means a crash; on the thread that crashed. */
void soft_signals_watch(void (*crashed)(int signal));

/* This thread's stack for it, since it may have no other left; NULL takes it away. The memory is the caller's. */
void soft_signals_stack(void *stack, size_t bytes);

#endif

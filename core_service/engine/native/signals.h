/* SPDX-License-Identifier: Apache-2.0
 *
 * Signals, apart from everything else: <signal.h> declares REG_RAX and others of its own, which are not those
 * of vcpu_page.h, so that no file can include both.
 */
#ifndef VMSESSION_SIGNALS_H
#define VMSESSION_SIGNALS_H

#include <pthread.h>

/* Once: the kick signal gets a handler that does nothing but interrupt what blocks, and no signal is blocked. */
void signals_prepare(void);

/* Interrupt a blocking system call of that thread. The caller closes the race with a thread that is only
 * about to block, as KVM's immediate_exit does. */
void signals_kick(pthread_t thread);

#endif

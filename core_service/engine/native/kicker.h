/* SPDX-License-Identifier: Apache-2.0
 *
 * The kicker: one thread that sleeps on the kick_seq words of all vCPU pages, and kicks vCPUs that execute
 * guest code, so that they look at pause_seq and window_seq. The VMM needs no system call into core for that.
 */
#ifndef VMSESSION_KICKER_H
#define VMSESSION_KICKER_H

#include "engine.h"

enum channel_status kicker_start(struct vm *, struct failure *);
/* There is another vCPU, or the end. */
void kicker_notice(struct vm *);
void kicker_join(struct vm *);

#endif

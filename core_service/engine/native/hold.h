/* SPDX-License-Identifier: Apache-2.0
 *
 * The rendezvous of a VM's vCPUs: while it lasts, none executes guest code.
 *
 * A vCPU that stops or stands in an exchange counts as held without a signal; one in guest code is kicked
 * until it has left. A vCPU enters by storing phase GUEST and then loading `holding`; the holder stores
 * `holding` and then loads the phases, all sequentially consistent: one of the two sees the other.
 */
#ifndef VMSESSION_HOLD_H
#define VMSESSION_HOLD_H

#include "vcpu.h"

/* Any thread that is not in phase GUEST itself. Begin waits for other holders and for all vCPUs. */
void hold_begin(struct vm *);
void hold_end(struct vm *);

/* The vCPU's thread: go into phase GUEST as soon as nobody holds. */
void hold_enter_guest(struct vcpu *);
/* The vCPU's thread: go into another phase, and let a holder know. */
void hold_leave_guest(struct vcpu *, enum vcpu_phase);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * The VMM's single step and breakpoints.
 */
#ifndef VMSESSION_DEBUG_H
#define VMSESSION_DEBUG_H

#include "vcpu.h"

/* Whether this engine can serve the breakpoints, which are a private copy. */
bool debug_fits(const struct vm *, const struct vcpu_debug *);

/* The vCPU's thread: what the reply just checked asks. */
void debug_owe(struct vcpu *);

/* At a boundary: the breakpoints that were asked for are now in force. */
void debug_apply(struct vcpu *);
/* At a boundary: fill EXIT_DEBUG if it is due. */
bool debug_exit_due(struct vcpu *);
/* At a boundary: EXIT_COMPLETED tells of a step as well. */
void debug_completed(struct vcpu *);
/* Guest code is about to be executed. */
void debug_enter(struct vcpu *);
/* An exit at a boundary is about to be published. */
void debug_leave(struct vcpu *);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * Kicks: make a vCPU in phase GUEST look at what is asked of it. It executes guest code, or it waits for
 * something that only its VMM can do (WAIT_FOR_SIPI) and sleeps here.
 */
#ifndef VMSESSION_KICK_H
#define VMSESSION_KICK_H

#include "vcpu.h"

/* Any thread, after it has stored what it asks for. */
void kick(struct vcpu *);
/* The vCPU's thread, in phase GUEST: sleep until vcpu_owes_boundary(). */
void kick_await(struct vcpu *);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * The instruction boundary: where charged registers, injections, pause and window take effect.
 */
#ifndef VMSESSION_BOUNDARY_H
#define VMSESSION_BOUNDARY_H

#include "vcpu.h"

/* The vCPU's thread: what the reply just checked asks of the next boundary. */
void boundary_owe(struct vcpu *);

/* At a boundary: apply the charged registers, which were checked; false when the state cannot be entered. */
bool boundary_charge(struct vcpu *, struct vcpu_vmm_half *charged, const uint8_t *fpu);

/* At a boundary: fill vcpu->half with the registers wanted, and its valid mask. */
void boundary_read(struct vcpu *, const uint64_t wanted[2]);

#endif

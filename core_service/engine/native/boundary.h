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

#define EVENT_FLAGS (EXIT_IF | EXIT_INTERRUPTIBLE | EXIT_NMI_OPEN)
/* At a boundary: EXIT_IF, EXIT_INTERRUPTIBLE and EXIT_NMI_OPEN as they are now. */
uint32_t boundary_flags(struct vcpu *);

/* At a boundary, before an exit that is not of vcpu_boundary() is published: what an exit in the middle of the
 * instruction left to be done, since this is where that instruction ends. False when the charged state cannot be
 * entered: then the exit is EXIT_INVALID_STATE. */
bool boundary_settle(struct vcpu *);

/* At a boundary: fill vcpu->half with the registers wanted, and its valid mask. */
void boundary_read(struct vcpu *, const uint64_t wanted[2]);

#endif

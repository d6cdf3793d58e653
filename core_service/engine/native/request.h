/* SPDX-License-Identifier: Apache-2.0
 *
 * What the VMM asks of a vCPU while it runs: pause and windows. vcpu_attention() tells the backend.
 */
#ifndef VMSESSION_REQUEST_H
#define VMSESSION_REQUEST_H

#include "vcpu.h"

/* The vCPU's thread: the windows that the reply just checked asks for or withdraws. */
void request_renew(struct vcpu *);
/* The vCPU's thread: acknowledge what the exit in vcpu->half answers. Once an exit: what is asked while the vCPU
 * stands at it is owed still when a fetch publishes it again. */
void request_answer(struct vcpu *);

#endif

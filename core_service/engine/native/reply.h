/* SPDX-License-Identifier: Apache-2.0
 *
 * Checking what a VMM replies, on the private copy.
 */
#ifndef VMSESSION_REPLY_H
#define VMSESSION_REPLY_H

#include "engine.h"

/* Why the reply in vcpu->reply cannot answer `exit`; REFUSED_NONE when it can. */
enum vcpu_refusal reply_check(const struct vcpu *, const struct vcpu_exit *exit);

/* The same for registers alone. `accepted` is a mask of registers as in charged. */
enum vcpu_refusal reply_check_registers(const struct vcpu_vmm_half *, const uint64_t accepted[2]);

/* For texts: "flags", "injection", ... */
const char *reply_refusal_name(enum vcpu_refusal);

#endif

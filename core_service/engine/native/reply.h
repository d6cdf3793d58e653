/* SPDX-License-Identifier: Apache-2.0
 *
 * Checking what a VMM replies, on the private copy.
 */
#ifndef VMSESSION_REPLY_H
#define VMSESSION_REPLY_H

#include "engine.h"

/* Why the reply in vcpu->reply cannot answer `exit`; REFUSED_NONE when it can. */
enum vcpu_refusal reply_check(const struct vcpu *, const struct vcpu_exit *exit);

/* The same for charged registers alone. */
enum vcpu_refusal reply_check_registers(const struct vcpu *, const struct vcpu_vmm_half *);

/* For texts: "flags", "injection", ... */
const char *reply_refusal_name(enum vcpu_refusal);

#endif

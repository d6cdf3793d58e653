/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine's side of a shared vCPU page. Whoever maps the page may write all of it at any time: the
 * engine's half is written and never read back, the VMM's half is copied once and checked as a copy.
 */
#ifndef VMSESSION_PAGE_H
#define VMSESSION_PAGE_H

#include "engine.h"

/* Map the page behind `fd`, which stays the caller's. The mapping is the vCPU's until page_unmap(). */
enum channel_status page_map(struct vcpu *, int fd, struct failure *);
void page_unmap(struct vcpu *);

/* Write the header from vcpu->half. */
void page_introduce(struct vcpu *);

/* Write the exit and what is valid from vcpu->half, then exit_seq, and wake the VMM if it sleeps. */
void page_publish_exit(struct vcpu *);

/* Copy a reply out of memory that may be changing: the record, `data_bytes` of data, and what is charged. */
void page_copy_reply(struct vcpu_vmm_half *to, const struct vcpu_vmm_half *from, uint32_t data_bytes);

/* Copy the charged FPU area into vcpu->fpu_charged. */
void page_copy_fpu(struct vcpu *);

#endif

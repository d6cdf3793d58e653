/* SPDX-License-Identifier: Apache-2.0
 *
 * Between struct kvm_sregs and the page: control registers, segments, tables.
 */
#ifndef VMSESSION_KVM_SREGS_H
#define VMSESSION_KVM_SREGS_H

#include <linux/kvm.h>
#include <stdbool.h>

#include "vcpu_page.h"

void kvm_sregs_get(const struct kvm_sregs *, struct vcpu_engine_half *);
/* Take over what is charged; false for a value that has no place there. */
bool kvm_sregs_set(struct kvm_sregs *, const struct vcpu_vmm_half *);

#endif

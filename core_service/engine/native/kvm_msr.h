/* SPDX-License-Identifier: Apache-2.0
 *
 * Registers that are MSRs: their numbers (SDM vol. 4), and moving several with one ioctl.
 */
#ifndef VMSESSION_KVM_MSR_H
#define VMSESSION_KVM_MSR_H

#include <stdbool.h>
#include <stdint.h>

/* The scalar's bit, 0 for an MSR that is no register of the page. */
uint64_t kvm_msr_scalar(uint32_t msr);
/* `wanted` and the result are masks over enum vcpu_scalar; `scalar` is indexed by it. Returns what was read. */
uint64_t kvm_msr_read(int vcpu_fd, uint64_t wanted, uint64_t *scalar);
/* False when KVM refuses one of them. */
bool kvm_msr_write(int vcpu_fd, uint64_t charged, const uint64_t *scalar);

#endif

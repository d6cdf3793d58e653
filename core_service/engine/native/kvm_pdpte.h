/* SPDX-License-Identifier: Apache-2.0
 *
 * The page directory pointers of PAE paging, loaded with CR3 (SDM vol. 3, 4.4.1). No other mode has any.
 */
#ifndef VMSESSION_KVM_PDPTE_H
#define VMSESSION_KVM_PDPTE_H

#include <stdbool.h>
#include <stdint.h>

/* Four values, by KVM_GET_SREGS2. False where the vCPU has none. */
bool kvm_pdpte_read(int vcpu_fd, uint64_t *pdpte);
/* Those charged, a mask over enum vcpu_scalar; `scalar` is indexed by it. False where the vCPU has none, or KVM
 * refuses a value. */
bool kvm_pdpte_write(int vcpu_fd, uint64_t charged, const uint64_t *scalar);

#endif

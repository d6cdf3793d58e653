/* SPDX-License-Identifier: Apache-2.0 */
#include "kvm_pdpte.h"

#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vcpu_page.h"

#define PDPTES 4u

static bool read_sregs(int vcpu_fd, struct kvm_sregs2 *sregs)
{
	return ioctl(vcpu_fd, KVM_GET_SREGS2, sregs) == 0 && sregs->flags & KVM_SREGS2_FLAGS_PDPTRS_VALID;
}

bool kvm_pdpte_read(int vcpu_fd, uint64_t *pdpte)
{
	struct kvm_sregs2 sregs;
	if (!read_sregs(vcpu_fd, &sregs))
		return false;
	memcpy(pdpte, sregs.pdptrs, sizeof(sregs.pdptrs));
	return true;
}

bool kvm_pdpte_write(int vcpu_fd, uint64_t charged, const uint64_t *scalar)
{
	struct kvm_sregs2 sregs;
	if (!read_sregs(vcpu_fd, &sregs))
		return false;
	for (unsigned i = 0; i < PDPTES; i++)
		if (charged >> (REG_PDPTE0 + i) & 1)
			sregs.pdptrs[i] = scalar[REG_PDPTE0 + i];
	return ioctl(vcpu_fd, KVM_SET_SREGS2, &sregs) == 0;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * What differs from one host's KVM to another's.
 */
#include <stdlib.h>
#include <unistd.h>

#include "kvm.h"
#include "kvm_msr.h"
#include "kvm_registers.h"

/* KVM without VMX or SVM, as in nested clouds. It runs 64-bit ring 3 on the CPU, where neither a step nor a
 * breakpoint comes back to us, and emulates all else; KVM's emulator knows no breakpoints on data. Guests see the
 * host's time-stamp counter, whatever offset it is given. */
#define KVM_PVM "/sys/module/kvm_pvm"

#define MSRS_LIMIT 4096u

/* The registers that the host's list of MSRs has. False with errno. */
static bool known_msrs(int kvm_fd, uint64_t *known)
{
	struct kvm_msr_list *list = calloc(1, sizeof(*list) + MSRS_LIMIT * sizeof(list->indices[0]));
	if (!list)
		return false;
	list->nmsrs = MSRS_LIMIT;
	bool listed = ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, list) == 0;
	*known = 0;
	for (uint32_t i = 0; listed && i < list->nmsrs; i++)
		*known |= kvm_msr_scalar(list->indices[i]);
	free(list);
	return listed;
}

bool kvm_host_restrict(struct vm *vm, int kvm_fd)
{
	uint64_t known;
	if (!known_msrs(kvm_fd, &known))
		return false;
	vm->registers[0] &= ~KVM_MSR_SCALARS | known;
	kvm_vm(vm)->software = access(KVM_PVM, F_OK) == 0;
	if (kvm_vm(vm)->software) {
		vm->capabilities &= ~ENGINE_WATCH;
		vm->registers[0] &= ~KVM_TSC_OFFSET_SCALARS;
	}
	if (kvm_vm(vm)->software || ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_SREGS2) <= 0)
		vm->registers[0] &= ~KVM_PDPTE_SCALARS;
	return true;
}

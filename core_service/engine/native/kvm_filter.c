/* SPDX-License-Identifier: Apache-2.0
 *
 * The MSRs that the VMM wants to see, also those that KVM keeps. KVM denies what is in the filter, and
 * KVM_MSR_EXIT_REASON_FILTER makes that an exit. Its x2APIC range (0x800 to 0x8ff) cannot be filtered, and needs not:
 * without a local APIC it is unknown and exits as such.
 */
#include "failure.h"
#include "kvm.h"

_Static_assert(MSR_FILTER_READ == KVM_MSR_FILTER_READ && MSR_FILTER_WRITE == KVM_MSR_FILTER_WRITE, "the same bits");
_Static_assert(CHANNEL_MSR_RANGES <= KVM_MSR_FILTER_MAX_RANGES, "KVM takes as many ranges");
_Static_assert(CHANNEL_MSR_RANGE / 8 <= KVM_MSR_FILTER_MAX_BITMAP_SIZE, "KVM takes as many MSRs in one range");

enum channel_status kvm_set_msr_filter(struct vm *vm, const struct msr_range *range, uint32_t ranges,
				       struct failure *failure)
{
	uint8_t none[CHANNEL_MSR_RANGE / 8] = {0}; /* a bit allows */
	struct kvm_msr_filter filter = {.flags = KVM_MSR_FILTER_DEFAULT_ALLOW};
	for (uint32_t i = 0; i < ranges; i++)
		filter.ranges[i] = (struct kvm_msr_filter_range){
			.flags = range[i].flags, .base = range[i].first, .nmsrs = range[i].count, .bitmap = none};
	if (ioctl(kvm_vm(vm)->fd, KVM_X86_SET_MSR_FILTER, &filter) < 0)
		return failed_call(failure, "KVM_X86_SET_MSR_FILTER of %u ranges", ranges);
	return CHANNEL_OK;
}

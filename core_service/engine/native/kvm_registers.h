/* SPDX-License-Identifier: Apache-2.0
 *
 * Which registers KVM has, and by which of its interfaces they move.
 */
#ifndef VMSESSION_KVM_REGISTERS_H
#define VMSESSION_KVM_REGISTERS_H

#include "vcpu_page.h"

#define KVM_BIT(index) (1ull << (index))
#define KVM_BITS(first, last) (KVM_BIT(last) * 2 - KVM_BIT(first))

/* struct kvm_regs */
#define KVM_REGS_SCALARS KVM_BITS(REG_RAX, REG_RFLAGS)
/* struct kvm_sregs; CR8 and the APIC base stand in struct kvm_run as well */
#define KVM_SREGS_SCALARS (KVM_BITS(REG_CR0, REG_CR8) | KVM_BIT(REG_EFER) | KVM_BIT(REG_APIC_BASE))
#define KVM_SEGMENTS_ALL KVM_BITS(SEG_ES, SEG_IDTR)
/* struct kvm_vcpu_events */
#define KVM_EVENTS_SCALARS KVM_BIT(REG_INTERRUPTIBILITY)
/* struct kvm_debugregs */
#define KVM_DEBUG_SCALARS KVM_BITS(REG_DR0, REG_DR7)
/* KVM_GET_MSRS */
#define KVM_MSR_SCALARS                                                                                                \
	(KVM_BIT(REG_XSS) | KVM_BITS(REG_SYSENTER_CS, REG_KERNEL_GS_BASE) | KVM_BIT(REG_TSC) | KVM_BIT(REG_TSC_AUX) |   \
	 KVM_BIT(REG_PAT))
/* KVM_GET_XCRS */
#define KVM_XCR_SCALARS KVM_BIT(REG_XCR0)
/* the vCPU's device attribute KVM_VCPU_TSC_OFFSET */
#define KVM_TSC_OFFSET_SCALARS KVM_BIT(REG_TSC_OFFSET)

/* struct kvm_sregs2, in PAE paging only */
#define KVM_PDPTE_SCALARS KVM_BITS(REG_PDPTE0, REG_PDPTE3)

#define KVM_SCALARS                                                                                                    \
	(KVM_REGS_SCALARS | KVM_SREGS_SCALARS | KVM_EVENTS_SCALARS | KVM_DEBUG_SCALARS | KVM_MSR_SCALARS |              \
	 KVM_XCR_SCALARS | KVM_TSC_OFFSET_SCALARS | KVM_PDPTE_SCALARS | KVM_BIT(REG_ACTIVITY))
#define KVM_SEGMENTS (KVM_SEGMENTS_ALL | KVM_BIT(VCPU_FPU_BIT))

#endif

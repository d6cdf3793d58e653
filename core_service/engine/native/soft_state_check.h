/* SPDX-License-Identifier: Apache-2.0
 *
 * Whether a CPU can be in a state: what an x86 processor would refuse with #GP (SDM vol. 3, 2.5 and 9.8), or
 * could not get into at all, and Bochs does not check.
 */
#ifndef VMSESSION_SOFT_STATE_CHECK_H
#define VMSESSION_SOFT_STATE_CHECK_H

#include "soft_bochs.h"

#define SEGMENT_PRESENT (1u << 7)
#define SEGMENT_LONG (1u << 9)
#define SEGMENT_BIG (1u << 10)
#define FLAG_ALWAYS (1u << 1)
#define FLAG_RESUME (1u << 16)
#define FLAG_VM (1u << 17)
#define CR0_PE (1u << 0)
#define CR0_NW (1u << 29)
#define CR0_CD (1u << 30)
#define CR0_PG (1u << 31)
#define CR4_PAE (1u << 5)
#define EFER_LME (1u << 8)
#define EFER_LMA (1u << 10)
#define APIC_BASE_BOOTSTRAP (1ull << 8)

struct soft_state {
	uint64_t scalar[REG_SCALARS];
	struct vcpu_segment_value segment[SEG_SEGMENTS];
};

bool soft_state_enterable(const struct bochs *, const struct soft_state *);

#endif

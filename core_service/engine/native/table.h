/* SPDX-License-Identifier: Apache-2.0
 *
 * Checking the tables that core sends.
 */
#ifndef VMSESSION_TABLE_H
#define VMSESSION_TABLE_H

#include "engine.h"

/* At most CHANNEL_CPUID_LEAVES leaves, known flags, none twice. */
enum channel_status table_check_cpuid(const struct channel_cpuid *, struct failure *);

/* At most CHANNEL_MSR_RANGES ranges of 1 to CHANNEL_MSR_RANGE MSRs within 32 bits, for reads, writes or both. */
enum channel_status table_check_msrs(const struct channel_msr_filter *, struct failure *);

#endif

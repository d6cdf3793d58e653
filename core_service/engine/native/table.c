/* SPDX-License-Identifier: Apache-2.0 */
#include "table.h"

#include "failure.h"

/* Leaves without sub-leaves are answered whatever ECX says: one of them leaves no room for others. */
static bool same_leaf(const struct cpuid_leaf *one, const struct cpuid_leaf *other)
{
	bool subleaves = one->flags & other->flags & CPUID_SUBLEAF;
	return one->function == other->function && (!subleaves || one->index == other->index);
}

static enum channel_status check_leaf(const struct channel_cpuid *table, uint32_t at, struct failure *failure)
{
	const struct cpuid_leaf *leaf = &table->leaf[at];
	if (leaf->flags & ~CPUID_SUBLEAF)
		return failed(failure, CHANNEL_BAD_MESSAGE, "CPUID leaf %#x: flags %#x, %#x are known", leaf->function,
			      leaf->flags, CPUID_SUBLEAF);
	for (uint32_t i = 0; i < at; i++)
		if (same_leaf(&table->leaf[i], leaf))
			return failed(failure, CHANNEL_BAD_MESSAGE, "CPUID leaf %#x, sub-leaf %u: twice",
				      leaf->function, leaf->index);
	return CHANNEL_OK;
}

enum channel_status table_check_cpuid(const struct channel_cpuid *table, struct failure *failure)
{
	if (table->leaves > CHANNEL_CPUID_LEAVES)
		return failed(failure, CHANNEL_BAD_MESSAGE, "CPUID: %u leaves, %u are the limit", table->leaves,
			      CHANNEL_CPUID_LEAVES);
	enum channel_status status = CHANNEL_OK;
	for (uint32_t i = 0; i < table->leaves && status == CHANNEL_OK; i++)
		status = check_leaf(table, i, failure);
	return status;
}

static enum channel_status check_range(const struct msr_range *range, struct failure *failure)
{
	const uint32_t known = MSR_FILTER_READ | MSR_FILTER_WRITE;
	if (!range->count || range->count > CHANNEL_MSR_RANGE)
		return failed(failure, CHANNEL_BAD_MESSAGE, "MSR range at %#x: %u MSRs, 1 to %u can be", range->first,
			      range->count, CHANNEL_MSR_RANGE);
	if (range->count - 1 > UINT32_MAX - range->first)
		return failed(failure, CHANNEL_BAD_MESSAGE, "MSR range at %#x: %u MSRs go beyond 32 bits",
			      range->first, range->count);
	if (!range->flags || range->flags & ~known)
		return failed(failure, CHANNEL_BAD_MESSAGE, "MSR range at %#x: flags %#x, one or both of %#x wanted",
			      range->first, range->flags, known);
	return CHANNEL_OK;
}

enum channel_status table_check_msrs(const struct channel_msr_filter *filter, struct failure *failure)
{
	if (filter->ranges > CHANNEL_MSR_RANGES)
		return failed(failure, CHANNEL_BAD_MESSAGE, "MSR filter: %u ranges, %u are the limit", filter->ranges,
			      CHANNEL_MSR_RANGES);
	enum channel_status status = CHANNEL_OK;
	for (uint32_t i = 0; i < filter->ranges && status == CHANNEL_OK; i++)
		status = check_range(&filter->range[i], failure);
	return status;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * An engine enters its cgroup itself. Core would have to hold back its first instructions until it moved it, and
 * wait meanwhile: the kernel moves a process only after a grace period of RCU, of some ten milliseconds.
 */
#include "place.h"

#include <sched.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "failure.h"

#define MOST_CPUS 8192u /* more than any kernel for this architecture has: CONFIG_NR_CPUS */
#define WORD_BITS (8 * sizeof(unsigned long))

static enum channel_status enter_cgroup(struct failure *failure)
{
	if (getenv("VMSESSION_CGROUP") && write(CGROUP_FD, "0", 1) != 1)
		return failed_call(failure, "cannot enter its cgroup");
	return CHANNEL_OK;
}

static enum channel_status keep_to_cpus(struct failure *failure)
{
	unsigned long cpus[MOST_CPUS / WORD_BITS] = {0};
	const char *list = getenv("VMSESSION_CPUS");
	if (!list)
		return CHANNEL_OK;
	for (const char *at = list; *at;) {
		char *end;
		unsigned long cpu = strtoul(at, &end, 10);
		if (end == at || cpu >= MOST_CPUS)
			return failed(failure, CHANNEL_BAD_MESSAGE, "CPUs %.64s: numbers below %u, with commas", list,
				      MOST_CPUS);
		cpus[cpu / WORD_BITS] |= 1ul << cpu % WORD_BITS;
		at = *end == ',' ? end + 1 : end;
	}
	if (sched_setaffinity(0, sizeof(cpus), (const cpu_set_t *)cpus))
		return failed_call(failure, "cannot keep to the CPUs %.64s", list);
	return CHANNEL_OK;
}

static enum channel_status give_way(struct failure *failure)
{
	const char *priority = getenv("VMSESSION_PRIORITY");
	if (priority && setpriority(PRIO_PROCESS, 0, atoi(priority)))
		return failed_call(failure, "cannot have the priority %.16s", priority);
	return CHANNEL_OK;
}

enum channel_status place(struct failure *failure)
{
	enum channel_status status = enter_cgroup(failure); /* first: a cpuset would set the CPUs anew */
	if (status == CHANNEL_OK)
		status = keep_to_cpus(failure);
	if (status == CHANNEL_OK)
		status = give_way(failure);
	return status;
}

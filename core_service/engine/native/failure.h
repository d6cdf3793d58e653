/* SPDX-License-Identifier: Apache-2.0
 *
 * Saying what failed: `return failed(failure, CHANNEL_LIMIT, "vCPU %u: at most %u", index, limit);`
 */
#ifndef VMSESSION_FAILURE_H
#define VMSESSION_FAILURE_H

#include "engine.h"

/* Fill `failure` and return `status`. A text that is too long is cut. */
__attribute__((format(printf, 3, 4))) enum channel_status failed(struct failure *failure, enum channel_status status,
								  const char *format, ...);

/* The same for a failed system call: CHANNEL_KERNEL, errno, and its text behind ": ". */
__attribute__((format(printf, 2, 3))) enum channel_status failed_call(struct failure *failure, const char *format, ...);

#endif

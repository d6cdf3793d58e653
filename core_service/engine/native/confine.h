/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VMSESSION_CONFINE_H
#define VMSESSION_CONFINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "channel.h"

struct failure;

/* What a backend does by system calls once its machine exists, beyond what all engines do. */
struct needs {
	const uint32_t *ioctls; /* request numbers */
	size_t ioctl_count;
	bool loads_code; /* loads its own code from memfds: opens them, and maps pages that can be executed */
};

/* For good, of all threads that there are and will be: no files, no network, and only the system calls that an
 * engine makes. Another one is the end of the process, by SIGSYS. */
enum channel_status confine(const struct needs *, struct failure *);

#endif

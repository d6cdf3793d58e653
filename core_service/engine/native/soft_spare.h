/* SPDX-License-Identifier: Apache-2.0
 *
 * The first vCPU's copy of Bochs, loaded while core and the VMM are still busy with the session: loading
 * takes some 8 ms, most of it in the dynamic loader.
 */
#ifndef VMSESSION_SOFT_SPARE_H
#define VMSESSION_SOFT_SPARE_H

#include <pthread.h>

#include "soft_bochs.h"

struct soft_spare {
	pthread_t thread;
	bool started; /* the thread is there to be joined */
	int library;
	struct bochs bochs;
	enum channel_status status;
	struct failure failure;
};

/* Start loading. `library` stays the caller's and open until the spare was taken or discarded. */
void soft_spare_start(struct soft_spare *, int library);

/* The copy, or one loaded here and now when the spare is gone. */
enum channel_status soft_spare_take(struct soft_spare *, struct bochs *, struct failure *);

/* Unload it if nobody took it. */
void soft_spare_discard(struct soft_spare *);

#endif

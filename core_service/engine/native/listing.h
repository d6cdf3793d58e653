/* SPDX-License-Identifier: Apache-2.0
 *
 * What is mapped, for core's audit: the table of regions, and what the kernel says of the address space. They are
 * told side by side and compared by core, so that a mapping that came or went behind the table's back is seen.
 */
#ifndef VMSESSION_LISTING_H
#define VMSESSION_LISTING_H

#include "engine.h"

/* Open /proc/self/maps, while that is allowed. Where it cannot be had, listing_fill() says so. */
void listing_prepare(void);

/* Fill `answer` from entry `first` on, all but its header. The first part of a list looks anew; what it saw is kept
 * until the last part is told. */
enum channel_status listing_fill(struct vm *, uint32_t first, struct channel_mappings *answer, struct failure *);

/* Give back what is kept of a list that was not asked for to its end. */
void listing_forget(void);

#endif

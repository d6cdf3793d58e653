/* SPDX-License-Identifier: Apache-2.0
 *
 * Guest memory: what is mapped where, for one VM. The control thread changes it while vCPUs are held.
 *
 * Host mappings belong to the regions. The part that an unmap takes away is replaced by anonymous memory at
 * once, so that the dataspace's pages are out of the address space when the answer is sent, and a vCPU that
 * stands in the middle of a string instruction with a host pointer does no harm; it is given back by the
 * first change that finds no vCPU in the middle of an instruction.
 */
#ifndef VMSESSION_MEMORY_H
#define VMSESSION_MEMORY_H

#include "engine.h"

struct retired {
	uint8_t *host;
	uint64_t size;
	struct retired *next;
};

struct memory {
	struct region *region; /* sorted by gpa */
	uint32_t regions, room;
	struct retired *retired;
};

/* Map [offset, offset + size) of the dataspace behind `fd`, which stays the caller's. */
enum channel_status memory_map(struct vm *, const struct channel_range *, int fd, struct failure *);
/* Unmap exactly [gpa, gpa + size), splitting what overlaps; what is not mapped is left alone. */
enum channel_status memory_unmap(struct vm *, const struct channel_range *, struct failure *);
/* Somebody wrote [gpa, gpa + size). */
enum channel_status memory_written(struct vm *, const struct channel_range *, struct failure *);
/* Unmap everything; all vCPUs have ended. */
void memory_free(struct vm *);

#endif

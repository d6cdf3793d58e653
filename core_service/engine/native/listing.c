/* SPDX-License-Identifier: Apache-2.0 */
#include "listing.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "failure.h"
#include "vm.h"

/* memfd_create(2): how such files are named in /proc/PID/maps */
#define MEMFD "/memfd:" CHANNEL_MEMORY_NAME

/* The control thread's own, like the table that it copies. */
static struct {
	int maps, error; /* why there is no `maps` */
	struct channel_mapping *entry;
	uint32_t entries, room;
} listing = {.maps = -1};

void listing_prepare(void)
{
	listing.maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	listing.error = errno;
}

void listing_forget(void)
{
	free(listing.entry);
	listing.entry = NULL;
	listing.entries = listing.room = 0;
}

static bool add(const struct channel_mapping *entry)
{
	if (listing.entries == listing.room) {
		uint32_t room = listing.room ? listing.room * 2 : CHANNEL_MAPPING_ENTRIES;
		struct channel_mapping *grown = realloc(listing.entry, room * sizeof(*grown));
		if (!grown)
			return false;
		listing.entry = grown;
		listing.room = room;
	}
	listing.entry[listing.entries++] = *entry;
	return true;
}

static bool add_regions(const struct memory *memory)
{
	for (uint32_t i = 0; i < memory->regions; i++) {
		const struct region *region = &memory->region[i];
		const struct channel_mapping entry = {
			.gpa = region->gpa,
			.host = (uintptr_t)region->host,
			.size = region->size,
			.flags = CHANNEL_WRITABLE * region->writable | CHANNEL_EXECUTABLE * region->executable,
			.kind = MAPPING_REGION,
		};
		if (!add(&entry))
			return false;
	}
	return true;
}

/* A line of proc_pid_maps(5). */
static bool add_line(const char *line)
{
	unsigned long long from, to, offset, inode;
	char rights[5];
	int path = 0;
	if (sscanf(line, "%llx-%llx %4s %llx %*x:%*x %llu %n", &from, &to, rights, &offset, &inode, &path) != 5 ||
	    strncmp(line + path, MEMFD, strlen(MEMFD)) != 0)
		return true;
	const struct channel_mapping entry = {
		.host = from,
		.size = to - from,
		.offset = offset,
		.inode = inode,
		.flags = rights[1] == 'w' ? CHANNEL_WRITABLE : 0,
		.kind = MAPPING_KERNEL,
	};
	return add(&entry);
}

static bool add_lines(FILE *maps)
{
	char *line = NULL;
	size_t room = 0;
	bool added = true;
	while (added && getline(&line, &room, maps) >= 0)
		added = add_line(line);
	free(line);
	return added && !ferror(maps);
}

/* A stream of its own each time: one that is rewound may answer from its buffer. */
static bool add_kernel(void)
{
	if (listing.maps < 0) {
		errno = listing.error;
		return false;
	}
	int copy = lseek(listing.maps, 0, SEEK_SET) == 0 ? fcntl(listing.maps, F_DUPFD_CLOEXEC, 0) : -1;
	FILE *maps = copy < 0 ? NULL : fdopen(copy, "r");
	if (!maps) {
		if (copy >= 0)
			close(copy);
		return false;
	}
	bool added = add_lines(maps);
	int error = errno;
	fclose(maps);
	errno = error;
	return added;
}

enum channel_status listing_fill(struct vm *vm, uint32_t first, struct channel_mappings *answer,
				 struct failure *failure)
{
	if (first == 0) {
		listing_forget();
		if (!add_regions(&vm->common->memory) || !add_kernel())
			return failed_call(failure, "list of mappings");
	} else if (first >= listing.entries) {
		return failed(failure, CHANNEL_BAD_MESSAGE, "mapping %u: there are %u", first, listing.entries);
	}
	uint32_t rest = listing.entries - first;
	answer->first = first;
	answer->total = listing.entries;
	answer->entries = rest < CHANNEL_MAPPING_ENTRIES ? rest : CHANNEL_MAPPING_ENTRIES;
	if (rest)
		memcpy(answer->entry, listing.entry + first, answer->entries * sizeof(*answer->entry));
	if (answer->entries == rest)
		listing_forget();
	return CHANNEL_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "channel_io.h"
#include "failure.h"
#include "hold.h"
#include "vm.h"

#define GUEST_PAGE 4096u
#define RANGE(from, size) (unsigned long long)(from), (unsigned long long)((from) + (size))

static uint64_t end_of(const struct region *region)
{
	return region->gpa + region->size;
}

/* The first region that ends behind gpa: the only one that can hold it. */
static uint32_t lower_bound(const struct memory *memory, uint64_t gpa)
{
	uint32_t low = 0, high = memory->regions;
	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		if (end_of(&memory->region[middle]) <= gpa)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

struct region *memory_find(struct vm *vm, uint64_t gpa)
{
	struct memory *memory = &vm->common->memory;
	uint32_t at = lower_bound(memory, gpa);
	return at < memory->regions && memory->region[at].gpa <= gpa ? &memory->region[at] : NULL;
}

static enum channel_status check_range(const struct vm *vm, const struct channel_range *range, struct failure *failure)
{
	uint64_t limit = 1ull << vm->physical_bits;
	if (range->gpa % GUEST_PAGE || range->size % GUEST_PAGE || !range->size)
		return failed(failure, CHANNEL_BAD_MESSAGE, "range [%#llx, %#llx): empty or not in pages of %u",
			      RANGE(range->gpa, range->size), GUEST_PAGE);
	if (range->gpa >= limit || range->size > limit - range->gpa)
		return failed(failure, CHANNEL_BAD_MESSAGE, "range [%#llx, %#llx): beyond %u physical bits",
			      RANGE(range->gpa, range->size), vm->physical_bits);
	return CHANNEL_OK;
}

static enum channel_status check_dataspace(const struct channel_range *range, int fd, struct failure *failure)
{
	struct stat object;
	if (range->offset % GUEST_PAGE)
		return failed(failure, CHANNEL_BAD_MESSAGE, "dataspace offset %#llx: not in pages of %u",
			      (unsigned long long)range->offset, GUEST_PAGE);
	if (fstat(fd, &object) < 0)
		return failed_call(failure, "dataspace: fstat");
	uint64_t size = (uint64_t)object.st_size;
	if (range->offset > size || range->size > size - range->offset)
		return failed(failure, CHANNEL_BAD_MESSAGE, "dataspace range [%#llx, %#llx): it has %#llx bytes",
			      RANGE(range->offset, range->size), (unsigned long long)size);
	/* One that can still shrink would be SIGBUS in the guest's hands. */
	int seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0 || !(seals & F_SEAL_SHRINK))
		return failed(failure, CHANNEL_BAD_MESSAGE, "dataspace: not sealed against shrinking");
	return CHANNEL_OK;
}

static enum channel_status check_free(const struct memory *memory, const struct channel_range *range,
				      struct failure *failure)
{
	uint32_t at = lower_bound(memory, range->gpa);
	if (at == memory->regions || memory->region[at].gpa >= range->gpa + range->size)
		return CHANNEL_OK;
	const struct region *there = &memory->region[at];
	return failed(failure, CHANNEL_BAD_MESSAGE, "range [%#llx, %#llx): overlaps [%#llx, %#llx)",
		      RANGE(range->gpa, range->size), RANGE(there->gpa, there->size));
}

/* Room for `more` regions, so that nothing can fail half-way. */
static enum channel_status reserve(struct memory *memory, uint32_t more, struct failure *failure)
{
	if (memory->regions + more <= memory->room)
		return CHANNEL_OK;
	uint32_t room = (memory->regions + more) * 2;
	struct region *grown = realloc(memory->region, room * sizeof(*grown));
	if (!grown)
		return failed_call(failure, "%u regions", room);
	memory->region = grown;
	memory->room = room;
	return CHANNEL_OK;
}

static void insert(struct memory *memory, uint32_t at, const struct region *region)
{
	memmove(&memory->region[at + 1], &memory->region[at], (memory->regions - at) * sizeof(*region));
	memory->region[at] = *region;
	memory->regions++;
}

static void erase(struct memory *memory, uint32_t at)
{
	memory->regions--;
	memmove(&memory->region[at], &memory->region[at + 1], (memory->regions - at) * sizeof(*memory->region));
}

static bool somebody_mid_instruction(struct vm *vm)
{
	for (uint32_t i = 0; i < atomic_load(&vm->vcpus); i++)
		if (vm->vcpu[i]->common->mid_instruction)
			return true;
	return false;
}

static void free_retired(struct memory *memory)
{
	while (memory->retired) {
		struct retired *first = memory->retired;
		memory->retired = first->next;
		munmap(first->host, first->size);
		free(first);
	}
}

static void give_back_retired(struct vm *vm)
{
	if (!somebody_mid_instruction(vm))
		free_retired(&vm->common->memory);
}

static enum channel_status map_held(struct vm *vm, struct region *region, struct failure *failure)
{
	struct memory *memory = &vm->common->memory;
	give_back_retired(vm);
	enum channel_status status = reserve(memory, 1, failure);
	if (status == CHANNEL_OK)
		status = backend.map(vm, region, failure);
	if (status == CHANNEL_OK)
		insert(memory, lower_bound(memory, region->gpa), region);
	return status;
}

enum channel_status memory_map(struct vm *vm, const struct channel_range *range, int fd, struct failure *failure)
{
	enum channel_status status = check_range(vm, range, failure);
	if (status == CHANNEL_OK)
		status = check_dataspace(range, fd, failure);
	if (status == CHANNEL_OK)
		status = check_free(&vm->common->memory, range, failure);
	if (status != CHANNEL_OK)
		return status;

	bool writable = range->flags & CHANNEL_WRITABLE;
	void *host = mmap(NULL, range->size, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED | MAP_NORESERVE, fd,
			  (off_t)range->offset);
	if (host == MAP_FAILED)
		return failed_call(failure, "dataspace: mmap of %#llx bytes", (unsigned long long)range->size);
	struct region region = {
		.gpa = range->gpa,
		.size = range->size,
		.host = host,
		.writable = writable,
		.executable = range->flags & CHANNEL_EXECUTABLE,
	};
	hold_begin(vm);
	status = map_held(vm, &region, failure);
	hold_end(vm);
	if (status != CHANNEL_OK)
		munmap(host, range->size);
	return status;
}

static enum channel_status retire(struct memory *memory, uint8_t *host, uint64_t size, struct failure *failure)
{
	struct retired *retired = malloc(sizeof(*retired));
	if (!retired)
		return failed_call(failure, "retired range");
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
	if (mmap(host, size, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) {
		free(retired);
		return failed_call(failure, "mmap over a dataspace");
	}
	*retired = (struct retired){.host = host, .size = size, .next = memory->retired};
	memory->retired = retired;
	return CHANNEL_OK;
}

static enum channel_status map_rest(struct vm *vm, const struct region *whole, uint64_t from, uint64_t to,
				    struct failure *failure)
{
	struct memory *memory = &vm->common->memory;
	if (from >= to)
		return CHANNEL_OK;
	struct region rest = *whole;
	rest.gpa = from;
	rest.size = to - from;
	rest.host += from - whole->gpa;
	enum channel_status status = backend.map(vm, &rest, failure);
	if (status == CHANNEL_OK)
		insert(memory, lower_bound(memory, from), &rest);
	return status;
}

static void unmap_rest(struct vm *vm, uint64_t from, uint64_t to)
{
	struct memory *memory = &vm->common->memory;
	uint32_t at = lower_bound(memory, from);
	if (from >= to || at == memory->regions || memory->region[at].gpa != from)
		return;
	backend.unmap(vm, &memory->region[at]);
	erase(memory, at);
}

/* A VM that lost memory must not run on. */
static void restore(struct vm *vm, const struct region *whole)
{
	struct failure failure;
	if (map_rest(vm, whole, whole->gpa, end_of(whole), &failure) != CHANNEL_OK)
		channel_die(CHANNEL_KERNEL, &failure);
}

/* Take [from, to) out of the region at `at`; all of it or nothing. */
static enum channel_status cut(struct vm *vm, uint32_t at, uint64_t from, uint64_t to, struct failure *failure)
{
	struct memory *memory = &vm->common->memory;
	struct region whole = memory->region[at];
	if (from < whole.gpa)
		from = whole.gpa;
	if (to > end_of(&whole))
		to = end_of(&whole);

	backend.unmap(vm, &whole);
	erase(memory, at);
	enum channel_status status = map_rest(vm, &whole, whole.gpa, from, failure);
	if (status == CHANNEL_OK)
		status = map_rest(vm, &whole, to, end_of(&whole), failure);
	if (status == CHANNEL_OK)
		status = retire(memory, whole.host + (from - whole.gpa), to - from, failure);
	if (status == CHANNEL_OK)
		return CHANNEL_OK;
	unmap_rest(vm, whole.gpa, from);
	unmap_rest(vm, to, end_of(&whole));
	restore(vm, &whole);
	return status;
}

static enum channel_status unmap_held(struct vm *vm, const struct channel_range *range, struct failure *failure)
{
	struct memory *memory = &vm->common->memory;
	uint64_t end = range->gpa + range->size;
	give_back_retired(vm);
	enum channel_status status = reserve(memory, 1, failure);
	while (status == CHANNEL_OK) {
		uint32_t at = lower_bound(memory, range->gpa);
		if (at == memory->regions || memory->region[at].gpa >= end)
			break;
		status = cut(vm, at, range->gpa, end, failure);
	}
	give_back_retired(vm);
	return status;
}

enum channel_status memory_unmap(struct vm *vm, const struct channel_range *range, struct failure *failure)
{
	enum channel_status status = check_range(vm, range, failure);
	if (status != CHANNEL_OK)
		return status;
	hold_begin(vm);
	status = unmap_held(vm, range, failure);
	hold_end(vm);
	return status;
}

enum channel_status memory_written(struct vm *vm, const struct channel_range *range, struct failure *failure)
{
	if (!range->size || range->gpa + range->size < range->gpa)
		return failed(failure, CHANNEL_BAD_MESSAGE, "range [%#llx, %#llx): empty or wraps",
			      RANGE(range->gpa, range->size));
	if (!backend.written)
		return CHANNEL_OK;
	hold_begin(vm);
	backend.written(vm, range->gpa, range->size);
	hold_end(vm);
	return CHANNEL_OK;
}

void memory_free(struct vm *vm)
{
	struct memory *memory = &vm->common->memory;
	for (uint32_t i = 0; i < memory->regions; i++) {
		backend.unmap(vm, &memory->region[i]);
		munmap(memory->region[i].host, memory->region[i].size);
	}
	free_retired(memory);
	free(memory->region);
	*memory = (struct memory){0};
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "soft_bochs.h"

#include <dlfcn.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "failure.h"
#include "soft_library.h"
#include "soft_options.h"

/* Instructions between two ticks: a compromise between the latency of a kick (some 150 us) and speed. */
#define TICK_INSTRUCTIONS 20000u

/* A device that answers every call with 0: Bochs has pointers to devices that nobody gave it, such as the
 * interrupt controller that is told of FPU errors while CR0.NE is 0. */
static uint64_t no_device_method(void)
{
	return 0;
}

#define METHODS_4 no_device_method, no_device_method, no_device_method, no_device_method
#define METHODS_16 METHODS_4, METHODS_4, METHODS_4, METHODS_4
static uint64_t (*const no_device_methods[64])(void) = {METHODS_16, METHODS_16, METHODS_16, METHODS_16};
static const void *no_device[8] = {no_device_methods};

static void plug_in_no_devices(uint8_t *devices)
{
	for (unsigned at = BOCHS_PLUGINS; at < BOCHS_PLUGINS_END; at += sizeof(void *)) {
		const void **plugin = (const void **)(devices + at);
		if (!*plugin)
			*plugin = no_device;
	}
}

/* The copy's own table of stamps is not used, but was written to: give its memory back. */
static void release_pages(void *table)
{
	const uintptr_t page = 4096, start = ((uintptr_t)table + page - 1) & ~(page - 1);
	const uintptr_t end = ((uintptr_t)table + BOCHS_STAMP_TABLE_BYTES) & ~(page - 1);
	madvise((void *)start, end - start, MADV_DONTNEED);
}

static void *find(struct bochs *bochs, const char *symbol, const char **missing)
{
	void *address = dlsym(bochs->handle, symbol);
	if (!address && !*missing)
		*missing = symbol;
	return address;
}

static enum channel_status find_symbols(struct bochs *bochs, struct failure *failure)
{
	const char *missing = NULL;
	/* The casts are POSIX's, dlsym(3): an object pointer from dlsym is a function's address. */
#define FIND(name, symbol, result, parameters) *(void **)&bochs->name = find(bochs, symbol, &missing);
	BOCHS_FUNCTIONS(FIND)
#undef FIND
	bochs->cpu = find(bochs, "bx_cpu", &missing);
	bochs->system = find(bochs, "bx_pc_system", &missing);
	uint8_t *stamps = find(bochs, "pageWriteStampTable", &missing);
	uint8_t *devices = find(bochs, "bx_devices", &missing);
	if (missing)
		return failed(failure, CHANNEL_UNSUPPORTED, "software CPU: no symbol %.100s", missing);

	bochs->stamps = (uint32_t **)(stamps + BOCHS_STAMPS);
	bochs->own_stamps = *bochs->stamps;
	release_pages(bochs->own_stamps);
	plug_in_no_devices(devices);
	*(uint32_t *)(bochs->system + BOCHS_COUNTDOWN) = TICK_INSTRUCTIONS;
	*(uint32_t *)(bochs->system + BOCHS_COUNTDOWN_PERIOD) = TICK_INSTRUCTIONS;
	return CHANNEL_OK;
}

static enum channel_status load_file(struct bochs *bochs, struct failure *failure)
{
	char path[32];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", bochs->file);
	/* RTLD_LAZY: most of the Python functions that it calls do not exist here */
	bochs->handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
	if (!bochs->handle)
		return failed(failure, CHANNEL_UNSUPPORTED, "software CPU: %.200s", dlerror());
	return find_symbols(bochs, failure);
}

enum channel_status bochs_load(struct bochs *bochs, int library, struct failure *failure)
{
	*bochs = (struct bochs){.file = -1};
	enum channel_status status = soft_library_copy(library, &bochs->file, failure);
	if (status == CHANNEL_OK)
		status = load_file(bochs, failure);
	if (status == CHANNEL_OK)
		soft_options_create(bochs);
	else
		bochs_unload(bochs);
	return status;
}

void bochs_unload(struct bochs *bochs)
{
	if (bochs->option[OPTION_MODEL])
		soft_options_delete(bochs);
	if (bochs->stamps)
		*bochs->stamps = bochs->own_stamps; /* its destructor frees them */
	if (bochs->handle)
		dlclose(bochs->handle);
	if (bochs->file >= 0)
		close(bochs->file);
	*bochs = (struct bochs){.file = -1};
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Guest memory. An access is cut where an attachment begins or ends: each part is memory or a device's; and where a
 * device's page ends, as the accesses of a CPU with paging are.
 */
#include <string.h>

#include "x86emu.h"

#define PAGE_BYTES 4096u
#define BREAKPOINTS 4u
#define ENABLED(n) (3u << 2 * (n)) /* DR7: SDM vol. 3, 17.2.4 */
#define TYPE(n) (16 + 4 * (n))     /* R/W, and LEN above it */
#define ON_ACCESS 3u
#define ON_WRITE 1u

static void watch(struct x86emu_cpu *cpu, uint32_t address, uint32_t size, bool write)
{
	static const uint32_t lengths[] = {1, 2, 8, 4};
	const struct vcpu_debug *debug = &cpu->vcpu->debug;
	for (unsigned n = 0; n < BREAKPOINTS; n++) {
		uint32_t type = debug->control >> TYPE(n) & 3;
		bool concerned = debug->control & ENABLED(n) && (type == ON_ACCESS || (type == ON_WRITE && write));
		uint64_t end = debug->address[n] + lengths[debug->control >> (TYPE(n) + 2) & 3];
		if (concerned && address < end && debug->address[n] < (uint64_t)address + size)
			cpu->watched |= 1u << n;
	}
}

/* As much of [address, address + size) as is in one attachment, or in none and in one page. */
static uint32_t part(struct x86emu_cpu *cpu, uint32_t address, uint32_t size, struct region **region)
{
	*region = memory_find(cpu->vcpu->vm, address);
	if (*region) {
		uint64_t left = (*region)->gpa + (*region)->size - address;
		return left < size ? (uint32_t)left : size;
	}
	uint32_t gap = 1;
	while (gap < size && (address + gap) % PAGE_BYTES && !memory_find(cpu->vcpu->vm, address + gap))
		gap++;
	return gap;
}

static void read_device(struct x86emu_cpu *cpu, uint32_t address, uint32_t size, uint8_t *to)
{
	for (uint32_t done = 0, piece; done < size; done += piece) {
		piece = vcpu_access_size(address + done, size - done);
		uint64_t value = x86emu_exit_read(cpu, EXIT_MMIO, address + done, piece);
		memcpy(to + done, &value, piece);
	}
}

static void write_device(struct x86emu_cpu *cpu, uint32_t address, uint32_t size, const uint8_t *from, uint32_t flags)
{
	for (uint32_t done = 0, piece; done < size; done += piece) {
		uint64_t value = 0;
		piece = vcpu_access_size(address + done, size - done);
		memcpy(&value, from + done, piece);
		x86emu_exit_write(cpu, EXIT_MMIO, address + done, piece, value, flags);
	}
}

uint32_t x86emu_read(struct x86emu_cpu *cpu, uint32_t address, uint32_t size)
{
	uint8_t data[4] = {0};
	struct region *region;
	if (cpu->vcpu->debug.control)
		watch(cpu, address, size, false);
	for (uint32_t done = 0, bytes; done < size; done += bytes) {
		uint32_t at = address + done; /* wraps, as the CPU's */
		bytes = part(cpu, at, size - done, &region);
		if (region)
			memcpy(data + done, region->host + (at - region->gpa), bytes);
		else
			read_device(cpu, at, bytes, data + done);
	}
	uint32_t value;
	memcpy(&value, data, sizeof(value));
	return value;
}

void x86emu_write(struct x86emu_cpu *cpu, uint32_t address, uint32_t size, uint32_t value)
{
	uint8_t data[4];
	struct region *region;
	memcpy(data, &value, sizeof(data));
	if (cpu->vcpu->debug.control)
		watch(cpu, address, size, true);
	for (uint32_t done = 0, bytes; done < size; done += bytes) {
		uint32_t at = address + done;
		bytes = part(cpu, at, size - done, &region);
		if (region && region->writable)
			memcpy(region->host + (at - region->gpa), data + done, bytes);
		else
			write_device(cpu, at, bytes, data + done, region ? EXIT_WRITE_PROTECTED : 0);
	}
}

uint32_t x86emu_fetch(struct x86emu_cpu *cpu, uint32_t address, uint32_t size, uint8_t *to)
{
	uint32_t done = 0;
	while (done < size) {
		uint32_t at = address + done;
		const struct region *region = memory_find(cpu->vcpu->vm, at);
		if (!region || !region->executable)
			break;
		uint64_t left = region->gpa + region->size - at;
		uint32_t bytes = left < size - done ? (uint32_t)left : size - done;
		memcpy(to + done, region->host + (at - region->gpa), bytes);
		done += bytes;
	}
	return done;
}

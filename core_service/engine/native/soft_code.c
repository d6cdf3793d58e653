/* SPDX-License-Identifier: Apache-2.0
 *
 * Guest memory, and code decoded from it.
 *
 * Bochs keeps host addresses of pages in its TLBs and decoded instructions by guest-physical address. A table
 * of stamps, one word a page, says from which of a page's 32 lines code was decoded; every store looks at it,
 * and calls handleSMC when it must. In stock Bochs all CPUs share table and call. Here each CPU is a copy
 * with its own, so the copies are given one table, and the call is interposed to reach all of them.
 *
 * All of this is touched only by the vCPU that has the turn, or while the vCPUs are held.
 */
#include <string.h>

#include "soft.h"
#include "soft_state_check.h"

#define PAGE_SHIFT 12
#define STAMPS (1u << 20) /* Bochs': a page's stamp is found by the low 32 bits of its address */
#define ALL_LINES UINT32_MAX
#define GPA_MASK ((1ull << 52) - 1)

enum { ACCESS_READ = 0, ACCESS_WRITE = 1, ACCESS_EXECUTE = 2 }; /* Bochs' rw; bit 0: write or read-modify-write */

/* ---- decoded code */

void soft_add_decoder(struct soft_vcpu *soft)
{
	soft_turn_take(&soft->vm->turn, &soft->waiter, NULL);
	for (unsigned i = 0; i < CHANNEL_VCPUS; i++)
		if (!soft->vm->decoder[i]) {
			soft->vm->decoder[i] = soft;
			break;
		}
	soft_turn_give(&soft->vm->turn);
}

void soft_remove_decoder(struct soft_vcpu *soft)
{
	soft_turn_take(&soft->vm->turn, &soft->waiter, NULL);
	for (unsigned i = 0; i < CHANNEL_VCPUS; i++)
		if (soft->vm->decoder[i] == soft)
			soft->vm->decoder[i] = NULL;
	soft_turn_give(&soft->vm->turn);
}

static void forget_lines(struct soft_vm *vm, uint64_t gpa, uint32_t lines)
{
	for (unsigned i = 0; i < CHANNEL_VCPUS; i++)
		if (vm->decoder[i])
			vm->decoder[i]->bochs.forget_code(gpa, lines);
}

static void forget_page(struct soft_vm *vm, uint64_t gpa)
{
	uint32_t *stamp = &vm->stamps[gpa >> PAGE_SHIFT & (STAMPS - 1)];
	if (*stamp) {
		forget_lines(vm, gpa, ALL_LINES);
		*stamp = 0;
	}
}

/* A CPU wrote where code was decoded from. */
void soft_handle_smc(uint64_t gpa, uint32_t lines) __asm__("_Z9handleSMCmj");
void soft_handle_smc(uint64_t gpa, uint32_t lines)
{
	forget_lines(soft_current->vm, gpa, lines);
}

/* INVD, and the reset of a CPU that has not decoded anything. Decoded code never differs from memory here. */
void soft_flush_caches(void) __asm__("_Z12flushICachesv");
void soft_flush_caches(void)
{
}

void soft_written(struct vm *vm, uint64_t gpa, uint64_t size)
{
	struct soft_vm *soft = vm->backend;
	uint64_t first = gpa >> PAGE_SHIFT, last = (gpa + (size - 1)) >> PAGE_SHIFT;
	if (last - first >= STAMPS)
		last = first + STAMPS - 1; /* every stamp once */
	struct soft_waiter waiter = {0};
	soft_turn_take(&soft->turn, &waiter, NULL);
	for (uint64_t page = first; page <= last; page++)
		forget_page(soft, page << PAGE_SHIFT);
	soft_turn_give(&soft->turn);
}

/* ---- attachments */

enum channel_status soft_map(struct vm *vm, struct region *region, struct failure *failure)
{
	struct soft_vm *soft = vm->backend;
	(void)region;
	(void)failure;
	soft->memory_generation++; /* TLBs know that there was nothing */
	return CHANNEL_OK;
}

void soft_unmap(struct vm *vm, struct region *region)
{
	struct soft_vm *soft = vm->backend;
	soft->memory_generation++;
	soft_written(vm, region->gpa, region->size); /* other memory may come here */
}

static uint8_t *host_address(struct soft_vcpu *soft, uint64_t gpa, bool write, bool *protected)
{
	const struct region *region = memory_find(soft->vcpu->vm, gpa);
	*protected = region && write && !region->writable;
	if (!region || *protected)
		return NULL;
	return region->host + (gpa - region->gpa);
}

/* ---- what Bochs calls; its memory's methods are static too */

/* Where in the page the fetch begins that needs it: at rip, or in the next page's first byte. */
static uint64_t fetch_offset(const struct soft_vcpu *soft)
{
	return soft_linear_ip(soft) & ((1u << PAGE_SHIFT) - 1);
}

static void *host_page_to_execute(struct soft_vcpu *soft, uint64_t gpa)
{
	const struct region *region = memory_find(soft->vcpu->vm, gpa);
	if (region && region->executable)
		return region->host + (gpa - region->gpa);
	if (!soft->executing)
		return NULL;
	soft->fetch_gpa = gpa + fetch_offset(soft);
	soft->memory_generation--; /* the TLB entry is half made: flush before the next attempt */
	soft_abandon_instruction(soft, STOP_FETCH);
}

void *soft_host_page(void *cpu, uint64_t gpa, unsigned access)
	__asm__("_ZN8BX_MEM_C14getHostMemAddrEP8BX_CPU_Cmj");
void *soft_host_page(void *cpu, uint64_t gpa, unsigned access)
{
	bool protected;
	(void)cpu;
	gpa &= GPA_MASK;
	if ((access & 3) == ACCESS_EXECUTE)
		return host_page_to_execute(soft_current, gpa);
	/* Without paging Bochs takes every page for one that users may write to, whatever it was looked up for.
	 * So a read-only page is then not given for reading either. */
	bool paging = *bochs_u32(&soft_current->bochs, BOCHS_CR0) & CR0_PG;
	return host_address(soft_current, gpa, !paging || access & ACCESS_WRITE, &protected);
}

void soft_read_physical(void *cpu, uint64_t gpa, unsigned bytes, void *data)
	__asm__("_ZN8BX_MEM_C16readPhysicalPageEP8BX_CPU_CmjPv");
void soft_read_physical(void *cpu, uint64_t gpa, unsigned bytes, void *data)
{
	struct soft_vcpu *soft = soft_current;
	bool protected;
	(void)cpu;
	gpa &= GPA_MASK;
	const uint8_t *host = host_address(soft, gpa, false, &protected);
	if (host)
		memcpy(data, host, bytes);
	else if (soft->executing)
		soft_read_mmio(soft, gpa, bytes, data);
	else
		memset(data, 0, bytes); /* a table that new state refers to, and that is not there */
}

void soft_write_physical(void *cpu, uint64_t gpa, unsigned bytes, const void *data)
	__asm__("_ZN8BX_MEM_C17writePhysicalPageEP8BX_CPU_CmjPv");
void soft_write_physical(void *cpu, uint64_t gpa, unsigned bytes, const void *data)
{
	struct soft_vcpu *soft = soft_current;
	bool protected;
	(void)cpu;
	gpa &= GPA_MASK;
	uint8_t *host = host_address(soft, gpa, true, &protected);
	if (host) {
		memcpy(host, data, bytes);
		forget_page(soft->vm, gpa);
	} else if (soft->executing) {
		soft_write_mmio(soft, gpa, bytes, data, protected);
	}
}

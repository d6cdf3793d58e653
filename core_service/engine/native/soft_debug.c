/* SPDX-License-Identifier: Apache-2.0
 *
 * The VMM's debugging: single steps and breakpoints. The guest sees nothing of it.
 *
 * Bochs compares breakpoints of the guest's debug registers page by page: an instruction that enters a page asks
 * whether code breakpoints are in it (and if so, every boundary in that page is looked at), and data in a page with
 * data breakpoints is never accessed through a cached host address. Both questions are interposed and answered
 * for the VMM's breakpoints, where there are any. So they cost nothing outside of their pages.
 *
 * A step is one instruction; what it raises, a fault or the guest's own trap, counts as one. Of a repeated string
 * instruction it is one iteration, as with TF (SDM vol. 3, 17.3.1.4). An event that is injected with it enters first.
 */
#include <string.h>

#include "soft.h"
#include "soft_state_check.h"

#define PAGE_MASK (~4095ull)

enum { KIND_EXECUTE = 0, KIND_WRITE = 1, KIND_ACCESS = 3 }; /* DR7's R/W */

static bool armed(const struct soft_vcpu *soft)
{
	return soft->vcpu->debug.control;
}

/* ---- one breakpoint: SDM vol. 3, 17.2.4 and 17.2.5 */

static bool enabled(const struct vcpu_debug *debug, unsigned number)
{
	return debug->control >> 2 * number & 3;
}

static unsigned kind(const struct vcpu_debug *debug, unsigned number)
{
	return debug->control >> (16 + 4 * number) & 3;
}

static uint64_t length(const struct vcpu_debug *debug, unsigned number)
{
	static const uint8_t lengths[] = {1, 2, 8, 4};
	return lengths[debug->control >> (18 + 4 * number) & 3];
}

static bool on_data(const struct vcpu_debug *debug, unsigned number, bool write)
{
	unsigned what = kind(debug, number);
	return what == KIND_ACCESS || (write && what == KIND_WRITE);
}

static bool overlaps(const struct vcpu_debug *debug, unsigned number, uint64_t linear, uint64_t bytes)
{
	uint64_t size = length(debug, number), first = debug->address[number] & -size;
	return linear <= first + (size - 1) && linear + (bytes - 1) >= first;
}

/* ---- all of them; bit n is breakpoint n, as in DR6 */

static uint32_t execute_hits(const struct vcpu_debug *debug, uint64_t linear)
{
	uint32_t hits = 0;
	for (unsigned i = 0; i < 4; i++)
		if (enabled(debug, i) && kind(debug, i) == KIND_EXECUTE && debug->address[i] == linear)
			hits |= 1u << i;
	return hits;
}

static uint32_t data_hits(const struct vcpu_debug *debug, uint64_t linear, uint32_t bytes, bool write)
{
	uint32_t hits = 0;
	for (unsigned i = 0; i < 4; i++)
		if (enabled(debug, i) && on_data(debug, i, write) && overlaps(debug, i, linear, bytes))
			hits |= 1u << i;
	return hits;
}

static bool in_page(const struct vcpu_debug *debug, uint64_t linear, bool execute)
{
	for (unsigned i = 0; i < 4; i++)
		if (enabled(debug, i) && (kind(debug, i) == KIND_EXECUTE) == execute &&
		    !((debug->address[i] ^ linear) & PAGE_MASK))
			return true;
	return false;
}

/* ---- the boundary */

uint64_t soft_linear_ip(const struct soft_vcpu *soft)
{
	uint64_t rip = *bochs_u64(&soft->bochs, BOCHS_RIP);
	if (*bochs_u32(&soft->bochs, BOCHS_CPU_MODE) == BOCHS_LONG_64)
		return rip;
	return (uint32_t)(bochs_segment(&soft->bochs, BOCHS_SEGMENTS, SEG_CS)->base + rip);
}

static bool advanced(struct soft_vcpu *soft)
{
	bool advanced = *bochs_u64(&soft->bochs, BOCHS_ICOUNT) != soft->entry_icount;
	if (advanced)
		soft->vcpu->step_over = false;
	return advanced;
}

/* RF: the instruction was interrupted after its breakpoint fired, by a fault or between two iterations. */
static uint32_t breakpoints_here(struct soft_vcpu *soft)
{
	if (!armed(soft) || (!advanced(soft) && soft->vcpu->step_over) ||
	    *bochs_u32(&soft->bochs, BOCHS_EFLAGS) & FLAG_RESUME)
		return 0;
	return execute_hits(&soft->vcpu->debug, soft_linear_ip(soft));
}

void soft_debug_begin(struct soft_vcpu *soft)
{
	soft->entry_icount = *bochs_u64(&soft->bochs, BOCHS_ICOUNT);
	soft->debug_status = 0; /* another exit came first */
	if (!memcmp(&soft->armed, &soft->vcpu->debug, sizeof(soft->armed)))
		return;
	soft->armed = soft->vcpu->debug;
	soft->bochs.flush_tlb(); /* what it holds was right for other breakpoints */
}

void soft_debug_boundary(struct soft_vcpu *soft)
{
	bool executed = advanced(soft);
	/* A boundary that is owed ends the step by itself, and may change which instruction comes next. */
	if (!soft->leave) {
		soft->debug_status |= breakpoints_here(soft);
		if (soft->vcpu->stepping && executed)
			soft->debug_status |= VCPU_DEBUG_STEP;
	}
	if (soft->debug_status && !soft->stop)
		soft->stop = STOP_DEBUG;
}

void soft_debug_report(struct soft_vcpu *soft)
{
	uint32_t status = soft->debug_status;
	soft->debug_status = 0;
	vcpu_debugged(soft->vcpu, status);
}

/* ---- what Bochs asks */

/* Leave before the instruction that enters this page, or begins a handler: no boundary before it was looked at. */
static void stop_at_entry(struct soft_vcpu *soft)
{
	soft->debug_status |= breakpoints_here(soft);
	if (!soft->debug_status)
		return;
	soft->bochs.flush_tlb(); /* what Bochs knows of the page to fetch from is half made */
	soft_abandon_instruction(soft, STOP_DEBUG);
}

/* Whether a page has breakpoints of these two kinds. */
bool soft_breakpoint_page(uint64_t linear, unsigned one, unsigned other)
	__asm__("_ZN8BX_CPU_C18hwbreakpoint_checkEmjj");
bool soft_breakpoint_page(uint64_t linear, unsigned one, unsigned other)
{
	struct soft_vcpu *soft = soft_current;
	const struct bochs *bochs = &soft->bochs;
	if (!armed(soft))
		return bochs->breakpoint_page(linear, one, other);
	/* elsewhere it is the second page of an instruction */
	bool at_boundary = *bochs_u64(bochs, BOCHS_RIP) == *bochs_u64(bochs, BOCHS_PREV_RIP);
	if (one == KIND_EXECUTE && soft->executing && at_boundary)
		stop_at_entry(soft);
	return in_page(&soft->vcpu->debug, linear, one == KIND_EXECUTE);
}

/* The guest's own breakpoint on this instruction. */
uint32_t soft_match_code(uint64_t linear) __asm__("_ZN8BX_CPU_C21code_breakpoint_matchEm");
uint32_t soft_match_code(uint64_t linear)
{
	return armed(soft_current) ? 0 : soft_current->bochs.match_code(linear);
}

void soft_match_data(uint64_t linear, unsigned bytes, unsigned access)
	__asm__("_ZN8BX_CPU_C18hwbreakpoint_matchEmjj");
void soft_match_data(uint64_t linear, unsigned bytes, unsigned access)
{
	struct soft_vcpu *soft = soft_current;
	if (!armed(soft)) {
		soft->bochs.match_data(linear, bytes, access);
		return;
	}
	soft->debug_status |= data_hits(&soft->vcpu->debug, linear, bytes, access & 1);
	if (soft->debug_status)
		soft_look_at_boundary(soft);
}

void soft_match_port(unsigned port, unsigned bytes) __asm__("_ZN8BX_CPU_C18iobreakpoint_matchEjj");
void soft_match_port(unsigned port, unsigned bytes)
{
	if (!armed(soft_current))
		soft_current->bochs.match_port(port, bytes);
}

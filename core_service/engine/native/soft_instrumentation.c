/* SPDX-License-Identifier: Apache-2.0 */
#include "soft_instrumentation.h"

#include <stdint.h>
#include <string.h>
#include <unistd.h>

/* Offsets of the PLT entries, in the file as in memory: objdump -d -j .plt | grep bx_instr */
static const uint32_t entries[] = {
	0x163250, /* far_branch */
	0x163a30, /* cache_cntrl */
	0x163b00, /* after_execution */
	0x163eb0, /* interrupt */
	0x164690, /* exception */
	0x164880, /* mwait */
	0x164e70, /* prefetch_hint */
	0x164ff0, /* before_execution */
	0x1651a0, /* cnear_branch_not_taken */
	0x1655e0, /* repeat_iteration */
	0x165ab0, /* cnear_branch_taken */
	0x165c30, /* vmexit */
	0x166080, /* opcode */
	0x166090, /* ucnear_branch */
	0x166290, /* phy_access */
	0x166300, /* tlb_cntrl */
	0x1664b0, /* exit */
	0x166670, /* wrmsr */
	0x166ce0, /* lin_access */
	0x166d50, /* hwinterrupt */
	0x167190, /* initialize */
	0x1676e0, /* reset */
	0x167780, /* clflush */
	0x167ce0, /* hlt */
};

static const uint8_t jump[] = {0xff, 0x25}; /* jmp *displacement(%rip) */
static const uint8_t ret = 0xc3;

static bool patch(int copy, uint32_t entry)
{
	uint8_t found[sizeof(jump)];
	return pread(copy, found, sizeof(found), entry) == sizeof(found) && !memcmp(found, jump, sizeof(jump)) &&
	       pwrite(copy, &ret, sizeof(ret), entry) == sizeof(ret);
}

bool soft_instrumentation_remove(int copy)
{
	for (unsigned i = 0; i < sizeof(entries) / sizeof(entries[0]); i++)
		if (!patch(copy, entries[i]))
			return false;
	return true;
}

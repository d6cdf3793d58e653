/* SPDX-License-Identifier: Apache-2.0
 *
 * Calls of Bochs that nothing here has a use for, interposed: instrumentation, logging, timers, the local
 * APIC's memory. What the library has in their places costs time with every instruction, formats text that
 * nobody reads, or asserts that it is not called, which a guest can bring about.
 */
#include <sys/random.h>

#include "soft.h"

/* Callees ignore parameters that they do not look at (System V ABI, 3.2.3), so one shape does for all. */
#define QUIET(name, symbol) \
	void soft_quiet_##name(void) __asm__(symbol); \
	void soft_quiet_##name(void) \
	{ \
	}

/* instrument.h of bochscpu-build */
QUIET(after_execution, "bx_instr_after_execution")
QUIET(before_execution, "bx_instr_before_execution")
QUIET(cache_cntrl, "bx_instr_cache_cntrl")
QUIET(clflush, "bx_instr_clflush")
QUIET(branch_not_taken, "bx_instr_cnear_branch_not_taken")
QUIET(branch_taken, "bx_instr_cnear_branch_taken")
QUIET(exception, "bx_instr_exception")
QUIET(far_branch, "bx_instr_far_branch")
QUIET(hlt, "bx_instr_hlt")
QUIET(hwinterrupt, "bx_instr_hwinterrupt")
QUIET(initialize, "bx_instr_initialize")
QUIET(inp, "bx_instr_inp")
QUIET(inp2, "bx_instr_inp2")
QUIET(interrupt, "bx_instr_interrupt")
QUIET(lin_access, "bx_instr_lin_access")
QUIET(mwait, "bx_instr_mwait")
QUIET(opcode, "bx_instr_opcode")
QUIET(outp, "bx_instr_outp")
QUIET(phy_access, "bx_instr_phy_access")
QUIET(prefetch_hint, "bx_instr_prefetch_hint")
QUIET(repeat_iteration, "bx_instr_repeat_iteration")
QUIET(reset, "bx_instr_reset")
QUIET(tlb_cntrl, "bx_instr_tlb_cntrl")
QUIET(unconditional_branch, "bx_instr_ucnear_branch")
QUIET(vmexit, "bx_instr_vmexit")
QUIET(wrmsr, "bx_instr_wrmsr")

/* logfunctions, and what prints the CPU's state to it */
QUIET(log_info, "_ZN12logfunctions4infoEPKcz")
QUIET(log_error, "_ZN12logfunctions5errorEPKcz")
QUIET(log_debug, "_ZN12logfunctions6ldebugEPKcz")
QUIET(debug, "_ZN8BX_CPU_C5debugEm")

/* bx_pc_system_c: no timers, and all address lines */
QUIET(activate_timer, "_ZN14bx_pc_system_c20activate_timer_ticksEjmb")
QUIET(deactivate_timer, "_ZN14bx_pc_system_c16deactivate_timerEj")
QUIET(invlpg, "_ZN14bx_pc_system_c6invlpgEm")

bool soft_get_enable_a20(void *system) __asm__("_ZN14bx_pc_system_c14get_enable_a20Ev");
bool soft_get_enable_a20(void *system)
{
	(void)system;
	return true;
}

/* The local APIC is not in memory: accesses there are MMIO exits as anywhere. */
bool soft_apic_is_selected(void *apic, uint64_t gpa) __asm__("_ZN15bx_local_apic_c11is_selectedEm");
bool soft_apic_is_selected(void *apic, uint64_t gpa)
{
	(void)apic;
	(void)gpa;
	return false;
}

/* A byte for RDRAND and RDSEED. */
uint64_t bochscpu_rand(unsigned id);
uint64_t bochscpu_rand(unsigned id)
{
	static _Thread_local uint8_t pool[256];
	static _Thread_local unsigned left;
	(void)id;
	if (!left) {
		/* up to 256 bytes are never interrupted: getrandom(2) */
		ssize_t got = getrandom(pool, sizeof(pool), 0);
		left = got > 0 ? (unsigned)got : 1;
	}
	return pool[--left];
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Calls of Bochs that nothing here has a use for, interposed: logging, timers, the local APIC's memory. What
 * the library has in their places formats text that nobody reads, or asserts that it is not called, which a
 * guest can bring about.
 */
#include <sys/random.h>

#include "soft.h"

/* Callees ignore parameters that they do not look at (System V ABI, 3.2.3), so one shape does for all. */
#define QUIET(name, symbol) \
	void soft_quiet_##name(void) __asm__(symbol); \
	void soft_quiet_##name(void) \
	{ \
	}

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

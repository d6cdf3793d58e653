/* SPDX-License-Identifier: Apache-2.0
 *
 * The time-stamp counter: nanoseconds since the VM began, the same on all vCPUs but for what each wrote to it.
 */
#include "page_wait.h"
#include "soft.h"

uint64_t soft_clock_ns(void)
{
	return page_now_ns() - soft_current->vm->start_ns;
}

uint64_t soft_read_tsc(void) __asm__("_ZN8BX_CPU_C7get_TSCEv");
uint64_t soft_read_tsc(void)
{
	return soft_clock_ns() + *bochs_u64(&soft_current->bochs, BOCHS_TSC_ADJUST);
}

void soft_write_tsc(uint64_t value) __asm__("_ZN8BX_CPU_C7set_TSCEm");
void soft_write_tsc(uint64_t value)
{
	*bochs_u64(&soft_current->bochs, BOCHS_TSC_ADJUST) = value - soft_clock_ns();
}

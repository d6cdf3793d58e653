/* SPDX-License-Identifier: Apache-2.0
 *
 * Bochs meets something that it was not made for, and would print it and end the process. Instead the
 * instruction is abandoned, and the VMM gets EXIT_INTERNAL_ERROR.
 */
#include <stdlib.h>

#include "soft.h"

static void break_down(enum soft_breakdown breakdown)
{
	struct soft_vcpu *soft = soft_current;
	if (!soft)
		abort();
	soft->breakdown = breakdown;
	if (soft->executing)
		soft_abandon_instruction(soft, STOP_BROKEN);
}

void soft_panic(void *log, const char *format, ...) __asm__("_ZN12logfunctions5panicEPKcz");
void soft_panic(void *log, const char *format, ...)
{
	(void)log;
	(void)format;
	break_down(BREAKDOWN_PANIC);
}

void soft_fatal(void *log, const char *format, ...) __asm__("_ZN12logfunctions6fatal1EPKcz");
void soft_fatal(void *log, const char *format, ...)
{
	(void)log;
	(void)format;
	break_down(BREAKDOWN_PANIC);
}

_Noreturn void soft_assertion_failed(const char *text, const char *file, unsigned line, const char *function)
	__asm__("__assert_fail");
void soft_assertion_failed(const char *text, const char *file, unsigned line, const char *function)
{
	(void)text;
	(void)file;
	(void)line;
	(void)function;
	break_down(BREAKDOWN_ASSERTION);
	abort();
}

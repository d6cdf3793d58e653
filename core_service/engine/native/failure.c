/* SPDX-License-Identifier: Apache-2.0 */
#include "failure.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum channel_status failed(struct failure *failure, enum channel_status status, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	failure->error = 0;
	vsnprintf(failure->text, sizeof(failure->text), format, arguments);
	va_end(arguments);
	return status;
}

enum channel_status failed_call(struct failure *failure, const char *format, ...)
{
	int error = errno;
	char reason[64], call[CHANNEL_TEXT_BYTES - sizeof(reason) - 2];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(call, sizeof(call), format, arguments);
	va_end(arguments);
	/* GNU strerror_r: safe from any thread, unlike strerror */
	const char *text = strerror_r(error, reason, sizeof(reason));
	failed(failure, CHANNEL_KERNEL, "%s: %.63s", call, text);
	failure->error = (uint32_t)error;
	return CHANNEL_KERNEL;
}

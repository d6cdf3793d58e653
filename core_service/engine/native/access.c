/* SPDX-License-Identifier: Apache-2.0
 *
 * How an access to a device's memory is cut into exits.
 */
#include "engine.h"

#define LARGEST_ACCESS 8u

uint32_t vcpu_access_size(uint64_t gpa, uint32_t bytes)
{
	bool whole = bytes <= LARGEST_ACCESS && !(bytes & (bytes - 1));
	uint32_t size = whole ? bytes : LARGEST_ACCESS;
	while (size > bytes || (!whole && gpa & (size - 1)))
		size /= 2;
	return size;
}

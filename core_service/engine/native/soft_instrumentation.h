/* SPDX-License-Identifier: Apache-2.0
 *
 * Bochs' instrumentation, taken out of a copy of the library.
 *
 * The wheel is built to call a function before and after every instruction, at every memory access, and at
 * some twenty other occasions. Interposing empty ones would do, but the calls go from the library through its
 * PLT to the executable, far away, and cost a third of the speed. So their PLT entries are made to return.
 */
#ifndef VMSESSION_SOFT_INSTRUMENTATION_H
#define VMSESSION_SOFT_INSTRUMENTATION_H

#include <stdbool.h>

/* Patch the file `copy`, not sealed yet. False: it cannot be written, or is not what soft_library.h admits. */
bool soft_instrumentation_remove(int copy);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * Bochs' options, as its configuration file would have them: which CPU it is.
 */
#ifndef VMSESSION_SOFT_OPTIONS_H
#define VMSESSION_SOFT_OPTIONS_H

#include "soft_bochs.h"

/* Create the option objects of a copy; they live as long as it. */
void soft_options_create(struct bochs *);

#endif

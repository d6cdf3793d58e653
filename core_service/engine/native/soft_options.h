/* SPDX-License-Identifier: Apache-2.0
 *
 * Bochs' options, as its configuration file would have them: which CPU it is.
 */
#ifndef VMSESSION_SOFT_OPTIONS_H
#define VMSESSION_SOFT_OPTIONS_H

#include "soft_bochs.h"

/* The option objects of a copy: created before its CPU, deleted before it is unloaded. */
void soft_options_create(struct bochs *);
void soft_options_delete(struct bochs *);

#endif

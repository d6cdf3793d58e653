/* SPDX-License-Identifier: Apache-2.0
 *
 * The control thread: serves core's requests, one after the other, until the channel ends.
 */
#ifndef VMSESSION_CONTROL_H
#define VMSESSION_CONTROL_H

#include "engine.h"

void control_serve(struct vm *);

#endif

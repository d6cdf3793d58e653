/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VMSESSION_PLACE_H
#define VMSESSION_PLACE_H

#include "channel.h"

struct failure;

/* Go where core wants this engine: into its cgroup, to its CPUs and its priority. Before anything else, while there
 * is one thread: what is allocated from now on is charged there, and every thread inherits the others. */
enum channel_status place(struct failure *);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * What common code keeps per VM: one VM is one process.
 */
#ifndef VMSESSION_VM_H
#define VMSESSION_VM_H

#include "engine.h"
#include "memory.h"

struct vm_common {
	_Atomic uint32_t ending; /* set once, by the control thread */

	/* hold.c */
	pthread_mutex_t hold_lock; /* one holder at a time */
	_Atomic uint32_t holding;

	/* kicker.c */
	pthread_t kicker;
	_Atomic uint32_t kicker_seq; /* moves when there is another vCPU, and at the end */

	struct memory memory; /* changed by the control thread while vCPUs are held */
};

#endif

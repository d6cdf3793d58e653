/* SPDX-License-Identifier: Apache-2.0
 *
 * Whose turn it is: a fair lock among the vCPUs of one VM.
 *
 * The software CPU's instructions are not atomic towards other threads, so one vCPU of a VM executes at a
 * time. First come, first served: the turn is handed to who has waited longest, so that none starves, which a
 * mutex does not promise. A waiter can be called away. Uncontended, taking and giving are one locked
 * instruction each, since every exit does both.
 */
#ifndef VMSESSION_SOFT_TURN_H
#define VMSESSION_SOFT_TURN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct soft_waiter {
	struct soft_waiter *next;
	_Atomic uint32_t news; /* bit 0: the turn was handed over; the rest counts calls */
};

enum soft_turn_state { TURN_FREE, TURN_TAKEN, TURN_WANTED };

struct soft_turn {
	_Atomic uint32_t state; /* TURN_WANTED: taken, and the queue may hold somebody */
	pthread_mutex_t lock;   /* of the queue */
	struct soft_waiter *first, **end;
};

void soft_turn_init(struct soft_turn *);

/* Wait for the turn. False, without it: `*called_away` is true. With NULL nothing calls away. */
bool soft_turn_take(struct soft_turn *, struct soft_waiter *, const _Atomic bool *called_away);

/* Only by who has it. */
void soft_turn_give(struct soft_turn *);

/* By who has it: give it to who waits, if anybody, and wait for it again. Who gives and then takes is not in the
 * queue yet when the other runs, which thinks itself alone, and may be the one that it is to give way to. */
bool soft_turn_pass(struct soft_turn *, struct soft_waiter *, const _Atomic bool *called_away);

/* Whether others wait, as far as who has the turn knows. */
static inline bool soft_turn_wanted(const struct soft_turn *turn)
{
	return atomic_load_explicit(&turn->state, memory_order_relaxed) == TURN_WANTED;
}

/* Any thread, after it has set what calls the waiter away. */
void soft_turn_call(struct soft_waiter *);

#endif

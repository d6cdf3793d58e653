/* SPDX-License-Identifier: Apache-2.0 */
#include "soft_turn.h"

#include "futex.h"

#define NO_LIMIT_NS 3600000000000 /* an hour: whoever gives or calls wakes */
#define HANDED_OVER 1u
#define ONE_CALL 2u

void soft_turn_init(struct soft_turn *turn)
{
	*turn = (struct soft_turn){.lock = PTHREAD_MUTEX_INITIALIZER, .end = &turn->first};
}

static void enqueue(struct soft_turn *turn, struct soft_waiter *waiter)
{
	atomic_fetch_and(&waiter->news, ~HANDED_OVER);
	waiter->next = NULL;
	*turn->end = waiter;
	turn->end = &waiter->next;
}

static void dequeue(struct soft_turn *turn, struct soft_waiter *waiter)
{
	struct soft_waiter **at = &turn->first;
	while (*at != waiter)
		at = &(*at)->next;
	*at = waiter->next;
	if (!*at)
		turn->end = at;
}

/* True when it turns out to be free. */
static bool queue_up(struct soft_turn *turn, struct soft_waiter *waiter)
{
	pthread_mutex_lock(&turn->lock);
	/* WANTED before anybody can give it away unseen: who gives it finds the queue, or we find it free. */
	bool free = atomic_exchange(&turn->state, TURN_WANTED) == TURN_FREE;
	if (!free)
		enqueue(turn, waiter);
	pthread_mutex_unlock(&turn->lock);
	return free;
}

/* Out of the queue, unless the turn came at the last moment. */
static bool go_away(struct soft_turn *turn, struct soft_waiter *waiter)
{
	pthread_mutex_lock(&turn->lock);
	bool handed_over = atomic_load(&waiter->news) & HANDED_OVER;
	if (!handed_over)
		dequeue(turn, waiter);
	pthread_mutex_unlock(&turn->lock);
	return !handed_over;
}

static bool await(struct soft_turn *turn, struct soft_waiter *waiter, const _Atomic bool *called_away)
{
	for (;;) {
		uint32_t news = atomic_load(&waiter->news);
		if (news & HANDED_OVER)
			return true;
		if (called_away && atomic_load(called_away))
			return !go_away(turn, waiter);
		futex_sleep(&waiter->news, news, NO_LIMIT_NS);
	}
}

bool soft_turn_take(struct soft_turn *turn, struct soft_waiter *waiter, const _Atomic bool *called_away)
{
	uint32_t state = TURN_FREE;
	if (atomic_compare_exchange_strong(&turn->state, &state, TURN_TAKEN) || queue_up(turn, waiter))
		return true;
	return await(turn, waiter, called_away);
}

/* Under the lock. The first in the queue has the turn now, if there is anybody. */
static struct soft_waiter *hand_over(struct soft_turn *turn)
{
	struct soft_waiter *next = turn->first;
	if (next) {
		dequeue(turn, next);
		atomic_fetch_or(&next->news, HANDED_OVER);
	}
	return next;
}

void soft_turn_give(struct soft_turn *turn)
{
	uint32_t state = TURN_TAKEN;
	if (atomic_compare_exchange_strong(&turn->state, &state, TURN_FREE))
		return;
	pthread_mutex_lock(&turn->lock);
	struct soft_waiter *next = hand_over(turn);
	if (!next)
		atomic_store(&turn->state, TURN_FREE);
	pthread_mutex_unlock(&turn->lock);
	if (next)
		futex_wake(&next->news);
}

bool soft_turn_pass(struct soft_turn *turn, struct soft_waiter *waiter, const _Atomic bool *called_away)
{
	pthread_mutex_lock(&turn->lock);
	struct soft_waiter *next = hand_over(turn);
	if (next)
		enqueue(turn, waiter);
	pthread_mutex_unlock(&turn->lock);
	if (!next)
		return true;
	futex_wake(&next->news);
	return await(turn, waiter, called_away);
}

void soft_turn_call(struct soft_waiter *waiter)
{
	atomic_fetch_add(&waiter->news, ONE_CALL);
	futex_wake(&waiter->news);
}

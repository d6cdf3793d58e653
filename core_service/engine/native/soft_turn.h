/* SPDX-License-Identifier: Apache-2.0
 *
 * Whose turn it is: a fair lock among the vCPUs of one VM.
 *
 * The software CPU's instructions are not atomic towards other threads, so one vCPU of a VM executes at a
 * time. A ticket lock: first come, first served, which a mutex does not promise, so that no vCPU starves.
 */
#ifndef VMSESSION_SOFT_TURN_H
#define VMSESSION_SOFT_TURN_H

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

struct soft_turn {
	_Atomic uint32_t tickets; /* handed out */
	_Atomic uint32_t serving; /* whose turn it is; waiters sleep on it */
};

/* The bit by which a ticket's holder is woken, and seldom anybody else. */
static inline uint32_t soft_turn_bit(uint32_t ticket)
{
	return 1u << (ticket & 31);
}

static inline void soft_turn_take(struct soft_turn *turn)
{
	uint32_t ticket = atomic_fetch_add(&turn->tickets, 1), serving;
	/* acquire: what the last one did to guest memory and decoded code is seen */
	while ((serving = atomic_load_explicit(&turn->serving, memory_order_acquire)) != ticket)
		syscall(SYS_futex, &turn->serving, FUTEX_WAIT_BITSET_PRIVATE, serving, NULL, NULL,
			soft_turn_bit(ticket));
}

/* Only by who has the turn. */
static inline bool soft_turn_wanted(const struct soft_turn *turn)
{
	return atomic_load_explicit(&turn->tickets, memory_order_relaxed) !=
	       atomic_load_explicit(&turn->serving, memory_order_relaxed) + 1;
}

static inline void soft_turn_give(struct soft_turn *turn)
{
	/* Sequentially consistent with the fetch_add of who comes: either it sees `serving` moved, or its
	 * ticket is seen here and it is woken. */
	uint32_t next = atomic_fetch_add(&turn->serving, 1) + 1;
	if (atomic_load(&turn->tickets) != next)
		syscall(SYS_futex, &turn->serving, FUTEX_WAKE_BITSET_PRIVATE, INT32_MAX, NULL, NULL,
			soft_turn_bit(next));
}

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * How one side of a vCPU page waits for the other: spin briefly, then sleep on the futex.
 *
 * A wake-up across cores costs 50 us and more, an answer that is seen while spinning 0.2 us. Yet a
 * spinning side steals the core that its peer needs when cores are short. So the time spent spinning is
 * earned: a wait that ends while spinning keeps the full budget, one that does not halves it, and one
 * that finds itself preempted loses it at once. A side without a budget probes now and then whether
 * times have changed.
 *
 * Two sides that wake each other tend to end on one core, where spinning is in vain: the scheduler puts
 * the woken beside its waker. So the VMM's side, when it would have to sleep, now and then steps aside from
 * the core that the engine's side is on.
 *
 * Used by the engines and by `dataspace._page`.
 */
#ifndef VMSESSION_PAGE_WAIT_H
#define VMSESSION_PAGE_WAIT_H

#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE_WAIT_SLEEP_LIMIT_NS 100000000L /* every sleep on a shared futex ends: see vcpu_page.h, rule 4 */
#define PAGE_WAIT_PREEMPTED_NS 30000u       /* a gap this long between two looks: another thread had the core */
#define PAGE_WAIT_LEAST_NS 4000u
#define PAGE_WAIT_PROBE_EVERY 64u
#define PAGE_WAIT_PROBE_EVERY_PREEMPTED 1024u
#define PAGE_WAIT_PART_EVERY 256u
#define PAGE_WAIT_PART_EVERY_IN_VAIN 8192u

struct page_spinner {
	uint32_t limit_ns;  /* the most that one wait may spin, 0 = never spin */
	uint32_t budget_ns; /* what the next wait may spin */
	uint32_t until_probe;
	uint32_t until_part; /* waits that miss until the next attempt to leave the peer's core */
};

static inline struct page_spinner page_spinner(uint32_t limit_ns)
{
	return (struct page_spinner){.limit_ns = limit_ns, .budget_ns = limit_ns};
}

static inline uint64_t page_now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline bool page_moved(const _Atomic uint32_t *word, uint32_t old)
{
	/* acquire: pairs with the peer's release store of its counter, so that the record behind it is seen */
	return atomic_load_explicit(word, memory_order_acquire) != old;
}

static inline uint32_t page_spin_allowance(struct page_spinner *spinner)
{
	if (spinner->budget_ns || !spinner->limit_ns)
		return spinner->budget_ns;
	if (spinner->until_probe--)
		return 0;
	spinner->until_probe = PAGE_WAIT_PROBE_EVERY;
	return PAGE_WAIT_LEAST_NS * 4 < spinner->limit_ns ? PAGE_WAIT_LEAST_NS * 4 : spinner->limit_ns;
}

static inline void page_spin_missed(struct page_spinner *spinner, bool preempted)
{
	spinner->budget_ns /= 2;
	if (!preempted && spinner->budget_ns >= PAGE_WAIT_LEAST_NS)
		return;
	spinner->budget_ns = 0;
	spinner->until_probe = preempted ? PAGE_WAIT_PROBE_EVERY_PREEMPTED : PAGE_WAIT_PROBE_EVERY;
}

/* Spin until *word is no longer `old` or, if `other` is given, *other no longer `other_old`, within the
 * budget. True when one of them moved. */
static inline bool page_spin(struct page_spinner *spinner, const _Atomic uint32_t *word, uint32_t old,
			     const _Atomic uint32_t *other, uint32_t other_old)
{
	uint32_t allowance = page_spin_allowance(spinner);
	if (!allowance)
		return page_moved(word, old);

	uint64_t start = page_now_ns(), last = start;
	for (;;) {
		for (int look = 0; look < 16; look++) {
			if (page_moved(word, old) || (other && page_moved(other, other_old))) {
				spinner->budget_ns = spinner->limit_ns;
				return true;
			}
			__builtin_ia32_pause();
		}
		uint64_t now = page_now_ns();
		bool preempted = now - last > PAGE_WAIT_PREEMPTED_NS;
		if (preempted || now - start >= allowance) {
			page_spin_missed(spinner, preempted);
			return page_moved(word, old);
		}
		last = now;
	}
}

/* Leave the core `peer_cpu` if this thread is on it and may run elsewhere. Its affinity is narrowed and widened
 * again: it may return, but nothing drives it to. */
static inline bool page_leave_core(uint32_t peer_cpu)
{
	cpu_set_t allowed, others;
	if ((uint32_t)sched_getcpu() != peer_cpu || sched_getaffinity(0, sizeof(allowed), &allowed) < 0)
		return false;
	others = allowed;
	CPU_CLR(peer_cpu, &others);
	if (!CPU_COUNT(&others) || sched_setaffinity(0, sizeof(others), &others) < 0)
		return false;
	sched_setaffinity(0, sizeof(allowed), &allowed);
	return true;
}

/* After a wait that missed: step aside from the peer's core and spin once more. True when *word moved. */
static inline bool page_part(struct page_spinner *spinner, uint32_t peer_cpu, const _Atomic uint32_t *word,
			     uint32_t old)
{
	if (!spinner->limit_ns || spinner->until_part--)
		return false;
	spinner->until_part = PAGE_WAIT_PART_EVERY;
	if (!page_leave_core(peer_cpu))
		return page_moved(word, old);
	spinner->budget_ns = spinner->limit_ns;
	bool moved = page_spin(spinner, word, old, NULL, 0);
	if (!moved)
		spinner->until_part = PAGE_WAIT_PART_EVERY_IN_VAIN;
	return moved;
}

/* Sleep while *word is `old`, at most `limit_ns`. Returns for any reason: look at the counters again. */
static inline void page_sleep(const _Atomic uint32_t *word, uint32_t old, int64_t limit_ns)
{
	struct timespec limit = {.tv_sec = limit_ns / 1000000000, .tv_nsec = limit_ns % 1000000000};
	syscall(SYS_futex, word, FUTEX_WAIT, old, &limit, NULL, 0);
}

static inline void page_wake(const _Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* Store a counter after the record behind it, and wake the peer if it sleeps. */
static inline void page_publish(_Atomic uint32_t *counter, uint32_t value, const _Atomic uint32_t *peer_waiting)
{
	/* release: the record is visible before the counter */
	atomic_store_explicit(counter, value, memory_order_release);
	/* full fence: our store before our load of `waiting`, against the peer's store of `waiting` before its
	 * load of the counter. Without it both may miss each other even on x86 (store buffers). */
	atomic_thread_fence(memory_order_seq_cst);
	if (atomic_load_explicit(peer_waiting, memory_order_relaxed))
		page_wake(counter);
}

#endif

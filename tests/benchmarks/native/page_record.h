/* SPDX-License-Identifier: Apache-2.0
 *
 * What both sides of the benchmarks need of a vCPU page.
 */
#ifndef VMSESSION_BENCHMARK_PAGE_RECORD_H
#define VMSESSION_BENCHMARK_PAGE_RECORD_H

#include <stddef.h>

#include "page_wait.h"
#include "vcpu_page.h"

/* The words are plain uint32_t in the ABI; C11 allows no atomic access to them without the cast. */
#define WORD(field) ((_Atomic uint32_t *)&(field))

#define ANSWER_LIMIT_NS 10000000000u /* a peer that is silent for so long has died */

/* Wait until *counter is no longer `old`: rule 4 of vcpu_page.h, with `waiting` as this side's word. False
 * when the peer has died. */
static inline bool page_await(struct page_spinner *spinner, const _Atomic uint32_t *counter, uint32_t old,
			      _Atomic uint32_t *waiting)
{
	if (page_moved(counter, old) || page_spin(spinner, counter, old, NULL, 0))
		return true;
	uint64_t start = page_now_ns();
	while (!page_moved(counter, old)) {
		if (page_now_ns() - start > ANSWER_LIMIT_NS)
			return false;
		atomic_store_explicit(waiting, 1, memory_order_relaxed);
		/* full fence: the store of `waiting` before the look at the counter, which the kernel takes */
		atomic_thread_fence(memory_order_seq_cst);
		page_sleep(counter, old, PAGE_WAIT_SLEEP_LIMIT_NS);
		atomic_store_explicit(waiting, 0, memory_order_relaxed);
	}
	return true;
}

/* The same without a sleep, and without a limit on the spinning but that on silence. */
static inline bool page_spin_on(const _Atomic uint32_t *counter, uint32_t old)
{
	uint64_t looks = 0;
	while (!page_moved(counter, old)) {
		__builtin_ia32_pause();
		if (++looks % 1000000 == 0 && looks > ANSWER_LIMIT_NS / 10)
			return false;
	}
	return true;
}

#endif

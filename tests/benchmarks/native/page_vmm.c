/* SPDX-License-Identifier: Apache-2.0
 *
 * The VMM's side of a vCPU page in C, called by ctypes: what the page costs a VMM that is not in Python.
 */
#include "page_record.h"

/* Run the stopped vCPU and take its exit, `count` times, spinning `spin_ns` at most. Returns the nanoseconds
 * of all of them, 0 if an exit is no port I/O or does not come. */
uint64_t page_serve(struct vcpu_page *page, uint32_t count, uint32_t spin_ns)
{
	struct page_spinner spinner = page_spinner(spin_ns);
	_Atomic uint32_t *exit_seq = WORD(page->engine.exit_seq);
	uint64_t start = page_now_ns();
	for (uint32_t i = 0; i < count; i++) {
		uint32_t seen = atomic_load_explicit(exit_seq, memory_order_relaxed);
		page_publish(WORD(page->vmm.run_seq), seen + 1, WORD(page->engine.engine_waiting));
		if (!page_await(&spinner, exit_seq, seen, WORD(page->vmm.vmm_waiting)))
			return 0;
		struct vcpu_exit exit = page->engine.exit;
		if (exit.reason != EXIT_PORT)
			return 0;
		if (exit.flags & EXIT_READ)
			page->vmm.reply.value = 0;
	}
	return page_now_ns() - start;
}

/* The floor under it: both sides' counters, without a record. */
uint64_t page_serve_words(struct vcpu_page *page, uint32_t count)
{
	_Atomic uint32_t *exit_seq = WORD(page->engine.exit_seq);
	uint64_t start = page_now_ns();
	for (uint32_t i = 0; i < count; i++) {
		uint32_t seen = atomic_load_explicit(exit_seq, memory_order_relaxed);
		atomic_store_explicit(WORD(page->vmm.run_seq), seen + 1, memory_order_release);
		if (!page_spin_on(exit_seq, seen))
			return 0;
	}
	return page_now_ns() - start;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine's side of a vCPU page with no guest in between: what is left is the handover. The page is the
 * file descriptor given as argument. Commands on standard input, one a line:
 *
 *   exits COUNT SPIN_NS   give COUNT exits
 *   words COUNT 0         the same with the counters alone: the floor
 *
 * Each is answered by two numbers, the median and the 99th percentile of the nanoseconds from one exit's
 * publication to the next: engine to VMM and back, with this side's copies of exit and reply.
 */
#include <err.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "page_record.h"

#define COUNT_LIMIT 1000000u
#define COMMAND_LIMIT_SECONDS 60

static struct vcpu_page *page;
static uint32_t exit_seq; /* each side keeps its own counter: rule 1 */
static uint64_t stamps[COUNT_LIMIT + 1];

static void introduce(void)
{
	page->engine.magic = VCPU_PAGE_MAGIC;
	page->engine.abi = VCPU_PAGE_ABI;
	page->engine.size = VCPU_PAGE_BYTES;
}

/* As the engines do: the words of the reply that is always copied, each read once. */
static void copy_reply(struct vcpu_reply *copy)
{
	const uint64_t *shared = (const uint64_t *)&page->vmm.reply;
	uint64_t words[offsetof(struct vcpu_reply, written) / 8];
	for (size_t i = 0; i < sizeof(words) / 8; i++)
		words[i] = __atomic_load_n(&shared[i], __ATOMIC_RELAXED);
	memcpy(copy, words, sizeof(words));
}

static void await_run(struct page_spinner *spinner)
{
	_Atomic uint32_t *run_seq = WORD(page->vmm.run_seq);
	if (!page_await(spinner, run_seq, exit_seq, WORD(page->engine.engine_waiting)))
		errx(1, "the VMM does not answer exit %u", exit_seq);
}

static void exits(uint32_t count, uint32_t spin_ns)
{
	struct page_spinner spinner = page_spinner(spin_ns);
	struct vcpu_reply reply;
	for (uint32_t i = 0; i < count; i++) {
		await_run(&spinner);
		copy_reply(&reply);
		page->engine.exit = (struct vcpu_exit){
			.reason = exit_seq ? EXIT_PORT : EXIT_STARTUP,
			.flags = EXIT_MID_INSTRUCTION,
			.address = 0xe9,
			.value = reply.flags,
			.size = 1,
			.count = 1,
		};
		stamps[i] = page_now_ns();
		page_publish(WORD(page->engine.exit_seq), ++exit_seq, WORD(page->vmm.vmm_waiting));
	}
}

static void words(uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		if (!page_spin_on(WORD(page->vmm.run_seq), exit_seq))
			errx(1, "the VMM does not answer %u", exit_seq);
		stamps[i] = page_now_ns();
		atomic_store_explicit(WORD(page->engine.exit_seq), ++exit_seq, memory_order_release);
	}
}

static int ascending(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
	return (a > b) - (a < b);
}

static void print_percentiles(uint32_t count)
{
	uint32_t trips = count - 1;
	for (uint32_t i = 0; i < trips; i++)
		stamps[i] = stamps[i + 1] - stamps[i];
	qsort(stamps, trips, sizeof(stamps[0]), ascending);
	printf("%" PRIu64 " %" PRIu64 "\n", trips ? stamps[trips / 2] : 0, trips ? stamps[trips * 99ull / 100] : 0);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	if (argc != 2)
		errx(2, "usage: page_engine FD");
	page = mmap(NULL, VCPU_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1]), 0);
	if (page == MAP_FAILED)
		err(1, "mmap of fd %s", argv[1]);
	introduce();
	puts("ready");
	fflush(stdout);

	char command[16];
	uint32_t count, spin_ns;
	while (scanf("%15s %" SCNu32 " %" SCNu32, command, &count, &spin_ns) == 3) {
		if (!count || count > COUNT_LIMIT)
			errx(2, "%u exits are not within 1 and %u", count, COUNT_LIMIT);
		alarm(COMMAND_LIMIT_SECONDS);
		if (!strcmp(command, "exits"))
			exits(count, spin_ns);
		else if (!strcmp(command, "words"))
			words(count);
		else
			errx(2, "no command %s", command);
		print_percentiles(count);
		alarm(0);
	}
	return 0;
}

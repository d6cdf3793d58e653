/* SPDX-License-Identifier: Apache-2.0
 *
 * A VMM's thread that writes everything that it can reach of a vCPU page, the engine's half too, while the engine
 * reads and writes it. Called by ctypes, which gives up the interpreter's lock meanwhile.
 */
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "vcpu_page.h"

#define WORD(field) ((_Atomic uint32_t *)&(field))
#define EXIT_SEQ_AT offsetof(struct vcpu_page, engine.exit_seq)
#define PATIENT 400u  /* writes while the engine takes a reply and executes, before it is asked to pause */
#define SWEEP 64u     /* exits that an engine can have been run for unseen */

struct scribbler {
	struct vcpu_page *page;
	uint64_t state;    /* of xorshift64: George Marsaglia, "Xorshift RNGs" */
	uint32_t exit_seq; /* where the vCPU is stopped; the word in the page is spoiled, too */
	uint32_t lost;     /* how often no exit came where one was due */
	bool racing;       /* an exit is due: its number must be seen */
	uint64_t writes, runs;
	uint64_t exits[EXIT_REASONS]; /* that were seen, by reason */
	_Atomic uint32_t aside; /* where waiters are requeued to, who then sleep on a word of ours */
};

static uint64_t random64(struct scribbler *s)
{
	s->state ^= s->state << 13;
	s->state ^= s->state >> 7;
	s->state ^= s->state << 17;
	return s->state;
}

static uint32_t below(struct scribbler *s, uint32_t limit)
{
	return (uint32_t)(random64(s) >> 32) % limit;
}

static uint64_t value(struct scribbler *s)
{
	static const uint64_t edges[] = {0,          1,          2,           0x10,        0xfff,        0x1000,
					 0x8000,     0xffff,     0x7fffffff,  0x80000000,  0xffffffff,   0x100000000,
					 1ull << 47, 1ull << 52, 1ull << 63,  ~0xfffull,   ~0ull,        0x80000011,
					 0x40620,    0x500,      0x2,         0x202,       0x80000020,   0x80000202};
	return below(s, 3) ? edges[below(s, sizeof(edges) / sizeof(edges[0]))] : random64(s);
}

/* Relaxed atomic stores: what tears must not be the compiler's doing. */
static void write64(struct scribbler *s, size_t at, uint64_t to)
{
	at &= ~7ull;
	if (s->racing && at == (EXIT_SEQ_AT & ~7ull))
		return;
	atomic_store_explicit((_Atomic uint64_t *)((uint8_t *)s->page + at), to, memory_order_relaxed);
	s->writes++;
}

static void write32(struct scribbler *s, _Atomic uint32_t *word, uint32_t to)
{
	atomic_store_explicit(word, to, memory_order_relaxed);
	s->writes++;
}

static void anywhere(struct scribbler *s)
{
	write64(s, below(s, VCPU_PAGE_BYTES), value(s));
}

static void block(struct scribbler *s)
{
	uint32_t bytes = 8u << below(s, 9), at = below(s, VCPU_PAGE_BYTES - bytes + 1);
	uint64_t what = value(s);
	for (uint32_t done = 0; done < bytes; done += 8, what = below(s, 4) ? what : random64(s))
		write64(s, at + done, what);
}

/* Between two values, as fast as can be: one was checked, the other used. */
static void flip(struct scribbler *s)
{
	size_t at = VCPU_VMM_HALF + 0x40 + below(s, VCPU_HALF_BYTES - 0x40);
	uint64_t one = value(s), other = value(s);
	for (int i = 0; i < 64; i++)
		write64(s, at, i & 1 ? one : other);
}

static void counters(struct scribbler *s)
{
	struct vcpu_page *page = s->page;
	_Atomic uint32_t *words[] = {
		WORD(page->vmm.run_seq),       WORD(page->vmm.vmm_waiting),     WORD(page->vmm.kick_seq),
		WORD(page->vmm.pause_seq),     WORD(page->vmm.window_seq),      WORD(page->engine.exit_seq),
		WORD(page->engine.pause_ack),  WORD(page->engine.window_ack),   WORD(page->engine.engine_cpu),
		WORD(page->engine.fpu_size),   WORD(page->engine.engine_waiting)};
	_Atomic uint32_t *word = words[below(s, sizeof(words) / sizeof(words[0]))];
	write32(s, word, below(s, 2) ? atomic_load(word) + 1 : (uint32_t)value(s));
}

/* A reply that has a chance to be taken: masks and flags of which most bits are known. */
static void reply(struct scribbler *s)
{
	struct vcpu_vmm_half *vmm = &s->page->vmm;
	static const uint32_t flags[] = {0, 0, 0, REPLY_COMPLETE, REPLY_FETCH, REPLY_FAULT, REPLY_WITHDRAW_WINDOW,
					 REPLY_STEP, REPLY_NMI_WINDOW, REPLY_BREAKPOINTS, 0x7d, ~0u};
	static const uint32_t counts[] = {0, 0, 0, 1, VCPU_WRITTEN_RANGES, VCPU_WRITTEN_RANGES + 1, 0x80000000,
					  VCPU_WRITTEN_ALL};
	write32(s, WORD(vmm->reply.flags), flags[below(s, sizeof(flags) / sizeof(flags[0]))]);
	write32(s, WORD(vmm->reply.written_count), counts[below(s, sizeof(counts) / sizeof(counts[0]))]);
	write32(s, WORD(vmm->reply.injection),
		below(s, 3) ? 0 : INJECT_VALID | below(s, 4) << INJECT_TYPE_SHIFT | below(s, 256));
	for (unsigned i = 0; i < 2; i++) {
		write64(s, offsetof(struct vcpu_page, vmm.reply.wanted[i]), below(s, 2) ? ~0ull : value(s));
		write64(s, offsetof(struct vcpu_page, vmm.charged[i]),
			below(s, 2) ? 0 : 1ull << below(s, i ? VCPU_FPU_BIT + 1 : REG_SCALARS));
	}
	write64(s, offsetof(struct vcpu_page, vmm.scalar[below(s, REG_SCALARS)]), value(s));
	write32(s, WORD(vmm->debug.control), below(s, 2) ? 0 : 1u << below(s, 32));
}

/* The engine and its kicker sleep on these words: wake them for nothing, or move them to a word of ours. */
static void futexes(struct scribbler *s)
{
	uint32_t *words[] = {&s->page->vmm.run_seq, &s->page->vmm.kick_seq, &s->page->engine.exit_seq};
	uint32_t *word = words[below(s, 3)];
	if (below(s, 2))
		syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
	else
		syscall(SYS_futex, word, FUTEX_REQUEUE, 0, (void *)1, &s->aside, 0);
}

static void spoil(struct scribbler *s)
{
	switch (below(s, 8)) {
	case 0:
		block(s);
		break;
	case 1:
		flip(s);
		break;
	case 2:
		counters(s);
		break;
	case 3:
		futexes(s);
		break;
	default:
		anywhere(s);
	}
}

static bool exited(struct scribbler *s)
{
	uint32_t seen = atomic_load_explicit(WORD(s->page->engine.exit_seq), memory_order_acquire);
	if (seen == s->exit_seq)
		return false;
	uint32_t reason = atomic_load_explicit(WORD(s->page->engine.exit.reason), memory_order_relaxed);
	s->exits[reason < EXIT_REASONS ? reason : EXIT_NONE]++;
	s->exit_seq = seen;
	s->lost = 0;
	return true;
}

/* The reply is spoiled while the engine copies it, checks it, and executes. */
static bool race(struct scribbler *s, uint32_t kinds)
{
	for (uint32_t i = 0; i < PATIENT; i++) {
		if (exited(s))
			return true;
		if (kinds == 0)
			__builtin_ia32_pause();
		else if (kinds == 1)
			write64(s, VCPU_VMM_HALF + 0x40 + below(s, VCPU_HALF_BYTES - 0x40), value(s));
		else
			anywhere(s);
	}
	return exited(s);
}

static void ask(struct scribbler *s, uint32_t *counter)
{
	struct vcpu_vmm_half *vmm = &s->page->vmm;
	write32(s, WORD(*counter), atomic_load(WORD(*counter)) + 1);
	write32(s, WORD(vmm->kick_seq), atomic_load(WORD(vmm->kick_seq)) + 1);
	syscall(SYS_futex, &vmm->kick_seq, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

static void await_exit(struct scribbler *s)
{
	const struct timespec moment = {.tv_nsec = 1000000};
	s->racing = true;
	bool seen = race(s, below(s, 3));
	for (int times = 0; !seen && times < 20; times++) {
		ask(s, below(s, 4) ? &s->page->vmm.pause_seq : &s->page->vmm.window_seq);
		write32(s, WORD(s->page->vmm.vmm_waiting), 1);
		syscall(SYS_futex, &s->page->engine.exit_seq, FUTEX_WAIT, s->exit_seq, &moment, NULL, 0);
		seen = race(s, below(s, 3));
	}
	s->racing = false;
	s->lost += !seen;
}

/* The guest at its beginning, in real mode, with a device in DS: what was charged before led it anywhere. */
static void restart(struct scribbler *s)
{
	struct vcpu_vmm_half *vmm = &s->page->vmm;
	const struct vcpu_segment_value code = {.attributes = 0x9b, .limit = 0xffff};
	const struct vcpu_segment_value device = {
		.selector = 0xf000, .attributes = 0x93, .limit = 0xffff, .base = 0xf0000};
	memset(&vmm->reply, 0, sizeof(vmm->reply));
	memset(vmm->scalar, 0, sizeof(vmm->scalar));
	vmm->scalar[REG_RIP] = 0x1000;
	vmm->scalar[REG_RSP] = 0x8000;
	vmm->scalar[REG_RFLAGS] = 2;
	vmm->scalar[REG_CR0] = 0x10;
	vmm->segment[SEG_CS] = code;
	vmm->segment[SEG_DS] = device;
	vmm->charged[0] = 1ull << REG_RIP | 1ull << REG_RSP | 1ull << REG_RFLAGS | 1ull << REG_CR0 | 1ull << REG_ACTIVITY;
	vmm->charged[1] = 1ull << SEG_CS | 1ull << SEG_DS;
}

/* Rule 2 of the page: the engine looks at no run but the one behind its own counter. That is known here, unless an
 * exit was overwritten before it was seen. */
static void run(struct scribbler *s)
{
	struct vcpu_page *page = s->page;
	write32(s, WORD(page->engine.exit_seq), s->exit_seq);
	atomic_store_explicit(WORD(page->vmm.run_seq), s->exit_seq + 1 + s->lost / 2 % SWEEP, memory_order_release);
	syscall(SYS_futex, &page->vmm.run_seq, FUTEX_WAKE, 1, NULL, NULL, 0);
	s->runs++;
}

static void answer(struct scribbler *s)
{
	switch (below(s, 4)) {
	case 0:
		restart(s);
		break;
	case 1:
		reply(s);
		break;
	default:
		memset(&s->page->vmm.reply, 0, sizeof(s->page->vmm.reply));
		memset(s->page->vmm.charged, 0, sizeof(s->page->vmm.charged));
	}
}

static void act(struct scribbler *s)
{
	for (uint32_t times = below(s, 4) ? 0 : below(s, 30); times; times--)
		spoil(s);
	answer(s);
	run(s);
	await_exit(s);
}

/* Until *stop is not zero. Tells how many writes, runs and exits there were. */
void scribble(struct vcpu_page *page, uint64_t seed, const _Atomic uint32_t *stop, uint64_t *writes, uint64_t *runs,
	      uint64_t exits[EXIT_REASONS])
{
	struct scribbler s = {.page = page, .state = seed | 1};
	while (!atomic_load_explicit(stop, memory_order_relaxed))
		act(&s);
	*writes = s.writes;
	*runs = s.runs;
	memcpy(exits, s.exits, sizeof(s.exits));
}

/* The same for guest memory: words that the CPU reads as code, data, stacks and tables meanwhile. */
void scribble_memory(uint8_t *memory, uint64_t bytes, uint64_t seed, const _Atomic uint32_t *stop, uint64_t *writes)
{
	struct scribbler s = {.state = seed | 1};
	while (!atomic_load_explicit(stop, memory_order_relaxed)) {
		size_t at = random64(&s) % (bytes - 8);
		uint64_t what = value(&s);
		memcpy(memory + at, &what, 1u << below(&s, 4));
		s.writes++;
	}
	*writes = s.writes;
}

/* Move whoever sleeps on `word` to a word that nobody wakes. Returns how many. */
long swallow(uint32_t *word)
{
	static uint32_t aside;
	return syscall(SYS_futex, word, FUTEX_REQUEUE, 0, (void *)INT32_MAX, &aside, 0);
}

/* Until *stop is not zero: how often *word was neither of two values. */
uint64_t torn(const _Atomic uint64_t *word, uint64_t one, uint64_t other, const _Atomic uint32_t *stop)
{
	uint64_t times = 0;
	while (!atomic_load_explicit(stop, memory_order_relaxed)) {
		uint64_t seen = atomic_load_explicit(word, memory_order_relaxed);
		times += seen != one && seen != other;
	}
	return times;
}

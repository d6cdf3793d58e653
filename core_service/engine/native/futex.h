/* SPDX-License-Identifier: Apache-2.0
 *
 * Sleeping on words that only this process sees, and on several words at once.
 */
#ifndef VMSESSION_FUTEX_H
#define VMSESSION_FUTEX_H

#include <errno.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

/* Sleep while *word is `old`, at most `limit_ns`. Returns for any reason: look at the word again. */
static inline void futex_sleep(const _Atomic uint32_t *word, uint32_t old, int64_t limit_ns)
{
	struct timespec limit = {.tv_sec = limit_ns / 1000000000, .tv_nsec = limit_ns % 1000000000};
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, old, &limit, NULL, 0);
}

static inline void futex_wake(const _Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static inline struct futex_waitv futex_private(const _Atomic uint32_t *word, uint32_t old)
{
	return (struct futex_waitv){.val = old, .uaddr = (uintptr_t)word, .flags = FUTEX_32 | FUTEX_PRIVATE_FLAG};
}

static inline struct futex_waitv futex_shared(const _Atomic uint32_t *word, uint32_t old)
{
	return (struct futex_waitv){.val = old, .uaddr = (uintptr_t)word, .flags = FUTEX_32};
}

/* Whether futex_sleep_any() works here at all; errno says why not. */
static inline bool futex_any_works(void)
{
	return syscall(SYS_futex_waitv, NULL, 0, 0, NULL, CLOCK_MONOTONIC) < 0 && errno == EINVAL;
}

/* Sleep while all words keep their values, at most `limit_ns`. Returns for any reason. */
static inline void futex_sleep_any(struct futex_waitv *words, unsigned count, int64_t limit_ns)
{
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += limit_ns;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	syscall(SYS_futex_waitv, words, count, 0, &until, CLOCK_MONOTONIC);
}

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * The prison: a guest that breaks its engine finds nothing there but what the engine itself needs. Landlock
 * (landlock(7)) takes files and the network, seccomp(2) all system calls but a few.
 *
 * The filter cannot look into memory, so what a call may do is decided by its number and its registers.
 */
#include "confine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "failure.h"
#include "futex.h"

/* linux/landlock.h of Linux 6.12; that of the C library may be older. */
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_restrict_self 446
#endif
#define LANDLOCK_VERSION 1u /* LANDLOCK_CREATE_RULESET_VERSION */
#define SCOPES 3u           /* abstract UNIX sockets and signals */
#define NET 3u              /* TCP: bind, connect */

#define MOST_INSTRUCTIONS 256
#define DESCRIPTORS 256 /* one or two for each vCPU, and a few */
#define X32_BIT 0x40000000u
#define ARGUMENT(n) (offsetof(struct seccomp_data, args) + 8 * (n)) /* its low half, on this architecture */
#define HIGH_HALF 4

/* By every engine: memory, futexes, signals of its own, its channel, its clocks, its end. */
static const uint32_t allowed[] = {
	SYS_read, SYS_write, SYS_close, SYS_fstat, SYS_newfstatat, SYS_lseek, SYS_pread64, SYS_pwrite64,
	SYS_munmap, SYS_mremap, SYS_madvise, SYS_brk, SYS_futex, SYS_futex_waitv, SYS_sched_yield,
	SYS_sched_getaffinity, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigtimedwait,
	SYS_sigaltstack, SYS_restart_syscall, SYS_recvmsg, SYS_sendmsg, SYS_recvfrom, SYS_sendto, SYS_poll,
	SYS_ppoll, SYS_clock_gettime, SYS_clock_nanosleep, SYS_nanosleep, SYS_gettimeofday, SYS_getpid, SYS_gettid,
	SYS_set_robust_list, SYS_rseq, SYS_set_tid_address, SYS_alarm, SYS_setitimer, SYS_dup, SYS_dup3,
	SYS_membarrier, SYS_getrandom, SYS_exit, SYS_exit_group,
};

/* By an engine that loads its code from memfds. */
static const uint32_t of_loaders[] = {SYS_memfd_create, SYS_ftruncate, SYS_sendfile, SYS_readlink, SYS_getcwd,
				      SYS_mlock, SYS_munlock};

/* Not F_SETOWN and F_SETSIG: the kernel would send signals for who may not. */
static const uint32_t fcntls[] = {F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GET_SEALS, F_ADD_SEALS};

struct program {
	struct sock_filter code[MOST_INSTRUCTIONS];
	unsigned short length;
};

static void emit(struct program *program, uint16_t code, uint8_t if_true, uint8_t if_false, uint32_t operand)
{
	if (program->length < MOST_INSTRUCTIONS)
		program->code[program->length++] = (struct sock_filter){code, if_true, if_false, operand};
}

static void load(struct program *program, size_t offset)
{
	emit(program, BPF_LD | BPF_W | BPF_ABS, 0, 0, (uint32_t)offset);
}

static void answer(struct program *program, uint32_t verdict)
{
	emit(program, BPF_RET | BPF_K, 0, 0, verdict);
}

/* The verdict where what was loaded is `operand`; else on. */
static void where_equal(struct program *program, uint32_t operand, uint32_t verdict)
{
	emit(program, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, operand);
	answer(program, verdict);
}

/* A call whose argument decides: it is allowed where the test of it holds, or where it does not. */
static void by_argument(struct program *program, uint32_t call, unsigned argument, uint16_t test, uint32_t operand,
			bool holds)
{
	emit(program, BPF_JMP | BPF_JEQ | BPF_K, 0, 4, call);
	load(program, ARGUMENT(argument));
	emit(program, BPF_JMP | test | BPF_K, holds ? 0 : 1, holds ? 1 : 0, operand);
	answer(program, SECCOMP_RET_ALLOW);
	answer(program, SECCOMP_RET_KILL_PROCESS);
}

/* A call that is allowed where one of its arguments is one of `values`. */
static void by_list(struct program *program, uint32_t call, unsigned argument, const uint32_t *values, size_t count)
{
	emit(program, BPF_JMP | BPF_JEQ | BPF_K, 0, (uint8_t)(2 + 2 * count), call);
	load(program, ARGUMENT(argument));
	for (size_t i = 0; i < count; i++)
		where_equal(program, values[i], SECCOMP_RET_ALLOW);
	answer(program, SECCOMP_RET_KILL_PROCESS);
}

/* prlimit64 of the process itself, and to read: no new limit, which is a pointer, so both halves count. */
static void own_limits(struct program *program)
{
	static const size_t zero[] = {ARGUMENT(0), ARGUMENT(2), ARGUMENT(2) + HIGH_HALF};
	emit(program, BPF_JMP | BPF_JEQ | BPF_K, 0, 8, SYS_prlimit64);
	for (uint8_t left = 6; left; left -= 2) {
		load(program, zero[3 - left / 2]);
		emit(program, BPF_JMP | BPF_JEQ | BPF_K, 0, left - 1, 0);
	}
	answer(program, SECCOMP_RET_ALLOW);
	answer(program, SECCOMP_RET_KILL_PROCESS);
}

static void write_program(struct program *program, const struct needs *needs)
{
	load(program, offsetof(struct seccomp_data, arch));
	emit(program, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, AUDIT_ARCH_X86_64);
	answer(program, SECCOMP_RET_KILL_PROCESS);
	load(program, offsetof(struct seccomp_data, nr));
	emit(program, BPF_JMP | BPF_JSET | BPF_K, 0, 1, X32_BIT);
	answer(program, SECCOMP_RET_KILL_PROCESS);
	if (needs->ioctl_count)
		by_list(program, SYS_ioctl, 1, needs->ioctls, needs->ioctl_count);
	by_list(program, SYS_fcntl, 1, fcntls, sizeof(fcntls) / sizeof(fcntls[0]));
	for (size_t i = 0; i < sizeof(allowed) / sizeof(allowed[0]); i++)
		where_equal(program, allowed[i], SECCOMP_RET_ALLOW);
	if (needs->loads_code)
		for (size_t i = 0; i < sizeof(of_loaders) / sizeof(of_loaders[0]); i++)
			where_equal(program, of_loaders[i], SECCOMP_RET_ALLOW);
	by_argument(program, SYS_clone, 0, BPF_JSET, CLONE_THREAD, true);
	by_argument(program, SYS_tgkill, 0, BPF_JEQ, (uint32_t)getpid(), true);
	by_argument(program, SYS_prctl, 0, BPF_JEQ, PR_SET_NAME, true);
	own_limits(program);
	if (needs->loads_code) {
		where_equal(program, SYS_mmap, SECCOMP_RET_ALLOW);
		where_equal(program, SYS_mprotect, SECCOMP_RET_ALLOW);
		by_argument(program, SYS_openat, 2, BPF_JSET, O_WRONLY | O_RDWR | O_CREAT | O_TRUNC, false);
	} else {
		where_equal(program, SYS_openat, SECCOMP_RET_ERRNO | EACCES); /* of libraries, which go on without */
		by_argument(program, SYS_mmap, 2, BPF_JSET, PROT_EXEC, false);
		by_argument(program, SYS_mprotect, 2, BPF_JSET, PROT_EXEC, false);
	}
	/* The C library falls back to clone, whose flags can be seen. */
	where_equal(program, SYS_clone3, SECCOMP_RET_ERRNO | ENOSYS);
	answer(program, SECCOMP_RET_KILL_PROCESS);
}

/* Nothing beneath any directory, no TCP, no signal and no abstract socket beyond this process. A kernel without
 * Landlock leaves these to seccomp, which knows no paths. */
static void forget_files(void)
{
	static const uint64_t files[] = {0x1fff, 0x3fff, 0x7fff, 0x7fff, 0xffff}; /* by version of the interface */
	const size_t known = sizeof(files) / sizeof(files[0]);
	long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_VERSION);
	if (version < 1)
		return;
	struct {
		uint64_t files, net, scopes;
	} rules = {
		.files = files[(size_t)version < known ? (size_t)version - 1 : known - 1],
		.net = version >= 4 ? NET : 0,
		.scopes = version >= 6 ? SCOPES : 0,
	};
	size_t size = version >= 6 ? sizeof(rules) : version >= 4 ? 2 * sizeof(uint64_t) : sizeof(uint64_t);
	int ruleset = (int)syscall(SYS_landlock_create_ruleset, &rules, size, 0);
	if (ruleset < 0)
		return;
	syscall(SYS_landlock_restrict_self, ruleset, 0);
	close(ruleset);
}

/* Memory of its own and threads are for its cgroup to limit: RLIMIT_NPROC counts all processes of the user. */
/* What is printed would go into core's log, without a limit, and could look like core's own words. */
static bool forget_output(void)
{
	int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
	bool done = nowhere >= 0 && dup2(nowhere, STDOUT_FILENO) >= 0 && dup2(nowhere, STDERR_FILENO) >= 0;
	if (nowhere > STDERR_FILENO)
		close(nowhere);
	return done;
}

static void limit(void)
{
	static const struct rlimit none = {0, 0}, descriptors = {DESCRIPTORS, DESCRIPTORS};
	setrlimit(RLIMIT_CORE, &none);
	setrlimit(RLIMIT_MSGQUEUE, &none);
	setrlimit(RLIMIT_MEMLOCK, &none);
	setrlimit(RLIMIT_NOFILE, &descriptors);
}

enum channel_status confine(const struct needs *needs, struct failure *failure)
{
	limit();
#ifdef __SANITIZE_ADDRESS__
	(void)needs; /* the sanitizers look at /proc, start a process, and print */
	(void)failure;
	(void)write_program;
	(void)forget_files;
	(void)forget_output;
#else
	if (!forget_output())
		return failed_call(failure, "/dev/null");
	forget_files();
	struct program program = {.length = 0};
	write_program(&program, needs);
	if (program.length == MOST_INSTRUCTIONS)
		return failed(failure, CHANNEL_LIMIT, "seccomp: %u instructions are too few", MOST_INSTRUCTIONS);
	struct sock_fprog filter = {.len = program.length, .filter = program.code};
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter))
		return failed_call(failure, "seccomp, which an engine is not without");
#endif
	return CHANNEL_OK;
}

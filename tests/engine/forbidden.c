/* SPDX-License-Identifier: Apache-2.0
 *
 * Confines itself as an engine does, and tries what the first argument names: 0 where it was let, its errno where
 * it was refused. The second argument is `loader` for what an engine that loads code may do.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "confine.h"
#include "failure.h"

#define ALLOWED_IOCTL 0xae80u /* KVM_RUN */

static pid_t parent; /* asked for while one may */

static void *idle(void *argument)
{
	return argument;
}

static long open_file(void) { return open("/etc/passwd", O_RDONLY); }
static long write_file(void) { return open("/tmp/forbidden", O_WRONLY | O_CREAT, 0600); }
static long open_kvm(void) { return open("/dev/kvm", O_RDWR); }
static long open_socket(void) { return socket(AF_UNIX, SOCK_STREAM, 0); }
static long open_internet(void) { return socket(AF_INET, SOCK_STREAM, 0); }
static long execute(void) { return execl("/bin/true", "true", (char *)NULL); }
static long fork_itself(void) { return fork(); }
static long vfork_itself(void) { return syscall(SYS_vfork); }
static long kill_parent(void) { return syscall(SYS_kill, parent, 0); }
static long signal_parent(void) { return syscall(SYS_tgkill, parent, parent, 0); }
static long trace_parent(void) { return ptrace(PTRACE_ATTACH, parent, NULL, NULL); }
static long read_parent(void) { return syscall(SYS_process_vm_readv, parent, NULL, 0, NULL, 0, 0); }
static long other_ioctl(void) { return ioctl(0, 0x5401u, NULL); }
static long mount_something(void) { return mount("none", "/mnt", "tmpfs", 0, NULL); }
static long load_bpf(void) { return syscall(SYS_bpf, 0, NULL, 0); }
static long set_up_ring(void) { return syscall(SYS_io_uring_setup, 1, NULL); }
static long use_keys(void) { return syscall(SYS_keyctl, 0, 0, 0, 0, 0); }
static long count_events(void) { return syscall(SYS_perf_event_open, NULL, 0, 0, 0, 0); }
static long handle_faults(void) { return syscall(SYS_userfaultfd, 0); }
static long become_dumpable(void) { return prctl(PR_SET_DUMPABLE, 1); }
static long get_pidfd_fd(void) { return syscall(SYS_pidfd_getfd, 0, 0, 0); }
static long leave_namespace(void) { return unshare(CLONE_NEWNS); }
static long raise_limit(void)
{
	uint64_t limit[2] = {0, 0};
	return syscall(SYS_prlimit64, 0, 7, limit, NULL);
}
/* A filter sees 32 bits at a time, and of this address the low ones are 0. */
static long limit_parent(void)
{
	void *limit = mmap((void *)0x100000000, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
			   -1, 0);
	return syscall(SYS_prlimit64, parent, RLIMIT_CORE, limit, NULL);
}
/* The kernel would send the signal for it. */
static long signal_by_input(void) { return fcntl(0, F_SETOWN, parent); }
static long choose_signal(void) { return fcntl(0, F_SETSIG, 9); }
static long duplicate(void) { return fcntl(0, F_DUPFD_CLOEXEC, 0) < 0 ? -1 : 0; }
static long execute_memory(void)
{
	return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0;
}

static long start_thread(void)
{
	pthread_t thread;
	return pthread_create(&thread, NULL, idle, NULL) || pthread_join(thread, NULL) ? -1 : 0;
}
static long map_memory(void)
{
	return mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0;
}
static long allowed_ioctl(void)
{
	return ioctl(-1, ALLOWED_IOCTL, 0) < 0 && errno == EBADF ? 0 : -1;
}

static const struct {
	const char *name;
	long (*act)(void);
} deeds[] = {
	{"open file", open_file}, {"write file", write_file}, {"open kvm", open_kvm}, {"unix socket", open_socket},
	{"internet socket", open_internet}, {"execute", execute}, {"fork", fork_itself}, {"vfork", vfork_itself},
	{"kill parent", kill_parent}, {"signal parent", signal_parent}, {"trace parent", trace_parent},
	{"read parent", read_parent}, {"other ioctl", other_ioctl}, {"mount", mount_something}, {"bpf", load_bpf},
	{"io_uring", set_up_ring}, {"keyctl", use_keys}, {"perf", count_events}, {"userfaultfd", handle_faults},
	{"dumpable", become_dumpable}, {"pidfd_getfd", get_pidfd_fd}, {"unshare", leave_namespace},
	{"raise limit", raise_limit}, {"limit parent", limit_parent}, {"signal by input", signal_by_input},
	{"choose signal", choose_signal}, {"execute memory", execute_memory}, {"thread", start_thread},
	{"map memory", map_memory}, {"allowed ioctl", allowed_ioctl}, {"duplicate", duplicate},
};

int main(int argc, char **argv)
{
	static const uint32_t ioctls[] = {ALLOWED_IOCTL};
	struct needs needs = {.ioctls = ioctls, .ioctl_count = 1, .loads_code = argc > 2 && !strcmp(argv[2], "loader")};
	struct failure failure = {0};
	parent = getppid();
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (argc < 2 || confine(&needs, &failure) != CHANNEL_OK)
		return 255;
	for (size_t i = 0; i < sizeof(deeds) / sizeof(deeds[0]); i++)
		if (!strcmp(argv[1], deeds[i].name))
			return deeds[i].act() < 0 ? errno : 0;
	return 254;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Preloaded into core, and by it into its engines: counts what they do to the world, and kills them by SIGKILL
 * before the n-th deed. Between two deeds nothing changes that anybody else can see, so that being killed before
 * each of them is being killed at any instant. It also shifts the wall clock that core's own code reads.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Whose deeds: those of core's event loop, those of its other threads to files, which are those of the log's
 * writer, those of engines and those of a client. gRPC's threads in core speak to this process alone. */
enum role { CORE, LOG, ENGINE, CLIENT, NOBODY };

struct deeds {
	_Atomic uint32_t limit, count; /* killed before deed number `limit`; 0: never */
};

struct control {
	struct deeds deeds[4];
	_Atomic int64_t wall_ns; /* what the wall clock is ahead */
	_Atomic uint32_t counting;
};

static struct control *control;
static enum role role = NOBODY;

__attribute__((constructor)) static void begin(void)
{
	char name[16] = "";
	int comm = open("/proc/self/comm", O_RDONLY | O_CLOEXEC);
	if (comm >= 0) {
		if (read(comm, name, sizeof(name) - 1) > 0)
			name[strcspn(name, "\n")] = 0;
		close(comm);
	}
	const char *path = getenv("VMSESSION_FAULTS");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	if (fd < 0)
		return;
	void *mapped = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (mapped == MAP_FAILED)
		return;
	if (!strcmp(name, "vmcore"))
		role = CORE;
	else if (!strncmp(name, "vmsession-", 10))
		role = ENGINE;
	else if (getenv("VMSESSION_FAULTS_CLIENT"))
		role = CLIENT;
	control = mapped;
}

static void deed(enum role whose)
{
	if (!control || !atomic_load(&control->counting))
		return;
	struct deeds *deeds = &control->deeds[whose];
	if (atomic_fetch_add(&deeds->count, 1) + 1 == atomic_load(&deeds->limit))
		raise(SIGKILL);
}

static void deed_of_engine(void)
{
	if (role == ENGINE)
		deed(ENGINE);
}

static void any_deed(void)
{
	if (role == CORE && gettid() == getpid())
		deed(CORE);
	if (role == CLIENT)
		deed(CLIENT);
	deed_of_engine();
}

static void deed_to_file(void)
{
	if (role == CORE && gettid() != getpid())
		deed(LOG);
	else
		any_deed();
}

#define REAL(name)                                            \
	static __typeof__(&name) real;                        \
	if (!real)                                            \
		real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t send(int fd, const void *data, size_t size, int flags)
{
	REAL(send);
	any_deed();
	return real(fd, data, size, flags);
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length)
{
	REAL(sendto);
	any_deed();
	return real(fd, data, size, flags, to, length);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	REAL(sendmsg);
	any_deed();
	return real(fd, message, flags);
}

/* What is taken from a queue is lost with who took it. */
ssize_t recv(int fd, void *data, size_t size, int flags)
{
	REAL(recv);
	if (size > 1) /* less is a thread's call for another's attention */
		any_deed();
	return real(fd, data, size, flags);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	REAL(recvmsg);
	any_deed();
	return real(fd, message, flags);
}

ssize_t write(int fd, const void *data, size_t size)
{
	REAL(write);
	if (size > 1 && size != sizeof(eventfd_t))
		any_deed();
	return real(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
	REAL(writev);
	any_deed();
	return real(fd, parts, count);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
	REAL(pwrite64);
	deed_to_file();
	return real(fd, data, size, offset);
}

int ftruncate64(int fd, off64_t size)
{
	REAL(ftruncate64);
	deed_to_file();
	return real(fd, size);
}

int fdatasync(int fd)
{
	REAL(fdatasync);
	deed_to_file();
	return real(fd);
}

int memfd_create(const char *name, unsigned flags)
{
	REAL(memfd_create);
	any_deed();
	return real(name, flags);
}

int socketpair(int domain, int type, int protocol, int fds[2])
{
	REAL(socketpair);
	any_deed();
	return real(domain, type, protocol, fds);
}

int shutdown(int fd, int how)
{
	REAL(shutdown);
	any_deed();
	return real(fd, how);
}

int close(int fd)
{
	REAL(close);
	any_deed();
	return real(fd);
}

int unlink(const char *path)
{
	REAL(unlink);
	deed_to_file();
	return real(path);
}

int munmap(void *address, size_t size)
{
	REAL(munmap);
	deed_of_engine();
	return real(address, size);
}

void *mmap64(void *address, size_t size, int protection, int flags, int fd, off64_t offset)
{
	REAL(mmap64);
	if (fd >= 0)
		deed_of_engine();
	return real(address, size, protection, flags, fd, offset);
}

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
	REAL(mmap);
	if (fd >= 0)
		deed_of_engine();
	return real(address, size, protection, flags, fd, offset);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*begin_at)(void *), void *argument)
{
	REAL(pthread_create);
	deed_of_engine();
	return real(thread, attributes, begin_at, argument);
}

int ioctl(int fd, unsigned long request, ...)
{
	REAL(ioctl);
	va_list arguments;
	va_start(arguments, request);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);
	deed_of_engine();
	return real(fd, request, argument);
}

int fcntl64(int fd, int command, ...)
{
	REAL(fcntl64);
	va_list arguments;
	va_start(arguments, command);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);
	if (command == F_ADD_SEALS)
		any_deed();
	return real(fd, command, argument);
}

long syscall(long number, ...)
{
	REAL(syscall);
	va_list list;
	long arguments[6];
	va_start(list, number);
	for (int i = 0; i < 6; i++)
		arguments[i] = va_arg(list, long);
	va_end(list);
	if (number == SYS_pidfd_send_signal)
		any_deed();
	if (number == SYS_futex)
		deed_of_engine();
	return real(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}

/* Core gives engines an environment of their own. */
int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
		const posix_spawnattr_t *attributes, char *const argv[], char *const environment[])
{
	REAL(posix_spawn);
	static char preload[4096], faults[4096];
	char *extended[1024];
	size_t count = 0;
	any_deed();
	snprintf(preload, sizeof(preload), "LD_PRELOAD=%s", getenv("LD_PRELOAD"));
	snprintf(faults, sizeof(faults), "VMSESSION_FAULTS=%s", getenv("VMSESSION_FAULTS"));
	for (; environment[count] && count < 1021; count++)
		extended[count] = environment[count];
	extended[count++] = preload;
	extended[count++] = faults;
	extended[count] = NULL;
	return real(pid, path, actions, attributes, argv, extended);
}

/* The wall clock of the interpreter, so of all code in Python: libraries wait by clocks that the kernel knows. */
int clock_gettime(clockid_t clock, struct timespec *now)
{
	REAL(clock_gettime);
	int result = real(clock, now);
	Dl_info caller;
	if (result || clock != CLOCK_REALTIME || role != CORE || !control ||
	    !dladdr(__builtin_return_address(0), &caller) || !strstr(caller.dli_fname, "python3."))
		return result;
	int64_t shifted = now->tv_sec * 1000000000LL + now->tv_nsec + atomic_load(&control->wall_ns);
	now->tv_sec = shifted / 1000000000LL;
	now->tv_nsec = shifted % 1000000000LL;
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * An engine: one process, one VM. Core starts it with the channel as descriptor CHANNEL_FD; its end, by
 * whatever cause, is the end of the process.
 */
#include <linux/close_range.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "channel_io.h"
#include "confine.h"
#include "control.h"
#include "failure.h"
#include "futex.h"
#include "kicker.h"
#include "listing.h"
#include "place.h"
#include "signals.h"
#include "vcpu.h"
#include "vm.h"

#define UNWIND_LIMIT_SECONDS 5

static void settle(void)
{
	struct failure failure = {0};
	enum channel_status status = place(&failure);
	if (status != CHANNEL_OK)
		channel_die(status, &failure);
}

static void close_the_rest(void)
{
	syscall(SYS_close_range, CHANNEL_FD + 1, ~0u, 0);
	listing_prepare();
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}

static void begin(struct vm *vm)
{
	struct failure failure = {0};
	vm->capabilities = backend.capabilities;
	vm->registers[0] = backend.registers[0];
	vm->registers[1] = backend.registers[1];
	/* Without it every wait would be a loop. */
	enum channel_status status =
		futex_any_works() ? CHANNEL_OK : failed_call(&failure, "futex_waitv, of Linux 5.16 and later");
	if (status == CHANNEL_OK)
		status = backend.vm_create(vm, &failure);
	if (status == CHANNEL_OK)
		status = confine(&backend.needs, &failure);
	if (status == CHANNEL_OK)
		status = kicker_start(vm, &failure);
	if (status != CHANNEL_OK)
		channel_die(status, &failure);
	channel_send_hello(vm);
}

static void end(struct vm *vm)
{
	/* A backend that hangs must not keep guest memory alive: SIGALRM ends the process. */
	alarm(UNWIND_LIMIT_SECONDS);
	atomic_store(&vm->common->ending, 1);
	kicker_join(vm);
	vcpu_end_all(vm);
	memory_free(vm);
	listing_forget();
	if (backend.vm_destroy)
		backend.vm_destroy(vm);
	close(CHANNEL_FD);
}

int main(int argc, char **argv)
{
	(void)argc;
	if (!channel_valid()) {
		fprintf(stderr, "%s: an engine is started by vmcore: descriptor %d is no channel\n", argv[0],
			CHANNEL_FD);
		return 2;
	}
	static struct vm_common common = {.hold_lock = PTHREAD_MUTEX_INITIALIZER};
	static struct vm vm = {.common = &common};
	settle();
	close_the_rest();
	signals_prepare();
	begin(&vm);
	control_serve(&vm);
	end(&vm);
	return 0;
}

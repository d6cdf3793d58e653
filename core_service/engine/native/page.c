/* SPDX-License-Identifier: Apache-2.0 */
#include "page.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <fcntl.h>

#include "failure.h"
#include "page_wait.h"
#include "vcpu.h"

enum channel_status page_map(struct vcpu *vcpu, int fd, struct failure *failure)
{
	struct stat object;
	if (fstat(fd, &object) < 0)
		return failed_call(failure, "vCPU page: fstat");
	if (object.st_size < (off_t)VCPU_PAGE_BYTES)
		return failed(failure, CHANNEL_BAD_MESSAGE, "vCPU page: %lld bytes, %u wanted",
			      (long long)object.st_size, VCPU_PAGE_BYTES);
	/* One that can still shrink would be SIGBUS some day. */
	int seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0 || !(seals & F_SEAL_SHRINK))
		return failed(failure, CHANNEL_BAD_MESSAGE, "vCPU page: not sealed against shrinking");
	void *page = mmap(NULL, VCPU_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED)
		return failed_call(failure, "vCPU page: mmap");
	vcpu->page = page;
	return CHANNEL_OK;
}

void page_unmap(struct vcpu *vcpu)
{
	if (vcpu->page)
		munmap(vcpu->page, VCPU_PAGE_BYTES);
	vcpu->page = NULL;
}

void page_introduce(struct vcpu *vcpu)
{
	/* Plain stores: the VMM gets the page after core has seen the answer to CHANNEL_CREATE_VCPU. */
	memcpy(&vcpu->page->engine, vcpu->half, offsetof(struct vcpu_engine_half, exit_seq));
}

static uint32_t data_bytes(const struct vcpu_exit *exit)
{
	uint32_t bytes = exit->size * exit->count;
	return bytes > sizeof(exit->value) ? bytes : 0;
}

static void write_registers(struct vcpu_engine_half *to, const struct vcpu_engine_half *from)
{
	to->valid[0] = from->valid[0];
	to->valid[1] = from->valid[1];
	if (from->valid[0])
		memcpy(to->scalar, from->scalar, REG_SCALARS * sizeof(to->scalar[0]));
	if (from->valid[1])
		memcpy(to->segment, from->segment, SEG_SEGMENTS * sizeof(to->segment[0]));
}

void page_publish_exit(struct vcpu *vcpu)
{
	struct vcpu_engine_half *to = &vcpu->page->engine, *from = vcpu->half;

	/* Plain stores: the VMM reads them after it has seen exit_seq, which page_publish releases. One that
	 * reads earlier, or writes here, gets garbage of its own making. */
	to->pause_ack = from->pause_ack;
	to->window_ack = from->window_ack;
	to->exit = from->exit;
	memcpy(to->data, from->data, data_bytes(&from->exit));
	write_registers(to, from);
	if (from->valid[1] >> VCPU_FPU_BIT & 1)
		memcpy(vcpu->page->fpu_valid, vcpu->fpu_valid, VCPU_FPU_BYTES);
	to->engine_cpu = (uint32_t)sched_getcpu();
	page_publish(SHARED_WORD(to->exit_seq), from->exit_seq, SHARED_WORD(vcpu->page->vmm.vmm_waiting));
}

/* Eight bytes of a record of any type. */
typedef uint64_t __attribute__((may_alias)) record_word;

/* Relaxed atomic loads: each word is read exactly once, whatever the VMM does meanwhile, and the compiler
 * can not read it again later in the place of the copy. The order to run_seq was made by its acquire load. */
static void copy_once(void *to, const void *from, size_t bytes)
{
	record_word *copy = to;
	const record_word *shared = from;
	for (size_t i = 0; i < (bytes + 7) / 8; i++)
		copy[i] = __atomic_load_n(&shared[i], __ATOMIC_RELAXED);
}

void page_copy_reply(struct vcpu_vmm_half *to, const struct vcpu_vmm_half *from, uint32_t data_bytes)
{
	copy_once(&to->reply, &from->reply, offsetof(struct vcpu_reply, written));
	if (to->reply.written_count && to->reply.written_count <= VCPU_WRITTEN_RANGES)
		copy_once(to->reply.written, from->reply.written,
			  to->reply.written_count * sizeof(to->reply.written[0]));
	copy_once(to->data, from->data, data_bytes);
	copy_once(to->charged, from->charged, sizeof(to->charged));
	if (to->charged[0])
		copy_once(to->scalar, from->scalar, REG_SCALARS * sizeof(to->scalar[0]));
	if (to->charged[1])
		copy_once(to->segment, from->segment, SEG_SEGMENTS * sizeof(to->segment[0]));
	if (to->reply.flags & REPLY_BREAKPOINTS)
		copy_once(&to->debug, &from->debug, sizeof(to->debug));
}

void page_copy_fpu(struct vcpu *vcpu)
{
	copy_once(vcpu->fpu_charged, vcpu->page->fpu_charged, VCPU_FPU_BYTES);
}

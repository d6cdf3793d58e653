/* SPDX-License-Identifier: Apache-2.0 */
#include "soft.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "failure.h"
#include "page_wait.h"
#include "soft_library.h"

#define REASON(reason) (1ull << (reason))

/* ---- the machine */

static enum channel_status create_vm(struct vm *vm, struct failure *failure)
{
	struct soft_vm *soft = calloc(1, sizeof(*soft));
	if (!soft)
		return failed_call(failure, "software CPU: out of memory");
	soft->library = -1;
	/* Never touched but where code is decoded, so that it costs next to nothing. */
	soft->stamps = mmap(NULL, BOCHS_STAMP_TABLE_BYTES, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	enum channel_status status = soft->stamps == MAP_FAILED ? failed_call(failure, "software CPU: mmap")
								: soft_library_open(&soft->library, failure);
	if (status != CHANNEL_OK) {
		if (soft->stamps != MAP_FAILED)
			munmap(soft->stamps, BOCHS_STAMP_TABLE_BYTES);
		free(soft);
		return status;
	}
	soft_spare_start(&soft->spare, soft->library);
	soft_turn_init(&soft->turn);
	soft->start_ns = page_now_ns();
	soft_crash_watch();
	vm->backend = soft;
	vm->tsc_khz = SOFT_TSC_KHZ;
	vm->physical_bits = SOFT_PHYSICAL_BITS;
	return CHANNEL_OK;
}

static void destroy_vm(struct vm *vm)
{
	struct soft_vm *soft = vm->backend;
	for (struct soft_vcpu *vcpu = soft->vcpus, *next; vcpu; vcpu = next) {
		next = vcpu->next;
		pthread_mutex_destroy(&vcpu->kick_lock);
		free(vcpu);
	}
	soft_spare_discard(&soft->spare);
	pthread_mutex_destroy(&soft->turn.lock);
	close(soft->library);
	munmap(soft->stamps, BOCHS_STAMP_TABLE_BYTES);
	free(soft);
	vm->backend = NULL;
}

/* ---- vCPUs */

static enum channel_status create_cpu(struct soft_vcpu *soft, struct failure *failure)
{
	enum channel_status status = soft_crash_stack(soft, failure);
	if (status == CHANNEL_OK)
		status = soft_spare_take(&soft->vm->spare, &soft->bochs, failure);
	if (status != CHANNEL_OK)
		return status;
	*soft->bochs.stamps = soft->vm->stamps;
	soft->bochs.create(0);
	if (soft->breakdown)
		return failed(failure, CHANNEL_UNSUPPORTED, "vCPU %u: Bochs refuses its own CPU model",
			      soft->vcpu->index);
	soft_reset_state(soft);
	soft_cpuid_fill(soft);
	return CHANNEL_OK;
}

static void set_created(struct soft_vcpu *soft, bool created)
{
	pthread_mutex_lock(&soft->kick_lock);
	soft->created = created;
	pthread_mutex_unlock(&soft->kick_lock);
}

static void destroy_vcpu(struct vcpu *vcpu)
{
	struct soft_vcpu *soft = vcpu->backend;
	set_created(soft, false);
	soft_remove_decoder(soft);
	bochs_unload(&soft->bochs);
	soft_crash_stack_free(soft);
	soft_current = NULL;
}

static struct soft_vcpu *new_vcpu(struct vcpu *vcpu, struct soft_vm *vm)
{
	struct soft_vcpu *soft = calloc(1, sizeof(*soft));
	if (!soft)
		return NULL;
	soft->vcpu = vcpu;
	soft->vm = vm;
	soft->bochs.file = -1;
	pthread_mutex_init(&soft->kick_lock, NULL);
	soft->next = vm->vcpus;
	vm->vcpus = soft;
	return soft;
}

static enum channel_status create_vcpu(struct vcpu *vcpu, struct failure *failure)
{
	struct soft_vcpu *soft = new_vcpu(vcpu, vcpu->vm->backend);
	if (!soft)
		return failed_call(failure, "vCPU %u: out of memory", vcpu->index);
	soft_current = soft;
	vcpu->backend = soft;
	enum channel_status status = create_cpu(soft, failure);
	if (status != CHANNEL_OK) {
		destroy_vcpu(vcpu);
		return status;
	}
	vcpu->half->fpu_size = SOFT_FPU_BYTES;
	soft_add_decoder(soft);
	set_created(soft, true);
	return CHANNEL_OK;
}

static void kick_vcpu(struct vcpu *vcpu)
{
	struct soft_vcpu *soft = vcpu->backend;
	atomic_store(&soft->kicked, true);
	/* A hint, so that the boundary is looked at before the next tick: Bochs may lose it, as it changes the
	 * word without a lock, but it loses nothing of Bochs'. */
	pthread_mutex_lock(&soft->kick_lock);
	if (soft->created)
		soft_look_at_boundary(soft);
	pthread_mutex_unlock(&soft->kick_lock);
	soft_turn_call(&soft->waiter);
}

/* ---- the loop */

static struct vcpu_exit *exit_at_boundary(struct vcpu *vcpu, enum vcpu_exit_reason reason, uint32_t flags)
{
	const struct soft_vcpu *soft = vcpu->backend;
	struct vcpu_exit *exit = vcpu_exit(vcpu, reason, flags | soft_event_flags(vcpu) | EXIT_IP_VALID);
	exit->ip = *bochs_u64(&soft->bochs, BOCHS_RIP);
	return exit;
}

/* As many bytes of the instruction as can be had: to its page's end at most. */
static void copy_instruction(const struct soft_vcpu *soft, struct vcpu_exit *exit)
{
	uint64_t gpa, mask;
	if (!soft->bochs.translate(soft_linear_ip(soft), &gpa, &mask, false, false))
		return;
	const struct region *region = memory_find(soft->vcpu->vm, gpa);
	if (!region)
		return;
	uint32_t left = 4096 - (uint32_t)(gpa & 4095);
	exit->instruction_bytes_size = left < sizeof(exit->instruction_bytes) ? left : sizeof(exit->instruction_bytes);
	memcpy(exit->instruction_bytes, region->host + (gpa - region->gpa), exit->instruction_bytes_size);
}

static enum run_verdict report_fetch(struct soft_vcpu *soft)
{
	exit_at_boundary(soft->vcpu, EXIT_MEMORY_FAULT, EXIT_FETCH)->address = soft->fetch_gpa;
	return vcpu_exchange(soft->vcpu);
}

static enum run_verdict report_breakdown(struct soft_vcpu *soft)
{
	struct vcpu_exit *exit = exit_at_boundary(soft->vcpu, EXIT_INTERNAL_ERROR, 0);
	exit->detail = soft->breakdown;
	copy_instruction(soft, exit);
	return vcpu_exchange(soft->vcpu);
}

static enum run_verdict report_task_priority(struct soft_vcpu *soft)
{
	exit_at_boundary(soft->vcpu, EXIT_TPR, 0)->value = soft->bochs.task_priority(0);
	return vcpu_exchange(soft->vcpu);
}

static enum run_verdict report(struct soft_vcpu *soft)
{
	switch (soft->stop) {
	case STOP_HALTED:
		vcpu_halt(soft->vcpu, soft->halt_ip, soft->halt_length);
		return RUN_GO;
	case STOP_SHUT_DOWN:
		vcpu_shut_down(soft->vcpu);
		return RUN_GO;
	case STOP_FETCH:
		return report_fetch(soft);
	case STOP_BROKEN:
		return report_breakdown(soft);
	case STOP_TPR:
		return report_task_priority(soft);
	case STOP_DEBUG:
		soft_debug_report(soft);
		return RUN_GO;
	default:
		return soft->ended ? RUN_ENDED : RUN_GO;
	}
}

static void run_vcpu(struct vcpu *vcpu)
{
	struct soft_vcpu *soft = vcpu->backend;
	while (vcpu_boundary(vcpu) == RUN_GO) {
		soft_execute(soft);
		if (report(soft) == RUN_ENDED)
			return;
	}
}

const struct backend backend = {
	.name = "soft",
	.capabilities = ENGINE_INTERRUPTS | ENGINE_NMI | ENGINE_EXCEPTIONS | ENGINE_PAGING | ENGINE_LONG_MODE |
			ENGINE_DEBUG | ENGINE_WATCH | ENGINE_CPUID | ENGINE_MSR_FILTER | ENGINE_FPU | ENGINE_SMP,
	.max_vcpus = CHANNEL_VCPUS,
	.registers = {SOFT_SCALARS, SOFT_SEGMENTS},
	.exit_reasons = REASON(EXIT_STARTUP) | REASON(EXIT_PORT) | REASON(EXIT_MMIO) | REASON(EXIT_MSR) |
			REASON(EXIT_HLT) | REASON(EXIT_SHUTDOWN) | REASON(EXIT_WINDOW) | REASON(EXIT_PAUSED) |
			REASON(EXIT_COMPLETED) | REASON(EXIT_MEMORY_FAULT) | REASON(EXIT_INVALID_STATE) |
			REASON(EXIT_INTERNAL_ERROR) | REASON(EXIT_NMI_WINDOW) | REASON(EXIT_DEBUG) | REASON(EXIT_TPR),
	.needs = {.loads_code = true},
	.vm_create = create_vm,
	.vm_destroy = destroy_vm,
	.map = soft_map,
	.unmap = soft_unmap,
	.written = soft_written,
	.vcpu_create = create_vcpu,
	.vcpu_destroy = destroy_vcpu,
	.vcpu_loop = run_vcpu,
	.kick = kick_vcpu,
	.read_state = soft_read_state,
	.write_state = soft_write_state,
	.event_flags = soft_event_flags,
	.inject = soft_inject,
	.get_cpuid = soft_get_cpuid,
	.set_cpuid = soft_set_cpuid,
	.set_msr_filter = soft_set_msr_filter,
};

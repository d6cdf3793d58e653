/* SPDX-License-Identifier: Apache-2.0
 *
 * From KVM's exits to ours.
 */
#include <string.h>

#include "kvm.h"

#define HLT_LENGTH 1u

/* `detail` of EXIT_INTERNAL_ERROR: KVM's suberror below this, else what it failed with. */
#define DETAIL_EXIT_REASON 0x10000u /* plus a KVM_EXIT_* that this engine does not know */
#define DETAIL_ERRNO 0x20000u       /* plus the errno of KVM_RUN, or of KVM_SET_GUEST_DEBUG */

static struct vcpu_exit *mid_exit(struct vcpu *vcpu, enum vcpu_exit_reason reason, uint64_t address, bool read)
{
	uint32_t flags = kvm_event_flags(vcpu) | EXIT_MID_INSTRUCTION | (read ? EXIT_READ : 0);
	struct vcpu_exit *exit = vcpu_exit(vcpu, reason, flags);
	exit->address = address;
	kvm_vcpu(vcpu)->unfinished = true;
	return exit;
}

/* Hand `bytes` of guest data to the VMM, or the VMM's to the guest: in `value` when they fit. */
static enum run_verdict exchange_data(struct vcpu *vcpu, struct vcpu_exit *exit, uint8_t *guest, uint32_t bytes)
{
	bool read = exit->flags & EXIT_READ, small = bytes <= sizeof(exit->value);
	if (!read)
		memcpy(small ? (void *)&exit->value : vcpu->half->data, guest, bytes);
	enum run_verdict verdict = vcpu_exchange(vcpu);
	if (read)
		memcpy(guest, small ? (void *)&vcpu->reply.reply.value : vcpu->reply.data, bytes);
	return verdict;
}

static enum run_verdict exit_port(struct vcpu *vcpu)
{
	struct kvm_run *run = kvm_vcpu(vcpu)->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	uint32_t size = run->io.size, left = run->io.count, most = VCPU_DATA_BYTES / size;
	enum run_verdict verdict = RUN_GO;
	while (left && verdict == RUN_GO) {
		uint32_t count = left < most ? left : most;
		struct vcpu_exit *exit =
			mid_exit(vcpu, EXIT_PORT, run->io.port, run->io.direction == KVM_EXIT_IO_IN);
		exit->size = size;
		exit->count = count;
		verdict = exchange_data(vcpu, exit, data, size * count);
		data += size * count;
		left -= count;
	}
	return verdict;
}

static enum run_verdict exit_mmio(struct vcpu *vcpu)
{
	struct kvm_run *run = kvm_vcpu(vcpu)->run;
	bool write = run->mmio.is_write;
	enum run_verdict verdict = RUN_GO;
	for (uint32_t done = 0, size; done < run->mmio.len && verdict == RUN_GO; done += size) {
		uint64_t gpa = run->mmio.phys_addr + done;
		size = vcpu_access_size(gpa, run->mmio.len - done);
		struct vcpu_exit *exit = mid_exit(vcpu, EXIT_MMIO, gpa, !write);
		exit->size = size;
		exit->count = 1;
		if (write && memory_find(vcpu->vm, gpa))
			exit->flags |= EXIT_WRITE_PROTECTED;
		verdict = exchange_data(vcpu, exit, run->mmio.data + done, size);
	}
	return verdict;
}

static enum run_verdict exit_msr(struct vcpu *vcpu, bool read)
{
	struct kvm_run *run = kvm_vcpu(vcpu)->run;
	struct vcpu_exit *exit = mid_exit(vcpu, EXIT_MSR, run->msr.index, read);
	exit->size = sizeof(exit->value);
	exit->count = 1;
	if (!read)
		exit->value = run->msr.data;
	enum run_verdict verdict = vcpu_exchange(vcpu);
	if (read)
		run->msr.data = vcpu->reply.reply.value;
	run->msr.error = vcpu->reply.reply.flags & REPLY_FAULT ? 1 : 0;
	return verdict;
}

static struct vcpu_exit *boundary_exit(struct vcpu *vcpu, enum vcpu_exit_reason reason)
{
	struct vcpu_exit *exit = vcpu_exit(vcpu, reason, kvm_event_flags(vcpu) | EXIT_IP_VALID);
	exit->ip = kvm_vcpu(vcpu)->run->s.regs.regs.rip;
	return exit;
}

static enum run_verdict exit_task_priority(struct vcpu *vcpu)
{
	boundary_exit(vcpu, EXIT_TPR)->value = kvm_vcpu(vcpu)->run->cr8;
	return vcpu_exchange(vcpu);
}

static enum run_verdict exit_internal_error(struct vcpu *vcpu, uint32_t detail)
{
	const struct kvm_run *run = kvm_vcpu(vcpu)->run;
	struct vcpu_exit *exit = boundary_exit(vcpu, EXIT_INTERNAL_ERROR);
	exit->detail = detail;
	/* ndata counts words of internal.data; the first holds the flags, the next two size and bytes */
	bool has_bytes = detail == KVM_INTERNAL_ERROR_EMULATION && run->internal.ndata >= 3 &&
			 run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
	if (has_bytes && run->emulation_failure.insn_size <= sizeof(run->emulation_failure.insn_bytes)) {
		exit->instruction_bytes_size = run->emulation_failure.insn_size;
		memcpy(exit->instruction_bytes, run->emulation_failure.insn_bytes, exit->instruction_bytes_size);
	}
	return vcpu_exchange(vcpu);
}

/* KVM reports an instruction fetch from nowhere as an emulation failure. */
static enum run_verdict exit_fetch_or_error(struct vcpu *vcpu, uint32_t detail)
{
	uint64_t gpa;
	if (!kvm_fetch_fault(vcpu, &gpa))
		return exit_internal_error(vcpu, detail);
	struct vcpu_exit *exit = boundary_exit(vcpu, EXIT_MEMORY_FAULT);
	exit->flags |= EXIT_FETCH;
	exit->address = gpa;
	return vcpu_exchange(vcpu);
}

static enum run_verdict exit_refused(struct vcpu *vcpu)
{
	boundary_exit(vcpu, EXIT_INVALID_STATE)->detail = REFUSED_STATE;
	return vcpu_exchange(vcpu);
}

enum run_verdict kvm_exit(struct vcpu *vcpu, int error)
{
	const struct kvm_run *run = kvm_vcpu(vcpu)->run;
	switch (-error) {
	case 0:
		break;
	case EINTR:
	case EAGAIN:
		return RUN_GO;
	case ENOSPC: /* no memory slot at all: KVM has no room for page tables either */
		return exit_fetch_or_error(vcpu, DETAIL_ERRNO + ENOSPC);
	default:
		return exit_internal_error(vcpu, DETAIL_ERRNO + (uint32_t)-error);
	}

	kvm_vcpu(vcpu)->event_due = false;
	vcpu->step_over = false;
	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		return exit_port(vcpu);
	case KVM_EXIT_MMIO:
		return exit_mmio(vcpu);
	case KVM_EXIT_X86_RDMSR:
		return exit_msr(vcpu, true);
	case KVM_EXIT_X86_WRMSR:
		return exit_msr(vcpu, false);
	case KVM_EXIT_HLT:
		if (kvm_nmi_wakes(vcpu))
			return RUN_GO;
		/* rip is behind it. With a prefix it began earlier, but is the same HLT from its last byte. */
		vcpu_halt(vcpu, run->s.regs.regs.rip - HLT_LENGTH, HLT_LENGTH);
		return RUN_GO;
	case KVM_EXIT_SHUTDOWN:
		vcpu_shut_down(vcpu);
		return RUN_GO;
	case KVM_EXIT_DEBUG:
		kvm_debug_exit(vcpu);
		return RUN_GO;
	case KVM_EXIT_IRQ_WINDOW_OPEN:
	case KVM_EXIT_INTR:
		return RUN_GO;
	case KVM_EXIT_SET_TPR:
		return exit_task_priority(vcpu);
	case KVM_EXIT_FAIL_ENTRY:
		return exit_refused(vcpu);
	case KVM_EXIT_INTERNAL_ERROR:
		if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
			return exit_fetch_or_error(vcpu, KVM_INTERNAL_ERROR_EMULATION);
		return exit_internal_error(vcpu, run->internal.suberror);
	default:
		return exit_internal_error(vcpu, DETAIL_EXIT_REASON + run->exit_reason);
	}
}

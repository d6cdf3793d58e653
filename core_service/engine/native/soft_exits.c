/* SPDX-License-Identifier: Apache-2.0
 *
 * Exits in the middle of an instruction: Bochs calls for a port, a device's memory or an MSR, and the call
 * lasts until the VMM has replied. Others of the VM have their turns meanwhile.
 */
#include <string.h>

#include "soft.h"

static struct vcpu_exit *exit_here(struct soft_vcpu *soft, enum vcpu_exit_reason reason, uint32_t flags)
{
	const struct bochs *bochs = &soft->bochs;
	uint64_t ip = *bochs_u64(bochs, BOCHS_PREV_RIP);
	flags |= soft_event_flags(soft->vcpu) | EXIT_MID_INSTRUCTION | EXIT_IP_VALID;
	struct vcpu_exit *exit = vcpu_exit(soft->vcpu, reason, flags);
	exit->ip = ip;
	/* rip is behind the instruction already; while it is fetched or an event delivered it is not */
	exit->instruction_length = (uint32_t)(*bochs_u64(bochs, BOCHS_RIP) - ip);
	return exit;
}

static const struct vcpu_reply *exchange(struct soft_vcpu *soft)
{
	soft_give_turn(soft);
	enum run_verdict verdict = vcpu_exchange(soft->vcpu);
	soft_take_turn(soft, false); /* kicked or not, the instruction is to be finished */
	if (verdict == RUN_ENDED) {
		soft->ended = true;
		soft_abandon_instruction(soft, STOP_NONE);
	}
	/* A window asked for before the reply counts from the next boundary on: it is armed outside. */
	if (soft_windows_changed(soft) || vcpu_owes_boundary(soft->vcpu))
		soft_leave_at_boundary(soft);
	return &soft->vcpu->reply.reply;
}

/* ---- ports */

uint32_t soft_in(void *devices, uint16_t port, unsigned bytes) __asm__("_ZN12bx_devices_c3inpEtj");
uint32_t soft_in(void *devices, uint16_t port, unsigned bytes)
{
	struct soft_vcpu *soft = soft_current;
	(void)devices;
	struct vcpu_exit *exit = exit_here(soft, EXIT_PORT, EXIT_READ);
	exit->address = port;
	exit->size = bytes;
	exit->count = 1;
	return (uint32_t)(exchange(soft)->value & (UINT64_MAX >> (64 - 8 * bytes)));
}

void soft_out(void *devices, uint16_t port, uint32_t value, unsigned bytes) __asm__("_ZN12bx_devices_c4outpEtjj");
void soft_out(void *devices, uint16_t port, uint32_t value, unsigned bytes)
{
	struct soft_vcpu *soft = soft_current;
	(void)devices;
	struct vcpu_exit *exit = exit_here(soft, EXIT_PORT, 0);
	exit->address = port;
	exit->size = bytes;
	exit->count = 1;
	exit->value = value & (UINT64_MAX >> (64 - 8 * bytes));
	exchange(soft);
}

/* ---- devices in memory */

static void read_once(struct soft_vcpu *soft, uint64_t gpa, uint32_t size, uint8_t *data)
{
	struct vcpu_exit *exit = exit_here(soft, EXIT_MMIO, EXIT_READ);
	exit->address = gpa;
	exit->size = size;
	exit->count = 1;
	memcpy(data, &exchange(soft)->value, size);
}

void soft_read_mmio(struct soft_vcpu *soft, uint64_t gpa, uint32_t bytes, void *data)
{
	for (uint32_t done = 0, size; done < bytes; done += size) {
		size = vcpu_access_size(gpa + done, bytes - done);
		read_once(soft, gpa + done, size, (uint8_t *)data + done);
	}
}

static void write_once(struct soft_vcpu *soft, uint64_t gpa, uint32_t size, const uint8_t *data, uint32_t flags)
{
	struct vcpu_exit *exit = exit_here(soft, EXIT_MMIO, flags);
	exit->address = gpa;
	exit->size = size;
	exit->count = 1;
	memcpy(&exit->value, data, size);
	exchange(soft);
}

void soft_write_mmio(struct soft_vcpu *soft, uint64_t gpa, uint32_t bytes, const void *data, bool protected)
{
	for (uint32_t done = 0, size; done < bytes; done += size) {
		size = vcpu_access_size(gpa + done, bytes - done);
		write_once(soft, gpa + done, size, (const uint8_t *)data + done,
			   protected ? EXIT_WRITE_PROTECTED : 0);
	}
}

/* ---- model-specific registers that Bochs does not have, or that the VMM wants to see; false raises #GP */

static struct vcpu_exit *exit_msr(struct soft_vcpu *soft, uint32_t msr, uint32_t flags)
{
	struct vcpu_exit *exit = exit_here(soft, EXIT_MSR, flags);
	exit->address = msr;
	exit->size = sizeof(exit->value);
	exit->count = 1;
	return exit;
}

bool soft_read_unknown_msr(uint32_t msr, uint64_t *value) __asm__("_ZN8BX_CPU_C20handle_unknown_rdmsrEjPm");
bool soft_read_unknown_msr(uint32_t msr, uint64_t *value)
{
	struct soft_vcpu *soft = soft_current;
	exit_msr(soft, msr, EXIT_READ);
	const struct vcpu_reply *reply = exchange(soft);
	*value = reply->value;
	return !(reply->flags & REPLY_FAULT);
}

bool soft_write_unknown_msr(uint32_t msr, uint64_t value) __asm__("_ZN8BX_CPU_C20handle_unknown_wrmsrEjm");
bool soft_write_unknown_msr(uint32_t msr, uint64_t value)
{
	struct soft_vcpu *soft = soft_current;
	exit_msr(soft, msr, 0)->value = value;
	return !(exchange(soft)->flags & REPLY_FAULT);
}

static bool filtered(const struct soft_vm *vm, uint32_t msr, uint32_t access)
{
	for (uint32_t i = 0; i < vm->filters; i++)
		if (vm->filter[i].flags & access && msr - vm->filter[i].first < vm->filter[i].count)
			return true;
	return false;
}

bool soft_read_msr(uint32_t msr, uint64_t *value) __asm__("_ZN8BX_CPU_C5rdmsrEjPm");
bool soft_read_msr(uint32_t msr, uint64_t *value)
{
	struct soft_vcpu *soft = soft_current;
	return filtered(soft->vm, msr, MSR_FILTER_READ) ? soft_read_unknown_msr(msr, value)
							: soft->bochs.read_msr(msr, value);
}

bool soft_write_msr(uint32_t msr, uint64_t value) __asm__("_ZN8BX_CPU_C5wrmsrEjm");
bool soft_write_msr(uint32_t msr, uint64_t value)
{
	struct soft_vcpu *soft = soft_current;
	return filtered(soft->vm, msr, MSR_FILTER_WRITE) ? soft_write_unknown_msr(msr, value)
							 : soft->bochs.write_msr(msr, value);
}

enum channel_status soft_set_msr_filter(struct vm *vm, const struct msr_range *ranges, uint32_t count,
					struct failure *failure)
{
	struct soft_vm *soft = vm->backend;
	(void)failure;
	memcpy(soft->filter, ranges, count * sizeof(*ranges));
	soft->filters = count;
	return CHANNEL_OK;
}

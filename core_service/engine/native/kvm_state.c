/* SPDX-License-Identifier: Apache-2.0
 *
 * Registers of KVM's CPU. What came along with the last KVM_RUN costs nothing; the rest is fetched by the
 * ioctl that has it, only when it is wanted.
 */
#include <stddef.h>
#include <string.h>

#include "kvm.h"
#include "kvm_msr.h"
#include "kvm_pdpte.h"
#include "kvm_registers.h"
#include "kvm_sregs.h"

#define FPU_MXCSR 24 /* its place in the area: SDM vol. 1, 10.5.1 */
#define MXCSR_RESERVED 0xffff0000u
#define CR0_PG (1ull << 31)
#define EFER_LME 0x100u

/* By enum vcpu_scalar from REG_RAX to REG_RFLAGS: not in the order of struct kvm_regs. */
static const size_t regs_offset[] = {
	offsetof(struct kvm_regs, rax), offsetof(struct kvm_regs, rcx), offsetof(struct kvm_regs, rdx),
	offsetof(struct kvm_regs, rbx), offsetof(struct kvm_regs, rsp), offsetof(struct kvm_regs, rbp),
	offsetof(struct kvm_regs, rsi), offsetof(struct kvm_regs, rdi), offsetof(struct kvm_regs, r8),
	offsetof(struct kvm_regs, r9),  offsetof(struct kvm_regs, r10), offsetof(struct kvm_regs, r11),
	offsetof(struct kvm_regs, r12), offsetof(struct kvm_regs, r13), offsetof(struct kvm_regs, r14),
	offsetof(struct kvm_regs, r15), offsetof(struct kvm_regs, rip), offsetof(struct kvm_regs, rflags),
};

static __u64 *regs_field(struct kvm_regs *regs, unsigned scalar)
{
	return (__u64 *)((uint8_t *)regs + regs_offset[scalar]);
}

uint64_t kvm_sync_fields(const uint64_t wanted[2])
{
	uint64_t fields = KVM_SYNC_X86_REGS; /* always: HLT and faults need rip, and it costs nothing */
	if (wanted[0] & KVM_SREGS_SCALARS || wanted[1] & KVM_SEGMENTS_ALL)
		fields |= KVM_SYNC_X86_SREGS;
	if (wanted[0] & KVM_EVENTS_SCALARS)
		fields |= KVM_SYNC_X86_EVENTS;
	return fields;
}

/* Make run->s.regs hold a field. */
static bool freshen(struct kvm_vcpu *own, uint64_t field)
{
	struct kvm_sync_regs *sync = &own->run->s.regs;
	if (own->fresh & field)
		return true;
	int result = -1;
	if (field == KVM_SYNC_X86_REGS)
		result = ioctl(own->fd, KVM_GET_REGS, &sync->regs);
	else if (field == KVM_SYNC_X86_SREGS)
		result = ioctl(own->fd, KVM_GET_SREGS, &sync->sregs);
	else
		result = ioctl(own->fd, KVM_GET_VCPU_EVENTS, &sync->events);
	if (result < 0)
		return false;
	own->fresh |= field;
	return true;
}

static bool read_regs(struct kvm_vcpu *own, uint64_t wanted, struct vcpu_engine_half *out)
{
	if (!freshen(own, KVM_SYNC_X86_REGS))
		return false;
	for (unsigned i = REG_RAX; i <= REG_RFLAGS; i++)
		if (wanted >> i & 1)
			out->scalar[i] = *regs_field(&own->run->s.regs.regs, i);
	return true;
}

static bool read_sregs(struct kvm_vcpu *own, struct vcpu_engine_half *out)
{
	if (!freshen(own, KVM_SYNC_X86_SREGS))
		return false;
	kvm_sregs_get(&own->run->s.regs.sregs, out);
	return true;
}

/* VCPU_SHADOW_* and KVM_X86_SHADOW_INT_* name the same two bits the other way round. */
static bool read_events(struct kvm_vcpu *own, struct vcpu_engine_half *out)
{
	if (!freshen(own, KVM_SYNC_X86_EVENTS))
		return false;
	const struct kvm_vcpu_events *events = &own->run->s.regs.events;
	out->scalar[REG_INTERRUPTIBILITY] = (events->interrupt.shadow & KVM_X86_SHADOW_INT_STI ? VCPU_SHADOW_STI : 0) |
					    (events->interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS ? VCPU_SHADOW_MOV_SS : 0) |
					    (events->nmi.masked ? VCPU_SHADOW_NMI : 0);
	return true;
}

static bool read_debug(const struct kvm_vcpu *own, struct vcpu_engine_half *out)
{
	struct kvm_debugregs debug;
	if (ioctl(own->fd, KVM_GET_DEBUGREGS, &debug) < 0)
		return false;
	memcpy(&out->scalar[REG_DR0], debug.db, sizeof(debug.db));
	out->scalar[REG_DR6] = debug.dr6;
	out->scalar[REG_DR7] = debug.dr7;
	return true;
}

static bool read_xcr0(const struct kvm_vcpu *own, uint64_t *value)
{
	struct kvm_xcrs xcrs;
	if (ioctl(own->fd, KVM_GET_XCRS, &xcrs) < 0 || !xcrs.nr_xcrs)
		return false;
	*value = xcrs.xcrs[0].value;
	return true;
}

static struct kvm_device_attr tsc_offset(uint64_t *value)
{
	return (struct kvm_device_attr){
		.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)value};
}

static bool read_tsc_offset(const struct kvm_vcpu *own, uint64_t *value)
{
	struct kvm_device_attr attribute = tsc_offset(value);
	return ioctl(own->fd, KVM_GET_DEVICE_ATTR, &attribute) == 0;
}

void kvm_read_state(struct vcpu *vcpu, const uint64_t wanted[2], struct vcpu_engine_half *out)
{
	struct kvm_vcpu *own = kvm_vcpu(vcpu);
	uint64_t valid = 0, segments = 0, want = wanted[0];
	if (want & KVM_REGS_SCALARS && read_regs(own, want, out))
		valid |= KVM_REGS_SCALARS;
	if ((want & KVM_SREGS_SCALARS || wanted[1] & KVM_SEGMENTS_ALL) && read_sregs(own, out)) {
		valid |= KVM_SREGS_SCALARS;
		segments |= KVM_SEGMENTS_ALL;
	}
	if (want & KVM_EVENTS_SCALARS && read_events(own, out))
		valid |= KVM_EVENTS_SCALARS;
	if (want & KVM_DEBUG_SCALARS && read_debug(own, out))
		valid |= KVM_DEBUG_SCALARS;
	if (want & KVM_XCR_SCALARS && read_xcr0(own, &out->scalar[REG_XCR0]))
		valid |= KVM_XCR_SCALARS;
	if (want & KVM_PDPTE_SCALARS && kvm_pdpte_read(own->fd, &out->scalar[REG_PDPTE0]))
		valid |= KVM_PDPTE_SCALARS;
	if (want & KVM_TSC_OFFSET_SCALARS && read_tsc_offset(own, &out->scalar[REG_TSC_OFFSET]))
		valid |= KVM_TSC_OFFSET_SCALARS;
	if (want & KVM_MSR_SCALARS)
		valid |= kvm_msr_read(own->fd, want & KVM_MSR_SCALARS, out->scalar);
	_Static_assert(sizeof(struct kvm_xsave) == VCPU_FPU_BYTES, "KVM's XSAVE area is the page's");
	if (wanted[1] >> VCPU_FPU_BIT & 1 && ioctl(own->fd, KVM_GET_XSAVE, vcpu->fpu_valid) == 0)
		segments |= KVM_BIT(VCPU_FPU_BIT);
	out->valid[0] = valid & want;
	out->valid[1] = segments & wanted[1];
}

static bool write_debug(const struct kvm_vcpu *own, const struct vcpu_vmm_half *charged)
{
	struct kvm_debugregs debug;
	if (ioctl(own->fd, KVM_GET_DEBUGREGS, &debug) < 0)
		return false;
	for (unsigned i = 0; i < 4; i++)
		if (charged->charged[0] >> (REG_DR0 + i) & 1)
			debug.db[i] = charged->scalar[REG_DR0 + i];
	if (charged->charged[0] >> REG_DR6 & 1)
		debug.dr6 = charged->scalar[REG_DR6];
	if (charged->charged[0] >> REG_DR7 & 1)
		debug.dr7 = charged->scalar[REG_DR7];
	return ioctl(own->fd, KVM_SET_DEBUGREGS, &debug) == 0;
}

static bool write_xcr0(const struct kvm_vcpu *own, uint64_t value)
{
	struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = value}}};
	return ioctl(own->fd, KVM_SET_XCRS, &xcrs) == 0;
}

static bool write_tsc_offset(const struct kvm_vcpu *own, uint64_t value)
{
	struct kvm_device_attr attribute = tsc_offset(&value);
	return ioctl(own->fd, KVM_SET_DEVICE_ATTR, &attribute) == 0;
}

/* What XRSTOR raises #GP for (SDM vol. 1, 13.8.1) KVM checks, but for MXCSR where XSTATE_BV does not name SSE. */
static bool write_fpu(const struct kvm_vcpu *own, const uint8_t *area)
{
	uint32_t mxcsr;
	memcpy(&mxcsr, area + FPU_MXCSR, sizeof(mxcsr));
	return !(mxcsr & MXCSR_RESERVED) && ioctl(own->fd, KVM_SET_XSAVE, area) == 0;
}

/* What moves by ioctls of its own. */
static bool write_directly(struct kvm_vcpu *own, const struct vcpu_vmm_half *charged, const uint8_t *fpu)
{
	uint64_t set = charged->charged[0];
	if (set & KVM_DEBUG_SCALARS && !write_debug(own, charged))
		return false;
	if (set & KVM_XCR_SCALARS && !write_xcr0(own, charged->scalar[REG_XCR0]))
		return false;
	if (set & KVM_TSC_OFFSET_SCALARS && !write_tsc_offset(own, charged->scalar[REG_TSC_OFFSET]))
		return false;
	if (set & KVM_MSR_SCALARS && !kvm_msr_write(own->fd, set & KVM_MSR_SCALARS, charged->scalar))
		return false;
	return !fpu || write_fpu(own, fpu);
}

static bool write_regs(struct kvm_vcpu *own, const struct vcpu_vmm_half *charged)
{
	if (!freshen(own, KVM_SYNC_X86_REGS))
		return false;
	for (unsigned i = REG_RAX; i <= REG_RFLAGS; i++)
		if (charged->charged[0] >> i & 1)
			*regs_field(&own->run->s.regs.regs, i) = charged->scalar[i];
	own->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
	return true;
}

static bool write_sregs(struct vcpu *vcpu, const struct vcpu_vmm_half *charged)
{
	struct kvm_vcpu *own = kvm_vcpu(vcpu);
	const struct kvm_sregs *sregs = &own->run->s.regs.sregs;
	if (!freshen(own, KVM_SYNC_X86_SREGS) || !kvm_sregs_set(&own->run->s.regs.sregs, charged))
		return false;
	/* That KVM has no paging but long mode's: it clears PG and says nothing. */
	if (kvm_vm(vcpu->vm)->software && sregs->cr0 & CR0_PG && !(sregs->efer & EFER_LME))
		return false;
	own->run->cr8 = own->run->s.regs.sregs.cr8; /* KVM_RUN takes the task priority from there */
	own->run->kvm_dirty_regs |= KVM_SYNC_X86_SREGS;
	return true;
}

static bool write_events(struct kvm_vcpu *own, uint64_t interruptibility)
{
	if (!freshen(own, KVM_SYNC_X86_EVENTS))
		return false;
	struct kvm_vcpu_events *events = &own->run->s.regs.events;
	events->interrupt.shadow = (interruptibility & VCPU_SHADOW_STI ? KVM_X86_SHADOW_INT_STI : 0) |
				   (interruptibility & VCPU_SHADOW_MOV_SS ? KVM_X86_SHADOW_INT_MOV_SS : 0);
	events->nmi.masked = (interruptibility & VCPU_SHADOW_NMI) != 0;
	events->flags |= KVM_VCPUEVENT_VALID_SHADOW;
	own->run->kvm_dirty_regs |= KVM_SYNC_X86_EVENTS;
	return true;
}

static bool write_synchronized(struct vcpu *vcpu, const struct vcpu_vmm_half *charged)
{
	struct kvm_vcpu *own = kvm_vcpu(vcpu);
	uint64_t set = charged->charged[0];
	if (set & KVM_REGS_SCALARS && !write_regs(own, charged))
		return false;
	if ((set & KVM_SREGS_SCALARS || charged->charged[1] & KVM_SEGMENTS_ALL) && !write_sregs(vcpu, charged))
		return false;
	return !(set & KVM_EVENTS_SCALARS) || write_events(own, charged->scalar[REG_INTERRUPTIBILITY]);
}

/* Have KVM take over what is dirty, which also tells whether an interrupt could be injected now. */
static bool commit(struct kvm_vcpu *own)
{
	int error = kvm_complete(own);
	return !error || error == -EINTR;
}

bool kvm_write_state(struct vcpu *vcpu, const struct vcpu_vmm_half *charged, const uint8_t *fpu)
{
	/* General registers and rip can neither be refused nor change what can be injected: they wait for the
	 * next KVM_RUN, which saves an ioctl that costs nearly as much as an exit. */
	const uint64_t can_wait = KVM_REGS_SCALARS & ~KVM_BIT(REG_RFLAGS);
	struct kvm_vcpu *own = kvm_vcpu(vcpu);
	bool at_once = charged->charged[0] & ~can_wait || charged->charged[1];

	uint64_t pdptes = charged->charged[0] & KVM_PDPTE_SCALARS; /* after CR3, which loads them */

	/* What waits from before is not to be lost with what may be refused now. */
	bool settled = !at_once || !own->run->kvm_dirty_regs || commit(own);
	bool entered = settled && write_directly(own, charged, fpu) && write_synchronized(vcpu, charged) &&
		       (!at_once || commit(own)) &&
		       (!pdptes || kvm_pdpte_write(own->fd, pdptes, charged->scalar));
	if (!entered) {
		own->run->kvm_dirty_regs = 0;
		own->fresh = 0;
	}
	return entered;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The instruction that comes next: where it is, and what can be told of it without executing it.
 */
#include "kvm.h"

#define PAGE_MASK 0xfffull
#define INSTRUCTION_LIMIT 15u /* bytes of the longest instruction */
#define HLT 0xf4u
#define EFER_LMA 0x400u
#define ATTRIBUTE_LONG 0x200u /* L, in the page's form of a segment's attributes */
#define PRIVILEGE(attributes) ((attributes) >> 5 & 3) /* DPL; of SS it is the CPL */

/* What decides how code runs. */
struct code {
	uint64_t linear;    /* of the next instruction */
	unsigned privilege; /* CPL */
	bool long_mode;     /* of 64 bits */
};

/* False when KVM does not tell. */
static bool read_code(struct vcpu *vcpu, struct code *code)
{
	static const uint64_t wanted[2] = {1ull << REG_RIP | 1ull << REG_EFER, 1ull << SEG_CS | 1ull << SEG_SS};
	struct vcpu_engine_half state;
	kvm_read_state(vcpu, wanted, &state);
	if (state.valid[0] != wanted[0] || state.valid[1] != wanted[1])
		return false;
	code->privilege = PRIVILEGE(state.segment[SEG_SS].attributes);
	code->long_mode = state.scalar[REG_EFER] & EFER_LMA && state.segment[SEG_CS].attributes & ATTRIBUTE_LONG;
	code->linear = state.scalar[REG_RIP];
	if (!code->long_mode)
		code->linear = (uint32_t)(code->linear + state.segment[SEG_CS].base);
	return true;
}

/* False when the guest's page tables have nothing there. */
static bool translate(struct vcpu *vcpu, uint64_t linear, uint64_t *gpa)
{
	struct kvm_translation translation = {.linear_address = linear};
	if (ioctl(kvm_vcpu(vcpu)->fd, KVM_TRANSLATE, &translation) < 0 || !translation.valid)
		return false;
	*gpa = translation.physical_address;
	return true;
}

static bool unmapped(struct vcpu *vcpu, uint64_t linear, uint64_t *gpa)
{
	return translate(vcpu, linear, gpa) && !memory_find(vcpu->vm, *gpa);
}

bool kvm_fetch_fault(struct vcpu *vcpu, uint64_t *gpa)
{
	struct code code;
	if (!read_code(vcpu, &code))
		return false;
	if (unmapped(vcpu, code.linear, gpa))
		return true;
	uint64_t last = code.linear + INSTRUCTION_LIMIT - 1;
	return (last ^ code.linear) & ~PAGE_MASK && unmapped(vcpu, last & ~PAGE_MASK, gpa);
}

bool kvm_halts_next(struct vcpu *vcpu)
{
	struct code code;
	uint64_t gpa;
	if (kvm_vcpu(vcpu)->event_due || !read_code(vcpu, &code) || code.privilege)
		return false;
	if (!translate(vcpu, code.linear, &gpa))
		return false;
	const struct region *region = memory_find(vcpu->vm, gpa);
	return region && *(const volatile uint8_t *)(region->host + (gpa - region->gpa)) == HLT;
}

bool kvm_runs_natively(struct vcpu *vcpu)
{
	struct code code;
	return read_code(vcpu, &code) && code.long_mode && code.privilege == 3;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "kvm_sregs.h"

#include <stddef.h>

#define CR8_LIMIT 15u

static const struct {
	unsigned scalar;
	size_t offset;
} scalars[] = {
	{REG_CR0, offsetof(struct kvm_sregs, cr0)},   {REG_CR2, offsetof(struct kvm_sregs, cr2)},
	{REG_CR3, offsetof(struct kvm_sregs, cr3)},   {REG_CR4, offsetof(struct kvm_sregs, cr4)},
	{REG_CR8, offsetof(struct kvm_sregs, cr8)},   {REG_EFER, offsetof(struct kvm_sregs, efer)},
	{REG_APIC_BASE, offsetof(struct kvm_sregs, apic_base)},
};

static const size_t segments[] = {
	[SEG_ES] = offsetof(struct kvm_sregs, es), [SEG_CS] = offsetof(struct kvm_sregs, cs),
	[SEG_SS] = offsetof(struct kvm_sregs, ss), [SEG_DS] = offsetof(struct kvm_sregs, ds),
	[SEG_FS] = offsetof(struct kvm_sregs, fs), [SEG_GS] = offsetof(struct kvm_sregs, gs),
	[SEG_LDTR] = offsetof(struct kvm_sregs, ldt), [SEG_TR] = offsetof(struct kvm_sregs, tr),
};

static __u64 *field(struct kvm_sregs *sregs, size_t offset)
{
	return (__u64 *)((uint8_t *)sregs + offset);
}

static struct vcpu_segment_value get_segment(const struct kvm_segment *segment)
{
	return (struct vcpu_segment_value){
		.selector = segment->selector,
		.attributes = (uint16_t)(segment->type | segment->s << 4 | segment->dpl << 5 | segment->present << 7 |
					 segment->avl << 8 | segment->l << 9 | segment->db << 10 | segment->g << 11),
		.limit = segment->limit,
		.base = segment->base,
	};
}

static struct kvm_segment set_segment(const struct vcpu_segment_value *value)
{
	uint16_t attributes = value->attributes;
	return (struct kvm_segment){
		.base = value->base,
		.limit = value->limit,
		.selector = value->selector,
		.type = attributes & 0xf,
		.s = attributes >> 4 & 1,
		.dpl = attributes >> 5 & 3,
		.present = attributes >> 7 & 1,
		.avl = attributes >> 8 & 1,
		.l = attributes >> 9 & 1,
		.db = attributes >> 10 & 1,
		.g = attributes >> 11 & 1,
		.unusable = !(attributes >> 7 & 1),
	};
}

static struct vcpu_segment_value get_table(const struct kvm_dtable *table)
{
	return (struct vcpu_segment_value){.limit = table->limit, .base = table->base};
}

static bool set_table(struct kvm_dtable *table, const struct vcpu_segment_value *value)
{
	table->base = value->base;
	table->limit = (uint16_t)value->limit;
	return value->limit <= UINT16_MAX;
}

void kvm_sregs_get(const struct kvm_sregs *sregs, struct vcpu_engine_half *out)
{
	struct kvm_sregs *from = (struct kvm_sregs *)sregs;
	for (size_t i = 0; i < sizeof(scalars) / sizeof(scalars[0]); i++)
		out->scalar[scalars[i].scalar] = *field(from, scalars[i].offset);
	for (unsigned i = SEG_ES; i <= SEG_TR; i++)
		out->segment[i] = get_segment((const struct kvm_segment *)((const uint8_t *)sregs + segments[i]));
	out->segment[SEG_GDTR] = get_table(&sregs->gdt);
	out->segment[SEG_IDTR] = get_table(&sregs->idt);
}

bool kvm_sregs_set(struct kvm_sregs *sregs, const struct vcpu_vmm_half *charged)
{
	for (size_t i = 0; i < sizeof(scalars) / sizeof(scalars[0]); i++)
		if (charged->charged[0] >> scalars[i].scalar & 1)
			*field(sregs, scalars[i].offset) = charged->scalar[scalars[i].scalar];
	for (unsigned i = SEG_ES; i <= SEG_TR; i++)
		if (charged->charged[1] >> i & 1)
			*(struct kvm_segment *)((uint8_t *)sregs + segments[i]) = set_segment(&charged->segment[i]);
	if (charged->charged[1] >> SEG_GDTR & 1 && !set_table(&sregs->gdt, &charged->segment[SEG_GDTR]))
		return false;
	if (charged->charged[1] >> SEG_IDTR & 1 && !set_table(&sregs->idt, &charged->segment[SEG_IDTR]))
		return false;
	return sregs->cr8 <= CR8_LIMIT;
}

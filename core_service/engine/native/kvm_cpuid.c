/* SPDX-License-Identifier: Apache-2.0
 *
 * The CPUID of KVM's vCPUs: KVM_GET_SUPPORTED_CPUID less what nothing here serves. There is no local APIC, so
 * all that lives in it or needs it is hidden, and so is nested virtualization, whose state no register of ours
 * holds; KVM's paravirtual leaves are replaced by one of our own, that the same guest meets on every engine.
 */
#include <stdlib.h>
#include <string.h>

#include "failure.h"
#include "kvm.h"

#define OWN_LEAVES 2u
#define ENTRIES (CHANNEL_CPUID_LEAVES - OWN_LEAVES)
#define HYPERVISOR_LEAF 0x40000000u
#define TSC_LEAF 0x15u
#define CRYSTAL_HZ 1000000u /* TSC Hz = crystal * ebx / eax (SDM vol. 2, CPUID 15H): exact for any kHz */

#define LEAF1_ECX_HIDDEN (1u << 3 /* MONITOR */ | 1u << 5 /* VMX */ | 1u << 21 /* x2APIC */ | 1u << 24 /* TSC deadline */)
#define LEAF1_EDX_HIDDEN (1u << 9 /* APIC */)
#define EXTENDED1_ECX_HIDDEN (1u << 2 /* SVM */ | 1u << 3 /* extended APIC space */ | 1u << 29 /* MONITORX */)
#define EXTENDED1_EDX_HIDDEN (1u << 9 /* APIC */)

static bool hidden(const struct kvm_cpuid_entry2 *entry)
{
	switch (entry->function) {
	case 0x5: /* MONITOR */
	case 0x6: /* thermal and power, the APIC timer's rate */
	case 0xa: /* performance counters: their interrupt is the APIC's */
	case 0xb: /* x2APIC topology */
	case 0x1f:
	case TSC_LEAF: /* our own is added */
	case 0x8000000a: /* SVM */
		return true;
	default:
		return entry->function >> 16 == HYPERVISOR_LEAF >> 16;
	}
}

static void mask(struct kvm_cpuid_entry2 *entry)
{
	switch (entry->function) {
	case 0:
		if (entry->eax < TSC_LEAF)
			entry->eax = TSC_LEAF;
		break;
	case 1:
		entry->ecx &= ~LEAF1_ECX_HIDDEN;
		entry->edx &= ~LEAF1_EDX_HIDDEN;
		break;
	case 0x80000001:
		entry->ecx &= ~EXTENDED1_ECX_HIDDEN;
		entry->edx &= ~EXTENDED1_EDX_HIDDEN;
		break;
	}
}

static void add(struct kvm_cpuid2 *cpuid, struct kvm_cpuid_entry2 entry)
{
	cpuid->entries[cpuid->nent++] = entry;
}

static void add_own(struct kvm_cpuid2 *cpuid, uint32_t tsc_khz)
{
	struct kvm_cpuid_entry2 hypervisor = {.function = HYPERVISOR_LEAF, .eax = HYPERVISOR_LEAF};
	memcpy(&hypervisor.ebx, "vmse", 4);
	memcpy(&hypervisor.ecx, "ssio", 4);
	memcpy(&hypervisor.edx, "n\0\0", 4);
	add(cpuid, hypervisor);
	if (tsc_khz)
		add(cpuid, (struct kvm_cpuid_entry2){
				   .function = TSC_LEAF, .eax = 1000, .ebx = tsc_khz, .ecx = CRYSTAL_HZ});
}

static void restrict_to_served(struct kvm_cpuid2 *cpuid, uint32_t tsc_khz)
{
	uint32_t found = cpuid->nent;
	cpuid->nent = 0;
	for (uint32_t i = 0; i < found; i++) {
		if (hidden(&cpuid->entries[i]))
			continue;
		mask(&cpuid->entries[i]);
		add(cpuid, cpuid->entries[i]);
	}
	add_own(cpuid, tsc_khz);
}

static struct kvm_cpuid2 *allocate(uint32_t entries)
{
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + entries * sizeof(cpuid->entries[0]));
	if (cpuid)
		cpuid->nent = entries;
	return cpuid;
}

struct kvm_cpuid2 *kvm_cpuid_read(int kvm_fd, uint32_t tsc_khz)
{
	struct kvm_cpuid2 *cpuid = allocate(ENTRIES + OWN_LEAVES);
	if (!cpuid)
		return NULL;
	cpuid->nent = ENTRIES;
	if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) < 0) {
		free(cpuid);
		return NULL;
	}
	restrict_to_served(cpuid, tsc_khz);
	return cpuid;
}

static const struct kvm_cpuid_entry2 *find(const struct kvm_cpuid2 *cpuid, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < cpuid->nent; i++)
		if (cpuid->entries[i].function == function && cpuid->entries[i].index == index)
			return &cpuid->entries[i];
	return NULL;
}

uint32_t kvm_cpuid_physical_bits(const struct kvm_cpuid2 *cpuid)
{
	const struct kvm_cpuid_entry2 *sizes = find(cpuid, 0x80000008, 0);
	return sizes ? sizes->eax & 0xff : 36; /* SDM vol. 3, 4.1.4 */
}

uint32_t kvm_cpuid_xsave_bytes(const struct kvm_cpuid2 *cpuid)
{
	const struct kvm_cpuid_entry2 *xsave = find(cpuid, 0xd, 0);
	uint32_t bytes = xsave ? xsave->ecx : 576; /* legacy region and header: SDM vol. 1, 13.4 */
	return bytes < VCPU_FPU_BYTES ? bytes : VCPU_FPU_BYTES;
}

/* Fails with errno; the table is the vCPU's own from then on, or freed. */
static bool set(struct kvm_vcpu *own, struct kvm_cpuid2 *cpuid)
{
	if (ioctl(own->fd, KVM_SET_CPUID2, cpuid) < 0) {
		free(cpuid);
		return false;
	}
	free(own->cpuid);
	own->cpuid = cpuid;
	return true;
}

bool kvm_cpuid_begin(struct vcpu *vcpu)
{
	const struct kvm_cpuid2 *cpuid = kvm_vm(vcpu->vm)->cpuid;
	struct kvm_cpuid2 *own = allocate(cpuid->nent);
	if (!own)
		return false;
	memcpy(own, cpuid, sizeof(*cpuid) + cpuid->nent * sizeof(cpuid->entries[0]));
	for (uint32_t i = 0; i < own->nent; i++)
		if (own->entries[i].function == 1)
			own->entries[i].ebx = (own->entries[i].ebx & 0x00ffffff) | vcpu->index << 24; /* initial APIC id */
	return set(kvm_vcpu(vcpu), own);
}

uint32_t kvm_get_cpuid(struct vcpu *vcpu, struct cpuid_leaf *leaf)
{
	const struct kvm_cpuid2 *cpuid = kvm_vcpu(vcpu)->cpuid;
	for (uint32_t i = 0; i < cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];
		leaf[i] = (struct cpuid_leaf){
			.function = entry->function,
			.index = entry->index,
			.flags = entry->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX ? CPUID_SUBLEAF : 0,
			.eax = entry->eax,
			.ebx = entry->ebx,
			.ecx = entry->ecx,
			.edx = entry->edx,
		};
	}
	return cpuid->nent;
}

/* The XSAVE area keeps the size that the host's components need: it stands in the page's header, and components
 * that the new table does not have are in their initial state. */
enum channel_status kvm_set_cpuid(struct vcpu *vcpu, const struct cpuid_leaf *leaf, uint32_t leaves,
				  struct failure *failure)
{
	struct kvm_cpuid2 *cpuid = allocate(leaves);
	if (!cpuid)
		return failed_call(failure, "vCPU %u: CPUID", vcpu->index);
	for (uint32_t i = 0; i < leaves; i++)
		cpuid->entries[i] = (struct kvm_cpuid_entry2){
			.function = leaf[i].function,
			.index = leaf[i].index,
			.flags = leaf[i].flags & CPUID_SUBLEAF ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
			.eax = leaf[i].eax,
			.ebx = leaf[i].ebx,
			.ecx = leaf[i].ecx,
			.edx = leaf[i].edx,
		};
	if (set(kvm_vcpu(vcpu), cpuid))
		return CHANNEL_OK;
	failed_call(failure, "vCPU %u: KVM_SET_CPUID2 of %u leaves", vcpu->index, leaves);
	return CHANNEL_BAD_MESSAGE; /* what the kernel refuses is the table */
}

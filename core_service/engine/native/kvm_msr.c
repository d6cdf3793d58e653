/* SPDX-License-Identifier: Apache-2.0 */
#include "kvm_msr.h"

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "vcpu_page.h"

static const struct {
	unsigned scalar;
	uint32_t msr;
} numbers[] = {
	{REG_XSS, 0xda0},
	{REG_SYSENTER_CS, 0x174},
	{REG_SYSENTER_SP, 0x175},
	{REG_SYSENTER_IP, 0x176},
	{REG_STAR, 0xc0000081},
	{REG_LSTAR, 0xc0000082},
	{REG_CSTAR, 0xc0000083},
	{REG_FMASK, 0xc0000084},
	{REG_KERNEL_GS_BASE, 0xc0000102},
	{REG_TSC, 0x10},
	{REG_TSC_AUX, 0xc0000103},
	{REG_PAT, 0x277},
};

#define NUMBERS (sizeof(numbers) / sizeof(numbers[0]))

struct msr_list {
	struct kvm_msrs header;
	struct kvm_msr_entry entries[NUMBERS];
};

uint64_t kvm_msr_scalar(uint32_t msr)
{
	for (unsigned i = 0; i < NUMBERS; i++)
		if (numbers[i].msr == msr)
			return 1ull << numbers[i].scalar;
	return 0;
}

/* One by one: KVM stops at the first MSR that this host does not have, and TSC_AUX and XSS are such. */
uint64_t kvm_msr_read(int vcpu_fd, uint64_t wanted, uint64_t *scalar)
{
	uint64_t read = 0;
	for (unsigned i = 0; i < NUMBERS; i++) {
		uint64_t bit = 1ull << numbers[i].scalar;
		struct msr_list one = {.header = {.nmsrs = 1}, .entries = {{.index = numbers[i].msr}}};
		if (!(wanted & bit) || ioctl(vcpu_fd, KVM_GET_MSRS, &one) != 1)
			continue;
		scalar[numbers[i].scalar] = one.entries[0].data;
		read |= bit;
	}
	return read;
}

bool kvm_msr_write(int vcpu_fd, uint64_t charged, const uint64_t *scalar)
{
	struct msr_list list = {.header = {.nmsrs = 0}};
	for (unsigned i = 0; i < NUMBERS; i++)
		if (charged >> numbers[i].scalar & 1)
			list.entries[list.header.nmsrs++] = (struct kvm_msr_entry){
				.index = numbers[i].msr, .data = scalar[numbers[i].scalar]};
	return ioctl(vcpu_fd, KVM_SET_MSRS, &list) == (int)list.header.nmsrs;
}
